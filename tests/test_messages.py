"""Documents: every kind travels unchanged, and no bytes whatsoever can do more than be refused."""

import json
import re
import struct
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from rig import encoding
from rig import messages as m
from stimuli.spec import BankImage, Blank, Grating, LatentImage, Stimulus

HASH = "0" * 64


def f64(*values: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(values, np.float64)


def i64(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, np.int64)


FRAME = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)

EXAMPLES: tuple[m.Document, ...] = (
    m.SessionStart(
        simulated=True, session="2026-01-01-demo",
        config_yaml="name: demo\n",
        config={"name": "demo", "nested": {"list": [1, 2.5, None, "ä"]}},
        versions={"python": "3.12.1"},
        commit=None,
        dirty=None,
        start_host_ns=10**15,
        start_utc_ns=1_800_000_000_123_456_789,
    ),
    m.ProcessStarted(name="rig", pid=7, boot_id="b", start_host_ns=1, start_utc_ns=2, notes={"priority": "normal"}),
    m.StopRequested(reason="finished"),
    m.SessionStop(reason="finished", presentations=3, responses=3, usable=2, faults=1),
    m.Tick(tick_host_ns=5),
    m.Fault(what="messages lost", detail="12 of probe", done="trial marked", since_host_ns=4, presentations=(1, 2)),
    m.Pause(paused=True, reason="0.4 GB free on the session's disk, reserve 1 GB; free space", since_host_ns=4),
    m.Proposal(
        proposal=1,
        phase=0,
        agent="evolve",
        generation=1,
        model_version=HASH,
        stimuli=(
            Stimulus(id="blank", spec=Blank()),
            Stimulus(id="g", spec=Grating(orientation_deg=45, cycles_per_deg=1)),
            Stimulus(id="ref-cat", spec=BankImage(bank="natural", name="cat")),
            Stimulus(id="p0-g001-c0", spec=LatentImage(generator="dct-1", row=0), parents=("a", "b"),
                     how="crossover and mutation", figures={"mutated": 7.0}),
        ),
        plan=(m.Slot(stimulus=3, role="candidate"), m.Slot(stimulus=0, role="blank")),
        tail_from=1,
        fallback=(2,),
        final=False,
        frames=FRAME[None],
        latents=np.ones((1, 5), np.float32),
    ),
    m.PhaseEnded(phase=0, reason="20 generations", last=True),
    m.WorkDone(work=1, steps=12, data_through_seq=99, sha256=HASH),
    m.ModelUpdated(phase=0, generation=1, model_version=HASH, report={"best": 1.5, "mean": 1.0, "reference": 0.5}),
    m.StimulusPrepared(stimulus_id="g", proposal=1, frame_sha256=HASH, frame=FRAME),
    m.StimulusPrepared(stimulus_id="g", proposal=1, frame_sha256=HASH, frame=None),
    m.TrialIntent(trial=0, presentations=(0, 1), proposals=(1, 1), slots=(0, 1), start_host_ns=3),
    m.Presented(
        presentation=0,
        trial=0,
        position_in_trial=0,
        proposal=1,
        slot=-1,
        role="fallback",
        stimulus_id="g",
        previous_stimulus_id=None,
        frame_sha256=HASH,
        due_host_ns=1,
        onset_flip_host_ns=2,
        offset_flip_host_ns=4,
        flips_host_ns=i64(2, 3, 4),
        late_flips=0,
        dropped_frames=0,
        image_row_px=300.5,
        patch_row_px=16,
        complete=True,
    ),
    m.SpikeBlock(
        source="probe",
        run=1,
        units=("E01#0", "E02#1"),
        unit=np.array([0, 1, 0], np.uint16),
        sample=i64(1, 2, 3),
        arrival_host_ns=i64(5, 5, 6),
    ),
    m.EdgeBlock(
        source="probe",
        run=1,
        line=np.zeros(2, np.uint8),
        state=np.array([1, 0], np.uint8),
        sample=i64(10, 20),
        arrival_host_ns=i64(30, 40),
    ),
    m.UnitList(
        source="ca",
        run=1,
        list_number=0,
        from_sample=0,
        units=("roi1",),
        scan_offset_s=f64(0.01),
        measure="fluorescence",
    ),
    m.TraceBlock(
        source="ca",
        run=1,
        list_number=0,
        frame=i64(0, 1),
        sample=i64(0, 33),
        arrival_host_ns=i64(5, 6),
        values=np.array([[1.0], [2.0]], dtype=np.float32),
        neuropil=np.array([[1.0], [np.nan]], dtype=np.float32),
        motion=np.zeros((2, 3), dtype=np.float32),
    ),
    m.BehaviourBlock(
        source="eye",
        run=1,
        channels=("gaze_x_deg",),
        sample=i64(0, 1),
        arrival_host_ns=i64(5, 6),
        values=f64(1, np.nan).reshape(2, 1),
    ),
    m.BarcodeSent(output="sync", number=12345, sent_host_ns=7, uncertainty_ns=40),
    m.Marker(source="lsl", run=1, sample=None, arrival_host_ns=5, text="go"),
    m.OutputRequest(request="r-1", output="valve", what="reward", duration_s=0.1, trial=3),
    m.OutputDone(request="r-1", output="valve", what="reward", done=True, timed_by="device", duration_s=0.1),
    m.Continuity(
        source="probe",
        run=1,
        state="streaming",
        sample_rate_hz=30000.0,
        watermark_sample=5,
        messages=2,
        lost_messages=1,
        gaps=(m.Gap(first_sample=1, end_sample=2, messages=0),),
    ),
    m.ClockSample(source="probe", run=1, device_sample=2**40, pair_host_ns=2**60),
    m.Response(
        presentation=0,
        proposal=1,
        slot=0,
        role="candidate",
        stimulus_id="g",
        source="probe",
        usable=True,
        reason="",
        onset_source="photodiode",
        onset_sample=1,
        onset_host_ns=2,
        onset_uncertainty_ns=3,
        onset_host_uncertainty_ns=4,
        flip_to_edge_ns=-4,
        coverage=1.0,
        units=("E01#0",),
        count=f64(3),
        baseline=f64(0.5),
        baseline_n=50,
        rate_hz=f64(25),
    ),
)
by_kind = pytest.mark.parametrize("document", EXAMPLES, ids=m.kind_of)


