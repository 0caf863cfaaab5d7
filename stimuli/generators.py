"""Generators: latent code -> image. This one needs no weights: colour cosine patterns with natural amplitudes.

Called by the evolve agent. Images come out as finished frames (uint8, linear light) around the background level.
"""

import hashlib
import json
from typing import Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

# Opponent axes as rows over (R, G, B), orthonormal: luminance, red-green, blue-yellow. Opponent channels carry less
# contrast than luminance in natural scenes (Ruderman, Cronin & Chiao 1998); 0.35 each is a mild colourfulness.
AXES = np.array([[1, 1, 1], [1, -1, 0], [-1, -1, 2]], np.float64) / np.sqrt([[3.0], [2.0], [6.0]])
CHANNEL_WEIGHTS = np.array([1.0, 0.35, 0.35])
GENERATOR_VERSION = 1  # part of the name; raise it when decode changes


class Generator(Protocol):
    """Turns codes into images."""

    name: str
    """Kind and a short hash of all settings."""
    latent_size: int

    def start(self, count: int, rng: np.random.Generator) -> F32:
        """Return start codes (count, latent) of the right scale for this generator."""
        ...

    def decode(self, latents: F32) -> U8:
        """Return frames (n, y, x, rgb) of codes (n, latent); each frame depends on its own code only."""
        ...


def cosine_basis(points: int, frequencies: int) -> npt.NDArray[np.float64]:
    """Return the first cosines of the DCT-II, (points, frequency), each with mean square 1."""
    phase = np.pi * (np.arange(points)[:, None] + 0.5) / points * np.arange(frequencies)
    scale = np.where(np.arange(frequencies) == 0, 1.0, np.sqrt(2.0))
    out: npt.NDArray[np.float64] = np.cos(phase) * scale
    return out


class DctGenerator:
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
        span = min(background, 255 - background)
        if not 0 < contrast * 127.5 < 0.75 * span:
            raise ValueError(
                f"RMS contrast {contrast} cannot be reached around background {background}; "
                f"choose generator.contrast between 0 and {0.75 * span / 127.5:.2f}, or a background nearer to 128"
            )
        settings = [GENERATOR_VERSION, height, width, frequencies, falloff, contrast, background]
        self.name = f"dct-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]}"
        self.latent_size = 3 * (frequencies**2 - 1)
        self._shape = (height, width)
        self._frequencies = frequencies
        self._background, self._span = float(background), float(span)
        vertical, horizontal = cosine_basis(height, frequencies), cosine_basis(width, frequencies)
        self._vertical, self._horizontal = vertical.astype(np.float32), horizontal.T.astype(np.float32).copy()
        radius = np.hypot(*np.meshgrid(np.arange(frequencies), np.arange(frequencies), indexing="ij")).ravel()[1:]
        self._amplitude = CHANNEL_WEIGHTS[:, None] * radius**-falloff
        # sum of channel variances = 3 x the variance over pixels and channels, as the axes are orthonormal
        self._drive = float(np.sqrt(3.0)) * soft_clip_drive(contrast * 127.5 / span)

    def start(self, count: int, rng: np.random.Generator) -> F32:
        """Return standard normal codes (count, latent)."""
        return rng.standard_normal((count, self.latent_size), dtype=np.float32)

    def decode(self, latents: F32) -> U8:
        """Return frames (n, y, x, rgb) of codes (n, latent)."""
        latents = np.asarray(latents, dtype=np.float32)
        if latents.ndim != 2 or latents.shape[1] != self.latent_size:
            raise ValueError(f"codes of shape {latents.shape}; {self.name} takes (n, {self.latent_size})")
        if not np.isfinite(latents).all():
            raise ValueError("codes contain NaN or infinity")
        frames = np.empty((latents.shape[0], *self._shape, 3), np.uint8)
        for k, latent in enumerate(latents):  # one by one: a frame's bytes must not depend on its neighbours
            frames[k] = self._image(latent)
        return frames

    def _image(self, latent: F32) -> U8:
        frequencies, (height, width) = self._frequencies, self._shape
        weights = latent.astype(np.float64).reshape(3, -1) * self._amplitude  # any finite code can be squared
        power = float(np.sqrt(np.sum(np.square(weights))))
        spectrum = np.zeros((3, frequencies * frequencies), np.float32)
        if power > 0:  # the zero code is the background
            spectrum[:, 1:] = AXES.T @ (weights / power * self._drive)
        rows = self._vertical @ spectrum.reshape(3, frequencies, frequencies)
        x = rows.reshape(3 * height, frequencies) @ self._horizontal
        # Soft clipping x / sqrt(1 + x^2): smooth, stays inside -1 to 1, several times faster than tanh.
        clipped = np.square(x)
        clipped += np.float32(1)
        np.sqrt(clipped, out=clipped)
        np.divide(x, clipped, out=clipped)
        clipped *= np.float32(self._span)
        clipped += np.float32(self._background + 0.5)  # truncation below then rounds
        return clipped.astype(np.uint8).reshape(3, height, width).transpose(1, 2, 0)


def soft_clip_drive(rms: float) -> float:
    """Return the sd s of normal levels whose softly clipped values x / sqrt(1 + x^2) have the RMS `rms` (below 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    weights = weights / weights.sum()
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        x2 = (middle * nodes) ** 2
        if np.sqrt(weights @ (x2 / (1 + x2))) < rms:
            low = middle
        else:
            high = middle
    return (low + high) / 2
