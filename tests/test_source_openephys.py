"""The Open Ephys source on real sockets: against the animal's server with its fault switches, and against nothing."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from rig.animal.openephys_server import OpenEphysServer
from rig.animal.wire import Block
from rig.clock import HostClock
from rig.config_sources import OpenEphysSource
from rig.messages import (
    ClockSample,
    Continuity,
    EdgeBlock,
    Fault,
    ProcessStarted,
    SpikeBlock,
)
from rig.sources.openephys import OpenEphys, probe
from rig.sources.openephys_sockets import Receiver
from tests.collector import Collector, Running, free_ports

UNITS = ("E01#0", "E02#0", "E03#1")
N = 696


class Gui:
    """The animal's server, with blocks of random spikes and an edge in every tenth block."""

    def __init__(self, port: int, stream: str = "ProbeA-AP") -> None:
        self.port = port
        self.server = OpenEphysServer(UNITS, HostClock(), port=port, stream=stream)
        self.faults = self.server.faults
        self.sent: set[tuple[str, int]] = set()
        self.edges: set[int] = set()
        self._first = 0
        self._rng = np.random.default_rng(1)

    def block(self) -> None:
        count = int(self._rng.poisson(6))
        samples = np.sort(self._rng.choice(N, count, replace=False)).astype(np.int64) + self._first
        units = self._rng.integers(0, len(UNITS), count)
        edges = ((0, 1, self._first + 5),) if self._first // N % 10 == 0 else ()
        self.server.send(Block(self._first, N, units, samples, edges))
        self.sent |= {(UNITS[u], int(s)) for u, s in zip(units, samples, strict=True)}
        self.edges |= {e[2] for e in edges}
        self._first += N

    def close(self) -> None:
        self.server.close()


@pytest.fixture
def gui() -> Iterator[Gui]:
    served = Gui(free_ports())
    yield served
    served.close()


def start(collector: Collector, port: int, stream: str | None = None) -> Running:
    source = OpenEphysSource(name="probe", port=port, stream=stream)
    return Running(collector, lambda peer, stop, say: OpenEphys(source, peer, HostClock(), stop, say))


def until_ready(collector: Collector, running: Running, gui: Gui) -> None:
    collector.until(lambda: running.ready, each=gui.block)


def run_blocks(collector: Collector, gui: Gui, count: int) -> None:
    for _ in range(count):
        gui.block()
        collector.turn(0.002)


def received(collector: Collector) -> set[tuple[str, int]]:
    return {(b.units[k], int(s)) for b in collector.all(SpikeBlock) for k, s in zip(b.unit, b.sample, strict=True)}


def caught_up(collector: Collector, gui: Gui) -> Callable[[], bool]:
    """Return whether the newest block's first sample has made the watermark."""
    target = gui._first - N - 100 - gui.server.offset
    return lambda: bool(collector.all(Continuity)) and collector.all(Continuity)[-1].watermark_sample >= target


def missing(collector: Collector, gui: Gui) -> set[tuple[str, int]]:
    """Return spikes below the watermark that neither arrived nor lie in a gap."""
    watermark = collector.all(Continuity)[-1].watermark_sample
    gaps = [g for c in collector.all(Continuity) for g in c.gaps]
    return {
        s
        for s in gui.sent - received(collector)
        if s[1] < watermark and not any(g.first_sample <= s[1] < g.end_sample for g in gaps)
    }


def faults(collector: Collector) -> list[str]:
    return [f.what for f in collector.all(Fault)]


def test_everything_sent_arrives_and_is_vouched_for(gui: Gui) -> None:
    collector = Collector()
    with start(collector, gui.port) as running:
        until_ready(collector, running, gui)
        run_blocks(collector, gui, 300)
        collector.until(caught_up(collector, gui))
        assert faults(collector) == []
        assert missing(collector, gui) == set()
        assert len(received(collector)) > 1000
        edges = {int(s) for b in collector.all(EdgeBlock) for s in b.sample}
        done = collector.all(Continuity)[-1]
        assert {e for e in gui.edges if N * 20 < e < done.watermark_sample} <= edges
        assert done.lost_messages == 0
        assert done.state == "streaming"
        assert collector.all(ClockSample)
    assert running.code == 0
    assert running.said[0]["ready"]["stream"] == "ProbeA-AP"