def same(a: object, b: object) -> bool:
    """Whether two documents, or values of them, are equal: arrays by dtype, shape and every byte."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, m.Document) and isinstance(b, m.Document):
        return type(a) is type(b) and all(same(getattr(a, n), getattr(b, n)) for n in type(a).model_fields)
    return bool(a == b)


def test_there_is_an_example_of_every_kind() -> None:
    assert {m.kind_of(d) for d in EXAMPLES} == set(m.DOCUMENT_TYPES)


# --- round trip -------------------------------------------------------------------------------------------------------


@by_kind
def test_round_trip_keeps_every_bit(document: m.Document) -> None:
    back = encoding.decode(encoding.encode(document))
    assert same(document, back)
    assert encoding.encode(back) == encoding.encode(document)


@by_kind
def test_round_trip_through_a_journal_entry(document: m.Document) -> None:
    envelope = m.Envelope(
        seq=3, receipt_host_ns=4, sender="rig", process="p", sender_seq=9, cause_seq=2, cause_index=0
    )
    entry = encoding.decode_entry(encoding.encode_entry(envelope, encoding.encode(document)))
    assert entry.envelope == envelope
    assert same(entry.document, document)


@by_kind
def test_documents_are_frozen_and_so_are_their_arrays(document: m.Document) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        document.version = 1
    for name in type(document).model_fields:
        value = getattr(encoding.decode(encoding.encode(document)), name)
        if isinstance(value, np.ndarray):
            assert not value.flags.writeable
            assert not getattr(document, name).flags.writeable


@by_kind
def test_unknown_fields_and_other_versions_are_refused(document: m.Document) -> None:
    for change in ({"colour": "red"}, {"version": 2}):
        frames = encoding.encode(document)
        header = json.loads(frames[0])
        header["document"].update(change)
        with pytest.raises(encoding.BadDocument, match=next(iter(change))):
            encoding.decode([json.dumps(header).encode(), *frames[1:]])


@by_kind
def test_a_missing_field_is_refused(document: m.Document) -> None:
    frames = encoding.encode(document)
    header = json.loads(frames[0])
    for name, field in type(document).model_fields.items():
        if field.is_required() and name in header["document"]:
            fields = {k: v for k, v in header["document"].items() if k != name}
            with pytest.raises(encoding.BadDocument, match=name):
                encoding.decode([json.dumps({**header, "document": fields}).encode(), *frames[1:]])


def test_writing_to_the_sender_s_array_does_not_change_the_document_s_flags() -> None:
    mine = i64(1, 2)
    document = m.EdgeBlock(
        source="p", run=0, line=np.zeros(2, np.uint8), state=np.ones(2, np.uint8), sample=mine, arrival_host_ns=mine
    )
    assert mine.flags.writeable
    assert not document.sample.flags.writeable


# --- names say clocks and units ---------------------------------------------------------------------------------------

CLOCKS = ("_host_ns", "_utc_ns")
# Differences: no clock's time.
DURATIONS = {
    "onset_uncertainty_ns", "onset_host_uncertainty_ns", "flip_to_edge_ns", "round_trip_ns", "uncertainty_ns",
    "flip_uncertainty_ns",
}  # fmt: skip
PLAIN_NUMBERS = {"coverage", "report", "behaviour", "figures"}  # a fraction; figures that their own names explain


def all_fields() -> list[tuple[type[BaseModel], str, Any]]:
    parts: tuple[type[BaseModel], ...] = (*m.DOCUMENT_TYPES.values(), m.Slot, m.Gap, m.Envelope)
    specs = (Blank, Grating, BankImage, LatentImage, Stimulus)
    return [(p, name, f.annotation) for p in (*parts, *specs) for name, f in p.model_fields.items()]


@pytest.mark.parametrize(("part", "name", "kind"), all_fields(), ids=lambda x: getattr(x, "__name__", x))
def test_times_name_their_clock_and_quantities_their_unit(part: type[BaseModel], name: str, kind: Any) -> None:
    kinds = {kind, *get_args(kind)}
    if name.endswith("_ns") and name not in DURATIONS:
        assert name.endswith(CLOCKS), "a time names its clock"
    if name.endswith("_ns"):
        assert float not in kinds, "ns are whole numbers"
    assert not re.search(r"time(?!d_by)|stamp|_ms$|_us$|_sec", name), "times are called ..._CLOCK_ns"
    if float in kinds:
        units = ("_s", "_hz", "_px", "_deg", "_per_deg", "_ul", "_sample")
        known = name.endswith(units) or name in PLAIN_NUMBERS | {"contrast"}
        assert known, "a quantity names its unit"


# --- arrays keep their contract ---------------------------------------------------------------------------------------

GOOD_EDGES = {"line": np.zeros(2, np.uint8), "state": np.ones(2, np.uint8), "sample": i64(1, 2),
              "arrival_host_ns": i64(3, 4)}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("sample", np.zeros(2, np.int32), "expected dtype int64, got int32"),
        ("sample", np.zeros((2, 1), np.int64), "expected axes"),
        ("sample", [1, 2], "expected a numpy array, got list"),
        ("sample", np.array([1, 2], ">i8"), "expected dtype int64, got >i8"),
        ("line", np.zeros(2, bool), "expected dtype uint8, got bool"),
    ],
)
def test_an_array_of_the_wrong_kind_is_refused_with_a_reason(field: str, value: object, reason: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(reason)):
        m.EdgeBlock(source="p", run=0, **{**GOOD_EDGES, field: value})  # type: ignore[arg-type]


def test_a_strided_view_is_stored_as_its_values() -> None:
    document = m.EdgeBlock(source="p", run=0, **{**GOOD_EDGES, "sample": np.arange(4, dtype=np.int64)[::2]})  # type: ignore[arg-type]
    assert encoding.decode(encoding.encode(document)).sample.tolist() == [0, 2]  # type: ignore[attr-defined]


def changed(kind: str, **change: Any) -> m.Document:
    """Make the example of `kind` anew with other values."""
    (example, *_) = [d for d in EXAMPLES if m.kind_of(d) == kind]
    return type(example)(**{**{n: getattr(example, n) for n in type(example).model_fields}, **change})


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("edge_block", {"sample": i64(1)}, "sample has 1 along event, where there are 2"),
        ("spike_block", {"units": ("E01#0",)}, "unit 1 lies beyond the 1 units"),
        ("response", {"units": ("a", "b")}, "count has 1 along unit, where there are 2"),
        ("trace_block", {"frame": i64(0)}, "sample has 2 along row, where there are 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(kind: str, change: dict[str, Any], reason: str) -> None:
    assert same(changed(kind), next(d for d in EXAMPLES if m.kind_of(d) == kind))
    with pytest.raises(ValidationError, match=re.escape(reason)):
        changed(kind, **change)


def test_not_a_number_is_refused_in_a_header() -> None:
    with pytest.raises(ValidationError, match="finite"):
        m.ModelUpdated(phase=0, generation=0, model_version=HASH, report={"best": float("nan")})


# --- hostile bytes ----------------------------------------------------------------------------------------------------

EDGES = m.EdgeBlock(source="p", run=0, **GOOD_EDGES)  # type: ignore[arg-type]


def edges_with(change: dict[str, Any]) -> list[bytes]:
    """Frames of an EdgeBlock whose description of its first array is changed."""
    frames = encoding.encode(EDGES)
    header = json.loads(frames[0])
    header["arrays"][0].update(change)
    return [json.dumps(header).encode(), *frames[1:]]


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2**62, 4]},
        {"shape": [-1]},
        {"shape": [2**63]},
        {"shape": [1, 2]},
        {"shape": [1] * 40},
        {"shape": ["2"] * 3},
        {"shape": [0, 2**70]},
        {"shape": None},
        {"shape": {"a": 1}},
        {"shape": [float("inf")]},
        {"dtype": "O"},
        {"dtype": "V2"},
        {"dtype": "U1"},
        {"dtype": "<M8[ns]"},
        {"dtype": "(2,)u1"},
        {"dtype": "u1,u1"},
        {"dtype": "|i1"},
        {"dtype": "no type"},
        {"dtype": ""},
        {"dtype": None},
        {"dtype": {"names": ["a"], "formats": ["O"]}},
        {"name": "source"},
        {"name": "sample"},
        {"name": None},
        {"name": ["line"]},
        {"sha256": HASH},
        {"sha256": None},
    ],
    ids=str,
)
def test_a_hostile_description_of_an_array_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(encoding.BadDocument):
        encoding.decode(edges_with(change))


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"{}"],
        [b"null"],
        [b"[]"],
        [b"\xff\xfe"],
        [b"[" * 200_000],
        [b'{"document":' + b"[" * 100_000],
        [b'{"document": {}, "arrays": []}'],
        [b'{"document": {"kind": "tick"}, "arrays": []}'],
        [b'{"document": {"kind": "no such kind"}, "arrays": []}'],
        [b'{"document": {"kind": ["tick"]}, "arrays": []}'],
        [b'{"document": [], "arrays": []}'],
        [b'{"document": {"kind": "tick", "tick_host_ns": 1}, "arrays": 0}'],
        [b'{"document": {"kind": "tick", "tick_host_ns": 1}, "arrays": {}}', b""],
        [b'{"document": {"kind": "tick", "tick_host_ns": 1}, "arrays": [3]}', b""],
        [b'{"document": {"kind": "tick", "tick_host_ns": 1e999}, "arrays": []}'],
        [b'{"document": {"kind": "tick", "tick_host_ns": ' + b"9" * 5000 + b'}, "arrays": []}'],
        [b'{"document": {"kind": "tick", "tick_host_ns": 1}, "arrays": []}', b"too many"],
        [b"{}"] * (encoding.MAX_ARRAYS + 2),
        [b" " * (encoding.MAX_HEADER_BYTES + 1)],
    ],
    ids=range(21),
)
def test_bytes_that_are_no_document_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(encoding.BadDocument):
        encoding.decode(frames)


def test_a_header_from_the_log_may_be_larger_than_one_from_anywhere() -> None:
    large = next(d for d in EXAMPLES if isinstance(d, m.SessionStart)).model_copy(
        update={"config_yaml": "x" * (encoding.MAX_HEADER_BYTES + 1)}  # images of another day stand in it
    )
    envelope = m.Envelope(seq=1, receipt_host_ns=1, sender="recorder", process="recorder-1", sender_seq=1)
    frames = encoding.encode(large)
    with pytest.raises(encoding.BadDocument, match="header of"):
        encoding.decode(frames)
    assert encoding.decode_entry(encoding.encode_entry(envelope, frames)).document == large


def test_an_array_that_is_too_large_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_ARRAY_BYTES", 8)
    with pytest.raises(encoding.BadDocument, match="larger than 8 bytes"):
        encoding.decode(encoding.encode(EDGES))


def test_missing_and_doubled_array_frames_are_refused() -> None:
    frames = encoding.encode(EDGES)
    for wrong in (frames[:-1], [*frames, frames[-1]], [frames[0], frames[2], frames[1], *frames[3:]]):
        if wrong[1:3] == frames[1:3] and len(wrong) == len(frames):
            continue
        with pytest.raises(encoding.BadDocument):
            encoding.decode(wrong)


def test_one_array_given_twice_is_refused() -> None:
    frames = encoding.encode(EDGES)
    header = json.loads(frames[0])
    header["arrays"].append(header["arrays"][0])
    with pytest.raises(encoding.BadDocument):
        encoding.decode([json.dumps(header).encode(), *frames[1:], frames[1]])


def check_refused_or_true(frames: list[bytes], was: list[bytes]) -> None:
    """Decode frames made from the good ones `was`: refused, or exactly what they say; any other error fails the test.

    A changed value in the header may be another document as good as the first. But no byte of an array differs, no
    field is made up, passed over or read anew, and what was accepted can be sent on.
    """
    try:
        document = encoding.decode(frames)
    except encoding.BadDocument:
        return
    assert same(document, encoding.decode(encoding.encode(document)))
    assert frames[1:] == was[1:] == encoding.encode(document)[1:], "sha256 guards every byte of every array"
    said, said_before = (json.loads(f[0].decode())["document"] for f in (frames, was))
    arrays, fields = m.ARRAY_FIELDS[m.kind_of(document)], type(document).model_fields
    assert said.keys() <= fields.keys()
    assert {n for n, f in fields.items() if f.is_required() and n not in arrays} <= said.keys()
    kept = json.loads(encoding.encode(document)[0])["document"]
    as_before = {n for n in kept.keys() & said.keys() & said_before.keys() if said[n] == said_before[n]}
    assert {n: kept[n] for n in as_before} == {n: said_before[n] for n in as_before}


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_mutated_bytes_are_refused_or_are_a_document(data: st.DataObject) -> None:
    was = encoding.encode(data.draw(st.sampled_from(EXAMPLES)))
    frames = [bytearray(f) for f in was]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = data.draw(st.sampled_from(frames))
        at = data.draw(st.integers(0, len(frame)))
        cut = data.draw(st.integers(0, 8))
        frame[at : at + cut] = data.draw(st.binary(max_size=8))
    check_refused_or_true([bytes(f) for f in frames], was)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_mutated_headers_are_refused_or_are_a_document(data: st.DataObject) -> None:
    """Well-formed JSON with wrong values in it gets deeper than random bytes do."""
    frames = encoding.encode(data.draw(st.sampled_from(EXAMPLES)))
    header = json.loads(frames[0])
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = header
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if not (isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans())):
                break
            place = place[key]
        place[key] = data.draw(JSON)
        if not isinstance(header.get("document"), dict):
            break
    check_refused_or_true([json.dumps(header).encode(), *frames[1:]], frames)


# --- pack -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=30), max_size=encoding.MAX_ARRAYS + 2))
def test_pack_and_unpack_are_inverse(parts: list[bytes]) -> None:
    assert encoding.unpack(encoding.pack(parts)) == parts


def test_every_truncation_of_a_record_is_refused() -> None:
    envelope = m.Envelope(seq=1, receipt_host_ns=1, sender="rig", process="p", sender_seq=1)
    body = encoding.encode_entry(envelope, encoding.encode(EDGES))
    assert same(encoding.decode_entry(body).document, EDGES)
    for end in range(len(body)):
        with pytest.raises(encoding.BadDocument):
            encoding.decode_entry(body[:end])
    with pytest.raises(encoding.BadDocument):
        encoding.decode_entry(body + b"\0")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        struct.pack("<I", 0),
        struct.pack("<I", 2**32 - 1),
        struct.pack("<II", 1, 2**32 - 1),
        struct.pack("<II", 1, 0),
        struct.pack("<III", 2, 2**32 - 1, 1) + b"ab",
        encoding.pack([b"{}", b"{}"]),
        encoding.pack([b"not json", *encoding.encode(EDGES)]),
        encoding.pack([b'{"seq": 1}', *encoding.encode(EDGES)]),
    ],
)
def test_a_record_that_lies_about_its_parts_is_refused(body: bytes) -> None:
    with pytest.raises(encoding.BadDocument):
        encoding.decode_entry(body)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_record_is_refused_or_is_an_entry(data: st.DataObject) -> None:
    envelope = m.Envelope(seq=1, receipt_host_ns=1, sender="rig", process="p", sender_seq=1)
    body = bytearray(encoding.encode_entry(envelope, encoding.encode(data.draw(st.sampled_from(EXAMPLES)))))
    at = data.draw(st.integers(0, len(body)))
    body[at : at + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    try:
        entry = encoding.decode_entry(bytes(body))
    except encoding.BadDocument:
        return
    assert isinstance(entry.document, m.Document)
