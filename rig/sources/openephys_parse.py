"""Bytes of Open Ephys' ZMQ Interface plugin (0.3.0 and later) into typed messages, or into a refusal that says why.

Pure: no socket, no clock, no state. Called by `rig.sources.openephys` for each message received. Nothing that arrives
may raise: whatever is not understood becomes a `Refusal` with a reason and a cure. Headers in the plugin's own layout
are read by `openephys_layout`, in less than half the time; everything else comes here.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

TTL_TYPE = 3
MAX_SAMPLE = 1 << 53  # about 9,500 years at 30 kHz: a larger counter is garbage
RATES_HZ = (1.0, 1e6)  # of any device's counter
_TTL = struct.Struct("<BBQ")

CURE_VERSION = "install the ZMQ Interface plugin 0.3.0 or later (Open Ephys GUI 0.6 or 1.0)"
CURE_RENAME = "rename streams, electrodes and channels in the GUI with plain ASCII letters"
CURE_PORT = "give the ZMQ Interface plugin a port of its own in the GUI and write that port into the source's config"
CURE_REPORT = "check that a ZMQ Interface plugin serves this port; if it does, its version is not one known here"


class Data(NamedTuple):
    """One channel of one block of continuous voltage."""

    message_num: int
    stream: str
    channel: int
    num_samples: int
    sample_num: int
    sample_rate_hz: float
    repaired: bool
    samples: bytes = b""  # float32 little-endian, only where somebody asked for this channel


class Ttl(NamedTuple):
    """One TTL edge: 0-based line, state (1 rising) and the word of all lines after it."""

    message_num: int
    stream: str
    line: int
    state: int
    sample_num: int
    word: int
    repaired: bool


class Spike(NamedTuple):
    """One detected spike; `sample_num` is its peak. The waveform is not kept."""

    message_num: int
    stream: str
    source_node: int
    electrode: str
    sorted_id: int
    sample_num: int
    repaired: bool

    @property
    def unit(self) -> str:
        """Name of the unit, for example "E01#0"."""
        return f"{self.electrode}#{self.sorted_id}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that is not used: why, and what the user can do about it."""

    reason: str
    cure: str
    plugin: str | None = None  # the plugin that seems to serve this port, where it is another one


Message = Data | Ttl | Spike


class _WrongField(ValueError):
    """A field of the header that is absent or out of its range."""


