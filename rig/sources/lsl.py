"""The LSL source: spike events and TTL edges from two LSL streams, documents out, about 40 times a second.

Called by `rig.sources.__main__`. What the rows mean is in `lsl_rows`. LSL corrects no time stamp here
(`processing_flags=0`): the offset between the sender's clock and ours is asked for on a timer, and the corrected stamp
of each watermark row, checked against its arrival, makes the clock pair.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pylsl
from pylsl.util import LostError
from pylsl.util import TimeoutError as LslTimeoutError

from rig import child
from rig.bus import Peer
from rig.clock import Clock
from rig.config_sources import LslSpikeSource
from rig.messages import (
    Continuity,
    Document,
    Gap,
)
from rig.sources.columns import ClockPairs, Columns, Faults
from rig.sources.continuity import State
from rig.sources.lsl_rows import Lane, Taken
from rig.sources.openephys import Stopping

PULL_NS = 5_000_000
PERIOD_NS = 25_000_000
FIRST_ROW_NS = 5_000_000_000
OFFSET_NS = 5_000_000_000
SILENT_NS = 500_000_000
OFFLINE_NS = 6_000_000_000
STALE_NS = 10_000_000_000  # LSL stamps are known to jump by 10 s and more
EARLY_NS = 50_000_000  # a row cannot arrive before it was sent
CHUNK = 4096
BUFFER_S = 60

Say = Callable[..., None]


class WrongStream(Exception):
    """A stream that has the right name and the wrong content."""

    def __init__(self, reason: str, cure: str) -> None:
        super().__init__(reason)
        self.reason, self.cure = reason, cure


@dataclass
class _Inlet:
    """One connected stream."""

    inlet: pylsl.StreamInlet
    source_id: str
    lane: Lane
    units: tuple[str, ...]
    rate_hz: float
    offset_s: float  # to add to the sender's stamps to get this computer's LSL clock


def _connect(info: pylsl.StreamInfo, spikes: bool) -> _Inlet:
    # Without recover: a lost stream must be seen, not patched over in silence.
    inlet = pylsl.StreamInlet(info, max_buflen=BUFFER_S, recover=False, processing_flags=0)
    try:
        inlet.open_stream(timeout=1.0)
        full = inlet.info(timeout=1.0)
        offset_s = inlet.time_correction(timeout=1.5)  # the first call takes 0.6 s
    except (LslTimeoutError, LostError):
        inlet.close_stream()
        raise
    name, channels = full.name(), 2 if spikes else 3
    cure = "see docs/wires.md, section LSL spikes, for the format"
    units, node = [], full.desc().child("units").child("unit")
    while not node.empty():
        units.append(node.child_value())
        node = node.next_sibling("unit")
    try:
        rate_hz = float(full.desc().child_value("sample_rate_hz"))
    except ValueError:
        rate_hz = 0.0
    if full.channel_count() != channels or full.channel_format() != pylsl.cf_double64:
        problem = f"LSL stream {name!r} has {full.channel_count()} channels, expected {channels} of type double64"
    elif not 0 < rate_hz < 1e9:
        problem = f"LSL stream {name!r} does not state sample_rate_hz in its description"
    elif spikes and (not units or len(set(units)) != len(units)):
        problem = f"LSL stream {name!r} names no units in its description, or one of them twice"
    else:
        lane = Lane("spikes" if spikes else "edges", len(units))
        return _Inlet(inlet, full.source_id(), lane, tuple(units), rate_hz, offset_s)
    inlet.close_stream()
    raise WrongStream(problem, cure)


class LslSpikes:
    """The source's loop."""

    def __init__(self, source: LslSpikeSource, peer: Peer, clock: Clock, stop: Stopping, say: Say = child.say) -> None:
        """Start looking for the streams."""
        self._source, self._peer, self._clock, self._stop, self._say = source, peer, clock, stop, say
        self._start_ns = clock.now_ns()
        # In tenths of a second of the host clock: new to the session even after a restart of this process.
        self._run = self._start_ns // 100_000_000
        self._state: State = "connecting"
        self._resolver = pylsl.ContinuousResolver()
        self._inlets: list[_Inlet] = []
        self._faults = Faults()
        self._columns = Columns(source.name)
        self._pairs = ClockPairs(source.name)
        self._gaps: list[Gap] = []
        self._watermark = 0
        self._last_arrival_ns: int | None = None
        self._offset_due_ns = 0
        self._base_ns = 0  # host clock minus LSL's local clock

    def run(self) -> int:
        """Serve until stopped; return the process's exit code."""
        due = harvest_due = self._start_ns
        ready = False
        try:
            while not self._stop:
                now = self._clock.now_ns()
                try:
                    self._connect_streams()
                except WrongStream as wrong:
                    return self._fail(wrong.reason, wrong.cure)
                self._pull()
                if not ready and self._watermark > 0:
                    ready = True
                    self._say(ready={"source": self._source.name, "streams": [i.source_id for i in self._inlets]})
                elif not ready and now > self._start_ns + FIRST_ROW_NS:
                    return self._nothing()
                if now >= harvest_due:
                    harvest_due = max(harvest_due + PERIOD_NS, now)
                    self._watch(now)
                    self._send(now)
                due = max(due + PULL_NS, now)
                self._peer.poll(max((due - self._clock.now_ns()) * 1e-9, 0.001))
            self._pull()
            self._send(self._clock.now_ns())
            return 0
        finally:
            self._disconnect()
            del self._resolver

    # --- connection ---

    def _wanted(self) -> list[str]:
        return [self._source.stream, *([self._source.edges] if self._source.edges is not None else [])]

    def _connect_streams(self) -> None:
        """Connect all wanted streams once all are visible; if two have the same name, the one made last."""
        if self._inlets:
            return
        visible = self._resolver.results()
        chosen = []
        for name in self._wanted():
            named = [info for info in visible if info.name() == name]
            if not named:
                return
            if len(named) > 1:
                detail = f"{self._source.name}: {len(named)} LSL streams are named {name!r}"
                self._faults.once("stream name twice", detail, "the one made last is used")
            chosen.append(max(named, key=lambda info: info.created_at()))
        connected: list[_Inlet] = []
        try:
            for k, info in enumerate(chosen):
                connected.append(_connect(info, spikes=k == 0))
        except (LslTimeoutError, LostError):  # it went away since it was seen: look again
            for one in connected:
                one.inlet.close_stream()
            return
        self._inlets = connected
        self._offset_due_ns = 0

    def _disconnect(self) -> None:
        for one in self._inlets:
            one.inlet.close_stream()
        self._inlets = []

    def _offsets(self, now_ns: int) -> None:
        """On a timer: how far the sender's clock and LSL's own are from the host clock."""
        if now_ns < self._offset_due_ns:
            return
        self._offset_due_ns = now_ns + OFFSET_NS
        tries = []
        for _ in range(5):  # the narrowest bracket of one clock's reading by the other
            before = self._clock.now_ns()
            lsl_s = pylsl.local_clock()
            after = self._clock.now_ns()
            tries.append((after - before, (before + after) // 2 - round(lsl_s * 1e9)))
        self._base_ns = min(tries)[1]
        for one in self._inlets:
            one.offset_s = one.inlet.time_correction(timeout=0.2)

    # --- data ---

    def _pull(self) -> None:
        try:
            if self._inlets:
                self._offsets(self._clock.now_ns())
            for k, one in enumerate(tuple(self._inlets)):
                if not self._inlets:  # lost while the stream before was read
                    break
                rows, stamps = one.inlet.pull_chunk(timeout=0.0, max_samples=CHUNK)
                if rows:
                    self._take(one, k == 0, rows, stamps, self._clock.now_ns())
        except (LostError, LslTimeoutError):
            self._lost("the LSL stream is gone")

    def _lost(self, why: str) -> None:
        detail = f"{self._source.name}: {why}"
        self._faults.note("device offline", detail, "looking for it; data begin a new run", self._last_arrival_ns)
        self._state = "offline"
        self._send(None)
        self._disconnect()
        self._run += 1
        self._watermark = 0
        self._pairs = ClockPairs(self._source.name)

    def _take(self, one: _Inlet, spikes: bool, rows: list[list[float]], stamps: list[float], arrival_ns: int) -> None:
        taken = one.lane.take(rows)
        if taken.restarted:
            self._lost("row counts or samples went back")
            return
        for reason in taken.refused:
            self._faults.note("message refused", f"{self._source.name}: {reason}", "not used")
        for row in taken.rows:
            if spikes:
                self._columns.spike(one.units[row[0]], row[1], arrival_ns)
            else:
                self._columns.edge(row[0], row[1], row[2], arrival_ns)
        self._account(one, taken)
        for index, sample in taken.marks if spikes else ():
            self._pairs.offer(sample, self._sent_host_ns(stamps[index], one.offset_s, arrival_ns), one.rate_hz)
        self._last_arrival_ns = arrival_ns
        self._state = "streaming"

    def _account(self, one: _Inlet, taken: Taken) -> None:
        for gap in taken.gaps:
            self._gaps.append(gap)
            if gap.messages:
                detail = f"{self._source.name}: {gap.messages} LSL rows lost before sample {gap.end_sample}"
                done = "the samples around them are marked as a gap; responses that need them are scored missing"
                self._faults.note("messages lost", detail, done, self._last_arrival_ns)
        marks = [i.lane.watermark for i in self._inlets]
        known = [mark for mark in marks if mark is not None]
        if len(known) == len(marks):
            self._watermark = max(self._watermark, min(known))

    def _sent_host_ns(self, stamp_s: float, offset_s: float, arrival_ns: int) -> int:
        """Return when a row was sent, host ns; its arrival where LSL's stamp cannot be true."""
        sent_ns = self._base_ns + round((stamp_s + offset_s) * 1e9)
        if -EARLY_NS <= arrival_ns - sent_ns <= STALE_NS:
            return sent_ns
        detail = f"{self._source.name}: an LSL time stamp is {(arrival_ns - sent_ns) * 1e-9:.3f} s from its arrival"
        self._faults.note("time stamp wrong", detail, "the arrival is used for the clock map", arrival_ns)
        return arrival_ns

    # --- documents ---

    def _send(self, now_ns: int | None) -> None:
        """Send what came; `now_ns` None ends a run."""
        lanes = [one.lane for one in self._inlets]
        gaps, self._gaps = tuple(self._gaps), []
        faults: list[Document] = self._faults.due(now_ns) if now_ns is not None else []
        for document in (
            *self._columns.take(self._run),
            *self._pairs.take(self._run, now_ns),
            *faults,
            Continuity(
                source=self._source.name,
                run=self._run,
                state=self._state,
                sample_rate_hz=self._inlets[0].rate_hz if self._inlets else 0.0,
                watermark_sample=self._watermark,
                messages=sum(lane.received for lane in lanes),
                lost_messages=sum(lane.lost for lane in lanes),
                gaps=gaps,
            ),
        ):
            self._peer.send(document)

    def _watch(self, now_ns: int) -> None:
        """Notice silence: watermark rows are due 40 times a second."""
        if self._state == "connecting" and self._inlets:
            self._state = "online"
        if self._last_arrival_ns is None:
            return
        silent_ns = now_ns - self._last_arrival_ns
        if self._state == "streaming" and silent_ns > SILENT_NS:
            self._state = "stalled"
            detail = f"{self._source.name}: no row for {silent_ns * 1e-9:.2f} s"
            done = "nothing after the watermark counts as delivered; waiting for data"
            self._faults.note("no data", detail, done, self._last_arrival_ns)
        elif self._state == "stalled" and silent_ns > OFFLINE_NS:
            self._state = "offline"

    def _fail(self, reason: str, cure: str) -> int:
        self._say(failed=f"{self._source.name}: {reason}", cure=cure)
        return 2

    def _nothing(self) -> int:
        visible = sorted({info.name() for info in self._resolver.results()})
        missing = [name for name in self._wanted() if name not in visible]
        seen = ", ".join(map(repr, visible)) if visible else "none"
        if missing:
            reason = f"no LSL stream named {missing[0]!r} in {FIRST_ROW_NS / 1e9:g} s; streams seen: {seen}"
            return self._fail(reason, "start the sender, or correct `stream` and `edges` in the source's config")
        reason = f"the LSL streams {self._wanted()} are there but sent no watermark row in {FIRST_ROW_NS / 1e9:g} s"
        return self._fail(reason, "start the sender's acquisition; the rows it must send are in docs/wires.md")
