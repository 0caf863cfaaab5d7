"""Cholesky CMA-ES as Wang & Ponce used it for neurons (GECCO 2022), without its dense matrices.

Made by `factory`. N: size of a code, lambda: population, mu = lambda / 2 parents, w: rank weights. With z drawn from
N(0, I), codes are x = m + sigma z A. Each update, of the ranked draws:

    m     <- sum w x                                                     recombination
    ps    <- (1 - cs) ps + sqrt(cs (2 - cs) mueff) sum w z               path of the step size
    pc    <- (1 - cc) pc + sqrt(cc (2 - cc) mueff) (sum w z) A           path of the covariance
    sigma <- sigma exp(cs / damps (|ps| / chiN - 1))
    A     <- sqrt(1 - c1) (A + (sqrt(1 + n c1 / (1 - c1)) - 1) / n v' pc),  v = pc A^-1, n = |v|^2, now and then

As pc = v A, the last line is A <- sqrt(1 - c1) (I + b v' v) A: A is a product of as many such factors as there were
updates of it, and those are kept instead of two dense matrices of N x N (268 MB for 4,096). A stays near the identity,
since c1 is tiny: the decay of sigma does the work.

Start. "as_published": the first generation is the single code 0, whatever its score the mean stays there, and sigma
begins at 3. "matched": the first generation are codes of the generator's prior and m their weighted mean (the authors'
rule when they begin from given codes); sigma begins at the prior's sd, so that the codes of the second generation are
as long as those of the first. Both paths begin with the second update, as published.

Missing scores: see `recombination`. Repeated rows of a batch count as their mean. Late rows move nothing and count for
`nominate`. The paper reports the code with the best single score, the luckiest one; `nominate` takes the best mean.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from stimuli.search.cma import GaussianCMA, GaussianSettings
from stimuli.search.optimiser import F32, F64, Asked, Origin
from stimuli.search.recombination import Ranked, rank_weights

PUBLISHED_SIGMA = 3.0
UPDATES_PER_FACTOR = 11  # the authors' program asks for more than 10 generations since the last change of A


@dataclass(frozen=True)
class CholeskySettings(GaussianSettings):
    """Settings of the Cholesky CMA-ES; as published it begins with a single zero and step size 3."""


class FactorProduct:
    """A square matrix A that began as the identity and took rank-one updates; codes multiply it from the left.

    A = scale (I + V' T V) and its inverse (I + V' S V) / scale, V (update, latent), T and S small and triangular
    (the compact form of a product of such factors; Bischof & Van Loan 1987).
    """

    def __init__(self, latent: int) -> None:
        """Begin as the identity of size `latent`."""
        self.log_scale = 0.0
        self.vectors: F64 = np.empty((0, latent))
        self.forward: F64 = np.empty((0, 0))
        self.backward: F64 = np.empty((0, 0))

    def times(self, rows: F64) -> F64:
        """Return rows A, (row, latent)."""
        out: F64 = (rows + (rows @ self.vectors.T) @ self.forward @ self.vectors) * np.exp(self.log_scale)
        return out

    def times_inverse(self, rows: F64) -> F64:
        """Return rows A^-1, (row, latent)."""
        out: F64 = (rows + (rows @ self.vectors.T) @ self.backward @ self.vectors) * np.exp(-self.log_scale)
        return out

    def update(self, path: F64, rate: float) -> None:
        """Make A A' become (1 - rate) A A' + rate path' path for its path pc (latent,) at learning rate c1."""
        v = self.times_inverse(path[None])[0]
        n = float(v @ v)
        if n == 0:  # no path yet
            return
        root = float(np.sqrt(1 + n * rate / (1 - rate)))
        b, g = (root - 1) / n, (1 - 1 / root) / n
        shared = self.vectors @ v  # (update,)
        k = len(shared)
        forward, backward = np.zeros((k + 1, k + 1)), np.zeros((k + 1, k + 1))
        forward[:k, :k], forward[k, :k], forward[k, k] = self.forward, b * (shared @ self.forward), b
        backward[:k, :k], backward[:k, k], backward[k, k] = self.backward, -g * (self.backward @ shared), -g
        self.vectors = np.concatenate([self.vectors, v[None]])
        self.forward, self.backward = forward, backward
        self.log_scale += 0.5 * float(np.log1p(-rate))


