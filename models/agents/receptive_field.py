"""Receptive fields from sparse noise: where a unit's field lies, how large it is, and whether there is one at all.

Used by the map agent; pure. Each presentation is a set of squares, white, black or of any sign (gratings). First the
maps: b(p, sign) is the mean rate with a square of that sign at position p, less the mean of the block (which slow drift
may move), in standard deviations of the rate; its variance is 1 / n(p, sign). Then the field: a round Gaussian g of
standard deviation sigma around (right, up), taken as its mass within each square. Within it the unit responds, outside
it does not:

    b(p, sign) ~ Normal( m(sign) g(p),  1 / n(p, sign) + (a g(p))**2 ).

`m` is what white and black have in common over the field; `a` is what changes from place to place within it. A simple
cell, whose ON and OFF parts lie side by side, needs `a`: a Gaussian alone would settle on one of the parts (compare
automatic locality determination, Park and Pillow 2011). For given right, up, sigma and a, the best m has a closed form,
and the log likelihood is a sum over positions, so that a whole grid is one matrix product for all units. With a flat
prior over the grid the likelihood is the posterior, whose means and standard deviations are given.

The test against "no field" takes the largest gain of log likelihood anywhere on a coarse grid, and compares it with the
same from the unit's rates shuffled within blocks: the search over positions and sizes is corrected for, and rare spikes
are no problem. Beyond what so few shuffles tell, the chance is that of a Gumbel distribution with their mean and
variance (the largest of many gains; compare Winkler et al. 2016 on such approximations).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]

CENTERS, SIGMAS = 25, 6  # of the first grid, along each axis and of sizes
ZOOM_CENTERS, ZOOM_SIGMAS = 11, 7
TEST_CENTERS, TEST_SIGMAS = 13, 3
CHANGES = (0.0, 0.15, 0.3, 0.6, 1.2)  # a, in standard deviations of the rate over presentations
SHUFFLES = 250
LEAST_PRESENTATIONS = 30
ROUNDED = 4  # decimals at which two squares are the same, degrees


class ShownSquare(NamedTuple):
    """One square of a presentation, on the screen."""

    right_deg: float
    up_deg: float
    size_deg: float
    sign: int
    """1 white, -1 black, 0 neither (a grating)."""


@dataclass(frozen=True)
class ReceptiveField:
    """What is known of one unit's field; angles from the screen's centre, degrees, rates in those of the responses."""

    right_deg: float
    up_deg: float
    sigma_deg: float
    right_sd_deg: float
    """Standard deviation of the posterior: how well `right_deg` is known, not how wide the field is."""
    up_sd_deg: float
    sigma_sd_deg: float
    on_hz: float
    """Mean rate over the field that one of the largest white squares adds (any square, where they have no sign)."""
    off_hz: float
    """The same for a black one; 0 where squares have no sign."""
    p: float
    """Of so large a gain anywhere without a field."""
    gain: float
    """Log likelihood of the field less that of none."""
    presentations: int


class _Maps(NamedTuple):
    """What was shown: different squares of each sign, in which presentations; and the responses."""

    squares: F64  # (row, 3): right, up, size
    sign: I64  # (row,)
    shown: F64  # (presentation, row)
    blocks: I64  # (presentation,)
    rate: F64  # (presentation, unit), block means subtracted, in units of sd
    sd: F64  # (unit,)


class _Grid(NamedTuple):
    """Gaussians, and their mass within each square of the maps, 1 for a centred one of the largest size."""

    right: F64  # (template,)
    up: F64
    sigma: F64
    mass: F64  # (row, template)


class _Scan(NamedTuple):
    """Gains of log likelihood for one `a`."""

    gain: F64  # (template, unit)
    means: list[F64]  # for each sign (template, unit)


def fit(
    shown: Sequence[Sequence[ShownSquare]],
    block: I64,
    rate_hz: F64,
    center_deg: tuple[float, float],
    size_deg: float,
    rng: np.random.Generator,
    first_look: bool = False,
) -> list[ReceptiveField | None]:
    """Return the receptive field of each unit, None for one with fewer than 30 presentations or a constant rate.

    Parameters
    ----------
    shown
        Squares of each presentation; none for a blank.
    block
        (presentation,) number of the block that it was shown in.
    rate_hz
        (presentation, unit), NaN where a unit has no value.
    center_deg, size_deg
        The mapped part of the screen, degrees: centres are searched within it.
    rng
        Shuffles for the test.
    first_look
        Search on the coarse grid only: quicker, and good enough to say where to look more closely.
    """
    if rate_hz.ndim != 2 or not len(shown) == len(block) == len(rate_hz):
        raise ValueError(f"{len(shown)} presentations, {len(block)} blocks, rates {rate_hz.shape}: they do not agree")
    out: list[ReceptiveField | None] = [None] * rate_hz.shape[1]
    patterns, which = np.unique(np.isfinite(rate_hz), axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):  # units with the same presentations; commonly all of them
        rows: Marks = patterns[:, number]
        if rows.sum() < LEAST_PRESENTATIONS:
            continue
        units = np.flatnonzero(which.ravel() == number)
        chosen = [squares for squares, there in zip(shown, rows.tolist(), strict=True) if there]
        maps = _maps(chosen, block[rows], rate_hz[np.ix_(rows, units)])
        for k, field in _fitted(maps, center_deg, size_deg, rng, first_look).items():
            out[int(units[k])] = field
    return out


def _fitted(
    maps: _Maps, center_deg: tuple[float, float], size_deg: float, rng: np.random.Generator, first_look: bool
) -> dict[int, ReceptiveField]:
    """Return the fields of the units of `maps` whose rate is not constant."""
    precision = maps.shown.sum(axis=0)  # 1 / variance of b: each square's presentations
    measured = maps.shown.T @ maps.rate / np.maximum(precision, 1)[:, None]
    coarse = _grid(maps.squares, center_deg, size_deg, TEST_CENTERS, TEST_SIGMAS)
    grid = coarse if first_look else _grid(maps.squares, center_deg, size_deg, CENTERS, SIGMAS)
    scans = [_scan(grid, maps.sign, precision, measured, a) for a in CHANGES]
    gains = np.stack([s.gain for s in scans])  # (a, template, unit)
    out = {}
    for k in np.flatnonzero(maps.sd > 0).tolist():
        where = _posterior(grid, gains[:, :, k])
        fine = _zoomed(maps.squares, grid, where)
        closer = [_scan(fine, maps.sign, precision, measured[:, [k]], a) for a in CHANGES]
        near = np.stack([s.gain[:, 0] for s in closer])
        best_a, best = np.unravel_index(int(np.argmax(near)), near.shape)
        means = [float(m[best, 0]) * float(maps.sd[k]) for m in closer[int(best_a)].means]
        right, up, sigma, right_sd, up_sd, sigma_sd = _posterior(fine, near)
        out[k] = ReceptiveField(
            right, up, sigma, right_sd, up_sd, sigma_sd,
            on_hz=means[0], off_hz=means[1] if len(means) > 1 else 0.0,
            p=_chance(coarse, maps, k, precision, rng), gain=float(near.max()), presentations=len(maps.rate),
        )  # fmt: skip
    return out


def _maps(shown: Sequence[Sequence[ShownSquare]], block: I64, rate_hz: F64) -> _Maps:
    """Return where each different square was shown, and the rates as the model wants them."""
    number: dict[tuple[float, float, float, int], int] = {}
    for square in (s for squares in shown for s in squares):
        number.setdefault(_same(square), len(number))
    if not number:
        raise ValueError("no presentation has a square: nothing to map with")
    there = np.zeros((len(shown), len(number)))
    for row, squares in enumerate(shown):
        for square in squares:
            there[row, number[_same(square)]] = 1.0
    keys = np.array(list(number))
    blocks = np.unique(block, return_inverse=True)[1]
    count = np.bincount(blocks).astype(np.float64)
    sums = np.zeros((len(count), rate_hz.shape[1]))
    np.add.at(sums, blocks, rate_hz)
    rate = rate_hz - (sums / count[:, None])[blocks]
    sd: F64 = np.sqrt((rate**2).sum(axis=0) / max(len(rate) - len(count), 1))
    sd[sd < 1e-9 * np.maximum(np.abs(rate_hz).max(axis=0), 1e-300)] = 0.0
    return _Maps(keys[:, :3], keys[:, 3].astype(np.int64), there, blocks, rate / np.where(sd > 0, sd, 1.0), sd)


def _same(square: ShownSquare) -> tuple[float, float, float, int]:
    return (
        round(square.right_deg, ROUNDED), round(square.up_deg, ROUNDED), round(square.size_deg, ROUNDED), square.sign
    )  # fmt: skip


def _scan(grid: _Grid, sign: I64, precision: F64, measured: F64, a: float) -> _Scan:
    """Return the gain of log likelihood of each template over no field, for maps `measured` (row, unit)."""
    total = np.zeros((grid.mass.shape[1], measured.shape[1]))
    means = []
    noise = 1.0 / np.maximum(precision, 1e-9)[:, None]
    for one in sorted(set(sign.tolist()), reverse=True):  # white before black
        rows = (sign == one) & (precision > 0)
        g, b = grid.mass[rows], measured[rows]
        weight = 1.0 / (noise[rows] + (a * g) ** 2)  # (row, template)
        # log N(b; m g, v + a2g2) - log N(b; 0, v), summed over positions; best m = sum(w g b) / sum(w g g)
        total -= 0.5 * (np.log1p((a * g) ** 2 / noise[rows]).sum(axis=0)[:, None] + (weight - 1 / noise[rows]).T @ b**2)
        along, norm = (weight * g).T @ b, np.maximum((weight * g**2).sum(axis=0), 1e-12)[:, None]
        total += 0.5 * along**2 / norm
        means.append(along / norm)
    return _Scan(total, means)


def _chance(grid: _Grid, maps: _Maps, unit: int, precision: F64, rng: np.random.Generator) -> float:
    """Return how often the largest gain is as large where the unit's rates are shuffled within blocks."""
    rate = maps.rate[:, unit]
    order = np.argsort(maps.blocks, kind="stable")

    def largest(rates: F64) -> F64:  # (presentation, draw) -> (draw,)
        means = maps.shown.T @ rates / np.maximum(precision, 1)[:, None]
        gains = [_scan(grid, maps.sign, precision, means, a).gain.max(axis=0) for a in CHANGES[::2]]
        return np.asarray(np.max(gains, axis=0))

    key = rng.random((len(rate), SHUFFLES)) + maps.blocks[:, None]  # sorts within blocks
    shuffled = np.empty((len(rate), SHUFFLES))
    shuffled[order] = rate[np.argsort(key, axis=0)]
    null = largest(shuffled)
    scale = max(float(np.std(null, ddof=1)) * np.sqrt(6) / np.pi, 1e-9)
    above = (float(largest(rate[:, None])[0]) - float(np.mean(null))) / scale + np.euler_gamma
    return float(-np.expm1(-np.exp(-above)))


