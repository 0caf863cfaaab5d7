"""The LSL sources of calcium, counts, behaviour and markers against real streams of the simulated animal."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pylsl
import pytest

from rig.animal.behaviour import BehaviourOutlet, Body, schedule
from rig.animal.device_clock import DeviceClock
from rig.animal.lsl_calcium import LslCalcium
from rig.animal.lsl_counts import BIN_SAMPLES, LslCounts
from rig.animal.lsl_faults import SWITCHES, LslFaults
from rig.animal.lsl_outlets import LslOutlets, outlet
from rig.animal.process import open_wire
from rig.animal.wire import Block, WireError
from rig.clock import HostClock
from rig.config.reading import parse
from rig.config.sources import (
    BehaviourSimulation,
    CalciumSimulation,
    LslBehaviourSource,
    LslCalciumSource,
    LslCountSource,
    LslMarkerSource,
    LslSpikeSource,
)
from rig.messages import (
    BehaviourBlock,
    ClockSample,
    Continuity,
    EdgeBlock,
    Fault,
    Marker,
    TraceBlock,
    UnitList,
)
from rig.sources.columns import Faults
from rig.sources.lsl import LslLoop, probe
from rig.sources.lsl_find import LslSource, Resolver
from rig.sources.lsl_inlet import RoundTrip
from tests.collector import Collector, Running

UNITS = ("E01#0", "E02#0", "E03#0")
CLOCK = HostClock(spin_ns=0)


@pytest.fixture
def tag() -> str:
    """Return a name of this test's own: LSL streams are visible to everybody on the network."""
    return uuid.uuid4().hex[:8]


def start(collector: Collector, source: LslSource) -> Running:
    return Running(collector, lambda peer, stop, say: LslLoop(source, peer, HostClock(), stop, say))


def newest(collector: Collector) -> Continuity:
    return collector.all(Continuity)[-1]


def run_for(collector: Collector, running: Running, us: int, each: Callable[[], object] | None = None) -> None:
    """Turn until the source vouches for so many us of the sender's clock after its first watermark."""
    collector.until(lambda: running.ready and collector.all(Continuity), each=each)
    collector.until(lambda: newest(collector).watermark_sample, each=each)
    begin = newest(collector).watermark_sample
    collector.until(lambda: newest(collector).watermark_sample > begin + us, each=each)


def faults(collector: Collector) -> set[str]:
    return {f.what for f in collector.all(Fault)}


class Device:
    """A recording device with a drifting clock: sends its blocks over a wire, on time."""

    def __init__(self, make: Callable[[DeviceClock], Any]) -> None:
        self.clock = DeviceClock(30_000.0, 40.0, 5.0, 1.0, CLOCK.now_ns(), 123_456)
        self.wire = make(self.clock)
        self.first = self.clock.start_sample
        self.spikes: list[tuple[int, int]] = []  # (unit, device sample)
        self.edges: list[int] = []  # device samples
        self._rng = np.random.default_rng(7)

    def due(self) -> None:
        while self.clock.host_ns(self.first + self.wire.block_samples) <= CLOCK.now_ns():
            length = self.wire.block_samples
            count = int(self._rng.poisson(length * 3 / 30_000 * 20))
            sample = np.sort(self._rng.integers(self.first, self.first + length, count))
            unit = self._rng.integers(0, len(UNITS), count)
            edges = ((2, 1, self.first + 7),) if self.first // length % 10 == 0 else ()
            self.wire.send(Block(self.first, length, unit, sample, edges))
            self.spikes += list(zip(unit.tolist(), sample.tolist(), strict=True))
            self.edges += [self.first + 7] if edges else []
            self.first += length


def calcium_source(tag: str, **more: Any) -> LslCalciumSource:
    return LslCalciumSource(name="probe", stream=f"f-{tag}", neuropil=f"n-{tag}", edges=f"e-{tag}", **more)


def microscope(source: LslCalciumSource, switches: tuple[str, ...] = ()) -> Device:
    rng = np.random.default_rng(1)
    settings = CalciumSimulation(frame_hz=40)
    return Device(lambda clock: LslCalcium(UNITS, CLOCK, source, settings, clock, rng, switches))


