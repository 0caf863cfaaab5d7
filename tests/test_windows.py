"""Response windows: counts are right where the data are complete, and missing where they are not."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from rig.config import parse
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
    TrialIntent,
)
from rig.windows import WindowFold

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
    d.show(0, 90_000)
    d.edge(90_300)
    d.show(1, 99_000)
    d.edge(99_300)
    d.advance(120_000, (Gap(first_sample=93_300, end_sample=93_600, messages=2),))
    first, second = d.responses
    assert (first.usable, second.usable) == (False, True)
    assert first.coverage == pytest.approx(0.9)
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
