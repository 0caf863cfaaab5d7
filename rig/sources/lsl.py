"""The loop of all LSL sources: streams in, documents onto the bus, about 40 times a second.

Called by `rig.sources.__main__`. What rows mean is in the readers (`lsl_spikes`, `lsl_traces`, `lsl_behaviour`,
`lsl_markers`), whose account of one run is made anew whenever a sample number would mean another moment: the device
counts anew, another sender has taken the name, or the sender's clock jumped.
"""

from pylsl.util import LostError
from pylsl.util import TimeoutError as LslTimeoutError

from rig.clock import Clock
from rig.config.sources import LslSpikeSource
from rig.links.peer import Peer
from rig.messages import ClockSample, Continuity, Document
from rig.sources.columns import Faults
from rig.sources.lsl_find import LslSource, Resolver, host_minus_lsl, nothing_came, reader_for, wanted
from rig.sources.lsl_inlet import OpenStream, RoundTrip
from rig.sources.lsl_stamps import ClockWatch
from rig.sources.lsl_streams import (
    F64,
    STAMP_HZ,
    Described,
    Progress,
    Pulled,
    Reader,
    Restarted,
    State,
    WrongStream,
    host_ns,
)
from rig.sources.stopping import Say, Stopping
from rig.supervision import child
from rig.supervision.run_number import run_number

PULL_NS = 5_000_000
PERIOD_NS = 25_000_000
FIRST_ROW_NS = 5_000_000_000
RETRY_NS = 1_000_000_000
LAST_PULLS = 100
OFFLINE_NS = 6_000_000_000


