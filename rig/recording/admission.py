"""What a peer may say to the recorder: which documents, which numbers, and under whose name; part of the recorder.

Whatever a peer may not say is refused with words; where the recorder cannot know, the log says so.
"""

from rig.links.bus import REMOTE, Hello, Hub, said
from rig.messages import ClockSample, Document, Fault, ProcessStarted, kind_of
from rig.recording.log_index import LogIndex
from rig.recording.routes import Routes

# What only the recorder says, as itself or from its fold.
OWN = frozenset({"session_start", "session_stop", "tick", "pause", "response"})
# What a model server says; one on another computer may say nothing else.
OF_MODEL = frozenset({"proposal", "work_done", "model_updated", "phase_ended", "fault", "process_started"})
DONE = "refused and not journalled"


def why_not(sender: str, document: Document, remote: bool) -> str:
    """Return why `sender` may not have this document journalled, "" if it may; `remote`: the model server is."""
    kind = kind_of(document)
    if kind in OWN or (isinstance(document, ClockSample) and document.method == "barcode"):
        return f"{kind}: only the recorder says this"
    if isinstance(document, ProcessStarted) and document.name != sender:
        return f"{kind} of {document.name[:60]}: not its own"
    if remote and sender == REMOTE and kind not in OF_MODEL:
        return f"{kind}: not what a model server says"
    return ""


def lost(hello: Hello, acked: int) -> Fault | None:
    """Return what the log must say of documents that were acknowledged and are not in it, None if there are none."""
    first, last = acked + 1, hello.first_unacked - 1
    if last < first:
        return None
    numbers = f"document {first}" if first == last else f"documents {first} to {last}"
    detail = f"{numbers} of {hello.process}: acknowledged by an earlier start of the recorder, and not in the journal"
    done = "none: that start refused them (then a fault says so), had them already, or the end of its journal is lost"
    return Fault(what=f"{last - first + 1} documents lost", detail=detail, done=done)


class Admission:
    """Takes peers in, and notices that two running processes use one name."""

    def __init__(self, hub: Hub, index: LogIndex, routes: Routes, first_start: bool) -> None:
        """`first_start`: no earlier start of a recorder can have acknowledged anything of this session."""
        self._hub, self._index, self._routes, self._first_start = hub, index, routes, first_start

    def hello(self, hello: Hello, now_ns: int) -> tuple[str, list[Fault]]:
        """Take a peer in, or say no to it; return why it is refused ("" if it is not) and what the log must say."""
        acked, before = self._index.acked.get(hello.process, 0), self._routes.client(hello.name)
        new = before is None or before.process != hello.process
        why = ""
        if hello.last_seq > len(self._index):  # after a power loss the log may lack what a peer has seen
            why = f"{hello.name} has read {hello.last_seq} entries of this log, which has {len(self._index)}"
        elif hello.first_unacked - 1 > acked and (self._first_start or not new):
            why = f"{hello.process} says that {hello.first_unacked - 1} of its documents are acknowledged: {acked} are"
        if why:
            self._hub.no(hello.name, why, "session")
            return why, []
        faults = []
        if before is not None and hello.process == before.replaced:  # it was there all the time, and has connected anew
            detail = f"{hello.process} and {before.process} both run and call themselves {hello.name}: end one of them"
            faults.append(Fault(what="name taken over", detail=detail, done="the one that connected last has the name"))
        if before is not None and new and not before.journalled:
            self._index.acked.pop(before.process, None)  # or ever new starts of a peer would fill the memory
        self._routes.hello(hello, now_ns)
        # What the sender was told is done stays done, also what left no trace in the journal: it has it no more.
        self._index.acked[hello.process] = max(acked, hello.first_unacked - 1)
        fault = lost(hello, acked)
        return "", faults if fault is None else [*faults, fault]


class Refusals:
    """Counts what is refused; of many of a kind only some are said."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def refused(self, what: str, detail: str) -> list[Fault]:
        """Count a refusal; return what is to be said of it."""
        count = self._counts[what] = self._counts.get(what, 0) + 1
        return [Fault(what=what, detail=f"{detail}; {count} so far", done=DONE)] if said(count) else []

    def sums(self) -> list[Fault]:
        """Return the last counts, where they were not said."""
        unsaid = {what: count for what, count in self._counts.items() if not said(count)}
        return [Fault(what=what, detail=f"{count} so far", done=DONE) for what, count in unsaid.items()]
