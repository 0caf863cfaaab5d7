"""What the natural images of a phase did: means to z-score by, and how good each one is. Pure.

Responses to images that are shown back are never in it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.control.goals import Goal
from models.metrics.sums import ImageSums

F64 = npt.NDArray[np.float64]
SPLITS = 20


@dataclass(frozen=True)
class Norm:
    """What z-scored responses are measured in; arrays (unit,)."""

    mean: F64
    """Over held-out natural images, of their mean responses."""
    sd: F64
    """Likewise, ddof 1; NaN where it is 0 or unknown."""

    def z(self, rates: F64, sites: tuple[int, ...]) -> F64:
        """Return z-scored responses (..., site) of rates (..., unit)."""
        at = list(sites)
        out: F64 = (rates[..., at] - self.mean[at]) / self.sd[at]
        return out


def norm_of(sums: ImageSums, train: int) -> Norm:
    """Return what to z-score by; images from `train` on are the held-out ones."""
    means = _means(sums)[train:]
    there = np.isfinite(means)
    count = there.sum(axis=0)
    mean = np.where(count > 0, np.where(there, means, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
    squares = np.where(there, (means - mean) ** 2, 0.0).sum(axis=0)
    sd = np.sqrt(squares / np.maximum(count - 1, 1))
    return Norm(mean, np.where((count > 1) & (sd > 0), sd, np.nan))


def range_of(sums: ImageSums, train: int) -> tuple[F64, F64]:
    """Return the lowest and highest mean response (unit,) to a held-out natural image, spikes/s; NaN without any."""
    means = _means(sums)[train:]
    there = np.isfinite(means)
    low = np.where(there, means, np.inf).min(axis=0, initial=np.inf)
    high = np.where(there, means, -np.inf).max(axis=0, initial=-np.inf)
    return np.where(np.isfinite(low), low, np.nan), np.where(np.isfinite(high), high, np.nan)


def shrunk(sums: ImageSums, train: int) -> F64:
    """Return estimates (image, unit) of the true mean responses, from what was measured alone.

    mean + w (image's mean - mean), w = n t² / (n t² + s²): the best linear guess from n responses, where t² is the
    variance of true means over images and s² that of single responses, both from the held-out images. So an image that
    was lucky once does not win over one that was good ten times.
    """
    norm, count = norm_of(sums, train), sums.count
    within = sums.square - np.divide(sums.sum**2, count, out=np.zeros(count.shape), where=count > 0)
    free = np.maximum(count - 1, 0.0)[train:].sum(axis=0)
    noise = np.divide(within[train:].sum(axis=0), free, out=np.zeros(len(free)), where=free > 0)
    signal = np.maximum(np.nan_to_num(norm.sd) ** 2 - noise / np.maximum(count[train:].mean(axis=0), 1), 0.0)
    total = count * signal + noise
    weight = np.divide(count * signal, total, out=np.zeros(total.shape), where=total > 0)
    out: F64 = norm.mean + weight * np.nan_to_num(_means(sums) - norm.mean)
    return out


def best_by_halves(held_out: F64, norm: Norm, goal: Goal) -> float:
    """Return the score of the best held-out image: the best by half of its repeats, its score from the other half.

    The cross-validation of Bashivan 2019, over SPLITS random halves; `held_out` (image, repeat, unit), NaN where
    missing. Images with fewer than two repeats are left out; NaN if all are.
    """
    z = norm.z(held_out, goal.sites)
    there = np.asarray(np.isfinite(z).all(axis=2))
    z, there = z[there.sum(axis=1) > 1], there[there.sum(axis=1) > 1]
    if not len(z):
        return float("nan")
    z, count, rng = np.where(there[..., None], z, 0.0), there.sum(axis=1), np.random.default_rng(len(z))
    found = []
    for _ in range(SPLITS):
        order = np.where(there, rng.random(there.shape), 2.0).argsort(axis=1).argsort(axis=1)  # missing ones last
        ends = (np.zeros_like(count), count // 2, count)
        halves = [(order >= ends[k][:, None]) & (order < ends[k + 1][:, None]) for k in (0, 1)]
        first, second = (
            goal.score(np.einsum("ir,irs->is", half, z) / half.sum(axis=1, keepdims=True)) for half in halves
        )
        found += [second[first.argmax()], first[second.argmax()]]
    return float(np.mean(found))


def _means(sums: ImageSums) -> F64:
    """Return mean responses (image, unit), NaN where there is none."""
    out: F64 = np.divide(sums.sum, sums.count, out=np.full(sums.sum.shape, np.nan), where=sums.count > 0)
    return out
