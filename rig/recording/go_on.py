"""A journal that is there already: from it, and from a snapshot of the response fold, comes the recorder's state.

Where every entry is, who has come how far and what the folds have said is read from the envelopes of the whole journal
(`rig.recording.log_index`); only the entries after the snapshot are decoded and folded.
"""

from collections.abc import Callable

from rig.encoding import BadDocument, decode_entry, envelope_in, kind_in
from rig.messages import Document, Entry, Envelope, Fault
from rig.recording.fold_snapshot import FoldSnapshots
from rig.recording.journal import DamagedRecord, JournalWriter
from rig.recording.log_index import LogIndex, Selector
from rig.responses.windows import WindowFold

# Kinds of which the recorder itself keeps more than their number; there are few of them.
KNOWN = frozenset({"session_start", "process_started", "stop_requested", "pause", "fault"})
Owed = tuple[int, int, Document]  # entry, index among what it caused, what it caused


def noting(index: LogIndex, alive: Callable[[], None]) -> Callable[[int, int, bytes], None]:
    """Return what takes note of the records of an existing journal (number, offset, body) without decoding documents.

    `alive` is called for each.
    """

    def note(seq: int, offset: int, body: bytes) -> None:
        alive()
        try:
            envelope, kind = envelope_in(body), kind_in(body)
        except BadDocument:
            envelope, kind = None, ""
        if envelope is not None and envelope.seq == seq:
            index.note(envelope, kind, offset)
        else:
            index.add(seq, offset, "")

    return note


def go_on(
    journal: JournalWriter,
    index: LogIndex,
    snapshots: FoldSnapshots,
    know: Callable[[Entry], None],
    alive: Callable[[], None],
) -> tuple[WindowFold, list[Owed], list[str]]:
    """Return the fold after the last entry, all that the entries it was given caused, and why snapshots are not used.

    `index` knows all records; entries that turn out not to be readable are dropped from it. `know` is told of each
    entry of the kinds KNOWN, `alive` is called again and again.
    """

    def entry(seq: int) -> Entry | None:
        alive()
        try:
            return decode_entry(journal.read_body(index.offset(seq))) if index.readable(seq) else None
        except (BadDocument, DamagedRecord):
            index.drop(seq)
            return None

    def envelope(seq: int) -> Envelope | None:
        try:
            return envelope_in(journal.read_body(index.offset(seq))) if index.readable(seq) else None
        except (BadDocument, DamagedRecord):
            return None

    fold, at, unreadable, refused = snapshots.newest(journal.last_seq, envelope)
    for seq in unreadable:
        index.drop(seq)
    selector, owed = Selector(KNOWN), list[Owed]()
    known = index.after(0, selector)
    while known is not None:
        if (one := entry(known)) is not None:
            know(one)
        known = index.after(known, selector)
    for seq in range(at + 1, journal.last_seq + 1):
        if (one := entry(seq)) is not None:
            owed += [(seq, number, document) for number, document in enumerate(fold.apply(one))]
    return fold, owed, refused


def damage(journal: JournalWriter, index: LogIndex, refused: list[str]) -> list[Fault]:
    """Return what is to be said of an existing journal that could not be read whole, and of snapshots not used."""
    faults = []
    if words := journal.damage(index.damaged):
        done = "the session goes on after the last whole record; whoever sent what is missing sends it again"
        faults.append(Fault(what="journal damaged", detail=words, done=done))
    done = "set aside; an older snapshot or the journal from its beginning is used"
    return [*faults, *(Fault(what="snapshot refused", detail=why, done=done) for why in refused)]
