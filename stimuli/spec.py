"""What a stimulus is: small frozen descriptions that travel in documents and stand in the log.

Used by the agents (which choose), the renderer (which draws) and the view (which files). A spec never holds pixels.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """What every stimulus description shares: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Place(Spec):
    """Where images lie and how large they are; the alternative to the config's `stimulus`."""

    center_deg: tuple[float, float] = Field(description="Centre (right, up) from the screen's centre, degrees.")
    size_deg: float = Field(gt=0, description="Side of the image, degrees of visual angle.")


class Blank(Spec):
    """The background alone, shown and logged like an image."""

    type: Literal["blank"] = "blank"


class Grating(Spec):
    """Sinusoidal grating in a soft-edged disc that fills the image square."""

    type: Literal["grating"] = "grating"
    orientation_deg: float = Field(description="Of the bars, 0 = horizontal, counter-clockwise, degrees.")
    cycles_per_deg: float = Field(gt=0, description="Spatial frequency, cycles per degree of visual angle.")
    phase_deg: float = Field(default=0.0, description="Phase at the image centre, degrees.")
    contrast: float = Field(default=1.0, ge=0, le=1, description="Michelson contrast, 0 to 1.")


class BankImage(Spec):
    """A picture of an image bank, cropped square and resampled to the image size."""

    type: Literal["bank"] = "bank"
    bank: str = Field(description='Name of the bank: "natural" (shipped photographs) or a folder given in the config.')
    name: str = Field(description="Name of the picture within the bank.")


class LatentImage(Spec):
    """An image decoded by a generator; its finished frame travels beside the spec in the Proposal."""

    type: Literal["latent"] = "latent"
    generator: str = Field(description="Name and hash of the generator that decoded it.")
    row: int = Field(ge=0, description="Row of this stimulus in the Proposal's `frames` and `latents`.")


Level = Annotated[int, Field(ge=0, le=255)]


class Square(Spec):
    """A uniform square among `Patches`."""

    fill: Literal["level"] = "level"
    center_deg: tuple[float, float] = Field(description="Its centre (right, up) from the image's centre, degrees.")
    size_deg: float = Field(gt=0, description="Its side, degrees of visual angle.")
    level: Level | tuple[Level, Level, Level] = Field(
        description="Grey level, or red, green and blue, 0-255, linear light."
    )


class GratingSquare(Spec):
    """A square of a sinusoidal grating around the background level among `Patches`."""

    fill: Literal["grating"] = "grating"
    center_deg: tuple[float, float] = Field(description="Its centre (right, up) from the image's centre, degrees.")
    size_deg: float = Field(gt=0, description="Its side, degrees of visual angle.")
    orientation_deg: float = Field(description="Of the bars, 0 = horizontal, counter-clockwise, degrees.")
    cycles_per_deg: float = Field(gt=0, description="Spatial frequency, cycles per degree of visual angle.")
    phase_deg: float = Field(default=0.0, description="Phase at the square's centre, degrees.")
    contrast: float = Field(default=1.0, ge=0, le=1, description="Michelson contrast, 0 to 1.")


class Patches(Spec):
    """Squares on the background, for mapping receptive fields; where two overlap the later one is seen."""

    type: Literal["patches"] = "patches"
    squares: tuple[Annotated[Square | GratingSquare, Field(discriminator="fill")], ...] = Field(min_length=1)


AnySpec = Annotated[Blank | Grating | BankImage | LatentImage | Patches, Field(discriminator="type")]


HELD_OUT = "held_out"  # among the figures of a stimulus: 1 for a picture that a model of its phase is never fitted to


class Stimulus(Spec):
    """One stimulus of a proposal: an identity that is unique in the session, and what it is."""

    id: str = Field(min_length=1, max_length=80, description='Unique in the session, for example "g003-c17".')
    spec: AnySpec
    parents: tuple[str, ...] = Field(default=(), description="Identities of the stimuli it was recombined from.")
    how: str = Field(
        default="", max_length=200, description='How its agent made it; "" for what was chosen, not made (a picture).'
    )
    figures: dict[str, float] = Field(default={}, description="Figures of that, by name, for example mutated genes.")
