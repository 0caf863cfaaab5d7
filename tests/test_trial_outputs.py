"""What surrounds the rig's trials, on a fake clock: flashes, onset lines, labels, markers, rewards, fixation."""

import numpy as np
import pytest

from rig.config.session import Config
from rig.display.window import WindowLost
from rig.messages import (
    BehaviourBlock,
    ClockSample,
    Continuity,
    Fault,
    OutputRequest,
    Proposal,
    TrialIntent,
)
from stimuli.limits import mean_luminance
from stimuli.spec import LatentImage, Stimulus
from tests.test_session import MS, Bench, config_text, proposal


def bright(number: int, config: Config, slots: int = 6) -> Proposal:
    """Return a final proposal of latent images that are all light."""
    asked = proposal(number, config, slots, final=True)
    stimuli = tuple(Stimulus(id=f"b{k}", spec=LatentImage(generator="g", row=k)) for k in range(slots))
    frames = np.array(asked.frames) // 4 + 170
    return asked.model_copy(update={"stimuli": stimuli, "frames": frames})


def test_too_many_flashes_are_refused_before_they_are_shown() -> None:
    bench = Bench(images=6)
    bench.line.give(0, bright(0, bench.config))
    bench.run(2500)
    shown = bench.presented
    assert [p.complete for p in shown] == [True, True, True, False, False, True]  # 3 in a second, 5 images in it
    grey = bench.frames.grey.sha256
    assert [p.frame_sha256 == grey for p in shown] == [not p.complete for p in shown]
    faults = [f for f in bench.line.of(Fault) if f.what == "frame refused"]
    assert [f.presentations for f in faults] == [(3,), (4,)]
    assert all("max_flash_hz" in f.detail for f in faults)


def test_flashes_of_the_trial_before_count() -> None:
    bench = Bench(images=3)
    bench.line.give(0, bright(0, bench.config))
    bench.run(2500)
    # The second trial begins 0.8 s after the first one. Its second image would come 1 s less the cost of a flip after
    # the first flash, which is within a second; its third one does not.
    assert [p.complete for p in bench.presented] == [True, True, True, False, False, True]


@pytest.mark.parametrize("change", ["limit raised", "small square"])
def test_flashes_within_the_limit_or_on_a_small_square_are_shown(change: str) -> None:
    text = config_text(images=6)
    if change == "limit raised":
        text += "limits: {max_flash_hz: 5}\n"
    else:
        text = text.replace("size_deg: 8", "size_deg: 4")
    bench = Bench(text)
    bench.line.give(0, bright(0, bench.config))
    bench.run(2500)
    assert [p.complete for p in bench.presented] == [True] * 6


