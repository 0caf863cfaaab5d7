"""Faults of a fold that may come by the hundred: the first of a kind at once, the others together, none forgotten.

Pure: time comes from the journal's Ticks.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from rig.messages import Document, Fault

TOGETHER_NS = 10_000_000_000
NOT_UNDERSTOOD = "document not understood"
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

    def guarded(self, what: str, step: Callable[[], None]) -> bool:
        """Do a step of a fold; return whether it could be done. If not, it is left out, and a fault names `what`.

        A document that raises must end neither the session nor its replay: both leave out the same.
        """
        try:
            step()
        except MemoryError:
            raise  # the machine's state, not the document's: a replay would not see it
        except Exception as error:  # noqa: BLE001 - what a document may raise cannot be listed
            # No addresses: a replay says the same words.
            words = re.sub(r"0x[0-9a-f]+", "0x...", f"{type(error).__name__}: {error}")[:200]
            done = "left out of the responses; it stays in the journal, and the session goes on"
            self.add(NOT_UNDERSTOOD, f"{what}: {words}", done)
            return False
        return True

    def tick(self, now_host_ns: int) -> None:
        """Take note of the time."""
        self._now_ns = now_host_ns

    def new_boot(self) -> None:
        """Forget the time: it begins anew, and what was said last was said before it began."""
        self._now_ns = None
        self._said_ns = dict.fromkeys(self._said_ns)

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
