"""The shown-again rule: rig and model feed it the same responses, so kills and lost data change no decision."""

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.server import ModelServer
from rig.display.trial import Planner, TrialPlan
from rig.encoding import encode
from rig.messages import (
    Document,
    Entry,
    Envelope,
    ModelUpdated,
    PhaseEnded,
    Presented,
    Proposal,
    Response,
    SessionStart,
    TrialIntent,
    WorkDone,
)
from rig.shown_again import ShownAgain
from tests.test_server import MAIN, TAIL, Recording
from tests.test_trial import intent_of, presented_of, proposal

PROPOSALS, REPEATS = 3, 2


def response(presented: Presented, usable: bool = True, curable: bool = True) -> Response:
    """Return what a noise-free unit answers: the rate depends on the image alone."""
    rate = np.array([float(sum(map(ord, presented.stimulus_id)))])
    return Response(
        presentation=presented.presentation, proposal=presented.proposal, slot=presented.slot, role=presented.role,
        stimulus_id=presented.stimulus_id, source="probe", usable=usable, reason="" if usable else "lost",
        curable=curable, onset_source="none", onset_sample=None, onset_host_ns=None, onset_uncertainty_ns=None,
        onset_host_uncertainty_ns=None, flip_to_edge_ns=None, coverage=1.0, units=("a",), count=rate,
        baseline=rate * 0, rate_hz=rate,
    )  # fmt: skip


def shown(presentation: int, slot: int, proposal: int = 0) -> Presented:
    return Presented(
        presentation=presentation, trial=0, position_in_trial=0, proposal=proposal, slot=slot, role="candidate",
        stimulus_id=f"s{slot}", previous_stimulus_id=None, frame_sha256="", due_host_ns=0, onset_flip_host_ns=0,
        offset_flip_host_ns=0, flips_host_ns=np.zeros(2, np.int64), late_flips=0, dropped_frames=0, image_row_px=0,
        patch_row_px=0, complete=True,
    )  # fmt: skip


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repeats", "responses", "verdicts"),
    [
        (2, [(0, True), (1, True), (2, False)], ["final", "known", "known"]),
        (2, [(0, False), (1, False), (2, False), (3, True)], ["again", "again", "final", "known"]),
        (2, [(0, False), (0, False), (1, True)], ["again", "known", "final"]),
        (0, [(0, False), (1, True)], ["final", "known"]),
        (1, [(3, False), (2, True)], ["again", "final"]),
    ],
)
def test_the_first_usable_or_the_last_unusable_response_is_final(
    repeats: int, responses: list[tuple[int, bool]], verdicts: list[str]
) -> None:
    rule = ShownAgain(repeats)
    rule.planned(0, 1)
    assert [rule.take(response(shown(number, 0), usable)) for number, usable in responses] == verdicts
    assert not rule.waits(0)


def test_what_a_repeat_cannot_cure_is_final_at_once() -> None:
    rule = ShownAgain(2)
    rule.planned(0, 2)
    assert rule.take(response(shown(0, 0), usable=False, curable=False)) == "final"
    assert rule.waits(0)
    assert rule.take(response(shown(1, -1), usable=False)) == "known"  # a fallback
    assert rule.take(response(shown(2, 0, proposal=7), usable=False)) == "known"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 20), st.booleans()), max_size=60))
def test_a_restored_rule_goes_on_as_one_that_never_stopped(rows: list[tuple[int, int, int, bool]]) -> None:
    one, stopped = ShownAgain(1), ShownAgain(1)
    for k in range(3):
        one.planned(k, 3)
        stopped.planned(k, 3)
    for k, slot, number, usable in rows:
        answer = response(shown(number, slot, k), usable)
        assert one.take(answer) == stopped.take(answer)
        state = json.loads(json.dumps(stopped.state()))
        stopped = ShownAgain(1)
        stopped.restore(state)


# --- planner and fold together ----------------------------------------------------------------------------------------


def start() -> SessionStart:
    return SessionStart(
        simulated=True, session="s", config_yaml="", config={}, versions={}, commit=None, dirty=None, start_host_ns=0,
        start_utc_ns=0,
    )  # fmt: skip


