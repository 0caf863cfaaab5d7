"""Encrypted sockets: a door that only listed keys pass, and the client's end of such a link.

Used by `rig.links.bus` and `rig.links.peer` for a model server on another computer, and by `rig.display.guest`. libzmq
asks about each key over ZAP (rfc.zeromq.org/spec/27); the answers are given in the loop of whoever owns the
door, without a thread.
"""

import zmq
from zmq.utils import z85

from rig.links.keys import ClientKeys, ServerKeys
from rig.links.monitor import event_of

HEARTBEAT_MS = 1_000
SILENT_MS = 5_000  # a link is cut that brought nothing for so long
HANDSHAKE_MS = 10_000
MOST_AT_ONCE = 100
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
# Only the client has a heartbeat. libzmq 4.3.5 ends the process ("Assertion failed: !_io_error") where a socket with
# one has stopped reading at its high-water mark and the connection then breaks; found by `stimloop bench fuzz`. So the
# server, which must have such a mark, has none: it tells from the client's silence (`rig.links.model_link`), a client
# that connects anew takes its name over from the dead connection (ROUTER_HANDOVER), and TCP clears that one away, by
# what cannot be delivered after 5 s or by its keepalive after 25 s. The client gets no more than its credit: no mark.
_HEARTBEAT = ((zmq.HEARTBEAT_IVL, HEARTBEAT_MS), (zmq.HEARTBEAT_TIMEOUT, SILENT_MS))
_OPTIONS = (
    (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
    (zmq.TCP_MAXRT, SILENT_MS),
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 10),
    (zmq.TCP_KEEPALIVE_INTVL, 5),
    (zmq.TCP_KEEPALIVE_CNT, 3),
)


class Door:
    """A socket that listed keys may connect to, with a ZMQ context of its own (ZAP is one per context).

    Set further options on `socket`, then `bind`; poll all of `sockets` and call `guard` often, since a
    handshake waits for it.
    """

    def __init__(self, kind: int, keys: ServerKeys) -> None:
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._zap: zmq.Socket[bytes] = self._context.socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind("inproc://zeromq.zap.01")
        self.socket: zmq.Socket[bytes] = self._context.socket(kind)
        for option, value in _OPTIONS:
            self.socket.setsockopt(option, value)
        self.socket.setsockopt(zmq.CURVE_SERVER, 1)
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        self.socket.setsockopt(zmq.ZAP_DOMAIN, b"stimloop")
        self._monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(_FAILED & ~zmq.EVENT_HANDSHAKE_FAILED_AUTH)

    @property
    def sockets(self) -> tuple["zmq.Socket[bytes]", ...]:
        """All sockets to poll."""
        return self.socket, self._zap, self._monitor

    def bind(self, endpoint: str) -> str:
        """Bind; return the address in full. Raises zmq.ZMQError."""
        self.socket.bind(endpoint)
        return self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def guard(self) -> list[str]:
        """Answer who may come in; return in words who was refused since the last call."""
        refused = []
        for _ in range(MOST_AT_ONCE):
            if not self._zap.poll(0):
                break
            refused += self._answer(self._zap.recv_multipart())
        for _ in range(MOST_AT_ONCE):
            if not self._monitor.poll(0):
                break
            self._monitor.recv_multipart()
            refused.append("a connection without keys, with the key of another server, or cut during its handshake")
        return refused

    def _answer(self, request: list[bytes]) -> list[str]:
        # version, request id, domain, address, identity, mechanism, credentials (for CURVE the client's key, raw)
        version, number, _domain, address, _identity, mechanism, *credentials = request
        key = z85.encode(credentials[0]) if mechanism == b"CURVE" and len(credentials) == 1 else b""
        name = self._keys.allowed.get(key)
        verdict = [b"400", b"unknown key", b""] if name is None else [b"200", b"", name.encode()]
        self._zap.send_multipart([version, number, *verdict, b""])
        where = address.decode("ascii", "replace")[:60]
        listed = self._keys.folder / "allowed"
        return [] if name is not None else [f"{where}: the key {key.decode('ascii', 'replace')} is not in {listed}"]

    def close(self, linger_ms: int = 200) -> None:
        """Close the sockets and end the context."""
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(linger_ms)
        self._zap.close(0)
        self._context.term()


class Link:
    """What the client's end of a link sees of it: whether it stands and, if not, why."""

    def __init__(self, socket: "zmq.Socket[bytes]", keys: ClientKeys) -> None:
        """Prepare `socket`, which is not connected yet."""
        for option, value in (*_OPTIONS, *_HEARTBEAT, (zmq.RCVHWM, 0)):
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        self._name = keys.name
        self._socket = socket
        self._monitor: zmq.Socket[bytes] = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _FAILED
        )
        self._was = ""

    def news(self) -> list[str]:
        """Return in words what became of the link since the last call, each change once."""
        said = []
        while self._monitor.poll(0):
            event = event_of(self._monitor.recv_multipart())
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                now = "connected"
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                now = f"refused: the other end does not list the key {self._name}.key; copy it into its allowed/"
            elif event == zmq.EVENT_DISCONNECTED:
                now = "link lost; connecting again"
                if self._was.startswith("refused"):
                    continue  # what follows from it
            else:
                now = "no handshake: the other end has another server.key, or none"
            if now != self._was:
                self._was = now
                said.append(now)
        return said

    def close(self) -> None:
        """Stop watching; before the socket is closed."""
        self._socket.disable_monitor()
        self._monitor.close(0)
