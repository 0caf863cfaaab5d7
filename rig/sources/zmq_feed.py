"""The sockets and the loop of the open wires over ZMQ: receive, ask the bridge's clock, send documents.

Used by `spikes_zmq` and `traces_zmq`. Two threads do nothing but receive and ask, so that what they stamp is not late;
everything else is in the loop. It connects to the host and the two ports of the config and to nothing else.
"""

import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic

import zmq

from rig.clock import Clock
from rig.config.sources import SpikesWireSource, TracesWireSource
from rig.links.peer import Peer
from rig.sources.inbox import Inbox
from rig.sources.sockets import request_socket
from rig.sources.stopping import Say, Stopping
from rig.sources.zmq_ledger import Contents, Ledger, M
from rig.sources.zmq_parse import MAX_ARRAY_BYTES, Refusal, WireName, parse_reply
from rig.supervision.run_number import run_number

PERIOD_NS = 25_000_000
FIRST_MESSAGE_NS = 4_000_000_000  # a session that cannot start says why in under 10 s, all start-up included
BATCH = 2_000  # messages read in one period: keeps a backlog from delaying documents
ASK_EVERY_S = 0.25
BURST = 5  # questions in a row; the one with the shortest round trip counts
REPLY_MS = 100
LAST_PERIODS = 100


class ClockPort:
    """Asks the bridge "time?" in bursts, in a thread of its own; keeps of each burst the quickest answer."""

    def __init__(self, endpoint: str, clock: Clock) -> None:
        """Connect and start the thread."""
        self._endpoint, self._clock = endpoint, clock
        self._answers: deque[tuple[int, int, bytes]] = deque(maxlen=400)  # received and sent host ns, answer
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="clock", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            req = request_socket(self._endpoint)
        except zmq.ZMQError:  # no address of that kind: the data port says so
            return
        with req:
            while not self._end.wait(ASK_EVERY_S):
                if (best := self._burst(req)) is not None:
                    self._answers.append(best)

    def _burst(self, req: "zmq.Socket[bytes]") -> tuple[int, int, bytes] | None:
        best = None
        for _ in range(BURST):
            if not req.poll(0, zmq.POLLOUT):
                break  # nobody there at the moment
            sent_ns = self._clock.now_ns()
            req.send(b"time?")
            if not req.poll(REPLY_MS):
                break
            answer = req.recv()
            received_ns = self._clock.now_ns()
            if best is None or received_ns - sent_ns < best[0] - best[1]:
                best = (received_ns, sent_ns, answer)
        return best

    def take(self, before_ns: int | None = None) -> list[tuple[int, int, bytes]]:
        """Return the answers (received host ns, sent host ns, bytes), only those received before `before_ns`."""
        out = []
        while self._answers and (before_ns is None or self._answers[0][0] < before_ns):
            out.append(self._answers.popleft())
        return out

    def close(self) -> None:
        """End the thread and its socket."""
        self._end.set()
        self._thread.join()


