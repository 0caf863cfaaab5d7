"""The two sockets of the fake Open Ephys plugin: PUB for data, REP for heartbeats with the thread that answers.

Used by `openephys_server`. The data socket belongs to the thread that sends; it never waits for a listener.
"""

import threading
from collections.abc import Callable
from typing import Literal

import zmq

from rig.animal.openephys_wire import heartbeat_reply
from rig.animal.wire import WireError

HEARTBEAT_POLL_MS = 100
AT_ONCE = 64  # messages between two pauses: the GUI takes some 40 us for each, the last of 384 comes after 16 ms
PAUSE_S = 0.001
FAREWELL_MS = 200  # how long a closing PUB may take to hand its last messages to the network
Conflict = Literal["none", "heartbeat", "data"]


class Ports:
    """Data on `port`, heartbeats on `port + 1`; what a port conflict makes of that with `conflict`.

    "heartbeat": the next port was taken, so that the plugin sends on `port + 2` and answers nobody. "data": `port` was
    taken; data go nowhere while heartbeats are answered. Raises WireError where a port is really taken.
    """

    def __init__(
        self,
        port: int,
        muted: Callable[[], bool],
        conflict: Conflict = "none",
        address: str = "127.0.0.1",
        kind: int = zmq.PUB,
    ) -> None:
        """Bind to `address`, heartbeat first as the plugin does. With `kind` XPUB `subscribed` sees who listens."""
        self._address = address
        self._listened = False
        self._muted = muted
        self._context = zmq.Context()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._data: zmq.Socket[bytes] | None = None
        if conflict != "heartbeat":
            heartbeat = self._bind(zmq.REP, port + 1, linger_ms=0)
        # The GUI sets no high-water mark, so neither do we: 1000 messages per listener, the rest is lost in silence.
        if conflict != "data":
            try:
                self._data = self._bind(kind, port + 2 * (conflict == "heartbeat"), linger_ms=FAREWELL_MS)
            except WireError:
                if conflict != "heartbeat":
                    heartbeat.close()
                self._context.destroy(linger=0)
                raise
        if conflict != "heartbeat":
            self._thread = threading.Thread(target=self._answer, args=(heartbeat,), name="heartbeat", daemon=True)
            self._thread.start()

    def _bind(self, kind: int, port: int, linger_ms: int) -> "zmq.Socket[bytes]":
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.linger = linger_ms
        try:
            socket.bind(f"tcp://{self._address}:{port}")
        except zmq.ZMQError as error:
            socket.close()
            if kind == zmq.REP:
                self._context.destroy(linger=0)
            what = "heartbeat" if kind == zmq.REP else "data"
            raise WireError(
                f"port {port} ({what} of the Open Ephys wire) cannot be opened: {error.strerror}",
                "end the program that holds it (another animal, an Open Ephys GUI), or give the source of type"
                " openephys another `port`; the wire takes that port and the next one",
            ) from error
        return socket

    def _answer(self, heartbeat: "zmq.Socket[bytes]") -> None:
        """Answer heartbeats until closing (thread body)."""
        while not self._closing.is_set():
            if not heartbeat.poll(HEARTBEAT_POLL_MS):
                continue
            if self._muted():
                self._closing.wait(HEARTBEAT_POLL_MS / 1000)  # the request stays unread until the fault is lifted
                continue
            heartbeat.send(heartbeat_reply(heartbeat.recv()))
        heartbeat.close()

    def subscribed(self) -> bool:
        """Whether somebody listens by now; only with an XPUB socket."""
        while not self._listened and self._data is not None and self._data.poll(0):
            self._listened = self._data.recv().startswith(b"\x01")
        return self._listened

    def send(self, messages: list[tuple[bytes, bytes, bytes]]) -> None:
        """Hand messages of three frames to the network, not faster than the GUI does.

        All at once would overrun the 1000 that may wait for a listener, which then loses what it never could have had.
        """
        if self._data is None:
            return
        send, more = self._data.send, zmq.SNDMORE
        for k, (envelope, header, payload) in enumerate(messages, 1):
            send(envelope, more)
            send(header, more)
            send(payload)
            if k % AT_ONCE == 0:
                self._closing.wait(PAUSE_S)

    def break_off(self, message: tuple[bytes, bytes, bytes]) -> None:
        """Die in the middle of a message: whatever is queued is lost with it."""
        if self._data is not None:
            self._data.send(message[0], zmq.SNDMORE)
            self._data.send(message[1], zmq.SNDMORE)
        self.close(linger_ms=0)

    def close(self, linger_ms: int = FAREWELL_MS) -> None:
        """Close both sockets and end the heartbeat thread; a second call does nothing."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._data is not None:
            self._data.close(linger=linger_ms)
            self._data = None
        self._context.term()
