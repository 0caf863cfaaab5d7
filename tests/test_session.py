"""The rig's loop on a fake clock and a fake screen; then the real process with a real recorder and a real window."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from rig.clock import FakeClock, HostClock
from rig.config.reading import parse
from rig.config.session import Config
from rig.display.frames import FrameMaker
from rig.display.loop import Session
from rig.display.places import places
from rig.display.programme import WANTS
from rig.display.trial import State
from rig.display.window import WindowLost
from rig.links.bus import Hub
from rig.links.peer import Peer
from rig.messages import (
    Document,
    Entry,
    Envelope,
    Fault,
    Pause,
    PhaseEnded,
    Presented,
    ProcessStarted,
    Proposal,
    SessionStart,
    Slot,
    StimulusPrepared,
    StopRequested,
    TrialIntent,
)
from rig.provenance import process_started
from rig.recording.journal import read_all
from rig.recording.recorder import Recorder
from rig.supervision.liveness import Pulses
from rig.supervision.post import Post
from rig.supervision.restarts import Restarts
from stimuli.geometry import Rect
from stimuli.spec import Blank, Grating, LatentImage, Stimulus

CONFIG = """
sources: [{{type: openephys, photodiode_line: null}}]
responses: {{units: ["E01#0"], baseline: {{kind: none}}}}
phases: [{{agent: present}}]
display: {{size_px: [320, 240], width_cm: 16, distance_cm: 30, gamma: {gamma}, vsync: {vsync}}}
stimulus: {{size_deg: 8}}
presentation: {{on_s: 0.1, off_s: {off_s}, images_per_trial: {images}, inter_trial_s: 0.3}}
processes: {{realtime: false}}
"""
PERIOD_NS = 10**9 // 60
MS = 1_000_000
T = TypeVar("T")


def config_text(off_s: float = 0.1, images: int = 3, gamma: float = 1.0, vsync: str = "false") -> str:
    return CONFIG.format(off_s=off_s, images=images, gamma=gamma, vsync=vsync)


def proposal(number: int, config: Config, slots: int = 6, final: bool = False, seed: int = 0) -> Proposal:
    """Return a proposal of blanks, gratings and latent images in turn; stimulus k is slot k."""
    rect = places(config).rect
    rng = np.random.default_rng([seed, number])
    frames = rng.integers(60, 190, (slots, rect.height, rect.width, 3), dtype=np.uint8)
    stimuli = []
    for k in range(slots):
        spec = (
            Blank(),
            Grating(orientation_deg=10 * k, cycles_per_deg=0.5),
            LatentImage(generator="g", row=k),
        )[k % 3]
        stimuli.append(Stimulus(id=f"p{number}-{k}", spec=spec))
    return Proposal(
        proposal=number,
        phase=0,
        agent="test",
        generation=number,
        model_version="v",
        stimuli=tuple(stimuli),
        plan=tuple(Slot(stimulus=k, role="candidate") for k in range(slots)),
        tail_from=slots,
        final=final,
        fallback=(1, 2),
        frames=frames,
        latents=np.zeros((slots, 2), np.float32),
    )


class FakeStop:
    """Set by a test at a fake time."""

    orphaned = False
    go = True

    def __init__(self, clock: FakeClock) -> None:
        self.at_ns = 10**18
        self._clock = clock

    def __bool__(self) -> bool:
        return self._clock.now_ns() >= self.at_ns


class FakeScreen:
    """Remembers what each flip showed; a flip takes 0.3 ms, and some other time where a test says so."""

    def __init__(self, clock: FakeClock, textures: int) -> None:
        self.textures = textures
        self.uploads = 0
        self.held: dict[int, str] = {}
        self.drawn_at: dict[int, Rect] = {}
        self.flips: list[tuple[int, str | None, bool]] = []  # (stamp, sha256 of the frame or None, patch)
        self.cost_ns: Callable[[int], int] = lambda flip: 300_000
        self.lost_at: int | None = None
        self._clock = clock
        self._drawn: tuple[str | None, bool] = (None, False)

    def upload(self, texture: int, frame: npt.NDArray[np.uint8], rect: Rect) -> None:
        assert 0 <= texture < self.textures
        assert frame.shape == (rect.height, rect.width, 3)
        self.drawn_at[texture] = rect
        self.uploads += 1
        self.held[texture] = hashlib.sha256(frame.tobytes()).hexdigest()

    def draw(self, texture: int | None, patch: bool) -> None:
        self._drawn = (None if texture is None else self.held[texture], patch)

    def flip(self) -> int:
        if len(self.flips) == self.lost_at:
            raise WindowLost("the window was closed")
        self._clock.advance_ns(self.cost_ns(len(self.flips)))
        self.flips.append((self._clock.now_ns(), *self._drawn))
        return self._clock.now_ns()


class FakeOnset:
    """Remembers after which flips the line rose and fell."""

    def __init__(self, screen: FakeScreen) -> None:
        self.changes: list[tuple[int, int]] = []  # (level, stamp of the flip before)
        self._screen = screen

    def rise(self) -> None:
        self.changes.append((1, self._screen.flips[-1][0]))

    def fall(self) -> None:
        self.changes.append((0, self._screen.flips[-1][0]))

    def check(self) -> None:
        pass


class Script:
    """A bus that gives documents at set times and remembers what was sent, and on which flip."""

    process = "rig-1"
    full = ""

    def __init__(self, clock: FakeClock, screen: FakeScreen) -> None:
        self.sent: list[tuple[int, Document]] = []  # (flips before it, document)
        self.polls: list[int] = []
        self._clock = clock
        self._screen = screen
        self._coming: list[tuple[int, Entry]] = []
        self.give(0, process_started("rig", clock, {}), "rig-1")

    def give(self, at_ns: int, document: Document, process: str = "model-1") -> None:
        envelope = Envelope(
            seq=len(self._coming) + 1, receipt_host_ns=0, sender=process[:3], process=process, sender_seq=1
        )
        self._coming.append((at_ns, Entry(envelope, document)))

    def send(self, document: Document) -> None:
        self.sent.append((len(self._screen.flips), document))

    def poll(self, timeout_s: float = 0.0) -> list[Entry]:
        self.polls.append(len(self._screen.flips))
        now = self._clock.now_ns()
        due = [e for at, e in self._coming if at <= now]
        self._coming = [(at, e) for at, e in self._coming if at > now]
        if not due:
            self._clock.advance_ns(int(timeout_s * 1000) * MS)
        return due

    def flush(self, timeout_s: float) -> bool:
        return True

    def of(self, kind: type[T]) -> list[T]:
        return [d for _, d in self.sent if isinstance(d, kind)]


class Bench:
    """A session with everything around it fake but the code under test."""

    def __init__(self, text: str | None = None, **settings: Any) -> None:
        self.config = parse(config_text(**settings) if text is None else text)
        self.clock = FakeClock()
        self.start_ns = self.clock.now_ns()
        self.where = places(self.config)
        self.screen = FakeScreen(self.clock, self.config.presentation.images_per_trial)
        self.line = Script(self.clock, self.screen)
        self.stop = FakeStop(self.clock)
        display = self.config.display
        self.frames = FrameMaker(self.where, display.background, display.gamma, self.config.limits, {})
        self.onset = FakeOnset(self.screen)
        self.session = Session(
            self.config, self.where, self.screen, self.line, self.frames, self.clock, self.stop, self.onset
        )

    def proposal(self, number: int, at_ms: float = 0, **more: Any) -> Proposal:
        made = proposal(number, self.config, **more)
        self.line.give(self.start_ns + int(at_ms * MS), made)
        return made

    def run(self, stop_ms: float) -> "Bench":
        self.stop.at_ns = self.start_ns + int(stop_ms * MS)
        self.session.run()
        assert self.session.state is State.STOPPED
        return self

    @property
    def presented(self) -> list[Presented]:
        return self.line.of(Presented)


def test_without_a_proposal_the_screen_is_grey_and_keeps_flipping() -> None:
    bench = Bench().run(2000)
    assert {(sha, patch) for _, sha, patch in bench.screen.flips} == {(None, False)}
    stamps = np.array([t for t, _, _ in bench.screen.flips])
    assert len(stamps) == pytest.approx(120, abs=2)
    assert np.diff(stamps).max() < 1.3 * PERIOD_NS
    assert [d.reason for d in bench.line.of(StopRequested)] == ["stopped by the supervisor"]
    assert not bench.line.of(Fault)


def test_a_trial_is_shown_frame_by_frame_as_planned() -> None:
    bench = Bench()
    asked = bench.proposal(0, final=True)
    bench.run(1800)  # the first trial takes 600 ms, the second begins 200 ms + 100 ms after
    shown = bench.presented
    assert [p.presentation for p in shown] == list(range(6))
    assert [p.stimulus_id for p in shown] == [asked.stimuli[s.stimulus].id for s in asked.plan]
    assert [p.slot for p in shown] == list(range(6))
    assert [p.trial for p in shown] == [0, 0, 0, 1, 1, 1]
    assert [p.position_in_trial for p in shown] == [0, 1, 2, 0, 1, 2]
    assert [p.previous_stimulus_id for p in shown] == [None, "p0-0", "p0-1", None, "p0-3", "p0-4"]
    on = {t: sha for t, sha, patch in bench.screen.flips if patch}
    for p in shown:
        assert len(p.flips_host_ns) == 7  # 6 frames and the flip that removed the image
        assert (p.onset_flip_host_ns, p.offset_flip_host_ns) == (p.flips_host_ns[0], p.flips_host_ns[-1])
        assert [on[t] for t in p.flips_host_ns[:-1]] == [p.frame_sha256] * 6
        assert p.offset_flip_host_ns not in on
        assert 0 <= p.onset_flip_host_ns - p.due_host_ns < MS
        assert (p.late_flips, p.dropped_frames, p.complete) == (0, 0, True)
    assert len(on) == 36
    onsets = np.array([p.due_host_ns for p in shown])
    assert np.allclose(np.diff(onsets)[[0, 1, 3, 4]], 12 * PERIOD_NS, atol=20)
    assert (onsets[3] - onsets[2]) == pytest.approx((6 + 18) * PERIOD_NS, abs=40)  # on, inter-trial
    rect = bench.where.rect
    assert {p.image_row_px for p in shown} == {rect.top + rect.height / 2}
    assert bench.where.patch is not None
    assert {p.patch_row_px for p in shown} == {bench.where.patch.center_row}


def test_the_patch_is_white_exactly_while_an_image_is_on() -> None:
    bench = Bench()
    bench.proposal(0)
    bench.run(1500)
    assert any(patch for _, _, patch in bench.screen.flips)
    assert all(patch == (sha is not None) for _, sha, patch in bench.screen.flips)


def test_without_an_off_period_one_image_replaces_the_other() -> None:
    bench = Bench(off_s=0)
    bench.proposal(0, final=True)
    bench.run(1200)
    shown = bench.presented
    assert len(shown) == 6
    assert shown[0].offset_flip_host_ns == shown[1].onset_flip_host_ns
    assert shown[2].offset_flip_host_ns < shown[3].onset_flip_host_ns
    assert all(len(p.flips_host_ns) == 7 for p in shown)
    assert [p.presentation for p in shown] == list(range(6))


def test_in_a_trial_nothing_is_read_and_only_presented_is_sent() -> None:
    bench = Bench()
    bench.proposal(0, final=True)
    bench.run(1500)
    stamps = [t for t, _, _ in bench.screen.flips]
    for trial in (0, 1):
        images = [p for p in bench.presented if p.trial == trial]
        first = stamps.index(images[0].onset_flip_host_ns)
        last = stamps.index(images[-1].offset_flip_host_ns)
        assert not [n for n in bench.line.polls if first < n <= last]
        sent = [(n, d) for n, d in bench.line.sent if first < n <= last]
        assert {type(d) for _, d in sent} == {Presented}
        for n, d in sent:  # right after the flip that removed the image
            assert isinstance(d, Presented)
            assert stamps[n - 1] == d.offset_flip_host_ns
        before = [d for n, d in bench.line.sent if n <= first and isinstance(d, TrialIntent) and d.trial == trial]
        assert before[0].presentations == tuple(p.presentation for p in images)
        assert before[0].slots == tuple(p.slot for p in images)
        assert before[0].start_host_ns == images[0].due_host_ns


@pytest.mark.parametrize("gamma", [1.0, 2.2])
def test_prepared_names_the_very_frame_and_carries_it_once(gamma: float) -> None:
    bench = Bench(gamma=gamma)
    bench.proposal(0)
    asked = bench.proposal(1, final=True)
    bench.run(3000)
    prepared = {(d.proposal, d.stimulus_id): d for d in bench.line.of(StimulusPrepared)}
    assert len(prepared) == len(bench.line.of(StimulusPrepared)) == 12
    known = {hashlib.sha256(f.tobytes()).hexdigest() for n in (0, 1) for f in proposal(n, bench.config).frames}
    carried = [d.frame_sha256 for d in bench.line.of(StimulusPrepared) if d.frame is not None]
    assert len(carried) == len(set(carried))
    for p in bench.presented:
        d = prepared[p.proposal, p.stimulus_id]
        assert d.frame_sha256 == p.frame_sha256
        assert p.frame_sha256 in known | set(carried)
        if d.frame is not None:
            assert hashlib.sha256(d.frame.tobytes()).hexdigest() == d.frame_sha256
    table = np.rint(255 * (np.arange(256) / 255) ** (1 / gamma)).astype(np.uint8)
    expected = hashlib.sha256(table[asked.frames[2]].tobytes()).hexdigest()
    assert prepared[1, "p1-2"].frame_sha256 == expected
    assert (prepared[1, "p1-2"].frame is None) == (gamma == 1.0)  # the proposal itself holds it, or does not


def test_a_frame_that_is_in_the_pool_is_not_uploaded_again() -> None:
    bench = Bench(images=6)
    blank = Stimulus(id="blank", spec=Blank())
    asked = proposal(0, bench.config).model_copy(
        update={"stimuli": (blank,), "plan": (Slot(stimulus=0, role="blank"),) * 12, "fallback": (0,), "final": True}
    )
    bench.line.give(0, asked)
    bench.run(4000)
    assert len(bench.presented) == 12
    assert bench.screen.uploads == 1


def test_a_late_proposal_is_bridged_by_the_fallback_and_said_once() -> None:
    bench = Bench()
    bench.proposal(0)
    bench.proposal(1, at_ms=4200, final=True)
    bench.run(6000)
    shown = bench.presented
    stand_ins = [p for p in shown if p.role == "fallback"]
    assert len(stand_ins) >= 4
    assert {p.slot for p in stand_ins} == {-1}
    assert {p.stimulus_id for p in stand_ins} == {"p0-1", "p0-2"}
    assert [p.slot for p in shown if p.proposal == 1] == list(range(6))
    assert [p.presentation for p in shown] == list(range(len(shown)))
    faults = bench.line.of(Fault)
    assert [f.what for f in faults] == ["late proposal"]
    assert set(faults[0].presentations) <= {p.presentation for p in stand_ins}
    assert faults[0].since_host_ns is not None
    gaps = np.diff([t for t, _, _ in bench.screen.flips])
    assert gaps.max() < 1.3 * PERIOD_NS


def test_fallbacks_end_after_a_while_and_a_proposal_goes_on() -> None:
    bench = Bench(config_text().replace("inter_trial_s: 0.3", "inter_trial_s: 0.3, most_fallback_s: 4"))
    bench.proposal(0)
    bench.proposal(1, at_ms=12_000, final=True)
    bench.run(14_000)
    stand_ins = [p for p in bench.presented if p.role == "fallback"]
    late, over = bench.line.of(Fault)
    assert (late.what, over.what) == ("late proposal", "fallback over")
    assert f"no proposal after number 0 for 4 s, in which {len(stand_ins)} fallback images were shown" in over.detail
    assert over.done == "background is shown until a proposal comes"
    shown_for_s = (stand_ins[-1].offset_flip_host_ns - stand_ins[0].onset_flip_host_ns) * 1e-9
    assert 3 < shown_for_s < 5
    assert stand_ins[-1].offset_flip_host_ns < bench.start_ns + 8_000 * MS
    assert [p.slot for p in bench.presented if p.proposal == 1] == list(range(6))


def test_a_pause_is_no_time_of_fallbacks() -> None:
    bench = Bench(config_text().replace("inter_trial_s: 0.3", "inter_trial_s: 0.3, most_fallback_s: 4"))
    bench.proposal(0)
    bench.line.give(bench.start_ns + 3_000 * MS, Pause(paused=True, reason="the disk is nearly full", since_host_ns=1))
    bench.line.give(bench.start_ns + 9_000 * MS, Pause(paused=False, reason="space again", since_host_ns=1))
    bench.run(11_000)
    assert [p for p in bench.presented if p.onset_flip_host_ns > bench.start_ns + 9_000 * MS]
    assert "fallback over" not in [f.what for f in bench.line.of(Fault)]


def test_after_a_final_proposal_the_screen_waits_grey_without_a_fault() -> None:
    bench = Bench()
    bench.proposal(0, final=True)
    bench.proposal(1, at_ms=4500, final=True)
    bench.run(6200)
    assert {p.role for p in bench.presented} == {"candidate"}
    assert [p.proposal for p in bench.presented] == [0] * 6 + [1] * 6
    assert not bench.line.of(Fault)


def test_grey_for_very_long_is_a_fault_even_so() -> None:
    bench = Bench()
    bench.proposal(0, final=True)
    bench.run(9000)
    assert [f.what for f in bench.line.of(Fault)] == ["late proposal"]


def test_a_frame_over_the_limits_is_replaced_by_the_background_and_said() -> None:
    bench = Bench()
    asked = proposal(0, bench.config, final=True)
    frames = np.array(asked.frames)
    frames[2] = 255
    bench.line.give(0, asked.model_copy(update={"frames": frames}))
    bench.run(1600)
    by_id = {p.stimulus_id: p for p in bench.presented}
    assert len(by_id) == 6
    assert not by_id["p0-2"].complete
    assert by_id["p0-2"].frame_sha256 == bench.frames.grey.sha256
    assert by_id["p0-5"].complete
    (fault,) = bench.line.of(Fault)
    assert (fault.what, fault.presentations) == ("frame refused", (2,))
    assert "mean level 255.0" in fault.detail
    assert hashlib.sha256(frames[2].tobytes()).hexdigest() not in bench.screen.held.values()


def test_a_bad_proposal_is_refused_and_the_next_one_shown() -> None:
    bench = Bench()
    bench.line.give(0, proposal(0, bench.config).model_copy(update={"fallback": (99,)}))
    bench.proposal(1, final=True)
    bench.run(1600)
    assert [f.what for f in bench.line.of(Fault)] == ["bad proposal"]
    assert {p.proposal for p in bench.presented} == {1}


def test_a_stop_finishes_the_image_and_names_what_is_not_shown() -> None:
    bench = Bench()
    bench.proposal(0)
    bench.stop.at_ns = bench.start_ns + 350 * MS
    bench.session.run()
    shown = bench.presented
    assert shown
    assert len(shown) < 3
    assert len(shown[-1].flips_host_ns) == 7
    assert shown[-1].complete
    assert bench.screen.flips[-1][1:] == (None, False)
    (fault,) = bench.line.of(Fault)
    assert fault.what == "trial cut short"
    assert fault.presentations == tuple(range(len(shown), 3))
    assert isinstance(bench.line.sent[-1][1], StopRequested)


@pytest.mark.parametrize("at_ms", [0, 50, 250, 700])
def test_a_pause_holds_between_trials_on_grey_until_it_is_lifted(at_ms: int) -> None:
    bench = Bench()
    bench.proposal(0)
    bench.proposal(1, final=True)
    begins, ends = (bench.start_ns + ms * MS for ms in (at_ms, 4000))
    bench.line.give(begins, Pause(paused=True, reason="the disk is nearly full", since_host_ns=1))
    bench.line.give(ends, Pause(paused=False, reason="there is space again", since_host_ns=1))
    bench.run(5500)
    stamps = np.array([t for t, _, _ in bench.screen.flips])
    said = [int(stamps[n - 1]) for n, d in bench.line.sent if isinstance(d, TrialIntent) and n]
    assert not [t for t in said if begins + 50 * MS < t < ends]
    assert len([t for t in said if t >= ends]) >= 1
    # What was announced before the pause was known is shown to its end; then there is grey, flip by flip.
    patch_on = [t for t, _, patch in bench.screen.flips if patch]
    assert not [t for t in patch_on if begins + 950 * MS < t < ends]
    assert [t for t in patch_on if t > ends]
    assert np.diff(stamps).max() < 1.3 * PERIOD_NS
    assert "late proposal" not in [f.what for f in bench.line.of(Fault)]
    assert [p.slot for p in bench.presented][:6] == list(range(6))


def test_what_could_not_be_logged_is_not_shown() -> None:
    bench = Bench()
    bench.line.full = "the disk is full"
    bench.proposal(0)
    bench.run(1500)
    assert bench.presented == []


def test_nothing_is_shown_before_every_process_is_ready() -> None:
    bench = Bench()
    bench.stop.go = False
    bench.proposal(0)
    bench.run(stop_ms=1500)
    assert bench.presented == []
    assert not any(patch for _, _, patch in bench.screen.flips)


@pytest.mark.parametrize("off_s", [0.1, 0.0])
def test_a_device_that_goes_away_ends_the_trial_after_its_image_and_the_rest_stays_planned(off_s: float) -> None:
    bench = Bench(off_s=off_s, images=4)
    bench.proposal(0, slots=8, final=True)
    away: list[int] = []

    def flip(count: int) -> int:
        if bench.stop.go and not away and len(bench.presented) == 1 and bench.screen.flips[-1][2]:
            bench.stop.go = False  # while the second image is on
            away.append(count)
        if away and count == away[0] + 90:
            bench.stop.go = True
        return 300_000

    bench.screen.cost_ns = flip
    bench.run(6000)
    assert [p.slot for p in bench.presented] == list(range(8))  # each once, in the order of the plan
    assert [p.presentation for p in bench.presented] == [0, 1, 4, 5, 6, 7, 8, 9]
    assert all(p.complete and len(p.flips_host_ns) == 7 for p in bench.presented)
    (fault,) = [f for f in bench.line.of(Fault) if f.what != "late proposal"]
    assert (fault.what, fault.presentations) == ("trial cut short", (2, 3))
    assert "source of a device is away" in fault.detail
    on = [k for k, (_, _, patch) in enumerate(bench.screen.flips) if patch]
    assert not [k for k in on if away[0] + 6 < k <= away[0] + 90]  # grey while it is away
    announced = {n for d in bench.line.of(TrialIntent) for n in d.presentations}
    assert announced == {p.presentation for p in bench.presented} | {2, 3}
    assert bench.onset.changes[-1][0] == 0


def test_a_trial_that_is_announced_waits_for_a_device_that_is_away() -> None:
    bench = Bench()
    bench.proposal(0, slots=3, final=True)

    def flip(count: int) -> int:
        bench.stop.go = count >= 120 or not bench.line.of(TrialIntent)
        return 300_000

    bench.screen.cost_ns = flip
    bench.run(4000)
    assert [p.presentation for p in bench.presented] == [0, 1, 2]
    assert not any(patch for _, _, patch in bench.screen.flips[:120])
    assert len(bench.line.of(TrialIntent)) == 1
    assert bench.line.of(Fault) == []


@pytest.mark.parametrize("stop_ms", np.arange(1, 1500, 37).tolist())
def test_a_stop_at_any_time_ends_grey_with_every_image_accounted_for(stop_ms: int) -> None:
    bench = Bench()
    bench.proposal(0)
    bench.run(stop_ms)
    announced = {n for d in bench.line.of(TrialIntent) for n in d.presentations}
    named = {n for f in bench.line.of(Fault) for n in f.presentations}
    assert announced == {p.presentation for p in bench.presented} | named
    assert bench.screen.flips[-1][1:] == (None, False)
    assert bench.screen.flips[-1][0] < bench.start_ns + stop_ms * MS + 10 * PERIOD_NS
    assert len(bench.line.of(StopRequested)) == 1


def test_the_end_of_the_last_phase_stops_between_trials() -> None:
    bench = Bench()
    bench.proposal(0, final=True)
    bench.line.give(bench.start_ns + 900 * MS, PhaseEnded(phase=0, reason="nothing", last=False))
    bench.line.give(bench.start_ns + 2500 * MS, PhaseEnded(phase=1, reason="10 generations", last=True))
    bench.session.run()
    assert len(bench.presented) == 6
    assert [d.reason for d in bench.line.of(StopRequested)] == ["phase 2 ended: 10 generations"]


def test_late_and_missed_frames_are_counted_where_they_happen() -> None:
    bench = Bench()
    bench.proposal(0, final=True)
    reference = Bench()
    reference.proposal(0, final=True)
    reference.run(1500)
    stamps = [t for t, _, _ in reference.screen.flips]
    late, missed = (stamps.index(reference.presented[k].flips_host_ns[2]) for k in (0, 1))
    bench.screen.cost_ns = lambda n: {late: 10 * MS, missed: 40 * MS}.get(n, 300_000)
    bench.run(1500)
    shown = bench.presented
    assert [(p.late_flips, p.dropped_frames) for p in shown[:3]] == [(1, 0), (1, 2), (0, 0)]
    assert all(len(p.flips_host_ns) == 7 for p in shown)  # no image is shown for fewer frames
    assert shown[2].due_host_ns - shown[1].due_host_ns == pytest.approx(14 * PERIOD_NS, abs=40)


def test_a_lost_window_leaves_an_incomplete_presentation_and_says_so() -> None:
    reference = Bench()
    reference.proposal(0)
    reference.run(1500)
    stamps = [t for t, _, _ in reference.screen.flips]
    bench = Bench()
    bench.proposal(0)
    bench.screen.lost_at = stamps.index(reference.presented[1].flips_host_ns[3])
    with pytest.raises(WindowLost):
        bench.session.run()
    assert bench.session.state is State.LOST
    assert [(p.presentation, p.complete, len(p.flips_host_ns)) for p in bench.presented] == [
        (0, True, 7),
        (1, False, 3),
    ]
    (fault,) = bench.line.of(Fault)
    assert (fault.what, fault.presentations) == ("window lost", (2,))
    assert isinstance(bench.line.sent[-1][1], StopRequested)


GONE = """
import sys
from rig.clock import HostClock
from rig.display import session
from rig.display.window import WindowLost
from rig.links.peer import Peer
from rig.messages import StopRequested
from rig.supervision.child import Stop, say
session.FLUSH_S = 1.5
stop, line = Stop(), Peer("rig", "tcp://127.0.0.1:9", frozenset(), HostClock())

