"""The disk under a session: how much room is left, whether the journal is in place, and that it gets onto the disk.

Used by the recorder and its process; writes nothing into the journal itself.
"""

import shutil
import threading
from pathlib import Path

from rig.clock import Clock
from rig.messages import Document, Fault, Pause
from rig.recording.journal import JournalError, JournalWriter

LOOK_EVERY_NS = 1_000_000_000
SYNC_EVERY_S = 1.0
LIFTED_AT = 1.1  # times the reserve: a pause is not lifted and set again by every file that comes and goes
CURE = "free space on this disk; the session goes on by itself"


def free_bytes(folder: Path) -> int:
    """Return the free space on the disk of `folder`, as an ordinary user may have it, bytes."""
    return shutil.disk_usage(folder).free


class Reserve:
    """Pauses the session while the disk has less room than the config wants kept; pure, fed with what is free."""

    def __init__(self, reserve_bytes: int, folder: Path) -> None:
        """Keep `reserve_bytes` free on the disk of the session's `folder`."""
        self._bytes, self._folder = reserve_bytes, folder
        self._paused_since_ns: int | None = None

    def take(self, pause: Pause) -> None:
        """Take what the recorder itself has journalled, in this start of it or an earlier one."""
        self._paused_since_ns = pause.since_host_ns if pause.paused else None

    def judge(self, free: int, now_host_ns: int) -> list[Document]:
        """Return what is to be journalled now that `free` bytes are free."""
        words = f"{free / 1e9:.3g} GB free on the disk of {self._folder}, reserve {self._bytes / 1e9:.3g} GB"
        if self._paused_since_ns is None and free < self._bytes:
            done = "the session is paused: nothing more is shown; data are still journalled"
            return [
                Fault(what="disk nearly full", detail=f"{words}; {CURE}", done=done, since_host_ns=now_host_ns),
                Pause(paused=True, reason=f"{words}; {CURE}", since_host_ns=now_host_ns),
            ]
        if self._paused_since_ns is not None and free >= LIFTED_AT * self._bytes:
            return [Pause(paused=False, reason=words, since_host_ns=self._paused_since_ns)]
        return []


class Disk:
    """Once a second, off the loop, the journal goes to the disk: a power loss then costs one second at most."""

    def __init__(self, journal: JournalWriter, clock: Clock) -> None:
        """Start the thread that pushes, until `end`."""
        self._journal, self._clock, self._ended = journal, clock, threading.Event()
        self._look_ns = clock.now_ns()
        self._error: JournalError | None = None
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ended.wait(SYNC_EVERY_S):
                self._journal.sync()
        except JournalError as error:
            self._error = error

    def look(self) -> int | None:
        """Return the free space, bytes; None where it was looked at within the last second.

        Raises JournalError where the journal cannot be kept any more: it must not look as if it were.
        """
        if self._error is not None:
            raise self._error
        now = self._clock.now_ns()
        if now < self._look_ns:
            return None
        self._look_ns = now + LOOK_EVERY_NS
        if not self._journal.in_place():
            raise JournalError(self._gone())
        return free_bytes(self._journal.path.parent)

    def _gone(self) -> str:
        """Return what happened to a journal that is not under its name any more; one that was deleted is copied."""
        path = self._journal.path
        if not self._journal.deleted:
            return (
                f"{path} was moved or replaced while it was recorded; it is whole where it is now: "
                "make session.h5 there with stimloop recover, and leave folders of running sessions alone"
            )
        copy = path.parent.parent / f"{path.parent.name}-rescued" / path.name
        try:
            copy.parent.mkdir(exist_ok=True)
            size = self._journal.rescue(copy)
        except OSError as error:
            return f"{path} was deleted while it was recorded, and no copy could be made in {copy.parent}: {error}"
        return (
            f"{path} was deleted while it was recorded; all {size} bytes were saved as {copy}: "
            f"make session.h5 with stimloop recover {copy.parent}"
        )

    def end(self) -> None:
        """Push no more, and wait for the last push; what is written later, `close` of the journal pushes."""
        self._ended.set()
        self._thread.join(5.0)
