"""The phases of a config: which agent chooses the images, and how."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rig.config.control import ControlPhase
from rig.config.evolution import NaturalStart, SavedStart, Stop
from rig.config.generators import AnyGenerator, DctGenerator, encodes
from rig.config.inception import InceptionPhase
from rig.config.optimisers import AnyOptimiser, XDream, with_preset_moved
from rig.config.part import Part
from rig.config.placing import PLACE, Placing
from rig.config.revisit import RevisitPhase
from rig.config.targets import Target
from stimuli.spec import Place

REFERENCES, LEAST_REFERENCES = 0.15, 6  # share of the presentations of an evolution, and fewest images


class PresentPhase(Part):
    """Show a fixed set, blocked and randomised, with repeats."""

    agent: Literal["present"] = "present"
    images: tuple[str, ...] = Field(
        default=("natural",), min_length=1, description="Image banks: natural, gratings, or names of `banks`."
    )
    count: int = Field(default=20, ge=1, description="Images taken from the banks.")
    repeats: int = Field(default=5, ge=1, description="Presentations of each image.")
    blanks: int = Field(default=2, ge=0, description="Blank presentations in each repeat.")
    place: Placing | None = Field(default=None, description=PLACE)


class EvolvePhase(Part):
    """Evolve images for one target or several at once."""

    agent: Literal["evolve"] = "evolve"
    unit: str | None = Field(default=None, description="The unit whose response is maximised; one of responses.units.")
    units: tuple[str, ...] | Literal["proposed"] = Field(
        default=(), description="Several at once, one target each; proposed: those that an earlier phase proposes."
    )
    most_units: int = Field(default=4, ge=1, le=64, description="Of proposed units, the best so many.")
    targets: tuple[Target, ...] = Field(default=(), description="Other objectives: groups, directions, differences.")
    sizes_deg: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(), description="Evolve for each target at each of these image sizes, degrees."
    )
    optimiser: AnyOptimiser = XDream()
    start: Annotated[NaturalStart | SavedStart, Field(discriminator="type")] | None = Field(
        default=None, description="Codes to begin with; null: random ones."
    )
    generations: int = Field(default=20, ge=1, le=2000, description="Generations until the phase ends.")
    stop: Stop = Stop()
    references: int | None = Field(
        default=None, ge=0, le=200,
        description="Natural images in the tail of each generation; null: 15 % of its presentations, 6 at least.",
    )  # fmt: skip
    reshows: int = Field(
        default=2, ge=0, le=40, description="Best images of each target's generation before, shown again in the tail."
    )
    blanks: int = Field(default=2, ge=0, le=40, description="Blanks in each generation.")
    correct_drift: bool = Field(default=True, description="Scores are corrected for drift by the references.")
    generator: AnyGenerator = DctGenerator()
    place: Placing | None = Field(default=None, description=PLACE)

    @model_validator(mode="before")
    @classmethod
    def _older_files(cls, data: Any) -> Any:
        return with_preset_moved(data)

    @model_validator(mode="after")
    def _some_target(self) -> Self:
        given = [name for name in ("unit", "units", "targets") if getattr(self, name)]
        if len(given) != 1:
            said = " and ".join(given) or "none of them"
            raise ValueError(f"what it evolves for is one of unit, units, targets; given: {said}")
        titles = [target.title for target in self.objectives()]
        if twice := [title for title in titles if titles.count(title) > 1]:
            raise ValueError(f"two targets are called {twice[0]!r}; give one of them another name")
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.start is not None and getattr(self.optimiser, "start", "") == "as_published":
            raise ValueError("an optimiser that starts as published takes no start codes; leave out either start")
        if isinstance(self.start, NaturalStart) and not encodes(self.generator):
            raise ValueError(
                f"start: natural, but the generator {self.generator.type} cannot turn pictures into codes; leave start "
                "out, or choose a generator that can (docs/generators.md)"
            )
        if self.stop.plateau_generations is not None and not self.reshows:
            raise ValueError("stop.plateau_generations: re-shows tell a plateau, and reshows is 0; ask for some")
        return self

    def objectives(self, proposed: tuple[str, ...] = ()) -> tuple[Target, ...]:
        """Return its targets, one for each size; `proposed` stands for units that an earlier phase proposes."""
        units = proposed[: self.most_units] if self.units == "proposed" else self.units
        if self.unit is not None:
            units = (self.unit,)
        of = self.targets or tuple(Target(unit=unit) for unit in units)
        if not self.sizes_deg:
            return of
        return tuple(
            t.model_copy(update={"name": f"{t.title[:26]} at {size:g} deg", "size_deg": size})
            for t in of
            for size in self.sizes_deg
        )

    def renamed(self, names: Mapping[str, str]) -> "EvolvePhase":
        """Return the same phase for units with other names; raises KeyError for one that is not in `names`."""
        units = self.units if self.units == "proposed" else tuple(names[u] for u in self.units)
        unit = None if self.unit is None else names[self.unit]
        targets = tuple(target.renamed(names) for target in self.targets)
        return self.model_copy(update={"unit": unit, "units": units, "targets": targets})

    @property
    def target_count(self) -> int:
        """Number of its targets; of proposed units the most there can be."""
        return self.most_units * max(len(self.sizes_deg), 1) if self.units == "proposed" else len(self.objectives())

    def presentations(self) -> int:
        """Return how many presentations it asks for if no stop rule holds before; `most_units` of proposed units."""
        count = self.target_count
        total = self.generations * self.per_generation(count)
        total -= count * self.reshows  # the first generation has nothing to show again
        return total if self.stop.presentations is None else min(total, self.stop.presentations)

    def per_generation(self, targets: int) -> int:
        """Return how many presentations a generation of `targets` targets at one place takes."""
        own = targets * (self.optimiser.settings().population + self.reshows)
        return own + self.blanks + self.reference_count(targets)

    def reference_count(self, targets: int) -> int:
        """Return how many references each generation of `targets` targets shows."""
        if self.references is not None:
            return self.references
        others = targets * (self.optimiser.settings().population + self.reshows) + self.blanks
        return max(LEAST_REFERENCES, round(others * REFERENCES / (1 - REFERENCES)))


class ConfirmPhase(Part):
    """Show images that earlier phases fixed in fresh interleaved repeats: claims use these presentations only."""

    agent: Literal["confirm"] = "confirm"
    repeats: int = Field(default=20, ge=20, le=1000, description="Presentations of each image.")
    images: int = Field(
        default=2, ge=1, le=20, description="Evolved images of each target; the claim is about the first one."
    )
    references: int = Field(
        default=2, ge=1, le=20, description="Best references of each target; the claim compares with the first."
    )
    starts: int = Field(default=0, ge=0, le=20, description="Images of the first generation of each target.")
    blanks: int = Field(default=1, ge=0, le=40, description="Blanks in each repeat.")

    def presentations(self, targets: int) -> int:
        """Return how many presentations it asks for after evolutions of `targets` targets in all, at most."""
        return self.repeats * (targets * (self.images + self.references + self.starts) + self.blanks)


class MapPhase(Part):
    """Map receptive fields with sparse noise, and place the images of later phases by them."""

    agent: Literal["map"] = "map"
    place: Place | None = Field(
        default=None, description="Part of the screen to map: center_deg and size_deg; null: as `stimulus` says."
    )
    pattern: Literal["squares", "gratings"] = Field(
        default="squares", description="What is flashed: white and black squares, or squares of gratings."
    )
    squares_per_side: int = Field(default=10, ge=3, le=40, description="Squares along each side of the mapped part.")
    squares_per_frame: int = Field(
        default=10, ge=2, le=200, multiple_of=2, description="Squares in each frame, half of them white, half black."
    )
    presentations: int = Field(default=1500, ge=100, le=20_000, description="Frames shown, each one once.")
    closer: bool = Field(
        default=True, description="After a third, smaller squares around the fields found, if these lie together."
    )
    chance: float = Field(
        default=0.01, gt=0, le=0.2, description="Largest expected fraction of false ones among the fields found."
    )
    widest_interval: float = Field(
        default=0.25, gt=0, le=2,
        description="Largest half-width of the 95 % interval of a field's centre, in its diameters (4 sigma).",
    )  # fmt: skip
    around: tuple[str, ...] = Field(
        default=(), description="Units around whose fields together later images lie; none: all that have a field."
    )
    image_size: float = Field(
        default=1.5, gt=0.2, le=10, description="Side of images there, in diameters (4 sigma) of the field or fields."
    )

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.squares_per_frame > (most := (self.squares_per_side - 1) ** 2):
            raise ValueError(
                f"squares_per_frame: {self.squares_per_frame} of {most} positions (the shifted raster has one square "
                "less along each side); show fewer at once, or smaller ones"
            )
        return self


class ScreenPhase(Part):
    """Screen units with a reference set, and propose those that are worth an experiment."""

    agent: Literal["screen"] = "screen"
    images: tuple[str, ...] = Field(
        default=("natural",), min_length=1, description="Image banks: natural, gratings, or names of `banks`."
    )
    count: int = Field(default=36, ge=3, description="Images taken from the banks.")
    repeats: int = Field(default=10, ge=4, le=1000, description="Presentations of each image.")
    blanks: int = Field(default=4, ge=1, le=40, description="Blank presentations in each repeat.")
    chance: float = Field(
        default=0.01, gt=0, le=0.2, description="Largest expected fraction of false ones among the responsive units."
    )
    least_reliability: float = Field(
        default=0.5, ge=0, lt=1, description="Smallest split-half reliability (Spearman-Brown), 0 to 1, of a good unit."
    )
    least_driven_hz: float = Field(
        default=5.0, ge=0, description="Smallest rate above blank to the fifth of the images that drive it most."
    )
    lock_window: bool = Field(
        default=False, description="Later phases measure responses in the window found here; asks for responses.psth."
    )
    place: Placing | None = Field(default=None, description=PLACE)


AnyPhase = Annotated[
    PresentPhase | EvolvePhase | ConfirmPhase | MapPhase | ScreenPhase | InceptionPhase | ControlPhase | RevisitPhase,
    Field(discriminator="agent"),
]
