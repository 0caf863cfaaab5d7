"""The held-out score during training: per-unit correlations, accumulated slice by slice."""

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

EPS = 1e-8  # of variances: a silent unit or a constant prediction scores 0


class Correlations:
    """Correlation over presentations between prediction and response of each unit; missing responses are left out."""

    def __init__(self, units: int) -> None:
        self.sums: F64 = np.zeros((6, units))
        """Presentations, sums of prediction, response, their squares and their product."""

    def add(self, predicted: F32, responses: F32) -> None:
        """Add presentations (row, unit)."""
        there = np.isfinite(responses)
        p, r = np.where(there, predicted, 0).astype(np.float64), np.where(there, responses, 0).astype(np.float64)
        self.sums += np.stack([there.sum(0), p.sum(0), r.sum(0), (p * p).sum(0), (r * r).sum(0), (p * r).sum(0)])

    def values(self) -> F64:
        """Return the correlation of each unit (unit,), 0 where one of the two does not vary."""
        n, p, r, pp, rr, pr = self.sums
        n = np.maximum(n, 1)
        spread = np.maximum(pp / n - (p / n) ** 2, 0) * np.maximum(rr / n - (r / n) ** 2, 0)
        found: F64 = (pr / n - p * r / n**2) / np.sqrt(spread + EPS**2)
        return found
