"""The fake Open Ephys server: its bytes against captures of the real GUI; order, numbering, faults over a socket."""

import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from rig.animal.openephys_faults import SWITCHES, Timetable, UnknownSwitch, read_switch
from rig.animal.openephys_rehearsal import open_openephys
from rig.animal.openephys_server import BLOCK_SAMPLES, Faults, OpenEphysServer, Quirks
from rig.animal.openephys_templates import data_template, spike_template, ttl_template
from rig.animal.openephys_wire import (
    PEAK_INDEX,
    Style,
    data_frames,
    header_bytes,
    heartbeat_reply,
    spike_frames,
    spike_waveform,
    ttl_frames,
)
from rig.animal.wire import Block, WireError
from rig.clock import FakeClock
from rig.config.sources import Multiunit, OpenEphysSource, WireFaults

UNITS = ("E01#0", "E02#0", "E03#2")
CAPTURES = ("main_5556", "main_events_5558", "utf8", "long")


def captures(name: str) -> list[list[Any]]:
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("STIMLOOP_DATA", default)) / "openephys" / f"{name}.msgpack"
    if not path.exists():
        pytest.skip(f"no captured traffic at {path}; set STIMLOOP_DATA to the folder that holds openephys/")
    with path.open("rb") as file:
        return list(msgpack.Unpacker(file, raw=False, strict_map_key=False))[1:]


# --- the bytes --------------------------------------------------------------------------------------------------------


def test_the_documented_ttl_header_byte_for_byte() -> None:
    expected = (
        b'{\r\n  "message_num": 1235,\r\n  "type": "event",\r\n  "content": {\r\n    "stream": "ProbeA-AP",\r\n'
        b'    "source_node": 101,\r\n    "type": 3,\r\n    "sample_num": 5521377\r\n  },\r\n  "data_size": 10,\r\n'
        b'  "timestamp": 1684794147003\r\n}'
    )
    frames = ttl_frames(1235, "ProbeA-AP", 101, 5521377, 2, 1, 4, 1684794147003)
    assert frames == [b"EVENT\x00", expected, bytes.fromhex("02010400000000000000")]


def parse(header: bytes) -> dict[str, Any]:
    """Read a header; where the plugin cut it short, put ones for the digits of the time stamp that are lost."""
    cut = sum(0x80 <= byte <= 0xBF for byte in header)
    if cut == 0:
        return dict(json.loads(header))
    head, mark, digits = header.rpartition(b'"timestamp"')
    kept = b"".join(c.to_bytes() for c in digits if c in b"0123456789")
    return dict(json.loads(head + mark + b": " + kept.ljust(13, b"1") + b"}"))


def rebuild(frames: list[bytes]) -> list[bytes]:
    """Build a message again from the values in it."""
    values = parse(frames[1])
    number, stamp = values["message_num"], values["timestamp"]
    if values["type"] == "data":
        c = values["content"]
        samples = np.frombuffer(frames[2], "<f4")
        where = (c["channel_num"], c["channel_name"], c["sample_num"], c["sample_rate"])
        return data_frames(number, c["stream"], *where, samples, stamp)
    if values["type"] == "event":
        c = values["content"]
        line, state, word = struct.unpack("<BBQ", frames[2])
        return ttl_frames(number, c["stream"], c["source_node"], c["sample_num"], line, state, word, stamp)
    c = values["spike"]
    waveform = np.frombuffer(frames[2], "<f4").reshape(c["num_channels"], c["num_samples"])
    who = (c["source_node"], c["electrode"], c["sample_num"], c["sorted_id"], tuple(c["threshold"]))
    return spike_frames(number, c["stream"], *who, waveform, stamp)


@pytest.mark.parametrize("name", CAPTURES)
def test_every_captured_message_is_rebuilt_byte_for_byte(name: str) -> None:
    messages = [record[3] for record in captures(name) if record[1] == "sub"]
    assert len(messages) > 30
    for frames in messages:
        assert rebuild(frames) == frames


