"""Traces to windows: sums over own times, lost frames and absent units are NaN, final when said, lists that change."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rig.animal.calcium import Microscope
from rig.config.sources import Calcium, CalciumSimulation, LslCountSource, TracesWireSource
from rig.messages import TraceBlock, UnitList
from rig.responses.fluorescence import BLOCKS, WARM_UP_BLOCKS, RunningBaseline
from rig.responses.traces import TraceFold

F64 = npt.NDArray[np.float64]
RATE_HZ = 30_000.0
PERIOD = 1000
UNITS = ("a", "b", "c")
COUNTS = LslCountSource(stream="counts", name="scope")


def calcium_source(**settings: Any) -> TracesWireSource:
    return TracesWireSource(port=5000, calcium=Calcium(**{"baseline_window_s": 10.0, "neuropil": 0.0, **settings}))


def unit_list(units: tuple[str, ...] = UNITS, number: int = 0, offset: F64 | None = None) -> UnitList:
    return UnitList(
        source="scope",
        run=1,
        list_number=number,
        from_sample=0,
        units=units,
        scan_offset_s=np.zeros(len(units)) if offset is None else offset,
        measure="fluorescence",
    )


def block(values: npt.NDArray[Any], first: int = 0, number: int = 0, **more: Any) -> TraceBlock:
    frame = np.arange(first, first + len(values), dtype=np.int64)
    return TraceBlock(
        source="scope",
        run=1,
        list_number=number,
        **({"frame": frame, "sample": PERIOD * frame, "arrival_host_ns": frame} | more),
        values=np.asarray(values, np.float32),
    )


def counting(rows: int = 30, offset: F64 | None = None) -> tuple[TraceFold, F64]:
    counts = np.arange(rows * 3, dtype=float).reshape(rows, 3)
    fold = TraceFold(COUNTS, UNITS)
    assert fold.take(unit_list(offset=offset), RATE_HZ) == []
    assert fold.take(block(counts), RATE_HZ) == []
    return fold, counts


# --- sums over windows


def test_counts_are_summed_over_the_rows_in_the_window() -> None:
    fold, counts = counting()
    assert fold.measure == "counts"
    np.testing.assert_array_equal(fold.values(5000, 8000), counts[5:8].sum(axis=0))
    np.testing.assert_array_equal(fold.values(5001, 8001), counts[6:9].sum(axis=0))


def test_each_unit_has_its_own_time_in_the_frame() -> None:
    fold, counts = counting(offset=np.array([0.0, 0.01, 0.03]))  # 0, 300, 900 samples
    got = fold.values(5200, 8200)
    np.testing.assert_array_equal(got, [counts[6:9, 0].sum(), counts[5:8, 1].sum(), counts[5:8, 2].sum()])


def test_what_was_not_there_is_not_a_number() -> None:
    fold, _ = counting()
    assert np.isnan(fold.values(-5000, 2000)).all()  # before the first row
    assert np.isnan(fold.values(28_000, 33_000)).all()  # beyond the last
    assert np.isnan(fold.values(5100, 5900)).all()  # no row lies in it
    assert np.isnan(TraceFold(COUNTS, UNITS).values(0, 5000)).all()
    assert TraceFold(COUNTS, UNITS).why_missing(0, 5000) == "no frame has come"


def test_a_lost_frame_makes_only_its_windows_missing_and_is_said() -> None:
    fold, counts = counting(10)
    assert fold.take(block(counts[:10], first=12), RATE_HZ) == ["2 frames lost before frame 12"]
    assert np.isnan(fold.values(8000, 11_000)).all()  # frame 10 would have begun at 10,000
    assert fold.why_missing(8000, 11_000) == "frames of its window were lost"
    assert np.isfinite(fold.values(7000, 10_000)).all()
    assert np.isfinite(fold.values(12_000, 15_000)).all()
    assert np.isnan(fold.values(11_000, 15_000)).all()


def test_a_lost_frame_is_missing_for_the_units_that_it_would_have_shown() -> None:
    fold, counts = counting(10, offset=np.array([0.0, 0.0, 0.03]))
    fold.take(block(counts[:10], first=11), RATE_HZ)
    got = fold.values(10_500, 14_000)  # frame 10 began at 10,000 and reached unit c at 10,900
    assert np.isfinite(got).tolist() == [True, True, False]


def test_a_value_that_was_not_measured_is_missing_for_its_unit() -> None:
    counts = np.ones((10, 3))
    counts[4, 1] = np.nan
    fold = TraceFold(COUNTS, UNITS)
    fold.take(unit_list(), RATE_HZ)
    fold.take(block(counts), RATE_HZ)
    np.testing.assert_array_equal(fold.values(3000, 6000), [3, np.nan, 3])


def test_rows_that_cannot_be_used_are_said_and_left_out() -> None:
    fold, counts = counting(10)
    assert "out of order" in fold.take(block(counts[:1], first=4), RATE_HZ)[0]
    assert "unit list never came" in fold.take(block(counts[:1], first=10, number=7), RATE_HZ)[0]
    assert "has 3 units, the rows 2" in fold.take(block(counts[:1, :2], first=10), RATE_HZ)[0]
    assert "no sample rate" in fold.take(block(counts[:1], first=10), 0.0)[0]
    np.testing.assert_array_equal(fold.values(5000, 8000), counts[5:8].sum(axis=0))


def test_a_sample_that_goes_back_is_out_of_order() -> None:
    fold, counts = counting(10)
    bad = block(counts[:1], first=10, sample=np.array([8500]))
    assert "out of order" in fold.take(bad, RATE_HZ)[0]


def test_a_pause_that_the_device_did_not_count_is_missing_too() -> None:
    fold, counts = counting(20)
    late = block(counts[:10], first=20, sample=np.arange(30, 40) * PERIOD)
    assert fold.take(late, RATE_HZ) == ["10 frames missing before frame 20 that the device did not count"]
    assert np.isnan(fold.values(18_000, 31_000)).all()
    np.testing.assert_array_equal(fold.values(32_000, 34_000), counts[2:4].sum(axis=0))
    jittered = block(counts[:1], first=30, sample=np.array([41_400]))
    assert fold.take(jittered, RATE_HZ) == []


def test_units_are_matched_by_name_when_the_list_changes() -> None:
    fold, counts = counting(10)
    said = fold.take(unit_list(("c", "new", "a"), number=1), RATE_HZ)
    assert said == ["unit list 1 lacks 1 units of the session: b"]
    fold.take(block(np.array([[1.0, 50, 3]] * 10), first=10, number=1), RATE_HZ)
    np.testing.assert_array_equal(fold.values(12_000, 15_000), [9, np.nan, 3])
    np.testing.assert_array_equal(fold.values(8000, 12_000), [counts[8:, 0].sum() + 6, np.nan, counts[8:, 2].sum() + 2])
    assert fold.take(unit_list(number=2), RATE_HZ) == []
    fold.take(block(counts[:10], first=20, number=2), RATE_HZ)
    assert np.isfinite(fold.values(22_000, 25_000)).all()


def test_forgotten_rows_are_gone_and_the_others_stay() -> None:
    fold, counts = counting()
    fold.forget(10_000)
    assert np.isnan(fold.values(5000, 8000)).all()
    np.testing.assert_array_equal(fold.values(10_000, 12_000), counts[10:12].sum(axis=0))


def test_a_sum_is_that_of_the_time_of_the_window_and_not_of_the_rows_that_fell_into_it() -> None:
    fold = TraceFold(COUNTS, UNITS)
    fold.take(unit_list(offset=np.array([0.0, 0.02, 0.0])), RATE_HZ)  # b is scanned 600 samples later
    fold.take(block(np.ones((30, 3))), RATE_HZ)
    # 2.4 rows long: at this phase two rows of a and c lie in it, and three of b
    np.testing.assert_allclose(fold.values(9100, 11_500), [2.4, 2.4, 2.4])
    np.testing.assert_allclose(fold.values(9500, 11_900), [2.4, 2.4, 2.4])


@pytest.mark.parametrize("seed", range(4))
def test_jitter_of_the_time_stamps_does_not_scale_the_sums(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sample = PERIOD * np.arange(3000) + rng.integers(-100, 101, 3000)
    fold = TraceFold(COUNTS, UNITS)
    fold.take(unit_list(), RATE_HZ)
    fold.take(block(np.ones((3000, 3)), sample=sample), RATE_HZ)
    got = np.array([fold.values(a - 500, a + 4500)[0] for a in range(1_000_000, 2_900_000, 20_000)])
    np.testing.assert_allclose(got, 5.0, rtol=3e-4)  # the period is known to 100 / 1e6


def test_a_window_between_two_frames_has_no_value_and_says_so() -> None:
    fold, _ = counting()
    assert np.isnan(fold.values(5100, 5900)).all()
    assert fold.why_missing(5100, 5900) == "no frame lies in its window"


def test_a_window_of_less_than_two_frames_is_too_short_once_the_period_is_known() -> None:
    fold = TraceFold(COUNTS, UNITS)
    fold.take(unit_list(), RATE_HZ)
    fold.take(block(np.ones((8, 3))), RATE_HZ)
    assert fold.too_short((0.05, 0.1)) == ""
    fold.take(block(np.ones((1, 3)), first=8), RATE_HZ)
    assert fold.too_short((0.05, 0.1)) == (
        "(0.05 to 0.1 s) is 50 ms long, and a bin lasts 33.3 ms; lengthen it to 2 bins, 0.0667 s, or more"
    )
    assert fold.too_short((0.05, 0.1167)) == ""


# --- fluorescence


def test_events_of_windows_of_any_length_have_the_same_rate_at_a_slow_frame_rate() -> None:
    """At 6 Hz and constant activity a baseline of 0.35 s must expect what a window of 0.5 s holds."""
    microscope, frames, _, _ = recording(240, units=40, frame_hz=6.0)
    fold, said = processed(calcium_source(neuropil=0.7), microscope, frames)
    assert said == []
    onsets = np.arange(20.0, 230.0, 0.37) * RATE_HZ
    early, late = (
        np.array([fold.values(int(t + a * RATE_HZ), int(t + b * RATE_HZ)).mean() / (b - a) for t in onsets])
        for a, b in ((-0.35, 0.0), (0.05, 0.55))
    )
    assert np.isfinite([early, late]).all()
    assert early.mean() == pytest.approx(late.mean(), rel=0.02)


def recording(
    seconds: float, units: int = 40, seed: int = 1, **settings: float
) -> tuple[Microscope, Any, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Frames of the simulated microscope with the spikes that made them, 2 spikes/s for each ROI."""
    rng = np.random.default_rng(seed)
    microscope = Microscope(units, CalciumSimulation(**settings), RATE_HZ, 0, rng)
    end = round(seconds * RATE_HZ)
    count = rng.poisson(2 * units * seconds)
    unit, sample = rng.integers(0, units, count), np.sort(rng.integers(0, end, count))
    return microscope, microscope.frames(unit, sample, end), unit, sample


