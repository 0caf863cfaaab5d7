"""A score of each unit with its interval: images drawn anew with replacement, each with all its repeats.

The interval is Efron's BCa (bias-corrected and accelerated, 1987): scores that are ratios have skewed draws, and plain
percentiles of them are off to one side. Seeded: the same data give the same interval. Called by `models.metrics.score`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.metrics.formulas import LEAST_IMAGES, Formula
from models.metrics.sums import ImageSums

F64 = npt.NDArray[np.float64]

UNITS_AT_ONCE = 128  # bounds the memory of a thousand draws
LEAST_DEFINED = 0.9  # of the draws, for an interval
LEAST_FOR_INTERVAL = 10  # images; of fewer, the draws are too few different ones


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made."""

    draws: int = 1000
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        """Refuse what gives no interval."""
        if self.draws < 100 or not 0.5 <= self.level < 1:
            raise ValueError(f"bootstrap of {self.draws} draws at level {self.level}: give 100 or more, 0.5 to 1")


@dataclass(frozen=True)
class Estimate:
    """A score of each unit; arrays (unit,)."""

    name: str
    title: str
    value: F64
    """NaN where it is not defined."""
    low: F64
    """Ends of the interval; NaN where there is none."""
    high: F64
    undefined: tuple[str, ...]
    """Of each unit: why it has no value, "" where it has one."""
    images: npt.NDArray[np.int64]
    """Images with a usable response."""
    presentations: npt.NDArray[np.int64]
    """Usable ones."""

    @property
    def median(self) -> float:
        """Median over the units that have a value, NaN without any."""
        known = self.value[np.isfinite(self.value)]
        return float(np.median(known)) if len(known) else float("nan")


def estimate(formula: Formula, sums: ImageSums, bootstrap: Bootstrap | None) -> Estimate:
    """Return the score of each unit of `sums`; without `bootstrap` no interval."""
    units = sums.count.shape[1]
    value, low, high = (np.full(units, np.nan) for _ in range(3))
    reasons: list[str] = []
    for start in range(0, units, UNITS_AT_ONCE):
        part = sums.part(slice(start, start + UNITS_AT_ONCE))
        columns = formula.columns(part)
        totals = {name: c.sum(axis=0) for name, c in columns.items()}
        found = formula.combine(totals)
        if formula.shown is not None:
            found = np.where(formula.shown(totals), found, np.nan)
        why = [_undefined(formula, part, u, bool(np.isfinite(found[u]))) for u in range(len(found))]
        fine = np.array([not reason for reason in why])
        at = slice(start, start + len(found))
        value[at] = np.where(fine, found, np.nan)
        reasons += why
        if bootstrap is not None and fine.any():
            ends = _bca(formula, columns, found, bootstrap)
            low[at], high[at] = (np.where(fine & ((part.count > 0).sum(axis=0) >= LEAST_FOR_INTERVAL), e, np.nan)
                                 for e in ends)  # fmt: skip
    images, presentations = (sums.count > 0).sum(axis=0), sums.count.sum(axis=0)
    return Estimate(
        formula.name, formula.title, value, low, high, tuple(reasons), images.astype(np.int64),
        presentations.astype(np.int64),
    )  # fmt: skip


def _undefined(formula: Formula, sums: ImageSums, unit: int, finite: bool) -> str:
    count = sums.count[:, unit]
    images, repeated = int((count > 0).sum()), int((count > 1).sum())
    if images < LEAST_IMAGES:
        return f"{images} images with a usable response; it takes {LEAST_IMAGES}"
    if formula.repeats and repeated == 0:
        return "no image has two usable repeats, without which signal and noise cannot be told apart"
    if formula.repeats and repeated < LEAST_IMAGES:
        return f"{repeated} images with two usable repeats; it takes {LEAST_IMAGES}"
    if formula.counts and not sums.counts_only[unit]:
        return "the responses are not counts: some are negative or no whole numbers"
    return "" if finite else formula.unsound


def _bca(formula: Formula, columns: dict[str, F64], value: F64, bootstrap: Bootstrap) -> tuple[F64, F64]:
    """Return both ends (unit,) of the interval; NaN where too many draws are not defined."""
    from scipy.special import ndtr, ndtri  # not at the top: half a second for every process that only folds

    images = next(iter(columns.values())).shape[0]
    rng = np.random.default_rng(bootstrap.seed)
    weights = rng.multinomial(images, np.full(images, 1 / images), bootstrap.draws).astype(np.float64)
    drawn = formula.combine({name: weights @ c for name, c in columns.items()})  # (draw, unit)
    defined = np.isfinite(drawn)
    enough = defined.mean(axis=0) >= LEAST_DEFINED
    below = ((drawn < value) + 0.5 * (drawn == value)).sum(axis=0) / np.maximum(defined.sum(axis=0), 1)
    bias = ndtri(np.clip(below, 1 / bootstrap.draws, 1 - 1 / bootstrap.draws))
    left_out = formula.combine({name: c.sum(axis=0) - c for name, c in columns.items()})  # (image, unit)
    known = np.isfinite(left_out)
    middle = np.where(known, left_out, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    away = np.where(known, middle - left_out, 0.0)
    squares = (away**2).sum(axis=0)
    acceleration = (away**3).sum(axis=0) / np.maximum(6 * squares**1.5, 1e-300)
    ends = []
    tail = (1 - bootstrap.level) / 2
    for z in ndtri([tail, 1 - tail]):
        at = ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
        ends.append(np.where(enough, _quantiles(drawn, at), np.nan))
    return ends[0], ends[1]


def _quantiles(drawn: F64, at: F64) -> F64:
    """Return of each unit the quantile `at` (unit,) of its draws (draw, unit), interpolated; NaN draws do not count."""
    ordered = np.sort(drawn, axis=0)  # NaN last
    count = np.isfinite(drawn).sum(axis=0)
    place = np.clip(at, 0, 1) * np.maximum(count - 1, 0)
    lower = np.floor(place).astype(np.intp)
    upper = np.minimum(lower + 1, np.maximum(count - 1, 0))
    unit = np.arange(drawn.shape[1])
    out: F64 = ordered[lower, unit] + (place - lower) * (ordered[upper, unit] - ordered[lower, unit])
    return out
