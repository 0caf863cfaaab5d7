"""The journal: one append-only file of records, the truth of a session. Format: docs/journal.md.

A record is, little-endian: marker (4 bytes), body length (u32), sequence number (u64), crc32 over sequence number and
body (u32), body. Record 0 is the header (JSON: format, version, session). Only the recorder writes; anybody reads,
also while it grows. A flipped byte costs one record; a torn tail is cut when the writer opens the file again.
"""

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from rig.encoding import BadDocument, decode_entry, kind_in
from rig.messages import (
    Entry,
)

MARKER = b"\xf5SLJ"
_HEAD = struct.Struct("<4sIQI")
MAX_BODY_BYTES = 1 << 30
_CHUNK = 4 << 20
FORMAT = {"format": "stimloop journal", "version": 1}


class JournalError(OSError):
    """The journal cannot be opened or written; the message names the file and the cure."""


def record(seq: int, body: bytes) -> bytes:
    """Return the bytes of one record."""
    crc = zlib.crc32(body, zlib.crc32(seq.to_bytes(8, "little")))
    return _HEAD.pack(MARKER, len(body), seq, crc) + body


def scan(data: bytes | bytearray, at: int, final: bool) -> tuple[int, int, bytes | None, int]:
    """Find the next valid record at or after `at`.

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
        if at + _HEAD.size <= len(data):
            _, length, seq, crc = _HEAD.unpack_from(data, at)
            end = at + _HEAD.size + length
            if length <= MAX_BODY_BYTES and end <= len(data):
                body = bytes(data[at + _HEAD.size : end])
                if zlib.crc32(body, zlib.crc32(seq.to_bytes(8, "little"))) == crc:
                    return end, seq, body, skipped
            elif length <= MAX_BODY_BYTES and not final and not _valid_later(data, at + 1):
                return at, 0, None, skipped  # a record still being written
        elif not final:
            return at, 0, None, skipped
        at += 1
        skipped += 1


def _valid_later(data: bytes | bytearray, at: int) -> bool:
    """Whether a whole valid record starts after `at`: then what stands before it is damaged, not unfinished."""
    while (at := data.find(MARKER, at)) >= 0:
        if at + _HEAD.size <= len(data):
            _, length, seq, crc = _HEAD.unpack_from(data, at)
            body = data[at + _HEAD.size : at + _HEAD.size + length]
            if len(body) == length and zlib.crc32(body, zlib.crc32(seq.to_bytes(8, "little"))) == crc:
                return True
        at += 1
    return False


class JournalReader:
    """Reads entries in order, once each, also from a file that still grows."""

    def __init__(self, path: Path, kinds: frozenset[str] | None = None) -> None:
        """Open the file; it must exist. Only documents of `kinds` are decoded and returned (None: all)."""
        self._kinds = kinds
        self._file = open(path, "rb")
        self._data = bytearray()
        self._at = 0
        self._read_end = 0
        self.path = path
        self.header: dict[str, object] | None = None
        self.last_seq = 0
        self.damaged_bytes = 0
        self.bad_records = 0
        self.valid_end = 0

    @property
    def read_bytes(self) -> int:
        """How much of the file was read so far."""
        return self._read_end

    def records(self, final: bool = False) -> "list[tuple[int, int, bytes]]":
        """Return (seq, offset of the record, body) of all whole records in the next stretch of the file."""
        if self._at:
            del self._data[: self._at]
            self._at = 0
        chunk = self._file.read(_CHUNK)
        self._data += chunk
        self._read_end += len(chunk)
        out = []
        at_end = len(chunk) < _CHUNK
        while True:
            self._at, seq, body, skipped = scan(self._data, self._at, final and at_end)
            self.damaged_bytes += skipped
            if body is None:
                break
            end = self._read_end - len(self._data) + self._at
            self.valid_end = end
            if seq == 0:
                self.header = json.loads(body)
            elif seq > self.last_seq:  # a stale copy of an older record is no record
                self.last_seq = seq
                out.append((seq, end - len(body) - _HEAD.size, body))
        return out

    def read(self, final: bool = False) -> list[Entry]:
        """Return the next entries; [] when there is nothing new (with a large file: call until it returns [])."""
        while True:
            before = self._read_end
            entries = []
            for _seq, _offset, body in self.records(final):
                if self._kinds is not None and kind_in(body) not in self._kinds:
                    continue
                try:
                    entries.append(decode_entry(body))
                except BadDocument:  # the crc holds, so this was written so: counted, shown by `stimloop journal`
                    self.bad_records += 1
            if entries or self._read_end == before:
                return entries

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_all(path: Path, kinds: frozenset[str] | None = None) -> list[Entry]:
    """Return all entries of a finished or torn journal, or only those of `kinds`."""
    reader = JournalReader(path, kinds)
    try:
        entries: list[Entry] = []
        while new := reader.read(final=True):
            entries += new
        return entries
    finally:
        reader.close()


def _lock(fd: int, path: Path) -> None:
    """Take the exclusive lock of the session; raises JournalError if another process has it."""
    try:
        if os.name == "nt":  # pragma: no cover - tested on Linux only
            import msvcrt

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise JournalError(
            f"{path} is in use by another process; end the other session first, or give this one another name"
        ) from error


class JournalWriter:
    """Appends records; opens an existing file by cutting it after its last valid record."""

    def __init__(self, path: Path, session: str, on_record: Callable[[int, int, bytes], None] | None = None) -> None:
        """Open or make the file, take its lock, and hand every record that is already there to `on_record`.

        `on_record(seq, offset, body)` lets the recorder rebuild its state. Raises JournalError.
        """
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        except OSError as error:
            raise JournalError(f"{path} cannot be opened: {error.strerror}; choose another folder") from error
        try:
            _lock(self._fd, path)
            self.last_seq = 0
            self._end = 0
            self._recover(session, on_record)
        except BaseException:
            os.close(self._fd)
            raise

    def _recover(self, session: str, on_record: Callable[[int, int, bytes], None] | None) -> None:
        reader = JournalReader(self.path)
        try:
            while True:  # to the end of the file: a record may be larger than what is read at once
                before = reader.read_bytes
                for seq, offset, body in reader.records(final=True):
                    self.last_seq = seq
                    if on_record is not None:
                        on_record(seq, offset, body)
                if reader.read_bytes == before:
                    break
        finally:
            reader.close()
        size = os.fstat(self._fd).st_size
        self.cut_bytes = size - reader.valid_end
        if size and reader.valid_end == 0 and os.read(self._fd, len(MARKER)) != MARKER[:size]:
            raise JournalError(f"{self.path} is not a journal of stimloop; move it away or choose another folder")
        if reader.header is not None and {k: reader.header.get(k) for k in FORMAT} != FORMAT:
            raise JournalError(f"{self.path} has format {reader.header}, not {FORMAT}; use a newer stimloop")
        if self.cut_bytes:
            os.ftruncate(self._fd, reader.valid_end)
        self._end = reader.valid_end
        if reader.valid_end == 0:
            self._write(record(0, json.dumps({**FORMAT, "session": session}).encode()))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        start = self._end
        while view:  # a write may be short, above all on a disk that is nearly full
            try:
                n = os.write(self._fd, view)
            except OSError as error:
                os.ftruncate(self._fd, start)
                self._end = start
                raise JournalError(f"{self.path}: {error.strerror}; free space on this disk") from error
            self._end += n
            view = view[n:]

    def append(self, seq: int, body: bytes) -> int:
        """Write one record and return its offset; after return it survives the kill of any process."""
        offset = self._end
        self._write(record(seq, body))
        self.last_seq = seq
        return offset

    def read_body(self, offset: int) -> bytes:
        """Return the body of the record at `offset`."""
        os.lseek(self._fd, offset, os.SEEK_SET)  # writes append, so the read position is free to move
        _, length, _, _ = _HEAD.unpack(self._read(_HEAD.size))
        return self._read(length)

    def _read(self, size: int) -> bytes:
        parts = []
        while size > 0:
            part = os.read(self._fd, size)
            if not part:
                raise JournalError(f"{self.path} became shorter while the session ran; nobody else may write to it")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def sync(self) -> None:
        """Ask the disk to keep what was written (against power loss)."""
        os.fdatasync(self._fd) if hasattr(os, "fdatasync") else os.fsync(self._fd)

    def close(self) -> None:
        """Sync and close; releases the lock."""
        self.sync()
        os.close(self._fd)
