"""Kernel ridge regression that takes trials as they come: the exact solution after each, no refit.

Minimises, for each unit, sum_i w_i (y_i - f(x_i) - c)^2 + lambda |f|^2 over functions f of the kernel's space and an
unpenalised mean c; lambda is one of a grid, chosen per unit by the leave-one-out error in closed form:
with A = K + lambda diag(1/w), G = A^-1, g = G 1, s = 1'g (Rasmussen & Williams 2006, eq. 5.12; the mean too)

    c = g'y / s,    alpha = G y - g c,    y_i - prediction without trial i = alpha_i / (G_ii - g_i^2 / s)

With a prior mean p (what an earlier session's readout predicts), y becomes y - h p. The gain h, 0 to 1 per unit, has
the least leave-one-out error; residuals are linear in y, so that h = sum w e_y e_p / sum w e_p^2 of those of y and p.

Every trial in it has a response of every unit; `models.readouts.streaming` sees to units that come and go.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.in_steps import at_once
from models.readouts.inverse_factor import BLOCK, InverseFactor

F64 = npt.NDArray[np.float64]
Int = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Solution:
    """Per unit, at the ridge that leave-one-out prefers."""

    alpha: F64
    """Dual weights (trial, unit)."""
    mean: F64
    """c of the equation (unit,), in the responses' unit."""
    gain: F64
    """h of the equation (unit,); 0 without a prior mean."""
    ridge: Int
    """Which of the grid (unit,)."""
    left_out: F64
    """Prediction of each trial from all others (trial, unit)."""
    error: F64
    """Weighted mean square of the leave-one-out residuals over the grid (ridge, unit)."""


