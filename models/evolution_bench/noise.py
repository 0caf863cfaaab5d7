"""What a measurement adds to the true rate, and what goes wrong in a disturbed session.

Draws come as one stream per presentation, the same for every optimiser: presentation k of a run meets the k-th uniform
draw, turned into a count or a gain by its quantile function. So two optimisers differ by their images, not by luck.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from rig.config.evolution_bench import Noise

F64 = npt.NDArray[np.float64]
Marks = npt.NDArray[np.bool_]

PRESENTATION_S = 0.5  # one image with its pause, for the drift
DROPPED = 0.2
LATE = 0.1
DRIFT_S = 600.0
DRIFT_TO = 0.5


def measured(rates: F64, uniform: F64, noise: Noise) -> F64:
    """Return one noisy score for each rate (n,), mean counts, from draws (n,) of the open interval 0 to 1.

    none: the rate itself. poisson: a Poisson count of that mean. gainL: rate * max(0, 1 + L z) with z standard normal
    and no counting noise, as Wang & Ponce (2022) simulate it.
    """
    if noise == "none":
        return rates.copy()
    if noise == "poisson":
        return poisson_quantile(uniform, rates)
    level = float(noise.removeprefix("gain"))
    out: F64 = rates * np.maximum(0.0, 1.0 + level * special.ndtri(uniform))
    return out


def poisson_quantile(uniform: F64, mean: F64) -> F64:
    """Return the smallest count k with P(count <= k) >= u, for each u (n,) and mean (n,)."""
    mean = np.maximum(mean, 1e-12)
    # pdtrik solves for a real k; the count is one of the two whole numbers beside it, or, by rounding, the next.
    k = np.maximum(np.ceil(special.pdtrik(uniform, mean)) - 1, 0)
    k = np.where(np.isfinite(k), k, 0.0)
    for _ in range(3):
        k = np.where(special.pdtr(k, mean) < uniform, k + 1, k)
    return k


@dataclass(frozen=True)
class Outcomes:
    """What becomes of the next presentations of a disturbed session."""

    gain: F64
    dropped: Marks
    late: Marks


class Stream:
    """The draws of a run, in the order of its presentations."""

    def __init__(self, seed: tuple[int, ...], disturbed: bool) -> None:
        """Begin; `seed` names unit and seed, not the optimiser."""
        self._measurement = np.random.default_rng([*seed, 1])
        self._faults = np.random.default_rng([*seed, 2])
        self._disturbed = disturbed
        self._falls_first = bool(self._faults.integers(2))
        self.shown = 0

    def uniform(self, count: int) -> F64:
        """Return the measurement draws (count,) of the next presentations, between 0 and 1 exclusively."""
        return np.clip(self._measurement.random(count), 1e-12, 1 - 1e-12)

    def outcomes(self, count: int) -> Outcomes:
        """Return what happens to the next `count` presentations, and count them as shown."""
        seconds: F64 = (self.shown + np.arange(count, dtype=np.float64)) * PRESENTATION_S
        self.shown += count
        if not self._disturbed:
            none = np.zeros(count, np.bool_)
            return Outcomes(np.ones(count), none, none)
        draw = self._faults.random(count)
        return Outcomes(drift(seconds, self._falls_first), draw < DROPPED, (draw >= DROPPED) & (draw < DROPPED + LATE))


def drift(seconds: F64, falls_first: bool) -> F64:
    """Return the unit's gain: it halves within 10 minutes, doubles within the next 10, and so on; or the other way."""
    leg = np.abs(np.mod(seconds / DRIFT_S, 2.0) - 1.0)  # 1 at the start, 0 after 10 minutes
    depth = 1.0 - leg if falls_first else leg
    out: F64 = DRIFT_TO**depth
    return out
