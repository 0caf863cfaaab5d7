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
SILENT_S = 3.0  # the receiving process writes every 0.5 s, whatever its device does; real time, also in a replay
LOOK_AGAIN_S = 1.0  # of these: who was stopped himself finds his time over and all that came still in the pipe


class ReceiverDied(RuntimeError):
    """The receiving process ended by itself, or does not go on."""


class Receiver:
    """A process that does nothing but receive (`openephys_receiver`), and a thread that reads its pipe.

    At most `budget_bytes` wait in it; what goes beyond is dropped and counted in `dropped`, with the host time of the
    first drop in `dropped_since_ns` (the reader sets that back to None).
    """

    def __init__(
        self, endpoint: str, budget_bytes: int, channels: tuple[int, ...] = (), realtime: bool = True
    ) -> None:
        """Start the process; it connects by itself. The voltage of `channels` comes with their messages.

        `realtime`: it asks for the lowest real-time priority.
        """
        command = [sys.executable, "-m", "rig.sources.openephys_receiver", "--endpoint", endpoint]
        command += ["--budget", str(budget_bytes), "--channels", ",".join(map(str, channels))]
        command += [] if realtime else ["--ordinary"]
        self.priority = ""
        self.dropped = 0
        self.dropped_since_ns: int | None = None
        self._closing = False
        self._why = ""  # it was killed, where that was our doing
        self._heard = threading.Event()  # its pipe has said something
        self._over = threading.Event()
        self._batches: queue.Queue[Received] = queue.Queue(FEW_BATCHES)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._thread = threading.Thread(target=self._read, name="receive", daemon=True)
        self._thread.start()
        self._watch_thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._watch_thread.start()

    @property
    def pid(self) -> int:
        """Process id of the receiving process."""
        return self._process.pid

    def _read(self) -> None:
        """Read batches until the process ends (thread body)."""
        pipe = self._process.stdout
        assert pipe is not None  # noqa: S101 - it was asked for
        self.priority = pipe.readline().decode().strip()
        self._heard.set()
        try:
            while (batch := _read_batch(pipe)) is not None:
                while not self._closing:
                    self._heard.set()  # also while the source does not read: it is not the one who is silent
                    try:
                        self._batches.put(batch, timeout=0.1)
                        break
                    except queue.Full:
                        continue
        except ValueError as error:
            self._why = str(error)
        finally:
            if not self._closing:  # nobody reads its pipe any more: it must not go on as if
                self._process.kill()
            self._over.set()
            self._heard.set()

    def _watch(self) -> None:
        """Kill the process if it stands still (thread body); its start-up does not count."""
        self._heard.wait()
        while not (self._over.is_set() or self._closing):
            self._heard.clear()
            if not (self._heard.wait(SILENT_S - LOOK_AGAIN_S) or self._heard.wait(LOOK_AGAIN_S) or self._over.is_set()):
                self._why = f"the receiving process stood still for {SILENT_S:g} s"
                self._process.kill()
                return

    def take(self) -> list[Arrived]:
        """Return the messages of one batch, none if nothing came; raises ReceiverDied."""
        while True:
            try:
                batch = self._batches.get_nowait()
            except queue.Empty:
                if self._over.is_set() and not self._closing:
                    ended = f"the receiving process ended with exit code {self._process.wait()}"
                    raise ReceiverDied(self._why or ended) from None
                return []
            if batch.dropped > self.dropped:
                self.dropped = batch.dropped
                self.dropped_since_ns = self.dropped_since_ns or batch.dropped_since_ns
            if batch.count:  # others only say that it lives
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
        self._heard.set()
        self._watch_thread.join()
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
