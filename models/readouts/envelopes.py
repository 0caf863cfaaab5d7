"""Where on the feature maps a unit looks: Gaussian envelopes that weight the maps' cells in a kernel.

A kernel over all cells lets noise in from cells that a unit's receptive field does not touch. Weighting each cell by
an envelope is a prior on the spatial part of a factorised readout (Klindt et al. 2017; Cowley et al. 2023).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.readouts.shelf import Levels, Products, Shelf

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
Int = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Envelope:
    """A Gaussian in units of the picture's sides: centre and sd; sd infinite: every cell alike."""

    y: float = 0.5
    x: float = 0.5
    sd: float = np.inf

    def weights(self, rows: int, columns: int) -> F64:
        """Return the weights (rows * columns,) of a map's cells, 1 at the envelope's centre."""
        y = ((np.arange(rows) + 0.5) / rows - self.y) ** 2
        x = ((np.arange(columns) + 0.5) / columns - self.x) ** 2
        return np.exp(-(y[:, None] + x[None]) / (2 * self.sd**2)).ravel()


def grid(sds: Sequence[float] = (0.3,), steps: int = 3, margin: float = 0.3) -> tuple[Envelope, ...]:
    """Return the flat envelope and, for each sd, `steps` x `steps` centres from `margin` to 1 - `margin`."""
    centres = np.linspace(margin, 1 - margin, steps)
    return (Envelope(), *(Envelope(float(y), float(x), sd) for sd in sds for y in centres for x in centres))


@dataclass(frozen=True)
class Similarity:
    """A Gaussian kernel of feature maps: exp(-d / (2 scale)), d the weighted squared distance.

    Times 1 - drift + drift exp(-trials between / drift_trials): what a unit responds to may change over a session.
    """

    envelope: Envelope
    power: tuple[tuple[int, float], ...]
    """By block: mean squared distance from the mean under the envelope, so that blocks count alike."""
    scale: float
    drift: float = 0.0
    drift_trials: float = 1000.0

    def cell_weights(self, sizes: Mapping[int, tuple[int, int]]) -> dict[int, F64]:
        """Return by block the weight (cell,) of a squared distance."""
        return {block: self.envelope.weights(*sizes[block]) / power for block, power in self.power}

    def of(self, apart: F64, a_trial: Int, b_trial: Int) -> F64:
        """Return the kernel of squared distances (n, m) between images shown at trials (n,) and (m,)."""
        out: F64 = np.exp(-np.maximum(apart, 0) / (2 * self.scale))
        if self.drift:
            between = np.abs(a_trial[:, None] - b_trial[None])
            out = out * (1 - self.drift + self.drift * np.exp(-between / self.drift_trials))
        return out


def squared_distances(shelf: Shelf, levels: Levels, similarities: Sequence[Similarity]) -> list[tuple[F64, F64]]:
    """Return for each kernel the squared distances of new images to those so far (b, n), and among them (b, b)."""
    old, own, lengths = shelf.compared(levels)
    weights = [similarity.cell_weights(shelf.sizes) for similarity in similarities]
    here = {block: shelf.lengths(block) for block in shelf.sizes}
    sums = zip(*(_weighted(weights, found) for found in (lengths, here, old, own)), strict=True)
    out = []
    for mine, there, to_old, among in sums:
        between = mine[:, None] + mine[None] - 2 * among
        np.fill_diagonal(between, 0.0)
        out.append((mine[:, None] + there[None] - 2 * to_old, between))
    return out


def _weighted(weights: Sequence[Mapping[int, F64]], found: Products) -> list[F64]:
    """Return for each kernel the sum over blocks and cells of (cell, ...)."""
    shape = next(iter(found.values())).shape[1:]
    total = np.zeros((len(weights), int(np.prod(shape))))
    for block, values in found.items():
        total += np.stack([w[block] for w in weights]) @ values.reshape(len(values), -1).astype(np.float64)
    return list(total.reshape(len(weights), *shape))


class CandidateDistances:
    """Squared distances (envelope, image, image) among images `taken` of a shelf, summed up block by block.

    Float32: good to seven digits, for a choice and not for a readout.
    """

    def __init__(self, shelf: Shelf, taken: Int, envelopes: Sequence[Envelope]) -> None:
        self.powers: list[tuple[tuple[int, float], ...]] = [() for _ in envelopes]
        """Of each envelope: by block the mean squared distance from the mean, as `Similarity` takes it."""
        self._shelf, self._taken, self._envelopes = shelf, taken, envelopes
        self._total = np.zeros((len(envelopes), len(taken), len(taken)), np.float32)

    def add(self, block: int) -> None:
        """Add a block. Raises ValueError if it is the same in all images."""
        cells = self._shelf.cells(block)[:, self._taken]
        cells = cells - cells.mean(axis=1, keepdims=True)
        products = cells @ cells.transpose(0, 2, 1)
        weights = np.stack([e.weights(*self._shelf.sizes[block]) for e in self._envelopes])
        power = weights @ np.einsum("cii->c", products, dtype=np.float64) / len(self._taken)
        if not (power > 0).all():
            raise ValueError(f"block {block}: the images so far have the same features; a readout needs different ones")
        self.powers = [(*p, (block, float(new))) for p, new in zip(self.powers, power, strict=True)]
        scaled = (weights / power[:, None]).astype(np.float32)
        self._total += (scaled @ products.reshape(len(products), -1)).reshape(self._total.shape)

    def of(self, envelope: int) -> F32:
        """Return the distances (image, image) under one envelope."""
        products = self._total[envelope]
        squares = np.diag(products)
        out: F32 = squares[:, None] + squares[None] - 2 * products
        return out
