"""Receptive fields from sparse noise: where a unit's field lies, how large it is, and whether there is one at all.

Used by the map agent; pure. Each presentation is a set of squares, white, black or of any sign (gratings). First the
maps: the mean rate with a square of that sign at a position, less the mean of the block (which slow drift may move), in
standard deviations of the rate. Then `models.agents.field_model` says how well each place, size and structure explains
them: on a grid over the mapped part, and on two finer ones around what is left of it. With a flat prior over the grid
the evidence is the posterior, whose means and standard deviations are given.

Spikes are noisier where a unit fires more, so noise is not alike over presentations. The standard deviations of the
centre are widened (or narrowed) for that as in White's (1980) estimate of errors: by the squared residuals, weighted
with how much each presentation says of the place, over their mean.

The test against "no field" takes the largest evidence anywhere on a coarse grid, and compares it with the same from the
unit's rates shuffled within blocks: the search over positions and sizes is corrected for, and rare spikes are no
problem. Beyond what so few shuffles tell, the chance is that of a Gumbel distribution with their mean and variance (the
largest of many; compare Winkler et al. 2016 on such approximations).
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.agents.field_model import CYCLES_PER_SIGMA, SCALES, Carrier, Explained, Squares, Templates, carriers

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]
Steps = Generator[None, None, None]

CENTERS, SIGMAS = 17, 5  # of the first grid, along each axis and of sizes
ZOOM_CENTERS, ZOOM_SIGMAS = 9, 5
FAR = 4.0  # sigmas from a centre beyond which a field does nothing
REACH = 3.0  # standard deviations to each side that a finer grid spans
LEAST_SHARE = 1e-3, 0.01  # of the posterior that a structure must have to be looked at on the next finer grid
TEST_CENTERS, TEST_SIGMAS, TEST_CYCLES, TEST_SCALE = 11, 2, (0.0, 0.3), SCALES[1:2]
SHUFFLES = 250
SHUFFLES_AT_ONCE = 50
LEAST_PRESENTATIONS = 30
ROUNDED = 4  # decimals at which two squares are the same, degrees
MOST_WIDENED = 2.0  # times that unequal noise makes a standard deviation larger (or smaller), at most


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
    """Log evidence of the field less that of none."""
    presentations: int


class _Shown(NamedTuple):
    """What was shown in the presentations in which some units have values, and their responses."""

    squares: Squares
    there: F64
    """(presentation, sign, position) 1 where such a square was shown."""
    blocks: I64  # (presentation,)
    rate: F64  # (presentation, unit), block means subtracted, in units of sd
    sd: F64  # (unit,)

    def maps(self, rate: F64) -> F64:
        """Return the mean of rates (presentation, draw) with each square: (sign, position, draw)."""
        count = np.maximum(self.squares.precision, 1.0)
        flat = self.there.reshape(len(self.there), -1).T @ rate
        return np.asarray(flat.reshape(*count.shape, -1) / count[:, :, None])


class _Posterior(NamedTuple):
    right: float
    up: float
    sigma: float
    right_sd: float
    up_sd: float
    sigma_sd: float
    shares: tuple[tuple[Carrier, float], ...]
    """Of each structure."""
    gain: float
    """Largest evidence."""


def fit(
    shown: Sequence[Sequence[ShownSquare]],
    block: I64,
    rate_hz: F64,
    center_deg: tuple[float, float],
    size_deg: float,
    rng: np.random.Generator,
    first_look: bool = False,
) -> list[ReceptiveField | None]:
    """Return what `fitting` does, all at once."""
    out: list[ReceptiveField | None] = []
    for _ in fitting(out, shown, block, rate_hz, center_deg, size_deg, rng, first_look):
        pass
    return out


def fitting(
    out: list[ReceptiveField | None],
    shown: Sequence[Sequence[ShownSquare]],
    block: I64,
    rate_hz: F64,
    center_deg: tuple[float, float],
    size_deg: float,
    rng: np.random.Generator,
    first_look: bool = False,
) -> Steps:
    """Put the receptive field of each unit into `out`, in steps of about ten milliseconds.

    None for a unit with fewer than 30 presentations or a constant rate.

    Parameters
    ----------
    out
        Is filled when the last step is done.
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
        Search on a coarse grid only: quicker, and good enough to say where to look more closely.
    """
    if rate_hz.ndim != 2 or not len(shown) == len(block) == len(rate_hz):
        raise ValueError(f"{len(shown)} presentations, {len(block)} blocks, rates {rate_hz.shape}: they do not agree")
    found: list[ReceptiveField | None] = [None] * rate_hz.shape[1]
    patterns, which = np.unique(np.isfinite(rate_hz), axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):  # units with the same presentations; commonly all of them
        rows: Marks = patterns[:, number]
        if rows.sum() < LEAST_PRESENTATIONS:
            continue
        units = np.flatnonzero(which.ravel() == number)
        chosen = [squares for squares, there in zip(shown, rows.tolist(), strict=True) if there]
        data = _shown(chosen, block[rows], rate_hz[np.ix_(rows, units)])
        yield
        fields = _Fields(data, center_deg, size_deg, first_look)
        yield from fields.prepare()
        for k in np.flatnonzero(data.sd > 0).tolist():
            yield from fields.fit(k, rng)
            found[int(units[k])] = fields.fitted
    out[:] = found


class _Fields:
    """Fits the fields of units with the same presentations, one after the other."""

    def __init__(self, data: _Shown, center_deg: tuple[float, float], size_deg: float, first_look: bool) -> None:
        self._data, self._center, self._size_deg, self._first_look = data, center_deg, size_deg, first_look
        self._measured = data.maps(data.rate)
        self._carriers = carriers(data.squares, CYCLES_PER_SIGMA)
        self._grid = self._over(CENTERS, SIGMAS)
        self._evidence = np.empty((len(self._carriers), len(self._grid.right), data.rate.shape[1]))
        self._test: list[Explained] = []
        self.fitted: ReceptiveField | None = None

    def _over(self, centers: int, sigmas: int) -> Templates:
        """Return centres over the mapped part; sigmas from a third of the smallest square to a third of the part."""
        at = np.linspace(-self._size_deg / 2, self._size_deg / 2, centers)
        smallest = float(self._data.squares.at[:, 2].min())
        sizes = np.geomspace(smallest / 3, max(self._size_deg / 3, smallest), sigmas)
        return Templates.over(self._center[0] + at, self._center[1] + at, sizes)

    def prepare(self) -> Steps:
        """Search the first grid for all units, and make the templates of the test."""
        squares, part = self._data.squares, self._over(TEST_CENTERS, TEST_SIGMAS + 2)
        inner = np.isin(part.sigma, np.unique(part.sigma)[1:-1])  # sizes between the smallest and the largest
        test = Templates(*(axis[inner] for axis in part))
        for carrier in carriers(squares, TEST_CYCLES):
            for piece in test.pieces(squares):
                self._test.append(Explained(squares, piece, carrier))
                yield
        for k, carrier in enumerate(self._carriers):
            at = 0
            for piece in self._grid.pieces(squares):
                end = at + len(piece.right)
                self._evidence[k, at:end] = Explained(squares, piece, carrier).evidence(self._measured)
                at = end
                yield

    def fit(self, unit: int, rng: np.random.Generator) -> Steps:
        """Fit one unit's field; `fitted` is it after the last step."""
        data, measured, grid = self._data, self._measured[:, :, [unit]], self._grid
        last = _posterior(self._carriers, grid, self._evidence[:, :, unit])
        step, ratio = self._size_deg / (CENTERS - 1), float(grid.sigma[1] / grid.sigma[0])
        for least in LEAST_SHARE[: 1 if self._first_look else 2]:
            grid = _zoomed(last, step, ratio)
            kept = tuple(carrier for carrier, share in last.shares if share >= least)
            squares, there = self._near(grid)
            evidence = []
            for carrier in kept:
                pieces = [Explained(squares, piece, carrier) for piece in grid.pieces(squares)]
                evidence.append(np.concatenate([piece.evidence(measured[:, there]) for piece in pieces]))
                yield
            last = _posterior(kept, grid, np.array(evidence)[:, :, 0])
            step, ratio = _spacing(grid)
        carrier = max(last.shares, key=lambda pair: pair[1])[0]
        weights = self._at(last, carrier).weights(measured)
        right_sd, up_sd = self._errors(last, carrier, weights, unit)
        yield
        chance = 1.0
        for now in self._chance(unit, rng):
            chance = now
            yield
        added = [float(w) * float(data.sd[unit]) for w in weights[: len(data.squares.signs)]]
        self.fitted = ReceptiveField(
            last.right, last.up, last.sigma, right_sd, up_sd, last.sigma_sd,
            on_hz=added[0], off_hz=added[1] if len(added) > 1 else 0.0,
            p=chance, gain=last.gain, presentations=len(data.rate),
        )  # fmt: skip

    def _near(self, grid: Templates) -> tuple[Squares, Marks]:
        """Return the squares that templates can reach, and which of all positions these are."""
        squares = self._data.squares
        far = FAR * grid.sigma.max() + squares.at[:, 2] / 2
        there = np.ones(len(far), np.bool_)
        for axis, centre in enumerate((grid.right, grid.up)):
            there &= (squares.at[:, axis] > centre.min() - far) & (squares.at[:, axis] < centre.max() + far)
        return squares.only(there), there

    def _at(self, where: _Posterior, carrier: Carrier, right: float = 0.0, up: float = 0.0) -> Explained:
        """Return the one template of a posterior's mean, moved."""
        centre = np.array([where.right + right]), np.array([where.up + up])
        return Explained(self._data.squares, Templates(*centre, np.array([where.sigma])), carrier)

    def _errors(self, last: _Posterior, carrier: Carrier, weights: F64, unit: int) -> tuple[float, float]:
        """Return the standard deviations of the centre, for noise that is not alike over presentations."""
        data = self._data
        flat = data.there.reshape(len(data.there), -1)

        def rates(of: Explained) -> F64:  # (presentation,) as the field predicts them, block means subtracted
            return _centred((flat @ of.maps(weights).ravel())[:, None], data.blocks)[:, 0]

        residual = (data.rate[:, unit] - rates(self._at(last, carrier))) ** 2
        out, h = [], 0.1 * last.sigma
        for sd, move in ((last.right_sd, (h, 0.0)), (last.up_sd, (0.0, h))):
            says = rates(self._at(last, carrier, *move)) - rates(self._at(last, carrier, -move[0], -move[1]))
            norm = float((says**2).sum())
            widened = float(np.sqrt(says**2 @ residual / norm)) if norm > 0 else 1.0
            out.append(sd * min(max(widened, 1 / MOST_WIDENED), MOST_WIDENED))
        return out[0], out[1]

    def _chance(self, unit: int, rng: np.random.Generator) -> Generator[float, None, None]:
        """Yield, at last, how often the largest evidence is as large where rates are shuffled within blocks."""
        data, rate = self._data, self._data.rate[:, unit]
        order = np.argsort(data.blocks, kind="stable")
        null: list[float] = []
        while len(null) < SHUFFLES:
            draws = min(SHUFFLES_AT_ONCE, SHUFFLES - len(null))
            key = rng.random((len(rate), draws)) + data.blocks[:, None]  # sorts within blocks
            shuffled = np.empty((len(rate), draws))
            shuffled[order] = rate[np.argsort(key, axis=0)]
            null += self._largest(shuffled).tolist()
            yield 1.0
        scale = max(float(np.std(null, ddof=1)) * np.sqrt(6) / np.pi, 1e-9)
        above = (float(self._largest(rate[:, None])[0]) - float(np.mean(null))) / scale + np.euler_gamma
        yield float(-np.expm1(-np.exp(-above)))

    def _largest(self, rate: F64) -> F64:
        """Return the largest evidence anywhere for rates (presentation, draw)."""
        measured = self._data.maps(rate)
        return np.asarray(np.max([one.evidence(measured, TEST_SCALE).max(axis=0) for one in self._test], axis=0))


