"""Scores of the bench: predictions against held-out responses, each unit of each split, and their summary."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

DRAWS = 10_000


def correlations(prediction: F64, responses: F64) -> F64:
    """Return r (unit,) of predictions with mean responses (image, unit), NaN where missing or not varying."""
    there = np.isfinite(prediction) & np.isfinite(responses)
    count = np.maximum(there.sum(axis=0), 1)
    x, y = (np.where(there, v, 0.0) for v in (prediction, responses))
    x, y = (np.where(there, v - v.sum(axis=0) / count, 0.0) for v in (x, y))
    length = np.sqrt((x * x).sum(axis=0) * (y * y).sum(axis=0))
    out: F64 = np.divide((x * y).sum(axis=0), length, out=np.full(len(length), np.nan), where=length > 0)
    return out


def median(values: F64) -> float | None:
    """Return the median of those that are defined."""
    defined = values[np.isfinite(values)]
    return float(np.median(defined)) if len(defined) else None


def gain(ours: Sequence[F64], plain: Sequence[F64], seed: int = 0) -> dict[str, Any]:
    """Return what ours has over plain per unit: r (unit,) of each split; mean and median, 95 % bootstrap over units.

    A unit's gain is its mean over splits, which share images: splits are no independent draws and add none.
    """
    differences = np.mean(np.stack(ours) - np.stack(plain), axis=0)
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return {"units": 0}
    rng = np.random.default_rng(seed)
    drawn = differences[rng.integers(len(differences), size=(DRAWS, len(differences)))]
    out: dict[str, Any] = {"units": len(differences), "better_in": int((differences > 0).sum())}
    for name, of in (("mean", np.mean), ("median", np.median)):
        low, high = np.quantile(of(drawn, axis=1), (0.025, 0.975))
        out |= {name: float(of(differences)), f"{name}_low": float(low), f"{name}_high": float(high)}
    return out
