"""The sockets of the Open Ephys source: a thread that only receives and stamps, and the heartbeat.

Used by `rig.sources.openephys`; nothing here knows what the data mean.
"""

import threading
from collections import deque

import zmq

from rig.clock import Clock
from rig.sources.openephys_parse import heartbeat_request, who_replied

HEARTBEAT_NS = 2_000_000_000
MESSAGE_OVERHEAD = 300  # bytes of Python around a message


class Receiver:
    """A SUB socket in a thread that does nothing else, with a budget of bytes and a count instead of silent loss."""

    def __init__(self, endpoint: str, budget_bytes: int, clock: Clock) -> None:
        """Connect and start the thread."""
        self._endpoint = endpoint
        self._budget = budget_bytes
        self._clock = clock
        self._queue: deque[tuple[int, list[bytes], int]] = deque()
        self._came_bytes = 0  # written by the thread only
        self._taken_bytes = 0  # written by the reader only
        self.dropped = 0
        self.dropped_since_ns: int | None = None
        self._end = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._receive, name="receive", daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        try:
            sub: zmq.Socket[bytes]
            with zmq.Context.instance().socket(zmq.SUB) as sub:
                sub.setsockopt(zmq.RCVHWM, 0)  # the default of 1,000 loses messages without a trace
                sub.setsockopt(zmq.LINGER, 0)
                sub.setsockopt(zmq.RECONNECT_IVL, 100)
                sub.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
                sub.subscribe(b"")  # everything: message numbers have holes otherwise
                sub.connect(self._endpoint)
                while not self._end.is_set():
                    if sub.poll(50):
                        self._drain(sub)
        except zmq.ZMQError as error:
            self._failure = error

    def _drain(self, sub: "zmq.Socket[bytes]") -> None:
        while not self._end.is_set():
            try:
                frames = sub.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            now = self._clock.now_ns()
            size = sum(map(len, frames)) + MESSAGE_OVERHEAD
            if self._came_bytes - self._taken_bytes + size > self._budget:
                if self.dropped_since_ns is None:
                    self.dropped_since_ns = now
                self.dropped += 1
                continue
            self._came_bytes += size
            self._queue.append((now, frames, size))

    @property
    def waiting(self) -> int:
        """Number of messages not taken yet."""
        return len(self._queue)

    def take(self, limit: int) -> list[tuple[int, list[bytes]]]:
        """Return up to `limit` messages with their arrival, host ns; raises what ended the thread."""
        if self._failure is not None:
            raise self._failure
        out = []
        for _ in range(min(limit, len(self._queue))):
            arrival, frames, size = self._queue.popleft()
            self._taken_bytes += size
            out.append((arrival, frames))
        return out

    def close(self) -> None:
        """End the thread and its socket."""
        self._end.set()
        self._thread.join()


class Heartbeat:
    """A REQ socket that asks every 2 s; the socket survives a frozen and a restarted GUI."""

    def __init__(self, endpoint: str, name: str, identity: str) -> None:
        """Connect."""
        self.replied_ns: int | None = None
        self.plugin: str | None = None
        self._request = heartbeat_request(f"stimloop {name}", identity)
        self._due_ns = 0
        self._socket = request_socket(endpoint)

    def beat(self, now_ns: int) -> None:
        """Send what is due, take what came; never waits."""
        while self._socket.poll(0):
            self.plugin = who_replied(self._socket.recv())
            self.replied_ns = now_ns
        if now_ns >= self._due_ns:
            self._due_ns = max(self._due_ns + HEARTBEAT_NS, now_ns)
            try:
                self._socket.send(self._request, zmq.NOBLOCK)
            except zmq.Again:  # nobody there at the moment: ask again soon
                self._due_ns = now_ns + HEARTBEAT_NS // 10

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def request_socket(endpoint: str) -> "zmq.Socket[bytes]":
    """Return a REQ socket that may ask again without an answer and queues nothing for a server that is away."""
    req: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    req.setsockopt(zmq.REQ_RELAXED, 1)
    req.setsockopt(zmq.REQ_CORRELATE, 1)
    req.setsockopt(zmq.IMMEDIATE, 1)
    req.setsockopt(zmq.LINGER, 0)
    req.connect(endpoint)
    return req
