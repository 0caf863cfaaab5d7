"""`stimloop bench fuzz`: hostile messages at every socket of the program, and what became of it.

Each socket belongs to a real process of its own, beside a recorder; a well-behaved peer goes on working meanwhile. A
row says how many messages were sent, what the log counted as refused, whether a process died, hung or grew, and
whether the well-behaved peer's documents were all journalled. What was accepted (a real message survives some of the
mutations) is read by another consumer of the log afterwards: the view must fold it.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zmq

from rig.bench import fuzz_samples as samples
from rig.bench.fuzz_crowd import Crowd
from rig.bench.fuzz_messages import TEXTS, Mutator
from rig.clock import Clock, HostClock
from rig.links.keys import make
from rig.links.peer import Peer
from rig.links.ports import free_port
from rig.messages import Fault
from rig.recording.journal import read_all
from rig.supervision.processes import Child, SessionFailed, wait_ready

PARTS = ("documents", "journal", "peer", "http", "lsl")  # `fuzz_target`: in a process of their own, no recorder
SOURCES = ("spikes", "traces", "openephys", "openephys_events")
SOCKETS = ("recorder", "recorder_curve", "guest", *SOURCES, *PARTS)
EVERY = 250  # messages between two of the well-behaved peer
AHEAD = 2000  # messages between two looks whether the process under fire keeps up
ANSWER_S = 30.0
CONFIG = """
sources: [{source}]
responses: {{units: ["E01#0"], baseline: {{kind: none}}}}
phases: [{{agent: present}}]
display: {{size_px: [320, 240], width_cm: 16, distance_cm: 30}}
stimulus: {{size_deg: 8}}
{more}
"""
BUILD_VIEW = "import sys, pathlib; from rig.view.h5 import build; build(pathlib.Path(sys.argv[1]))"
PAUSE_NS = 15_000_000  # after each hundred messages of a device: about 6,000 a second, more than any device sends
_COUNTED = re.compile(r"(\d+) so far")


class Room:
    """A recorder with its journal, perhaps one more process, and a well-behaved peer."""

    def __init__(self, folder: Path, source: str, more: str, clock: Clock) -> None:
        folder.mkdir()
        (folder / "config.yaml").write_text(CONFIG.format(source=source, more=more))
        self.folder, self.clock = folder, clock
        self.children: dict[str, Child] = {}
        ready = self.start("recorder", "rig.recording.recorder")
        self.endpoint = str(ready["endpoint"])
        self.peer = Peer("legitimate", self.endpoint, frozenset({"session_start"}), clock)
        self.sent = 0

    def start(self, name: str, module: str, *extra: str) -> dict[str, Any]:
        """Start a process of the session and wait until it is ready."""
        child = Child(name, ["-m", module, "--folder", str(self.folder), *extra], self.folder / f"{name}.log")
        self.children[name] = child
        wait_ready([child], self.clock)
        return dict(child.ready or {})

    def work(self) -> None:
        """Let the well-behaved peer do its work."""
        self.sent += 1
        self.peer.send(Fault(what="legitimate", detail=str(self.sent), done="none"))
        self.peer.poll()

    def keeps_up(self) -> None:
        """Wait until the recorder has taken what the well-behaved peer sent."""
        if not self.peer.flush(ANSWER_S):
            child = self.children["recorder"]
            how = "is silent" if child.exit_code is None else f"ended with code {child.exit_code}"
            raise SessionFailed(f"the recorder {how}: {child.log.read_text()[-300:]}")

    def memory(self, name: str) -> int:
        """Return resident bytes of a process and of what it started."""
        process = psutil.Process(self.children[name].process.pid)
        return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))

    def close(self) -> dict[str, Any]:
        """End everything; return what the exit codes and the journal say."""
        self.keeps_up()
        self.peer.close()
        for child in reversed(self.children.values()):
            child.update()
        crashed = [n for n, c in self.children.items() if c.exit_code is not None]
        hung = [n for n in ("target", "recorder") if n in self.children and not self.children[n].end(15.0)]
        entries = read_all(self.folder / "session.journal")
        faults = [e for e in entries if isinstance(e.document, Fault)]
        counted: dict[tuple[str, str], int] = {}
        mine = 0
        for e in faults:
            assert isinstance(e.document, Fault)  # noqa: S101 - chosen above
            mine += e.document.what == "legitimate"
            found = _COUNTED.search(e.document.detail)
            if found is not None:
                key = (e.envelope.sender, e.document.what)
                counted[key] = max(counted.get(key, 0), int(found.group(1)))
        fold = [sys.executable, "-c", BUILD_VIEW, str(self.folder)]
        done = subprocess.run(fold, capture_output=True, text=True, timeout=120)
        return {
            "counted": sum(counted.values()),
            "faults": len(faults) - mine,
            "entries": len(entries),
            "legitimate": f"{mine} of {self.sent}",
            "crashes": len(crashed) + len(hung) + (done.returncode != 0),
            "said": "; ".join([*crashed, *(f"{n} hung" for n in hung), done.stderr.strip()[-300:]]).strip("; "),
        }


@contextmanager
def _room(folder: Path, source: str, more: str, clock: Clock) -> Iterator[Room]:
    room = Room(folder, source, more, clock)
    try:
        yield room
    finally:
        for child in room.children.values():
            child.end(0.5)


def _row(
    name: str, target: str, room: Room, count: int, fire: Callable[[int], None], drained: Callable[[], None]
) -> dict[str, Any]:
    """Fire, look at the memory after the first tenth and at the end, and close the room."""
    start, base = room.clock.now_ns(), 0
    for k in range(count):
        if k == count // 10:
            drained()
            base = room.memory(target)
        fire(k)
        if k % EVERY == 0:
            room.work()
        if k % AHEAD == AHEAD - 1:
            room.keeps_up()
    drained()
    room.keeps_up()
    growth = room.memory(target) - base
    seconds = (room.clock.now_ns() - start) * 1e-9
    rest = {"rss_growth_mb": round(growth / 1e6, 1), "seconds": round(seconds, 1)}
    return {"socket": name, "messages": count, **room.close(), **rest}


def _recorder(folder: Path, count: int, rng: np.random.Generator, clock: Clock, curve: bool) -> dict[str, Any]:
    more, keys = "", folder / "keys"
    if curve:
        make(keys, "model")
        make(folder / "others", "model")
        more = f"processes: {{model_server: {{bind: 'tcp://127.0.0.1:{free_port(4)}', keys: {keys / 'server'}}}}}"
    with _room(folder / "s", "{type: openephys}", more, clock) as room, ExitStack() as stack:
        endpoint = room.endpoint if not curve else re.findall(r"tcp://127[\d.:]+", more)[0]
        crowd = Crowd(stack.enter_context(zmq.Context()), endpoint, keys if curve else None, rng)
        stack.callback(crowd.close)

        def drained() -> None:
            for _ in range(20):
                room.work()
                room.keeps_up()

        return _row("recorder_curve" if curve else "recorder", "recorder", room, count, crowd.fire, drained)


def _guest(folder: Path, count: int, rng: np.random.Generator, clock: Clock) -> dict[str, Any]:
    port = free_port(4)
    with _room(folder / "s", "{type: openephys, photodiode_line: null}", f"guest: {{port: {port}}}", clock) as room:
        room.start("target", "rig.display.guest", "--endpoint", room.endpoint)
        with zmq.Context() as context, context.socket(zmq.REQ) as honest:
            mutator = Mutator(samples.guest(), rng)
            sockets: list[zmq.Socket[bytes]] = []

            def connected(kind: int) -> "zmq.Socket[bytes]":
                socket: zmq.Socket[bytes] = context.socket(kind) if kind != zmq.REQ else honest
                socket.setsockopt(zmq.LINGER, 0)
                socket.connect(f"tcp://127.0.0.1:{port}")
                return socket

            connected(zmq.REQ)

            def fire(k: int) -> None:
                if k % 500 == 0:  # anew: a frame over the limit ends a connection
                    while sockets:
                        sockets.pop().close(0)
                    sockets.append(connected(zmq.DEALER))
                with suppress(zmq.Again):
                    sockets[0].send_multipart([b"", *mutator.message()], zmq.NOBLOCK)
                while sockets[0].poll(0):
                    sockets[0].recv_multipart()
                if k % 50 == 49:
                    drained()

            def drained() -> None:
                """Ask something real; it must be answered."""
                honest.send(samples.guest()[0][0])
                if not honest.poll(int(ANSWER_S * 1000)) or b"image_rect_px" not in honest.recv():
                    raise SessionFailed("the guest rig does not answer a real request any more")

            try:
                return _row("guest", "target", room, count, fire, drained)
            finally:
                for socket in sockets:
                    socket.close(0)


def _real(wire: str) -> list[list[bytes]]:
    """Return what a wire carries; of Open Ephys made by the shipped stand-in for the GUI."""
    if wire == "spikes":
        return samples.spikes()
    if wire == "traces":
        return samples.traces()
    from rig.animal import event_broadcaster as events
    from rig.animal import openephys_wire as oe

    wave = oe.spike_waveform(-80.0)
    if wire == "openephys_events":
        return [events.ttl_message("ProbeA-AP", 3e4, 1000, 0, 1), events.raw_ttl(1000, 0.1, 0, 1, 1)]
    return [
        oe.data_frames(1, "ProbeA-AP", 0, "AP0", 1000, 3e4, np.zeros(100, np.float32), 1),
        oe.ttl_frames(2, "ProbeA-AP", 100, 1050, 0, 1, 1, 1),
        oe.spike_frames(3, "ProbeA-AP", 101, "E01", 1060, 1, (-50.0,), wave, 1),
    ]


def _source(wire: str, folder: Path, count: int, rng: np.random.Generator, clock: Clock) -> dict[str, Any]:
    port = free_port(4)
    kind = {"spikes": "spikes_zmq", "traces": "traces_zmq"}.get(wire, wire)
    http = ", http_port: null" if wire.startswith("openephys") else ""
    source = f"{{type: {kind}, name: dev, port: {port}{http}, photodiode_line: null}}"
    real = _real(wire)
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        pub, rep = stack.enter_context(context.socket(zmq.PUB)), stack.enter_context(context.socket(zmq.REP))
        for socket, at in ((pub, port), (rep, port + 1)):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.bind(f"tcp://127.0.0.1:{at}")
        room = stack.enter_context(_room(folder / "s", source, "", clock))
        child = Child(
            "target", ["-m", "rig.sources", "--folder", str(room.folder), "--endpoint", room.endpoint, "--name", "dev"],
            room.folder / "target.log",
        )  # fmt: skip
        room.children["target"] = child
        mutator = Mutator(real, rng)

        def answer() -> None:
            while rep.poll(0):
                rep.recv_multipart()
                fixed = [TEXTS[int(rng.integers(len(TEXTS)))]]
                rep.send_multipart(mutator.message()[:1] if rng.random() < 0.5 else fixed)

        end_ns = clock.now_ns() + int(ANSWER_S * 1e9)
        while child.ready is None and clock.now_ns() < end_ns:  # it is ready once it hears something real
            for message in real:
                pub.send_multipart(message)
            answer()
            clock.sleep_until_ns(clock.now_ns() + 20_000_000)
            child.update()
            if child.exit_code is not None:
                raise SessionFailed(child.why())

        def fire(k: int) -> None:
            pub.send_multipart(mutator.message())
            if k % 100 == 99:
                answer()
                clock.sleep_until_ns(clock.now_ns() + PAUSE_NS)

        def drained() -> None:
            quiet_ns = clock.now_ns() + 1_000_000_000
            while clock.now_ns() < quiet_ns:
                answer()
                clock.sleep_until_ns(clock.now_ns() + 20_000_000)

        return _row(wire, "target", room, count, fire, drained)


def _part(name: str, count: int, seed: int, clock: Clock) -> dict[str, Any]:
    command = [sys.executable, "-m", "rig.bench.fuzz_target", name, str(count), str(seed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 + count / 50)
    except subprocess.TimeoutExpired:
        return {"socket": name, "messages": count, "crashes": 1, "said": "hung"}
    if done.returncode != 0:
        return {"socket": name, "messages": count, "crashes": 1, "said": done.stderr.strip()[-300:]}
    return {"socket": name, **json.loads(done.stdout), "crashes": 0}


def fuzz(count: int, seed: int, only: str = "", clock: Clock | None = None) -> dict[str, Any]:
    """Send `count` messages to each socket, or to the one called `only`; return a row for each."""
    clock = clock or HostClock()
    rows = []
    for name in SOCKETS if not only else (only,):
        rng = np.random.default_rng([seed, SOCKETS.index(name)])
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            try:
                if name in PARTS:
                    rows.append(_part(name, count, seed, clock))
                elif name in SOURCES:
                    rows.append(_source(name, folder, count, rng, clock))
                elif name == "guest":
                    rows.append(_guest(folder, count, rng, clock))
                else:
                    rows.append(_recorder(folder, count, rng, clock, name == "recorder_curve"))
            except SessionFailed as error:
                rows.append({"socket": name, "messages": count, "crashes": 1, "said": str(error)})
    return {"rows": rows, "crashes": sum(row["crashes"] for row in rows)}