class DualRidge:
    """The sums of one kernel and one set of units, for each ridge of the grid."""

    def __init__(self, ridges: F64, units: int, prior: bool = False) -> None:
        """`ridges` (ridge,): the lambdas, positive, in the unit of the kernel. `prior`: trials bring prior means."""
        self.ridges = np.asarray(ridges, dtype=np.float64)
        if self.ridges.ndim != 1 or not len(self.ridges) or not np.all(self.ridges > 0):
            raise ValueError(f"ridges {ridges}: give positive numbers")
        self.trials = 0
        self._units, self._prior = units, prior
        self._factors = [InverseFactor() for _ in self.ridges]
        r, columns = len(self.ridges), 1 + units * (2 if prior else 1)
        self._right = np.zeros((0, columns))  # 1, the responses, the prior means
        self._weights = np.zeros(0)
        self._diagonal = np.zeros((r, 0))  # of G
        self._dual = np.zeros((r, 0, columns))  # G times these: the first column is g
        self._sums = np.zeros((r, columns))  # 1'G times these: the first one is s

    def append(self, old: F64, new: F64, responses: F64, weights: F64, prior: F64 | None = None) -> None:
        """Take b trials: kernel rows `old` (b, n) and `new` (b, b), responses (b, unit), weights (b,) positive."""
        at_once(self.append_in_steps(old, new, responses, weights, prior))

    def append_in_steps(
        self, old: F64, new: F64, responses: F64, weights: F64, prior: F64 | None = None
    ) -> Generator[None, None, None]:
        """Yield after each step of what `append` does: of no use until the last one."""
        n, end = self.trials, self.trials + len(new)
        self._room(end)
        taken = [np.ones((len(new), 1)), responses] + ([] if prior is None else [prior])
        self._right[n:end] = np.concatenate(taken, axis=1)
        self._weights[n:end] = weights
        right = self._right[:end]
        for k, ridge in enumerate(self.ridges):
            rows = yield from self._factors[k].append_in_steps(old, new + np.diag(ridge / weights))
            turned = rows @ right
            self._diagonal[k, :end] += np.einsum("ij,ij->j", rows, rows)
            self._dual[k, :end] += rows.T @ turned
            self._sums[k] += rows.sum(axis=1) @ turned
            yield
        self.trials = end

    def _room(self, trials: int) -> None:
        """Make room for so many, twice as much whenever it is used up."""
        there = len(self._weights)
        if trials <= there:
            return
        size = max(trials, 2 * there, BLOCK)
        self._right, self._weights = _longer(self._right, 0, size), _longer(self._weights, 0, size)
        self._diagonal, self._dual = _longer(self._diagonal, 1, size), _longer(self._dual, 1, size)

    def solution(self) -> Solution:
        """Return the exact solution for all trials so far; needs two of them."""
        return at_once(self.solution_in_steps())

    def solution_in_steps(self) -> Generator[None, None, Solution]:
        """Yield after each ridge of the grid; return what `solution` does."""
        n, u = self.trials, self._units
        if n < 2:
            raise ValueError(f"{n} trials: leave-one-out needs two")
        errors, gains = np.empty((len(self.ridges), u)), np.zeros((len(self.ridges), u))
        for k in range(len(self.ridges)):
            errors[k], gains[k] = self._error(k)
            yield
        chosen, unit = np.argmin(errors, axis=0), np.arange(u)
        gain = gains[chosen, unit]
        alpha, mean, left_out = np.empty((n, u)), np.empty(u), np.empty((n, u))
        for k in np.unique(chosen):
            here = unit[chosen == k]
            found, means, scale = self._dual_weights(int(k), 1 + here)
            if self._prior:
                more, offset, _ = self._dual_weights(int(k), 1 + u + here)
                found, means = found - gain[here] * more, means - gain[here] * offset
            alpha[:, here], mean[here] = found, means
            left_out[:, here] = self._right[:n, 1 + here] - found / scale[:, None]
            yield
        return Solution(alpha, mean, gain, chosen, left_out, errors / self._weights[:n].sum())

    def learned(self) -> tuple[F64, F64, F64 | None]:
        """Return responses (trial, unit), weights (trial,) and prior means (trial, unit)."""
        n, u = self.trials, self._units
        prior = self._right[:n, 1 + u :] if self._prior else None
        return self._right[:n, 1 : 1 + u], self._weights[:n], prior

    def _error(self, k: int) -> tuple[F64, F64]:
        """Return the weighted sum of squared leave-one-out residuals (unit,) of ridge `k`, and the gain."""
        u, weights = self._units, self._weights[: self.trials]
        residual, _, scale = self._dual_weights(k, slice(1, 1 + u))
        residual /= scale[:, None]
        gain = np.zeros(u)
        if self._prior:
            of_prior = self._dual_weights(k, slice(1 + u, None))[0] / scale[:, None]
            squares = weights @ of_prior**2
            crossed = weights @ (residual * of_prior)
            gain = np.clip(np.divide(crossed, squares, out=np.zeros(u), where=squares > 0), 0, 1)
            residual -= gain * of_prior
        return weights @ np.square(residual, out=residual), gain

    def _dual_weights(self, k: int, columns: Int | slice) -> tuple[F64, F64, F64]:
        """Return G y - g c (trial, column), c (column,) and G_ii - g_i^2 / s (trial,) for ridge `k`."""
        dual, s = self._dual[k, : self.trials], self._sums[k, 0]
        g, means = dual[:, 0], self._sums[k, columns] / s
        return dual[:, columns] - g[:, None] * means, means, self._diagonal[k, : self.trials] - g**2 / s

    def copied_in_steps(self) -> Generator[None, None, "DualRidge"]:
        """Yield after each step; return a copy that grows on its own from here."""
        out = DualRidge(self.ridges, self._units, self._prior)
        out.trials, out._factors = self.trials, []
        for factor in self._factors:
            out._factors.append(factor.copy())
            yield
        out._right, out._weights, out._diagonal = self._right.copy(), self._weights.copy(), self._diagonal.copy()
        out._dual, out._sums = self._dual.copy(), self._sums.copy()
        yield
        return out

    def part(self, units: Int) -> "DualRidge":
        """Return a copy for some of the units, which grows on its own from here."""
        out = DualRidge(self.ridges, len(units), self._prior)
        kinds = [np.zeros(1, np.intp), 1 + units, 1 + self._units + units]
        columns = np.concatenate(kinds if self._prior else kinds[:2])
        out.trials, out._factors = self.trials, [f.copy() for f in self._factors]
        # In the order of memory that copies have: over another one sums round otherwise, and only after a restart.
        out._right, out._weights = np.ascontiguousarray(self._right[:, columns]), self._weights.copy()
        out._diagonal = self._diagonal.copy()
        out._dual = np.ascontiguousarray(self._dual[:, :, columns])
        out._sums = np.ascontiguousarray(self._sums[:, columns])
        return out


def _longer(array: F64, axis: int, size: int) -> F64:
    """Return a copy with `size` places along `axis`, zeros at its end."""
    shape = list(array.shape)
    shape[axis] = size
    out = np.zeros(shape)
    out[tuple(slice(0, n) for n in array.shape)] = array
    return out
