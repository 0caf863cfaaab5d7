"""Response windows: counts are right where the data are complete, and missing where they are not."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from rig.config.reading import parse
from rig.messages import (
    ClockSample,
    Continuity,
    Document,
    EdgeBlock,
    Entry,
    Envelope,
    Fault,
    Gap,
    Presented,
    Response,
    SpikeBlock,
    Tick,
    TraceBlock,
    TrialIntent,
    UnitList,
)
from rig.responses.windows import WindowFold
from rig.timing import drain_s

RATE = 30_000
HOST0 = 5_000_000_000  # host time of sample 0, ns
CONFIG = """
sources: [{type: openephys, photodiode_line: %s}]
display: {lag_s: 0.01, scanout_s: %s}
responses: {units: ["a#0", "b#0"], window_s: [0.05, 0.15], timeout_s: 2.0, baseline: {kind: %s}}
phases: [{agent: present}]
"""


def ns(sample: float) -> int:
    return HOST0 + round(sample * 1e9 / RATE)


@dataclass
class Device:
    """Feeds a fold with what a device would send, block by block, and keeps what comes out."""

    fold: WindowFold
    seq: int = 0
    run: int = 0
    out: list[Document] = field(default_factory=list)

    def take(self, document: Document) -> None:
        self.seq += 1
        envelope = Envelope(seq=self.seq, receipt_host_ns=0, sender="x", process="x", sender_seq=self.seq)
        self.out += self.fold.apply(Entry(envelope, document))

    def spikes(self, unit: str, samples: list[int]) -> None:
        n = len(samples)
        self.take(
            SpikeBlock(
                source="probe",
                run=self.run,
                units=(unit,),
                unit=np.zeros(n, np.uint16),
                sample=np.array(samples, np.int64),
                arrival_host_ns=np.zeros(n, np.int64),
            )
        )

    def edge(self, sample: int, line: int = 0, state: int = 1) -> None:
        one = np.array([0])
        self.take(
            EdgeBlock(
                source="probe",
                run=self.run,
                line=np.array([line], np.uint8),
                state=np.array([state], np.uint8),
                sample=np.array([sample], np.int64),
                arrival_host_ns=one.astype(np.int64),
            )
        )

    def advance(self, watermark: int, gaps: tuple[Gap, ...] = ()) -> None:
        self.take(
            Continuity(
                source="probe",
                run=self.run,
                state="streaming",
                sample_rate_hz=RATE,
                watermark_sample=watermark,
                messages=1,
                lost_messages=0,
                gaps=gaps,
            )
        )

    def clock(self, first: int, last: int) -> None:
        for sample in range(first, last, 7500):
            self.take(ClockSample(source="probe", run=self.run, device_sample=sample, pair_host_ns=ns(sample)))

    def units(self, number: int, from_sample: int, *units: str) -> None:
        self.take(
            UnitList(
                source="probe",
                run=self.run,
                list_number=number,
                from_sample=from_sample,
                units=units,
                scan_offset_s=np.zeros(len(units)),
                measure="spikes",
            )
        )

    def frames(self, first: int, last: int, value: float, period: int = 1000) -> None:
        """Send one bin of 1/30 s after the other; units a and b have `value` and twice that."""
        frame = np.arange(first, last, dtype=np.int64)
        self.take(
            TraceBlock(
                source="probe",
                run=self.run,
                list_number=0,
                frame=frame,
                sample=frame * period,
                arrival_host_ns=frame * 0,
                values=np.tile(np.array([[value, 2 * value]], np.float32), (len(frame), 1)),
            )
        )

    def tick(self, seconds: float, closing: bool = False) -> None:
        self.take(Tick(tick_host_ns=ns(seconds * RATE), closing=closing))

    def show(self, number: int, flip_sample: float, complete: bool = True) -> None:
        onset = ns(flip_sample)
        self.take(
            Presented(
                presentation=number,
                trial=0,
                position_in_trial=number,
                proposal=0,
                slot=number,
                role="candidate",
                stimulus_id=f"s{number}",
                previous_stimulus_id=None,
                frame_sha256="0",
                due_host_ns=onset,
                onset_flip_host_ns=onset,
                offset_flip_host_ns=onset + 100_000_000,
                flips_host_ns=np.array([onset, onset + 100_000_000], np.int64),
                late_flips=0,
                dropped_frames=0,
                image_row_px=300.0,
                patch_row_px=580.0,
                complete=complete,
            )
        )

    @property
    def responses(self) -> list[Response]:
        return [d for d in self.out if isinstance(d, Response)]

    @property
    def faults(self) -> list[str]:
        return [d.what for d in self.out if isinstance(d, Fault)]


def device(line: str = "0", baseline: str = "none", scanout: float = 0.0) -> Device:
    fresh = Device(WindowFold(parse(CONFIG % (line, scanout, baseline))))
    fresh.advance(0)
    fresh.clock(0, 90_000)
    return fresh


def test_counts_are_those_of_the_device_interval_after_the_edge() -> None:
    d = device()
    d.show(0, 90_000)
    edge = 90_450  # 15 ms after the flip
    d.edge(edge)
    inside = [edge + 1500, edge + 3000, edge + 4499]
    d.spikes("a#0", [edge + 1499, *inside, edge + 4500])
    d.spikes("b#0", [])
    d.spikes("other#0", [edge + 2000])
    d.advance(edge + 4400)
    assert d.responses == []
    d.advance(99_000)
    (r,) = d.responses
    assert (r.usable, r.onset_source, r.onset_sample, r.coverage) == (True, "photodiode", edge, 1.0)
    assert r.count.tolist() == [3, 0]
    assert r.rate_hz == pytest.approx([30, 0])
    assert (r.window_start_sample, r.window_end_sample) == (edge + 1500, edge + 4500)
    assert r.flip_to_edge_ns == pytest.approx(15_000_000, abs=50_000)


def test_edges_are_paired_by_time_and_never_by_order() -> None:
    d = device()
    d.edge(88_000)  # a reflection before, far from any flip
    d.show(0, 90_000)
    d.show(1, 96_000)
    d.edge(96_300)  # arrives first
    d.edge(90_300)
    d.advance(120_000)
    assert [r.onset_sample for r in d.responses] == [90_300, 96_300]


def test_a_missing_edge_falls_to_flip_plus_lag_and_is_said() -> None:
    d = device()
    d.show(0, 90_000)
    d.advance(120_000)
    (r,) = d.responses
    assert r.onset_source == "flip"
    assert r.onset_sample == pytest.approx(90_000 + 300, abs=3)
    assert d.faults == ["photodiode edge missing"]
    assert r.onset_uncertainty_ns is not None
    assert r.onset_uncertainty_ns > 8_000_000


def test_the_lag_is_learnt_from_the_edges_that_were_seen() -> None:
    d = device()
    for k in range(9):
        d.show(k, 90_000 + 6000 * k)
        if k < 8:
            d.edge(90_000 + 6000 * k + 600)
    d.clock(90_000, 150_000)
    d.advance(160_000)
    assert d.responses[8].onset_source == "flip"
    assert d.responses[8].onset_sample == pytest.approx(90_000 + 6000 * 8 + 600, abs=3)


def test_without_photodiode_there_is_no_fault() -> None:
    d = device(line="null")
    d.show(0, 90_000)
    d.advance(120_000)
    assert [r.onset_source for r in d.responses] == ["flip"]
    assert d.faults == []


def test_the_onset_is_corrected_for_the_rows_of_image_and_patch() -> None:
    d = device(scanout=0.015)
    d.show(0, 90_000)
    d.edge(90_450)
    d.advance(120_000)
    assert d.responses[0].onset_sample == 90_450 + round(0.015 * (300 - 580) / 600 * RATE)


def test_a_gap_in_the_window_makes_it_missing_and_never_zero() -> None:
    d = device()
    d.spikes("a#0", [60_000])
    d.show(0, 90_000)
    d.edge(90_300)
    d.show(1, 99_000)
    d.edge(99_300)
    d.advance(120_000, (Gap(first_sample=93_300, end_sample=93_600, messages=2),))
    first, second = d.responses
    assert (first.usable, second.usable) == (False, True)
    assert first.coverage == pytest.approx(0.9)
    assert (first.lost_messages, second.lost_messages) == (2, 0)
    assert second.count[0] == 0  # and not missing: its data are complete
    assert np.isnan(first.count).all()
    assert "90.0%" in first.reason


def test_a_silent_source_is_scored_missing_after_its_time() -> None:
    d = device()
    d.show(0, 90_000)
    due = ns(90_000) + 2_150_000_000
    d.take(Tick(tick_host_ns=due - 1))
    assert d.responses == []
    d.take(Tick(tick_host_ns=due))
    (r,) = d.responses
    assert not r.usable
    assert "within 2.0 s" in r.reason
    assert np.isnan(r.count).all()
    d.advance(200_000)
    assert len(d.responses) == 1


def test_a_presentation_cut_short_is_missing() -> None:
    d = device()
    d.show(0, 90_000, complete=False)
    d.advance(120_000)
    assert [(r.usable, r.reason) for r in d.responses] == [(False, "presentation was cut short")]


def test_a_new_acquisition_run_closes_what_was_open() -> None:
    d = device()
    d.show(0, 90_000)
    d.run = 1
    d.advance(100)
    assert [r.usable for r in d.responses] == [False]
    assert "restarted" in d.responses[0].reason
    d.run = 0
    d.spikes("a#0", [95_000])  # re-sent, of the run that is over
    assert len(d.responses) == 1


def test_block_baseline_pools_the_early_window() -> None:
    d = device(baseline="block")
    for k in range(4):
        edge = 90_000 + 9000 * k
        d.show(k, edge)
        d.edge(edge)
        d.spikes("a#0", [edge - 100, edge + 100, edge + 2000] if k % 2 else [edge + 2000])
    d.advance(200_000)
    # early window is 40 ms and the response window 100 ms: two early spikes in every second presentation
    pooled = [0, 2 / 2, 2 / 3, 4 / 4]
    assert [r.baseline[0] for r in d.responses] == pytest.approx([p * 2.5 for p in pooled])
    assert [r.count[0] for r in d.responses] == [1, 1, 1, 1]


def test_spikes_may_arrive_late_and_unsorted() -> None:
    d = device()
    d.show(0, 90_000)
    d.edge(90_000)
    d.spikes("a#0", [94_000, 92_000])
    d.advance(93_000)
    d.spikes("a#0", [91_600, 94_499])
    d.advance(99_000)
    assert d.responses[0].count[0] == 4


def test_a_unit_that_never_came_is_missing_and_named() -> None:
    d = device()
    for k in range(12):
        edge = 90_000 + 9000 * k
        d.show(k, edge)
        d.edge(edge)
        d.spikes("a#O", [edge + 2000])  # the config says a#0
        if k >= 11:
            d.spikes("a#0", [edge + 2000])
    d.clock(90_000, 200_000)
    d.advance(90_000 + 9000 * 11)
    assert d.faults == ["unit never seen"] or len(d.responses) == 12
    d.advance(220_000)
    (fault,) = [f for f in d.out if isinstance(f, Fault)]
    assert "'b#0'" in fault.detail
    assert "it sends a#0, a#O" in fault.detail or "perhaps 'a#O'" in fault.detail
    assert all(np.isnan(r.count[1]) for r in d.responses)
    assert all(r.usable for r in d.responses)


def test_folding_again_gives_the_same_bytes() -> None:
    def once() -> list[str]:
        d = device(baseline="block")
        for k in range(5):
            d.show(k, 90_000 + 9000 * k)
            d.edge(90_200 + 9000 * k)
            d.spikes("a#0", [92_000 + 9000 * k])
            d.advance(95_000 + 9000 * k)
        d.advance(200_000)
        return [f"{r.count} {r.baseline} {r.onset_sample} {r.onset_host_ns}" for r in d.responses]

    assert once() == once()
    assert len(once()) == 5


def test_what_was_never_delivered_is_not_covered() -> None:
    d = device()
    d.show(0, -6000)  # 0.2 s before the device's first sample
    d.advance(120_000)
    (early,) = d.responses
    assert (early.usable, early.coverage) == (False, 0.0)


def test_data_that_were_forgotten_are_not_taken_for_silence() -> None:
    d = device(line="null")
    d.spikes("a#0", list(range(92_000, 95_000, 100)))
    d.clock(90_000, 90_000 + 30 * RATE)
    d.advance(90_000 + 30 * RATE)
    d.show(0, 90_000)  # arrives half a minute late
    d.advance(90_000 + 30 * RATE + 1)
    (late,) = d.responses
    assert not late.usable
    assert late.coverage < 1


def test_lag_and_scan_out_are_not_added_twice() -> None:
    d = device(scanout=0.015)
    for k in range(6):
        d.show(k, 90_000 + 9000 * k)
        if k < 5:
            d.edge(90_000 + 9000 * k + 600)
    d.clock(90_000, 200_000)
    d.advance(200_000)
    onsets = [r.onset_sample - 90_000 - 9000 * k for k, r in enumerate(d.responses) if r.onset_sample is not None]
    assert [r.onset_source for r in d.responses] == ["photodiode"] * 5 + ["flip"]
    assert onsets[5] == pytest.approx(onsets[4], abs=3)


def test_at_the_end_nothing_stays_without_a_word() -> None:
    d = device()
    d.take(TrialIntent(trial=0, presentations=(0, 1, 2), proposals=(0, 0, 0), slots=(0, 1, 2), start_host_ns=0))
    d.show(0, 90_000)
    d.take(Fault(what="trial cut short", detail="", done="", presentations=(2,)))
    d.take(Tick(tick_host_ns=0, closing=True))
    assert [(r.presentation, r.usable) for r in d.responses] == [(0, False)]
    assert "closed" in d.responses[0].reason
    (lost,) = [f for f in d.out if isinstance(f, Fault)]
    assert (lost.what, lost.presentations) == ("announced and not recorded", (1,))


# --- edges ------------------------------------------------------------------------------------------------------------


def test_an_edge_without_a_presentation_is_a_fault_once_its_record_must_have_come() -> None:
    d = device()
    d.edge(80_000)
    d.show(0, 90_000)
    d.edge(90_300)
    d.advance(80_000 + int(2.1 * RATE) - 1)
    assert d.faults == []
    d.advance(80_000 + int(2.1 * RATE) + 1)
    (fault,) = [f for f in d.out if isinstance(f, Fault)]
    assert fault.what == "photodiode edge unpaired"
    assert "at sample 80000 pairs with no presentation" in fault.detail
    d.advance(400_000)
    d.tick(20, closing=True)
    assert d.faults == ["photodiode edge unpaired"]  # said once, and the edge of presentation 0 never


def test_an_edge_of_an_announced_image_without_a_record_is_no_reflection() -> None:
    d = device()
    d.clock(0, 60_000)
    numbers = tuple(range(10))  # of 0.1 s, 0.1 s apart: the trial ends at sample 120000; the rig dies in it
    d.take(TrialIntent(trial=4, presentations=numbers, proposals=(0,) * 10, slots=numbers, start_host_ns=ns(60_000)))
    d.show(0, 60_000)
    d.edge(60_300)
    d.edge(66_300)
    d.edge(140_000)  # after the trial
    d.clock(60_000, 300_000)
    d.advance(300_000)
    d.tick(0)
    d.tick(12)
    said = {f.what: f.detail for f in d.out if isinstance(f, Fault)}
    assert set(said) == {"photodiode edge of an unrecorded image", "photodiode edge unpaired"}
    assert "at sample 66300" in said["photodiode edge of an unrecorded image"]
    assert "one of 1, 2, 3, 4, 5, 6, 7, 8, 9" in said["photodiode edge of an unrecorded image"]
    assert "at sample 140000" in said["photodiode edge unpaired"]


def test_an_edge_in_a_trial_that_was_cut_short_is_unpaired() -> None:
    d = device()
    d.clock(0, 60_000)
    d.take(TrialIntent(trial=0, presentations=(0, 1), proposals=(0, 0), slots=(0, 1), start_host_ns=ns(60_000)))
    d.take(Fault(what="trial cut short", detail="", done="", presentations=(0, 1)))
    d.edge(66_300)
    d.clock(60_000, 300_000)
    d.advance(300_000)
    assert d.faults == ["photodiode edge unpaired"]


def test_many_unpaired_edges_are_said_together_and_none_is_forgotten() -> None:
    d = device()
    d.tick(0)
    for k in range(50):
        d.edge(10_000 + 100 * k)
    d.advance(400_000)
    d.tick(9)
    assert d.faults == ["photodiode edge unpaired"]
    d.edge(390_000)
    d.tick(11)
    d.tick(12, closing=True)
    said = [f.detail for f in d.out if isinstance(f, Fault)]
    assert len(said) == 2
    assert said[0].count("sample") + int(said[0].split("; and ")[1].split()[0]) == 50
    assert "390000" in said[1]


def test_an_edge_that_could_belong_to_two_is_given_to_none() -> None:
    d = device()
    d.spikes("a#0", [60_000])
    d.show(0, 90_000)
    d.show(1, 91_800)  # 60 ms later: what a display of its own rhythm may do
    d.edge(91_200)
    d.advance(120_000)
    assert [r.onset_source for r in d.responses] == ["flip", "flip"]
    ambiguous = [f for f in d.out if isinstance(f, Fault) and f.what == "photodiode edge ambiguous"]
    assert ambiguous[0].presentations == (0, 1)
    assert "at sample 91200 could belong to presentations 0 and 1" in ambiguous[0].detail


def test_two_edges_for_one_presentation_widen_its_uncertainty() -> None:
    d = device()
    d.show(0, 90_000)
    d.edge(90_300)
    d.edge(90_450)  # the photodiode bounced
    d.advance(120_000)
    (r,) = d.responses
    assert r.onset_sample == 90_300
    assert r.onset_uncertainty_ns == pytest.approx(151 * 1e9 / RATE, abs=2)
    d.tick(20, closing=True)
    assert d.faults == ["photodiode edge unpaired"]


def test_the_edge_of_a_presentation_that_is_not_scored_is_no_fault() -> None:
    d = device()
    d.show(0, 90_000, complete=False)
    d.edge(90_300)
    d.show(1, 96_000)  # times out: its data come late
    d.tick(6)
    d.edge(96_300)
    d.advance(400_000)
    d.tick(20, closing=True)
    assert [r.usable for r in d.responses] == [False, False]
    assert d.faults == []


def test_an_edge_that_comes_after_its_response_is_named() -> None:
    d = device()
    d.show(0, 90_000)
    d.advance(99_000)
    d.edge(90_300)
    d.advance(400_000)
    assert [r.onset_source for r in d.responses] == ["flip"]
    assert d.faults == ["photodiode edge missing", "photodiode edge late"]


def test_without_edges_the_uncertainty_covers_the_spread_of_the_lags() -> None:
    d = device()
    for k in range(9):
        d.show(k, 90_000 + 6000 * k)
        if k < 8:
            d.edge(90_000 + 6000 * k + (900 if k % 2 else 100))
    d.clock(90_000, 150_000)
    d.advance(160_000)
    last = d.responses[8]
    assert last.onset_sample is not None
    assert last.onset_uncertainty_ns is not None
    for true in (100, 900):
        error_ns = abs(last.onset_sample - (90_000 + 6000 * 8 + true)) * 1e9 / RATE
        assert error_ns <= last.onset_uncertainty_ns


def far_edges(d: Device, first: int, count: int, lag: int, start: int = 90_000) -> None:
    """Show presentations every 0.3 s whose edges come `lag` samples after the flip."""
    for k in range(first, first + count):
        d.clock(start + 9000 * k, start + 9000 * (k + 1))
        d.show(k, start + 9000 * k)
        d.edge(start + 9000 * k + lag)
        d.advance(start + 9000 * k + 8900)


def flip_errors(d: Device, lag: int, start: int = 90_000) -> list[tuple[float, int]]:
    """Return error and bound, ns, of each onset that was taken from the flip stamp."""
    found = []
    for r in d.responses:
        if r.onset_source == "flip":
            assert r.onset_sample is not None
            assert r.onset_uncertainty_ns is not None
            true = start + 9000 * r.presentation + lag
            found.append((abs(r.onset_sample - true) * 1e9 / RATE, r.onset_uncertainty_ns))
    return found


def test_edges_at_another_lag_are_followed_after_five_and_said_and_until_then_the_bound_holds_them() -> None:
    d = device()
    far_edges(d, 0, 10, 300)
    far_edges(d, 10, 12, 2400)  # 80 ms after the flip, 70 ms from where they were: further than the tolerance
    assert [r.onset_source for r in d.responses] == ["photodiode"] * 10 + ["flip"] * 5 + ["photodiode"] * 7
    assert all(r.onset_sample == 90_000 + 9000 * k + 2400 for k, r in enumerate(d.responses) if k >= 15)
    errors = flip_errors(d, 2400)
    assert len(errors) == 5
    assert all(69e6 < error <= stated < 75e6 for error, stated in errors)
    (said,) = [f for f in d.out if isinstance(f, Fault) and f.what == "photodiode pairing re-acquired"]
    assert said.presentations == (10, 11, 12, 13, 14)
    assert "the lag of 10.0 ms and one edge each at 80.0 ms" in said.detail


def test_edges_at_no_constant_lag_are_not_followed() -> None:
    d = device()
    far_edges(d, 0, 10, 300)
    for k in range(10, 25):
        far_edges(d, k, 1, 1600 if k % 2 else 2700)  # 43 ms and 80 ms from where they should be
    assert [r.onset_source for r in d.responses[10:]] == ["flip"] * 15
    assert "photodiode pairing re-acquired" not in d.faults
    errors = [flip_errors(d, lag) for lag in (1600, 2700)]
    assert all(errors[k % 2 == 0][k - 10][0] <= errors[0][k - 10][1] for k in range(10, 25))


def test_two_free_edges_leave_open_which_one_to_follow() -> None:
    d = device()
    far_edges(d, 0, 10, 300)
    for k in range(10, 20):
        d.edge(90_000 + 9000 * k + 2900)
        far_edges(d, k, 1, 2400)
    assert [r.onset_source for r in d.responses[10:]] == ["flip"] * 10
    assert "photodiode pairing re-acquired" not in d.faults


def round_trips(d: Device, first: int, last: int, shift: int) -> None:
    """Send a round trip every 50 ms; host time is that of `shift` samples later."""
    for sample in range(first, last, 1500):
        asked = {"device_sample": sample, "pair_host_ns": ns(sample + shift), "round_trip_ns": 100_000}
        d.take(ClockSample.model_validate({"source": "probe", "run": 0, "method": "round_trip"} | asked))


@pytest.mark.parametrize("shift", [0, 600, -600])
@pytest.mark.parametrize("kind", ["step", "better pairs"])
def test_when_the_clock_map_steps_or_moves_its_lags_are_void_and_the_bound_says_so(kind: str, shift: int) -> None:
    """The device drops 20 ms and counts on; or round trips show that the arrivals' map was 20 ms off."""
    d = device()
    if kind == "step":
        round_trips(d, 0, 181_500, 0)
    far_edges(d, 0, 10, 300)
    round_trips(d, 181_500, 240_000, shift)
    assert bool(d.fold._clockmap.steps_host_ns) == (kind == "step" and shift != 0)
    d.show(10, 225_000)  # no edge
    d.advance(240_000)
    (r,) = d.responses[10:]
    assert r.onset_source == "flip"
    assert r.onset_uncertainty_ns is not None
    # Without a lag the config's stands, as good as the tolerance; with one, half a frame.
    assert (r.onset_uncertainty_ns > 40_000_000) == (shift != 0)
    assert (r.onset_uncertainty_ns < 12_000_000) == (shift == 0)
    assert ("its onset is known to" in r.reason) == (shift != 0)


