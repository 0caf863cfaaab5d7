"""An encoder that works on fewer pixels than its eye takes in: which networks learn in less time.

Pictures are resampled by a Lanczos kernel, and not averaged over squares: the gradient of an average is the same at
every pixel of its square, so that pictures made by ascent would have edges, which take contrast and drive nothing.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.encoders.encoder import Encoder, Seen
from models.encoders.eye import Eye

LOBES = 3  # of the kernel, either side


class Resampled:
    """The encoder `inside`, which sees what this one's eye takes in with fewer pixels; an encoder itself."""

    def __init__(self, inside: Encoder, eye: Eye) -> None:
        """Let `inside` see what `eye` takes in. Raises ValueError where levels would mean something else to it."""
        if (inside.eye.mean, inside.eye.sd, inside.eye.channels) != (eye.mean, eye.sd, eye.channels):
            raise ValueError(f"{inside.name} standardises levels in another way than the eye that it is given")
        self.inside, self.eye = inside, eye

    @property
    def units(self) -> tuple[str, ...]:
        """Return the units' names."""
        return self.inside.units

    @property
    def name(self) -> str:
        """Return the name of the encoder inside and the pixels of this one's eye."""
        return f"{self.inside.name}-of-{self.eye.height}x{self.eye.width}"

    def rates(self, x: Tensor, units: Tensor | None = None) -> Tensor:
        """Return mean responses (n, unit) to what the eye takes in (n, channels, height, width)."""
        return self.inside.rates(resampled(x, self.inside.eye), units)

    def seen(self, unit: int) -> Seen:
        """Return the pixels of this one's eye that lie in what is seen inside, kernel included."""
        found, (_, height, width) = self.inside.seen(unit), self.eye.shape
        down, across = height / self.inside.eye.height, width / self.inside.eye.width
        more_y, more_x = LOBES * max(down, 1.0), LOBES * max(across, 1.0)
        return Seen(
            max(0, int(np.floor(found.y0 * down - more_y))),
            min(height, int(np.ceil(found.y1 * down + more_y))),
            max(0, int(np.floor(found.x0 * across - more_x))),
            min(width, int(np.ceil(found.x1 * across + more_x))),
        )

    def state(self) -> dict[str, Any]:
        """Return the state of the encoder inside."""
        return self.inside.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of the encoder inside. Raises ValueError."""
        self.inside.restore(state)


def resampled(x: Tensor, eye: Eye) -> Tensor:
    """Return pictures (n, channels, y, x) with the pixels of `eye`; differentiable."""
    if x.shape[2:] == eye.shape[1:]:
        return x
    down, across = (_kernel(int(x.shape[2 + axis]), eye.shape[1 + axis]).to(x) for axis in (0, 1))
    return down @ x @ across.T


@lru_cache(maxsize=32)
def _kernel(fine: int, coarse: int) -> Tensor:
    """Return the share (coarse, fine) that each fine pixel has in each coarse one; rows sum to 1, at the border too."""
    step = fine / coarse
    middles = (np.arange(coarse) + 0.5) * step - 0.5
    away = (np.arange(fine)[None] - middles[:, None]) / max(step, 1.0)
    weights = np.where(np.abs(away) < LOBES, np.sinc(away) * np.sinc(away / LOBES), 0.0)
    with torch.inference_mode(False):  # it is kept: whoever is the first to ask, gradients go through it later
        return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)).float()
