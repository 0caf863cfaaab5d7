"""Readouts: how each unit weights the features of a core. Rows are units: they come and go without touching others.

Full: a weight for each feature at each place. Factorised: space times features (Klindt et al. 2017, NeurIPS). Point:
the features at one learned point, drawn from a Gaussian around it in training so that the gradient sees the
surroundings (Lurz et al. 2021, ICLR), its place optionally predicted from where the cell lies in cortex.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rig.config.encoders import AnyReadout, FactorisedReadout, FullReadout, PointReadout

Shape = tuple[int, int, int]
GRID_HIDDEN = 30  # of the network from cortical position to point (SENSORIUM 2022)
START_SD = 1e-3


class Full(nn.Module):
    """Response = weight · features + bias; `weight` (unit, k * y * x), features in the order k, y, x."""

    def __init__(self, config: FullReadout, shape: Shape, units: int) -> None:
        super().__init__()
        self.shape = shape
        size = shape[0] * shape[1] * shape[2]
        self.weight = nn.Parameter(torch.randn(units, size) * START_SD)
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, features: Tensor, units: Tensor | None, shift: Tensor | None, noise: Tensor | None) -> Tensor:
        """Return (n, unit) for features (n, k, y, x)."""
        weight, bias = _of(self.weight, units), _of(self.bias, units)
        return features.flatten(1) @ weight.T + bias

    def penalty(self) -> Tensor:
        """Return the L1 norm of the weights."""
        return self.weight.abs().sum()


class Factorised(nn.Module):
    """Response = sum over places of space(y, x) · sum over features of feature(k) · core(k, y, x), plus bias."""

    def __init__(self, config: FactorisedReadout, shape: Shape, units: int) -> None:
        super().__init__()
        self.shape = shape
        self.space = nn.Parameter(torch.randn(units, shape[1], shape[2]) * 0.01)
        self.features = nn.Parameter(torch.randn(units, shape[0]) * 0.01)
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, features: Tensor, units: Tensor | None, shift: Tensor | None, noise: Tensor | None) -> Tensor:
        """Return (n, unit) for features (n, k, y, x)."""
        space, weight, bias = (_of(p, units) for p in (self.space, self.features, self.bias))
        pooled = features.flatten(2) @ space.flatten(1).T  # n, k, unit
        return torch.einsum("nku,uk->nu", pooled, weight) + bias

    def penalty(self) -> Tensor:
        """Return the sum over units of |space|₁ · |features|₁, which no scaling between the two can evade."""
        return (self.space.abs().sum((1, 2)) * self.features.abs().sum(1)).sum()


class Point(nn.Module):
    """Response = feature(k) · core(k) at the unit's point, by bilinear interpolation, plus bias.

    Points are (x, y) in -1 to 1: the centres of the first and the last feature of each axis.
    """

    def __init__(self, config: PointReadout, shape: Shape, units: int, cortex: Tensor | None = None) -> None:
        """Make fresh points; `cortex` (unit, 2): cortical positions, -1 to 1, from which points may be predicted."""
        super().__init__()
        self.shape = shape
        self.features = nn.Parameter(torch.full((units, shape[0]), 1 / shape[0]))
        self.bias = nn.Parameter(torch.zeros(units))
        self.sigma = nn.Parameter((torch.rand(units, 2, 2) * 2 - 1) * config.start_sigma)
        self.from_cortex = config.cortex
        if not config.cortex:
            self.mu = nn.Parameter((torch.rand(units, 2) * 2 - 1) * config.start_range)
        else:
            self.register_buffer("cortex", torch.zeros(units, 2) if cortex is None else cortex.clone())
            self.place = nn.Sequential(nn.Linear(2, GRID_HIDDEN), nn.ELU(), nn.Linear(GRID_HIDDEN, 2))

    cortex: Tensor

    def points(self, units: Tensor | None = None) -> Tensor:
        """Return where the units look, (unit, 2): x, y in -1 to 1."""
        if self.from_cortex:
            return torch.tanh(self.place(_of(self.cortex, units)))
        return _of(self.mu, units)

    def forward(self, features: Tensor, units: Tensor | None, shift: Tensor | None, noise: Tensor | None) -> Tensor:
        """Return (n, unit) for features (n, k, y, x); `shift` (n, 2) moves all points, `noise` (n, unit, 2) draws them.

        A point beyond the border is taken at the border.
        """
        weight, bias = _of(self.features, units), _of(self.bias, units)
        points = self.points(units)[None].expand(len(features), -1, -1)
        if noise is not None:
            points = points + torch.einsum("uij,nuj->nui", _of(self.sigma, units), noise)
        if shift is not None:
            points = points + shift[:, None]
        at = points.clamp(-1, 1)[:, :, None]
        found = nn.functional.grid_sample(features, at, align_corners=True)[..., 0]  # n, k, unit
        return torch.einsum("nku,uk->nu", found, weight) + bias

    def penalty(self) -> Tensor:
        """Return the L1 norm of the feature weights."""
        return self.features.abs().sum()


Readout = Full | Factorised | Point


def build_readout(config: AnyReadout, shape: Shape, units: int, cortex: Tensor | None = None) -> Readout:
    """Return a readout of features `shape` (k, y, x) with fresh rows from torch's generator."""
    if isinstance(config, FullReadout):
        return Full(config, shape, units)
    if isinstance(config, FactorisedReadout):
        return Factorised(config, shape, units)
    return Point(config, shape, units, cortex)


def _of(rows: Tensor, units: Tensor | None) -> Tensor:
    return rows if units is None else rows[units]


def rows_of(readout: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters with one row for each unit."""
    for name, parameter in readout.named_parameters():
        if not name.startswith("place."):
            yield name, parameter
