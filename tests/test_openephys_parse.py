"""Bytes of the ZMQ Interface: what is read, what is repaired, what is refused and with which words."""

import json
import struct
from collections.abc import Callable
from itertools import chain

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rig.animal.openephys_wire import Style, data_frames, heartbeat_reply, spike_frames, spike_waveform, ttl_frames
from rig.sources.openephys_layout import read_data, read_event
from rig.sources.openephys_parse import (
    Data,
    Message,
    Refusal,
    Spike,
    Ttl,
    heartbeat_request,
    parse,
    read_header,
    who_replied,
)

BLOCK = np.zeros(696, dtype=np.float32)
WAVE = spike_waveform(-100.0)


def data(stream: str = "ProbeA-AP", style: Style = "1.0") -> list[bytes]:
    return data_frames(7, stream, 3, "CH4", 20_880, 30_000.0, BLOCK, 1_684_794_147_003, style)


def ttl(stream: str = "ProbeA-AP", style: Style = "1.0") -> list[bytes]:
    return ttl_frames(1235, stream, 101, 5_521_377, 2, 1, 4, 1_684_794_147_003, style)


def spike(stream: str = "ProbeA-AP", style: Style = "1.0", electrode: str = "E01") -> list[bytes]:
    return spike_frames(9, stream, 103, electrode, 490, 2, (-60.0,), WAVE, 1_684_794_147_003, style)


def refused(frames: list[bytes]) -> Refusal:
    message = parse(frames)
    assert isinstance(message, Refusal)
    assert message.cure
    return message


def test_the_three_kinds() -> None:
    assert parse(data()) == Data(7, "ProbeA-AP", 3, 696, 20_880, 30_000.0, repaired=False, samples=BLOCK.tobytes())
    assert parse(ttl()) == Ttl(1235, "ProbeA-AP", 2, 1, 5_521_377, 4, repaired=False)
    read = parse(spike())
    assert read == Spike(9, "ProbeA-AP", 103, "E01", 2, 490, repaired=False)
    assert isinstance(read, Spike)
    assert read.unit == "E01#2"


def test_a_published_ttl_payload() -> None:
    assert ttl()[2] == bytes.fromhex("02 01 04 00 00 00 00 00 00 00")


@pytest.mark.parametrize("make", [data, ttl, spike])
@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4, 8, 15, 16, 18, 25, 33])
def test_cut_headers_are_repaired_up_to_33_bytes(make: Callable[..., list[bytes]], cut: int) -> None:
    stream = "\u00e9" * cut + "x"  # each of these letters costs the header one byte at its end
    expected = parse(make("a"))
    assert not isinstance(expected, Refusal)
    assert parse(make(stream)) == expected._replace(stream=stream, repaired=cut > 0)


@pytest.mark.parametrize("make", [data, ttl, spike])
@pytest.mark.parametrize("cut", range(34, 200, 7))
def test_headers_cut_deeper_are_read_right_or_refused(make: Callable[..., list[bytes]], cut: int) -> None:
    stream = "\u00e9" * cut
    expected = parse(make("a"))
    assert not isinstance(expected, Refusal)
    read = parse(make(stream))
    if isinstance(read, Refusal):
        assert "ASCII" in read.cure
    else:  # only `data_size` was lost, which the payload's own length replaces
        assert read == expected._replace(stream=stream, repaired=True)
        assert cut < 60


def test_a_cut_time_stamp_never_becomes_a_number() -> None:
    header, repaired = read_header(ttl("\u00e9" * 6)[1])
    assert repaired
    assert "timestamp" not in header


def test_gui_06_escapes_and_needs_no_repair() -> None:
    read = parse(ttl("sonde-\u00e9", style="0.6"))
    assert isinstance(read, Ttl)
    assert (read.stream, read.repaired) == ("sonde-\u00e9", False)


def test_commas_and_braces_in_names() -> None:
    read = parse(spike("a,b}{", electrode='\u00e9,"}'))
    assert isinstance(read, Spike)
    assert (read.stream, read.electrode) == ("a,b}{", '\u00e9,"}')


