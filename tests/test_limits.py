"""The hard limits on frames."""

import numpy as np
import pytest

from stimuli.bank import natural_bank
from stimuli.geometry import Rect
from stimuli.limits import (
    FLASH_STEP,
    FlashLimit,
    Light,
    LimitExceeded,
    Spot,
    check_frame,
    frame_levels,
    mean_luminance,
    most_flashes,
)

WIDE = (0.0, 255.0)


def checks(low: int, high: int) -> np.ndarray:
    frame = np.full((8, 8, 3), low, np.uint8)
    frame[::2] = high
    return frame


def test_levels_equal_numpys() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (31, 17, 3), dtype=np.uint8)
    mean, contrast = frame_levels(frame)
    assert mean == pytest.approx(frame.mean())
    assert contrast == pytest.approx(frame.std() / 127.5)


def test_colour_alone_is_contrast() -> None:
    red_green = np.zeros((4, 4, 3), np.uint8)
    red_green[:, :2, 0] = red_green[:, 2:, 1] = 200  # equal sums, no luminance pattern to speak of
    assert frame_levels(red_green)[1] > 0.5


def test_a_frame_on_the_limit_passes_and_one_beyond_is_refused() -> None:
    check_frame(checks(64, 192), (128.0, 128.0), 64 / 127.5)
    with pytest.raises(LimitExceeded, match=r"RMS contrast 0\.51.* exceeds limits\.max_rms_contrast 0\.5"):
        check_frame(checks(63, 193), WIDE, 0.5)
    with pytest.raises(LimitExceeded, match=r"mean level 128\.5 is outside limits\.mean_level 20 to 128"):
        check_frame(checks(65, 192), (20.0, 128.0), 1.0)
    with pytest.raises(LimitExceeded, match="mean level 10"):
        check_frame(np.full((4, 4, 3), 10, np.uint8), (20.0, 235.0), 1.0)


@pytest.mark.parametrize(
    "frame",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
    ids=["grey", "rgba", "float", "empty"],
)
def test_what_is_no_frame_is_refused(frame: np.ndarray) -> None:
    with pytest.raises(LimitExceeded, match="frames are uint8"):
        check_frame(frame, WIDE, 2.0)


# --- flashes ----------------------------------------------------------------------------------------------------------

MS = 1_000_000
LARGE_SR = 0.03  # a square of 10 degrees
SQUARE = Spot(Rect(100, 100, 80, 80), LARGE_SR)


def rhythm(luminances: list[float], on_ms: int, off_ms: int, background: float = 0.5) -> list[tuple[int, float]]:
    """Return (time, luminance) of images on a background."""
    out = []
    for k, luminance in enumerate(luminances):
        out.append((k * (on_ms + off_ms) * MS, luminance))
        if off_ms:
            out.append(((k * (on_ms + off_ms) + on_ms) * MS, background))
    return out


def on(spot: Spot, levels: list[tuple[int, float]], background: float = 0.5) -> list[Light]:
    """Return changes of luminance as those of images at `spot`."""
    return [Light(t, level, None if level == background else spot) for t, level in levels]


def test_mean_luminance_weighs_the_colours() -> None:
    frame = np.zeros((4, 6, 3), np.uint8)
    frame[:, :, 1] = 255
    assert mean_luminance(frame) == pytest.approx(0.7152)
    assert mean_luminance(np.full((4, 6, 3), 51, np.uint8)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("levels", "flashes"),
    [
        ([0.5, 0.59, 0.5, 0.59, 0.5], 0),  # too small
        ([0.5, 0.6, 0.5], 1),
        ([0.5, 0.4, 0.5], 1),
        ([0.5, 0.4, 0.5, 0.6, 0.5], 1.5),  # down, up by 0.2, down
        ([0.5, 0.55, 0.6, 0.55, 0.5], 1),  # in steps
        ([0.85, 1.0, 0.85, 1.0, 0.85], 0),  # the darker side is light
        ([0.0, 1.0] * 5, 4.5),
        ([], 0),
    ],
)
def test_flashes_are_pairs_of_opposing_changes(levels: list[float], flashes: float) -> None:
    assert most_flashes([(k * 10 * MS, level) for k, level in enumerate(levels)]) == flashes


