"""What can go wrong on the animal's LSL wires, by name, and the outlets that do it.

`animal.wire_faults.switches` names them: "name@seconds" is thrown once, so many seconds after the first block; names
alone take turns, the first after 5 s, the next 5 s later, round and round. docs/wires/lsl.md tells users.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pylsl

from rig.animal.wire import WireError

F64 = npt.NDArray[np.float64]
FIRST_S = 5.0
EVERY_S = 5.0
JUMP_S = 20.0
# Name: seconds that it lasts.
SWITCHES = {
    "clock_jump": 1.0,  # time stamps are 20 s ahead
    "drop_rows": 0.2,  # rows are made and never sent
    "stop_restart": 1.0,  # the streams end; they are back later under another source_id
    "stale_burst": 3.0,  # rows are kept back, then come all at once, the oldest first
}


@dataclass(frozen=True)
class _Planned:
    name: str
    start_s: float
    every_s: float | None  # again and again, None: once


def _plan(switches: Sequence[str]) -> list[_Planned]:
    """Read the names; raises WireError."""
    planned, turns = [], [s for s in switches if "@" not in s]
    for text in switches:
        name, mark, when = text.partition("@")
        if name not in SWITCHES:
            cure = f"choose from {', '.join(SWITCHES)} in animal.wire_faults.switches, or another animal.wire"
            raise WireError(f"{text!r} is no fault switch of the LSL wires", cure)
        try:
            start_s = float(when) if mark else FIRST_S + EVERY_S * turns.index(text)
        except ValueError as error:
            raise WireError(f"{text!r} names no seconds after @", "write, for example, clock_jump@12.5") from error
        planned.append(_Planned(name, start_s, None if mark else EVERY_S * len(turns)))
    return planned


class LslFaults:
    """Which faults are on at a time."""

    def __init__(self, switches: Sequence[str] = ()) -> None:
        """Plan `switches`; raises WireError."""
        self._planned = _plan(switches)

    def on(self, elapsed_s: float) -> frozenset[str]:
        """Return the names of the faults that are on, `elapsed_s` after the first block."""
        found = set()
        for planned in self._planned:
            since_s = elapsed_s - planned.start_s
            if planned.every_s is not None and since_s >= 0:
                since_s %= planned.every_s
            if 0 <= since_s < SWITCHES[planned.name]:
                found.add(planned.name)
        return frozenset(found)


class Outlets:
    """The LSL streams of one wire, with the faults that act on all of them."""

    def __init__(self, makers: Sequence[Callable[[], pylsl.StreamOutlet]], switches: Sequence[str] = ()) -> None:
        """Open one stream by each of `makers`; they are called again when the streams come back after a stop."""
        self._faults = LslFaults(switches)
        self._makers = makers
        self._outlets = [make() for make in makers]
        self._held: list[tuple[int, Any, list[float]]] = []
        self._start_s: float | None = None
        self._on: frozenset[str] = frozenset()
        self.restarts = 0

    def turn(self, now_s: float) -> None:
        """Look what is on at this time of the sender's clock; before the rows of each block."""
        self._start_s = now_s if self._start_s is None else self._start_s
        before, self._on = self._on, self._faults.on(now_s - self._start_s)
        if "stop_restart" in self._on and self._outlets:
            self._outlets, self._held = [], []
        elif "stop_restart" not in self._on and not self._outlets:
            self._outlets = [make() for make in self._makers]
            self.restarts += 1
        if "stale_burst" in before and "stale_burst" not in self._on and self._outlets:
            for k, rows, stamps in self._held:
                self._outlets[k].push_chunk(rows, stamps)
            self._held = []

    def push(self, stream: int, rows: Any, stamp_s: F64 | Sequence[float], must: bool = False) -> None:
        """Send rows (row, channel) with stamps (row,); rows that `must` arrive are never dropped, only late."""
        if not len(rows) or not self._outlets or ("drop_rows" in self._on and not must):
            return
        ahead_s = JUMP_S if "clock_jump" in self._on else 0.0
        stamps = [float(s) + ahead_s for s in stamp_s]
        if "stale_burst" in self._on:
            self._held.append((stream, rows, stamps))
        else:
            self._outlets[stream].push_chunk(rows, stamps)

    def close(self) -> None:
        """End all streams."""
        self._outlets = []
