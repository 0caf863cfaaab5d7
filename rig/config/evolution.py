"""Where an evolution starts and when it stops."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rig.config.part import Part


class NaturalStart(Part):
    """Begin with the natural images that were best before, or any where none were shown, as codes of the generator."""

    type: Literal["natural"] = "natural"
    images: int = Field(default=10, ge=1, le=400, description="Pictures encoded; random codes fill up the rest.")


class SavedCodes(Part):
    """What was taken from another session, so that the log of this one needs no other."""

    generator: str = Field(description="Name and hash of the generator that decoded them.")
    target: str
    generation: int = Field(description="Newest generation that they were shown in, from 0.")
    stimulus_ids: tuple[str, ...]
    scores: tuple[float | None, ...] = Field(description="Mean value of the target, spikes/s.")
    size: int = Field(ge=1, description="Numbers of each code.")
    frame_px: tuple[int, int] | None = Field(default=None, description="Height and width of its frames, pixels.")
    contrast: float | None = Field(default=None, description="RMS contrast of those, sd / 127.5; null: as decoded.")
    background: int | None = Field(default=None, ge=0, le=255, description="Grey level around them.")
    float32_base64: str = Field(description="The codes, best first: float32, little-endian, row by row, in base64.")


class SavedStart(Part):
    """Begin with the best codes of an evolution of another session."""

    type: Literal["saved"] = "saved"
    session: Path = Field(description="That session's folder; read when this config is, and never again.")
    phase: int | None = Field(default=None, ge=1, description="Number of its phase, from 1; null: its last evolution.")
    target: str | None = Field(default=None, description="Its target; null: the same as here, or its only one.")
    images: int = Field(default=10, ge=1, le=400, description="Codes that are taken; random codes fill up the rest.")
    codes: tuple[SavedCodes, ...] = Field(default=(), description="Filled in by the program: do not give it.")


class Stop(Part):
    """When an evolution ends before its generations are over."""

    plateau_generations: int | None = Field(
        default=None, ge=2, le=500,
        description="Ends when for every target the re-shows of so many generations are not better than those of as "
        "many before, by more than the error of the difference; null: never.",
    )  # fmt: skip
    presentations: int | None = Field(default=None, ge=1, description="Budget of presentations of the phase.")
    unusable_share: float | None = Field(
        default=None, gt=0, le=1,
        description="Ends when this share of the last presentations was not usable: the animal stopped looking.",
    )  # fmt: skip
    unusable_over: int = Field(default=100, ge=10, le=10_000, description="How many presentations that share is over.")
