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
from models.synthesis_bench.comparing import Images, between_models, between_starts, median
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
    found = images_of(_fitted(asked, made, say), asked)
    rows = compared(asked, made, found)
    say(f"{asked.scored} units: {GOAL:.0%} of the optimum in {_share(rows):.0%}")
    figures = {**_figures(rows), "rows": rows}
    if asked.twice:
        say("the second recording")
        other = _fitted(asked, experiment(asked, 1), say, asked.members)
        figures |= agreed(made, found, images_of(other, asked, 1))
    return figures


def compared(asked: MeiBench, made: Experiment, found: Images) -> list[dict[str, Any]]:
    """Return a row for each scored unit: what the images and filters of a model of these cells are worth."""
    units, encoder, frames = list(found.columns), found.encoder, found.best
    predicted = rates_of(encoder, made.unseen)[:, units]
    best = _made(made.truth, asked, _from_own(made, asked), TRUE_STEPS).best
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


def agreed(made: Experiment, first: Images, second: Images) -> dict[str, Any]:
    """Return how far the images of two models of the cells agree, the models being fitted to different recordings."""
    masks = first.masks()
    rows = between_models(first, second, masks)
    starts = [between_starts(images, masks) for images in (first, second)]
    for k, row in enumerate(rows):
        row["kind"] = "complex" if made.cells[k].complex_cell else "simple"
        row["multimodal"] = [kind[k]["multimodal"] for kind in starts]
        row["between_starts"] = [kind[k]["agreement"] for kind in starts]
    figures: dict[str, Any] = {
        f"{name}_{kind}": median([row for row in rows if row["kind"] == kind], key)
        for kind in ("simple", "complex")
        for name, key in (("agreement", "agreement"), ("agreement_closest", "closest"), ("share", "share_first"))
    }
    return {**figures, "multimodal": sum(any(row["multimodal"]) for row in rows), "rows_of_two": rows}


def experiment(asked: MeiBench, which: int = 0) -> Experiment:
    """Show pictures to the cells of `asked.seed`; recordings 0 and 1 of them have no picture in common."""
    azimuth, elevation = pixel_angles(Rect(376, 276, SIDE, SIDE), (800, 600), 40.0, 30.0)
    cells = draw_cells(asked.units, azimuth, elevation, np.random.default_rng(np.random.SeedSequence([asked.seed, 1])))
    truth = TruthEncoder(cells, azimuth, elevation)
    rng = np.random.default_rng([0, asked.seed])
    bank = tiles_bank()
    order = rng.permutation(len(bank.names))
    unseen, shown = (
        np.stack([bank.image(bank.names[k], SIDE, SIDE) for k in order[begin : begin + count]])
        for begin, count in (
            (asked.presentations, SCORED),
            (which * (asked.presentations + SCORED), asked.presentations),
        )
    )
    if which:
        rng = np.random.default_rng([which, asked.seed, 0])
    mean = _true_rates(truth, shown) * asked.window_s
    counts = mean if asked.noise_free else rng.poisson(mean)
    eye = Eye.for_frames(shown, EYE_SIDE, EYE_SIDE)
    held_out = held_out_images([str(k) for k in range(len(shown))], asked.validation, asked.seed)
    recording = Recording(eye.see(shown), np.arange(len(shown)), counts.astype(np.float32), held_out)
    return Experiment(truth, cells, eye, recording, unseen, _true_rates(truth, unseen))


def _fitted(asked: MeiBench, made: Experiment, say: Callable[[str], None], first: int = 0) -> Encoder:
    members = []
    for k in range(first, first + asked.members):
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


def images_of(encoder: Encoder, asked: MeiBench, recording: int = 0) -> Images:
    """Return a model's images of the scored units, from noise of each recording's own."""
    return _made(encoder, asked, _noise(encoder, asked, asked.starts, recording), asked.iterations)


def _noise(encoder: Encoder, asked: MeiBench, starts: int, recording: int = 0) -> npt.NDArray[np.float32]:
    settings, seed = _settings(asked, asked.iterations), [asked.seed, recording] if recording else asked.seed
    return draw(["display"] * starts, asked.scored, encoder.eye, settings, np.random.default_rng(seed))


def _from_own(made: Experiment, asked: MeiBench) -> npt.NDArray[np.float32]:
    """Return starts of the true optimum: each cell's own grating at the contrast, and noise."""
    own = []
    for terms in made.truth.terms[: asked.scored]:
        pattern = terms.preferred - terms.preferred.mean()
        own.append(np.clip(LEVEL + pattern * asked.contrast * HALF_RANGE / pattern.std(), 0, 255))
    first = np.stack(own)[:, None, None].astype(np.float32)
    return np.concatenate([first, _noise(made.truth, asked, TRUE_STARTS)], 1)


def _made(encoder: Encoder, asked: MeiBench, starts: npt.NDArray[np.float32], iterations: int) -> Images:
    units = tuple(range(asked.scored))
    return Images(encoder, units, synthesise(encoder, Maximise(units), starts, _settings(asked, iterations)))


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
