"""The map between one device's sample counter and the host clock, from pairs of both.

Pure: no clock, no randomness, no I/O; the same pairs in the same order give the same map, bit for bit on one machine.
Used by folds over the journal's `ClockSample` documents. docs/clocks.md tells what each kind of pair can know.

Each kind of pair (shared edges and barcodes; round trips; arrivals) has a line of its own over the last 60 s. All of
them estimate the same thing, the host time at which a sample was taken, and state a bound on their error; whenever a
pair comes the line with the smallest bound at the newest pair becomes the map. Exact pairs that are too few for a
slope of their own set the offset of the next best line. A step of either clock makes pairs disagree with the line of
their own or a better kind: when several in a row do so, the map says so and starts anew with them.
"""

import math
from collections import deque

from rig.clocks.clocklines import (
    KINDS,
    LEAST_PAIRS,
    LEAST_SPAN_NS,
    UNSEEN_DELAY_NS,
    Kind,
    Line,
    Pair,
    best_line,
    own_line,
    with_levelled,
)
from rig.messages import ClockSample

# How a source asks a device for its counter: every quarter of a second a few requests, each sent when the one before
# is answered, of which the one with the shortest round trip is journalled. The first of them wakes sleeping threads and
# radios on the way and is slow and lopsided; those after it are not.
ASK_EVERY_NS = 250_000_000
BURST = 4

WINDOW_NS = 60_000_000_000
FEW_EXACT_NS = 300_000_000_000  # exact pairs that are rarer than LEAST_PAIRS a minute still set the offset
MOST_PAIRS = 1000
RATE_TOLERANCE = 0.01  # a File Reader's real rate is 0.09 % below its nominal one
WORTHLESS_NS = 100_000_000.0  # arrivals that leave more open than this are a backlog read in one burst: no map
EDGE_DOUBT_NS = 100_000.0  # for an exact pair that states none: what a good sync line reaches
DRIFT_PPM = 150.0
RESIDUAL_NS = 1_000_000.0
# A step is believed after so many pairs in a row that disagree with the map and agree with each other.
STEP_PAIRS = 5
# Arrivals that stay late may also come from a slower path or a stalled reader: wait longer, then follow.
LATE_PAIRS = 20
LATE_NS = 20_000_000_000

_KIND_OF: dict[str, Kind] = {"edge": "exact", "barcode": "exact", "round_trip": "round_trip", "arrival": "arrival"}


def as_pair(sample: ClockSample) -> tuple[Kind, Pair]:
    """Return the kind of a journalled pair and the pair with the bound on its own error."""
    kind = _KIND_OF[sample.method]
    doubt = 0.0
    if kind == "exact":
        doubt = EDGE_DOUBT_NS if sample.uncertainty_ns is None else float(sample.uncertainty_ns)
    elif kind == "round_trip":
        if sample.round_trip_ns is None:  # no bound was given: no better than an arrival's
            return kind, Pair(sample.device_sample, sample.pair_host_ns, UNSEEN_DELAY_NS)
        doubt = sample.round_trip_ns / 2 + (sample.uncertainty_ns or 0)
    return kind, Pair(sample.device_sample, sample.pair_host_ns, doubt)


