"""The Open Ephys source on real sockets: against the animal's server with its fault switches, and against nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zmq

from rig.animal.openephys_faults import SWITCHES
from rig.animal.openephys_server import OpenEphysServer, Quirks
from rig.animal.openephys_voltage import Voltage
from rig.animal.openephys_wire import data_frames, spike_frames, spike_waveform, ttl_frames
from rig.animal.wire import Block
from rig.clock import HostClock
from rig.config.sources import Multiunit, OpenEphysSource
from rig.links.ports import free_port
from rig.messages import (
    ClockSample,
    Continuity,
    EdgeBlock,
    Fault,
    ProcessStarted,
    SpikeBlock,
)
from rig.sources.openephys import OpenEphys, probe
from rig.sources.openephys_sockets import Receiver, ReceiverDied
from tests.collector import Collector, Running

UNITS = ("E01#0", "E02#0", "E03#1")
N = 696


class Gui:
    """The animal's server, with blocks of random spikes and an edge in every tenth block."""

    def __init__(self, port: int, stream: str | None = "ProbeA-AP", quirks: bool = False, **more: Any) -> None:
        self.port = port
        if quirks:
            more["quirks"] = Quirks(np.random.default_rng(7))
        self.server = OpenEphysServer(UNITS, HostClock(), port=port, stream=stream, **more)
        self.faults = self.server.faults
        self.sent: set[tuple[str, int]] = set()
        self.edges: set[int] = set()
        self._first = 0
        self._blocks = 0
        self._rng = np.random.default_rng(1)

    def block(self) -> None:
        length = self.server.block_samples
        count = int(self._rng.poisson(6))
        samples = np.sort(self._rng.choice(length, count, replace=False)).astype(np.int64) + self._first
        units = self._rng.integers(0, len(UNITS), count)
        edges = ((0, 1, self._first + 5),) if self._blocks % 10 == 0 else ()
        self.server.send(Block(self._first, length, units, samples, edges))
        self.sent |= {(UNITS[u], int(s)) for u, s in zip(units, samples, strict=True)}
        self.edges |= {e[2] for e in edges}
        self._first += length
        self._blocks += 1

    def close(self) -> None:
        self.server.close()


@pytest.fixture
def gui() -> Iterator[Gui]:
    served = Gui(free_port(2))
    yield served
    served.close()


def start(collector: Collector, port: int, stream: str | None = None) -> Running:
    source = OpenEphysSource(name="probe", port=port, stream=stream, http_port=None)
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
        heard = max((g.end_sample for c in collector.all(Continuity) for g in c.gaps if g.first_sample == 0), default=0)
        assert {e for e in gui.edges if max(N * 20, heard) < e < done.watermark_sample} <= edges
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
        assert faults(collector) == ["acquisition restarted"]
        second = [b for b in collector.all(SpikeBlock) if b.run == runs[1]]
        assert min(int(b.sample.min()) for b in second) >= gui._first - 20 * N - 100 - gui.server.offset


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


def test_two_processors_of_one_name_are_told_and_kept_apart(gui: Gui) -> None:
    gui.faults.twin_node = True
    collector = Collector()
    with start(collector, gui.port) as running:
        until_ready(collector, running, gui)
        run_blocks(collector, gui, 10)
        collector.until(lambda: "ambiguous unit" in faults(collector))
        collector.until(caught_up(collector, gui))
        units = {u for b in collector.all(SpikeBlock) for u in b.units}
        twins = {f"{u}@104" for u in units if "@" not in u}
        assert twins
        assert {u for u in units if "@" in u} == twins
        assert missing(collector, gui) == set()


def test_the_end_of_a_session_declares_a_lost_tail_as_a_gap(gui: Gui) -> None:
    collector = Collector()
    with start(collector, gui.port) as running:
        until_ready(collector, running, gui)
        run_blocks(collector, gui, 20)
        gui.faults.drop_tail = True
        run_blocks(collector, gui, 20)
        collector.until(lambda: "no data" in faults(collector))
    assert "tail missing" in faults(collector)
    lost = {s for s in gui.sent - received(collector) if s[1] > 5 * N}  # the first blocks found nobody listening
    last = collector.all(Continuity)[-1]
    gaps = [g for c in collector.all(Continuity) for g in c.gaps]
    # The clock knows 250 ms and more of silence; the 20 blocks were sent faster than a device could.
    known = {s for s in lost if s[1] < last.watermark_sample + 5_000}
    assert known
    assert all(any(g.first_sample <= s[1] < g.end_sample for g in gaps) for s in known)


