"""The one encoding of documents, on the wire and in the journal: a JSON header, then one raw frame per array.

Pure: bytes in, documents out; never pickle. Every array states its dtype, shape and sha256. Used by the bus, the
recorder and whatever reads a journal.
"""

import hashlib
import json
import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from rig.messages import ARRAY_FIELDS, AnyDocument, Document, Entry, Envelope, kind_of

MAX_HEADER_BYTES = 8 << 20
MAX_ARRAY_BYTES = 1 << 30
MAX_ARRAYS = 8
_KIND = re.compile(rb'"document":\{"version":\d+,"kind":"([a-z_]+)"')
_KIND_WITHIN = 1000  # an envelope is shorter
_ADAPTER: TypeAdapter[Document] = TypeAdapter(AnyDocument)


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
        arrays.append({"name": name, "dtype": value.dtype.str, "shape": list(value.shape), "sha256": digest})
        frames.append(raw)
    body = document.model_dump_json(exclude=set(fields)).encode()
    return [b'{"document":' + body + b',"arrays":' + json.dumps(arrays).encode() + b"}", *frames]


def _array(meta: Any, raw: bytes) -> npt.NDArray[Any]:
    dtype = np.dtype(str(meta["dtype"]))
    shape = tuple(int(n) for n in meta["shape"])
    if dtype.kind not in "uif" or any(n < 0 for n in shape) or len(shape) > 4:
        raise BadDocument(f"array {meta['name']!r} has dtype {dtype} and shape {shape}, which no document uses")
    size = dtype.itemsize
    for n in shape:  # Python integers: no overflow from a hostile shape
        size *= n
    if size != len(raw):
        raise BadDocument(f"array {meta['name']!r} claims {size} bytes and has {len(raw)}")
    if hashlib.sha256(raw).hexdigest() != meta["sha256"]:
        raise BadDocument(f"array {meta['name']!r} does not match its sha256")
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


def decode(frames: Sequence[bytes]) -> Document:
    """Turn frames back into a document; raises BadDocument and nothing else on any malformed input."""
    if not frames or len(frames) > MAX_ARRAYS + 1 or len(frames[0]) > MAX_HEADER_BYTES:
        raise BadDocument(f"{len(frames)} frames with a header of {len(frames[0]) if frames else 0} bytes")
    if any(len(f) > MAX_ARRAY_BYTES for f in frames[1:]):
        raise BadDocument(f"an array frame is larger than {MAX_ARRAY_BYTES} bytes")
    try:
        header = json.loads(frames[0])
        fields, arrays = header["document"], header["arrays"]
        if not isinstance(fields, dict) or len(arrays) != len(frames) - 1:
            raise BadDocument("header and number of array frames disagree")
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
        first = error.errors()[0]
        raise BadDocument(f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise BadDocument(f"not a document: {type(error).__name__}: {error}") from error


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


def decode_entry(body: bytes) -> Entry:
    """Undo `encode_entry`; raises BadDocument."""
    parts = unpack(body)
    try:
        envelope = Envelope.model_validate_json(parts[0])
    except (ValidationError, IndexError) as error:
        raise BadDocument(f"not an envelope: {error}") from error
    return Entry(envelope, decode(parts[1:]))


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
