"""The one encoding of documents, on the wire and in the journal: a JSON header, then one raw frame per array.

Pure: bytes in, documents out; never pickle. Every array states its dtype, shape and sha256. A frame of flat areas, as
receptive fields are mapped with, is deflated: on a large screen a map would else be a gigabyte. Used by the bus, the
recorder and whatever reads a journal.
"""

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from rig.messages import ARRAY_FIELDS, AnyDocument, Document, Entry, Envelope, kind_of

MAX_HEADER_BYTES = 4 << 20  # of a document that comes from anywhere
MAX_LOGGED_HEADER_BYTES = 64 << 20  # of one from the log: a SessionStart holds what was taken from other sessions
MAX_ARRAY_BYTES = 256 << 20  # also of any message on the bus
MAX_ARRAYS = 8
FRAMES = {"stimulus_prepared": "frame"}  # kind: its array that may be deflated
FLAT = 0.75  # share of values that equal their neighbour's, from which on it is
EVERY_ROW = 8  # of a frame is looked at for that
_KIND = re.compile(rb'"document":\{"version":\d+,"kind":"([a-z_]+)"')
_KIND_WITHIN = 1000  # an envelope is shorter
_ADAPTER: TypeAdapter[Document] = TypeAdapter(AnyDocument)
# Looked up, never parsed: numpy takes a whole language of dtype strings.
_DTYPES = {d.str: d for d in map(np.dtype, ("u1", "<u2", "<u4", "<i8", "<f4", "<f8"))}
# A text with NUL or a number beyond 64 bits is valid JSON, but neither HDF5 nor numpy can hold it. Both are rare enough
# that only a header in which one might stand is walked.
_SUSPECT = re.compile(rb"\\u0000|[:,\[]\s*-?(?:\d{19}|[\d.]+[eE])")
_LARGEST = 2**63


class BadDocument(ValueError):
    """Bytes that are not a document of ours: the sender's fault; counted and refused, never a crash."""


def encode(document: Document) -> list[bytes]:
    """Return the document's frames: a JSON header, then one raw frame per array field that is not None."""
    fields = ARRAY_FIELDS[kind_of(document)]
    arrays, frames = [], []
    for name in fields:
        value = getattr(document, name)
        if value is None:
            continue
        raw = value.tobytes()
        digest = hashlib.sha256(raw).hexdigest()
        meta = {"name": name, "dtype": value.dtype.str, "shape": list(value.shape), "sha256": digest}
        if FRAMES.get(kind_of(document)) == name and _flat(value):
            meta, raw = meta | {"deflated": True}, zlib.compress(raw, 1)
        arrays.append(meta)
        frames.append(raw)
    body = document.model_dump_json(exclude=set(fields)).encode()
    return [b'{"document":' + body + b',"arrays":' + json.dumps(arrays).encode() + b"}", *frames]


def _flat(frame: npt.NDArray[Any]) -> bool:
    """Return whether a frame (y, x, rgb) is mostly of flat areas; a photograph is not, and nothing would be gained."""
    rows = frame[::EVERY_ROW]
    return rows.shape[1] > 1 and bool(np.mean(rows[:, 1:] == rows[:, :-1]) >= FLAT)


def _inflated(raw: bytes, size: int) -> bytes:
    """Return `size` bytes, whatever `raw` would grow to; raises BadDocument where it is anything else."""
    inflating = zlib.decompressobj()
    try:
        out = inflating.decompress(raw, size)
        if len(out) == size and not inflating.eof:  # the end itself may need one more look
            out += inflating.decompress(inflating.unconsumed_tail, 1)
    except zlib.error as error:
        raise BadDocument(f"an array that is said to be deflated is not: {error}") from error
    if len(out) != size or not inflating.eof or inflating.unused_data:
        raise BadDocument(f"a deflated array does not hold the {size} bytes that it claims")
    return out


def _array(meta: Any, raw: bytes) -> npt.NDArray[Any]:
    dtype, shape = _DTYPES.get(meta["dtype"]), tuple(meta["shape"])
    if dtype is None or len(shape) > 4 or not all(type(n) is int and 0 <= n < _LARGEST for n in shape):
        what = f"dtype {str(meta['dtype'])[:20]!r} and shape {str(shape)[:60]}"
        raise BadDocument(f"array {meta['name']!r} has {what}, which no document uses")
    size = dtype.itemsize
    for n in shape:  # Python integers: no overflow from a hostile shape
        size *= n
    if meta.get("deflated") is True and 0 < size <= MAX_ARRAY_BYTES:
        raw = _inflated(raw, size)
    if size != len(raw):
        raise BadDocument(f"array {meta['name']!r} claims {size} bytes and has {len(raw)}")
    if hashlib.sha256(raw).hexdigest() != meta["sha256"]:
        raise BadDocument(f"array {meta['name']!r} does not match its sha256")
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