def rebuild_from_template(frames: list[bytes]) -> bytes:
    """Build a header again as the server does: from a prepared one."""
    values = parse(frames[1])
    number, stamp = values["message_num"], values["timestamp"]
    if values["type"] == "data":
        c = values["content"]
        size = 4 * c["num_samples"]
        prepared = data_template(c["stream"], c["channel_num"], c["channel_name"], c["sample_rate"], "1.0")
        return prepared.fill((number, c["num_samples"], c["sample_num"], size, stamp))
    if values["type"] == "event":
        c = values["content"]
        return ttl_template(c["stream"], c["source_node"], "1.0").fill((number, c["sample_num"], stamp))
    c = values["spike"]
    shape = (c["num_channels"], c["num_samples"])
    prepared = spike_template(c["stream"], c["electrode"], c["sorted_id"], tuple(c["threshold"]), shape, "1.0")
    return prepared.fill((number, c["source_node"], c["sample_num"], stamp))


@pytest.mark.parametrize("name", CAPTURES)
def test_every_captured_header_is_made_from_a_template_byte_for_byte(name: str) -> None:
    messages = [record[3] for record in captures(name) if record[1] == "sub"]
    assert len(messages) > 30
    for frames in messages:
        assert rebuild_from_template(frames) == frames[1]


whole = st.integers(0, 1 << 60)
names = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@given(name=names, other=names, numbers=st.tuples(whole, whole, whole), style=st.sampled_from(["0.6", "1.0"]))
@settings(max_examples=300, deadline=None)
def test_templates_make_the_same_bytes_as_json(
    name: str, other: str, numbers: tuple[int, int, int], style: Style
) -> None:
    number, sample, stamp = numbers
    samples = np.zeros(number % 50, np.float32)
    block = data_frames(number, name, 3, other, sample, 30_000.0, samples, stamp, style)[1]
    prepared = data_template(name, 3, other, 30_000.0, style)
    assert prepared.fill((number, len(samples), sample, 4 * len(samples), stamp)) == block
    edge = ttl_frames(number, name, 100, sample, 1, 1, 2, stamp, style)[1]
    assert ttl_template(name, 100, style).fill((number, sample, stamp)) == edge
    wave = spike_waveform(-120.0)
    spike = spike_frames(number, name, 103, other, sample, 2, (-60.5,), wave, stamp, style)[1]
    shape = (wave.shape[0], wave.shape[1])
    assert spike_template(name, other, 2, (-60.5,), shape, style).fill((number, 103, sample, stamp)) == spike


def test_heartbeats_are_answered_as_the_gui_did() -> None:
    exchanges = [record for record in captures("main_events_5558") if record[1] == "hb" and record[4] is not None]
    assert {record[4] for record in exchanges} == {
        b"heartbeat received", b"message correctly parsed", b"JSON message could not be read"
    }  # fmt: skip
    for record in exchanges:
        assert heartbeat_reply(record[3]) == record[4]


def test_the_older_gui_escapes_names_and_loses_nothing() -> None:
    fields = {"stream": "sonde-é"}
    assert header_bytes(fields, "0.6") == b'{\r\n  "stream": "sonde-\\u00e9"\r\n}'
    assert header_bytes(fields, "1.0") == '{\r\n  "stream": "sonde-é"\r\n'.encode()


def test_waveform_has_its_trough_where_the_gui_puts_it() -> None:
    waveform = spike_waveform(-120.0)
    assert waveform.shape == (1, 40)
    assert int(waveform.argmin()) == PEAK_INDEX == 9
    assert waveform.min() == pytest.approx(-120.0)


def test_numbers_the_gui_would_write_with_an_exponent_are_refused() -> None:
    with pytest.raises(ValueError, match="exponent"):
        data_frames(1, "s", 0, "CH1", 0, 2e6, np.zeros(1, np.float32), 0)


