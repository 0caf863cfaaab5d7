"""`stimloop bench clocks`: how wrong a clock map is, against the true clock of a device that drifts and wanders.

Three links at once for the same minutes: round trips over a wired and a WiFi-like network (real sockets to a process
of its own, delays drawn), and shared edges. The maps get ClockSample documents in order, as the recorder's do, and are
asked once a second in both directions; the truth is the device's clock itself, on the one clock of this host.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from rig.animal.device_clock import DeviceClock
from rig.bench.clock_peer import HOST_STAMP_NS, LINKS
from rig.clock import Clock
from rig.clocks.clockmap import ASK_EVERY_NS, BURST, ClockMap
from rig.messages import ClockSample
from rig.supervision.processes import Child, SessionFailed, wait_ready

RATE_HZ = 30_000.0
PPM, WANDER_PPM = 40.0, 5.0
CHECK_EVERY_NS = 1_000_000_000
LOST_NS = 1_000_000_000  # a request without an answer for so long is given up
TARGETS_MS = {"wired": 0.1, "wifi": 0.5, "ttl": 1e3 / RATE_HZ}
EDGE_DOUBT_NS = HOST_STAMP_NS + int(1e9 / RATE_HZ)


def device_clock(start_ns: int, rng: np.random.Generator) -> DeviceClock:
    """Return the clock of a device that is 40 ppm fast and wanders by 5 ppm."""
    phase = float(rng.uniform(0, 2 * np.pi))
    return DeviceClock(RATE_HZ, PPM, WANDER_PPM, phase, start_ns, int(rng.integers(0, 2**40)))


def round_trip(link: str, sample: float, asked_ns: int, answered_ns: int) -> ClockSample:
    """Return the pair of one request: the device's counter in the middle of the round trip."""
    return ClockSample(
        source=link,
        run=0,
        device_sample=sample,
        pair_host_ns=(asked_ns + answered_ns) // 2,
        method="round_trip",
        round_trip_ns=answered_ns - asked_ns,
    )


def shortest(burst: Sequence[ClockSample]) -> ClockSample:
    """Return the pair of a burst that had the shortest round trip: the one that a source journals."""
    return min(burst, key=lambda pair: pair.round_trip_ns or 0)


def shared_edge(sample: int, host_ns: int) -> ClockSample:
    """Return the pair of one edge of a line that both sides see."""
    return ClockSample(
        source="ttl", run=0, device_sample=sample, pair_host_ns=host_ns, method="edge", uncertainty_ns=EDGE_DOUBT_NS
    )


@dataclass
class Exam:
    """One link's map, and how wrong it was each time it was asked."""

    link: str
    device: DeviceClock
    clockmap: ClockMap = field(default_factory=lambda: ClockMap(RATE_HZ))
    round_trips_ns: list[int] = field(default_factory=list)
    pairs: int = 0
    errors_ns: list[float] = field(default_factory=list)
    stated_ns: list[int] = field(default_factory=list)

    def take(self, pair: ClockSample) -> None:
        """Give the map one pair."""
        self.pairs += 1
        if pair.round_trip_ns is not None:
            self.round_trips_ns.append(pair.round_trip_ns)
        self.clockmap.take(pair)

    def check(self, now_ns: int) -> None:
        """Compare the map with the true clock at host time `now_ns`, both ways; nothing before it is known."""
        sample = self.device.true_sample(now_ns)
        to_host, to_sample = self.clockmap.to_host_ns(sample), self.clockmap.to_sample(now_ns)
        if to_host is not None and to_sample is not None:
            self.errors_ns += [to_host[0] - now_ns, (to_sample[0] - sample) * 1e9 / RATE_HZ]
            self.stated_ns += [to_host[1], to_sample[1]]

    def row(self) -> dict[str, Any]:
        """Return the figures of the link; raises SessionFailed if the map never came."""
        if not self.errors_ns:
            raise SessionFailed(f"link {self.link}: no map from {self.pairs} pairs; run it for longer")
        errors, stated = np.abs(np.array(self.errors_ns)), np.array(self.stated_ns)
        row: dict[str, Any] = {
            "link": self.link,
            "error_ms_p50": round(float(np.percentile(errors, 50)) * 1e-6, 5),
            "error_ms_p99": round(float(np.percentile(errors, 99)) * 1e-6, 5),
            "error_ms_max": round(float(errors.max()) * 1e-6, 5),
            "inside_stated_bound": round(float(np.mean(errors <= stated)), 5),
            "stated_ms_p50": round(float(np.percentile(stated, 50)) * 1e-6, 5),
            "target_ms_p99": round(TARGETS_MS[self.link], 5),
            "comparisons": len(errors),
            "pairs": self.pairs,
            "warnings": [what for what, _ in self.clockmap.warnings()],
        }
        if self.round_trips_ns:
            row["round_trip_ms_p50"] = round(float(np.percentile(self.round_trips_ns, 50)) * 1e-6, 4)
        return row


