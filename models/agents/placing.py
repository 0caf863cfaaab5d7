"""Where images go, given receptive fields: a square around them that fits into the screen. Pure.

Used by the map agent. A square that does not fit is first made smaller, down to the fields themselves, then moved
inwards; what was done is said.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stimuli.spec import Place

STEP_DEG = 0.1  # to which places are rounded, and in which one is sought that fits
SMALLEST_DEG = 0.5


@dataclass(frozen=True)
class Placement:
    """A place for images, and what had to be done to have one."""

    place: Place | None
    shrunk_deg: float
    """How much smaller it is than asked for."""
    moved_deg: float
    """How far its centre was moved from the fields'."""
    words: str


def bounding(fields: Sequence[Place]) -> Place:
    """Return the smallest square around the fields, each a square of its diameter."""
    low = [min(f.center_deg[k] - f.size_deg / 2 for f in fields) for k in (0, 1)]
    high = [max(f.center_deg[k] + f.size_deg / 2 for f in fields) for k in (0, 1)]
    center = ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2)
    return Place(center_deg=center, size_deg=max(high[0] - low[0], high[1] - low[1]))


def around(fields: Sequence[Place], factor: float, fits: Callable[[Place], str]) -> Placement:
    """Return the place of images around `fields`, `factor` times as large as they are together.

    `fits` returns why images cannot lie at a place, "" if they can. None of `Placement.place` says that nothing fits.
    """
    if not fields:
        return Placement(None, 0.0, 0.0, "no field to place images by")
    together = bounding(fields)
    right, up = (round(v, 1) for v in together.center_deg)
    wanted = max(round(factor * together.size_deg, 1), SMALLEST_DEG)
    least = min(max(round(together.size_deg, 1), SMALLEST_DEG), wanted)
    sizes = np.arange(wanted, least - STEP_DEG / 2, -STEP_DEG)
    for size in sizes:
        place = Place(center_deg=(right, up), size_deg=round(float(size), 1))
        if not fits(place):
            return _said(place, wanted, 0.0)
    steps = int(np.ceil(max(abs(right), abs(up)) / STEP_DEG))
    for k in range(1, steps + 1):  # straight towards the screen's centre
        center = (round(right * (1 - k / steps), 1), round(up * (1 - k / steps), 1))
        place = Place(center_deg=center, size_deg=least)
        if not fits(place):
            return _said(place, wanted, float(np.hypot(center[0] - right, center[1] - up)))
    words = fits(Place(center_deg=(0.0, 0.0), size_deg=least))
    return Placement(None, 0.0, 0.0, f"no place for an image of {least:g} degrees on the screen: {words}")


def _said(place: Place, wanted: float, moved: float) -> Placement:
    (right, up), size = place.center_deg, place.size_deg
    words = f"images of {size:g} degrees at ({right:g}, {up:g})"
    if size < wanted:
        words += f", not {wanted:g}, to fit into the screen"
    if moved > 0:
        words += f"; their centre was moved by {moved:.1f} degrees for that"
    return Placement(place, round(wanted - size, 1), round(moved, 2), words)


def region_of(fields: Sequence[Place], mapped: Place, least_deg: float, most: float) -> Place | None:
    """Return the square part of `mapped` to look at more closely, None if it is more than `most` of its side.

    It is at least `least_deg` wide.
    """
    if not fields:
        return None
    together = bounding(fields)
    size = min(max(together.size_deg, least_deg), mapped.size_deg)
    if size > most * mapped.size_deg:
        return None
    free = (mapped.size_deg - size) / 2
    right, up = (
        round(float(np.clip(c, m - free, m + free)), 2)
        for c, m in zip(together.center_deg, mapped.center_deg, strict=True)
    )
    return Place(center_deg=(right, up), size_deg=round(size, 2))
