"""`stimloop bench evolve`: optimisers and generators compared on simulated neurons at equal presentations.

This module plans the runs, spreads them over processes and keeps a checkpoint file; `rig.bench.evolve_summary` makes
the figures. What computes (neurons, generators, optimisers) comes in as an `EvolveSide`: `rig.cli` joins them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from rig.clock import Clock, HostClock
from rig.config.evolution_bench import OURS, BenchRun, BenchUnit, Noise, Population
from rig.config.generators import AnyGenerator
from rig.config.reading import ConfigError

U8 = npt.NDArray[np.uint8]
Say = Callable[[str], None]
ROWS = "rows.jsonl"
BROKEN = (ValueError, RuntimeError, ArithmeticError, AssertionError, MemoryError)  # a run's own: the others go on
REPORT_NS = 20_000_000_000
# Of the processes that compute. NumPy's own threads in several processes wait for each other (2.7 times as long on two
# cores), and memory that goes back to the system after every layer costs as much again as the layer.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
}


@dataclass(frozen=True)
class EvolveSide:
    """What the bench takes from the models."""

    run: Callable[[BenchRun, Callable[[], int]], dict[str, Any]]
    """One run; a function of a module, since it is called in other processes."""
    natural: Callable[[Path | None, int], U8]
    """Natural images (n, y, x, rgb) of a zip file, or shipped ones."""
    contrast_of: Callable[[U8], float]
    draw: Callable[[Population, int, Path | None, U8], list[BenchUnit]]
    """Units of a population with their answers to the natural images."""
    check_generator: Callable[[AnyGenerator], None]
    """Raises ValueError or OSError if it cannot be made."""
    lacking: Callable[[Sequence[str]], list[str]]
    """Why some of these optimisers cannot take part."""
    copes_with_missing: Callable[[str], bool]
    """Whether an optimiser goes on when responses are missing or late."""
    update_ms: Callable[[str, int, Callable[[], int]], float]
    """Time of an optimiser's update of 40 codes of that many numbers."""


@dataclass(frozen=True)
class Choices:
    """What the user asked for."""

    populations: tuple[Population, ...]
    units: int
    generators: tuple[str, ...]
    noises: tuple[Noise, ...]
    optimisers: tuple[str, ...]
    seeds: int
    presentations: int
    out: Path
    models: Path | None = None
    images: Path | None = None
    natural: int = 400
    disturbed: bool = False
    workers: int = 1
    resume: bool = False
    minutes: float | None = None


def generator_settings(text: str, contrast: float) -> AnyGenerator:
    """Return settings of `type` or `type:key=value:key=value`, at the natural images' contrast; raises ConfigError."""
    name, *rest = text.replace(":", "\n", 1).split("\n")
    given: dict[str, Any] = {"type": name, "contrast": contrast}
    last = ""
    for part in rest[0].split(":") if rest else ():
        key, equals, value = part.partition("=")
        if equals:
            given[key], last = value, key
        elif last:  # a path may hold colons
            given[last] += f":{part}"
    try:
        settings: AnyGenerator = TypeAdapter(AnyGenerator).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise ConfigError(f"--generators {text}: {where}: {first['msg']}; for example dct:frequencies=20") from error
    return settings


def plan(choices: Choices, units: Sequence[BenchUnit], contrast: float, side: EvolveSide) -> list[BenchRun]:
    """Return all runs, seed by seed, so that a bench that is cut short has compared like with like."""
    runs = []
    kinds = [(text, generator_settings(text, contrast)) for text in choices.generators]
    for seed in range(choices.seeds):
        for unit in units:
            for label, settings in kinds:
                for noise in choices.noises:
                    for optimiser in choices.optimisers:
                        one = BenchRun(
                            unit=unit,
                            generator=settings,
                            label=label,
                            noise=noise,
                            optimiser=optimiser,
                            seed=seed,
                            presentations=choices.presentations,
                        )
                        runs.append(one)
                        if choices.disturbed and side.copes_with_missing(optimiser):
                            runs.append(one.model_copy(update={"disturbed": True}))
    return runs


def _require(text: str, settings: AnyGenerator, side: EvolveSide) -> None:
    """Raise ConfigError if a generator cannot be made; a bench of hours must not find out later."""
    try:
        side.check_generator(settings)
    except (ValueError, OSError) as error:
        raise ConfigError(f"--generators {text}: {error}") from error