def test_a_plugin_too_old_is_named() -> None:
    header = json.dumps({"message_no": 4, "type": "data", "content": {"n_channels": 2}}).encode()
    refusal = refused([b"DATA\x00", header, b""])
    assert refusal.plugin == "old ZMQ Interface"
    assert "0.3.0" in refusal.cure


def falcon_message() -> bytes:
    """Nine fields of a FlatBuffers table in vtable order, as Falcon Output sends them."""
    vtable = struct.pack("<HH9H", 22, 60, 4, 8, 12, 16, 20, 24, 32, 40, 48)
    start = 4 + len(vtable) + 2
    return struct.pack("<I", start) + b"\0\0" + vtable + struct.pack("<i", start - 6) + bytes(56)


@pytest.mark.parametrize(
    ("frames", "plugin"),
    [
        ([b"\x00\x00", b'{"event_type":"ttl"}'], "Event Broadcaster"),
        ([b"\x01\x00", b'{"event_type":"spike"}'], "Event Broadcaster"),
        ([falcon_message()], "Falcon Output"),
        ([b"StartAcquisition and forty more bytes of plain text"], None),
        ([b"EVENT\x00", b"{}"], None),
        ([b"PARAM\x00", b"{}", b""], None),
        ([], None),
    ],
)
def test_other_plugins_on_the_port_are_named(frames: list[bytes], plugin: str | None) -> None:
    assert refused(frames).plugin == plugin


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("message_num", {"message_num": "7"}),
        ("message_num", {"message_num": True}),
        ("message_num", {"message_num": 0}),
        ("stream", {"content": {"stream": 3}}),
        ("channel_num", {"content": {"channel_num": -1}}),
        ("num_samples", {"content": {"num_samples": 0}}),
        ("sample_num", {"content": {"sample_num": 1 << 60}}),
        ("sample_rate", {"content": {"sample_rate": float("nan")}}),
        ("sample_rate", {"content": {"sample_rate": 0}}),
        ("payload", {"content": {"num_samples": 695}}),
        ("content", {"content": None}),
        ("type", {"type": "image"}),
        ("type", {"type": ["data"]}),
    ],
)
def test_a_wrong_field_is_named(what: str, change: dict[str, object]) -> None:
    frames = data()
    header = json.loads(frames[1])
    for key, value in change.items():
        header[key] = {**header[key], **value} if isinstance(value, dict) else value
    assert what in refused([frames[0], json.dumps(header).encode(), frames[2]]).reason


@pytest.mark.parametrize("payload", [b"", bytes(9), b"\x40\x01" + bytes(8), b"\x00\x02" + bytes(8)])
def test_ttl_payloads_that_cannot_be(payload: bytes) -> None:
    assert refused([*ttl()[:2], payload]).reason


@given(st.lists(st.binary(max_size=80), max_size=4), st.sampled_from([b"DATA\x00", b"EVENT\x00", b"", b"\x00\x00"]))
@example([b"[" * 100_000, b""], b"DATA\x00")
@example([b'{"type":"data"}', b""], b"DATA\x00")
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise(frames: list[bytes], first: bytes) -> None:
    assert isinstance(parse([first, *frames]), Message | Refusal)


@given(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from([data, ttl, spike]))
@settings(max_examples=300, deadline=None)
def test_a_flipped_byte_never_raises(at: int, value: int, make: Callable[..., list[bytes]]) -> None:
    frames = make()
    header = bytearray(frames[1])
    header[at % len(header)] = value
    assert isinstance(parse([frames[0], bytes(header), frames[2]]), Message | Refusal)


def test_heartbeats() -> None:
    request = heartbeat_request("stimloop probe" * 100, "id")
    assert len(request) < 500
    assert json.loads(request)["type"] == "heartbeat"
    assert who_replied(heartbeat_reply(request)) == "ZMQ Interface"
    assert who_replied(heartbeat_reply(b"not json")) == "ZMQ Interface"
    assert who_replied(b"NotHandled") == "Network Events"
    assert "unknown" in who_replied(b"hello")


# --- the fast way to read what the plugin writes ----------------------------------------------------------------------

names = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    st.text(max_size=8).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t)),
)
whole = st.one_of(st.integers(0, 3), st.integers(0, 1 << 40), st.integers(1 << 52, 1 << 60))
floats = st.floats(-999_999.0, 999_999.0, allow_nan=False)
rates = st.sampled_from([30_000.0, 2_500.0, 29_974.5, 0.1, 0.0, 1e-7, 12_345.678])
styles: st.SearchStrategy[Style] = st.sampled_from(["0.6", "1.0"])


@st.composite
def plugin_messages(draw: st.DrawFn) -> list[bytes]:
    """Return any message that the plugin could write, and some that it could not."""
    number, sample, stamp, style = draw(whole), draw(whole), draw(whole), draw(styles)
    match draw(st.integers(0, 2)):
        case 0:
            block = np.zeros(draw(st.integers(0, 50)), dtype=np.float32)
            where = (draw(names), draw(st.integers(0, 20_000)), draw(names), sample, draw(rates))
            return data_frames(number, *where, block, stamp, style)
        case 1:
            edge = (draw(st.integers(0, 255)), draw(st.integers(0, 255)), draw(st.integers(0, (1 << 64) - 1)))
            return ttl_frames(number, draw(names), draw(st.integers(0, 99_999)), sample, *edge, stamp, style)
        case _:
            wave = np.zeros((draw(st.integers(1, 4)), draw(st.integers(1, 50))), dtype=np.float32)
            thresholds = tuple(draw(st.lists(floats, max_size=4)))
            who = (draw(st.integers(0, 99_999)), draw(names), sample, draw(st.integers(0, 70_000)), thresholds)
            return spike_frames(number, draw(names), *who, wave, stamp, style)


def fast(frames: list[bytes]) -> Message | None:
    read = read_data if frames[0] == b"DATA\x00" else read_event
    return read(frames[1], frames[2], len(frames[2]))


@given(frames=plugin_messages())
@settings(max_examples=600, deadline=None)
def test_what_the_fast_way_reads_is_what_json_says(frames: list[bytes]) -> None:
    read = fast(frames)
    assert read is None or read == parse(frames)


@given(frames=plugin_messages(), at=st.integers(0, 400), what=st.binary(max_size=3), cut=st.integers(0, 3))
@settings(max_examples=600, deadline=None)
def test_the_fast_way_never_reads_more_than_json_in_a_damaged_header(
    frames: list[bytes], at: int, what: bytes, cut: int
) -> None:
    frames = [frames[0], frames[1][:at] + what + frames[1][at + cut :], frames[2]]
    read = fast(frames)
    assert read is None or read == parse(frames)


def test_the_fast_way_reads_all_that_is_in_the_usual_layout() -> None:
    for make, style in chain.from_iterable(((m, "0.6"), (m, "1.0")) for m in (data, ttl, spike)):
        frames = make(style=style)  # type: ignore[arg-type]
        assert fast(frames) == parse(frames)
        older = [frames[0], frames[1][: frames[1].rindex(b",\r\n")] + b"\r\n}", frames[2]]  # plugin 0.3.1: no time
        assert fast(older) == parse(older) == parse(frames)


def test_a_payload_that_was_left_behind_is_judged_by_its_size() -> None:
    for make in (data, spike):
        first, header, payload = make()
        assert not isinstance(parse([first, header, b""], len(payload)), Refusal)
        assert isinstance(parse([first, header, b""], len(payload) + 4), Refusal)
        assert (read_data if make is data else read_event)(header, b"", len(payload) + 4) is None


@pytest.mark.parametrize("rate", [1e10, 1e-300, 1e-9, 0.5, 10**400, True, "30000"])
def test_rates_that_no_device_has_are_refused(rate: object) -> None:
    header = json.loads(data()[1])
    header["content"]["sample_rate"] = rate
    assert "from 1 to 1e6 Hz" in refused([b"DATA\x00", json.dumps(header).encode(), BLOCK.tobytes()]).reason


@pytest.mark.parametrize("key", ["electrode", "stream"])
def test_names_that_cannot_be_kept_are_refused(key: str) -> None:
    """JSON may hold half of a character; nothing could write such a name down."""
    header = json.loads(spike()[1])
    header["spike"][key] = "E\ud800"
    assert key in refused([b"EVENT\x00", json.dumps(header).encode(), WAVE.astype("<f4").tobytes()]).reason
