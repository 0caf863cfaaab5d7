"""Where images lie on the screen and at which visual angles their pixels are.

Called by the display, the renderer, the agents' builder and the simulated eye, so that all of them mean the same
degrees. Flat screen, eye opposite the window's centre: a point x cm right of the centre lies at atan(x / distance),
so equal angles grow in cm towards the border; at 20 cm this is several percent and cannot be left out.

Pixel rows count from the top, columns from the left; angles are positive to the right and up.
"""

from dataclasses import dataclass
from math import radians, tan

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

CORNERS = ("bottom_right", "bottom_left", "top_right", "top_left")


@dataclass(frozen=True)
class Rect:
    """A rectangle of whole pixels in the window."""

    left: int
    top: int
    width: int
    height: int

    @property
    def center_row(self) -> float:
        """Row coordinate of the centre: pixel r covers r to r + 1."""
        return self.top + self.height / 2

    @property
    def center_column(self) -> float:
        """Column coordinate of the centre: pixel c covers c to c + 1."""
        return self.left + self.width / 2

    @property
    def right(self) -> int:
        """First column after the rectangle."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """First row after the rectangle."""
        return self.top + self.height

    def overlaps(self, other: "Rect") -> bool:
        """Return whether the two share a pixel."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def shared_px(self, other: "Rect") -> int:
        """Return how many pixels the two share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0) * max(height, 0)


def pixels_per_cm(size_px: tuple[int, int], width_cm: float) -> float:
    """Return pixels per cm of a window `size_px` (width, height) that is `width_cm` wide; pixels are square."""
    if size_px[0] < 1 or size_px[1] < 1 or width_cm <= 0:
        raise ValueError(f"a window of {size_px} pixels and {width_cm} cm; give positive display.size_px and width_cm")
    return size_px[0] / width_cm


def _extent_px(center_deg: float, size_deg: float, distance_px: float, part: str) -> tuple[float, float]:
    """Return low and high edge along one axis, pixels from the window's centre."""
    low, high = center_deg - size_deg / 2, center_deg + size_deg / 2
    if not -89 < low < high < 89:
        raise ValueError(f"an image from {low:.1f} to {high:.1f} degrees leaves the screen; reduce {part}.size_deg")
    return distance_px * tan(radians(low)), distance_px * tan(radians(high))


def image_rect(
    size_px: tuple[int, int],
    width_cm: float,
    distance_cm: float,
    size_deg: float,
    center_deg: tuple[float, float],
    part: str = "stimulus",
) -> Rect:
    """Return the pixels of the image: `size_deg` degrees along each axis around `center_deg` (right, up).

    Width and height are rounded to the nearest even number of pixels, and the rectangle's centre to a whole pixel
    from the window's; away from the screen's centre the two sides differ (flat screen). Raises ValueError where the
    image does not fit into the window; `part` is what the image's place is called in the config.
    """
    if distance_cm <= 0 or size_deg <= 0:
        raise ValueError(f"distance {distance_cm} cm, size {size_deg} degrees: both must be positive")
    distance_px = distance_cm * pixels_per_cm(size_px, width_cm)
    x0, x1 = _extent_px(center_deg[0], size_deg, distance_px, part)
    y0, y1 = _extent_px(center_deg[1], size_deg, distance_px, part)
    width, height = max(2, 2 * round((x1 - x0) / 2)), max(2, 2 * round((y1 - y0) / 2))
    left = round(size_px[0] / 2 + (x0 + x1) / 2 - width / 2)
    top = round(size_px[1] / 2 - (y0 + y1) / 2 - height / 2)
    rect = Rect(left, top, width, height)
    if left < 0 or top < 0 or rect.right > size_px[0] or rect.bottom > size_px[1]:
        raise ValueError(
            f"an image of {size_deg} degrees at {center_deg} degrees takes columns {left} to {rect.right} and "
            f"rows {top} to {rect.bottom} of a window of {size_px[0]} x {size_px[1]} pixels; "
            f"reduce {part}.size_deg, move {part}.center_deg inwards, or move the screen nearer"
        )
    return rect


def patch_rect(size_px: tuple[int, int], corner: str, patch_px: int) -> Rect:
    """Return the photodiode patch: a square of `patch_px` pixels in a `corner` of the window (one of CORNERS)."""
    if corner not in CORNERS:
        raise ValueError(f"display.patch.corner {corner!r}; choose one of {', '.join(CORNERS)}")
    if not 1 <= patch_px <= min(size_px):
        raise ValueError(f"display.patch.size_px {patch_px}: the window has {size_px[0]} x {size_px[1]} pixels")
    vertical, horizontal = corner.split("_")
    left = size_px[0] - patch_px if horizontal == "right" else 0
    top = size_px[1] - patch_px if vertical == "bottom" else 0
    return Rect(left, top, patch_px, patch_px)


def pixel_angles(rect: Rect, size_px: tuple[int, int], width_cm: float, distance_cm: float) -> tuple[F64, F64]:
    """Return azimuth (right +) and elevation (up +) of the centres of `rect`'s pixels, degrees, each (y, x)."""
    distance_px = distance_cm * pixels_per_cm(size_px, width_cm)
    x = rect.left + np.arange(rect.width) + 0.5 - size_px[0] / 2
    y = size_px[1] / 2 - (rect.top + np.arange(rect.height) + 0.5)
    azimuth, elevation = np.degrees(np.arctan(x / distance_px)), np.degrees(np.arctan(y / distance_px))
    shape = (rect.height, rect.width)
    return np.broadcast_to(azimuth, shape).copy(), np.broadcast_to(elevation[:, None], shape).copy()
