"""Which units are worth an experiment: measures from repeated presentations of a reference set. Pure.

Used by the screen agent and, for false discoveries, by the map agent. Rates are those of the responses (baseline
subtracted where the config says so), arrays (image, repeat) of one unit with NaN where a response is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

SPLITS = 100
RESAMPLES = 200
AT_ONCE = 100_000  # single responses that are split, or shuffled, in one step: a few milliseconds
SHUFFLES = 500
LEAST_SKEW = 0.05  # of their distribution; 0 would be a normal one
ENOUGH_ABOVE = 20  # shuffles above what was measured whose share is the p; with fewer, their distribution says it
INTERVAL = (2.5, 97.5)  # percent
TOP = 0.2  # of the images count as those that drive a unit
LEAST_IMAGES, LEAST_REPEATS = 3, 2


@dataclass(frozen=True)
class Selectivity:
    """What the reference set says of one unit; NaN where too little was measured."""

    p_blank: float
    """Of rates to images and to blanks being alike (Mann and Whitney)."""
    p_tuned: float
    """Of all images giving the same rates (variance between images, rates shuffled within repeats)."""
    reliability: float
    """Correlation over images between the means of random halves of the repeats, corrected to all repeats."""
    reliability_low: float
    reliability_high: float
    """Of a 95 % interval: images drawn anew with replacement."""
    sparseness: float
    """0: all images drive it alike, 1: one image alone (Vinje and Gallant 2000), of rates above blank."""
    mean_hz: float
    """Over all images."""
    blank_hz: float
    driven_hz: float
    """Mean above blank of the fifth of the images that drove it most, measured in the other half of the repeats."""
    best: int
    """Image with the highest mean, -1 where nothing is known."""
    presentations: int


class Measuring:
    """The measures of one unit, in steps of a few milliseconds."""

    def __init__(self, rate_hz: F64, blank_hz: F64, rng: np.random.Generator) -> None:
        """Measure rates to images (image, repeat) and to blanks (presentation,); halves are drawn from `rng`."""
        self._rate_hz, self._rng = rate_hz, rng
        self._blank_hz = blank_hz[np.isfinite(blank_hz)]
        self._halves: list[tuple[F64, F64]] = []  # means of halves, some splits each
        self._splits = 0
        self._low_high: tuple[float, float] | None = None
        self._between = Between(rate_hz)
        self.result: Selectivity | None = None
        """None before the last step."""

    def step(self) -> bool:
        """Take one step; return True when finished."""
        if self.result is None and self._splits < SPLITS:
            splits = min(SPLITS - self._splits, max(1, AT_ONCE // max(self._rate_hz.size, 1)))
            self._halves.append(_halves(self._rate_hz, splits, self._rng))
            self._splits += splits
        elif self._low_high is None:
            self._low_high = _interval(*self._all_halves(), self._rng)
        elif self._between.wanted:
            self._between.shuffle(max(1, AT_ONCE // max(self._rate_hz.size, 1)), self._rng)
        elif self.result is None:
            self.result = self._measured(*self._low_high)
        return self.result is not None

    def _all_halves(self) -> tuple[F64, F64]:
        a, b = (np.concatenate([halves[k] for halves in self._halves]) for k in (0, 1))
        return a, b

    def _measured(self, low: float, high: float) -> Selectivity:
        rows = [row[np.isfinite(row)] for row in self._rate_hz]
        everything = np.concatenate(rows) if rows else np.empty(0)
        means = np.array([row.mean() if len(row) else np.nan for row in rows])
        blank_mean = float(self._blank_hz.mean()) if len(self._blank_hz) else float("nan")
        a, b = self._all_halves()
        return Selectivity(
            p_blank=_p_blank(everything, self._blank_hz),
            p_tuned=self._between.p(),
            reliability=float(_reliability(a, b, np.ones((1, len(means))))[0]),
            reliability_low=low,
            reliability_high=high,
            sparseness=_sparseness(means - (blank_mean if len(self._blank_hz) else 0.0)),
            mean_hz=float(everything.mean()) if len(everything) else float("nan"),
            blank_hz=blank_mean,
            driven_hz=_driven(a, b) - (blank_mean if len(self._blank_hz) else 0.0),
            best=int(np.nanargmax(means)) if np.isfinite(means).any() else -1,
            presentations=len(everything),
        )


class Between:
    """Tests whether images give different rates: their variance, against that of rates shuffled within repeats.

    A rank test (Kruskal and Wallis) finds half of the sound cells that this one finds where most responses are no spike
    at all: ranks then order what the baseline subtracts. Shuffled within a repeat, so that slow drift is no difference.
    Beyond what the shuffles tell, the chance is that of a gamma distribution with their mean, variance and skewness
    (Winkler et al. 2016, NeuroImage 141).
    """

    def __init__(self, rate_hz: F64) -> None:
        """Test rates (image, repeat), NaN where one is missing; images with one are left out."""
        known = np.isfinite(rate_hz)
        rows = known.sum(axis=1) >= LEAST_REPEATS
        rate_hz, known = rate_hz[rows], known[rows]
        self._count = known.sum(axis=1)
        # (repeat) which images have it, and their rates less its mean
        columns = zip(rate_hz.T, known.T, strict=True)
        self._repeats = [(there, column[there] - column[there].mean()) for column, there in columns if there.any()]
        self._testable = len(rate_hz) >= LEAST_IMAGES
        self._flat = self._testable and float(np.ptp(rate_hz[known])) == 0
        self._null: F64 = np.empty(0)

    @property
    def wanted(self) -> int:
        """Shuffles that are still to be made."""
        return SHUFFLES - len(self._null) if self._testable and not self._flat else 0

    def shuffle(self, most: int, rng: np.random.Generator) -> None:
        """Make up to `most` more."""
        number = min(most, self.wanted)
        sums = np.zeros((number, len(self._count)))
        for there, rates in self._repeats:
            sums[:, there] += rates[np.argsort(rng.random((number, len(rates))), axis=1)]
        self._null = np.append(self._null, self._variance(sums))

    def p(self) -> float:
        """Return how likely images would differ so much if all gave the same; NaN if there are too few."""
        if not self._testable:
            return float("nan")
        if self._flat:
            return 1.0  # no spike at all, or always as many
        from scipy import special  # here and not above: a killed model server that needs no test is back sooner

        sums = np.zeros((1, len(self._count)))
        for there, rates in self._repeats:
            sums[0, there] += rates
        measured = float(self._variance(sums)[0])
        above = int((self._null >= measured * (1 - 1e-9)).sum())
        if above >= ENOUGH_ABOVE:
            return (1 + above) / (1 + len(self._null))
        if not (sd := float(self._null.std(ddof=1))) > 0:
            return 1.0
        apart = (self._null - self._null.mean()) / sd
        shape = 4 / max(float((apart**3).mean()), LEAST_SKEW) ** 2
        return float(special.gammaincc(shape, max(shape + (measured - self._null.mean()) / sd * shape**0.5, 0.0)))

    def _variance(self, sums: F64) -> F64:
        """Return the variance between images, times a constant, of summed rates (draw, image)."""
        return np.asarray((sums**2 / self._count).sum(axis=1))


def measure(rate_hz: F64, blank_hz: F64, rng: np.random.Generator) -> Selectivity:
    """Return the measures of one unit from its rates to images (image, repeat) and to blanks (presentation,)."""
    measuring = Measuring(rate_hz, blank_hz, rng)
    while not measuring.step():
        pass
    assert measuring.result is not None  # noqa: S101 - the last step made it
    return measuring.result


def false_discoveries(p: Sequence[float], rate: float) -> list[bool]:
    """Return which of the tests count so that at most `rate` of those are false (Benjamini and Hochberg 1995).

    NaN, a test that could not be made, never counts and is no test.
    """
    values = np.array(p, np.float64)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    below = np.flatnonzero(values[order] <= rate * np.arange(1, len(order) + 1) / max(len(order), 1))
    out = np.zeros(len(values), np.bool_)
    if len(below):
        out[order[: below[-1] + 1]] = True
    return [bool(one) for one in out]


def spearman_brown(r: F64 | float) -> F64:
    """Return the reliability of both halves together from the correlation `r` between halves."""
    value = np.asarray(r, np.float64)
    return np.asarray(2 * value / np.maximum(1 + value, 1e-9))


def _p_blank(driven: F64, blank: F64) -> float:
    if len(driven) < LEAST_REPEATS or len(blank) < LEAST_REPEATS:
        return float("nan")
    if np.ptp(np.concatenate([driven, blank])) == 0:
        return 1.0  # no spike at all, or always as many
    from scipy import stats  # here and not above: a killed model server that needs no test is back half a second sooner

    return float(stats.mannwhitneyu(driven, blank, method="asymptotic").pvalue)


def _halves(rate_hz: F64, splits: int, rng: np.random.Generator) -> tuple[F64, F64]:
    """Return the means of random halves of each image's repeats, each (split, image); NaN for images with one."""
    known = np.isfinite(rate_hz)
    key = np.where(known, rng.random((splits, *rate_hz.shape)), 2.0)  # missing repeats rank last
    rank = np.argsort(np.argsort(key, axis=2), axis=2)
    half = known.sum(axis=1)[:, None] // 2
    values = np.nan_to_num(rate_hz)
    first, second = rank < half, (rank >= half) & known
    with np.errstate(invalid="ignore"):
        a = (values * first).sum(axis=2) / first.sum(axis=2)
        b = (values * second).sum(axis=2) / second.sum(axis=2)
    return np.where(half.T > 0, a, np.nan), np.where(half.T > 0, b, np.nan)