@dataclass
class World:
    """A session without clocks: a journal, a planner that shows, a model that folds; any of them may be killed."""

    per_trial: int = 2
    log: list[Entry] = field(default_factory=list)
    emitted: set[tuple[int, int]] = field(default_factory=set)
    unusable: dict[tuple[int, int], int] = field(default_factory=dict)  # of each slot: showings without a response
    waiting: list[Presented] = field(default_factory=list)  # presented, not answered
    late: list[Presented] = field(default_factory=list)  # of a killed rig, not journalled yet
    saved: tuple[dict[str, Any], int] | None = None  # the model's state, and how far it had read
    plan: TrialPlan | None = None
    position: int = 0  # of the image in it that is on the screen

    def __post_init__(self) -> None:
        self.put(start())
        self.new_rig()
        self.new_model()

    def put(self, document: Document, cause: tuple[int, int] | None = None) -> None:
        if cause is not None and cause in self.emitted:
            return
        self.emitted |= {cause} if cause is not None else set()
        n = len(self.log) + 1
        envelope = Envelope(seq=n, receipt_host_ns=n, sender="x", process="x", sender_seq=n)
        self.log.append(Entry(envelope, document))

    # --- the rig

    def new_rig(self, late: bool = False) -> None:
        """Start a rig; what the one before had on the screen is lost, or journalled late."""
        if late and self.plan is not None:
            self.late.append(presented_of(self.plan, self.position))
        self.planner, self.rig_read = Planner(self.per_trial, REPEATS), 0
        self.plan, self.position = None, 0
        self.own: set[int] = set()
        self.rig_reads()

    def rig_reads(self) -> None:
        for entry in self.log[self.rig_read :]:
            document = entry.document
            if isinstance(document, Proposal):
                self.planner.add(document)
            elif isinstance(document, Response):
                self.planner.answered(document)
            elif isinstance(document, TrialIntent) and document.presentations[0] not in self.own:
                self.planner.intended(document)
            elif isinstance(document, Presented) and document.presentation not in self.own:
                self.planner.presented(document)
        self.rig_read = len(self.log)

    def shows(self) -> bool:
        """Show the next image; False if there is none."""
        if self.plan is None:
            self.rig_reads()
            self.plan, self.position = self.planner.next_trial(), 0
            if self.plan is None:
                return False
            self.own |= set(self.plan.presentations)
            self.put(intent_of(self.plan))
            return True
        self.commit(presented_of(self.plan, self.position))
        self.position += 1
        if self.position == len(self.plan.images):
            self.plan = None
        return True

    def commit(self, presented: Presented) -> None:
        self.put(presented)
        self.waiting.append(presented)

    def comes_late(self) -> None:
        if self.late:
            self.commit(self.late.pop())

    # --- the recorder

    def answers(self, lost: bool) -> bool:
        """Answer the oldest presentation; False if there is none."""
        if not self.waiting:
            return False
        presented = self.waiting.pop(0)
        key = (presented.proposal, presented.slot)
        lost = lost and self.unusable.get(key, 0) < REPEATS
        self.unusable[key] = self.unusable.get(key, 0) + lost
        self.put(response(presented, not lost))
        return True

    # --- the model

    def new_model(self) -> None:
        self.model, self.model_read = ModelServer(lambda *_: Recording(last=PROPOSALS - 1), 1, REPEATS), 0

    def save(self) -> None:
        self.saved = copy.deepcopy(self.model.state()), self.model_read

    def resume(self) -> None:
        """Kill the model; another one goes on from what was saved."""
        self.new_model()
        if self.saved is not None:
            self.model.restore(copy.deepcopy(self.saved[0]))
            self.model_read = self.saved[1]

    def model_reads(self, entries: int = 10**6) -> bool:
        new = self.log[self.model_read : self.model_read + entries]
        for entry in new:
            if isinstance(entry.document, SessionStart | Response | WorkDone):
                for index, document in enumerate(self.model.handle(entry)):
                    self.put(document, (entry.envelope.seq, index))
        self.model_read += len(new)
        return bool(new)

    def works(self) -> bool:
        if self.model.work is None:
            return False
        while not self.model.work.step():
            pass
        before = len(self.log)
        self.put(self.model.work_done(), self.model.work_cause)
        return len(self.log) > before

    # --- all

    def act(self, action: str) -> None:
        acts: dict[str, Any] = {
            "read": lambda: self.model_reads(1), "work": self.works, "show": self.shows,
            "answer": lambda: self.answers(False), "lose": lambda: self.answers(True),
            "save": self.save, "resume model": self.resume,
            "kill rig": self.new_rig, "kill rig, late": lambda: self.new_rig(late=True), "kill model": self.new_model,
            "late": self.comes_late,
        }  # fmt: skip
        acts[action]()

    def run_out(self) -> "World":
        """Go on without disturbance to the end."""
        for _ in range(2000):
            going = [self.model_reads(), self.works(), self.shows(), self.answers(False)]
            if not any(going) and not self.model_reads():
                break
        return self

    def of(self, kind: type) -> list[Any]:
        return [e.document for e in self.log if isinstance(e.document, kind)]

    def decisions(self) -> list[list[bytes]]:
        return [encode(d) for kind in (Proposal, ModelUpdated, PhaseEnded) for d in self.of(kind)]


UNDISTURBED = World().run_out().decisions()
# Often enough to get on with the session, and for each kind of trouble some ten times in it.
ACTIONS = {
    "read": 8, "show": 8, "answer": 5, "work": 3, "lose": 2, "kill rig": 1, "kill rig, late": 1, "late": 1,
    "kill model": 0.2, "save": 1, "resume model": 1,
}  # fmt: skip


def test_an_undisturbed_session_ends_and_shows_each_slot_once() -> None:
    world = World().run_out()
    assert len(world.of(PhaseEnded)) == 1
    keys = [(p.proposal, p.slot) for p in world.of(Presented)]
    assert sorted(keys) == [(p, s) for p in range(PROPOSALS) for s in range(MAIN + TAIL)]


