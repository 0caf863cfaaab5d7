"""What an image is to do to a population: small frozen objectives, each for many images at once.

An objective has goals (a unit to drive, a target to reach); every goal is pursued from each start. It says which units
it watches and what their responses are worth. Larger is better.

Bashivan, Kar & DiCarlo 2019 (Science 364, eaav9436): stretch, one-hot. Cadena et al. 2018 (ECCV) and Ding et al. 2023
(bipartite invariance): diverse images that drive a unit alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Objective(Protocol):
    """What images are made for."""

    @property
    def watched(self) -> I64:
        """Return the encoder's columns (goal, k) whose responses count for each goal."""
        ...

    @property
    def by_group(self) -> bool:
        """Whether the images of one goal are worth something together; they are then computed together."""
        ...

    def value(self, rates: Tensor, goals: Tensor, pictures: Tensor) -> Tensor:
        """Return what each image is worth (n,).

        `rates` (n, k): responses of the watched units; `goals` (n,): which goal each image is for; `pictures`
        (n, c, h, w): levels 0 to 255, as large as the encoder's input.
        """
        ...


@dataclass(frozen=True)
class Maximise:
    """Drive each unit by its own image: most exciting images (Walker 2019)."""

    units: tuple[int, ...]

    by_group = False

    @property
    def watched(self) -> I64:
        """Return one unit for each goal."""
        return _column(self.units)

    def value(self, rates: Tensor, goals: Tensor, pictures: Tensor) -> Tensor:
        """Return the response."""
        return rates[:, 0]


@dataclass(frozen=True)
class Minimise:
    """Silence each unit by its own image."""

    units: tuple[int, ...]

    by_group = False

    @property
    def watched(self) -> I64:
        """Return one unit for each goal."""
        return _column(self.units)

    def value(self, rates: Tensor, goals: Tensor, pictures: Tensor) -> Tensor:
        """Return minus the response."""
        return -rates[:, 0]


