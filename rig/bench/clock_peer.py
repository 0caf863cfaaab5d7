"""The other end of `stimloop bench clocks`: a process with a drifting device clock, asked over a delayed network.

Started by the bench as `python -m rig.bench.clock_peer SETTINGS`, SETTINGS being JSON: {"link", "device", "seed"}. A
round-trip link answers each request on its ROUTER socket with its sample counter, after delays drawn for each way; the
ttl link sends the edges of a shared line, each as the device (a whole sample) and the host (+-10 us) stamped it.
"""

import json
import sys
from dataclasses import dataclass

import numpy as np
import zmq

from rig import priority
from rig.animal.device_clock import DeviceClock
from rig.clock import Clock, HostClock
from rig.supervision.child import Stop, say, shield

EDGE_EVERY_NS = 1_000_000_000
HOST_STAMP_NS = 10_000


@dataclass(frozen=True)
class Link:
    """How long a message takes one way: lognormal around a median, sometimes with an exponential spike on top."""

    median_s: float
    spike_fraction: float
    log_sd: float = 0.7
    spike_s: float = 5e-3

    def delay_ns(self, rng: np.random.Generator) -> int:
        """Draw one delay, ns."""
        late = rng.lognormal(np.log(self.median_s), self.log_sd)
        if rng.random() < self.spike_fraction:
            late += rng.exponential(self.spike_s)
        return int(late * 1e9)


# Round trips of 0.2 and 2 ms; 5 and 20 % of the messages are held up.
LINKS = {"wired": Link(0.1e-3, 0.05), "wifi": Link(1e-3, 0.2)}


def edge(device: DeviceClock, host_ns: int, rng: np.random.Generator) -> tuple[int, int]:
    """Return how both sides stamp an edge at `host_ns`: device sample, host ns."""
    return int(device.true_sample(host_ns)), host_ns + int(rng.integers(-HOST_STAMP_NS, HOST_STAMP_NS + 1))


def answer(
    socket: "zmq.Socket[bytes]", link: Link, device: DeviceClock, rng: np.random.Generator, clock: Clock
) -> None:
    """Answer requests until told to stop, as if the network took its time on both ways."""
    stop = Stop()
    while not stop:
        if not socket.poll(100):
            continue
        identity, number = socket.recv_multipart()
        clock.sleep_until_ns(clock.now_ns() + link.delay_ns(rng))
        now = clock.now_ns()
        reply = [identity, number, json.dumps({"sample": device.true_sample(now)}).encode()]
        clock.sleep_until_ns(now + link.delay_ns(rng))
        socket.send_multipart(reply)


def edges(socket: "zmq.Socket[bytes]", device: DeviceClock, rng: np.random.Generator, clock: Clock) -> None:
    """Send an edge about once a second, at no fixed phase of the device's samples, to whoever said hello."""
    stop, due, identity = Stop(), clock.now_ns(), None
    while not stop:
        if socket.poll(20):
            identity = socket.recv_multipart()[0]
        if identity is not None and clock.now_ns() >= due:
            now = clock.now_ns()
            sample, host_ns = edge(device, now, rng)
            socket.send_multipart([identity, b"", json.dumps({"sample": sample, "host_ns": host_ns}).encode()])
            due = now + EDGE_EVERY_NS


def main(settings: str) -> int:
    """Serve one link until stdin says stop or ends."""
    given = json.loads(settings)
    device, rng, clock = DeviceClock(**given["device"]), np.random.default_rng(given["seed"]), HostClock()
    # It stands for a device: what else this computer does must not look like a slow network.
    granted = priority.ask(True)
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    say(ready={"endpoint": f"tcp://127.0.0.1:{port}", "priority": granted})
    try:
        if given["link"] == "ttl":
            edges(socket, device, rng, clock)
        else:
            answer(socket, LINKS[given["link"]], device, rng, clock)
    finally:
        socket.close()
    return 0


if __name__ == "__main__":
    shield()
    sys.exit(main(sys.argv[1]))
