"""The optimisers of a config: which algorithm makes the next codes of an evolution, and its settings.

docs/optimisers.md says what each does. `settings()` gives what `stimuli.search.factory.build_optimiser` takes.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rig.config.part import Part
from stimuli.search.cholesky_cma import CholeskySettings
from stimuli.search.ga import PRESETS, GASettings
from stimuli.search.noise_aware import NoiseAwareSettings
from stimuli.search.separable_cma import SeparableSettings
from stimuli.search.sphere_cma import SphereSettings

Population = Annotated[int, Field(ge=4, le=400, description="Codes per generation.")]
Start = Annotated[
    Literal["matched", "as_published"],
    Field(description="matched: begin with typical codes of the generator; as_published: as the authors began."),
]
Nominates = Annotated[
    Literal["best_score", "center"],
    Field(description="What is bet on: codes with the best mean score, or the centre of the search first."),
]


class XDream(Part):
    """Genetic algorithm of XDream (Ponce 2019; Xiao & Kreiman 2020)."""

    type: Literal["xdream"] = "xdream"
    preset: Literal["plos2020", "actmax", "invivo"] = Field(
        default="invivo", description="Published settings of the algorithm."
    )
    population: int | None = Field(
        default=None, ge=2, le=400, description="Codes per generation; null: that of the preset."
    )

    def settings(self) -> GASettings:
        """Return the settings of the search."""
        chosen = PRESETS[self.preset]
        if self.population is None:
            return chosen
        return replace(chosen, population=self.population, conserve=min(chosen.conserve, self.population - 1))


class GaussianCMA(Part):
    """What the CMA-ES variants that draw around a mean are told."""

    type: Literal["cholesky_cma", "separable_cma"]
    population: Population = 40
    start: Start = "matched"
    sigma: float | None = Field(
        default=None,
        gt=0,
        description="First step size; null: the sd of the generator's codes; as_published: 3 (cholesky) or 2.",
    )
    nominates: Nominates = "best_score"


class CholeskyCMA(GaussianCMA):
    """Cholesky CMA-ES as Wang & Ponce (2022) used it."""

    type: Literal["cholesky_cma"] = "cholesky_cma"

    def settings(self) -> CholeskySettings:
        """Return the settings of the search."""
        return CholeskySettings(self.population, self.start, self.sigma, self.nominates)


class SphereCMA(Part):
    """CMA-ES on a sphere of codes of one length (Wang & Ponce 2022)."""

    type: Literal["sphere_cma"] = "sphere_cma"
    population: Population = 40
    start: Start = "matched"
    norm: float | None = Field(
        default=None, gt=0, description="Length of all codes; null: that of the generator's codes, as_published: 300."
    )
    schedule: Literal["exp", "inv"] = Field(
        default="exp", description="How the search narrows: exp 50 to 7.33 deg; inv 15 + 1 / (.0017 k + .0146) deg."
    )
    schedule_generations: int = Field(
        default=75, ge=2, le=2000, description="Generations over which it narrows; then it stays."
    )
    nominates: Nominates = "best_score"

    def settings(self) -> SphereSettings:
        """Return the settings of the search."""
        return SphereSettings(
            self.population, self.start, self.norm, self.schedule, self.schedule_generations, self.nominates
        )


class SeparableCMA(GaussianCMA):
    """Separable CMA-ES: one step size per number of the code (Ros & Hansen 2008)."""

    type: Literal["separable_cma"] = "separable_cma"

    def settings(self) -> SeparableSettings:
        """Return the settings of the search."""
        return SeparableSettings(self.population, self.start, self.sigma, self.nominates)


class NoiseAware(Part):
    """Our own search for noisy responses (docs/noise_aware.md)."""

    type: Literal["noise_aware"] = "noise_aware"
    population: int = Field(default=40, ge=6, le=400, description="Codes per generation, repeats among them.")
    angle_deg: float = Field(
        default=50.0, gt=0, lt=90, description="How far from the centre codes lie under noise, and at first."
    )
    least_angle_deg: float = Field(
        default=5.0, gt=0, lt=90, description="How far they lie at last when responses are reliable."
    )
    remeasured: int = Field(
        default=1, ge=0, le=20, description="Of each generation, promising codes that are shown again."
    )
    norm_range: float = Field(
        default=1.5, ge=1, le=4, description="Largest factor of a code's length, relative to a typical one."
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.settings()  # refuses what does not go together
        return self

    def settings(self) -> NoiseAwareSettings:
        """Return the settings of the search."""
        return NoiseAwareSettings(
            self.population, self.angle_deg, self.least_angle_deg, self.remeasured, self.norm_range
        )


AnyOptimiser = Annotated[
    XDream | CholeskyCMA | SphereCMA | SeparableCMA | NoiseAware, Field(discriminator="type")
]


def with_preset_moved(data: Any) -> Any:
    """Return the fields of an evolve phase with `preset` where it belongs: older files have it at the phase itself."""
    if not isinstance(data, dict) or "preset" not in data:
        return data
    if "optimiser" in data:
        raise ValueError("preset is part of optimiser: {type: xdream, preset: ...}; remove the one at the phase")
    rest = {key: value for key, value in data.items() if key != "preset"}
    return {**rest, "optimiser": {"type": "xdream", "preset": data["preset"]}}
