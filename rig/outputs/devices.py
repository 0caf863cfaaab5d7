"""What every output device offers, the printing one, and the choice of device by the config.

A device begins a job and says later what became of it; it never blocks. One job at a time where a line is involved.
"""

import sys
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from rig.clock import Clock
from rig.config.outputs import AnyOutput
from rig.messages import OutputRequest

TimedBy = Literal["device", "watchdog", "none"]


@dataclass(frozen=True)
class Job:
    """A request that may be executed."""

    request: OutputRequest
    length_ns: int
    """Of a reward pulse; 0 for all else."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    request: OutputRequest
    done: bool
    reason: str = ""
    """Why it was not done as asked; "" if it was."""
    started_host_ns: int | None = None
    confirmed_host_ns: int | None = None
    open_s: float = 0.0
    """Time for which the valve was open, at most: what counts."""
    measured: bool = True
    """Whether `open_s` was measured and not assumed."""
    timed_by: TimedBy = "none"


What = Literal["reward", "marker", "message"]
TEXTS: frozenset[What] = frozenset({"marker", "message"})
REWARDS: frozenset[What] = frozenset({"reward"})


class Device(Protocol):
    """One output."""

    takes: frozenset[What]

    def begin(self, job: Job) -> None:
        """Start a job without blocking."""
        ...

    def poll(self) -> list[Outcome]:
        """Return what has come to an end; called every few ms."""
        ...

    def close(self) -> None:
        """Leave every line low."""
        ...


@runtime_checkable
class Valve(Device, Protocol):
    """An output with a line that is high for a while."""

    def cut(self, why: str) -> None:
        """Lower the line now."""
        ...


@runtime_checkable
class Marks(Protocol):
    """An output that can mark what the others did."""

    def mark(self, text: str, event_host_ns: int) -> None:
        """Send a marker with the host time of what it marks."""
        ...


class PrintDevice:
    """Says what it would do, in the log of the process; opens nothing."""

    takes = REWARDS | TEXTS

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._done: list[Outcome] = []

    def begin(self, job: Job) -> None:
        """Say it."""
        request, now = job.request, self._clock.now_ns()
        what = f"reward pulse of {job.length_ns * 1e-9:g} s" if request.what == "reward" else request.what
        when = "" if request.event_host_ns is None else f" of host time {request.event_host_ns} ns"
        sys.stderr.write(f"{self._name}: {what} {request.request}{when}: {request.text}\n")
        sys.stderr.flush()
        self._done.append(Outcome(request, True, "", now, self._clock.now_ns(), job.length_ns * 1e-9))

    def poll(self) -> list[Outcome]:
        """Return what was said."""
        done, self._done = self._done, []
        return done

    def cut(self, why: str) -> None:
        """Nothing is open."""

    def close(self) -> None:
        """Nothing is open."""


def open_device(output: AnyOutput, session: str, clock: Clock, realtime: bool = True) -> Device:
    """Open the device of an output; each is imported only where it is used. Raises OutputError.

    `realtime`: the watchdogs of a line may ask for real-time priority.
    """
    match output.type:
        case "print":
            return PrintDevice(output.name, clock)
        case "serial" if output.mode == "device":
            from rig.outputs.serial_device import SerialDevice

            return SerialDevice(output.port, output.baud, clock)
        case "serial":
            from rig.outputs.guarded import GuardedValve

            return GuardedValve(output.port, True, 0, clock, realtime)
        case "parallel":
            from rig.outputs.guarded import GuardedValve

            return GuardedValve(output.port, False, output.line, clock, realtime)
        case "lsl_markers":
            from rig.outputs.markers import MarkerOutlet

            return MarkerOutlet(output.stream, session, clock)
        case "openephys_messages":
            from rig.outputs.gui import GuiMessages

            return GuiMessages(output.host, output.http_port, session, clock)
    raise AssertionError(f"no device for outputs of type {output.type}")
