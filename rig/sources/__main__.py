"""Process entry of one source: `python -m rig.sources --folder SESSION --endpoint tcp://... --name SOURCE`."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rig.clock import Clock, HostClock
from rig.config.reading import ConfigError, load
from rig.config.sources import AnySource
from rig.links.peer import Peer, TooMuchUnacked
from rig.messages import (
    Fault,
    ProcessStarted,
)
from rig.sources.stopping import Say, Stopping
from rig.supervision import child
from rig.timing import lag_s, window_end_s

# The receiving thread must not wait the usual 5 ms for the interpreter: it stamps arrivals.
SWITCH_INTERVAL_S = 0.0005
FLUSH_S = 6.0  # for a recorder that is being restarted
MARGIN_S = 0.5  # of data on their way


class Loop(Protocol):
    """What every source is: it serves until stopped and returns the exit code."""

    def run(self) -> int:
        """Serve."""
        ...


def _loop(source: AnySource, peer: Peer, clock: HostClock, stop: Stopping, say: Say, realtime: bool) -> Loop:
    """Return the loop of a source; each is imported only where it is used, with its libraries."""
    match source.type:
        case "openephys":
            from rig.sources.openephys import OpenEphys

            return OpenEphys(source, peer, clock, stop, say, realtime)
        case "openephys_events":
            from rig.sources.openephys_events import OpenEphysEvents

            return OpenEphysEvents(source, peer, clock, stop, say)
        case "lsl_spikes" | "lsl_counts" | "lsl_calcium" | "lsl_behaviour" | "lsl_markers":
            from rig.sources.lsl import LslLoop

            return LslLoop(source, peer, clock, stop, say)
        case "spikes_zmq":
            from rig.sources.spikes_zmq import SpikesWire

            return SpikesWire(source, peer, clock, stop, say)
        case "traces_zmq":
            from rig.sources.traces_zmq import TracesWire

            return TracesWire(source, peer, clock, stop, say)
    raise AssertionError(f"no loop for sources of type {source.type}")


class Lingering:
    """The stop of a source: without a supervisor it serves on until the last image's response is in.

    The rig finishes the image that is on the screen then, and the recorder waits for its data.
    """

    def __init__(self, stop: Stopping, orphaned: Callable[[], bool], linger_s: float, clock: Clock) -> None:
        """End when `stop` says so; where it is because of `orphaned()`, `linger_s` later."""
        self._stop, self._orphaned, self._clock = stop, orphaned, clock
        self._linger_ns = round(linger_s * 1e9)
        self._end_ns: int | None = None

    def __bool__(self) -> bool:
        """Return whether to end."""
        if not self._stop or not self._orphaned():
            return bool(self._stop)
        if self._end_ns is None:
            self._end_ns = self._clock.now_ns() + self._linger_ns
        return self._clock.now_ns() >= self._end_ns


def _teller(source: AnySource, peer: Peer, clock: HostClock) -> Say:
    """Return `say` for the loop; in a restarted process the first data also end a gap, which the log must name."""
    away_ns = child.away_since_ns()

    def say(**fields: object) -> None:
        if away_ns is not None and "ready" in fields:
            away_s = (clock.now_ns() - away_ns) * 1e-9
            detail = (
                f"{source.name}: a gap of {away_s:.2f} s at least, from the death of its process to its first new "
                "data; data are missing from the last whole block before to the first whole one after, a little longer"
            )
            done = "a new run with a clock map of its own; no response that needs data from the gap is usable"
            peer.send(Fault(what="data gap", detail=detail, done=done, since_host_ns=away_ns))
        child.say(**fields)

    return say


def main() -> int:
    """Run the source named on the command line until the supervisor says stop."""
    arguments = argparse.ArgumentParser(description="One data source of a stimloop session.")
    arguments.add_argument("--folder", type=Path, required=True, help="the session's folder, with config.yaml")
    arguments.add_argument("--endpoint", required=True, help="the recorder's address")
    arguments.add_argument("--name", required=True, help="name of the source in the config")
    options = arguments.parse_args()
    try:
        config, _ = load(options.folder / "config.yaml")
    except ConfigError as error:
        return child.fail(str(error), "mend the config")
    source = next((s for s in config.sources if s.name == options.name), None)
    if source is None:
        names = ", ".join(s.name for s in config.sources)
        return child.fail(f"the config has no source {options.name!r}", f"use one of: {names}")
    stop = child.Stop()
    clock = HostClock()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    peer = Peer(source.name, options.endpoint, frozenset(), clock)
    try:
        peer.send(
            ProcessStarted(
                name=source.name,
                pid=os.getpid(),
                boot_id=child.boot_id(),
                start_host_ns=clock.now_ns(),
                start_utc_ns=clock.utc_ns(),
                notes={"type": source.type},
            )
        )
        linger_s = config.presentation.on_s + window_end_s(config) + lag_s(config) + MARGIN_S
        until = Lingering(stop, lambda: stop.orphaned, linger_s, clock)
        teller = _teller(source, peer, clock)
        code = _loop(source, peer, clock, until, teller, config.processes.realtime).run()
        peer.flush(FLUSH_S)
        return code
    except TooMuchUnacked as error:
        cure = "free space on the session's disk, and see the recorder's log; the source begins anew, with a gap"
        return child.fail(str(error), cure)
    finally:
        peer.close()


if __name__ == "__main__":
    child.shield()
    sys.exit(main())
