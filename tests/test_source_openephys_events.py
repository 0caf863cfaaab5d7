"""The Event Broadcaster source: its parser, what its ledger can know, and the loop on real sockets."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq

from rig.animal.event_broadcaster import EventBroadcaster, raw_spike, raw_ttl, spike_message, ttl_message
from rig.animal.openephys_http import GuiHttp, GuiState, Output
from rig.animal.openephys_wire import data_frames, spike_waveform
from rig.animal.wire import Block, WireError
from rig.clock import HostClock
from rig.config.sources import OpenEphysEventsSource
from rig.links.ports import free_port
from rig.messages import ClockSample, Continuity, EdgeBlock, Fault, Gap, Marker, SpikeBlock
from rig.sources.openephys_events import OpenEphysEvents, probe
from rig.sources.openephys_events_ledger import EventLedger
from rig.sources.openephys_events_parse import Edge, Spike, parse
from rig.sources.openephys_parse import Refusal
from tests.collector import Collector, Running

RATE = 30_000.0
N = 696
UNITS = ("E01#0", "E02#1")
WAVE = spike_waveform(-120.0)
S = 1_000_000_000


# --- the bytes --------------------------------------------------------------------------------------------------------


def test_the_fake_sends_the_documented_fields_and_they_are_read() -> None:
    topic, text = spike_message("ProbeA", RATE, "E07", 3, 123456, np.concatenate([WAVE, WAVE / 2]))
    fields = json.loads(text)
    assert topic == b"\x01\x00"
    assert list(fields) == [
        "event_type", "stream", "source_node", "electrode", "num_channels", "sample_rate", "sample_number",
        "sorted_id", "amp1", "amp2",
    ]  # fmt: skip
    assert (fields["amp1"], fields["amp2"]) == pytest.approx((120.0, 60.0))
    spike = parse([topic, text])
    assert spike == Spike("ProbeA", RATE, 123456, fields["source_node"], "E07", 3)
    assert spike.unit == "E07#3"
    topic, text = ttl_message("ProbeA", RATE, 99, 2, 1)
    assert topic == b"\x00\x00"
    assert json.loads(text)["state"] is True
    assert parse([topic, text]) == Edge("ProbeA", RATE, 99, 2, 1)


def test_the_raw_format_has_the_documented_sizes_and_is_refused_with_its_cure() -> None:
    assert len(raw_ttl(5, 0.1, 2, 1, 4)[1]) == 34
    frames = raw_spike(5, 0.1, 0, 1, WAVE)
    assert len(frames[1]) == 26 + 4 + 4 * 40
    for message in (frames, raw_ttl(5, 0.1, 2, 1, 4)):
        refusal = parse(message)
        assert isinstance(refusal, Refusal)
        assert "raw" in refusal.reason
        assert "JSON" in refusal.cure


GOOD: dict[str, Any] = json.loads(spike_message("s", RATE, "E", 0, 5, WAVE)[1])


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "0 frames"),
        ([b"\x01\x00", b"\xff"], "not JSON"),
        ([b"\x01\x00", b"[]"], "no JSON object"),
        ([b"\x01\x00", b"[" * 100_000], "not JSON"),
        ([b"\x01\x00", json.dumps(GOOD | {"event_type": "lfp"}).encode()], "'lfp'"),
        ([b"\x01\x00", json.dumps(GOOD | {"sample_number": -1}).encode()], "sample_number"),
        ([b"\x01\x00", json.dumps(GOOD | {"sample_number": 1.5}).encode()], "sample_number"),
        ([b"\x01\x00", json.dumps(GOOD | {"sample_rate": 0}).encode()], "sample_rate"),
        ([b"\x01\x00", json.dumps(GOOD | {"sample_rate": 1e-300}).encode()], "sample_rate"),
        ([b"\x01\x00", json.dumps(GOOD | {"sample_rate": 10**400}).encode()], "sample_rate"),
        ([b"\x01\x00", json.dumps(GOOD | {"sample_rate": True}).encode()], "sample_rate"),
        ([b"\x01\x00", json.dumps(GOOD | {"electrode": "E\ud800"}).encode()], "electrode"),
        ([b"\x01\x00", json.dumps(GOOD | {"stream": None}).encode()], "stream"),
        ([b"\x01\x00", json.dumps(GOOD | {"sorted_id": 70_000}).encode()], "sorted_id"),
        ([b"\x00\x00", json.dumps(GOOD | {"event_type": "ttl", "line": 64, "state": True}).encode()], "line"),
        ([b"\x00\x00", json.dumps(GOOD | {"event_type": "ttl", "line": 3, "state": "up"}).encode()], "state"),
        (data_frames(1, "s", 0, "CH1", 0, RATE, np.zeros(4, np.float32), 1), "ZMQ Interface"),
    ],
)
def test_what_cannot_be_right_is_refused_and_never_raises(frames: list[bytes], words: str) -> None:
    refusal = parse(frames)
    assert isinstance(refusal, Refusal)
    assert words in refusal.reason
    assert refusal.cure


# --- what can be known ------------------------------------------------------------------------------------------------


class Device:
    """Events of a GUI in blocks, into a ledger, on a time line that starts at 100 s."""

    def __init__(self) -> None:
        self.ledger = EventLedger("probe", 1000)
        self.now = 100 * S
        self.first = 5_000_000
        self.documents: list[Any] = []
        self.offset_ns = 0  # how much later than usual messages come

    def block(self, samples: list[int]) -> None:
        """Let one block pass; `samples` are of its events, from its first one."""
        first, self.first = self.first, self.first + N
        self.now += round(N / RATE * 1e9)
        for sample in samples:
            spike = Spike("s", RATE, first + sample, 103, "E01", 0)
            self.ledger.take(spike, self.now + self.offset_ns + 1_000_000)
        self.look()

    def look(self, connected: bool = True, mode: str | None = None) -> None:
        self.ledger.watch(self.now + 2_000_000, connected, mode)
        self.documents += self.ledger.harvest(self.now + 2_000_000)

    def all(self, kind: type[Any]) -> list[Any]:
        return [d for d in self.documents if isinstance(d, kind)]

    @property
    def behind_s(self) -> float:
        """How far the watermark is behind the device's sample of now."""
        return (self.first - self.ledger.watermark) / RATE

    def whats(self) -> list[str]:
        return [f.what for f in self.all(Fault)]


