"""The bus: how a process sends documents to the recorder and gets the session's log from it, over ZMQ.

`rig.links.peer.Peer` is one process's end (DEALER), `Hub` the recorder's (ROUTER). A peer queues what it sends until
the recorder acknowledges it; it says `hello(last_seq)` and gets the log from there. Each entry carries the number of
the entry routed to that peer before it: a mismatch, a restarted recorder or a silent one lead to the same `hello`
again, which is the only way a peer catches up. Neither class computes anything or decides an order. Both take what
comes as hostile: it is bounded, checked, counted and never raises.

Wire: frame 0 is JSON with "op" (`rig.links.bus_wire`); hello {name, process, last_seq, wants, first_unacked, protocol,
program, session}, doc {n, cause} + document frames, got {seq}; back: welcome {acked, session}, ack {n}, entry {prev} +
envelope + document frames, refused {n, why}, who {}, no {why}: the peer is not taken at all, full {why}: the journal
takes nothing at the moment; the peer keeps its documents and says hello until it is welcome.
"""

from collections.abc import Collection

import zmq

from rig.encoding import MAX_ARRAY_BYTES
from rig.links.bus_wire import (
    MOST_WAITING,
    PROTOCOL,
    Got,
    Hello,
    Incoming,
    Malformed,
    Submitted,
    head_bytes,
    parse_incoming,
    said,
)
from rig.links.curve import Door
from rig.links.keys import ServerKeys
from rig.links.loopback import require_loopback

__all__ = ["Got", "Hello", "Hub", "Incoming", "Malformed", "Submitted", "parse_incoming", "said"]

MOST_OUT = 500  # messages to one peer that its socket holds: the credit of entries, and acknowledgements
MOST_PEERS = 32  # peers that nobody announced
RECORDER = "recorder"
REMOTE = "model"  # the one name that may speak from another computer

_json = head_bytes


