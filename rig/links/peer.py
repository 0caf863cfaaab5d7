"""One process's end of the bus (`rig.links.bus`): it keeps what it sends until that is journalled, and gets the log.

It takes what comes as hostile: bounded, checked, counted; nothing of it raises but the recorder's "no".
"""

from collections import deque

import zmq

from rig.clock import Clock
from rig.encoding import MAX_ARRAY_BYTES, MAX_HEADER_BYTES, MAX_LOGGED_HEADER_BYTES, BadDocument, decode, encode
from rig.links.bus_wire import CURE, MOST_WAITING, PROTOCOL, head_bytes, parse_reply, said
from rig.links.curve import Link
from rig.links.keys import ClientKeys
from rig.links.loopback import require_loopback
from rig.links.witness import Witness
from rig.messages import Document, Entry, Envelope, Fault

HELLO_EVERY_NS = 1_000_000_000
GOT_EVERY_NS = 500_000_000
SILENT_NS = 5_000_000_000  # then a peer asks whether the recorder is there, and after as long again it connects anew
# What a peer keeps for a recorder that is away or whose disk is full: an hour of 384 channels' spikes (about 150 kB/s),
# 7 min of 10,000 ROIs at 30 Hz (1.2 MB/s). Beyond it the process ends, rather than take the memory of all others.
MOST_UNACKED_BYTES = 512 << 20
UNACKED_OVERHEAD = 400  # bytes of Python around a document that waits
MOST_AT_ONCE = 200

_json = head_bytes


class NotWelcome(RuntimeError):
    """The recorder does not take this peer; the message says why.

    `code` is "version" (install another) or "session" (it stands in another session, or beyond the end of this log).
    """

    def __init__(self, why: str, code: str) -> None:
        super().__init__(why)
        self.code = code


def _kept_bytes(frames: list[bytes]) -> int:
    return UNACKED_OVERHEAD + sum(map(len, frames))


class TooMuchUnacked(RuntimeError):
    """The recorder has taken nothing for so long that no more can be kept; the message gives reason and cure."""


