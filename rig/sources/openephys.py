"""The loop of the Open Ephys source: bytes from the sockets in, documents onto the bus, about 40 times a second.

Called by `rig.sources.__main__`. What the bytes mean is in `openephys_parse`, what is complete in `continuity`; a
process of its own receives them (`openephys_receiver`).
"""

import threading
from typing import TYPE_CHECKING

from rig.clock import Clock
from rig.config.sources import OpenEphysSource
from rig.links.peer import Peer
from rig.sources.continuity import OFFLINE_NS, Ledger
from rig.sources.openephys_diagnosis import diagnose
from rig.sources.openephys_gui import GuiDiary
from rig.sources.openephys_http import GuiWatch
from rig.sources.openephys_layout import read_data, read_event
from rig.sources.openephys_parse import Data, Message, Refusal, parse
from rig.sources.openephys_sockets import Heartbeat, Receiver, ReceiverDied
from rig.sources.stopping import Say, Stopping
from rig.supervision import child
from rig.supervision.run_number import run_number

if TYPE_CHECKING:
    from rig.sources.multiunit import ThresholdUnits

PERIOD_NS = 25_000_000
FIRST_MESSAGE_NS = 4_000_000_000  # since it listens: a session that cannot start says why in under 10 s
RECEIVER_UP_NS = 60_000_000_000  # the receiving process takes 0.2 s to come up, on a busy computer far longer
NOISE_KNOWN_NS = 3_000_000_000  # since the first message; later the session begins without (a channel that is not sent)
STALL_NS = 200_000_000  # a loop that was held up itself has not read yet what came meanwhile
LAST_PERIODS = 100
MOST = 10_000  # messages read in one period: keeps a backlog from delaying documents


