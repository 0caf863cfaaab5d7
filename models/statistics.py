"""Tests behind the claims of an experiment: many units at once, images shown back, units of two days.

Used by the inception and control agents and by reports, on fresh repeats only. Pure; scipy does the tests; every draw
is seeded. An effect that cannot be tested (too few repeats) has p = NaN, and is not counted as a test.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.metrics.sums import ImageSums

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
I64 = npt.NDArray[np.int64]

LEAST_PAIRS = 6  # of fewer, no arrangement of signs is rarer than 1 in 32
RESAMPLES = 9_999
INTERVAL_DRAWS = 2_000
UNITS_AT_ONCE = 256  # bounds the memory of as many resamples
LEAST_SHARED = 10  # images; a correlation over fewer says nothing about who a unit is


def benjamini_hochberg(p: Sequence[float] | F64) -> F64:
    """Return q values (test,): reject where q <= rate, and at most `rate` of those are false on average.

    Benjamini and Hochberg 1995, for tests that are independent or positively dependent. NaN stays NaN and is no test.
    """
    values = np.asarray(p, np.float64)
    out = np.full(values.shape, np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    scaled = values[order] * len(order) / np.arange(1, len(order) + 1)
    out[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return out


@dataclass(frozen=True)
class Paired:
    """One image against another, in each unit; arrays (unit,)."""

    difference: F64
    """Mean over pairs of repeats, first less second."""
    error: F64
    """Standard error of it."""
    pairs: I64
    p: F64
    """NaN for fewer than LEAST_PAIRS pairs."""
    q: F64
    """p corrected for the number of units (Benjamini and Hochberg)."""


def paired_tests(
    first: F64,
    second: F64,
    test: Literal["permutation", "wilcoxon"] = "permutation",
    alternative: Literal["two-sided", "greater"] = "two-sided",
    seed: int = 0,
) -> Paired:
    """Test each unit's responses to two images, `first` and `second` (repeat, unit), paired by repeat.

    Pair the k-th showing of one with the k-th of the other: in randomised blocks these are neighbours in time, and slow
    drift falls out. Pairs with NaN are left out. `permutation`: the mean under swaps within pairs; `wilcoxon`: signed
    ranks under the same swaps, for responses with rare huge values.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"responses are {first.shape} and {second.shape}; give both as (repeat, unit), paired")
    d = first - second
    there = np.isfinite(d)
    pairs, d = there.sum(axis=0), np.where(there, d, 0.0)
    away = np.where(pairs > 0, d.sum(axis=0) / np.maximum(pairs, 1), np.nan)
    squares = np.where(there, (d - away) ** 2, 0.0).sum(axis=0)
    error = np.where(pairs > 1, np.sqrt(squares / np.maximum(pairs - 1, 1) / np.maximum(pairs, 1)), np.nan)
    scores = d if test == "permutation" else np.sign(d) * _ranks(np.where(there, np.abs(d), np.nan))
    p = np.where(pairs >= LEAST_PAIRS, _sign_flip_p(scores, alternative == "two-sided", seed), np.nan)
    return Paired(away, error, pairs.astype(np.int64), p, benjamini_hochberg(p))


def _ranks(sizes: F64) -> F64:
    """Return each unit's ranks of `sizes` (pair, unit), ties shared, 0 for NaN. Zeros rank too, without a sign (Pratt).

    Dropping zeros would make many equal pairs look decisive.
    """
    from scipy import stats  # not at the top: a process that only folds starts half a second sooner

    return np.nan_to_num(stats.rankdata(sizes, axis=0, nan_policy="omit"))


def _sign_flip_p(scores: F64, two_sided: bool, seed: int) -> F64:
    """Return of each unit how often the sum of `scores` (pair, unit), 0 where missing, is as high under other signs.

    scipy.stats.permutation_test (samples) says the same, one unit and one arrangement at a time: a hundred times as
    slow. All arrangements where there are fewer than RESAMPLES; else random ones, the observed counted among them, so
    that p is valid and never 0 (Phipson and Smyth 2010).
    """
    n, units = scores.shape
    signs, complete = _signs(n, seed)
    p = np.empty(units)
    for start in range(0, units, UNITS_AT_ONCE):
        part = scores[:, start : start + UNITS_AT_ONCE]
        sums, observed, rounding = signs @ part, part.sum(axis=0), 1e-9 * np.abs(part).sum(axis=0)
        if two_sided:
            sums, observed = np.abs(sums), np.abs(observed)
        as_high = (sums >= observed - rounding).sum(axis=0)
        p[start : start + UNITS_AT_ONCE] = as_high / len(signs) if complete else (1 + as_high) / (1 + len(signs))
    return p


