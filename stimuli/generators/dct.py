"""The generator "dct": code -> image without weights, by colour cosine patterns with natural amplitudes.

Images come out as finished frames (uint8, linear light) around the background level.
"""

import hashlib
import json

import numpy as np
import numpy.typing as npt

from stimuli.generators.basis import BasisGenerator
from stimuli.generators.generator import F32, U8, normal_prior
from stimuli.generators.soft_clip import checked_span, clipped_frame, drive_of, soft_clip_drive

# Opponent axes as rows over (R, G, B), orthonormal: luminance, red-green, blue-yellow. Opponent channels carry less
# contrast than luminance in natural scenes (Ruderman, Cronin & Chiao 1998); 0.35 each is a mild colourfulness.
AXES = np.array([[1, 1, 1], [1, -1, 0], [-1, -1, 2]], np.float64) / np.sqrt([[3.0], [2.0], [6.0]])
CHANNEL_WEIGHTS = np.array([1.0, 0.35, 0.35])
GENERATOR_VERSION = 1  # part of the name; raise it when decode changes


def cosine_basis(points: int, frequencies: int) -> npt.NDArray[np.float64]:
    """Return the first cosines of the DCT-II, (points, frequency), each with mean square 1."""
    phase = np.pi * (np.arange(points)[:, None] + 0.5) / points * np.arange(frequencies)
    scale = np.where(np.arange(frequencies) == 0, 1.0, np.sqrt(2.0))
    out: npt.NDArray[np.float64] = np.cos(phase) * scale
    return out


class DctGenerator(BasisGenerator):
    """Weighted sum of two-dimensional cosines in luminance and two opponent colours.

    A code holds, per colour axis, one coefficient for each pair of frequencies but the constant one; coefficients are
    on the unit scale and their 1/f**falloff amplitude is applied in `decode`. Every image has the background as its
    mean before clipping, and the RMS contrast `contrast` (over pixels and channels, as `limits` measures it): the
    length of the code has no effect, so that evolution cannot win by contrast alone. Clipping is soft; it takes off
    little contrast for images with normal level histograms and more for those with few strong features.
    """

    def __init__(
        self, height: int, width: int, frequencies: int, falloff: float, contrast: float, background: int = 128
    ) -> None:
        """Prepare the bases for images of `height` x `width` pixels; `contrast` is RMS, sd / 127.5."""
        if frequencies > min(height, width):
            raise ValueError(f"{frequencies} frequencies in {width} x {height} pixels; lower generator.frequencies")
        span = checked_span(contrast, background)
        settings = [GENERATOR_VERSION, height, width, frequencies, falloff, contrast, background]
        self.name = f"dct-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]}"
        self.latent_size = 3 * (frequencies**2 - 1)
        self.latent_shape: tuple[int, ...] = (3, frequencies**2 - 1)
        self.prior = normal_prior(self.latent_size)
        self._shape = (height, width)
        self._frequencies = frequencies
        self._background, self._span = float(background), span
        vertical, horizontal = cosine_basis(height, frequencies), cosine_basis(width, frequencies)
        self._vertical, self._horizontal = vertical.astype(np.float32), horizontal.T.astype(np.float32).copy()
        radius = np.hypot(*np.meshgrid(np.arange(frequencies), np.arange(frequencies), indexing="ij")).ravel()[1:]
        self._amplitude = CHANNEL_WEIGHTS[:, None] * radius**-falloff
        # sum of channel variances = 3 x the variance over pixels and channels, as the axes are orthonormal
        self._drive = float(np.sqrt(3.0)) * soft_clip_drive(contrast * 127.5 / span)

    def encode(self, frames: U8) -> F32:
        """Return codes (n, latent) of typical length of frames (n, y, x, rgb): the nearest pattern, but for contrast.

        Raises ValueError for frames of another shape.
        """
        codes = np.empty((len(frames), self.latent_size), np.float32)
        points, frequencies = self._shape[0] * self._shape[1], self._frequencies
        for k, frame in enumerate(frames):
            drive = drive_of(frame, self._shape, self._background, self._span)
            spectrum = self._vertical.T @ drive @ self._horizontal.T / points
            weights = AXES @ spectrum.reshape(3, frequencies**2)[:, 1:] / self._amplitude
            length = float(np.sqrt(np.sum(weights**2)))
            codes[k] = (weights * (self.prior.norm / length if length > 0 else 0)).ravel()
        return codes

    def _image(self, latent: F32) -> U8:
        frequencies, (height, _) = self._frequencies, self._shape
        weights = latent.astype(np.float64).reshape(3, -1) * self._amplitude  # any finite code can be squared
        power = float(np.sqrt(np.sum(np.square(weights))))
        spectrum = np.zeros((3, frequencies * frequencies), np.float32)
        if power > 0:  # the zero code is the background
            spectrum[:, 1:] = AXES.T @ (weights / power * self._drive)
        rows = self._vertical @ spectrum.reshape(3, frequencies, frequencies)
        x = np.asarray(rows.reshape(3 * height, frequencies) @ self._horizontal, np.float32)
        return clipped_frame(x, self._shape, self._background, self._span)
