"""What a readout's kernels are: chosen from the responses so far, by leave-one-out, for each unit. Training data only.

Each unit takes one of a few Gaussian kernels. They differ in the envelope that weights the cells of the feature maps,
and are those few of a list of candidates that serve all units best.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.readouts.batch import leave_one_out
from models.readouts.envelopes import Similarity

F64 = npt.NDArray[np.float64]
Int = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Chosen:
    """One kernel of a readout."""

    similarity: Similarity
    ridges: tuple[float, ...]
    units: tuple[str, ...]
    """Those that take it."""


def gaussian(apart: npt.NDArray[Any]) -> tuple[F64, float]:
    """Return the Gaussian kernel of squared distances (image, image), and its scale: half their median."""
    apart = np.maximum(apart.astype(np.float64), 0)
    np.fill_diagonal(apart, 0.0)
    scale = float(np.median(apart[np.triu_indices(len(apart), 1)])) / 2
    if not scale > 0:
        raise ValueError("most of the images seen so far have the same features: a readout needs different ones")
    return np.exp(-apart / (2 * scale)), scale


def errors_of(
    kernel: F64, responses: F64, weights: F64, prior: F64 | None, ridges: Sequence[float]
) -> F64:
    """Return the leave-one-out error (ridge, unit) over each unit's variance; 1 where a unit has fewer than 3 trials.

    `responses`, `weights` and `prior` (trial, unit), weight 0 where there is no response.
    """
    out = np.ones((len(ridges), responses.shape[1]))
    alike: dict[bytes, list[int]] = {}
    for k in range(responses.shape[1]):
        alike.setdefault(weights[:, k].tobytes(), []).append(k)
    for units in alike.values():
        rows = np.flatnonzero(weights[:, units[0]])
        if len(rows) < 3:
            continue
        y, w = responses[rows][:, units], weights[rows, units[0]]
        inner = kernel[np.ix_(rows, rows)]
        away = y - leave_one_out(inner, y, w, ridges)
        if prior is not None:
            p = prior[rows][:, units]
            away = away - _explained(away, p - leave_one_out(inner, p, w, ridges), w)
        spread = np.square(y - np.average(y, axis=0, weights=w))
        variance = np.average(spread, axis=0, weights=w)
        error = np.einsum("rtu,t->ru", away**2, w) / w.sum()
        out[:, units] = np.where(variance > 0, error / np.where(variance > 0, variance, 1), 1.0)
    return out


def _explained(away: F64, of_prior: F64, weights: F64) -> F64:
    """Return what the prior mean at its best gain takes off the residuals (ridge, trial, unit), as `DualRidge` does."""
    squares = np.einsum("rtu,t->ru", of_prior**2, weights)
    crossed = np.einsum("rtu,t->ru", away * of_prior, weights)
    gain = np.clip(np.divide(crossed, squares, out=np.zeros(squares.shape), where=squares > 0), 0, 1)
    out: F64 = gain[:, None] * of_prior
    return out


def few(errors: F64, count: int) -> Int:
    """Return at most `count` candidates that together serve all units best: errors (candidate, unit) of each.

    Greedy, then exchanges while one of them helps: the first taken is a compromise, which later ones make idle.
    """
    logs = np.log(np.maximum(errors, 1e-12))

    def total(taken: list[int]) -> float:
        return float(logs[taken].min(axis=0).sum())

    taken: list[int] = []
    for _ in range(min(count, len(errors))):
        found = min(range(len(errors)), key=lambda k: total([*taken, k]))
        if taken and not total([*taken, found]) < total(taken):
            break
        taken.append(found)
    better = True
    while better:
        changed = [[*taken[:k], new, *taken[k + 1 :]] for k in range(len(taken)) for new in range(len(errors))]
        best = min(changed, key=total)
        if better := total(best) < total(taken):
            taken = best
    return np.array(taken, dtype=np.intp)


def window(errors: F64, size: int) -> slice:
    """Return the `size` neighbouring ridges among which the units' least errors (ridge, unit) sum to least."""
    starts = range(max(1, len(errors) - size + 1))
    sums = [float(np.log(np.maximum(errors[k : k + size].min(axis=0), 1e-12)).sum()) for k in starts]
    first = int(np.argmin(sums))
    return slice(first, first + size)


def choose(
    candidates: Sequence[Similarity],
    errors: F64,
    units: Sequence[str],
    ridges: Sequence[float],
    kernels: int,
    kept_ridges: int,
) -> tuple[Chosen, ...]:
    """Return the kernels and which units take them, from leave-one-out errors (candidate, ridge, unit)."""
    least = errors.min(axis=1)
    taken = few(least, kernels)
    of_unit = taken[np.argmin(least[taken], axis=0)]
    out = []
    for k in taken:
        mine = np.flatnonzero(of_unit == k)
        if not len(mine):
            continue
        near = window(errors[k][:, mine], kept_ridges)
        names = tuple(units[u] for u in mine)
        out.append(Chosen(candidates[k], tuple(ridges[near]), names))
    return tuple(out)


def sample(trials: int, most: int) -> Int:
    """Return trials to choose by, at most `most`, at even steps through the session."""
    return np.unique(np.linspace(0, trials - 1, min(trials, most)).round().astype(np.intp))