def test_an_event_vouches_for_all_blocks_before_the_longest_possible_one() -> None:
    device = Device()
    device.block([600])
    assert device.ledger.watermark == 5_000_600 - 4200 - 100
    gaps = [g for c in device.all(Continuity) for g in c.gaps]
    assert gaps == [Gap(first_sample=0, end_sample=5_000_600 + 4300, messages=0)]


def test_time_vouches_while_events_keep_coming() -> None:
    device = Device()
    for _ in range(60):
        device.block([690])
    assert device.behind_s < 0.25
    for _ in range(10):
        device.block([690])
        assert 0.14 <= device.behind_s < 0.25
    assert device.whats() == []


def test_time_vouches_only_up_to_the_last_arrival() -> None:
    """A cable that is pulled looks like silent neurons: what was sent since the last event may be lost."""
    device = Device()
    for _ in range(60):
        device.block([690])
    held, cut = device.ledger.watermark, device.first
    for _ in range(40):
        device.block([])  # nothing comes, whatever is sent
        assert device.ledger.watermark == held < cut
    device.ledger.broken(device.now)
    for _ in range(10):
        device.block([690])
    gaps = [g for c in device.all(Continuity) for g in c.gaps]
    assert gaps[-1].first_sample == held
    assert gaps[-1].end_sample > device.first - 10 * N


def test_the_end_forgets_no_fault() -> None:
    device = Device()
    device.block([10])
    device.ledger.faults.note("message refused", "one", "not used")
    device.look()
    device.ledger.faults.note("message refused", "two", "not used")
    device.documents += device.ledger.finish(device.now)
    assert [f.detail for f in device.all(Fault)] == ["one", "two"]
    assert isinstance(device.documents[-1], Continuity)


def test_time_never_vouches_for_an_event_that_comes_in_its_time() -> None:
    """Whatever the block, its place in it and the deferral: no event is ever behind the watermark."""
    device, rng = Device(), np.random.default_rng(3)
    deferred: list[int] = []
    for _ in range(3000):
        here = sorted(int(s) for s in rng.choice(N, int(rng.poisson(0.7)), replace=False))
        rng.shuffle(here)
        device.block([s - N for s in deferred] + [s for s in here if s < N - 100])
        deferred = [s for s in here if s >= N - 100]
    assert device.whats() == []
    assert device.behind_s < 0.3


