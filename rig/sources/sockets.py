"""The two kinds of ZMQ sockets that sources have: one that subscribes to everything, one that asks.

Used by all sources over ZMQ, in whichever thread or process receives; nothing here knows what the data mean. It loads
nothing but zmq.
"""

import errno
from collections.abc import Callable

import zmq

from rig.links.monitor import event_of

RECONNECT_MS = 100
RECONNECT_MAX_MS = 1000
MAX_REPLY_BYTES = 1 << 16


class Subscription:
    """A SUB socket without a limit of messages, which sees its connection break and always connects anew.

    libzmq reconnects by itself when a server goes, but never after a server sent a frame over the limit of bytes (seen
    with 4.3.5): the socket would be deaf for ever, in silence. So the monitor is read, and a broken connection is made
    anew here.
    """

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, most_bytes: int, slower: bool = True
    ) -> None:
        """Connect; a frame over `most_bytes` breaks the connection. `slower`: wait longer for a server that stays away.

        Raises zmq.ZMQError for an endpoint that is none.
        """
        self._endpoint = endpoint
        self.sub: zmq.Socket[bytes] = context.socket(zmq.SUB)
        self.sub.setsockopt(zmq.RCVHWM, 0)  # the default of 1,000 loses messages without a trace
        self.sub.setsockopt(zmq.MAXMSGSIZE, most_bytes)
        self.sub.setsockopt(zmq.LINGER, 0)
        self.sub.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        if slower:
            self.sub.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self.sub.subscribe(b"")  # everything: message numbers have holes otherwise
        # A handshake, not a mere connection: other kinds of server accept and then refuse a SUB.
        self._monitor: zmq.Socket[bytes] = self.sub.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self._poller = zmq.Poller()
        self._poller.register(self.sub, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        try:
            self.sub.connect(endpoint)
        except zmq.ZMQError:
            self.close()
            raise

    def wait(self, most_ms: int, drain: Callable[[], object], changed: Callable[[bool], object] | None = None) -> None:
        """Wait up to `most_ms` for something; `drain` takes what came, `changed` hears of a connection made or broken.

        What came before a break is drained before it is told.
        """
        ready = dict(self._poller.poll(most_ms))
        if self.sub in ready or self._monitor in ready:
            drain()
        if self._monitor not in ready:
            return
        while self._monitor.poll(0):
            made = event_of(self._monitor.recv_multipart()) == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if not made:
                drain()
                self._again()
            if changed is not None:
                changed(made)

    def _again(self) -> None:
        try:
            self.sub.disconnect(self._endpoint)
        except zmq.ZMQError as error:
            if error.errno != errno.ENOENT:  # it is gone already
                raise
        self.sub.connect(self._endpoint)

    def close(self) -> None:
        """Close the sockets."""
        self.sub.disable_monitor()
        self._monitor.close(0)
        self.sub.close(0)


def request_socket(endpoint: str) -> "zmq.Socket[bytes]":
    """Return a REQ socket that may ask again without an answer and queues nothing for a server that is away.

    Raises zmq.ZMQError for an endpoint that is none.
    """
    req: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    for option, value in (
        (zmq.REQ_RELAXED, 1),
        (zmq.REQ_CORRELATE, 1),
        (zmq.IMMEDIATE, 1),
        (zmq.LINGER, 0),
        (zmq.MAXMSGSIZE, MAX_REPLY_BYTES),
        (zmq.RECONNECT_IVL, RECONNECT_MS),
        (zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS),
    ):
        req.setsockopt(option, value)
    try:
        req.connect(endpoint)
    except zmq.ZMQError:
        req.close()
        raise
    return req
