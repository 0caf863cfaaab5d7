"""The account of an LSL source of fluorescence or of binned spike counts: rows in, UnitList and TraceBlocks out.

Pure. One channel is one unit, one row one frame or bin, its stamp the moment at which it began. Beside it there may be
a stream of neuropil, paired by stamp, and a stream of TTL edges whose samples are us of the same LSL clock.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rig.config.sources import LslCalciumSource, LslCountSource
from rig.messages import Document, Gap, TraceBlock, UnitList
from rig.sources.columns import Columns, Faults
from rig.sources.lsl_frames import FrameCount, counter_channel, silent_ns
from rig.sources.lsl_rows import Lane
from rig.sources.lsl_spikes import edge_lane
from rig.sources.lsl_stamps import StampCheck
from rig.sources.lsl_streams import (
    STAMP_HZ,
    Described,
    Progress,
    Pulled,
    Restarted,
    WrongStream,
    named,
    numbers,
    whole_us,
)

F32 = npt.NDArray[np.float32]
IRREGULAR_PAIR_US = 1000  # stamps of one frame in two streams, where no rate tells how far apart frames are


@dataclass(frozen=True)
class _Row:
    frame: int
    sample: int
    arrival_ns: int
    values: F32  # (unit,)
    neuropil: F32 | None = None  # (unit,)


class _Neuropil:
    """Finds the neuropil of a frame by its stamp."""

    def __init__(self, stream: Described, units: tuple[str, ...], tolerance_us: int) -> None:
        numbers(stream)
        place = {label: k for k, label in enumerate(named(stream))}
        if missing := [unit for unit in units if unit not in place]:
            text = f"LSL stream {stream.name!r} has no channel for {missing[0]!r}"
            raise WrongStream(text, "give the neuropil the same channel labels as the fluorescence")
        self._columns = np.array([place[unit] for unit in units], dtype=np.int64)
        self._tolerance_us = tolerance_us
        self._waiting: deque[tuple[int, F32]] = deque()
        self.begins: int | None = None  # frames before this sample are older than the first row, None without rows

    def add(self, sample: list[int], rows: F32) -> None:
        """Take rows in order of their samples."""
        if sample and self.begins is None:
            self.begins = sample[0] - self._tolerance_us
        self._waiting.extend(zip(sample, rows[:, self._columns], strict=True))

    def find(self, sample: int) -> F32 | bool | None:
        """Return the neuropil (unit,) of the frame at `sample`; None if there is none, False if it may still come."""
        while self._waiting and self._waiting[0][0] < sample - self._tolerance_us:
            self._waiting.popleft()
        if not self._waiting:
            return False
        at, row = self._waiting[0]
        if at > sample + self._tolerance_us:
            return None
        self._waiting.popleft()
        return row


class TraceReader:
    """One run of fluorescence or counts."""

    def __init__(
        self, source: LslCalciumSource | LslCountSource, streams: Sequence[Described], faults: Faults
    ) -> None:
        """`streams`: traces, then neuropil and edges as far as the config names them; raises WrongStream."""
        traces = streams[0]
        numbers(traces)
        counter = counter_channel(traces)
        labels = named(traces)
        self._units = tuple(label for k, label in enumerate(labels) if k != counter)
        if not self._units:
            raise WrongStream(f"LSL stream {traces.name!r} has a frame counter and no unit")
        self._columns = np.array([k for k in range(len(labels)) if k != counter], dtype=np.int64)
        offsets = traces.scan_offset_s or (0.0,) * len(labels)
        self._scan_offset_s = np.array(offsets, dtype=np.float64)[self._columns]
        self.progress = Progress(silent_ns=silent_ns(traces.rate_hz))
        self._source, self._faults, self._counter = source, faults, counter
        self._count = FrameCount(traces.rate_hz)
        self._checks = [StampCheck(f"{source.name}, {s.name}", source.max_age_s, faults) for s in streams]
        self._neuropil: _Neuropil | None = None
        if isinstance(source, LslCalciumSource) and source.neuropil is not None:
            tolerance_us = round(0.5e6 / traces.rate_hz) if traces.rate_hz > 0 else IRREGULAR_PAIR_US
            self._neuropil = _Neuropil(streams[1], self._units, tolerance_us)
        self._lane: Lane | None = edge_lane(streams[-1], STAMP_HZ) if source.edges is not None else None
        self._edges_at = len(streams) - 1 if source.edges is not None else None
        self._edges = Columns(source.name)
        self._held: deque[_Row] = deque()  # waits for its neuropil
        self._rows: list[_Row] = []
        self._listed = False
        self._through: int | None = None  # sample of the last row that is complete

    # --- taking rows

    def take(self, stream: int, pulled: Pulled) -> None:
        """Account for rows of the traces (stream 0), the neuropil or the edges."""
        if stream == self._edges_at:
            self._take_edges(stream, pulled)
        elif stream == 0:
            self._take_traces(pulled)
        elif self._neuropil is not None:
            verdicts = self._checks[stream].judge(pulled)
            kept = np.array([v != "wrong" for v in verdicts], dtype=np.bool_)
            rows = np.asarray(pulled.rows, dtype=np.float32)[kept]
            self._neuropil.add(whole_us(pulled.stamp_s)[kept].tolist(), rows)
        self._pair(pulled.arrival_ns)
        self._advance()

    def _take_traces(self, pulled: Pulled) -> None:
        verdicts = self._checks[0].judge(pulled)
        counter = None if self._counter is None else np.asarray(pulled.rows, dtype=np.float64)[:, self._counter]
        numbered = self._count.take(whole_us(pulled.stamp_s), verdicts, counter)
        values = self._clean(np.asarray(pulled.rows, dtype=np.float32)[numbered.index][:, self._columns])
        for frame, sample, row in zip(numbered.frame.tolist(), numbered.sample.tolist(), values, strict=True):
            self._held.append(_Row(frame, sample, pulled.arrival_ns, row))
        self.progress.received += len(numbered.index)
        self.progress.lost += numbered.lost
        self.progress.gaps += numbered.gaps
        if numbered.lost:
            detail = f"{self._source.name}: {numbered.lost} frames lost before frame {self._count.frame}"
            done = "their stretch is marked as a gap; responses that need it are scored missing"
            self._faults.note("frames lost", detail, done, pulled.arrival_ns)

    def _clean(self, values: F32) -> F32:
        """Make NaN of what cannot be a measurement; NaN itself says that a unit was not measured."""
        bad = np.isinf(values)
        if isinstance(self._source, LslCountSource):
            bad |= (values < 0) | (np.isfinite(values) & (values != np.rint(values)))
        if bad.any():
            unit = self._units[int(np.nonzero(bad)[1][0])]
            detail = f"{self._source.name}: {int(bad.sum())} values that cannot be, the first of {unit!r}"
            self._faults.note("value wrong", detail, "taken as not measured")
            values = np.where(bad, np.float32(np.nan), values)
        return values

    def _take_edges(self, stream: int, pulled: Pulled) -> None:
        assert self._lane is not None  # noqa: S101 - there is a stream of edges
        self._checks[stream].judge(pulled)
        taken = self._lane.take(pulled.rows.tolist())
        if taken.restarted:
            raise Restarted("counts or samples of the edges went back")
        for reason in taken.refused:
            self._faults.note("message refused", f"{self._source.name}: {reason}", "not used")
        for line, state, sample in taken.rows:
            self._edges.edge(line, state, sample, pulled.arrival_ns)
        for gap in taken.gaps:
            self.progress.gaps.append(gap)
            if gap.messages:
                detail = f"{self._source.name}: {gap.messages} edges lost before sample {gap.end_sample}"
                self._faults.note("messages lost", detail, "marked as a gap", pulled.arrival_ns)
                self.progress.lost += gap.messages

    # --- pairing

    def _pair(self, now_ns: int) -> None:
        """Complete the rows whose neuropil is there, or has not come in time."""
        while self._held:
            row = self._held[0]
            neuropil: F32 | None = None
            if self._neuropil is not None:
                if self._through is None and self._before_neuropil(row):
                    continue
                found = self._neuropil.find(row.sample)
                if found is False and now_ns - row.arrival_ns < self._source.max_age_s * 1e9:
                    return
                if isinstance(found, np.ndarray):
                    neuropil = found
                else:
                    neuropil = np.full(len(self._units), np.nan, dtype=np.float32)
                    detail = f"{self._source.name}: no neuropil with the stamp of frame {row.frame}"
                    self._faults.note("neuropil missing", detail, "taken as not measured", row.arrival_ns)
            self._held.popleft()
            self._rows.append(_Row(row.frame, row.sample, row.arrival_ns, row.values, neuropil))
            self._through = row.sample

    def _before_neuropil(self, row: _Row) -> bool:
        """Leave out a row that came before the neuropil's stream was joined: the run begins where both are there."""
        begins = self._neuropil.begins if self._neuropil is not None else None
        if begins is None or row.sample >= begins:
            return False
        self._held.popleft()
        self.progress.gaps.append(Gap(first_sample=0, end_sample=begins, messages=0))
        return True

    def _advance(self) -> None:
        """Everything before the moment after the last complete row was delivered, and no edge is missing before it."""
        if self._through is None or (self._lane is not None and self._lane.watermark is None):
            return
        last = self._through + 1
        if self._lane is not None and self._lane.watermark is not None:
            last = min(last, self._lane.watermark)
        self.progress.watermark = max(self.progress.watermark or 0, last)
        self.progress.ready = True

    # --- documents

    def harvest(self, run: int, now_ns: int | None) -> list[Document]:
        """Return the UnitList before the first rows, the rows, the edges."""
        if now_ns is not None:
            self._pair(now_ns)
            self._advance()
        out: list[Document] = []
        rows, self._rows = self._rows, []
        if rows and not self._listed:
            self._listed = True
            out.append(
                UnitList(
                    source=self._source.name,
                    run=run,
                    list_number=0,
                    from_sample=rows[0].sample,
                    units=self._units,
                    scan_offset_s=self._scan_offset_s,
                    measure="counts" if isinstance(self._source, LslCountSource) else "fluorescence",
                )
            )
        if rows:
            neuropil = None
            if self._neuropil is not None:
                neuropil = np.array([r.neuropil for r in rows], dtype=np.float32)
            out.append(
                TraceBlock(
                    source=self._source.name,
                    run=run,
                    list_number=0,
                    frame=np.array([r.frame for r in rows], dtype=np.int64),
                    sample=np.array([r.sample for r in rows], dtype=np.int64),
                    arrival_host_ns=np.array([r.arrival_ns for r in rows], dtype=np.int64),
                    values=np.array([r.values for r in rows], dtype=np.float32),
                    neuropil=neuropil,
                )
            )
        return [*out, *self._edges.take(run)]
