"""How a receptive field shows in a map of single squares, and how well each place, size and structure explains one.

Used by `models.agents.receptive_field`; pure. b(p, sign) is what a unit did with a square of that sign at position p,
in standard deviations of its rate; its variance is 1 / n(p, sign), n the number of presentations. Within a round
Gaussian g of standard deviation sigma around (right, up), taken as its mass within each square,

    b(p, white) = g(p) (m_w + x cos(2 pi f . (p - centre)) + y sin(2 pi f . (p - centre))) + noise,
    b(p, black) = g(p) (m_b - x cos(2 pi f . (p - centre)) - y sin(2 pi f . (p - centre))) + noise,

m_w, m_b, x, y ~ N(0, A^2). The first terms are what squares do whatever their place in the field (a complex cell), the
others ON and OFF parts side by side, of spatial frequency f (a simple cell): a Gaussian alone would settle on one of
the parts. This is the prior of automatic locality determination (Park and Pillow 2011), local in space and in
frequency, with one ridge of frequency. f = 0 has no such parts. Squares without a sign (gratings) have one m, and no f.

Given the place, sigma and f everything is linear and Gaussian, so that m, x and y integrate out: with Phi the columns
above (map entry, column), precisions V^-1 = diag(n), z = Phi' V^-1 b and G = Phi' V^-1 Phi = Q diag(l) Q',

    log p(b | field) - log p(b | no field) = sum_k (1/2) w_k^2 A^2 / (1 + A^2 l_k) - (1/2) log(1 + A^2 l_k),  w = Q' z

(Bishop 2006, eq. 3.86). A is averaged over. Thin fields that explain noise pay for it in the determinants.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, ndtr

F64 = npt.NDArray[np.float64]

SCALES = (0.15, 0.4, 1.0)  # A, in standard deviations of the rate over presentations
CYCLES_PER_SIGMA = (0.0, 0.2, 0.4)  # |f| sigma: no parts, two broad ones, three or more
ORIENTATIONS = 4  # of f
AT_ONCE = 50_000  # products of positions and templates that are made at once: a few milliseconds


class Squares(NamedTuple):
    """What was shown: where, of which signs, how often."""

    at: F64
    """(position, 3) right, up and size, degrees."""
    signs: tuple[int, ...]
    """1 white, -1 black; or 0 alone: neither (gratings)."""
    precision: F64
    """(sign, position) presentations; 0 where such a square was never shown."""

    def only(self, there: npt.NDArray[np.bool_]) -> "Squares":
        """Return some of the positions."""
        return Squares(self.at[there], self.signs, self.precision[:, there])


class Carrier(NamedTuple):
    """The structure of a field: its spatial frequency relative to its size."""

    cycles_per_sigma: float
    orientation: float
    """Direction of f, radians."""


def carriers(squares: Squares, cycles: Sequence[float]) -> tuple[Carrier, ...]:
    """Return structures with these frequencies, cycles per sigma; squares without a sign tell none but 0 apart."""
    angles = [k * np.pi / ORIENTATIONS for k in range(ORIENTATIONS)]
    some = [Carrier(f, angle) for f in cycles if f for angle in angles] if any(squares.signs) else []
    return (Carrier(0.0, 0.0), *some)


class Templates(NamedTuple):
    """Gaussians on the screen, degrees."""

    right: F64  # (template,)
    up: F64
    sigma: F64

    @staticmethod
    def over(right: F64, up: F64, sigma: F64) -> "Templates":
        """Return all combinations of centres and sigmas."""
        grids = np.meshgrid(right, up, sigma, indexing="ij")
        return Templates(*(grid.ravel() for grid in grids))

    def pieces(self, squares: Squares) -> "list[Templates]":
        """Return the same in pieces that are worked on at once."""
        step = max(1, AT_ONCE // len(squares.at))
        return [Templates(*(axis[k : k + step] for axis in self)) for k in range(0, len(self.right), step)]


class Explained:
    """Some templates of one structure, ready to be compared with any maps of the same squares."""

    def __init__(self, squares: Squares, of: Templates, carrier: Carrier) -> None:
        """Compute columns and G."""
        self._squares = squares
        self._g, self._waves = _columns(squares.at, of, carrier)
        signs, (count, parts) = squares.signs, (len(squares.signs), len(self._waves))
        self.gram = np.zeros((len(of.right), count + parts, count + parts))
        square, both = self._g**2, squares.precision.sum(axis=0)
        for k in range(count):
            self.gram[:, k, k] = square.T @ squares.precision[k]
        for i, wave in enumerate(self._waves):
            for k, sign in enumerate(signs):
                cross = sign * ((self._g * wave).T @ squares.precision[k])
                self.gram[:, k, count + i] = self.gram[:, count + i, k] = cross
            for j in range(i, parts):
                product = (wave * self._waves[j]).T @ both
                self.gram[:, count + i, count + j] = self.gram[:, count + j, count + i] = product
        size, self._vectors = np.linalg.eigh(self.gram)
        self._size = np.maximum(size, 0.0)[:, :, None]

    def along(self, measured: F64) -> F64:
        """Return z (template, column, unit) of maps (sign, position, unit)."""
        weighted = self._squares.precision[:, :, None] * measured
        signed = np.einsum("s,spu->pu", np.array(self._squares.signs, np.float64), weighted)
        columns = [self._g.T @ one for one in weighted] + [wave.T @ signed for wave in self._waves]
        return np.stack(columns, axis=1)

    def evidence(self, measured: F64, scales: Sequence[float] = SCALES) -> F64:
        """Return log p(maps | field) - log p(maps | no field) (template, unit) for maps (sign, position, unit)."""
        turned = np.einsum("tck,tcu->tku", self._vectors, self.along(measured)) ** 2
        each = [
            (0.5 * turned * (a**2 / (1 + a**2 * self._size)) - 0.5 * np.log1p(a**2 * self._size)).sum(axis=1)
            for a in scales
        ]
        return np.asarray(each[0] if len(each) == 1 else logsumexp(each, axis=0) - np.log(len(each)))

    def weights(self, measured: F64) -> F64:
        """Return the posterior mean (column,) of m of each sign, x and y: of one template and one unit's maps."""
        precision = np.eye(self.gram.shape[1]) / SCALES[len(SCALES) // 2] ** 2
        return np.asarray(np.linalg.solve(precision + self.gram[0], self.along(measured)[0, :, 0]))

    def maps(self, weights: F64) -> F64:
        """Return the maps (sign, position) that one template with these weights makes."""
        count = len(self._squares.signs)
        wave = sum((w * one[:, 0] for w, one in zip(weights[count:], self._waves, strict=True)), np.zeros(len(self._g)))
        signs = zip(self._squares.signs, weights[:count], strict=True)
        return np.stack([self._g[:, 0] * weight + sign * wave for sign, weight in signs])


def _columns(squares: F64, of: Templates, carrier: Carrier) -> tuple[F64, tuple[F64, ...]]:
    """Return g (position, template), and g times cos and g times sin where there is a frequency.

    All are at most 1, for the largest square in the middle of a field.
    """
    largest = 2 * ndtr(squares[:, 2].max() / 2 / of.sigma) - 1
    axes = [_along(squares, axis, centre, of.sigma) for axis, centre in enumerate((of.right, of.up))]
    g = axes[0] * axes[1] / largest**2
    if not carrier.cycles_per_sigma:
        return g, ()
    parts = (np.cos(carrier.orientation), np.sin(carrier.orientation))
    waves = [
        _wave(squares, axis, centre, of.sigma, carrier.cycles_per_sigma * part)
        for axis, (centre, part) in enumerate(zip((of.right, of.up), parts, strict=True))
    ]
    wave = g * (waves[0] * waves[1])
    return g, (wave.real, wave.imag)


def _along(squares: F64, axis: int, centre: F64, sigma: F64) -> F64:
    """Return the mass (position, template) of Gaussians between two sides of each square."""
    pairs, which = np.unique(centre + 1j * sigma, return_inverse=True)  # a grid has each of them often
    off, half = squares[:, axis, None] - pairs.real, squares[:, 2, None] / 2
    inside: F64 = ndtr((off + half) / pairs.imag) - ndtr((off - half) / pairs.imag)
    return inside[:, which]


def _wave(squares: F64, axis: int, centre: F64, sigma: F64, cycles: float) -> npt.NDArray[np.complex128]:
    """Return exp(2 pi i f (p - centre)) (position, template) along one axis, its mean over each square but for g."""
    pairs, which = np.unique(centre + 1j * sigma, return_inverse=True)
    frequency = cycles / pairs.imag
    mean = np.sinc(frequency * squares[:, 2, None])
    return np.asarray((mean * np.exp(2j * np.pi * frequency * (squares[:, axis, None] - pairs.real)))[:, which])
