"""The account of an Open Ephys stream: loss, gaps, runs, watermark, silence. Pure: no socket, no waiting."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rig.messages import (
    ClockSample,
    Continuity,
    Document,
    EdgeBlock,
    Fault,
    Gap,
    SpikeBlock,
)
from rig.sources.continuity import DEFERRAL, NOMINAL_HZ, Ledger
from rig.sources.openephys_parse import Data, Message, Spike, Ttl
from rig.sources.pace import Pace

N = 696
BLOCK_NS = 23_200_000


@dataclass
class Device:
    """Makes the messages of a GUI, block by block; `lose` says which of them do not arrive."""

    rng: np.random.Generator
    channels: int = 2
    rate_per_block: float = 3.0
    start: int = 0
    number: int = 0
    now_ns: int = 1_000_000_000
    spikes: list[int] = field(default_factory=list)
    edges: list[int] = field(default_factory=list)
    _deferred: list[int] = field(default_factory=list)

    def block(self) -> list[tuple[Message, int]]:
        """Return one block's messages with their arrival."""
        new = self.start + self.rng.integers(0, N, self.rng.poisson(self.rate_per_block))
        everything = [*self._deferred, *(int(s) for s in new)]
        limit = self.start + N - DEFERRAL
        self._deferred = [s for s in everything if s >= limit]
        due = [s for s in everything if s < limit]
        self.now_ns += BLOCK_NS
        out: list[tuple[Message, int]] = []
        out += [(Spike(self._next(), "s", 103, "E01", 0, sample, False), self._arrival()) for sample in due]
        self.spikes += due
        if self.rng.random() < 0.3:
            sample = self.start + int(self.rng.integers(0, N))
            self.edges.append(sample)
            out.append((Ttl(self._next(), "s", 0, 1, sample, 1, False), self._arrival()))
        for channel in range(self.channels):
            data = Data(self._next(), "s", channel, N, self.start, 30_000.0, False)
            out.append((data, self._arrival()))
        self.start += N
        return out

    def _next(self) -> int:
        self.number += 1
        return self.number

    def _arrival(self) -> int:
        self.now_ns += 10_000
        return self.now_ns


def device(seed: int = 0, channels: int = 2, rate: float = 3.0, start: int = 0) -> Device:
    return Device(np.random.default_rng(seed), channels=channels, rate_per_block=rate, start=start)


def gaps(documents: list[Document]) -> list[Gap]:
    return [g for d in documents if isinstance(d, Continuity) for g in d.gaps]


def faults(documents: list[Document]) -> list[str]:
    return [d.what for d in documents if isinstance(d, Fault)]


def last(documents: list[Document]) -> Continuity:
    return [d for d in documents if isinstance(d, Continuity)][-1]


def test_a_run_seen_from_its_start_is_complete() -> None:
    gui, ledger = device(start=5 * N), Ledger("probe", 7)
    for _ in range(50):
        for message, arrival in gui.block():
            ledger.take(message, arrival)
    documents = ledger.harvest(gui.now_ns + 10**9)
    assert gaps(documents) == [Gap(first_sample=0, end_sample=5 * N, messages=0)]  # before there was anything
    assert faults(documents) == []
    end = last(documents)
    assert (end.run, end.state, end.lost_messages, end.messages) == (7, "streaming", 0, gui.number)
    assert end.watermark_sample == gui.start - N - DEFERRAL
    assert end.sample_rate_hz == 30_000.0
    (block,) = [d for d in documents if isinstance(d, SpikeBlock)]
    assert block.sample.tolist() == gui.spikes
    (edges,) = [d for d in documents if isinstance(d, EdgeBlock)]
    assert edges.sample.tolist() == gui.edges


