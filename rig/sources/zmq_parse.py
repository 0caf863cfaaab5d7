"""Bytes of the open wires (docs/wires/spikes.md, docs/wires/traces.md) into typed messages, or why they are refused.

Pure: no socket, no clock, no state. Called by `spikes_zmq`, `traces_zmq` and `zmq_feed` for each message received.
Nothing that arrives may raise: whatever is not understood becomes a `Refusal` with a reason and a cure.
"""

import json
import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, get_args

import numpy as np
import numpy.typing as npt

from rig.sources.openephys_parse import RATES_HZ, encodable

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
WireName = Literal["spikes", "traces"]

VERSION = 1
MAX_SAMPLE = 1 << 53  # what a double, and so MATLAB, counts exactly
MAX_UNITS = 65_535
MAX_ROWS = 10_000  # frames, edges or gaps in one message
MAX_HEADER_BYTES = 8 << 20
MAX_ARRAY_BYTES = 64 << 20
AHEAD_S = 1.0  # a spike may be this much newer than `through`
PLAUSIBLE = (1e-30, 1e30)  # fluorescence in any unit; floats with swapped bytes lie outside

CURE_FORMAT = "correct the bridge; its format is in docs/wires/{}.md"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that is not used: why, and what the user can do about it. `foreign`: no bridge of this wire sent it."""

    reason: str
    cure: str
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """What every message says."""

    run: str
    number: int
    rate_hz: float
    list_number: int
    through: int | None  # device sample before which everything was sent; None in a message without data
    edges: tuple[tuple[int, int, int], ...]  # (line, state, sample)
    gaps: tuple[tuple[int, int], ...]  # (first sample, end) that the bridge itself could not get
    ahead: int | None = None  # no spike is newer than `through` by so many samples; None: by AHEAD_S


@dataclass(frozen=True, slots=True)
class SpikesMessage:
    """Spikes and edges; `units` only if the message repeats the list."""

    head: Head
    units: tuple[str, ...] | None
    unit: I64  # (spike,), index into the list
    sample: I64  # (spike,)


@dataclass(frozen=True, slots=True)
class UnitsMessage:
    """The ROIs of an imaging bridge, in the order of its values."""

    head: Head
    units: tuple[str, ...]
    scan_offset_s: F64  # (unit,)


@dataclass(frozen=True, slots=True)
class FramesMessage:
    """Frames of an imaging bridge, one row each."""

    head: Head
    frame: I64  # (row,)
    sample: I64  # (row,), tick at which the frame began
    values: F32  # (row, unit)
    neuropil: F32 | None
    motion: F32 | None  # (row, 3)


@dataclass(frozen=True, slots=True)
class ClockReply:
    """The bridge's answer to "time?"."""

    run: str
    number: int  # of the last message sent
    sample: float  # device sample
    present: bool  # whether it is the sample of now, not that of the newest data


class _Wrong(ValueError):
    """A field that is absent, of the wrong type or out of its range."""


# --- fields -----------------------------------------------------------------------------------------------------------


def _short(value: object) -> str:
    return reprlib.repr(value)[:60]  # never the whole of what somebody sent


def _as_whole(value: Any, lowest: int, highest: int) -> int | None:
    """Return a whole number within its range (also one that JSON wrote as 5.0), else None."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and lowest <= value <= highest else None


def _whole(fields: dict[str, Any], key: str, lowest: int = 0, highest: int = MAX_SAMPLE) -> int:
    value = _as_whole(fields.get(key), lowest, highest)
    if value is None:
        raise _Wrong(f"{key} is {_short(fields.get(key))}, expected a whole number from {lowest} to {highest}")
    return value


def _number(fields: dict[str, Any], key: str, lowest: float, highest: float) -> float:
    value: Any = fields.get(key)
    if type(value) not in (int, float) or not math.isfinite(value) or not lowest <= value <= highest:
        raise _Wrong(f"{key} is {_short(value)}, expected a number from {lowest:g} to {highest:g}")
    return float(value)


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 1 <= len(value) <= 64 and encodable(value)


def _run(fields: dict[str, Any]) -> str:
    value = fields.get("run")
    if not _is_name(value):
        raise _Wrong(f"run is {_short(value)}, expected a text of 1 to 64 characters, new at each start of the bridge")
    return value


def _rows(fields: dict[str, Any], key: str, tops: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return a list of rows of whole numbers, each from 0 to its column's top; empty if the key is absent."""
    value = fields.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_ROWS:
        raise _Wrong(f"{key} is no list of up to {MAX_ROWS} rows")
    out = []
    for row in value:
        good = isinstance(row, list) and len(row) == len(tops)
        numbers = [_as_whole(v, 0, top) for v, top in zip(row, tops, strict=True)] if good else [None]
        if None in numbers:
            raise _Wrong(f"{key} has a row {_short(row)}, expected {len(tops)} whole numbers up to {tops}")
        out.append(tuple(n for n in numbers if n is not None))
    return tuple(out)


