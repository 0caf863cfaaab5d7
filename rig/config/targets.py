"""What an evolution maximises or suppresses: one number from the rates of some units (docs/evolve.md).

Used by the config, by the evolve and confirm agents, and by the report, so that all of them mean the same number.
"""

from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from rig.config.part import Part
from stimuli.spec import Place

F64 = npt.NDArray[np.float64]

LEAST_KNOWN = 0.5  # of a group's weight: with fewer units its mean would be another thing


class Target(Part):
    """One objective: a unit, a group of units, a direction in the population, or the difference between two units."""

    name: str | None = Field(default=None, min_length=1, max_length=40, description="Its name in log and report.")
    unit: str | None = Field(default=None, description="The rate of this unit.")
    minus: str | None = Field(default=None, description="Less the rate of this one: the images that tell both apart.")
    units: tuple[str, ...] = Field(default=(), description="The mean rate of these units (of an electrode, an area).")
    weights: tuple[float, ...] = Field(default=(), description="Weights of that mean, above 0; none: all the same.")
    direction: dict[str, float] = Field(
        default={}, description="Population vector: the rates' length along this direction, unit: component."
    )
    suppress: bool = Field(default=False, description="Minimise it instead.")
    place: Place | None = Field(default=None, description="Where its images lie; null: as the phase says.")
    size_deg: float | None = Field(default=None, gt=0, description="Size of its images there, degrees; null: that one.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [k for k in ("unit", "units", "direction") if getattr(self, k)]
        if len(given) != 1:
            said = " and ".join(given) or "none of them"
            raise ValueError(f"a target is one of unit (and minus), units, direction; given: {said}")
        if self.minus is not None and (self.unit is None or self.minus == self.unit):
            raise ValueError("minus goes with unit, and is another one")
        if self.weights and (len(self.weights) != len(self.units) or min(self.weights) <= 0):
            raise ValueError(f"weights: {len(self.weights)} for {len(self.units)} units; give one above 0 for each")
        if len(set(self.units)) != len(self.units):
            raise ValueError("units: one of them is given twice")
        if self.direction and not any(self.direction.values()):
            raise ValueError("direction: all components are 0; it points nowhere")
        return self

    @property
    def title(self) -> str:
        """Name in log and report: the given one, or what it is."""
        if self.name is not None:
            return self.name
        names = ", ".join(self.named)
        what = names
        if self.minus is not None:
            what = f"{self.unit} - {self.minus}"
        elif self.units:
            what = f"mean of {names}"
        elif self.direction:
            what = f"direction {names}"
        what = what if len(what) <= 60 else f"{what[:50]} ... ({len(self.named)})"
        return f"suppress {what}" if self.suppress else what

    @property
    def named(self) -> tuple[str, ...]:
        """The units that it is about."""
        pair = (self.unit, self.minus)
        return (*(u for u in pair if u is not None), *self.units, *self.direction)

    def renamed(self, names: Mapping[str, str]) -> "Target":
        """Return the same objective of units with other names; raises KeyError for one that is not in `names`."""
        return self.model_copy(
            update={
                "unit": None if self.unit is None else names[self.unit],
                "minus": None if self.minus is None else names[self.minus],
                "units": tuple(names[u] for u in self.units),
                "direction": {names[u]: component for u, component in self.direction.items()},
            }
        )

    def value(self, rate_hz: F64, units: tuple[str, ...]) -> F64:
        """Return the objective (...,) of rates (..., unit) in the order of `units`; NaN where it cannot be told.

        A group's mean is over the units that have a value, if they hold half of the weight; all other kinds need
        every unit. Not negated for `suppress`: it is what the neurons did.
        """
        at = [units.index(name) for name in self.named]
        rates = rate_hz[..., at]
        if self.units:
            weight = np.asarray(self.weights or np.ones(len(at)), np.float64)
            known = np.where(np.isfinite(rates), weight, 0.0)
            held = known.sum(axis=-1)
            mean = (np.nan_to_num(rates) * known).sum(axis=-1) / np.where(held > 0, held, 1.0)
            out: F64 = np.where(held >= LEAST_KNOWN * weight.sum(), mean, np.nan)
            return out
        if self.direction:
            vector = np.array([self.direction[name] for name in self.named])
            out = (rates * (vector / np.linalg.norm(vector))).sum(axis=-1)
            return out
        out = rates[..., 0] - rates[..., 1] if self.minus is not None else rates[..., 0]
        return out

    @property
    def sign(self) -> float:
        """1, or -1 to suppress: score = sign x value, and higher scores are better."""
        return -1.0 if self.suppress else 1.0