def _check_values(value: Any) -> None:
    """Raise BadDocument where a text holds NUL or a number does not fit into 64 bits."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_values(key)
            _check_values(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_values(inner)
    elif isinstance(value, str):
        if "\0" in value:
            raise BadDocument("a text holds the character NUL")
    elif isinstance(value, int | float) and not -_LARGEST <= value < _LARGEST:
        raise BadDocument(f"the number {str(value)[:30]} does not fit into 64 bits")


def decode(frames: Sequence[bytes], most_header_bytes: int = MAX_HEADER_BYTES) -> Document:
    """Turn frames back into a document; raises BadDocument and nothing else on any malformed input."""
    if not frames or len(frames) > MAX_ARRAYS + 1 or len(frames[0]) > most_header_bytes:
        raise BadDocument(f"{len(frames)} frames with a header of {len(frames[0]) if frames else 0} bytes")
    if any(len(f) > MAX_ARRAY_BYTES for f in frames[1:]):
        raise BadDocument(f"an array frame is larger than {MAX_ARRAY_BYTES} bytes")
    try:
        header = from_json(frames[0], allow_inf_nan=False)  # bounds nesting, refuses lone surrogates
        fields, arrays = header["document"], header["arrays"]
        if not isinstance(fields, dict) or not isinstance(arrays, list) or len(arrays) != len(frames) - 1:
            raise BadDocument("header and number of array frames disagree")
        if _SUSPECT.search(frames[0]):
            _check_values(fields)
        names = ARRAY_FIELDS.get(str(fields.get("kind")), ())
        fields.update(dict.fromkeys(names))
        for meta, raw in zip(arrays, frames[1:], strict=True):
            if meta["name"] not in names or fields[meta["name"]] is not None:
                raise BadDocument(f"unknown or repeated array {meta['name']!r}")
            fields[meta["name"]] = _array(meta, raw)
        return _ADAPTER.validate_python(fields)
    except BadDocument:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(p) for p in first["loc"])[:100]
        raise BadDocument(_plain(f"{where}: {first['msg'][:200]}")) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise BadDocument(_plain(f"not a document: {type(error).__name__}: {str(error)[:200]}")) from error


def _plain(text: str) -> str:
    """Return a text that may come from anywhere as one that a Fault can hold."""
    return text.encode("ascii", "backslashreplace").decode().replace("\0", "\\0")


def pack(parts: Sequence[bytes]) -> bytes:
    """Join byte strings into one, with their lengths in front (little-endian u32 count, then u32 lengths)."""
    return struct.pack(f"<{len(parts) + 1}I", len(parts), *(len(p) for p in parts)) + b"".join(parts)


def unpack(body: bytes) -> list[bytes]:
    """Undo `pack`; raises BadDocument where lengths and body disagree."""
    if len(body) < 4:
        raise BadDocument("a record of fewer than 4 bytes")
    (count,) = struct.unpack_from("<I", body)
    if count > MAX_ARRAYS + 2 or len(body) < 4 * (count + 1):
        raise BadDocument(f"a record that claims {count} parts")
    lengths = struct.unpack_from(f"<{count}I", body, 4)
    at, parts = 4 * (count + 1), []
    for n in lengths:
        parts.append(body[at : at + n])
        at += n
    if at != len(body):
        raise BadDocument(f"a record of {len(body)} bytes whose parts end at {at}")
    return parts


def encode_entry(envelope: Envelope, frames: Sequence[bytes]) -> bytes:
    """Return the journal's body of one entry: envelope, header, arrays."""
    return pack([envelope.model_dump_json().encode(), *frames])


def kind_in(body: bytes) -> str:
    """Return the kind of a journalled entry without decoding it; "" if that cannot be told."""
    found = _KIND.search(body, 0, _KIND_WITHIN)
    return found.group(1).decode() if found else ""


def envelope_in(body: bytes) -> Envelope:
    """Return the envelope of a journalled entry without decoding its document; raises BadDocument."""
    if len(body) < 8:
        raise BadDocument("a record of fewer than 8 bytes")
    count, length = struct.unpack_from("<2I", body)
    start = 4 * (count + 1)
    return _envelope(body[start : start + length])


def _envelope(part: bytes) -> Envelope:
    try:
        return Envelope.model_validate_json(part)
    except ValidationError as error:
        raise BadDocument(f"not an envelope: {error}") from error


def decode_entry(body: bytes) -> Entry:
    """Undo `encode_entry`; raises BadDocument."""
    parts = unpack(body)
    return Entry(_envelope(parts[0] if parts else b""), decode(parts[1:], MAX_LOGGED_HEADER_BYTES))


def summary(entry: Entry) -> str:
    """Return an entry as one line of JSON for people and for grep; arrays longer than 64 numbers as their shape."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.tolist() if value.size <= 64 else f"{value.dtype} {list(value.shape)}"
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return value

    fields = plain(entry.document.model_dump(exclude={"version"}))
    return json.dumps({"seq": entry.envelope.seq, "sender": entry.envelope.sender, **fields})
