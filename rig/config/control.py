"""The phase `control` of a config: images that a fitted model makes to set the responses of a population.

After Bashivan, Kar & DiCarlo 2019: docs/control.md.
"""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from rig.config.inception import InceptionPhase, LoopPhase, refuse_twice

Goal = Literal["stretch", "one_hot"]
GOALS_AT_ONCE = 4  # whose images are made while one block is shown
NATURALS = 2  # natural images beside those of each goal: the best by what was measured, and by what is predicted


class ControlPhase(LoopPhase):
    """Fit an encoding model to natural images, make images that control a set of sites, show them with natural ones."""

    agent: Literal["control"] = "control"
    sites: tuple[str, ...] = Field(
        default=(), description="Units that may be controlled; none named: all of responses.units."
    )
    most_sites: int = Field(default=12, ge=1, le=200, description="The best predicted so many of them are the set.")
    most_alike: float = Field(
        default=0.7, gt=0, le=1,
        description="Largest correlation, 0 to 1, of the predicted responses of two sites to natural images; of two "
        "that are more alike the better predicted one is taken. 1: all are taken.",
    )  # fmt: skip
    goals: tuple[Goal, ...] = Field(
        default=("stretch", "one_hot"),
        description="For each site of the set. stretch: as high as possible; one_hot: high, and all others low.",
    )
    targets: dict[str, dict[str, Annotated[float, Field(ge=-20, le=20)]]] = Field(
        default={},
        description="Name of a further goal: unit and the z-scored response that it is to have, for two units or more.",
    )
    made: int = Field(default=3, ge=1, le=20, description="Different images for each goal; claims are about the first.")
    starts: int = Field(default=8, ge=1, le=64, description="Starts of the ascent for each goal.")
    contrast: float | None = Field(
        default=None, ge=0.02, le=0.5,
        description="RMS contrast (sd / 127.5) of images made; null: the median of the natural images.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for name in ("images", "sites", "goals"):
            refuse_twice(name, getattr(self, name))
        if not self.goals and not self.targets:
            raise ValueError("goals: none, and no targets; give at least one")
        if self.made > self.starts:
            raise ValueError(f"made: {self.made} images from {self.starts} starts; give as many starts at least")
        for name, wanted in self.targets.items():
            if len(wanted) < 2:
                raise ValueError(f"targets.{name}: give the z-scored responses of two units or more")
            if not name.replace("_", "").isalnum() or len(name) > 24 or name in get_args(Goal):
                raise ValueError(f"targets.{name}: a name is 1 to 24 letters, digits and _, and not that of a goal")
        return self

    @property
    def named(self) -> tuple[str, ...]:
        """Return every unit that it names."""
        return (*self.sites, *(unit for wanted in self.targets.values() for unit in wanted))

    def loop(self) -> InceptionPhase:
        """Return the loop that it runs: its natural images, its fits, its choice among sites, its repeats."""
        shared = {name: getattr(self, name) for name in LoopPhase.model_fields}
        return InceptionPhase(**shared, units=self.sites, most_units=self.most_sites, controls=("natural",))

    def made_images(self, units: int) -> int:
        """Return how many images it shows back, at most, with `units` scored units."""
        return (self._chosen(units) * len(self.goals) + len(self.targets)) * (self.made + NATURALS)

    def presentations(self, units: int) -> int:
        """Return how many presentations it asks for, at most, with `units` scored units."""
        groups = len(self.goals) * -(-self._chosen(units) // GOALS_AT_ONCE) + len(self.targets)
        return self.natural_presentations() + self.shown_back(groups, self.made_images(units))

    def _chosen(self, units: int) -> int:
        return min(self.most_sites, len(self.sites) or units)