# --- over the socket --------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A server with a listener that has already heard from it; `next` is the first sample of the next block."""

    server: OpenEphysServer
    sub: "zmq.Socket[bytes]"
    context: "zmq.Context[zmq.Socket[bytes]]"
    port: int
    next: int = 1_000_000

    def send(self, spikes: list[tuple[int, int]] = (), edges: list[tuple[int, int, int]] = ()) -> None:  # type: ignore[assignment]
        """Send the next block; samples are given relative to its first."""
        size = self.server.block_samples
        unit = np.array([u for u, _ in spikes], np.int64)
        sample = np.array([self.next + s for _, s in spikes], np.int64)
        self.server.send(Block(self.next, size, unit, sample, tuple((k, s, self.next + n) for k, s, n in edges)))
        self.next += size

    def receive(self, quiet_ms: int = 150) -> list[tuple[dict[str, Any], bytes]]:
        """Return (header, payload) of everything that comes before `quiet_ms` of silence."""
        got = []
        while self.sub.poll(quiet_ms):
            _, header, payload = self.sub.recv_multipart()
            got.append((parse(header), payload))
        return got


@pytest.fixture
def bench(free_port: int) -> Iterator[Bench]:
    with open_bench(free_port, "ProbeA-AP") as opened:
        yield opened


@pytest.fixture
def free_port() -> int:
    with zmq.Context() as context, context.socket(zmq.PUB) as probe:
        return probe.bind_to_random_port("tcp://127.0.0.1", min_port=20000, max_port=30000)


@contextmanager
def open_bench(port: int, stream: str | None, **more: Any) -> Iterator[Bench]:
    server = OpenEphysServer(UNITS, FakeClock(), port, stream, **more)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sub = context.socket(zmq.SUB)
    try:
        sub.rcvhwm = 0
        sub.linger = 0
        sub.subscribe(b"")
        sub.connect(f"tcp://127.0.0.1:{port}")
        bench = Bench(server, sub, context, port)
        for _ in range(100):  # a subscription takes a moment to arrive
            bench.send()
            if sub.poll(50):
                break
        while sub.poll(100):
            sub.recv_multipart()
        yield bench
    finally:
        sub.close()
        context.term()
        server.close()


def kinds(messages: list[tuple[dict[str, Any], bytes]]) -> list[str]:
    return [header["type"] for header, _ in messages]


def numbers(messages: list[tuple[dict[str, Any], bytes]]) -> list[int]:
    return [header["message_num"] for header, _ in messages]


def test_a_block_is_spikes_per_electrode_then_edges_then_the_counting_channel(bench: Bench) -> None:
    first = bench.next
    bench.send([(2, 10), (0, 50), (2, 60), (0, 90)], [(0, 1, 300), (5, 1, 400), (0, 0, 500)])
    got = bench.receive()
    assert kinds(got) == ["spike"] * 4 + ["event"] * 3 + ["data"]
    spikes = [(h["spike"]["electrode"], h["spike"]["sorted_id"], h["spike"]["sample_num"] - first) for h, _ in got[:4]]
    assert spikes == [("E01", 0, 50), ("E01", 0, 90), ("E03", 2, 10), ("E03", 2, 60)]
    assert [struct.unpack("<BBQ", payload) for _, payload in got[4:7]] == [(0, 1, 1), (5, 1, 33), (0, 0, 32)]
    assert [h["content"]["sample_num"] - first for h, _ in got[4:7]] == [300, 400, 500]
    counter = np.frombuffer(got[7][1], "<f4")
    assert counter.tolist() == [float(n % (1 << 20)) for n in range(first, first + BLOCK_SAMPLES)]
    assert numbers(got) == list(range(numbers(got)[0], numbers(got)[0] + 8))