def _signs(n: int, seed: int) -> tuple[F64, bool]:
    """Return swaps within `n` pairs, (arrangement, pair) of 1 and -1, and whether these are all that there are."""
    if complete := 2**n <= RESAMPLES:
        swapped = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        swapped = np.random.default_rng([seed, n]).integers(0, 2, (RESAMPLES, n))
    return np.asarray(1.0 - 2.0 * swapped, np.float64), complete


@dataclass(frozen=True)
class PairedScores:
    """What the mean responses of a population to one image are worth, less what those to another are worth."""

    difference: float
    low: float
    """Ends of the 95 % interval: percentiles over pairs of repeats drawn with replacement."""
    high: float
    p: float
    """Two-sided; NaN for fewer than LEAST_PAIRS pairs."""
    pairs: int


def paired_scores(first: F64, second: F64, score: Callable[[F64], F64], seed: int = 0) -> PairedScores:
    """Test a population's responses to two images, `first` and `second` (repeat, unit), paired by repeat.

    `score` makes of mean responses (..., unit) what they are worth (...,); it need not be linear (a softmax), so it is
    applied to the means over repeats, and anew to those after each swap within pairs. Pairs with NaN are left out.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"responses are {first.shape} and {second.shape}; give both as (repeat, unit), paired")
    there = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
    first, second, n = first[there], second[there], int(there.sum())
    if not n:
        return PairedScores(*(float("nan"),) * 4, 0)

    def worth(middle: F64, apart: F64) -> F64:
        return np.asarray(score(middle + apart) - score(middle - apart), np.float64)

    middle, half = (first + second) / 2, (first - second) / 2
    observed = float(worth(middle.mean(axis=0), half.mean(axis=0)))
    if n < LEAST_PAIRS:
        return PairedScores(observed, *(float("nan"),) * 3, n)
    signs, complete = _signs(n, seed)
    swapped = np.abs(worth(middle.mean(axis=0), signs @ half / n))
    as_high = int((swapped >= abs(observed) * (1 - 1e-9)).sum())
    p = as_high / len(signs) if complete else (1 + as_high) / (1 + len(signs))
    weights = np.random.default_rng([seed, n, 1]).multinomial(n, np.full(n, 1 / n), INTERVAL_DRAWS) / n
    low, high = np.percentile(worth(weights @ middle, weights @ half), [2.5, 97.5])
    return PairedScores(observed, float(low), float(high), p, n)


@dataclass(frozen=True)
class OverUnits:
    """One kind of image against another over a population, each unit counted once."""

    units: int
    """With a mean response to both."""
    p: float
    """Two-sided signed rank test (Wilcoxon) of the units' differences; NaN for fewer than LEAST_PAIRS units."""
    ratio: float
    """Median over units of the first mean over the second; NaN where one is below 0 (dF/F): it says nothing then."""
    low: float
    """Ends of its 95 % interval (order statistics, which asks nothing of the distribution); NaN for too few units."""
    high: float


