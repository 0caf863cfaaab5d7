"""The processes of a session beside this one: whether all of them run.

A reward belongs to what the animal just saw and did; when a process of the session is killed or stopped in the middle
of a pulse, the session is not what the reward was for any more, and the line goes low (docs/outputs.md).
"""

import os

import psutil

GONE = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD, psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}


class Company:
    """The supervisor and its other children."""

    def __init__(self) -> None:
        self._parent = psutil.Process(os.getppid())
        self._members: list[psutil.Process] = []

    def meet(self) -> None:
        """Look who is there; some ms of work."""
        try:
            others = self._parent.children()
        except psutil.Error:
            others = []
        self._members = [self._parent, *(p for p in others if p.pid != os.getpid() and _runs(p))]

    def missing(self) -> int | None:
        """Return the process id of one that was there at the last `meet` and does not run now, None if all do."""
        return next((p.pid for p in self._members if not _runs(p)), None)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in GONE
    except psutil.Error:
        return False