def test_after_a_second_of_silence_time_vouches_for_nothing() -> None:
    device = Device()
    for _ in range(60):
        device.block([690])
    for _ in range(44):
        device.block([])
    held = device.ledger.watermark
    for _ in range(200):
        device.block([])
    assert device.ledger.watermark == held
    assert device.whats() == ["no data"]
    assert device.ledger.state == "stalled"
    device.block([10])
    assert device.ledger.state == "streaming"
    assert device.ledger.run == 1000, "the same clock goes on: silent neurons"
    assert device.ledger.watermark > held


def test_an_idle_gui_is_not_called_a_fault() -> None:
    device = Device()
    for _ in range(60):
        device.block([690])
    device.now += 3 * S
    device.look(mode="IDLE")
    assert device.whats() == []
    assert device.ledger.state == "stalled"


def test_a_late_event_is_told_and_widens_the_margin() -> None:
    device = Device()
    for _ in range(60):
        device.block([690])
    for _ in range(20):
        device.block([])
    late = device.ledger.watermark - 3000
    device.ledger.take(Spike("s", RATE, late, 103, "E01", 0), device.now)
    for _ in range(60):
        device.block([690])
    assert device.whats() == ["late event"]
    assert device.ledger.run == 1000
    for _ in range(20):
        device.block([])
    assert device.behind_s >= 0.14 + 0.05 + 0.1


@pytest.mark.parametrize(
    ("jump", "words"), [(-2_000_000, "jumped back"), (40_000, "jumped ahead")], ids=["back", "ahead"]
)
def test_numbers_that_jump_begin_a_new_run(jump: int, words: str) -> None:
    device = Device()
    for _ in range(60):
        device.block([690])
    device.first += jump
    device.block([50])
    assert device.whats() == ["new acquisition"]
    assert words in device.all(Fault)[0].detail
    assert device.ledger.run > 1000
    assert device.all(Continuity)[-1].gaps[0].first_sample == 0
    assert device.ledger.watermark < device.first


def test_a_restart_that_keeps_the_numbers_is_a_new_run_after_the_silence() -> None:
    device = Device()
    for _ in range(60):
        device.block([690])
    device.now += 5 * S  # the samples stood still
    device.look()
    device.block([100])
    assert device.whats() == ["no data", "new acquisition"]


def test_a_short_pause_that_keeps_the_numbers_is_seen_within_a_second() -> None:
    device = Device()
    for _ in range(60):
        device.block([690])
    device.now += 600_000_000
    for _ in range(60):
        device.block([690])
    assert "new acquisition" in device.whats()
    assert device.ledger.run > 1000


def test_a_broken_connection_is_a_gap_up_to_the_first_event_after_it() -> None:
    device = Device()
    for _ in range(60):
        device.block([690])
    mark = device.ledger.watermark
    device.ledger.broken(device.now)
    for _ in range(20):
        device.block([])
    assert device.ledger.watermark == mark, "time vouches for nothing while it is not known what was missed"
    device.block([300])
    device.look()
    gap = [g for c in device.all(Continuity) for g in c.gaps][-1]
    assert gap.first_sample == mark
    assert gap.end_sample == device.first - N + 300 + device.ledger.margin_samples
    assert device.whats() == ["connection broken"]


# --- on sockets -------------------------------------------------------------------------------------------------------


class Gui:
    """The animal's Event Broadcaster, paced by a clock: random spikes, and an edge in every tenth block."""

    def __init__(self, port: int, stream: str = "ProbeA-AP", form: Any = "json", first: int = 0) -> None:
        self.port = port
        self.wire = EventBroadcaster(UNITS, port, stream, form=form)
        self.sent: set[tuple[str, int]] = set()
        self.edges: set[int] = set()
        self.first = first
        self._rng = np.random.default_rng(1)
        self._clock = HostClock(0)
        self._due = self._clock.now_ns()

    def block(self) -> None:
        """Send the next block when it is due."""
        self._due += round(N / RATE * 1e9)
        self._clock.sleep_until_ns(self._due)
        count = int(self._rng.poisson(6))
        samples = np.sort(self._rng.choice(N, count, replace=False)).astype(np.int64) + self.first
        units = self._rng.integers(0, len(UNITS), count)
        edges = ((0, 1, self.first + 5),) if self.first // N % 10 == 0 else ()
        self.wire.send(Block(self.first, N, units, samples, edges))
        self.sent |= {(UNITS[u], int(s)) for u, s in zip(units, samples, strict=True)}
        self.edges |= {e[2] for e in edges}
        self.first += N

    def close(self) -> None:
        self.wire.close()


