"""The sources of the open wires on real sockets: against the animal's publishers and their faults, against nobody."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq

from rig.animal.device_clock import DeviceClock
from rig.animal.spikes_publisher import SpikesPublisher
from rig.animal.traces_publisher import TracesPublisher
from rig.animal.wire import Block, WireError
from rig.animal.zmq_bridge import EVERY_S, SWITCHES, BridgeFaults, Schedule
from rig.clock import HostClock
from rig.config.sources import CalciumSimulation, SpikesWireSource, TracesWireSource, WireFaults
from rig.links.peer import Peer
from rig.links.ports import free_port
from rig.messages import (
    ClockSample,
    Continuity,
    EdgeBlock,
    Fault,
    SpikeBlock,
    TraceBlock,
    UnitList,
)
from rig.sources import spikes_zmq, traces_zmq
from rig.sources.zmq_feed import BATCH
from rig.sources.zmq_parse import MAX_ARRAY_BYTES
from tests.collector import Collector, Flag, Running

UNITS = tuple(f"E{k:02d}#0" for k in range(1, 9))
RATE = 30_000.0
FIRST = 123_456


class Animal:
    """A publisher with blocks of random spikes and an edge in every fourth block, at the pace of its own clock."""

    def __init__(self, kind: str, port: int, settings: WireFaults | None = None) -> None:
        self.kind, self.port, self.clock = kind, port, HostClock(spin_ns=0)
        self.device = DeviceClock(RATE, 40.0, 5.0, 0.3, self.clock.now_ns(), FIRST)
        self.wire = self._wire(settings or WireFaults())
        self.sent: list[tuple[str, int]] = []
        self.edges: list[int] = []
        self.faults = self.wire.faults
        self._rng = np.random.default_rng(2)
        self._first = FIRST
        self.open = True

    def _wire(self, settings: WireFaults) -> SpikesPublisher | TracesPublisher:
        rng = np.random.default_rng(1)
        if self.kind == "spikes":
            return SpikesPublisher(UNITS, self.clock, self.port, self.device, settings, rng)
        calcium = CalciumSimulation()
        return TracesPublisher(UNITS, self.clock, self.port, self.device, calcium, settings, rng)

    def due(self) -> None:
        """Send the blocks that are over by now."""
        step = self.wire.block_samples
        while self.device.true_sample(self.clock.now_ns()) >= self._first + step:
            count = int(self._rng.poisson(5))
            samples = np.sort(self._rng.integers(0, step, count)) + self._first
            units = self._rng.integers(0, len(UNITS), count)
            edges = ((0, 1, self._first + 3),) if self._first // step % 4 == 0 else ()
            self.wire.send(Block(self._first, step, units, samples, edges))
            self.sent += [(UNITS[u], int(s)) for u, s in zip(units, samples, strict=True)]
            self.edges += [e[2] for e in edges]
            self._first += step

    def close(self) -> None:
        if self.open:
            self.open = False
            self.wire.close()


Made = Callable[..., Animal]


@pytest.fixture
def made() -> Iterator[Made]:
    animals: list[Animal] = []

    def make(kind: str, settings: WireFaults | None = None, port: int | None = None) -> Animal:
        animals.append(Animal(kind, port or free_port(2), settings))
        return animals[-1]

    yield make
    for animal in animals:
        animal.close()


def start(collector: Collector, kind: str, port: int) -> Running:
    clock = HostClock()
    if kind == "spikes":
        spikes = SpikesWireSource(name="probe", port=port)
        return Running(collector, lambda peer, stop, say: spikes_zmq.SpikesWire(spikes, peer, clock, stop, say))
    traces = TracesWireSource(name="probe", port=port)
    return Running(collector, lambda peer, stop, say: traces_zmq.TracesWire(traces, peer, clock, stop, say))


def watermark(collector: Collector) -> int:
    return collector.all(Continuity)[-1].watermark_sample if collector.all(Continuity) else 0


def received(collector: Collector) -> set[tuple[str, int]]:
    return {(b.units[k], int(s)) for b in collector.all(SpikeBlock) for k, s in zip(b.unit, b.sample, strict=True)}


def undeclared(collector: Collector, animal: Animal) -> list[tuple[str, int]]:
    """Return what was sent before the watermark, did not come, and lies in no gap."""
    end, got = watermark(collector), received(collector)
    gaps = [(g.first_sample, g.end_sample) for c in collector.all(Continuity) for g in c.gaps]
    missing = [s for s in animal.sent if s[1] < end and s not in got]
    return [s for s in missing if not any(a <= s[1] < b for a, b in gaps)]


def methods(collector: Collector) -> list[str]:
    return [p.method for p in collector.all(ClockSample)]


def faults(collector: Collector) -> list[str]:
    return [f.what for f in collector.all(Fault)]


@pytest.mark.parametrize("kind", ["spikes", "traces"])
def test_everything_sent_arrives_and_is_vouched_for(made: Made, kind: str) -> None:
    animal, collector = made(kind, WireFaults(quirks=True)), Collector()
    with start(collector, kind, animal.port) as running:
        collector.until(lambda: running.ready and watermark(collector), each=animal.due)
        begin = watermark(collector)
        collector.until(lambda: watermark(collector) > begin + 60_000, each=animal.due)
        end = watermark(collector)
    done = collector.all(Continuity)[-1]
    assert (done.lost_messages, done.state, done.sample_rate_hz) == (0, "streaming", RATE)
    assert faults(collector) == []
    assert [(u.units, u.list_number) for u in collector.all(UnitList)] == [(UNITS, 0)]
    edges = {int(s) for b in collector.all(EdgeBlock) for s in b.sample}
    assert {e for e in animal.edges if begin <= e < end} <= edges
    if kind == "spikes":
        wanted = {s for s in animal.sent if begin <= s[1] < end}
        assert len(wanted) > 150
        assert wanted <= received(collector)
    else:
        blocks = collector.all(TraceBlock)
        frame = np.concatenate([b.frame for b in blocks])
        assert len(frame) >= 58
        assert (np.diff(frame) == 1).all()
        assert all(b.values.shape == (len(b.frame), len(UNITS)) for b in blocks)
        assert all(b.motion is not None and b.neuropil is not None for b in blocks)
    pairs = collector.all(ClockSample)
    assert len(pairs) >= 6
    assert {p.method for p in pairs} == {"round_trip"}
    for p in pairs:  # the truth lies within the round trip and one sample
        assert p.round_trip_ns is not None
        assert abs(p.pair_host_ns - animal.device.host_ns(p.device_sample)) <= p.round_trip_ns / 2 + 34_000
    assert running.code == 0


@pytest.mark.parametrize("kind", ["spikes", "traces"])
def test_each_fault_is_declared_and_nothing_else_is_missing(made: Made, kind: str) -> None:
    animal, collector = made(kind), Collector()

    def more(samples: int = 15_000) -> None:
        goal = watermark(collector) + samples
        collector.until(lambda: watermark(collector) > goal, each=animal.due)

    with start(collector, kind, animal.port) as running:
        collector.until(lambda: running.ready and watermark(collector), each=animal.due)
        animal.faults.drop = 3
        collector.until(lambda: "messages lost" in faults(collector), each=animal.due)
        more()
        lost = collector.all(Continuity)[-1].lost_messages
        assert lost == 3
        animal.faults.drop_tail = True
        collector.until(lambda: any("after number" in f.detail for f in collector.all(Fault)), each=animal.due)
        animal.faults.drop_tail = False
        more()
        assert collector.all(Continuity)[-1].lost_messages == animal.wire.dropped
        animal.faults.unit_list_change = True
        collector.until(lambda: "unit list changed" in faults(collector), each=animal.due)
        animal.faults.unit_list_change = False
        more(40_000)
        assert [u.units[-1] for u in collector.all(UnitList)] == [UNITS[-1], f"{UNITS[-1]}-new", UNITS[-1]]
        assert {"no data", "device restarted", "late event", "message refused"} & set(faults(collector)) == set()
        gone = undeclared(collector, animal) if kind == "spikes" else []
        # While the last unit was replaced, its spikes were not on the wire.
        assert [s for s in gone if s[0] != UNITS[-1]] == []
        told = [g for c in collector.all(Continuity) for g in c.gaps if g.messages]
        assert sum(g.messages for g in told) == animal.wire.dropped
        assert all(g.end_sample - g.first_sample < 2 * RATE for g in told)


@pytest.mark.parametrize(("fault", "what"), [("restart", "device restarted"), ("jump_back", "samples jumped back")])
@pytest.mark.parametrize("kind", ["spikes", "traces"])
def test_a_restart_or_a_jump_back_begins_a_new_run(made: Made, kind: str, fault: str, what: str) -> None:
    animal, collector = made(kind), Collector()
    with start(collector, kind, animal.port) as running:
        collector.until(lambda: running.ready and watermark(collector), each=animal.due)
        first = collector.all(Continuity)[-1].run
        before = watermark(collector)
        setattr(animal.faults, fault, "reset" if fault == "restart" else True)
        collector.until(lambda: collector.all(Continuity)[-1].run > first and watermark(collector) > 0, each=animal.due)
        assert what in faults(collector)
        assert watermark(collector) < before
        collector.until(lambda: watermark(collector) > 15_000, each=animal.due)
        assert {u.run for u in collector.all(UnitList)} == {first, first + 1}
        pairs = [p for p in collector.all(ClockSample) if p.run > first]
        offset = animal.wire.offset
        assert pairs
        assert all(abs(p.pair_host_ns - animal.device.host_ns(p.device_sample + offset)) < 10e6 for p in pairs)
        samples = {int(s) + offset for b in collector.all(SpikeBlock) if b.run > first for s in b.sample}
        assert samples <= {s for _, s in animal.sent}


def test_a_stall_of_the_bridge_loses_nothing(made: Made) -> None:
    animal, collector = made("spikes"), Collector()
    with start(collector, "spikes", animal.port) as running:
        collector.until(lambda: running.ready and watermark(collector), each=animal.due)
        animal.faults.stall = True
        collector.until(lambda: collector.all(Continuity)[-1].state == "stalled", each=animal.due)
        animal.faults.stall = False
        goal = watermark(collector) + 60_000
        collector.until(lambda: watermark(collector) > goal, each=animal.due)
        assert "no data" in faults(collector)
        assert collector.all(Continuity)[-1].lost_messages == 0
        assert undeclared(collector, animal) == []


def test_a_bridge_that_goes_and_comes_back(made: Made) -> None:
    animal, collector = made("spikes"), Collector()
    with start(collector, "spikes", animal.port) as running:
        collector.until(lambda: running.ready and watermark(collector), each=animal.due)
        first = collector.all(Continuity)[-1].run
        animal.close()
        collector.until(lambda: collector.all(Continuity)[-1].state == "offline")
        assert {"no data", "device offline"} <= set(faults(collector))
        again = made("spikes", port=animal.port)
        collector.until(lambda: collector.all(Continuity)[-1].run > first and watermark(collector) > 0, each=again.due)
        collector.until(lambda: watermark(collector) > FIRST + 15_000, each=again.due)
        assert "device restarted" in faults(collector)


def test_a_clock_port_that_falls_silent_is_told(made: Made) -> None:
    animal, collector = made("spikes"), Collector()
    with start(collector, "spikes", animal.port) as running:
        collector.until(lambda: running.ready and watermark(collector), each=animal.due)
        animal.faults.mute_clock = True
        collector.until(lambda: "no clock reply" in faults(collector), each=animal.due)
        collector.until(lambda: methods(collector)[-1:] == ["arrival"], each=animal.due)
        animal.faults.mute_clock = False
        collector.until(lambda: methods(collector)[-1:] == ["round_trip"], each=animal.due)
    assert running.code == 0
    assert {"round_trip", "arrival"} == set(methods(collector))


# --- garbage, and nobody ----------------------------------------------------------------------------------------------


class Raw:
    """A PUB and a REP socket that send whatever a test likes."""

    def __init__(self) -> None:
        self.port = free_port(2)
        self._context = zmq.Context()
        self.pub, self.rep = self._context.socket(zmq.PUB), self._context.socket(zmq.REP)
        for socket, port in ((self.pub, self.port), (self.rep, self.port + 1)):
            socket.linger = 0
            socket.bind(f"tcp://127.0.0.1:{port}")
        self.answer = b"garbage"

    def turn(self, *frames: bytes) -> None:
        if frames:
            self.pub.send_multipart(frames)
        while self.rep.poll(0):
            self.rep.recv()
            self.rep.send(self.answer)

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def bridge() -> Iterator[Raw]:
    made = Raw()
    yield made
    made.close()


def header(number: int, **changes: Any) -> bytes:
    fields = {"wire": "spikes", "version": 1, "run": "r", "number": number, "rate_hz": 30_000, "list": 0}
    return json.dumps({**fields, "units": ["A"], "through": 750 * number, **changes}).encode()


def test_garbage_is_refused_and_counted_and_the_source_goes_on(bridge: Raw) -> None:
    collector, number = Collector(), iter(range(1, 10_000))
    rng = np.random.default_rng(3)

    def good() -> None:
        bridge.turn(header(next(number)), b"")

    with start(collector, "spikes", bridge.port) as running:
        collector.until(lambda: running.ready, each=good)
        for _ in range(50):
            bridge.turn(*(rng.bytes(int(rng.integers(0, 200))) for _ in range(int(rng.integers(1, 5)))))
        bridge.turn(header(next(number)), b"123")
        collector.until(lambda: collector.all(Continuity)[-1].lost_messages, each=good)
        assert collector.all(Continuity)[-1].lost_messages == 1
        collector.until(lambda: {"message refused", "clock reply refused"} <= set(faults(collector)), each=good)
        collector.until(lambda: any("more of this kind" in f.detail for f in collector.all(Fault)), each=good)
    assert running.code == 0


def test_a_message_over_the_limit_does_not_make_the_source_deaf(bridge: Raw) -> None:
    collector, number = Collector(), iter(range(1, 10_000))

    def good() -> None:
        bridge.turn(header(next(number)), b"")

    with start(collector, "spikes", bridge.port) as running:
        collector.until(lambda: running.ready, each=good)
        bridge.turn(header(next(number)), b"\0" * (MAX_ARRAY_BYTES + 16))
        collector.until(lambda: collector.all(Continuity)[-1].lost_messages, each=good)
        seen = collector.all(Continuity)[-1].messages
        collector.until(lambda: collector.all(Continuity)[-1].messages > seen + 20, each=good)
        assert "messages lost" in faults(collector)
    assert running.code == 0


def test_what_is_queued_at_the_end_is_read(bridge: Raw) -> None:
    collector, number, pause = Collector(), iter(range(1, 100_000)), threading.Event()

    def filled(peer: Peer, stop: Flag, say: Callable[..., None]) -> spikes_zmq.SpikesWire:
        """Return a source that is told to stop while more than one batch waits in its queue."""
        source = SpikesWireSource(name="probe", port=bridge.port)
        wire = spikes_zmq.SpikesWire(source, peer, HostClock(), stop, say)
        while not (waiting := wire._feed._inbox.waiting) or waiting < 3 * BATCH:
            for _ in range(100 if waiting else 1):
                bridge.turn(header(next(number)), b"")
            pause.wait(0.002)
        stop.set()
        return wire

    with Running(collector, filled) as running:
        collector.until(lambda: running.over)
    assert running.code == 0
    collector.until(lambda: collector.all(Continuity) and collector.all(Continuity)[-1].messages >= 3 * BATCH)
    assert collector.all(Continuity)[-1].lost_messages == 0


def failed(kind: str, port: int, each: Callable[[], object] | None = None) -> tuple[str, str]:
    collector = Collector()
    with start(collector, kind, port) as running:
        collector.until(lambda: running.over, 9.0, each=each)
    return failure(running)


def failure(running: Running) -> tuple[str, str]:
    assert running.code == 2
    return running.said[0]["failed"], running.said[0]["cure"]


def test_the_wrong_wire_ends_the_start_with_its_cure(bridge: Raw) -> None:
    reason, cure = failed("traces", bridge.port, each=lambda: bridge.turn(header(1), b""))
    assert "wire 'spikes', not 'traces'" in reason
    assert cure == "use a source of type spikes_zmq"


def test_an_unknown_version_ends_the_start(bridge: Raw) -> None:
    reason, cure = failed("spikes", bridge.port, each=lambda: bridge.turn(header(1, version=2), b""))
    assert "version 2" in reason
    assert "update" in cure


def test_a_bridge_that_never_names_its_units_is_told(bridge: Raw) -> None:
    number = iter(range(1, 10_000))
    nameless = json.loads(header(1))
    del nameless["units"]
    said = lambda: bridge.turn(json.dumps({**nameless, "number": next(number)}).encode(), b"")  # noqa: E731
    reason, cure = failed("spikes", bridge.port, each=said)
    assert "none with the list of their units" in reason
    assert "docs/wires/spikes.md" in cure


def test_nobody_there_is_told_and_probed(made: Made, bridge: Raw) -> None:
    port, here, there = free_port(2), Collector(), Collector()
    with start(here, "spikes", port) as spikes, start(there, "traces", port) as traces:  # each waits for seconds
        here.until(lambda: spikes.over and traces.over, 9.0, each=there.turn)
    for kind, probe, ended in (("spikes", spikes_zmq.probe, spikes), ("traces", traces_zmq.probe, traces)):
        reason, cure = failure(ended)
        assert f"127.0.0.1:{port}" in reason
        assert "nothing listens" in reason
        assert "start the bridge" in cure
        source: Any = SpikesWireSource(port=port) if kind == "spikes" else TracesWireSource(port=port)
        assert "nothing listens" in probe(source, HostClock(), 0.3)[0]
    quiet = spikes_zmq.probe(SpikesWireSource(port=bridge.port), HostClock(), 0.3)
    assert "something listens there" in quiet[0]
    idle = made("spikes")  # sends nothing, tells the time
    assert "start the acquisition" in spikes_zmq.probe(SpikesWireSource(port=idle.port), HostClock(), 0.7)[1]


def test_a_host_that_is_no_address_is_told() -> None:
    collector, source = Collector(), SpikesWireSource(name="probe", host="the rig", port=5560)
    with Running(
        collector, lambda peer, stop, say: spikes_zmq.SpikesWire(source, peer, HostClock(), stop, say)
    ) as running:
        collector.until(lambda: running.over)
    assert running.code == 2
    assert "cannot connect to the rig:5560" in running.said[0]["failed"]
    assert "host" in spikes_zmq.probe(source, HostClock(), 0.5)[1]


# --- the animal's switches --------------------------------------------------------------------------------------------


def test_switches_act_in_turn_and_end() -> None:
    faults, schedule = BridgeFaults(), Schedule(("drop", "drop_tail", "unit_list_change"), RATE)
    seen: dict[str, list[float]] = {"drop": [], "drop_tail": [], "unit_list_change": []}
    for k in range(int(2 * EVERY_S * 10)):
        schedule.set(faults, FIRST + k * 3000)
        for name in seen:
            if getattr(faults, name):
                seen[name].append(k / 10)
        faults.drop = 0
    assert seen["drop"] == [5.0, 25.0]
    assert len(seen["drop_tail"]) == 20
    assert min(seen["unit_list_change"]) > max(t for t in seen["drop_tail"] if t < EVERY_S)
    assert set(SWITCHES) == set(vars(BridgeFaults()))


def test_an_unknown_switch_and_a_taken_port_are_refused(made: Made) -> None:
    with pytest.raises(WireError, match="'dorp' is no fault of this wire; choose from drop, "):
        made("spikes", WireFaults(switches=("dorp",)))
    animal = made("spikes")
    with pytest.raises(WireError, match=f"port {animal.port + 1} .*cannot be opened"):
        made("traces", port=animal.port)
