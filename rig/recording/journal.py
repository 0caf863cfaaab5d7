"""The journal: one append-only file of records, the truth of a session. Format: docs/journal.md.

A record is, little-endian: marker (4 bytes), body length (u32), sequence number (u64), crc32 over sequence number and
body (u32), body. Record 0 is the header (JSON: format, version, session). Only the recorder writes; anybody reads,
also while it grows. A flipped byte costs one record; a torn tail is cut when the writer opens the file again.
"""

import errno
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rig.encoding import BadDocument, decode_entry, kind_in
from rig.messages import Entry
from rig.recording.records import HEAD, MARKER, MAX_BODY_BYTES, SMALLEST, crc_of, record, scan, whole_from

_CHUNK = 4 << 20
_TAIL = 1 << 20
FORMAT = {"format": "stimloop journal", "version": 1}
# What a disk says that has no room: full, quota used up, largest file size reached.
NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


class JournalError(OSError):
    """The journal cannot be opened or written; the message names the file and the cure."""


class JournalFull(JournalError):
    """There was no room for a record of `size` bytes; nothing of it is in the file, and it can be tried again."""

    size = 0


class DamagedRecord(JournalError):
    """The record at a place where there was a good one does not hold its crc any more."""


class JournalReader:
    """Reads entries in order, once each, also from a file that still grows."""

    def __init__(self, path: Path, kinds: frozenset[str] | None = None) -> None:
        """Open the file; it must exist. Only documents of `kinds` are decoded and returned (None: all)."""
        self._kinds = kinds
        self._file = open(path, "rb")
        self._data = bytearray()
        self._at = 0
        self._read_end = 0
        self._at_end = False
        self.path = path
        self.header: dict[str, object] | None = None
        self.last_seq = 0
        self.damaged_bytes = 0
        self.bad_records = 0
        self.valid_end = 0

    @property
    def at_end(self) -> bool:
        """Whether the last look reached the end of the file."""
        return self._at_end

    def records(self, final: bool = False) -> "list[tuple[int, int, bytes]]":
        """Return (seq, offset of the record, body) of all whole records in the next stretch of the file."""
        if self._at:
            del self._data[: self._at]
            self._at = 0
        if self._at_end:
            self._read_again()
        chunk = self._file.read(_CHUNK)
        self._data += chunk
        self._read_end += len(chunk)
        out = []
        at_end = self._at_end = len(chunk) < _CHUNK
        while True:
            self._at, seq, body, skipped = scan(self._data, self._at, final and at_end)
            self.damaged_bytes += skipped
            if body is None:
                break
            size = HEAD.size + len(body)
            if seq > self.last_seq + 1:
                if not at_end and len(self._data) - self._at < _CHUNK:  # first see what follows it
                    self._at -= size
                    break
                if not self._follows(seq):
                    self.damaged_bytes += size
                    continue
            end = self._read_end - len(self._data) + self._at
            self.valid_end = end
            if seq == 0:
                self.header = json.loads(body)
            elif seq > self.last_seq:  # a stale copy of an older record is no record
                self.last_seq = seq
                out.append((seq, end - size, body))
        return out

    def _follows(self, seq: int) -> bool:
        """Whether a record that leaves numbers out can be what follows in this file, or is a copy inside of another.

        Damage that cost the records before it leaves their room; and what it leaves out does not come after it.
        """
        if seq * SMALLEST > self._read_end:
            return False
        return not any(self.last_seq < later < seq for _, later, _ in whole_from(self._data, self._at))

    def _read_again(self) -> None:
        """Go back to the end of what was whole.

        The writer takes a record back that found no room, and a restarted one cuts a torn tail: other bytes may stand
        by now where a record was half read.
        """
        whole = self._read_end - len(self._data)
        if os.fstat(self._file.fileno()).st_size < whole:  # cut before that: its last record had been damaged
            whole = self.valid_end
        if whole != self._read_end:
            self._read_end = whole
            self._data.clear()
            self._file.seek(whole)

    def read(self, final: bool = False) -> list[Entry]:
        """Return the next entries; [] when there is nothing new (with a large file: call until it returns [])."""
        while True:
            entries = []
            for _seq, _offset, body in self.records(final):
                if self._kinds is not None and kind_in(body) not in self._kinds:
                    continue
                try:
                    entries.append(decode_entry(body))
                except BadDocument:  # the crc holds, so this was written so: counted, shown by `stimloop journal`
                    self.bad_records += 1
            if entries or self._at_end:
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


def last_whole_seq(path: Path) -> int:
    """Return the sequence number of the last whole record, 0 if there is none; reads as little of the end as it can."""
    size, tail = path.stat().st_size, _TAIL
    with open(path, "rb") as file:
        while True:
            file.seek(max(size - tail, 0))
            last = max((seq for _, seq, _ in whole_from(file.read(), 0) if seq * SMALLEST <= size), default=0)
            if last or tail >= size:
                return last
            tail *= 8  # the last record is longer than that


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