@pytest.fixture
def closing() -> Iterator[list[Any]]:
    """Close what is appended, the last first, whatever happens."""
    opened: list[Any] = []
    yield opened
    for one in reversed(opened):
        one.close()


# --- calcium and counts ---


def test_calcium_arrives_frame_by_frame_with_neuropil_edges_and_the_sender_s_clock(
    tag: str, closing: list[Any]
) -> None:
    source, collector = calcium_source(tag), Collector()
    device = microscope(source)
    closing.append(device.wire)
    with start(collector, source) as running:
        run_for(collector, running, 2_000_000, device.due)
        done = newest(collector)
    assert running.code == 0
    assert faults(collector) == set()
    assert (done.state, done.sample_rate_hz, done.lost_messages) == ("streaming", 1e6, 0)
    (units,) = collector.all(UnitList)
    assert (units.units, units.measure) == (UNITS, "fluorescence")
    assert 0 < units.scan_offset_s.max() < 1 / 40
    blocks = collector.all(TraceBlock)
    frame = np.concatenate([b.frame for b in blocks])
    sample = np.concatenate([b.sample for b in blocks])
    assert np.all(np.diff(frame) == 1)
    assert len(frame) > 60
    # A frame begins every 750 device samples, on the device's clock; its stamp is on the sender's.
    true = np.array([device.clock.true_sample(float(s) * 1000) for s in sample]) - device.clock.start_sample
    np.testing.assert_allclose(true, 750 * np.round(true / 750), atol=0.05)
    values = np.concatenate([b.values for b in blocks])
    neuropil = np.concatenate([b.neuropil for b in blocks if b.neuropil is not None])
    assert values.shape == neuropil.shape == (len(frame), 3)
    assert np.isfinite(values).all()
    assert np.isfinite(neuropil).all()
    edges = np.concatenate([b.sample for b in collector.all(EdgeBlock)]).tolist()
    sent = [device.clock.host_ns(e) / 1000 for e in device.edges]
    wanted = [e for e in sent if sample[0] <= e < done.watermark_sample]
    assert len(wanted) >= 5
    assert all(min(abs(e - s) for s in edges) <= 0.51 for e in wanted)
    pairs = collector.all(ClockSample)
    assert {p.method for p in pairs} == {"round_trip"}
    for pair in pairs:
        assert pair.round_trip_ns is not None
        assert abs(pair.pair_host_ns - pair.device_sample * 1000) <= pair.round_trip_ns / 2 + 20_000


def test_counts_are_the_spikes_of_each_bin(tag: str, closing: list[Any]) -> None:
    source = LslCountSource(name="probe", stream=f"c-{tag}", edges=f"e-{tag}")
    collector = Collector()
    device = Device(lambda clock: LslCounts(UNITS, CLOCK, source, clock))
    closing.append(device.wire)
    with start(collector, source) as running:
        run_for(collector, running, 1_000_000, device.due)
    assert faults(collector) == set()
    (units,) = collector.all(UnitList)
    assert (units.units, units.measure) == (UNITS, "counts")
    blocks = collector.all(TraceBlock)
    frame, values = np.concatenate([b.frame for b in blocks]), np.concatenate([b.values for b in blocks])
    assert len(frame) >= 100
    fired = np.array(device.spikes)
    for k, row in zip(frame, values, strict=True):
        begin_sample = device.clock.start_sample + int(k) * BIN_SAMPLES
        inside = fired[(fired[:, 1] >= begin_sample) & (fired[:, 1] < begin_sample + BIN_SAMPLES), 0]
        assert row.tolist() == np.bincount(inside, minlength=3).tolist()


# --- faults of the wire ---


