"""From the frames of an imaging device (or the bins of a counting one) to what each unit did in a window.

Pure: a fold over the journalled UnitLists and TraceBlocks of one source and run. For fluorescence it subtracts the
neuropil, divides by a running baseline (`rig.responses.fluorescence`) and deconvolves with a fixed lag
(`rig.responses.deconvolution`); binned counts are taken as they are. Nothing is made up: a unit that was not there, a
frame that was lost or a value that is not final gives NaN for every window that would need it.

Time of a row. A row's own time for a unit is the row's sample plus the unit's scan offset: when the line scan passed
it. Deconvolution gives the event of row k for everything since row k - 1, so an event is late by half a frame period on
average.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from rig.config.sources import LslCalciumSource, LslCountSource, TracesWireSource
from rig.messages import TraceBlock, UnitList
from rig.responses.deconvolution import FixedLag
from rig.responses.fluorescence import RunningBaseline

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

PERIOD_ROWS = 9  # the frame period is the median of the first 8 differences
UNCOUNTED_FRAMES = 2  # more than these missing by the samples, not by the counter, are a pause and no jitter
START_S = 1.0  # before the period is known nothing younger than this is final
LEAST_PERIODS = 2.0  # a shorter window holds one row or none at times: its values would be noise, or missing
PERIOD_KNOWN_TO = 0.02  # of a period: clocks drift, stamps jitter; closer to a whole number of rows nothing is known


@dataclass(frozen=True)
class _Layout:
    """Where the units stand in the rows of one UnitList, and when in a frame each is scanned."""

    column: I64  # (unit,), -1 for a unit that is not in the list
    offset: F64  # (unit,), device samples
    longest: float  # the largest offset
    width: int


@dataclass(frozen=True)
class _Row:
    """One frame or bin."""

    frame: int  # from 0, lost ones counted
    sample: int
    layout: _Layout
    raw: F64 | None  # F or counts (unit,), until it is processed
    value: F32 | None  # processed (unit,), None while it is not final
    period: float  # device samples per frame, the mean up to this row; 0 for the first one


@dataclass(frozen=True)
class _Hole:
    """Frames that the device counted and that never came."""

    after: _Row
    before: _Row

    def samples(self, start: float, end: float) -> F64:
        """Return the samples in [start, end) at which lost frames would have begun."""
        missing = self.before.frame - self.after.frame - 1
        period = (self.before.sample - self.after.sample) / (missing + 1)
        first = max(1, int(np.floor((start - self.after.sample) / period))) if period > 0 else 1
        last = min(missing, int(np.ceil((end - self.after.sample) / period))) if period > 0 else 0
        at: F64 = self.after.sample + period * np.arange(first, last + 1, dtype=np.float64)
        return at[(at >= start) & (at < end)]


class TraceFold:
    """Rows of one run of one source, processed; a new run needs a new TraceFold."""

    def __init__(self, source: TracesWireSource | LslCalciumSource | LslCountSource, units: tuple[str, ...]) -> None:
        """Begin before the first row; `units` are the names whose values are asked for, in that order."""
        self._source = source
        self._calcium = None if isinstance(source, LslCountSource) else source.calcium
        self._units = units
        self._layouts: dict[int, _Layout] = {}
        self._rows: deque[_Row] = deque()
        self._pending: deque[_Row] = deque()  # the newest rows, in order, whose value is not final
        self._holes: deque[_Hole] = deque()
        self._newest: _Row | None = None
        self._first_frame = 0
        self._first_sample = 0
        self._rate_hz = 0.0
        self._period = 0.0  # device samples per frame, 0 while unknown
        self._steps: list[float] = []
        self._baseline: RunningBaseline | None = None
        self._solver: FixedLag | None = None
        self._f0_from: int | None = None  # sample of the first row that had a baseline
        self._said: set[str] = set()

    @property
    def measure(self) -> Literal["deconvolved", "dff", "counts"]:
        """Return what `values` gives."""
        return "counts" if self._calcium is None else self._calcium.measure

    @property
    def lag_frames(self) -> int:
        """Return the fixed lag of the deconvolution, frames; 0 without deconvolution or while the rate is unknown."""
        if self._calcium is None or self.measure != "deconvolved" or not self._period:
            return 0
        return round(self._calcium.lag_s * self._rate_hz / self._period)

    def too_short(self, window_s: tuple[float, float]) -> str:
        """Return in words why a window, s from the onset, is too short for the rows of this source; "" if it is not.

        Nothing is too short while the frame period is not known.
        """
        if len(self._steps) < PERIOD_ROWS - 1:
            return ""
        length_s, period_s = window_s[1] - window_s[0], self._period / self._rate_hz
        if length_s >= LEAST_PERIODS * period_s * (1 - PERIOD_KNOWN_TO):
            return ""
        what = "frame" if self._calcium is not None else "bin"
        return (
            f"({window_s[0]:g} to {window_s[1]:g} s) is {length_s * 1e3:.3g} ms long, "
            f"and a {what} lasts {period_s * 1e3:.3g} ms; "
            f"lengthen it to {LEAST_PERIODS:g} {what}s, {LEAST_PERIODS * period_s:.3g} s, or more"
        )

    # --- taking documents

    def take(self, document: UnitList | TraceBlock, rate_hz: float) -> list[str]:
        """Take one document of this source and run; return what is wrong with it, in words.

        `rate_hz` is the rate of the device's samples, > 0. Rows that cannot be used (of a list that never came, out
        of order) are left out and said; windows that need them get NaN.
        """
        if rate_hz <= 0:
            return [f"{document.source} states no sample rate: its traces cannot be placed in time"]
        self._rate_hz = rate_hz
        if isinstance(document, UnitList):
            return self._take_list(document)
        return self._take_block(document)

    def _take_list(self, units: UnitList) -> list[str]:
        place = {name: k for k, name in enumerate(units.units)}
        column = np.array([place.get(name, -1) for name in self._units], np.int64)
        offset = np.zeros(len(self._units))
        there = column >= 0
        offset[there] = units.scan_offset_s[column[there]] * self._rate_hz
        self._layouts[units.list_number] = _Layout(column, offset, float(offset.max(initial=0.0)), len(units.units))
        problems = []
        if len(place) < len(units.units):
            problems.append(f"unit list {units.list_number} names a unit twice: the last one of that name is used")
        if missing := [name for name, k in zip(self._units, column, strict=True) if k < 0]:
            some = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            problems.append(f"unit list {units.list_number} lacks {len(missing)} units of the session: {some}")
        return problems

    def _take_block(self, block: TraceBlock) -> list[str]:
        layout = self._layouts.get(block.list_number)
        if layout is None or layout.width != block.values.shape[1]:
            want = "never came" if layout is None else f"has {layout.width} units, the rows {block.values.shape[1]}"
            return [f"{len(block.frame)} frames from frame {block.frame[:1]} on left out: unit list {want}"]
        problems: list[str] = []
        corrected, problem = self._corrected(block)
        problems += self._once(problem)
        for k in range(len(block.frame)):
            raw = np.full(len(self._units), np.nan)
            there = layout.column >= 0
            raw[there] = corrected[k, layout.column[there]]
            problems += self._take_row(int(block.frame[k]), int(block.sample[k]), layout, raw)
        return problems

    def _corrected(self, block: TraceBlock) -> tuple[F32, str]:
        """Return the values less the neuropil's share, and what is wrong."""
        if self._calcium is None or self._calcium.neuropil == 0:
            return block.values, ""
        if block.neuropil is None:
            return block.values, f"{self._source.name} sends no neuropil: nothing is subtracted (calcium.neuropil: 0)"
        return block.values - np.float32(self._calcium.neuropil) * block.neuropil, ""

    def _once(self, problem: str) -> list[str]:
        if not problem or problem in self._said:
            return []
        self._said.add(problem)
        return [problem]

    def _take_row(self, frame: int, sample: int, layout: _Layout, raw: F64) -> list[str]:
        newest = self._newest
        if newest is None:
            self._first_frame, self._first_sample = frame, sample
        problems = []
        row = _Row(frame - self._first_frame, sample, layout, raw, None, 0.0)
        if newest is not None:
            steps = row.frame - newest.frame
            if steps <= 0 or sample <= newest.sample:
                return [
                    f"frame {frame} at sample {sample} after frame {newest.frame + self._first_frame} at sample "
                    f"{newest.sample}: out of order, left out"
                ]
            if steps > 1:
                problems.append(f"{steps - 1} frames lost before frame {frame}")
            if len(self._steps) < PERIOD_ROWS - 1:
                self._steps.append((sample - newest.sample) / steps)
                if self._calcium is None or len(self._steps) == PERIOD_ROWS - 1:
                    self._period = float(np.median(self._steps))
            elif (uncounted := round((sample - newest.sample) / self._period) - steps) > UNCOUNTED_FRAMES:
                problems.append(f"{uncounted} frames missing before frame {frame} that the device did not count")
                self._first_frame -= uncounted
                row = replace(row, frame=row.frame + uncounted)
            if row.frame > newest.frame + 1:
                self._holes.append(_Hole(newest, row))
            row = replace(row, period=(sample - self._first_sample) / row.frame)
        self._newest = row
        if self._calcium is None:
            self._rows.append(replace(row, raw=None, value=raw.astype(np.float32)))
            return problems
        self._pending.append(row)
        if not self._period:
            return problems
        if self._baseline is None:  # the rows that waited for the period
            self._begin()
            for waiting in tuple(self._pending):
                problems += self._process(waiting)
        else:
            problems += self._process(row)
        return problems

    def _begin(self) -> None:
        assert self._calcium is not None  # noqa: S101
        calcium, frame_s = self._calcium, self._period / self._rate_hz
        self._baseline = RunningBaseline(
            len(self._units), calcium.baseline_percentile, calcium.baseline_window_s / frame_s
        )
        if self.measure == "deconvolved":
            self._solver = FixedLag(len(self._units), float(np.exp(-frame_s / calcium.tau_s)), self.lag_frames)

    def _process(self, row: _Row) -> list[str]:
        """Bring one fluorescence row to dF/F and make final what it makes final."""
        assert self._baseline is not None and row.raw is not None  # noqa: S101, PT018
        f0 = self._baseline.take(row.raw)
        if self._f0_from is None and np.isfinite(f0).any():
            self._f0_from = row.sample
        with np.errstate(invalid="ignore", divide="ignore"):
            dff = np.where(f0 > 0, (row.raw - f0) / f0, np.nan)
        problems = []
        if bad := int(np.count_nonzero(f0 <= 0)):
            name = self._units[int(np.flatnonzero(f0 <= 0)[0])]
            if "F0" not in self._said:
                self._said.add("F0")
                problems = [f"baseline not positive after neuropil subtraction for {bad} units ({name} ...): no dF/F"]
        if self._solver is None:
            self._pending.popleft()
            self._rows.append(replace(row, raw=None, value=dff.astype(np.float32)))
            return problems
        # A row whose lag ended in a hole gets what was known then, before the frame behind the hole counts.
        self._finish(row.frame - 1)
        self._solver.push(row.frame, dff)
        self._pending[self._place(row)] = replace(row, raw=None, value=dff.astype(np.float32))
        self._finish(row.frame)
        return problems

    def _finish(self, through: int) -> None:
        """Make final the rows whose lag ends by frame `through`."""
        assert self._solver is not None  # noqa: S101
        last = through - self._solver.lag
        while self._pending and self._pending[0].raw is None and self._pending[0].frame <= last:
            old = self._pending.popleft()
            events = self._solver.events(old.frame)
            assert old.value is not None  # noqa: S101
            events[~np.isfinite(old.value)] = np.nan
            self._rows.append(replace(old, value=events.astype(np.float32)))

    def _place(self, row: _Row) -> int:
        """Return the index of a pending row: the last one, but for those that waited for the period."""
        return next(k for k in range(len(self._pending) - 1, -1, -1) if self._pending[k].frame == row.frame)

    # --- giving values

    def final_through(self, watermark_sample: int) -> int:
        """Return the sample before which processed values are final, given that all rows before the watermark came.

        While rows come this is the first row whose event still waits for the lag. If rows stop coming (lost, device
        stopped) it follows the watermark at the lag plus two frames, and the windows that need what never came get NaN.
        """
        if self._calcium is None or self.measure != "deconvolved":
            waits = 0.0 if self._calcium is None or self._period else START_S * self._rate_hz
        elif self._period:
            waits = (self.lag_frames + 2) * self._period
        else:
            waits = (START_S + self._calcium.lag_s) * self._rate_hz
        late = watermark_sample - int(np.ceil(waits))
        if not self._pending:
            return watermark_sample if self._newest is not None or self._calcium is None else late
        return max(min(watermark_sample, self._pending[0].sample), late)

    def values(self, start_sample: int, end_sample: int) -> F64:
        """Return for each unit (unit,) what it did over the rows whose own time lies in [start, end).

        The sum of events (dF/F) or counts, the mean for dF/F. A window of 2.5 frames holds two rows at times and three
        at others, so a sum is that of the unit's rows, times the window's length over the time that these rows cover
        (their number times the frame period). NaN where a unit was not in the list, a row is missing, not measured or
        not final, the window reaches beyond the rows, or no row lies in it. Units: see `measure`.
        """
        total, rows = np.zeros(len(self._units)), np.zeros(len(self._units), np.int64)
        reach = np.zeros(len(self._units), bool)  # a row at or before the start, or within a period of it, is known
        for sample, layout, value in self._parts(start_sample, end_sample):
            own = sample + layout.offset
            inside = (own >= start_sample) & (own < end_sample)
            total[inside] += value[inside] if value is not None else np.nan
            rows[inside] += 1
            reach |= own < start_sample + 1.5 * self._period
        covered = reach & (rows > 0)
        if self._newest is None or not self._period:
            covered[:] = False
        else:
            covered &= self._newest.sample + self._newest.layout.offset + 1.5 * self._period >= end_sample
        total[~covered] = np.nan
        mean: F64 = total / np.maximum(rows, 1)
        if self.measure == "dff":
            return mean
        periods = (end_sample - start_sample) / (self._period_at(end_sample) or np.nan)
        # A window of a whole number of rows gets their plain sum: counts stay whole numbers.
        return np.where(np.abs(rows - periods) < PERIOD_KNOWN_TO, total, mean * periods)

    def _period_at(self, end_sample: int) -> float:
        """Return the mean period up to the last row before a sample: the same whenever it is asked for; 0 if unknown.

        Time stamps jitter. The mean over the run is far better known than `_period`, of the first few rows.
        """
        for queue in (self._pending, self._rows):
            for row in reversed(queue):
                if row.sample < end_sample:
                    return row.period
        return 0.0

    def why_missing(self, start_sample: int, end_sample: int) -> str:
        """Return in words why `values` has nothing for any unit in [start, end), for the log."""
        if self._newest is None:
            return "no frame has come"
        if self._calcium is not None and (self._f0_from is None or start_sample < self._f0_from):
            return f"no baseline F0 yet: it needs {self._calcium.baseline_window_s / 12:.3g} s of frames"
        if any(len(hole.samples(start_sample - hole.after.layout.longest, end_sample)) for hole in self._holes):
            return "frames of its window were lost"
        if next(self._parts(start_sample, end_sample), None) is None:
            return "no frame lies in its window"
        return "none of its units was there"

    def _parts(self, start: int, end: int) -> Iterator[tuple[float, _Layout, F32 | None]]:
        """Go through all rows, present and lost, that may have a unit in [start, end)."""
        for queue, final in ((self._rows, True), (self._pending, False)):
            for row in queue:
                if row.sample < end and row.sample + row.layout.longest >= start:
                    yield row.sample, row.layout, row.value if final else None
        for hole in self._holes:
            for sample in hole.samples(start - hole.after.layout.longest, end):
                yield float(sample), hole.after.layout, None

    def forget(self, before_sample: int) -> None:
        """Drop rows that no window from `before_sample` on can need."""
        while self._rows and self._rows[0].sample + self._rows[0].layout.longest < before_sample:
            self._rows.popleft()
        while self._holes and self._holes[0].before.sample < before_sample:
            self._holes.popleft()