class Lost:
    def run(self):
        line.send(StopRequested(reason="window lost"))
        raise WindowLost("somebody closed it")

say(ready={})
bool(stop)
sys.exit(session._run(Lost(), line, stop))
"""


def test_a_lost_window_ends_the_session_also_while_the_recorder_is_away(tmp_path: Path) -> None:
    """The rig waits for a recorder longer than it may otherwise stand still; that is no hang."""
    pulses, clock, said = Pulses(1), HostClock(spin_ns=0), ""
    rig = Post("rig", ["-c", GONE], tmp_path / "log", 0.5, Restarts(3), pulses, 0, clock)
    child = rig.fill()
    try:
        end_ns = clock.now_ns() + 20_000 * MS
        while not said:
            assert clock.now_ns() < end_ns
            said = rig.look(clock.now_ns())
            clock.sleep_until_ns(clock.now_ns() + 20 * MS)
    finally:
        rig.finish()
        pulses.close()
    assert said == "failed: rig: somebody closed it"
    assert child.failed is not None  # the supervisor starts no other one


def test_a_restarted_rig_goes_on_where_the_log_ends() -> None:
    first = Bench()
    asked = first.proposal(0)
    first.run(350)
    shown_before = [p.slot for p in first.presented]
    assert shown_before
    second = Bench()
    second.line._coming.clear()
    second.line.give(0, process_started("rig", second.clock, {}), "rig-0")
    second.line.give(0, asked)
    for _, document in first.line.sent:
        if isinstance(document, TrialIntent | Presented):
            second.line.give(0, document, "rig-0")
    second.line.give(second.start_ns + 200 * MS, process_started("rig", second.clock, {}), "rig-1")
    second.run(1900)
    assert [p.slot for p in second.presented if p.slot >= 0] == [k for k in range(6) if k not in shown_before]
    assert min(p.presentation for p in second.presented) == 3
    assert second.presented[0].onset_flip_host_ns > second.start_ns + 200 * MS  # nothing before it has read the log
    restarted = [f for f in second.line.of(Fault) if f.what == "rig restarted"]
    assert [f.presentations for f in restarted] == [tuple(range(len(shown_before), 3))]


# --- the real process -------------------------------------------------------------------------------------------------


class Rig:
    """`python -m rig.display.session` beside a recorder that the test steps."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder
        (folder / "config.yaml").write_text(text)
        self.config = parse(text)
        clock = HostClock()
        start = SessionStart(
            simulated=True, session="s",
            config_yaml=text,
            config={},
            versions={},
            commit=None,
            dirty=None,
            start_host_ns=1,
            start_utc_ns=2,
        )
        self.hub = Hub("tcp://127.0.0.1:0")
        self.recorder = Recorder(folder / "session.journal", self.hub, self.config, clock, lambda: start)
        self.model = Peer("model", self.hub.endpoint, frozenset(), clock)
        self.clock = clock
        self.process = self.spawn()

    def spawn(self, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "rig.display.session"),
                *("--folder", str(self.folder), "--endpoint", self.hub.endpoint),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        return process

    def until(self, done: Callable[[], bool], seconds: float = 90) -> None:
        end = self.clock.now_ns() + int(seconds * 1e9)
        while not done():
            assert self.clock.now_ns() < end, "the rig did not get there in time"
            self.recorder.step(0.01)
            self.model.poll()

    def read(self) -> list[Entry]:
        return read_all(self.folder / "session.journal")

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)
        self.model.close()
        self.recorder.close("test over")


