"""The guest rig: what it answers, on a fake clock; then the documented client with a real window and the animal."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rig.clock import FakeClock
from rig.config.reading import parse
from rig.config.session import Config
from rig.display.frames import FrameMaker
from rig.display.guest_rig import GuestRig
from rig.display.guest_wire import BadRequest, Hello
from rig.display.guest_wire import parse as parse_request
from rig.display.places import places
from rig.links.ports import free_port
from rig.messages import (
    ClockSample,
    Document,
    Entry,
    Envelope,
    Fault,
    PhaseEnded,
    Presented,
    ProcessStarted,
    Proposal,
    Response,
    SessionStop,
    Slot,
    StimulusPrepared,
    StopRequested,
    TrialIntent,
)
from rig.provenance import process_started
from rig.recording.journal import read_all
from stimuli.spec import Blank, LatentImage, Stimulus
from tests.test_end_to_end import STIMLOOP, children_of

ROOT = Path(__file__).parent.parent
MS = 1_000_000
GUEST_OFFSET_NS = 777_000_000_000  # the guest's clock is behind the host's by this much
T = TypeVar("T", bound=Document)
CONFIG = """
guest: {timeout_s: 5}
sources: [{type: openephys, photodiode_line: null}]
responses: {units: ["E01#0"], baseline: {kind: none}}
phases: [{agent: present}]
display: {size_px: [320, 240], width_cm: 16, distance_cm: 30}
stimulus: {size_deg: 8}
presentation: {on_s: 0.1, off_s: 0.1, images_per_trial: 3}
"""


class Line:
    process = "rig-1"
    full = ""

    def __init__(self) -> None:
        self.sent: list[Document] = []

    def send(self, document: Document) -> None:
        self.sent.append(document)

    def of(self, kind: type[T]) -> list[T]:
        return [d for d in self.sent if isinstance(d, kind)]


class Going:
    go = True


class Room:
    """A guest rig with a guest; the guest's clock runs beside the host's."""

    def __init__(self) -> None:
        self.config: Config = parse(CONFIG)
        self.clock, self.line = FakeClock(), Line()
        self.where = places(self.config)
        display = self.config.display
        frames = FrameMaker(self.where, display.background, display.gamma, self.config.limits, {})
        self.rig = GuestRig(self.config, self.where, frames, self.line, self.clock, Going())
        self.guest = "g1"
        self.pair: dict[str, int] = {}
        self.give(process_started("rig", self.clock, {}), "rig-1")

    def give(self, document: Document, process: str = "model-1") -> None:
        envelope = Envelope(seq=1, receipt_host_ns=0, sender=process[:3], process=process, sender_seq=1)
        self.rig.take(Entry(envelope, document))

    def now(self) -> int:
        return self.clock.now_ns() - GUEST_OFFSET_NS

    def ask(self, **request: Any) -> tuple[dict[str, Any], list[bytes]]:
        sent = self.now()
        self.clock.advance_ns(100_000)
        raw = json.dumps({"guest": self.guest, **self.pair, **request}).encode()
        header, *frames = self.rig.answer([raw], self.clock.now_ns())
        self.clock.advance_ns(100_000)
        answer = json.loads(header)
        self.pair = {"sent_ns": sent, "host_ns": answer["host_ns"], "got_ns": self.now()}
        return answer, frames

    def hello(self) -> None:
        answer, _ = self.ask(say="hello", protocol=1, program="test", refresh_hz=60)
        assert answer["ok"]
        for _ in range(30):  # the clock's map needs a second of round trips
            self.clock.advance_ns(50 * MS)
            if "trial" in self.ask(say="next")[0]:
                return

    def propose(self, slots: int = 4, number: int = 0) -> Proposal:
        rect = self.where.rect
        frames = np.random.default_rng(number).integers(60, 190, (slots, rect.height, rect.width, 3), dtype=np.uint8)
        specs = [Blank() if k == 1 else LatentImage(generator="g", row=k) for k in range(slots)]
        made = Proposal(
            proposal=number,
            phase=0,
            agent="test",
            generation=0,
            model_version="v",
            stimuli=tuple(Stimulus(id=f"s{number}-{k}", spec=s) for k, s in enumerate(specs)),
            plan=tuple(Slot(stimulus=k, role="candidate") for k in range(slots)),
            tail_from=slots,
            final=True,
            fallback=(0,),
            frames=frames,
            latents=np.zeros((slots, 2), np.float32),
        )
        self.give(made)
        return made

    def show(self, shown: int, drawn: bytes, **changed: Any) -> dict[str, Any]:
        onset = self.now()
        self.clock.advance_ns(100 * MS)
        said = {
            "presentation": shown,
            "sha256": hashlib.sha256(drawn).hexdigest(),
            "onset_ns": onset,
            "offset_ns": self.now(),
        }
        self.clock.advance_ns(100 * MS)
        return self.ask(say="shown", **{**said, **changed})[0]


@pytest.fixture
def room() -> Room:
    made = Room()
    made.hello()
    return made


def test_a_trial_is_handed_out_shown_and_logged_as_our_own_display_would(room: Room) -> None:
    proposal = room.propose()
    answer, frames = room.ask(say="next")
    assert [i["presentation"] for i in answer["images"]] == [0, 1, 2]
    assert [hashlib.sha256(f).hexdigest() for f in frames] == [i["sha256"] for i in answer["images"]]
    assert frames[0] == proposal.frames[0].tobytes()
    starts = []
    for image, frame in zip(answer["images"], frames, strict=True):
        starts.append(room.clock.now_ns())
        assert room.show(image["presentation"], frame) == {"ok": True, "host_ns": room.pair["host_ns"]}
    (intent,) = room.line.of(TrialIntent)
    assert intent.presentations == (0, 1, 2)
    shown = room.line.of(Presented)
    assert [(p.presentation, p.trial, p.slot, p.stimulus_id) for p in shown] == [
        (k, 0, k, f"s0-{k}") for k in range(3)
    ]
    assert [p.previous_stimulus_id for p in shown] == [None, "s0-0", "s0-1"]
    for p, start in zip(shown, starts, strict=True):
        assert abs(p.onset_flip_host_ns - start) <= p.flip_uncertainty_ns < 2 * MS
        assert p.offset_flip_host_ns - p.onset_flip_host_ns == pytest.approx(100 * MS, abs=MS)
        assert p.complete
    assert {s.stimulus_id: s.frame_sha256 for s in room.line.of(StimulusPrepared)} == {
        p.stimulus_id: p.frame_sha256 for p in shown
    }
    assert not room.line.of(Fault)
    assert room.ask(say="over", trial=0)[0]["ok"]  # said although all of it was shown: no harm
    assert [i["presentation"] for i in room.ask(say="next")[0]["images"]] == [3]


def test_before_its_clock_is_known_a_guest_waits() -> None:
    room = Room()
    room.propose()
    assert room.ask(say="hello", protocol=1, program="test", refresh_hz=60)[0]["ok"]
    assert room.ask(say="next")[0]["wait_s"] > 0
    for _ in range(30):
        room.clock.advance_ns(50 * MS)
        room.ask(say="next")
    assert room.line.of(TrialIntent)
    pairs = room.line.of(ClockSample)
    assert all(p.method == "round_trip" and p.source == "guest" for p in pairs)
    true = [p.device_sample + GUEST_OFFSET_NS for p in pairs]
    assert all(abs(p.pair_host_ns - t) <= (p.round_trip_ns or 0) for p, t in zip(pairs, true, strict=True))


def test_what_a_cut_trial_left_is_planned_again_under_new_numbers(room: Room) -> None:
    room.propose()
    _, frames = room.ask(say="next")
    room.show(0, frames[0])
    assert room.ask(say="over", trial=0, reason="fixation broken")[0]["ok"]
    (fault,) = room.line.of(Fault)
    assert (fault.what, fault.detail, fault.presentations) == ("trial cut short", "fixation broken", (1, 2))
    again, _ = room.ask(say="next")
    assert [i["presentation"] for i in again["images"]] == [3, 4, 5]
    assert room.line.of(TrialIntent)[-1].slots == (1, 2, 3)
    assert "none of the open trial's" in room.show(1, frames[1])["error"]


def test_other_bytes_than_were_sent_are_not_scored(room: Room) -> None:
    room.propose()
    _, frames = room.ask(say="next")
    room.show(0, frames[0][:-1] + b"\x00")
    (fault,) = room.line.of(Fault)
    assert (fault.what, fault.presentations) == ("frame differs", (0,))
    assert [p.complete for p in room.line.of(Presented)] == [False]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"presentation": 9}, "none of the open trial's"),
        ({"onset_ns": 10**15}, "not in order, or later than now"),
        ({"offset_ns": 10**15}, "not in order, or later than now"),
        ({"sha256": "abc"}, "sha256"),
        ({"onset_ns": -(10**12)}, "before the trial was given"),
        ({"sent_ns": -(2**62), "got_ns": 2**62, "host_ns": 1}, "a minute apart"),
        ({"onset_ns": 1.5}, "onset_ns"),
        ({"more": 1}, "more"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_wrong_report_is_refused_with_the_reason_and_changes_nothing(
    room: Room, changed: dict[str, Any], reason: str
) -> None:
    room.propose()
    _, frames = room.ask(say="next")
    assert reason in room.show(0, frames[0], **changed)["error"]
    assert [f.what for f in room.line.of(Fault)] == ["guest request refused"]
    assert not room.line.of(Presented)
    assert room.show(0, frames[0])["ok"]


def test_images_must_not_overlap(room: Room) -> None:
    room.propose()
    _, frames = room.ask(say="next")
    start = room.now()
    room.show(0, frames[0])
    assert "before the image before it ended" in room.show(1, frames[1], onset_ns=start + 50 * MS)["error"]


def test_refused_requests_do_not_flood_the_log(room: Room) -> None:
    for _ in range(250):
        room.ask(say="nonsense")
    assert len(room.line.of(Fault)) == 10 + 2


def test_large_flashes_are_not_sent_to_a_guest(room: Room) -> None:
    """White squares on grey five times a second: more than three large flashes."""
    for number in range(3):
        proposal = room.propose(number=number)
        white = np.full_like(proposal.frames, 220)
        room.give(proposal.model_copy(update={"proposal": number + 10, "frames": white}))
    for _ in range(6):
        answer, frames = room.ask(say="next")
        for image, frame in zip(answer.get("images", ()), frames, strict=True):
            room.show(image["presentation"], frame)
    refused = [f for f in room.line.of(Fault) if f.what == "frame refused"]
    assert refused
    assert "flashes in a second" in refused[0].detail


def test_a_guest_that_is_started_again_gets_what_was_not_shown(room: Room) -> None:
    room.propose()
    _, frames = room.ask(say="next")
    room.show(0, frames[0])
    room.guest, room.pair = "g2", {}
    assert "say hello first" in room.ask(say="next")[0]["error"]
    room.pair = {}
    room.hello()
    assert [f.what for f in room.line.of(Fault)] == ["guest request refused", "trial cut short"]
    assert room.line.of(TrialIntent)[-1].slots == (1, 2, 3)
    runs = [p.run for p in room.line.of(ClockSample)]
    assert len(set(runs)) == 2
    assert runs == sorted(runs)


def test_a_silent_guest_is_a_fault_said_once(room: Room) -> None:
    for _ in range(3):
        room.clock.advance_ns(4_000 * MS)
        room.rig.watch()
    assert [f.what for f in room.line.of(Fault)] == ["guest silent"]


def test_images_faster_than_the_flicker_limit_end_the_session(room: Room) -> None:
    room.propose()
    _, frames = room.ask(say="next")
    start = room.now()
    room.show(0, frames[0], offset_ns=start + 10 * MS)
    room.show(1, frames[1], onset_ns=start + 20 * MS, offset_ns=start + 120 * MS)
    assert [f.what for f in room.line.of(Fault)] == ["flicker limit"]
    assert "flicker" in room.ask(say="next")[0]["stop"]


def test_the_end_of_the_last_phase_reaches_the_guest(room: Room) -> None:
    room.give(PhaseEnded(phase=0, reason="done", last=True))
    assert "done" in room.ask(say="next")[0]["stop"]
    assert room.rig.told_end
    room.rig.close(room.rig.ended or "")
    assert len(room.line.of(StopRequested)) == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=200), st.text(max_size=50).map(str.encode)), max_size=3))
def test_nothing_on_the_wire_raises_anything_but_bad_request(frames: list[bytes]) -> None:
    try:
        parse_request(frames)
    except BadRequest:
        return
    raise AssertionError("random bytes were taken for a request")


def test_a_deeply_nested_request_is_refused() -> None:
    with pytest.raises(BadRequest):
        parse_request([b"[" * 50_000])
    good = {"say": "hello", "guest": "g", "protocol": 1, "program": "p", "refresh_hz": 60}
    assert isinstance(parse_request([json.dumps(good).encode()]), Hello)


# --- the documented client, with a real window, against the animal ---------------------------------------------------


def test_the_client_is_about_thirty_lines() -> None:
    lines = (ROOT / "docs" / "examples" / "guest_client.py").read_text().splitlines()
    start = lines.index("class Stimloop:")
    assert sum(bool(line.strip()) for line in lines[start:]) <= 30


@pytest.mark.display
@pytest.mark.timeout(400)
def test_a_session_with_the_documented_guest(tmp_path: Path, private_screen: str) -> None:
    raw = yaml.safe_load((ROOT / "configs" / "guest.yaml").read_text())
    raw["guest"]["port"] = free_port(2)
    raw["sources"][0]["port"] = free_port(2)
    raw["display"].update(size_px=[400, 300], width_cm=20)
    raw["phases"] = [{"agent": "present", "images": ["natural"], "count": 4, "repeats": 3, "blanks": 1}]
    raw["animal"]["neurons"] = 4
    config = tmp_path / "guest.yaml"
    config.write_text(yaml.safe_dump(raw))
    script = [sys.executable, str(ROOT / "docs" / "examples" / "guest_psychopy.py")]
    with (tmp_path / "guest.log").open("wb") as log:
        guest = subprocess.Popen([*script, f"tcp://127.0.0.1:{raw['guest']['port']}"], stdout=log, stderr=log)
    try:
        command = [*STIMLOOP, "demo", "--config", str(config), "--sessions", str(tmp_path / "sessions")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        output = done.stdout + done.stderr
        said = (tmp_path / "guest.log").read_text()
        assert done.returncode == 0, output + said
        assert guest.wait(60) == 0, said
    finally:
        if guest.poll() is None:
            guest.kill()
            guest.wait()
    (folder,) = [p for p in (tmp_path / "sessions").iterdir() if (p / "session.journal").exists()]
    documents = [e.document for e in read_all(folder / "session.journal")]
    assert isinstance(documents[-1], SessionStop)
    assert any(isinstance(d, ProcessStarted) and d.notes.get("rig") == "guest" for d in documents)
    shown = [d for d in documents if isinstance(d, Presented)]
    responses = {d.presentation: d for d in documents if isinstance(d, Response)}
    assert len(shown) >= 15
    # The guest is an ordinary process on a busy computer: it states how well it knows its flips, and mostly it does.
    assert all(p.flip_uncertainty_ns > 0 for p in shown)
    assert sum(p.complete and p.flip_uncertainty_ns < 5 * MS for p in shown) >= 0.8 * len(shown)
    assert set(responses) == {p.presentation for p in shown}
    usable = [r.usable and r.onset_source == "photodiode" for r in responses.values()]
    assert np.mean(usable) > 0.9, [r.reason for r in responses.values()]
    assert children_of(tmp_path) == []
