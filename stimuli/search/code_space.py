"""Codes in units of their prior: coordinates that are independent and standard normal for ordinary images.

Part of the noise-aware search. A code is x = mean + F a + s b with a, b ~ N(0, I): F the shared part of the prior's
covariance, s**2 what it leaves of sd**2 (stimuli.generators.generator.Prior). Without F they are (x - mean) / sd.
A step in these coordinates changes an image as ordinary images differ, and costs nothing in numbers that never vary.
"""

import numpy as np

from stimuli.generators.generator import Prior
from stimuli.search.optimiser import F32, F64

SMALLEST_SD = 1e-6  # of the largest: numbers that the prior does not vary are left at their mean


class CodeSpace:
    """The way between codes (row, latent) and coordinates (row, dimension)."""

    def __init__(self, prior: Prior) -> None:
        """Measure codes in the units of `prior`; raises ValueError if that never varies."""
        if not float(prior.sd.max()) > 0:
            raise ValueError("the prior of this generator does not vary; give it a standard deviation above 0")
        self.latent = len(prior.mean)
        self._mean, self._rectified = prior.mean.astype(np.float32), prior.rectified
        variance = np.square(prior.sd, dtype=np.float64)
        self._factor: F32 | None = None if prior.factor is None else prior.factor.astype(np.float32)
        if self._factor is not None:
            variance = np.maximum(variance - np.square(self._factor, dtype=np.float64).sum(axis=1), 0)
        alone = np.sqrt(variance)
        alone[alone < SMALLEST_SD * float(prior.sd.max())] = 0
        self._varying = np.flatnonzero(alone)
        self._alone = alone[self._varying].astype(np.float32)
        self._shared = 0 if self._factor is None else self._factor.shape[1]
        self.dimension = self._shared + len(self._varying)

    def codes(self, z: F32 | F64) -> F32:
        """Return the codes (row, latent) at coordinates z (row, dimension)."""
        z = np.asarray(z, dtype=np.float32)
        out = np.repeat(self._mean[None], len(z), axis=0)
        out[:, self._varying] += self._alone * z[:, self._shared :]
        if self._factor is not None:
            for row, part in zip(out, z, strict=True):  # one by one: a code must not depend on its neighbours
                row += self._factor @ part[: self._shared]
        return np.maximum(out, np.float32(0)) if self._rectified else out

    def coordinates(self, codes: F32) -> F64:
        """Return the shortest coordinates (row, dimension) of codes (row, latent).

        With D = diag(s**2): b = s D^-1 (x - mean - F a) and a the least squares solution that keeps both short,
        a = (I + F' D^-1 F)^-1 F' D^-1 (x - mean). Of numbers that only F varies, s counts as the smallest that varies.
        """
        difference = (codes - self._mean).astype(np.float64)
        alone = np.full(self.latent, float(self._alone.min()) if len(self._alone) else 1.0)
        alone[self._varying] = self._alone
        shared = np.zeros((len(codes), 0))
        if self._factor is not None:
            factor = self._factor.astype(np.float64)
            scaled = factor / np.square(alone)[:, None]
            inner = np.eye(self._shared) + factor.T @ scaled
            shared = np.linalg.solve(inner, scaled.T @ difference.T).T
            difference = difference - shared @ factor.T
        out: F64 = np.concatenate([shared, (difference / alone)[:, self._varying]], axis=1)
        return out
