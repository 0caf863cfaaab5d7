"""The account of an LSL source of spike events: a stream of spikes and, where there is one, a stream of TTL edges.

Pure. What the rows mean and how they are counted is in `lsl_rows`. The device has a sample counter of its own: time
stamps only say when rows were sent, which ties that counter to the host's clock and tells their age.
"""

from collections.abc import Sequence

import numpy as np

from rig.config.sources import LslSpikeSource
from rig.messages import Document, Gap, UnitList
from rig.sources.columns import ClockPairs, Columns, Faults
from rig.sources.lsl_rows import Lane, Taken
from rig.sources.lsl_stamps import StampCheck
from rig.sources.lsl_streams import Described, Progress, Pulled, Restarted, WrongStream

SILENT_NS = 500_000_000  # watermark rows are due 40 times a second


def double_rows(stream: Described, channels: int, what: str) -> None:
    """Raise WrongStream unless a stream has so many channels of doubles: smaller types cannot hold a sample."""
    if len(stream.labels) == channels and stream.format == "double64":
        return
    found = f"{len(stream.labels)} channels of type {stream.format}"
    raise WrongStream(f"LSL stream {stream.name!r} has {found}, expected {channels} of type double64 ({what})")


def edge_lane(stream: Described, device_hz: float) -> Lane:
    """Return the account of a stream of edges whose samples count at `device_hz`; raises WrongStream."""
    double_rows(stream, 3, "line, state, sample")
    if stream.device_hz != device_hz:
        counted = f"states sample_rate_hz {stream.device_hz:g}, expected {device_hz:g}"
        raise WrongStream(f"LSL stream {stream.name!r} {counted}: its samples must count as those of the neurons do")
    return Lane("edges")


class SpikeReader:
    """One run of spikes and edges."""

    def __init__(self, source: LslSpikeSource, streams: Sequence[Described], faults: Faults) -> None:
        """`streams`: spikes, then edges if the config names them; raises WrongStream."""
        spikes = streams[0]
        double_rows(spikes, 2, "unit, sample")
        if not 0 < spikes.device_hz < 1e9:
            raise WrongStream(f"LSL stream {spikes.name!r} does not state sample_rate_hz in its description")
        if not spikes.units or len(set(spikes.units)) != len(spikes.units):
            raise WrongStream(f"LSL stream {spikes.name!r} names no units in its description, or one of them twice")
        self.progress = Progress(rate_hz=spikes.device_hz, silent_ns=SILENT_NS)
        self._source, self._units, self._faults = source, spikes.units, faults
        self._lanes = [Lane("spikes", len(spikes.units)), *(edge_lane(s, spikes.device_hz) for s in streams[1:])]
        # Rows of one block have one stamp; it may be a little older than that of a row pushed before.
        self._checks = [StampCheck(f"{source.name}, {s.name}", source.max_age_s, faults, False) for s in streams]
        self._columns = Columns(source.name)
        self._pairs = ClockPairs(source.name)
        self._listed = False

    def take(self, stream: int, pulled: Pulled) -> None:
        """Account for rows of spikes (stream 0) or edges (1)."""
        lane = self._lanes[stream]
        before = lane.watermark
        verdicts = self._checks[stream].judge(pulled)
        taken = lane.take(pulled.rows.tolist())
        if taken.restarted:
            raise Restarted("row counts or samples went back")
        for reason in taken.refused:
            self._faults.note("message refused", f"{self._source.name}: {reason}", "not used")
        for row in taken.rows:
            if stream == 0:
                self._columns.spike(self._units[row[0]], row[1], pulled.arrival_ns)
            else:
                self._columns.edge(row[0], row[1], row[2], pulled.arrival_ns)
        if before is not None and lane.watermark is not None and any(v != "good" for v in verdicts):
            # The rows count in samples of their own, so their place is known; only their age is not to be trusted.
            self.progress.gaps.append(Gap(first_sample=before, end_sample=max(lane.watermark, before), messages=0))
        self._account(taken, pulled.arrival_ns)
        for index, sample in taken.marks if stream == 0 else ():
            sent_ns = int(pulled.sent_host_ns[index]) if verdicts[index] == "good" else pulled.arrival_ns
            self._pairs.offer(sample, sent_ns, self.progress.rate_hz)

    def _account(self, taken: Taken, arrival_ns: int) -> None:
        progress = self.progress
        for gap in taken.gaps:
            progress.gaps.append(gap)
            if gap.messages:
                detail = f"{self._source.name}: {gap.messages} LSL rows lost before sample {gap.end_sample}"
                done = "the samples around them are marked as a gap; responses that need them are scored missing"
                self._faults.note("messages lost", detail, done, arrival_ns)
        progress.received = sum(lane.received for lane in self._lanes)
        progress.lost = sum(lane.lost for lane in self._lanes)
        marks = [lane.watermark for lane in self._lanes]
        known = [mark for mark in marks if mark is not None]
        if len(known) == len(marks):
            progress.watermark = max(progress.watermark or 0, min(known))
            progress.ready = True

    def harvest(self, run: int, now_ns: int | None) -> list[Document]:
        """Return the UnitList before the first data, spikes, edges and the pair of each quarter of a second."""
        listed: list[Document] = []
        if not self._listed and self.progress.ready:
            self._listed = True
            listed.append(
                UnitList(
                    source=self._source.name,
                    run=run,
                    list_number=0,
                    from_sample=self.progress.watermark or 0,
                    units=self._units,
                    scan_offset_s=np.zeros(len(self._units)),
                    measure="spikes",
                )
            )
        return [*listed, *self._columns.take(run), *self._pairs.take(run, now_ns)]
