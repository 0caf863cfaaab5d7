"""The processes of a session beside this one: whether all of them run.

A reward belongs to what the animal just saw and did; when a process of the session is killed or stopped in the middle
of a pulse, the session is not what the reward was for any more, and the line goes low (docs/outputs.md).
"""

import os
from contextlib import suppress

import psutil

NEEDED = {"rig.recording.recorder", "rig.display.session", "rig.display.guest", "rig.sources"}
GONE = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD, psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}


class Company:
    """The supervisor and everything below it but this process and what it started."""

    def __init__(self) -> None:
        self._parent = psutil.Process(os.getppid())
        self._members: list[psutil.Process] = []
        self._excused: set[int] = set()
        self._parts: set[tuple[str, ...]] = set()  # of the needed ones, all that were ever met

    def meet(self) -> bool:
        """Look who is there, some ms of work; return whether nobody is away without whom no reward is due.

        One that was killed is away until its successor is there.
        """
        try:
            own = {os.getpid(), *(p.pid for p in psutil.Process().children(recursive=True))}
            others = [p for p in self._parent.children(recursive=True) if p.pid not in own | self._excused]
        except psutil.Error:
            others = []
        self._members = [self._parent, *filter(_runs, others)]
        here = {part for p in self._members[1:] if (part := _part(p))}
        self._parts |= here
        return here >= self._parts

    def excuse(self, pid: int) -> None:
        """Do not miss this one from now on: it ends in order."""
        self._excused.add(pid)
        with suppress(psutil.Error):
            self._parts.discard(_part(psutil.Process(pid)))
        self._members = [p for p in self._members if p.pid != pid]

    def missing(self) -> int | None:
        """Return the process id of one that was there at the last `meet` and does not run now, None if all do."""
        return next((p.pid for p in self._members if not _runs(p)), None)


def _part(process: psutil.Process) -> tuple[str, ...]:
    """Return module and name of a needed process as it was started, () for any other."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return ()
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    name = words[words.index("--name") + 1] if "--name" in words[:-1] else ""
    return (module, name) if module in NEEDED else ()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in GONE
    except psutil.Error:
        return False
