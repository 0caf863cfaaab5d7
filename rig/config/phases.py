"""The phases of a config: which agent chooses the images, and how."""

from typing import Annotated, Literal

from pydantic import Field

from rig.config.part import Part


class DctGenerator(Part):
    """Images as weighted colour cosine patterns with a 1/f amplitude: needs no weights."""

    type: Literal["dct"] = "dct"
    frequencies: int = Field(default=10, ge=2, le=64, description="Cosine frequencies along each axis.")
    falloff: float = Field(default=0.75, ge=0, le=3, description="Amplitude falls as 1 / frequency ** falloff.")
    contrast: float = Field(default=0.3, gt=0, le=1, description="RMS contrast of every image, sd / 127.5.")


class PresentPhase(Part):
    """Show a fixed set, blocked and randomised, with repeats."""

    agent: Literal["present"] = "present"
    images: tuple[str, ...] = Field(
        default=("natural",), min_length=1, description="Image banks: natural, gratings, or names of `banks`."
    )
    count: int = Field(default=20, ge=1, description="Images taken from the banks.")
    repeats: int = Field(default=5, ge=1, description="Presentations of each image.")
    blanks: int = Field(default=2, ge=0, description="Blank presentations in each repeat.")


class EvolvePhase(Part):
    """Evolve images for one unit with the XDream genetic algorithm."""

    agent: Literal["evolve"] = "evolve"
    unit: str = Field(description="The unit whose response is maximised; one of responses.units.")
    preset: Literal["plos2020", "actmax", "invivo"] = Field(
        default="invivo", description="Published settings of the algorithm."
    )
    generations: int = Field(default=20, ge=1, le=2000, description="Generations until the phase ends.")
    references: int = Field(default=6, ge=0, le=200, description="Natural images in the tail of each generation.")
    reshows: int = Field(
        default=2, ge=0, le=40, description="Best images of the generation before, shown again in the tail."
    )
    blanks: int = Field(default=2, ge=0, le=40, description="Blanks in each generation.")
    generator: DctGenerator = DctGenerator()


AnyPhase = Annotated[PresentPhase | EvolvePhase, Field(discriminator="agent")]