class Hub:
    """The recorder's end: a socket for the processes of this computer and, with keys, one for a remote model server.

    `expected` (names), `session` (identity) and `program` (version) are set by the recorder before the first `poll`.
    """

    def __init__(self, endpoint: str, remote: tuple[str, ServerKeys] | None = None) -> None:
        """Bind; port 0 takes a free one. `remote`: address and keys for the model server.

        Raises OSError if an address is taken, NotPrivate if `endpoint` lies outside this computer.
        """
        require_loopback(endpoint, "the recorder cannot bind", "bind 127.0.0.1, and give processes.model_server")
        self.expected: frozenset[str] = frozenset()
        self.session = self.program = ""
        self._known: dict[str, zmq.Socket[bytes]] = {}
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._door: Door | None = None
        self._poller: zmq.Poller | None = None
        try:
            _prepare(self._socket)
            self._socket.bind(endpoint)
            self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
            self.remote_endpoint = "" if remote is None else self._open(*remote)
        except zmq.ZMQError as error:
            self.close()
            where = endpoint if remote is None or not hasattr(self, "endpoint") else remote[0]
            raise OSError(f"cannot bind {where}: {error}") from error

    def _open(self, endpoint: str, keys: ServerKeys) -> str:
        self._door = door = Door(zmq.ROUTER, keys)
        _prepare(door.socket)
        self._poller = zmq.Poller()
        for socket in (self._socket, *door.sockets):
            self._poller.register(socket, zmq.POLLIN)
        return door.bind(endpoint)

    def poll(self, timeout_s: float, limit: int = 500) -> list[Incoming]:
        """Return what peers sent, at most `limit` messages of each socket."""
        out: list[Incoming] = []
        if self._door is None or self._poller is None:
            self._drain(self._socket, int(timeout_s * 1000), limit, out)
            return out
        self._poller.poll(int(timeout_s * 1000))
        out += [Malformed("model server", why, "connection refused") for why in self._door.guard()]
        self._drain(self._socket, 0, limit, out)
        self._drain(self._door.socket, 0, limit, out)
        return out

    def _drain(self, socket: "zmq.Socket[bytes]", wait_ms: int, limit: int, out: list[Incoming]) -> None:
        for _ in range(limit):
            if not socket.poll(wait_ms):
                return
            wait_ms = 0
            identity, *frames = socket.recv_multipart()
            message = parse_incoming(identity, frames)
            out.append(self._checked(message, socket))

    def _checked(self, message: Incoming, socket: "zmq.Socket[bytes]") -> Incoming:
        """Let through who may speak on this socket under this name."""
        name = message.name
        if isinstance(message, Malformed) or not name:
            return message
        if self._door is not None and (socket is self._door.socket) != (name == REMOTE):
            here = "from another computer" if name != REMOTE else "from this computer: the config says it is another's"
            return Malformed(name, f"{name!r} may not speak {here}")
        if not isinstance(message, Hello):
            return message
        why, code = self._wrong(message, socket)
        if why:
            self._send(name, [_json(op="no", why=why, code=code)], socket)
            return Malformed(name, why, "peer refused")
        self._known[name] = socket
        return message

    def keep(self, names: Collection[str]) -> None:
        """Forget all peers but these."""
        for name in self._known.keys() - names:
            del self._known[name]

    def _wrong(self, hello: Hello, socket: "zmq.Socket[bytes]") -> tuple[str, str]:
        """Return why this peer is not taken, and the code of that; "" and "" if it is."""
        name, others = hello.name, self._known.keys() - self.expected
        if name == RECORDER:
            return f"{name} is this end's own name: take another one", ""
        if name not in self._known and name not in self.expected and len(others) >= MOST_PEERS:
            return f"more than {MOST_PEERS} peers that the config does not name: end some, try again in a minute", ""
        if hello.protocol != PROTOCOL:
            why = f"{hello.name} speaks protocol {hello.protocol}, this is {PROTOCOL}: install one stimloop on both"
            return why, "version"
        remote = self._door is not None and socket is self._door.socket
        if remote and hello.program != self.program:
            mine, other = self.program or "unknown", hello.program or "unknown"
            return f"{hello.name} is stimloop {other}, this is {mine}: install the same on both computers", "version"
        if hello.session and hello.session != self.session:
            return f"{hello.name} comes from session {hello.session}, this is {self.session}", "session"
        return "", ""

    def _send(self, name: str, frames: list[bytes], socket: "zmq.Socket[bytes] | None" = None) -> bool:
        socket = self._known.get(name) if socket is None else socket
        if socket is None:
            socket = self._door.socket if self._door is not None and name == REMOTE else self._socket
        try:
            socket.send_multipart([name.encode(), *frames], flags=zmq.NOBLOCK)
        except zmq.ZMQError:  # gone, or it does not read; it will say hello when it is back
            return False
        return True

    def welcome(self, name: str, acked: int) -> bool:
        """Answer a hello: what of this process start is journalled."""
        return self._send(name, [_json(op="welcome", acked=acked, session=self.session)])

    def ack(self, name: str, n: int) -> bool:
        """Say that everything up to the sender's number `n` is journalled."""
        return self._send(name, [_json(op="ack", n=n)])

    def refuse(self, name: str, n: int, why: str) -> bool:
        """Say that document `n` was refused and will never be journalled."""
        return self._send(name, [_json(op="refused", n=n, why=why)])

    def full(self, name: str, why: str) -> bool:
        """Say that nothing can be journalled at the moment: the peer keeps its documents and asks again."""
        return self._send(name, [_json(op="full", why=why)])

    def no(self, name: str, why: str, code: str) -> bool:
        """Say that this peer is not taken; `code` as in `NotWelcome`."""
        return self._send(name, [_json(op="no", why=why, code=code)])

    def who(self, name: str) -> bool:
        """Ask an unknown peer to say hello."""
        return self._send(name, [_json(op="who")])

    def entry(self, name: str, prev: int, parts: list[bytes]) -> bool:
        """Send one entry (envelope, header, arrays); False if the peer is gone."""
        return self._send(name, [_json(op="entry", prev=prev), *parts])

    def close(self) -> None:
        """Close the sockets after sending what is queued."""
        self._socket.close()
        if self._door is not None:
            self._door.close()


def _prepare(socket: "zmq.Socket[bytes]") -> None:
    socket.setsockopt(zmq.LINGER, 200)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a restarted peer takes its name over
    socket.setsockopt(zmq.SNDHWM, MOST_OUT)
    socket.setsockopt(zmq.RCVHWM, MOST_WAITING)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_ARRAY_BYTES)
