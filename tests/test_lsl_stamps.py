"""LSL time: stamps that cannot be true, clocks that jump, frames that are missing. Pure, but for a recorded file."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rig.messages import Fault, Gap
from rig.sources.columns import Faults
from rig.sources.lsl_frames import FrameCount, counter_channel
from rig.sources.lsl_stamps import ClockWatch, StampCheck
from rig.sources.lsl_streams import Described, Pulled, Restarted, host_ns, whole_us

SECOND = 1_000_000_000


def pulled(stamps: list[float], arrival_s: float) -> Pulled:
    at = np.array(stamps, dtype=np.float64)
    return Pulled(np.zeros((len(stamps), 1)), at, host_ns(at, 0.0, 0), round(arrival_s * 1e9))


def told(faults: Faults) -> list[str]:
    return [f.what for f in faults.due(10**18, everything=True) if isinstance(f, Fault)]


# --- stamps ---


def test_stamps_that_are_true_pass_without_a_word() -> None:
    faults = Faults()
    check = StampCheck("scope", 2.0, faults)
    assert check.judge(pulled([100.0, 100.033, 100.066], 100.07)) == ["good"] * 3
    assert check.judge(pulled([100.066, 100.1], 101.9)) == ["good"] * 2
    assert told(faults) == []


@pytest.mark.parametrize("jump_s", [10.0, 20.0, -10.0, -20.0, 200_000.0, -200_000.0])
def test_jumps_are_refused_until_the_stamps_are_right_again(jump_s: float) -> None:
    faults = Faults()
    check = StampCheck("scope", 60.0, faults)
    assert check.judge(pulled([300_000.0], 300_000.01)) == ["good"]
    assert check.judge(pulled([300_000.033 + jump_s, 300_000.066 + jump_s], 300_000.1)) == ["wrong", "wrong"]
    assert check.judge(pulled([300_000.1], 300_000.11)) == ["good"]
    assert told(faults) == ["time stamp wrong"]


@pytest.mark.parametrize("stamp_s", [0.0, -5.0, float("nan"), float("inf"), -float("inf"), 1e300])
def test_what_is_no_time_is_wrong(stamp_s: float) -> None:
    assert StampCheck("scope", 2.0, Faults()).judge(pulled([stamp_s], 1e6)) == ["wrong"]


def test_old_data_are_told_and_not_wrong() -> None:
    faults = Faults()
    check = StampCheck("scope", 2.0, faults)
    assert check.judge(pulled([100.0, 101.0, 102.5], 103.1)) == ["stale", "stale", "good"]
    (fault,) = faults.due(10**18, everything=True)
    assert isinstance(fault, Fault)
    assert fault.what == "data too old"
    assert "max_age_s allows 2" in fault.detail


@given(st.lists(st.floats(), max_size=20))
@settings(max_examples=200, deadline=None)
def test_no_stamp_raises(stamps: list[float]) -> None:
    one = pulled(stamps, 1e5)
    verdicts = StampCheck("scope", 2.0, Faults()).judge(one)
    FrameCount(30.0).take(whole_us(one.stamp_s), verdicts, None)


# --- clocks ---


def test_drift_and_scatter_of_round_trips_are_no_jump() -> None:
    rng = np.random.default_rng(3)
    watch = ClockWatch()
    for k in range(2000):
        trip = 0.0002 + rng.exponential(0.01)
        offset = 5.0 + 200e-6 * k + rng.uniform(-0.5, 0.5) * trip  # 200 ppm; wrong by half of the round trip at most
        assert watch.take(1000.0 + k, offset, trip) is None


@pytest.mark.parametrize("step_s", [0.01, -0.01, 15.0, -200_000.0])
def test_a_step_of_the_offset_is_told_once(step_s: float) -> None:
    watch = ClockWatch()
    said = [watch.take(1000.0 + k, 5.0 + (step_s if k >= 5 else 0.0), 0.0005) for k in range(10)]
    assert [s is not None for s in said] == [k == 5 for k in range(10)]


def test_a_sender_s_clock_that_goes_back_is_told() -> None:
    watch = ClockWatch()
    watch.take(1000.0, 5.0, 0.001)
    assert "went back" in str(watch.take(3.0, 1002.5, 0.001))


def test_streams_of_one_computer_have_one_clock() -> None:
    one, two, three = ClockWatch(), ClockWatch(), ClockWatch()
    assert one.same(two)  # not known yet
    one.take(10.0, 5.0, 0.001)
    two.take(10.2, 5.0004, 0.001)
    three.take(10.2, 5.1, 0.001)
    assert one.same(two)
    assert not one.same(three)


def test_the_resets_of_a_recorded_file_are_found() -> None:
    """pyxdf's example of a sender whose clock was reset while LabRecorder went on."""
    pyxdf = pytest.importorskip("pyxdf")
    data = Path(os.environ.get("STIMLOOP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = data / "clocks" / "clock_resets.xdf"
    if not path.exists():
        pytest.skip(f"no recording at {path}: set STIMLOOP_DATA to the folder that holds clocks/")
    raw, _ = pyxdf.load_xdf(str(path), synchronize_clocks=False, dejitter_timestamps=False)
    fitted, _ = pyxdf.load_xdf(str(path))  # pyxdf finds the resets of its own accord, after the recording
    resets = {s["info"]["name"][0]: len(s["info"]["clock_segments"]) - 1 for s in fitted}
    assert resets == {"MyMarkerStream": 1, "BioSemi": 1}
    for stream in raw:
        watch = ClockWatch()
        pairs = zip(stream["clock_times"], stream["clock_values"], strict=True)
        # The file keeps no round trips; 10 ms is more than a local network takes.
        jumps = [watch.take(float(t), float(v), 0.01) for t, v in pairs]
        assert sum(j is not None for j in jumps) == resets[stream["info"]["name"][0]]


# --- frames ---


def us(*seconds: float) -> np.ndarray:  # type: ignore[type-arg]
    return np.array([round(s * 1e6) for s in seconds], dtype=np.int64)


def test_rows_are_numbered_and_holes_are_lost_frames() -> None:
    count = FrameCount(50.0)
    first = count.take(us(1.0, 1.02, 1.04), ["good"] * 3, None)
    assert (first.frame.tolist(), first.lost) == ([0, 1, 2], 0)
    assert first.gaps == (Gap(first_sample=0, end_sample=1_000_000, messages=0),)
    second = count.take(us(1.069, 1.13), ["good"] * 2, None)  # 29 ms is jitter, 61 ms are two lost frames
    assert (second.frame.tolist(), second.lost) == ([3, 6], 2)
    assert second.gaps == (Gap(first_sample=1_089_000, end_sample=1_130_000, messages=2),)


def test_a_counter_knows_better_than_stamps() -> None:
    count = FrameCount(50.0)
    taken = count.take(us(1.0, 1.05, 1.06, 1.08), ["good"] * 4, np.array([7.0, 8.0, 9.0, 12.0]))
    assert (taken.frame.tolist(), taken.lost) == ([7, 8, 9, 12], 2)
    assert taken.gaps[1] == Gap(first_sample=1_080_000, end_sample=1_080_000, messages=2)
    with pytest.raises(Restarted, match="from 12 to 0"):
        count.take(us(1.1), ["good"], np.array([0.0]))


def test_a_row_with_a_wrong_stamp_is_a_lost_frame_and_an_old_one_lies_in_a_gap() -> None:
    count = FrameCount(50.0)
    count.take(us(1.0), ["good"], None)
    taken = count.take(us(21.02, 1.04), ["wrong", "good"], None)
    assert (taken.index.tolist(), taken.frame.tolist(), taken.lost) == ([1], [2], 1)
    old = count.take(us(1.06), ["stale"], None)
    assert (old.frame.tolist(), old.lost) == ([3], 0)
    assert old.gaps == (Gap(first_sample=1_060_000, end_sample=1_080_000, messages=0),)


def test_irregular_rows_are_counted_and_their_holes_are_not_known() -> None:
    taken = FrameCount(0.0).take(us(1.0, 5.0), ["good"] * 2, None)
    assert (taken.frame.tolist(), taken.lost) == ([0, 1], 0)


@given(st.integers(0, 2**32 - 1), st.sets(st.integers(1, 198), max_size=60), st.booleans())
@settings(max_examples=100, deadline=None)
def test_what_is_lost_is_counted_and_lies_in_a_gap(seed: int, lost: set[int], counted: bool) -> None:
    rng = np.random.default_rng(seed)
    stamps = np.rint(1e6 * (1.0 + (np.arange(200) + rng.uniform(-0.2, 0.2, 200)) / 30.0)).astype(np.int64)
    kept = [k for k in range(200) if k not in lost]
    count, gaps, frames = FrameCount(30.0), [], []
    for part in np.array_split(np.array(kept), 7):
        counter = part.astype(np.float64) if counted else None
        taken = count.take(stamps[part], ["good"] * len(part), counter)
        gaps += taken.gaps
        frames += taken.frame.tolist()
    assert frames == kept
    assert sum(g.messages for g in gaps) == len(lost)
    # A lost frame would have begun a period after the one before, give or take its jitter.
    for k in lost:
        assert any(g.first_sample - 14_000 <= stamps[k] < g.end_sample + 14_000 for g in gaps[1:])


@pytest.mark.parametrize(("labels", "at"), [(("a", "b"), None), (("a", "Frame"), 1), (("sample", "a"), 0)])
def test_the_counter_is_found_by_its_label(labels: tuple[str, ...], at: int | None) -> None:
    assert counter_channel(Described("s", "id", "host", "float32", 30.0, labels)) == at
