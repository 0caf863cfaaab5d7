"""How alike two feature vectors are, for readouts: linear (plain ridge) or Gaussian, fading with the trials between.

Features are scaled by the kernel, not by the data seen, so that old rows stay what they were as trials are added.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Int = npt.NDArray[np.intp]
Features = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Kernel:
    """a'b / scale or exp(-|a - b|^2 / (2 scale)), times 1 - drift + drift exp(-trials between / drift_trials)."""

    kind: Literal["linear", "gaussian"] = "linear"
    scale: float = 1.0
    """Squared length of features; `typical` gives one that suits."""
    drift: float = 0.0
    """Fraction of the signal's variance that changes over the session, 0 to 1."""
    drift_trials: float = 1000.0
    """After so many trials the changing part is alike to 37 %."""

    def __post_init__(self) -> None:
        if not (self.scale > 0 and 0 <= self.drift <= 1 and self.drift_trials > 0):
            raise ValueError(f"{self}: scale and drift_trials must be positive, drift from 0 to 1")

    def rows(self, a: Features, b: Features, a_trial: Int, b_trial: Int) -> F64:
        """Return k of features a (n, k) and b (m, k), shown at trials (n,) and (m,), as (n, m)."""
        a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        products = a @ b.T
        if self.kind == "linear":
            out = products / self.scale
        else:
            squares = [np.einsum("ij,ij->i", x, x) for x in (a, b)]
            apart = np.maximum(squares[0][:, None] + squares[1][None] - 2 * products, 0)
            out = np.exp(-apart / (2 * self.scale))
        if self.drift:
            between = np.abs(a_trial[:, None] - b_trial[None])
            out = out * ((1 - self.drift) + self.drift * np.exp(-between / self.drift_trials))
        return out


def typical(features: Features, kind: Literal["linear", "gaussian"]) -> float:
    """Return the scale from features (n, k) that are typical: the variance, or half the median squared distance."""
    x = np.asarray(features, dtype=np.float64)
    x = x - x.mean(axis=0)
    squares = np.einsum("ij,ij->i", x, x)
    if kind == "linear":
        out = float(squares.mean())
    else:
        apart = squares[:, None] + squares[None] - 2 * (x @ x.T)
        out = float(np.median(apart[np.triu_indices(len(x), 1)])) / 2
    if not out > 0:
        raise ValueError("features that do not vary have no scale: give those of different images")
    return out