def processed(
    source: TracesWireSource, microscope: Microscope, frames: Any, rows: slice = slice(None)
) -> tuple[TraceFold, list[str]]:
    units = tuple(f"roi{k}" for k in range(frames.fluorescence.shape[1]))
    fold = TraceFold(source, units)
    said = fold.take(unit_list(units, offset=microscope.scan_offset_s), RATE_HZ)
    for k in range(len(frames.frame))[rows]:
        one = block(
            frames.fluorescence[k : k + 1],
            frame=frames.frame[k : k + 1],
            sample=frames.sample[k : k + 1],
            arrival_host_ns=frames.sample[k : k + 1],
            neuropil=frames.neuropil[k : k + 1],
            motion=frames.motion[k : k + 1],
        )
        said += fold.take(one, RATE_HZ)
    return fold, said


def correlation(fold: TraceFold, unit: Any, sample: Any, units: int, start_s: float, end_s: float) -> float:
    edges = np.arange(start_s, end_s, 0.3) * RATE_HZ
    got = np.array([fold.values(int(a), int(a + 0.3 * RATE_HZ)) for a in edges])
    true = np.array(
        [np.bincount(unit[(sample >= a) & (sample < a + 0.3 * RATE_HZ)], minlength=units) for a in edges]
    )
    assert np.isfinite(got).all()
    return float(np.mean([np.corrcoef(got[:, k], true[:, k])[0, 1] for k in range(units)]))


