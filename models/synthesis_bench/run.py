"""`stimloop bench synthesis`: most exciting images of many units of the V1 twin, at once and one at a time.

Both ways run alternately in one process, so that whatever else the computer does slows down both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.encoders.network import Network
from models.encoders.saved import read_network
from models.encoders.sensorium import sensorium
from models.generators.state_dicts import read_state
from models.synthesis.devices import described, device_of, make_exact, wait
from models.synthesis.engine import Synthesis, Synthesised, synthesise
from models.synthesis.objectives import Maximise
from models.synthesis.starts import draw
from models.synthesis_bench.comparing import Images, between_models, between_starts, columns_of, median
from models.synthesis_bench.one_by_one import OneByOne
from rig.config.reading import ConfigError
from rig.config.synthesis import ImagesBench, SynthesisBench

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Say = Callable[[str], None]
LAST_LAYER = "core.features.layer3.norm.weight"  # the linear control has one layer less
CHECKPOINT = "sensorium_sota_model.pth"
OURS = ".safetensors"
SAY_EVERY_NS = 20_000_000_000


@dataclass(frozen=True)
class Clocks:
    """What tells time: by the clock on the wall, and by what this process has computed, ns."""

    wall_ns: Callable[[], int]
    processor_ns: Callable[[], int]

    def both(self) -> I64:
        """Return both, (2,)."""
        return np.array([self.wall_ns(), self.processor_ns()], np.int64)


def bench(
    asked: SynthesisBench, wall_ns: Callable[[], int], processor_ns: Callable[[], int], say: Say
) -> dict[str, Any]:
    """Return the figures and a row for each unit. Raises ConfigError."""
    device = ready(asked, say)
    encoder = load(asked.weights, "--weights", asked).to(device)
    total = len(encoder.units)
    if asked.units > total:
        raise ConfigError(f"--units {asked.units}: the model has {total} units")
    rng = np.random.default_rng(asked.seed)
    units = tuple(int(k) for k in rng.choice(total, asked.units, replace=False))
    other = None if asked.other is None else _other(asked, tuple(encoder.units[k] for k in units), device)
    starts = draw(asked.starts, len(units), encoder.eye, asked.settings, rng)
    work = Synthesis(encoder, Maximise(units), starts, asked.settings, device)
    chosen = [divmod(int(k), len(asked.starts)) for k in np.linspace(0, starts[:, :, 0, 0, 0].size - 1, asked.singles)]
    singles = [
        OneByOne(encoder, units[u], torch.from_numpy(starts[u, s]).to(device), asked.settings) for u, s in chosen
    ]
    clocks = Clocks(wall_ns, processor_ns)
    times = _alternately(work, singles, asked.settings.iterations, device, clocks, say)
    images = Images(encoder, units, work.result(), device)
    ours = [images.found.scores[at] for at in chosen]
    theirs = [single.score() for single in singles]
    figures = {
        **_speed(times, images.found.scores.size, asked),
        "device": described(device),
        "activation_ratio": float(np.median(np.array(ours) / np.array(theirs))),
        "activation_pairs": [[round(float(a), 4), round(b, 4)] for a, b in zip(ours, theirs, strict=True)],
    }
    masks = images.masks()
    rows = between_starts(images, masks)
    figures |= _starts_agree(rows) | _exact(images.found, asked)
    if other is not None:
        say("the other model's images")
        drawn = draw(asked.starts, len(units), other[0].eye, asked.settings, rng)
        found = synthesise(other[0], Maximise(other[1]), drawn, asked.settings, device)
        figures |= models_agree(between_models(images, Images(*other, found, device), masks))
    return {**figures, "starts": list(asked.starts), "rows": rows}


def ready(asked: ImagesBench, say: Say) -> torch.device:
    """Set threads and device as asked, say which, and return the device. Raises ConfigError."""
    torch.set_num_threads(asked.threads)
    try:
        device = device_of(asked.device)
    except ValueError as error:
        raise ConfigError(f"--device: {error}") from error
    make_exact(device)
    say(f"computes on: {described(device)}")
    return device


def load(given: Path, option: str, asked: ImagesBench) -> Network:
    """Return a published model, the CNN or its linear control, or one that this program wrote. Raises ConfigError."""
    path = given if given.is_file() else given / CHECKPOINT
    if not path.exists():
        raise ConfigError(f"{option} {given}: there is no {CHECKPOINT}; give the folder or file of the model")
    try:
        if path.suffix == OURS:
            encoder = read_network(path)
        else:
            linear = LAST_LAYER not in read_state(path, "SENSORIUM 2022 weights")
            encoder = sensorium(path, linear, mean=asked.level_mean, sd=asked.level_sd)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{option} {error}") from error
    return encoder.eval().requires_grad_(False)


def _other(asked: SynthesisBench, names: tuple[str, ...], device: torch.device) -> tuple[Network, tuple[int, ...]]:
    """Return the other model and its columns of the units. Raises ConfigError."""
    if asked.other is None:
        raise ConfigError("--other: no file was given")
    encoder = load(asked.other, "--other", asked)
    try:
        return encoder.to(device), columns_of(encoder, names)
    except ValueError as error:
        raise ConfigError(f"--other {asked.other}: {error}") from error


def _alternately(
    work: Synthesis, singles: list[OneByOne], iterations: int, device: torch.device, clocks: Clocks, say: Say
) -> tuple[I64, I64]:
    """Do all steps of both ways in turn and return their times (step, 2), ns: of our steps, and of the single ones."""

    def timed(step: Callable[[], bool]) -> I64:
        begin = clocks.both()
        step()
        wait(device)
        return clocks.both() - begin

    ours: list[I64] = []
    theirs: list[I64] = []
    wanted = len(singles) * iterations
    said = clocks.wall_ns()
    for k in range(work.total_steps):
        ours.append(timed(work.step))
        while len(theirs) < wanted * (k + 1) // work.total_steps:
            theirs.append(timed(singles[len(theirs) // iterations].step))
        if clocks.wall_ns() - said > SAY_EVERY_NS:
            said = clocks.wall_ns()
            say(f"{100 * (k + 1) / work.total_steps:.0f} % done")
    return np.array(ours), np.array(theirs)


def _speed(times: tuple[I64, I64], images: int, asked: SynthesisBench) -> dict[str, Any]:
    ours, theirs = times
    steps = images * asked.settings.iterations
    single_s, single_processor_s = theirs.mean(0) * 1e-9 * steps
    together_s, together_processor_s = ours.sum(0) * 1e-9
    in_a_step = min(asked.settings.together, images)
    climbs = np.median(ours[:, 0])
    return {
        "speedup_vs_single": single_s / together_s,
        "speedup_processor_time": single_processor_s / together_processor_s if together_processor_s else None,
        "speedup_by_medians": float(np.median(theirs[:, 0]) / (climbs / in_a_step)),
        "together_s": together_s,
        "single_s": single_s,
        "together_processor_s": together_processor_s,
        "single_processor_s": single_processor_s,
        "single_measured_on": f"{len(theirs)} steps of {asked.singles} images, scaled to {steps}",
        "step_ms_p50": float(climbs) * 1e-6,
        "single_step_ms_p50": float(np.median(theirs[:, 0])) * 1e-6,
        "images": images,
        "iterations": asked.settings.iterations,
        "threads": asked.threads,
    }


def _starts_agree(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "agreement_median": median(rows, "agreement"),
        "agreement_at_least_.95": float(np.mean([row["agreement"] >= 0.95 for row in rows])),
        "multimodal": [row["unit"] for row in rows if row["multimodal"]],
    }


def models_agree(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is said of two models: medians over units, and the rows they are of."""
    return {
        "agreement_with_other": median(rows, "agreement"),
        "agreement_with_other_closest": median(rows, "closest"),
        "share_of_other": [median(rows, "share_first"), median(rows, "share_second")],
        "rows_with_other": rows,
    }


def _exact(found: Synthesised, asked: SynthesisBench) -> dict[str, Any]:
    """Return how exactly the displayed frames keep mean and contrast."""
    settings = asked.settings
    off = np.abs(found.contrast - settings.contrast) * 127.5
    return {
        "worst_mean_error_levels": float(np.abs(found.mean_level - settings.mean_level).max()),
        "worst_rms_error_levels": float(off[found.reached].max(initial=0.0)),
        "contrast_out_of_reach": int((~found.reached).sum()),
    }
