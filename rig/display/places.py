"""Where things are drawn: the image square, the photodiode patch, and the visual angles of the image's pixels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rig.config.session import Config
from stimuli.geometry import Rect, image_rect, patch_rect, pixel_angles


@dataclass(frozen=True)
class Places:
    """The geometry of a session; angles are azimuth and elevation of the square's pixels, degrees, each (y, x)."""

    rect: Rect
    patch: Rect | None
    fixation: Rect | None
    angles: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def places(config: Config) -> Places:
    """Return the geometry of a session; raises ValueError where something does not fit on the screen."""
    display, place = config.display, config.stimulus
    rect = image_rect(display.size_px, display.width_cm, display.distance_cm, place.size_deg, place.center_deg)
    patch = None if display.patch is None else patch_rect(display.size_px, display.patch.corner, display.patch.size_px)
    if patch is not None and patch.overlaps(rect):
        raise ValueError("the photodiode patch covers part of the image; move one of them or make it smaller")
    fixation = None
    if (point := display.fixation_point) is not None:
        size, center = point.size_deg, point.center_deg
        fixation = image_rect(display.size_px, display.width_cm, display.distance_cm, size, center)
    return Places(rect, patch, fixation, pixel_angles(rect, display.size_px, display.width_cm, display.distance_cm))