def test_documents_come_in_the_agreed_order() -> None:
    gui, ledger = device(rate=20.0), Ledger("probe", 0)
    kinds = []
    for _ in range(40):
        for message, arrival in gui.block():
            ledger.take(message, arrival)
        kinds.append([type(d).__name__ for d in ledger.harvest(gui.now_ns)])
    order = ["SpikeBlock", "EdgeBlock", "ClockSample", "Continuity"]
    assert all(k == [name for name in order if name in k] and k[-1] == "Continuity" for k in kinds)
    pairs = sum("ClockSample" in k for k in kinds)
    assert 3 <= pairs <= 4  # 40 blocks are 0.93 s


@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 3),
    start=st.integers(0, 10_000),
    lost=st.lists(st.tuples(st.integers(1, 250), st.integers(1, 60)), max_size=4),
    joined=st.integers(0, 20),
)
@settings(max_examples=100, deadline=None)
def test_what_is_lost_lies_in_a_gap_or_behind_the_watermark(
    seed: int, channels: int, start: int, lost: list[tuple[int, int]], joined: int
) -> None:
    """The promise of `watermark_sample`, for any loss: each event before it was delivered, or lies in a gap."""
    gui, ledger = device(seed, channels, rate=4.0, start=start), Ledger("probe", 0)
    gone = {n for first, count in lost for n in range(first, first + count)} | set(range(1, joined + 1))
    missing: list[int] = []
    documents: list[Document] = []
    seen: list[int] = []
    for _ in range(40):
        for message, arrival in gui.block():
            if message.message_num in gone:
                if not isinstance(message, Data):
                    missing.append(message.sample_num)
            else:
                seen.append(message.message_num)
                ledger.take(message, arrival)
        documents += ledger.harvest(gui.now_ns)
        done = last(documents)
        covered = gaps(documents)
        for sample in missing:
            if sample < done.watermark_sample:
                assert any(g.first_sample <= sample < g.end_sample for g in covered), sample
    assume(seen)
    # What lies before the first message seen is not known to be lost, what lies behind the last one not yet.
    assert last(documents).lost_messages == sum(seen[0] < n < seen[-1] for n in gone)
    for a, b in pairwise(covered):
        assert a.end_sample <= b.first_sample  # gaps do not overlap
    assert all(d.run == 0 for d in documents if isinstance(d, Continuity))


def test_a_loss_is_a_fault_with_its_numbers() -> None:
    gui, ledger = device(), Ledger("probe", 0)
    sent = [pair for _ in range(20) for pair in gui.block()]
    for message, arrival in sent[:30] + sent[37:]:
        ledger.take(message, arrival)
    (fault,) = [d for d in ledger.harvest(gui.now_ns) if isinstance(d, Fault)]
    assert fault.what == "messages lost"
    assert "7 messages between numbers 30 and 38" in fault.detail
    assert fault.since_host_ns == sent[29][1]


def test_losses_in_a_row_do_not_flood_the_log_and_none_is_forgotten() -> None:
    gui, ledger = device(), Ledger("probe", 0)
    told = []
    for _ in range(86):  # 2 s
        for k, (message, arrival) in enumerate(gui.block()):
            if k:  # the first of each block is lost
                ledger.take(message, arrival)
        told += [d for d in ledger.harvest(gui.now_ns) if isinstance(d, Fault)]
    told += [d for d in ledger.faults.due(gui.now_ns, everything=True) if isinstance(d, Fault)]
    assert 2 <= len(told) <= 4
    more = sum(int(f.detail.split("; and ")[1].split()[0]) for f in told if "; and " in f.detail)
    assert more + len(told) == 85  # the first loss of all is not known to be one


