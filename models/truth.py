"""Ground-truth neurons of the simulated animal: cells whose every parameter is known, or published models.

`rig.cli` builds a population and gives it to the animal; benches ask the same population for the true response to any
image. No noise here: that is the animal's. V1 Gabor cells are here, cells that are no Gabors in models.truth_shapes
(numpy alone); published models of V4 (models.truth_v4) and mouse V1 (models.truth_twin) load torch when asked for.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from models.truth_useless import Useless
from rig.config.animal import Simulation
from rig.config.field import field_rect, receptive_field, scatter_deg
from rig.config.places import angles_of
from rig.config.reading import ConfigError
from rig.config.session import Config
from stimuli.geometry import Rect, image_rect
from stimuli.spec import Place

if TYPE_CHECKING:
    from models.truth_twin import Twin
    from models.truth_v4 import V4

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # of linear red, green, blue (Rec. 709)
GREY = 0.5
EXPONENT = 1.5  # of contrast; cat and macaque V1 cells range from about 1 to 4
SEMISATURATION = 0.1  # pool ** (EXPONENT / 2) at which half of the rate is reached
SIGMAS_SEEN = 3.0  # of a cell whose field is a part of what the eye sees: beyond, its window is below 0.012
GRATING_ENERGY = 0.125  # variance of a grating of full contrast around grey 0.5


class Population(Protocol):
    """What every ground-truth population offers."""

    @property
    def units(self) -> tuple[str, ...]:
        """Return the unit names, electrode#number."""
        ...

    @property
    def receptive_fields(self) -> tuple[Place, ...]:
        """Return where each cell sees: two sigma of its window either side; a model, what it takes of the screen."""
        ...

    def rate_hz(self, image: F32) -> F64:
        """Return the noise-free rates (unit,), spikes/s, for `image` (y, x, 3), linear light 0 to 1."""
        ...


@dataclass(frozen=True)
class Gabor:
    """One V1 cell. Angles are seen from the eye; orientation is that of the bars, counter-clockwise from horizontal."""

    azimuth_deg: float
    elevation_deg: float
    sigma_deg: float
    cycles_per_deg: float
    orientation_deg: float
    phase_deg: float
    complex_cell: bool
    baseline_hz: float
    max_hz: float

    @property
    def place(self) -> Place:
        """Where it sees: two sigma of its window either side."""
        return Place(center_deg=(self.azimuth_deg, self.elevation_deg), size_deg=4 * self.sigma_deg)


def unit_names(count: int) -> tuple[str, ...]:
    """Return E01#0, E02#0, ...: one sorted unit per electrode."""
    return tuple(f"E{k:02d}#0" for k in range(1, count + 1))


def draw_cells(count: int, azimuth: F64, elevation: F64, rng: np.random.Generator) -> tuple[Gabor, ...]:
    """Draw cells that fit into the image whose pixels lie at `azimuth`, `elevation` (y, x), degrees; sorts alternate.

    Sizes scale with the image. For one of 10 degrees: 0.2 to 0.4 cycles/degree, sigma 0.9 to 1.75 degrees, receptive
    fields within 1.5 degrees of the image's centre, so that 2 sigma stay inside.
    """
    middle = float(azimuth.mean()), float(elevation.mean())
    scale = min(float(np.ptp(azimuth)), float(np.ptp(elevation))) / 10.0
    return draw_cells_at(count, middle, scale, scale, rng)


def draw_cells_at(
    count: int, middle: tuple[float, float], scale: float, spread: float, rng: np.random.Generator
) -> tuple[Gabor, ...]:
    """Draw cells around `middle` (right, up), degrees, their centres up to 1.5 `spread` degrees from it on each axis.

    `scale` 1: as large as for an image of 10 degrees.
    """
    cells = []
    for k in range(count):
        frequency = float(rng.uniform(0.2, 0.4)) / scale
        right, up = rng.uniform(-1.5, 1.5, 2) * spread
        cells.append(
            Gabor(
                azimuth_deg=middle[0] + right,
                elevation_deg=middle[1] + up,
                sigma_deg=0.35 / frequency,
                cycles_per_deg=frequency,
                orientation_deg=float(rng.uniform(0, 180)),
                phase_deg=float(rng.uniform(0, 360)),
                complex_cell=k % 2 == 1,
                baseline_hz=float(rng.uniform(3, 8)),
                max_hz=float(rng.uniform(70, 110)),
            )
        )
    return tuple(cells)