class LslLoop:
    """The source's loop."""

    def __init__(self, source: LslSource, peer: Peer, clock: Clock, stop: Stopping, say: Say = child.say) -> None:
        """Start looking for the streams."""
        self._source, self._peer, self._clock, self._stop, self._say = source, peer, clock, stop, say
        self._start_ns = clock.now_ns()
        self._run = run_number(clock)
        self._state: State = "connecting"
        self._names = wanted(source)
        self._resolver = Resolver()
        self._faults = Faults()
        self._streams: list[OpenStream] = []
        self._watches: list[ClockWatch] = []
        self._reader: Reader | None = None
        self._described: list[Described] = []  # of the streams that `_reader` accounts for
        self._fresh = False  # connected, and the offsets are not all known yet
        self._waiting: list[tuple[int, object, F64, int]] = []  # rows that came before the offsets
        self._pairs: list[Document] = []
        self._retry_ns = 0
        self._last_arrival_ns: int | None = None
        self._base: tuple[int, int] = (0, 0)  # host clock minus LSL's own, and the bracket's width; ns

    def run(self) -> int:
        """Serve until stopped; return the process's exit code."""
        due = harvest_due = self._start_ns
        ready = False
        try:
            while not self._stop:
                now = self._clock.now_ns()
                try:
                    self._connect(now)
                    self._read()
                except WrongStream as wrong:
                    return self._fail(wrong.reason, wrong.cure)
                if not ready and self._reader is not None and self._reader.progress.ready:
                    ready = True
                    ids = [one.described.source_id for one in self._streams]
                    self._say(ready={"source": self._source.name, "streams": ids})
                elif not ready and now > self._start_ns + FIRST_ROW_NS:
                    return self._fail(*nothing_came(self._names, self._resolver, self._streams, FIRST_ROW_NS * 1e-9))
                if now >= harvest_due:
                    harvest_due = max(harvest_due + PERIOD_NS, now)
                    self._watch(now)
                    self._send(now)
                due = max(due + PULL_NS, now)
                self._peer.poll(max((due - self._clock.now_ns()) * 1e-9, 0.001))
            for _ in range(LAST_PULLS):  # what came before the stop and was not read yet
                if self._fresh or not self._read():
                    break
            self._send(None)
            return 0
        finally:
            self._disconnect()
            del self._resolver

    def _fail(self, reason: str, cure: str) -> int:
        self._say(failed=f"{self._source.name}: {reason}", cure=cure)
        return 2

    # --- connection

    def _connect(self, now_ns: int) -> None:
        """Connect all streams once all are visible; raises WrongStream."""
        if self._streams or now_ns < self._retry_ns:
            return
        infos = self._resolver.choose(self._names, self._faults, self._source.name)
        if infos is None:
            return
        streams: list[OpenStream] = []
        try:
            for info in infos:
                streams.append(OpenStream(info))  # noqa: PERF401 - those before one that fails must be closed
            # What is wrong with the streams is said at once, before their clock is known.
            reader_for(self._source, [s.described for s in streams], self._faults)
        except (LslTimeoutError, LostError):  # it went away since it was seen: look again
            self._retry_ns = self._clock.now_ns() + RETRY_NS
            for one in streams:
                one.close()
            return
        except WrongStream:
            for one in streams:
                one.close()
            raise
        self._streams, self._fresh, self._waiting = streams, True, []
        self._base = host_minus_lsl(self._clock)

    def _disconnect(self) -> None:
        for one in self._streams:
            one.close()
        self._streams, self._waiting = [], []

    def _lost(self) -> None:
        """Take note that a stream is gone; the run goes on only if the same sender comes back with the same clock."""
        self._resolver.gone |= {one.uid for one in self._streams}
        detail = f"{self._source.name}: the LSL stream is gone"
        done = "looking for it; nothing after the watermark counts as delivered"
        self._faults.note("device offline", detail, done, self._last_arrival_ns)
        self._state = "offline"
        self._disconnect()

    # --- clocks

    def _clocks(self) -> None:
        """Take new round trips: the first ones begin or go on with a run, a jump of a clock ends it."""
        trips = [one.offsets() for one in self._streams]
        if self._fresh:
            if all(one.offset is not None for one in self._streams):
                self._begin(trips)
            return
        self._base = host_minus_lsl(self._clock) if any(trips) else self._base
        for k, new in enumerate(trips):
            for trip in new:
                jumped = self._watches[k].take(trip.remote_s, trip.offset_s, trip.round_trip_s)
                if self._streams[k].reset_said() and jumped is None:
                    jumped = "LSL says that the sender's clock was reset"
                if jumped is not None:
                    self._jumped(jumped)
                if k == 0:
                    self._pair(trip)

    def _begin(self, trips: list[list[RoundTrip]]) -> None:
        """Decide whether what is connected now goes on with the run before; raises WrongStream."""
        described = [one.described for one in self._streams]
        watches = self._watches or [ClockWatch() for _ in self._streams]
        first = [(w, t) for w, new in zip(watches, trips, strict=True) for t in new]
        jumps = [w.take(t.remote_s, t.offset_s, t.round_trip_s) for w, t in first]
        if not all(watches[0].same(w) for w in watches[1:]):
            names = " and ".join(repr(d.name) for d in described)
            reason = f"the LSL streams {names} do not have the same clock: they are sent by different computers"
            raise WrongStream(reason, "send them from one computer, or leave out all but `stream`")
        again = self._reader is not None
        if again and (described != self._described or any(jumps)):
            self._next_run()
        if self._reader is None or described != self._described or any(jumps):
            self._reader = reader_for(self._source, described, self._faults)
        self._described, self._watches, self._fresh = described, watches, False
        for trip in trips[0]:
            self._pair(trip)
        self._state = "online"
        waiting, self._waiting = self._waiting, []
        for k, rows, stamps, arrival_ns in waiting:
            self._take(k, rows, stamps, arrival_ns)

    def _jumped(self, how: str) -> None:
        detail = f"{self._source.name}: {how}"
        self._faults.note("clock reset", detail, "data begin a new run", self._last_arrival_ns)
        self._next_run()
        self._reader = reader_for(self._source, self._described, self._faults)

    def _next_run(self) -> None:
        self._send(None)
        self._run = run_number(self._clock, self._run)

    def _pair(self, trip: RoundTrip) -> None:
        """Journal a round trip raw: the sender's LSL clock in us against the host's."""
        spikes = isinstance(self._source, LslSpikeSource)  # their device has a counter of its own
        self._pairs.append(
            ClockSample(
                source=f"{self._source.name}.lsl_clock" if spikes else self._source.name,
                run=self._run,
                device_sample=trip.remote_s * STAMP_HZ,
                pair_host_ns=self._base[0] + round((trip.remote_s + trip.offset_s) * 1e9),
                method="round_trip",
                round_trip_ns=round(trip.round_trip_s * 1e9) + self._base[1],
            )
        )

    # --- data

    def _read(self) -> bool:
        """Take what came; return whether there may be more."""
        if not self._streams:
            return False
        came = False
        try:
            self._clocks()
            for k, one in enumerate(self._streams):
                rows, stamps = one.pull()
                if not len(stamps):
                    continue
                arrival_ns, came = self._clock.now_ns(), True
                if self._fresh:
                    self._waiting.append((k, rows, stamps, arrival_ns))
                else:
                    self._take(k, rows, stamps, arrival_ns)
        except (LostError, LslTimeoutError):
            self._lost()
            return False
        return came

    def _take(self, k: int, rows: object, stamps: F64, arrival_ns: int) -> None:
        reader, offset = self._reader, self._streams[k].offset
        assert reader is not None and offset is not None  # noqa: S101, PT018 - a run has begun
        sent_ns = host_ns(stamps, offset.offset_s, self._base[0])
        try:
            reader.take(k, Pulled(rows, stamps, sent_ns, arrival_ns))
        except Restarted as restarted:
            detail = f"{self._source.name}: {restarted}"
            self._faults.note("device restarted", detail, "data begin a new run", self._last_arrival_ns)
            self._next_run()
            self._reader = reader_for(self._source, self._described, self._faults)
        self._last_arrival_ns = arrival_ns
        self._state = "streaming"

    # --- documents

    def _send(self, now_ns: int | None) -> None:
        """Send what came; `now_ns` None ends a run."""
        progress = self._reader.progress if self._reader is not None else Progress(rate_hz=0.0)
        rows = self._reader.harvest(self._run, now_ns) if self._reader is not None else []
        pairs, self._pairs = self._pairs, []
        gaps, progress.gaps = tuple(progress.gaps), []
        for document in (
            *rows,
            *pairs,
            *self._faults.due(now_ns or self._clock.now_ns(), everything=now_ns is None),
            Continuity(
                source=self._source.name,
                run=self._run,
                state=self._state,
                sample_rate_hz=progress.rate_hz,
                watermark_sample=progress.watermark or 0,
                messages=progress.received,
                lost_messages=progress.lost,
                gaps=gaps,
            ),
        ):
            self._peer.send(document)

    def _watch(self, now_ns: int) -> None:
        """Notice silence, where rows are due."""
        silent_after_ns = self._reader.progress.silent_ns if self._reader is not None else None
        if self._last_arrival_ns is None or silent_after_ns is None:
            return
        silent_ns = now_ns - self._last_arrival_ns
        if self._state == "streaming" and silent_ns > silent_after_ns:
            self._state = "stalled"
            detail = f"{self._source.name}: no row for {silent_ns * 1e-9:.2f} s"
            done = "nothing after the watermark counts as delivered; waiting for data"
            self._faults.note("no data", detail, done, self._last_arrival_ns)
        elif self._state == "stalled" and silent_ns > OFFLINE_NS:
            self._state = "offline"


