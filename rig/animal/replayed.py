"""A recorded device on its real wire again: `python -m rig.animal.replayed --tape FILE --clock FILE --speed 1`.

Plays a tape (`rig.animal.tape_file`) on the wires that were recorded, and runs the clock of the replay by it, which
every process of the replay has for its host clock. Whoever listens cannot tell it from the device. It knows nothing of
a session: whoever started it says on stdin how far it may play ("through HOST_NS", again and again; beyond that the
clock is held), and "free" when the clock shall just run on.

Speed N > 0: the clock runs N times as fast as the real one. Speed 0, as fast as possible: the clock does not run but
steps from block to block, and stays a moment at each, so that what is received is stamped with the recorded time.
"""

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import zmq

from rig.animal.openephys_ports import Ports
from rig.animal.openephys_templates import Template, data_template, spike_template, ttl_template
from rig.animal.openephys_wire import DATA_ENVELOPE, EVENT_ENVELOPE, TTL, spike_waveform
from rig.animal.replayed_zmq import BridgeTrack
from rig.animal.tape_file import BridgeTracks, TapeError, Tracks, read
from rig.animal.wire import WireError
from rig.clock import ReplayTime
from rig.supervision import child

SPIKE, EDGE, DATA = 0, 1, 2
SPIKE_NODE, EVENT_NODE = 103, 100
THRESHOLD_UV, PEAK_UV = -60.0, -120.0
COUNTER_MODULO = 1 << 20
LEAD_NS = 50_000_000  # the clock waits so long before the first message until everybody listens
STEP_NS = 20_000_000  # longest step of the clock where nothing is due
SETTLE_S = 0.001  # a message on loopback is received within this, unless the computer is loaded
LOOK_S = 0.0005
SHORTEST_S = 0.0002
Message = tuple[bytes, bytes, bytes]


class Track(Protocol):
    """One device on its wire."""

    @property
    def listened(self) -> bool:
        """Whether somebody has subscribed."""
        ...

    @property
    def next_due_ns(self) -> int | None:
        """When the next message is due, ns; None at the end."""
        ...

    @property
    def through_ns(self) -> int | None:
        """How far the clock may go before whoever listens has asked again, ns; None: as far as it likes."""
        ...

    def send(self, through_ns: int) -> int:
        """Send everything that is due up to a time; return how many messages that were."""
        ...

    def close(self) -> None:
        """End the wire."""
        ...


class OpenEphysTrack:
    """One device on the Open Ephys wire: data on its port, heartbeats on the next."""

    def __init__(self, track: Tracks) -> None:
        """Bind to loopback; raises WireError."""
        self.through_ns: int | None = None
        self._track, self._at, self._word = track, 0, 0
        self._due = track.columns["due_host_ns"]
        columns = (track.columns[name].tolist() for name in ("kind", "number", "sample", "a", "b"))
        self._rows = list(zip(*columns, strict=True))
        self._waveform = spike_waveform(PEAK_UV).astype("<f4").tobytes()
        self._spikes = [_spike_header(track.stream, unit) for unit in track.units]
        self._edge = ttl_template(track.stream, EVENT_NODE, "1.0")
        self._data: dict[int, Template] = {}
        self._ports = Ports(track.port, lambda: False, address="127.0.0.1", kind=zmq.XPUB)

    @property
    def listened(self) -> bool:
        """Whether somebody has subscribed."""
        return self._ports.subscribed()

    @property
    def next_due_ns(self) -> int | None:
        """When the next message is due, ns; None at the end."""
        return int(self._due[self._at]) if self._at < len(self._rows) else None

    def send(self, through_ns: int) -> int:
        """Send everything that is due up to a time; return how many messages that were."""
        end = int(np.searchsorted(self._due, through_ns, side="right"))
        rows, self._at = self._rows[self._at : end], max(end, self._at)
        self._ports.send([self._message(*row) for row in rows])
        return len(rows)

    def _message(self, kind: int, number: int, sample: int, a: int, b: int) -> Message:
        if kind == SPIKE:
            template, node = self._spikes[a]
            return EVENT_ENVELOPE, template.fill((number, node, sample, number)), self._waveform
        if kind == EDGE:
            self._word = self._word | 1 << a if b else self._word & ~(1 << a)
            return EVENT_ENVELOPE, self._edge.fill((number, sample, number)), TTL.pack(a, b, self._word)
        if b not in self._data:
            self._data[b] = data_template(self._track.stream, 0, "CH1", float(b), "1.0")
        payload = (np.arange(sample, sample + a) % COUNTER_MODULO).astype("<f4").tobytes()
        return DATA_ENVELOPE, self._data[b].fill((number, a, sample, 4 * a, number)), payload

    def close(self) -> None:
        """End the wire."""
        self._ports.close()