def test_no_lag_is_learnt_from_a_poor_map() -> None:
    d = Device(WindowFold(parse(CONFIG % ("0", 0.0, "none"))))
    d.advance(0)
    late = np.random.default_rng(1).uniform(0, 30_000_000, 8)  # arrivals over 2 s, some 30 ms late
    for k, late_ns in enumerate(late):
        sample = 7500 * k
        d.take(ClockSample(source="probe", run=0, device_sample=sample, pair_host_ns=ns(sample) + int(late_ns)))
    d.show(0, 45_000)
    d.edge(45_300)
    d.show(1, 54_000)  # no edge
    d.advance(60_000)
    first, second = d.responses
    assert (first.onset_source, second.onset_source) == ("photodiode", "flip")
    assert second.onset_uncertainty_ns is not None
    assert second.onset_uncertainty_ns > 50_000_000  # the tolerance and the map's bound


def test_an_edge_that_was_judged_before_its_response_could_be_measured_is_still_its_own() -> None:
    text = COUNTS.replace("lsl_counts", "lsl_calcium") % ("0, calcium: {lag_s: 3, neuropil: 0}", "none")
    d = Device(WindowFold(parse(text)))
    d.units(0, 0, "a#0", "b#0")
    d.frames(0, 3, 1.0)
    d.advance(3000)
    d.clock(0, 90_000)
    d.frames(3, 166, 1.0)
    shown_at(d, 0, 91_500)
    d.advance(91_500 + int(2.5 * RATE))  # the record of its image must have come; its values are not final
    assert d.responses == []
    d.frames(166, 300, 1.0)
    d.advance(300_000)
    assert [(r.onset_source, r.onset_sample) for r in d.responses] == [("photodiode", 91_500)]
    assert d.faults == []