def _shown(shown: Sequence[Sequence[ShownSquare]], block: I64, rate_hz: F64) -> _Shown:
    """Return where each different square was shown, and the rates as the model wants them."""
    where: dict[tuple[float, float, float], int] = {}
    for square in (s for squares in shown for s in squares):
        where.setdefault(_place(square), len(where))
    if not where:
        raise ValueError("no presentation has a square: nothing to map with")
    signs = tuple(sorted({s.sign for squares in shown for s in squares}, reverse=True))  # white before black
    there = np.zeros((len(shown), len(signs), len(where)))
    for row, seen in enumerate(shown):
        for square in seen:
            there[row, signs.index(square.sign), where[_place(square)]] = 1.0
    blocks = np.unique(block, return_inverse=True)[1]
    rate = _centred(rate_hz, blocks)
    sd: F64 = np.sqrt((rate**2).sum(axis=0) / max(len(rate) - int(blocks.max()) - 1, 1))
    sd[sd < 1e-9 * np.maximum(np.abs(rate_hz).max(axis=0), 1e-300)] = 0.0
    squares = Squares(np.array(list(where)), signs, there.sum(axis=0))
    return _Shown(squares, there, blocks, rate / np.where(sd > 0, sd, 1.0), sd)


def _centred(rate: F64, blocks: I64) -> F64:
    """Return rates (presentation, unit) less the mean of their blocks."""
    count = np.bincount(blocks).astype(np.float64)
    sums = np.zeros((len(count), rate.shape[1]))
    np.add.at(sums, blocks, rate)
    return np.asarray(rate - (sums / count[:, None])[blocks])


