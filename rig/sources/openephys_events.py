"""The loop of the Event Broadcaster source: bytes from the socket in, documents onto the bus, about 40 times a second.

Called by `rig.sources.__main__`. What the bytes mean is in `openephys_events_parse`, what can be known of their
completeness in `openephys_events_ledger`. The plugin sends the events of all streams; one of them is taken.
"""

import threading

from rig.clock import Clock
from rig.config.sources import OpenEphysEventsSource
from rig.links.peer import Peer
from rig.sources.inbox import Inbox
from rig.sources.openephys_diagnosis import listening, who_answers, who_publishes
from rig.sources.openephys_events_ledger import EventLedger
from rig.sources.openephys_events_parse import CURE_PORT, Event, parse
from rig.sources.openephys_gui import GuiDiary
from rig.sources.openephys_http import GuiError, GuiWatch, mode
from rig.sources.openephys_parse import Refusal
from rig.sources.stopping import Say, Stopping
from rig.supervision import child
from rig.supervision.run_number import run_number

PERIOD_NS = 25_000_000
FIRST_EVENT_NS = 4_000_000_000
CHECK_NS = 1_000_000_000
BATCH = 4_000  # messages parsed in one period
LAST_PERIODS = 100
MAX_BYTES = 16 << 20  # of a message; one event takes a few hundred
LOOK_MS = 400
PORTS_UP = 3  # how far the plugin may have searched upwards for a free port


class OpenEphysEvents:
    """The source's loop."""

    def __init__(
        self, source: OpenEphysEventsSource, peer: Peer, clock: Clock, stop: Stopping, say: Say = child.say
    ) -> None:
        """Connect to the GUI; `run` does the rest."""
        self._source, self._peer, self._clock, self._stop, self._say = source, peer, clock, stop, say
        self._where = f"{source.host}:{source.port}"
        self._start_ns = clock.now_ns()
        self._ledger = EventLedger(source.name, first_run=run_number(clock))
        self._stream = source.stream
        self._others: set[str] = set()
        self._first_refusal: Refusal | None = None
        self._dropped = 0
        self._receiver = _inbox(source, clock)
        self._gui = None if source.http_port is None else GuiWatch(source.host, source.http_port, clock)
        self._diary = GuiDiary(source.name)

    def run(self) -> int:
        """Serve until stopped; return the process's exit code."""
        due = checked_ns = self._start_ns
        ready = False
        self._ledger.faults.once(
            "losses cannot be counted",
            f"{self._source.name}: the Event Broadcaster numbers nothing and sends nothing while no neuron fires",
            "watermarks come from the order and the timing of events (docs/wires/openephys_events.md); use the ZMQ "
            "Interface (type openephys) where every loss must be known",
        )
        try:
            while not self._stop:
                failed = self._period()
                if failed is not None:
                    return failed
                now = self._clock.now_ns()
                if not ready and (self._ledger.total or now > self._start_ns + FIRST_EVENT_NS):
                    if not self._ledger.total and (why := self._no_event()) is not None:
                        return self._fail(*why)
                    ready = True
                    self._say(ready={"source": self._source.name, "endpoint": self._where, "stream": self._stream})
                if now > checked_ns + CHECK_NS:
                    checked_ns = now
                    self._check()
                due = max(due + PERIOD_NS, now)
                while (rest_ns := due - self._clock.now_ns()) > 0 and not self._stop:
                    self._peer.poll(max(rest_ns * 1e-9, 0.001))
                self._peer.poll(0)
            for _ in range(LAST_PERIODS):  # what came before the stop and was not read yet
                if not self._receiver.waiting:
                    break
                self._period()
            for document in self._ledger.finish(self._clock.now_ns()):
                self._peer.send(document)
            return 0
        finally:
            self._receiver.close()
            if self._gui is not None:
                self._gui.close()

    def _period(self) -> int | None:
        """Parse what came, send the documents; return an exit code where going on makes no sense."""
        now = self._clock.now_ns()
        drained = self._receiver.waiting <= BATCH
        for arrival, frames in self._receiver.take(BATCH):
            if frames is None:
                self._ledger.broken(arrival)
                continue
            event = parse(frames)
            if isinstance(event, Refusal):
                if event.plugin is not None and not self._ledger.total:
                    return self._fail(f"{self._where}: {event.reason}", event.cure)
                self._refused(event)
            elif self._of_our_stream(event):
                self._ledger.take(event, arrival)
        if drained:  # silence and time are judged only once everything that came has been read
            gui_mode = None if self._gui is None else self._gui.mode
            self._ledger.watch(now, self._receiver.connected, gui_mode)
        for document in self._ledger.harvest(now):
            self._peer.send(document)
        return None

    def _of_our_stream(self, event: Event) -> bool:
        self._stream = self._stream or event.stream
        if event.stream == self._stream:
            return True
        if event.stream not in self._others:
            self._others.add(event.stream)
            detail = f"{self._source.name}: events of the stream {event.stream!r} come too; taken is {self._stream!r}"
            done = "not used; pin `stream` in the config, or add a source of its own for it"
            self._ledger.faults.note("other stream", detail, done)
        return False

    def _fail(self, reason: str, cure: str) -> int:
        self._say(failed=f"{self._source.name}: {reason}", cure=cure)
        return 2

    def _refused(self, refusal: Refusal) -> None:
        self._first_refusal = self._first_refusal or refusal
        detail = f"{self._source.name}: {refusal.reason}; {refusal.cure}"
        self._ledger.faults.note("message refused", detail, "not used; it may have been a spike")

    def _no_event(self) -> tuple[str, str] | None:
        """Return why no event could be used, or None where there may be none: silent neurons are no fault."""
        source, refusal, waited_s = self._source, self._first_refusal, FIRST_EVENT_NS / 1e9
        if refusal is not None:
            return f"{self._where}: no event could be used: {refusal.reason}", refusal.cure
        if self._others:
            return _other_streams(source, self._others)
        gui_mode = None if self._gui is None else self._gui.mode
        if not self._receiver.connected or gui_mode == "IDLE":
            return diagnose(source, self._receiver.connected, gui_mode, waited_s)
        detail = f"{source.name}: connected, and no event in {waited_s:g} s"
        self._ledger.faults.once("no event yet", detail, "the session begins; see that spikes and edges come")
        return None

    def _check(self) -> None:
        """Once a second: what the GUI says, what was dropped, what the recorder has not taken."""
        faults, name = self._ledger.faults, self._source.name
        if self._gui is not None:
            for document in self._diary.take(self._gui, self._ledger.run, faults):
                self._peer.send(document)
        if (dropped := self._receiver.dropped) > self._dropped:
            budget = f"over the budget of {self._source.byte_budget_mb:g} MB"
            self._ledger.broken(self._clock.now_ns())
            detail = f"{name}: {dropped - self._dropped} messages {budget}"
            faults.note("messages dropped", detail, "a gap; raise byte_budget_mb or relieve this computer")
            self._dropped = dropped
        unsent = self._peer.unacked_bytes
        if unsent > self._source.byte_budget_mb * 1e6:
            faults.note("recorder away", f"{name}: {unsent / 1e6:.0f} MB not acknowledged", "kept; memory grows")