# --- units ------------------------------------------------------------------------------------------------------------


def shown_at(d: Device, number: int, edge: int) -> None:
    d.show(number, edge)
    d.edge(edge)


def test_a_unit_that_disappears_is_missing_from_then_on_and_scored_again_when_it_is_back() -> None:
    d = device()
    d.units(0, 0, "a#0", "b#0")
    d.spikes("a#0", [92_000, 102_000, 111_000, 120_000])
    for k, edge in enumerate((90_000, 100_000, 109_000, 118_000)):
        shown_at(d, k, edge)
    d.units(1, 103_000, "a#0", "c#0")  # in the middle of the second window
    d.units(2, 117_000, "a#0", "c#0", "b#0")
    d.clock(90_000, 150_000)
    d.advance(160_000)
    assert [r.count[0] for r in d.responses] == [1, 1, 1, 1]
    assert [r.usable for r in d.responses] == [True] * 4
    b = [r.count[1] for r in d.responses]
    assert b[0] == 0  # it is listed: silence is zero
    assert np.isnan(b[1:3]).all()
    assert b[3] == 0
    said = {f.what: f.detail + " " + f.done for f in d.out if isinstance(f, Fault)}
    assert "no longer has b#0 from sample 103000 on" in said["units gone"]
    assert "scored missing, not zero, from then on: b#0" in said["units gone"]
    assert "has for the first time c#0" in said["new units"]
    d.tick(1)
    d.tick(12)
    back = [f.detail for f in d.out if isinstance(f, Fault) and f.what == "new units"]
    assert "has again b#0" in back[1]


