"""Which units a loop makes images for, and which images: the part in which inception and control differ.

`Making` asks a maker while blocks are on the screen. The inception agent's own is here, that of the control agent in
`models.control.making`.
"""

from collections.abc import Generator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from models.inception.images import images_for
from models.inception.learner import Judged, Learner, judged
from models.inception.made import Made

if TYPE_CHECKING:
    from models.agents.inception import Inception


class Maker(Protocol):
    """Chooses units and makes images; generators yield after each step of about 10 ms and change nothing else."""

    def judge(self, agent: "Inception", learner: Learner) -> Generator[None, None, tuple[Judged, ...]]:
        """Return all units, first those that images are made for; `learner` is newer than the agent's own."""
        ...

    def sets(self, agent: "Inception") -> int:
        """Return how many sets of images there will be, once units are chosen."""
        ...

    def make(self, agent: "Inception", rng: np.random.Generator) -> Generator[None, None, tuple[Made, ...]]:
        """Return the next few sets after those that the agent has."""
        ...


class MostExciting:
    """One set for each chosen unit: its most exciting image and the controls (Walker 2019)."""

    def judge(self, agent: "Inception", learner: Learner) -> Generator[None, None, tuple[Judged, ...]]:
        """Return the units: the best predicted of the reliable ones are chosen."""
        phase = agent.phase
        wanted = [not phase.units or name in phase.units for name in agent.units]
        yield
        return judged(learner, wanted, phase.least_score, phase.least_oracle, phase.most_units)

    def sets(self, agent: "Inception") -> int:
        """Return the number of chosen units."""
        return len(agent.chosen)

    def make(self, agent: "Inception", rng: np.random.Generator) -> Generator[None, None, tuple[Made, ...]]:
        """Return the images of the next few units."""
        if agent.gabors is None:
            raise RuntimeError("the grid of Gabors was not searched yet; it comes first")
        some = slice(len(agent.made), len(agent.made) + agent.phase.units_at_once)
        units = [one.unit for one in agent.chosen[some]]
        return (yield from images_for(agent, units, agent.gabors[some], rng))