def test_numbers_that_start_again_are_a_new_run() -> None:
    gui, ledger = device(), Ledger("probe", 3)
    for _ in range(5):
        for message, arrival in gui.block():
            ledger.take(message, arrival)
    spikes_before = len(gui.spikes)
    gui.number = 0
    for message, arrival in [p for _ in range(5) for p in gui.block()][2:]:  # its first two are lost
        ledger.take(message, arrival)
    documents = ledger.harvest(gui.now_ns)
    runs = [d.run for d in documents if isinstance(d, Continuity)]
    assert runs == [3, 4]
    blocks = [d for d in documents if isinstance(d, SpikeBlock)]
    assert (blocks[0].run, len(blocks[0].sample)) == (3, spikes_before)
    assert last(documents).lost_messages == 2
    assert faults(documents) == ["acquisition restarted", "messages lost"]
    kinds = [type(d).__name__ for d in documents]
    assert kinds.index("Continuity") < kinds.index(
        "SpikeBlock", kinds.index("Continuity")
    )  # run 3 is told before run 4


def test_samples_that_jump_back_are_a_fault_and_a_new_run() -> None:
    gui, ledger = device(start=100_000), Ledger("probe", 0)
    for _ in range(10):
        for message, arrival in gui.block():
            ledger.take(message, arrival)
    gui.start, gui._deferred = 528, []
    for _ in range(10):
        for message, arrival in gui.block():
            ledger.take(message, arrival)
    documents = ledger.harvest(gui.now_ns)
    assert faults(documents) == ["samples jumped back"]
    assert [d.run for d in documents if isinstance(d, Continuity)] == [0, 1]
    assert last(documents).watermark_sample == 528 + 9 * N - DEFERRAL
    for block in [d for d in documents if isinstance(d, SpikeBlock)]:
        assert (block.sample >= 99_000).all() if block.run == 0 else (block.sample < 20_000).all()


def test_samples_the_device_skipped_are_a_gap() -> None:
    gui, ledger = device(), Ledger("probe", 0)
    for k in range(10):
        gui.start += 5000 if k == 5 else 0
        for message, arrival in gui.block():
            ledger.take(message, arrival)
    documents = ledger.harvest(gui.now_ns)
    assert faults(documents) == ["samples missing"]
    assert Gap(first_sample=5 * N - DEFERRAL, end_sample=6 * N + 5000, messages=0) in gaps(documents)
    assert last(documents).lost_messages == 0


def test_a_restart_whose_first_seen_message_has_by_chance_the_next_number_is_covered() -> None:
    """What is lost of the new acquisition up to there lies in the gap, the whole first block included."""
    ledger = Ledger("probe", 0)
    for k in range(3):
        ledger.take(Data(k + 1, "s", 0, N, k * N, 30_000.0, False), 1_000_000_000 + k * BLOCK_NS)
    # Acquisition starts again with message 1; 1 to 3 are lost, with spikes of the blocks 9 and 10 in 2 and 3.
    lost = [9 * N + 5, 10 * N + 300]
    for k in range(2):
        data = Data(4 + k, "s", 0, N, (10 + k) * N, 30_000.0, False)
        ledger.take(data, 1_000_000_000 + (10 + k) * BLOCK_NS)
    documents = ledger.harvest(2_000_000_000)
    assert last(documents).run == 0
    assert all(any(g.first_sample <= s < g.end_sample for g in gaps(documents)) for s in lost)


def test_the_clock_pair_is_that_of_the_whole_block_even_behind_a_loss() -> None:
    """A stamp from a block whose end was lost must not be paired with the end of the next one: that is too early."""
    ledger = Ledger("probe", 0)
    ledger.take(Data(1, "s", 0, N, 0, 30_000.0, False), 1_000_000_000)
    ledger.take(Spike(2, "s", 1, "E", 0, N + 5, False), 1_023_000_000)
    ledger.take(Data(9, "s", 0, N, 2 * N, 30_000.0, False), 1_046_000_000)
    pairs = [d for d in ledger.harvest(3_000_000_000) if isinstance(d, ClockSample)]
    (pair,) = [(p.device_sample, p.pair_host_ns) for p in pairs]
    assert pair in ((3 * N, 1_046_000_000), (N, 1_000_000_000))


def state(ledger: Ledger) -> str:
    return ledger.state


