"""The bus: how a process sends documents to the recorder and gets the session's log from it, over ZMQ.

`Peer` is one process's end (DEALER), `Hub` the recorder's (ROUTER). A peer queues what it sends until the recorder
acknowledges it; it says `hello(last_seq)` and gets the log from there. Each entry carries the number of the entry
routed to that peer before it: a mismatch, a restarted recorder or a silent one lead to the same `hello` again, which
is the only way a peer catches up. Neither class computes anything or decides an order.

Wire: frame 0 is JSON with "op"; hello {name, process, last_seq, wants, first_unacked}, doc {n, cause} + document
frames, got {seq}; back: welcome {acked}, ack {n}, entry {prev} + envelope + document frames, refused {n, why}, who {}.
"""

import json
from collections import deque
from dataclasses import dataclass
from typing import Any

import zmq

from rig.clock import Clock
from rig.encoding import BadDocument, decode, encode
from rig.messages import (
    Document,
    Entry,
    Envelope,
)

HELLO_EVERY_NS = 1_000_000_000
GOT_EVERY_NS = 500_000_000
MAX_MESSAGE_BYTES = 256 << 20
MOST_AT_ONCE = 200


def _json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


class Peer:
    """One connection of a process to the recorder. Not thread-safe: one thread owns it."""

    def __init__(self, name: str, endpoint: str, wants: frozenset[str], clock: Clock, last_seq: int = 0) -> None:
        """Connect as `name`; entries of the kinds in `wants` after `last_seq` will come from `poll`."""
        self.name = name
        self.process = f"{name}-{clock.utc_ns():x}"
        self.refused = 0
        self._clock = clock
        self._wants = sorted(wants)
        self._last_seq = last_seq
        self._sent = 0
        self._unacked: deque[tuple[int, list[bytes]]] = deque()
        self._held: list[Entry] = []
        self._welcomed = False
        self._hello_due_ns = 0
        self._got_due_ns = 0
        self._got_seq = last_seq
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, name.encode())
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)  # the recorder sends on credit, so this is bounded
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # queue nothing for a recorder that is away
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._socket.connect(endpoint)

    @property
    def unacked(self) -> int:
        """Number of documents that the recorder has not acknowledged yet."""
        return len(self._unacked)

    @property
    def unacked_bytes(self) -> int:
        """Size of these documents, bytes."""
        return sum(len(f) for _, frames in self._unacked for f in frames)

    def send(self, document: Document, cause: tuple[int, int] | None = None) -> None:
        """Queue a document and send it without blocking; it is kept until acknowledged."""
        self._sent += 1
        frames = [_json(op="doc", n=self._sent, cause=cause), *encode(document)]
        self._unacked.append((self._sent, frames))
        if self._welcomed:
            if len(self._unacked) == 1:  # the recorder has a second to acknowledge it
                self._hello_due_ns = self._clock.now_ns() + HELLO_EVERY_NS
            self._push(frames)

    def _push(self, frames: list[bytes]) -> bool:
        try:
            self._socket.send_multipart(frames, flags=zmq.NOBLOCK)
        except zmq.Again:  # no connection at the moment: the next hello brings it
            return False
        return True

    def poll(self, timeout_s: float = 0.0) -> list[Entry]:
        """Exchange what is due; return new entries, in journal order, each exactly once."""
        entries, self._held = self._held, []
        self._receive(0.0, entries)  # first what has come: an acknowledgement may lie there and make a hello needless
        now = self._clock.now_ns()
        if now >= self._hello_due_ns and (not self._welcomed or self._unacked):
            self._hello(now)
        if self._welcomed and (self._last_seq != self._got_seq or now >= self._got_due_ns):
            # Also sent when there is nothing new: a restarted recorder answers "who".
            self._push([_json(op="got", seq=self._last_seq)])
            self._got_seq, self._got_due_ns = self._last_seq, now + GOT_EVERY_NS
        if not entries and timeout_s > 0:
            self._receive(timeout_s, entries)
        return entries

    def _receive(self, timeout_s: float, entries: list[Entry]) -> None:
        """Take what has come, or comes within the time-out, into `entries`; at most about 200 at once."""
        wait_ms = int(timeout_s * 1000)
        while len(entries) < MOST_AT_ONCE and self._socket.poll(wait_ms):
            wait_ms = 0
            self._take(self._socket.recv_multipart(), entries)

    def _hello(self, now_ns: int) -> None:
        first = self._unacked[0][0] if self._unacked else self._sent + 1
        hello = _json(
            op="hello",
            name=self.name,
            process=self.process,
            last_seq=self._last_seq,
            wants=self._wants,
            first_unacked=first,
        )
        self._push([hello])
        self._hello_due_ns = now_ns + (HELLO_EVERY_NS if self._welcomed else HELLO_EVERY_NS // 10)

    def _take(self, frames: list[bytes], entries: list[Entry]) -> None:
        try:
            head = json.loads(frames[0])
            op = head["op"]
            if op == "ack":
                self._acknowledged(int(head["n"]))
            elif op == "welcome":
                self._acknowledged(int(head["acked"]))
                self._welcomed = True
                self._hello_due_ns = self._clock.now_ns() + HELLO_EVERY_NS
                for _, waiting in self._unacked:
                    self._push(waiting)
            elif op == "who":
                self._hello(self._clock.now_ns())
            elif op == "refused":
                self.refused += 1
                self._acknowledged(int(head["n"]))
            elif op == "entry":
                self._entry(int(head["prev"]), frames, entries)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BadDocument(f"the recorder sent a frame that {self.name} cannot read: {error}") from error

    def _entry(self, prev: int, frames: list[bytes], entries: list[Entry]) -> None:
        envelope = Envelope.model_validate_json(frames[1])
        if envelope.seq <= self._last_seq:
            return
        if prev != self._last_seq:  # something in between was lost: ask again from what we hold
            now = self._clock.now_ns()
            if now >= self._hello_due_ns - HELLO_EVERY_NS * 9 // 10:
                self._hello(now)
            return
        entries.append(Entry(envelope, decode(frames[2:])))
        self._last_seq = envelope.seq

    def _acknowledged(self, n: int) -> None:
        if self._unacked and n >= self._unacked[0][0]:
            self._hello_due_ns = self._clock.now_ns() + HELLO_EVERY_NS
        while self._unacked and self._unacked[0][0] <= n:
            self._unacked.popleft()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything sent is acknowledged; False if that takes longer than `timeout_s`.

        Entries that arrive meanwhile are handed out by the next `poll`.
        """
        end = self._clock.now_ns() + int(timeout_s * 1e9)
        kept: list[Entry] = []
        while self._unacked and self._clock.now_ns() < end:
            kept += self.poll(0.02)
        self._held = kept + self._held
        return not self._unacked

    def close(self) -> None:
        """Close the socket at once; flush before if what was sent matters."""
        self._socket.close()


@dataclass(frozen=True)
class Hello:
    """A peer (re)introduces itself."""

    name: str
    process: str
    last_seq: int
    wants: frozenset[str]
    first_unacked: int


@dataclass(frozen=True)
class Submitted:
    """A peer sends a document (still as frames)."""

    name: str
    n: int
    cause: tuple[int, int] | None
    frames: list[bytes]


@dataclass(frozen=True)
class Got:
    """A peer has taken all entries up to `seq`."""

    name: str
    seq: int


@dataclass(frozen=True)
class Malformed:
    """Bytes on the socket that are no message of this bus."""

    name: str
    why: str


Incoming = Hello | Submitted | Got | Malformed


def parse_incoming(identity: bytes, frames: list[bytes]) -> Incoming:
    """Turn one message of a peer into a value; anything malformed becomes `Malformed`, never an exception."""
    name = identity.decode("utf-8", "replace")
    try:
        head = json.loads(frames[0])
        op = head["op"]
        if op == "doc":
            cause = head["cause"]
            pair = None if cause is None else (int(cause[0]), int(cause[1]))
            return Submitted(name, int(head["n"]), pair, frames[1:])
        if op == "got":
            return Got(name, int(head["seq"]))
        if op == "hello":
            if head["name"] != name:
                return Malformed(name, "hello under another name")
            wants = frozenset(map(str, head["wants"]))
            return Hello(name, str(head["process"]), int(head["last_seq"]), wants, int(head["first_unacked"]))
        return Malformed(name, f"unknown op {str(op)[:40]!r}")
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        return Malformed(name, f"{type(error).__name__}: {str(error)[:80]}")


class Hub:
    """The recorder's socket."""

    def __init__(self, endpoint: str) -> None:
        """Bind; port 0 takes a free one. Raises OSError if the address is taken."""
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a restarted peer takes its name over
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            raise OSError(f"cannot bind {endpoint}: {error}") from error
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def poll(self, timeout_s: float, limit: int = 500) -> list[Incoming]:
        """Return what peers sent, at most `limit` messages."""
        out: list[Incoming] = []
        wait_ms = int(timeout_s * 1000)
        while len(out) < limit and self._socket.poll(wait_ms):
            wait_ms = 0
            identity, *frames = self._socket.recv_multipart()
            out.append(parse_incoming(identity, frames))
        return out

    def _send(self, name: str, frames: list[bytes]) -> bool:
        try:
            self._socket.send_multipart([name.encode(), *frames], flags=zmq.NOBLOCK)
        except zmq.ZMQError:  # gone; it will say hello when it is back
            return False
        return True

    def welcome(self, name: str, acked: int) -> bool:
        """Answer a hello: what of this process start is journalled."""
        return self._send(name, [_json(op="welcome", acked=acked)])

    def ack(self, name: str, n: int) -> bool:
        """Say that everything up to the sender's number `n` is journalled."""
        return self._send(name, [_json(op="ack", n=n)])

    def refuse(self, name: str, n: int, why: str) -> bool:
        """Say that document `n` was refused and will never be journalled."""
        return self._send(name, [_json(op="refused", n=n, why=why)])

    def who(self, name: str) -> bool:
        """Ask an unknown peer to say hello."""
        return self._send(name, [_json(op="who")])

    def entry(self, name: str, prev: int, parts: list[bytes]) -> bool:
        """Send one entry (envelope, header, arrays); False if the peer is gone."""
        return self._send(name, [_json(op="entry", prev=prev), *parts])

    def close(self) -> None:
        """Close the socket after sending what is queued."""
        self._socket.close()