class V1:
    """Gabor filters with divisive normalisation by the local contrast (Heeger 1992, simplified).

    With light L around grey 0.5, and the cell's window e (sums to 1), the drive d is the output of the Gabor (rectified
    for a simple cell; root of the summed squares of two phases for a complex cell), scaled so that the cell's own
    grating of full contrast gives 1. The pool p, the variance of L under e over 0.125, is 1 for any such grating. Then

        rate = baseline + max (1 + s) d**n / (s + p**(n/2)),    n = 1.5, s = 0.1,

    so that contrast saturates and every pattern in the window that is not the cell's own lowers its response.
    """

    def __init__(self, cells: tuple[Gabor, ...], azimuth: F64, elevation: F64) -> None:
        self.cells = cells
        self._shape = azimuth.shape
        even, odd, window = zip(*(gabor_filters(c, azimuth, elevation) for c in cells), strict=True)
        count = len(cells)
        self._filters = np.concatenate([np.stack(even), np.stack(odd)]).reshape(2 * count, -1).astype(np.float32)
        self._windows = np.stack(window).reshape(count, -1).astype(np.float32)
        self._complex = np.array([c.complex_cell for c in cells])
        self._baseline = np.array([c.baseline_hz for c in cells])
        self._max = np.array([c.max_hz for c in cells])

    @property
    def units(self) -> tuple[str, ...]:
        """Return the unit names."""
        return unit_names(len(self.cells))

    @property
    def receptive_fields(self) -> tuple[Place, ...]:
        """Return where each cell sees."""
        return tuple(cell.place for cell in self.cells)

    def rate_hz(self, image: F32) -> F64:
        """Return the rates (unit,), spikes/s, for `image` (y, x, 3), linear light 0 to 1."""
        if image.shape != (*self._shape, 3):
            raise ValueError(f"image is {image.shape}, but this population was built for {(*self._shape, 3)}")
        red, green, blue = LUMINANCE
        light = (image[..., 0] * red + image[..., 1] * green + image[..., 2] * blue - np.float32(GREY)).reshape(-1)
        even, odd = _project(self._filters, light).reshape(2, -1)
        pool = np.maximum(_project(self._windows, light * light) - _project(self._windows, light) ** 2, 0.0)
        pool /= GRATING_ENERGY
        drive = np.where(self._complex, np.hypot(even, odd), np.maximum(even, 0.0)) ** EXPONENT
        rate: F64 = self._baseline + self._max * (1 + SEMISATURATION) * drive / (
            SEMISATURATION + pool ** (EXPONENT / 2)
        )
        return rate


def _project(filters: F32, light: F32) -> F64:
    """Return the products (filter,) of each row with the image.

    Not `@`: BLAS would wake its threads for every image, and on a busy machine waits 40 ms for them.
    """
    product: F64 = np.einsum("fp,p->f", filters, light).astype(np.float64)
    return product


def gabor_filters(cell: Gabor, azimuth: F64, elevation: F64) -> tuple[F64, F64, F64]:
    """Return the two phases of the Gabor and its window (y, x), scaled as V1 says."""
    right, up = azimuth - cell.azimuth_deg, elevation - cell.elevation_deg
    turn = np.deg2rad(cell.orientation_deg)
    across = -right * np.sin(turn) + up * np.cos(turn)
    window = np.exp(-(right**2 + up**2) / (2 * cell.sigma_deg**2))
    window /= window.sum()
    angle = 2 * np.pi * cell.cycles_per_deg * across + np.deg2rad(cell.phase_deg)
    phases = []
    for carrier in (np.cos(angle), np.sin(angle)):
        blind = window * (carrier - (window * carrier).sum())  # a uniform field drives nothing
        phases.append(blind / (blind * GREY * carrier).sum())
    return phases[0], phases[1], window


@dataclass(frozen=True)
class Part:
    """One cell, and the rows and columns of the field that it sees."""

    cell: Population
    rows: slice
    columns: slice


