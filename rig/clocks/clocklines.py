"""Straight lines through pairs of a device's sample counter and the host clock, each with a bound on its error.

Called by `rig.clocks.clockmap` (online) and `rig.clocks.clockfit` (offline); pure arithmetic on arrays. What each kind
of pair can know, and what it cannot, is told in docs/clocks.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Kind = Literal["exact", "round_trip", "arrival"]
KINDS: tuple[Kind, ...] = ("exact", "round_trip", "arrival")  # best first

# The smallest delay of a path cannot be observed from arrivals alone. On a live Open Ephys GUI the fastest messages
# were 0.8-1.0 ms old when they were received.
UNSEEN_DELAY_NS = 1_000_000.0
SCALE_FLOOR_NS = 20_000.0  # stamps are not better than this
# How fast a crystal's rate may change, per s. 5 ppm of thermal wander with a period of 20 min change by 0.026 ppm/s.
RATE_CHANGE_PER_S = 5e-8
# How far a device's rate may be from its nominal one (99 %), before its pairs say: crystals are within 100 ppm, a File
# Reader's real rate is 900 ppm below.
RATE_DOUBT = 1e-3
REFINEMENTS = 4
LOWER_LEAST = 10  # the density of the smallest delays is told by the lower half of the arrivals, at least so many
# Where beside the best line others are looked at, in about their standard deviations.
BESIDE = 20
BESIDE_STEPS = np.linspace(-BESIDE, BESIDE, 8 * BESIDE + 1)
MISSED = 0.001  # arrivals: the part of the fit's error that is not in its bound
LEAST_PAIRS = 5
LEAST_SPAN_NS = 1_000_000_000
RECENT_EXACT_NS = 10_000_000_000  # of few exact pairs these set the offset
NORMAL_99 = 2.6  # standard errors that hold 99 % of a normal distribution
START_PAIRS = 60  # the median slope that exact pairs start from looks at so many of them


@dataclass(frozen=True)
class Pair:
    """One pair; `doubt_ns` is the bound on its own error (exact), half its round trip, or 0 for an arrival."""

    sample: float
    host_ns: int
    doubt_ns: float


@dataclass(frozen=True)
class Line:
    """host = host0 + at + slope * (sample - sample0); x below means sample - sample0, y host - host0."""

    kind: Kind
    sample0: float
    host0: int
    at: float
    slope: float  # ns per sample
    variance: float  # of the level at `middle`, ns^2
    middle: float
    inverse_spread: float
    unseen_ns: float  # the part of the error that no number of pairs averages away
    first: float  # x of the oldest and the newest pair
    last: float
    residual_ns: float  # weighted RMS of the pairs about the line
    scatter_ns: float  # median height of arrivals above their lowest
    pairs: int
    slope_doubt: float = 0.0  # bound on what else the slope may be wrong by, ns per sample

    def host_ns(self, x: float) -> float:
        """Return host time less host0, ns, at `x` samples after sample0."""
        return self.at + self.slope * x

    def x_at(self, ns: float) -> float:
        """Return samples after sample0 at `ns` after host0."""
        return (ns - self.at) / self.slope

    def uncertainty_ns(self, x: float) -> float:
        """Return the bound on the error (99 %), ns, at `x` samples after sample0."""
        fit = NORMAL_99 * math.sqrt(self.variance * (1 + self.inverse_spread * (x - self.middle) ** 2))
        # A straight line through a rate that changes steadily by R errs by R (u^2 - T^2/12) / 2 at u from the middle
        # of its window T, the extrapolation beyond its ends included.
        span_s = (self.last - self.first) * self.slope * 1e-9
        u_s = (x - (self.first + self.last) / 2) * self.slope * 1e-9
        wander_ns = RATE_CHANGE_PER_S * 1e9 * max(span_s**2 / 24, abs(u_s**2 - span_s**2 / 12) / 2)
        return self.unseen_ns + fit + wander_ns + self.slope_doubt * abs(x - self.middle)

    def slope_uncertainty(self) -> float:
        """Return the bound (99 %) on the relative error of the slope."""
        span = max(self.last - self.first, 1e-9)
        fit = NORMAL_99 * math.sqrt(self.variance * self.inverse_spread)
        return (fit + self.unseen_ns / span + self.slope_doubt) / self.slope


@dataclass(frozen=True)
class _Rate:
    """What is known of the slope before any pair, ns per sample."""

    nominal: float
    sd: float


def _hull(x: F64, y: F64) -> tuple[F64, F64]:
    """Return the corners of the lower hull. `x` ascends strictly."""
    corners = iter(zip(x.tolist(), y.tolist(), strict=True))  # elements of an array are slow to look at one by one
    bx, by = next(corners)
    hx, hy = [bx], [by]
    for kx, ky in corners:
        while len(hx) > 1:
            ax, ay = hx[-2], hy[-2]
            if (by - ay) * (kx - bx) < (ky - by) * (bx - ax):
                break
            hx.pop()
            hy.pop()
            bx, by = ax, ay
        hx.append(kx)
        hy.append(ky)
        bx, by = kx, ky
    return np.array(hx), np.array(hy)


@dataclass(frozen=True)
class _Below:
    """The lower hull of arrivals: the lines that touch it from below, and what is known of their slope before."""

    x: F64  # its corners
    y: F64
    edges: F64  # the slopes between them
    lowest: F64  # of the lines through each corner
    highest: F64
    from_mean: F64  # x less the mean x of all points
    mean_x: float
    prior: _Rate

    @staticmethod
    def of(x: F64, y: F64, mean_x: float, prior: _Rate) -> "_Below":
        hull_x, hull_y = _hull(x, y)
        lowest, highest = np.full(len(hull_x), -np.inf), np.full(len(hull_x), np.inf)
        edges = lowest[1:] = highest[:-1] = (hull_y[1:] - hull_y[:-1]) / (hull_x[1:] - hull_x[:-1])
        return _Below(hull_x, hull_y, edges, lowest, highest, hull_x - mean_x, mean_x, prior)

    def most_probable(self, gap_ns: float) -> tuple[float, float]:
        """Return offset and slope of the most probable line below all points, for delays of exponential density.

        `gap_ns` is by how much the smallest of the delays exceeds zero on average. The log posterior of a slope s, the
        line touching the hull, is (offset + s mean_x) / gap - ((s - nominal) / sd)^2 / 2: concave, with its top at a
        corner's slope or at an edge's. Without a prior that is the edge below the mean of x.
        """
        nominal, sd = self.prior.nominal, self.prior.sd
        if math.isinf(sd):
            k = min(max(int(self.x.searchsorted(self.mean_x)), 1), len(self.edges)) - 1
            return float(self.y[k] - self.edges[k] * self.x[k]), float(self.edges[k])
        slopes = np.minimum(np.maximum(nominal - sd**2 / gap_ns * self.from_mean, self.lowest), self.highest)
        offsets = self.y - slopes * self.x
        k = int(((offsets + slopes * self.mean_x) / gap_ns - ((slopes - nominal) / sd) ** 2 / 2).argmax())
        return float(offsets[k]), float(slopes[k])


def _median_line(x: F64, y: F64) -> tuple[float, float]:
    """Return offset and slope by medians (Theil 1950, Sen 1968): up to a quarter of the pairs may be wrong."""
    at = np.unique(np.linspace(0, len(x) - 1, START_PAIRS).astype(np.int64))
    i, j = np.triu_indices(len(at), 1)
    xs, ys = x[at], y[at]
    slope = float(np.median((ys[j] - ys[i]) / (xs[j] - xs[i])))
    return float(np.median(ys - slope * xs)), slope


@dataclass(frozen=True)
class _Fit:
    at: float
    slope: float
    variance: float
    middle: float
    inverse_spread: float
    residual_ns: float


def _regression(x: F64, y: F64, weight: F64) -> _Fit:
    """Weighted straight line."""
    total = float(np.sum(weight))
    middle = float(np.sum(weight * x)) / total
    level = float(np.sum(weight * y)) / total
    spread = float(np.sum(weight * (x - middle) ** 2)) / total
    slope = float(np.sum(weight * (x - middle) * (y - level))) / total / spread
    residual = y - level - slope * (x - middle)
    effective = total**2 / float(np.sum(weight**2))  # number of pairs that carry the weight
    scatter = float(np.sum(weight * residual**2)) / total
    # Few effective pairs say little about their own scatter.
    variance = max(scatter, SCALE_FLOOR_NS**2) * (1 + 4 / max(effective - 1, 0.5)) / effective
    return _Fit(level - slope * middle, slope, variance, middle, 1 / spread, math.sqrt(scatter))


def _arrivals(x: F64, y: F64, nominal: float | None) -> tuple[_Fit, float]:
    """Fit the line under the points; also return the median height above it.

    A delay is never negative, and its density near the smallest one is told by how close the lower points lie. The
    doubt of the line is the second moment about it of all lines below the points, each weighed by its posterior.
    """
    prior = _Rate(0.0, math.inf) if nominal is None else _Rate(nominal, RATE_DOUBT / NORMAL_99 * nominal)
    mean_x, count = float(x.sum()) / len(x), len(x)
    hull = _Below.of(x, y, mean_x, prior)
    lower = min(count, max(LOWER_LEAST, count // 2))  # a stalled reader does not belong to that density
    first = prior.nominal or float((hull.y[-1] - hull.y[0]) / (hull.x[-1] - hull.x[0]))
    at, slope = float((y - first * x).min()), first
    for _ in range(REFINEMENTS):
        above = y - at - slope * x
        above.sort()
        gap_ns = max(float(above[lower - 1]) / (lower - 2), SCALE_FLOOR_NS / count)
        at, slope = hull.most_probable(gap_ns)
    above = y - at - slope * x
    heights = np.sort(above)
    # Lines beside it: each corner of the hull bounds their offset.
    span = float(x[-1] - x[0])
    unit = 1 / (1 / prior.sd + span / (4 * gap_ns))
    beside = BESIDE_STEPS * unit
    lower_by = (hull.y[:, None] - hull.x[:, None] * (slope + beside)).min(axis=0) - at
    log = (lower_by + beside * mean_x) / gap_ns - ((slope + beside - prior.nominal) / prior.sd) ** 2 / 2
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    level = float((weight * (lower_by**2 - 2 * lower_by * gap_ns + 2 * gap_ns**2)).sum())
    both = float((weight * (lower_by - gap_ns) * beside).sum())
    tilt = float((weight * beside**2).sum())
    # The gap is itself estimated, from `free` distances: the smallest delay over it is distributed as F(2, 2 free).
    free = lower - 2
    widen = (free * ((1 / MISSED) ** (1 / free) - 1) / (NORMAL_99 * math.sqrt(2))) ** 2
    variance = max(level - both**2 / tilt, gap_ns**2 / 2)
    scale = max(float(heights[count // 10]), SCALE_FLOOR_NS)
    near = 1 / (scale + above) ** 2
    residual = math.sqrt(float((near * above**2).sum() / near.sum()))
    fit = _Fit(at, slope, variance * widen, -both / tilt, tilt / variance, residual)
    return fit, float(heights[(count - 1) // 2] + heights[count // 2]) / 2


def _exact(x: F64, y: F64, doubt: F64) -> tuple[_Fit, F64]:
    """Fit through the points, starting from medians, so that a wrong edge weighs little."""
    at, slope = _median_line(x, y)
    for _ in range(REFINEMENTS):
        weight = 1 / (doubt**2 + (y - at - slope * x) ** 2 / 9)
        fit = _regression(x, y, weight)
        at, slope = fit.at, fit.slope
    return fit, weight


def fit_line(kind: Kind, pairs: Sequence[Pair], nominal_hz: float | None = None) -> Line | None:
    """Return the line of pairs of one kind, samples ascending strictly; None where time would run backwards.

    Arrivals are held to `nominal_hz`, as far as `RATE_DOUBT` allows, until they know the rate better.

    The newest pair is the origin. Differences are taken before anything becomes a float64: clocks are larger than
    what it holds to the ns.
    """
    sample0, host0 = pairs[-1].sample, pairs[-1].host_ns
    x = np.array([p.sample - sample0 for p in pairs], dtype=np.float64)
    y = np.array([p.host_ns - host0 for p in pairs], dtype=np.float64)
    scatter = 0.0
    if kind == "arrival":
        fit, scatter = _arrivals(x, y, 1e9 / nominal_hz if nominal_hz else None)
        unseen = UNSEEN_DELAY_NS
    else:
        doubt = np.maximum(np.array([p.doubt_ns for p in pairs], dtype=np.float64), SCALE_FLOOR_NS / 2)
        if kind == "exact":
            fit, weight = _exact(x, y, doubt)
        else:
            weight = 1 / doubt**2
            fit = _regression(x, y, weight)
        # A constant asymmetry of the path, or a constant error of an edge, is in every pair: at most its doubt.
        unseen = float(np.sum(weight * doubt) / np.sum(weight))
    if fit.slope <= 0:
        return None
    return Line(
        kind=kind, sample0=sample0, host0=host0, at=fit.at, slope=fit.slope, variance=fit.variance, middle=fit.middle,
        inverse_spread=fit.inverse_spread, unseen_ns=unseen, first=float(x[0]), last=float(x[-1]),
        residual_ns=fit.residual_ns, scatter_ns=scatter, pairs=len(pairs),
    )  # fmt: skip


def levelled(line: Line, exact: Sequence[Pair]) -> Line:
    """Return `line` shifted to few exact pairs: they set the offset, the line's own pairs the slope between them."""
    x = np.array([p.sample - line.sample0 for p in exact], dtype=np.float64)
    y = np.array([p.host_ns - line.host0 for p in exact], dtype=np.float64)
    doubt = np.maximum(np.array([p.doubt_ns for p in exact], dtype=np.float64), SCALE_FLOOR_NS / 2)
    weight = 1 / doubt**2
    off = y - line.at - line.slope * x
    shift = float(np.sum(weight * off) / np.sum(weight))
    middle = float(np.sum(weight * x) / np.sum(weight))
    residual = math.sqrt(float(np.sum(weight * (off - shift) ** 2) / np.sum(weight)))
    # The delays' own drift may tilt the line by what its pairs cannot see.
    tilt = line.unseen_ns / max(line.last - line.first, 1e-9)
    tilt += NORMAL_99 * math.sqrt(line.variance * line.inverse_spread)
    return replace(
        line, kind="exact", at=line.at + shift, variance=residual**2 + (SCALE_FLOOR_NS / 2) ** 2, middle=middle,
        inverse_spread=0.0, unseen_ns=float(np.sum(weight * doubt) / np.sum(weight)), residual_ns=residual,
        slope_doubt=tilt, pairs=len(exact),
    )  # fmt: skip


def own_line(kind: Kind, pairs: Sequence[Pair], nominal_hz: float | None = None) -> Line | None:
    """Return the line of one kind of pairs, None where they are too few; `nominal_hz` as in `fit_line`."""
    if len(pairs) < LEAST_PAIRS or pairs[-1].host_ns - pairs[0].host_ns < LEAST_SPAN_NS:
        return None
    return fit_line(kind, pairs, nominal_hz)


def with_levelled(lines: Sequence[Line], exact: Sequence[Pair]) -> list[Line]:
    """Return the lines, and those of other kinds levelled by the last exact pairs."""
    if not exact:
        return [*lines]
    recent = [p for p in exact if p.host_ns >= exact[-1].host_ns - RECENT_EXACT_NS]
    return [*lines, *(levelled(line, recent) for line in lines if line.kind != "exact")]


def best_line(lines: Sequence[Line], sample: float) -> Line | None:
    """Return the line with the smallest bound on its error at `sample`; None if there is none."""
    return min(lines, key=lambda line: line.uncertainty_ns(sample - line.sample0), default=None)