def test_silence_is_told_by_the_clock() -> None:
    gui, ledger = device(), Ledger("probe", 0)
    ledger.watch(0, None)
    assert state(ledger) == "connecting"
    ledger.watch(0, 0)
    assert state(ledger) == "online"
    for message, arrival in gui.block():
        ledger.take(message, arrival)
    since = gui.now_ns
    ledger.watch(since + ledger.silent_after_ns(), since)
    assert state(ledger) == "streaming"
    ledger.watch(since + ledger.silent_after_ns() + 1, since)
    assert state(ledger) == "stalled"
    (fault,) = [d for d in ledger.harvest(since + 10**9) if isinstance(d, Fault)]
    assert (fault.what, fault.since_host_ns) == ("no data", since)
    ledger.watch(since + 7 * 10**9, since + 6 * 10**9)
    assert state(ledger) == "stalled"  # heartbeats go on: not gone
    ledger.watch(since + 20 * 10**9, since + 6 * 10**9)
    assert state(ledger) == "offline"
    assert faults(ledger.harvest(since + 20 * 10**9)) == ["device offline"]
    ledger.watch(since + 21 * 10**9, since + 21 * 10**9)
    assert state(ledger) == "online"
    for message, arrival in gui.block():
        ledger.take(message, arrival)
    assert state(ledger) == "streaming"
    assert last(ledger.harvest(gui.now_ns)).lost_messages == 0


@pytest.mark.parametrize(("samples", "told"), [(200, 1), (201, 0)])
def test_blocks_in_which_the_gui_loses_spikes_are_told_once(samples: int, told: int) -> None:
    ledger = Ledger("probe", 0)
    for k in range(5):
        ledger.take(Data(k + 1, "s", 0, samples, k * samples, 30_000.0, False), 10**9 + k)
    documents = ledger.harvest(10**9)
    assert faults(documents) == ["short blocks"] * told


def test_two_electrodes_of_one_name_are_told() -> None:
    ledger = Ledger("probe", 0)
    for k in range(4):
        ledger.take(Spike(k + 1, "s", 103 + k % 2, "E01", 0, 10 + k, False), 10**9)
    (fault,) = [d for d in ledger.harvest(10**9) if isinstance(d, Fault)]
    assert fault.what == "ambiguous unit"
    assert "103" in fault.detail
    assert "104" in fault.detail


def test_without_continuous_channels_the_watermark_is_wide() -> None:
    gui, ledger = device(channels=0, rate=5.0), Ledger("probe", 0)
    documents: list[Document] = []
    for _ in range(200):
        before = gui.start
        for message, arrival in gui.block():
            ledger.take(message, arrival)
        documents += ledger.harvest(gui.now_ns)
        assert last(documents).watermark_sample <= max(before - DEFERRAL, 0)  # it never promises too much
    assert faults(documents) == ["no data channel"]
    assert last(documents).sample_rate_hz == NOMINAL_HZ  # else no response could ever be measured
    assert "30000 Hz" in next(d.done for d in documents if isinstance(d, Fault))
    assert last(documents).watermark_sample > 100 * N


# --- against the clock ------------------------------------------------------------------------------------------------


def test_a_pace_that_jumps_ahead_is_no_longer_the_same_clock() -> None:
    gui, ledger = device(), Ledger("probe", 0)
    for k in range(200):
        gui.start += 30_000 if k == 150 else 0  # a file was wound on by a second
        for message, arrival in gui.block():
            ledger.take(message, arrival)
    documents = ledger.harvest(gui.now_ns)
    assert faults(documents) == ["samples jumped ahead"]
    assert [d.run for d in documents if isinstance(d, Continuity)] == [0, 1]
    assert last(documents).watermark_sample == gui.start - N - DEFERRAL


