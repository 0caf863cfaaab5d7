"""The generator "gabors": a code weighs Gabors of all positions, scales, orientations, two phases and three colours.

A Gabor is the real part of a product of a function of y and one of x, so that an image is one matrix product and no
Gabor is ever stored as a picture.
"""

import hashlib
import json

import numpy as np
import numpy.typing as npt

from stimuli.generators.basis import BasisGenerator
from stimuli.generators.dct import AXES, CHANNEL_WEIGHTS
from stimuli.generators.generator import F32, U8, normal_prior
from stimuli.generators.soft_clip import checked_span, clipped_frame, soft_clip_drive

C64 = npt.NDArray[np.complex64]
C128 = npt.NDArray[np.complex128]

GENERATOR_VERSION = 1  # part of the name; raise it when decode changes
SIGMA_CYCLES = 0.5  # sd of a Gabor's window, in its periods: neighbours of a scale overlap, at two sd from each other


def _waves(points: int, places: int, cycles: int, share: float) -> C128:
    """Return window and wave along one axis, (place, point); `share` is the wave vector's part along this axis."""
    at = (np.arange(points) + 0.5) / points - ((np.arange(places) + 0.5) / places)[:, None]
    sigma = SIGMA_CYCLES / cycles
    return np.exp(-(at**2) / (2 * sigma**2) + 2j * np.pi * cycles * share * at)


class GaborGenerator(BasisGenerator):
    """Weighted sum of Gabors of cosine and sine phase in luminance and two opponent colours.

    A scale of s cycles per image side has (s + 1) x (s + 1) places. On average all scales have the same contrast, as
    octaves of natural scenes have (Field 1987); colours have less than luminance. Mean level and RMS contrast are
    those asked for before clipping: the length of a code has no effect.
    """

    encode = None

    def __init__(
        self,
        height: int,
        width: int,
        scales: tuple[int, ...],
        orientations: int,
        contrast: float,
        background: int = 128,
    ) -> None:
        """Prepare images of `height` x `width` pixels; `scales` in cycles per side, `contrast` is RMS, sd / 127.5."""
        if len(set(scales)) < len(scales) or not scales or min(scales) < 1:
            raise ValueError(f"scales {list(scales)}; give each of generator.scales once, 1 cycle or more")
        if 4 * max(scales) > min(height, width):
            raise ValueError(f"{max(scales)} cycles in {width} x {height} pixels; lower generator.scales")
        self._span, self._background = checked_span(contrast, background), float(background)
        settings = [GENERATOR_VERSION, height, width, scales, orientations, contrast, background]
        self.name = f"gabors-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]}"
        down, across = list[C128](), list[C128]()
        for cycles in scales:
            places = cycles + 1
            for turn in np.arange(orientations) * np.pi / orientations:
                rows = _waves(height, places, cycles, float(np.sin(turn)))
                columns = _waves(width, places, cycles, float(np.cos(turn)))
                # Mean square of the sum of this scale's Gabors with weights of variance 1 in both phases.
                power = np.sum(np.abs(rows) ** 2) * np.sum(np.abs(columns) ** 2) / (height * width) * orientations
                down.append(rows / np.sqrt(power))
                across.append(columns)
        self._places = [len(rows) for rows in down]
        waves = np.concatenate(down).T
        self._down = np.concatenate([waves.real, -waves.imag], axis=1).astype(np.float32)
        self._across = [columns.astype(np.complex64) for columns in across]
        count = sum(p**2 for p in self._places)
        self.latent_shape: tuple[int, ...] = (3, 2, count)
        self.latent_size = 6 * count
        self.prior = normal_prior(self.latent_size)
        self._shape = (height, width)
        self._drive = soft_clip_drive(contrast * 127.5 / self._span)

    def _image(self, latent: F32) -> U8:
        height, width = self._shape
        top = np.abs(latent).max(initial=0)
        phases = (latent / top if top > 0 else latent).reshape(self.latent_shape)  # any finite code can be squared
        weights = (phases[:, 0] - 1j * phases[:, 1]).astype(np.complex64)  # cosine and sine
        colours = (AXES.T * CHANNEL_WEIGHTS).astype(np.float32) @ weights
        rows, at = list[C64](), 0
        for places, columns in zip(self._places, self._across, strict=True):
            rows.append(colours[:, at : at + places**2].reshape(3, places, places) @ columns)
            at += places**2
        along = np.concatenate(rows, axis=1)  # (channel, place, x)
        # The real part of a complex product: twice as many real ones.
        x = (self._down @ np.concatenate([along.real, along.imag], axis=1)).reshape(3 * height, width)
        x -= x.mean(dtype=np.float64).astype(np.float32)
        rms = float(np.sqrt(np.square(x, dtype=np.float64).mean()))
        if rms > 1e-6:  # the zero code is the background
            x *= np.float32(self._drive / rms)
        else:
            x[:] = 0
        return clipped_frame(x, self._shape, self._background, self._span)