def over_units(first: F64, second: F64) -> OverUnits:
    """Test mean responses (unit,) to two kinds of image over units; NaN where a unit has none.

    The test takes units as independent, and speaks of units like these in this animal, not of animals. Units that
    answer alike to both rank too, without a sign (Pratt).
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    there = np.isfinite(first) & np.isfinite(second)
    first, second, n = first[there], second[there], int(there.sum())
    p = ratio = low = high = float("nan")
    from scipy import stats  # not at the top: a process that only folds starts half a second sooner

    if n >= LEAST_PAIRS:
        p = 1.0 if np.array_equal(first, second) else float(stats.wilcoxon(first, second, zero_method="pratt").pvalue)
    if n and min(first.min(), second.min()) >= 0 and (first + second > 0).all():
        ratios = np.divide(first, second, out=np.full(n, np.inf), where=second > 0)
        ratio = float(np.median(ratios))
        if n >= LEAST_PAIRS:
            k = int(stats.binom.ppf(0.025, n, 0.5))  # fewer than k below the median: rarer than 1 in 40
            low, high = (float(end) for end in np.sort(ratios)[[k - 1, n - k]])
    return OverUnits(n, p, ratio, low, high)


def share(hits: int, of: int) -> tuple[float, float, float]:
    """Return a share and its 95 % interval (Wilson); NaN for none."""
    if not of:
        return (float("nan"),) * 3
    from scipy import stats

    ends = stats.binomtest(hits, of).proportion_ci(0.95, method="wilson")
    return hits / of, float(ends.low), float(ends.high)


# --- confusion matrix -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Confusion:
    """Every unit's response to every unit's images (Walker 2019, figure 4)."""

    z: F64
    """(unit, set): mean response, each row less its mean and over its sd (ddof 0); NaN rows where nothing varies."""
    own: I64
    """(unit,): the column of the unit's own images; -1 where it has none."""
    own_is_highest: Bool
    """(unit,): the own column is the row's only maximum."""
    tested: int
    """Units with images of their own and a complete row."""
    hits: int
    chance: float
    """1 / sets."""
    p: float
    """One-sided binomial test of `hits` against chance; NaN where nothing could be tested."""
    fraction_low: float
    fraction_high: float
    """95 % interval of hits / tested (Wilson)."""


def confusion(rates: F64, sets: Sequence[int] | I64, own: Sequence[int] | I64) -> Confusion:
    """Return the confusion matrix of `rates` (presentation, unit), fresh repeats of images in `sets` (presentation,).

    `own` (unit,): the set made for each unit, -1 for units without. Sets are numbered from 0; a set may hold several
    images. The binomial test takes units as independent: units that share a set are counted once by the caller.
    """
    rates, which, mine = np.asarray(rates, np.float64), np.asarray(sets, np.int64), np.asarray(own, np.int64)
    if rates.ndim != 2 or which.shape != rates.shape[:1] or mine.shape != rates.shape[1:]:
        raise ValueError(
            f"rates are {rates.shape}, sets {which.shape}, own {mine.shape}; give (presentation, unit), "
            "(presentation,) and (unit,)"
        )
    count = int(max(which.max(initial=-1), mine.max(initial=-1))) + 1
    if count < 2 or which.min(initial=0) < 0 or mine.min(initial=-1) < -1:
        raise ValueError("a confusion matrix needs two sets or more, numbered from 0; -1 for units without one")
    there = np.isfinite(rates)
    one_hot = (which[:, None] == np.arange(count)).astype(np.float64)
    shown = one_hot.T @ there
    total = one_hot.T @ np.where(there, rates, 0.0)
    mean = np.divide(total, shown, out=np.full(total.shape, np.nan), where=shown > 0).T
    complete = np.isfinite(mean).all(axis=1)
    away = mean - np.where(complete, np.where(complete[:, None], mean, 0.0).mean(axis=1), np.nan)[:, None]
    sd = np.sqrt((away**2).mean(axis=1))
    varies = complete & (sd > 0)
    z = np.where(varies[:, None], away / np.where(varies, sd, 1.0)[:, None], np.nan)
    highest = np.array([_only_maximum(row, column) for row, column in zip(z, mine.tolist(), strict=True)], np.bool_)
    tested = complete & (mine >= 0)
    return _against_chance(z, mine, highest & tested, int(tested.sum()), count)


def _only_maximum(row: F64, column: int) -> bool:
    if column < 0 or not np.isfinite(row).all():
        return False
    return bool(row[column] > np.delete(row, column).max())


def _against_chance(z: F64, own: I64, highest: Bool, tested: int, sets: int) -> Confusion:
    hits, chance = int(highest.sum()), 1 / sets
    p, low, high = (float("nan"),) * 3
    if tested:
        from scipy import stats

        p = float(stats.binomtest(hits, tested, chance, alternative="greater").pvalue)
        _, low, high = share(hits, tested)
    return Confusion(z, own, highest, tested, hits, chance, p, low, high)