def probe(source: LslSource, clock: Clock, wait_s: float = 3.0) -> tuple[str, str]:
    """Look whether a source of any LSL type is usable; return reason and cure, both empty if it is."""
    end_ns = clock.now_ns() + round(wait_s * 1e9)
    resolver, faults, names = Resolver(), Faults(), wanted(source)
    streams: list[OpenStream] = []
    try:
        while clock.now_ns() < end_ns:
            clock.sleep_until_ns(clock.now_ns() + 20_000_000)
            infos = resolver.choose(names, faults, source.name) if not streams else None
            if infos is not None:
                streams = [OpenStream(info) for info in infos]
                reader = reader_for(source, [s.described for s in streams], faults)
            if streams and _usable(reader, streams, clock):
                return "", ""
        return nothing_came(names, resolver, streams, wait_s)
    except WrongStream as wrong:
        return wrong.reason, wrong.cure
    except (LostError, LslTimeoutError, Restarted):
        return f"an LSL stream of {list(names)} ended or began anew while it was looked at", "restart its sender"
    finally:
        for one in streams:
            one.close()


def _usable(reader: Reader, streams: list[OpenStream], clock: Clock) -> bool:
    """Feed what came to the account; return whether data and the offsets of all clocks are there."""
    base_ns = host_minus_lsl(clock)[0]
    for k, one in enumerate(streams):
        one.offsets()
        if any(s.offset is None for s in streams):
            continue
        rows, stamps = one.pull()
        if len(stamps) and one.offset is not None:
            sent_ns = host_ns(stamps, one.offset.offset_s, base_ns)
            reader.take(k, Pulled(rows, stamps, sent_ns, clock.now_ns()))
    return reader.progress.ready and all(s.offset is not None for s in streams)
