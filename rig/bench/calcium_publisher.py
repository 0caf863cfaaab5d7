"""A microscope of many ROIs on the traces wire, in real time: the process that `rig.bench.calcium_load` measures with.

`python -m rig.bench.calcium_publisher --port P --rois N` publishes until it is told to stop; the spikes are random.
"""

import argparse
import sys

import numpy as np

from rig.animal.device_clock import DeviceClock
from rig.animal.traces_publisher import TracesPublisher
from rig.animal.wire import Block, WireError
from rig.clock import HostClock
from rig.config.sources import CalciumSimulation, WireFaults
from rig.supervision.child import Stop, fail, say, shield

RATE_HZ = 30_000.0
SPIKES_HZ = 1.0  # of each ROI


def main(arguments: list[str] | None = None) -> int:
    """Process entry."""
    parser = argparse.ArgumentParser(prog="rig.bench.calcium_publisher")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rois", type=int, required=True)
    options = parser.parse_args(arguments)
    stop, clock = Stop(), HostClock(spin_ns=0)
    rng = np.random.default_rng(1)
    start = 1_000_000
    device = DeviceClock(RATE_HZ, 20.0, 0.0, 0.0, clock.now_ns(), start)
    settings = CalciumSimulation()
    units = tuple(f"roi{k}" for k in range(options.rois))
    try:
        wire = TracesPublisher(units, clock, options.port, device, settings, WireFaults(), rng)
    except WireError as error:
        return fail(error.reason, error.cure)
    say(ready={"rois": options.rois, "frame_hz": settings.frame_hz})
    first, length = start, wire.block_samples
    while not stop:
        clock.sleep_until_ns(int(device.host_ns(first + length)))
        count = rng.poisson(SPIKES_HZ * options.rois * length / RATE_HZ)
        sample = np.sort(rng.integers(first, first + length, count))
        wire.send(Block(first, length, rng.integers(0, options.rois, count), sample, ()))
        first += length
    wire.close()
    say(note=f"frames published {int((first - start) / (RATE_HZ / settings.frame_hz))}")
    return 0


if __name__ == "__main__":
    shield()
    sys.exit(main())