def _place(square: ShownSquare) -> tuple[float, float, float]:
    return round(square.right_deg, ROUNDED), round(square.up_deg, ROUNDED), round(square.size_deg, ROUNDED)


def _posterior(of: tuple[Carrier, ...], grid: Templates, evidence: F64) -> _Posterior:
    """Return the posterior's means and standard deviations; `evidence` is (carrier, template)."""
    weight = np.exp(evidence - evidence.max())
    weight /= weight.sum()
    shares = tuple(zip(of, weight.sum(axis=1).tolist(), strict=True))
    each = weight.sum(axis=0)
    means = [float(each @ axis) for axis in grid]
    sds = [float(np.sqrt(each @ (axis - mean) ** 2)) for axis, mean in zip(grid, means, strict=True)]
    return _Posterior(means[0], means[1], means[2], sds[0], sds[1], sds[2], shares, float(evidence.max()))


def _spacing(grid: Templates) -> tuple[float, float]:
    """Return the step of a grid's centres, the larger one of the two axes, and the ratio of its sigmas."""
    right, up, sigma = (np.unique(axis) for axis in grid)
    return float(max(np.diff(right).max(), np.diff(up).max())), float(sigma[1] / sigma[0])


def _zoomed(last: _Posterior, step: float, ratio: float) -> Templates:
    """Return a finer grid around a posterior: as wide as that is, or `step` and `ratio` of the grid before."""
    least = 0.02 * last.sigma
    axes = [
        np.linspace(mean - reach, mean + reach, ZOOM_CENTERS)
        for mean, reach in (
            (last.right, max(step, REACH * last.right_sd, least)),
            (last.up, max(step, REACH * last.up_sd, least)),
        )
    ]
    wide = max(ratio, 1 + REACH * last.sigma_sd / last.sigma, 1.02)
    return Templates.over(axes[0], axes[1], np.geomspace(last.sigma / wide, last.sigma * wide, ZOOM_SIGMAS))