class OpenEphys:
    """The source's loop: bytes in, documents out."""

    def __init__(
        self,
        source: OpenEphysSource,
        peer: Peer,
        clock: Clock,
        stop: Stopping,
        say: Say = child.say,
        realtime: bool = True,
    ) -> None:
        """Connect to the GUI; `run` does the rest. `realtime`: the receiving process asks for real-time priority."""
        self._source = source
        self._peer = peer
        self._clock = clock
        self._stop = stop
        self._say = say
        self._where = f"{source.host}:{source.port}"
        self._start_ns = clock.now_ns()
        self._ledger = Ledger(source.name, run_number(clock), own_threshold=source.multiunit is not None)
        self._threshold = None if source.multiunit is None else _threshold(source)
        self._stream = source.stream
        self._first_refusal: Refusal | None = None
        self._dropped = 0
        self._drained = True  # everything that came was read
        self._heard_ns = 0  # when the first message came
        self._period_ns = self._start_ns
        channels = () if source.multiunit is None else source.multiunit.channels
        budget_bytes = int(source.byte_budget_mb * 1e6)
        self._receiver = Receiver(f"tcp://{self._where}", budget_bytes, channels, realtime)
        self._heartbeat = Heartbeat(f"tcp://{source.host}:{source.port + 1}", source.name, peer.process)
        self._gui = None if source.http_port is None else GuiWatch(source.host, source.http_port, clock)
        self._diary = GuiDiary(source.name)

    def run(self) -> int:
        """Serve until stopped; return the process's exit code."""
        due = checked_ns = listens_ns = self._start_ns
        ready = False
        try:
            while not self._stop:
                failed = self._period()
                if failed is not None:
                    return failed
                now = self._clock.now_ns()
                if not self._receiver.priority and now < self._start_ns + RECEIVER_UP_NS:
                    listens_ns = now
                if not ready and self._ledger.total:
                    if ready := self._settled(now):
                        ready_as = {"source": self._source.name, "endpoint": self._where, "stream": self._stream}
                        self._say(ready={**ready_as, "receiver": self._receiver.priority, "pid": self._receiver.pid})
                elif not ready and now > listens_ns + FIRST_MESSAGE_NS:
                    return self._no_message()
                if now > checked_ns + 1_000_000_000:
                    checked_ns = now
                    self._check(now)
                due = max(due + PERIOD_NS, now) if self._drained else now
                while (rest_ns := due - self._clock.now_ns()) > 0 and not self._stop:
                    self._peer.poll(max(rest_ns * 1e-9, 0.001))
                self._peer.poll(0)
            for _ in range(LAST_PERIODS):  # what came before the stop and was not read yet
                if self._drained:
                    break
                self._period()
            self._finish()
            return 0
        except ReceiverDied as error:
            detail = f"{self._source.name}: {error}"
            self._ledger.faults.note("receiver died", detail, "this source ends", self._ledger.last_arrival_ns)
            self._finish()
            cure = "it is started again by itself; if it happens again and again, report it with the log"
            return self._fail(str(error), cure, self._ledger.last_arrival_ns)
        finally:
            self._receiver.close()
            self._heartbeat.close()
            if self._gui is not None:
                self._gui.close()

    def _settled(self, now_ns: int) -> bool:
        """Return whether presentations may begin: a threshold of our own needs the noise first, if it ever comes."""
        self._heard_ns = self._heard_ns or now_ns
        known = self._threshold is None or self._threshold.settled
        return known or now_ns > self._heard_ns + NOISE_KNOWN_NS

    def _finish(self) -> None:
        for document in self._ledger.finish(self._clock.now_ns()):
            self._peer.send(document)

    def _period(self) -> int | None:
        """Parse what came, send the documents; return an exit code where going on makes no sense."""
        now = self._clock.now_ns()
        count, self._drained = 0, False
        while count < MOST and not self._drained:
            batch = self._receiver.take()
            count += len(batch)
            self._drained = not batch
            for arrival, frames, size in batch:
                message = _read(frames, size)
                if isinstance(message, Refusal) or message.stream != self._stream or message.repaired:
                    failed = self._unusual(message, arrival)
                    if failed is not None:
                        return failed
                else:
                    self._take(message, arrival)
        self._heartbeat.beat(now)
        stalled, self._period_ns = now > self._period_ns + STALL_NS, now
        if self._drained and not stalled:  # silence is judged only once everything that came has been read
            self._watch(now)
        for document in self._ledger.harvest(now):
            self._peer.send(document)
        return None

    def _take(self, message: Message, arrival_ns: int) -> None:
        self._ledger.take(message, arrival_ns)
        if self._threshold is not None and isinstance(message, Data):
            self._threshold.take(message, arrival_ns, self._ledger)

    def _unusual(self, message: Message | Refusal, arrival_ns: int) -> int | None:
        """Take a message that is refused, repaired, of a new or of another stream; return an exit code to give up."""
        if isinstance(message, Refusal):
            if message.plugin is not None and not self._ledger.total:
                return self._fail(f"{self._where}: {message.reason}", message.cure)
            self._refused(message)
            return None
        if not self._ledger.total and (wrong := _wrong_stream(self._source, message)) is not None:
            return self._fail(*wrong)
        self._stream = self._stream or message.stream
        if message.stream != self._stream:
            self._refused(Refusal(f"stream {message.stream!r}, not {self._stream!r}", "select the stream again"))
            return None
        if message.repaired:
            self._ledger.faults.once(
                "non-ASCII name",
                f"{self._source.name}: non-ASCII names in the signal chain make the GUI cut its headers short",
                "the headers are repaired; rename with plain ASCII letters to be safe",
            )
        self._take(message, arrival_ns)
        return None

    def _watch(self, now_ns: int) -> None:
        """Look for silence; whatever the GUI answers, on the heartbeat socket or over HTTP, shows that it lives."""
        answers = [self._heartbeat.replied_ns, self._gui.reached_host_ns if self._gui is not None else None]
        known = [a for a in answers if a is not None]
        stopped = self._gui is not None and self._gui.mode == "IDLE"
        self._ledger.watch(now_ns, max(known) if known else None, stopped)

    def _fail(self, reason: str, cure: str, since_host_ns: int | None = None) -> int:
        """Say why this source ends, and since when nothing came, where that is longer ago; return the exit code."""
        self._say(failed=f"{self._source.name}: {reason}", cure=cure, since_host_ns=since_host_ns)
        return 2

    def _refused(self, refusal: Refusal) -> None:
        self._first_refusal = self._first_refusal or refusal
        detail = f"{self._source.name}: {refusal.reason}; {refusal.cure}"
        self._ledger.faults.note("message refused", detail, "not used; its number counts as lost")

    def _no_message(self) -> int:
        if self._first_refusal is not None:
            return self._fail(
                f"{self._where}: no message could be used: {self._first_refusal.reason}", self._first_refusal.cure
            )
        waited_s = FIRST_MESSAGE_NS / 1e9
        source = self._source
        return self._fail(*diagnose(source.host, source.port, self._heartbeat.plugin, waited_s, source.http_port))

    def _check(self, now_ns: int) -> None:
        """Once a second: what was dropped, what the recorder has not taken, and a missing heartbeat socket."""
        faults, name = self._ledger.faults, self._source.name
        if self._gui is not None:
            for document in self._diary.take(self._gui, self._ledger.run, faults):
                self._peer.send(document)
        dropped = self._receiver.dropped
        if dropped > self._dropped:
            detail = f"{name}: {dropped - self._dropped} messages over the budget of {self._source.byte_budget_mb:g} MB"
            done = "dropped; their numbers count as lost. Raise byte_budget_mb or relieve this computer"
            faults.note("messages dropped", detail, done, self._receiver.dropped_since_ns)
            self._dropped, self._receiver.dropped_since_ns = dropped, None
        unsent = self._peer.unacked_bytes
        if unsent > self._source.byte_budget_mb * 1e6:
            faults.note("recorder away", f"{name}: {unsent / 1e6:.0f} MB not acknowledged", "kept; memory grows")
        if self._heartbeat.replied_ns is None and now_ns > self._start_ns + 2 * OFFLINE_NS and self._ledger.total:
            port = self._source.port + 1
            detail = f"{name}: data come but no heartbeat reply: port {port} was taken when the GUI bound it"
            faults.once("no heartbeat", detail, "data are used; silence cannot be told from a frozen GUI")


