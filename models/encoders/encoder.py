"""What every encoder offers, whatever network is inside: pictures in, mean responses of recorded units out.

Fitted to displayed frames (`Encoder.eye.see`); used by synthesis, agents and benches through this protocol alone.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.encoders.eye import Eye

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

BATCH = 16  # frames in one forward pass of `rates_of`


class Seen(NamedTuple):
    """Rows y0 to y1 and columns x0 to x1 of an encoder's input; the ends are not included."""

    y0: int
    y1: int
    x0: int
    x1: int


class Encoder(Protocol):
    """A model of recorded units: input pixels to mean response per presentation."""

    @property
    def units(self) -> tuple[str, ...]:
        """Return the units' names, in the order of the columns of `rates`."""
        ...

    @property
    def eye(self) -> Eye:
        """Return what turns displayed frames into this encoder's input."""
        ...

    @property
    def name(self) -> str:
        """Return what it is and a hash over everything that decides its output."""
        ...

    def rates(self, x: Tensor, units: Tensor | None = None) -> Tensor:
        """Return mean responses (n, unit) in the unit of the data it was fitted to, differentiable in `x`.

        `x` (n, channels, height, width): what `eye` returns. `units` (k,): columns wanted, in that order; None: all.
        At the mean gaze and the mean behaviour of the recording where the encoder knows of these.
        """
        ...

    def seen(self, unit: int) -> Seen:
        """Return the input pixels that can change the response of column `unit`; the whole picture if unknown."""
        ...

    def state(self) -> dict[str, Any]:
        """Return everything that decides its output: arrays and JSON-able values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an encoder that was built with the same settings. Raises ValueError."""
        ...


def rates_of(encoder: Encoder, frames: U8, batch: int = BATCH) -> F64:
    """Return the mean responses (n, unit) to displayed frames (n, y, x, rgb)."""
    rates = np.empty((len(frames), len(encoder.units)))
    with torch.inference_mode():
        for k in range(0, len(frames), batch):
            rates[k : k + batch] = encoder.rates(encoder.eye.see(frames[k : k + batch])).numpy()
    return rates
