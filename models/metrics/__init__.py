"""Honest scores of predictions and of data: each formula under its name, with an interval, or the reason why not.

Called by encoders, readouts, benches, agents and reports. Pure numpy; vectorised over units. docs/metrics.md explains
when to use which.
"""

from models.metrics.formulas import FORMULAS, Formula
from models.metrics.intervals import Bootstrap, Estimate
from models.metrics.live import LiveScores
from models.metrics.score import (
    correlation_to_average,
    feve,
    fraction_explainable,
    measure,
    oracle_conservative,
    oracle_jackknife,
    r2_er,
    scores,
    signal_to_noise,
    single_trial_correlation,
)
from models.metrics.sums import ImageSums, by_image

__all__ = [
    "FORMULAS",
    "Bootstrap",
    "Estimate",
    "Formula",
    "ImageSums",
    "LiveScores",
    "by_image",
    "correlation_to_average",
    "feve",
    "fraction_explainable",
    "measure",
    "oracle_conservative",
    "oracle_jackknife",
    "r2_er",
    "scores",
    "signal_to_noise",
    "single_trial_correlation",
]