@pytest.mark.display
def test_the_real_rig_survives_a_kill_and_accounts_for_everything(private_screen: str, tmp_path: Path) -> None:
    rig = Rig(tmp_path, config_text())
    try:
        rig.model.send(proposal(0, rig.config, slots=9, final=True))
        rig.until(lambda: rig.recorder.presentations >= 4)
        rig.process.kill()
        rig.process.communicate(timeout=200)
        rig.process = rig.spawn()
        rig.until(lambda: any(d.document.slot == 8 for d in rig.read() if isinstance(d.document, Presented)))
        assert rig.process.stdin is not None
        rig.process.stdin.write("stop\n")
        rig.process.stdin.flush()
        rig.until(lambda: rig.process.poll() is not None)
        assert rig.process.stdout is not None
        said = [json.loads(line) for line in rig.process.stdout.read().splitlines()]
        assert rig.process.returncode == 0, said
        assert set(said[0]["ready"]) >= {"renderer", "priority", "pacing"}
    finally:
        rig.close()
    documents = [e.document for e in rig.read()]
    shown = [d for d in documents if isinstance(d, Presented)]
    assert {d.slot for d in shown if d.complete} == set(range(9))
    assert len({d.presentation for d in shown}) == len(shown)
    announced = {n for d in documents if isinstance(d, TrialIntent) for n in d.presentations}
    assert announced == {d.presentation for d in shown} | {
        n for d in documents if isinstance(d, Fault) for n in d.presentations
    }
    started = [d for d in documents if isinstance(d, ProcessStarted) and d.name == "rig"]
    assert len(started) == 2
    assert started[0].notes["pacing"].startswith("clock")
    assert "realtime is false" in started[0].notes["priority"]
    assert isinstance([d for d in documents if isinstance(d, StopRequested)][-1], StopRequested)
    for d in shown:
        assert (np.diff(d.flips_host_ns) > 0).all()
        assert d.offset_flip_host_ns - d.onset_flip_host_ns > 50 * MS


