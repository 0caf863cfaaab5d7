"""The image that drives a ground-truth cell most, within limits: what a synthesised image is compared with.

Called by benches and tests, for cells given by filters and a formula (models.truth_shapes, Gabor cells included).
Projected gradient ascent on the true rate: the slope follows from the filters and the slope of the formula in their few
outputs. A local search: the best of its starts, a lower bound of the true optimum.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.truth import GREY
from models.truth_shapes import Terms

F64 = npt.NDArray[np.float64]

NUDGE = 1e-6  # of a filter's output, which is of order 1
FIRST_STEP, LAST_STEP = 0.3, 0.01  # of the image's allowed norm


@dataclass(frozen=True)
class Optimum:
    """A best image and what it does."""

    light: F64
    """(y, x), 0 to 1."""
    rate_hz: float
    starts_hz: F64
    """(start,): where each start ended; far apart, the cell has several peaks."""


def rates_and_slopes(terms: Terms, light: F64) -> tuple[F64, F64]:
    """Return rates (n,), spikes/s, and their slopes (n, y, x), spikes/s per unit of light, at `light` (n, y, x)."""
    about = light.reshape(len(light), -1) - GREY
    linear = terms.linear.reshape(len(terms.linear), -1)
    squares = terms.squares.reshape(len(terms.squares), -1)
    z, q = about @ linear.T, (about * about) @ squares.T
    in_z, in_q = partials(terms.rate_hz, z, q)
    slope = in_z @ linear + 2 * about * (in_q @ squares)
    return terms.rate_hz(z, q), slope.reshape(light.shape)


def partials(rate_hz: Callable[[F64, F64], F64], z: F64, q: F64) -> tuple[F64, F64]:
    """Return the slopes of a formula in its filters' outputs z (n, term) and q (n, term), of the same shapes."""
    in_z, in_q = np.empty_like(z), np.empty_like(q)
    for k in range(z.shape[1]):
        nudge = NUDGE * (np.arange(z.shape[1]) == k)
        in_z[:, k] = (rate_hz(z + nudge, q) - rate_hz(z - nudge, q)) / (2 * NUDGE)
    for k in range(q.shape[1]):
        nudge = NUDGE * (np.arange(q.shape[1]) == k)
        in_q[:, k] = (rate_hz(z, q + nudge) - rate_hz(z, q - nudge)) / (2 * NUDGE)
    return in_z, in_q


def within(light: F64, rms: float) -> F64:
    """Return images (n, y, x) between black and white whose RMS around grey is at most `rms` (0.5: no limit)."""
    about = np.clip(light - GREY, -0.5, 0.5)
    now = np.sqrt((about**2).mean(axis=(1, 2), keepdims=True))
    out: F64 = GREY + about * np.minimum(1.0, rms / np.maximum(now, 1e-12))
    return out


def optimum(terms: Terms, rms: float, rng: np.random.Generator, starts: int = 4, steps: int = 100) -> Optimum:
    """Search the best image (y, x) with RMS around grey of at most `rms`, from the preferred one and from noise."""
    noise = GREY + rng.normal(0.0, rms, (starts - 1, *terms.preferred.shape))
    light = within(np.concatenate([terms.preferred[None], noise]), rms)
    silent = ~rates_and_slopes(terms, light)[1].any(axis=(1, 2))
    light[silent] = 1 - light[silent]  # where a cell is silent there is no slope; mostly it answers the negative
    best, best_hz = light.copy(), np.full(starts, -np.inf)
    length = rms * np.sqrt(terms.preferred.size)
    for size in (*np.linspace(FIRST_STEP, LAST_STEP, steps), None):
        rate, slope = rates_and_slopes(terms, light)
        better = rate > best_hz
        best[better], best_hz[better] = light[better], rate[better]
        if size is not None:
            norm = np.sqrt((slope**2).sum(axis=(1, 2), keepdims=True))
            light = within(light + size * length * slope / np.maximum(norm, 1e-12), rms)
    top = int(np.argmax(best_hz))
    return Optimum(best[top], float(best_hz[top]), best_hz)
