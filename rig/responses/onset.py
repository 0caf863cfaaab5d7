"""When an image appeared, in device samples: photodiode edges paired with flips by time, never by order.

Pure; part of the response fold (`rig.responses.windows`). An edge belongs to the presentation whose predicted onset
(flip stamp, mapped to the device's clock, plus the lag that was measured) lies within `edge_tolerance_s` of it. Nothing
is guessed: an edge that could belong to two presentations is given to none, an edge that pairs with none and a
presentation without an edge are said, and an onset taken from the flip stamp states a larger uncertainty.

A lag is worth as much as the clock map it was measured with: it is learnt only from a map that is good enough, and
forgotten when the map steps or moves. docs/responses.md tells the rules.
"""

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rig.clocks.clockmap import ClockMap
from rig.config.session import Config
from rig.messages import EdgeBlock, Presented, TrialIntent
from rig.responses.fault_batch import FaultBatch

LAG_POOL = 51
# Of edge_tolerance_s: a map whose bound is larger teaches no lag, a map that moved by more makes the lags void.
LEARN_SHARE = 0.25
# An edge may be a presentation's own if the lag that it says lies within these, give or take the map's bound.
EARLIEST_LIGHT_NS, LATEST_LIGHT_NS = -5_000_000, 100_000_000
TRIALS_KEPT = 20  # edges are judged some seconds after their trial
REACQUIRE = 5  # presentations in a row without an edge of their own that agree on another lag
MISSING, UNPAIRED = "photodiode edge missing", "photodiode edge unpaired"
AMBIGUOUS, LATE = "photodiode edge ambiguous", "photodiode edge late"
UNRECORDED = "photodiode edge of an unrecorded image"
REACQUIRED = "photodiode pairing re-acquired"


@dataclass
class _Edge:
    """A rising edge of the photodiode."""

    sample: int
    owner: int | None = None  # presentation
    spent: bool = False  # owned, or could belong to two: no presentation may take it (any more)


@dataclass
class _Shown:
    """A presentation as far as its edge is concerned."""

    number: int
    flip_host_ns: int
    patch_ns: int  # when the scan-out reaches the patch, after the flip
    has_edge: bool = False
    from_flip: bool = False  # scored, with the flip stamp for its onset


@dataclass
class _Trial:
    """What was announced, and is not recorded yet; and when it was to be on the screen, host clock."""

    unrecorded: set[int]
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class _Lag:
    """Host time of an edge, by the clock map of that moment, less flip stamp and scan-out; and the map's bound."""

    lag_ns: int
    bound_ns: int


@dataclass(frozen=True)
class Onset:
    """Onset of an image."""

    sample: int
    uncertainty_ns: int  # bound on the error of `sample`, 99 %
    source: Literal["photodiode", "flip"]
    edge: int | None  # sample of the photodiode's edge