@dataclass
class _Asked:
    number: int = 0
    due_ns: int = 0  # of the next burst
    left: int = 0  # requests of this burst that are still to be sent
    sent_ns: int | None = None
    burst: list[ClockSample] = field(default_factory=list)


class _Session:
    """Asks the peers on their links and files what they say."""

    def __init__(self, exams: dict[str, Exam], endpoints: dict[str, str], clock: Clock) -> None:
        self._clock = clock
        self._exams = exams
        self._asked = {link: _Asked() for link in exams if link in LINKS}
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._poller = zmq.Poller()
        for link, endpoint in endpoints.items():
            socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(endpoint)
            self._sockets[link] = socket
            self._poller.register(socket, zmq.POLLIN)
        if "ttl" in self._sockets:
            self._sockets["ttl"].send_multipart([b"hello"])

    def run(self, end_ns: int) -> None:
        """Exchange until `end_ns`, checking each map once a second."""
        check_ns = self._clock.now_ns() + CHECK_EVERY_NS
        while (now := self._clock.now_ns()) < end_ns:
            self._ask(now)
            ready = dict(self._poller.poll(5))
            arrived_ns = self._clock.now_ns()
            for link, socket in self._sockets.items():
                if socket in ready:
                    self._take(link, socket, arrived_ns)
            if (now := self._clock.now_ns()) >= check_ns:
                check_ns += CHECK_EVERY_NS
                for exam in self._exams.values():
                    exam.check(now)

    def _ask(self, now_ns: int) -> None:
        for link, asked in self._asked.items():
            if asked.sent_ns is not None and now_ns > asked.sent_ns + LOST_NS:
                asked.sent_ns, asked.left, asked.burst = None, 0, []
            if now_ns >= asked.due_ns and asked.left == 0 and asked.sent_ns is None:
                asked.due_ns = max(asked.due_ns + ASK_EVERY_NS, now_ns)
                asked.left = BURST
                self._send(link, asked)

    def _send(self, link: str, asked: _Asked) -> None:
        asked.number += 1
        asked.left -= 1
        asked.sent_ns = self._clock.now_ns()
        self._sockets[link].send_multipart([str(asked.number).encode()])

    def _take(self, link: str, socket: "zmq.Socket[bytes]", arrived_ns: int) -> None:
        number, body = socket.recv_multipart()
        said = json.loads(body)
        if link == "ttl":
            self._exams[link].take(shared_edge(said["sample"], said["host_ns"]))
            return
        asked = self._asked[link]
        if asked.sent_ns is None or int(number) != asked.number:
            return  # given up before
        asked.burst.append(round_trip(link, said["sample"], asked.sent_ns, arrived_ns))
        asked.sent_ns = None
        if asked.left:
            self._send(link, asked)
        else:
            self._exams[link].take(shortest(asked.burst))
            asked.burst = []

    def close(self) -> None:
        """Close the sockets."""
        for socket in self._sockets.values():
            socket.close()


def clocks(minutes: float, clock: Clock, seed: int = 1) -> dict[str, Any]:
    """Run the three links for `minutes`; return one row of figures for each. Raises SessionFailed."""
    rng = np.random.default_rng(seed)
    device = device_clock(clock.now_ns(), rng)
    with tempfile.TemporaryDirectory(prefix="stimloop-clocks-") as folder:
        children = {}
        try:
            for k, link in enumerate(TARGETS_MS):
                settings = json.dumps({"link": link, "device": asdict(device), "seed": [seed, k]})
                log = Path(folder) / f"{link}.log"
                children[link] = Child(link, ["-m", "rig.bench.clock_peer", settings], log)
            wait_ready([*children.values()], clock)
            ready = {link: child.ready or {} for link, child in children.items()}
            endpoints = {link: str(said["endpoint"]) for link, said in ready.items()}
            exams = {link: Exam(link, device) for link in TARGETS_MS}
            session = _Session(exams, endpoints, clock)
            try:
                session.run(clock.now_ns() + int(minutes * 60e9))
            finally:
                session.close()
        finally:
            for child in children.values():
                child.end(3.0)
    return {
        "minutes": minutes,
        "drift_ppm": PPM,
        "wander_ppm": WANDER_PPM,
        "ask_every_s": ASK_EVERY_NS * 1e-9,
        "burst": BURST,
        "peer_priority": ready["wired"]["priority"],
        "rows": [exam.row() for exam in exams.values()],
    }