def test_a_frozen_receiving_process_loses_and_declares_it(gui: Gui) -> None:
    """The GUI keeps 1,000 messages for a listener and drops the rest."""
    collector = Collector()
    with start(collector, gui.port) as running:
        until_ready(collector, running, gui)
        run_blocks(collector, gui, 20)
        pid = int(running.said[0]["ready"]["pid"])
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(9_000):  # some 60,000 messages, more than the network's buffers hold
                gui.block()
        finally:
            os.kill(pid, signal.SIGCONT)
        collector.until(caught_up(collector, gui), each=gui.block)
        assert collector.all(Continuity)[-1].lost_messages > 1_000
        assert "messages lost" in faults(collector)
        assert all(f.since_host_ns is not None for f in collector.all(Fault) if f.what == "messages lost")
        assert missing(collector, gui) == set()


@pytest.mark.parametrize("name", ["back_jump", "clock_step", "late_block", "exit_mid_message", "non_ascii"])
def test_switches_by_name_lose_nothing_in_silence(name: str) -> None:
    timed = SWITCHES[name].seconds is not None
    gui = Gui(free_port(2), stream=None, switches=(f"{name}@1.5",) if timed else (name,))
    gui._first = 100_000
    collector = Collector()
    try:
        with start(collector, gui.port) as running:
            until_ready(collector, running, gui)
            first = collector.all(Continuity)[-1].run
            for _ in range(300):  # 7 s of the device
                gui.block()
                collector.turn(0.005)
            collector.until(caught_up(collector, gui), each=gui.block if name == "exit_mid_message" else None)
            told = set(faults(collector))
            runs = collector.all(Continuity)[-1].run - first
    finally:
        gui.close()
    expected: dict[str, tuple[set[str], int]] = {
        "back_jump": ({"samples jumped back"}, 1),
        "clock_step": (set(), 0),
        "late_block": (set(), 0),
        "exit_mid_message": ({"acquisition restarted", "messages lost"}, 1),  # it connects again within a block or two
        "non_ascii": ({"non-ASCII name"}, 0),
    }
    words, more_runs = expected[name]
    assert words - {"messages lost"} <= told <= words | {"no data"}
    assert runs == more_runs
    if not runs:
        assert missing(collector, gui) == set()
        assert collector.all(Continuity)[-1].lost_messages == 0


def test_quirks_of_a_healthy_device_cost_nothing() -> None:
    gui = Gui(free_port(2), stream=None, quirks=True)
    collector = Collector()
    try:
        with start(collector, gui.port) as running:
            until_ready(collector, running, gui)
            run_blocks(collector, gui, 200)
            collector.until(caught_up(collector, gui), each=gui.block)
            assert set(faults(collector)) == {"non-ASCII name"}
            assert missing(collector, gui) == set()
            assert collector.all(Continuity)[-1].lost_messages == 0
    finally:
        gui.close()


def test_blocks_that_are_too_short_leave_gaps_where_spikes_may_be_lost() -> None:
    gui = Gui(free_port(2), switches=("short_blocks",))
    collector = Collector()
    try:
        with start(collector, gui.port) as running:
            until_ready(collector, running, gui)
            run_blocks(collector, gui, 100)
            collector.until(caught_up(collector, gui))
            assert gui.server.sent.spikes_lost > 100
            assert missing(collector, gui) == set()
            assert "short blocks" in faults(collector)
    finally:
        gui.close()