@pytest.mark.alone
@pytest.mark.parametrize(
    ("switch", "expected"),
    [
        ("clock_jump", {"time stamp wrong", "frames lost"}),
        ("drop_rows", {"frames lost"}),
        ("stale_burst", {"no data", "data too old"}),
        ("stop_restart", {"device offline"}),
    ],
)
def test_each_fault_switch_is_told_and_its_stretch_is_not_scored(
    tag: str, closing: list[Any], switch: str, expected: set[str]
) -> None:
    source, collector = calcium_source(tag), Collector()
    device = microscope(source, (f"{switch}@1.5",))
    closing.append(device.wire)
    with start(collector, source) as running:
        collector.until(lambda: running.ready, each=device.due)
        run = newest(collector).run
        collector.until(lambda: expected <= faults(collector), each=device.due)
        end_us = device.clock.host_ns(device.clock.start_sample + (1.5 + SWITCHES[switch]) * 30_000) / 1000
        collector.until(lambda: newest(collector).watermark_sample > end_us + 500_000, each=device.due)
        assert newest(collector).state == "streaming"
    gaps = [g for c in collector.all(Continuity) for g in c.gaps if g.first_sample > 0]
    if switch == "stop_restart":  # another sender: another run, which says that nothing before it was seen
        assert newest(collector).run > run
        assert faults(collector) - expected <= {"neuropil missing"}
        return
    # The fault goes by the sender's clock from its first block on, the device's samples a block before it.
    start_us = device.clock.host_ns(device.clock.start_sample + 1.5 * 30_000) / 1000
    assert newest(collector).run == run
    assert gaps, "nothing says that these frames are missing"
    if switch != "stale_burst":  # of a burst the last two seconds are young enough
        assert max(g.end_sample for g in gaps) > end_us - 100_000
    assert min(g.first_sample for g in gaps) < start_us + 200_000
    lost = sum(g.messages for g in gaps)
    if switch == "stale_burst":
        assert lost == 0
    else:
        assert lost >= 0.8 * SWITCHES[switch] * 40


def test_dropped_spikes_are_counted(tag: str, closing: list[Any]) -> None:
    source = LslSpikeSource(name="probe", stream=f"s-{tag}", edges=f"e-{tag}")
    collector = Collector()
    switches = ("drop_rows@1.5",)
    device = Device(
        lambda clock: LslOutlets(UNITS, CLOCK, source.stream, source.edges, clock.rate_hz, switches=switches)
    )
    closing.append(device.wire)
    with start(collector, source) as running:
        collector.until(lambda: running.ready, each=device.due)
        collector.until(lambda: "messages lost" in faults(collector), each=device.due)
    assert newest(collector).lost_messages > 0


def test_switches_are_planned_by_name_and_time() -> None:
    planned = LslFaults(("drop_rows", "clock_jump@12", "stale_burst"))
    assert planned.on(4.9) == set()
    assert planned.on(5.1) == {"drop_rows"}
    assert planned.on(10.5) == {"stale_burst"}
    assert planned.on(12.5) == {"stale_burst", "clock_jump"}
    assert planned.on(15.1) == {"drop_rows"}
    with pytest.raises(WireError, match="'tear' is no fault switch of the LSL wires; choose from clock_jump"):
        LslFaults(("tear",))
    with pytest.raises(WireError, match="names no seconds"):
        LslFaults(("drop_rows@soon",))


# --- behaviour and markers ---


def test_behaviour_arrives_as_the_animal_did_it(tag: str, closing: list[Any]) -> None:
    settings = BehaviourSimulation(stream=f"b-{tag}", rate_hz=200, breaks_per_min=60, missing_per_min=60)
    plan = schedule(settings, CLOCK.now_ns(), np.random.SeedSequence(2))
    sender = BehaviourOutlet(plan, CLOCK, lambda kind, **fields: None)
    sender.start()
    closing.append(sender)
    collector = Collector()
    source = LslBehaviourSource(name="probe", stream=f"b-{tag}", channels={"gaze_x_deg": "gaze_x_deg"})
    with start(collector, source) as running:
        run_for(collector, running, 2_500_000)
    assert faults(collector) == set()
    blocks = collector.all(BehaviourBlock)
    assert blocks[0].channels == ("gaze_x_deg",)
    sample = np.concatenate([b.sample for b in blocks])
    values = np.concatenate([b.values for b in blocks])
    times, true = Body(plan).until(CLOCK.now_ns())
    first = int(np.argmin(np.abs(np.array(times) / 1000 - sample[0])))
    np.testing.assert_allclose(np.array(times[first : first + len(sample)]) / 1000, sample, atol=1.01)
    np.testing.assert_array_equal(true[first : first + len(sample), :1], values)