def test_flashes_are_counted_in_any_second() -> None:
    slow = rhythm([0.9] * 20, 200, 200)  # 2.5 per s
    assert most_flashes(slow) <= 3
    fast = rhythm([0.9] * 20, 100, 100)
    assert most_flashes(fast) == 5
    # Three at the end of one second and three at the beginning of the next are six in one.
    three = rhythm([0.9] * 3, 50, 50)
    bursts = [(-MS, 0.5), *three, *((t + 400 * MS, level) for t, level in three)]
    assert most_flashes(bursts) == 6


def test_ordinary_images_at_five_per_second_pass_and_bright_ones_do_not() -> None:
    limit = FlashLimit(128 / 255, 3.0)
    mean_grey = [128 / 255 + d for d in (0.03, -0.04, 0.05, -0.02, 0.0) * 4]
    assert limit.refusal(on(SQUARE, rhythm(mean_grey, 100, 100, 128 / 255), 128 / 255), mean_grey[-1]) == ""
    bright = on(SQUARE, rhythm([0.8] * 5, 100, 100, 128 / 255), 128 / 255)
    refused = limit.refusal(bright, 0.8)
    assert "max_flash_hz is 3" in refused
    assert "luminance is 0.80 of white, the background's 0.50" in refused
    assert limit.refusal(bright[:6], 0.8) == ""
    assert FlashLimit(128 / 255, 5.0).refusal(bright, 0.8) == ""
    small = [light._replace(spot=light.spot and light.spot._replace(area_sr=0.005)) for light in bright]
    assert limit.refusal(small, 0.8) == "", "a small square"


def test_what_was_shown_before_counts() -> None:
    limit = FlashLimit(0.5, 3.0)
    for light in on(SQUARE, rhythm([0.9] * 3, 100, 100)):
        limit.shown(light)
    soon, later = 700 * MS, 1600 * MS
    assert limit.refusal([Light(soon, 0.9, SQUARE), limit.cleared(soon + 100 * MS)], 0.9) != ""
    assert limit.refusal([Light(later, 0.9, SQUARE), limit.cleared(later + 100 * MS)], 0.9) == ""


def test_images_that_take_turns_at_two_places_flash_at_each() -> None:
    """Without a period off their luminance never changes, and yet each square goes on and off."""
    limit, beside = FlashLimit(0.5, 3.0), Spot(Rect(300, 100, 80, 80), LARGE_SR)
    turns = [Light(100 * k * MS, 0.9, (SQUARE, beside)[k % 2]) for k in range(12)]
    assert limit.refusal([Light(100 * k * MS, 0.9, SQUARE) for k in range(12)], 0.9) == "", "always on: no flash"
    assert "makes 5 flashes" in limit.refusal(turns, 0.9).replace("would make", "makes")
    slow = [light._replace(at_ns=2 * light.at_ns) for light in turns]
    assert limit.refusal(slow, 0.9) == "", "2.5 in a second at each"


def test_an_image_counts_where_it_lies_by_the_part_that_it_covers() -> None:
    limit = FlashLimit(0.5, 3.0)
    times = rhythm([0.9] * 6, 50, 50)
    quarter = Spot(Rect(140, 140, 40, 40), LARGE_SR / 4)
    wide = Light(-100 * MS, 0.5, SQUARE)
    assert limit.refusal([wide, *on(quarter, times)], 0.9) != "", "large enough by itself"
    eighth = Spot(Rect(140, 140, 40, 20), 0.004)
    assert limit.refusal([wide, *on(eighth, times)], 0.9) == "", "small, and little of the large square"
    most = Spot(Rect(100, 100, 80, 60), 0.005)
    assert limit.refusal([wide, *on(most, times)], 0.9) != "", "three quarters of a large square that was shown"
    assert limit.refusal(on(most, times), 0.9) == "", "and nothing large was"


@pytest.mark.parametrize("contrast", [0.25, 0.6])
def test_the_shipped_images_make_no_flashes(contrast: float) -> None:
    """Their mean level is matched over all channels; the luminance weighs green most, and must still be near."""
    bank = natural_bank(128.0, contrast)
    off = [abs(mean_luminance(bank.image(name, 96, 96)) - 128 / 255) for name in bank.names]
    assert max(off) < FLASH_STEP