class Scattered:
    """Cells that each see a part of a larger field; what is shown elsewhere drives none of them."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts

    @property
    def units(self) -> tuple[str, ...]:
        """Return the unit names."""
        return unit_names(len(self.parts))

    @property
    def receptive_fields(self) -> tuple[Place, ...]:
        """Return where each cell sees."""
        return tuple(part.cell.receptive_fields[0] for part in self.parts)

    def rate_hz(self, image: F32) -> F64:
        """Return the rates (unit,), spikes/s, for the whole field, `image` (y, x, 3), linear light 0 to 1."""
        return np.concatenate([part.cell.rate_hz(image[part.rows, part.columns]) for part in self.parts])


def scattered_v1(cells: tuple[Gabor, ...], azimuth: F64, elevation: F64) -> Scattered:
    """Return cells that see three sigma of their windows either side, within a field of these angles (y, x)."""
    parts = []
    for cell in cells:
        reach = SIGMAS_SEEN * cell.sigma_deg
        columns = seen_slice(np.abs(azimuth[0] - cell.azimuth_deg) <= reach)
        rows = seen_slice(np.abs(elevation[:, 0] - cell.elevation_deg) <= reach)
        parts.append(Part(V1((cell,), azimuth[rows, columns], elevation[rows, columns]), rows, columns))
    return Scattered(tuple(parts))


def seen_slice(seen: npt.NDArray[np.bool_]) -> slice:
    """Return the rows, or columns, from the first to the last that a cell sees; raises ConfigError if it sees none."""
    at = np.flatnonzero(seen)
    if not len(at):
        raise ConfigError("animal.receptive_field: a cell lies wholly beside the screen; move the field inwards")
    return slice(int(at[0]), int(at[-1]) + 1)


def build(simulation: Simulation, azimuth: F64, elevation: F64, images: U8 | None = None) -> Population:
    """Build the population that `animal` in the config describes, fitted into one image; raises ConfigError.

    `azimuth`, `elevation` (y, x): visual angles of the image's pixels, degrees (stimuli.geometry.pixel_angles).
    `images` (image, y, x, 3): pictures whose mean response sets the operating point of V4 models without recordings.
    """
    if simulation.population == "v1":
        return V1(draw_cells(simulation.neurons, azimuth, elevation, _rng(simulation)), azimuth, elevation)
    middle = float(azimuth.mean()), float(elevation.mean())
    side = min(float(np.ptp(azimuth)), float(np.ptp(elevation)))
    if simulation.population == "mixed":
        return _mixed(simulation, middle, side / 10.0, side / 10.0, azimuth, elevation)
    place = Place(center_deg=middle, size_deg=side)
    if simulation.population == "twin":
        return _twin(simulation, Rect(0, 0, azimuth.shape[1], azimuth.shape[0]), Rect(0, 0, 0, 0), place)
    return _v4(simulation, (place,) * simulation.neurons, images)


def build_for(config: Config, images: U8 | None = None) -> Population:
    """Build the population of a config's simulated animal, for an eye that sees `rig.config.field.field_rect`.

    `images` as for `build`. Raises ConfigError.
    """
    cells, useless = _cells_for(config, images), config.animal.useless
    if unknown := sorted(set(useless) - set(cells.units)):
        raise ConfigError(f"animal.useless: {unknown[0]!r} is none of its units ({', '.join(cells.units)})")
    return Useless(cells, useless) if useless else cells


def _cells_for(config: Config, images: U8 | None) -> Population:
    simulation, display = config.animal, config.display
    try:
        rect, field = field_rect(config), receptive_field(config)
        azimuth, elevation = angles_of(display, rect)
        if field is None:
            return build(simulation, azimuth, elevation, images)
        rng, scatter = _rng(simulation), scatter_deg(field)
        if simulation.population == "v1":
            scale = field.size_deg / 10.0
            cells = draw_cells_at(simulation.neurons, field.center_deg, scale, scatter / 1.5, rng)
            return scattered_v1(cells, azimuth, elevation)
        if simulation.population == "mixed":
            return _mixed(simulation, field.center_deg, field.size_deg / 10.0, scatter / 1.5, azimuth, elevation)
        where = display.size_px, display.width_cm, display.distance_cm
        if simulation.population == "twin":
            place = Place(center_deg=field.center_deg, size_deg=field.size_deg)
            square = image_rect(*where, place.size_deg, place.center_deg, "animal.receptive_field")
            return _twin(simulation, square, rect, place)
        offsets = rng.uniform(-scatter, scatter, (simulation.neurons, 2)) + np.array(field.center_deg)
        places = tuple(Place(center_deg=(float(x), float(y)), size_deg=field.size_deg) for x, y in offsets)
        squares = [image_rect(*where, p.size_deg, p.center_deg, "animal.receptive_field") for p in places]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    cells_v4 = _v4(simulation, places, images).split()
    parts = (Part(cell, *_within(square, rect)) for cell, square in zip(cells_v4, squares, strict=True))
    return Scattered(tuple(parts))


def _rng(simulation: Simulation) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([simulation.seed, 1]))


def _within(square: Rect, field: Rect) -> tuple[slice, slice]:
    """Return rows and columns of a square in the pixels of a field."""
    top, left = square.top - field.top, square.left - field.left
    return slice(max(top, 0), top + square.height), slice(max(left, 0), left + square.width)


def _mixed(
    simulation: Simulation, middle: tuple[float, float], scale: float, spread: float, azimuth: F64, elevation: F64
) -> Scattered:
    from models.truth_mixed import draw_mixed, kinds_of, population_of  # which is built from this module

    kinds = kinds_of(simulation.mix, simulation.neurons)
    return population_of(draw_mixed(kinds, middle, scale, spread, _rng(simulation)), azimuth, elevation)


def _twin(simulation: Simulation, square: Rect, field: Rect, place: Place) -> "Twin":
    from models.truth_twin import View, load  # torch only where it is wanted

    return load(simulation, View(square.top - field.top, square.left - field.left, square.height), place)


def _v4(simulation: Simulation, places: tuple[Place, ...], images: U8 | None) -> "V4":
    if simulation.models is None:
        raise ConfigError("animal.models: population v4 needs the folder of the compact models")
    from models.truth_v4 import load  # torch only where it is wanted

    return load(simulation, places, images)
