"""Several encoders of the same units as one: their mean response, and how much they disagree.

Disagreement picks what to learn from (Cowley et al. 2023); the mean is what Walker 2019 made images with.
"""

import hashlib
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from models.encoders.encoder import Encoder, Seen
from models.encoders.eye import Eye


class Ensemble:
    """Members share units and eye; an encoder itself."""

    def __init__(self, members: Sequence[Encoder]) -> None:
        """Join members. Raises ValueError where they differ in units or eye."""
        if not members:
            raise ValueError("an ensemble needs a member")
        for member in members[1:]:
            if member.units != members[0].units or member.eye != members[0].eye:
                raise ValueError(f"{member.name} has other units or another eye than {members[0].name}")
        self.members = tuple(members)

    @property
    def units(self) -> tuple[str, ...]:
        """Return the units' names."""
        return self.members[0].units

    @property
    def eye(self) -> Eye:
        """Return the eye."""
        return self.members[0].eye

    @property
    def name(self) -> str:
        """Return how many members there are and a hash over their names."""
        names = " ".join(member.name for member in self.members)
        return f"ensemble{len(self.members)}-{hashlib.sha256(names.encode()).hexdigest()[:12]}"

    def rates(self, x: Tensor, units: Tensor | None = None) -> Tensor:
        """Return the members' mean responses (n, unit)."""
        return self.each(x, units).mean(0)

    def each(self, x: Tensor, units: Tensor | None = None) -> Tensor:
        """Return the responses of every member (member, n, unit)."""
        return torch.stack([member.rates(x, units) for member in self.members])

    def spread(self, x: Tensor, units: Tensor | None = None) -> Tensor:
        """Return the sd over members (n, unit), in the unit of the responses; 0 for one member."""
        return self.each(x, units).std(0, correction=0)

    def disagreement(self, x: Tensor, scale: Tensor, units: Tensor | None = None) -> Tensor:
        """Return (n,): the median over pairs of members of the distance between their predicted response vectors.

        `scale` (unit,): what counts as one for each unit, such as its response sd: without it, units with many spikes
        would decide alone. Raises ValueError for one member.
        """
        if len(self.members) < 2:
            raise ValueError("one encoder cannot disagree with itself; an ensemble needs two members")
        found = self.each(x, units) / scale
        return torch.stack([(a - b).square().sum(1).sqrt() for a, b in combinations(found, 2)]).quantile(0.5, dim=0)

    def seen(self, unit: int) -> Seen:
        """Return the smallest rectangle with all that any member sees."""
        y0, y1, x0, x1 = zip(*(member.seen(unit) for member in self.members), strict=True)
        return Seen(min(y0), max(y1), min(x0), max(x1))

    def state(self) -> dict[str, Any]:
        """Return the members' states."""
        return {"kind": "ensemble", "members": [member.state() for member in self.members]}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of as many members. Raises ValueError."""
        if len(state["members"]) != len(self.members):
            raise ValueError(f"ensemble: the state has {len(state['members'])} members, this one {len(self.members)}")
        for member, one in zip(self.members, state["members"], strict=True):
            member.restore(one)