@pytest.fixture
def gui() -> Iterator[Gui]:
    served = Gui(free_port(2))
    yield served
    served.close()


def start(collector: Collector, port: int, stream: str | None = None, http_port: int | None = None) -> Running:
    source = OpenEphysEventsSource(name="probe", port=port, stream=stream, http_port=http_port)
    return Running(collector, lambda peer, stop, say: OpenEphysEvents(source, peer, HostClock(), stop, say))


def faults(collector: Collector) -> list[str]:
    return [f.what for f in collector.all(Fault)]


def received(collector: Collector) -> set[tuple[str, int]]:
    return {(b.units[k], int(s)) for b in collector.all(SpikeBlock) for k, s in zip(b.unit, b.sample, strict=True)}


def missing(collector: Collector, gui: Gui) -> set[tuple[str, int]]:
    """Return spikes below the watermark that neither arrived nor lie in a gap."""
    watermark = collector.all(Continuity)[-1].watermark_sample
    gaps = [g for c in collector.all(Continuity) for g in c.gaps]
    lost = gui.sent - received(collector)
    return {s for s in lost if s[1] < watermark and not any(g.first_sample <= s[1] < g.end_sample for g in gaps)}


def test_events_arrive_are_vouched_for_and_the_limits_are_said_once(gui: Gui) -> None:
    collector = Collector()
    with start(collector, gui.port) as running:
        collector.until(lambda: running.ready, each=gui.block)
        begun = gui.first
        for _ in range(120):
            gui.block()
            collector.turn(0.001)
        mark = gui.first - N
        collector.until(lambda: collector.all(Continuity)[-1].watermark_sample > mark - 9000, each=gui.block)
        assert missing(collector, gui) == set()
        assert len({s for s in received(collector) if s[1] >= begun}) > 300
        edges = {int(s) for b in collector.all(EdgeBlock) for s in b.sample}
        assert edges >= {e for e in gui.edges if begun < e < mark}
        assert faults(collector) == ["losses cannot be counted"]
        last = collector.all(Continuity)[-1]
        assert (last.state, last.lost_messages, last.sample_rate_hz) == ("streaming", 0, RATE)
        assert collector.all(ClockSample)
    assert running.code == 0
    assert running.said[0]["ready"]["stream"] == "ProbeA-AP"


def test_a_broken_connection_is_a_gap_with_nothing_missing_outside(gui: Gui) -> None:
    collector = Collector()
    with start(collector, gui.port) as running:
        collector.until(lambda: running.ready, each=gui.block)
        for _ in range(30):
            gui.block()
        first = gui.first
        gui.close()
        again = Gui(gui.port, first=first)
        again.sent, again.edges = gui.sent, gui.edges
        try:
            collector.until(lambda: "connection broken" in faults(collector), each=again.block)
            done = gui.first
            collector.until(lambda: collector.all(Continuity)[-1].watermark_sample > done, each=again.block)
            for _ in range(30):
                again.block()
                collector.turn(0.001)
            assert missing(collector, again) == set()
            assert len([g for c in collector.all(Continuity) for g in c.gaps]) >= 2
        finally:
            again.close()
            gui.wire = EventBroadcaster(UNITS, free_port(2))


def test_the_gui_says_that_the_user_stopped_it(gui: Gui) -> None:
    port = free_port(2)
    http = GuiHttp(GuiState("ProbeA-AP", 16, RATE, (Output("Event Broadcaster", gui.port),)), port)
    collector = Collector()
    try:
        with start(collector, gui.port, http_port=port) as running:
            collector.until(lambda: running.ready and collector.all(Marker), each=gui.block)
            assert "ACQUIRE" in collector.all(Marker)[0].text
            assert "/data/fake" in collector.all(Marker)[0].text
            http.state.set_mode("IDLE")
            collector.until(lambda: "acquisition stopped" in faults(collector))
            collector.until(lambda: collector.all(Continuity)[-1].state == "stalled")
            http.state.set_mode("RECORD")
            collector.until(lambda: any("RECORD" in m.text for m in collector.all(Marker)), each=gui.block)
    finally:
        http.close()