def _reliability(a: F64, b: F64, weight: F64) -> F64:
    """Return (set,) the mean over splits of the corrected correlation between halves `a` and `b` (split, image).

    `weight` (set, image) is how often a set has each image. 0 without variance, NaN for a set of too few images.
    """
    there = np.isfinite(a[0]) if len(a) else np.zeros(0, np.bool_)
    a, b, weight = a[:, there], b[:, there], weight[:, there]
    if not there.any():
        return np.full(len(weight), np.nan)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    count = np.maximum(weight.sum(axis=1, keepdims=True), 1.0)

    def products(x: F64, y: F64) -> F64:  # (set, split): sums of products around the set's means
        return np.asarray(weight @ (x * y).T - (weight @ x.T) * (weight @ y.T) / count)

    norm = np.sqrt(np.maximum(products(a, a), 0.0) * np.maximum(products(b, b), 0.0))
    some = norm > 1e-9 * np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    r = np.where(some, products(a, b) / np.where(some, norm, 1.0), 0.0)
    # The mean comes first: the correction of single splits blows up where r is near -1.
    out = spearman_brown(np.clip(r.mean(axis=1), -0.9, 1.0))
    return np.where(weight.sum(axis=1) >= LEAST_IMAGES, out, np.nan)


def _interval(a: F64, b: F64, rng: np.random.Generator) -> tuple[float, float]:
    count = a.shape[1]
    if count < LEAST_IMAGES:
        return float("nan"), float("nan")
    drawn = rng.integers(count, size=(RESAMPLES, count))
    weight = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)
    found = _reliability(a, b, weight)
    found = found[np.isfinite(found)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.percentile(found, INTERVAL)
    return float(low), float(high)


def _sparseness(means: F64) -> float:
    """Return (1 - mean(r)**2 / mean(r**2)) / (1 - 1 / n) of rates above blank, those below counting 0."""
    r = np.maximum(means[np.isfinite(means)], 0.0)
    square = float((r**2).mean()) if len(r) else 0.0
    if len(r) < LEAST_IMAGES or square == 0:
        return float("nan")
    return float((1 - r.mean() ** 2 / square) / (1 - 1 / len(r)))


def _driven(a: F64, b: F64) -> float:
    """Return the mean rate to the top images of half `a`, measured in `b`, over splits: no luck in it."""
    there = np.isfinite(a[0])
    if not there.any():
        return float("nan")
    a, b = a[:, there], b[:, there]
    top = np.argsort(-a, axis=1)[:, : max(1, round(TOP * a.shape[1]))]
    return float(np.take_along_axis(b, top, axis=1).mean())
