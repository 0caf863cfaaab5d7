"""Who runs a session: one supervisor at a time, and which processes it has started.

The supervisor holds `session.lock` in the session's folder for as long as it lives, and writes into it each child that
it starts. Whoever goes on with the session after its death takes the lock, and first ends what is left: a frozen
process cannot see that its supervisor is gone, and would keep the journal or the window.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from rig.supervision.processes import MARK, Child, SessionFailed, runs

NAME = "session.lock"
# Of two readings of when a process was started: the system derives it from the wall clock, which may be set meanwhile.
SAME_START_S = 1.0
LOCK_AT = 1 << 30  # Windows keeps others from reading a byte that is locked: one far behind the text


@dataclass(frozen=True)
class Started:
    """One process as the lock file names it; `created_s` is UTC, s since 1970."""

    name: str
    pid: int
    created_s: float
    mark: str = ""  # what it and all that it starts have in their environment

    def process(self) -> psutil.Process | None:
        """Return the process if it still runs, and is the one that was started and not a later one of its number."""
        with suppress(psutil.Error):
            found = psutil.Process(self.pid)
            if runs(found) and abs(found.create_time() - self.created_s) < SAME_START_S:
                return found
        return None


def _created_s(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:  # it has ended already
        return 0.0


class SessionLock:
    """The lock of a session's folder; whoever has made one holds it until `close`, or death."""

    def __init__(self, folder: Path) -> None:
        """Take the lock. Raises SessionFailed, naming the process that holds it, and OSError."""
        self._path = folder / NAME
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        if not _take(self._fd):
            holder, _ = _read(self._path)
            os.close(self._fd)
            who = "another process" if holder is None else f"process {holder.pid}"
            raise SessionFailed(
                f"{folder} is in use: {who} runs this session\n  cure: end that one first (Ctrl-C in its terminal"
                + (")" if holder is None else f", or kill -TERM {holder.pid})")
            )
        _, self.left = _read(self._path)  # the children of whoever held it before

    def write(self, children: list[tuple[str, Child]]) -> None:
        """Name ourselves and the children that run now."""
        listed = [Started(name, c.process.pid, _created_s(c.process.pid), c.mark) for name, c in children]
        own = Started("supervisor", os.getpid(), _created_s(os.getpid()))
        text = json.dumps({"supervisor": vars(own), "children": [vars(one) for one in listed]}).encode()
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.write(self._fd, text)
        os.ftruncate(self._fd, len(text))  # after the write: whoever is killed in between leaves a whole list

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._fd)


def _take(fd: int) -> bool:
    try:
        if os.name == "nt":  # pragma: no cover - tested on Linux only
            import msvcrt

            os.lseek(fd, LOCK_AT, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read(path: Path) -> tuple[Started | None, list[Started]]:
    """Return who holds, or held, the lock, and its children; nobody where the file says nothing yet."""
    try:
        said, _ = json.JSONDecoder().raw_decode(path.read_text(encoding="utf-8"))
        return Started(**said["supervisor"]), [Started(**one) for one in said["children"]]
    except (ValueError, KeyError, TypeError):
        return None, []


def still_running(left: list[Started]) -> dict[int, tuple[str, psutil.Process]]:
    """Return, by process id, what still runs of these processes and of whatever they had started."""
    marks = {one.mark: one.name for one in left if one.mark}
    found = {one.pid: (one.name, process) for one in left if (process := one.process()) is not None}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            name = marks.get(process.environ().get(MARK, ""))
            if name is not None and process.pid not in found and runs(process):
                found[process.pid] = (f"what {name} had started", process)
    return found