def test_a_list_without_a_scored_unit_says_so_at_once() -> None:
    d = device()
    d.units(0, 0, "a#0", "b#O")
    (fault,) = [f for f in d.out if isinstance(f, Fault)]
    assert fault.what == "unit never seen"
    assert "'b#0' (perhaps 'b#O')" in fault.detail


def test_with_no_unit_there_a_response_is_unusable() -> None:
    d = device()
    d.units(0, 0, "c#0")
    shown_at(d, 0, 90_000)
    d.advance(120_000)
    assert [r.reason for r in d.responses] == ["none of its units was there"]


def images(d: Device, first: int, start: float, number: int = 10) -> None:
    """Show images that need no data: they count as shown and are missing."""
    for k in range(number):
        d.show(first + k, start + 6000 * k, complete=False)


def test_a_unit_that_falls_silent_is_said_and_its_zeros_count() -> None:
    rng = np.random.default_rng(5)
    d = device(line="null")
    spikes = np.cumsum(rng.exponential(RATE / 20, 400)).astype(int)  # 20 spikes/s for 20 s
    d.spikes("a#0", spikes.tolist())
    d.spikes("b#0", [100])  # too few to know its rate
    end = int(spikes[-1])
    rate = 399 / (end - int(spikes[0]))
    due = max(int(13.8155 / rate), 2 * int(np.diff(spikes).max()))
    d.clock(90_000, end + 5 * RATE)
    images(d, 0, end)
    d.advance(end + due - 10)
    d.tick(1)
    assert d.faults == []
    d.advance(end + due + 10)
    d.tick(2)
    (fault,) = [f for f in d.out if isinstance(f, Fault)]
    assert fault.what == "unit silent"
    assert f"a#0 has not fired for {due / RATE:.1f} s, after {rate * RATE:.2f} spikes/s" in fault.detail
    d.show(10, end + 3 * RATE)
    d.advance(end + 5 * RATE)
    assert [(r.usable, r.count[0]) for r in d.responses[10:]] == [(True, 0)]
    d.tick(3)
    assert d.faults == ["unit silent"]
    d.spikes("a#0", [end + 6 * RATE])
    assert d.faults == ["unit silent", "unit fires again"]


