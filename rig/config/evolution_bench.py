"""What one run of `stimloop bench evolve` is: a unit, a generator, an optimiser, a noise and a seed.

Made by `rig.bench.evolve`, computed by `models.evolution_bench.run`, and kept in the checkpoint file of a long bench.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rig.config.generators import AnyGenerator
from rig.config.part import Part

Noise = Literal["none", "poisson", "gain0.2", "gain0.5"]
NOISES: tuple[Noise, ...] = ("none", "poisson", "gain0.2", "gain0.5")
Population = Literal["v1", "v4", "deep"]
POPULATIONS: tuple[Population, ...] = ("v1", "v4", "deep")
OURS = "noise_aware"
SIDE = 112
"""Images of the bench are squares of so many pixels, as the V4 models take them."""


class BenchUnit(Part):
    """A simulated neuron and how it answers natural images; all rates are mean counts of one presentation."""

    name: str
    population: Population
    number: int = Field(ge=0, description="V1 cell, V4 neuron or deep readout of that number.")
    models: Path | None = Field(default=None, description="Folder of the compact models (v4).")
    session: str | None = Field(default=None, description="Recording session of the compact model (v4).")
    layer: int = Field(default=7, ge=0, le=15, description="Block of the network that is read out (deep).")
    center: float = Field(default=0.0, description="Mean raw output over the natural images (deep), relative.")
    spread: float = Field(default=1.0, gt=0, description="Spread (sd) of the raw output over natural images (deep).")
    a: float = Field(default=1.0, description="Relative: rate = softplus(a output + b), counts; not used by v1.")
    b: float = Field(default=0.0, description="The b of that equation, a relative number.")
    natural_mean: float = Field(default=0.0, description="Mean rate over the natural images, counts of 1 presentation.")
    natural_best: float = Field(default=0.0, description="Highest rate of a natural image, counts of 1 presentation.")
    natural_rates: tuple[float, ...] = Field(
        default=(), description="Rates of natural images at even steps from the weakest to the best: the references."
    )
    remarks: tuple[str, ...] = Field(default=(), description="What is unusual about it.")


class BenchRun(Part):
    """One run: everything that decides its result."""

    unit: BenchUnit
    generator: AnyGenerator
    label: str = Field(description="What the generator is called in rows and figures.")
    noise: Noise
    optimiser: str
    seed: int = Field(ge=0)
    presentations: int = Field(ge=40, description="Budget; references and repeats are counted.")
    reference_share: float = Field(
        default=0.15, ge=0, le=0.5, description="Fraction of our optimiser's presentations that show references."
    )
    disturbed: bool = Field(default=False, description="20 % of responses dropped, 10 % late, gain drifting.")

    @property
    def key(self) -> str:
        """Return what tells this run from the others of a bench."""
        parts = (self.unit.name, self.label, self.noise, self.optimiser, str(self.seed))
        return "|".join((*parts, str(self.presentations), "disturbed" if self.disturbed else ""))