# --- units of two days ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matching:
    """Pairs of units of two days that a table says are the same, tested by their responses to shared images."""

    pairs: tuple[tuple[int, int], ...]
    """(first day's column, second day's column)."""
    similarity: F64
    """(pair,): correlation of the mean responses over shared images; NaN where one does not vary."""
    null: F64
    """Similarities of all other combinations of the same units, ascending: what different units reach."""
    p: F64
    """(pair,): how often the null is as similar (Phipson and Smyth 2010)."""
    q: F64
    """(pair,): p corrected for the number of pairs (Benjamini and Hochberg)."""
    rivals: I64
    """(pair,): other combinations of either unit that are as similar."""

    def confirmed(self, rate: float = 0.05) -> Bool:
        """Return which pairs (pair,) count as the same unit: q at most `rate`, and no rival."""
        with np.errstate(invalid="ignore"):
            out: Bool = (self.q <= rate) & (self.rivals == 0)
        return out


def shared_images(first: Sequence[str], second: Sequence[str], tested: Collection[str]) -> tuple[str, ...]:
    """Return the images that both days showed, without those that are tested later: a match must not choose a result.

    In the first day's order. Raises ValueError if fewer than LEAST_SHARED are left.
    """
    there, barred = set(second), set(tested)
    found = tuple(name for name in dict.fromkeys(first) if name in there and name not in barred)
    if len(found) < LEAST_SHARED:
        raise ValueError(
            f"{len(found)} images were shown on both days and are not tested later; to tell units apart it takes "
            f"{LEAST_SHARED}: show a common reference set on each day"
        )
    return found


def match_units(first: F64, second: F64, pairs: Sequence[tuple[int, int]]) -> Matching:
    """Test `pairs` of columns of `first` and `second`, responses (image, repeat, unit) to the same images on two days.

    NaN where a repeat is missing. The null are all combinations of a unit in `pairs` of the first day with one of the
    second that the pairs do not name. Raises ValueError for units named twice and for fewer than three pairs, which
    leave no null.
    """
    a, b = _means(first), _means(second)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} images; give responses to the same images, in the same order")
    if len(a) < LEAST_SHARED:
        raise ValueError(f"{len(a)} shared images; to tell units apart it takes {LEAST_SHARED}")
    left, right = [p[0] for p in pairs], [p[1] for p in pairs]
    if len(set(left)) < len(left) or len(set(right)) < len(right):
        raise ValueError("a unit stands in two pairs; each can be one unit of the other day")
    if len(left) < 3:
        raise ValueError(f"{len(left)} pairs; a null of other combinations takes three or more")
    r = _correlations(a[:, left], b[:, right])
    own, others = np.diag(r), r[~np.eye(len(r), dtype=np.bool_)]
    null = np.sort(others[np.isfinite(others)])
    above = len(null) - np.searchsorted(null, own, side="left")
    p = np.where(np.isfinite(own) & (len(null) > 0), (1 + above) / (1 + len(null)), np.nan)
    with np.errstate(invalid="ignore"):
        as_similar = r >= own[:, None], r >= own[None, :]
    rivals = as_similar[0].sum(axis=1) + as_similar[1].sum(axis=0) - 2 * np.isfinite(own)
    return Matching(tuple(zip(left, right, strict=True)), own, null, p, benjamini_hochberg(p), rivals.astype(np.int64))


def _means(responses: F64) -> F64:
    """Return the mean over repeats (image, unit), NaN where there is none."""
    sums = ImageSums.of(None, responses)
    means: F64 = np.divide(sums.sum, sums.count, out=np.full(sums.sum.shape, np.nan), where=sums.count > 0)
    return means


def _correlations(a: F64, b: F64) -> F64:
    """Return correlations (unit of a, unit of b) over the images that both have; NaN for fewer than LEAST_SHARED."""
    (x, there_a), (y, there_b) = _centred(a), _centred(b)
    n = there_a.T @ there_b
    sx, sy = x.T @ there_b, there_a.T @ y
    sxx, syy, sxy = (x * x).T @ there_b, there_a.T @ (y * y), x.T @ y
    enough = n >= LEAST_SHARED
    m = np.where(enough, n, 1.0)
    vx, vy = sxx - sx**2 / m, syy - sy**2 / m
    varies = enough & (vx > 1e-12 * sxx) & (vy > 1e-12 * syy)
    out: F64 = np.where(varies, (sxy - sx * sy / m) / np.sqrt(np.where(varies, vx * vy, 1.0)), np.nan)
    return out


def _centred(means: F64) -> tuple[F64, F64]:
    """Return means (image, unit) less each unit's own mean, 0 where missing, and where they are there."""
    there = np.isfinite(means)
    middle = np.where(there, means, 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    return np.where(there, means - middle, 0.0), there.astype(np.float64)