def _inbox(source: OpenEphysEventsSource, clock: Clock) -> Inbox:
    return Inbox(f"tcp://{source.host}:{source.port}", int(source.byte_budget_mb * 1e6), MAX_BYTES, clock)


def _other_streams(source: OpenEphysEventsSource, seen: set[str]) -> tuple[str, str]:
    names = ", ".join(map(repr, sorted(seen)))
    reason = f"{source.host}:{source.port} sends events of {names}, the config pins {source.stream!r}"
    return reason, "correct `stream` in the source's config"


def diagnose(
    source: OpenEphysEventsSource, connected: bool, gui_mode: str | None, waited_s: float
) -> tuple[str, str]:
    """Find out why no event came; return reason and cure. Takes up to about 2 s."""
    host, port = source.host, source.port
    reason = f"no event from an Event Broadcaster on {host}:{port} in {waited_s:g} s"
    if gui_mode == "IDLE":
        return f"{reason}: the GUI is idle", "start acquisition in the Open Ephys GUI (the play button)"
    if connected:
        return f"{reason}: it is connected and silent", "see that acquisition runs and that spikes or edges come"
    if listening(host, port):
        answer = who_answers(host, port)
        if answer == "ZMQ Interface":
            return f"{reason}: it is the heartbeat port of a ZMQ Interface", CURE_PORT
        if answer is not None:
            return f"{reason}: the {answer} plugin answers there", CURE_PORT
        return f"{reason}: another program holds the port", CURE_PORT
    for other in range(port + 1, min(port + 1 + PORTS_UP, 65536)):
        if listening(host, other) and who_publishes(host, other, LOOK_MS) == "Event Broadcaster":
            cure = f"set port: {other} in the source's config"
            return f"{reason}: nothing listens there, and an Event Broadcaster sends on {other}", cure
    cure = "start the GUI with an Event Broadcaster (or the animal), or correct host and port in the source's config"
    return f"{reason}: nothing listens there; the GUI is not there, or it has no Event Broadcaster", cure


def probe(source: OpenEphysEventsSource, clock: Clock, wait_s: float = 3.0) -> tuple[str, str]:
    """Look whether usable events come; return reason and cure, both empty if they do. For `stimloop check`."""
    receiver = _inbox(source, clock)
    end_ns = clock.now_ns() + int(wait_s * 1e9)
    refusal: Refusal | None = None
    others: set[str] = set()
    pause = threading.Event()
    try:
        while clock.now_ns() < end_ns:
            pause.wait(0.02)
            for _, frames in receiver.take(BATCH):
                event = parse(frames) if frames is not None else None
                if isinstance(event, Refusal):
                    refusal = event
                elif event is not None and source.stream in (None, event.stream):
                    return "", ""
                elif event is not None:
                    others.add(event.stream)
        connected = receiver.connected
    finally:
        receiver.close()
    if refusal is not None:
        return f"{source.host}:{source.port}: {refusal.reason}", refusal.cure
    if others:
        return _other_streams(source, others)
    return diagnose(source, connected, _mode(source), wait_s)


def _mode(source: OpenEphysEventsSource) -> str | None:
    try:
        return None if source.http_port is None else mode(source.host, source.http_port)
    except GuiError:
        return None
