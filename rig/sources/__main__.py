"""Process entry of one source: `python -m rig.sources --folder SESSION --endpoint tcp://... --name SOURCE`."""

import argparse
import os
import sys
from pathlib import Path
from typing import Protocol

from rig import child
from rig.bus import Peer
from rig.clock import HostClock
from rig.config import ConfigError, load
from rig.config_sources import AnySource
from rig.messages import (
    ProcessStarted,
)

# The receiving thread must not wait the usual 5 ms for the interpreter: it stamps arrivals.
SWITCH_INTERVAL_S = 0.0005


class Loop(Protocol):
    """What every source is: it serves until stopped and returns the exit code."""

    def run(self) -> int:
        """Serve."""
        ...


def _loop(source: AnySource, peer: Peer, clock: HostClock, stop: child.Stop) -> Loop:
    """Return the loop of a source; each is imported only where it is used, with its libraries."""
    match source.type:
        case "openephys":
            from rig.sources.openephys import OpenEphys

            return OpenEphys(source, peer, clock, stop)
        case "openephys_events":
            from rig.sources.openephys_events import OpenEphysEvents

            return OpenEphysEvents(source, peer, clock, stop)
        case "lsl_spikes" | "lsl_counts" | "lsl_calcium" | "lsl_behaviour" | "lsl_markers":
            from rig.sources.lsl import LslLoop

            return LslLoop(source, peer, clock, stop)
        case "spikes_zmq":
            from rig.sources.spikes_zmq import SpikesWire

            return SpikesWire(source, peer, clock, stop)
        case "traces_zmq":
            from rig.sources.traces_zmq import TracesWire

            return TracesWire(source, peer, clock, stop)
    raise AssertionError(f"no loop for sources of type {source.type}")


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
        code = _loop(source, peer, clock, stop).run()
        peer.flush(2.0)
        return code
    finally:
        peer.close()


if __name__ == "__main__":
    child.shield()
    sys.exit(main())
