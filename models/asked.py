"""What the model server's fold remembers of a proposal while responses to it are still to come."""

from dataclasses import dataclass
from typing import Any

from rig.messages import Proposal, Role


@dataclass(frozen=True)
class Asked:
    """What the fold must remember of a proposal until everything in it was told."""

    proposal: int
    generation: int
    tail_from: int
    plan: tuple[tuple[Role, str], ...]
    """Role and stimulus id of each slot."""

    @staticmethod
    def of(proposal: Proposal) -> "Asked":
        """Take from a proposal what is needed."""
        plan = tuple((slot.role, proposal.stimuli[slot.stimulus].id) for slot in proposal.plan)
        return Asked(proposal.proposal, proposal.generation, proposal.tail_from, plan)

    def state(self) -> list[Any]:
        """Return JSON-able values."""
        return [self.proposal, self.generation, self.tail_from, [list(slot) for slot in self.plan]]

    @staticmethod
    def restored(state: list[Any]) -> "Asked":
        """Return what `state` was taken of."""
        number, generation, tail_from, plan = state
        return Asked(number, generation, tail_from, tuple((role, name) for role, name in plan))