def test_a_silence_without_images_is_no_fault() -> None:
    d = device(line="null")
    d.spikes("a#0", list(range(0, 600_000, 1500)))
    images(d, 0, 600_000, 9)
    d.advance(2_000_000)
    d.tick(1)
    assert d.faults == []
    images(d, 9, 2_000_000, 1)
    d.tick(2)
    assert d.faults == ["unit silent"]


def test_a_pause_like_the_ones_before_is_no_fault() -> None:
    d = device(line="null")
    for burst in range(20):  # a cell that fires for 1 s and is silent for 3 s
        d.spikes("a#0", [burst * 4 * RATE + k * 600 for k in range(50)])
        images(d, 20 * burst, burst * 4 * RATE, 20)
        d.advance((burst + 1) * 4 * RATE)
        d.tick(burst)
    # 12.5 spikes/s on average: each silence of 3 s has p < 1e-6, but after the first one it is known to pause.
    assert d.faults == ["unit silent", "unit fires again"]
    images(d, 400, 80 * RATE, 20)
    d.advance(80 * RATE + 2 * RATE)
    d.tick(40)
    assert d.faults == ["unit silent", "unit fires again"]
    d.advance(80 * RATE + 4 * RATE)
    d.tick(60)
    assert d.faults == ["unit silent", "unit fires again", "unit silent"]


