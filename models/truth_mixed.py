"""A population of simulated cells of several kinds, Gabor cells and cells that are none; `animal.population: mixed`.

Built by `models.truth.build` and `build_for`. Cells take the kinds of the config's `mix` in turn. Each sees its own
part of the image alone.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.truth import LUMINANCE, SIGMAS_SEEN, Gabor, Part, Scattered, seen_slice, unit_names
from models.truth_shapes import BothParts, Cell, Curved, Surround, Terms, terms_of
from rig.config.animal import CellKind
from stimuli.spec import Place

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


class OneCell:
    """A ground-truth cell that sees the pixels it was built for."""

    def __init__(self, cell: Cell, azimuth: F64, elevation: F64) -> None:
        """Build it for pixels at `azimuth`, `elevation` (y, x), degrees."""
        self.cell = cell
        self.terms: Terms = terms_of(cell, azimuth, elevation)
        self._shape = azimuth.shape
        self._linear = self.terms.linear.reshape(len(self.terms.linear), -1).astype(np.float32)
        self._squares = self.terms.squares.reshape(len(self.terms.squares), -1).astype(np.float32)

    @property
    def units(self) -> tuple[str, ...]:
        """Return its name."""
        return unit_names(1)

    @property
    def receptive_fields(self) -> tuple[Place, ...]:
        """Return where it sees."""
        return (self.cell.place,)

    def rate_hz(self, image: F32) -> F64:
        """Return the rate (1,), spikes/s, for `image` (y, x, 3), linear light 0 to 1."""
        if image.shape != (*self._shape, 3):
            raise ValueError(f"image is {image.shape}, but this cell was built for {(*self._shape, 3)}")
        red, green, blue = LUMINANCE
        light = (image[..., 0] * red + image[..., 1] * green + image[..., 2] * blue - np.float32(0.5)).reshape(-1)
        # Not `@`, whose threads a busy machine waits for (models.truth).
        z = np.einsum("tp,p->t", self._linear, light).astype(np.float64)
        q = np.einsum("tp,p->t", self._squares, light * light).astype(np.float64)
        return self.terms.rate_hz(z[None], q[None])


def draw_mixed(
    kinds: Sequence[CellKind], middle: tuple[float, float], scale: float, spread: float, rng: np.random.Generator
) -> tuple[Cell, ...]:
    """Draw a cell of each of `kinds` around `middle` (right, up), degrees; `scale` 1 fits an image of 10 degrees.

    Centres lie up to `spread` times 1.5 (Gabors), 1 or 0.5 (surround cells, which see most) degrees from it on each
    axis.
    """
    return tuple(_draw(kind, middle, scale, spread, rng) for kind in kinds)


def _draw(kind: CellKind, middle: tuple[float, float], scale: float, spread: float, rng: np.random.Generator) -> Cell:
    low, high = (0.2, 0.4) if kind in ("simple", "complex") else (0.3, 0.45)
    frequency = float(rng.uniform(low, high)) / scale
    reach = {"simple": 1.5, "complex": 1.5, "surround": 0.5}.get(kind, 1.0)
    right, up = rng.uniform(-reach, reach, 2) * spread + np.array(middle)
    azimuth, elevation = float(right), float(up)
    turn, phase = float(rng.uniform(0, 360)), float(rng.uniform(0, 360))
    baseline, highest = float(rng.uniform(3, 8)), float(rng.uniform(70, 110))
    if kind == "curved":
        bend = float(rng.uniform(2.0, 3.0)) * frequency  # at 1.5 sigma along it, bars are off by 0.5 to 0.8 wavelengths
        opponency, complex_cell = float(rng.uniform(0.1, 0.3)), bool(rng.random() < 0.5)
        return Curved(
            azimuth, elevation, 0.3 / frequency, 0.48 / frequency, frequency, turn, phase, bend, opponency,
            complex_cell, baseline, highest,
        )  # fmt: skip
    if kind == "both_parts":
        sigma = 0.28 / frequency
        apart = 1.7 * sigma * np.array([np.cos(np.deg2rad(phase)), np.sin(np.deg2rad(phase))])
        other = turn + float(rng.uniform(60, 120))
        return BothParts(
            azimuth, elevation, (float(apart[0]), float(apart[1])), (turn % 180, other % 180), sigma, frequency,
            baseline, highest,
        )  # fmt: skip
    if kind == "surround":
        sigma = 0.35 / frequency
        suppression, facilitation = float(rng.uniform(1, 3)), float(rng.uniform(0.8, 1.5))
        return Surround(
            azimuth, elevation, sigma, 2 * sigma, frequency, turn % 180, phase, suppression, facilitation,
            bool(rng.random() < 0.5), baseline, highest,
        )  # fmt: skip
    return Gabor(
        azimuth, elevation, 0.35 / frequency, frequency, turn % 180, phase, kind == "complex", baseline, highest
    )


def reach_deg(cell: Cell) -> float:
    """Return how far from its centre, along each axis, a cell sees."""
    if isinstance(cell, Curved):
        return SIGMAS_SEEN * max(cell.sigma_deg, cell.length_deg)
    if isinstance(cell, BothParts):
        return float(np.abs(cell.apart_deg).max()) + SIGMAS_SEEN * cell.sigma_deg
    return SIGMAS_SEEN * (cell.surround_deg if isinstance(cell, Surround) else cell.sigma_deg)


def population_of(cells: Sequence[Cell], azimuth: F64, elevation: F64) -> Scattered:
    """Return the population of `cells` within a field of these angles (y, x); raises ConfigError for one beside it."""
    parts = []
    for cell in cells:
        reach = reach_deg(cell)
        columns = seen_slice(np.abs(azimuth[0] - cell.azimuth_deg) <= reach)
        rows = seen_slice(np.abs(elevation[:, 0] - cell.elevation_deg) <= reach)
        parts.append(Part(OneCell(cell, azimuth[rows, columns], elevation[rows, columns]), rows, columns))
    return Scattered(tuple(parts))


def kinds_of(mix: Sequence[CellKind], count: int) -> tuple[CellKind, ...]:
    """Return the kind of each of `count` cells: those of `mix` in turn."""
    return tuple(mix[k % len(mix)] for k in range(count))