def test_spikes_of_the_last_100_samples_come_with_the_next_block_once(bench: Bench) -> None:
    bench.send([(0, 595), (1, 596), (0, 695)])
    bench.send([(0, 0)])
    first = bench.next - 2 * BLOCK_SAMPLES
    got = bench.receive()
    assert kinds(got) == ["spike", "data", "spike", "spike", "spike", "data"]
    assert [h["spike"]["sample_num"] - first for h, _ in got if h["type"] == "spike"] == [595, 695, 696, 596]


def test_dropped_messages_leave_a_gap_in_the_numbers(bench: Bench) -> None:
    bench.server.faults.drop_messages = 2
    bench.send([(0, 1), (0, 2), (0, 3)])
    got = bench.receive()
    assert kinds(got) == ["spike", "data"]
    before = bench.server.sent.dropped
    bench.send()
    assert before == 2
    assert numbers(got + bench.receive()) == [numbers(got)[0], numbers(got)[0] + 1, numbers(got)[0] + 2]
    assert numbers(got)[0] > 2


def test_a_dropped_tail_shows_a_gap_only_when_data_come_again(bench: Bench) -> None:
    bench.send()
    last = numbers(bench.receive())[-1]
    bench.server.faults.drop_tail = True
    bench.send([(0, 1)])
    bench.send()
    assert bench.receive() == []
    bench.server.faults.drop_tail = False
    bench.send()
    assert numbers(bench.receive()) == [last + 4]


def ask(bench: Bench, timeout_ms: int = 1000) -> bytes | None:
    """Send one heartbeat; None if there is no answer in time."""
    with bench.context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect(f"tcp://127.0.0.1:{bench.port + 1}")
        socket.send(b'{"application": "test", "uuid": "t1", "type": "heartbeat"}')
        return socket.recv() if socket.poll(timeout_ms) else None


def test_a_frozen_gui_sends_no_data_but_heartbeats_and_hardware_loses_samples(bench: Bench) -> None:
    bench.send()
    before, _ = bench.receive()[-1]
    bench.server.faults.freeze = True
    bench.send([(0, 1)], [(0, 1, 5)])
    assert bench.receive() == []
    assert ask(bench) == b"heartbeat received"
    bench.server.faults.freeze = False
    bench.send([], [(3, 1, 5)])
    got = bench.receive()
    assert kinds(got) == ["event", "data"]
    assert got[0][0]["message_num"] == before["message_num"] + 1
    assert got[1][0]["content"]["sample_num"] == before["content"]["sample_num"] + 2 * BLOCK_SAMPLES
    assert struct.unpack("<BBQ", got[0][1]) == (3, 1, 9)  # line 0 rose while nobody was told


def test_muted_heartbeats_are_answered_again_later_while_data_flow(bench: Bench) -> None:
    bench.server.faults.mute_heartbeat = True
    assert ask(bench, 400) is None
    bench.send()
    assert kinds(bench.receive()) == ["data"]
    bench.server.faults.mute_heartbeat = False
    assert ask(bench, 2000) == b"heartbeat received"


@pytest.mark.parametrize("how", ["keep", "reset"])
def test_a_restart_numbers_from_one(bench: Bench, how: str) -> None:
    bench.server.faults.restart = how  # type: ignore[assignment]
    first = bench.next
    bench.send([(0, 7)], [(0, 1, 9)])
    got = bench.receive()
    assert numbers(got) == [1, 2, 3]
    origin = 0 if how == "reset" else first
    assert got[0][0]["spike"]["sample_num"] == origin + 7
    assert got[1][0]["content"]["sample_num"] == origin + 9
    assert got[2][0]["content"]["sample_num"] == origin
    assert bench.server.offset == first - origin


def test_short_blocks_lose_spikes_as_the_spike_detector_does(bench: Bench) -> None:
    bench.server.faults.block_samples = 174
    bench.send([(0, 73), (0, 74), (0, 173)])
    bench.send()
    got = bench.receive()
    assert kinds(got) == ["spike", "data", "data"]
    assert got[1][0]["content"]["num_samples"] == 174
    assert bench.server.sent.spikes_lost == 2


