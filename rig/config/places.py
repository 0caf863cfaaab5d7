"""Where on the screen of a config images, photodiode patch and fixation point lie, and what may not.

The one place that turns degrees into pixels for the rig, the agents' builder, the checks of the config and the
simulated animal. Pure.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from rig.config.part import Part
from rig.config.screen import Display, StimulusPlace
from stimuli.geometry import Rect, image_rect, patch_rect, pixel_angles
from stimuli.spec import Place

F64 = npt.NDArray[np.float64]


def usual(stimulus: StimulusPlace) -> Place:
    """Return the place of images that name none of their own."""
    return Place(center_deg=stimulus.center_deg, size_deg=stimulus.size_deg)


def rect_of(display: Display, place: Place, part: str = "place") -> Rect:
    """Return the pixels of images at `place`.

    Raises ValueError where they do not fit into the window or would cover the photodiode patch; `part` is what the
    place is called in the config.
    """
    rect = image_rect(display.size_px, display.width_cm, display.distance_cm, place.size_deg, place.center_deg, part)
    patch = patch_of(display)
    if display.patch is not None and patch is not None and rect.overlaps(patch):
        raise ValueError(
            f"the image (columns {rect.left} to {rect.right}, rows {rect.top} to {rect.bottom}) covers the photodiode "
            f"patch in the {display.patch.corner.replace('_', ' ')} corner; "
            f"reduce {part}.size_deg or display.patch.size_px, or move one of them"
        )
    return rect


def angles_of(display: Display, rect: Rect) -> tuple[F64, F64]:
    """Return azimuth and elevation of the pixels of `rect`, degrees, each (y, x)."""
    return pixel_angles(rect, display.size_px, display.width_cm, display.distance_cm)


def patch_of(display: Display) -> Rect | None:
    """Return the photodiode patch, None where there is none; raises ValueError where it does not fit."""
    return None if display.patch is None else patch_rect(display.size_px, display.patch.corner, display.patch.size_px)


def fixation_of(display: Display) -> Rect | None:
    """Return the fixation point, None where there is none; raises ValueError where it does not fit."""
    point = display.fixation_point
    if point is None:
        return None
    where = display.size_px, display.width_cm, display.distance_cm
    return image_rect(*where, point.size_deg, point.center_deg, "display.fixation_point")


def named(phases: Iterable[Part]) -> tuple[Place, ...]:
    """Return the different places that phases of a config name; one that is to be found first is not known yet."""
    found = (getattr(phase, "place", None) for phase in phases)
    return tuple(dict.fromkeys(place for place in found if isinstance(place, Place)))


def mistakes(display: Display, stimulus: StimulusPlace) -> Iterator[str]:
    """Yield what is wrong with the places of patch, fixation point and the images that name no place."""
    try:
        patch = patch_of(display)
    except ValueError as error:
        yield f"stimulus, display: {error}"
        return
    try:
        rect_of(display, usual(stimulus), "stimulus")
    except ValueError as error:
        yield f"stimulus: {error}" if "photodiode" in str(error) else f"stimulus, display: {error}"
    try:
        point = fixation_of(display)
    except ValueError as error:
        yield f"display.fixation_point: {error}"
        return
    if point is not None and patch is not None and patch.overlaps(point):
        yield "display.fixation_point: it covers part of the photodiode patch; move one of them"
