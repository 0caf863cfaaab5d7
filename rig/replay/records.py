"""A session's journal for replay: read once, in order, one record at a time, each decoded only where it is needed.

Used by everything in `rig.replay`. It never holds more than one stretch of the file, and never writes.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from rig.config.session import Config
from rig.encoding import BadDocument, decode_entry, encode, kind_in, unpack
from rig.messages import Entry, Envelope, SessionStart, kind_of
from rig.recording.journal import JournalReader


class ReplayError(ValueError):
    """Nothing can be replayed from this log; the message names the place and the cure."""


class Record:
    """One journalled document."""

    def __init__(self, seq: int, body: bytes) -> None:
        """Take a record whose crc was found right."""
        self.seq, self.body = seq, body
        self.kind = kind_in(body)

    @classmethod
    def of(cls, entry: Entry) -> "Record":
        """Return the record of an entry that is in memory."""
        one = cls.__new__(cls)
        one.seq, one.body, one.kind = entry.envelope.seq, b"", kind_of(entry.document)
        one.__dict__.update(entry=entry, envelope=entry.envelope, header=encode(entry.document)[0])
        return one

    @cached_property
    def entry(self) -> Entry:
        """Decode it; raises BadDocument."""
        return decode_entry(self.body)

    @cached_property
    def envelope(self) -> Envelope:
        """Decode the envelope alone; raises BadDocument."""
        if "entry" in self.__dict__:
            return self.entry.envelope
        try:
            return Envelope.model_validate_json(unpack(self.body)[0])
        except (ValueError, IndexError) as error:
            raise BadDocument(f"not an envelope: {error}") from error

    @cached_property
    def header(self) -> bytes:
        """Return the document's JSON header, which names the sha256 of each of its arrays."""
        return unpack(self.body)[1]


class Log:
    """Iterates over the records of a journal at rest; afterwards it knows what is wrong with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = 0
        self.last_seq = 0
        self.last_kind = ""
        self.damaged_bytes = 0
        self.unreadable = 0  # whole records that no decoder of this program can read; whoever met one counts it here

    def __iter__(self) -> Iterator[Record]:
        """Yield all records, in order."""
        reader = JournalReader(self.path)
        try:
            while True:
                for seq, _, body in reader.records(final=True):
                    record = Record(seq, body)
                    self.records, self.last_seq, self.last_kind = self.records + 1, seq, record.kind
                    yield record
                if reader.at_end:
                    return
        finally:
            self.damaged_bytes = reader.damaged_bytes
            reader.close()

    @property
    def closed(self) -> bool:
        """Whether the session was closed in order."""
        return self.last_kind == "session_stop"

    def incomplete(self) -> list[str]:
        """Return what is missing from the log, in words; nothing for one that was closed in order."""
        out = []
        if self.last_seq > self.records:
            out.append(f"{self.last_seq - self.records} entries are missing or damaged")
        if self.damaged_bytes or self.unreadable:
            out.append("part of the file is damaged")
        if not self.closed:
            out.append("the session was not closed in order: the log ends without SessionStop")
        return out


def session_start(path: Path) -> SessionStart:
    """Return the document with which a journal begins; raises ReplayError where it does not."""
    for record in Log(path):
        return start_of(record)
    raise ReplayError(f"{path} holds no record; there is nothing to replay")


def start_of(first: Record) -> SessionStart:
    """Return the SessionStart that is the first record; raises ReplayError where it is another document."""
    try:
        document = first.entry.document
    except BadDocument as error:
        raise ReplayError(f"the first record of the journal cannot be read: {error}") from error
    if not isinstance(document, SessionStart):
        raise ReplayError("the journal does not begin with a SessionStart; nothing can be replayed from it")
    return document


def config_of(start: SessionStart) -> Config:
    """Return the config of a session; raises ReplayError where it is none of this version's."""
    try:
        return Config.model_validate(start.config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ReplayError(
            f"the session's config is not one of this version of the program ({where}: {first['msg']}); "
            f"replay it with the one that recorded it, commit {start.commit or 'unknown'}"
        ) from error