class CholeskyCMA(GaussianCMA):
    """Cholesky CMA-ES (Wang & Ponce 2022)."""

    def __init__(self, settings: CholeskySettings, first: F32, sigma: float, rng: np.random.Generator) -> None:
        """Begin with the codes `first` (row, latent) and the step size `sigma`; a single row is the mean itself."""
        size = first.shape[1]
        super().__init__(size, np.array(first, dtype=np.float32), rng)
        self.settings = settings
        effective = 1.0 / float(np.sum(np.square(rank_weights(settings.population))))
        self._cs = np.sqrt(effective) / (np.sqrt(effective) + np.sqrt(size))
        self._cc = 4 / (size + 4)
        self._c1 = 2 / (size + np.sqrt(2)) ** 2
        self._damps = 1 + self._cs + 2 * max(0.0, np.sqrt((effective - 1) / (size + 1)) - 1)
        self._chi = np.sqrt(size) * (1 - 1 / (4 * size) + 1 / (21 * size**2))
        self._mean: F64 | None = None
        self._sigma = float(sigma)
        self._a = FactorProduct(size)
        self._ps, self._pc = np.zeros(size), np.zeros(size)
        self._z: F64 = np.empty((0, size))  # the draws of the open batch
        self._since_factor = 0  # generations drawn since A changed

    @property
    def sigma(self) -> float:
        """Step size."""
        return self._sigma

    def _update(self, best: Ranked) -> None:
        step = best.weights @ self._z[best.rows]
        root = np.sqrt(best.effective)
        self._mean = best.weights @ self._record.codes().astype(np.float64)[best.rows]
        self._ps = (1 - self._cs) * self._ps + np.sqrt(self._cs * (2 - self._cs)) * root * step
        moved = self._a.times(step[None])[0]
        self._pc = (1 - self._cc) * self._pc + np.sqrt(self._cc * (2 - self._cc)) * root * moved
        self._sigma *= float(np.exp(self._cs / self._damps * (np.linalg.norm(self._ps) / self._chi - 1)))
        if self._since_factor >= UPDATES_PER_FACTOR:
            self._since_factor = 0
            self._a.update(self._pc, self._c1)

    def _draw(self, parents: tuple[int, ...]) -> Asked:
        assert self._mean is not None  # noqa: S101 - set before the first draw
        self._z = self.rng.standard_normal((self.settings.population, len(self._mean)))
        self._since_factor += 1
        codes = (self._mean + self._sigma * self._a.times(self._z)).astype(np.float32)
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
            "ps": self._ps.copy(),
            "pc": self._pc.copy(),
            "z": self._z.copy(),
            "since_factor": self._since_factor,
            "level": self._level,
            "log_scale": self._a.log_scale,
            "vectors": self._a.vectors.copy(),
            "forward": self._a.forward.copy(),
            "backward": self._a.backward.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of a search with the same settings."""
        self._record.restore(state["record"])  # refuses codes of another size
        self.rng.bit_generator.state = state["rng"]
        if state["first"] is not None:  # nothing was asked for yet
            self._first = np.array(state["first"], dtype=np.float32)
        self._mean = None if state["mean"] is None else np.array(state["mean"], dtype=np.float64)
        self._sigma, self._since_factor = float(state["sigma"]), int(state["since_factor"])
        self._ps, self._pc = np.array(state["ps"], dtype=np.float64), np.array(state["pc"], dtype=np.float64)
        self._z = np.array(state["z"], dtype=np.float64)
        self._level = None if state["level"] is None else float(state["level"])
        self._a.log_scale = float(state["log_scale"])
        self._a.vectors = np.array(state["vectors"], dtype=np.float64)
        self._a.forward = np.array(state["forward"], dtype=np.float64)
        self._a.backward = np.array(state["backward"], dtype=np.float64)
