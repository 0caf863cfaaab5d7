"""The readout to beat: one block of the frozen network, each feature z-scored, linear kernel ridge, one solve."""

import numpy as np
import numpy.typing as npt

from models.readouts.batch import leave_one_out, solve_at_once
from models.refit_bench.recording import Session, Split

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]

RIDGES = 10.0 ** np.arange(-1.5, 2.1, 0.25)


def plain_prediction(session: Session, parts: Split, maps: F32) -> F64:
    """Return predicted responses (held-out image, unit) from maps (image, y, x, channel) of all images.

    Each unit's ridge has the least leave-one-out error on the training images.
    """
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    train = flat[parts.training]
    sd = train.std(axis=0)
    z = (flat - train.mean(axis=0)) / np.where(sd > 0, sd, 1)
    train, test = z[parts.training], z[parts.held_out]
    scale = np.square(train).sum(axis=1).mean()
    kernel, across = train @ train.T / scale, test @ train.T / scale
    responses, weights = session.responses[parts.training], session.repeats[parts.training].astype(np.float64)
    out = np.full((len(test), responses.shape[1]), np.nan)
    alike: dict[bytes, list[int]] = {}
    for unit in range(responses.shape[1]):
        alike.setdefault(weights[:, unit].tobytes(), []).append(unit)
    for units in alike.values():
        rows = np.flatnonzero(weights[:, units[0]])
        if len(rows) < 3:
            continue
        inner, y, w = kernel[np.ix_(rows, rows)], responses[rows][:, units], weights[rows, units[0]]
        ridges = RIDGES * w.mean()  # the noise of a mean of w trials is so much smaller, the grid is for the means
        errors = np.einsum("rtu,t->ru", (y - leave_one_out(inner, y, w, ridges)) ** 2, w)
        best = np.argmin(errors, axis=0)
        for k in np.unique(best):
            mine = np.flatnonzero(best == k)
            alpha, mean = solve_at_once(inner, y[:, mine], w, float(ridges[k]))
            out[:, np.array(units)[mine]] = across[:, rows] @ alpha + mean
    return out
