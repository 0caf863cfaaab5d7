"""The process that keeps `session.h5`: it tails the journal and writes what `rig.view.fold` gathers from it.

`python -m rig.view.h5 --folder F` writes F/session.h5.part and renames it to session.h5 at the end; `rebuild` makes the
same file from a journal at rest. The file is a view: it can be deleted, and is made anew from entry 1 after a kill.
It feeds nothing back to the session. While it is being written nobody else can read it: live pages read the journal.

Room on the disk is for the journal first: the view stops writing at half of the session's reserve, and waits.
"""

import argparse
import os
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from rig.clock import Clock, HostClock
from rig.config.reading import ConfigError, load
from rig.config.storage import Storage
from rig.recording.journal import JournalReader, last_whole_seq
from rig.supervision.child import Stop, fail, say, shield
from rig.view.session_file import ROOM_BYTES, NoRoom, SessionFile, last_seq_in

PENDING_BYTES = 32 << 20  # traces that wait for the next write while the view catches up
FLUSH_EVERY_NS = 1_000_000_000
POLL_S = 0.05
LOOK_S = 1.0  # between two looks at a disk that has no room
# After a stop without SessionStop (the recorder died, or is just ending) wait this long for more entries.
LAST_ENTRIES_NS = 1_500_000_000


@dataclass(frozen=True)
class Built:
    """What was found in the journal from which session.h5 was made."""

    path: Path
    entries: int
    last_seq: int
    damaged_bytes: int
    unreadable: int  # whole records that are no entry of this version
    recorders: int  # starts of the recorder: more than one where it died, or the session was resumed
    closed_in_order: bool

    @property
    def missing(self) -> int:
        """Entries that the sequence numbers say there were."""
        return self.last_seq - self.entries


def build(folder: Path, until: int | None = None) -> Path:
    """Make folder/session.h5 from folder/session.journal (whole, torn or damaged) and return its path."""
    return rebuild(folder, until).path


def rebuild(folder: Path, until: int | None = None) -> Built:
    """Make folder/session.h5 from folder/session.journal (whole, torn or damaged) and return what was found there.

    `until` is the last sequence number to take. An older session.h5 is replaced only when the new one is complete.
    Raises NoRoom.
    """
    reader = JournalReader(folder / "session.journal")
    out = SessionFile(folder / "session.h5.rebuild")
    count = 0
    with closing(reader), ExitStack() as unfinished:
        unfinished.callback(out.abandon)
        done = False
        while not done and (entries := reader.read(final=True)):
            for entry in entries:
                if until is not None and entry.envelope.seq > until:
                    done = True
                    break
                out.fold.apply(entry)
                count += 1
            out.write()
        out.close(folder / "session.h5")
        unfinished.pop_all()
    said = out.fold.attributes
    return Built(
        path=folder / "session.h5",
        entries=count,
        last_seq=int(said["last_seq"]),
        damaged_bytes=reader.damaged_bytes,
        unreadable=reader.bad_records,
        recorders=out.fold.recorders,
        closed_in_order=bool(said["closed_in_order"]),
    )


def up_to_date(folder: Path) -> bool:
    """Whether folder/session.h5 can be read and holds all that is in the journal beside it.

    A file without its journal, put elsewhere by its owner, is all there is: nothing could bring it up to date.
    """
    if not (folder / "session.journal").exists():
        return (folder / "session.h5").exists()
    return last_seq_in(folder / "session.h5") >= last_whole_seq(folder / "session.journal")


def brought_up_to_date(folder: Path) -> bool:
    """Make folder/session.h5 where it is absent, unreadable or older than the journal; return whether that was so."""
    if up_to_date(folder):
        return False
    build(folder)
    return True


def follow(folder: Path, stop: Stop, clock: Clock, room_bytes: int = ROOM_BYTES) -> None:
    """Tail the journal into session.h5.part until told to stop, then read to its end and finish the file.

    Waits while less than `room_bytes` are free; raises NoRoom if they still are when told to stop.
    """
    journal = folder / "session.journal"
    while not journal.exists():
        if stop.wait(POLL_S):
            return
    out = _begun(folder / "session.h5.part", stop, room_bytes)
    reader = JournalReader(journal)
    with closing(reader), ExitStack() as unfinished:
        unfinished.callback(out.abandon)
        _tail(out, reader, stop, clock)
        out.close(folder / "session.h5")
        unfinished.pop_all()
    # A recorder that was killed in mid-write cuts its last record while we stand behind it: then entries pass unseen.
    if out.fold.missing_entries or reader.damaged_bytes:
        say(note="the journal was cut or damaged while it was followed: session.h5 is made anew from it")
        build(folder)


def _begun(path: Path, stop: Stop, room_bytes: int) -> SessionFile:
    """Begin the file as soon as there is room for it."""
    stopping = False
    while True:
        try:
            return SessionFile(path, room_bytes)
        except NoRoom:
            if stopping:
                raise
            stopping = stop.wait(LOOK_S)  # and then once more: room may have come just before


def _tail(out: SessionFile, reader: JournalReader, stop: Stop, clock: Clock) -> None:
    flush_due = clock.now_ns() + FLUSH_EVERY_NS
    last_new = look_due = 0
    while True:
        stopping = bool(stop)  # before reading: what was journalled before the stop is then surely read
        if clock.now_ns() >= look_due and not _has_room(out):
            if stopping:
                out.look_for_room()
            look_due = 0
            stop.wait(LOOK_S)  # nothing more is read, so that nothing more must be kept
            continue
        look_due = clock.now_ns() + FLUSH_EVERY_NS
        entries = reader.read()
        for entry in entries:
            out.fold.apply(entry)
            if out.fold.devices.pending_bytes > PENDING_BYTES:
                out.write()
        now = clock.now_ns()
        if now >= flush_due or len(entries) > 1000:  # the second: far behind, bound the memory
            out.write()
            flush_due = now + FLUSH_EVERY_NS
        if entries:
            last_new = now
        elif stopping:
            last_new = last_new or now
            if out.fold.attributes["closed_in_order"] or now - last_new > LAST_ENTRIES_NS:
                return
            clock.sleep_until_ns(now + int(POLL_S * 1e9))
        else:
            stop.wait(POLL_S)


def _has_room(out: SessionFile) -> bool:
    try:
        out.look_for_room()
    except NoRoom:
        return False
    return True


def _room_bytes(folder: Path) -> int:
    """Return what the view must leave free: half of the session's reserve, for the journal."""
    try:
        reserve = load(folder / "config.yaml")[0].storage.reserve_bytes
    except ConfigError:  # a folder that only holds a journal; others say what is wrong with the config
        reserve = Storage().reserve_bytes
    return reserve // 2


def main(arguments: list[str] | None = None) -> int:
    """Run the view process; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m rig.view.h5", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="session folder")
    parser.add_argument("--endpoint", help="taken as from all children and not used: the view reads the journal only")
    folder: Path = parser.parse_args(arguments).folder
    if not folder.is_dir():
        return fail(f"{folder} is not a folder", "give the folder of a session")
    stop = Stop()
    say(ready={"file": str(folder / "session.h5")})
    try:
        follow(folder, stop, HostClock(), _room_bytes(folder))
    except NoRoom as error:
        fail(f"view: {error}", "free space on this disk, then stimloop recover; the journal holds everything")
        os._exit(2)  # HDF5 may hold a file that it cannot close
    except OSError as error:
        return fail(
            f"session.h5 cannot be written in {folder}: {error}",
            "free space on this disk; the journal is not touched, and stimloop recover makes the file from it",
        )
    return 0


if __name__ == "__main__":
    shield()
    sys.exit(main())
