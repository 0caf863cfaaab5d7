"""Clocks. The only module that reads the time; everything else takes a clock as an argument.

The one clock of a session is the host's monotonic clock in ns (`time.perf_counter_ns`; CLOCK_MONOTONIC on Linux,
equal to LSL's local_clock there). Clock maps live in `rig.clocks.clockmap`.
"""

import time
from typing import Protocol


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


class HostClock:
    """The real clock."""

    def __init__(self, spin_ns: int = SPIN_NS) -> None:
        """Spin for the last `spin_ns` of every sleep; 0 for loops that must leave the CPU to others."""
        self._spin_ns = spin_ns

    def now_ns(self) -> int:
        """Return host monotonic time, ns."""
        return time.perf_counter_ns()

    def utc_ns(self) -> int:
        """Return UTC, ns."""
        return time.time_ns()

    def sleep_until_ns(self, due_ns: int) -> None:
        """Sleep until `spin_ns` before `due_ns`, then spin: sleep alone wakes up to milliseconds late."""
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
