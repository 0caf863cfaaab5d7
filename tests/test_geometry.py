"""Places and visual angles on a flat screen."""

from math import atan, degrees, radians, tan

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from stimuli.geometry import CORNERS, Rect, image_rect, patch_rect, pixel_angles, pixels_per_cm

SIZE, WIDTH_CM = (800, 600), 40.0


def test_a_central_image_has_the_tangent_size_and_is_even() -> None:
    rect = image_rect(SIZE, WIDTH_CM, 30.0, 10.0, (0.0, 0.0))
    true_px = 2 * 30 * tan(radians(5)) * pixels_per_cm(SIZE, WIDTH_CM)  # 104.98
    assert rect.width == rect.height == 104
    assert abs(rect.width - true_px) <= 1
    assert (rect.center_row, rect.center_column) == (300.0, 400.0)


def test_at_20_cm_an_eccentric_image_is_where_the_tangent_says_not_where_a_fixed_scale_would() -> None:
    rect = image_rect((1200, 800), 60.0, 20.0, 10.0, (30.0, 0.0))
    assert rect.left == pytest.approx(600 + 20 * 20 * tan(radians(25)), abs=1)
    assert rect.right == pytest.approx(600 + 20 * 20 * tan(radians(35)), abs=1)
    naive = 600 + 30 * 20 * 20 * tan(radians(1))  # cm per degree as at the centre
    assert rect.center_column - naive > 20
    assert rect.width > rect.height  # towards the side only the horizontal angle is stretched


def test_up_is_up_and_right_is_right() -> None:
    up = image_rect(SIZE, WIDTH_CM, 30.0, 6.0, (0.0, 8.0))
    right = image_rect(SIZE, WIDTH_CM, 30.0, 6.0, (8.0, 0.0))
    assert up.center_row < 300 == right.center_row
    assert right.center_column > 400 == up.center_column


def test_pixel_angles_by_hand() -> None:
    azimuth, elevation = pixel_angles(Rect(400, 298, 4, 4), SIZE, WIDTH_CM, 30.0)
    assert azimuth.shape == elevation.shape == (4, 4)
    assert azimuth[0, 0] == pytest.approx(degrees(atan(0.5 / 20 / 30)))  # first pixel right of the centre
    assert elevation[0, 0] == pytest.approx(degrees(atan(1.5 / 20 / 30)))  # row 298: one and a half pixels up
    assert elevation[2, 0] < 0
    assert np.ptp(azimuth[:, 0]) == 0 == np.ptp(elevation[0])


@given(
    size=st.tuples(st.integers(200, 4000), st.integers(200, 3000)),
    width_cm=st.floats(10, 200),
    distance_cm=st.floats(5, 150),
    size_deg=st.floats(1, 60),
    center=st.tuples(st.floats(-40, 40), st.floats(-40, 40)),
)
def test_an_image_that_fits_spans_the_degrees_it_should(
    size: tuple[int, int], width_cm: float, distance_cm: float, size_deg: float, center: tuple[float, float]
) -> None:
    try:
        rect = image_rect(size, width_cm, distance_cm, size_deg, center)
    except ValueError:
        reject()
    assert rect.width % 2 == rect.height % 2 == 0
    assert rect.left >= 0
    assert rect.top >= 0
    assert rect.right <= size[0]
    assert rect.bottom <= size[1]
    azimuth, elevation = pixel_angles(rect, size, width_cm, distance_cm)
    pixel_deg = degrees(1 / (pixels_per_cm(size, width_cm) * distance_cm))  # the largest pixel is the central one
    for angles, middle in ((azimuth[0], center[0]), (elevation[::-1, 0], center[1])):
        assert np.all(np.diff(angles) > 0)
        assert angles[0] == pytest.approx(middle - size_deg / 2, abs=2.01 * pixel_deg)
        assert angles[-1] == pytest.approx(middle + size_deg / 2, abs=2.01 * pixel_deg)


@pytest.mark.parametrize("center", [(30.0, 0.0), (0.0, 25.0), (-40.0, 0.0)])
def test_an_image_outside_the_window_is_refused_with_its_cure(center: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"reduce stimulus\.size_deg, move stimulus\.center_deg inwards"):
        image_rect(SIZE, WIDTH_CM, 30.0, 10.0, center)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves the screen"):
        image_rect(SIZE, WIDTH_CM, 30.0, 100.0, (60.0, 0.0))
    with pytest.raises(ValueError, match="must be positive"):
        image_rect(SIZE, WIDTH_CM, 0.0, 10.0, (0.0, 0.0))
    with pytest.raises(ValueError, match="positive"):
        pixels_per_cm((0, 600), 40.0)


def test_patches_touch_their_corners() -> None:
    rects = {corner: patch_rect(SIZE, corner, 32) for corner in CORNERS}
    assert rects["top_left"] == Rect(0, 0, 32, 32)
    assert rects["bottom_right"] == Rect(768, 568, 32, 32)
    assert (rects["top_right"].right, rects["bottom_left"].bottom) == (800, 600)
    with pytest.raises(ValueError, match="choose one of"):
        patch_rect(SIZE, "middle", 32)
    with pytest.raises(ValueError, match="size_px 601"):
        patch_rect(SIZE, "top_left", 601)


def test_overlap_is_by_pixels() -> None:
    patch = patch_rect(SIZE, "bottom_right", 32)
    assert patch.overlaps(Rect(700, 500, 69, 69))
    assert not patch.overlaps(Rect(700, 500, 68, 100))  # ends at the patch's first column
    assert not patch.overlaps(Rect(768, 500, 10, 68))
