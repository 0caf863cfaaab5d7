"""The map between one device's sample counter and the host clock, from pairs of both.

Pure: no clock, no randomness, no I/O; the same pairs in the same order give the same map, bit for bit on one machine.
Used by folds over the journal's `ClockSample` documents.

A pair says that a sample had been taken when a message about it arrived: the arrival is late by a delay that is
never negative, seldom small, sometimes huge. The map is therefore the line under the points, not through them: the
lower hull's edge that carries their mean (the line below all points with the least summed distance), refined by a
regression that weights each pair by 1 / delay^2 against that line. It follows drift because only the last 60 s count.
"""

import math
from collections import deque

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

WINDOW_NS = 60_000_000_000
LEAST_PAIRS = 5
LEAST_SPAN_NS = 1_000_000_000
# The smallest delay of a path cannot be observed from arrivals alone. On a live Open Ephys GUI the fastest messages
# were 0.8-1.0 ms old when they were received.
UNSEEN_DELAY_NS = 1_000_000.0
SCALE_FLOOR_NS = 20_000.0  # stamps are not better than this
WANDER_PER_S = 5e-6  # how much a crystal's rate may differ between the last pairs and the moment asked for
RATE_TOLERANCE = 0.01  # a File Reader's real rate is 0.09 % below its nominal one
REFINEMENTS = 4
NORMAL_99 = 2.6  # standard errors that hold 99 % of a normal distribution


class _Line:
    """host = host0 + at + slope * (sample - sample0), with what its uncertainty needs."""

    def __init__(self, sample0: int, host0: int, at: float, slope: float, error: tuple[float, float, float]) -> None:
        self.sample0, self.host0, self.at, self.slope = sample0, host0, at, slope
        self.variance, self.middle, self.inverse_spread = error

    def uncertainty_ns(self, x: float, unseen_ns: float) -> float:
        """Bound on the error (99 %) at `x` samples after sample0, which is the newest pair."""
        fit = NORMAL_99 * math.sqrt(self.variance * (1 + self.inverse_spread * (x - self.middle) ** 2))
        return unseen_ns + fit + WANDER_PER_S * max(x, 0.0) * self.slope