class ClockMap:
    """Fold over the pairs of one source; a new run starts it anew."""

    def __init__(self, nominal_hz: float | None = None) -> None:
        """Start without pairs. `nominal_hz` may also be set later, once the device has stated it.

        With it arrivals are held to that rate until they know a better one, and the map refuses a fit whose rate is
        more than 1 % off, or arrivals that leave more than 0.1 s open: what a backlog gives that comes in one burst.
        """
        self._nominal_hz = nominal_hz
        self.run: int | None = None
        self.steps_host_ns: list[int] = []  # host time of the first pair after each step of a clock, all runs
        self._warned: set[str] = set()
        self._news: list[tuple[str, str]] = []
        self._forget()

    def _forget(self) -> None:
        self._pairs: dict[Kind, deque[Pair]] = {kind: deque(maxlen=MOST_PAIRS) for kind in KINDS}
        self._aside: dict[Kind, list[tuple[Pair, float]]] = {kind: [] for kind in KINDS}  # pair, its residual
        self._own: dict[Kind, Line | None] = dict.fromkeys(KINDS)  # fitted to the pairs of that kind
        self._lines: dict[Kind, Line | None] = dict.fromkeys(KINDS)  # the same where believed, or levelled
        self._chosen: Line | None = None
        self._contradicted_ns = 0.0

    @property
    def nominal_hz(self) -> float | None:
        """Rate that the device states, Hz; None where it is not known."""
        return self._nominal_hz

    @nominal_hz.setter
    def nominal_hz(self, rate_hz: float | None) -> None:
        if rate_hz != self._nominal_hz:
            self._nominal_hz = rate_hz
            self._own["arrival"] = own_line("arrival", self._pairs["arrival"], rate_hz)  # it is held to the rate
            self._choose()

    # --- pairs --------------------------------------------------------------------------------------------------------

    def take(self, pair: ClockSample) -> bool:
        """Take a journalled pair; a run other than the one before starts a new map. Return whether it was believed."""
        if pair.run != self.run:
            self.run = pair.run
            self._warned.clear()
            self._forget()
        kind, new = as_pair(pair)
        pairs = self._pairs[kind]
        if pairs and new.sample <= pairs[-1].sample and new.host_ns <= pairs[-1].host_ns:
            return False  # sent again
        residual, contradicts = self._residual(kind, new)
        if contradicts:
            return self._put_aside(kind, new, residual)
        # A round trip so long that it could agree with the pairs aside as well says nothing about them.
        if not any(abs(off - residual) <= new.doubt_ns + p.doubt_ns for p, off in self._aside[kind]):
            self._aside[kind].clear()
        pairs.append(new)
        self._fit(kind)
        return True

    def _residual(self, kind: Kind, new: Pair) -> tuple[float, bool]:
        """Return a pair's host time less the map's, ns (NaN without a map), and whether it contradicts the map."""
        pairs = self._pairs[kind]
        backwards = bool(pairs) and (new.sample <= pairs[-1].sample or new.host_ns < pairs[-1].host_ns)
        at_least: list[Kind] = list(KINDS[: KINDS.index(kind) + 1])
        line = next((one for k in at_least if (one := self._believed(self._lines[k])) is not None), None)
        if line is None:
            return math.nan, backwards
        x = new.sample - line.sample0
        residual = float(new.host_ns - line.host0) - line.host_ns(x)
        bound = line.uncertainty_ns(x)
        if kind != "arrival":
            apart = abs(residual) > bound + new.doubt_ns
        elif line.kind == "arrival":
            # An early arrival is a better one while the map is young; later on it is a contradiction.
            mature = line.pairs >= 2 * LATE_PAIRS and (line.last - line.first) * line.slope >= LATE_NS
            apart = (mature and residual < -bound) or residual > bound + 3 * line.scatter_ns
        else:
            apart = residual < -bound
        return residual, apart or backwards

    def _put_aside(self, kind: Kind, new: Pair, residual: float) -> bool:
        """Keep a pair that contradicts the map; when several in a row agree, believe them instead and return True."""
        aside = self._aside[kind]
        if aside:
            before, off = aside[-1]
            agree = math.isnan(residual) or math.isnan(off) or (residual > 0) == (off > 0)
            if kind != "arrival" and agree:  # each of these says by how much, not only that it is late
                agree = not abs(residual - off) > max(abs(residual), abs(off)) / 2 + before.doubt_ns + new.doubt_ns
            if new.sample <= before.sample or new.host_ns <= before.host_ns or not agree:
                aside.clear()
        aside.append((new, residual))
        del aside[:-MOST_PAIRS]
        late = kind == "arrival" and residual > 0
        if not late and abs(residual) > RESIDUAL_NS:
            self._warn("clock residual", f"a pair by {kind} lies {residual * 1e-6:+.3f} ms from the map")
        span = new.host_ns - aside[0][0].host_ns
        enough, least_ns = (LATE_PAIRS, LATE_NS) if late else (STEP_PAIRS, LEAST_SPAN_NS)
        if len(aside) >= enough and span >= least_ns:
            better = (self._pairs[k] for k in KINDS[: KINDS.index(kind)])
            if any(pairs and pairs[-1].host_ns > aside[0][0].host_ns for pairs in better):
                # Better pairs go on as before: no clock stepped, the kinds contradict each other for good.
                self._warn("clock residual", f"pairs by {kind} lie {residual * 1e-6:+.3f} ms from shared edges")
                return False
            known = [r for _, r in aside if not math.isnan(r)]
            self._step(kind, [p for p, _ in aside], sorted(known)[len(known) // 2] if known else None)
            return True
        return False

    def _step(self, kind: Kind, pairs: list[Pair], by_ns: float | None) -> None:
        known = "" if by_ns is None else f" by {by_ns * 1e-6:+.3f} ms of host time"
        why = " (or the path of its messages changed its delay)" if kind == "arrival" else ""
        detail = f"the device's clock stepped{known} against the host's{why}; {len(pairs)} pairs in a row say so"
        self._news.append(("clock stepped", f"{detail}; older pairs are dropped"))
        self.steps_host_ns.append(pairs[0].host_ns)
        self._forget()
        self._pairs[kind].extend(pairs)
        self._fit(kind)

    # --- the map ------------------------------------------------------------------------------------------------------

    def to_host_ns(self, device_sample: float) -> tuple[int, int] | None:
        """Return host time of a sample and the bound on its error (99 %), both in ns; None before the map is known."""
        line = self._believed(self._chosen)
        if line is None:
            return None
        x = float(device_sample - line.sample0)
        return line.host0 + round(line.host_ns(x)), round(line.uncertainty_ns(x) + self.disputed_ns())

    def to_sample(self, host_ns: int) -> tuple[float, int] | None:
        """Return the (fractional) sample at a host time and the bound on its error (99 %) in ns; None before known."""
        line = self._believed(self._chosen)
        if line is None:
            return None
        x = (float(host_ns - line.host0) - line.at) / line.slope
        return line.sample0 + x, round(line.uncertainty_ns(x) + self.disputed_ns())

    def ns_per_sample(self) -> float | None:
        """Return the device's sample period in host time, ns; None before the map is known."""
        line = self._believed(self._chosen)
        return None if line is None else line.slope

    @property
    def line(self) -> Line | None:
        """The line that is the map now, with its kind, residual and number of pairs; None before it is known."""
        return self._believed(self._chosen)

    def disputed_ns(self) -> float:
        """Return by how much the newest pairs contradict the map, ns: a clock may have stepped. It is in every bound.

        An arrival that is late contradicts nothing; several in a row do, by as much as the least late of them.
        """
        off: list[float] = []
        for kind, aside in self._aside.items():
            known = [r for _, r in aside if not math.isnan(r)]
            late = [r for r in known if kind == "arrival" and r > 0]
            off += [abs(r) for r in known if kind != "arrival" or r < 0]
            off += [min(late)] if len(late) >= STEP_PAIRS else []
        return max(off, default=self._contradicted_ns)

    def drift_ppm(self) -> float | None:
        """Return how much faster (+) the device's clock runs than its nominal rate says; None where unknown."""
        line = self._believed(self._chosen)
        if line is None or not self.nominal_hz:
            return None
        return (1e9 / (line.slope * self.nominal_hz) - 1) * 1e6

    def warnings(self) -> list[tuple[str, str]]:
        """Return what is wrong with the clock (what, detail) and was not returned before; each once per run.

        "clock drift": over 150 ppm; "clock residual": a pair, or the fit of round trips or edges, is over 1 ms off;
        "clock stepped": each step.
        """
        line, drift = self._believed(self._chosen), self.drift_ppm()
        if line is not None:
            doubt = line.slope_uncertainty()
            if line.kind == "arrival":  # the smallest delay may have changed between its first and its last pair
                doubt += (UNSEEN_DELAY_NS + line.scatter_ns) / ((line.last - line.first) * line.slope)
            if drift is not None and abs(drift) - doubt * 1e6 > DRIFT_PPM:
                detail = f"the device's clock is {drift:+.0f} ppm off its nominal {self.nominal_hz:g} Hz"
                self._warn("clock drift", f"{detail}; over {DRIFT_PPM:g} ppm")
            # The scatter of arrivals is that of messages on their way, in the bound, and no news of the clock.
            if line.kind != "arrival" and line.residual_ns > RESIDUAL_NS:
                self._warn("clock residual", f"pairs by {line.kind} scatter by {line.residual_ns * 1e-6:.3f} ms")
        news, self._news = self._news, []
        return news

    def _warn(self, what: str, detail: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self._news.append((what, detail))

    def _believed(self, line: Line | None) -> Line | None:
        if line is None or self.nominal_hz is None:
            return line
        if line.kind == "arrival" and line.uncertainty_ns(line.last) > WORTHLESS_NS:
            return None
        return line if abs(line.slope * self.nominal_hz * 1e-9 - 1) <= RATE_TOLERANCE else None

    def _fit(self, kind: Kind) -> None:
        """Fit the line of one kind anew and choose the one with the smallest bound at the newest pair."""
        newest = self._pairs[kind][-1]
        for other, pairs in self._pairs.items():
            keep_ns = FEW_EXACT_NS if other == "exact" else WINDOW_NS
            if pairs and pairs[-1].host_ns < newest.host_ns - keep_ns:
                pairs.clear()
                self._own[other] = None
        own = self._pairs[kind]
        while own[0].host_ns < newest.host_ns - WINDOW_NS:
            if kind == "exact" and len(own) <= LEAST_PAIRS and own[0].host_ns >= newest.host_ns - FEW_EXACT_NS:
                break
            own.popleft()
        self._own[kind] = own_line(kind, own, self._nominal_hz)
        self._choose()

    def _choose(self) -> None:
        newest = max((pairs[-1] for pairs in self._pairs.values() if pairs), key=lambda p: p.host_ns, default=None)
        if newest is None:
            return
        known = [line for k in KINDS if (line := self._believed(self._own[k])) is not None]
        lines = with_levelled(known, self._pairs["exact"])
        self._lines = {kind: next((line for line in lines if line.kind == kind), None) for kind in KINDS}
        self._chosen = best_line(lines, newest.sample)
        self._contradicted_ns = 0.0
        if self._chosen is not None and self._chosen.kind == "exact":
            self._compare(lines, self._chosen, newest.sample)

    def _compare(self, lines: list[Line], exact: Line, sample: float) -> None:
        """Say where shared edges show that a poorer kind of pair is further off than it can know.

        Arrivals only assume their bound, and are wrong then. Round trips do not: the edges may be of another line.
        """
        for line in lines:
            off = line.host0 - exact.host0 + line.host_ns(sample - line.sample0) - exact.host_ns(sample - exact.sample0)
            bounds = line.uncertainty_ns(sample - line.sample0) + exact.uncertainty_ns(sample - exact.sample0)
            if line.kind != "exact" and abs(off) > max(RESIDUAL_NS, bounds):
                self._warn("clock residual", f"the map by {line.kind} was {off * 1e-6:+.3f} ms off shared edges")
                if line.kind == "round_trip":
                    self._contradicted_ns = abs(off)
