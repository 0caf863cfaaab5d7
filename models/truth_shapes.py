"""Ground-truth cells whose best image is no Gabor: curved, of two parts both needed, modulated by their surround.

Built into populations by `models.truth_mixed`, beside Gabor cells. Every cell is a few filters and a formula of their
outputs, so that its rate and the slope of its rate are known at any image. Numpy alone; no noise here.

Conventions of models.truth.V1: light L around grey 0.5, windows sum to 1, filters do not see a uniform field, and each
is scaled so that its own grating of full contrast gives 1; the pool p of normalisation is the variance of L under the
cell's window over 0.125. With a drive d, g(d, p) = (1 + s) d**n / (s + p**(n/2)), n = 1.5, s = 0.1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
import numpy.typing as npt

from models.truth import EXPONENT, GRATING_ENERGY, GREY, SEMISATURATION, Gabor, gabor_filters
from stimuli.spec import Place

F64 = npt.NDArray[np.float64]

SURROUND_HALF = 0.25  # squared output of the orthogonal surround at which half of the facilitation is reached


@dataclass(frozen=True)
class Curved:
    """A complex or simple cell for bars that bend: gratings on parabolas, inhibited by the opposite curvature.

    With a along and c across the bars, the carrier runs over c' = c - curvature a**2 / 2. Drive: output for the own
    curvature less `opponency` times the energy for the opposite one, not below 0 (V4 cells are tuned to curvature:
    Gallant et al. 1993, Pasupathy and Connor 1999).
    """

    azimuth_deg: float
    elevation_deg: float
    sigma_deg: float
    """Of the window across the bars."""
    length_deg: float
    """Sigma of the window along the bars."""
    cycles_per_deg: float
    orientation_deg: float
    phase_deg: float
    curvature_per_deg: float
    """1 / radius at the middle; bars bend towards the direction across, orientation plus 90 degrees."""
    opponency: float
    complex_cell: bool
    baseline_hz: float
    max_hz: float

    @property
    def place(self) -> Place:
        """Where it sees: two sigma of the longer window either side."""
        size = 4 * max(self.sigma_deg, self.length_deg)
        return Place(center_deg=(self.azimuth_deg, self.elevation_deg), size_deg=size)


@dataclass(frozen=True)
class BothParts:
    """Two complex Gabor subunits apart from each other, both needed: the drive is the root of their product."""

    azimuth_deg: float
    elevation_deg: float
    """Of the middle between both."""
    apart_deg: tuple[float, float]
    """From the middle to the first part (right, up); the second lies opposite."""
    orientations_deg: tuple[float, float]
    sigma_deg: float
    cycles_per_deg: float
    baseline_hz: float
    max_hz: float

    @property
    def place(self) -> Place:
        """Where it sees: both parts, two sigma either side."""
        size = 2 * float(np.hypot(*self.apart_deg)) + 4 * self.sigma_deg
        return Place(center_deg=(self.azimuth_deg, self.elevation_deg), size_deg=size)


@dataclass(frozen=True)
class Surround:
    """A Gabor centre that its surround alone never drives, but changes.

    An annulus of the same orientation divides the response by 1 + suppression i**2; one of the orthogonal orientation
    multiplies it by 1 + facilitation h(o), h = 1.25 o**2 / (0.25 + o**2), and is part of the best image (Sillito et al.
    1995, Jones et al. 2002). `max_hz` is reached with it, max_hz / (1 + facilitation) without.
    """

    azimuth_deg: float
    elevation_deg: float
    sigma_deg: float
    surround_deg: float
    """Outer sigma of the annulus."""
    cycles_per_deg: float
    orientation_deg: float
    phase_deg: float
    suppression: float
    facilitation: float
    complex_cell: bool
    baseline_hz: float
    max_hz: float

    @property
    def place(self) -> Place:
        """Where it sees: its classical field, two sigma either side."""
        return Place(center_deg=(self.azimuth_deg, self.elevation_deg), size_deg=4 * self.sigma_deg)


Cell = Gabor | Curved | BothParts | Surround


@dataclass(frozen=True)
class Terms:
    """A cell as filters and a formula."""

    linear: F64
    """(term, y, x): z = linear · L."""
    squares: F64
    """(term, y, x): q = squares · L**2."""
    rate_hz: Callable[[F64, F64], F64]
    """From z (..., term) and q (..., term) to the rate (...)."""
    preferred: F64
    """(y, x): light, 0 to 1, of full contrast, made from the parameters: near the best image, not quite it."""


@singledispatch
def terms_of(cell: Cell, azimuth: F64, elevation: F64) -> Terms:
    """Return filters and formula of `cell` for pixels at `azimuth`, `elevation` (y, x), degrees."""
    raise TypeError(f"no ground-truth cell: {cell!r}")


def normalised(drive: F64, pool: F64) -> F64:
    """Return g(d, p)."""
    p = np.maximum(pool, 0.0) ** (EXPONENT / 2)
    out: F64 = (1 + SEMISATURATION) * np.maximum(drive, 0.0) ** EXPONENT / (SEMISATURATION + p)
    return out


def _output(complex_cell: bool, even: F64, odd: F64) -> F64:
    out: F64 = np.hypot(even, odd) if complex_cell else np.maximum(even, 0.0)
    return out


def _quadrature(window: F64, angle: F64) -> tuple[F64, F64]:
    """Return two phases of a filter with carrier `angle` (y, x), radians, under `window`, which sums to 1."""
    phases = []
    for carrier in (np.cos(angle), np.sin(angle)):
        blind = window * (carrier - (window * carrier).sum())
        phases.append(blind / (blind * GREY * carrier).sum())
    return phases[0], phases[1]


def _turned(azimuth: F64, elevation: F64, orientation_deg: float) -> tuple[F64, F64]:
    """Return distances along and across bars of this orientation."""
    turn = np.deg2rad(orientation_deg)
    along = azimuth * np.cos(turn) + elevation * np.sin(turn)
    return along, -azimuth * np.sin(turn) + elevation * np.cos(turn)


def _shown(envelope: F64, angle: F64) -> F64:
    """Return light of a patch: a grating under an envelope whose highest value is 1."""
    light: F64 = GREY + 0.5 * envelope / envelope.max() * np.cos(angle)
    return light


@terms_of.register
def _gabor(cell: Gabor, azimuth: F64, elevation: F64) -> Terms:
    even, odd, window = gabor_filters(cell, azimuth, elevation)

    def rate(z: F64, q: F64) -> F64:
        pool = (q[..., 0] - z[..., 2] ** 2) / GRATING_ENERGY
        drive = _output(cell.complex_cell, z[..., 0], z[..., 1])
        return cell.baseline_hz + cell.max_hz * normalised(drive, pool)

    _, across = _turned(azimuth - cell.azimuth_deg, elevation - cell.elevation_deg, cell.orientation_deg)
    angle = 2 * np.pi * cell.cycles_per_deg * across + np.deg2rad(cell.phase_deg)
    return Terms(np.stack([even, odd, window]), window[None], rate, _shown(window, angle))


@terms_of.register
def _curved(cell: Curved, azimuth: F64, elevation: F64) -> Terms:
    along, across = _turned(azimuth - cell.azimuth_deg, elevation - cell.elevation_deg, cell.orientation_deg)
    filters: list[F64] = []
    windows, angles = [], []
    for curvature in (cell.curvature_per_deg, -cell.curvature_per_deg):
        bent = across - curvature * along**2 / 2
        window = np.exp(-(bent**2) / (2 * cell.sigma_deg**2) - along**2 / (2 * cell.length_deg**2))
        window /= window.sum()
        angle = 2 * np.pi * cell.cycles_per_deg * bent + np.deg2rad(cell.phase_deg)
        filters += _quadrature(window, angle)
        windows.append(window)
        angles.append(angle)

    def rate(z: F64, q: F64) -> F64:
        pool = (q[..., 0] - z[..., 4] ** 2) / GRATING_ENERGY
        drive = _output(cell.complex_cell, z[..., 0], z[..., 1]) - cell.opponency * np.hypot(z[..., 2], z[..., 3])
        return cell.baseline_hz + cell.max_hz * normalised(drive, pool)

    linear = np.stack([*filters, windows[0]])
    return Terms(linear, windows[0][None], rate, _shown(windows[0], angles[0]))


@terms_of.register
def _both_parts(cell: BothParts, azimuth: F64, elevation: F64) -> Terms:
    linear, windows, light = [], [], np.full(azimuth.shape, GREY)
    for sign, orientation in zip((1, -1), cell.orientations_deg, strict=True):
        right = azimuth - cell.azimuth_deg - sign * cell.apart_deg[0]
        up = elevation - cell.elevation_deg - sign * cell.apart_deg[1]
        window = np.exp(-(right**2 + up**2) / (2 * cell.sigma_deg**2))
        window /= window.sum()
        angle = 2 * np.pi * cell.cycles_per_deg * _turned(right, up, orientation)[1]
        linear += [*_quadrature(window, angle), window]
        windows.append(window)
        light += _shown(window, angle) - GREY

    def rate(z: F64, q: F64) -> F64:
        drive = np.sqrt(np.hypot(z[..., 0], z[..., 1]) * np.hypot(z[..., 3], z[..., 4]))
        pool = (q[..., 0] - z[..., 2] ** 2 + q[..., 1] - z[..., 5] ** 2) / (2 * GRATING_ENERGY)
        return cell.baseline_hz + cell.max_hz * normalised(drive, pool)

    return Terms(np.stack(linear), np.stack(windows), rate, np.clip(light, 0.0, 1.0))


@terms_of.register
def _surround(cell: Surround, azimuth: F64, elevation: F64) -> Terms:
    right, up = azimuth - cell.azimuth_deg, elevation - cell.elevation_deg
    square = right**2 + up**2
    centre = np.exp(-square / (2 * cell.sigma_deg**2))
    centre /= centre.sum()
    ring = np.exp(-square / (2 * cell.surround_deg**2)) * -np.expm1(-((square / (2 * cell.sigma_deg) ** 2) ** 2))
    ring /= ring.sum()
    along, across = _turned(right, up, cell.orientation_deg)
    wave = 2 * np.pi * cell.cycles_per_deg
    angle = wave * across + np.deg2rad(cell.phase_deg)
    filters = [*_quadrature(centre, angle), *_quadrature(ring, wave * across), *_quadrature(ring, wave * along)]

    def rate(z: F64, q: F64) -> F64:
        pool = (q[..., 0] - z[..., 6] ** 2) / GRATING_ENERGY
        same, other = z[..., 2] ** 2 + z[..., 3] ** 2, z[..., 4] ** 2 + z[..., 5] ** 2
        more = 1 + cell.facilitation * (1 + SURROUND_HALF) * other / (SURROUND_HALF + other)
        of_centre = normalised(_output(cell.complex_cell, z[..., 0], z[..., 1]), pool) / (1 + cell.facilitation)
        return cell.baseline_hz + cell.max_hz * of_centre * more / (1 + cell.suppression * same)

    light = _shown(centre, angle) + _shown(ring, wave * along) - GREY
    return Terms(np.stack([*filters, centre]), centre[None], rate, np.clip(light, 0.0, 1.0))