def encodable(text: str) -> bool:
    """Whether a text has a UTF-8 form: JSON may hold half of a character (a lone surrogate), which cannot be kept."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_rate(value: Any) -> TypeGuard[float]:
    """Whether a value is a rate in Hz at which a device may count."""
    return type(value) in (int, float) and RATES_HZ[0] <= value <= RATES_HZ[1]


def _whole(fields: dict[str, Any], key: str, lowest: int, highest: int) -> int:
    value = fields.get(key)
    if type(value) is not int or not lowest <= value <= highest:
        raise _WrongField(f"{key} is {str(value)[:40]!r}, expected a whole number from {lowest} to {highest}")
    return value


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not encodable(value):
        raise _WrongField(f"{key} is {str(value)[:40]!r}, expected text")
    return value


def _part(header: dict[str, Any], key: str) -> dict[str, Any]:
    value = header.get(key)
    if not isinstance(value, dict):
        raise _WrongField(f"{key} is missing")
    return value


def _size(size: int, expected: int) -> None:
    if size != expected:
        raise _WrongField(f"the payload has {size} bytes, expected {expected}")


def read_header(raw: bytes) -> tuple[dict[str, Any], bool]:
    """Return the header and whether it had to be repaired; raises ValueError where it cannot be read.

    GUI 1.0 counts characters where it should count bytes, so a header with non-ASCII names loses one byte at its end
    for each continuation byte (0x80-0xBF) in it. The last entry, `timestamp`, is then cut: closing the brace after
    what is left of its digits would give a valid, wrong number, so the whole entry is dropped. If more is lost than
    that, the braces no longer balance and the header is refused here.
    """
    try:
        header, repaired = json.loads(raw.decode()), False
    except (ValueError, RecursionError):
        cut = sum(0x80 <= byte <= 0xBF for byte in raw)
        comma = raw.rfind(b",")
        if not cut or comma < 0:
            raise
        header, repaired = json.loads(raw[:comma].decode() + "}"), True
    if not isinstance(header, dict):
        raise _WrongField("the header is no JSON object")
    return header, repaired


def _data(header: dict[str, Any], payload: bytes, size: int, repaired: bool) -> Data:
    content = _part(header, "content")
    rate = content.get("sample_rate")
    if not is_rate(rate):
        raise _WrongField(f"sample_rate is {str(rate)[:40]!r}, expected a number from 1 to 1e6 Hz")
    num_samples = _whole(content, "num_samples", 1, 1 << 24)
    _size(size, 4 * num_samples)
    return Data(
        _whole(header, "message_num", 1, MAX_SAMPLE),
        _text(content, "stream"),
        _whole(content, "channel_num", 0, 1 << 20),
        num_samples,
        _whole(content, "sample_num", 0, MAX_SAMPLE),
        float(rate),
        repaired,
        payload,
    )


def _ttl(header: dict[str, Any], payload: bytes, repaired: bool) -> Ttl:
    content = _part(header, "content")
    if content.get("type") != TTL_TYPE:
        raise _WrongField(f"the event's type is {str(content.get('type'))[:40]!r}, only TTL (3) is known")
    _size(len(payload), _TTL.size)
    line, state, word = _TTL.unpack(payload)
    if line > 63 or state > 1:
        raise _WrongField(f"TTL line {line} state {state}, expected line 0-63 and state 0 or 1")
    return Ttl(
        _whole(header, "message_num", 1, MAX_SAMPLE),
        _text(content, "stream"),
        line,
        state,
        _whole(content, "sample_num", 0, MAX_SAMPLE),
        word,
        repaired,
    )


def _spike(header: dict[str, Any], size: int, repaired: bool) -> Spike:
    spike = _part(header, "spike")
    _size(size, 4 * _whole(spike, "num_channels", 1, 64) * _whole(spike, "num_samples", 1, 1 << 16))
    return Spike(
        _whole(header, "message_num", 1, MAX_SAMPLE),
        _text(spike, "stream"),
        _whole(spike, "source_node", 0, 1 << 16),
        _text(spike, "electrode"),
        _whole(spike, "sorted_id", 0, 0xFFFF),
        _whole(spike, "sample_num", 0, MAX_SAMPLE),
        repaired,
    )


def _other_plugin(frames: Sequence[bytes]) -> Refusal | None:
    """Recognise what else may serve the port, by its first frame."""
    first = frames[0] if frames else b""
    if len(frames) >= 2 and first in (b"\x00\x00", b"\x01\x00"):
        name = "Event Broadcaster"
    elif len(frames) == 1 and is_falcon(first):
        name = "Falcon Output"
    else:
        return None
    return Refusal(f"the {name} plugin serves this port, not the ZMQ Interface", CURE_PORT, name)


def is_falcon(frame: bytes) -> bool:
    """Whether one frame looks like a FlatBuffers table as Falcon Output sends it: 9 fields, vtable before the table."""
    if len(frame) < 40:
        return False
    (root,) = struct.unpack_from("<I", frame)
    if not 4 <= root <= len(frame) - 4:
        return False
    (back,) = struct.unpack_from("<i", frame, root)
    vtable = root - back
    if not 4 <= vtable <= len(frame) - 4:
        return False
    size, table = struct.unpack_from("<HH", frame, vtable)
    return bool(6 <= size <= 4 + 2 * 16 and size % 2 == 0 and 4 <= table <= len(frame) - root)


def parse(frames: Sequence[bytes], size: int | None = None) -> Message | Refusal:
    """Read one multipart message; never raises. `size`: bytes of the payload where it was left behind."""
    if len(frames) != 3 or frames[0] not in (b"DATA\x00", b"EVENT\x00"):
        if (other := _other_plugin(frames)) is not None:
            return other
        start = bytes(frames[0][:16]) if frames else b""
        return Refusal(f"{len(frames)} frames beginning with {start!r}, expected 3 with DATA or EVENT", CURE_REPORT)
    try:
        header, repaired = read_header(frames[1])
    except (ValueError, RecursionError):
        cut = sum(0x80 <= byte <= 0xBF for byte in frames[1])
        if cut:
            return Refusal(f"a header cut short by {cut} bytes by non-ASCII names: too much is lost", CURE_RENAME)
        return Refusal("a header that is not JSON", CURE_REPORT)
    if "message_no" in header:
        return Refusal("a plugin older than 0.3.0 (its headers say message_no)", CURE_VERSION, "old ZMQ Interface")
    cure = CURE_RENAME if repaired else CURE_REPORT
    try:
        kind = header.get("type")
        if kind == "data":
            return _data(header, frames[2], len(frames[2]) if size is None else size, repaired)
        if kind == "spike":
            return _spike(header, len(frames[2]) if size is None else size, repaired)
        if kind == "event":
            return _ttl(header, frames[2], repaired)
        return Refusal(f"a message of type {str(kind)[:40]!r}", cure)
    except _WrongField as error:
        return Refusal(f"{str(header.get('type'))[:20]}: {error}", cure)


def heartbeat_request(application: str, identity: str) -> bytes:
    """Return the heartbeat to send to the plugin's second port; far below the length that harms the GUI."""
    fields = {"application": application[:200], "uuid": identity[:200], "type": "heartbeat"}
    return json.dumps(fields).encode()


def who_replied(reply: bytes) -> str:
    """Name the plugin that gives such a reply to a heartbeat."""
    if reply in (b"heartbeat received", b"message correctly parsed", b"JSON message could not be read"):
        return "ZMQ Interface"
    if reply.startswith(b"NotHandled"):
        return "Network Events"
    return f"unknown ({reply[:40]!r})"
