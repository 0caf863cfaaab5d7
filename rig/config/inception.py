"""The phase `inception` of a config: a model is fitted while natural images are shown, and makes images to show back.

After Walker et al. 2019: docs/inception.md.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rig.config.encoders import AnyEncoder, BankEncoder, NetworkEncoder
from rig.config.part import Part
from rig.config.placing import PLACE, Placing

Control = Literal["linear", "gabor", "gabor_optimised", "natural_masked", "natural"]
CONTROLS: tuple[Control, ...] = ("linear", "gabor", "gabor_optimised", "natural_masked", "natural")


class LoopPhase(Part):
    """What both kinds of loop share: natural images, a model fitted to them, and images of it that are shown back."""

    images: tuple[str, ...] = Field(
        default=("tiles",), min_length=1, description="Image banks: tiles, natural, or names of `banks`."
    )
    train: int = Field(default=400, ge=40, le=20_000, description="Images that the model is fitted to.")
    train_repeats: int = Field(default=1, ge=1, le=20, description="Presentations of each of them.")
    test: int = Field(
        default=30, ge=10, le=1000, description="Held-out images, chosen at the start: the score is of these alone."
    )
    test_repeats: int = Field(default=8, ge=4, le=200, description="Presentations of each of them.")
    block: int = Field(default=50, ge=10, le=1000, description="Presentations between two fits.")
    blanks: int = Field(default=1, ge=0, le=40, description="Blanks in each block.")
    least_score: float = Field(
        default=0.3, ge=-1, lt=1, description="Smallest correlation with mean responses to held-out images, -1 to 1."
    )
    least_oracle: float = Field(
        default=0.2, ge=-1, lt=1,
        description="Smallest correlation, -1 to 1, of single responses to held-out images with the mean of others.",
    )  # fmt: skip
    starts: int = Field(default=4, ge=1, le=64, description="Starts of the ascent for each image; the best one counts.")
    iterations: int = Field(default=200, ge=20, le=5000, description="Steps of the ascent from each start.")
    waiting: int = Field(
        default=50, ge=10, le=1000, description="Presentations of held-out images while images are made for some units."
    )
    repeats: int = Field(default=12, ge=6, le=1000, description="Presentations of each image that is shown back.")
    chance: float = Field(
        default=0.05, gt=0, le=0.2, description="Largest expected fraction of false ones among the tests that count."
    )
    place: Placing | None = Field(default=None, description=PLACE)
    encoder: AnyEncoder = BankEncoder()

    @property
    def fits_counts(self) -> bool:
        """Whether its model cannot be fitted to responses below 0."""
        return isinstance(self.encoder, NetworkEncoder) and self.encoder.training.loss == "poisson"

    def natural_presentations(self) -> int:
        """Return how many presentations the natural images take, blanks included."""
        images = self.train * self.train_repeats + self.test * self.test_repeats
        return images + -(-images // self.block) * self.blanks

    def shown_back(self, groups: int, images: int) -> int:
        """Return how many presentations follow, at most, where `images` are made in `groups`, one behind each block."""
        finish = self.encoder.finish_blocks if isinstance(self.encoder, NetworkEncoder) else 0
        return (3 + finish + groups) * (self.waiting + self.blanks) + self.repeats * (images + self.blanks)


class InceptionPhase(LoopPhase):
    """Fit an encoding model to natural images, make the most exciting image of good units, show it with controls."""

    agent: Literal["inception"] = "inception"
    units: tuple[str, ...] = Field(
        default=(), description="Units that images may be made for; none named: all of responses.units."
    )
    most_units: int = Field(default=8, ge=1, le=500, description="Images are made for the best so many of them.")
    contrast: float = Field(
        default=0.12, ge=0.02, le=0.5, description="RMS contrast (sd / 127.5) of every image that is shown back."
    )
    controls: tuple[Control, ...] = Field(
        default=CONTROLS, min_length=1, description="Images that the most exciting one is compared with."
    )
    contrast_tuning: tuple[Annotated[float, Field(ge=0.005, le=0.5)], ...] = Field(
        default=(),
        description="RMS contrasts (sd / 127.5) at which the most exciting image, and the best natural one where it is "
        "a control, are shown too. They are compared with nothing: the report draws their curve.",
    )
    grid_step: int = Field(
        default=1, ge=1, le=6,
        description="Every so many-th place of the published grid of Gabors along each axis; 1: all 72,800 Gabors.",
    )  # fmt: skip

    units_at_once: int = Field(
        default=8, ge=1, le=500,
        description="Units whose images are made behind one block of `waiting`; fewer where the encoder takes long.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name in ("images", "units", "controls"):
            refuse_twice(name, getattr(self, name))
        refuse_twice("contrast_tuning", [f"{one:g}" for one in (self.contrast, *self.contrast_tuning)])
        return self

    def made_images(self, units: int) -> int:
        """Return how many images it makes, at most, with `units` scored units."""
        tuned = len(self.contrast_tuning) * (1 + ("natural" in self.controls))
        return self._chosen(units) * (1 + len(self.controls) + tuned)

    def presentations(self, units: int) -> int:
        """Return how many presentations it asks for, at most, with `units` scored units."""
        groups = -(-self._chosen(units) // self.units_at_once)
        return self.natural_presentations() + self.shown_back(groups, self.made_images(units))

    def _chosen(self, units: int) -> int:
        return min(self.most_units, len(self.units) or units)


def refuse_twice(name: str, given: Sequence[str]) -> None:
    """Raise ValueError where something is given twice in the field `name`."""
    if twice := [one for one in given if given.count(one) > 1]:
        raise ValueError(f"{name}: {twice[0]!r} is given twice; keep one")


MOST_FRAME_BYTES = 256 << 20  # of the images of one block: what the log takes at once (`rig.encoding`)
