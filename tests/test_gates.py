"""Gates: a response counts only if the animal did what was asked for, and the reason says when it did not."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rig.config.reading import parse
from rig.config.session import Config
from rig.links.ports import free_port
from rig.messages import (
    BehaviourBlock,
    ClockSample,
    Continuity,
    Document,
    Entry,
    Envelope,
    Fault,
    Presented,
    ProcessStarted,
    Proposal,
    Response,
    SpikeBlock,
    Tick,
)
from rig.recording.journal import read_all
from rig.responses.windows import WindowFold
from tests.test_end_to_end import STIMLOOP, children_of

ROOT = Path(__file__).parent.parent
HOST0 = 5_000_000_000
RATE = 30_000
S = 1_000_000_000
CHANNELS = ("gaze_x_deg", "gaze_y_deg", "pupil_mm", "running_cm_s")
FIXATION = "{fixation: {source: eye, radius_deg: 2.0}}"
CONFIG = """
sources: [{type: openephys, photodiode_line: null}, {type: lsl_behaviour, name: eye, stream: eye}]
responses: {units: ["a#0"], window_s: [0.05, 0.15], timeout_s: 2.0, baseline: {kind: block, window_s: [-0.02, 0.02]}}
gates: %s
phases: [{agent: present}]
"""


def config(gates: str = FIXATION) -> Config:
    return parse(CONFIG % gates)


def host(t_s: float) -> int:
    return HOST0 + round(t_s * 1e9)


@dataclass
class Rig:
    """An amplifier (30 kHz) and an eye tracker (125 Hz, us of its own clock) that feed a response fold."""

    fold: WindowFold
    stretches: tuple[tuple[float, float, tuple[float, float, float, float]], ...] = ()
    channels: tuple[str, ...] = CHANNELS
    at_s: float = 0.0
    eye_at_s: float = 0.0
    eye_state: str = "streaming"
    eye_gap: tuple[float, float] | None = None  # s; told with the first Continuity after it
    seq: int = 0
    out: list[Document] = field(default_factory=list)

    def take(self, document: Document) -> None:
        self.seq += 1
        envelope = Envelope(seq=self.seq, receipt_host_ns=0, sender="x", process="x", sender_seq=self.seq)
        self.out += self.fold.apply(Entry(envelope, document))

    def continuity(self, source: str, rate: float, watermark: int, state: str = "streaming") -> None:
        gaps = []
        if source == "eye" and self.eye_gap is not None and watermark >= self.eye_gap[1] * 1e6:
            first, end = (round(t * 1e6) for t in self.eye_gap)
            gaps, self.eye_gap = [{"first_sample": first, "end_sample": end, "messages": 0}], None
        self.take(
            Continuity.model_validate(
                {
                    "source": source,
                    "run": 1,
                    "state": state,
                    "sample_rate_hz": rate,
                    "watermark_sample": watermark,
                    "messages": 1,
                    "lost_messages": 0,
                    "gaps": gaps,
                }
            )
        )

    def amplifier(self, until_s: float) -> None:
        """Two spikes in each 40 ms, more around 2.34 s, and how far it is complete."""
        while self.at_s < until_s - 1e-9:
            first = round(self.at_s * RATE)
            times = (100, 300, 500, 700, 900) if 2.3 < self.at_s < 2.38 else (100, 700)
            samples = first + np.array(times, np.int64)
            self.take(
                SpikeBlock(
                    source="probe",
                    run=1,
                    units=("a#0",),
                    unit=np.zeros(len(samples), np.uint16),
                    sample=samples,
                    arrival_host_ns=samples,
                )
            )
            self.take(ClockSample(source="probe", run=1, device_sample=first, pair_host_ns=host(self.at_s)))
            self.at_s += 0.04
            self.continuity("probe", RATE, round(self.at_s * RATE))

    def eye(self, until_s: float) -> None:
        """Five rows in each 40 ms."""
        while self.eye_at_s < until_s - 1e-9:
            us = round(self.eye_at_s * 1e6)
            sample = np.arange(us, us + 40_000, 8_000)
            values = np.array([self.values(s / 1e6) for s in sample])[:, : len(self.channels)]
            self.take(
                BehaviourBlock(
                    source="eye",
                    run=1,
                    channels=self.channels,
                    sample=sample,
                    arrival_host_ns=sample,
                    values=values,
                )
            )
            self.take(
                ClockSample(
                    source="eye",
                    run=1,
                    device_sample=us,
                    pair_host_ns=host(self.eye_at_s),
                    method="round_trip",
                    round_trip_ns=50_000,
                )
            )
            self.eye_at_s += 0.04
            self.continuity("eye", 1e6, round(self.eye_at_s * 1e6), self.eye_state)

    def values(self, t_s: float) -> tuple[float, ...]:
        return next((v for start, end, v in self.stretches if start <= t_s < end), (0.1, -0.1, 4.0, 1.0))

    def both(self, until_s: float) -> None:
        while self.at_s < until_s - 1e-9:
            self.amplifier(self.at_s + 0.04)
            self.eye(self.at_s)

    def show(self, number: int, t_s: float) -> None:
        onset = host(t_s)
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
                offset_flip_host_ns=onset + S // 10,
                flips_host_ns=np.array([onset, onset + S // 10], np.int64),
                late_flips=0,
                dropped_frames=0,
                image_row_px=300.0,
                patch_row_px=580.0,
                complete=True,
            )
        )

    @property
    def responses(self) -> list[Response]:
        return [d for d in self.out if isinstance(d, Response)]


def rig(*stretches: tuple[float, float, tuple[float, float, float, float]], gates: str = FIXATION) -> Rig:
    return Rig(WindowFold(config(gates)), stretches)


ENVELOPE = Envelope(seq=1, receipt_host_ns=0, sender="recorder", process="r", sender_seq=1)
NAN = float("nan")
AWAY = (7.0, 1.0, 4.0, 1.0)
BLINK = (NAN, NAN, NAN, 1.0)
RUNS = (0.0, 0.0, 4.0, 30.0)


def test_a_break_makes_only_the_presentation_unusable_that_it_falls_into() -> None:
    r = rig((2.48, 3.0, AWAY))
    r.both(2.0)
    for k, t in enumerate((2.1, 2.3, 2.4, 2.6, 3.1)):
        r.show(k, t)
    r.both(4.0)
    assert [x.usable for x in r.responses] == [True, True, False, False, True]
    assert "the gaze left the fixation window" in r.responses[2].reason
    at_ms = int(r.responses[2].reason.split()[-5])
    assert at_ms == pytest.approx(80, abs=9)
    assert "outside the fixation window at the onset" in r.responses[3].reason
    assert np.isnan(r.responses[2].count).all()
    assert r.responses[2].onset_sample is not None
    assert r.responses[2].coverage == 1.0


class Booted(Rig):
    """The same, after a restart of the computer: a host clock that reads less, and runs numbered by it."""

    def take(self, document: Document) -> None:
        known = document.model_dump()
        on = [name for name in known if name.endswith("_host_ns") and name != "arrival_host_ns"]
        earlier = {name: known[name] - 4 * S for name in on if known[name] is not None}
        number = {"run": 0} if "run" in known else {"presentation": 50} if "presentation" in known else {}
        super().take(document.model_copy(update={**earlier, **number}))


@pytest.mark.parametrize("boots", [("1", "2"), ("2", "1")])
def test_after_a_restart_of_the_computer_the_gates_judge_as_before(boots: tuple[str, str]) -> None:
    started = {"name": "recorder", "pid": 1, "start_host_ns": 1, "start_utc_ns": 2, "notes": {}}
    r = rig()
    r.fold.apply(Entry(ENVELOPE, ProcessStarted(boot_id=boots[0], **started)))
    r.both(2.0)
    r.show(0, 2.1)
    r.both(4.0)
    r.fold.apply(Entry(ENVELOPE, ProcessStarted(boot_id=boots[1], **started)))
    again = Booted(r.fold, ((2.48, 3.0, AWAY),), out=r.out, seq=r.seq)
    again.both(2.0)
    again.show(0, 2.1)
    again.both(3.0)
    assert [(x.presentation, x.usable) for x in r.responses] == [(0, True), (50, True)]


def test_missing_gaze_is_unusable_and_a_short_blink_is_not() -> None:
    r = rig((2.15, 2.35, BLINK), (2.65, 2.71, BLINK))
    r.both(2.0)
    r.show(0, 2.1)
    r.show(1, 2.6)
    r.both(4.0)
    assert [x.usable for x in r.responses] == [False, True]
    assert "no gaze was seen for more than 0.1 s" in r.responses[0].reason


def test_criteria_look_at_the_mean_over_the_window() -> None:
    gates = "{criteria: [{source: eye, channel: running_cm_s, most: 10}, {source: eye, channel: pupil_mm, least: 3}]}"
    r = rig((2.5, 2.9, RUNS), (3.1, 3.4, (0.0, 0.0, 2.0, 1.0)), (3.6, 3.9, BLINK), gates=gates)
    r.both(2.0)
    for k, t in enumerate((2.1, 2.6, 3.12, 3.62)):
        r.show(k, t)
    r.both(5.0)
    assert [x.reason for x in r.responses] == [
        "",
        "mean running_cm_s 30 is above 10",
        "mean pupil_mm 2 is below 3",
        "pupil_mm was not seen",
    ]


def test_rows_in_a_declared_gap_are_no_evidence() -> None:
    """Lost or outdated rows: neither a still animal nor a steady gaze follows from the few that came."""
    gates = "{criteria: [{source: eye, channel: running_cm_s, most: 10}]}"
    r = rig(gates=gates)
    r.eye_gap = (2.62, 2.70)
    r.both(2.0)
    r.show(0, 2.1)
    r.show(1, 2.6)
    r.both(4.0)
    assert [x.reason for x in r.responses] == ["", "data of eye are missing or came too old in its window"]
    r = rig()
    r.eye_gap = (2.62, 2.74)  # longer than a blink may be
    r.both(2.0)
    r.show(0, 2.1)
    r.show(1, 2.6)
    r.both(4.0)
    assert [x.usable for x in r.responses] == [True, False]
    assert "no gaze was seen for more than 0.1 s" in r.responses[1].reason


def test_the_means_of_all_channels_are_in_the_response() -> None:
    r = rig((2.5, 2.9, BLINK), gates="{}")
    r.both(2.0)
    r.show(0, 2.1)
    r.show(1, 2.6)
    r.both(4.0)
    first, second = (x.behaviour for x in r.responses)
    assert first == pytest.approx({"gaze_x_deg": 0.1, "gaze_y_deg": -0.1, "pupil_mm": 4.0, "running_cm_s": 1.0})
    assert second == {"running_cm_s": 1.0}  # what was not seen is absent, not zero
    assert all(x.usable for x in r.responses)


def test_the_response_waits_for_the_behaviour() -> None:
    r = rig()
    r.both(2.0)
    r.show(0, 2.1)
    r.amplifier(3.0)
    assert r.responses == []
    r.eye(2.2)
    assert r.responses == []
    r.eye(2.32)
    assert [x.usable for x in r.responses] == [True]


def test_behaviour_that_does_not_come_makes_it_unusable_after_its_time() -> None:
    r = rig()
    r.both(2.0)
    r.show(0, 2.1)
    r.amplifier(3.0)
    r.take(Tick(tick_host_ns=host(2.1 + 2.15) - 1))
    assert r.responses == []
    r.take(Tick(tick_host_ns=host(2.1 + 2.15)))
    (missing,) = r.responses
    assert missing.reason == "no complete data from eye within 2 s"
    assert np.isnan(missing.count).all()
    r.eye(3.0)
    assert len(r.responses) == 1


def test_without_a_gate_a_dead_tracker_holds_nothing_up() -> None:
    r = rig(gates="{}")
    r.both(2.0)
    r.eye_state = "stalled"
    r.eye(2.04)
    r.show(0, 2.1)
    r.amplifier(3.0)
    assert [(x.usable, x.behaviour) for x in r.responses] == [(True, {})]


def test_a_refused_presentation_stays_out_of_the_pooled_baseline() -> None:
    def baselines(*stretches: Any) -> list[float]:
        r = rig(*stretches)
        r.both(2.0)
        for k, t in enumerate((2.1, 2.34, 2.6)):
            r.show(k, t)
        r.both(4.0)
        return [float(x.baseline[0]) for x in r.responses]

    held, broken = baselines(), baselines((2.3, 2.5, AWAY))
    assert np.isnan(broken[1])
    assert held[1] > held[0]  # the second one's early window is the loudest
    assert broken[2] < held[2]
    assert broken[2] == pytest.approx(held[0])  # the first and the third are alike


def test_a_channel_that_is_not_sent_is_said_once() -> None:
    r = rig()
    r.channels = CHANNELS[:1]
    r.both(2.0)
    r.show(0, 2.1)
    r.both(4.0)
    (fault,) = [d for d in r.out if isinstance(d, Fault)]
    assert fault.what == "behaviour channel missing"
    assert "eye sends no gaze_y_deg; it sends gaze_x_deg" in fault.detail
    assert [x.usable for x in r.responses] == [False]


# --- end to end -------------------------------------------------------------------------------------------------------


def gates_config(mark: str) -> dict[str, Any]:
    """Return configs/gates.yaml, short, with more breaks than an animal makes and a unit that dies."""
    raw: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "gates.yaml").read_text(encoding="utf-8"))
    stream = f"behaviour-{mark}"  # streams are found by name on the whole machine
    raw["display"] |= {"size_px": [400, 300], "width_cm": 30}
    raw["sources"][0]["port"] = free_port(2)
    raw["sources"][1]["stream"] = stream
    raw["phases"] = [{"agent": "present", "images": ["natural"], "count": 6, "repeats": 6, "blanks": 1}]
    raw["animal"] |= {"neurons": 4, "dies": {"E04#0": 14.0}}
    raw["animal"]["behaviour"] |= {"stream": stream, "breaks_per_min": 40, "missing_per_min": 20}
    return raw


@pytest.mark.display
@pytest.mark.timeout(400)
def test_broken_fixations_are_unusable_and_shown_again(tmp_path: Path, private_screen: str) -> None:
    raw = gates_config(tmp_path.name.replace("_", "-"))
    path = tmp_path / "gates.yaml"
    path.write_text(yaml.safe_dump(raw))
    done = subprocess.run(
        [*STIMLOOP, "demo", "--config", str(path), "--sessions", str(tmp_path / "sessions")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = [p for p in (tmp_path / "sessions").iterdir() if (p / "session.journal").exists()]
    log = [e.document for e in read_all(folder / "session.journal")]
    responses = [d for d in log if isinstance(d, Response)]
    refused = [r for r in responses if "gaze" in r.reason]
    assert any("left the fixation window" in r.reason or "outside" in r.reason for r in refused)
    _refusals_are_true(responses, folder.parent / f"{folder.name}-truth")

    # Each image has its six usable responses, though some presentations were refused; fallbacks were nobody's question.
    usable = [r for r in responses if r.usable and r.stimulus_id != "blank" and r.slot >= 0]
    counts = {name: sum(r.stimulus_id == name for r in usable) for name in {r.stimulus_id for r in usable}}
    planned = [s.id for s in next(d for d in log if isinstance(d, Proposal)).stimuli if s.id != "blank"]
    assert counts == dict.fromkeys(planned, 6)
    assert all({"gaze_x_deg", "running_cm_s"} <= set(r.behaviour) for r in usable)
    silent = [d.detail for d in log if isinstance(d, Fault) and d.what == "unit silent"]
    assert [detail.split()[0] for detail in silent] == ["E04#0"]  # and nobody else is taken for dead
    again = subprocess.run(
        [sys.executable, "-m", "rig.cli", "replay", str(folder), "--verify"], cwd=ROOT, capture_output=True, timeout=200
    )
    assert again.returncode == 0, again.stderr
    assert children_of(tmp_path) == []


def _refusals_are_true(responses: list[Response], truth: Path) -> None:
    """Compare what the gates said with when the animal truly looked away or blinked."""
    lines = [json.loads(line) for line in (truth / "events.jsonl").read_text().splitlines()]
    breaks = [(e["start_ns"], e["end_ns"]) for e in lines if e["kind"] == "gaze_break"]
    blinks = [(e["start_ns"], e["end_ns"]) for e in lines if e["kind"] == "gaze_missing"]
    assert breaks
    row_ns = 2 * S // 120  # the gaze is known once a sample, and its clock to well under a millisecond
    judged = [r for r in responses if r.onset_host_ns is not None]
    assert len(judged) > 30
    for r in judged:
        assert r.onset_host_ns is not None
        start, end = r.onset_host_ns, r.onset_host_ns + int(0.15 * S)
        deep = [b for b in breaks if min(end, b[1]) - max(start, b[0]) > row_ns and not _closed(b, start, end, blinks)]
        near = [b for b in (*breaks, *blinks) if b[0] < end + row_ns and b[1] > start - row_ns]
        assert not (r.usable and deep), (r.presentation, deep)
        assert not ("gaze" in r.reason and not near), (r.presentation, r.reason)
        left = r.reason.split("left the fixation window ")
        if len(left) == 2:
            at_ns = start + int(float(left[1].split(" ms")[0]) * 1e6)
            assert any(b[0] - row_ns <= at_ns <= b[1] + row_ns for b in breaks), (r.presentation, r.reason)


def _closed(away: tuple[int, int], start: int, end: int, blinks: list[tuple[int, int]]) -> bool:
    """Whether the lid was closed during some of the look away, so that it may not have been seen."""
    return any(b[0] < min(end, away[1]) and b[1] > max(start, away[0]) for b in blinks)