def _hull_line(x: F64, y: F64) -> tuple[float, float]:
    """Return offset and slope of the lower hull's edge above or below which the mean x lies. `x` ascends strictly."""
    hull: list[int] = []
    for k in range(len(x)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[k] - x[b]) < (y[k] - y[b]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(k)
    middle = float(np.mean(x))
    right = next((i for i in range(1, len(hull)) if x[hull[i]] >= middle), len(hull) - 1)
    a, b = hull[right - 1], hull[right]
    slope = float((y[b] - y[a]) / (x[b] - x[a]))
    return float(y[a] - slope * x[a]), slope


def _regression(x: F64, y: F64, weight: F64) -> tuple[float, float, tuple[float, float, float]]:
    """Return offset, slope and (variance at the middle, middle, inverse spread) of a weighted straight line."""
    total = float(np.sum(weight))
    middle = float(np.sum(weight * x)) / total
    level = float(np.sum(weight * y)) / total
    spread = float(np.sum(weight * (x - middle) ** 2)) / total
    slope = float(np.sum(weight * (x - middle) * (y - level))) / total / spread
    residual = y - level - slope * (x - middle)
    effective = total**2 / float(np.sum(weight**2))  # number of pairs that carry the weight
    variance = max(float(np.sum(weight * residual**2)) / total, SCALE_FLOOR_NS**2)
    # Few effective pairs say little about their own scatter.
    variance *= (1 + 4 / max(effective - 1, 0.5)) / effective
    return level - slope * middle, slope, (variance, middle, 1 / spread)


class ClockMap:
    """Fold over the pairs of one source; a new run starts it anew."""

    def __init__(self, nominal_hz: float | None = None) -> None:
        """Start without pairs. `nominal_hz` may also be set later, once the device has stated it.

        With it the map refuses a fit whose rate is more than 1 % off: what a backlog gives that arrives in one burst.
        """
        self.nominal_hz = nominal_hz
        self.run: int | None = None
        self._late: deque[tuple[int, int]] = deque()  # sample, host ns, late by an unknown delay
        self._exact: deque[tuple[int, int]] = deque()
        self._line: _Line | None = None
        self._fresh = True
        self._unseen_ns = UNSEEN_DELAY_NS

    def add(self, device_sample: float, host_ns: int, run: int, exact: bool = False) -> None:
        """Take a pair. `exact`: both clocks saw the same event (a shared edge), no delay in between.

        A run other than the one before starts a new map: within a run neither clock goes back, and a pair that is not
        newer than the one before is ignored.
        """
        if run != self.run:
            self._late.clear()
            self._exact.clear()
            self.run = run
        pairs = self._exact if exact else self._late
        if pairs and (device_sample <= pairs[-1][0] or host_ns < pairs[-1][1]):
            return
        pairs.append((int(device_sample), int(host_ns)))
        while pairs[0][1] < host_ns - WINDOW_NS:
            pairs.popleft()
        self._fresh = False

    def to_host_ns(self, device_sample: float) -> tuple[int, int] | None:
        """Return host time of a sample and the bound on its error (99 %), both in ns; None before the map is known."""
        line = self._fit()
        if line is None:
            return None
        x = float(device_sample - line.sample0)
        return line.host0 + round(line.at + line.slope * x), round(line.uncertainty_ns(x, self._unseen_ns))

    def to_sample(self, host_ns: int) -> tuple[float, int] | None:
        """Return the (fractional) sample at a host time and the bound on its error (99 %) in ns; None before known."""
        line = self._fit()
        if line is None:
            return None
        x = (float(host_ns - line.host0) - line.at) / line.slope
        return line.sample0 + x, round(line.uncertainty_ns(x, self._unseen_ns))

    def ns_per_sample(self) -> float | None:
        """Return the device's sample period in host time, ns; None before the map is known."""
        line = self._fit()
        return None if line is None else line.slope

    def _fit(self) -> _Line | None:
        """Return the line, fitted anew only after a new pair; None if there is none that can be believed."""
        if not self._fresh:
            self._fresh = True
            exact = _enough(self._exact)
            self._unseen_ns = 0.0 if exact else UNSEEN_DELAY_NS
            if exact or _enough(self._late):
                self._line = _fitted(self._exact if exact else self._late, exact)
            else:
                self._line = None
        if self._line is None or self.nominal_hz is None:
            return self._line
        return self._line if abs(self._line.slope * self.nominal_hz * 1e-9 - 1) <= RATE_TOLERANCE else None


def _enough(pairs: deque[tuple[int, int]]) -> bool:
    return len(pairs) >= LEAST_PAIRS and pairs[-1][1] - pairs[0][1] >= LEAST_SPAN_NS


def _fitted(pairs: deque[tuple[int, int]], exact: bool) -> _Line | None:
    # Differences as integers: counters and clocks are larger than what float64 holds to the ns.
    sample0, host0 = pairs[-1]
    x = np.array([sample - sample0 for sample, _ in pairs], dtype=np.float64)
    y = np.array([host - host0 for _, host in pairs], dtype=np.float64)
    if exact:
        at, slope, error = _regression(x, y, np.ones_like(x))
    else:
        at, slope = _hull_line(x, y)
        error = (0.0, 0.0, 0.0)
        for _ in range(REFINEMENTS):
            above = y - at - slope * x
            above -= float(np.min(above))
            scale = max(float(np.quantile(above, 0.1)), SCALE_FLOOR_NS)
            at, slope, error = _regression(x, y, 1 / (scale + above) ** 2)
    return _Line(sample0, host0, at, slope, error) if slope > 0 else None
