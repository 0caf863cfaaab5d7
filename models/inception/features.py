"""A fixed bank of features of small grey pictures: blurred luminance of squares, and energy of Gabors of three sizes.

What simple and complex cells of the visual cortex respond to, without training: a linear readout of it can be fitted
from a few hundred presentations. Part of the encoder of the inception agent.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

F32 = npt.NDArray[np.float32]

SIDE = 32  # pixels of the pictures
POOLED = 16  # squares of luminance along each axis
BLUR_PX = 1.5  # sd of the blur of the luminance
GABORS = ((2.0, 3), (4.0, 5), (6.0, 7))  # cycles per picture, positions along each axis
ORIENTATIONS = 8
SIGMA_CYCLES = 0.4  # sd of a Gabor's window, in its periods
LINEAR = POOLED * POOLED
ENERGY = ORIENTATIONS * sum(positions**2 for _, positions in GABORS)
COUNT = LINEAR + ENERGY
SMOOTH = 1e-3  # added under the root of the energy: without it a grey picture has no gradient


def features(x: Tensor) -> Tensor:
    """Return features (n, COUNT) of pictures (n, 1, SIDE, SIDE); the first LINEAR of them are linear."""
    pair = x.flatten(1) @ _filters().to(x.dtype).T
    even, odd = pair[:, :ENERGY], pair[:, ENERGY:]
    return torch.cat([linear_features(x), torch.sqrt(even * even + odd * odd + SMOOTH)], dim=1)


def linear_features(x: Tensor) -> Tensor:
    """Return the linear features (n, LINEAR) alone: blurred luminance of squares."""
    soft = _soft().to(x.dtype)
    return torch.nn.functional.avg_pool2d(soft @ x @ soft.T, SIDE // POOLED).flatten(1)


def picture_of(weights: F32) -> F32:
    """Return the picture (SIDE, SIDE) whose product with a picture is that of `weights` with its linear features."""
    step = SIDE // POOLED
    squares = np.kron(weights.reshape(POOLED, POOLED), np.ones((step, step))) / step**2
    soft = _soft().numpy().astype(np.float64)
    out: F32 = (soft.T @ squares @ soft).astype(np.float32)
    return out


@lru_cache(maxsize=1)
def _soft() -> Tensor:
    """Return the matrix (SIDE, SIDE) of a blur along one axis; at the border it takes less from outside.

    Luminance is blurred before a readout is fitted: that is the prior that linear receptive fields are smooth.
    """
    away = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    weights = np.exp(-(away**2) / (2 * BLUR_PX**2))
    return torch.from_numpy((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


@lru_cache(maxsize=1)
def _filters() -> Tensor:
    """Return both phases of all Gabors, (2 ENERGY, pixel), of unit length and without a mean."""
    axis = (np.arange(SIDE) + 0.5) / SIDE
    x, y = np.meshgrid(axis, axis)
    phases: list[list[npt.NDArray[np.float64]]] = [[], []]
    for cycles, positions in GABORS:
        sigma, places = SIGMA_CYCLES / cycles, (np.arange(positions) + 0.5) / positions
        for row in places:
            for column in places:
                window = np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * sigma**2))
                for turn in np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS:
                    across = (x - column) * np.cos(turn) + (y - row) * np.sin(turn)
                    angle = 2 * np.pi * cycles * across
                    for out, wave in zip(phases, (np.cos(angle), np.sin(angle)), strict=True):
                        one = window * wave
                        one -= window * one.sum() / window.sum()
                        out.append((one / np.sqrt(np.sum(one**2))).ravel())
    return torch.from_numpy(np.stack([*phases[0], *phases[1]]).astype(np.float32))