def test_a_counter_that_stood_still_is_a_new_run_and_nothing_is_vouched_for_until_that_is_known() -> None:
    """A frozen GUI goes on without a hole in numbers or samples; every sample then means a later moment."""
    gui, ledger = device(), Ledger("probe", 0)
    documents: list[Document] = []
    frozen = 0
    for k in range(200):
        if k == 100:
            gui.now_ns += 6_000_000_000
            frozen = gui.start
        for message, arrival in gui.block():
            ledger.take(message, arrival)
        documents += ledger.harvest(gui.now_ns)
        if last(documents).run == 0:
            assert last(documents).watermark_sample <= (frozen or 10**9)
    assert "samples stood still" in faults(documents)
    assert last(documents).run == 1
    first = [d for d in documents if isinstance(d, Continuity) and d.run == 0]
    covered = [g for d in first for g in d.gaps]
    assert any(g.first_sample <= frozen and g.end_sample > frozen + 30 * N for g in covered)


def test_late_blocks_that_come_in_a_burst_are_waited_for() -> None:
    gui, ledger = device(), Ledger("probe", 0)
    held: list[Message] = []
    documents: list[Document] = []
    for k in range(200):
        for message, arrival in gui.block():
            if 100 <= k < 122:  # 500 ms
                held.append(message)
            else:
                for late in held:
                    ledger.take(late, arrival)
                held = []
                ledger.take(message, arrival)
        documents += ledger.harvest(gui.now_ns)
    assert faults(documents) == []
    assert last(documents).run == 0
    assert last(documents).watermark_sample == gui.start - N - DEFERRAL


@given(ppm=st.floats(-900, 900), jitter_ms=st.integers(0, 100), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_drift_and_jitter_are_in_pace(ppm: float, jitter_ms: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pace = Pace()
    for k in range(3000):  # 70 s
        true_ns = k * N / 30_000 * (1 + ppm * 1e-6) * 1e9
        assert pace.judge(k * N, int(true_ns + rng.uniform(0, jitter_ms) * 1e6), 30_000.0) == "steady"


def test_the_end_tells_what_the_clock_says_is_missing() -> None:
    gui, ledger = device(), Ledger("probe", 0)
    for _ in range(20):
        for message, arrival in gui.block():
            ledger.take(message, arrival)
    ledger.harvest(gui.now_ns)
    end = gui.now_ns + 2_000_000_000
    ledger.watch(end, end)
    documents = ledger.finish(end)
    assert set(faults(documents)) == {"no data", "tail missing"}
    assert isinstance(documents[-1], Continuity)
    (gap,) = gaps(documents)
    assert gap.first_sample == gui.start - N - DEFERRAL
    assert gap.end_sample == pytest.approx(gui.start + 60_000, abs=100)


def test_an_ordinary_end_has_nothing_to_tell() -> None:
    gui, ledger = device(), Ledger("probe", 0)
    for _ in range(20):
        for message, arrival in gui.block():
            ledger.take(message, arrival)
    ledger.watch(gui.now_ns + 20_000_000, gui.now_ns)
    assert faults(ledger.finish(gui.now_ns + 20_000_000)) == []


def test_an_acquisition_that_the_user_stopped_is_no_stall() -> None:
    gui, ledger = device(), Ledger("probe", 0)
    for message, arrival in gui.block():
        ledger.take(message, arrival)
    later = gui.now_ns + 2_000_000_000
    ledger.watch(later, later)
    assert state(ledger) == "stalled"
    ledger.watch(later, later, stopped=True)
    assert state(ledger) == "online"
    ledger.watch(later + 10**9, later + 10**9, stopped=True)
    assert state(ledger) == "online"


@pytest.mark.parametrize("length", [43, 100, 174, 200])
def test_what_short_blocks_may_have_lost_is_a_gap(length: int) -> None:
    ledger = Ledger("probe", 0)
    for k in range(5):
        ledger.take(Data(k + 1, "s", 0, length, k * length, 30_000.0, False), 10**9 + k * 5_800_000)
    found = gaps(ledger.harvest(10**9))
    for sample in range(length, 4 * length):
        lost = sample % length >= length - DEFERRAL
        assert any(g.first_sample <= sample < g.end_sample for g in found) == lost
