"""The socket of the Event Broadcaster source: a thread that only receives and stamps, and sees the connection break.

Used by `rig.sources.openephys_events`; nothing here knows what the data mean. ZeroMQ reconnects by itself and in
silence, so its monitor is read as well: what was sent while nobody was connected is lost.
"""

import threading
from collections import deque

import zmq
from zmq.utils.monitor import recv_monitor_message

from rig.clock import Clock

MESSAGE_OVERHEAD = 300  # bytes of Python around a message
WAIT_MS = 50  # shorter than the first try to reconnect


class EventReceiver:
    """A SUB socket in a thread, with a budget of bytes and a count instead of silent loss."""

    def __init__(self, endpoint: str, budget_bytes: int, clock: Clock) -> None:
        """Connect and start the thread."""
        self.connected = False
        self.dropped = 0
        self._endpoint, self._budget, self._clock = endpoint, budget_bytes, clock
        self._queue: deque[tuple[int, list[bytes] | None, int]] = deque()
        self._came_bytes = 0  # written by the thread only
        self._taken_bytes = 0  # written by the reader only
        self._failure: Exception | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="receive events", daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        try:
            sub: zmq.Socket[bytes]
            with zmq.Context.instance().socket(zmq.SUB) as sub:
                sub.setsockopt(zmq.RCVHWM, 0)  # the default of 1,000 loses messages without a trace
                sub.setsockopt(zmq.LINGER, 0)
                sub.setsockopt(zmq.RECONNECT_IVL, 2 * WAIT_MS)
                sub.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
                sub.subscribe(b"")
                # A handshake, not a mere connection: other kinds of server accept and then refuse a SUB.
                wanted = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
                monitor: zmq.Socket[bytes] = sub.get_monitor_socket(wanted)
                sub.connect(self._endpoint)
                poller = zmq.Poller()
                poller.register(sub, zmq.POLLIN)
                poller.register(monitor, zmq.POLLIN)
                while not self._end.is_set():
                    poller.poll(WAIT_MS)
                    self._drain(sub)  # before the news of the connection: what came before a break was before it
                    while monitor.poll(0):
                        self._connection(int(recv_monitor_message(monitor)["event"]))
                sub.disable_monitor()
                monitor.close(0)
        except zmq.ZMQError as error:
            self._failure = error

    def _connection(self, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.connected = True
        elif self.connected:
            self.connected = False
            self._queue.append((self._clock.now_ns(), None, 0))

    def _drain(self, sub: "zmq.Socket[bytes]") -> None:
        while not self._end.is_set():
            try:
                frames = sub.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            now = self._clock.now_ns()
            size = sum(map(len, frames)) + MESSAGE_OVERHEAD
            if self._came_bytes - self._taken_bytes + size > self._budget:
                self.dropped += 1
                continue
            self._came_bytes += size
            self._queue.append((now, frames, size))

    @property
    def waiting(self) -> int:
        """Number of messages not taken yet."""
        return len(self._queue)

    def take(self, limit: int) -> list[tuple[int, list[bytes] | None]]:
        """Return up to `limit` messages with their arrival, host ns; None for a break of the connection.

        Raises what ended the thread.
        """
        if self._failure is not None:
            raise self._failure
        out: list[tuple[int, list[bytes] | None]] = []
        for _ in range(min(limit, len(self._queue))):
            arrival, frames, size = self._queue.popleft()
            self._taken_bytes += size
            out.append((arrival, frames))
        return out

    def close(self) -> None:
        """End the thread and its socket."""
        self._end.set()
        self._thread.join()
