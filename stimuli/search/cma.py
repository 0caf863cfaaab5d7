"""What the CMA-ES variants here do alike: settings, start, the order of ask and tell, and nomination.

`sphere_cma` shares the books and the start; `cholesky_cma` and `separable_cma`, which draw around a mean, the rest too.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from stimuli.search.optimiser import F32, F64, Asked, Nominee, Origin, Scores
from stimuli.search.recombination import Nominates, Ranked, Start, must_ask_again, nominated, ranked
from stimuli.search.record import Record


@dataclass(frozen=True)
class GaussianSettings:
    """Settings of a CMA-ES that draws around a mean."""

    population: int = 40
    """Codes per generation."""
    start: Start = "matched"
    """The first generation: codes of the prior, or as published, around 0."""
    sigma: float | None = None
    """First step size, in the units of the codes; None: the prior's sd, or what is published."""
    nominates: Nominates = "best_score"
    """What `nominate` puts first."""

    def __post_init__(self) -> None:
        """Refuse settings with which the algorithm has no meaning."""
        if self.population < 4 or (self.sigma is not None and not 0 < self.sigma < np.inf):
            raise ValueError(f"population {self.population}, sigma {self.sigma}; need 4 or more, and above 0")


class CMA:
    """The books of a search that begins with given codes."""

    def __init__(self, latent: int, first: F32 | None, rng: np.random.Generator) -> None:
        """Search codes of `latent` numbers, beginning with `first` (row, latent), if there are any."""
        self.rng = rng
        self._record = Record(latent)
        self._first = first
        self._level: float | None = None  # mean score of the codes that were last judged

    @property
    def generation(self) -> int:
        """Generations asked for."""
        return self._record.generation

    @property
    def asked(self) -> Asked | None:
        """The open generation."""
        return self._record.asked

    def tell(self, scores: Scores) -> None:
        """Take measurements."""
        self._record.tell(scores)

    def _begin(self) -> Asked:
        """Open the first generation, of the first codes."""
        assert self._first is not None  # noqa: S101 - who begins without says so
        start = [Origin((), "start code", {"index": float(k)}) for k in range(len(self._first))]
        return self._record.open(self._record.add(self._first, start))

    def _judge(self, scores: F64) -> Ranked | None:
        """Rank the scores of a batch (row,), NaN = missing, and take down their level."""
        if np.isfinite(scores).any():
            self._level = float(np.nanmean(scores))
        return ranked(scores)


class GaussianCMA(CMA, ABC):
    """A search that draws around a mean."""

    settings: GaussianSettings
    _mean: F64 | None

    @property
    def center(self) -> F32 | None:
        """Mean of the search distribution; None before there is one."""
        return None if self._mean is None else self._mean.astype(np.float32)

    def ask(self) -> Asked:
        """Update the search with what was told, and draw the next generation."""
        if self.generation == 0:
            return self._begin()
        scores = self._record.scores()
        single = self._mean is None and len(scores) == 1  # it is the mean, whatever its score
        if not single and must_ask_again(self._record, scores):
            return self._record.open_missing()
        best = self._judge(scores)
        if self._mean is None:  # with nothing measured the plain mean
            codes = self._record.codes().astype(np.float64)
            self._mean = codes.mean(axis=0) if best is None else best.weights @ codes[best.rows]
        elif best is not None:
            self._update(best)
        return self._draw(() if best is None else tuple(self._record.batch[row] for row in best.rows))

    def nominate(self, count: int) -> list[Nominee]:
        """Return the best codes by mean score, or as the settings say the centre first."""
        center = self.center if self.settings.nominates == "center" else None
        return nominated(self._record, count, center, self._level)

    @abstractmethod
    def _update(self, best: Ranked) -> None:
        """Move mean, paths and covariance by the better half of a batch."""

    @abstractmethod
    def _draw(self, parents: tuple[int, ...]) -> Asked:
        """Draw and open the next generation."""
