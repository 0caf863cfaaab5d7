"""Simulated units that are of no use, as every recording has them: to test that a screening finds them out."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from stimuli.spec import Place

if TYPE_CHECKING:
    from models.truth import Population

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

CONSTANT_HZ = 6.0
UNTUNED_HZ = 30.0
SEEN = 2 / 255  # of the range of light: less is a uniform field


class Useless:
    """A population some of whose units are replaced by constant or untuned ones."""

    def __init__(self, cells: "Population", useless: Mapping[str, Literal["constant", "untuned"]]) -> None:
        self.cells = cells
        self._constant = np.array([useless.get(name) == "constant" for name in cells.units])
        self._untuned = np.array([useless.get(name) == "untuned" for name in cells.units])

    @property
    def units(self) -> tuple[str, ...]:
        """Return the unit names."""
        return self.cells.units

    @property
    def receptive_fields(self) -> tuple[Place, ...]:
        """Return where each cell would see; the replaced ones have no field."""
        return self.cells.receptive_fields

    def rate_hz(self, image: F32) -> F64:
        """Return the rates (unit,), spikes/s, for `image` (y, x, 3), linear light 0 to 1."""
        rates = np.where(self._constant | self._untuned, CONSTANT_HZ, self.cells.rate_hz(image))
        if float(np.ptp(image)) > SEEN:
            rates[self._untuned] = UNTUNED_HZ
        return rates
