"""Parts of the program that read what others wrote, under fire: `python -m rig.bench.fuzz_target PART MESSAGES SEED`.

Prints one line of JSON: messages, refused, accepted, growth of memory after the first tenth (MB), seconds. Anything
that a part raises beyond what it says it raises ends the process with its traceback.
"""

import contextlib
import io
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import zmq

from rig.bench.fuzz_messages import Mutator
from rig.bench.fuzz_samples import documents
from rig.clock import HostClock
from rig.config.sources import LslSpikeSource
from rig.encoding import BadDocument, decode, decode_entry, encode, encode_entry, pack
from rig.links.peer import NotWelcome, Peer
from rig.messages import Envelope
from rig.sources.columns import Faults
from rig.sources.lsl_rows import Lane
from rig.sources.lsl_spikes import SpikeReader
from rig.sources.lsl_streams import Described, Pulled, Restarted, WrongStream, host_ns
from rig.sources.openephys_http import GuiError, mode


def _envelope(seq: int) -> Envelope:
    return Envelope(seq=seq, receipt_host_ns=1, sender="rig", process="rig-1", sender_seq=seq)


def _decoding(messages: Mutator) -> Callable[[], bool]:
    def one() -> bool:
        try:
            encode(decode(messages.message()))
        except BadDocument:
            return False
        return True

    return one


def _bodies(messages: Mutator, rng: np.random.Generator) -> Callable[[], bool]:
    """Bodies of journal records: packed wrong parts, and whole bodies with wrong bytes."""
    whole = Mutator([[encode_entry(_envelope(k + 1), d)] for k, d in enumerate(documents())], rng)

    def one() -> bool:
        try:
            decode_entry(whole.message()[0] if rng.random() < 0.5 else pack(messages.message()))
        except BadDocument:
            return False
        return True

    return one


def _peer(messages: Mutator) -> Callable[[], bool]:
    """Return what sends one message of a hostile recorder to a peer."""
    hub: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    hub.setsockopt(zmq.LINGER, 0)
    hub.setsockopt(zmq.SNDHWM, 0)
    port = hub.bind_to_random_port("tcp://127.0.0.1")
    peer = Peer("victim", f"tcp://127.0.0.1:{port}", frozenset({"fault"}), HostClock())
    seen = 0

    def one() -> bool:
        nonlocal seen
        if not seen:
            with contextlib.suppress(NotWelcome):
                peer.poll(0.01)
        while hub.poll(0):
            hub.recv_multipart()
        seen += 1
        try:
            hub.send_multipart([b"victim", *messages.message()], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        before = peer.malformed
        with contextlib.suppress(NotWelcome):
            return bool(peer.poll(0.002)) or peer.malformed == before
        return False

    return one


def _peer_samples() -> list[list[bytes]]:
    head = [
        {"op": "welcome", "acked": 0, "session": "s-1"}, {"op": "ack", "n": 3}, {"op": "who"},
        {"op": "full", "why": "disk"},
        {"op": "refused", "n": 1, "why": "no"}, {"op": "no", "why": "version", "code": "version"},
    ]  # fmt: skip
    entries = [
        [json.dumps({"op": "entry", "prev": 0}).encode(), _envelope(k + 1).model_dump_json().encode(), *frames]
        for k, frames in enumerate(documents())
    ]
    return [*([json.dumps(h).encode()] for h in head), *entries, *entries]


def _http(rng: np.random.Generator) -> Callable[[], bool]:
    """Return what asks a GUI whose HTTP server answers anything."""
    good = b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"mode": "ACQUIRE"}'
    bodies = [b"[" * 60_000, b'{"mode": ["IDLE"]}', b'{"mode": 1e999}', b'{"mode": {}}', b"\xff", b"null"]
    bodies.append(b'{"mode": "IDLE"}')
    heads = [b"HTTP/1.1 200 OK", b"HTTP/9.9 -1", b"HTTP/1.1 99999999999 X", b"ICY 200", b"HTTP/1.0 404 \xff"]
    fields = [b"Content-Length: 99999999999", b"Content-Length: -5", b"Transfer-Encoding: chunked",
              b"X: " + b"y" * 70_000,
              b"Content-Encoding: gzip", b"", *[b"A: b\r\n" * 200]]  # fmt: skip
    mutator = Mutator([[good]], rng)

    def answer() -> bytes:
        if rng.random() < 0.5:
            return b"\r\n".join(mutator.message())
        parts = (heads, fields, bodies)
        head, field, body = (p[int(rng.integers(len(p)))] for p in parts)
        return head + b"\r\n" + field + b"\r\n\r\n" + body

    server = socket.create_server(("127.0.0.1", 0))
    port = int(server.getsockname()[1])

    def serve() -> None:
        while True:
            try:
                connection = server.accept()[0]
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(4096)
                connection.sendall(answer())

    threading.Thread(target=serve, daemon=True).start()

    def one() -> bool:
        try:
            mode("127.0.0.1", port, timeout_s=0.5)
        except GuiError:
            return False
        return True

    return one