@dataclass(frozen=True)
class Sites:
    """A named set of units with the mean and sd of their responses to natural images, to z-score by."""

    units: tuple[int, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the numbers. Raises ValueError."""
        if not len(self.units) == len(self.mean) == len(self.sd) > 0:
            raise ValueError("sites: give as many means and sds of natural responses as units, and at least one")
        if len(set(self.units)) < len(self.units):
            raise ValueError(f"sites: a unit is named twice in {self.units}")
        if not np.isfinite([*self.mean, *self.sd]).all() or min(self.sd) <= 0:
            raise ValueError("sites: means must be finite and sds above 0; leave out units without responses")

    def z(self, rates: Tensor) -> Tensor:
        """Return z-scored responses (n, unit)."""
        return (rates - torch.tensor(self.mean).to(rates)) / torch.tensor(self.sd).to(rates)


@dataclass(frozen=True)
class Stretch:
    """Drive one site as far as possible, whatever the others do, for each site of the set (Bashivan 2019)."""

    sites: Sites

    by_group = False

    @property
    def watched(self) -> I64:
        """Return one unit for each goal."""
        return _column(self.sites.units)

    def value(self, rates: Tensor, goals: Tensor, pictures: Tensor) -> Tensor:
        """Return the z-scored response of the goal's site."""
        mean, sd = (torch.tensor(v).to(rates)[goals] for v in (self.sites.mean, self.sites.sd))
        return (rates[:, 0] - mean) / sd


@dataclass(frozen=True)
class OneHot:
    """Drive one site and none of the others: log softmax over the z-scored site set, for each site (Bashivan 2019).

    The logarithm has the same direction of gradient and does not vanish where another site wins by far.
    """

    sites: Sites

    by_group = False

    @property
    def watched(self) -> I64:
        """Return the whole set for each goal."""
        return np.tile(np.array(self.sites.units, np.int64), (len(self.sites.units), 1))

    def value(self, rates: Tensor, goals: Tensor, pictures: Tensor) -> Tensor:
        """Return log softmax of the goal's site."""
        return torch.log_softmax(self.sites.z(rates), 1).gather(1, goals[:, None])[:, 0]


@dataclass(frozen=True)
class TargetVector:
    """Bring the z-scored responses of a site set to given vectors, `targets` (goal, site)."""

    sites: Sites
    targets: tuple[tuple[float, ...], ...]

    by_group = False

    def __post_init__(self) -> None:
        """Check the numbers. Raises ValueError."""
        count = len(self.sites.units)
        if not self.targets or any(len(t) != count or not np.isfinite(t).all() for t in self.targets):
            raise ValueError(f"targets: each must be {count} finite z-scored responses, one for each site")

    @property
    def watched(self) -> I64:
        """Return the whole set for each goal."""
        return np.tile(np.array(self.sites.units, np.int64), (len(self.targets), 1))

    def value(self, rates: Tensor, goals: Tensor, pictures: Tensor) -> Tensor:
        """Return minus the mean squared distance."""
        wanted = torch.tensor(self.targets).to(rates)[goals]
        return -(self.sites.z(rates) - wanted).square().mean(1)


@dataclass(frozen=True)
class Diverse:
    """Images that all drive a unit at `share` of the best known response, and differ from one another in its field.

    value = min(0, rate / (share · best) - 1) · STRENGTH + distance to the nearest of the other starts, where distance
    is the squared difference of levels within the unit's window over twice their mean energy there: 1 - correlation,
    for images of equal energy. Responses above the share earn nothing: they buy difference.
    """

    units: tuple[int, ...]
    best: tuple[float, ...]
    windows: F64
    """(unit, h, w), 0 to 1, at the encoder's input size: where images must differ; a mask of the best image."""
    share: float = 0.85

    by_group = True
    STRENGTH = 10.0

    def __post_init__(self) -> None:
        """Check the numbers. Raises ValueError."""
        if len(self.best) != len(self.units) or len(self.windows) != len(self.units):
            raise ValueError("diverse: give the best known response and a window for each unit")
        if not 0 < self.share < 1 or min(self.best) <= 0:
            raise ValueError("diverse: share must be between 0 and 1, and best responses above 0")
        if not (self.windows.reshape(len(self.units), -1).sum(1) > 1).all():
            raise ValueError("diverse: a window is empty; its unit's best image has no mask")

    @property
    def watched(self) -> I64:
        """Return one unit for each goal."""
        return _column(self.units)

    def value(self, rates: Tensor, goals: Tensor, pictures: Tensor) -> Tensor:
        """Return shortfall and distance to the nearest other image of the goal."""
        best = torch.tensor(self.best).to(rates)[goals]
        shortfall = torch.clamp(rates[:, 0] / (self.share * best) - 1, max=0)
        window = torch.from_numpy(self.windows).to(pictures)[goals][:, None]
        weight = window / window.sum((1, 2, 3), keepdim=True) / pictures.shape[1]
        centred = pictures - (pictures * weight).sum((1, 2, 3), keepdim=True)
        flat = (centred * weight.sqrt()).flatten(1)
        energy = flat.square().sum(1)
        same = goals[:, None] == goals[None]
        usual = (same.float() @ energy.detach() / same.sum(1)).clamp_min(1.0)  # levels²; 1: less is no pattern
        distance = (energy[:, None] + energy[None] - 2 * flat @ flat.T) / (2 * usual[:, None])
        other = same & ~torch.eye(len(goals), dtype=torch.bool, device=goals.device)
        nearest = torch.where(other, distance, torch.full_like(distance, 2.0)).amin(1)
        return self.STRENGTH * shortfall + nearest


def _column(units: Sequence[int]) -> I64:
    if not units:
        raise ValueError("an objective needs at least one unit")
    return np.array(units, np.int64)[:, None]
