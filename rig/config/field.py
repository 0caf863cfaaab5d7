"""What part of the screen the cells of a config's simulated animal see: the same for its eye and for its neurons.

Without `animal.receptive_field`, and where all images lie at one place, the eye sees the image square and nothing else,
and the cells fit into it. Otherwise the cells lie at fixed angles, wherever images are shown, and the eye sees the part
of the screen that holds them all. Pure.
"""

from math import ceil, floor, radians, tan

import numpy as np
import numpy.typing as npt

from rig.config.animal import ReceptiveField
from rig.config.places import rect_of, usual
from rig.config.session import FINDS_PLACES, Config
from stimuli.geometry import Rect, pixels_per_cm

U8 = npt.NDArray[np.uint8]

# Of `size_deg`, beyond the scatter: three times the largest sigma of a built-in cell, 0.175 (models.truth), or half of
# the square that a published model sees.
REACH = 0.525
SCATTER = 0.15  # of `size_deg`, where it is not given


def receptive_field(config: Config) -> ReceptiveField | None:
    """Return where the cells of the animal lie; None: they fit into the image square, which is all that it sees."""
    if config.animal.receptive_field is not None:
        return config.animal.receptive_field
    elsewhere = any(getattr(p, "place", None) is not None or p.agent in FINDS_PLACES for p in config.phases)
    stimulus = config.stimulus
    return ReceptiveField(center_deg=stimulus.center_deg, size_deg=stimulus.size_deg) if elsewhere else None


def scatter_deg(field: ReceptiveField) -> float:
    """Return how far from its centre, along each axis, the cells' own centres may lie."""
    return SCATTER * field.size_deg if field.scatter_deg is None else field.scatter_deg


def field_rect(config: Config) -> Rect:
    """Return the pixels that the eye looks at; raises ValueError where the cells lie beside the screen."""
    display, field = config.display, receptive_field(config)
    if field is None:
        return rect_of(display, usual(config.stimulus), "stimulus")
    half_deg = scatter_deg(field) + REACH * field.size_deg
    distance_px = display.distance_cm * pixels_per_cm(display.size_px, display.width_cm)

    def edge(angle_deg: float) -> float:
        return distance_px * tan(radians(min(max(angle_deg, -80.0), 80.0)))

    (right, up), (width, height) = field.center_deg, display.size_px
    left = max(0, floor(width / 2 + edge(right - half_deg)))
    end = min(width, ceil(width / 2 + edge(right + half_deg)))
    top = max(0, floor(height / 2 - edge(up + half_deg)))
    bottom = min(height, ceil(height / 2 - edge(up - half_deg)))
    x, y = width / 2 + edge(right), height / 2 - edge(up)
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f"animal.receptive_field.center_deg: {list(field.center_deg)} lies beside the screen; move it inwards"
        )
    return Rect(left, top, end - left, bottom - top)


def in_field(frame: U8, rect: Rect, field: Rect, background_level: int) -> U8:
    """Return what the eye sees in `field` (y, x, rgb) while `frame` is drawn at `rect`, all else is background."""
    if rect == field:
        return frame
    seen = np.full((field.height, field.width, 3), background_level, np.uint8)
    top, bottom = max(rect.top, field.top), min(rect.bottom, field.bottom)
    left, right = max(rect.left, field.left), min(rect.right, field.right)
    if top < bottom and left < right:
        part = frame[top - rect.top : bottom - rect.top, left - rect.left : right - rect.left]
        seen[top - field.top : bottom - field.top, left - field.left : right - field.left] = part
    return seen