def test_markers_arrive_and_silence_is_no_fault(tag: str) -> None:
    sender = pylsl.StreamOutlet(pylsl.StreamInfo(f"m-{tag}", "Markers", 1, 0, pylsl.cf_string, f"m-{tag}"))
    collector = Collector()
    with start(collector, LslMarkerSource(name="probe", stream=f"m-{tag}")) as running:
        collector.until(lambda: running.ready)
        sent_s = pylsl.local_clock()
        sender.push_sample(["go"], sent_s)
        sender.push_sample([""])
        sender.push_sample(["Ende"])
        collector.until(lambda: len(collector.all(Marker)) == 2 and "garbage marker" in faults(collector))
    marker = collector.all(Marker)[0]
    assert marker.text == "go"
    assert marker.sample is not None
    assert abs(marker.sample - sent_s * 1e6) < 1
    assert faults(collector) == {"garbage marker"}
    del sender


# --- streams that go, come back, or are not what they should be ---


def test_two_streams_of_one_name_are_told_and_the_newer_is_used(tag: str) -> None:
    old = outlet(f"x-{tag}", "Old", ("a",), 100.0)
    new = outlet(f"x-{tag}", "New", ("a",), 100.0)
    resolver, told = Resolver(), Faults()
    said: list[Any] = []
    begin_ns = CLOCK.now_ns()
    while not said and CLOCK.now_ns() < begin_ns + 10_000_000_000:
        chosen = resolver.choose((f"x-{tag}",), told, "probe")
        said = told.due(CLOCK.now_ns())
    assert [f.what for f in said] == ["stream name twice"]
    assert chosen is not None
    assert chosen[0].type() == "New"
    resolver.gone.add(chosen[0].uid())  # lost a moment ago and still visible
    again = resolver.choose((f"x-{tag}",), told, "probe")
    assert again is not None
    assert again[0].type() == "Old"
    del old, new


def test_a_sender_that_comes_back_with_the_same_clock_goes_on_with_the_run(tag: str) -> None:
    def sender() -> pylsl.StreamOutlet:
        info = pylsl.StreamInfo(f"b-{tag}", "Gaze", 1, 100.0, pylsl.cf_double64, f"fixed-{tag}")
        info.desc().append_child("channels").append_child("channel").append_child_value("label", "x")
        return pylsl.StreamOutlet(info)

    made = [sender()]
    clock, due = HostClock(spin_ns=0), [HostClock().now_ns()]

    def push() -> None:
        while due[0] <= clock.now_ns():
            if made:
                made[0].push_sample([0.5], due[0] * 1e-9)
            due[0] += 10_000_000

    collector = Collector()
    with start(collector, LslBehaviourSource(name="probe", stream=f"b-{tag}")) as running:
        collector.until(lambda: running.ready, each=push)
        collector.until(lambda: newest(collector).messages > 50, each=push)
        run, before = newest(collector).run, newest(collector).watermark_sample
        made.clear()
        collector.until(lambda: "device offline" in faults(collector), each=push)
        made.append(sender())
        collector.until(lambda: newest(collector).watermark_sample > before + 1, 30.0, each=push)
        assert newest(collector).run == run
        collector.until(lambda: "rows lost" in faults(collector), each=push)
    gaps = [g for c in collector.all(Continuity) for g in c.gaps if g.messages]
    assert any(abs(g.first_sample - before) < 30_000 for g in gaps)
    made.clear()


