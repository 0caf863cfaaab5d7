"""The same readouts solved at once from all trials, slow and plain: what the streaming ones are checked against.

One dense factor for each ridge, all trials at once; leave-one-out from eigenvalues.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, eigh

from models.readouts.row_readout import RowReadout

F64 = npt.NDArray[np.float64]


def solve_at_once(kernel: F64, responses: F64, weights: F64, ridge: float) -> tuple[F64, F64]:
    """Return dual weights (trial, unit) and means (unit,) of one ridge: kernel (trial, trial), responses (trial, unit).

    Solves (K + ridge/w) alpha + c = y with sum of alpha 0, by a Cholesky factor of the whole matrix.
    """
    factor = cho_factor(kernel + np.diag(ridge / weights))
    ones = cho_solve(factor, np.ones(len(kernel)))
    mean = ones @ responses / ones.sum()
    return cho_solve(factor, responses - mean), mean


def difference(readout: RowReadout, kernel: F64) -> float:
    """Return the largest difference between a streamed readout's dual weights and means and those solved at once.

    `kernel` (trial, trial) of all trials, made anew; at the ridges and gains in use.
    """
    worst = 0.0
    for learned in readout.learned():
        inner = kernel[np.ix_(learned.trials, learned.trials)]
        found = learned.solution
        targets = learned.responses if learned.prior is None else learned.responses - found.gain * learned.prior
        ridges = readout.ridges(learned.units)
        for ridge in np.unique(ridges):
            mine = np.flatnonzero(ridges == ridge)
            alpha, mean = solve_at_once(inner, targets[:, mine], learned.weights, float(ridge))
            apart = max(np.abs(alpha - found.alpha[:, mine]).max(), np.abs(mean - found.mean[mine]).max())
            worst = max(worst, float(apart))
    return worst


def leave_one_out(kernel: F64, responses: F64, weights: F64, ridges: Sequence[float]) -> F64:
    """Return the prediction of each trial from all others (ridge, trial, unit), by eigenvalues; weights (trial,).

    For choosing kernels: one decomposition serves all ridges and units.
    """
    root = np.sqrt(weights)
    values, vectors = eigh(kernel * np.outer(root, root))
    values, vectors = np.maximum(values, 0), vectors * root[:, None]
    turned, ones = vectors.T @ responses, vectors.sum(axis=0)
    squares = vectors**2
    out = np.empty((len(ridges), *responses.shape))
    for k, ridge in enumerate(ridges):
        shrunk = 1 / (values + ridge)
        g = vectors @ (shrunk * ones)
        alpha = vectors @ (shrunk[:, None] * turned) - np.outer(g, g @ responses) / g.sum()
        diagonal = squares @ shrunk - g**2 / g.sum()
        out[k] = responses - alpha / diagonal[:, None]
    return out
