"""What the best possible image of a simulated unit would do, at the place and contrast at which images were shown.

`stimloop truth` sets it beside the most exciting images of a session. Only for cells given by filters and a formula: of
a published network nobody knows the best image.
"""

from math import sqrt
from typing import Protocol

import numpy as np

from models.truth import GREY, V1, Scattered
from models.truth_mixed import OneCell
from models.truth_optimum import optimum
from models.truth_shapes import Terms, terms_of
from models.truth_useless import Useless
from rig.config.field import field_rect
from rig.config.places import angles_of
from rig.config.session import Config
from stimuli.geometry import Rect

BLACK_TO_WHITE = 0.5  # RMS of light around grey that no image exceeds


class Named(Protocol):
    """A population, as far as it is looked at before one knows which."""

    @property
    def units(self) -> tuple[str, ...]:
        """Return the unit names."""
        ...


def best_hz(config: Config, cells: Named, unit: str, image: Rect, contrast: float) -> float | None:
    """Return the rate, spikes/s, of `unit` to the best image found for it, or None where that cannot be told.

    `cells`: the population of `config`; `image`: the pixels of the screen that the image covers; `contrast`: its RMS
    contrast, sd / 127.5 over the whole image, all of which the best image may spend where the cell looks. None: a
    published model, a replaced unit (`animal.useless`), or a cell that looks beyond the image. A search with the cell's
    own formula (models.truth_optimum), from the same starts each time: a bound from below, near the truth.
    """
    found = _terms(config, cells, unit, image)
    if found is None:
        return None
    rms = contrast * GREY * sqrt(image.height * image.width / found.preferred.size)
    return optimum(found, min(rms, BLACK_TO_WHITE), np.random.default_rng(0)).rate_hz


def _terms(config: Config, cells: Named, unit: str, image: Rect) -> Terms | None:
    """Return the cell's filters and formula over the pixels that it sees; None where `best_hz` is None."""
    if isinstance(cells, Useless):
        return None if unit in config.animal.useless else _terms(config, cells.cells, unit, image)
    column, field = cells.units.index(unit), field_rect(config)
    if isinstance(cells, V1):
        return terms_of(cells.cells[column], *angles_of(config.display, field)) if field == image else None
    if not isinstance(cells, Scattered):
        return None
    part = cells.parts[column]
    seen = Rect(
        field.left + part.columns.start,
        field.top + part.rows.start,
        part.columns.stop - part.columns.start,
        part.rows.stop - part.rows.start,
    )
    if image.shared_px(seen) < seen.width * seen.height:
        return None
    if isinstance(part.cell, OneCell):
        return part.cell.terms
    azimuth, elevation = angles_of(config.display, seen)
    return terms_of(part.cell.cells[0], azimuth, elevation) if isinstance(part.cell, V1) else None
