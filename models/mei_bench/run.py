"""`stimloop bench mei`: how much of what a known cell's true best image does is reached by a fitted model's.

Images of the model and the true optimum keep the same limits: the synthesis engine makes both, from the networks and
from the cells' own formula. Simple cells: correlation of the networks' linear filter (mean gradient over pictures) with
the true one, beside that of a ridge regression whose penalty is chosen by the truth. Complex cells: share of the first
two principal directions of the gradients that lies in the space of the true quadrature pair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.encoders.encoder import Encoder, rates_of
from models.encoders.ensemble import Ensemble
from models.encoders.eye import Eye
from models.encoders.network import Network
from models.encoders.recordings import Recording, held_out_images
from models.encoders.training import Fit
from models.synthesis.engine import synthesise
from models.synthesis.objectives import Maximise
from models.synthesis.starts import draw
from models.truth import Gabor, draw_cells
from models.truth_encoder import TruthEncoder
from rig.config.mei_bench import MeiBench
from rig.config.synthesis import Synthesis
from stimuli.geometry import Rect, pixel_angles
from stimuli.limits import HALF_RANGE
from stimuli.tiles import tiles_bank

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

SIDE, EYE_SIDE = 48, 24  # pixels of the pictures, and of what the networks see
SCORED = 500  # pictures never shown, for the correlation with the true rates
GRADIENTS = 60  # of these, pictures at which gradients are taken
TRUE_STEPS, TRUE_STARTS = 250, 1  # of the true optimum; it also begins from each cell's own grating
RIDGES = 10.0 ** np.arange(-3, 4, 0.25)
FIRST_NETWORK_SEED = 3
LEVEL = 128.0
GOAL = 0.9  # of the true optimum, above baseline


@dataclass(frozen=True)
class Experiment:
    """What was shown and answered."""

    truth: TruthEncoder
    cells: tuple[Gabor, ...]
    eye: Eye
    recording: Recording
    unseen: U8
    unseen_rates: F64
    """(picture, unit), spikes/s."""


def run(asked: MeiBench, say: Callable[[str], None]) -> dict[str, Any]:
    """Return figures and a row for each scored unit."""
    made = experiment(asked)
    rows = compared(asked, made, _fitted(asked, made, say))
    say(f"{asked.scored} units: {GOAL:.0%} of the optimum in {_share(rows):.0%}")
    return {**_figures(rows), "rows": rows}


def compared(asked: MeiBench, made: Experiment, encoder: Encoder) -> list[dict[str, Any]]:
    """Return a row for each scored unit: what the images and filters of a model of these cells are worth."""
    units = list(range(asked.scored))
    predicted = rates_of(encoder, made.unseen)[:, units]
    frames = _images(encoder, units, asked, _noise(encoder, asked, asked.starts), asked.iterations)
    best = _images(made.truth, units, asked, _from_own(made, asked), TRUE_STEPS)
    pixels = made.recording.images.flatten(1).double().numpy()
    parts = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    rows = []
    for k in units:
        cell, base = made.cells[k], made.cells[k].baseline_hz
        reached, most = (float(_true_rates(made.truth, f[k : k + 1])[0, k]) - base for f in (frames, best))
        rows.append(
            {
                "unit": made.truth.units[k],
                "kind": "complex" if cell.complex_cell else "simple",
                "r_with_truth": float(np.corrcoef(predicted[:, k], made.unseen_rates[:, k])[0, 1]),
                "fraction_of_optimum": reached / most,
                **_filters(made, encoder, k, parts),
            }
        )
    return rows


def experiment(asked: MeiBench) -> Experiment:
    """Show pictures to fresh cells."""
    azimuth, elevation = pixel_angles(Rect(376, 276, SIDE, SIDE), (800, 600), 40.0, 30.0)
    cells = draw_cells(asked.units, azimuth, elevation, np.random.default_rng(np.random.SeedSequence([asked.seed, 1])))
    truth = TruthEncoder(cells, azimuth, elevation)
    rng = np.random.default_rng([0, asked.seed])
    bank = tiles_bank()
    order = rng.permutation(len(bank.names))[: asked.presentations + SCORED]
    frames = np.stack([bank.image(bank.names[k], SIDE, SIDE) for k in order])
    shown, unseen = frames[: asked.presentations], frames[asked.presentations :]
    mean = _true_rates(truth, shown) * asked.window_s
    counts = mean if asked.noise_free else rng.poisson(mean)
    eye = Eye.for_frames(shown, EYE_SIDE, EYE_SIDE)
    held_out = held_out_images([str(k) for k in range(len(shown))], asked.validation, asked.seed)
    recording = Recording(eye.see(shown), np.arange(len(shown)), counts.astype(np.float32), held_out)
    return Experiment(truth, cells, eye, recording, unseen, _true_rates(truth, unseen))


def _fitted(asked: MeiBench, made: Experiment, say: Callable[[str], None]) -> Encoder:
    members = []
    for k in range(asked.members):
        seed = FIRST_NETWORK_SEED + k
        network = Network(asked.architecture, made.eye, {"session": made.truth.units}, seed)
        fit = Fit(network, {"session": made.recording}, asked.training, seed + 2)
        while not fit.step():
            pass
        say(f"network {k + 1}: {fit.progress.epoch} epochs, correlation with held-out counts {fit.progress.best:.3f}")
        members.append(fit.finish())
    return Ensemble(members)


def _settings(asked: MeiBench, iterations: int) -> Synthesis:
    shorter = Synthesis().iterations / iterations  # fewer steps are as much larger, so that they lead as far
    return Synthesis(
        iterations=iterations,
        step_from=Synthesis().step_from * shorter,
        step_to=Synthesis().step_to * shorter,
        mean_level=LEVEL,
        contrast=asked.contrast,
        frame_px=(SIDE, SIDE),
        together=32,
    )


def _noise(encoder: Encoder, asked: MeiBench, starts: int) -> npt.NDArray[np.float32]:
    settings = _settings(asked, asked.iterations)
    return draw(["display"] * starts, asked.scored, encoder.eye, settings, np.random.default_rng(asked.seed))


def _from_own(made: Experiment, asked: MeiBench) -> npt.NDArray[np.float32]:
    """Return starts of the true optimum: each cell's own grating at the contrast, and noise."""
    own = []
    for terms in made.truth.terms[: asked.scored]:
        pattern = terms.preferred - terms.preferred.mean()
        own.append(np.clip(LEVEL + pattern * asked.contrast * HALF_RANGE / pattern.std(), 0, 255))
    first = np.stack(own)[:, None, None].astype(np.float32)
    return np.concatenate([first, _noise(made.truth, asked, TRUE_STARTS)], 1)


