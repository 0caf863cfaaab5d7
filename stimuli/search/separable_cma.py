"""Separable CMA-ES: one variance per number of the code, so memory and time grow with N and not with its square.

Made by `factory`. Ros & Hansen (2008), "A simple modification in CMA-ES achieving linear time and space complexity",
PPSN X: 296-305. N: size of a code, lambda: population, w: rank weights of the better half, d = sqrt(diag C). With z
drawn from N(0, I), codes are x = m + sigma d z (all products number by number):

    m     <- sum w x
    ps    <- (1 - cs) ps + sqrt(cs (2 - cs) mueff) sum w z
    pc    <- (1 - cc) pc + h sqrt(cc (2 - cc) mueff) d sum w z      h: 0 while |ps| is unusually long, else 1
    C     <- (1 - ccov) C + ccov / mucov pc^2 + ccov (1 - 1 / mucov) sum w (d z)^2
    sigma <- sigma exp(cs / ds (|ps| / chiN - 1))

cs = (mueff + 2) / (N + mueff + 3), ds = 1 + cs + 2 max(0, sqrt((mueff - 1) / (N + 1)) - 1), cc = 4 / (N + 4),
mucov = mueff; ccov is the default of the full method times (N + 2) / 3, the one change of the paper.

Start. "matched": the first generation are codes of the generator's prior and m their weighted mean; sigma d begins as
the sd of each number in the prior, so that the codes of the second generation are as long as those of the first; paths
begin with the second update. "as_published": codes around 0 with sigma 2 for all, as in the benchmark of Wang & Ponce
(2022).

Missing scores: see `recombination`. Repeated rows of a batch count as their mean. Late rows move nothing and count for
`nominate`: by default the code with the best mean score; "center" is what its authors advise under noise.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from stimuli.search.cma import GaussianCMA, GaussianSettings
from stimuli.search.optimiser import F32, F64, Asked, Origin
from stimuli.search.recombination import Ranked, rank_weights

PUBLISHED_SIGMA = 2.0


@dataclass(frozen=True)
class SeparableSettings(GaussianSettings):
    """Settings of the separable CMA-ES; as published it begins around 0 with step size 2."""


class SeparableCMA(GaussianCMA):
    """Separable CMA-ES (Ros & Hansen 2008)."""

    def __init__(
        self, settings: SeparableSettings, first: F32 | None, mean: F64 | None, sd: F64, rng: np.random.Generator
    ) -> None:
        """Begin with the codes `first` (row, latent), or with draws around `mean` (latent,); one of them is None.

        `sd` (latent,): standard deviation of the first draws in each number.
        """
        if (first is None) == (mean is None):
            raise ValueError("give the first codes or the first mean")
        size = len(sd)
        super().__init__(size, None if first is None else np.array(first, dtype=np.float32), rng)
        self.settings = settings
        self._mean: F64 | None = None if mean is None else np.array(mean, dtype=np.float64)
        self._sigma = float(np.sqrt(np.mean(np.square(sd))))
        self._variance: F64 = np.square(sd / self._sigma)
        effective = 1.0 / float(np.sum(np.square(rank_weights(settings.population))))
        self._cs = (effective + 2) / (size + effective + 3)
        self._ds = 1 + self._cs + 2 * max(0.0, np.sqrt((effective - 1) / (size + 1)) - 1)
        self._cc = 4 / (size + 4)
        full = 2 / (effective * (size + np.sqrt(2)) ** 2)
        full += (1 - 1 / effective) * min(1.0, (2 * effective - 1) / ((size + 2) ** 2 + effective))
        self._ccov, self._mucov = min(1.0, full * (size + 2) / 3), effective
        self._chi = np.sqrt(size) * (1 - 1 / (4 * size) + 1 / (21 * size**2))
        self._ps, self._pc = np.zeros(size), np.zeros(size)
        self._z: F64 = np.empty((0, size))  # the draws of the open batch
        self._updates = 0

    @property
    def sd(self) -> F64:
        """Standard deviation of each number (latent,) in the next draws."""
        out: F64 = self._sigma * np.sqrt(self._variance)
        return out

    def _begin(self) -> Asked:
        return self._draw(()) if self._first is None else super()._begin()

    def _update(self, best: Ranked) -> None:
        d, z = np.sqrt(self._variance), self._z[best.rows]
        step, root = best.weights @ z, np.sqrt(best.effective)
        self._mean = best.weights @ self._record.codes().astype(np.float64)[best.rows]
        self._ps = (1 - self._cs) * self._ps + np.sqrt(self._cs * (2 - self._cs)) * root * step
        self._updates += 1
        length = float(np.linalg.norm(self._ps))
        # Early on the path is still short; its expected length is that of the sum of as many steps.
        expected = self._chi * np.sqrt(1 - (1 - self._cs) ** (2 * self._updates))
        h = 1.0 if length < (1.4 + 2 / (len(step) + 1)) * expected else 0.0
        self._pc = (1 - self._cc) * self._pc + h * np.sqrt(self._cc * (2 - self._cc)) * root * d * step
        rank_mu = best.weights @ np.square(d * z)
        self._variance = (
            (1 - self._ccov) * self._variance
            + self._ccov / self._mucov * np.square(self._pc)
            + self._ccov * (1 - 1 / self._mucov) * rank_mu
        )
        self._sigma *= float(np.exp(self._cs / self._ds * (length / self._chi - 1)))

    def _draw(self, parents: tuple[int, ...]) -> Asked:
        assert self._mean is not None  # noqa: S101 - set before the first draw
        self._z = self.rng.standard_normal((self.settings.population, len(self._mean)))
        codes = (self._mean + self.sd * self._z).astype(np.float32)
        origin = Origin(parents, "drawn around the mean of its parents", {"sigma": self._sigma})
        return self._record.open(self._record.add(codes, [origin] * len(codes)))

    def state(self) -> dict[str, Any]:
        """Return arrays and JSON-able values."""
        return {
            "record": self._record.state(),
            "first": None if self.generation or self._first is None else self._first.copy(),
            "rng": self.rng.bit_generator.state,
            "mean": None if self._mean is None else self._mean.copy(),
            "sigma": self._sigma,
            "variance": self._variance.copy(),
            "ps": self._ps.copy(),
            "pc": self._pc.copy(),
            "z": self._z.copy(),
            "updates": self._updates,
            "level": self._level,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of a search with the same settings."""
        self._record.restore(state["record"])  # refuses codes of another size
        self.rng.bit_generator.state = state["rng"]
        if state["first"] is not None:  # nothing was asked for yet
            self._first = np.array(state["first"], dtype=np.float32)
        self._mean = None if state["mean"] is None else np.array(state["mean"], dtype=np.float64)
        self._sigma, self._updates = float(state["sigma"]), int(state["updates"])
        self._variance = np.array(state["variance"], dtype=np.float64)
        self._ps, self._pc = np.array(state["ps"], dtype=np.float64), np.array(state["pc"], dtype=np.float64)
        self._z = np.array(state["z"], dtype=np.float64)
        self._level = None if state["level"] is None else float(state["level"])
