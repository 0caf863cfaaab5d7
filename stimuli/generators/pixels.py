"""The generator "pixels": a code is a coarse grid of colours. The plainest code there is, to compare others with."""

import hashlib
import json

import numpy as np

from stimuli.generators.basis import BasisGenerator
from stimuli.generators.generator import F32, U8, normal_prior
from stimuli.generators.soft_clip import checked_span, clipped_frame, drive_of, soft_clip_drive

GENERATOR_VERSION = 1  # part of the name; raise it when decode changes


def spread(points: int, cells: int, smooth: bool) -> F32:
    """Return the share (points, cell) of each of `cells` equal stretches in each of `points` pixels; rows sum to 1.

    Smooth: linear between the middles of the stretches, constant beyond the outer ones.
    """
    at = (np.arange(points) + 0.5) / points * cells  # in cells
    out = np.zeros((points, cells))
    if not smooth:
        out[np.arange(points), np.minimum(at.astype(int), cells - 1)] = 1.0
        return out.astype(np.float32)
    left = np.clip(at - 0.5, 0, cells - 1)
    first = np.minimum(left.astype(int), cells - 2)
    out[np.arange(points), first] = 1 - (left - first)
    out[np.arange(points), first + 1] = left - first
    return out.astype(np.float32)


class PixelGenerator(BasisGenerator):
    """A grid of `side` x `side` colours, spread over the image.

    The mean colour is taken away and the RMS contrast is `contrast` before clipping, as with the other bases: the
    length of a code has no effect.
    """

    def __init__(
        self, height: int, width: int, side: int, smooth: bool, contrast: float, background: int = 128
    ) -> None:
        """Prepare images of `height` x `width` pixels; `contrast` is RMS, sd / 127.5."""
        if side > min(height, width):
            raise ValueError(f"a grid of {side} pixels in {width} x {height}; lower generator.side")
        self._span, self._background = checked_span(contrast, background), float(background)
        settings = [GENERATOR_VERSION, height, width, side, smooth, contrast, background]
        self.name = f"pixels-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]}"
        self.latent_shape: tuple[int, ...] = (3, side, side)
        self.latent_size = 3 * side**2
        self.prior = normal_prior(self.latent_size)
        self._shape = (height, width)
        self._down, self._across = spread(height, side, smooth), spread(width, side, smooth).T.copy()
        self._drive = soft_clip_drive(contrast * 127.5 / self._span)

    def encode(self, frames: U8) -> F32:
        """Return codes (n, latent) of typical length of frames (n, y, x, rgb): the nearest pattern, but for contrast.

        Raises ValueError for frames of another shape.
        """
        codes = np.empty((len(frames), self.latent_size), np.float32)
        up, back = np.linalg.pinv(self._down.astype(np.float64)), np.linalg.pinv(self._across.astype(np.float64))
        for k, frame in enumerate(frames):
            grid = up @ drive_of(frame, self._shape, self._background, self._span) @ back
            grid -= grid.mean()
            length = float(np.sqrt(np.sum(grid**2)))
            codes[k] = (grid * (self.prior.norm / length if length > 0 else 0)).ravel()
        return codes

    def _image(self, latent: F32) -> U8:
        height, width = self._shape
        top = np.abs(latent).max(initial=0)
        grid = (latent / top if top > 0 else latent).reshape(self.latent_shape)  # any finite code can be squared
        x = (self._down @ grid @ self._across).reshape(3 * height, width)
        x -= x.mean(dtype=np.float64).astype(np.float32)
        rms = float(np.sqrt(np.square(x, dtype=np.float64).mean()))
        if rms > 1e-6:  # one level everywhere is the background
            x *= np.float32(self._drive / rms)
        else:
            x[:] = 0
        return clipped_frame(x, self._shape, self._background, self._span)
