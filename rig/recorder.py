"""The recorder: puts all documents of a session in one order, journals each, and only then passes it on.

One single-threaded loop. Routing is tailing: every peer has a cursor in the journal and a credit, so a slow, restarted
or late peer needs no second mechanism. Clock maps and response windows are folds over the journalled order.
It never draws and never computes a model.
"""

import argparse
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rig.bus import Got, Hello, Hub, Incoming, Malformed, Submitted
from rig.child import Stop, fail, say, shield
from rig.clock import Clock, HostClock
from rig.config import Config, load
from rig.encoding import BadDocument, decode, decode_entry, encode, encode_entry, unpack
from rig.journal import JournalError, JournalWriter
from rig.messages import (
    Document,
    Entry,
    Envelope,
    Fault,
    Presented,
    SessionStart,
    SessionStop,
    StopRequested,
    Tick,
    kind_of,
)
from rig.provenance import process_started, session_start
from rig.responses.windows import WindowFold
from rig.timing import drain_s

NAME = "recorder"
CREDIT_ENTRIES = 400
CREDIT_BYTES = 64 << 20
CACHE_BYTES = 64 << 20
TICK_NS = 1_000_000_000
LAST_WORDS_NS = 300_000_000


@dataclass
class _Client:
    """What the recorder knows of one connected peer."""

    process: str
    wants: frozenset[str]
    cursor: int  # last entry looked at for this peer
    sent: int  # last entry sent to this peer
    in_flight: deque[tuple[int, int]] = field(default_factory=deque)  # (seq, bytes) not yet taken by the peer
    in_flight_bytes: int = 0


