"""The thread of a source that only receives and stamps, so that what it stamps is not late.

Used by the sources of the open wires (`zmq_feed`) and of the Event Broadcaster; nothing here knows what the data mean.
"""

import threading
from collections import deque

import zmq

from rig.clock import Clock
from rig.sources.sockets import Subscription

MESSAGE_OVERHEAD = 300  # bytes of Python around a message
WAIT_MS = 50  # shorter than the first try to reconnect


class Inbox:
    """A subscription in a thread, within a budget of bytes; what goes beyond is counted instead of lost in silence."""

    def __init__(self, endpoint: str, budget_bytes: int, most_bytes: int, clock: Clock) -> None:
        """Connect and start the thread; a frame over `most_bytes` breaks the connection, which is then made anew."""
        self.connected = False
        self.dropped = 0
        self._endpoint, self._budget, self._most, self._clock = endpoint, budget_bytes, most_bytes, clock
        self._queue: deque[tuple[int, list[bytes] | None, int]] = deque()
        self._came_bytes = 0  # written by the thread only
        self._taken_bytes = 0  # written by the reader only
        self._failure: Exception | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="receive", daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        subscription = None
        try:
            subscription = Subscription(zmq.Context.instance(), self._endpoint, self._most)
            sub = subscription.sub
            while not self._end.is_set():
                subscription.wait(WAIT_MS, lambda: self._drain(sub), self._connection)
        except Exception as error:  # noqa: BLE001 - whatever it was, `take` must raise it: nobody else would see it
            self._failure = error
        finally:
            if subscription is not None:
                subscription.close()

    def _connection(self, made: bool) -> None:
        if self.connected and not made:
            self._queue.append((self._clock.now_ns(), None, 0))
        self.connected = made

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
