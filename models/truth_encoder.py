"""Ground-truth cells as an encoder: what a perfect model of the simulated animal would say.

For benches and tests: synthesis through this encoder finds the true best image under exactly the limits that a fitted
model's image has to keep, so that the two can be compared. Cells given by filters and a formula (models.truth_shapes,
Gabor cells included); the V1 twin needs none, its network is an encoder already.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.encoders.encoder import Seen
from models.encoders.eye import HIGHEST, Eye
from models.truth import GREY, unit_names
from models.truth_mixed import reach_deg
from models.truth_optimum import partials
from models.truth_shapes import Cell, Terms, terms_of

F64 = npt.NDArray[np.float64]


class TruthEncoder:
    """Rates (n, unit) of `cells`, spikes/s, for grey input on pixels at `azimuth`, `elevation` (y, x), degrees.

    Light is level / 255: for a screen of gamma 1.
    """

    def __init__(self, cells: Sequence[Cell], azimuth: F64, elevation: F64) -> None:
        self.cells = tuple(cells)
        self.eye = Eye(azimuth.shape[0], azimuth.shape[1], 1, (GREY * HIGHEST,), (HIGHEST,))
        self.units = unit_names(len(self.cells))
        self._azimuth, self._elevation = azimuth, elevation
        self.terms: tuple[Terms, ...] = tuple(terms_of(cell, azimuth, elevation) for cell in self.cells)
        self._linear = [torch.from_numpy(t.linear.reshape(len(t.linear), -1)).float() for t in self.terms]
        self._squares = [torch.from_numpy(t.squares.reshape(len(t.squares), -1)).float() for t in self.terms]

    @property
    def name(self) -> str:
        """Return what it is and a hash over cells and pixels."""
        pixels = self._azimuth.tobytes() + self._elevation.tobytes()
        return f"truth-{hashlib.sha256(repr(self.cells).encode() + pixels).hexdigest()[:12]}"

    def rates(self, x: Tensor, units: Tensor | None = None) -> Tensor:
        """Return rates (n, unit) for inputs (n, 1, y, x), differentiable in `x`."""
        which = range(len(self.cells)) if units is None else units.tolist()
        about = x.flatten(1)  # light around grey: what the eye makes of levels
        square = about * about
        rates = [
            _formula(about @ self._linear[k].T, square @ self._squares[k].T, self.terms[k].rate_hz) for k in which
        ]
        return torch.stack(rates, dim=1)

    def seen(self, unit: int) -> Seen:
        """Return the pixels within three sigma of the cell's windows."""
        cell = self.cells[unit]
        reach = reach_deg(cell)
        columns = np.flatnonzero(np.abs(self._azimuth[0] - cell.azimuth_deg) <= reach)
        rows = np.flatnonzero(np.abs(self._elevation[:, 0] - cell.elevation_deg) <= reach)
        return Seen(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)

    def state(self) -> dict[str, Any]:
        """Return its name: the cells decide everything."""
        return {"name": self.name}

    def restore(self, state: dict[str, Any]) -> None:
        """Check that the state is of the same cells. Raises ValueError."""
        if state["name"] != self.name:
            raise ValueError(f"truth: this state is of {state['name']}, the cells are {self.name}")


class _Formula(torch.autograd.Function):
    """A cell's formula, with slopes from its values at nudged filter outputs."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, q: Tensor, rate_hz: Callable[[F64, F64], F64]) -> Tensor:
        outputs = z.detach().double().numpy(), q.detach().double().numpy()
        slopes = partials(rate_hz, *outputs)
        ctx.save_for_backward(*(torch.from_numpy(s).to(z.dtype) for s in slopes))
        return torch.from_numpy(rate_hz(*outputs)).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        in_z, in_q = ctx.saved_tensors
        return grads[0][:, None] * in_z, grads[0][:, None] * in_q, None


_formula: Callable[[Tensor, Tensor, Callable[[F64, F64], F64]], Tensor] = _Formula.apply
