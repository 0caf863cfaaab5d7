"""Scores of a finished table of responses: one function for each formula, and all at once."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from models.metrics.formulas import FORMULAS
from models.metrics.intervals import Bootstrap, Estimate, estimate
from models.metrics.sums import ImageSums

F64 = npt.NDArray[np.float64]
DEFAULT = Bootstrap()


def measure(name: str, sums: ImageSums, bootstrap: Bootstrap | None = DEFAULT) -> Estimate:
    """Return the score `name` (a key of FORMULAS) from sums that were folded already."""
    if name not in FORMULAS:
        raise ValueError(f"there is no score {name!r}; there are {', '.join(FORMULAS)}")
    return estimate(FORMULAS[name], sums, bootstrap)


def scores(
    prediction: F64 | None,
    responses: F64,
    names: Iterable[str] | None = None,
    bootstrap: Bootstrap | None = DEFAULT,
) -> dict[str, Estimate]:
    """Return scores by name for `prediction` (image, unit) and `responses` (image, repeat, unit), NaN where missing.

    `names` None: all that need no prediction, and with a prediction all.
    """
    chosen = [n for n, f in FORMULAS.items() if prediction is not None or not f.predicts] if names is None else names
    chosen = list(chosen)
    if prediction is None and (needy := [n for n in chosen if n in FORMULAS and FORMULAS[n].predicts]):
        raise ValueError(f"{needy[0]} compares responses with a prediction; give one")
    sums = ImageSums.of(prediction, responses)
    return {name: measure(name, sums, bootstrap) for name in chosen}


def single_trial_correlation(prediction: F64, responses: F64, bootstrap: Bootstrap | None = DEFAULT) -> Estimate:
    """Return the correlation of `prediction` (image, unit) with single responses (image, repeat, unit).

    mean(z1 z2) over all trials, sd with ddof 0. Cannot reach 1: sqrt(FEV) is its ceiling.
    """
    return measure("single_trial_correlation", ImageSums.of(prediction, responses), bootstrap)


def correlation_to_average(prediction: F64, responses: F64, bootstrap: Bootstrap | None = DEFAULT) -> Estimate:
    """Return the correlation of `prediction` with the mean over repeats of `responses`; rises with their number."""
    return measure("correlation_to_average", ImageSums.of(prediction, responses), bootstrap)


def oracle_jackknife(responses: F64, bootstrap: Bootstrap | None = DEFAULT) -> Estimate:
    """Return the correlation of each trial with the mean of the other repeats: below the ceiling, by their noise."""
    return measure("oracle_jackknife", ImageSums.of(None, responses), bootstrap)


def oracle_conservative(responses: F64, bootstrap: Bootstrap | None = DEFAULT) -> Estimate:
    """Return V / sqrt(V (V + W)): variances (ddof 0) of image means and within images; above the ceiling."""
    return measure("oracle_conservative", ImageSums.of(None, responses), bootstrap)


def fraction_explainable(responses: F64, bootstrap: Bootstrap | None = DEFAULT) -> Estimate:
    """Return FEV = (var_all - s2) / var_all: what part of the single responses' variance the image decides."""
    return measure("fev", ImageSums.of(None, responses), bootstrap)


def feve(prediction: F64, responses: F64, bootstrap: Bootstrap | None = DEFAULT) -> Estimate:
    """Return FEVe = 1 - (mean (r - p)^2 - s2) / (var_all - s2), where FEV is above .15.

    Scale and offset of the prediction count.
    """
    return measure("feve", ImageSums.of(prediction, responses), bootstrap)


def signal_to_noise(counts: F64, bootstrap: Bootstrap | None = DEFAULT) -> Estimate:
    """Return the variance of image means over the noise variance of Anscombe-transformed `counts` (not rates)."""
    return measure("signal_to_noise", ImageSums.of(None, counts), bootstrap)


def r2_er(prediction: F64, responses: F64, bootstrap: Bootstrap | None = DEFAULT) -> Estimate:
    """Return R2_ER: the squared correlation of the prediction with the noise-free tuning, unbiased.

    Scale and offset of the prediction do not count. Single values may lie below 0 or above 1.
    """
    return measure("r2_er", ImageSums.of(prediction, responses), bootstrap)