def test_a_second_processor_sends_under_the_same_names(bench: Bench) -> None:
    bench.server.faults.twin_node = True
    bench.send([(1, 3)])
    got = bench.receive()
    assert [h["spike"]["source_node"] for h, _ in got[:2]] == [103, 104]
    assert {(h["spike"]["stream"], h["spike"]["electrode"]) for h, _ in got[:2]} == {("ProbeA-AP", "E02")}


def test_held_blocks_come_in_one_burst(bench: Bench) -> None:
    bench.server.faults.hold_blocks = 2
    bench.send()
    bench.send()
    assert bench.receive() == []
    bench.send()
    got = bench.receive()
    assert [h["content"]["sample_num"] for h, _ in got] == [bench.next - k * BLOCK_SAMPLES for k in (3, 2, 1)]


def test_a_non_ascii_stream_name_cuts_headers(free_port: int) -> None:
    with open_bench(free_port, "sonde-é") as bench:
        bench.send([], [(0, 1, 5)])
        assert bench.sub.poll(1000)
        _, header, payload = bench.sub.recv_multipart()
        assert header.endswith(b"\r\n")
        assert not header.endswith(b"}")
        assert json.loads(header + b"}")["content"]["stream"] == "sonde-é"
        assert len(payload) == 10


@pytest.mark.parametrize(("taken", "named"), [(0, 0), (1, 1), (-1, 0)])
def test_a_taken_port_is_named_with_its_cure(free_port: int, taken: int, named: int) -> None:
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.bind(f"tcp://*:{free_port + taken}")
        if taken == -1:  # neither port is taken
            OpenEphysServer(UNITS, FakeClock(), free_port).close()
            return
        with pytest.raises(WireError, match=f"port {free_port + named} .*; end the program that holds it"):
            OpenEphysServer(UNITS, FakeClock(), free_port)


# --- switches by name -------------------------------------------------------------------------------------------------


def test_the_reference_s_switches_are_all_there() -> None:
    assert set(SWITCHES) == {
        "drop", "drop_tail", "freeze", "mute_heartbeat", "restart_keep", "restart_reset", "back_jump", "rebind",
        "port_conflict_heartbeat", "port_conflict_data", "clock_step", "late_block", "short_blocks",
        "duplicate_stream", "non_ascii", "exit_mid_message", "style_0_6",
    }  # fmt: skip
    page = (Path(__file__).parents[1] / "docs" / "fake_openephys.md").read_text(encoding="utf-8")
    assert [name for name in SWITCHES if f"`{name}`" not in page] == []


@pytest.mark.parametrize("text", ["dorp", "drop@", "drop@x", "drop@-1", "non_ascii@3", ""])
def test_a_name_that_is_no_switch_is_refused(text: str) -> None:
    with pytest.raises(UnknownSwitch, match=r"choose from|seconds after @"):
        read_switch(text)


def thrown(names: list[str], until_s: float) -> tuple[list[tuple[float, str]], Faults]:
    table, faults, out = Timetable(names), Faults(), []
    table.start(faults)
    for k in range(int(until_s * 40)):
        out += [(k / 40, name) for name in table.apply(faults, k / 40)]
    return out, faults


def test_names_with_a_time_are_thrown_once_then() -> None:
    assert thrown(["freeze@2", "drop@1.5"], 60)[0] == [(1.5, "drop"), (2.0, "freeze")]


def test_names_alone_take_turns() -> None:
    assert thrown(["freeze", "drop"], 21)[0] == [(5.0, "freeze"), (10.0, "drop"), (15.0, "freeze"), (20.0, "drop")]