def _fails(folder: Path, text: str, display: str | None) -> dict[str, str]:
    """Run the rig to its refusal; return what it said."""
    (folder / "config.yaml").write_text(text)
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    if display is not None:
        environment["DISPLAY"] = display
    done = subprocess.run(
        [sys.executable, "-m", "rig.display.session", "--folder", str(folder), "--endpoint", "tcp://127.0.0.1:9"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )
    assert done.returncode == 2, done.stderr
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    assert set(said) == {"failed", "cure"}
    return said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="DISPLAY is a matter of X11")
def test_without_a_screen_the_rig_says_how_to_get_one(tmp_path: Path) -> None:
    said = _fails(tmp_path, config_text(), None)
    assert "no screen" in said["failed"]
    assert "xvfb-run" in said["cure"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="DISPLAY is a matter of X11")
def test_with_a_wrong_display_the_rig_names_it(tmp_path: Path) -> None:
    said = _fails(tmp_path, config_text(), ":9753")
    assert ":9753" in said["failed"] + said["cure"]


@pytest.mark.display
def test_vsync_that_does_not_happen_is_refused(private_screen: str, tmp_path: Path) -> None:
    said = _fails(tmp_path, config_text(vsync="true"), private_screen)
    assert "instead of 60 Hz" in said["failed"]
    assert "display.vsync: false" in said["cure"]


@pytest.mark.display
def test_a_missing_screen_is_refused(private_screen: str, tmp_path: Path) -> None:
    said = _fails(tmp_path, config_text().replace("vsync: false", "vsync: false, screen: 3"), private_screen)
    assert "display.screen is 3" in said["failed"]


def test_an_image_off_the_screen_is_refused(tmp_path: Path) -> None:
    said = _fails(tmp_path, config_text().replace("size_deg: 8", "size_deg: 60"), ":9753")
    assert "size_deg" in said["failed"]


def test_the_rig_wants_no_more_than_it_uses() -> None:
    from_model_and_recorder = {"proposal", "phase_ended", "response", "pause"}
    assert set(WANTS) == from_model_and_recorder | {"trial_intent", "presented", "process_started"}