@settings(max_examples=400, deadline=None)
@example(per_trial=1, seed=24, steps=48)  # a killed rig's last word came after its successor's was answered
@given(st.integers(1, 7), st.integers(0, 2**32), st.integers(0, 300))
def test_kills_and_lost_data_change_no_decision(per_trial: int, seed: int, steps: int) -> None:
    world = World(per_trial)
    weights = np.array(list(ACTIONS.values()))
    actions = np.random.default_rng(seed).choice(list(ACTIONS), steps, p=weights / weights.sum()).tolist()
    for action in actions:
        world.act(action)
    world.run_out()
    assert world.decisions() == UNDISTURBED
    responses = [r for r in world.of(Response) if r.slot >= 0]
    usable = {(r.proposal, r.slot) for r in responses if r.usable}
    assert usable == {(p, s) for p in range(PROPOSALS) for s in range(MAIN + TAIL)}
    # An image is shown again only for a lost response, or where a killed rig's last word came after its successor's.
    shown_twice = len(responses) - len(usable) - sum(not r.usable for r in responses)
    assert shown_twice <= actions.count("kill rig, late")


def test_a_repeat_comes_inside_its_proposal_before_its_tail() -> None:
    world = World(per_trial=1)
    world.model_reads()
    world.works()
    world.model_reads()
    for _ in range(2 * (MAIN + 1)):  # the main part, and one of the tail
        world.shows()
    world.answers(lost=True)
    for _ in range(MAIN):
        world.answers(lost=False)
    for _ in range(4):
        world.shows()
    order = [p.slot for p in world.of(Presented)]
    assert order == [0, 1, 2, 3, 0, 4]


def test_only_proposals_of_which_something_may_still_be_shown_are_kept() -> None:
    planner = Planner(3, 2)
    for k in range(5):
        planner.add(proposal(k))
        plan = planner.next_trial()
        assert plan is not None
        for slot in range(3):
            if (k, slot) != (2, 1):
                planner.answered(response(presented_of(plan, slot)))
            else:
                lost = presented_of(plan, slot)
    assert list(planner._proposals) == [2, 4]  # the newest may be fallen back to
    planner.answered(response(lost, usable=False))
    again = planner.next_trial()
    assert again is not None
    ((position, image),) = ((k, s) for k, s in enumerate(again.images) if s.slot >= 0)
    assert (image.proposal.proposal, image.slot) == (2, 1)
    planner.answered(response(presented_of(again, position)))
    assert list(planner._proposals) == [4]


def trials(world: World) -> list[list[Presented]]:
    of: dict[int, list[Presented]] = {}
    for presented in world.of(Presented):
        of.setdefault(presented.trial, []).append(presented)
    return list(of.values())


@given(st.integers(2, 7), st.integers(0, 2**32))
def test_a_repeat_comes_in_a_trial_like_others_and_never_first_before_fillers(per_trial: int, seed: int) -> None:
    world, rng = World(per_trial), np.random.default_rng(seed)
    for _ in range(2000):
        if not any([world.model_reads(), world.works(), world.shows(), world.answers(bool(rng.random() < 0.3))]):
            break
    assert world.decisions() == UNDISTURBED
    seen: set[tuple[int, int]] = set()
    for trial in trials(world):
        keys = [(p.proposal, p.slot) for p in trial]
        stand_ins = [p for p in trial if p.slot < 0]
        assert all(p.role == "fallback" for p in stand_ins)
        if seen.intersection(k for k in keys if k[1] >= 0):
            assert len(trial) == per_trial
        if stand_ins:
            assert trial[0].slot < 0
            assert len(stand_ins) < per_trial
        seen.update(keys)


def test_repeats_are_mixed_among_what_comes_next_and_every_start_draws_the_same() -> None:
    def order(lost: tuple[int, ...]) -> list[int]:
        planner = Planner(10, 2)
        planner.add(proposal(0, slots=40))
        plan = planner.next_trial()
        assert plan is not None
        for position in lost:
            planner.answered(response(presented_of(plan, position), usable=False))
        following = planner.next_trial()
        assert following is not None
        assert len(following.images) == 10
        return [s.slot for s in following.images]

    assert order((3, 7)) == order((3, 7))
    places = {lost: order((lost,)).index(lost) for lost in range(10)}
    assert len(set(places.values())) > 4  # not all in one place, as the first or the last


def test_a_lone_repeat_is_shown_among_other_images_of_its_proposal() -> None:
    for fallback in ((2, 0), ()):
        planner = Planner(6, 2)
        planner.add(proposal(0, slots=4, fallback=fallback, final=True))
        plan = planner.next_trial()
        assert plan is not None
        planner.answered(response(presented_of(plan, 1), usable=False))
        again = planner.next_trial()
        assert again is not None
        assert [s.slot for s in again.images].count(1) == 1
        assert [s.slot for s in again.images].count(-1) == 5
        assert again.images[0].role == "fallback"
        others = {s.stimulus.id for s in again.images if s.slot < 0}
        assert others == ({"p0-2", "p0-0"} if fallback else {"p0-0", "p0-2", "p0-3"})
        assert planner.next_trial() is None