@pytest.mark.parametrize("off_s", [0.1, 0.0])
def test_the_onset_line_is_high_exactly_while_images_are_on(off_s: float) -> None:
    bench = Bench(off_s=off_s)
    bench.proposal(0, final=True)
    bench.run(1700)
    changes = bench.onset.changes
    assert [level for level, _ in changes] == [1, 0] * (len(changes) // 2)
    if off_s:
        expected = [t for p in bench.presented for t in (p.onset_flip_host_ns, p.offset_flip_host_ns)]
    else:  # one image replaces the other: the line stays high through the trial
        trials = (bench.presented[:3], bench.presented[3:])
        expected = [t for images in trials for t in (images[0].onset_flip_host_ns, images[-1].offset_flip_host_ns)]
    assert [stamp for _, stamp in changes] == expected


def test_the_onset_line_falls_with_the_window() -> None:
    bench = Bench()
    bench.proposal(0)
    bench.screen.lost_at = 14
    with pytest.raises(WindowLost):
        bench.session.run()
    assert bench.onset.changes[-1][0] == 0


OUTPUTS = """
outputs: [{type: print, name: valve, onset: true}, {type: lsl_markers}, {type: openephys_messages}]
reward: {output: valve, AFTERpulse_s: 0.2, ul_per_s: 40, max_session_ml: 10}
"""
GAZE = """
gates: {fixation: {source: eye, acquire_s: 0.2}}
"""


def test_each_trial_is_labelled_marked_and_rewarded_outside_of_it() -> None:
    bench = Bench(config_text() + OUTPUTS.replace("AFTER", ""))
    bench.proposal(0, final=True)
    bench.run(1700)
    asked = bench.line.of(OutputRequest)
    assert len({d.request for d in asked}) == len(asked)
    rewards = [d for d in asked if d.what == "reward"]
    assert [(d.output, d.trial, d.duration_s) for d in rewards] == [("valve", 0, 0.2), ("valve", 1, 0.2)]
    labels = [d for d in asked if d.what == "message"]
    assert [(d.output, d.text) for d in labels] == [
        ("gui", "trial=0 presentations=0-2"), ("gui", "trial=1 presentations=3-5"),
    ]  # fmt: skip
    for output in ("markers", "valve"):
        onsets = {d.presentation: d for d in asked if d.presentation is not None and d.output == output}
        assert {n: d.event_host_ns for n, d in onsets.items()} == {
            p.presentation: p.onset_flip_host_ns for p in bench.presented
        }
    stamps = [t for t, _, _ in bench.screen.flips]
    for trial in (0, 1):
        images = [p for p in bench.presented if p.trial == trial]
        first, last = stamps.index(images[0].onset_flip_host_ns), stamps.index(images[-1].offset_flip_host_ns)
        assert not [d for n, d in bench.line.sent if first < n <= last and isinstance(d, OutputRequest)]


def test_a_trial_that_was_cut_short_earns_nothing() -> None:
    bench = Bench(config_text() + OUTPUTS.replace("AFTER", ""))
    bench.proposal(0)
    bench.run(350)
    assert 0 < len(bench.presented) < 3
    assert not [d for d in bench.line.of(OutputRequest) if d.what == "reward"]


class Eye:
    """A gaze source: 100 rows a second in blocks of 50 ms, its clock the host's in ns / 10."""

    def __init__(
        self, bench: Bench, until_ms: int, outside_ms: tuple[int, int] = (0, 0), silent_ms: int = 10**9
    ) -> None:
        start = bench.start_ns
        rate_hz = 1e8
        bench.line.give(start, self._continuity(start, rate_hz), "eye-1")
        for block_ms in range(0, min(until_ms, silent_ms), 50):
            end_ns = start + (block_ms + 50) * MS
            times = [start + (block_ms + 10 * k) * MS for k in range(5)]
            x = [9.0 if outside_ms[0] <= (t - start) / MS < outside_ms[1] else 0.3 for t in times]
            block = BehaviourBlock(
                source="eye",
                run=0,
                channels=("gaze_x_deg", "gaze_y_deg"),
                sample=np.array(times, np.int64) // 10,
                arrival_host_ns=np.full(5, end_ns, np.int64),
                values=np.column_stack([x, np.zeros(5)]),
            )
            pair = ClockSample(source="eye", run=0, device_sample=end_ns / 10, pair_host_ns=end_ns, method="round_trip",
                               round_trip_ns=10_000)  # fmt: skip
            for document in (pair, block, self._continuity(end_ns, rate_hz)):
                bench.line.give(end_ns + 20 * MS, document, "eye-1")

    @staticmethod
    def _continuity(at_ns: int, rate_hz: float) -> Continuity:
        return Continuity(
            source="eye", run=0, state="streaming", sample_rate_hz=rate_hz, watermark_sample=at_ns // 10, messages=1,
            lost_messages=0,
        )  # fmt: skip


def gated(after: str) -> Bench:
    text = OUTPUTS.replace("AFTER", f"after: {after}, ") + GAZE
    sources = "sources: [{type: openephys, photodiode_line: null}, {type: lsl_behaviour, name: eye, stream: e}]"
    return Bench(config_text().replace("sources: [{type: openephys, photodiode_line: null}]", sources) + text)


def rewards(bench: Bench) -> list[int | None]:
    return [d.trial for d in bench.line.of(OutputRequest) if d.what == "reward"]


def test_a_trial_waits_for_fixation_and_is_announced_when_it_comes() -> None:
    bench = gated("trial")
    Eye(bench, 9000, outside_ms=(0, 4000))
    bench.proposal(0, final=True)
    bench.run(9000)
    assert len(bench.presented) == 6
    first = bench.presented[0]
    waited_ms = (first.onset_flip_host_ns - bench.start_ns) / MS
    assert 4200 <= waited_ms < 4400, "0.2 s after the gaze came in, and the data's own 70 ms and a frame or two"
    intent = bench.line.of(TrialIntent)[0]
    assert intent.start_host_ns == first.due_host_ns


def test_without_gaze_data_no_trial_begins() -> None:
    bench = gated("trial")
    bench.proposal(0, final=True)
    bench.run(3000)
    assert bench.presented == []
    assert bench.line.of(TrialIntent) == []


def test_only_an_unbroken_fixation_is_rewarded() -> None:
    bench = gated("fixation")
    Eye(bench, 12_000)
    bench.proposal(0, final=True)
    bench.run(12_000)
    assert rewards(bench) == [0, 1]
    second = bench.presented[3]
    within_ms = (second.onset_flip_host_ns - bench.start_ns) // MS
    broken = gated("fixation")
    Eye(broken, 12_000, outside_ms=(within_ms + 100, within_ms + 150))
    broken.proposal(0, final=True)
    broken.run(12_000)
    assert len(broken.presented) == 6
    assert rewards(broken) == [0]
    assert "reward withheld" not in {f.what for f in broken.line.of(Fault)}


def test_gaze_that_ends_in_a_trial_withholds_its_reward_and_says_so() -> None:
    bench = gated("fixation")
    Eye(bench, 12_000)
    bench.proposal(0, final=True)
    bench.run(12_000)
    within_ms = (bench.presented[3].onset_flip_host_ns - bench.start_ns) // MS
    silent = gated("fixation")
    Eye(silent, 12_000, silent_ms=within_ms + 100)
    silent.proposal(0, final=True)
    silent.run(12_000)
    assert rewards(silent) == [0]
    assert [f.what for f in silent.line.of(Fault) if "reward" in f.what] == ["reward withheld"]


def test_a_refusal_names_the_luminance_of_the_frame_and_is_told_with_the_presentation() -> None:
    bench = Bench(images=6)
    asked = bright(0, bench.config)
    bench.line.give(0, asked)
    bench.run(2500)
    for p in bench.presented:
        assert bool(p.refused) == (not p.complete)
    refused = [p for p in bench.presented if p.refused]
    frames = {s.id: np.array(asked.frames[k]) for k, s in enumerate(asked.stimuli)}
    for p in refused:
        level = mean_luminance(frames[p.stimulus_id])
        grey = bench.frames.grey.luminance
        assert level > grey + 0.15
        assert f"mean luminance is {level:.2f} of white, the background's {grey:.2f}" in p.refused


def waits(bench: Bench) -> list[Fault]:
    return [f for f in bench.line.of(Fault) if f.what == "no fixation"]


def test_each_long_wait_for_fixation_is_said_once_with_gaze_and_window() -> None:
    bench = gated("trial")
    Eye(bench, 40_000, outside_ms=(0, 34_000), silent_ms=34_500)  # the second trial waits for an eye that is not seen
    bench.proposal(0, final=True)
    bench.run(70_000)
    assert len(bench.presented) == 3
    away, gone = waits(bench)
    assert "for 30 s" in away.detail
    assert "gaze at (9.0, 0.0) deg, window (0, 0) r 2" in away.detail
    assert away.since_host_ns is not None
    assert 0 <= away.since_host_ns - bench.start_ns < 400 * MS
    assert "gaze not seen, window (0, 0) r 2" in gone.detail
    assert gone.since_host_ns is not None
    # the 0.3 s between trials are no wait
    assert gone.since_host_ns - bench.presented[-1].offset_flip_host_ns >= 270 * MS


def test_a_short_wait_is_no_fault() -> None:
    bench = gated("trial")
    Eye(bench, 35_000, outside_ms=(0, 29_000))
    bench.proposal(0, final=True)
    bench.run(35_000)
    assert len(bench.presented) == 6
    assert waits(bench) == []
