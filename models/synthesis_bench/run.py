"""`stimloop bench synthesis`: most exciting images of many units of the V1 twin, at once and one at a time.

Both ways run alternately in one process, so that whatever else the computer does slows down both.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.encoders.network import Network
from models.encoders.sensorium import sensorium
from models.generators.state_dicts import read_state
from models.synthesis.agreement import agreement, correlations
from models.synthesis.engine import Synthesis, Synthesised, synthesise
from models.synthesis.masks import image_mask
from models.synthesis.objectives import Maximise
from models.synthesis.starts import draw
from models.synthesis_bench.one_by_one import OneByOne
from rig.config.reading import ConfigError
from rig.config.synthesis import SynthesisBench

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Now = Callable[[], int]
Say = Callable[[str], None]
LAST_LAYER = "core.features.layer3.norm.weight"  # the linear control has one layer less
CHECKPOINT = "sensorium_sota_model.pth"
SAY_EVERY_NS = 20_000_000_000


def bench(asked: SynthesisBench, now_ns: Now, say: Say) -> dict[str, Any]:
    """Return the figures and a row for each unit. Raises ConfigError."""
    torch.set_num_threads(asked.threads)
    encoder = load(asked.weights, asked)
    other = None if asked.other is None else load(asked.other, asked)
    total = len(encoder.units)
    if other is not None and other.units != encoder.units:
        raise ConfigError(f"--other {asked.other}: it has {len(other.units)} units, the first model {total}")
    if asked.units > total:
        raise ConfigError(f"--units {asked.units}: the model has {total} units")
    rng = np.random.default_rng(asked.seed)
    units = tuple(int(k) for k in rng.choice(total, asked.units, replace=False))
    starts = draw(asked.starts, len(units), encoder.eye, asked.settings, rng)
    work = Synthesis(encoder, Maximise(units), starts, asked.settings)
    chosen = [divmod(int(k), len(asked.starts)) for k in np.linspace(0, starts[:, :, 0, 0, 0].size - 1, asked.singles)]
    singles = [OneByOne(encoder, units[u], torch.from_numpy(starts[u, s]), asked.settings) for u, s in chosen]
    times = _alternately(work, singles, asked.settings.iterations, now_ns, say)
    found = work.result()
    ours = [found.scores[at] for at in chosen]
    theirs = [single.score() for single in singles]
    return {
        **_speed(times, found.scores.size, asked),
        "activation_ratio": float(np.median(np.array(ours) / np.array(theirs))),
        "activation_pairs": [[round(float(a), 4), round(b, 4)] for a, b in zip(ours, theirs, strict=True)],
        **_agreements(found, encoder, units, asked),
        **({} if other is None else _between(found, other, units, starts, asked)),
    }


def load(given: Path, asked: SynthesisBench) -> Network:
    """Return a published model, the CNN or its linear control. Raises ConfigError."""
    path = given if given.is_file() else given / CHECKPOINT
    if not path.exists():
        raise ConfigError(f"--weights {given}: there is no {CHECKPOINT}; give the folder or file of the model")
    try:
        linear = LAST_LAYER not in read_state(path, "SENSORIUM 2022 weights")
        encoder = sensorium(path, linear, mean=asked.level_mean, sd=asked.level_sd)
    except (ValueError, OSError) as error:
        raise ConfigError(f"--weights {error}") from error
    return encoder.eval().requires_grad_(False)


def _alternately(
    work: Synthesis, singles: list[OneByOne], iterations: int, now_ns: Now, say: Say
) -> tuple[list[int], list[int]]:
    """Do all steps of both ways in turn and return their times, ns: of each of our steps, of each single step."""
    ours: list[int] = []
    theirs: list[int] = []
    wanted = len(singles) * iterations
    said = now_ns()
    for k in range(work.total_steps):
        begin = now_ns()
        work.step()
        ours.append(now_ns() - begin)
        while len(theirs) < wanted * (k + 1) // work.total_steps:
            begin = now_ns()
            singles[len(theirs) // iterations].step()
            theirs.append(now_ns() - begin)
        if now_ns() - said > SAY_EVERY_NS:
            said = now_ns()
            say(f"{100 * (k + 1) / work.total_steps:.0f} % done")
    return ours, theirs


def _speed(times: tuple[list[int], list[int]], images: int, asked: SynthesisBench) -> dict[str, Any]:
    ours, theirs = times
    steps = images * asked.settings.iterations
    single_s = float(np.mean(theirs)) * 1e-9 * steps
    together_s = float(np.sum(ours)) * 1e-9
    in_a_step = min(asked.settings.together, images)
    return {
        "speedup_vs_single": single_s / together_s,
        "speedup_by_medians": float(np.median(theirs) / (np.median(ours) / in_a_step)),
        "together_s": together_s,
        "single_s": single_s,
        "single_measured_on": f"{len(theirs)} steps of {asked.singles} images, scaled to {steps}",
        "step_ms_p50": float(np.median(ours)) * 1e-6,
        "single_step_ms_p50": float(np.median(theirs)) * 1e-6,
        "images": images,
        "iterations": asked.settings.iterations,
        "threads": asked.threads,
    }


def _mask(found: Synthesised, goal: int, asked: SynthesisBench) -> F64:
    """Return the mask of a unit's best image."""
    best = found.frames[goal, found.best[goal]].astype(np.float64).transpose(2, 0, 1)
    return image_mask(best, asked.settings.mean_level)


def _between(
    found: Synthesised, other: Network, units: tuple[int, ...], starts: F32, asked: SynthesisBench
) -> dict[str, Any]:
    """Return how the best images agree with those of another model, from the first start, within the first's masks."""
    theirs = synthesise(other, Maximise(units), starts[:, :1], asked.settings)
    agreed = []
    for goal in range(len(units)):
        pair = np.stack([found.frames[goal, found.best[goal]], theirs.frames[goal, 0]])
        agreed.append(float(correlations(pair, _mask(found, goal, asked))[0, 1]))
    return {"agreement_with_other": float(np.median(agreed)), "agreement_with_other_by_unit": agreed}


def _agreements(found: Synthesised, encoder: Network, units: tuple[int, ...], asked: SynthesisBench) -> dict[str, Any]:
    settings = asked.settings
    rows: list[dict[str, Any]] = []
    for goal, unit in enumerate(units):
        mask = _mask(found, goal, asked)
        agreed = agreement(found.frames[goal], found.rates[goal, :, 0], mask)
        rows.append(
            {
                "unit": encoder.units[unit],
                "rates": [round(float(r), 4) for r in found.rates[goal, :, 0]],
                "agreement": agreed.median,
                "multimodal": agreed.multimodal,
                "modes": [list(mode) for mode in agreed.modes],
                "mask_share": round(float(mask.mean()), 4),
            }
        )
    off = np.abs(found.contrast - settings.contrast) * 127.5
    return {
        "agreement_median": float(np.median([row["agreement"] for row in rows])),
        "agreement_at_least_.95": float(np.mean([row["agreement"] >= 0.95 for row in rows])),
        "multimodal": [row["unit"] for row in rows if row["multimodal"]],
        "worst_mean_error_levels": float(np.abs(found.mean_level - settings.mean_level).max()),
        "worst_rms_error_levels": float(off[found.reached].max(initial=0.0)),
        "contrast_out_of_reach": int((~found.reached).sum()),
        "starts": list(asked.starts),
        "rows": rows,
    }