def _lsl(rng: np.random.Generator) -> Callable[[], bool]:
    """Chunks of LSL rows with impossible values and stamps, into the reader of spikes and into a bare lane."""
    bad = 0.1  # of each value and stamp
    hostile = np.array([np.nan, np.inf, -np.inf, 1e308, -1e308, 2.0**53, 2.0**63, -1, -2, 0, 0.5, 1, 2, 1000])
    stream = Described("s", "id-s", "host", "double64", 0.0, ("unit", "sample"), units=("a", "b"), device_hz=3e4)
    state: dict[str, Any] = {}

    def fresh() -> None:
        state["faults"] = Faults()
        source = LslSpikeSource(stream="s", edges=None, photodiode_line=None)
        state["reader"] = SpikeReader(source, [stream], state["faults"])
        state["lane"] = Lane("spikes", 2)

    fresh()
    clock = HostClock()

    def one() -> bool:
        n = int(rng.integers(1, 4))
        wide = 2 if rng.random() < 0.9 else int(rng.integers(0, 5))
        values = np.where(rng.random((n, wide)) < bad, rng.choice(hostile, (n, wide)), rng.integers(0, 2, (n, wide)))
        now = clock.now_ns()
        stamps = np.where(rng.random(n) < bad, rng.choice(hostile, n), now * 1e-9 - rng.random(n))
        try:
            with np.errstate(all="ignore"):
                pulled = Pulled(values.astype(np.float64), stamps, host_ns(stamps, 0.0, 0), now)
            state["reader"].take(0, pulled)
            state["reader"].harvest(1, now)
        except (Restarted, WrongStream):
            fresh()
        refused = len(state["faults"].due(now + 10**10, everything=True))
        taken = state["lane"].take(values.tolist())
        return refused == 0 and not taken.refused

    return one


def main(arguments: list[str]) -> int:
    """Fire `messages` messages at the part `name`."""
    name, count, seed = arguments[0], int(arguments[1]), int(arguments[2])
    rng, clock, process = np.random.default_rng(seed), HostClock(), psutil.Process()
    parts: dict[str, Callable[[], Callable[[], bool]]] = {
        "documents": lambda: _decoding(Mutator(documents(), rng)),
        "journal": lambda: _bodies(Mutator(documents(), rng), rng),
        "peer": lambda: _peer(Mutator(_peer_samples(), rng)),
        "http": lambda: _http(rng),
        "lsl": lambda: _lsl(rng),
    }
    one = parts[name]()
    start, accepted, base = clock.now_ns(), 0, 0
    with contextlib.redirect_stdout(io.StringIO()):
        for k in range(count):
            if k == count // 10:
                base = process.memory_info().rss
            accepted += one()
    growth = (process.memory_info().rss - base) / 1e6
    seconds = (clock.now_ns() - start) * 1e-9
    row = {"messages": count, "refused": count - accepted, "accepted": accepted}
    print(json.dumps({**row, "rss_growth_mb": round(growth, 1), "seconds": round(seconds, 1)}))  # noqa: T201 - its answer
    sys.stdout.flush()
    os._exit(0)  # sockets and the server thread go with the process


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
