"""The recorder: puts all documents of a session in one order, journals each, and only then passes it on.

One single-threaded loop. Routing is tailing: every peer has a cursor in the journal and a credit, so a slow, restarted
or late peer needs no second mechanism. Clock maps and response windows are folds over the journalled order.
It never draws and never computes a model.

Acknowledged means journalled: a document is written before its sender hears of it. Where the disk has no room nothing
is taken, what peers sent stays with them, and what the folds said meanwhile waits here, in order (docs/durability.md).
"""

import argparse
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from rig.clock import Clock, HostClock
from rig.config.reading import ConfigError, load
from rig.config.session import Config
from rig.encoding import MAX_LOGGED_HEADER_BYTES, BadDocument, decode, encode, encode_entry
from rig.failed_phases import FailedPhases
from rig.links.bus import REMOTE, Got, Hello, Hub, Incoming, Malformed, Submitted
from rig.links.keys import KeysError, server_keys
from rig.links.loopback import NotPrivate
from rig.links.model_link import ModelLink
from rig.messages import (
    Document,
    Entry,
    Envelope,
    Fault,
    Pause,
    ProcessStarted,
    SessionStart,
    SessionStop,
    StopRequested,
    Tick,
    kind_of,
)
from rig.provenance import process_started, program, session_start
from rig.recording.admission import Admission, Refusals, why_not
from rig.recording.fold_snapshot import FoldSnapshots
from rig.recording.go_on import damage, go_on, noting
from rig.recording.journal import JournalError, JournalFull, JournalWriter
from rig.recording.log_index import LogIndex
from rig.recording.routes import Client, Routes
from rig.recording.service import Service, bound
from rig.recording.storage import Reserve
from rig.responses.windows import WindowFold
from rig.supervision.child import Stop, fail, say, shield

NAME = "recorder"
TICK_NS = 1_000_000_000
RETRY_NS = 250_000_000  # after a write that found no room
ROOM_BYTES = 1 << 16  # besides what found none: less is not worth a try


