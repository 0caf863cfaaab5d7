"""The open wires' bytes: what is read, what is refused and why; nothing that arrives raises."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rig.sources.zmq_parse import (
    MAX_ARRAY_BYTES,
    MAX_HEADER_BYTES,
    ClockReply,
    FramesMessage,
    Refusal,
    SpikesMessage,
    UnitsMessage,
    parse_reply,
    parse_spikes,
    parse_traces,
)

SPIKES: dict[str, Any] = {
    "wire": "spikes", "version": 1, "run": "r1", "number": 7, "rate_hz": 30_000, "list": 0, "units": ["A", "B"],
    "through": 1000, "edges": [[0, 1, 990]], "gaps": [[10, 20]],
}  # fmt: skip
UNITS: dict[str, Any] = {
    "wire": "traces", "version": 1, "kind": "units", "run": "r1", "number": 1, "rate_hz": 30_000, "list": 3,
    "units": ["A", "B", "C"],
}  # fmt: skip
FRAMES: dict[str, Any] = {
    "wire": "traces", "version": 1, "kind": "frames", "run": "r1", "number": 2, "rate_hz": 30_000, "list": 3,
    "rois": 3, "through": 3000, "frames": [[5, 1000], [6, 2000]], "motion": [[0.5, -1, 0], [0, 0, 0.25]],
}  # fmt: skip
REPLY: dict[str, Any] = {"wire": "spikes", "version": 1, "run": "r1", "number": 7, "sample": 1000.5}
ROWS = np.array([[0, 900], [1, 950]], dtype="<i8")
F = np.arange(1, 7, dtype="<f4").reshape(2, 3)


def raw(fields: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({k: v for k, v in {**fields, **changes}.items() if v is not ...}).encode()


def refused(got: object) -> Refusal:
    assert isinstance(got, Refusal), got
    assert got.cure
    return got


def test_a_message_of_spikes() -> None:
    got = parse_spikes([raw(SPIKES), ROWS.tobytes()])
    assert isinstance(got, SpikesMessage)
    assert (got.head.run, got.head.number, got.head.rate_hz, got.head.through) == ("r1", 7, 30_000.0, 1000)
    assert (got.head.edges, got.head.gaps, got.units) == (((0, 1, 990),), ((10, 20),), ("A", "B"))
    assert (got.unit.tolist(), got.sample.tolist()) == ([0, 1], [900, 950])
    empty = parse_spikes([raw(SPIKES, units=..., edges=..., gaps=...), b""])
    assert isinstance(empty, SpikesMessage)
    assert (len(empty.unit), empty.units, empty.head.edges) == (0, None, ())


def test_messages_of_traces() -> None:
    got = parse_traces([raw(UNITS), np.array([0.0, 0.01, 0.02]).tobytes()])
    assert isinstance(got, UnitsMessage)
    assert (got.units, got.scan_offset_s.tolist(), got.head.through) == (("A", "B", "C"), [0.0, 0.01, 0.02], None)
    for neuropil in (None, F / 2):
        arrays = [F.tobytes()] if neuropil is None else [F.tobytes(), neuropil.tobytes()]
        frames = parse_traces([raw(FRAMES), *arrays])
        assert isinstance(frames, FramesMessage)
        assert (frames.frame.tolist(), frames.sample.tolist()) == ([5, 6], [1000, 2000])
        assert np.array_equal(frames.values, F)
        assert neuropil is None or np.array_equal(frames.neuropil, neuropil)
        assert frames.motion is not None
        assert frames.motion.tolist() == FRAMES["motion"]
    unmeasured = F.copy()
    unmeasured[0, 1] = np.nan
    assert isinstance(parse_traces([raw(FRAMES, motion=...), unmeasured.tobytes()]), FramesMessage)


def test_numbers_as_matlab_writes_them() -> None:
    fields = raw(SPIKES).replace(b'"number": 7', b'"number": 7.0').replace(b"30000", b"3e4")
    got = parse_spikes([fields, ROWS.tobytes()])
    assert isinstance(got, SpikesMessage)
    assert (got.head.number, got.head.rate_hz) == (7, 30_000.0)


@pytest.mark.parametrize(
    ("changes", "array", "reason"),
    [
        ({"version": 2}, ROWS.tobytes(), "version 2"),
        ({"wire": "traces"}, ROWS.tobytes(), "wire 'traces'"),
        ({"run": ""}, ROWS.tobytes(), "run is ''"),
        ({"run": 5}, ROWS.tobytes(), "run is 5"),
        ({"number": 0}, ROWS.tobytes(), "number is 0"),
        ({"number": 1.5}, ROWS.tobytes(), "number is 1.5"),
        ({"number": True}, ROWS.tobytes(), "number is True"),
        ({"number": ...}, ROWS.tobytes(), "number is None"),
        ({"rate_hz": 0}, ROWS.tobytes(), "rate_hz is 0"),
        ({"rate_hz": 1e-3}, ROWS.tobytes(), "rate_hz is 0.001"),
        ({"rate_hz": 1e7}, ROWS.tobytes(), "rate_hz is 1"),
        ({"run": "\ud800"}, ROWS.tobytes(), "run is"),
        ({"units": ["A", "B\ud800"]}, ROWS.tobytes(), "half a character"),
        ({"ahead": -1}, ROWS.tobytes(), "ahead is -1"),
        ({"ahead": 60_000}, ROWS.tobytes(), "ahead is 60000"),
        ({"ahead": 500}, np.array([[0, 1500]], "<i8").tobytes(), "1500 while through is 1000 and ahead 500"),
        ({"rate_hz": float("nan")}, ROWS.tobytes(), "rate_hz is nan"),
        ({"rate_hz": 10**400}, ROWS.tobytes(), "spikes"),
        ({"through": -1}, ROWS.tobytes(), "through is -1"),
        ({"through": 2**60}, ROWS.tobytes(), "through is"),
        ({"units": ["A", "A"]}, ROWS.tobytes(), "'A' twice"),
        ({"units": ["A", ""]}, ROWS.tobytes(), "no text of 1 to 64"),
        ({"units": "AB"}, ROWS.tobytes(), "list of up to"),
        ({"units": ["A"]}, ROWS.tobytes(), "unit index 1 with 1 units"),
        ({"edges": [[0, 2, 5]]}, ROWS.tobytes(), "edges has a row [0, 2, 5]"),
        ({"edges": [0, 1, 5]}, ROWS.tobytes(), "edges has a row 0"),
        ({"gaps": {}}, ROWS.tobytes(), "gaps is no list"),
        ({}, ROWS.tobytes()[:-1], "31 bytes"),
        ({}, ROWS.astype("<i4").tobytes()[:-8], "8 bytes"),
        ({}, ROWS.astype(">i8").tobytes(), "little-endian"),
        ({}, np.array([[0, 900_000]], "<i8").tobytes(), "spike at sample 900000 while through is 1000"),
        ({}, np.array([[0, -1]], "<i8").tobytes(), "spike at sample -1"),
    ],
)
def test_refused_spikes(changes: dict[str, Any], array: bytes, reason: str) -> None:
    assert reason in refused(parse_spikes([raw(SPIKES, **changes), array])).reason


@pytest.mark.parametrize(
    ("fields", "arrays", "reason"),
    [
        (raw(FRAMES), [F.astype("<f8").tobytes()], "seems to be float64"),
        (raw(FRAMES), [F.astype(">f4").tobytes()], "little-endian"),
        (raw(FRAMES), [np.full((2, 3), np.inf, "<f4").tobytes()], "finite"),
        (raw(FRAMES), [F.tobytes()[:-4]], "F has 20 bytes, expected 2 rows of 3 float32: 24"),
        (raw(FRAMES), [F.tobytes(), F.tobytes()[:4]], "neuropil has 4 bytes"),
        (raw(FRAMES), [], "1 frames"),
        (raw(FRAMES, rois=2), [F.tobytes()], "2 rows of 2"),
        (raw(FRAMES, rois=...), [F.tobytes()], "rois is None"),
        (raw(FRAMES, frames=[[6, 1000], [5, 2000]]), [F.tobytes()], "do not ascend"),
        (raw(FRAMES, motion=[[0, 0, 0]]), [F.tobytes()], "motion is"),
        (raw(FRAMES, motion=[[0, 0], [0, 0]]), [F.tobytes()], "motion is"),
        (raw(FRAMES, kind="frame"), [F.tobytes()], "kind is 'frame'"),
        (raw(UNITS), [np.zeros(2).tobytes()], "[16] bytes for 3 units"),
        (raw(UNITS), [np.array([0, 1.5, 0], ">f8").tobytes()], "scan offset"),
        (raw(UNITS), [np.array([0, np.nan, 0]).tobytes()], "scan offset"),
    ],
)
def test_refused_traces(fields: bytes, arrays: list[bytes], reason: str) -> None:
    assert reason in refused(parse_traces([fields, *arrays])).reason


def test_whose_messages_they_are() -> None:
    """A wrong program on the port is named and ends a start at once; a wrong message of the right one does not."""
    other = refused(parse_spikes([raw(FRAMES), F.tobytes()]))
    assert (other.foreign, other.cure) == (True, "use a source of type traces_zmq")
    gui = refused(parse_spikes([b"DATA\x00", b"{}", b""]))
    assert gui.foreign
    assert "openephys" in gui.cure
    assert refused(parse_spikes([raw(SPIKES, version=2), b""])).foreign
    assert not refused(parse_spikes([raw(SPIKES, number=0), b""])).foreign


def test_sizes_are_bounded() -> None:
    for frames in ([bytes(MAX_HEADER_BYTES + 1)], [raw(SPIKES), bytes(MAX_ARRAY_BYTES + 1)]):
        assert "too large" in refused(parse_spikes(frames)).reason
    assert "list of up to" in refused(parse_spikes([raw(SPIKES, units=[str(k) for k in range(70_000)]), b""])).reason
    assert len(refused(parse_spikes([raw(SPIKES, units=["x" * 10_000]), b""])).reason) < 200
    assert len(refused(parse_spikes([raw(SPIKES, run="x" * 10_000), b""])).reason) < 200


def test_the_clock_s_answer() -> None:
    assert parse_reply(raw(REPLY), "spikes") == ClockReply("r1", 7, 1000.5, True)
    assert parse_reply(raw(REPLY, present=False, number=0), "spikes") == ClockReply("r1", 0, 1000.5, False)
    for changes in ({"sample": -1}, {"sample": None}, {"sample": float("inf")}, {"present": 1}, {"run": None}):
        assert "clock reply" in refused(parse_reply(raw(REPLY, **changes), "spikes")).reason
    assert refused(parse_reply(b"\xff", "spikes")).foreign


# --- nothing raises ---------------------------------------------------------------------------------------------------

ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.data(), st.sampled_from([SPIKES, UNITS, FRAMES, REPLY]), st.lists(st.binary(max_size=64), max_size=3))
@settings(max_examples=600, deadline=None)
def test_no_header_raises(data: st.DataObject, good: dict[str, Any], arrays: list[bytes]) -> None:
    keys = data.draw(st.lists(st.sampled_from(sorted(good)), max_size=3))
    fields = {**good, **{key: data.draw(ANY) for key in keys}}
    frames = [json.dumps(fields).encode(), *arrays]
    for parse in (parse_spikes, parse_traces, lambda f: parse_reply(f[0], "spikes")):
        parse(frames)


@given(st.lists(st.binary(max_size=200), max_size=4))
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise(frames: Sequence[bytes]) -> None:
    parsers: tuple[Callable[[Sequence[bytes]], object], ...] = (parse_spikes, parse_traces)
    assert all(isinstance(parse(frames), Refusal) for parse in parsers)
    assert isinstance(parse_reply(frames[0] if frames else b"", "traces"), Refusal)


@pytest.mark.parametrize("header", [b"[" * 100_000, b'{"wire":' * 50_000, b"1" * 5000, b"\x00", b'"\\ud800"'])
def test_hostile_json_is_refused(header: bytes) -> None:
    assert refused(parse_spikes([header, b""])).foreign