class Onsets:
    """Pairs the edges of one line with presentations and learns the display's lag from them."""

    def __init__(self, config: Config, source: str, line: int | None, faults: FaultBatch) -> None:
        """Pair edges of `line` of `source` (None: there is no photodiode); what is wrong is added to `faults`."""
        self._config, self._source, self._line, self._faults = config, source, line, faults
        self._tolerance_ns = config.responses.edge_tolerance_s * 1e9
        self._lags: deque[_Lag] = deque(maxlen=LAG_POOL)
        self._median_ns: int | None = None  # of the lags, until they change
        self._learnt: tuple[int, int] | None = None  # the last edge that taught a lag: sample, host ns by the map then
        self._steps = 0  # of the clock map, as far as the lags know
        self._without: deque[_Shown] = deque(maxlen=REACQUIRE)  # the last ones, in a row, without an edge of their own
        self._edges: list[_Edge] = []
        self._shown: deque[_Shown] = deque()
        self._trials: deque[_Trial] = deque(maxlen=TRIALS_KEPT)
        self._judged_to: int | None = None  # edges before this sample were judged

    def shown(self, presented: Presented) -> None:
        """Take note of a presentation that may have made an edge."""
        patch_ns = self._scanout_ns(presented.patch_row_px)
        self.accounted((presented.presentation,))
        self._shown.append(_Shown(presented.presentation, presented.onset_flip_host_ns, patch_ns))

    def announced(self, trial: TrialIntent) -> None:
        """Take note of what is about to be on the screen; it may die before it can say that it was."""
        rhythm = self._config.presentation
        length_ns = int(len(trial.presentations) * (rhythm.on_s + rhythm.off_s) * 1e9)
        self._trials.append(_Trial(set(trial.presentations), trial.start_host_ns, trial.start_host_ns + length_ns))

    def accounted(self, presentations: tuple[int, ...]) -> None:
        """Take note of announced presentations that have a record by now, or were never on the screen."""
        for trial in self._trials:
            trial.unrecorded.difference_update(presentations)

    def take(self, block: EdgeBlock) -> None:
        """Take edges; all but rising ones of the photodiode's line are ignored."""
        for sample in block.sample[(block.line == self._line) & (block.state == 1)].tolist():
            insort(self._edges, _Edge(sample), key=lambda edge: edge.sample)
            if self._judged_to is not None and sample < self._judged_to:
                self._judged_to = sample  # came very late

    def predicted(self, presented: Presented, clock: ClockMap) -> tuple[float, int] | None:
        """Return the sample at which the patch is expected to turn white, and the clock's bound on its error in ns."""
        self._follow(clock)
        at_ns = presented.onset_flip_host_ns + self._lag_ns() + self._scanout_ns(presented.patch_row_px)
        return clock.to_sample(at_ns)

    def _lag_ns(self) -> int:
        """Return the lag from flip stamp to light in the top row: measured where edges were seen, else the config's."""
        if self._median_ns is None:
            lags = [lag.lag_ns for lag in self._lags]
            self._median_ns = int(np.median(np.array(lags))) if lags else int(self._config.display.lag_s * 1e9)
        return self._median_ns

    def _scanout_ns(self, row_px: float) -> int:
        display = self._config.display
        return round(display.scanout_s * row_px / display.size_px[1] * 1e9)

    # --- the lag ------------------------------------------------------------------------------------------------------

    def _follow(self, clock: ClockMap) -> None:
        """Drop the lags when the clock map that they were measured with is no longer the map."""
        moved_ns = 0
        if self._learnt is not None and (now := clock.to_host_ns(self._learnt[0])) is not None:
            moved_ns = abs(now[0] - self._learnt[1])
        if len(clock.steps_host_ns) != self._steps or moved_ns > LEARN_SHARE * self._tolerance_ns:
            self._steps, self._learnt = len(clock.steps_host_ns), None
            self._lags.clear()
            self._median_ns = None
            self._without.clear()

    def _lag_by(self, edge: _Edge, shown: _Shown, clock: ClockMap) -> _Lag | None:
        """Return the lag if the edge is that presentation's; None without a map."""
        mapped = clock.to_host_ns(edge.sample)
        return None if mapped is None else _Lag(mapped[0] - shown.flip_host_ns - shown.patch_ns, mapped[1])

    def _learn(self, edge: _Edge, shown: _Shown, clock: ClockMap) -> None:
        """Learn the lag from a presentation and its edge, if the map is good enough to tell it."""
        lag = self._lag_by(edge, shown, clock)
        if lag is not None and lag.bound_ns <= LEARN_SHARE * self._tolerance_ns:
            self._lags.append(lag)
            self._median_ns = None
            self._learnt = edge.sample, lag.lag_ns + shown.flip_host_ns + shown.patch_ns

    def _perhaps(self, shown: _Shown, clock: ClockMap) -> list[tuple[_Edge, _Lag]]:
        """Return all edges that no presentation owns and that may be this one's, as far as a display's lag can tell."""
        edges = ((edge, self._lag_by(edge, shown, clock)) for edge in self._edges if edge.owner is None)
        expected_ns, found = self._lag_ns(), list[tuple[_Edge, _Lag]]()
        for edge, lag in edges:
            if lag is not None:
                may = EARLIEST_LIGHT_NS - lag.bound_ns <= lag.lag_ns <= LATEST_LIGHT_NS + lag.bound_ns
                if may or abs(lag.lag_ns - expected_ns) <= self._tolerance_ns:
                    found.append((edge, lag))
        return found

    def _reacquire(self, clock: ClockMap) -> None:
        """Follow the lag that the last presentations without an edge agree on, if each has exactly one free edge."""
        found = [self._perhaps(shown, clock) for shown in self._without]
        one_each = len(found) == REACQUIRE and all(len(one) == 1 and not one[0][0].spent for one in found)
        if not one_each or len({one[0][0].sample for one in found}) < REACQUIRE:
            return
        lags = [one[0][1] for one in found]
        values = [lag.lag_ns for lag in lags]
        known = max(lag.bound_ns for lag in lags) <= LEARN_SHARE * self._tolerance_ns
        if not known or max(values) - min(values) > self._tolerance_ns / 2:
            return
        before_ns, numbers = self._lag_ns(), tuple(shown.number for shown in self._without)
        self._lags.clear()
        self._median_ns = None
        for shown, one in zip(self._without, found, strict=True):
            edge = one[0][0]
            edge.owner, edge.spent, shown.has_edge = shown.number, True, True
            self._learn(edge, shown, clock)
        self._faults.add(
            REACQUIRED,
            f"{REACQUIRE} presentations in a row ({numbers[0]} to {numbers[-1]}) had no edge at the lag of "
            f"{before_ns * 1e-6:.1f} ms and one edge each at {self._lag_ns() * 1e-6:.1f} ms",
            "from here on edges are paired by the new lag; those presentations keep the onset from their flip stamp",
            numbers,
            self._without[-1].flip_host_ns,
        )
        self._without.clear()

    # --- pairing ------------------------------------------------------------------------------------------------------

    def onset(self, presented: Presented, clock: ClockMap, rate_hz: float) -> Onset:
        """Return the onset of a presentation, once all edges that could be its own are there.

        `predicted` must not be None. Faults: no edge; an edge that another presentation could own as well.
        """
        predicted = self.predicted(presented, clock)
        assert predicted is not None  # noqa: S101 - the caller has asked
        shown = next(s for s in self._shown if s.number == presented.presentation)
        edges = self._own_edges(shown, predicted[0], clock, rate_hz)
        # Image and patch are lit when the scan-out reaches their rows; edge and prediction are those of the patch.
        shift = round((self._scanout_ns(presented.image_row_px) - shown.patch_ns) * 1e-9 * rate_hz)
        if not edges:
            shown.from_flip = True
            uncertainty_ns = self._flip_uncertainty_ns(shown, predicted, clock)
            if self._line is not None:
                self._say_missing(shown)
                self._without.append(shown)
                self._reacquire(clock)
            return Onset(round(predicted[0]) + shift, uncertainty_ns, "flip", None)
        best = edges[0]
        best.owner, best.spent, shown.has_edge = shown.number, True, True
        self._learn(best, shown, clock)
        self._without.clear()
        # Where the photodiode rose more than once, the onset may be any of the edges.
        spread = max(abs(e.sample - best.sample) for e in edges)
        return Onset(best.sample + shift, int((spread + 1) * 1e9 / rate_hz) + 1, "photodiode", best.sample)

    def _own_edges(self, shown: _Shown, predicted: float, clock: ClockMap, rate_hz: float) -> list[_Edge]:
        """Return the edges that only this presentation can own, the nearest to its predicted onset first."""
        tolerance = self._config.responses.edge_tolerance_s * rate_hz
        own = []
        for edge in [e for e in self._edges if abs(e.sample - predicted) <= tolerance]:
            if edge.owner == shown.number:  # judged before its response could be measured: traces wait for their lag
                own.append(edge)
                continue
            others = [edge.owner] if edge.owner is not None else []
            if not edge.spent:
                others = [s.number for s in self._near(edge, clock) if s is not shown and not s.has_edge]
            if others:
                edge.spent = True
                self._faults.add(
                    AMBIGUOUS,
                    f"the edge at sample {edge.sample} could belong to presentations {shown.number} and "
                    f"{', '.join(map(str, others))}",
                    "an onset that is not settled yet is taken from its flip stamp and the measured lag",
                    (shown.number, *others),
                    shown.flip_host_ns,
                )
            elif not edge.spent:
                own.append(edge)
        return sorted(own, key=lambda e: abs(e.sample - predicted))

    def _near(self, edge: _Edge, clock: ClockMap) -> list[_Shown]:
        """Return the presentations whose predicted onset lies within tolerance of an edge, the nearest first."""
        mapped = clock.to_host_ns(edge.sample)
        if mapped is None:
            return []
        at_ns, tolerance_ns = mapped[0] - self._lag_ns(), self._tolerance_ns
        apart = [(abs(s.flip_host_ns + s.patch_ns - at_ns), s) for s in self._shown]
        return [s for ns, s in sorted(apart, key=lambda one: one[0]) if ns <= tolerance_ns]

    def _flip_uncertainty_ns(self, shown: _Shown, predicted: tuple[float, int], clock: ClockMap) -> int:
        """Bound on the error of an onset from its flip stamp: what clock map and lag leave open, and other edges.

        An edge that is there and pairs with nothing, though it may be this one's, tells how far off the onset may be.
        """
        open_ns, bound_ns = 0.5e9 / self._config.display.refresh_hz, float(predicted[1])
        if self._lags:
            lag_ns = self._lag_ns()
            open_ns = max(open_ns, *(abs(lag.lag_ns - lag_ns) for lag in self._lags))
            bound_ns = max(bound_ns, float(np.median([lag.bound_ns for lag in self._lags])))
        elif self._line is not None:  # nothing was measured yet, or what was is void
            open_ns = max(open_ns, self._tolerance_ns)
        expected_ns = self._lag_ns()
        other_ns = max((abs(lag.lag_ns - expected_ns) for _, lag in self._perhaps(shown, clock)), default=0)
        return int(max(bound_ns + open_ns, other_ns + 2 * (clock.ns_per_sample() or 0.0))) + 1

    def _say_missing(self, shown: _Shown) -> None:
        tolerance_s = self._config.responses.edge_tolerance_s
        self._faults.add(
            MISSING,
            f"presentation {shown.number}: no rising edge on line {self._line} within {tolerance_s} s of its flip that "
            "is its own",
            "onset taken from the flip stamp and the measured lag",
            (shown.number,),
            shown.flip_host_ns,
        )

    # --- edges that nobody took ---------------------------------------------------------------------------------------

    def judge(self, clock: ClockMap, rate_hz: float, watermark: int, everything: bool = False) -> None:
        """Say which edges pair with no presentation.

        An edge is judged once the record of the image that made it must have come; with `everything`, at the end of a
        run or session, all that are left are.
        """
        if rate_hz <= 0 or (clock.ns_per_sample() is None and not everything):
            return
        patience_s = self._config.presentation.on_s + self._config.responses.timeout_s
        end = watermark + 1 if everything else watermark - int(patience_s * rate_hz)
        if everything and self._edges:
            end = max(end, self._edges[-1].sample + 1)
        judged = 0 if self._judged_to is None else bisect_left(self._edges, self._judged_to, key=lambda e: e.sample)
        for edge in self._edges[judged:]:
            if edge.sample >= end:
                break
            if not edge.spent:
                self._judge(edge, clock)
        self._judged_to = max(end, self._judged_to or end)

    def _judge(self, edge: _Edge, clock: ClockMap) -> None:
        free = next((s for s in self._near(edge, clock) if not s.has_edge), None)
        if free is None and (unrecorded := self._unrecorded_near(edge, clock)):
            numbers = ", ".join(map(str, unrecorded))
            self._faults.add(
                UNRECORDED,
                f"the edge at sample {edge.sample} came while an announced image was to be shown of which there is no "
                f"record: one of {numbers}",
                "edge of an announced image that the rig did not live to record; logged, not used",
            )
            return
        if free is None:
            self._faults.add(
                UNPAIRED,
                f"a rising edge on line {self._line} of {self._source} at sample {edge.sample} pairs with no "
                "presentation",
                "logged, not used; look for reflections, a second light on the photodiode, or a loose contact",
            )
            return
        edge.owner, edge.spent, free.has_edge = free.number, True, True
        if free.from_flip:
            self._faults.add(
                LATE,
                f"the edge of presentation {free.number} at sample {edge.sample} came after its response was closed",
                "the response keeps the onset from its flip stamp",
                (free.number,),
                free.flip_host_ns,
            )

    def _unrecorded_near(self, edge: _Edge, clock: ClockMap) -> list[int]:
        """Return the presentations without a record in whose announced time an edge lies."""
        mapped = clock.to_host_ns(edge.sample)
        if mapped is None:
            return []
        at_ns, wide_ns = mapped[0] - self._lag_ns(), self._tolerance_ns + mapped[1]
        near = (t for t in self._trials if t.start_ns - wide_ns <= at_ns <= t.end_ns + wide_ns)
        return sorted(number for trial in near for number in trial.unrecorded)

    def forget(self, before_sample: int, clock: ClockMap) -> None:
        """Drop edges and presentations before a sample."""
        while self._edges and self._edges[0].sample < before_sample:
            del self._edges[0]
        while self._shown:
            at = clock.to_sample(self._shown[0].flip_host_ns)
            if at is None or at[0] >= before_sample:
                break
            self._shown.popleft()

    def new_run(self) -> None:
        """Drop the edges of a run that is over; `judge` everything before."""
        self._edges, self._judged_to = [], None
        self._learnt = None  # its sample names no moment any more; the display's lag is the same
        self._without.clear()
