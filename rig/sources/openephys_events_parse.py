"""Messages of Open Ephys' Event Broadcaster plugin (JSON format) into typed values, or into a refusal that says why.

Pure: no socket, no clock, no state. Called by `rig.sources.openephys_events`; nothing that arrives may raise.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rig.sources.openephys_parse import MAX_SAMPLE, Refusal, encodable, is_falcon, is_rate

TTL_TOPIC, SPIKE_TOPIC = b"\x00\x00", b"\x01\x00"
CURE_TYPE = "give the source the type openephys (the ZMQ Interface), or correct its port"
CURE_FORMAT = "set the format of the Event Broadcaster to JSON in its editor"
CURE_PORT = "correct the source's port: the Event Broadcaster takes 5557 or the next free one, its editor shows which"
CURE_REPORT = "check that an Event Broadcaster serves this port; if it does, its version is not one known here"


@dataclass(frozen=True, slots=True)
class Edge:
    """One TTL edge: 0-based line, state (1 rising)."""

    stream: str
    rate_hz: float
    sample: int
    line: int
    state: int


@dataclass(frozen=True, slots=True)
class Spike:
    """One spike; `sample` is its peak."""

    stream: str
    rate_hz: float
    sample: int
    source_node: int
    electrode: str
    sorted_id: int

    @property
    def unit(self) -> str:
        """Name of the unit, for example "E01#0"."""
        return f"{self.electrode}#{self.sorted_id}"


Event = Edge | Spike


class _WrongField(ValueError):
    """A field that is absent or out of its range."""


def _whole(fields: dict[str, Any], key: str, highest: int) -> int:
    value = fields.get(key)
    if type(value) is not int or not 0 <= value <= highest:
        raise _WrongField(f"{key} is {str(value)[:40]!r}, expected a whole number from 0 to {highest}")
    return value


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value or not encodable(value):
        raise _WrongField(f"{key} is {str(value)[:40]!r}, expected text")
    return value


def _rate(fields: dict[str, Any]) -> float:
    rate = fields.get("sample_rate")
    if not is_rate(rate):
        raise _WrongField(f"sample_rate is {str(rate)[:40]!r}, expected a number from 1 to 1e6 Hz")
    return float(rate)


def _edge(fields: dict[str, Any]) -> Edge:
    state = fields.get("state")
    if type(state) is not bool and state not in (0, 1):
        raise _WrongField(f"state is {str(state)[:40]!r}, expected true or false")
    where = _text(fields, "stream"), _rate(fields), _whole(fields, "sample_number", MAX_SAMPLE)
    return Edge(*where, _whole(fields, "line", 63), int(bool(state)))


def _spike(fields: dict[str, Any]) -> Spike:
    where = _text(fields, "stream"), _rate(fields), _whole(fields, "sample_number", MAX_SAMPLE)
    node, sorted_id = _whole(fields, "source_node", 1 << 16), _whole(fields, "sorted_id", 0xFFFF)
    return Spike(*where, node, _text(fields, "electrode"), sorted_id)


def _other(frames: Sequence[bytes]) -> Refusal:
    """Recognise what else may serve the port."""
    first = bytes(frames[0][:16]) if frames else b""
    if first in (b"DATA\x00", b"EVENT\x00", b"PARAM\x00"):
        return Refusal("a ZMQ Interface serves this port, not the Event Broadcaster", CURE_TYPE, "ZMQ Interface")
    if len(frames) == 1 and is_falcon(frames[0]):
        return Refusal("the Falcon Output plugin serves this port", CURE_PORT, "Falcon Output")
    reason = f"{len(frames)} frames beginning with {first!r}, expected 2 beginning with 00 00 or 01 00"
    return Refusal(reason, CURE_REPORT)


def parse(frames: Sequence[bytes]) -> Event | Refusal:
    """Read one multipart message; never raises."""
    if len(frames) != 2 or frames[0] not in (TTL_TOPIC, SPIKE_TOPIC):
        return _other(frames)
    try:
        fields = json.loads(frames[1])
    except (ValueError, RecursionError):
        if frames[1][:1] in (b"\x01", b"\x02"):
            reason = "the Event Broadcaster sends its raw format, which names neither streams nor electrodes"
            return Refusal(reason, CURE_FORMAT, "Event Broadcaster, raw format")
        return Refusal("an event that is not JSON", CURE_REPORT)
    if not isinstance(fields, dict):
        return Refusal("an event that is no JSON object", CURE_REPORT)
    kind = fields.get("event_type")
    if kind not in ("ttl", "spike"):
        return Refusal(f"an event of type {str(kind)[:40]!r}", CURE_REPORT)
    try:
        return _edge(fields) if kind == "ttl" else _spike(fields)
    except _WrongField as error:
        return Refusal(f"{kind}: {error}", CURE_REPORT)