class Recorder:
    """Order, journal, route."""

    def __init__(
        self,
        path: Path,
        hub: Hub,
        config: Config,
        clock: Clock,
        start: Callable[[], SessionStart],
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Open (or go on with) the journal at `path`; a new one begins with `start()`. Raises JournalError.

        `alive()` is called again and again while a long journal is read.
        """
        self._hub, self._clock = hub, clock
        self._process = f"{NAME}-{clock.utc_ns():x}"
        self._index = LogIndex()
        self._waiting: deque[tuple[Document, tuple[int, int] | None]] = deque()  # our own, next to be journalled
        self.full = ""  # why nothing can be journalled at the moment
        self._own_n = self._full_since_ns = self._retry_ns = self._full_size = self.malformed = 0
        self._reserve = Reserve(config.storage.reserve_bytes, path.parent)
        self._routes = Routes(hub, self._index)
        self._tick_due_ns = clock.now_ns()
        self._last: Envelope | None = None  # of the last entry that this process has written
        self.stop_requested: str | None = None
        self._refusals, self._failed = Refusals(), FailedPhases()
        hub.expected = frozenset({"rig", "model", "outputs", *(s.name for s in config.sources)})
        hub.program = program()
        self.link = ModelLink(hub, clock, self.submit) if hub.remote_endpoint else None
        self.journal = JournalWriter(path, path.parent.name, noting(self._index, alive))
        self.snapshots = FoldSnapshots(path.parent, config)
        self._windows, owed, refused = go_on(self.journal, self._index, self.snapshots, self._know, alive)
        for seq, index, document in owed:  # a kill fell between an entry and what it caused
            if not self._index.said(NAME, seq, index):
                self._waiting.append((document, (seq, index)))
        self._admission = Admission(hub, self._index, self._routes, self.journal.last_seq == 0)
        if self.journal.last_seq == 0:
            self.submit(start())
        else:
            self.snapshots.hurry()
            for fault in damage(self.journal, self._index, refused):
                self.submit(fault)

    # --- journalling --------------------------------------------------------------------------------------------------

    def _know(self, entry: Entry) -> None:
        """Take what the recorder itself must know of (`rig.recording.go_on.KNOWN`)."""
        document = entry.document
        self._failed.take(document)
        if isinstance(document, StopRequested):
            self.stop_requested = document.reason
        elif isinstance(document, ProcessStarted) and document.name == "rig":
            self.stop_requested = None  # the session goes on: a resumed one, or a rig that was restarted at its end
        elif isinstance(document, SessionStart):
            self._hub.session = f"{document.session}-{document.start_utc_ns:x}"
        elif isinstance(document, Pause) and entry.envelope.sender == NAME:
            self._reserve.take(document)

    def _append(
        self, sender: str, process: str, n: int, cause: tuple[int, int] | None, document: Document, frames: list[bytes]
    ) -> None:
        """Journal one document, then let the folds see it; what they say waits to be journalled next.

        Raises JournalFull, and then nothing has changed.
        """
        seq = self.journal.last_seq + 1
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
        offset = self.journal.append(seq, body)
        entry = Entry(envelope, document)
        self._last = envelope
        self._index.note(envelope, kind_of(document), offset)
        self._know(entry)
        self._routes.remember(seq, [envelope.model_dump_json().encode(), *frames])
        self._waiting += [(caused, (seq, index)) for index, caused in enumerate(self._windows.apply(entry))]

    def _append_waiting(self) -> None:
        """Journal what the folds and the recorder itself have said. Raises JournalFull; the rest goes on waiting."""
        while self._waiting:
            document, cause = self._waiting[0]
            frames = encode(document)
            try:
                decode(frames, MAX_LOGGED_HEADER_BYTES)
            except BadDocument as error:  # a fold took a wild value: what nobody could read again is not written
                what, detail = "document not understood", f"own {kind_of(document)}: {error}"
                frames = encode(document := Fault(what=what, detail=detail, done="left out"))
            self._append(NAME, self._process, self._own_n + 1, cause, document, frames)
            self._own_n += 1
            self._waiting.popleft()

    def submit(self, *documents: Document) -> None:
        """Journal documents of the recorder itself, as soon as there is room."""
        self._waiting += [(document, None) for document in documents]
        if not self.full:
            try:
                self._append_waiting()
            except JournalFull as error:
                self._stop_taking(error)

    # --- a disk that is full ------------------------------------------------------------------------------------------

    def _stop_taking(self, error: JournalFull) -> None:
        now = self._clock.now_ns()
        self._full_since_ns, self._retry_ns, self._full_size = now, now + RETRY_NS, error.size
        self.full = str(error)
        self._routes.full(self.full)

    def _try_again(self) -> None:
        """Journal what waits if there is room again. Peers ask by themselves, and then send what they kept."""
        now = self._clock.now_ns()
        if now < self._retry_ns:
            return
        self._retry_ns = now + RETRY_NS
        # For what found none, and some more: else it would be full and not full by turns, with a fault each time.
        if not self.journal.has_room(self._full_size + ROOM_BYTES):
            return
        waited_s = (now - self._full_since_ns) * 1e-9
        detail = f"{self.full}; nothing could be journalled for {waited_s:.1f} s"
        done = "documents stayed with their senders and are journalled now"
        said = Fault(what="journal full", detail=detail, done=done, since_host_ns=self._full_since_ns)
        self._waiting.append((said, None))
        try:
            self._append_waiting()
            self.full = ""
        except JournalFull as error:
            self.full, self._full_size = str(error), max(self._full_size, error.size)
            if self._waiting[-1][0] is said:
                self._waiting.pop()

    def watch_room(self, free: int) -> None:
        """Pause the session while less than the reserve is free, and lift that; `free` in bytes."""
        for document in () if self.full else self._reserve.judge(free, self._clock.now_ns()):
            self.submit(document)

    # --- peers --------------------------------------------------------------------------------------------------------

    def step(self, timeout_s: float) -> None:
        """Take what peers sent, journal it, acknowledge it, pass it on, and let time tick."""
        if self.full:
            self._try_again()
        touched: dict[str, int] = {}
        messages = self._hub.poll(timeout_s)
        now = self._clock.now_ns()
        for message in messages:
            self._take(message, touched, now)
        for name, n in touched.items():
            self._hub.ack(name, n)
        now = self._clock.now_ns()
        if now >= self._tick_due_ns:
            self._tick_due_ns = max(self._tick_due_ns + TICK_NS, now)
            if not self.full:
                self.submit(Tick(tick_host_ns=now))
            self._routes.forget_silent(now)
            if self.link is not None:
                self.link.watch()
        self.pump()

    def _take(self, message: Incoming, touched: dict[str, int], now: int) -> None:
        if isinstance(message, Malformed):
            self.malformed += 1
            self._refused(message.what, f"from {message.name[:40]!r}: {message.why}")
            return
        if message.name == REMOTE and self.link is not None:
            self.link.heard()
        if isinstance(message, Hello):
            why, faults = self._admission.hello(message, now)
            self.submit(*faults)
            if why:
                self._refused("peer refused", why)
            elif self.full:
                self._hub.full(message.name, self.full)
            else:
                self._hub.welcome(message.name, self._index.acked[message.process])
            return
        client = self._routes.client(message.name)
        if client is None:
            self._hub.who(message.name)
        else:
            client.heard_ns = now
            if isinstance(message, Got):
                self._routes.got(message)
            else:
                self._journal_submitted(message, client, touched)

    def _refused(self, what: str, detail: str) -> None:
        faults = self._refusals.refused(what, detail)
        if not self.full:
            self.submit(*faults)

    def _journal_submitted(self, message: Submitted, client: Client, touched: dict[str, int]) -> None:
        process = client.process
        known = self._index.acked.get(process, 0)
        if message.n <= known:
            touched[message.name] = known  # sent twice: journalled once
            return
        if self.full or message.n != known + 1:
            return  # no room, or something before it is still missing; the sender will send it again
        if message.cause is not None and self._index.said(message.name, *message.cause):
            self._index.acked[process] = message.n  # a restarted fold said it again
            touched[message.name] = message.n
            return
        try:
            document = decode(message.frames)
            # Encoded anew: whoever reads the journal may rely on our own form, whatever program sent this.
            frames = encode(document)
            why = why_not(message.name, document, self.link is not None)
        except (BadDocument, ValueError) as error:
            why = str(error)[:500]
        if why:
            self._index.acked[process] = message.n
            self._hub.refuse(message.name, message.n, why)
            self._refused("refused document", f"from {message.name}: {why}")
            return
        try:
            self._append(message.name, process, message.n, message.cause, document, frames)
            client.journalled = True
            touched[message.name] = message.n
            self._append_waiting()
        except JournalFull as error:
            self._stop_taking(error)

    def pump(self) -> None:
        """Send every peer the entries it wants and has credit for."""
        self._routes.pump(self.journal, self._say_damaged)

    def _say_damaged(self, seq: int, why: str) -> None:
        done = "peers get the log without this entry"
        self.submit(Fault(what="journal damaged", detail=f"entry {seq}: {why}", done=done))

    # --- the end ------------------------------------------------------------------------------------------------------

    def stand(self) -> tuple[WindowFold, Envelope, list[int]] | None:
        """Return the fold, the last entry, and the entries that it was not given; None while something waits."""
        if self._last is None or self._waiting or self.full:
            return None  # what waits was said by entries before the last one, and is not in the journal
        return self._windows, self._last, self._index.unreadable()

    @property
    def presentations(self) -> int:
        """Number of presentations in the journal."""
        return self._index.count("presented")

    @property
    def proposals(self) -> int:
        """Number of proposals in the journal."""
        return self._index.count("proposal")

    @property
    def drained(self) -> bool:
        """Whether the rig has stopped and every presentation has its response."""
        return self.stop_requested is not None and self._windows.waiting == 0 and not self._waiting

    def close(self, reason: str) -> None:
        """Account for what is still open, write SessionStop, and close the journal and the socket.

        Raises JournalFull where there is no room for that: the session then has no end in its log, and can be resumed.
        """
        try:
            self._end(reason)
        finally:
            self.abandon()
        if self.full:
            raise JournalFull(f"{self.full}; the log has no end: {len(self._waiting)} documents found no room")

    def _end(self, reason: str) -> None:
        self._retry_ns = 0
        if self.full:
            self._try_again()
        self.submit(*self._refusals.sums())
        self.submit(Tick(tick_host_ns=self._clock.now_ns(), closing=True))
        self.submit(
            SessionStop(
                reason=self._failed.ended(reason),
                presentations=self.presentations,
                responses=self._windows.responses,
                usable=self._windows.usable,
                faults=self._index.count("fault"),
            )
        )
        self.pump()

    def abandon(self) -> None:
        """Close the files and the socket as they are."""
        self.snapshots.end()
        try:
            self.journal.close()
        finally:
            self._hub.close()


def main(arguments: list[str] | None = None) -> int:
    """Process entry: `python -m rig.recording.recorder --folder SESSION --endpoint tcp://127.0.0.1:0`."""
    parser = argparse.ArgumentParser(prog="rig.recording.recorder")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--endpoint", default="tcp://127.0.0.1:0")
    parser.add_argument("--simulated", action="store_true")
    options = parser.parse_args(arguments)
    stop, clock = Stop(), HostClock()
    try:
        config, text = load(options.folder / "config.yaml")
    except ConfigError as error:
        return fail(f"recorder: {error}", "mend config.yaml as the message says")
    try:
        server = config.processes.model_server
        remote = None if server is None else (server.bind, server_keys(server.keys, REMOTE))
        hub = bound(options.endpoint, remote, clock)
    except OSError as error:
        return fail(f"recorder: {error}", "end the process that has this port")
    except (KeysError, NotPrivate) as error:
        return fail(f"recorder: {error}", "as the message says")
    try:
        recorder = Recorder(
            options.folder / "session.journal",
            hub,
            config,
            clock,
            lambda: session_start(options.folder, config, text, options.simulated, clock),
            stop.pulse.beat,
        )
    except JournalError as error:
        hub.close()
        return fail(f"{NAME}: {error}", "as the message says")
    recorder.submit(process_started(NAME, clock, {"snapshot": recorder.snapshots.used}))
    say(ready={"endpoint": hub.endpoint})
    try:
        return Service(recorder, config, clock, stop).run()
    except JournalError as error:
        return fail(f"recorder: {error}", "as the message says; nothing that was acknowledged is lost")


if __name__ == "__main__":
    shield()
    sys.exit(main())
