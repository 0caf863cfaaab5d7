"""The account of a bridge on the open wires: every loss, restart and change is declared with its span."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rig.messages import (
    ClockSample,
    Continuity,
    Document,
    EdgeBlock,
    Fault,
    Gap,
    SpikeBlock,
    TraceBlock,
    UnitList,
)
from rig.sources.spikes_zmq import Spikes
from rig.sources.traces_zmq import Traces
from rig.sources.zmq_ledger import OFFLINE_NS, SILENT_NS, TAIL_GRACE_NS, Ledger
from rig.sources.zmq_parse import (
    ClockReply,
    FramesMessage,
    Refusal,
    SpikesMessage,
    UnitsMessage,
    parse_spikes,
    parse_traces,
)

RATE = 30_000
STEP = 750
MS = 1_000_000
AHEAD = 2000  # spikes of the bridge here are newer than `through` by fewer samples


class Desk:
    """A ledger with its contents, fed by hand; time goes on by 25 ms with each message."""

    def __init__(self, contents: Spikes | Traces) -> None:
        self.ledger = Ledger("probe", first_run=100)
        self.contents: Any = contents
        self.documents: list[Document] = []
        self.now_ns = 1_000_000_000

    def take(self, message: SpikesMessage | UnitsMessage | FramesMessage | Refusal) -> "Desk":
        assert not isinstance(message, Refusal), message
        self.now_ns += 25 * MS
        self.ledger.take(message, self.contents, self.now_ns)
        return self.harvest()

    def reply(self, number: int, sample: float, run: str = "r1", present: bool = True) -> "Desk":
        self.ledger.replied(ClockReply(run, number, float(sample), present), self.now_ns - MS, self.now_ns)
        return self

    def wait(self, ns: int) -> "Desk":
        self.now_ns += ns
        self.ledger.watch(self.now_ns)
        self.ledger.watch_clock(self.now_ns, 0)
        return self.harvest()

    def harvest(self) -> "Desk":
        self.documents += self.ledger.harvest(self.contents, self.now_ns)
        return self

    def all(self, kind: type[Document]) -> list[Any]:
        return [d for d in self.documents if isinstance(d, kind)]

    @property
    def last(self) -> Continuity:
        return self.all(Continuity)[-1]

    def gaps(self, run: int | None = None) -> list[Gap]:
        chosen = self.ledger.run if run is None else run
        return [g for c in self.all(Continuity) if c.run == chosen for g in c.gaps]

    def faults(self) -> list[str]:
        return [f.what for f in self.all(Fault)]


def spikes(number: int, rows: Any = (), **changes: Any) -> SpikesMessage | Refusal:
    fields = {
        "wire": "spikes", "version": 1, "run": "r1", "number": number, "rate_hz": RATE, "list": 0,
        "units": ["A", "B", "C"], "through": STEP * number, "ahead": AHEAD,
    }  # fmt: skip
    fields = {k: v for k, v in {**fields, **changes}.items() if v is not ...}
    array = np.array(rows, dtype="<i8").reshape(-1, 2).tobytes()
    return parse_spikes([json.dumps(fields).encode(), array])


def rois(number: int, units: tuple[str, ...] = ("A", "B"), listed: int = 0) -> UnitsMessage | Refusal:
    fields = {
        "wire": "traces", "version": 1, "kind": "units", "run": "r1", "number": number, "rate_hz": RATE,
        "list": listed, "units": units,
    }  # fmt: skip
    result = parse_traces([json.dumps(fields).encode(), np.linspace(0, 0.03, len(units)).astype("<f8").tobytes()])
    assert not isinstance(result, FramesMessage)
    return result


def frames(number: int, first: int, count: int = 1, **changes: Any) -> FramesMessage | Refusal:
    """Frames of 1,000 samples; frame k begins at 1000 k."""
    fields = {
        "wire": "traces", "version": 1, "kind": "frames", "run": "r1", "number": number, "rate_hz": RATE, "list": 0,
        "rois": 2, "through": 1000 * (first + count), "frames": [[k, 1000 * k] for k in range(first, first + count)],
    }  # fmt: skip
    fields = {**fields, **changes}
    n = len(fields["frames"]) * fields["rois"]
    result = parse_traces([json.dumps(fields).encode(), np.arange(1, n + 1, dtype="<f4").tobytes()])
    assert not isinstance(result, UnitsMessage)
    return result


def joined() -> Desk:
    """Return a desk that has seen messages 1 to 4."""
    desk = Desk(Spikes("probe"))
    for number in range(1, 5):
        desk.take(spikes(number))
    return desk


# --- spikes -----------------------------------------------------------------------------------------------------------


def test_spikes_and_edges_come_out_by_name() -> None:
    desk = Desk(Spikes("probe")).take(spikes(41))
    desk.take(spikes(42, [[2, 31_000], [0, 30_900]], edges=[[3, 1, 31_010]]))
    (listed,) = desk.all(UnitList)
    assert (listed.units, listed.list_number, listed.measure) == (("A", "B", "C"), 0, "spikes")
    (block,) = desk.all(SpikeBlock)
    assert [block.units[k] for k in block.unit] == ["C", "A"]
    assert block.units == ("A", "C")  # a unit without a spike has not been seen
    assert block.sample.tolist() == [31_000, 30_900]
    assert set(block.arrival_host_ns.tolist()) == {desk.now_ns}
    (edges,) = desk.all(EdgeBlock)
    assert (edges.line.tolist(), edges.state.tolist(), edges.sample.tolist()) == ([3], [1], [31_010])
    assert desk.gaps() == [Gap(first_sample=0, end_sample=41 * STEP, messages=0)]  # joined in the middle
    assert (desk.last.watermark_sample, desk.last.lost_messages, desk.last.state) == (42 * STEP, 0, "streaming")
    assert desk.faults() == []


def test_a_lost_message_is_a_gap_from_the_watermark_before_it() -> None:
    desk = joined().take(spikes(7))
    assert desk.gaps()[1:] == [Gap(first_sample=4 * STEP, end_sample=7 * STEP + AHEAD, messages=2)]
    assert (desk.last.lost_messages, desk.faults()) == (2, ["messages lost"])
    assert "2 messages between numbers 4 and 7" in desk.all(Fault)[0].detail


@pytest.mark.parametrize(("ahead", "wider"), [(6001, 6001), (0, 0), (..., RATE + 1)])
def test_spikes_that_run_ahead_widen_the_gap(ahead: Any, wider: int) -> None:
    """A lost message may have held spikes as far ahead of `through` as the bridge states, or as the wire allows."""
    desk = joined().take(spikes(5, [[0, 5 * STEP - 1]], ahead=ahead))
    lost = spikes(6, [[0, 6 * STEP + wider - 1]], ahead=ahead)
    assert not isinstance(lost, Refusal)
    desk.take(spikes(7, ahead=ahead))
    (gap,) = desk.gaps()[1:]
    assert gap == Gap(first_sample=5 * STEP, end_sample=7 * STEP + wider, messages=1)
    assert gap.first_sample <= lost.sample[0] < gap.end_sample


def test_a_lost_tail_shows_in_the_clock_s_answer() -> None:
    desk = joined().reply(9, 9 * STEP).wait(TAIL_GRACE_NS - 1)
    assert desk.last.lost_messages == 0  # the answer may have overtaken them
    desk.wait(2)
    assert (desk.last.lost_messages, desk.last.watermark_sample) == (5, 4 * STEP)
    assert "5 messages after number 4" in desk.all(Fault)[0].detail
    desk.take(spikes(10))
    assert desk.gaps()[1:] == [Gap(first_sample=4 * STEP, end_sample=10 * STEP + AHEAD, messages=5)]
    assert desk.last.lost_messages == 5
    assert desk.faults().count("messages lost") == 1


def test_a_tail_that_comes_after_all_is_not_lost() -> None:
    desk = joined().reply(6, 6 * STEP).wait(TAIL_GRACE_NS)
    assert desk.last.lost_messages == 2
    desk.take(spikes(5)).take(spikes(6))
    assert (desk.last.lost_messages, desk.last.watermark_sample) == (0, 6 * STEP)
    assert desk.gaps()[1:] == []
    assert "late message" in desk.faults()


def test_part_of_a_tail_comes_after_all() -> None:
    desk = joined().reply(7, 7 * STEP).wait(TAIL_GRACE_NS).take(spikes(6)).take(spikes(8))
    assert desk.last.lost_messages == 2
    assert [g.messages for g in desk.gaps()[1:]] == [1, 1]


@pytest.mark.parametrize(
    ("message", "what", "lost"),
    [
        (spikes(1, run="r2", through=300), "device restarted", 0),
        (spikes(6, run="r2", through=300), "device restarted", 5),
        (spikes(1, through=4 * STEP), "device restarted", 0),
        (spikes(5, through=0), "samples jumped back", 0),
        (spikes(5, rate_hz=25_000), "device restarted", 0),
    ],
    ids=["new run", "new run without its first", "numbers back", "samples back", "rate"],
)
def test_what_cannot_be_the_same_run_begins_a_new_one(message: SpikesMessage, what: str, lost: int) -> None:
    desk = joined().take(message)
    assert (desk.ledger.run, what in desk.faults(), desk.last.lost_messages) == (101, True, lost)
    old = [c for c in desk.all(Continuity) if c.run == 100][-1]
    assert old.watermark_sample == 4 * STEP
    assert desk.last.watermark_sample == message.head.through
    through = message.head.through
    assert through is not None
    end = through + (AHEAD if lost else 0)
    assert desk.gaps() == ([Gap(first_sample=0, end_sample=end, messages=lost)] if end else [])
    assert [u.run for u in desk.all(UnitList)] == [100, 101]


def test_a_small_step_back_of_through_is_jitter() -> None:
    desk = joined().take(spikes(5, through=4 * STEP - 100))
    assert (desk.ledger.run, desk.last.watermark_sample, desk.faults()) == (100, 4 * STEP, [])


def test_a_changed_unit_list_is_told_with_its_names() -> None:
    desk = joined().take(spikes(5, [[2, 5 * STEP - 1]]))
    desk.take(spikes(6, [[2, 6 * STEP - 1]], list=1, units=["A", "B", "D"]))
    assert [(u.list_number, u.units[2], u.from_sample) for u in desk.all(UnitList)] == [(0, "C", 0), (1, "D", 5 * STEP)]
    assert [b.units for b in desk.all(SpikeBlock)] == [("C",), ("D",)]
    assert desk.faults() == ["unit list changed"]
    assert "gone: C; new: D" in desk.all(Fault)[0].detail
    desk.take(spikes(7, list=1, units=["A", "B"])).wait(2_000 * MS)
    assert "kept the number 1" in desk.all(Fault)[1].detail


def test_the_same_names_under_another_number_are_no_change() -> None:
    desk = joined()
    for number in range(5, 40):
        desk.take(spikes(number, [[1, number * STEP - 1]], list=number))
    assert len(desk.all(UnitList)) == 1
    assert {b.units for b in desk.all(SpikeBlock)} == {("B",)}
    assert (desk.faults(), len(desk.all(SpikeBlock))) == ([], 35)


def test_units_of_an_unknown_list_are_not_guessed() -> None:
    desk = Desk(Spikes("probe")).take(spikes(1, [[0, 10]], units=...)).take(spikes(2, [[0, 800]]))
    assert [b.sample.tolist() for b in desk.all(SpikeBlock)] == [[800]]
    assert desk.gaps() == [Gap(first_sample=0, end_sample=2 * STEP, messages=0)]
    assert desk.faults() == []  # that is how every late joiner begins
    desk.take(spikes(3, [[0, 3 * STEP - 1]], list=1, units=...)).take(spikes(4, list=1))
    assert len(desk.all(SpikeBlock)) == 1
    assert desk.gaps()[1:] == [Gap(first_sample=2 * STEP, end_sample=4 * STEP + AHEAD, messages=1)]
    assert "list 1, which was not sent yet" in desk.all(Fault)[0].detail


def test_a_late_spike_is_told() -> None:
    desk = joined().take(spikes(5, [[0, 2 * STEP]]))
    assert desk.faults() == ["late event"]
    assert len(desk.all(SpikeBlock)) == 1


def test_what_the_bridge_could_not_get_is_a_gap() -> None:
    desk = joined().take(spikes(5, gaps=[[3100, 3200]]))
    assert desk.gaps()[1:] == [Gap(first_sample=3100, end_sample=3200, messages=0)]
    assert desk.faults() == ["samples missing"]


def test_silence_is_told_and_ends() -> None:
    desk = joined().reply(4, 4 * STEP).wait(SILENT_NS + 1)
    assert (desk.last.state, desk.faults()) == ("stalled", ["no data"])
    desk.wait(OFFLINE_NS)
    assert (desk.last.state, desk.faults()[-1]) == ("offline", "device offline")
    desk.take(spikes(5))
    assert (desk.last.state, desk.last.lost_messages) == ("streaming", 0)


def test_the_end_tells_what_is_lost_and_forgets_no_fault() -> None:
    desk = joined().take(spikes(6)).take(spikes(8)).reply(11, 11 * STEP).wait(TAIL_GRACE_NS)
    assert desk.faults().count("messages lost") == 1  # the others wait their second
    desk.documents += desk.ledger.finish(desk.contents, desk.now_ns)
    details = [f.detail + str(f.detail.count("more of this kind")) for f in desk.all(Fault)]
    assert any("between numbers 6 and 8" in d and "3 messages after number 8" in d for d in details)
    assert desk.gaps()[-1].messages == 3
    assert desk.gaps()[-1].first_sample == desk.gaps()[-2].end_sample
    assert desk.gaps()[-1].end_sample >= 11 * STEP + AHEAD
    assert isinstance(desk.documents[-1], Continuity)


def test_an_ordinary_end_has_nothing_to_tell() -> None:
    desk = joined()
    desk.documents += desk.ledger.finish(desk.contents, desk.now_ns)
    assert (desk.faults(), desk.gaps()[1:]) == ([], [])


# --- against the host's clock -----------------------------------------------------------------------------------------


def stream(desk: Desk, numbers: range, still_s: float = 0.0, clock: bool = False) -> list[int]:
    """Take a message each 25 ms, four replies a second; return the watermark after each."""
    desk.now_ns += round(still_s * 1e9)
    marks = []
    for number in numbers:
        desk.take(spikes(number))
        if clock and number % 10 == 0:
            desk.reply(number, number * STEP)
        desk.wait(0)
        marks.append(desk.ledger.watermark)
    return marks


@pytest.mark.parametrize("clock", [False, True])
@pytest.mark.parametrize("still_s", [0.3, 1.0, 3.0])
def test_a_counter_that_stood_still_is_a_new_run_and_nothing_is_vouched_for_until_then(
    still_s: float, clock: bool
) -> None:
    desk = Desk(Spikes("probe"))
    stream(desk, range(1, 400), clock=clock)
    held = desk.ledger.watermark
    marks = stream(desk, range(400, 500), still_s, clock)
    (old,) = {c.watermark_sample for c in desk.all(Continuity) if c.run == 100 and c.watermark_sample >= held}
    assert old == held
    assert desk.ledger.run == 101
    assert (marks[-1], desk.faults().count("samples left the clock")) == (499 * STEP, 1)
    late = [p for p in desk.all(ClockSample) if p.run == 100 and p.pair_host_ns > desk.now_ns - 100 * 25 * MS]
    assert late == []


@pytest.mark.parametrize("clock", [False, True])
def test_a_counter_that_jumps_ahead_is_a_new_run(clock: bool) -> None:
    desk = Desk(Spikes("probe"))
    stream(desk, range(1, 400), clock=clock)
    for number in range(400, 460):
        desk.take(spikes(number, through=(number + 1000) * STEP))
        if clock and number % 10 == 0:
            desk.reply(number, (number + 1000) * STEP)
        assert desk.ledger.run == 101 or desk.ledger.watermark == 399 * STEP
    assert desk.ledger.run == 101
    assert "jumped ahead" in next(f.detail for f in desk.all(Fault) if f.what == "samples left the clock")


def test_data_that_come_later_from_now_on_are_no_new_run_where_the_clock_tells_the_time() -> None:
    desk = Desk(Spikes("probe"))
    stream(desk, range(1, 400), clock=True)
    for number in range(400, 600):  # all 0.8 s late: a sorter that takes longer
        desk.take(spikes(number, through=max(number - 32, 399) * STEP))
        if number % 10 == 0:
            desk.reply(number, number * STEP)
    assert (desk.ledger.run, desk.faults()) == (100, [])
    assert desk.ledger.watermark >= (599 - 32 - 10) * STEP
    for number in range(600, 700):  # and in time again
        desk.take(spikes(number)).reply(number, number * STEP)
    assert (desk.ledger.run, desk.faults(), desk.ledger.watermark) == (100, [], 699 * STEP)


def test_a_backlog_is_waited_for() -> None:
    desk = Desk(Spikes("probe"))
    stream(desk, range(1, 400))
    desk.now_ns += 500 * MS
    for number in range(400, 420):
        desk.take(spikes(number))
        desk.now_ns -= 25 * MS
        if number < 413:
            assert desk.ledger.watermark == 399 * STEP
    assert (desk.ledger.run, desk.ledger.watermark) == (100, 419 * STEP)


def test_a_device_that_pauses_is_one_new_run_however_long_its_bridge_goes_on() -> None:
    desk = Desk(Spikes("probe"))
    stream(desk, range(1, 400), clock=True)
    for number in range(400, 1000):
        desk.take(spikes(number, through=399 * STEP)).reply(number, 399 * STEP)
    assert desk.ledger.run == 100
    for number in range(1000, 1100):
        desk.take(spikes(number, through=(number - 600) * STEP)).reply(number, (number - 600) * STEP)
    assert desk.ledger.run == 101
    assert desk.ledger.watermark == 499 * STEP


# --- clock ------------------------------------------------------------------------------------------------------------


def test_answers_make_clock_pairs() -> None:
    desk = joined().reply(4, 4 * STEP + 10).reply(4, 4 * STEP + 20.25).reply(4, 3000, present=False).harvest()
    counter, fraction, newest = desk.all(ClockSample)
    assert (counter.device_sample, counter.method) == (4 * STEP + 10.5, "round_trip")  # a counter is in mid-sample
    assert (counter.pair_host_ns, counter.round_trip_ns) == (desk.now_ns - MS // 2, MS)
    assert fraction.device_sample == 4 * STEP + 20.25
    assert (newest.device_sample, newest.method, newest.pair_host_ns) == (3000, "arrival", desk.now_ns)
    assert newest.round_trip_ns is None


def test_an_answer_of_another_run_is_no_pair() -> None:
    assert joined().reply(4, 4 * STEP, run="r9").harvest().all(ClockSample) == []


def test_a_clock_that_contradicts_the_data_is_not_believed() -> None:
    desk = Desk(Spikes("probe")).take(spikes(100)).reply(100, 60_000).wait(0)
    assert (desk.faults(), desk.all(ClockSample)) == (["clock reply wrong"], [])


def test_data_that_stand_still_while_the_clock_goes_on_are_told_once() -> None:
    desk = joined()
    for k in range(5, 10):
        desk.take(spikes(k, through=4 * STEP)).reply(k, 4 * STEP + 2.5 * RATE)
    desk.wait(2_000 * MS)
    assert [f.detail.count("data are complete") for f in desk.all(Fault) if "behind" in f.what] == [1]


def test_without_answers_arrivals_make_the_pairs() -> None:
    desk = joined()
    assert desk.all(ClockSample) == []  # an answer may still come
    for number in range(5, 130):
        desk.take(spikes(number)).wait(0)
    pairs = desk.all(ClockSample)
    assert "no clock reply" in desk.faults()
    assert len(pairs) > 3
    assert {p.method for p in pairs} == {"arrival"}
    assert all(p.device_sample % STEP == 0 for p in pairs)


# --- traces -----------------------------------------------------------------------------------------------------------


def test_frames_come_out_raw() -> None:
    desk = Desk(Traces("probe")).take(rois(1)).take(frames(2, 10, 2, motion=[[1, 2, 3], [4, 5, 6]]))
    (listed,) = desk.all(UnitList)
    assert (listed.units, listed.measure, listed.scan_offset_s.tolist()) == (("A", "B"), "fluorescence", [0, 0.03])
    (block,) = desk.all(TraceBlock)
    assert (block.frame.tolist(), block.sample.tolist()) == ([10, 11], [10_000, 11_000])
    assert block.values.tolist() == [[1, 2], [3, 4]]
    assert block.motion is not None
    assert block.motion.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert (block.neuropil, desk.last.watermark_sample, desk.faults()) == (None, 12_000, [])
    desk.take(rois(3)).take(frames(4, 12))
    assert len(desk.all(UnitList)) == 1  # repeated for late joiners, the same


def test_a_frame_that_the_device_left_out_is_a_gap() -> None:
    desk = Desk(Traces("probe")).take(rois(1)).take(frames(2, 10)).take(frames(3, 13))
    assert desk.gaps()[1:] == [Gap(first_sample=10_001, end_sample=13_000, messages=0)]
    assert desk.faults() == ["frames missing"]
    assert desk.last.lost_messages == 0


@pytest.mark.parametrize(
    "back", [frames(3, 5, through=12_000), frames(3, 12, frames=[[12, 9000]], through=12_000), frames(3, 2)]
)
def test_frames_that_go_back_begin_a_new_run(back: FramesMessage) -> None:
    desk = Desk(Traces("probe")).take(rois(1)).take(frames(2, 10)).take(back)
    assert (desk.ledger.run, len(desk.faults())) == (101, 1)
    desk.take(rois(4)).take(frames(5, 20))
    assert [b.run for b in desk.all(TraceBlock)] == [100, 101]
    assert [u.run for u in desk.all(UnitList)] == [100, 101]


def test_frames_in_another_order_wait_for_their_list() -> None:
    desk = Desk(Traces("probe")).take(frames(1, 1)).take(rois(2)).take(frames(3, 2))
    assert [b.frame.tolist() for b in desk.all(TraceBlock)] == [[2]]
    desk.take(frames(4, 3, list=1)).take(frames(5, 4, rois=3)).take(rois(6, ("B", "A"), 1)).take(frames(7, 5, list=1))
    assert [b.list_number for b in desk.all(TraceBlock)] == [0, 1]
    frames_3_and_4 = Gap(first_sample=2001, end_sample=5000, messages=0)  # by their numbers
    assert desk.gaps()[1:] == [frames_3_and_4, Gap(first_sample=3000, end_sample=6000, messages=2)]
    assert [u.units for u in desk.all(UnitList)] == [("A", "B"), ("B", "A")]
    assert "unit list changed" in desk.faults()


def test_frames_with_and_without_motion_are_two_blocks() -> None:
    desk = Desk(Traces("probe")).take(rois(1))
    for message in (frames(2, 1), frames(3, 2, motion=[[0, 0, 1]]), frames(4, 3, motion=[[0, 0, 2]])):
        assert not isinstance(message, Refusal)
        desk.ledger.take(message, desk.contents, desk.now_ns)
    blocks = desk.harvest().all(TraceBlock)
    assert [(b.frame.tolist(), b.motion is None) for b in blocks] == [([1], True), ([2, 3], False)]


# --- whatever is lost -------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.sets(st.integers(5, 60), max_size=30), st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_is_lost_lies_in_a_gap_or_beyond_the_watermark(seed: int, lost: set[int], answers: bool) -> None:
    rng = np.random.default_rng(seed)
    desk, missing, got = Desk(Spikes("probe")), [], 0
    lead = int(rng.integers(0, 1000))
    for number in range(1, 61):
        sample = STEP * (number - 1) + rng.integers(0, STEP, 3) + (lead if number % 5 == 0 else 0)
        message = spikes(number, [[0, s] for s in sample])
        if number == 4:
            message = spikes(number, [[0, STEP * number + 1000]])  # as far ahead as any later one
            sample = np.zeros(0, np.int64)
        if number in lost:
            missing += sample.tolist()
            desk.now_ns += 25 * MS
        else:
            desk.take(message)
            got += 1
        if answers:
            desk.reply(number, STEP * number).wait(0)
    if answers:  # the bridge goes on answering
        desk.wait(TAIL_GRACE_NS).reply(60, STEP * 60).wait(TAIL_GRACE_NS)
    covered = [(g.first_sample, g.end_sample) for g in desk.gaps()] + [(desk.last.watermark_sample, 10**9)]
    assert all(any(a <= s < b for a, b in covered) for s in missing)
    tail = 60 - max(n for n in range(1, 61) if n not in lost)
    assert desk.last.lost_messages == len(lost) - (0 if answers else tail)
    assert desk.last.messages == got


