"""The phase `revisit` of a config: images that an inception phase made on another day, shown again to the same units.

Which unit is which the user says, from stack registration or waveforms; responses to shared images only verify it:
docs/across_days.md.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rig.config.part import Part
from stimuli.spec import Place


class SharedImage(Part):
    """A natural image that was held out that day, and what the units did."""

    id: str
    bank: str
    name: str
    frame_sha256: str = Field(description="Of the frame as it was on the screen.")


class MadeThen(Part):
    """An image that was made that day and shown back."""

    id: str
    unit: str = Field(description="The unit that it was made for, by its name that day.")
    kind: str = Field(description="mei or a control.")
    of: tuple[str, ...] = Field(description="Natural images that it was made of.")
    mean_hz: float = Field(description="Mean over that day's repeats, spikes/s (or the unit of the responses).")
    error_hz: float | None = Field(description="Standard error of it.")
    presentations: int = Field(description="How many repeats that mean is over.")
    frame_png_base64: str = Field(description="The frame before the gamma table: PNG, in base64.")


class Taken(Part):
    """What was taken from another session, so that the log of this one needs no other."""

    session: str = Field(description="Name of that session's folder.")
    phase: int = Field(ge=0, description="Index of its inception phase.")
    place: Place | None = Field(description="Where its images lay; null: where `stimulus` of this config says.")
    units: tuple[str, ...] = Field(description="Its scored units, in the order of the means.")
    shared: tuple[SharedImage, ...]
    means_base64: str = Field(description="Mean rates (image, unit): float64, little-endian, row by row, in base64.")
    images: tuple[MadeThen, ...]


class RevisitPhase(Part):
    """Show an earlier day's held-out images, verify which units are the same, then show the images made for them."""

    agent: Literal["revisit"] = "revisit"
    session: Path = Field(description="That day's session folder; read when this config is, and never again.")
    phase: int | None = Field(default=None, ge=1, description="Number of its inception phase; null: its last one.")
    units: dict[str, str] = Field(default={}, description="Unit of that day: the same unit today.")
    table: Path | None = Field(
        default=None, description="CSV file instead of `units`, with the columns before and today."
    )
    shared: int = Field(default=40, ge=10, le=1000, description="Held-out images of that day that are shown again.")
    shared_repeats: int = Field(default=8, ge=2, le=200, description="Presentations of each of them.")
    repeats: int = Field(default=12, ge=6, le=1000, description="Presentations of each image that was made then.")
    blanks: int = Field(default=1, ge=0, le=40, description="Blanks in each block.")
    chance: float = Field(
        default=0.05, gt=0, le=0.2, description="Largest expected fraction of false ones among matches and tests."
    )
    taken: Taken | None = Field(default=None, description="Filled in by the program: do not give it.")

    @model_validator(mode="after")
    def _one_table(self) -> Self:
        if bool(self.units) == (self.table is not None) and self.taken is None:
            raise ValueError("which unit is which is said by one of units and table; give one of them")
        today = list(self.units.values())
        if twice := [name for name in today if today.count(name) > 1]:
            raise ValueError(f"units: {twice[0]!r} stands for two units of that day; it can be only one")
        if self.units and len(self.units) < LEAST_PAIRS:
            raise ValueError(
                f"units: {len(self.units)} named; to tell a match from chance it takes {LEAST_PAIRS}, name more that "
                "were recorded on both days"
            )
        return self

    @property
    def place(self) -> Place | None:
        """Where its images lie: where they lay that day."""
        return None if self.taken is None else self.taken.place

    def presentations(self) -> int:
        """Return how many presentations it asks for, at most: when every unit is verified."""
        if self.taken is None:
            return self.shared_repeats * (self.shared + self.blanks)
        made = sum(image.unit in self.units for image in self.taken.images)
        shared = self.shared_repeats * (len(self.taken.shared) + self.blanks)
        return shared + self.repeats * (made + self.blanks)


LEAST_PAIRS = 3  # of which the null of other combinations is made


def mistakes(phase: RevisitPhase, where: str, units: tuple[str, ...], banks: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with a phase at `where`, for scored `units` and known `banks`."""
    for name in [name for name in phase.units.values() if name not in units]:
        yield f"{where}.units: {name!r} is not in responses.units ({', '.join(units)}); add it or choose another"
    if phase.taken is None:
        return
    for name in [name for name in phase.units if name not in phase.taken.units]:
        there = ", ".join(phase.taken.units)
        yield f"{where}.units: {name!r} was no unit of session {phase.taken.session} (there were: {there})"
    if not any(image.unit in phase.units for image in phase.taken.images):
        made = ", ".join(dict.fromkeys(image.unit for image in phase.taken.images))
        yield f"{where}.units: none of the units that images were made for that day ({made}) is named; name one"
    known = set(banks)
    for bank in sorted({one.bank for one in phase.taken.shared} - known):
        yield f"{where}.session: its held-out images are of bank {bank!r}; give it under banks as that day"