def test_silence_in_a_gap_is_not_the_unit_s() -> None:
    d = device(line="null")
    d.spikes("a#0", list(range(0, 600_000, 3000)))
    images(d, 0, 600_000)
    d.advance(600_000)
    d.advance(900_000, (Gap(first_sample=600_000, end_sample=900_000, messages=9),))
    d.tick(1)
    assert d.faults == []
    d.advance(1_000_000)
    d.tick(2)
    assert d.faults == ["unit silent"]


def test_a_new_unit_is_named_once_the_source_is_known() -> None:
    d = device()
    d.spikes("a#0", [100])
    d.advance(1000)
    d.tick(1)
    d.spikes("b#0", [200])
    assert d.faults == []
    d.advance(61 * RATE)
    d.tick(2)
    d.spikes("z#0", [61 * RATE + 5])
    (fault,) = [f for f in d.out if isinstance(f, Fault) and f.what == "new units"]
    assert "first spikes of z#0" in fault.detail


# --- late data, clocks ------------------------------------------------------------------------------------------------


def test_spikes_for_a_closed_window_are_counted_and_the_presentation_named() -> None:
    d = device()
    d.spikes("a#0", [92_000])
    shown_at(d, 0, 90_000)
    shown_at(d, 1, 96_000)
    d.advance(99_000)
    d.spikes("other#0", [92_500])
    d.spikes("a#0", [91_499, 92_500, 92_501, 98_000])  # two in the window of the first, one before, one in the open
    (fault,) = [f for f in d.out if isinstance(f, Fault)]
    assert fault.what == "late data"
    assert fault.presentations == (0,)
    assert fault.detail.startswith("2 spikes of scored units")
    d.advance(120_000)
    assert [r.count[0] for r in d.responses] == [1, 1]