def test_deconvolved_windows_follow_the_true_counts_better_than_dff() -> None:
    microscope, frames, unit, sample = recording(40)
    figures = {}
    for measure in ("deconvolved", "dff"):
        fold, said = processed(calcium_source(neuropil=0.7, measure=measure), microscope, frames)
        assert said == []
        figures[measure] = correlation(fold, unit, sample, 40, 10, 38)
    assert figures["deconvolved"] > 0.8
    assert figures["deconvolved"] > figures["dff"] + 0.2


def test_the_neuropil_is_subtracted() -> None:
    microscope, frames, unit, sample = recording(40, neuropil=1.4, noise_dff=0.02)
    with_it, without = (
        correlation(processed(calcium_source(neuropil=c), microscope, frames)[0], unit, sample, 40, 10, 38)
        for c in (1.4, 0.0)
    )
    assert with_it > without + 0.02


def test_a_source_without_neuropil_is_said_once() -> None:
    fold = TraceFold(calcium_source(neuropil=0.7), UNITS)
    fold.take(unit_list(), RATE_HZ)
    said = [p for k in range(5) for p in fold.take(block(np.ones((1, 3)), first=k), RATE_HZ)]
    assert said == ["scope sends no neuropil: nothing is subtracted (calcium.neuropil: 0)"]