def _posterior(grid: _Grid, gain: F64) -> tuple[float, float, float, float, float, float]:
    """Return the posterior means of right, up and sigma, then their standard deviations; `gain` is (a, template)."""
    weight = np.exp(gain - gain.max()).sum(axis=0)
    weight /= weight.sum()
    axes = (grid.right, grid.up, grid.sigma)
    means = [float(weight @ v) for v in axes]
    sds = [float(np.sqrt(weight @ (v - m) ** 2)) for v, m in zip(axes, means, strict=True)]
    return means[0], means[1], means[2], sds[0], sds[1], sds[2]


def _grid(squares: F64, center_deg: tuple[float, float], size_deg: float, centers: int, sigmas: int) -> _Grid:
    """Return centres over the mapped part, and sigmas from a third of the smallest square to a third of the part."""
    at = np.linspace(-size_deg / 2, size_deg / 2, centers)
    smallest = float(squares[:, 2].min())
    sizes = np.geomspace(smallest / 3, max(size_deg / 3, smallest), sigmas)
    return _templates(squares, center_deg[0] + at, center_deg[1] + at, sizes)


def _zoomed(squares: F64, grid: _Grid, where: tuple[float, float, float, float, float, float]) -> _Grid:
    """Return a finer grid around the posterior of the first one: as wide as that, or a step of the first grid."""
    right, up, sigma, right_sd, up_sd, sigma_sd = where
    step = float(np.diff(np.unique(grid.right)).min())
    ratio = float(np.exp(np.diff(np.log(np.unique(grid.sigma))).min()))
    axes = [
        np.linspace(m - reach, m + reach, ZOOM_CENTERS)
        for m, reach in ((right, max(step, 3 * right_sd)), (up, max(step, 3 * up_sd)))
    ]
    wide = max(ratio, 1 + 3 * sigma_sd / sigma)
    return _templates(squares, axes[0], axes[1], np.geomspace(sigma / wide, sigma * wide, ZOOM_SIGMAS))


def _templates(squares: F64, right: F64, up: F64, sigma: F64) -> _Grid:
    """Return Gaussians at all combinations of centres and sigmas, with their mass in each square."""
    half = squares[:, 2, None, None] / 2

    def along(centres: F64, axis: int) -> F64:  # (row, centre, sigma): mass between the two sides
        off = squares[:, axis, None, None] - centres[:, None]
        high: F64 = ndtr((off + half) / sigma)
        return high - ndtr((off - half) / sigma)

    largest = 2 * ndtr(half.max() / sigma) - 1
    across, upward = along(right, 0) / largest, along(up, 1) / largest
    mass = across[:, :, None, :] * upward[:, None, :, :]
    grids = np.meshgrid(right, up, sigma, indexing="ij")
    return _Grid(grids[0].ravel(), grids[1].ravel(), grids[2].ravel(), mass.reshape(len(squares), -1))
