"""The accounts of LSL streams: traces with neuropil and edges, counts, behaviour, markers. Pure: no network."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rig.config.sources import LslBehaviourSource, LslCalciumSource, LslCountSource, LslMarkerSource
from rig.messages import BehaviourBlock, EdgeBlock, Fault, Gap, Marker, TraceBlock, UnitList
from rig.sources.columns import Faults
from rig.sources.lsl_behaviour import BehaviourReader
from rig.sources.lsl_markers import MarkerReader, marker_text
from rig.sources.lsl_streams import Described, Pulled, Restarted, WrongStream, host_ns
from rig.sources.lsl_traces import TraceReader

UNITS = ("roi1", "roi2", "roi3")
FRAME_S = 0.02


def stream(name: str = "f", labels: tuple[str, ...] = UNITS, rate_hz: float = 50.0, **more: Any) -> Described:
    return Described(name, f"id-{name}", "host", more.pop("format", "float32"), rate_hz, labels, **more)


EDGES = stream("e", ("line", "state", "sample"), 0.0, format="double64", device_hz=1e6)


def rows(values: Any, stamps: list[float], arrival_s: float | None = None, dtype: Any = np.float32) -> Pulled:
    at = np.array(stamps, dtype=np.float64)
    arrival = max(stamps) + 0.01 if arrival_s is None else arrival_s
    return Pulled(np.array(values, dtype=dtype), at, host_ns(at, 0.0, 0), round(arrival * 1e9))


def told(faults: Faults) -> list[str]:
    return [f.what for f in faults.due(10**18, everything=True) if isinstance(f, Fault)]


def calcium(**more: Any) -> LslCalciumSource:
    return LslCalciumSource(name="scope", stream="f", **more)


# --- traces ---


def test_frames_come_with_their_units_and_are_vouched_for() -> None:
    faults = Faults()
    reader = TraceReader(calcium(), [stream(scan_offset_s=(0.0, 0.004, 0.01))], faults)
    reader.take(0, rows([[1, 2, 3], [4, np.nan, 6]], [10.0, 10.02]))
    units, block = reader.harvest(7, 0)
    assert isinstance(units, UnitList)
    assert isinstance(block, TraceBlock)
    assert (units.units, units.measure, units.from_sample) == (UNITS, "fluorescence", 10_000_000)
    assert units.scan_offset_s.tolist() == [0.0, 0.004, 0.01]
    assert (block.run, block.list_number, block.frame.tolist()) == (7, 0, [0, 1])
    assert block.sample.tolist() == [10_000_000, 10_020_000]
    np.testing.assert_array_equal(block.values, np.array([[1, 2, 3], [4, np.nan, 6]], np.float32))
    assert block.neuropil is None
    assert (reader.progress.watermark, reader.progress.lost) == (10_020_001, 0)
    assert told(faults) == []
    reader.take(0, rows([[7, 8, 9]], [10.1]))
    (block,) = reader.harvest(7, 0)
    assert isinstance(block, TraceBlock)
    assert block.frame.tolist() == [5]
    assert reader.progress.lost == 3
    assert told(faults) == ["frames lost"]


def test_a_counter_channel_is_no_unit() -> None:
    reader = TraceReader(calcium(), [stream(labels=("roi1", "frame", "roi2"))], Faults())
    reader.take(0, rows([[1, 40, 2], [3, 42, 4]], [10.0, 10.02]))
    units, block = reader.harvest(1, 0)
    assert isinstance(units, UnitList)
    assert isinstance(block, TraceBlock)
    assert units.units == ("roi1", "roi2")
    assert (block.frame.tolist(), block.values.tolist()) == ([40, 42], [[1, 2], [3, 4]])
    with pytest.raises(Restarted):
        reader.take(0, rows([[1, 0, 2]], [10.04]))


def test_neuropil_is_paired_by_stamp_whatever_order_the_streams_come_in() -> None:
    faults = Faults()
    labels = ("roi3", "roi1", "roi2")  # the second stream may have another order
    reader = TraceReader(calcium(neuropil="n"), [stream(), stream("n", labels)], faults)
    reader.take(0, rows([[0, 0, 0], [1, 2, 3], [4, 5, 6], [7, 8, 9]], [9.98, 10.0, 10.02, 10.04]))
    assert reader.harvest(1, round(10.05e9)) == []
    assert reader.progress.watermark is None  # the first frame is older than the first neuropil: the run begins later
    reader.take(1, rows([[33, 31, 32]], [10.001]))
    _, block = reader.harvest(1, round(10.06e9))
    assert isinstance(block, TraceBlock)
    assert block.neuropil is not None
    assert block.neuropil.tolist() == [[31, 32, 33]]
    assert block.sample.tolist() == [10_000_000]
    assert reader.progress.watermark == 10_000_001
    reader.take(1, rows([[93, 91, 92]], [10.04]))  # that of 10.02 was lost
    (block,) = reader.harvest(1, round(10.07e9))
    assert isinstance(block, TraceBlock)
    assert block.neuropil is not None
    np.testing.assert_array_equal(block.neuropil, [[np.nan] * 3, [91, 92, 93]])
    assert told(faults) == ["neuropil missing"]
    assert reader.progress.watermark == 10_040_001


def test_frames_do_not_wait_for_a_neuropil_that_stopped() -> None:
    faults = Faults()
    reader = TraceReader(calcium(neuropil="n", max_age_s=1.0), [stream(), stream("n")], faults)
    reader.take(0, rows([[1, 2, 3]], [10.0], arrival_s=10.03))
    assert reader.harvest(1, round(11.0e9)) == []
    _, block = reader.harvest(1, round(11.1e9))
    assert isinstance(block, TraceBlock)
    assert block.neuropil is not None
    assert np.isnan(block.neuropil).all()
    assert told(faults) == ["neuropil missing"]


def test_edges_hold_the_watermark_back() -> None:
    faults = Faults()
    reader = TraceReader(calcium(edges="e"), [stream(), EDGES], faults)
    reader.take(0, rows([[1, 2, 3], [1, 2, 3]], [10.0, 10.02]))
    assert reader.progress.watermark is None
    edges = [[-1, 0, 10_000_500], [0, 1, 10_001_000], [-1, 1, 10_010_000]]
    reader.take(1, rows(edges, [10.001, 10.01, 10.01], dtype=np.float64))
    assert reader.progress.watermark == 10_010_000
    documents = reader.harvest(1, 0)
    (block,) = [d for d in documents if isinstance(d, EdgeBlock)]
    assert (block.sample.tolist(), block.state.tolist()) == ([10_001_000], [1])
    reader.take(1, rows([[-1, 4, 10_040_000]], [10.04], dtype=np.float64))
    assert Gap(first_sample=10_010_000, end_sample=10_040_000, messages=3) in reader.progress.gaps
    assert (reader.progress.lost, told(faults)) == (3, ["messages lost"])
    assert reader.progress.watermark == 10_020_001
    with pytest.raises(Restarted):
        reader.take(1, rows([[-1, 0, 10_050_000]], [10.05], dtype=np.float64))


def test_old_frames_are_logged_and_not_scored_wrong_ones_are_not_used() -> None:
    faults = Faults()
    reader = TraceReader(calcium(max_age_s=1.0), [stream()], faults)
    reader.take(0, rows([[1, 2, 3]], [10.0]))
    reader.take(0, rows([[1, 2, 3], [4, 5, 6]], [10.02, 10.04], arrival_s=13.0))
    reader.take(0, rows([[9, 9, 9]], [33.0], arrival_s=13.01))
    reader.take(0, rows([[7, 8, 9]], [13.0], arrival_s=13.02))
    _, block = reader.harvest(1, 0)
    assert isinstance(block, TraceBlock)
    assert block.sample.tolist() == [10_000_000, 10_020_000, 10_040_000, 13_000_000]
    for frame in (10_020_000, 10_040_000, 11_000_000):
        assert any(g.first_sample <= frame < g.end_sample for g in reader.progress.gaps)
    assert sorted(told(faults)) == ["data too old", "frames lost", "time stamp wrong"]


@pytest.mark.parametrize("bad", [-1.0, 0.5, float("inf")])
def test_counts_that_cannot_be_are_missing(bad: float) -> None:
    faults = Faults()
    source = LslCountSource(name="counts", stream="f")
    reader = TraceReader(source, [stream()], faults)
    reader.take(0, rows([[1, bad, np.nan]], [10.0]))
    units, block = reader.harvest(1, 0)
    assert isinstance(units, UnitList)
    assert isinstance(block, TraceBlock)
    assert units.measure == "counts"
    np.testing.assert_array_equal(block.values, np.array([[1, np.nan, np.nan]], np.float32))
    assert told(faults) == ["value wrong"]


@pytest.mark.parametrize(
    ("source", "streams", "reason"),
    [
        (calcium(), [stream(format="string")], "carries text"),
        (calcium(), [stream(labels=("a", ""))], "no label for channel 1"),
        (calcium(), [stream(labels=("a", "a"))], "two channels with the label 'a'"),
        (calcium(), [stream(labels=("frame",))], "no unit"),
        (calcium(neuropil="n"), [stream(), stream("n", ("roi1", "roi2"))], "no channel for 'roi3'"),
        (calcium(edges="e"), [stream(), stream("e", ("line", "state"))], "expected 3 of type double64"),
        (
            calcium(edges="e"),
            [stream(), stream("e", ("line", "state", "sample"), format="double64", device_hz=30_000.0)],
            "states sample_rate_hz 30000, expected 1e+06",
        ),
    ],
)
def test_streams_of_the_wrong_kind_are_refused(source: LslCalciumSource, streams: list[Described], reason: str) -> None:
    with pytest.raises(WrongStream) as error:
        TraceReader(source, streams, Faults())
    assert reason in error.value.reason
    assert error.value.cure


@given(st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), max_size=10), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_no_values_or_stamps_raise(values: list[list[float]], seed: int) -> None:
    stamps = np.random.default_rng(seed).choice([10.0, 10.5, np.nan, -1.0, 3e5, np.inf], len(values)).tolist()
    reader = TraceReader(LslCountSource(name="counts", stream="f"), [stream()], Faults())
    if values:
        reader.take(0, rows(values, stamps, arrival_s=11.0))
    scored = [b for b in reader.harvest(1, 0) if isinstance(b, TraceBlock)]
    assert sum(len(b.sample) for b in scored) <= sum(s in (10.0, 10.5) for s in stamps), "an impossible stamp was used"


# --- behaviour ---


def behaviour(channels: dict[str, str] | None = None) -> LslBehaviourSource:
    return LslBehaviourSource(stream="f", channels=channels or {})


def test_behaviour_takes_the_channels_that_the_config_names() -> None:
    faults = Faults()
    labels = ("GazeX", "frame", "GazeY")
    reader = BehaviourReader(
        behaviour({"gaze_y_deg": "GazeY", "gaze_x_deg": "GazeX"}), [stream(labels=labels)], faults
    )
    reader.take(0, rows([[1, 3, 2], [4, 4, np.inf], [6, 6, 7]], [10.0, 10.02, 10.06], dtype=np.float64))
    (block,) = reader.harvest(3, 0)
    assert isinstance(block, BehaviourBlock)
    assert block.channels == ("gaze_y_deg", "gaze_x_deg")
    np.testing.assert_array_equal(block.values, [[2, 1], [np.nan, 4], [7, 6]])
    assert block.sample.tolist() == [10_000_000, 10_020_000, 10_060_000]
    assert (reader.progress.watermark, reader.progress.lost) == (10_060_001, 1)
    assert told(faults) == ["rows lost"]
    assert reader.harvest(3, 0) == []
    everything = BehaviourReader(behaviour(), [stream(labels=labels)], Faults())
    everything.take(0, rows([[1, 3, 2]], [10.0]))
    (block,) = everything.harvest(3, 0)
    assert isinstance(block, BehaviourBlock)
    assert block.channels == ("GazeX", "GazeY")


def test_a_channel_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(WrongStream, match=r"no channel 'pupil'; its channels are roi1, roi2, roi3"):
        BehaviourReader(behaviour({"pupil_mm": "pupil"}), [stream()], Faults())


# --- markers ---


def texts(*values: bytes) -> Any:
    return np.array([[v] for v in values], dtype=object)


def marker_reader(faults: Faults) -> MarkerReader:
    return MarkerReader(LslMarkerSource(stream="f"), [stream(labels=("",), rate_hz=0.0, format="string")], faults)


def test_markers_are_logged_with_the_time_that_they_carry() -> None:
    faults = Faults()
    reader = marker_reader(faults)
    stamps = np.array([10.0, 9.5, 0.0])
    reader.take(0, Pulled(texts(b"start", "ä".encode(), b"late"), stamps, host_ns(stamps, 0.0, 0), round(10.1e9)))
    documents = reader.harvest(4, 0)
    assert [(d.text, d.sample) for d in documents if isinstance(d, Marker)] == [
        ("start", 10_000_000), ("ä", 9_500_000), ("late", None),
    ]  # fmt: skip
    assert told(faults) == ["time stamp wrong"]
    assert reader.harvest(4, 0) == []


@pytest.mark.parametrize("garbage", [b"", b"  ", b"\x00\x00", b"\xff\xfe\x01", b"go\x07"])
def test_what_a_dying_outlet_sends_is_refused(garbage: bytes) -> None:
    faults = Faults()
    reader = marker_reader(faults)
    stamps = np.array([10.0])
    reader.take(0, Pulled(texts(garbage), stamps, host_ns(stamps, 0.0, 0), round(10.1e9)))
    assert reader.harvest(1, 0) == []
    assert told(faults) == ["garbage marker"]


def test_markers_may_be_numbers_or_several_channels_and_long_ones_are_cut() -> None:
    assert marker_text([np.int32(12)]) == "12"
    assert marker_text([2.5, b"go"]) == "2.5\tgo"
    faults = Faults()
    reader = marker_reader(faults)
    stamps = np.array([10.0])
    reader.take(0, Pulled(texts(b"x" * 5000), stamps, host_ns(stamps, 0.0, 0), round(10.1e9)))
    (marker,) = reader.harvest(1, 0)
    assert isinstance(marker, Marker)
    assert len(marker.text) == 4096
    assert told(faults) == ["marker too long"]


@given(st.binary(max_size=30))
def test_no_bytes_raise(raw: bytes) -> None:
    text = marker_text([raw])
    assert text is None or text.encode() == raw