def test_a_stream_beside_the_pinned_one_is_named_and_left(gui: Gui) -> None:
    collector = Collector()
    both = threading.Event()
    with start(collector, gui.port, stream="ProbeA-AP") as running:
        collector.until(lambda: running.ready, each=gui.block)
        other = EventBroadcaster(UNITS, free_port(2), "NI-DAQ")
        for _ in range(3):  # the plugin would send them through the same socket
            gui.wire._put(ttl_message("NI-DAQ", 10_000.0, 5, 1, 1))
        other.close()
        both.set()
        collector.until(lambda: "other stream" in faults(collector), each=gui.block)
        assert "'NI-DAQ'" in next(f.detail for f in collector.all(Fault) if f.what == "other stream")
        assert all(int(e) == 0 for b in collector.all(EdgeBlock) for e in b.line)


def failing(port: int, each: Callable[[], object] | None = None, **source: Any) -> dict[str, Any]:
    collector = Collector()
    with start(collector, port, **source) as running:
        collector.until(lambda: running.over, each=each)
    assert running.code == 2
    return running.said[0]


def test_only_another_stream_than_the_pinned_one(gui: Gui) -> None:
    said = failing(gui.port, gui.block, stream="ProbeB-AP")
    assert "'ProbeA-AP'" in said["failed"]
    assert "'ProbeB-AP'" in said["failed"]
    assert "stream" in said["cure"]


def test_nobody_there() -> None:
    port = free_port(2)
    said = failing(port)
    assert f"127.0.0.1:{port}" in said["failed"]
    assert "nothing listens" in said["failed"]
    assert "Event Broadcaster" in said["cure"]


def test_the_raw_format_is_refused_at_once() -> None:
    served = Gui(free_port(2), form="raw")
    try:
        said = failing(served.port, served.block)
    finally:
        served.close()
    assert "raw" in said["failed"]
    assert "JSON" in said["cure"]


def test_a_zmq_interface_on_the_port_is_named_at_once() -> None:
    port = free_port(2)
    with zmq.Context() as context, context.socket(zmq.PUB) as publisher:
        publisher.setsockopt(zmq.LINGER, 0)
        publisher.bind(f"tcp://127.0.0.1:{port}")
        frames = data_frames(1, "s", 0, "CH1", 0, RATE, np.zeros(4, np.float32), 1)
        said = failing(port, lambda: publisher.send_multipart(frames))
    assert "ZMQ Interface" in said["failed"]
    assert "openephys" in said["cure"]


def test_silent_neurons_do_not_keep_a_session_from_starting(gui: Gui) -> None:
    collector = Collector()
    with start(collector, gui.port) as running:
        collector.until(lambda: running.ready)
        collector.until(lambda: "no event yet" in faults(collector))
    assert running.code == 0


# --- the quick look ---------------------------------------------------------------------------------------------------


def look(port: int, **fields: Any) -> tuple[str, str]:
    return probe(OpenEphysEventsSource(name="probe", port=port, http_port=None, **fields), HostClock(), wait_s=1.0)


def test_the_probe_finds_events(gui: Gui) -> None:
    found: list[tuple[str, str]] = []
    thread = threading.Thread(target=lambda: found.append(look(gui.port)))
    thread.start()
    while thread.is_alive():
        gui.block()
    thread.join()
    assert found == [("", "")]


def test_the_probe_finds_a_plugin_that_moved_up(gui: Gui) -> None:
    found: list[tuple[str, str]] = []
    thread = threading.Thread(target=lambda: found.append(look(gui.port - 1)))
    thread.start()
    while thread.is_alive():
        gui.block()
    thread.join()
    assert f"sends on {gui.port}" in found[0][0]
    assert found[0][1] == f"set port: {gui.port} in the source's config"


def test_the_fake_searches_upwards_as_the_plugin_does(gui: Gui) -> None:
    with pytest.raises(WireError, match=f"port {gui.port} "):
        EventBroadcaster(UNITS, gui.port)
    moved = EventBroadcaster(UNITS, gui.port, search=True)
    assert moved.port > gui.port
    moved.close()
