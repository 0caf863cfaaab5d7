"""Rewards that a limit refused: the first is said at once, those that follow together, none is forgotten.

Pure: time is handed in. A limit that is reached holds for trial after trial; a fault for each would bury the others.
"""

from dataclasses import dataclass

from rig.messages import Fault

TOGETHER_NS = 60_000_000_000


@dataclass
class _Kept:
    """Refusals by one limit."""

    said_ns: int
    total: int = 1
    waiting: int = 0  # not said yet
    since_ns: int = 0  # first of those
    detail: str = ""  # newest of those


class Refusals:
    """Gathers refusals by limit; `due` gives the faults to be said now."""

    def __init__(self) -> None:
        """Start without refusals."""
        self._kept: dict[str, _Kept] = {}
        self._first: list[Fault] = []

    def add(self, limit: str, detail: str, now_host_ns: int) -> None:
        """Note one reward that `limit` refused."""
        kept = self._kept.get(limit)
        if kept is None:
            self._kept[limit] = _Kept(now_host_ns)
            self._first.append(_fault(detail, now_host_ns))
            return
        kept.total += 1
        kept.waiting += 1
        kept.since_ns = kept.since_ns if kept.waiting > 1 else now_host_ns
        kept.detail = detail

    def due(self, now_host_ns: int, everything: bool = False) -> list[Fault]:
        """Return what is to be said now; with `everything` also what would wait for more."""
        out, self._first = self._first, []
        for limit, kept in self._kept.items():
            if kept.waiting and (everything or now_host_ns - kept.said_ns >= TOGETHER_NS):
                many = f"{kept.waiting} more by {limit}, {kept.total} in all" if kept.waiting > 1 else "one more"
                out.append(_fault(f"{many}; the last: {kept.detail}", kept.since_ns))
                kept.said_ns, kept.waiting = now_host_ns, 0
        return out


def _fault(detail: str, since_host_ns: int) -> Fault:
    done = "not given; more of its kind are said together, once a minute and at the end"
    return Fault(what="reward refused", detail=detail, done=done, since_host_ns=since_host_ns)
