"""Decoded pictures to frames: size, mean level, contrast."""

import numpy as np
import pytest

from models.generators.fit import MOST_GAIN, FrameFit, resampling
from stimuli.limits import frame_levels


def picture(seed: int, side: int = 64) -> np.ndarray:
    """Return a picture (3, side, side) of coarse squares, some of them at the bounds."""
    coarse = np.random.default_rng(seed).beta(0.8, 1.5, (3, 8, 8)).astype(np.float32)
    return coarse.repeat(side // 8, axis=1).repeat(side // 8, axis=2)


@pytest.mark.parametrize(("contrast", "background"), [(0.1, 128), (0.3, 128), (0.3, 110), (0.5, 128)])
def test_frames_have_the_mean_and_contrast_asked_for_after_clipping(contrast: float, background: int) -> None:
    fit = FrameFit((64, 64), (90, 70), contrast, background)
    for seed in range(5):
        frame = fit.frame(picture(seed))
        assert (frame.shape, frame.dtype) == ((90, 70, 3), np.uint8)
        assert frame_levels(frame) == pytest.approx((background, contrast), abs=0.4, rel=0.01)


def test_nothing_that_is_invisible_is_blown_up() -> None:
    faint = 0.5 + 0.004 * (picture(0) - picture(0).mean())
    frame = FrameFit((64, 64), (64, 64), 0.3, 128).frame(faint)
    assert frame_levels(frame)[1] == pytest.approx(MOST_GAIN * faint.std() * 2, rel=0.1)
    flat = FrameFit((64, 64), (64, 64), 0.3, 128).frame(np.full((3, 64, 64), 0.9, np.float32))
    assert np.unique(flat).tolist() == [128]


def test_as_decoded_means_as_decoded() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (3, 32, 32)).astype(np.uint8)
    frame = FrameFit((32, 32), (32, 32), None, 128).frame(levels.astype(np.float32) / 255)
    assert np.array_equal(frame, levels.transpose(1, 2, 0))
    beyond = FrameFit((8, 8), (8, 8), None, 128).frame(np.stack([np.full((8, 8), v, np.float32) for v in (-1, 0.5, 2)]))
    assert beyond[0, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("before", "after"), [(64, 64), (64, 200), (256, 104), (16, 7)])
def test_resampling_keeps_ramps_and_mean_levels(before: int, after: int) -> None:
    weights = resampling(before, after).astype(np.float64)
    assert weights.sum(axis=1) == pytest.approx(1)
    ramp = weights @ ((np.arange(before) + 0.5) / before)
    inner = slice(int(3 * max(1, after / before)), -int(3 * max(1, after / before)))
    assert ramp[inner] == pytest.approx(((np.arange(after) + 0.5) / after)[inner], abs=1e-4)
    if after < before:  # a frequency that the result cannot hold is gone
        fast = np.cos(np.pi * (np.arange(before) + 0.5))
        assert np.abs(weights @ fast).max() < 0.05


@pytest.mark.parametrize("contrast", [None, 0.3])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_picture_that_is_none_is_no_frame(contrast: float | None, value: float) -> None:
    broken = picture(0)
    broken[1, 3, 4] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        FrameFit((64, 64), (32, 32), contrast, 128).frame(broken)
