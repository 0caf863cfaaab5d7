"""Contrast gain control: filters are divided by the contrast around them, as cortical cells are.

    y_k = (w_k * x) / (c_k + sqrt( sum over j of a_kj v_j )),

v_j the local variance of luminance under Gaussian windows of three widths, c_k > 0 and the shares a_kj (sum 1) learned.
After Heeger 1992 (Visual Neuroscience 9, 181), with the local RMS contrast as the pool (Mante et al. 2008, Neuron 58,
625); learned from responses to pictures by Burg et al. 2021 (PLoS Computational Biology 17, e1009028).

A network without it has to learn saturation from the few strong responses that there are, and predicts that ever more
contrast at the best place is best: its most exciting images come out too small.
"""

import torch
from torch import Tensor, nn

from models.encoders.eye import LUMINANCE, Eye

WIDTHS = (1 / 8, 1 / 5, 1 / 3)  # sd of the windows, in sides of the filters
USUAL_SD = 32.0  # levels: RMS contrast .25, in which contrast is counted
START = -1.0  # softplus of it: the first constant, 0.31 of the usual contrast
LEAST = 1e-6  # added under the root: without it a grey picture has no gradient


class ContrastGain(nn.Module):
    """Divides filter outputs by a constant and the RMS contrast of the same pixels."""

    def __init__(self, side: int, filters: int, eye: Eye) -> None:
        super().__init__()
        away = torch.arange(side) - (side - 1) / 2
        lines = [torch.exp(-(away**2) / (2 * (width * side) ** 2)) for width in WIDTHS]
        windows = torch.stack([torch.outer(line, line) / line.sum() ** 2 for line in lines])
        self.register_buffer("windows", windows[:, None])
        weights = torch.tensor(LUMINANCE if eye.channels == 3 else (1.0,)) * torch.tensor(eye.sd) / USUAL_SD
        self.register_buffer("luminance", weights.reshape(1, -1, 1, 1))
        self.shares = nn.Parameter(torch.zeros(filters, len(WIDTHS)))
        self.constant = nn.Parameter(torch.full((filters,), START))

    windows: Tensor
    luminance: Tensor

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return filter outputs `z` (n, k, y', x') to inputs `x` (n, channels, y, x), divided."""
        light = (x * self.luminance).sum(1, keepdim=True)
        mean = nn.functional.conv2d(light, self.windows)
        variance = (nn.functional.conv2d(light * light, self.windows) - mean * mean).clamp_min(0.0)
        pool = torch.einsum("njyx,kj->nkyx", variance, self.shares.softmax(1))
        return z / (nn.functional.softplus(self.constant)[:, None, None] + (pool + LEAST).sqrt())
