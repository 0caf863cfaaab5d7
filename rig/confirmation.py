"""What fresh repeats say of images that were chosen before: means, errors, and whether two images differ.

Used by the confirm agent (its figures) and by the report (its words), on confirmation rows only: the score by which an
image was chosen among hundreds overrates it. Pure; every draw is seeded by the data's own size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

FLIPS = 9_999  # random sign flips; the smallest p that can come out is 1 / (FLIPS + 1)
LEAST_PAIRS = 6  # of fewer, no arrangement of signs is rarer than 1 in 32


@dataclass(frozen=True)
class Repeats:
    """One image and its scores in the confirmation block."""

    target: str
    source: str
    """evolved, reference or start."""
    stimulus_id: str
    scores: F64
    """(repeat,) in the order of showing, usable ones only."""

    @property
    def mean(self) -> float:
        """Mean score, NaN without any."""
        return float(self.scores.mean()) if len(self.scores) else float("nan")

    @property
    def error(self) -> float:
        """Standard error of the mean, NaN for fewer than two."""
        n = len(self.scores)
        return float(self.scores.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


@dataclass(frozen=True)
class Claim:
    """The image on which an evolution bet against the reference that was best before, from fresh repeats."""

    target: str
    evolved: Repeats
    reference: Repeats
    difference: float
    """Mean score of the evolved image less that of the reference."""
    error: float
    """Standard error of the difference, over pairs of repeats."""
    pairs: int
    p: float
    """Two-sided, by random sign flips of the differences of pairs; NaN for too few pairs."""
    p_corrected: float
    """The same, corrected for the number of targets (Holm 1979)."""


def sign_flip_p(differences: F64) -> float:
    """Return the two-sided p of a mean of `differences` (pair,) under random signs; NaN for fewer than LEAST_PAIRS.

    Monte Carlo with the observed arrangement counted as one of them, so that p is valid and never 0 (Phipson & Smyth
    2010). Assumes only that without an effect a difference is as likely as its negative.
    """
    n = len(differences)
    if n < LEAST_PAIRS:
        return float("nan")
    signs = np.random.default_rng([n, FLIPS]).integers(0, 2, (FLIPS, n), dtype=np.int8) * 2 - 1
    means = np.abs(signs @ differences)
    observed = abs(float(differences.sum()))
    return (1 + int((means >= observed * (1 - 1e-12)).sum())) / (FLIPS + 1)


def holm(p: Sequence[float]) -> list[float]:
    """Return p corrected for their number (Holm 1979, step down); NaN stays, and is not counted."""
    known = [k for k, value in enumerate(p) if not np.isnan(value)]
    out, least = list(p), 0.0
    for rank, k in enumerate(sorted(known, key=lambda k: p[k])):
        least = max(least, min(1.0, p[k] * (len(known) - rank)))
        out[k] = least
    return out


def claims(shown: Sequence[Repeats]) -> list[Claim]:
    """Return one claim for each target: its first evolved image against its first reference.

    `shown` holds the images in the order in which they were fixed: of each target and source the best bet first. The
    k-th repeat of one is paired with the k-th of the other: blocks are randomised, so these are neighbours in time, and
    slow drift falls out of their difference.
    """
    pairs = []
    for target in dict.fromkeys(one.target for one in shown):
        of = [one for one in shown if one.target == target]
        evolved = next((one for one in of if one.source == "evolved"), None)
        reference = next((one for one in of if one.source == "reference"), None)
        if evolved is not None and reference is not None:
            n = min(len(evolved.scores), len(reference.scores))
            pairs.append((target, evolved, reference, evolved.scores[:n] - reference.scores[:n]))
    p = [sign_flip_p(differences) for *_, differences in pairs]
    corrected = holm(p)
    out = []
    for k, (target, evolved, reference, differences) in enumerate(pairs):
        n = len(differences)
        error = float(differences.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
        apart = evolved.mean - reference.mean
        out.append(Claim(target, evolved, reference, apart, error, n, p[k], corrected[k]))
    return out
