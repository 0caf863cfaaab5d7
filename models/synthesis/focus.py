"""Responses of one unit per picture, computing only what that unit's receptive field sees.

For networks with a convolutional core without stride and a point readout: four features around the point need a
window of each layer before, and a square of the input. Layers pad with zeros beyond the picture; so does a window,
whose places beyond the picture are set to zero after every layer. The result is that of the whole network up to
rounding.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from models.encoders.compact_v4 import CompactV4
from models.encoders.cores import Separable, Walker
from models.encoders.encoder import Encoder
from models.encoders.ensemble import Ensemble
from models.encoders.network import Network
from models.encoders.readouts import Point
from models.synthesis.convolutions import convolved, local, mixed, turned

POINTS = 2  # features along each axis between which a point readout interpolates


class Responses(Protocol):
    """How the responses of chosen units are computed."""

    def __call__(self, x: Tensor, units: Tensor) -> Tensor:
        """Return responses (n, k) of units (n, k), each picture's own, to inputs (n, c, h, w)."""
        ...


def responses_of(encoder: Encoder, watched: int) -> Responses:
    """Return the quickest way to the responses of `watched` units per picture that this encoder allows."""
    if watched == 1 and isinstance(encoder, Network) and Focus.fits(encoder):
        return Focus(encoder)
    if isinstance(encoder, CompactV4):
        return EachAlone(encoder)
    if isinstance(encoder, Ensemble):
        return Mean(tuple(responses_of(member, watched) for member in encoder.members))
    return Whole(encoder)


class Whole:
    """The encoder as it is: all pictures, all units that any of them watches."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __call__(self, x: Tensor, units: Tensor) -> Tensor:
        """Return responses (n, k) of units (n, k)."""
        wanted, column = torch.unique(units, return_inverse=True)
        return self._encoder.rates(x, wanted).gather(1, column.reshape(units.shape))


class Mean:
    """The mean of an ensemble's members, each computed its quickest way."""

    def __init__(self, members: tuple[Responses, ...]) -> None:
        self._members = members

    def __call__(self, x: Tensor, units: Tensor) -> Tensor:
        """Return responses (n, k) of units (n, k)."""
        return torch.stack([member(x, units) for member in self._members]).mean(0)


class EachAlone:
    """For encoders whose units share nothing: each unit meets its own pictures only."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __call__(self, x: Tensor, units: Tensor) -> Tensor:
        """Return responses (n, k) of units (n, k)."""
        columns = []
        for column in units.T:
            found = torch.empty(len(x), dtype=x.dtype, device=x.device)
            for unit in torch.unique(column):
                mine = column == unit
                found = found.masked_scatter(mine, self._encoder.rates(x[mine], unit[None])[:, 0])
            columns.append(found)
        return torch.stack(columns, 1)


class Places(NamedTuple):
    """Where the windows of some pictures lie; the same for as long as their units are."""

    share: Tensor
    """(n, 1, 2, 2): of the four features around each unit's point."""
    pixels: Tensor
    """(n, 1, side * side): each window's pixels, counted through the picture; beyond the border, its pixels again."""
    side: int
    """Pixels along the window."""
    inside: tuple[Tensor | None, ...]
    """For each layer 1 or 0 (n, 1, y, x): whether a place is one of the picture's; None: all that matter are."""


