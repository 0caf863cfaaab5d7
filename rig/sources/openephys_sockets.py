"""What the Open Ephys source is connected to: the process that receives for it, and the heartbeat.

Used by `rig.sources.openephys`; nothing here knows what the data mean.
"""

import queue
import subprocess
import sys
import threading
from typing import IO

import zmq

from rig.sources.openephys_batches import HEAD, LONGEST, Arrived, Received, messages, unpack_head
from rig.sources.openephys_parse import heartbeat_request, who_replied
from rig.sources.sockets import request_socket

HEARTBEAT_NS = 2_000_000_000
FEW_BATCHES = 16  # read ahead; what more there is stays with the receiving process, which counts it
END_S = 3.0


class ReceiverDied(RuntimeError):
    """The receiving process ended by itself."""


class Receiver:
    """A process that does nothing but receive (`openephys_receiver`), and a thread that reads its pipe.

    At most `budget_bytes` wait in it; what goes beyond is dropped and counted in `dropped`, with the host time of the
    first drop in `dropped_since_ns` (the reader sets that back to None).
    """

    def __init__(self, endpoint: str, budget_bytes: int, channels: tuple[int, ...] = ()) -> None:
        """Start the process; it connects by itself. The voltage of `channels` comes with their messages."""
        command = [sys.executable, "-m", "rig.sources.openephys_receiver", "--endpoint", endpoint]
        command += ["--budget", str(budget_bytes), "--channels", ",".join(map(str, channels))]
        self.priority = ""
        self.dropped = 0
        self.dropped_since_ns: int | None = None
        self._closing = False
        self._garbage = ""  # why its pipe was no longer read
        self._over = threading.Event()
        self._batches: queue.Queue[Received] = queue.Queue(FEW_BATCHES)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._thread = threading.Thread(target=self._read, name="receive", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Process id of the receiving process."""
        return self._process.pid

    def _read(self) -> None:
        """Read batches until the process ends (thread body)."""
        pipe = self._process.stdout
        assert pipe is not None  # noqa: S101 - it was asked for
        self.priority = pipe.readline().decode().strip()
        try:
            while (batch := _read_batch(pipe)) is not None:
                while not self._closing:
                    try:
                        self._batches.put(batch, timeout=0.1)
                        break
                    except queue.Full:
                        continue
        except ValueError as error:
            self._garbage = str(error)
        finally:
            if not self._closing:  # nobody reads its pipe any more: it must not go on as if
                self._process.kill()
            self._over.set()

    def take(self) -> list[Arrived]:
        """Return the messages of one batch, none if nothing came; raises ReceiverDied."""
        try:
            batch = self._batches.get_nowait()
        except queue.Empty:
            if self._over.is_set() and not self._closing:
                ended = f"the receiving process ended with exit code {self._process.wait()}"
                raise ReceiverDied(self._garbage or ended) from None
            return []
        if batch.dropped > self.dropped:
            self.dropped = batch.dropped
            self.dropped_since_ns = self.dropped_since_ns or batch.dropped_since_ns
        return messages(batch)

    def close(self) -> None:
        """End the process and the thread."""
        self._closing = True
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:  # stopped by a debugger, say
            self._process.kill()
            self._process.wait()
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _read_batch(pipe: IO[bytes]) -> Received | None:
    """Return the next batch, None at the end of the pipe."""
    head = pipe.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    length = HEAD.unpack(head)[0] - (HEAD.size - 4)
    if not 0 <= length <= LONGEST:
        raise ValueError(f"the receiving process wrote a batch of {length} bytes")
    body = pipe.read(length)
    return unpack_head(head, body) if len(body) == length else None


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