def _spike_header(stream: str, unit: str) -> tuple[Template, int]:
    """Return header and processor of a unit named ELECTRODE#ID, or ELECTRODE#ID@PROCESSOR where two share a name."""
    electrode, _, rest = unit.rpartition("#")
    sorted_id, _, node = rest.partition("@")
    if not electrode or not sorted_id.isdecimal() or (node and not node.isdecimal()):
        raise TapeError(f"unit {unit!r} is not named as the Open Ephys wire names units (E01#0)")
    template = spike_template(stream, electrode, int(sorted_id), (THRESHOLD_UV,), (1, 40), "1.0")
    return template, int(node) if node else SPIKE_NODE


class Orders:
    """What was said on stdin so far."""

    def __init__(self) -> None:
        """Start the thread that reads stdin (a daemon: it ends with the process)."""
        self.through_ns = 0
        self.free = False
        self.over = threading.Event()
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def _read(self) -> None:
        rest = b""
        while data := os.read(0, 4096):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                word, _, number = line.partition(b" ")
                if word == b"through":
                    self.through_ns = max(self.through_ns, int(number))
                elif word == b"free":
                    self.free = True
                elif word == b"stop":
                    self.over.set()
        self.over.set()


class Player:
    """Plays all tracks of a tape by one clock."""

    def __init__(self, tracks: Sequence[Track], time: ReplayTime, orders: Orders, speed: float) -> None:
        """`speed` 0: as fast as possible."""
        self._tracks, self._time, self._orders, self._speed = tracks, time, orders, speed
        self._runs_at: float | None = None  # not known: whoever started us set it going

    def run(self) -> None:
        """Play until stopped."""
        self._wait_for_listeners()
        while not self._orders.over.is_set():
            if self._orders.free:
                self._run_at(max(self._speed, 1.0))
                self._send()
                self._nap(LOOK_S)
            elif self._speed:
                self._run_on()
            else:
                self._step_on()

    def _wait_for_listeners(self) -> None:
        due = self._next_due_ns()
        while not all(track.listened for track in self._tracks) and not self._orders.over.is_set():
            if due is not None and self._time.now_ns() >= due - LEAD_NS:
                self._run_at(0.0)
            self._nap(LOOK_S)

    def _next_due_ns(self) -> int | None:
        return min((due for track in self._tracks if (due := track.next_due_ns) is not None), default=None)

    def _through_ns(self) -> int:
        """How far the clock may go, ns."""
        limits = (limit for track in self._tracks if (limit := track.through_ns) is not None)
        return min([self._orders.through_ns, *limits])

    def _send(self) -> None:
        now = self._time.now_ns()
        for track in self._tracks:
            track.send(now)

    def _run_at(self, speed: float) -> None:
        if self._runs_at != speed:
            self._time.set(self._time.now_ns(), speed)
            self._runs_at = speed

    def _nap(self, nap_s: float) -> None:
        self._orders.over.wait(nap_s)

    def _run_on(self) -> None:
        """Let the clock run, as far as it may, and send what is due."""
        now, through, due = self._time.now_ns(), self._through_ns(), self._next_due_ns()
        if now >= through:
            self._run_at(0.0)
            self._nap(LOOK_S)
            return
        self._run_at(self._speed)
        rest_ns = min(through, now + STEP_NS, through if due is None else due) - now
        if rest_ns > 0:
            self._nap(max(rest_ns * 1e-9 / self._speed, SHORTEST_S))
        self._send()

    def _step_on(self) -> None:
        """Put the clock to the next message and send it, or by a small step on where there is none."""
        now, through, due = self._time.now_ns(), self._through_ns(), self._next_due_ns()
        target = min(now + STEP_NS, through, through if due is None else due)
        if target <= now and (due is None or due > now):
            self._run_at(0.0)
            self._nap(LOOK_S)
            return
        self._time.set(target, 0.0)
        self._runs_at = 0.0
        self._send()
        self._nap(SETTLE_S)


def main() -> int:
    """Play until stdin says stop or ends."""
    arguments = argparse.ArgumentParser(description="A recorded device on its wire again.")
    arguments.add_argument("--tape", type=Path, required=True)
    arguments.add_argument("--clock", type=Path, required=True)
    arguments.add_argument("--speed", type=float, required=True, help="0: as fast as possible")
    options = arguments.parse_args()
    tracks: list[Track] = []
    time = ReplayTime(options.clock)
    try:
        for track in read(options.tape):
            if isinstance(track, BridgeTracks):
                tracks.append(BridgeTrack(track, time, still=options.speed != 1.0))
                continue
            if track.wire != "openephys":
                raise TapeError(f"{options.tape}: no player for the wire {track.wire!r}")
            tracks.append(OpenEphysTrack(track))
    except TapeError as error:
        return child.fail(str(error), "make the tape again with this version of the program")
    except WireError as error:
        return child.fail(error.reason, error.cure)
    else:
        orders = Orders()
        child.say(ready={"devices": [str(options.tape)]})
        Player(tracks, time, orders, options.speed).run()
        return 0
    finally:
        for one in tracks:
            one.close()
        time.close()


if __name__ == "__main__":
    child.shield()
    sys.exit(main())
