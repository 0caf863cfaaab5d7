"""What one run of `stimloop bench mei` does."""

from pydantic import Field, model_validator

from rig.config.encoders import Architecture, NormalisedCore, Training
from rig.config.part import Part

MOST_TWICE = 1600  # of the 3,720 pictures that there are, 500 only score


class MeiBench(Part):
    """Simulated simple and complex cells, single presentations, networks fitted to them, and their best images."""

    units: int = Field(default=96, ge=2, le=2000, description="Simulated cells, simple and complex in turn.")
    scored: int = Field(default=48, ge=2, le=2000, description="Of these, how many images are made for: the first.")
    presentations: int = Field(default=2000, ge=50, le=3000, description="Pictures, each shown once.")
    window_s: float = Field(default=0.2, gt=0, le=5, description="Time in which spikes are counted, s.")
    contrast: float = Field(default=0.12, ge=0.02, le=0.5, description="RMS contrast (sd / 127.5) of every image made.")
    members: int = Field(default=5, ge=1, le=32, description="Networks; what they predict is their mean.")
    validation: float = Field(default=0.1, gt=0, lt=1, description="Share of pictures, 0 to 1, that say when to stop.")
    noise_free: bool = Field(default=False, description="Whether networks are fitted to the mean responses instead.")
    iterations: int = Field(default=200, ge=10, le=5000, description="Steps of each image.")
    starts: int = Field(default=4, ge=1, le=64, description="Noise images from which each image begins.")
    seed: int = Field(default=0, ge=0, description="Of cells, pictures and spikes; networks count on from 3.")
    twice: bool = Field(
        default=False, description="Whether the cells are recorded a second time, with other pictures: do images agree?"
    )
    architecture: Architecture = Architecture(core=NormalisedCore())
    training: Training = Training(batch=64, laplacian=6.0, decays=2, patience=4, most_epochs=40)

    @model_validator(mode="after")
    def _scores_some(self) -> "MeiBench":
        if self.scored > self.units:
            raise ValueError(f"scored: {self.scored} of {self.units} units; give no more than units")
        if self.twice and self.presentations > MOST_TWICE:
            raise ValueError(f"presentations: {MOST_TWICE} at most with twice; pictures of both recordings differ")
        return self
