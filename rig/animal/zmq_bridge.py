"""A bridge of the open wires over ZMQ, as a lab would write one, with faults that can be switched on.

Used by the animal's publishers of spikes and traces. The data socket belongs to the thread that calls `put`, the clock
port to a thread of its own. It never waits for a listener. The formats are in docs/wires/spikes.md and traces.md.
"""

import json
import threading
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

import zmq

from rig.animal.device_clock import DeviceClock
from rig.animal.wire import WireError
from rig.clock import Clock

VERSION = 1
POLL_MS = 100
FAREWELL_MS = 200  # how long a closing PUB may take to hand its last messages to the network
EVERY_S = 20.0  # every switch acts once in so many seconds of the device
FIRST_S = 5.0
TAIL_S = 1.0
STALL_S = 1.5
AWAY_S = 6.0
DROPPED = 3
SWITCHES = ("drop", "drop_tail", "restart", "jump_back", "unit_list_change", "stall", "mute_clock")


@dataclass
class BridgeFaults:
    """What goes wrong; set by tests or by a `Schedule` while the bridge runs. Counts are used up."""

    drop: int = 0  # the next k messages are numbered and never sent
    drop_tail: bool = False  # while True every message is numbered and never sent: a lost tail shows no hole
    restart: Literal["none", "keep", "reset"] = "none"  # once: new run, numbers from 1; samples go on or begin at 0
    jump_back: bool = False  # once: samples begin at 0 again within the same run
    unit_list_change: bool = False  # while True the last unit is gone and another one is there
    stall: bool = False  # while True messages are kept back; they come in one burst afterwards
    mute_clock: bool = False  # while True nobody answers on the clock port


@dataclass
class Schedule:
    """Switches by name, each once in EVERY_S, one after the other."""

    names: tuple[str, ...]
    rate_hz: float
    _start: int | None = None
    _until: dict[str, float] = field(default_factory=dict)  # name: device sample at which it ends
    _acted: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse names that are none."""
        if unknown := [name for name in self.names if name not in SWITCHES]:
            reason = f"animal.wire_faults.switches: {unknown[0]!r} is no fault of this wire"
            raise WireError(reason, f"choose from {', '.join(SWITCHES)}")

    def set(self, faults: BridgeFaults, sample: int) -> None:
        """Set the faults that are due at a device sample."""
        if self._start is None:
            self._start = sample
        now_s = (sample - self._start) / self.rate_hz
        for k, name in enumerate(self.names):
            turn = int((now_s - FIRST_S - k * EVERY_S / len(self.names)) // EVERY_S)
            if turn >= 0 and self._acted.get(name, -1) < turn:
                self._acted[name] = turn
                self._act(faults, name, now_s)
            elif now_s >= self._until.get(name, float("inf")):
                del self._until[name]
                setattr(faults, name, False)

    def _act(self, faults: BridgeFaults, name: str, now_s: float) -> None:
        if name == "drop":
            faults.drop = DROPPED
        elif name == "restart":
            faults.restart = "keep"
        else:
            setattr(faults, name, True)
            if name != "jump_back":
                self._until[name] = now_s + {"drop_tail": TAIL_S, "stall": STALL_S}.get(name, AWAY_S)


@dataclass
class Sent:
    """What was put on the wire so far."""

    messages: int = 0
    dropped: int = 0


class Bridge:
    """Serves one wire on `port` (data) and `port + 1` (clock); call `close` to end it."""

    def __init__(
        self,
        wire: Literal["spikes", "traces"],
        port: int,
        device: DeviceClock,
        clock: Clock,
        faults: BridgeFaults,
        address: str = "127.0.0.1",
    ) -> None:
        self.offset = 0  # device sample that the wire calls 0
        self.sent = Sent()
        self.faults = faults
        self._wire, self._device, self._clock = wire, device, clock
        self._lock = threading.Lock()  # over run, number and offset, which the clock port states together
        self._run = uuid.uuid4().hex
        self._number = 0
        self._held: list[list[bytes]] = []
        self._context = zmq.Context()
        self._rep = self._bind(zmq.REP, address, port + 1, linger_ms=0)
        self._pub = self._bind(zmq.PUB, address, port, linger_ms=FAREWELL_MS)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="clock", daemon=True)
        self._thread.start()

    def _bind(self, kind: int, address: str, port: int, linger_ms: int) -> "zmq.Socket[bytes]":
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.linger = linger_ms
        socket.sndhwm = 0  # the default of 1,000 loses messages without a trace
        try:
            socket.bind(f"tcp://{address}:{port}")
        except zmq.ZMQError as error:
            socket.close()
            self._context.destroy(linger=0)
            what = "data" if kind == zmq.PUB else "clock"
            raise WireError(
                f"port {port} ({what} of the {self._wire} wire) cannot be opened: {error.strerror}",
                "end the program that holds it, or give the source another `port`; the wire takes it and the next one",
            ) from error
        return socket

    def _answer(self) -> None:
        """Tell the time until closing (thread body)."""
        while not self._closing.is_set():
            if not self._rep.poll(POLL_MS):
                continue
            if self.faults.mute_clock:
                self._closing.wait(POLL_MS / 1000)  # the question stays unread until the fault is lifted
                continue
            self._rep.recv()
            with self._lock:
                reply: dict[str, Any] = {"wire": self._wire, "version": VERSION, "run": self._run}
                reply["number"], offset = self._number, self.offset
            # Last, so that nothing lies between the reading and the answer.
            reply["sample"] = max(int(self._device.true_sample(self._clock.now_ns())) - offset, 0)
            self._rep.send(json.dumps(reply).encode())
        self._rep.close()

    def begin(self, first_sample: int) -> bool:
        """Do what must happen before the block that begins at a device sample; return whether a new run begins."""
        with self._lock:
            restart, jump = self.faults.restart, self.faults.jump_back
            self.faults.restart, self.faults.jump_back = "none", False
            if restart == "reset" or jump:
                self.offset = first_sample
            if restart != "none":
                self._run, self._number = uuid.uuid4().hex, 0
            return restart != "none"

    def put(self, fields: dict[str, Any], *arrays: bytes) -> None:
        """Send one message, its number and run filled in, or lose it as the faults say."""
        with self._lock:
            self._number += 1
            number, run = self._number, self._run
        if self.faults.drop_tail or self.faults.drop > 0:
            self.faults.drop = max(0, self.faults.drop - 1)
            self.sent.dropped += 1
            return
        head = {"wire": self._wire, "version": VERSION, "run": run, "number": number, **fields}
        self._held.append([json.dumps(head).encode(), *arrays])
        if self.faults.stall:
            return
        for frames in self._held:
            self._pub.send_multipart(frames, copy=True)
        self.sent.messages += len(self._held)
        self._held = []

    def close(self) -> None:
        """Close both sockets and end the thread."""
        self._closing.set()
        self._thread.join()
        self._pub.close()
        self._context.term()


