"""What fresh repeats say of images that were made for goals, and of the natural images beside them. Pure.

Only presentations of the show-back count. Every image was fixed before, from earlier data: the natural ones too, which
makes their scores those of a cross-validated choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.control.goals import Goal, Kind
from models.statistics import PairedScores, benjamini_hochberg, paired_scores, share

F64 = npt.NDArray[np.float64]

NATURAL = ("natural", "predicted")
FIRST = "1"  # of the images made for a goal, the one that the encoder puts first


@dataclass(frozen=True)
class Shown:
    """The images of one goal and what was measured of them."""

    goal: Goal
    z: Mapping[str, F64]
    """Which image ("1", "2", ..., "natural", "predicted"): z-scored responses (repeat, site), without NaN."""

    @property
    def made(self) -> tuple[F64, ...]:
        """Responses to the images made, the encoder's favourite first."""
        return tuple(z for which, z in self.z.items() if which not in NATURAL)

    @property
    def natural(self) -> tuple[F64, ...]:
        """Responses to the natural ones."""
        return tuple(self.z[which] for which in NATURAL if which in self.z)

    def score(self, which: str) -> float:
        """Return what the mean response to an image is worth; NaN without one."""
        z = self.z[which]
        return float(self.goal.score(z.mean(axis=0))) if len(z) else float("nan")

    def error(self, which: str) -> float:
        """Return the standard error of that: jackknife over repeats, since a score need not be linear."""
        z, n = self.z[which], len(self.z[which])
        if n < 2:
            return float("nan")
        each = self.goal.score((z.sum(axis=0) - z) / (n - 1))
        return float(np.sqrt((n - 1) / n * np.sum((each - each.mean()) ** 2)))

    def against(self, which: str) -> PairedScores:
        """Return the first image made against a natural one; k-th repeats are paired, neighbours in time."""
        first, second = self.z[FIRST], self.z[which]
        n = min(len(first), len(second))
        return paired_scores(first[:n], second[:n], self.goal.score)

    def best(self, tables: Sequence[F64]) -> float:
        """Return the score of the best of some images: chosen by every other repeat, scored by the rest, both ways."""
        if not tables or min(len(table) for table in tables) < 2:
            return float("nan")
        halves = [
            np.array([float(self.goal.score(table[k::2].mean(axis=0))) for table in tables]) for k in (0, 1)
        ]
        return float((halves[1][halves[0].argmax()] + halves[0][halves[1].argmax()]) / 2)


def of_goals(every: Sequence[Shown]) -> dict[str, float]:
    """Return what was measured so far of each goal: scores by image, standard errors, and the best by halves."""
    out: dict[str, float] = {}
    for shown in every:
        for which in shown.z:
            name = f"{shown.goal.title}: {which}"
            out |= {name: shown.score(which), f"{name}_se": shown.error(which), f"{name}_n": float(len(shown.z[which]))}
        out[f"{shown.goal.title}: best_made"] = shown.best(shown.made)
        out[f"{shown.goal.title}: best_natural"] = shown.best(shown.natural)
    return out


def compared(every: Sequence[Shown], chance: float) -> dict[str, float]:
    """Return the first image of each goal against its natural ones, and the shares of goals, when all was shown.

    p corrected over all goals and natural images together (Benjamini and Hochberg).
    """
    which = [(k, name) for k, shown in enumerate(every) for name in NATURAL if name in shown.z]
    found = {pair: every[pair[0]].against(pair[1]) for pair in which}
    q = dict(zip(which, benjamini_hochberg([found[pair].p for pair in which]).tolist(), strict=True))
    out: dict[str, float] = {}
    for (k, name), one in found.items():
        title = every[k].goal.title
        figures = {"less": one.difference, "low": one.low, "high": one.high, "p": one.p, "q": q[k, name]}
        out |= {f"{title}: {figure}_{name}": value for figure, value in figures.items()}
    for kind in dict.fromkeys(shown.goal.kind for shown in every):
        out |= _of_kind(kind, every, found, q, chance)
    return out


def _of_kind(
    kind: Kind,
    every: Sequence[Shown],
    found: Mapping[tuple[int, str], PairedScores],
    q: Mapping[tuple[int, str], float],
    chance: float,
) -> dict[str, float]:
    """Return medians and shares over the goals of one kind."""
    mine = [k for k, shown in enumerate(every) if shown.goal.kind == kind]
    out = {f"{kind}_goals": float(len(mine))}
    above: dict[str, list[bool]] = {}
    better: dict[str, list[bool]] = {}
    for name in NATURAL:
        of = [k for k in mine if (k, name) in found and np.isfinite(found[k, name].difference)]
        apart = [found[k, name].difference for k in of]
        sure = [q[k, name] <= chance for k in of]
        above[name] = [d > 0 for d in apart]
        better[name] = [d > 0 and s for d, s in zip(apart, sure, strict=True)]
        out |= _share(f"{kind}_above_{name}", above[name]) | _share(f"{kind}_better_{name}", better[name])
        out |= _share(f"{kind}_worse_{name}", [d < 0 and s for d, s in zip(apart, sure, strict=True)])
        out[f"{kind}_{name}"] = _median([every[k].score(name) for k in of])
    out[f"{kind}_made"] = _median([every[k].score(FIRST) for k in mine])
    if all(len(above[name]) == len(mine) for name in NATURAL):
        out |= _share(f"{kind}_above_both", [all(one) for one in zip(*above.values(), strict=True)])
        out |= _share(f"{kind}_better_both", [all(one) for one in zip(*better.values(), strict=True)])
    best = [(every[k].best(every[k].made), every[k].best(every[k].natural)) for k in mine]
    best = [pair for pair in best if np.isfinite(pair).all()]
    out |= _share(f"{kind}_above_best", [made > natural for made, natural in best])
    out |= {f"{kind}_best_made": _median([m for m, _ in best]), f"{kind}_best_natural": _median([n for _, n in best])}
    return out


def _share(name: str, hits: Sequence[bool]) -> dict[str, float]:
    value, low, high = share(sum(hits), len(hits))
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else float("nan")