def test_units_of_our_own_threshold_over_the_wire() -> None:
    voltage = Voltage(2, len(UNITS), np.random.default_rng(3))
    gui = Gui(free_port(2), channels=2, voltage=voltage)
    settings = Multiunit(channels=(0, 1), threshold_sd=-5.0)
    source = OpenEphysSource(name="probe", port=gui.port, http_port=None, multiunit=settings)
    collector = Collector()
    try:
        with Running(collector, lambda peer, stop, say: OpenEphys(source, peer, HostClock(), stop, say)) as running:
            until_ready(collector, running, gui)
            ready = gui._first
            run_blocks(collector, gui, 150)
            collector.until(caught_up(collector, gui))
            gaps = [g for c in collector.all(Continuity) for g in c.gaps]
            done = collector.all(Continuity)[-1].watermark_sample
    finally:
        gui.close()
    blind = max(g.end_sample for g in gaps)
    assert blind <= ready + gui.server.offset  # a session begins when the noise is known
    found = {(u, s) for u, s in received(collector) if u.startswith("MUA")}
    for channel, unit in ((0, UNITS[0]), (1, UNITS[1])):
        true = [s for u, s in gui.sent if u == unit and blind < s < done]
        mine = np.array(sorted(s for u, s in found if u == f"MUA{channel}" and blind < s < done))
        assert len(true) > 100
        apart = zip([0, *true], true, strict=False)
        alone = [s for before, s in apart if s - before > 60]  # 45 samples are the dead time
        near = [bool((np.abs(mine - s) <= 15).any()) for s in alone]
        assert np.mean(near) > 0.8  # the rest hide under the noise, or behind the dead time of a false crossing
        assert len(mine) <= 1.1 * len(true)


def test_a_threshold_on_channels_that_are_not_sent_does_not_keep_a_session_waiting(gui: Gui) -> None:
    settings = Multiunit(channels=(8, 9), threshold_sd=-5.0)
    source = OpenEphysSource(name="probe", port=gui.port, http_port=None, multiunit=settings)
    collector = Collector()
    with Running(collector, lambda peer, stop, say: OpenEphys(source, peer, HostClock(), stop, say)) as running:
        until_ready(collector, running, gui)


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
    running = publish_until_over(free_port(2), frames)
    assert running.code == 2
    assert named in running.said[0]["failed"]


def test_headers_beyond_repair_are_named_when_nothing_else_comes() -> None:
    running = publish_until_over(
        free_port(2), [b"EVENT\x00", '{"spike": {"stream": "\u00e9\u00e9\u00e9", "x'.encode(), b""]
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
    reason, cure = probe(OpenEphysSource(name="probe", port=port, http_port=free_port()), HostClock(), wait_s=0.3)
    assert reason
    for word in (f"127.0.0.1:{port}", *words):
        assert word in reason + " | " + cure, (reason, cure)


def test_diagnosis_nobody_there() -> None:
    expect(free_port(2), "nothing listens", "no heartbeat reply", "start the GUI")


def test_diagnosis_data_port_was_taken() -> None:
    port = free_port(2)
    answering(zmq.REP, port + 1, b"heartbeat received", lambda: expect(port, "nothing listens", "was taken"))


def test_diagnosis_network_events() -> None:
    port = free_port(2)
    answering(zmq.REP, port, b"NotHandled", lambda: expect(port, "Network Events", "port of its own"))


def test_diagnosis_heartbeat_port_in_the_config() -> None:
    port = free_port(2)
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


class Published:
    """A publisher with a listener, without the limit of 1000 messages that the GUI has."""

    def __init__(self, budget_bytes: int, channels: tuple[int, ...] = ()) -> None:
        port = free_port(2)
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.XPUB)
        # Tell of each listener: one that comes again before its old connection is gone is no news otherwise.
        self.socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(f"tcp://127.0.0.1:{port}")
        self.receiver = Receiver(f"tcp://127.0.0.1:{port}", budget_bytes, channels)

    def __enter__(self) -> "Published":
        self.subscribed()
        return self

    def subscribed(self) -> None:
        """Wait for a listener."""
        while True:
            assert self.socket.poll(15_000), "no subscription came"
            if self.socket.recv() == b"\x01":
                return

    def __exit__(self, *error: object) -> None:
        self.receiver.close()
        self.socket.close()
        self._context.term()

    def take(self, count: int) -> list[tuple[int, list[bytes], int]]:
        """Return the next `count` messages."""
        clock, end, got = HostClock(), threading.Event(), []
        last_ns = clock.now_ns() + 15_000_000_000
        while len(got) < count:
            assert clock.now_ns() < last_ns, f"{len(got)} of {count} messages came"
            got += self.receiver.take()
            end.wait(0.002)
        return got


