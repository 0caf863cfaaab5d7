"""The simulated microscope: fluorescence follows from the spikes, frame times do not drift, everything is seeded."""

import numpy as np
import pytest

from rig.animal.calcium import Frames, Microscope
from rig.config.sources import CalciumSimulation

RATE_HZ = 30_000.0
START = 500
CLEAN = {"noise_dff": 0.0, "neuropil": 0.0, "bleaching_per_h": 0.0}


def scope(units: int = 4, seed: int = 1, **settings: float) -> Microscope:
    return Microscope(units, CalciumSimulation(**settings), RATE_HZ, START, np.random.default_rng(seed))


NONE = (np.zeros(0, np.int64), np.zeros(0, np.int64))


def spikes(rng: np.random.Generator, units: int, until: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, units, count), np.sort(rng.integers(START, until, count))


def test_frames_begin_at_whole_multiples_of_the_period_however_they_are_asked_for() -> None:
    microscope = scope(frame_hz=29.97)
    untils = range(START, START + 3_000_000, 30_011)
    starts = [microscope.frames(*NONE, until).sample for until in untils]
    got = np.concatenate(starts)
    want = np.rint(START + np.arange(len(got)) * RATE_HZ / 29.97)
    np.testing.assert_array_equal(got, want)  # 3,000 frames, less than a sample off: nothing adds up
    assert got[-1] + RATE_HZ / 29.97 <= START + 3_000_000


def test_only_frames_that_ended_come() -> None:
    microscope = scope(frame_hz=30.0)
    assert len(microscope.frames(*NONE, START + 999).frame) == 0
    assert microscope.frames(*NONE, START + 1000).frame.tolist() == [0]
    assert microscope.frames(*NONE, START + 3500).frame.tolist() == [1, 2]


def test_a_spike_is_seen_when_the_scan_comes_by_and_decays() -> None:
    microscope = scope(units=2, **CLEAN)
    offset = microscope.scan_offset_s * RATE_HZ
    period = RATE_HZ / 30
    before, behind = START + 5 * period + offset[0] - 10, START + 5 * period + offset[1] + 10
    frames = microscope.frames(np.array([0, 1]), np.array([before, behind]), START + 20 * period)
    still = scope(units=2, **CLEAN).frames(*NONE, START + 20 * period)
    dff = (frames.fluorescence - still.fluorescence) / still.fluorescence
    assert np.abs(dff[:5]).max() < 1e-6
    decay = np.exp(-1 / 30 / 0.7)
    np.testing.assert_allclose(dff[5:, 0], 0.3 * decay ** np.arange(15), rtol=2e-3)  # ROI 0 was scanned just after
    np.testing.assert_allclose(dff[6:, 1], 0.3 * decay ** np.arange(1, 15), rtol=2e-3)  # ROI 1 just before
    assert abs(dff[5, 1]) < 1e-6


@pytest.mark.parametrize("step", [700, 1000, 1001, 40_000])
def test_frames_do_not_depend_on_how_the_spikes_are_handed_in(step: int) -> None:
    rng = np.random.default_rng(7)
    unit, sample = spikes(rng, 4, START + 120_000, 300)
    whole = scope().frames(unit, sample, START + 120_000)
    microscope, parts, last = scope(), [], START
    for until in [*range(START + step, START + 120_000, step), START + 120_000]:
        chosen = (sample >= last) & (sample < until)
        parts.append(microscope.frames(unit[chosen], sample[chosen], until))
        last = until
    for name in Frames.__dataclass_fields__:
        got = np.concatenate([getattr(p, name) for p in parts])
        np.testing.assert_allclose(got, getattr(whole, name), rtol=1e-5, err_msg=name)


def test_the_same_seed_gives_the_same_frames_and_another_does_not() -> None:
    a, b, c = (scope(seed=s).frames(*NONE, 100_000).fluorescence for s in (3, 3, 4))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_neuropil_is_shared_by_neighbours_and_lies_on_the_rois() -> None:
    quiet = {**CLEAN, "neuropil": 0.7}
    frames = scope(units=50, **quiet).frames(*NONE, 3_000_000)
    near = np.corrcoef(frames.neuropil[:, 0], frames.neuropil[:, 24])[0, 1]
    far = np.corrcoef(frames.neuropil[:, 0], frames.neuropil[:, 25])[0, 1]
    assert near > 0.95
    assert abs(far) < 0.6
    assert np.corrcoef(frames.neuropil[:, 0], frames.fluorescence[:, 0])[0, 1] > 0.9
    clean = frames.fluorescence - np.float32(0.7) * frames.neuropil
    assert clean[:, 0].std() < 0.3 * frames.fluorescence[:, 0].std()


def test_noise_is_as_large_as_set_and_bleaching_dims() -> None:
    microscope = scope(units=20, noise_dff=0.1, neuropil=0.0, bleaching_per_h=0.0)
    frames = microscope.frames(*NONE, 3_000_000)
    sd = np.diff(frames.fluorescence, axis=0).std(axis=0) / np.sqrt(2) / microscope.f0
    np.testing.assert_allclose(sd, 0.1, rtol=0.1)
    dark = scope(units=20, noise_dff=0.0, neuropil=0.0, bleaching_per_h=0.9).frames(*NONE, 9_000_000)
    ratio = dark.fluorescence[-300:].mean() / dark.fluorescence[:300].mean()
    assert ratio == pytest.approx(0.1 ** (290 / 3600), rel=0.02)


def test_scan_offsets_lie_within_a_frame() -> None:
    offset = scope(units=1000, frame_hz=15.0).scan_offset_s
    assert offset.shape == (1000,)
    assert offset.min() >= 0
    assert offset.max() < 1 / 15
