"""The eye of an encoder: displayed frames in, standardised pictures of the encoder's own size out.

Frames are what the screen showed, 8 bit, at the stimulus' resolution. An encoder sees them smaller: each of its pixels
is the mean of the frame over the area that it covers, shares of pixels included (for whole factors the block mean, as
Walker 2019 and SENSORIUM 2022 reduced 144 x 256 to 36 x 64). Then levels are standardised, (level - mean) / sd.

Pure; used by every encoder in training, and by synthesis, which needs the second half differentiable.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

U8 = npt.NDArray[np.uint8]

LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear red, green and blue (Rec. 709): what a grey eye takes of colours
HIGHEST = 255.0
BATCH = 64  # frames held in single precision at a time


@dataclass(frozen=True)
class Eye:
    """What an encoder takes in: (n, channels, height, width), standardised."""

    height: int
    """Rows of the encoder's input."""
    width: int
    """Columns of the encoder's input."""
    channels: int = 1
    """1: luminance; 3: red, green, blue."""
    mean: tuple[float, ...] = (127.5,)
    """Level that becomes 0: one number, or one for each channel."""
    sd: tuple[float, ...] = (63.75,)
    """Levels that become 1: one number, or one for each channel."""

    def __post_init__(self) -> None:
        """Check the numbers. Raises ValueError."""
        if self.channels not in (1, 3):
            raise ValueError(f"eye: {self.channels} channels; give 1 (luminance) or 3 (red, green, blue)")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"eye: {self.height} x {self.width} pixels; both must be at least 1")
        for name, numbers in (("mean", self.mean), ("sd", self.sd)):
            if len(numbers) not in (1, self.channels) or not np.isfinite(numbers).all():
                raise ValueError(f"eye: {name} is {numbers}; give one finite number, or one for each channel")
        if min(self.sd) <= 0:
            raise ValueError(f"eye: sd is {self.sd}; it must be above 0 (were the frames all of one level?)")

    @classmethod
    def for_frames(cls, frames: U8, height: int, width: int, channels: int = 1) -> "Eye":
        """Return the eye whose input has mean 0 and sd 1 over all pixels and channels of `frames` (n, y, x, rgb)."""
        plain = cls(height, width, channels, (0.0,), (1.0,))
        seen = plain.see(frames).double()
        return cls(height, width, channels, (float(seen.mean()),), (float(seen.std(correction=0)),))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns of one input."""
        return self.channels, self.height, self.width

    @property
    def levels_range(self) -> tuple[Tensor, Tensor]:
        """What levels 0 and 255 become: two tensors (1, channels, 1, 1)."""
        levels = torch.tensor([0.0, HIGHEST]).reshape(2, 1, 1, 1).expand(2, self.channels, 1, 1)
        seen = self.see_levels(levels)
        return seen[:1], seen[1:]

    def see(self, frames: U8) -> Tensor:
        """Return the input (n, channels, height, width) for frames (n, y, x, rgb), levels 0 to 255.

        Raises ValueError for frames of another shape of picture: nothing is stretched, cut or padded.
        """
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}; an eye sees uint8 (n, y, x, 3)")
        parts = [self._reduced(frames[k : k + BATCH]) for k in range(0, len(frames), BATCH)]
        levels = torch.cat(parts) if parts else torch.empty((0, *self.shape))
        return self.see_levels(levels)

    def see_levels(self, levels: Tensor) -> Tensor:
        """Return the input for levels 0 to 255 (n, channels, height, width) of this eye's size; differentiable."""
        mean = torch.tensor(self.mean, dtype=levels.dtype, device=levels.device).reshape(1, -1, 1, 1)
        sd = torch.tensor(self.sd, dtype=levels.dtype, device=levels.device).reshape(1, -1, 1, 1)
        return (levels - mean) / sd

    def levels(self, x: Tensor) -> Tensor:
        """Return the levels that become the input `x` (n, channels, height, width): undoes `see_levels`."""
        mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device).reshape(1, -1, 1, 1)
        sd = torch.tensor(self.sd, dtype=x.dtype, device=x.device).reshape(1, -1, 1, 1)
        return x * sd + mean

    def reduce(self, levels: Tensor) -> Tensor:
        """Return levels (n, channels, y, x) of any size, area-averaged to this eye's; differentiable.

        Raises ValueError where the shape of the picture is another.
        """
        rows, columns = int(levels.shape[2]), int(levels.shape[3])
        if abs(rows * self.width - columns * self.height) > max(rows, columns) / 2:  # half a pixel of the input
            raise ValueError(
                f"frames of {rows} x {columns} pixels do not have the shape of what this encoder sees"
                f" ({self.height} x {self.width}); cut or mask them first, or fit an encoder of their shape"
            )
        if (rows, columns) == (self.height, self.width):
            return levels
        down, across = (_areas(*sizes).to(levels) for sizes in ((rows, self.height), (columns, self.width)))
        return torch.einsum("hy,ncyx,wx->nchw", down, levels, across)

    def _reduced(self, frames: U8) -> Tensor:
        levels = torch.from_numpy(np.ascontiguousarray(frames, dtype=np.float32)).permute(0, 3, 1, 2)
        if self.channels == 1:
            levels = torch.einsum("ncyx,c->nyx", levels, torch.tensor(LUMINANCE))[:, None]
        return self.reduce(levels).contiguous()


@lru_cache(maxsize=32)
def _areas(fine: int, coarse: int) -> Tensor:
    """Return the share (coarse, fine) that each fine pixel has in each coarse one: rows sum to 1."""
    edges = np.linspace(0, fine, coarse + 1)
    pixel = np.arange(fine)
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    with torch.inference_mode(False):  # it is kept: whoever is the first to ask, gradients go through it later
        return torch.from_numpy(np.maximum(covered, 0) * (coarse / fine)).float()
