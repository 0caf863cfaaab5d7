"""What kind of model was learnt of a unit: the checks of Walker et al. 2019, named as in that paper's Methods. Pure.

Each is computed from the encoder of which the images were made; docs/inception.md says what it tells, and where a
definition is not quite the paper's. The comparison of spatial frequencies is the report's: it needs displayed frames
only. Yields after each step of about 10 ms.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.encoders.encoder import Encoder
from models.inception.features import linear_features, picture_of
from models.inception.learner import INTERVALS, LINEAR_RIDGES
from models.inception.made import MEI, Made
from models.metrics.score import scores
from models.readouts.primal import fit_in_steps
from models.synthesis.tuning import ContrastTuning, tuning_in_steps
from rig.config.synthesis import Synthesis as Settings

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

EIGENVALUES = 10  # as many as the paper draws
CHUNK = 8  # images in one step
CONTRASTS = 12
FAINTEST = 0.01  # RMS contrast, the paper's lowest
SCORE = "correlation_to_average"


@dataclass(frozen=True)
class Given:
    """What the checks of all units of a session rest on."""

    encoder: Encoder
    fitted: F32
    """(image, 1, y, x): natural images that it was fitted to, or some of them, as its eye sees them."""
    held_out: F32
    """(image, 1, y, x): those that it never was."""
    responses: F64
    """(image, repeat, unit) to the held-out ones; NaN where there is none."""
    linear: F64
    """(feature, unit): weights of the linear model fitted to the same responses as the encoder."""


def checked(given: Given, made: Made) -> Generator[None, None, dict[str, float]]:
    """Yield after each step; return the figures of one unit by name. What is not defined is left out.

    eigenvalue_1 to _10, dimensions: `gradients`. encoder_r, linear_r and linearised_r, with _low and _high: correlation
    of the encoder and of both linear models with the mean responses to held-out images, all to the same ones;
    linear_alike: of the receptive fields of both. filter_mei,
    filter_linear: `ranked` outputs of both images as filters. predicted_at_CONTRAST: response to the most exciting
    image at an RMS contrast.
    """
    unit = made.unit
    out: dict[str, float] = {}
    shares, predicted = yield from gradients(given.encoder, unit, given.fitted)
    out |= {f"eigenvalue_{k + 1}": float(share) for k, share in enumerate(shares[:EIGENVALUES])}
    out["dimensions"] = float(1 / np.sum(shares**2))  # participation ratio
    own = yield from _rates(given.encoder, unit, given.held_out)
    out |= yield from _linear_models(given, unit, predicted, own)
    yield
    mean = _means(given.responses[:, :, unit])
    tests = linear_features(torch.from_numpy(given.held_out)).numpy().astype(np.float64)
    light = given.held_out.reshape(len(given.held_out), -1).astype(np.float64)
    out["filter_mei"] = ranked(light @ made.images[MEI].code.astype(np.float64), mean)
    out["filter_linear"] = ranked(tests @ given.linear[:, unit], mean)
    yield
    tuned = yield from _tuning(given.encoder, unit, made)
    pairs = zip(tuned.contrast, tuned.rate, strict=True)
    out |= {f"predicted_at_{contrast:.4f}": float(rate) for contrast, rate in pairs}
    return {name: value for name, value in out.items() if np.isfinite(value)}


def gradients(encoder: Encoder, unit: int, images: F32) -> Generator[None, None, tuple[F64, F64]]:
    """Yield after each step; return eigenvalues (n,), falling, and the rates (n,) predicted for images (n, 1, y, x).

    "Nontrivial nonlinearity of the CNN": eigenvalues of the covariance of the gradients of the response with respect to
    natural images. Here about zero and not about their mean, and over their sum: so a linear unit has one eigenvalue of
    1, whether or not a nonlinearity follows its filter; an energy unit has two of about one half. NaN for a constant
    response.
    """
    slopes, rates, column = [], [], torch.tensor([unit])
    for first in range(0, len(images), CHUNK):
        x = torch.from_numpy(images[first : first + CHUNK].copy()).requires_grad_()
        with torch.enable_grad():
            rate = encoder.rates(x, column)[:, 0]
            (slope,) = torch.autograd.grad(rate.sum(), x)
        slopes.append(slope.flatten(1).double().numpy())
        rates.append(rate.detach().double().numpy())
        yield
    g = np.concatenate(slopes)
    yield
    products = g @ g.T  # has the eigenvalues of the (pixel, pixel) matrix but for zeros
    yield
    values = np.maximum(np.linalg.eigvalsh(products)[::-1], 0.0)
    total = float(values.sum())
    yield
    return values / total if total > 0 else np.full(len(values), np.nan), np.concatenate(rates)


def _rates(encoder: Encoder, unit: int, images: F32) -> Generator[None, None, F64]:
    """Yield after each step; return the rates (n,) predicted for images (n, 1, y, x)."""
    parts, column = [], torch.tensor([unit])
    for first in range(0, len(images), CHUNK):
        with torch.no_grad():
            parts.append(encoder.rates(torch.from_numpy(images[first : first + CHUNK].copy()), column)[:, 0])
        yield
    return np.asarray(torch.cat(parts).double().numpy(), np.float64)


def _linear_models(
    given: Given, unit: int, predicted: F64, own: F64
) -> Generator[None, None, dict[str, float]]:
    """Return scores of the encoder, of the linear model of the responses and of that of the encoder's predictions.

    And the likeness of both linear models. "RFs of the linearized CNN model": the linear model fitted to what the
    encoder predicts (`predicted`, of `given.fitted`), with a ridge of its own. `own`: what the encoder predicts of
    `given.held_out`. Its score is computed anew: held-out images are shown while images are made, so that there are
    more responses now than when units were chosen, and all three are to be scored by the same ones.
    """
    x = linear_features(torch.from_numpy(given.fitted)).numpy().astype(np.float64)
    spread = x.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    yield
    fitted = yield from fit_in_steps(x / scale, predicted[:, None], LINEAR_RIDGES)
    linearised = fitted.weights[:, 0] / scale
    weights = np.stack([given.linear[:, unit], linearised], axis=1)
    tests = linear_features(torch.from_numpy(given.held_out)).numpy().astype(np.float64)
    said = np.column_stack([own, tests @ weights])
    yield
    found = scores(said, np.repeat(given.responses[:, :, [unit]], 3, axis=2), [SCORE], INTERVALS)[SCORE]
    out: dict[str, float] = {}
    for k, name in enumerate(("encoder_r", "linear_r", "linearised_r")):
        out |= {name: found.value[k], f"{name}_low": found.low[k], f"{name}_high": found.high[k]}
    fields = [picture_of(one.astype(np.float32)).ravel() for one in weights.T]
    varies = all(float(np.std(one)) > 0 for one in fields)
    out["linear_alike"] = np.corrcoef(fields[0], fields[1])[0, 1] if varies else np.nan
    return {name: float(value) for name, value in out.items()}


def ranked(output: F64, mean: F64) -> float:
    """Return Spearman's correlation over images of a filter's output (image,) with mean responses (image,).

    "MEIs as linear filters": ranks, so that no nonlinearity behind the filter need be known. NaN where nothing varies.
    """
    known = np.isfinite(mean)
    if known.sum() < 3 or np.ptp(output[known]) == 0 or np.ptp(mean[known]) == 0:
        return float("nan")
    ranks = np.stack([_ranks(output[known]), _ranks(mean[known])])
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: F64) -> F64:
    """Return ranks (n,) from 1, ties their mean (by hand: scipy.stats takes half a second to load)."""
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    out: F64 = (np.cumsum(count) - (count - 1) / 2)[which]
    return out


def _means(responses: F64) -> F64:
    """Return the mean (image,) over repeats (image, repeat), NaN where there is none."""
    there = np.isfinite(responses)
    total = np.where(there, responses, 0.0).sum(axis=1)
    out: F64 = np.where(there.any(axis=1), total / np.maximum(there.sum(axis=1), 1), np.nan)
    return out


def _tuning(encoder: Encoder, unit: int, made: Made) -> Generator[None, None, ContrastTuning]:
    """Yield after each contrast; return the encoder's tuning for the most exciting image as it was displayed."""
    frame = made.images[MEI].frame
    grey = torch.from_numpy(frame[..., :1].astype(np.float64)).permute(2, 0, 1)
    settings = Settings(mean_level=encoder.eye.mean[0], contrast=made.contrast, frame_px=frame.shape[:2])
    return (yield from tuning_in_steps(encoder, unit, grey, settings, CONTRASTS, least=FAINTEST))