def test_documents_come_about_40_times_a_second(gui: Gui) -> None:
    collector = Collector()
    with start(collector, gui.port) as running:
        until_ready(collector, running, gui)
        before, clock = len(collector.all(Continuity)), HostClock()
        begin = clock.now_ns()
        while clock.now_ns() < begin + 1_000_000_000:
            collector.turn()
            gui.block()
        assert 20 <= len(collector.all(Continuity)) - before <= 45


def test_lost_messages_are_gaps_with_nothing_missing_outside(gui: Gui) -> None:
    collector = Collector()
    with start(collector, gui.port) as running:
        until_ready(collector, running, gui)
        run_blocks(collector, gui, 20)
        gui.faults.drop_messages = 17
        run_blocks(collector, gui, 20)
        collector.until(caught_up(collector, gui))
        assert collector.all(Continuity)[-1].lost_messages == 17
        assert faults(collector) == ["messages lost"]
        assert missing(collector, gui) == set()
        assert gui.sent - received(collector)  # some were spikes


def test_a_lost_tail_shows_no_hole_and_is_told_by_the_clock(gui: Gui) -> None:
    collector = Collector()
    with start(collector, gui.port) as running:
        until_ready(collector, running, gui)
        run_blocks(collector, gui, 20)
        gui.faults.drop_tail = True
        run_blocks(collector, gui, 20)
        collector.until(lambda: "no data" in faults(collector))
        assert collector.all(Continuity)[-1].state in ("streaming", "stalled")
        assert missing(collector, gui) == set()  # nothing behind the watermark was vouched for
        gui.faults.drop_tail = False
        run_blocks(collector, gui, 5)
        collector.until(caught_up(collector, gui))
        assert missing(collector, gui) == set()
        assert collector.all(Continuity)[-1].lost_messages > 20


def test_a_frozen_gui_leaves_a_gap_without_lost_messages(gui: Gui) -> None:
    collector = Collector()
    with start(collector, gui.port) as running:
        until_ready(collector, running, gui)
        run_blocks(collector, gui, 20)
        gui.faults.freeze = True
        run_blocks(collector, gui, 10)
        gui.faults.freeze = False
        run_blocks(collector, gui, 20)
        collector.until(caught_up(collector, gui))
        assert "samples missing" in faults(collector)
        assert collector.all(Continuity)[-1].lost_messages == 0
        assert missing(collector, gui) == set()


@pytest.mark.parametrize("samples", ["keep", "reset"])
def test_a_restart_of_acquisition_is_a_new_run(gui: Gui, samples: str) -> None:
    collector = Collector()
    with start(collector, gui.port) as running:
        until_ready(collector, running, gui)
        run_blocks(collector, gui, 20)
        gui.faults.restart = "keep" if samples == "keep" else "reset"
        run_blocks(collector, gui, 20)
        collector.until(caught_up(collector, gui))
        runs = sorted({c.run for c in collector.all(Continuity)})
        assert len(runs) == 2
        assert runs[1] == runs[0] + 1
        second = [b for b in collector.all(SpikeBlock) if b.run == runs[1]]
        assert min(int(b.sample.min()) for b in second) >= gui._first - 20 * N - 100 - gui.server.offset
        assert faults(collector) == []


def test_a_killed_and_restarted_gui_is_found_again(gui: Gui) -> None:
    collector = Collector()
    with start(collector, gui.port) as running:
        until_ready(collector, running, gui)
        run_blocks(collector, gui, 10)
        first = collector.all(Continuity)[-1].run
        gui.close()
        collector.until(lambda: "no data" in faults(collector))
        again = Gui(gui.port)
        try:
            collector.until(lambda: collector.all(Continuity)[-1].run > first, each=again.block)
            assert collector.all(Continuity)[-1].state == "streaming"
        finally:
            again.close()


def test_data_flow_without_heartbeats(gui: Gui) -> None:
    gui.faults.mute_heartbeat = True
    collector = Collector()
    with start(collector, gui.port) as running:
        until_ready(collector, running, gui)
        run_blocks(collector, gui, 20)
        collector.until(caught_up(collector, gui))
        assert faults(collector) == []