def _names(fields: dict[str, Any]) -> tuple[str, ...]:
    value = fields.get("units")
    if not isinstance(value, list) or len(value) > MAX_UNITS:
        raise _Wrong(f"units is {_short(value)}, expected a list of up to {MAX_UNITS} names")
    if not all(map(_is_name, value)):
        raise _Wrong("units has a name that is no text of 1 to 64 characters, or holds half a character (a surrogate)")
    if len(set(value)) != len(value):
        seen: set[str] = set()
        twice = next(name for name in value if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _Wrong(f"units has the name {_short(twice)} twice")
    return tuple(value)


def _head(fields: dict[str, Any], data: bool, spikes: bool = False) -> Head:
    edges, gaps = _rows(fields, "edges", (63, 1, MAX_SAMPLE)), _rows(fields, "gaps", (MAX_SAMPLE, MAX_SAMPLE))
    rate_hz = _number(fields, "rate_hz", *RATES_HZ)
    return Head(
        run=_run(fields),
        number=_whole(fields, "number", 1),
        rate_hz=rate_hz,
        list_number=_whole(fields, "list", 0, 1 << 31),
        through=_whole(fields, "through") if data else None,
        edges=tuple((row[0], row[1], row[2]) for row in edges),
        gaps=tuple((row[0], row[1]) for row in gaps if row[0] < row[1]),
        ahead=_whole(fields, "ahead", 0, int(AHEAD_S * rate_hz)) if spikes and "ahead" in fields else None,
    )


# --- messages ---------------------------------------------------------------------------------------------------------


def _fields(frames: Sequence[bytes], wire: WireName) -> dict[str, Any] | Refusal:
    """Return the header of a message of this wire and version."""
    cure = CURE_FORMAT.format(wire)
    first = frames[0] if frames else b""
    if first in (b"DATA\x00", b"EVENT\x00"):
        return Refusal("Open Ephys' ZMQ Interface serves this port", "use a source of type openephys", foreign=True)
    if len(first) > MAX_HEADER_BYTES or any(len(frame) > MAX_ARRAY_BYTES for frame in frames[1:]):
        return Refusal(f"a message of {sum(map(len, frames))} bytes: too large", cure)
    try:
        fields = json.loads(first)
    except (ValueError, RecursionError):
        return Refusal(f"{len(frames)} frames beginning with {_short(bytes(first[:16]))}: no JSON header", cure, True)
    if not isinstance(fields, dict) or not isinstance(fields.get("wire"), str):
        return Refusal("a JSON header without the name of its wire", cure, True)
    if fields["wire"] != wire:
        known = fields["wire"] in get_args(WireName)
        cure = f"use a source of type {fields['wire']}_zmq" if known else cure
        return Refusal(f"a message of the wire {_short(fields['wire'])}, not {wire!r}", cure, True)
    if fields.get("version") != VERSION:
        reason = f"version {_short(fields.get('version'))} of the {wire} wire; version {VERSION} is read here"
        return Refusal(reason, "update stimloop or the bridge, so that both have one version", True)
    return fields


def parse_spikes(frames: Sequence[bytes]) -> SpikesMessage | Refusal:
    """Read one message of the spikes wire; never raises."""
    fields = _fields(frames, "spikes")
    if isinstance(fields, Refusal):
        return fields
    try:
        head = _head(fields, data=True, spikes=True)
        units = _names(fields) if "units" in fields else None
        if len(frames) != 2:
            raise _Wrong(f"{len(frames)} frames, expected a header and one array")
        if len(frames[1]) % 16:
            raise _Wrong(f"an array of {len(frames[1])} bytes, expected 16 for each spike: two int64 (unit, sample)")
        rows = np.frombuffer(frames[1], dtype="<i8").reshape(-1, 2)
        _check_spikes(rows, head, MAX_UNITS if units is None else len(units))
    except (_Wrong, OverflowError) as error:
        return Refusal(f"spikes: {error}", CURE_FORMAT.format("spikes"))
    return SpikesMessage(head, units, rows[:, 0], rows[:, 1])


def _check_spikes(rows: I64, head: Head, units: int) -> None:
    if not len(rows):
        return
    low, high = rows.min(axis=0).tolist(), rows.max(axis=0).tolist()
    if low[0] < 0 or high[0] >= units:
        odd = low[0] if low[0] < 0 else high[0]
        raise _Wrong(f"a unit index {odd} with {units} units: not little-endian int64, or counted from 1?")
    assert head.through is not None  # noqa: S101 - data
    if head.ahead is not None and high[1] >= head.through + head.ahead:
        raise _Wrong(f"a spike at sample {high[1]} while through is {head.through} and ahead {head.ahead}")
    if low[1] < 0 or high[1] > head.through + AHEAD_S * head.rate_hz:
        odd = low[1] if low[1] < 0 else high[1]
        raise _Wrong(f"a spike at sample {odd} while through is {head.through}: not little-endian, or other samples?")


def parse_traces(frames: Sequence[bytes]) -> UnitsMessage | FramesMessage | Refusal:
    """Read one message of the traces wire; never raises."""
    fields = _fields(frames, "traces")
    if isinstance(fields, Refusal):
        return fields
    kind = fields.get("kind")
    try:
        if kind == "units":
            return _units_message(fields, frames)
        if kind == "frames":
            return _frames_message(fields, frames)
        raise _Wrong(f"kind is {_short(kind)}, expected units or frames")
    except (_Wrong, OverflowError) as error:
        return Refusal(f"traces: {error}", CURE_FORMAT.format("traces"))


def _units_message(fields: dict[str, Any], frames: Sequence[bytes]) -> UnitsMessage:
    head, units = _head(fields, data=False), _names(fields)
    if len(frames) != 2 or len(frames[1]) != 8 * len(units):
        sizes = [len(frame) for frame in frames[1:]]
        raise _Wrong(f"arrays of {sizes} bytes for {len(units)} units, expected one of float64 scan offsets in s")
    offset_s = np.frombuffer(frames[1], dtype="<f8")
    if not ((offset_s == 0) | ((offset_s > 1e-12) & (offset_s <= 60))).all():
        raise _Wrong("a scan offset outside 0 to 60 s: not little-endian float64 in s?")
    return UnitsMessage(head, units, offset_s)


def _frames_message(fields: dict[str, Any], frames: Sequence[bytes]) -> FramesMessage:
    head = _head(fields, data=True)
    stamps = np.array(_rows(fields, "frames", (MAX_SAMPLE, MAX_SAMPLE)), dtype=np.int64).reshape(-1, 2)
    units = _whole(fields, "rois", 0, MAX_UNITS)
    if len(frames) not in (2, 3):
        raise _Wrong(f"{len(frames)} frames, expected a header, F and perhaps the neuropil")
    values = _matrix(frames[1], len(stamps), units, "F")
    neuropil = _matrix(frames[2], len(stamps), units, "neuropil") if len(frames) == 3 else None
    if len(stamps) > 1 and (np.diff(stamps, axis=0) <= 0).any():
        raise _Wrong("frame numbers or samples within one message do not ascend")
    return FramesMessage(head, stamps[:, 0], stamps[:, 1], values, neuropil, _motion(fields, len(stamps)))


def _matrix(raw: bytes, rows: int, units: int, name: str) -> F32:
    if len(raw) != 4 * rows * units:
        wrong = f"{name} has {len(raw)} bytes, expected {rows} rows of {units} float32: {4 * rows * units} bytes"
        raise _Wrong(wrong + ("; it seems to be float64" if len(raw) == 8 * rows * units else ""))
    values: F32 = np.frombuffer(raw, dtype="<f4").reshape(rows, units)
    size = np.abs(values)
    odd = (size > PLAUSIBLE[1]) | ((size < PLAUSIBLE[0]) & (size > 0))
    if odd.any():
        raise _Wrong(f"{name} holds {float(values[odd][0]):g}: not little-endian float32, or not finite?")
    return values


def _motion(fields: dict[str, Any], rows: int) -> F32 | None:
    value = fields.get("motion")
    if value is None:
        return None
    good = isinstance(value, list) and len(value) == rows and all(isinstance(r, list) and len(r) == 3 for r in value)
    if not good or not all(type(v) in (int, float) and abs(v) <= 1e6 for row in value for v in row):
        raise _Wrong(f"motion is {_short(value)}, expected x, y, z for each of {rows} frames")
    return np.array(value, dtype=np.float32).reshape(-1, 3)


def parse_reply(raw: bytes, wire: WireName) -> ClockReply | Refusal:
    """Read the answer of a bridge's clock port; never raises."""
    fields = _fields([raw], wire)
    if isinstance(fields, Refusal):
        return fields
    try:
        sample, present = _number(fields, "sample", 0, MAX_SAMPLE), fields.get("present", True)
        if not isinstance(present, bool):
            raise _Wrong(f"present is {_short(present)}, expected true or false")
        return ClockReply(_run(fields), _whole(fields, "number"), sample, present)
    except (_Wrong, OverflowError) as error:
        return Refusal(f"clock reply: {error}", CURE_FORMAT.format(wire))
