"""Replay: the live code fed from the journal.

`verify` runs a fresh fold of the model server over the entries that the live one saw and compares every document it
emits with the one that was journalled under the same cause, byte for byte; the response windows are folded again the
same way. The folds are arguments: this module knows no model.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from rig.config import Config
from rig.messages import Document, Entry, SessionStart, encode, kind_of
from rig.windows import WindowFold


class Fold(Protocol):
    """A pure fold over the log."""

    def handle(self, entry: Entry) -> list[Document]:
        """Take one entry; return the documents it causes."""
        ...


class _Windows:
    """The recorder's window fold under the name that `verify` calls."""

    def __init__(self, start: SessionStart) -> None:
        self._fold = WindowFold(Config.model_validate(start.config))

    def handle(self, entry: Entry) -> list[Document]:
        return self._fold.apply(entry)


@dataclass
class Verdict:
    """What a replay found, by kind of document."""

    identical: dict[str, int] = field(default_factory=dict)
    different: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether every journalled decision came out the same, and none was missing or new."""
        return not self.different and not self.missing

    @property
    def decisions(self) -> int:
        """Number of decisions compared."""
        return sum(self.identical.values()) + len(self.different) + len(self.missing)


Key = tuple[str, int, int]


def _check(verdict: Verdict, sender: str, cause: int, emitted: list[Document], journal: dict[Key, Entry]) -> None:
    for index, document in enumerate(emitted):
        entry = journal.pop((sender, cause, index), None)
        kind = kind_of(document)
        if entry is None:
            verdict.missing.append(f"{kind} caused by entry {cause}: replay makes it, the journal has none")
        elif encode(entry.document) != encode(document):
            verdict.different.append(f"{kind} caused by entry {cause} (journal entry {entry.envelope.seq}) differs")
        else:
            verdict.identical[kind] = verdict.identical.get(kind, 0) + 1


def verify(entries: Iterable[Entry], make_model: Callable[[SessionStart], Fold], wants: frozenset[str]) -> Verdict:
    """Fold the log again and compare all decisions.

    `make_model(start)` builds a fresh model fold that handles the kinds in `wants`. Raises ValueError for a log
    without SessionStart. An entry whose consequences were cut off with the end of a torn log counts as nothing.
    """
    log = list(entries)
    if not log or not isinstance(log[0].document, SessionStart):
        raise ValueError("the journal does not begin with a SessionStart; nothing can be replayed from it")
    start = log[0].document
    folds: list[tuple[str, Fold, frozenset[str] | None]] = [
        ("model", make_model(start), wants),
        ("recorder", _Windows(start), None),
    ]
    senders = {name for name, _, _ in folds}
    journal: dict[Key, Entry] = {}
    for entry in log:
        e = entry.envelope
        if e.sender in senders and e.cause_seq is not None and e.cause_index is not None:
            journal[e.sender, e.cause_seq, e.cause_index] = entry
    verdict = Verdict()
    last = {name: max((k[1] for k in journal if k[0] == name), default=0) for name, _, _ in folds}
    for entry in log:
        for name, fold, kinds in folds:
            if kinds is None or kind_of(entry.document) in kinds:
                emitted = fold.handle(entry)
                if entry.envelope.seq <= last[name]:
                    _check(verdict, name, entry.envelope.seq, emitted, journal)
    for key, entry in journal.items():
        if kind_of(entry.document) != "work_done":  # live computation, not a decision of the fold
            verdict.missing.append(f"{kind_of(entry.document)} in the journal, caused by {key[1]}: replay makes none")
    return verdict
