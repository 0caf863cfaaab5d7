"""When a process that is not ready yet is stuck, and not merely slow: pure, and the words that say so.

A start has no loop that could count (`rig.supervision.liveness`): most of it is the import of libraries. What tells a
process that waits for ever from one that a busy computer gives little time is the processor time it gets: the first
gets none. Used for the children of a session (`post`) and of the benches (`processes.wait_ready`).
"""

import os
from pathlib import Path

import psutil

from rig.supervision.liveness import Sign, Stillness

READY_S = 30.0
"""How long a process that starts may do nothing at all, s."""
WORK_S = 0.3
"""So much processor time within `READY_S` is work, s: one that waits in a loop of 20 looks a second takes less, and one
with the lowest share of two cores that ten others want still gets twice that."""
SILENT_START_S = 180.0
"""How long a start may last that computes and gives no other sign of life, s: a loop without end computes as well."""
LONGEST_START_S = 600.0
"""How long one may last whatever its signs of life, s: reading a long log takes a while."""
CROWDED = 1.5
"""Programs that want to compute, per core, from which on a computer is too busy for a session."""


class Starting:
    """One process that was just started. Pure: time, counter and processor time are arguments."""

    def __init__(self, now_ns: int, sign: Sign, used_s: float = 0.0) -> None:
        """Begin at `now_ns` (host clock) with the process's counter and the processor time it has used, s."""
        self._began_ns = now_ns
        self._heard = Stillness(now_ns, sign)
        self._moved = Stillness(now_ns, _with_work(sign, used_s))

    def stuck(self, now_ns: int, sign: Sign, used_s: float) -> bool:
        """Take counter and processor time at `now_ns`; return whether there is nothing to wait for any more."""
        still_ns = self._moved.look(now_ns, _with_work(sign, used_s))
        silent_ns = self._heard.look(now_ns, sign)
        return (
            still_ns > READY_S * 1e9
            or silent_ns > SILENT_START_S * 1e9
            or now_ns - self._began_ns > LONGEST_START_S * 1e9
        )

    def why(self, now_ns: int, used_s: float) -> str:
        """Return in words how long it has had, and what it made of it."""
        took_s = (now_ns - self._began_ns) * 1e-9
        return f"was not ready after {took_s:.0f} s, in which it got {used_s:.1f} s of processor time"


def _with_work(sign: Sign, used_s: float) -> Sign:
    return Sign(sign.count + int(used_s / WORK_S))


def busy(load: float, cores: int) -> str:
    """Say that a computer is too busy, where on average `load` programs want to compute on `cores`; "" if not."""
    return f"this computer is busy: load {load:.1f} on {cores} cores" if load > CROWDED * cores else ""


def busy_now() -> str:
    """Say that this computer has been too busy for the last minute; "" if not."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return busy(psutil.getloadavg()[0], cores)


def cure(log: Path, crowd: str) -> str:
    """Return what helps a process that is not ready: where `crowd` (`busy`) says so, a computer with less to do."""
    return f"{crowd}; end other programs and start again. If that does not help, see {log}" if crowd else f"see {log}"
