"""The inverse Cholesky factor of a growing positive definite matrix: rows are appended, never changed.

With W = inverse of the lower Cholesky factor of A, the inverse of A is W' W. A new row of A adds a row to W and touches
no older one, so that everything that is a sum over rows of W (dual weights, the diagonal of the inverse) is updated
by what the new rows add: O(n^2) a trial and no refactoring. Used by `models.readouts.dual_ridge`.

W is kept in blocks of rows that end at the diagonal: half the memory of a square, and each block is read once an
update while it is in the processor's cache.
"""

from collections.abc import Generator

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular

from models.in_steps import at_once

F64 = npt.NDArray[np.float64]

BLOCK = 256


class NotPositiveDefinite(ValueError):
    """The matrix is none that a kernel and a positive ridge can give."""


class InverseFactor:
    """W of a matrix A (n, n) that grows at its end."""

    def __init__(self) -> None:
        self.n = 0
        self._blocks: list[F64] = []

    def append(self, old: F64, new: F64) -> F64:
        """Append rows of A: `old` (b, n) against the rows there are, `new` (b, b) among themselves.

        Returns the new rows of W (b, n + b). Raises NotPositiveDefinite; then nothing has changed.
        """
        return at_once(self.append_in_steps(old, new))

    def append_in_steps(self, old: F64, new: F64) -> Generator[None, None, F64]:
        """Yield after each step, some ms for thousands of rows; return what `append` does. Changes nothing before."""
        n, b = self.n, len(new)
        if old.shape != (b, n) or new.shape != (b, b):
            raise ValueError(f"rows of shape {old.shape} and {new.shape} do not continue a matrix of {n} rows")
        across = np.empty((n, b))  # W old'
        back = np.zeros((b, n))  # (W old')' W
        turned = np.ascontiguousarray(old.T)
        for k, block in enumerate(self._blocks):
            first, last = k * BLOCK, min((k + 1) * BLOCK, n)
            used = block[: last - first, :last]
            across[first:last] = used @ turned[:last]
            back[:, :last] += across[first:last].T @ used
            yield
        try:
            corner = cholesky(new - across.T @ across, lower=True)
        except np.linalg.LinAlgError as error:
            raise NotPositiveDefinite(
                f"{b} trials after {n} do not fit: are there values that are not finite, or is the ridge not positive?"
            ) from error
        inverse = solve_triangular(corner, np.eye(b), lower=True)
        rows: F64 = np.concatenate([-inverse @ back, inverse], axis=1)
        self._keep(rows)
        return rows

    def _keep(self, rows: F64) -> None:
        for row in range(len(rows)):
            block, place = divmod(self.n, BLOCK)
            if place == 0:
                self._blocks.append(np.zeros((BLOCK, (block + 1) * BLOCK)))
            self.n += 1
            self._blocks[block][place, : self.n] = rows[row, : self.n]

    def copy(self) -> "InverseFactor":
        """Return one that grows on its own from here; full blocks never change, so that both have them."""
        out, full = InverseFactor(), self.n // BLOCK
        out.n, out._blocks = self.n, [*self._blocks[:full], *(block.copy() for block in self._blocks[full:])]
        return out

    def __deepcopy__(self, memo: object) -> "InverseFactor":
        """As `copy`: of thousands of trials hundreds of MB need no second place."""
        return self.copy()