def _images(
    encoder: Encoder, units: list[int], asked: MeiBench, starts: npt.NDArray[np.float32], iterations: int
) -> U8:
    found = synthesise(encoder, Maximise(tuple(units)), starts, _settings(asked, iterations))
    frames: U8 = np.stack([found.frames[k, found.best[k]] for k in range(len(units))])
    return frames


def _true_rates(truth: TruthEncoder, frames: U8) -> F64:
    return rates_of(truth, frames, 128)


def _filters(made: Experiment, encoder: Encoder, unit: int, parts: tuple[F64, F64, F64]) -> dict[str, float]:
    """Return how well the filters of one unit were found; `parts`: singular value decomposition of the pictures."""
    true = _pooled(made.truth.terms[unit].linear[:2], encoder.eye.height)
    x = encoder.eye.see(made.unseen[:GRADIENTS]).requires_grad_(True)
    (slopes,) = torch.autograd.grad(encoder.rates(x, torch.tensor([unit])).sum(), x)
    gradients = slopes.flatten(1).double().numpy()
    if made.cells[unit].complex_cell:
        found = np.linalg.svd(gradients, full_matrices=False)[2][:2].T
        pair, _ = np.linalg.qr(true.T)
        return {"subspace_overlap": float(np.linalg.norm(found.T @ pair) ** 2 / 2)}
    even = _pooled(made.truth.terms[unit].linear[:1], made.eye.height)[0]
    ridge = max(_cosine(one, even) for one in _ridges(parts, made.recording.responses[:, unit]))
    return {"filter_correlation": _cosine(gradients.mean(0), true[0]), "oracle_ridge_correlation": ridge}


def _pooled(filters: F64, side: int) -> F64:
    """Return filters (n, y, x) summed over the pixels of an eye, (n, pixel)."""
    step = SIDE // side
    out: F64 = filters.reshape(len(filters), side, step, side, step).sum((2, 4)).reshape(len(filters), -1)
    return out


def _ridges(parts: tuple[F64, F64, F64], responses: npt.NDArray[np.float32]) -> list[F64]:
    """Return the filters of ridge regressions with all penalties."""
    left, sizes, right = parts
    y = responses.astype(np.float64)
    along = left.T @ (y - y.mean())
    return [right.T @ (along * sizes / (sizes**2 + len(y) * ridge)) for ridge in RIDGES]


def _cosine(a: F64, b: F64) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _share(rows: list[dict[str, Any]]) -> float:
    return float(np.mean([row["fraction_of_optimum"] >= GOAL for row in rows]))


def _figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    simple, complex_ = ([row for row in rows if row["kind"] == kind] for kind in ("simple", "complex"))

    def median(name: str, of: list[dict[str, Any]]) -> float:
        return float(np.median([row[name] for row in of]))

    return {
        "units": len(rows),
        "fraction_of_optimum_median": median("fraction_of_optimum", rows),
        "reached_in": _share(rows),
        "reached_in_simple": _share(simple),
        "reached_in_complex": _share(complex_),
        "r_with_truth_median": median("r_with_truth", rows),
        "filter_correlation_median": median("filter_correlation", simple),
        "oracle_ridge_correlation_median": median("oracle_ridge_correlation", simple),
        "subspace_overlap_median": median("subspace_overlap", complex_),
    }
