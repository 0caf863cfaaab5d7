"""`--json` of the benches: a file, or alone, when standard output holds the figures and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rig.bench.json_file import with_alone

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ([], []),
        (["bench", "evolve", "--json"], ["bench", "evolve", "--json", "-"]),
        (["bench", "evolve", "--json", "--updates"], ["bench", "evolve", "--json", "-", "--updates"]),
        (["bench", "evolve", "--json", "a.json"], ["bench", "evolve", "--json", "a.json"]),
        (["bench", "evolve", "--json", "-"], ["bench", "evolve", "--json", "-"]),
    ],
)
def test_json_without_a_file_is_the_standard_output(given: list[str], meant: list[str]) -> None:
    assert with_alone(given) == meant


def test_figures_stand_alone_on_standard_output() -> None:
    words = ["bench", "evolve", "--updates", "--optimisers", "separable_cma", "--peers", "none", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "rig.cli", *words], cwd=ROOT, capture_output=True, text=True, timeout=200, check=True
    )
    assert [r["optimiser"] for r in json.loads(done.stdout)["rows"]] == ["separable_cma"]
    assert "ms for 40 codes" in done.stderr
