"""Clocks. The only module that reads the time; everything else takes a clock as an argument.

The one clock of a session is the host's monotonic clock in ns (`time.perf_counter_ns`; CLOCK_MONOTONIC on Linux,
equal to LSL's local_clock there). Clock maps live in `rig.clocks.clockmap`.

In a replay over the wire the processes of a session run as they are and only their host clock is turned back to the
recorded session, and perhaps faster: a page of memory that all of them map says how (`ReplayTime`).
"""

import mmap
import os
import struct
import time
from functools import cache
from pathlib import Path
from typing import Protocol, Self


class Clock(Protocol):
    """What the loop needs of time."""

    def now_ns(self) -> int:
        """Return host monotonic time, ns."""
        ...

    def utc_ns(self) -> int:
        """Return UTC, ns since 1970; for people and for tying boots together, never for intervals."""
        ...

    def sleep_until_ns(self, due_ns: int) -> None:
        """Return when `now_ns()` has reached `due_ns`."""
        ...


SPIN_NS = 1_500_000


# Names the file of a ReplayTime, and the process of the replay: "PID:PATH", set for the children of a replay only.
REPLAY_VARIABLE = "STIMLOOP_REPLAY_CLOCK"
_PAGE = struct.Struct("<qqqd")  # number of the setting (odd while it is written), real ns, replayed ns, speed
_REPLAY_NAP_S = 0.002  # the clock of a replay may be held or set meanwhile


class ReplayTime:
    """The host clock of a recorded session, running again: `speed` times as fast as the real one, or held (0).

    One process sets it, all map it. It never goes back.
    """

    def __init__(self, path: Path) -> None:
        """Map the file that the replay has made. Raises OSError, and ValueError where it is no such page."""
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _PAGE.size)

    @classmethod
    def make(cls, path: Path) -> Self:
        """Make the file, held at 0, and map it; for the one process that sets it."""
        path.write_bytes(_PAGE.pack(0, time.perf_counter_ns(), 0, 0.0))
        return cls(path)

    @staticmethod
    def environment(path: Path) -> dict[str, str]:
        """Return what children of this process need to have the file's time for their host clock."""
        return {REPLAY_VARIABLE: f"{os.getpid()}:{path}"}

    def _setting(self) -> tuple[int, int, int, float]:
        while True:
            number, real_ns, then_ns, speed = _PAGE.unpack(self._page[:])
            # A setting that is being written has an odd number; one that was written meanwhile, another number.
            if number % 2 == 0 and _PAGE.unpack(self._page[:])[0] == number:
                return number, real_ns, then_ns, speed

    def now_ns(self) -> int:
        """Return the replayed host time, ns."""
        _, real_ns, then_ns, speed = self._setting()
        return then_ns + int((time.perf_counter_ns() - real_ns) * speed) if speed else then_ns

    def utc_ns(self) -> int:
        """Return UTC, ns: the real one, of now."""
        return time.time_ns()

    def set(self, then_ns: int, speed: float) -> None:
        """Go on from `then_ns`, or from now if that is later, at `speed`; for the one process that sets it."""
        number = self._setting()[0]
        then_ns = max(then_ns, self.now_ns())
        self._page[:] = _PAGE.pack(number + 1, 0, 0, 0.0)
        self._page[:] = _PAGE.pack(number + 2, time.perf_counter_ns(), then_ns, speed)

    def sleep_until_ns(self, due_ns: int) -> None:
        """Return when the replayed time has reached `due_ns`."""
        while (rest_ns := due_ns - self.now_ns()) > 0:
            speed = self._setting()[3]
            time.sleep(min(rest_ns * 1e-9 / speed, _REPLAY_NAP_S) if speed else _REPLAY_NAP_S)

    def close(self) -> None:
        """Unmap the page."""
        self._page.close()


class StrayReplayClock(RuntimeError):
    """The environment asks for a replay's clock, and this process was not started by that replay."""


@cache
def replayed() -> ReplayTime | None:
    """Return the time that this process, as one of a replay, has for its host clock; None in a live session.

    Raises StrayReplayClock where the environment says so but no such replay is among the processes that started this
    one: a variable that was left over would give a live session the time of another one.
    """
    given = os.environ.get(REPLAY_VARIABLE)
    if given is None:
        return None
    import psutil  # in a replay only

    number, _, path = given.partition(":")
    try:
        if number in {str(p.pid) for p in psutil.Process().parents()}:
            return ReplayTime(Path(path))
        why = "no replay has started this process"
    except (OSError, ValueError, psutil.Error) as error:
        why = f"{type(error).__name__}: {error}"
    raise StrayReplayClock(
        f"{REPLAY_VARIABLE}={given} is set, but {why}; take it out of the environment: unset {REPLAY_VARIABLE}"
    )


class HostClock:
    """The real clock; in a process of a replay, the recorded session's."""

    def __init__(self, spin_ns: int = SPIN_NS) -> None:
        """Spin for the last `spin_ns` of every sleep; 0 for loops that must leave the CPU to others.

        Raises StrayReplayClock.
        """
        self._spin_ns = spin_ns
        self._replay = replayed()

    def now_ns(self) -> int:
        """Return host monotonic time, ns."""
        return time.perf_counter_ns() if self._replay is None else self._replay.now_ns()

    def utc_ns(self) -> int:
        """Return UTC, ns."""
        return time.time_ns()

    def sleep_until_ns(self, due_ns: int) -> None:
        """Sleep until `spin_ns` before `due_ns`, then spin: sleep alone wakes up to milliseconds late."""
        if self._replay is not None:
            self._replay.sleep_until_ns(due_ns)
            return
        rest = due_ns - time.perf_counter_ns() - self._spin_ns
        if rest > 0:
            time.sleep(rest * 1e-9)
        while time.perf_counter_ns() < due_ns:
            pass


class FakeClock:
    """A clock for tests: time passes only when told to, or when somebody sleeps."""

    def __init__(self, start_ns: int = 1_000_000_000) -> None:
        """Start at `start_ns`."""
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """Return the fake time, ns."""
        return self._now_ns

    def utc_ns(self) -> int:
        """Return the fake time plus a fixed date, ns."""
        return self._now_ns + 1_700_000_000_000_000_000

    def sleep_until_ns(self, due_ns: int) -> None:
        """Jump to `due_ns`."""
        self._now_ns = max(self._now_ns, due_ns)

    def advance_ns(self, step_ns: int) -> None:
        """Let `step_ns` pass."""
        self._now_ns += step_ns


def processor_ns() -> int:
    """Return how long this process has computed, all its threads together, ns: what others do does not count."""
    return time.process_time_ns()