def test_what_lasts_is_taken_back_and_what_is_for_good_comes_once() -> None:
    table, faults = Timetable(["freeze@2", "rebind"]), Faults()
    table.apply(faults, 2.0)
    assert faults.freeze
    table.apply(faults, 2.9)
    assert faults.freeze
    table.apply(faults, 3.0)
    assert not faults.freeze
    assert table.apply(faults, 5.0) == ["rebind"]
    assert table.apply(faults, 100.0) == []


def test_what_holds_from_the_start_is_set_at_once() -> None:
    assert thrown(["short_blocks", "duplicate_stream"], 0)[1] == Faults(block_samples=174, twin_node=True)


def served(port: int, switch: str, blocks: int) -> list[tuple[dict[str, Any], bytes]]:
    """Return what a listener gets of `blocks` blocks with one spike and one edge, after the first it heard of."""
    with open_bench(port, "ProbeA-AP", switches=(switch,)) as bench:
        for _ in range(blocks):
            bench.send([(0, 5)], [(0, 1, 9)])
        return bench.receive()


def test_a_back_jump_repeats_sample_numbers_within_the_acquisition(free_port: int) -> None:
    got = served(free_port, "back_jump@4", 200)  # 4.6 s
    samples = [h["content"]["sample_num"] for h, _ in got if h["type"] == "data"]
    steps = set(np.diff(samples))
    assert steps == {BLOCK_SAMPLES, BLOCK_SAMPLES - 60_000}
    assert np.diff(numbers(got)).tolist() == [1] * (len(got) - 1)


def test_a_step_of_the_wall_clock_shows_in_the_time_stamps_alone(free_port: int) -> None:
    got = served(free_port, "clock_step@4", 200)
    assert set(np.diff([h["timestamp"] for h, _ in got])) == {0, 3_600_000}
    assert np.diff(numbers(got)).tolist() == [1] * (len(got) - 1)


def test_a_gui_that_dies_in_the_middle_of_a_message_comes_back_and_counts_from_one(free_port: int) -> None:
    with open_bench(free_port, "ProbeA-AP", switches=("exit_mid_message@3",)) as bench:
        before = len(bench.server.thrown)
        while len(bench.server.thrown) == before:
            bench.send([(0, 5)], [(0, 1, 9)])
        assert ask(bench, 300) is None  # nobody there
        sent = 0
        while bench.server._back_at is not None:
            bench.send([(0, 5)])
            sent += 1
        assert sent == pytest.approx(2.0 * 30_000 / BLOCK_SAMPLES, abs=2)
        got = bench.receive(50)
        assert all(set(h) >= {"message_num", "type"} for h, _ in got)  # no half message ever comes out
        heard: list[int] = []
        while not heard:  # the listener connects again by itself
            bench.send()
            heard = numbers(bench.receive(50))
        assert heard[0] < 100
        assert ask(bench) == b"heartbeat received"


def test_a_plugin_bound_elsewhere_leaves_its_ports(free_port: int) -> None:
    with open_bench(free_port, "ProbeA-AP", switches=("rebind@4",)) as bench:
        while not bench.server.thrown:
            bench.send()
        bench.receive()
        bench.send()
        assert bench.receive() == []
        assert ask(bench, 300) is None
        bench.sub.connect(f"tcp://127.0.0.1:{free_port + 2}")
        bench.port += 2
        for _ in range(100):
            bench.send()
            if bench.sub.poll(50):
                break
        assert kinds(bench.receive())
        assert ask(bench) == b"heartbeat received"


