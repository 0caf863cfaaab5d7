"""The steps of a synthesis: how long, how smooth, and in which frequencies.

Walker et al. 2019 (Nature Neuroscience 22, 2060), Methods, on most exciting images.
Linear maps are made as matrices of float32, so that a step is the same on every run.
"""

import torch
from torch import Tensor

from rig.config.synthesis import Synthesis

LEVELS_SD = 60.0  # levels that one sd of the published training images is worth; steps are relative to it
SMALLEST_BLUR_PX = 0.15  # a Gaussian of this sd leaves its neighbours exp(-22): nothing in single precision


def linear(start: float, end: float, step: int, steps: int) -> float:
    """Return the value at `step` of `steps`, linear from `start` (step 0) to `end` (the last step)."""
    return start if steps == 1 else start + (end - start) * step / (steps - 1)


class Schedule:
    """Preconditioner, step size and blur of each iteration, for pictures of one size."""

    def __init__(self, settings: Synthesis, height: int, width: int, device: torch.device | None = None) -> None:
        self.settings, self.height, self.width = settings, height, width
        self._filter = preconditioner(height, width, settings.preconditioner).to(device)

    def step(self, gradient: Tensor, iteration: int) -> Tensor:
        """Return the change (n, c, h, w), levels, for a gradient (n, c, h, w) towards the levels of pictures.

        x += step / mean|g| · (0.1 / 255) · g, g preconditioned, x in sd of the training images. A gradient of 0 changes
        nothing.
        """
        s = self.settings
        size = linear(s.step_from, s.step_to, iteration, s.iterations) * 0.1 / 255 * LEVELS_SD
        if s.preconditioner > 0:
            gradient = torch.fft.irfft2(torch.fft.rfft2(gradient) * self._filter, s=(self.height, self.width))
        mean = gradient.abs().mean((1, 2, 3), keepdim=True)
        return size * gradient / torch.where(mean > 0, mean, torch.ones_like(mean))

    def blurred(self, x: Tensor, iteration: int) -> Tensor:
        """Return pictures (n, c, h, w) blurred as the schedule says, mirrored at their borders."""
        s = self.settings
        sigma = linear(s.blur_from_px, s.blur_to_px, iteration, s.iterations)
        return blurred(x, sigma)


def preconditioner(height: int, width: int, exponent: float) -> Tensor:
    """Return the filter (height, width // 2 + 1) for `rfft2`: t / mean(t), t = 1 / max(1, (fx² + fy²) ** exponent).

    fx, fy: whole numbers of cycles per picture. The mean is taken over the whole plane of frequencies.
    """
    fy = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64)[:, None]
    fx = torch.fft.fftfreq(width, 1 / width, dtype=torch.float64)[None]
    t = 1 / torch.clamp((fx**2 + fy**2) ** exponent, min=1.0)
    return (t / t.mean())[:, : width // 2 + 1].float()


def blurred(x: Tensor, sigma_px: float) -> Tensor:
    """Return pictures (n, c, h, w) under a Gaussian blur, mirrored at the borders."""
    if sigma_px < SMALLEST_BLUR_PX:
        return x
    down, across = (_blur_matrix(int(size), sigma_px).to(x) for size in x.shape[2:])
    return down @ x @ across.T


def _blur_matrix(size: int, sigma_px: float) -> Tensor:
    """Return the blur along one axis (size, size): rows sum to 1; pixel -1 is pixel 0 again, as scipy's "reflect"."""
    k = torch.arange(size, dtype=torch.float64)
    out = torch.zeros(size, size, dtype=torch.float64)
    for mirrored in (k, -1 - k, 2 * size - 1 - k):
        out += torch.exp(-((k[:, None] - mirrored[None]) ** 2) / (2 * sigma_px**2))
    return (out / out.sum(1, keepdim=True)).float()
