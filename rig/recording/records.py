"""The records of a journal in bytes: how one is written, and how whole ones are found in what a file holds.

Pure; the file is `rig.recording.journal`'s, the format is in docs/journal.md.
"""

import struct
import zlib
from collections.abc import Iterator

MARKER = b"\xf5SLJ"
HEAD = struct.Struct("<4sIQI")
MAX_BODY_BYTES = 1 << 30
SMALLEST = 100  # bytes; no record of an entry is as small


def crc_of(seq: int, body: bytes) -> int:
    """Return the checksum of a record: over sequence number and body."""
    return zlib.crc32(body, zlib.crc32(seq.to_bytes(8, "little")))


def record(seq: int, body: bytes) -> bytes:
    """Return the bytes of one record."""
    return HEAD.pack(MARKER, len(body), seq, crc_of(seq, body)) + body


def record_at(data: bytes | bytearray, at: int) -> tuple[int, int, bytes | None]:
    """Return (end, seq, body) of the record whose marker stands at `at`.

    Body None: it is not whole; unfinished where its end lies beyond the data, else damaged.
    """
    body_at = at + HEAD.size
    if body_at > len(data):
        return body_at, 0, None
    _, length, seq, crc = HEAD.unpack_from(data, at)
    if length > MAX_BODY_BYTES:
        return at, seq, None
    end = body_at + length
    body = bytes(data[body_at:end]) if end <= len(data) else None
    return end, seq, body if body is not None and crc_of(seq, body) == crc else None


def whole_from(data: bytes | bytearray, at: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (end, seq, body) of every whole record that begins at or after `at`."""
    while (at := data.find(MARKER, at)) >= 0:
        end, seq, body = record_at(data, at)
        if body is not None:
            yield end, seq, body
        at = at + 1 if body is None else end


def scan(data: bytes | bytearray, at: int, final: bool) -> tuple[int, int, bytes | None, int]:
    """Find the next whole record at or after `at`.

    Returns (position to go on from, seq, body or None, bytes skipped as damaged). With `final` False an incomplete
    record at the end is left for later; with True it counts as damaged.
    """
    skipped = 0
    while True:
        found = data.find(MARKER, at)
        if found < 0:
            keep = len(data) - (0 if final else min(len(data) - at, len(MARKER) - 1))
            return keep, 0, None, skipped + keep - at
        skipped += found - at
        at = found
        end, seq, body = record_at(data, at)
        if body is not None:
            return end, seq, body, skipped
        # Where a whole record stands later, this one is damaged, not unfinished.
        if end > len(data) and not final and next(whole_from(data, at + 1), None) is None:
            return at, 0, None, skipped
        at += 1
        skipped += 1
