"""Goals of a population: which sites are watched, and what their z-scored responses are worth. Pure.

Bashivan, Kar & DiCarlo 2019 (Science 364, eaav9436): stretch, and one-hot population control with the softmax score.
Used to choose natural images, to judge what was shown back, and, by `models.synthesis.objectives`, to make images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from torch import Tensor

from models.synthesis.objectives import Objective, OneHot, Sites, Stretch, TargetVector

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Kind = Literal["stretch", "one_hot", "target"]


@dataclass(frozen=True)
class Goal:
    """One of them."""

    kind: Kind
    name: str
    """Of the site, or of the target."""
    sites: tuple[int, ...]
    """Columns that are watched."""
    at: int
    """Which of `sites` is to be high; 0 for a target vector."""
    wanted: tuple[float, ...] = ()
    """Of a target vector: z-scored responses of `sites`."""

    @property
    def title(self) -> str:
        """Its name in log and report."""
        return f"{self.kind} {self.name}"

    def score(self, z: F64) -> F64:
        """Return what z-scored responses (..., site) are worth, (...,): higher is better.

        stretch: the response; one_hot: its softmax over the set; target: minus the RMS distance from the vector.
        """
        if self.kind == "stretch":
            return np.asarray(z[..., self.at], np.float64)
        if self.kind == "one_hot":
            return np.asarray(softmax(z, axis=-1)[..., self.at], np.float64)
        return np.asarray(-np.sqrt(np.mean((z - np.array(self.wanted)) ** 2, axis=-1)), np.float64)


def goals_of(
    kinds: Sequence[str], units: Sequence[str], chosen: Sequence[int], targets: Mapping[str, Mapping[str, float]]
) -> tuple[Goal, ...]:
    """Return all goals: of each of `kinds` (stretch, one_hot) one for each of the columns `chosen`, then `targets`."""
    every = tuple(chosen)
    out = [Goal("stretch", units[site], (site,), 0) for site in every if "stretch" in kinds]
    if len(every) > 1:  # of a single site the softmax is 1 whatever it does
        out += [Goal("one_hot", units[site], every, k) for k, site in enumerate(every) if "one_hot" in kinds]
    for name, wanted in targets.items():
        out.append(Goal("target", name, tuple(units.index(unit) for unit in wanted), 0, tuple(wanted.values())))
    return tuple(out)


@dataclass(frozen=True)
class _Some:
    """Some goals of an objective."""

    whole: Objective
    which: I64

    by_group = False

    @property
    def watched(self) -> I64:
        """Return the columns that count for each of them."""
        return self.whole.watched[self.which]

    def value(self, rates: Tensor, goals: Tensor, pictures: Tensor) -> Tensor:
        """Return what the whole objective says."""
        return self.whole.value(rates, torch.from_numpy(self.which)[goals], pictures)


def objective_for(goals: Sequence[Goal], mean: F64, sd: F64) -> Objective:
    """Return the objective of goals of one kind (of targets: a single one); `mean`, `sd` (unit,) to z-score by."""
    first = goals[0]

    def sites(columns: Sequence[int]) -> Sites:
        return Sites(tuple(columns), tuple(mean[list(columns)].tolist()), tuple(sd[list(columns)].tolist()))

    if first.kind == "target":
        return TargetVector(sites(first.sites), (first.wanted,))
    if first.kind == "stretch":
        return Stretch(sites([goal.sites[0] for goal in goals]))
    return _Some(OneHot(sites(first.sites)), np.array([goal.at for goal in goals]))
