"""Verify: the live code once more over the journal, and each decision beside the one that was journalled.

A fresh fold takes the entries that the live one took. What it emits must be in the journal under the same cause, byte
for byte. The folds are arguments: this module knows no model. It reads the log once and keeps only what is not
compared yet, so its memory does not grow with the session.

A fold that was restarted emits the same identities again and the recorder drops them: the journal of a session with
kills compares like that of one without. Background work is taken to its end.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Protocol

from rig.encoding import BadDocument, encode
from rig.messages import Document, Entry, SessionStart, kind_of
from rig.replay.records import Log, Record, ReplayError, config_of, start_of
from rig.replay.screen import ScreenCheck
from rig.replay.verdict import Verdict
from rig.responses.windows import WindowFold

DECISIONS = {
    "model": frozenset({"proposal", "model_updated", "phase_ended"}),
    "recorder": frozenset({"response"}),
}
COMPUTED_LIVE = "work_done"  # of the model server's edge, not a decision of its fold
OF_DEVICES = frozenset(
    {
        "spike_block", "edge_block", "trace_block", "behaviour_block", "unit_list", "marker", "continuity",
        "clock_sample", "tick",
    }
)  # fmt: skip
COMPARED_LATELY = 20_000  # identities kept to tell a decision that is in the journal twice


class Fold(Protocol):
    """A pure fold over the log."""

    def handle(self, entry: Entry) -> list[Document]:
        """Take one entry; return the documents it causes."""
        ...


class Part(Protocol):
    """One thing that is verified along the log."""

    def take(self, record: Record) -> None:
        """Take the next record."""
        ...

    def finish(self, closed: bool) -> None:
        """Say what is missing at the end of a log that was `closed` in order, or was not."""
        ...


class Windows:
    """The recorder's response windows, as a fold."""

    def __init__(self, start: SessionStart) -> None:
        """Begin as the recorder of the session did."""
        self._fold = WindowFold(config_of(start))

    def handle(self, entry: Entry) -> list[Document]:
        """Take one entry; return the documents it causes."""
        return self._fold.apply(entry)


class Beside:
    """One fold, run again beside what its live counterpart left in the journal.

    Parameters
    ----------
    sender
        Name under which the live one's documents are journalled, a key of `DECISIONS`.
    fold
        A fresh one.
    wants
        Kinds of documents it takes; None: all.
    verdict
        Where findings go.
    """

    def __init__(self, sender: str, fold: Fold, wants: frozenset[str] | None, verdict: Verdict) -> None:
        self._sender, self._fold, self._wants, self._verdict = sender, fold, wants, verdict
        self._pending: dict[tuple[int, int], tuple[str, Document, bytes]] = {}  # emitted, not met in the journal yet
        self._compared: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._last_cause = 0  # newest entry that is known to have been handled live

    def take(self, record: Record) -> None:
        """Compare the record if the live fold made it, then let the fold see it."""
        wanted = self._wants is None or record.kind in self._wants
        if wanted:
            _ = record.entry  # decoded before anything is compared: an unreadable record was left out live as well
        # What devices say in their thousands is not a model's: those envelopes are not even looked at.
        if (wanted or record.kind not in OF_DEVICES) and record.envelope.sender == self._sender:
            self._compare(record)
        if wanted:
            for index, document in enumerate(self._handled(record)):
                self._pending[record.seq, index] = kind_of(document), document, encode(document)[0]

    def _handled(self, record: Record) -> list[Document]:
        try:
            return self._fold.handle(record.entry)
        except (ValueError, RuntimeError, KeyError, IndexError) as error:
            raise ReplayError(
                f"entry {record.seq} ({record.kind}) cannot be folded again by this version of the program: {error}"
            ) from error

    def _compare(self, record: Record) -> None:
        envelope, kind, verdict = record.envelope, record.kind, self._verdict
        if envelope.cause_seq is None or envelope.cause_index is None:
            if kind in DECISIONS[self._sender]:
                verdict.different.append(f"{kind} (journal entry {record.seq}) names no cause")
            return
        cause = envelope.cause_seq, envelope.cause_index
        self._last_cause = max(self._last_cause, cause[0])
        if cause in self._compared:
            verdict.different.append(f"{kind} (journal entry {record.seq}): entry {cause[0]} caused it twice")
            return
        self._note(cause)
        made = self._pending.pop(cause, None)
        if made is None:
            if kind != COMPUTED_LIVE:
                verdict.missing.append(f"{kind} in the journal, caused by {cause[0]}: replay makes none")
        elif _same(made, record):
            verdict.identical[kind] += 1
        else:
            verdict.different.append(f"{kind} caused by entry {cause[0]} (journal entry {record.seq}) differs")

    def _note(self, cause: tuple[int, int]) -> None:
        self._compared[cause] = None
        if len(self._compared) > COMPARED_LATELY:
            self._compared.popitem(last=False)

    def finish(self, closed: bool) -> None:
        """Say what the journal lacks; where it is torn, what its last entries would have caused may be missing."""
        for (seq, _), (kind, _, _) in self._pending.items():
            if closed or seq < self._last_cause:
                self._verdict.missing.append(f"{kind} caused by entry {seq}: replay makes it, the journal has none")
        self._pending.clear()


def _same(made: tuple[str, Document, bytes], record: Record) -> bool:
    """Return whether a document was made again; the header names the sha256 of each array, so it stands for all."""
    kind, document, header = made
    if kind != record.kind:
        return False
    # A journal of an older version writes a document in another form: then both are compared in today's.
    return header == record.header or encode(document)[0] == encode(record.entry.document)[0]


def run_parts(records: Iterable[Record], parts: Sequence[Part], log: Log | None = None) -> None:
    """Take all records through the parts; an unreadable one is left out, as it was live, and counted in `log`."""
    last = ""
    for record in records:
        last = record.kind
        try:
            for part in parts:
                part.take(record)
        except BadDocument:
            if log is not None:
                log.unreadable += 1
    for part in parts:
        part.finish(last == "session_stop")


def verify(
    records: Iterable[Record | Entry], make_model: Callable[[SessionStart], Fold], wants: frozenset[str]
) -> Verdict:
    """Fold a log again, all in this process, and compare all decisions and what was shown.

    `make_model(start)` builds a fresh model fold that handles the kinds in `wants`. In a log that was not closed, what
    its last entries would have caused may be missing. Raises ReplayError for a log from which nothing can be replayed.
    """
    stream = _records(records)
    first = next(stream, None)
    if first is None:
        raise ReplayError("the journal is empty; nothing can be replayed from it")
    start = start_of(first)
    verdict = Verdict()
    parts: list[Part] = [Beside("recorder", Windows(start), None, verdict), ScreenCheck(verdict)]
    if not is_derived(start):
        parts.insert(0, Beside("model", make_model(start), wants, verdict))
    run_parts(chain([first], stream), parts)
    return verdict


def _records(items: Iterable[Record | Entry]) -> Iterator[Record]:
    for item in items:
        yield Record.of(item) if isinstance(item, Entry) else item


def is_derived(start: SessionStart) -> bool:
    """Return whether the session was derived from another one: then its responses were made anew, its proposals not."""
    return start.derived_from is not None