def in_use(path: Path) -> bool:
    """Whether another process writes this journal now."""
    fd = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        _lock(fd, path)
    except JournalError:
        return True
    finally:
        os.close(fd)
    return False


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
            cure = "choose a folder that can be written" if path.parent.is_dir() else "the session's folder is gone"
            raise JournalError(f"{path} cannot be opened: {error.strerror}; {cure}") from error
        with ExitStack() as unopened:
            unopened.callback(os.close, self._fd)
            _lock(self._fd, path)
            self.last_seq = 0
            self._end = 0
            self._recover(session, on_record)
            unopened.pop_all()

    def _recover(self, session: str, on_record: Callable[[int, int, bytes], None] | None) -> None:
        reader = JournalReader(self.path)
        try:
            while True:  # to the end of the file: a record may be larger than what is read at once
                for seq, offset, body in reader.records(final=True):
                    self.last_seq = seq
                    if on_record is not None:
                        on_record(seq, offset, body)
                if reader.at_end:
                    break
        finally:
            reader.close()
        size = os.fstat(self._fd).st_size
        self.cut_bytes = size - reader.valid_end
        self.damaged_bytes = reader.damaged_bytes - self.cut_bytes  # before the last whole record
        if size and reader.valid_end == 0 and os.read(self._fd, len(MARKER)) != MARKER[:size]:
            raise JournalError(f"{self.path} is not a journal of stimloop; move it away or choose another folder")
        if reader.header is not None and {k: reader.header.get(k) for k in FORMAT} != FORMAT:
            raise JournalError(f"{self.path} has format {reader.header}, not {FORMAT}; use a newer stimloop")
        if self.cut_bytes:
            self._take_back(reader.valid_end)
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
                self._take_back(start)
                if error.errno in NO_ROOM:
                    full = JournalFull(f"{self.path}: {error.strerror}; free space on this disk")
                    full.size = len(data)
                    raise full from error
                raise JournalError(f"{self.path}: {error.strerror}; look after this disk") from error
            self._end += n
            view = view[n:]

    def _take_back(self, end: int) -> None:
        """Cut the file at `end`. Raises JournalError."""
        try:
            os.ftruncate(self._fd, end)
        except OSError as error:
            raise JournalError(
                f"{self.path}: {error.strerror}, and what was being written could not be taken back; look after this "
                "disk, then go on with stimloop run --resume, which cuts it off"
            ) from error
        self._end = end

    def append(self, seq: int, body: bytes) -> int:
        """Write one record and return its offset; after return it survives the kill of any process.

        Raises JournalFull where there is no room, JournalError where the disk fails; then the file is as before.
        """
        offset = self._end
        self._write(record(seq, body))
        self.last_seq = seq
        return offset

    def has_room(self, size: int) -> bool:
        """Whether a record of `size` bytes can be written: by writing so much, and taking it back."""
        # One byte short of the record that its head announces: a reader that looks meanwhile waits for the rest.
        probe = HEAD.pack(MARKER, size, 0, 0) + bytes(size - 1)
        try:
            self._write(probe)
        except JournalFull:
            return False
        self._take_back(self._end - len(probe))
        return True

    def damage(self, entries: int) -> str:
        """Return in words what of the file could not be read when it was opened, "" if all could.

        `entries` is the number of entries that are missing or that cannot be read.
        """
        words = []
        if self.cut_bytes:
            words.append(f"its last record was torn ({self.cut_bytes} bytes), as a kill leaves it: cut off")
        if entries or self.damaged_bytes:
            words.append(f"{entries} entries cannot be read ({self.damaged_bytes} damaged bytes): look after this disk")
        return "; ".join(words)

    def read_body(self, offset: int) -> bytes:
        """Return the body of the record at `offset`. Raises DamagedRecord if it is not whole any more."""
        os.lseek(self._fd, offset, os.SEEK_SET)  # writes append, so the read position is free to move
        marker, length, seq, crc = HEAD.unpack(self._read(HEAD.size))
        if marker == MARKER and length <= MAX_BODY_BYTES and offset + HEAD.size + length <= self._end:
            body = self._read(length)
            if crc_of(seq, body) == crc:
                return body
        raise DamagedRecord(f"{self.path}: the record at byte {offset} is damaged; look after this disk")

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._end

    def in_place(self) -> bool:
        """Whether the file that is written is still the one under its name."""
        try:
            there, here = os.stat(self.path), os.fstat(self._fd)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    @property
    def deleted(self) -> bool:
        """Whether the file has no name any more: it ends with this process."""
        return os.fstat(self._fd).st_nlink == 0

    def rescue(self, path: Path) -> int:
        """Copy what was written to a new file at `path`, also when the file itself was deleted; return its bytes."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        with open(path, "xb") as copy:
            while part := os.read(self._fd, _CHUNK):
                copy.write(part)
            copy.flush()
            os.fsync(copy.fileno())
            return copy.tell()

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
        """Ask the disk to keep what was written (against power loss). Raises JournalError."""
        try:
            os.fdatasync(self._fd) if hasattr(os, "fdatasync") else os.fsync(self._fd)
        except OSError as error:
            why = f"{self.path}: the disk did not take it: {error.strerror}; look after this disk"
            raise JournalError(why) from error

    def close(self) -> None:
        """Sync and close; releases the lock also where the sync fails, with JournalError."""
        try:
            self.sync()
        finally:
            os.close(self._fd)