def test_events_in_units_of_dff_per_spike() -> None:
    """Without noise and neuropil the events of a window are the number of its spikes times dF/F of one."""
    microscope, frames, unit, sample = recording(40, units=10, noise_dff=0.0, neuropil=0.0, bleaching_per_h=0.0)
    fold, _ = processed(calcium_source(baseline_percentile=0.0), microscope, frames)
    start, end = 20 * 30_000, 38 * 30_000
    true = np.bincount(unit[(sample >= start) & (sample < end)], minlength=10)
    # F0 is the lowest block mean, in which some calcium is left: events come out smaller
    np.testing.assert_allclose(fold.values(start, end) / 0.3 / true, 0.75, atol=0.25)


@pytest.mark.parametrize("lag_s", [0.0, 0.2, 1.0])
def test_what_is_called_final_never_changes(lag_s: float) -> None:
    microscope, frames, _, _ = recording(12, units=5)
    source = calcium_source(lag_s=lag_s)
    whole, _ = processed(source, microscope, frames)
    units = tuple(f"roi{k}" for k in range(5))
    fold = TraceFold(source, units)
    fold.take(unit_list(units, offset=microscope.scan_offset_s), RATE_HZ)
    checked = 0
    for k in range(len(frames.frame)):
        part = slice(k, k + 1)
        columns = {"frame": frames.frame[part], "sample": frames.sample[part], "arrival_host_ns": frames.sample[part]}
        fold.take(block(frames.fluorescence[part], **columns), RATE_HZ)
        watermark = int(frames.sample[k]) + PERIOD
        end = fold.final_through(watermark)
        assert end <= watermark
        if end > 6000:
            np.testing.assert_array_equal(fold.values(end - 6000, end), whole.values(end - 6000, end))
            checked += bool(np.isfinite(whole.values(end - 6000, end)).all())
        if k > 60:
            assert end == watermark - PERIOD * max(1, round(lag_s * 30)) or lag_s == 0
            assert end > watermark - (lag_s + 2 / 30) * RATE_HZ
    assert checked > 200


def test_when_rows_stop_the_watermark_goes_on_and_windows_are_missing() -> None:
    microscope, frames, _, _ = recording(10, units=5)
    fold, _ = processed(calcium_source(lag_s=0.5), microscope, frames)
    assert fold.final_through(20 * 30_000) == 20 * 30_000 - 17 * PERIOD
    assert np.isnan(fold.values(9 * 30_000 + 20_000, 10 * 30_000)).all()  # rows whose lag never ends
    assert np.isfinite(fold.values(8 * 30_000, 9 * 30_000)).all()


