"""Replay: the live code fed from the journal.

`verify` runs a fresh fold of the model server over the entries that the live one saw and compares every document it
emits with the one that was journalled under the same cause, byte for byte; the response windows are folded again the
same way. The folds are arguments: this module knows no model.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from rig.config import Config
from rig.encoding import encode
from rig.messages import (
    Document,
    Entry,
    Presented,
    Proposal,
    SessionStart,
    SessionStop,
    StimulusPrepared,
    kind_of,
)
from rig.responses.windows import WindowFold


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
DECISIONS = {
    "model": frozenset({"proposal", "model_updated", "phase_ended"}),
    "recorder": frozenset({"response"}),
}


def verify(entries: Iterable[Entry], make_model: Callable[[SessionStart], Fold], wants: frozenset[str]) -> Verdict:
    """Fold the log again and compare all decisions.

    `make_model(start)` builds a fresh model fold that handles the kinds in `wants`. In a log that was not closed, what
    its last entries would have caused may be missing. Raises ValueError for a log from which nothing can be replayed.
    """
    log = list(entries)
    if not log or not isinstance(log[0].document, SessionStart):
        raise ValueError("the journal does not begin with a SessionStart; nothing can be replayed from it")
    start = log[0].document
    folds: list[tuple[str, Fold, frozenset[str] | None]] = [
        ("model", make_model(start), wants),
        ("recorder", _Windows(start), None),
    ]
    verdict = Verdict()
    journal = _caused(log, verdict)
    torn = not isinstance(log[-1].document, SessionStop)
    last = {name: max((k[1] for k in journal if k[0] == name), default=0) for name, _, _ in folds}
    for entry in log:
        for name, fold, kinds in folds:
            if kinds is None or kind_of(entry.document) in kinds:
                seq = entry.envelope.seq
                _compare(verdict, (name, seq), fold.handle(entry), journal, torn and seq >= last[name])
    for key, entry in journal.items():
        if kind_of(entry.document) != "work_done":  # live computation, not a decision of the fold
            verdict.missing.append(f"{kind_of(entry.document)} in the journal, caused by {key[1]}: replay makes none")
    _compare_screen(log, verdict)
    return verdict


def _caused(log: list[Entry], verdict: Verdict) -> dict[Key, Entry]:
    """Return what the folds emitted, by its cause; a decision without a cause, or a second one, is a difference."""
    journal: dict[Key, Entry] = {}
    for entry in log:
        e, kind = entry.envelope, kind_of(entry.document)
        if e.sender not in DECISIONS:
            continue
        if e.cause_seq is None or e.cause_index is None:
            if kind in DECISIONS[e.sender]:
                verdict.different.append(f"{kind} (journal entry {e.seq}) names no cause")
        elif (e.sender, e.cause_seq, e.cause_index) in journal:
            verdict.different.append(f"{kind} (journal entry {e.seq}): entry {e.cause_seq} caused it twice")
        else:
            journal[e.sender, e.cause_seq, e.cause_index] = entry
    return journal


def _compare(
    verdict: Verdict, cause: tuple[str, int], emitted: list[Document], journal: dict[Key, Entry], may_lack: bool
) -> None:
    for index, document in enumerate(emitted):
        entry = journal.pop((*cause, index), None)
        kind = kind_of(document)
        if entry is None:
            if not may_lack:
                verdict.missing.append(f"{kind} caused by entry {cause[1]}: replay makes it, the journal has none")
        elif encode(entry.document) != encode(document):
            verdict.different.append(f"{kind} caused by entry {cause[1]} (journal entry {entry.envelope.seq}) differs")
        else:
            verdict.identical[kind] = verdict.identical.get(kind, 0) + 1


def _compare_screen(log: list[Entry], verdict: Verdict) -> None:
    """Check that each presentation showed the stimulus that was planned, with the frame that was prepared for it."""
    plans: dict[int, Proposal] = {}
    prepared: set[tuple[int, str, str]] = set()
    for entry in log:
        document = entry.document
        if isinstance(document, Proposal):
            plans[document.proposal] = document
        elif isinstance(document, StimulusPrepared):
            prepared.add((document.proposal, document.stimulus_id, document.frame_sha256))
        elif isinstance(document, Presented):
            plan, where = plans.get(document.proposal), f"presentation {document.presentation}"
            if plan is None or document.slot >= len(plan.plan):
                verdict.different.append(f"{where}: its proposal is not in the journal")
            elif document.slot >= 0 and plan.stimuli[plan.plan[document.slot].stimulus].id != document.stimulus_id:
                verdict.different.append(f"{where} did not show the stimulus that was planned")
            elif (document.proposal, document.stimulus_id, document.frame_sha256) not in prepared:
                verdict.different.append(f"{where} did not show the frame that was prepared")
            else:
                verdict.identical["presented as planned"] = verdict.identical.get("presented as planned", 0) + 1
