"""What fresh repeats say of the images that were shown back, from the tests of `models.statistics`. Pure.

Only presentations of the show-back count, of images fixed before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.statistics import Confusion, benjamini_hochberg, confusion, over_units, paired_tests

F64 = npt.NDArray[np.float64]
Repeats = Sequence[F64]  # of one image: rates (unit,) of each repeat, in the order of showing


@dataclass(frozen=True)
class Compared:
    """The most exciting image of a unit against one of its controls, from paired repeats."""

    unit: int
    control: str
    difference: float
    """Mean rate of the most exciting image less that of the control."""
    error: float
    p: float
    """Two-sided, by random swaps within pairs; NaN for too few pairs."""
    q: float
    """p corrected for all comparisons of all units (Benjamini and Hochberg)."""


def mean(repeats: Repeats, unit: int) -> tuple[float, float, int]:
    """Return a unit's mean rate to an image, its standard error, and the number of repeats."""
    values = np.array([rates[unit] for rates in repeats if np.isfinite(rates[unit])])
    n = len(values)
    error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return (float(values.mean()) if n else float("nan")), error, n


def compare(shown: Sequence[tuple[int, dict[str, Repeats]]], own: str) -> list[Compared]:
    """Return every comparison of the image `own` of each unit with its other images.

    `shown`: unit and the repeats of each of its images, by kind. The k-th repeat of one is paired with the k-th of the
    other: blocks are randomised, so these are neighbours in time, and slow drift falls out of their difference.
    """
    which = [(unit, kind) for unit, images in shown for kind in images if kind != own]
    of = dict(shown)
    longest = max((len(r) for images in of.values() for r in images.values()), default=0)
    first, second = np.full((2, longest, len(which)), np.nan)
    for k, (unit, kind) in enumerate(which):
        for column, name in ((first, own), (second, kind)):
            column[: len(of[unit][name]), k] = [rates[unit] for rates in of[unit][name]]
    if not which or not longest:
        return []
    found = paired_tests(first, second)
    figures = zip(which, found.difference, found.error, found.p, found.q, strict=True)
    return [Compared(unit, kind, float(d), float(e), float(p), float(q)) for (unit, kind), d, e, p, q in figures]


def confused(units: Sequence[int], images: Sequence[Repeats]) -> Confusion | None:
    """Return how the responses of `units` (rows) to each one's own image (columns) compare; None for a single unit."""
    if len(units) < 2 or not all(images):
        return None
    rates = np.concatenate([np.stack(list(repeats)) for repeats in images])[:, list(units)]
    sets = np.repeat(np.arange(len(images)), [len(repeats) for repeats in images])
    return confusion(rates, sets, np.arange(len(units)))


def told(
    shown: Sequence[tuple[int, dict[str, Repeats]]], own: str, names: Sequence[str], chance: float, over: bool
) -> dict[str, float]:
    """Return figures of images shown back, by name, NaN without data: `shown` as for `compare`, `names` of all units.

    row_maximum: share of units that their image `own` drove more than any other unit's. Once it is `over`: its p and
    interval (_p, _low, _high); for each comparison UNIT: p_* and q_*; over units better_* and worse_*: the share that
    the own image drove more, or less, with q at most `chance`; and population_*: of the signed rank test over units
    (`models.statistics.over_units`) their number _n_, _p_, _q_ (corrected for the controls), and the median ratio
    _ratio_ with _ratio_low_ and _ratio_high_. No test before all was shown: looking at each block would find what is
    not there.
    """
    out: dict[str, float] = {}
    units = [unit for unit, images in shown if own in images]
    found = confused(units, [images[own] for _, images in shown if own in images])
    if found is not None and found.tested:
        out["row_maximum"] = found.hits / found.tested
    if not over:
        return out
    if found is not None:
        out |= {"row_maximum_p": found.p, "row_maximum_low": found.fraction_low}
        out["row_maximum_high"] = found.fraction_high
    compared = compare([one for one in shown if own in one[1]], own)
    for one in compared:
        out |= {f"{names[one.unit]}: p_{one.control}": one.p, f"{names[one.unit]}: q_{one.control}": one.q}
    for control in dict.fromkeys(one.control for one in compared):
        of = [one for one in compared if one.control == control and np.isfinite(one.q)]
        apart = [one.difference for one in of if one.q <= chance]
        if of:
            out[f"better_{control}"] = sum(d > 0 for d in apart) / len(of)
            out[f"worse_{control}"] = sum(d < 0 for d in apart) / len(of)
    return out | _population(shown, own)


def _population(shown: Sequence[tuple[int, dict[str, Repeats]]], own: str) -> dict[str, float]:
    """Return the figures of the own image against each control over all units together, as Walker et al. 2019 claim."""
    means: dict[str, list[tuple[float, float]]] = {}
    for unit, images in shown:
        for kind in images if own in images else ():
            if kind != own:
                means.setdefault(kind, []).append((mean(images[own], unit)[0], mean(images[kind], unit)[0]))
    found = {kind: over_units(*np.array(pairs).T) for kind, pairs in means.items()}
    out: dict[str, float] = {}
    for (kind, one), q in zip(found.items(), benjamini_hochberg([one.p for one in found.values()]), strict=True):
        figures = {"n": one.units, "p": one.p, "q": q, "ratio": one.ratio, "ratio_low": one.low, "ratio_high": one.high}
        out |= {f"population_{name}_{kind}": float(value) for name, value in figures.items()}
    return out
