"""The figures of `stimloop bench evolve`: from rows of runs to ratios with intervals. Pure, numpy only.

All ratios are of rate minus the unit's mean natural rate. A unit's value is its mean over seeds; a ratio over units is
exp(mean of the units' log ratios), its interval a bootstrap over units. Where a value is not above the mean natural
rate there is no logarithm: such a unit is left out of the mean, and named; the median still counts it, at the end
where it belongs.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Row = Mapping[str, Any]

SATURATION = 1.5  # of the best natural image's rate
DRAWS = 10_000
REACHED = 0.9


@dataclass(frozen=True)
class Ratio:
    """How much more A drives the units than B."""

    ratio: float | None
    """exp(mean log ratio) over the units in which it is defined."""
    low: float | None
    """95 % interval, bootstrap over units."""
    high: float | None
    median: float | None
    """Of all units but those in which neither is above the mean natural rate; infinite values ordered at the ends."""
    median_low: float | None
    """95 % interval of the median, bootstrap over the same units."""
    median_high: float | None
    units: int
    """Units in the mean."""
    wins: int
    """Units in which A is above B, of all that both have, with a logarithm or without."""
    compared: int
    """Units that both have."""
    only_a: tuple[str, ...] = ()
    """Units in which A alone is above the mean natural rate."""
    only_b: tuple[str, ...] = ()
    neither: tuple[str, ...] = ()

    def figures(self) -> dict[str, Any]:
        """Return the ratio for a JSON file."""
        names = ("ratio", "low", "high", "median", "median_low", "median_high")
        out: dict[str, Any] = {name: _rounded(getattr(self, name)) for name in names}
        out |= {"units": self.units, "wins": self.wins, "compared": self.compared}
        left_out = {"only_a": self.only_a, "only_b": self.only_b, "neither": self.neither}
        return out | {name: list(units) for name, units in left_out.items() if units}


def _rounded(value: float | None) -> float | str | None:
    if value is None or np.isfinite(value):
        return None if value is None else round(value, 4)
    return "inf" if value > 0 else "0"


def above_natural(rate: float, natural_mean: float, natural_best: float, saturated: bool) -> float:
    """Return a rate minus the mean natural one; `saturated`: rates above 1.5 times the best natural count as that."""
    return (min(rate, SATURATION * natural_best) if saturated else rate) - natural_mean


def by_unit(rows: Iterable[Row], units: Mapping[str, Row], field: str, saturated: bool = False) -> dict[str, float]:
    """Return each unit's mean over seeds of `field`, a rate, minus its mean natural rate."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        unit = units[row["unit"]]
        if row[field] is not None:
            value = above_natural(row[field], unit["natural_mean"], unit["natural_best"], saturated)
            found[row["unit"]].append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def ratio(a: Mapping[str, float], b: Mapping[str, float], seed: int = 0) -> Ratio:
    """Return the ratio of two sets of values by unit; units that only one of them has are not compared."""
    names = sorted(set(a) & set(b))
    both = [n for n in names if a[n] > 0 and b[n] > 0]
    only_a = tuple(n for n in names if a[n] > 0 >= b[n])
    only_b = tuple(n for n in names if b[n] > 0 >= a[n])
    neither = tuple(n for n in names if a[n] <= 0 and b[n] <= 0)
    logs = np.log([a[n] / b[n] for n in both]) if both else np.empty(0)
    ordered = np.concatenate([np.full(len(only_b), -np.inf), np.sort(logs), np.full(len(only_a), np.inf)])
    low, high = interval(logs, seed)
    median_low, median_high = median_interval(ordered, seed)
    return Ratio(
        ratio=float(np.exp(logs.mean())) if len(logs) else None,
        low=None if low is None else float(np.exp(low)),
        high=None if high is None else float(np.exp(high)),
        median=_middle(ordered),
        median_low=median_low,
        median_high=median_high,
        units=len(both),
        wins=sum(a[n] > b[n] for n in names),
        compared=len(names),
        only_a=only_a,
        only_b=only_b,
        neither=neither,
    )


def _middle(ordered: F64) -> float | None:
    """Return exp of the median of sorted logs; between two infinite ones of the same sign, that."""
    if not len(ordered):
        return None
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if low == high:
        return float(np.exp(low))
    return float(np.exp((low + high) / 2)) if np.isfinite([low, high]).any() else None


def interval(values: F64, seed: int = 0) -> tuple[float | None, float | None]:
    """Return the 95 % percentile interval of the mean of `values` (unit,), bootstrap over units; none below 3."""
    if len(values) < 3:
        return None, None
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def median_interval(logs: F64, seed: int = 0) -> tuple[float | None, float | None]:
    """Return the 95 % interval of exp of the median of logs (unit,), some perhaps infinite; none below 3."""
    if len(logs) < 3:
        return None, None
    rng = np.random.default_rng(seed)
    drawn = np.sort(logs[rng.integers(len(logs), size=(DRAWS, len(logs)))], axis=1)
    # The lower of two middle values: with infinite ones there is no mean of the two.
    medians = np.sort(drawn[:, (len(logs) - 1) // 2])
    return float(np.exp(medians[int(0.025 * DRAWS)])), float(np.exp(medians[int(0.975 * DRAWS)]))


def strength(values: Mapping[str, float], units: Mapping[str, Row]) -> float | None:
    """Return the median over units of values in units of the best natural image's rate, both above the mean."""
    spans = {n: units[n]["natural_best"] - units[n]["natural_mean"] for n in values}
    known = [values[n] / spans[n] for n in values if spans[n] > 0]
    return float(np.median(known)) if known else None


def presentations_to_best(
    curves: Mapping[str, Sequence[tuple[int, float]]], natural_mean: float
) -> dict[str, int | None]:
    """Return by optimiser after how many presentations it was at 90 % of the best end of all of them.

    `curves`: (presentations, true rate of what it would nominate) of the same unit, generator, noise and seed. None:
    not reached.
    """
    best = max((c[-1][1] for c in curves.values() if c), default=0.0)
    goal = natural_mean + REACHED * (best - natural_mean)
    return {name: next((int(n) for n, rate in c if rate >= goal), None) for name, c in curves.items()}