def test_late_data_of_a_presentation_that_timed_out_are_named_too() -> None:
    d = device(line="null")
    d.advance(91_000)
    d.show(0, 90_000)
    d.tick(6)
    assert [r.usable for r in d.responses] == [False]
    d.advance(99_000)
    d.spikes("a#0", [93_000])
    (fault,) = [f for f in d.out if isinstance(f, Fault)]
    assert (fault.what, fault.presentations) == ("late data", (0,))
    assert "missing already" in fault.detail


def test_warnings_of_the_clock_map_become_faults() -> None:
    d = device()
    for k in range(400):  # 400 ppm fast
        sample = 90_000 + 7500 * k
        d.take(
            ClockSample(
                source="probe",
                run=0,
                device_sample=sample,
                pair_host_ns=ns(sample * 1.0004),
                method="round_trip",
                round_trip_ns=100_000,
            )
        )
    d.tick(100)
    assert any("clock" in what for what in d.faults)
    d.tick(120)
    assert len(d.faults) == len(set(d.faults))


# --- baseline ---------------------------------------------------------------------------------------------------------


def test_a_baseline_for_each_presentation_adds_half_as_much_variance_again_and_a_pooled_one_does_not() -> None:
    # Homogeneous Poisson spikes, a baseline window twice as long as the response window w: the variance of
    # count - w/2w * early is r w (1 + 1/2), with a pool of n presentations r w (1 + 1/(2 n)) and a little less.
    def variance(kind: str) -> float:
        text = CONFIG % ("0", 0.0, f"{kind}, window_s: [-0.1, 0.1], pool: 50")
        text += "presentation: {on_s: 0.1, off_s: 0.3}\n"
        d = Device(WindowFold(parse(text.replace("[0.05, 0.15]", "[0.1, 0.2]"))))
        d.advance(0)
        d.clock(0, 90_000)
        rng = np.random.default_rng(3)
        for k in range(3000):
            edge = 90_000 + 12_000 * k
            d.spikes("a#0", np.sort(rng.integers(edge - 3000, edge + 9000, rng.poisson(30))).tolist())
            if k % 20 == 0:
                d.clock(edge, edge + 12_000)
            shown_at(d, k, edge)
            d.advance(edge + 9000)
        rates = [float(r.rate_hz[0]) for r in d.responses[100:] if r.usable]
        assert len(rates) > 2700
        return float(np.var(rates))

    plain = 75 / 0.1  # rate / window: Poisson
    # The standard error of a variance over 2,900 presentations is 2.6 %.
    assert variance("none") / plain == pytest.approx(1.0, abs=0.08)
    assert variance("pre") / plain == pytest.approx(1.5, abs=0.12)
    assert variance("block") / plain == pytest.approx(1.01, abs=0.08)