class Focus:
    """The windows of a network: called like `Responses`, one unit per picture."""

    def __init__(self, network: Network) -> None:
        """Fold the normalisations into the convolutions. Raises ValueError for a network that it does not fit."""
        core, part = network.core, network.of(network.session)
        if not isinstance(core, Separable | Walker) or not isinstance(part.readout, Point) or network.training:
            raise ValueError("focus needs a core of type walker or separable, a point readout, and evaluation mode")
        self._network, self._eye = network, network.eye
        layers = [m for m in core.layers if isinstance(m, nn.Sequential)]
        self._first, *later = (_folded(layer) for layer in layers)
        self._later = later
        self._skip = Walker.SKIP if isinstance(core, Walker) else 1
        self._all_read = isinstance(core, Walker)
        self._reaches = [_kernel(layer) // 2 for layer in layers[1:]]
        # Without padding there are features only further inside; windows are counted from the first layer's.
        self._lost = core.lost if isinstance(core, Separable) else 0
        self._grid = (int(core.shape[1]) + 2 * self._lost, int(core.shape[2]) + 2 * self._lost)
        self._kernel = _kernel(layers[0])
        self._weights, self._bias, self._scale = part.readout.features, part.readout.bias, part.scale
        self._points = part.readout.points().detach()
        self._units_before, self._places_before = torch.empty(0), None

    _places_before: Places | None

    @staticmethod
    def fits(network: Network) -> bool:
        """Whether a network can be computed in windows."""
        readout = network.of(network.session).readout
        return isinstance(network.core, Separable | Walker) and isinstance(readout, Point) and not network.training

    def __call__(self, x: Tensor, units: Tensor) -> Tensor:
        """Return responses (n, 1) of units (n, 1)."""
        unit = units[:, 0]
        if units is not self._units_before or self._places_before is None:  # the same tensor in all steps of a group
            self._units_before, self._places_before = units, self._places(unit.cpu(), x.device)
        places = self._places_before
        features = self._windows(x, places)  # n, k, 2, 2
        drive = (features * places.share).sum((2, 3))
        drive = (drive * self._weights[unit]).sum(1) + self._bias[unit]
        return (self._network.output(drive) * self._scale[unit])[:, None]

    def _places(self, unit: Tensor, device: torch.device) -> Places:
        """Return the places of units (n,), computed on the processor, on `device`."""
        corner, share = self._corners(unit)
        reach = sum(self._reaches)
        start, side = corner - reach, POINTS + 2 * reach  # of the window in the first layer's features
        square = side + self._kernel - 1
        pixels = _pixels(start, square, self._eye.height, self._eye.width)
        inside = [self._inside(start, side)]
        for own in self._reaches:
            start, side = start + own, side - 2 * own
            inside.append(None if side == POINTS else self._inside(start, side))
        there = tuple(None if one is None else one.to(device) for one in inside)
        return Places(share[:, None].to(device), pixels.to(device), square, there)

    def _corners(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Return the feature (n, 2), row and column, up and left of each point, and the four shares (n, 2, 2)."""
        last = torch.tensor(self._grid) - 1 - 2 * self._lost
        at = (self._points.cpu()[unit].flip(1).clamp(-1, 1) + 1) / 2 * last
        corner = torch.minimum(at.floor(), (last - 1).clamp(min=0).to(at)).clamp(min=0)
        beyond = at - corner
        y, x = (torch.stack([1 - beyond[:, k], beyond[:, k]], 1) for k in range(2))
        return corner.long() + self._lost, y[:, :, None] * x[:, None]

    def _windows(self, x: Tensor, places: Places) -> Tensor:
        """Return the features (n, k, 2, 2) around the points."""
        n, channels = x.shape[:2]
        square = x.flatten(2).gather(2, places.pixels.expand(-1, channels, -1))
        found = [self._first(square.reshape(n, channels, places.side, places.side), places.inside[0])]
        for layer, inside in zip(self._later, places.inside[1:], strict=True):
            side = int(found[-1].shape[2])
            parts = [_middle(z, side) for z in found[-self._skip :]]
            found.append(layer(parts[0] if len(parts) == 1 else torch.cat(parts, 1), inside))
        read = found if self._all_read else found[-1:]
        return torch.cat([_middle(z, POINTS) for z in read], 1).reshape(n, -1, POINTS, POINTS)

    def _inside(self, start: Tensor, side: int) -> Tensor | None:
        """Return 1 where a window's place (n, 1, side, side) is one of the picture's, else 0; None: all are."""
        if bool((start >= 0).all() and (start + side <= torch.tensor(self._grid)).all()):
            return None
        k = torch.arange(side)
        y, x = ((start[:, i, None] + k >= 0) & (start[:, i, None] + k < self._grid[i]) for i in range(2))
        return (y[:, None, :, None] & x[:, None, None, :]).float()


def _pixels(start: Tensor, side: int, height: int, width: int) -> Tensor:
    """Return the pixels (n, 1, side * side) of squares from `start` (n, 2) on; beyond the border, its pixels again."""
    k = torch.arange(side)
    y = (start[:, :1] + k).clamp(0, height - 1)
    across = (start[:, 1:] + k).clamp(0, width - 1)
    return (y[:, :, None] * width + across[:, None]).reshape(len(start), 1, -1)


def _middle(z: Tensor, side: int) -> Tensor:
    edge = (z.shape[2] - side) // 2
    return z if edge == 0 else z[:, :, edge : edge + side, edge : edge + side]


def _kernel(layer: nn.Sequential) -> int:
    """Return the side of a layer's largest filters."""
    return max(int(m.kernel_size[0]) for m in layer.modules() if isinstance(m, nn.Conv2d))


def _folded(layer: nn.Sequential) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return a layer (convolution, normalisation, perhaps ELU) without padding: windows in, smaller windows out.

    It takes 1 or 0 for each place (n, 1, side, side), or None where all of them count. ELU(0) is 0.
    """
    norm = layer[1]
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise ValueError("focus needs batch normalisation with running means after each convolution")
    gain = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    bias = (norm.bias - norm.running_mean * gain).detach()
    bent = len(layer) > 2
    convolutions = [m for m in layer[0].modules() if isinstance(m, nn.Conv2d)]
    last = (convolutions[-1].weight * gain[:, None, None, None]).detach()
    if len(convolutions) == 1:
        full = last.contiguous(memory_format=torch.channels_last)
        return lambda z, inside: _bent(convolved(z, full, bias), inside, bent)
    inward = convolutions[0].weight[:, :, 0, 0].T.detach().contiguous()
    outward = last[:, :, 0, 0].T.contiguous()
    spatial = convolutions[1].weight.detach().contiguous(memory_format=torch.channels_last)
    back = turned(spatial)

    def separable(z: Tensor, inside: Tensor | None) -> Tensor:
        """Return (n, k, side - kernel + 1, ..)."""
        return _bent(mixed(local(mixed(z, inward), spatial, back), outward, bias), inside, bent)

    return separable


def _bent(z: Tensor, inside: Tensor | None, bent: bool) -> Tensor:
    if inside is not None:
        z = z * inside
    return nn.functional.elu(z, inplace=True) if bent else z