class Recorder:
    """Order, journal, route."""

    def __init__(self, path: Path, hub: Hub, config: Config, clock: Clock, start: Callable[[], SessionStart]) -> None:
        """Open (or go on with) the journal at `path`; a new one begins with `start()`. Raises JournalError."""
        self._hub = hub
        self._clock = clock
        self._windows = WindowFold(config)
        self._process = f"{NAME}-{clock.utc_ns():x}"
        self._own_n = 0
        self._offsets: list[tuple[int, str]] = []  # (offset, kind) of entry seq at index seq - 1
        self._acked: dict[str, int] = {}  # process start -> last of its documents that is journalled
        self._emitted: set[tuple[str, int, int]] = set()  # (sender, cause seq, cause index) of all folds' documents
        self._clients: dict[str, _Client] = {}
        self._cache: OrderedDict[int, list[bytes]] = OrderedDict()
        self._cache_bytes = 0
        self._tick_due_ns = clock.now_ns()
        self._owed: list[tuple[int, int, Document]] = []
        self.presentations = self.faults = 0
        self.stop_requested: str | None = None
        self.malformed = 0
        self._journal = JournalWriter(path, path.parent.name, self._replayed)
        for seq, index, document in self._owed:  # a kill fell between an entry and what it caused
            if (NAME, seq, index) not in self._emitted:
                self._append_own(document, (seq, index))
        self._owed.clear()
        if self._journal.last_seq == 0:
            self._append_own(start(), None)

    # --- journalling --------------------------------------------------------------------------------------------------

    def _replayed(self, seq: int, offset: int, body: bytes) -> None:
        """Rebuild the state from one record of an existing journal."""
        try:
            entry = decode_entry(body)
        except BadDocument:
            self._pad(seq)
            self._offsets.append((offset, "damaged"))
            return
        self._pad(seq)
        self._note(entry, offset)
        for index, document in enumerate(self._fold(entry)):
            self._owed.append((seq, index, document))

    def _pad(self, seq: int) -> None:
        while len(self._offsets) < seq - 1:  # records lost to damage leave holes
            self._offsets.append((-1, "damaged"))

    def _note(self, entry: Entry, offset: int) -> None:
        envelope = entry.envelope
        self._offsets.append((offset, kind_of(entry.document)))
        self._acked[envelope.process] = max(envelope.sender_seq, self._acked.get(envelope.process, 0))
        if envelope.cause_seq is not None and envelope.cause_index is not None:
            self._emitted.add((envelope.sender, envelope.cause_seq, envelope.cause_index))

    def _fold(self, entry: Entry) -> list[Document]:
        document = entry.document
        if isinstance(document, Presented):
            self.presentations += 1
        elif isinstance(document, Fault):
            self.faults += 1
        elif isinstance(document, StopRequested):
            self.stop_requested = document.reason
        return self._windows.apply(entry)

    def _append(
        self, sender: str, process: str, n: int, cause: tuple[int, int] | None, document: Document, frames: list[bytes]
    ) -> None:
        """Journal one document, then let the folds see it and journal what they emit."""
        seq = self._journal.last_seq + 1
        envelope = Envelope(
            seq=seq,
            receipt_host_ns=self._clock.now_ns(),
            sender=sender,
            process=process,
            sender_seq=n,
            cause_seq=None if cause is None else cause[0],
            cause_index=None if cause is None else cause[1],
        )
        body = encode_entry(envelope, frames)
        offset = self._journal.append(seq, body)
        entry = Entry(envelope, document)
        self._pad(seq)
        self._note(entry, offset)
        self._cache[seq] = [envelope.model_dump_json().encode(), *frames]
        self._cache_bytes += len(body)
        while self._cache_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._cache_bytes -= sum(map(len, old))
        for index, caused in enumerate(self._fold(entry)):
            self._append_own(caused, (seq, index))

    def _append_own(self, document: Document, cause: tuple[int, int] | None) -> None:
        self._own_n += 1
        self._append(NAME, self._process, self._own_n, cause, document, encode(document))

    def submit(self, document: Document) -> None:
        """Journal a document of the recorder itself."""
        self._append_own(document, None)

    # --- peers --------------------------------------------------------------------------------------------------------

    def step(self, timeout_s: float) -> None:
        """Take what peers sent, journal it, acknowledge it, pass it on, and let time tick."""
        touched: dict[str, int] = {}
        for message in self._hub.poll(timeout_s):
            self._take(message, touched)
        for name, n in touched.items():
            self._hub.ack(name, n)
        now = self._clock.now_ns()
        if now >= self._tick_due_ns:
            self._tick_due_ns = max(self._tick_due_ns + TICK_NS, now)
            self.submit(Tick(tick_host_ns=now))
        self.pump()

    def _take(self, message: Incoming, touched: dict[str, int]) -> None:
        if isinstance(message, Malformed):
            self.malformed += 1
            if self.malformed <= 10 or self.malformed % 1000 == 0:
                self.submit(
                    Fault(
                        what="malformed message",
                        detail=f"from {message.name[:40]!r}: {message.why}; {self.malformed} so far",
                        done="refused",
                    )
                )
            return
        if isinstance(message, Hello):
            cursor = message.last_seq if message.wants else len(self._offsets)
            self._clients[message.name] = _Client(message.process, message.wants, cursor, sent=message.last_seq)
            # What the sender was told is done stays done, also what left no trace in the journal (a refused document).
            self._acked[message.process] = max(self._acked.get(message.process, 0), message.first_unacked - 1)
            self._hub.welcome(message.name, self._acked[message.process])
            return
        client = self._clients.get(message.name)
        if client is None:
            self._hub.who(message.name)
        elif isinstance(message, Got):
            while client.in_flight and client.in_flight[0][0] <= message.seq:
                client.in_flight_bytes -= client.in_flight.popleft()[1]
        else:
            self._journal_submitted(message, client.process, touched)

    def _journal_submitted(self, message: Submitted, process: str, touched: dict[str, int]) -> None:
        known = self._acked.get(process, 0)
        if message.n <= known:
            touched[message.name] = known  # sent twice: journalled once
            return
        if message.n != known + 1:
            return  # something before it is still missing; the sender will send both again
        identity = None if message.cause is None else (message.name, *message.cause)
        if identity in self._emitted:
            self._acked[process] = message.n  # a restarted fold said it again
            touched[message.name] = message.n
            return
        try:
            document = decode(message.frames)
        except BadDocument as error:
            self._acked[process] = message.n
            self._hub.refuse(message.name, message.n, str(error))
            self.submit(
                Fault(
                    what="refused document", detail=f"from {message.name}: {error}", done="refused and not journalled"
                )
            )
            return
        # Encoded anew: whoever reads the journal may rely on our own form, whatever program sent this.
        self._append(message.name, process, message.n, message.cause, document, encode(document))
        touched[message.name] = message.n

    def pump(self) -> None:
        """Send every peer the entries it wants and has credit for."""
        for name in list(self._clients):
            client = self._clients[name]
            while len(client.in_flight) < CREDIT_ENTRIES and client.in_flight_bytes < CREDIT_BYTES:
                seq = self._next(client)
                if seq is None:
                    break
                parts = self._parts(seq)
                if not self._hub.entry(name, client.sent, parts):
                    del self._clients[name]  # it says hello when it is back
                    break
                size = sum(map(len, parts))
                client.sent = client.cursor = seq
                client.in_flight.append((seq, size))
                client.in_flight_bytes += size

    def _next(self, client: _Client) -> int | None:
        while client.cursor < len(self._offsets):
            client.cursor += 1
            if self._offsets[client.cursor - 1][1] in client.wants:
                return client.cursor
        return None

    def _parts(self, seq: int) -> list[bytes]:
        if seq in self._cache:
            return self._cache[seq]
        return unpack(self._journal.read_body(self._offsets[seq - 1][0]))

    # --- the end ------------------------------------------------------------------------------------------------------

    @property
    def drained(self) -> bool:
        """Whether the rig has stopped and every presentation has its response."""
        return self.stop_requested is not None and self._windows.waiting == 0

    def sync(self) -> None:
        """Push the journal to the disk."""
        self._journal.sync()

    def close(self, reason: str) -> None:
        """Account for what is still open, write SessionStop, and close the journal and the socket."""
        self.submit(Tick(tick_host_ns=self._clock.now_ns(), closing=True))
        self.submit(
            SessionStop(
                reason=reason,
                presentations=self.presentations,
                responses=self._windows.responses,
                usable=self._windows.usable,
                faults=self.faults,
            )
        )
        self.pump()
        self._journal.close()
        self._hub.close()