def _read(frames: list[bytes], size: int) -> Message | Refusal:
    """Read a message; `size` is that of its whole payload, most of which was left behind."""
    if len(frames) == 3:
        first, header, payload = frames
        reader = read_data if first == b"DATA\x00" else read_event if first == b"EVENT\x00" else None
        message = None if reader is None else reader(header, payload, size)
        if message is not None:
            return message
    return parse(frames, size)


def _threshold(source: OpenEphysSource) -> "ThresholdUnits":
    from rig.sources.multiunit import ThresholdUnits  # scipy: only where it is asked for

    assert source.multiunit is not None  # noqa: S101 - the caller looked
    return ThresholdUnits(source.name, source.multiunit)


def probe(source: OpenEphysSource, clock: Clock, wait_s: float = 3.0) -> tuple[str, str]:
    """Look whether usable messages come; return reason and cure, both empty if they do. For `stimloop check`."""
    receiver = Receiver(f"tcp://{source.host}:{source.port}", int(source.byte_budget_mb * 1e6))
    end_ns = clock.now_ns() + int(wait_s * 1e9)
    refusal: Refusal | None = None
    pause = threading.Event()
    try:
        while clock.now_ns() < end_ns:
            pause.wait(0.02)
            for _, frames, size in receiver.take():
                message = parse(frames, size)
                if not isinstance(message, Refusal):
                    return _wrong_stream(source, message) or ("", "")
                refusal = message
    except ReceiverDied as error:
        return str(error), "try again; if it happens again, report it"
    finally:
        receiver.close()
    if refusal is not None:
        return refusal.reason, refusal.cure
    return diagnose(source.host, source.port, None, wait_s, source.http_port)


def _wrong_stream(source: OpenEphysSource, message: Message) -> tuple[str, str] | None:
    """Return reason and cure where the config pins another stream."""
    if source.stream is None or message.stream == source.stream:
        return None
    reason = f"{source.host}:{source.port} sends the stream {message.stream!r}, the config pins {source.stream!r}"
    return reason, "select that stream in the ZMQ Interface, or correct `stream` in the source's config"
