"""The LSL source: the account of rows (pure), and the whole source against the animal's outlets."""

import uuid
from collections.abc import Callable, Iterator

import numpy as np
import pylsl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rig.animal.lsl_outlets import BLOCK_SAMPLES, LslOutlets
from rig.animal.wire import Block
from rig.clock import HostClock
from rig.config.sources import LslSpikeSource
from rig.messages import (
    ClockSample,
    Continuity,
    EdgeBlock,
    Fault,
    Gap,
    SpikeBlock,
    UnitList,
)
from rig.sources.lsl import LslLoop
from rig.sources.lsl_rows import Lane
from tests.collector import Collector, Running

UNITS = ("E01#0", "E02#0")


# --- rows ---


def test_rows_and_watermarks() -> None:
    lane = Lane("spikes", units=2)
    taken = lane.take([[0, 10], [1, 20], [-2, 2], [-1, 750], [1, 800]])
    assert taken.rows == [(0, 10), (1, 20), (1, 800)]
    assert taken.marks == [(3, 750)]
    assert taken.gaps == [Gap(first_sample=0, end_sample=750, messages=0)]  # what was before is not known
    assert (lane.watermark, lane.lost) == (750, 0)
    assert lane.take([[-2, 3], [-1, 1500]]).gaps == []
    assert lane.take([[0, 1600], [-2, 6], [-1, 2250]]).gaps == [Gap(first_sample=1500, end_sample=2250, messages=2)]
    assert (lane.watermark, lane.lost) == (2250, 2)


def test_edge_rows() -> None:
    lane = Lane("edges")
    taken = lane.take([[0, 1, 5], [-1, 1, 750], [0, 0, 800], [-1, 2, 1500]])
    assert taken.rows == [(0, 1, 5), (0, 0, 800)]
    assert taken.marks == [(1, 750), (3, 1500)]
    assert lane.take([[-1, 4, 2250]]).gaps == [Gap(first_sample=1500, end_sample=2250, messages=2)]


@pytest.mark.parametrize("back", [[[-2, 1], [-1, 2000]], [[-2, 9], [-1, 700]]])
def test_counts_or_samples_that_go_back_are_a_restart(back: list[list[float]]) -> None:
    lane = Lane("spikes", units=2)
    lane.take([[-2, 5], [-1, 750]])
    assert lane.take(back).restarted


@pytest.mark.parametrize(
    "row", [[0], [0, 1, 2], [2, 10], [0, -1], [0.5, 10], [float("nan"), 1], [float("inf"), 1], [0, 2.0**60], [-3, 4]]
)
def test_garbage_is_refused(row: list[float]) -> None:
    lane = Lane("spikes", units=2)
    taken = lane.take([row])
    assert len(taken.refused) == 1
    assert taken.rows == []


def test_a_watermark_without_its_count_is_refused() -> None:
    lane = Lane("spikes", units=1)
    assert len(lane.take([[-1, 750]]).refused) == 1
    assert lane.watermark is None


@given(st.lists(st.lists(st.floats(), max_size=4), max_size=20), st.sampled_from(["spikes", "edges"]))
@settings(max_examples=200, deadline=None)
def test_no_row_raises(rows: list[list[float]], kind: str) -> None:
    Lane("spikes", units=2).take(rows) if kind == "spikes" else Lane("edges").take(rows)


@given(st.integers(0, 2**32 - 1), st.sets(st.integers(0, 199), max_size=40))
@settings(max_examples=100, deadline=None)
def test_what_is_lost_lies_in_a_gap(seed: int, lost: set[int]) -> None:
    rng = np.random.default_rng(seed)
    lane, sent, number, missing = Lane("spikes", units=2), 0, 0, []
    gaps: list[Gap] = []
    for block in range(20):
        rows = [[0.0, float(block * 750 + s)] for s in sorted(rng.integers(0, 750, 10))]
        kept = []
        for row in rows:
            sent += 1
            if number in lost:
                missing.append(int(row[1]))
            else:
                kept.append(row)
            number += 1
        gaps += lane.take([*kept, [-2, sent], [-1, 750 * (block + 1)]]).gaps
    assert lane.watermark == 20 * 750
    assert all(any(g.first_sample <= s < g.end_sample for g in gaps) for s in missing)
    assert lane.lost == sum(n >= 10 for n in lost)  # the first block is a join


# --- wires ---


class Animal:
    """Outlets with blocks of random spikes and an edge in every fourth block."""

    def __init__(self, tag: str) -> None:
        self.names = (f"spikes-{tag}", f"edges-{tag}")
        self.outlets = LslOutlets(UNITS, HostClock(), self.names[0], self.names[1])
        self.open = True
        self.sent: list[tuple[str, int]] = []
        self.edges: list[int] = []
        self._rng = np.random.default_rng(2)
        self._clock = HostClock()
        self._start_ns = self._clock.now_ns()
        self._first = 0

    def due(self) -> None:
        """Send the blocks that are over by now, at 30 kHz of the host clock."""
        while (self._first + BLOCK_SAMPLES) * 1e9 / 30_000 <= self._clock.now_ns() - self._start_ns:
            count = int(self._rng.poisson(5))
            samples = np.sort(self._rng.choice(BLOCK_SAMPLES, count, replace=False)).astype(np.int64) + self._first
            units = self._rng.integers(0, 2, count)
            edges = ((0, 1, self._first + 3),) if self._first // BLOCK_SAMPLES % 4 == 0 else ()
            self.outlets.send(Block(self._first, BLOCK_SAMPLES, units, samples, edges))
            self.sent += [(UNITS[u], int(s)) for u, s in zip(units, samples, strict=True)]
            self.edges += [e[2] for e in edges]
            self._first += BLOCK_SAMPLES

    def close(self) -> None:
        """End the outlets; a second time changes nothing."""
        if self.open:
            self.open = False
            self.outlets.close()

    def host_ns(self, sample: int) -> float:
        return self._start_ns + sample * 1e9 / 30_000