def test_the_receiver_hands_on_what_is_needed_of_each_message_in_order() -> None:
    wave = spike_waveform(-100.0)
    volts = np.arange(50, dtype=np.float32)
    sent = [
        spike_frames(1, "s", 103, "E01", 7, 0, (-60.0,), wave, 0),
        ttl_frames(2, "s", 100, 8, 0, 1, 1, 0),
        data_frames(3, "s", 0, "CH1", 0, 30_000.0, volts, 0),
        data_frames(4, "s", 12, "CH13", 0, 30_000.0, volts, 0),
        [b"\x00\x00", b"{}"],
        [b"lonely"],
        [b"DATA\x00", b"two"],
        [b"DATA\x00", b"a", b"b", b"fourth"],
    ]
    with Published(1 << 20, channels=(12,)) as published:
        before = HostClock().now_ns()
        for frames in sent:
            published.socket.send_multipart(frames)
        got = published.take(len(sent))
    arrivals = [arrival for arrival, _, _ in got]
    assert before < arrivals[0]
    assert arrivals == sorted(arrivals)
    assert [size for _, _, size in got] == [len(frames[-1]) for frames in sent]
    left_behind = {0, 2}  # a waveform, and the voltage of a channel that nobody asked for
    for k, (frames, (_, came, _)) in enumerate(zip(sent, got, strict=True)):
        assert came == ([*frames[:2], b""] if k in left_behind else frames)


def test_over_its_budget_the_receiver_drops_counts_and_goes_on() -> None:
    total = 20_000
    with Published(100_000) as published:
        for k in range(total):  # 24 MB for somebody who takes nothing
            published.socket.send_multipart([b"%06d" % k, bytes(1000)])
        # What is dropped is told with the next batch: read until one message comes that was sent after all this.
        clock, got = HostClock(), []
        last_ns = clock.now_ns() + 30_000_000_000
        while not got or got[-1][1][0] != b"after":
            assert clock.now_ns() < last_ns
            published.socket.send_multipart([b"after", b""])
            got += published.take(1)
        kept = [int(frames[0]) for _, frames, _ in got if frames[0] != b"after"]
        receiver = published.receiver
        assert 100 < len(kept) < 2_000  # the budget, what was read ahead and the pipe
        assert kept == sorted(set(kept))
        assert kept[:50] == list(range(50))
        assert total - len(kept) <= receiver.dropped <= total - len(kept) + len(got)
        assert receiver.dropped_since_ns is not None


def test_a_message_of_any_size_does_not_make_the_receiver_deaf() -> None:
    with Published(1 << 28) as published:
        published.socket.send_multipart([b"x", b"before"])
        published.take(1)
        published.socket.send_multipart([b"\0" * (80 << 20)])  # breaks the connection, which is made anew
        published.subscribed()
        published.socket.send_multipart([b"part"] + [b"\0" * (10 << 20)] * 3)  # each part is small enough
        published.socket.send_multipart([b"x", b"after"])
        ((_, frames, _),) = published.take(1)
        assert frames == [b"x", b"after"]
        published.take(0)
        assert published.receiver.dropped == 1


