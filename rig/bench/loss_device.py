"""The device of `stimloop bench loss`: the fake Open Ephys server with random spikes, in a process of its own.

Started by `rig.bench.loss`, which writes to its stdin "go" (all others are there: the time until a fault is thrown runs
from now on), "hold" (enough spikes, blocks go on) and "stop". It says from which sample on there is no spike any
more, and writes what really happened, fault switches included, to the truth file (npz): per spike the unit, the device
sample, the sample as the wire calls it, the stretch (`epoch`) in which the two differ by one number, and when it was
sent.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from rig.animal.openephys_faults import Timetable
from rig.animal.openephys_server import OpenEphysServer
from rig.animal.wire import Block, WireError
from rig.clock import Clock, HostClock
from rig.supervision import child

RATE_HZ = 30_000.0
FIRST_SAMPLE = 1_000_000
SWITCH_S = 0.0005
QUIET = "no spike from sample "  # and the number, as the wire calls it


def unit_names(count: int) -> tuple[str, ...]:
    """Return the names of `count` units, as the wire gives them."""
    return tuple(f"E{k:03d}#0" for k in range(count))


class Device:
    """Draws spikes block by block and keeps the truth."""

    def __init__(
        self, server: OpenEphysServer, units: int, spikes_per_s: float, rng: np.random.Generator, later: list[str]
    ) -> None:
        """`later`: fault switches, name@seconds from `go` on."""
        self.server = server
        self.quiet = self.going = False
        self._later, self._go_sample = Timetable(later), FIRST_SAMPLE
        self._units, self._rate_hz, self._rng = units, spikes_per_s, rng
        self._first = FIRST_SAMPLE
        self._epoch = 0
        self._truth: list[tuple[np.ndarray[tuple[int], np.dtype[np.int64]], ...]] = []

    @property
    def end(self) -> int:
        """First sample after the next block."""
        return self._first + self.server.block_samples

    def go(self) -> None:
        """Count the time until the fault from the next block on."""
        self.going, self._go_sample = True, self._first

    def block(self, due_host_ns: int) -> None:
        """Send the next block."""
        if self.going:
            self._later.apply(self.server.faults, (self._first - self._go_sample) / RATE_HZ)
        length, first = self.server.block_samples, self._first
        mean = 0.0 if self.quiet else self._rate_hz * length / RATE_HZ
        count = min(int(self._rng.poisson(mean)), self._units * length)
        places = np.sort(self._rng.choice(self._units * length, count, replace=False))  # no unit twice in one sample
        sample, unit = places // self._units + first, places % self._units
        before = self.server.offset
        self.server.send(Block(first, length, unit, sample, ()))
        self._epoch += self.server.offset != before
        columns = (unit, sample, sample - self.server.offset, np.full(count, self._epoch), np.full(count, due_host_ns))
        self._truth.append(columns)
        self._first += length

    def save(self, path: Path) -> None:
        """Write the truth."""
        names = ("unit", "sample", "wire_sample", "epoch", "sent_host_ns")
        columns = [np.concatenate(c) for c in zip(*self._truth, strict=True)] if self._truth else [np.zeros(0)] * 5
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **dict(zip(names, columns, strict=True)))


def serve(device: Device, stop: child.Stop, clock: Clock) -> None:
    """Send block after block, each when it is due, until the stop."""
    start_ns = clock.now_ns()
    while not stop:
        due_ns = start_ns + int((device.end - FIRST_SAMPLE) * 1e9 / RATE_HZ)
        clock.sleep_until_ns(due_ns)
        device.block(due_ns)
        if stop.go and not device.going:
            device.go()
        elif device.going and not stop.go and not device.quiet:
            # A device that got no processor for a while sends what was due until it is: only it knows which spike is
            # its last.
            device.quiet = True
            child.say(note=f"{QUIET}{device.end - device.server.block_samples - device.server.offset}")


def main() -> int:
    """Serve until stopped, then write the truth."""
    arguments = argparse.ArgumentParser(description="The device of `stimloop bench loss`.")
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--channels", type=int, required=True)
    arguments.add_argument("--spikes-per-s", type=float, required=True)
    arguments.add_argument("--switches", default="", help="from the start on")
    arguments.add_argument("--later", default="", help="name@seconds, counted from the word go on")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--truth", type=Path, required=True)
    options = arguments.parse_args()
    clock = HostClock(spin_ns=0)
    stop = child.Stop()
    switches, later = ([s for s in text.split(",") if s] for text in (options.switches, options.later))
    sys.setswitchinterval(SWITCH_S)
    try:
        server = OpenEphysServer(
            unit_names(options.channels), clock, options.port, channels=options.channels, switches=switches
        )
    except WireError as error:
        return child.fail(error.reason, error.cure)
    device = Device(server, options.channels, options.spikes_per_s, np.random.default_rng(options.seed), later)
    child.say(ready={"port": options.port})
    try:
        serve(device, stop, clock)
    finally:
        server.close()
        device.save(options.truth)
    return 0


if __name__ == "__main__":
    child.shield()
    sys.exit(main())
