"""A recorded bridge of the open wires again: its messages on the data port, its clock on the next.

Used by `rig.animal.replayed`. Messages come from the tape (`rig.animal.tape_file`) as they are. "time?" is answered by
the tape's line of the device's counter at the replayed host time of the question.

A source asks for the time four times a second of real time, whatever the replay's clock does. So that it does not take
its device for silent, the clock of the replay waits for its questions; and so that it knows the device's clock when it
did, it waits at the first recorded answers of a run until it has asked. Where the replay is faster than real time its
clock also stands still during the questions, so that a round trip is no longer than it was.
"""

import json
import threading
from typing import Any

import numpy as np
import zmq

from rig.animal.tape_file import BridgeTracks
from rig.animal.wire import WireError
from rig.animal.zmq_bridge import FAREWELL_MS, POLL_MS, VERSION
from rig.clock import ReplayTime

ASKED_NS = 1_500_000_000  # the clock goes no further than this from a question: after 2 s a source misses the answer
AT_FIRST = 12  # answers of a run: while a clock map is made of few, it must be known when it was in the recording
STILL_MS = 2  # the questions of a burst follow each other faster than this, unless the computer is loaded


class BridgeTrack:
    """One bridge: data on its port, the device's clock on the next."""

    def __init__(self, track: BridgeTracks, time: ReplayTime, still: bool) -> None:
        """Bind to loopback; `still`: the clock stands while a source asks. Raises WireError."""
        self._track, self._time, self._still, self._at = track, time, still, 0
        self._asking = False
        self._frames = np.concatenate([[0], track.message_end]).tolist()
        self._bytes = np.concatenate([[0], track.frame_end]).tolist()
        self._content = memoryview(track.content.tobytes())
        self._told_ns = np.ascontiguousarray(track.told[:, 0])
        first = [track.clock_host_ns[track.clock_run == run][:AT_FIRST] for run in range(len(track.runs))]
        self._stops_ns = np.concatenate(first)
        self._asked_ns: int | None = None
        self._listened = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._clock = self._bind(zmq.ROUTER, track.port + 1, linger_ms=0)
        self._data = self._bind(zmq.XPUB, track.port, linger_ms=FAREWELL_MS)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="clock", daemon=True)
        self._thread.start()

    def _bind(self, kind: int, port: int, linger_ms: int) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.linger = linger_ms
        socket.sndhwm = 0
        try:
            socket.bind(f"tcp://127.0.0.1:{port}")
        except zmq.ZMQError as error:
            socket.close()
            self._context.destroy(linger=0)
            what = "data" if kind == zmq.XPUB else "clock"
            reason = f"port {port} ({what} of the {self._track.wire} wire) cannot be opened: {error.strerror}"
            raise WireError(reason, "another program took it meanwhile; start the replay again") from error
        return socket

    # --- data ---

    @property
    def listened(self) -> bool:
        """Whether somebody has subscribed."""
        while not self._listened and self._data.poll(0):
            self._listened = self._data.recv().startswith(b"\x01")
        return self._listened

    @property
    def next_due_ns(self) -> int | None:
        """When the next message is due, ns; None at the end."""
        return int(self._track.due_host_ns[self._at]) if self._at < len(self._track.due_host_ns) else None

    @property
    def through_ns(self) -> int | None:
        """How far the clock may go before the source has asked again, ns; None after the last message."""
        if self._at == len(self._track.due_host_ns):
            return None
        asked_ns = self._asked_ns or int(self._track.due_host_ns[0])
        if self._asking and self._still:
            return asked_ns
        k = int(np.searchsorted(self._stops_ns, asked_ns, side="right"))
        stop_ns = int(self._stops_ns[k]) if k < len(self._stops_ns) else asked_ns + ASKED_NS
        return min(stop_ns, asked_ns + ASKED_NS)

    def send(self, through_ns: int) -> int:
        """Send everything that is due up to a time; return how many messages that were."""
        end = int(np.searchsorted(self._track.due_host_ns, through_ns, side="right"))
        first, self._at = self._at, max(end, self._at)
        for k in range(first, self._at):
            frames = range(self._frames[k], self._frames[k + 1])
            self._data.send_multipart([bytes(self._content[self._bytes[f] : self._bytes[f + 1]]) for f in frames])
        return self._at - first

    # --- the clock ---

    def _answer(self) -> None:
        """Tell the time until closing (thread body)."""
        while not self._closing.is_set():
            if not self._clock.poll(STILL_MS if self._asking else POLL_MS):
                self._asking = False
                continue
            *way, _ = self._clock.recv_multipart()
            now_ns = self._time.now_ns()
            self._asked_ns, self._asking = now_ns, True
            if (reply := self._reply(now_ns)) is not None:
                self._clock.send_multipart([*way, reply])
        self._clock.close()

    def _reply(self, now_ns: int) -> bytes | None:
        """Return what is answered at a host time, ns; None where nobody did."""
        track = self._track
        if any(begin <= now_ns < end for begin, end in track.mute_ns.tolist()):
            return None
        _, run, number = track.told[max(int(np.searchsorted(self._told_ns, now_ns, side="right")) - 1, 0)].tolist()
        if (sample := self._sample(run, now_ns)) is None:
            return None
        reply: dict[str, Any] = {"wire": track.wire, "version": VERSION, "run": track.runs[run], "number": number}
        return json.dumps(reply | {"sample": sample} | ({} if track.present else {"present": False})).encode()

    def _sample(self, run: int, now_ns: int) -> float | None:
        """Return where the device's counter was at a host time of a run, ns; None where the tape does not tell."""
        mine = self._track.clock_run == run
        host, sample = self._track.clock_host_ns[mine], self._track.clock_sample[mine]
        if not len(host):
            return None
        k = min(int(np.searchsorted(host, now_ns)), len(host) - 1)
        if host[0] < now_ns < host[-1]:
            slope = float(sample[k] - sample[k - 1]) / float(host[k] - host[k - 1])
        else:
            slope = self._track.rate_hz * 1e-9
        return max(float(sample[k]) - float(host[k] - now_ns) * slope, 0.0)

    def close(self) -> None:
        """End the wire."""
        self._closing.set()
        self._thread.join()
        self._data.close()
        self._context.term()