def test_lost_frames_do_not_disturb_the_events_behind_them() -> None:
    microscope, frames, unit, sample = recording(40)
    units = tuple(f"roi{k}" for k in range(40))
    fold = TraceFold(calcium_source(neuropil=0.7), units)
    fold.take(unit_list(units, offset=microscope.scan_offset_s), RATE_HZ)
    for rows in (slice(0, 600), slice(640, 1200)):
        columns = {"frame": frames.frame[rows], "sample": frames.sample[rows], "arrival_host_ns": frames.sample[rows]}
        said = fold.take(block(frames.fluorescence[rows], neuropil=frames.neuropil[rows], **columns), RATE_HZ)
    assert said == ["40 frames lost before frame 640"]
    assert np.isnan(fold.values(19 * 30_000, 20 * 30_000 + 3000)).all()
    assert correlation(fold, unit, sample, 40, 22, 38) > 0.8


def test_a_baseline_that_is_not_positive_gives_no_dff_and_is_said_once() -> None:
    fold = TraceFold(calcium_source(measure="dff", baseline_window_s=5.0), UNITS)
    fold.take(unit_list(), RATE_HZ)
    values = np.full((60, 3), 100.0)
    values[:, 1] = -5
    said = fold.take(block(values), RATE_HZ)
    assert len(said) == 1
    assert "not positive" in said[0]
    assert "(b ...)" in said[0]
    got = fold.values(50_000, 55_000)
    assert np.isnan(got).tolist() == [False, True, False]


def test_the_first_seconds_have_no_baseline_and_no_values() -> None:
    microscope, frames, _, _ = recording(10, units=3)
    fold, _ = processed(calcium_source(baseline_window_s=60.0), microscope, frames)
    warm_up = WARM_UP_BLOCKS * 15 * PERIOD
    assert np.isnan(fold.values(warm_up - 4000, warm_up - 1000)).all()
    assert np.isfinite(fold.values(warm_up + 1000, warm_up + 4000)).all()
    assert fold.why_missing(warm_up - 4000, warm_up - 1000) == "no baseline F0 yet: it needs 5 s of frames"


def test_rows_in_blocks_of_any_size_give_the_same() -> None:
    microscope, frames, _, _ = recording(12, units=5)
    units = tuple(f"roi{k}" for k in range(5))
    one, _ = processed(calcium_source(neuropil=0.7), microscope, frames)
    many = TraceFold(calcium_source(neuropil=0.7), units)
    many.take(unit_list(units, offset=microscope.scan_offset_s), RATE_HZ)
    columns = {"frame": frames.frame, "sample": frames.sample, "arrival_host_ns": frames.sample}
    many.take(block(frames.fluorescence, neuropil=frames.neuropil, **columns), RATE_HZ)
    np.testing.assert_array_equal(one.values(120_000, 300_000), many.values(120_000, 300_000))


# --- the baseline


def test_the_baseline_is_the_percentile_of_the_last_blocks() -> None:
    rng = np.random.default_rng(2)
    f = 100 + 10 * rng.random((1200, 7))
    baseline = RunningBaseline(7, 20.0, 1200.0)
    assert baseline.block_frames == 10
    got = np.array([baseline.take(row).copy() for row in f])
    assert np.isnan(got[: WARM_UP_BLOCKS * 10 - 1]).all()
    blocks = f.reshape(BLOCKS, 10, 7).mean(axis=1)
    want = np.percentile(blocks[:-1].astype(np.float32), 20, axis=0)
    after = [baseline.take(f[k]) for k in range(40)][-1]  # all units are refreshed within 40 frames
    np.testing.assert_allclose(after, want, rtol=2e-3)


def test_the_baseline_follows_a_slow_change_and_not_the_transients() -> None:
    t = np.arange(6000)
    slow = 100 * np.exp(-t / 20_000)
    f = np.where(t % 100 < 30, slow * 2, slow)[:, None]
    baseline = RunningBaseline(1, 20.0, 600.0)
    got = np.array([baseline.take(row).copy() for row in f])[1000:, 0]
    np.testing.assert_allclose(got, slow[1000:], rtol=0.03)


def test_the_baseline_leaves_out_what_was_not_measured() -> None:
    f = np.full((1200, 2), 100.0)
    f[300:700, 0] = np.nan
    baseline = RunningBaseline(2, 20.0, 1200.0)
    got = np.array([baseline.take(row).copy() for row in f])
    np.testing.assert_allclose(got[200:], 100.0)
