"""Gabor patterns as controls: the published grid of 72,800 of them (Walker 2019), and the best one by ascent. Pure.

Lengths of the paper are pixels of a picture 36 high; here they are shares of the picture's side, so that a length of
the paper over 36 is ours.
"""

from collections.abc import Generator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.encoders.encoder import Encoder

F32 = npt.NDArray[np.float32]

PAPER_SIDE = 36.0
WAVELENGTHS = tuple(w / PAPER_SIDE for w in (4, 7, 10, 15, 20))
SIGMAS = tuple(s / PAPER_SIDE for s in (2, 3, 5, 7, 9))
PHASES = (0.0, np.pi / 2, np.pi, 3 * np.pi / 2)
ORIENTATIONS = tuple(np.arange(8) * np.pi / 8)
DOWN, RIGHT = np.linspace(-0.3, 0.3, 7), np.linspace(-0.3, 0.3, 13)
PARAMETERS = ("wavelength", "sigma", "phase", "orientation", "down", "right")
FARTHEST = 0.35  # of the centre from the picture's centre, as in the paper's optimisation
ASCENT_STEPS, ASCENT_RATE, BETAS = 120, 0.05, (0.9, 0.999)
GRID = len(WAVELENGTHS) * len(SIGMAS) * len(PHASES) * len(ORIENTATIONS) * len(DOWN) * len(RIGHT)


def grid(step: int = 1) -> F32:
    """Return the parameters (n, 6) of the published grid, in the order of PARAMETERS; angles in radians.

    `step` takes every so many-th place along each axis; with 1 there are GRID of them.
    """
    axes = (WAVELENGTHS, SIGMAS, PHASES, ORIENTATIONS, DOWN[::step], RIGHT[::step])
    out: F32 = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1).astype(np.float32)
    return out


def drawn(parameters: Tensor, side: int, contrast: float) -> Tensor:
    """Return Gabors (n, 1, side, side) without a mean and with the RMS `contrast`, of `parameters` (n, 6)."""
    wavelength, sigma, phase, orientation, down, right = (c[:, None, None] for c in parameters.unbind(1))
    axis = (torch.arange(side, dtype=parameters.dtype) + 0.5) / side - 0.5
    x, y = axis[None, None, :] - right, axis[None, :, None] - down
    across = x * torch.cos(orientation) + y * torch.sin(orientation)
    window = torch.exp(-(x * x + y * y) / (2 * sigma * sigma))
    pattern = window * torch.cos(2 * torch.pi * across / wavelength + phase)
    return with_contrast(pattern[:, None], contrast)


def with_contrast(x: Tensor, contrast: float) -> Tensor:
    """Return pictures (n, 1, y, x) without their mean, scaled to an RMS of `contrast`."""
    x = x - x.mean((1, 2, 3), keepdim=True)
    rms = x.square().mean((1, 2, 3), keepdim=True).sqrt()
    return x * (contrast / rms.clamp_min(1e-6))


def bounded(free: Tensor) -> Tensor:
    """Return parameters within the paper's limits for free ones (n, 6); wavelength, sigma, down, right are bounded."""
    lows = torch.tensor([WAVELENGTHS[0], SIGMAS[0], -FARTHEST, -FARTHEST])
    highs = torch.tensor([WAVELENGTHS[-1], SIGMAS[-1], FARTHEST, FARTHEST])
    inside = lows + (highs - lows) * torch.sigmoid(free[:, [0, 1, 4, 5]])
    return torch.stack([inside[:, 0], inside[:, 1], free[:, 2], free[:, 3], inside[:, 2], inside[:, 3]], dim=1)


def freed(parameters: Tensor) -> Tensor:
    """Return free parameters that `bounded` turns into these (n, 6); at a limit, a little inside of it."""
    lows = torch.tensor([WAVELENGTHS[0], SIGMAS[0], -FARTHEST, -FARTHEST])
    highs = torch.tensor([WAVELENGTHS[-1], SIGMAS[-1], FARTHEST, FARTHEST])
    share = ((parameters[:, [0, 1, 4, 5]] - lows) / (highs - lows)).clamp(0.02, 0.98)
    inside = torch.logit(share)
    return torch.stack([inside[:, 0], inside[:, 1], parameters[:, 2], parameters[:, 3], inside[:, 2], inside[:, 3]], 1)


def best_gabors(encoder: Encoder, units: list[int], starts: F32, contrast: float) -> Generator[None, None, F32]:
    """Yield after each step; return the parameters (unit, 6) of the best Gabor for columns `units`.

    Ascent by Adam from each of `starts` (unit, start, 6), within the paper's limits. (The paper takes dual annealing
    without gradients; from the best of the grid the gradient gets there too, in a fraction of the time.)
    """
    side, each = encoder.eye.height, starts.shape[1]
    free = freed(torch.from_numpy(np.asarray(starts, np.float32)).flatten(0, 1)).requires_grad_(True)
    slope, square = torch.zeros_like(free), torch.zeros_like(free)
    wanted = torch.tensor(units)
    best = starts[:, 0].astype(np.float32)
    highest = np.full(len(units), -np.inf)
    for step in range(1, ASCENT_STEPS + 1):
        parameters = bounded(free)
        own = _own(encoder.rates(drawn(parameters, side, contrast), wanted), each)
        now = own.detach().numpy().reshape(len(units), each)
        tops = now.argmax(axis=1)
        found = parameters.detach().numpy().reshape(len(units), each, -1)
        for k, top in enumerate(tops):
            if now[k, top] > highest[k]:
                highest[k], best[k] = now[k, top], found[k, top]
        (gradient,) = torch.autograd.grad(own.sum(), free)
        with torch.no_grad():
            # Adam (Kingma & Ba 2015) by hand: torch.optim takes seconds to load, here in the middle of a session.
            slope = BETAS[0] * slope + (1 - BETAS[0]) * gradient
            square = BETAS[1] * square + (1 - BETAS[1]) * gradient * gradient
            along = slope / (1 - BETAS[0] ** step), (square / (1 - BETAS[1] ** step)).sqrt() + 1e-8
            free += ASCENT_RATE * along[0] / along[1]
        yield
    return best


def _own(rates: Tensor, starts: int) -> Tensor:
    """Return of rates (unit x start, unit) those of each picture's own unit, (unit x start,)."""
    at = torch.arange(len(rates))
    return rates[at, at // starts]