def test_a_burst_after_a_pause_loses_nothing(gui: Gui) -> None:
    collector = Collector()
    with start(collector, gui.port) as running:
        until_ready(collector, running, gui)
        gui.faults.hold_blocks = 60
        run_blocks(collector, gui, 80)
        collector.until(caught_up(collector, gui))
        assert missing(collector, gui) == set()
        assert collector.all(Continuity)[-1].lost_messages == 0


def test_two_processors_of_one_name_are_told(gui: Gui) -> None:
    gui.faults.twin_node = True
    collector = Collector()
    with start(collector, gui.port) as running:
        until_ready(collector, running, gui)
        run_blocks(collector, gui, 10)
        collector.until(lambda: "ambiguous unit" in faults(collector))


def test_another_stream_than_the_pinned_one(gui: Gui) -> None:
    collector = Collector()
    with start(collector, gui.port, stream="ProbeB-AP") as running:
        collector.until(lambda: running.over, each=gui.block)
    assert running.code == 2
    assert "'ProbeA-AP'" in running.said[0]["failed"]
    assert "'ProbeB-AP'" in running.said[0]["failed"]
    assert "stream" in running.said[0]["cure"]


def publish_until_over(port: int, frames: list[bytes]) -> Running:
    collector = Collector()
    with zmq.Context() as context, context.socket(zmq.PUB) as publisher:
        publisher.setsockopt(zmq.LINGER, 0)
        publisher.bind(f"tcp://127.0.0.1:{port}")
        with start(collector, port) as running:
            collector.until(lambda: running.over, each=lambda: publisher.send_multipart(frames))
    return running


@pytest.mark.parametrize(
    ("frames", "named"),
    [
        ([b"\x01\x00", b"{}"], "Event Broadcaster"),
        ([b"DATA\x00", b'{"message_no": 1}', b""], "message_no"),
    ],
)
def test_another_plugin_on_the_port_is_named_at_once(frames: list[bytes], named: str) -> None:
    running = publish_until_over(free_ports(), frames)
    assert running.code == 2
    assert named in running.said[0]["failed"]


def test_headers_beyond_repair_are_named_when_nothing_else_comes() -> None:
    running = publish_until_over(
        free_ports(), [b"EVENT\x00", '{"spike": {"stream": "\u00e9\u00e9\u00e9", "x'.encode(), b""]
    )
    assert "ASCII" in running.said[0]["failed"]
    assert "rename" in running.said[0]["cure"]


def answering(kind: int, port: int, reply: bytes, body: Callable[[], None]) -> None:
    """Run `body` while a socket on `port` gives `reply` to every request (nothing, if it publishes)."""
    end = threading.Event()

    def serve() -> None:
        with zmq.Context() as context, context.socket(kind) as server:
            server.setsockopt(zmq.LINGER, 0)
            server.bind(f"tcp://127.0.0.1:{port}")
            while not end.is_set():
                if kind == zmq.REP and server.poll(20):
                    server.recv()
                    server.send(reply)
                elif kind != zmq.REP:
                    end.wait(0.02)

    thread = threading.Thread(target=serve, name="server")
    thread.start()
    try:
        body()
    finally:
        end.set()
        thread.join()


def expect(port: int, *words: str) -> None:
    """The quick probe, as `stimloop check` does it, says all of `words`."""
    reason, cure = probe(OpenEphysSource(name="probe", port=port), HostClock(), wait_s=0.3)
    assert reason
    for word in (f"127.0.0.1:{port}", *words):
        assert word in reason + " | " + cure, (reason, cure)


def test_diagnosis_nobody_there() -> None:
    expect(free_ports(), "nothing listens", "no heartbeat reply", "start the GUI")


def test_diagnosis_data_port_was_taken() -> None:
    port = free_ports()
    answering(zmq.REP, port + 1, b"heartbeat received", lambda: expect(port, "nothing listens", "was taken"))


def test_diagnosis_network_events() -> None:
    port = free_ports()
    answering(zmq.REP, port, b"NotHandled", lambda: expect(port, "Network Events", "port of its own"))


