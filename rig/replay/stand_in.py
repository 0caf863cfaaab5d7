"""What stands in for the rig in a replay over the wire: it says again what the rig of the recorded session said.

Pure but for the lines that it is given. It takes what the model server proposes now, holds it against what was
proposed then, and sends the recorded TrialIntents, StimulusPrepareds, Presenteds, faults and outputs at their times:
those that show something of a proposal not before that proposal has come again. Used by `rig.replay.wire`.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from rig.encoding import encode
from rig.messages import (
    Document,
    Entry,
    ModelUpdated,
    PhaseEnded,
    Presented,
    ProcessStarted,
    Proposal,
    StimulusPrepared,
    TrialIntent,
    kind_of,
)

LIVE = frozenset({"recorder", "model", "view"})  # what these said is made anew in a replay
DECISIONS = (Proposal, ModelUpdated, PhaseEnded)


class Line(Protocol):
    """What it needs of the bus; `rig.links.peer.Peer` is one."""

    def send(self, document: Document) -> None:
        """Send without blocking."""
        ...


@dataclass(frozen=True)
class Said:
    """A document of the rig's side as it was journalled."""

    sender: str
    receipt_host_ns: int
    document: Document

    @property
    def needs(self) -> int:
        """Number of the newest proposal that it speaks of; -1 if of none."""
        document = self.document
        if isinstance(document, TrialIntent):
            return max(document.proposals, default=-1)
        if isinstance(document, Presented | StimulusPrepared):
            return document.proposal
        return -1


def _digest(document: Document) -> str:
    return hashlib.sha256(encode(document)[0]).hexdigest()  # the header names the sha256 of each array


class Recorded:
    """What a recorded session decided, and what its rig's side said."""

    def __init__(self, sources: frozenset[str], entries: Iterable[Entry] = ()) -> None:
        """Take the journal's entries; what the devices in `sources` sent is not the rig's."""
        self._sources = sources
        self.said: deque[Said] = deque()
        self.decisions: dict[str, list[str]] = {t.model_fields["kind"].default: [] for t in DECISIONS}
        self.senders: set[str] = set()
        for entry in entries:
            self.take(entry)

    def take(self, entry: Entry) -> None:
        """Take the next entry: of a decision only a hash is kept."""
        document, sender = entry.document, entry.envelope.sender
        if sender == "model" and isinstance(document, DECISIONS):
            self.decisions[kind_of(document)].append(_digest(document))
        if sender in LIVE or sender in self._sources or isinstance(document, ProcessStarted):
            return
        self.senders.add(sender)
        self.said.append(Said(sender, entry.envelope.receipt_host_ns, document))


class StandIn:
    """Sends what was said when its time has come, and compares what is decided."""

    def __init__(self, recorded: Recorded, lines: Mapping[str, Line]) -> None:
        """`lines`: the bus under the name of each sender of `recorded`."""
        self._said, self._expected, self._lines = recorded.said, recorded.decisions, lines
        self._proposal = -1  # newest that came again
        self._came: Counter[str] = Counter()
        self.identical: Counter[str] = Counter()
        self.different: list[str] = []

    @property
    def over(self) -> bool:
        """Whether everything was said."""
        return not self._said

    @property
    def next_due_ns(self) -> int | None:
        """When the next document was journalled, host clock of the recording; None at the end."""
        return self._said[0].receipt_host_ns if self._said else None

    def waits(self, now_ns: int) -> bool:
        """Whether it is time for a document that speaks of a proposal that has not come again yet."""
        return bool(self._said) and self._said[0].receipt_host_ns <= now_ns and self._said[0].needs > self._proposal

    def take(self, entry: Entry) -> str:
        """Take what came over the bus; return in words how a decision differs from the recorded one, "" if it does not.

        A proposal that differs counts as come: the recorded images were shown all the same.
        """
        document = entry.document
        if not isinstance(document, DECISIONS):
            return ""
        kind = kind_of(document)
        number = self._came[kind]
        self._came[kind] += 1
        if isinstance(document, Proposal):
            self._proposal = max(self._proposal, document.proposal)
        expected = self._expected[kind]
        if number < len(expected) and expected[number] == _digest(document):
            self.identical[kind] += 1
            return ""
        why = "differs from the recorded one" if number < len(expected) else "was not made in the recording"
        self.different.append(f"{kind} {number} {why}")
        return self.different[-1]

    def step(self, now_ns: int) -> list[Document]:
        """Send what is due; return it."""
        sent = []
        while self._said and self._said[0].receipt_host_ns <= now_ns and not self.waits(now_ns):
            one = self._said.popleft()
            self._lines[one.sender].send(one.document)
            sent.append(one.document)
        return sent

    @property
    def decided(self) -> bool:
        """Whether as many decisions have come again as were recorded."""
        return not self.missing()

    def missing(self) -> list[str]:
        """Return in words which recorded decisions did not come again."""
        short = {kind: len(all_) - self._came[kind] for kind, all_ in self._expected.items()}
        return [f"{n} of {len(self._expected[kind])} {kind} did not come" for kind, n in short.items() if n > 0]