@pytest.fixture
def tag() -> str:
    """Return a name of this test's own: LSL streams are visible to everybody on the network."""
    return uuid.uuid4().hex[:8]


@pytest.fixture
def animal(tag: str) -> Iterator[Animal]:
    made = Animal(tag)
    yield made
    made.close()


def start(collector: Collector, names: tuple[str, str | None]) -> Running:
    source = LslSpikeSource(name="probe", stream=names[0], edges=names[1])
    return Running(collector, lambda peer, stop, say: LslLoop(source, peer, HostClock(), stop, say))


def received(collector: Collector) -> set[tuple[str, int]]:
    return {(b.units[k], int(s)) for b in collector.all(SpikeBlock) for k, s in zip(b.unit, b.sample, strict=True)}


def watermark(collector: Collector) -> int:
    return collector.all(Continuity)[-1].watermark_sample if collector.all(Continuity) else 0


@pytest.mark.parametrize("with_edges", [True, False])
def test_everything_sent_arrives_and_is_vouched_for(animal: Animal, with_edges: bool) -> None:
    collector = Collector()
    with start(collector, (animal.names[0], animal.names[1] if with_edges else None)) as running:
        collector.until(lambda: running.ready and watermark(collector), each=animal.due)
        begin = watermark(collector)
        collector.until(lambda: watermark(collector) > begin + 60_000, each=animal.due)
        gaps = [g for c in collector.all(Continuity) for g in c.gaps]
        since, end = max(g.end_sample for g in gaps), watermark(collector)
        wanted = {s for s in animal.sent if since <= s[1] < end}
        assert len(wanted) > 150
        assert wanted <= received(collector)
        assert [f.what for f in collector.all(Fault)] == []
        edges = {int(s) for b in collector.all(EdgeBlock) for s in b.sample}
        assert {e for e in animal.edges if since <= e < end} <= edges if with_edges else not edges
        done = collector.all(Continuity)[-1]
        assert (done.lost_messages, done.state, done.sample_rate_hz) == (0, "streaming", 30_000.0)
        pairs = [p for p in collector.all(ClockSample) if p.method == "arrival"]
        assert len(pairs) >= 6
        assert {p.source for p in pairs} == {"probe"}
        for pair in pairs:  # the sender's stamp on the host clock, at most a turn of this test late
            assert -1e6 < pair.pair_host_ns - animal.host_ns(pair.device_sample) < 1e8
        trips = [p for p in collector.all(ClockSample) if p.method == "round_trip"]
        assert {p.source for p in trips} == {"probe.lsl_clock"}
        for trip in trips:  # sender and reader share this computer's clock
            assert trip.round_trip_ns is not None
            assert abs(trip.pair_host_ns - trip.device_sample * 1000) <= trip.round_trip_ns / 2 + 20_000
        (units,) = collector.all(UnitList)
        assert (units.units, units.measure) == (UNITS, "spikes")
    assert running.code == 0


def test_a_sender_that_starts_again_is_a_new_run(animal: Animal, tag: str) -> None:
    collector = Collector()
    with start(collector, animal.names) as running:
        collector.until(lambda: running.ready and watermark(collector), each=animal.due)
        first = collector.all(Continuity)[-1].run
        animal.close()
        collector.until(lambda: "device offline" in [f.what for f in collector.all(Fault)])
        again = Animal(tag)
        try:
            collector.until(
                lambda: collector.all(Continuity)[-1].run > first and watermark(collector) > 0, 30.0, each=again.due
            )
        finally:
            again.close()
        assert collector.all(Continuity)[-1].state == "streaming"
        newest = {int(s) for b in collector.all(SpikeBlock) if b.run > first for s in b.sample}
        assert newest <= {s for _, s in again.sent}


def test_silence_of_a_sender_is_told(animal: Animal) -> None:
    collector = Collector()
    with start(collector, animal.names) as running:
        collector.until(lambda: running.ready, each=animal.due)
        collector.until(lambda: "no data" in [f.what for f in collector.all(Fault)])
        collector.until(lambda: collector.all(Continuity)[-1].state == "stalled")
    (told,) = [f for f in collector.all(Fault) if f.what == "no data"]
    assert told.since_host_ns is not None, "silence is told once, with its time"


def failed(names: tuple[str, str | None], each: Callable[[], object] | None = None) -> tuple[str, str]:
    collector, clock = Collector(), HostClock()
    begin = clock.now_ns()
    with start(collector, names) as running:
        collector.until(lambda: running.over, each=each)
    assert clock.now_ns() - begin < 10_000_000_000
    assert running.code == 2
    return running.said[0]["failed"], running.said[0]["cure"]


def test_a_stream_that_is_not_there_is_named_with_those_that_are(animal: Animal, tag: str) -> None:
    reason, cure = failed((f"other-{tag}", None))
    assert f"'other-{tag}'" in reason
    assert animal.names[0] in reason
    assert "stream" in cure


def test_a_stream_of_another_kind_is_refused_at_once(tag: str) -> None:
    info = pylsl.StreamInfo(f"eeg-{tag}", "EEG", 8, 100.0, pylsl.cf_float32, f"eeg-{tag}")
    outlet = pylsl.StreamOutlet(info)
    reason, cure = failed((f"eeg-{tag}", None))
    assert "8 channels" in reason
    assert "docs/wires/lsl.md" in cure
    del outlet