def main(arguments: list[str] | None = None) -> int:
    """Process entry: `python -m rig.recorder --folder SESSION --endpoint tcp://127.0.0.1:0`."""
    parser = argparse.ArgumentParser(prog="rig.recorder")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--endpoint", default="tcp://127.0.0.1:0")
    parser.add_argument("--simulated", action="store_true")
    options = parser.parse_args(arguments)
    stop, clock = Stop(), HostClock()
    config, text = load(options.folder / "config.yaml")
    try:
        hub = Hub(options.endpoint)
    except OSError as error:
        return fail(f"recorder: {error}", "end the process that has this port")
    try:
        recorder = Recorder(
            options.folder / "session.journal",
            hub,
            config,
            clock,
            lambda: session_start(options.folder, config, text, options.simulated, clock),
        )
    except JournalError as error:
        return fail(f"recorder: {error}", "see the message")
    recorder.submit(process_started(NAME, clock, {}))
    say(ready={"endpoint": hub.endpoint})
    disk = _Disk(recorder, stop)
    said_drained = False
    while not stop:
        recorder.step(0.02)
        disk.check()
        if recorder.drained and not said_drained:
            said_drained = True
            say(note="drained")
    # What peers sent last is still on its way; without a supervisor also the responses to the last images.
    end_ns = clock.now_ns() + (int(drain_s(config) * 1e9) if stop.orphaned else LAST_WORDS_NS)
    least_ns = clock.now_ns() + LAST_WORDS_NS
    while clock.now_ns() < end_ns and not (recorder.drained and clock.now_ns() > least_ns):
        recorder.step(0.02)
    disk.end()
    reason = recorder.stop_requested or "stopped"
    recorder.close("the supervisor is gone" if stop.orphaned else stop.reason or reason)
    return 0


class _Disk:
    """Pushes the journal to the disk once a second, off the loop: a power loss then costs one second at most."""

    def __init__(self, recorder: Recorder, stop: Stop) -> None:
        self._recorder, self._stop = recorder, stop
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.wait(1.0):
                self._recorder.sync()
        except OSError as error:
            self._error = error

    def check(self) -> None:
        """Raise what the disk said: a journal that cannot be kept must not look as if it were."""
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Wait for the last push."""
        self._thread.join(5.0)


if __name__ == "__main__":
    shield()
    sys.exit(main())