# --- binned counts and traces -----------------------------------------------------------------------------------------

COUNTS = """
sources: [{type: lsl_counts, name: probe, stream: x, photodiode_line: %s}]
responses: {units: ["a#0", "b#0"], window_s: [0.05, 0.15], timeout_s: 2.0, baseline: {kind: %s}}
phases: [{agent: present}]
presentation: {on_s: 0.1, off_s: 0.3}
"""


def counting(baseline: str = "none") -> Device:
    d = Device(WindowFold(parse(COUNTS % ("0", baseline))))
    d.units(0, 0, "a#0", "b#0")  # comes before the rate is known
    d.frames(0, 3, 0.0)
    d.advance(3000)
    d.clock(0, 90_000)
    return d


def test_binned_counts_are_summed_over_the_bins_in_the_window() -> None:
    d = counting()
    d.frames(3, 93, 0.0)
    d.frames(93, 96, 2.0)
    d.frames(96, 120, 0.0)
    shown_at(d, 0, 91_500)  # window 93_000 to 96_000
    d.advance(120_000)
    (r,) = d.responses
    assert (r.measure, r.run, r.usable) == ("counts", 0, True)
    assert r.count.tolist() == [6, 12]
    assert r.rate_hz == pytest.approx([60, 120])


def test_a_pooled_baseline_of_counts_is_scaled_to_the_window() -> None:
    d = counting("block, window_s: [-0.1, 0.1]")
    d.frames(3, 400, 1.0)
    for k in range(5):
        shown_at(d, k, 91_500 + 12_000 * k)
    d.advance(390_000)
    assert [r.baseline.tolist() for r in d.responses] == [[3, 6]] * 5
    assert [r.rate_hz.tolist() for r in d.responses] == [[0, 0]] * 5


def test_a_lost_bin_makes_the_units_missing() -> None:
    d = counting()
    d.frames(3, 94, 1.0)
    d.frames(95, 130, 1.0)
    shown_at(d, 0, 91_500)
    d.advance(120_000)
    (r,) = d.responses
    assert not r.usable
    assert np.isnan(r.count).all()
    assert "data problem" in d.faults


def test_time_outs_and_draining_know_the_lag_of_the_deconvolution() -> None:
    spikes, text = parse(CONFIG % ("0", 0.0, "none")), COUNTS % ("0", "none")
    calcium = text.replace("lsl_counts, name: probe", "lsl_calcium, name: probe, calcium: {lag_s: 3, neuropil: 0}")
    assert drain_s(parse(calcium)) == pytest.approx(drain_s(spikes) + 3 + 1)
    d = Device(WindowFold(parse(calcium)))
    d.advance(0)
    d.clock(0, 90_000)
    d.show(0, 90_000)
    d.tick(3 + 0.15 + 2 + 3.9)
    assert d.responses == []
    d.tick(3 + 0.15 + 2 + 4.1)
    assert [r.usable for r in d.responses] == [False]
    assert d.responses[0].measure == "deconvolved"