@pytest.fixture
def babbler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, in place of the receiving process, one that writes garbage and stays."""
    script = tmp_path / "babbler"
    lines = (f"#!{sys.executable}", "import os, time", r"os.write(1, b'normal\n' + b'\xff' * 100)", "time.sleep(60)")
    script.write_text("\n".join(lines))
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))


def test_garbage_from_the_receiving_process_ends_it_and_is_told(babbler: None) -> None:
    receiver = Receiver("tcp://127.0.0.1:9", 1 << 20)
    try:
        assert receiver._over.wait(10.0)
        with pytest.raises(ReceiverDied, match="a batch of"):
            receiver.take()
        assert receiver._process.wait(5.0) == -signal.SIGKILL
    finally:
        receiver.close()


def test_a_source_whose_receiving_process_dies_says_so_and_ends(gui: Gui) -> None:
    collector = Collector()
    with start(collector, gui.port) as running:
        collector.until(lambda: running.ready, each=gui.block)
        os.kill(running.said[-1]["ready"]["pid"], signal.SIGKILL)
        collector.until(lambda: running.over, each=gui.block)
    assert running.code == 2
    assert "receiver died" in faults(collector)
    assert "exit code -9" in running.said[-1]["failed"]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process")
def test_a_source_whose_receiving_process_stands_still_ends_while_a_silent_device_is_no_reason_to(gui: Gui) -> None:
    collector, clock = Collector(), HostClock()
    with start(collector, gui.port) as running:
        until_ready(collector, running, gui)
        quiet_ns = clock.now_ns()
        collector.until(lambda: clock.now_ns() > quiet_ns + 3_500_000_000)  # no message: signs of life all the same
        assert not running.over
        before = collector.all(Continuity)[-1].messages
        collector.until(lambda: collector.all(Continuity)[-1].messages > before + 20, each=gui.block)
        os.kill(running.said[0]["ready"]["pid"], signal.SIGSTOP)
        stopped_ns = clock.now_ns()
        collector.until(lambda: running.over, each=gui.block)
        assert 2.0 < (clock.now_ns() - stopped_ns) * 1e-9 < 6
    assert running.code == 2
    assert "stood still for 3 s" in running.said[-1]["failed"]
    assert running.said[-1]["since_host_ns"] <= stopped_ns + 500_000_000  # the gap begins here, and not at the end
    assert "receiver died" in faults(collector)
    assert missing(collector, gui) == set()


def test_a_receiving_process_that_dies_is_told() -> None:
    with Published(1 << 20) as published:
        os.kill(published.receiver.pid, signal.SIGKILL)
        published.receiver._over.wait(10.0)
        with pytest.raises(ReceiverDied, match="exit code -9"):
            published.receiver.take()


CONFIG = """
sources: [{{type: openephys, name: probe, port: {port}, http_port: null}}]
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
    port = free_port(2)
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


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process")
@pytest.mark.parametrize(("budget_mb", "dropped"), [(200, False), (1.1, True)])
def test_a_stopped_source_loses_only_what_goes_beyond_its_budget_and_says_so(
    gui: Gui, tmp_path: Path, budget_mb: float, dropped: bool
) -> None:
    config = CONFIG.format(port=gui.port).replace("http_port: null", f"http_port: null, byte_budget_mb: {budget_mb}")
    (tmp_path / "config.yaml").write_text(config)
    collector = Collector()
    child = process(tmp_path, collector.endpoint)
    try:
        collector.until(lambda: received(collector), each=gui.block)
        os.kill(child.pid, signal.SIGSTOP)
        try:
            pause = threading.Event()
            for _ in range(8_000):  # some 55,000 messages of 0.5 kB
                gui.block()
                pause.wait(0.0002)
        finally:
            os.kill(child.pid, signal.SIGCONT)
        collector.until(caught_up(collector, gui), within_s=30, each=gui.block)
        assert missing(collector, gui) == set()
        if dropped:
            collector.until(lambda: "messages dropped" in faults(collector))
        else:
            assert "messages dropped" not in faults(collector)
        assert any(c.lost_messages for c in collector.all(Continuity)) == dropped
        told = [f for f in collector.all(Fault) if f.what in ("messages dropped", "messages lost")]
        assert all(f.since_host_ns is not None for f in told)
    finally:
        child.kill()
        child.communicate()
        collector.hub.close()


def test_the_receiving_process_loads_next_to_nothing() -> None:
    code = "import sys; import rig.sources.openephys_receiver; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "zmq" in loaded
    assert not {"numpy", "pydantic", "scipy", "rig.messages", "rig.config.sources"} & set(loaded)


def test_without_real_time_priority_the_receiving_process_asks_for_none(gui: Gui, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(port=gui.port) + "processes: {realtime: false}\n")
    collector = Collector()
    child = process(tmp_path, collector.endpoint)
    try:
        collector.until(lambda: received(collector), each=gui.block)
        assert child.stdout is not None
        ready = json.loads(child.stdout.readline())["ready"]
        assert ready["receiver"] == "normal (processes.realtime is false)"
        if hasattr(os, "sched_getscheduler"):
            assert os.sched_getscheduler(ready["pid"]) == os.SCHED_OTHER
    finally:
        child.kill()
        child.communicate()
        collector.hub.close()


def test_the_receiving_process_ends_with_a_source_that_is_killed(gui: Gui, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(port=gui.port))
    collector = Collector()
    child = process(tmp_path, collector.endpoint)
    try:
        collector.until(lambda: received(collector), each=gui.block)
        assert child.stdout is not None
        pid = int(json.loads(child.stdout.readline())["ready"]["pid"])
        assert psutil.pid_exists(pid)
        child.kill()
        collector.until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    finally:
        child.kill()
        child.communicate()
        collector.hub.close()


def test_a_name_the_config_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(port=5556))
    child = process(tmp_path, "tcp://127.0.0.1:1", name="other")
    out, _ = child.communicate(timeout=200)
    assert child.returncode == 2
    assert "'other'" in json.loads(out)["failed"]
    assert "probe" in json.loads(out)["cure"]
