"""Faults of a fold that may come by the hundred: the first of a kind at once, the others together, none forgotten.

Pure: time comes from the journal's Ticks.
"""

from dataclasses import dataclass, field

from rig.messages import Document, Fault

TOGETHER_NS = 10_000_000_000
NAMED = 20  # details of so many are spelt out in one fault; all presentations are named always


@dataclass
class _Pending:
    details: list[str] = field(default_factory=list)
    count: int = 0
    done: str = ""
    since_host_ns: int | None = None
    presentations: list[int] = field(default_factory=list)


class FaultBatch:
    """Gathers faults by kind; `due` gives those to be said now."""

    def __init__(self) -> None:
        """Start without faults."""
        self._now_ns: int | None = None
        self._said_ns: dict[str, int | None] = {}
        self._pending: dict[str, _Pending] = {}

    def add(
        self,
        what: str,
        detail: str,
        done: str,
        presentations: tuple[int, ...] = (),
        since_host_ns: int | None = None,
    ) -> None:
        """Note a fault of the kind `what`. Of several said together the first one's `since_host_ns` counts."""
        pending = self._pending.setdefault(what, _Pending(done=done, since_host_ns=since_host_ns))
        pending.count += 1
        if len(pending.details) < NAMED:
            pending.details.append(detail)
        pending.presentations += [p for p in presentations if p not in pending.presentations]

    def tick(self, now_host_ns: int) -> None:
        """Take note of the time."""
        self._now_ns = now_host_ns

    def due(self, everything: bool = False) -> list[Document]:
        """Return what is to be said now; with `everything` also what would wait for more of its kind."""
        out: list[Document] = []
        for what in list(self._pending):
            if not everything and what in self._said_ns:
                said, now = self._said_ns[what], self._now_ns
                if said is None:  # said before the first tick: the wait begins with the first one
                    self._said_ns[what] = now
                    continue
                if now is None or now < said + TOGETHER_NS:
                    continue
            pending = self._pending.pop(what)
            more = f"; and {pending.count - NAMED} more" if pending.count > NAMED else ""
            out.append(
                Fault(
                    what=what,
                    detail="; ".join(pending.details) + more,
                    done=pending.done,
                    since_host_ns=pending.since_host_ns,
                    presentations=tuple(pending.presentations),
                )
            )
            self._said_ns[what] = self._now_ns
        return out