def test_diagnosis_heartbeat_port_in_the_config() -> None:
    port = free_ports()
    answering(zmq.REP, port, b"heartbeat received", lambda: expect(port, "publishes nothing", str(port - 1)))


def test_diagnosis_acquisition_not_started(gui: Gui) -> None:
    expect(gui.port, "answered by ZMQ Interface", "start acquisition")


def test_diagnosis_all_is_well(gui: Gui) -> None:
    found: list[tuple[str, str]] = []
    source = OpenEphysSource(name="probe", port=gui.port)
    thread = threading.Thread(target=lambda: found.append(probe(source, HostClock(), wait_s=5.0)))
    thread.start()
    while thread.is_alive():
        gui.block()
        thread.join(0.01)
    assert found == [("", "")]


def test_over_its_budget_the_receiver_drops_and_counts() -> None:
    port = free_ports()
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.setsockopt(zmq.SNDHWM, 0)
        publisher.setsockopt(zmq.LINGER, 0)
        publisher.bind(f"tcp://127.0.0.1:{port}")
        receiver = Receiver(f"tcp://127.0.0.1:{port}", 100_000, HostClock())
        try:
            assert publisher.poll(5000)
            publisher.recv()
            for _ in range(200):
                publisher.send_multipart([b"DATA\x00", b"{}", bytes(1000)])
            end = threading.Event()
            while receiver.waiting + receiver.dropped < 200:
                end.wait(0.01)
            assert 60 < receiver.waiting < 100
            assert receiver.dropped == 200 - receiver.waiting
            assert receiver.dropped_since_ns is not None
            held = receiver.waiting
            taken = receiver.take(1000)
            assert len(taken) == held
            assert [t for t, _ in taken] == sorted(t for t, _ in taken)
            publisher.send_multipart([b"DATA\x00", b"{}", bytes(1000)])
            while not receiver.waiting:  # there is room again
                end.wait(0.01)
        finally:
            receiver.close()


CONFIG = """
sources: [{{type: openephys, name: probe, port: {port}}}]
responses: {{units: ["E01#0"]}}
phases: [{{agent: present}}]
"""


def process(folder: Path, endpoint: str, name: str = "probe") -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "rig.sources", "--folder", str(folder), "--endpoint", endpoint, "--name", name]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_the_process_starts_reports_and_ends(gui: Gui, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(port=gui.port))
    collector = Collector()
    child = process(tmp_path, collector.endpoint)
    try:
        collector.until(lambda: received(collector), each=gui.block)
        assert isinstance(collector.documents[0], ProcessStarted)
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["ready"]["source"] == "probe"
        assert child.stdin is not None
        child.stdin.write("stop\n")
        child.stdin.flush()
        collector.until(lambda: child.poll() is not None)
        assert child.returncode == 0
    finally:
        child.kill()
        child.communicate()
        collector.hub.close()


def test_the_process_says_why_it_cannot_start_in_under_10_s(tmp_path: Path) -> None:
    port = free_ports()
    (tmp_path / "config.yaml").write_text(CONFIG.format(port=port))
    collector, clock = Collector(), HostClock()
    begin = clock.now_ns()
    child = process(tmp_path, collector.endpoint)
    try:
        collector.until(lambda: child.poll() is not None)
        took_s = (clock.now_ns() - begin) * 1e-9
        assert child.returncode == 2
        assert child.stdout is not None
        said = json.loads(child.stdout.readline())
        assert f"127.0.0.1:{port}" in said["failed"]
        assert "start the GUI" in said["cure"]
        assert took_s < 10
        assert {c.state for c in collector.all(Continuity)} == {"connecting"}
    finally:
        child.kill()
        child.communicate()
        collector.hub.close()


def test_the_process_loads_no_heavy_library() -> None:
    code = "import sys; sys.argv=['x','--help']; import rig.sources.openephys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "psychopy", "h5py", "pylsl", "matplotlib", "scipy"} & set(loaded)
    assert "zmq" in loaded


def test_a_name_the_config_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(port=5556))
    child = process(tmp_path, "tcp://127.0.0.1:1", name="other")
    out, _ = child.communicate(timeout=20)
    assert child.returncode == 2
    assert "'other'" in json.loads(out)["failed"]
    assert "probe" in json.loads(out)["cure"]