class Checkpoint:
    """The finished rows of a bench, one JSON object a line, behind a line that says on what they were made."""

    def __init__(self, folder: Path, basis: dict[str, Any], resume: bool) -> None:
        """Open the file in `folder`; raises ConfigError where it is not to be continued, or of another bench."""
        self.path = folder / ROWS
        self.rows: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            self._append(basis)
            return
        if not resume:
            raise ConfigError(f"{self.path} is there already; add --resume to go on with it, or choose another --out")
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be torn
        if not whole or whole[0] != basis:
            differ = sorted(k for k in basis if not whole or whole[0].get(k) != basis[k])
            raise ConfigError(f"{self.path} was made with other {', '.join(differ)}; choose another --out")
        self.rows = {row["key"]: row for row in whole[1:]}
        if len(whole) < len(lines):
            self.path.write_text("".join(lines[:-1]), encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        """Keep a finished row."""
        self.rows[row["key"]] = row
        self._append(row)

    def _append(self, value: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")


def one_run(side_run: Callable[[BenchRun, Callable[[], int]], dict[str, Any]], spec: BenchRun) -> dict[str, Any]:
    """Compute a run on this process's clock; a run that breaks down becomes a row that says why."""
    try:
        return side_run(spec, HostClock().now_ns)
    except BROKEN as error:
        return {"key": spec.key, "failed": f"{type(error).__name__}: {error}"}


def compute(
    runs: Sequence[BenchRun], side: EvolveSide, checkpoint: Checkpoint, choices: Choices, clock: Clock, say: Say
) -> bool:
    """Compute what the checkpoint does not have yet; return False if the time was up before the end."""
    todo = [spec for spec in runs if spec.key not in checkpoint.rows or "failed" in checkpoint.rows[spec.key]]
    start_ns = said_ns = clock.now_ns()
    until_ns = None if choices.minutes is None else start_ns + int(choices.minutes * 60e9)
    say(f"{len(runs)} runs, {len(runs) - len(todo)} of them done before")

    def in_time() -> Iterator[BenchRun]:
        for spec in todo:
            if until_ns is not None and clock.now_ns() > until_ns:
                return
            yield spec

    done = 0
    for row in _computed(in_time(), side, choices.workers):
        checkpoint.add(row)
        done += 1
        if "failed" in row:
            say(f"failed: {row['key']}: {row['failed']}")
        if (now_ns := clock.now_ns()) - said_ns > REPORT_NS:
            said_ns = now_ns
            each_s = (now_ns - start_ns) * 1e-9 / done
            say(f"{done} of {len(todo)} runs, {each_s:.1f} s each, {each_s * (len(todo) - done) / 60:.0f} min to go")
    return done == len(todo)


def _computed(specs: Iterator[BenchRun], side: EvolveSide, workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        for spec in specs:
            yield one_run(side.run, spec)
        return
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        # Not all at once: what was not begun when the time is up must not be computed.
        open_runs: set[Future[dict[str, Any]]] = set()
        try:
            while True:
                open_runs |= {pool.submit(one_run, side.run, s) for s in islice(specs, workers + 1 - len(open_runs))}
                if not open_runs:
                    return
                finished, open_runs = wait(open_runs, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        finally:  # stopped by the user: what has begun is waited for, the rest is not begun
            pool.shutdown(cancel_futures=True)


def evolve(choices: Choices, side: EvolveSide, clock: Clock, say: Say) -> dict[str, Any]:
    """Run the bench; return figures and rows. Raises ConfigError."""
    from rig.bench.evolve_summary import summary

    if wrong := side.lacking(choices.optimisers):
        raise ConfigError("; ".join(wrong))
    images = side.natural(choices.images, choices.natural)
    contrast = round(min(side.contrast_of(images), 0.7), 3)
    say(f"{len(images)} natural images, median RMS contrast {contrast}: that of every generated image")
    for text in choices.generators:
        _require(text, generator_settings(text, contrast), side)
    units = [u for p in choices.populations for u in side.draw(p, choices.units, choices.models, images)]
    runs = plan(choices, units, contrast, side)
    basis = {
        "natural images": hashlib.sha256(images.tobytes()).hexdigest(),
        "scales": {u.name: [round(u.a, 6), round(u.b, 6)] for u in units},
    }
    if choices.disturbed and (strict := [n for n in choices.optimisers if not side.copes_with_missing(n)]):
        say(f"undisturbed only, as they take no missing score: {', '.join(strict)}")
    checkpoint = Checkpoint(choices.out, basis, choices.resume)
    complete = compute(runs, side, checkpoint, choices, clock, say)
    wanted = {spec.key for spec in runs}
    rows = [row for key, row in checkpoint.rows.items() if key in wanted and "failed" not in row]
    failed = [f"{key}: {row['failed']}" for key, row in checkpoint.rows.items() if key in wanted and "failed" in row]
    return {
        "complete": complete and not failed,
        "runs": f"{len(rows)} of {len(runs)}",
        "failed": failed,
        "natural_images": len(images),
        "contrast": contrast,
        **summary(rows, [u.model_dump(mode="json") for u in units], choices.generators[0]),
    }


def updates(names: Sequence[str], latent: int, side: EvolveSide, clock: Clock) -> dict[str, Any]:
    """Return the time of an update of 40 codes of `latent` numbers for each optimiser, ms."""
    if wrong := side.lacking(names):
        raise ConfigError("; ".join(wrong))
    times = {name: round(side.update_ms(name, latent, clock.now_ns), 2) for name in names}
    rows = [{"optimiser": name, "latent": latent, "update_ms": ms} for name, ms in times.items()]
    return {**({"update_ms": times[OURS]} if OURS in times else {}), "rows": rows}