def test_probe_says_what_is_wrong_or_nothing(tag: str, closing: list[Any]) -> None:
    clock = HostClock(spin_ns=0)
    reason, cure = probe(LslBehaviourSource(stream=f"b-{tag}"), clock, wait_s=1.5)
    assert f"no LSL stream named 'b-{tag}'" in reason
    assert cure
    settings = BehaviourSimulation(stream=f"b-{tag}")
    sender = BehaviourOutlet(schedule(settings, clock.now_ns(), np.random.SeedSequence(1)), clock, lambda *a, **k: None)
    closing.append(sender)
    reason, cure = probe(LslBehaviourSource(stream=f"b-{tag}"), clock, wait_s=2.0)
    assert "sent no usable rows" in reason
    assert "docs/wires/lsl.md" in cure
    sender.start()
    assert probe(LslBehaviourSource(stream=f"b-{tag}"), clock, wait_s=6.0) == ("", "")
    reason, cure = probe(LslBehaviourSource(stream=f"b-{tag}", channels={"a_deg": "a"}), clock, wait_s=6.0)
    assert "no channel 'a'" in reason
    reason, cure = probe(LslSpikeSource(stream=f"b-{tag}"), clock, wait_s=6.0)
    assert "4 channels of type double64, expected 2" in reason


def test_the_sender_of_the_documentation_is_a_usable_source(tag: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "wires" / "lsl.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0].replace("stimloop-calcium", f"doc-{tag}")
    assert "range(9000)" in code
    stop = threading.Event()

    def acquire() -> list[float]:
        if stop.wait(1 / 30):
            raise InterruptedError
        return [1.0, 2.0]

    def send() -> None:
        with suppress(InterruptedError):
            exec(code, {"acquire": acquire})  # noqa: S102 - our own page

    sender = threading.Thread(target=send)
    sender.start()
    collector = Collector()
    try:
        with start(collector, LslCalciumSource(name="probe", stream=f"doc-{tag}")) as running:
            run_for(collector, running, 500_000)
    finally:
        stop.set()
        sender.join()
    assert faults(collector) == set()
    (units,) = collector.all(UnitList)
    assert units.units == ("roi1", "roi2")
    assert np.all(np.diff(np.concatenate([b.frame for b in collector.all(TraceBlock)])) == 1)


def test_a_clock_that_jumps_begins_a_new_run(tag: str, closing: list[Any]) -> None:
    source, collector = calcium_source(tag), Collector()
    device = microscope(source)
    closing.append(device.wire)
    loops: list[LslLoop] = []

    def make(peer: Any, stop: Any, say: Any) -> LslLoop:
        loops.append(LslLoop(source, peer, HostClock(), stop, say))
        return loops[0]

    with Running(collector, make) as running:
        run_for(collector, running, 300_000, device.due)
        run, units = newest(collector).run, len(collector.all(UnitList))
        # What a sender's computer that slept for 15 s would answer; nothing else here can make a clock jump.
        now_s = pylsl.local_clock()
        loops[0]._streams[0]._trips.append(RoundTrip(now_s - 15.0, 15.0, 0.0001))
        collector.until(lambda: "clock reset" in faults(collector), each=device.due)
        collector.until(lambda: len(collector.all(UnitList)) > units, each=device.due)
        collector.until(lambda: newest(collector).run > run and newest(collector).watermark_sample, each=device.due)
    assert collector.all(UnitList)[-1].run > run


@pytest.mark.parametrize(
    ("wire", "source", "kind"),
    [
        ("lsl_counts", "{type: lsl_counts, name: a, stream: s-TAG, edges: e-TAG, photodiode_line: 3}", LslCounts),
        ("lsl_calcium", "{type: lsl_calcium, name: a, stream: s-TAG, photodiode_line: 3}", LslCalcium),
    ],
)
def test_the_animal_opens_the_wire_that_the_config_names(tag: str, wire: str, source: str, kind: type) -> None:
    text = f"""
sources: [{source.replace("TAG", tag)}]
responses: {{units: [a]}}
phases: [{{agent: present}}]
animal: {{wire: {wire}, wire_faults: {{switches: [SWITCH]}}}}
"""
    device = DeviceClock(30_000.0, 0.0, 0.0, 0.0, CLOCK.now_ns(), 0)
    rng = np.random.default_rng(1)
    opened, line = open_wire(parse(text.replace("SWITCH", "drop_rows")), UNITS, CLOCK, None, device, rng)
    assert isinstance(opened, kind)
    assert line == 3
    opened.close()
    with pytest.raises(WireError, match="no fault switch of the LSL wires"):
        open_wire(parse(text.replace("SWITCH", "freeze")), UNITS, CLOCK, None, device, rng)
