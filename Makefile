# `make demo` and `make test` do all of their set-up on a fresh Debian or Ubuntu machine: see .ci/setup.
.PHONY: help setup demo test test-slow chaos lint check clean
.DEFAULT_GOAL := help
# A session is eight processes, and the tests run hundreds: without kept byte code each compiles our modules again.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo "make demo       a whole session on the simulated animal, then its report"
	@echo "make test       lint, types, import contracts and tests"
	@echo "make test-slow  the tests that take longer"
	@echo "make chaos      sessions whose processes are killed and frozen (about 20 minutes)"
	@echo "make check      lint, types and import contracts only"
	@echo "make clean      remove .venv and caches; sessions stay"
	@echo "PYTHON=...      picks the interpreter of .venv (3.11 or 3.12)"

setup:
	@PYTHON="$(PYTHON)" bash .ci/setup

demo: setup
	@.venv/bin/stimloop demo

lint: setup
	@.venv/bin/ruff check .

check: lint
	@.venv/bin/mypy --strict rig models stimuli
	@.venv/bin/lint-imports

# Most tests run on both cores; those with a screen, and others that keep real time, one after the other and alone.
# Two test processes that each compute on both cores wait for each other.
test: check
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not chaos and not display and not alone"
	@.venv/bin/python -m pytest -m "(display or alone) and not slow and not chaos"

test-slow: setup
	@.venv/bin/python -m pytest -m slow

chaos: setup
	@.venv/bin/python -m pytest -m chaos -s

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