@pytest.mark.parametrize(
    ("switch", "data_at", "heartbeats"), [("port_conflict_heartbeat", 2, False), ("port_conflict_data", None, True)]
)
def test_port_conflicts_leave_a_socket_unbound(
    free_port: int, switch: str, data_at: int | None, heartbeats: bool
) -> None:
    server = OpenEphysServer(UNITS, FakeClock(), free_port, switches=(switch,))
    with zmq.Context() as context, context.socket(zmq.SUB) as sub:
        sub.linger = 0
        sub.subscribe(b"")
        for offset in (0, 2):
            sub.connect(f"tcp://127.0.0.1:{free_port + offset}")
        bench = Bench(server, sub, context, free_port)
        try:
            got = 0
            for _ in range(40 if data_at is None else 400):
                bench.send()
                if got := sub.poll(10):
                    break
            assert bool(got) == (data_at is not None)
            if data_at is not None:
                with zmq.Context() as other, other.socket(zmq.PUB) as probe:
                    probe.bind(f"tcp://*:{free_port}")  # nothing is there
                    with pytest.raises(zmq.ZMQError):
                        probe.bind(f"tcp://*:{free_port + data_at}")
            assert (ask(bench, 500) is not None) == heartbeats
        finally:
            server.close()


def test_the_names_of_a_healthy_rig_may_cut_headers(free_port: int) -> None:
    with open_bench(free_port, None, switches=("non_ascii",)) as bench:
        bench.send([(0, 5)])
        assert bench.sub.poll(1000)
        header = bench.sub.recv_multipart()[1]
        assert not header.endswith(b"}")
        assert "プローブA".encode() in header


def test_gui_06_escapes_what_it_sends(free_port: int) -> None:
    with open_bench(free_port, "sonde-é", switches=("style_0_6",)) as bench:
        bench.send([], [(0, 1, 5)])
        assert bench.sub.poll(1000)
        header = bench.sub.recv_multipart()[1]
        assert b"sonde-\\u00e9" in header
        assert json.loads(header)["content"]["stream"] == "sonde-é"


def test_quirks_vary_the_blocks_and_lose_nothing(free_port: int) -> None:
    with open_bench(free_port, "ProbeA-AP", quirks=Quirks(np.random.default_rng(5))) as bench:
        start = bench.next
        for _ in range(300):
            bench.send([(0, 5)])
        while bench.server.faults.hold_blocks:
            bench.send()
        got = bench.receive()
        lengths = {len(payload) // 4 for header, payload in got if header["type"] == "data"}
        assert len(lengths) > 100
        assert min(lengths) > 200  # the Spike Detector keeps working
        blocks = [(h["content"]["sample_num"], h["content"]["num_samples"]) for h, _ in got if h["type"] == "data"]
        assert blocks[0][0] == start
        assert all(a + n == b for (a, n), (b, _) in pairwise(blocks))


def test_many_channels_are_numbered_one_after_the_other(free_port: int) -> None:
    with open_bench(free_port, "ProbeA-AP", channels=200) as bench:
        bench.send([(0, 5)])
        got = bench.receive()
        assert [h["content"]["channel_num"] for h, _ in got if h["type"] == "data"] == list(range(200))
        assert np.diff(numbers(got)).tolist() == [1] * 200


def test_the_animal_s_wire_takes_its_faults_from_the_config(free_port: int) -> None:
    source = OpenEphysSource(port=free_port, multiunit=Multiunit(channels=(2,)))
    rng = np.random.default_rng(1)
    with pytest.raises(WireError, match=r"'dorp' is no fault switch .* choose from drop, .*docs/fake_openephys.md"):
        open_openephys(source, UNITS, FakeClock(), 30_000.0, WireFaults(switches=("dorp",)), rng)
    server = open_openephys(source, UNITS, FakeClock(), 30_000.0, WireFaults(switches=("short_blocks",)), rng)
    try:
        assert server.block_samples == 174
        assert len(server._channels) == 3
    finally:
        server.close()


def test_units_must_be_named_electrode_and_number(free_port: int) -> None:
    with pytest.raises(ValueError, match="name it like E01#0"):
        OpenEphysServer(("unit 1",), FakeClock(), free_port)


def test_faults_start_with_nothing_wrong() -> None:
    faults = Faults()
    assert faults.block_samples == BLOCK_SAMPLES
    assert not any(v for k, v in vars(faults).items() if k not in ("block_samples", "restart"))
    assert faults.restart == "none"