class Feed(Generic[M]):
    """The loop of a source: messages and clock replies in, documents out."""

    def __init__(
        self,
        wire: WireName,
        source: SpikesWireSource | TracesWireSource,
        parse: Callable[[Sequence[bytes]], M | Refusal],
        contents: Contents[M],
        peer: Peer,
        clock: Clock,
        stop: Stopping,
        say: Say,
    ) -> None:
        """Connect to the bridge."""
        self._wire, self._source, self._parse, self._contents = wire, source, parse, contents
        self._peer, self._clock, self._stop, self._say = peer, clock, stop, say
        self._start_ns = clock.now_ns()
        self._ledger = Ledger(source.name, first_run=run_number(clock))
        self._refusal: Refusal | None = None
        self._dropped = 0
        self._unsent_said = False
        budget_bytes = int(source.byte_budget_mb * 1e6)
        self._inbox = Inbox(f"tcp://{source.host}:{source.port}", budget_bytes, MAX_ARRAY_BYTES, clock)
        self._port = ClockPort(f"tcp://{source.host}:{source.port + 1}", clock)

    def run(self) -> int:
        """Serve until stopped; return the process's exit code."""
        due, ready = self._start_ns, False
        try:
            while not self._stop:
                self._period()
                now = self._clock.now_ns()
                if not ready and self._ledger.usable:
                    ready = True
                    where = f"{self._source.host}:{self._source.port}"
                    self._say(ready={"source": self._source.name, "endpoint": where})
                elif not ready and self._refusal is not None and self._refusal.foreign:
                    return self._fail(self._refusal.reason, self._refusal.cure)
                elif not ready and now > self._start_ns + FIRST_MESSAGE_NS:
                    return self._nothing()
                due = now if self._inbox.waiting >= BATCH else max(due + PERIOD_NS, now)
                while (rest_ns := due - self._clock.now_ns()) > 0 and not self._stop:
                    self._peer.poll(max(rest_ns * 1e-9, 0.001))
                self._peer.poll(0)
            self._period()
            for _ in range(LAST_PERIODS):  # what came before the stop and was not read yet
                if not self._inbox.waiting:
                    break
                self._period()
            for document in self._ledger.finish(self._contents, self._clock.now_ns()):
                self._peer.send(document)
            return 0
        except zmq.ZMQError as error:
            return self._fail(*_no_address(self._source.host, self._source.port, error))
        finally:
            self._inbox.close()
            self._port.close()

    def _period(self) -> None:
        """Take what came, in the order in which it came; send the documents."""
        now, ledger = self._clock.now_ns(), self._ledger
        drained = self._inbox.waiting <= BATCH
        for arrival_ns, frames in self._inbox.take(BATCH):
            if frames is None:  # the connection broke: message numbers tell what was lost
                continue
            self._replies(arrival_ns)
            message = self._parse(frames)
            if isinstance(message, Refusal):
                self._refused(message)
            else:
                ledger.take(message, self._contents, arrival_ns)
        if drained:  # silence is judged only once everything that came has been read
            self._replies(None)
            ledger.watch(now)
            ledger.watch_clock(now, self._start_ns)
        self._overloads()
        for document in ledger.harvest(self._contents, now):
            self._peer.send(document)

    def _replies(self, before_ns: int | None) -> None:
        for received_ns, sent_ns, answer in self._port.take(before_ns):
            reply = parse_reply(answer, self._wire)
            if isinstance(reply, Refusal):
                detail = f"{self._source.name}: {reply.reason}; {reply.cure}"
                self._ledger.faults.note("clock reply refused", detail, "not used", received_ns)
            else:
                self._ledger.replied(reply, sent_ns, received_ns)

    def _refused(self, refusal: Refusal) -> None:
        self._refusal = self._refusal or refusal
        detail = f"{self._source.name}: {refusal.reason}; {refusal.cure}"
        self._ledger.faults.note("message refused", detail, "not used; its number counts as lost")

    def _overloads(self) -> None:
        """Say what was dropped here and what the recorder has not taken."""
        faults, source, dropped = self._ledger.faults, self._source, self._inbox.dropped
        if dropped > self._dropped:
            more = dropped - self._dropped
            detail = f"{source.name}: {more} messages over the budget of {source.byte_budget_mb:g} MB"
            done = "dropped; their numbers count as lost. Raise byte_budget_mb or relieve this computer"
            faults.note("messages dropped", detail, done)
            self._dropped = dropped
        unsent = self._peer.unacked
        if unsent > 1000 and not self._unsent_said:
            detail = f"{source.name}: {unsent} documents ({self._peer.unacked_bytes / 1e6:.0f} MB) not acknowledged"
            faults.note("recorder away", detail, "kept; memory grows")
        self._unsent_said = unsent > 1000

    def _fail(self, reason: str, cure: str) -> int:
        self._say(failed=f"{self._source.name}: {reason}", cure=cure)
        return 2

    def _nothing(self) -> int:
        refusal, waited_s = self._refusal, FIRST_MESSAGE_NS / 1e9
        if refusal is not None:
            return self._fail(f"no message could be used: {refusal.reason}", refusal.cure)
        if self._ledger.total:
            reason = f"{self._ledger.total} messages in {waited_s:g} s, none with the list of their units"
            return self._fail(reason, f"let the bridge send it at least once a second (docs/wires/{self._wire}.md)")
        answers = self._ledger.state == "online"
        return self._fail(*_diagnose(self._wire, self._source.host, self._source.port, answers, waited_s))


def _no_address(host: str, port: int, error: zmq.ZMQError) -> tuple[str, str]:
    return f"cannot connect to {host}:{port}: {error.strerror}", "correct host in the source's config"


def _diagnose(wire: WireName, host: str, port: int, answers: bool, waited_s: float) -> tuple[str, str]:
    """Return why no message came from host:port, and the cure. `answers`: whether the bridge tells the time."""
    reason = f"no message of the {wire} wire from {host}:{port} in {waited_s:g} s"
    if answers:
        return f"{reason}; the bridge answers on its clock port", "start the acquisition of the device"
    try:
        socket.create_connection((host, port), 0.5).close()
    except OSError:
        cure = "start the bridge, or correct host and port in the source's config"
        return f"{reason}; nothing listens there", cure
    return f"{reason}; something listens there", "start the acquisition; if it runs, another program holds the port"


def probe_feed(
    wire: WireName,
    host: str,
    port: int,
    parse: Callable[[Sequence[bytes]], M | Refusal],
    clock: Clock,
    wait_s: float,
) -> tuple[str, str]:
    """Look whether usable messages come; return reason and cure, both empty if they do."""
    inbox = Inbox(f"tcp://{host}:{port}", 4 * MAX_ARRAY_BYTES, MAX_ARRAY_BYTES, clock)
    clock_port = ClockPort(f"tcp://{host}:{port + 1}", clock)
    end_ns = clock.now_ns() + int(wait_s * 1e9)
    refusal: Refusal | None = None
    pause = threading.Event()
    try:
        while clock.now_ns() < end_ns:
            pause.wait(0.02)
            for _, frames in inbox.take(BATCH):
                message = parse(frames) if frames is not None else None
                if isinstance(message, Refusal):
                    refusal = message
                elif message is not None:
                    return "", ""
        answers = bool(clock_port.take())
    except zmq.ZMQError as error:
        return _no_address(host, port, error)
    finally:
        inbox.close()
        clock_port.close()
    if refusal is not None:
        return refusal.reason, refusal.cure
    return _diagnose(wire, host, port, answers, wait_s)
