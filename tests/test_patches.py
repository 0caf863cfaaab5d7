"""Squares on the background, and the sparse noise made of them."""

import numpy as np
import pytest

from models.agents.sparse_noise import Raster, one_pass
from stimuli.geometry import image_rect, pixel_angles
from stimuli.render import render
from stimuli.spec import GratingSquare, Patches, Place, Square

SIZE, WIDTH_CM, DISTANCE_CM = (800, 600), 40.0, 30.0
PLACE = Place(center_deg=(2.0, -1.0), size_deg=16.0)
ANGLES = pixel_angles(image_rect(SIZE, WIDTH_CM, DISTANCE_CM, 16.0, (2.0, -1.0)), SIZE, WIDTH_CM, DISTANCE_CM)


def test_a_square_covers_the_pixels_within_it_and_no_others() -> None:
    square = Square(center_deg=(3.0, -2.0), size_deg=2.0, level=255)
    frame = render(Patches(squares=(square,)), ANGLES, 128, {})
    x = ANGLES[0] - (ANGLES[0].min() + ANGLES[0].max()) / 2
    y = ANGLES[1] - (ANGLES[1].min() + ANGLES[1].max()) / 2
    inside = (np.abs(x - 3.0) < 1.0) & (np.abs(y + 2.0) < 1.0)
    assert (frame[inside] == 255).all()
    assert (frame[~inside] == 128).all()
    assert inside.sum() > 100


def test_colours_and_gratings_and_what_lies_on_top() -> None:
    red = Square(center_deg=(0.0, 0.0), size_deg=4.0, level=(200, 30, 10))
    grating = GratingSquare(center_deg=(0.0, 0.0), size_deg=2.0, orientation_deg=90, cycles_per_deg=1.0)
    frame = render(Patches(squares=(red, grating)), ANGLES, 128, {})
    middle = tuple(  # pixels differ in degrees: the centre is not half of them away
        int(np.argmin(np.abs(axis - (axis.min() + axis.max()) / 2))) for axis in (ANGLES[1][:, 0], ANGLES[0][0])
    )
    assert frame[middle][0] > 240  # phase 0: brightest in the middle
    assert np.ptp(frame[middle[0] - 3 : middle[0] + 3, middle[1]], axis=0).max() == 0  # bars stand upright
    edge = int(1.5 / 16 * frame.shape[1])
    assert tuple(frame[middle[0], middle[1] + edge]) == (200, 30, 10)


@pytest.mark.parametrize(
    ("squares", "words"),
    [
        ((Square(center_deg=(7.9, 0), size_deg=2, level=0),), "beyond its image"),
        ((Square(center_deg=(0.03, 0.03), size_deg=0.001, level=0),), "no pixel of its own"),
        ((GratingSquare(center_deg=(0, 0), size_deg=2, orientation_deg=0, cycles_per_deg=30),), "finer than pixels"),
    ],
)
def test_what_cannot_be_drawn_says_why(squares: tuple[Square], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        render(Patches(squares=squares), ANGLES, 128, {})


@pytest.mark.parametrize(("per_side", "squares"), [(10, 10), (7, 8), (5, 16), (3, 4)])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_pass_shows_every_position_once_in_white_and_once_in_black(
    per_side: int, squares: int, shifted: bool
) -> None:
    raster = Raster((2.0, -1.0), 16.0, per_side)
    frames = one_pass(raster, shifted, squares, "squares", PLACE, (1, 255), np.random.default_rng(per_side))
    shown: dict[tuple[float, float], list[int]] = {}
    for frame in frames:
        levels = [s.level for s in frame.squares if isinstance(s, Square)]
        assert levels.count(255) == levels.count(1) == squares // 2
        assert len({s.center_deg for s in frame.squares}) == squares  # none on another
        for s in frame.squares:
            assert isinstance(s, Square)
            assert isinstance(s.level, int)
            shown.setdefault(s.center_deg, []).append(s.level)
    side = per_side - 1 if shifted else per_side
    assert len(shown) == side**2
    counts = [levels.count(level) for levels in shown.values() for level in (1, 255)]
    assert min(counts) == 1
    assert max(counts) <= 2  # the last frame is filled up
    assert render(frames[0], ANGLES, 128, {}).shape[2] == 3  # it lies within its place


def test_too_many_squares_are_refused() -> None:
    with pytest.raises(ValueError, match="an even number of at most 9"):
        one_pass(Raster((0, 0), 9.0, 3), False, 10, "squares", PLACE, (0, 255), np.random.default_rng(0))
