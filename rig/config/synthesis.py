"""How images are synthesised from an encoder; `models.synthesis` computes, docs/synthesis.md explains."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rig.config.part import Part

HIGHEST = 255.0


class Synthesis(Part):
    """Settings of one synthesis. Steps, blur and preconditioning are those of Walker et al. 2019."""

    iterations: int = Field(default=1000, ge=1, le=100_000, description="Gradient steps of each image.")
    step_from: float = Field(
        default=3.0, gt=0, le=1000, description="First step: mean change of a pixel, relative to 0.1/255 of 60 levels."
    )
    step_to: float = Field(default=0.125, gt=0, le=1000, description="Last step, relative likewise; linear between.")
    blur_from_px: float = Field(default=1.5, ge=0, le=20, description="First blur (sd of a Gaussian) after each step.")
    blur_to_px: float = Field(default=0.01, ge=0, le=20, description="Last blur (sd); linear between.")
    preconditioner: float = Field(
        default=0.1,
        ge=0,
        le=2,
        description="Exponent e (relative): frequency f of the gradient is divided by max(1, |f|² ** e); 0: none.",
    )
    mean_level: float = Field(default=128.0, gt=0, lt=HIGHEST, description="Mean level (0-255) of the displayed frame.")
    contrast: float = Field(
        default=0.25, gt=0, le=1, description="RMS contrast (sd / 127.5) of the displayed frame."
    )
    rule: Literal["equal", "at_most"] = Field(
        default="equal", description="Whether frames have that contrast, or may have less (a bound on the norm)."
    )
    frame_px: tuple[int, int] | None = Field(
        default=None, description="Rows and columns of the displayed frames; null: those of the encoder's input."
    )
    together: int = Field(default=8, ge=1, le=4096, description="Images computed at once: one step of the work.")

    @model_validator(mode="after")
    def _reachable(self) -> "Synthesis":
        most = (self.mean_level * (HIGHEST - self.mean_level)) ** 0.5 / (HIGHEST / 2)
        if self.contrast > most:
            raise ValueError(
                f"contrast {self.contrast:g} is out of reach at mean_level {self.mean_level:g}: black and white pixels"
                f" alone reach {most:.3f}; lower contrast, or choose a mean_level nearer to 127.5"
            )
        return self


class ImagesBench(Part):
    """What every bench of images from a model needs to know."""

    weights: Path = Field(description="Folder of the SENSORIUM 2022 checkpoints, or the file of a model.")
    units: int = Field(default=64, ge=1, description="Units, drawn at random among the model's.")
    starts: tuple[Literal["published", "display", "natural"], ...] = Field(
        default=("display", "natural", "display", "natural"), min_length=2, description="One image of a unit for each."
    )
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=2, ge=1, le=256, description="Threads of the processor.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where images are computed; auto: the GPU where torch has one."
    )
    level_mean: float = Field(default=110.0, ge=0, le=HIGHEST, description="Mean level (0-255) of the training images.")
    level_sd: float = Field(default=60.0, gt=0, le=HIGHEST, description="Sd (levels, 0-255) of the training images.")
    settings: Synthesis = Synthesis()


class SynthesisBench(ImagesBench):
    """What one run of `stimloop bench synthesis` does."""

    other: Path | None = Field(default=None, description="File of a model of the same units, trained independently.")
    singles: int = Field(default=2, ge=1, description="Images that are also made one at a time.")

    @model_validator(mode="after")
    def _enough(self) -> "SynthesisBench":
        if self.singles > self.units * len(self.starts):
            raise ValueError("singles: no more than images (units x starts)")
        return self


class AgreementBench(ImagesBench):
    """What one run of `stimloop bench agreement` does."""

    images: Path = Field(description="Folder of zip files of photographs, all of one size.")
    photographs: int = Field(default=5000, ge=100, description="Photographs at most; each network gets half of them.")
    pieces: int = Field(default=2, ge=1, le=100, description="Pictures that are cut from each photograph.")
    patterns: int = Field(
        default=0, ge=0, le=1_000_000, description="Other pictures (sums of Gabors, smooth noise); each side gets half."
    )
    epochs: int = Field(default=13, ge=3, le=1000, description="Passes of a training through its pictures, at most.")
    learned: int | None = Field(
        default=None, ge=1, description="Units that a network learns together, with those of the images; null: no more."
    )
    filters: int = Field(default=16, ge=1, le=512, description="Filters of each layer of the cores.")
    layers: int = Field(default=3, ge=1, le=8, description="Layers of the cores.")
    members: int = Field(default=1, ge=1, le=16, description="Networks on each side; what they predict is their mean.")
    rounds: int = Field(
        default=0, ge=0, le=20, description="Times that a network's own images are shown to the units, and learned."
    )
    out: Path | None = Field(default=None, description="Folder for the networks' files.")

    @model_validator(mode="after")
    def _learns_all(self) -> "AgreementBench":
        if self.learned is not None and self.learned < self.units:
            raise ValueError(f"learned: {self.learned} of {self.units} units; images are of units that were learned")
        return self
