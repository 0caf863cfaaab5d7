"""What the CMA-ES variants here share: rank weights for what was measured, and when to ask again.

Missing measurements, in all of them: the update uses the codes that were measured, with the weights of the published
formula for their number. If fewer than half of a batch were measured, its other codes are asked for again, at most
`AGAIN_AT_MOST` times; if still fewer than `LEAST_MEASURED` were, the distribution stays as it is and new codes are
drawn. Other codes that were not measured are let go: they were random draws, and new draws are as good, while old ones
would pull the mean back to where they were drawn.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from stimuli.search.optimiser import F32, F64, Nominee
from stimuli.search.record import AGAIN_AT_MOST, Record

LEAST_MEASURED = 4  # two parents of four: with fewer there is nothing to select among

Start = Literal["matched", "as_published"]
Nominates = Literal["best_score", "center"]


@dataclass(frozen=True)
class Ranked:
    """The better half of what was measured, best first."""

    rows: npt.NDArray[np.intp]
    """(parent,) rows of the batch."""
    weights: F64
    """(parent,) of the recombination; their sum is 1."""

    @property
    def effective(self) -> float:
        """Variance-effective number of parents, 1 / sum of squared weights."""
        return 1.0 / float(np.sum(np.square(self.weights)))


def rank_weights(count: int) -> F64:
    """Return the weights of the best half of `count` codes: log((count + 1) / 2) - log(rank), normalised.

    mu = count / 2 parents; the formula holds mu + 1/2 (Hansen & Ostermeier; Wang & Ponce 2022 take the same).
    """
    parents = count // 2
    raw = np.log(count / 2 + 0.5) - np.log(np.arange(1, parents + 1))
    out: F64 = raw / raw.sum()
    return out


def ranked(scores: F64) -> Ranked | None:
    """Rank scores (row,), NaN = missing; None if too few were measured to select. Ties: in order of rows."""
    measured = np.flatnonzero(np.isfinite(scores))
    if measured.size < LEAST_MEASURED:
        return None
    order = measured[np.argsort(-scores[measured], kind="stable")]
    weights = rank_weights(measured.size)
    return Ranked(order[: len(weights)], weights)


def must_ask_again(record: Record, scores: F64) -> bool:
    """Return whether too little of the open batch was measured and it is not yet too late to wait for it."""
    return bool(2 * np.isfinite(scores).sum() < len(scores)) and record.again < AGAIN_AT_MOST


def nominated(record: Record, count: int, center: F32 | None, level: float | None) -> list[Nominee]:
    """Return the centre of the search, then the codes with the best mean score; `count` together.

    `level`: mean score of the codes last drawn around the centre, or None. It is a careful estimate: in many dimensions
    the centre is better than most codes around it.
    """
    if center is None or level is None:
        return record.nominate(count)
    return [Nominee(None, center, level, None, 0), *record.nominate(count - 1)][:count]
