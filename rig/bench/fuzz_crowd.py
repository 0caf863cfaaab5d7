"""Eight hostile peers of a recorder, for `stimloop bench fuzz`: what they say, under which names, with which keys."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import zmq

from rig.bench import fuzz_samples as samples
from rig.bench.fuzz_messages import Mutator
from rig.links.keys import client_keys
from rig.provenance import program

CONNECTIONS = 8
STAYS = 0.998  # share of messages after which a connection is not renewed


class Crowd:
    """Connections to a recorder, each renewed now and then under another name."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, keys: Path | None, rng: np.random.Generator
    ) -> None:
        """Connect to `endpoint`; `keys`: of a remote model server, with those of others beside them, None for none."""
        self._context, self._endpoint, self._keys, self._rng = context, endpoint, keys, rng
        self._documents = Mutator(samples.documents(), rng)
        self._talk = Mutator(samples.bus(), rng)
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        self._numbers: dict[int, int] = {}
        self._names: dict[int, str] = {}

    def fire(self, k: int) -> None:
        """Send message number `k`, and read what came back."""
        socket, slot = self._connected(k), k % CONNECTIONS
        if k % (20 * CONNECTIONS) < CONNECTIONS:
            self._introduce(socket, slot, k)
        try:
            socket.send_multipart(self._message(slot), zmq.NOBLOCK)
        except zmq.Again:  # refused at the door: nobody reads there
            return
        while socket.poll(0):
            socket.recv_multipart()

    def close(self) -> None:
        """Close all connections."""
        for socket in self._sockets.values():
            socket.close(0)

    def _connected(self, k: int) -> "zmq.Socket[bytes]":
        slot = k % CONNECTIONS
        if slot in self._sockets and self._rng.random() < STAYS:
            return self._sockets[slot]
        if slot in self._sockets:
            self._sockets.pop(slot).close(0)
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        name = ("probe", "model", f"n{k}", f"\xff{k}")[slot % 4]
        if self._keys is not None:
            name = "model" if slot % 4 else f"n{k}"
        socket.setsockopt(zmq.IDENTITY, name.encode("latin1"))
        socket.setsockopt(zmq.SNDHWM, 200)
        socket.setsockopt(zmq.LINGER, 0)
        if self._keys is not None and slot != CONNECTIONS - 1:  # the last one comes without keys
            own = client_keys((self._keys if slot != 6 else self._keys.parent / "others") / "model")
            socket.setsockopt(zmq.CURVE_SERVERKEY, client_keys(self._keys / "model").server)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret)
        socket.connect(self._endpoint)
        self._sockets[slot], self._names[slot] = socket, name
        return socket

    def _introduce(self, socket: "zmq.Socket[bytes]", slot: int, k: int) -> None:
        """Say hello as a new start, so that the next document is number 1 and is really looked at."""
        hello = {
            "op": "hello", "name": self._names[slot], "process": f"x-{k}", "last_seq": 0, "wants": [],
            "first_unacked": 1, "protocol": 1, "program": program(), "session": "",
        }  # fmt: skip
        with suppress(zmq.Again):
            socket.send(json.dumps(hello).encode(), zmq.NOBLOCK)
        self._numbers[slot] = 1

    def _message(self, slot: int) -> list[bytes]:
        if self._rng.random() < 0.3:
            return self._talk.message()
        if self._rng.random() < 0.1:
            return self._documents.message()
        # A well-formed head with a wrong document: it reaches what decodes and folds.
        head = json.dumps({"op": "doc", "n": self._numbers[slot], "cause": None}).encode()
        self._numbers[slot] += 1
        return [head, *self._documents.message()]
