"""What was told about which planned presentation: sorts late, missing, repeated and out-of-order rows for an agent.

Used by all agents. A row counts once per planned presentation; a usable row that comes after a missing one for the
same presentation still counts. Rows of earlier proposals are accepted at any time. A usable row without a value (NaN)
for the unit that the agent needs is a missing one: the unit was not there, or its frames were lost.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from models.agents.types import Batch, Told


def _any_unit(row: Told) -> bool:
    return row.rate_hz is not None and bool(np.isfinite(row.rate_hz).any())


class Ledger:
    """Book of the planned presentations of one agent."""

    def __init__(self, units: int, holds: Callable[[Told], bool] | None = None) -> None:
        """Responses have `units` rates.

        `holds` says whether a row with rates has the one that is needed, else it is missing; None: any unit will do.
        """
        self._units, self._holds = units, holds or _any_unit
        self._current: int | None = None  # number of the open proposal, known from its first row
        self._closed = -1  # highest number of an earlier proposal
        self._plan: list[tuple[str, str]] = []  # (role, stimulus id) of each slot of the open proposal
        self._before: list[tuple[str, str]] = []  # the same of proposal `_closed`
        self._tail_from = 0
        # per proposal: bit k of the first set = slot k was told, of the second = told with usable rates
        self._told: dict[int, tuple[int, int]] = {}

    @property
    def main_told(self) -> bool:
        """Whether every slot before the tail of the open batch was told; True before the first batch."""
        if not self._plan:
            return True
        main = (1 << self._tail_from) - 1
        return self._told_slots & main == main

    @property
    def _told_slots(self) -> int:
        """Slots of the open proposal that were told, as bits."""
        return 0 if self._current is None else self._told[self._current][0]

    def open(self, batch: Batch) -> None:
        """Close the batch before and open `batch`."""
        if self._current is not None:
            self._closed, self._before = self._current, self._plan
        self._current = None
        self._plan = [(slot.role, batch.stimuli[slot.stimulus].id) for slot in batch.plan]
        self._tail_from = batch.tail_from

    def require_main_told(self) -> None:
        """Raise RuntimeError where the agent is asked too early."""
        if not self.main_told:
            told = (self._told_slots & ((1 << self._tail_from) - 1)).bit_count()
            raise RuntimeError(
                f"asked for the next batch with {told} of {self._tail_from} main presentations told; "
                "tell every one of them first, with rate_hz None where the response is missing"
            )

    def take(self, told: Sequence[Told]) -> list[tuple[Told, bool]]:
        """Return the rows that are news, each with whether it is of the open proposal's main part.

        A row in which what the agent needs has no value is returned as missing, with `rate_hz` None. Rows without a
        slot (fallback images) are no part of a plan and are left out. Raises ValueError, before anything is changed,
        for a row that fits no plan.
        """
        rows = [row for row in told if row.slot >= 0]
        current = self._current
        for row in rows:
            current = self._check(row, current)
        self._current = current
        out = []
        for row in map(self._known, rows):
            bit = 1 << row.slot
            any_row, usable = self._told.get(row.proposal, (0, 0))
            news = not usable & bit if row.rate_hz is not None else not any_row & bit
            self._told[row.proposal] = (any_row | bit, usable | bit if row.rate_hz is not None else usable)
            if news:
                out.append((row, row.proposal == current and row.slot < self._tail_from))
        return out

    def _known(self, row: Told) -> Told:
        """Return the row, or a missing one if what the agent needs has no value in it."""
        if row.rate_hz is None:
            return row
        return row if self._holds(row) else replace(row, rate_hz=None)

    def _check(self, row: Told, current: int | None) -> int | None:
        """Return the number of the open proposal after seeing `row`; raise ValueError where it fits no plan."""
        if row.rate_hz is not None and (row.rate_hz.shape != (self._units,) or np.isinf(row.rate_hz).any()):
            raise ValueError(
                f"proposal {row.proposal}, slot {row.slot}: rates {row.rate_hz} are not {self._units} numbers; "
                "a missing response has rate_hz None, a missing unit NaN"
            )
        if row.proposal > self._closed and current is None and self._plan:
            current = row.proposal
        if row.proposal > self._closed and row.proposal != current:
            raise ValueError(f"proposal {row.proposal} was told while {current} is open; tell in proposal order")
        plan = self._plan if row.proposal == current else self._before if row.proposal == self._closed else None
        if plan is None and row.proposal not in self._told:
            raise ValueError(f"proposal {row.proposal} is not one of this agent's")
        if plan is not None and (row.slot >= len(plan) or plan[row.slot] != (row.role, row.stimulus_id)):
            planned = plan[row.slot] if row.slot < len(plan) else "nothing"
            raise ValueError(
                f"proposal {row.proposal}, slot {row.slot}: told {row.role} {row.stimulus_id!r}, planned was {planned}"
            )
        return current

    def state(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "current": self._current,
            "closed": self._closed,
            "plan": [list(p) for p in self._plan],
            "before": [list(p) for p in self._before],
            "tail_from": self._tail_from,
            "told": {str(k): list(v) for k, v in self._told.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state."""
        self._current, self._closed = state["current"], state["closed"]
        self._plan = [(role, name) for role, name in state["plan"]]
        self._before = [(role, name) for role, name in state["before"]]
        self._tail_from = state["tail_from"]
        self._told = {int(k): (v[0], v[1]) for k, v in state["told"].items()}