class Peer:
    """One connection of a process to the recorder. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        name: str,
        endpoint: str,
        wants: frozenset[str],
        clock: Clock,
        last_seq: int = 0,
        keys: ClientKeys | None = None,
        program: str = "",
    ) -> None:
        """Connect as `name`; entries of the kinds in `wants` after `last_seq` will come from `poll`.

        To another computer only with `keys` (raises NotPrivate), and saying which version of the `program` this is.
        """
        if keys is None:
            require_loopback(endpoint, f"{name} cannot connect", CURE)
        self.name = name
        self.session = ""  # identity of the session, once the recorder has said it
        self.malformed = 0
        self._program = program
        self.process = f"{name}-{clock.utc_ns():x}"
        self._witness = Witness(self.process)
        self.refused = 0
        self._clock = clock
        self._wants = sorted(wants)
        self._last_seq = last_seq
        self._sent = 0
        self._unacked: deque[tuple[int, list[bytes]]] = deque()
        self._unacked_bytes = 0
        self.full = ""  # why the recorder takes nothing at the moment; "" while it does, as far as is known
        self._held: list[Entry] = []
        self._welcomed = False
        self._hello_due_ns = 0
        self._got_due_ns = 0
        self._got_seq = last_seq
        self._endpoint, self._keys = endpoint, keys
        self._heard_ns = clock.now_ns()
        self._asked_ns: int | None = None  # when the first hello was sent that nothing has answered yet
        self._news: list[str] = []
        self._open()

    def _open(self) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, self.name.encode())
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, MOST_WAITING)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_ARRAY_BYTES)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # queue nothing for a recorder that is away
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._link = None if self._keys is None else Link(self._socket, self._keys)
        self._socket.connect(self._endpoint)

    def _open_again(self) -> None:
        """Connect anew: another process may have taken the name over, and nothing comes on this connection any more."""
        if self._link is not None:
            self._news += [*self._link.news(), f"no answer for {SILENT_NS // 10**9} s; connecting again"]
            self._link.close()
        self._socket.close()
        self._asked_ns, self._welcomed, self._hello_due_ns = None, False, 0
        self._open()

    @property
    def unacked(self) -> int:
        """Number of documents that the recorder has not acknowledged yet."""
        return len(self._unacked)

    @property
    def unacked_bytes(self) -> int:
        """Memory that these documents take, bytes."""
        return self._unacked_bytes

    def send(self, document: Document, cause: tuple[int, int] | None = None) -> None:
        """Queue a document and send it without blocking; it is kept until acknowledged.

        Raises TooMuchUnacked where more than 512 MiB would wait for the recorder, BadDocument for one that is too large
        for any recorder.
        """
        parts = encode(document)
        check_size(parts)
        frames = [_json(op="doc", n=self._sent + 1, cause=cause), *parts]
        size = _kept_bytes(frames)
        if self._unacked_bytes + size > MOST_UNACKED_BYTES:
            why = self.full or "the recorder does not answer"
            raise TooMuchUnacked(
                f"{self.name}: {len(self._unacked)} documents ({self._unacked_bytes / 1e6:.0f} MB) wait to be "
                f"journalled and no more can be kept: {why}"
            )
        self._sent += 1
        self._unacked.append((self._sent, frames))
        self._unacked_bytes += size
        if self._welcomed:
            if len(self._unacked) == 1:  # the recorder has a second to acknowledge it
                self._hello_due_ns = self._clock.now_ns() + HELLO_EVERY_NS
            self._push(frames)

    def follow(self, wants: frozenset[str], last_seq: int) -> None:
        """Take up the log anew: from now on entries of the kinds in `wants` after `last_seq` come from `poll`."""
        self._wants, self._last_seq, self._got_seq = sorted(wants), last_seq, last_seq
        self._held.clear()
        if self._welcomed:
            self._hello(self._clock.now_ns())

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
        if self._asked_ns is not None and now - self._asked_ns >= SILENT_NS:
            self._open_again()
        silent = now - self._heard_ns >= SILENT_NS
        if now >= self._hello_due_ns and (not self._welcomed or self._unacked or silent):
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
            self._heard_ns, self._asked_ns = self._clock.now_ns(), None
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
            protocol=PROTOCOL,
            program=self._program,
            session=self.session,
        )
        if self._push([hello]) and self._asked_ns is None:
            self._asked_ns = now_ns
        self._hello_due_ns = now_ns + (HELLO_EVERY_NS if self._welcomed else HELLO_EVERY_NS // 10)

    def _take(self, frames: list[bytes], entries: list[Entry]) -> None:
        reply = parse_reply(frames)
        match reply.op:
            case "ack":
                self._acknowledged(reply.n)
            case "welcome":
                self._welcome(reply.acked, reply.session)
            case "who":
                self._hello(self._clock.now_ns())
            case "full":
                self._welcomed, self.full = False, reply.why
            case "refused":
                self.refused += 1
                self._acknowledged(reply.n, refused=True)
            case "no":
                raise NotWelcome(reply.why, reply.code)
            case "entry":
                self._entry(reply.prev, frames, entries)
            case _:
                self._bad(reply.why)

    def _welcome(self, acked: int, session: str) -> None:
        if self.session and session != self.session:
            raise NotWelcome(f"this is session {session}, not {self.session}", "session")
        self.session = session
        self._acknowledged(acked)
        self._welcomed, self.full = True, ""
        self._hello_due_ns = self._clock.now_ns() + HELLO_EVERY_NS
        for _, waiting in self._unacked:
            self._push(waiting)

    def _bad(self, why: str) -> None:
        """Count what cannot be read; a fault of it waits for the recorder, and what was lost is asked for again."""
        self.malformed += 1
        if said(self.malformed) and len(self._unacked) < MOST_WAITING:
            detail = f"from the recorder to {self.name}: {why}; {self.malformed} so far"
            self.send(Fault(what="malformed message", detail=detail, done="refused; the log is asked for again"))

    def _again(self) -> None:
        now = self._clock.now_ns()
        if now >= self._hello_due_ns - HELLO_EVERY_NS * 9 // 10:
            self._hello(now)

    def _entry(self, prev: int, frames: list[bytes], entries: list[Entry]) -> None:
        try:
            envelope = Envelope.model_validate_json(frames[1])
            if envelope.seq <= self._last_seq:
                return
            if prev != self._last_seq:  # something in between was lost: ask again from what we hold
                self._again()
                return
            document = decode(frames[2:], MAX_LOGGED_HEADER_BYTES)
        except (BadDocument, ValueError, IndexError) as error:
            self._bad(f"an entry after {self._last_seq}: {str(error)[:200]}")
            self._again()
            return
        entries.append(Entry(envelope, document))
        self._witness.took(envelope.seq, self._clock.now_ns())
        self._last_seq = envelope.seq

    def _acknowledged(self, n: int, refused: bool = False) -> None:
        if self._unacked and n >= self._unacked[0][0]:
            self._hello_due_ns = self._clock.now_ns() + HELLO_EVERY_NS
        while self._unacked and self._unacked[0][0] <= n:
            number, frames = self._unacked.popleft()
            self._witness.acknowledged(frames, refused and number == n)
            self._unacked_bytes -= _kept_bytes(frames)

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

    def news(self) -> list[str]:
        """Return in words what became of an encrypted link since the last call; [] for any other."""
        news, self._news = self._news, []
        return news if self._link is None else [*news, *self._link.news()]

    def close(self) -> None:
        """Close the socket at once; flush before if what was sent matters."""
        if self._link is not None:
            self._link.close()
        self._socket.close()
        self._witness.close()


def check_size(parts: list[bytes]) -> None:
    """Raise BadDocument for encoded frames that no recorder would take."""
    if max(map(len, parts)) > MAX_ARRAY_BYTES or len(parts[0]) > MAX_HEADER_BYTES:
        sizes = ", ".join(f"{len(p)}" for p in parts)
        raise BadDocument(f"frames of {sizes} bytes: over {MAX_HEADER_BYTES} in the header or {MAX_ARRAY_BYTES} beyond")
