"""The hard limits on frames."""

import numpy as np
import pytest

from stimuli.limits import LimitExceeded, check_frame, frame_levels

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
