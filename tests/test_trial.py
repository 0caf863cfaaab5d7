"""The transition table, the frame grid and the planner: pure, so everything is tried."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rig.clock import FakeClock
from rig.display.pacing import FrameGrid
from rig.display.trial import TABLE, BadProposal, Event, IllegalEvent, Planner, State, TrialPlan, after, check_proposal
from rig.messages import (
    Presented,
    Proposal,
    Role,
    Slot,
    TrialIntent,
)
from stimuli.spec import Blank, Grating, LatentImage, Stimulus


def proposal(
    number: int,
    slots: int = 3,
    fallback: tuple[int, ...] = (0, 1),
    latent_rows: tuple[int, ...] = (),
    stimulus: int = 0,
    frames: tuple[int, ...] = (0, 4, 6, 3),
    tail_from: int | None = None,
    final: bool = False,
) -> Proposal:
    """Return a proposal of `slots` gratings, every slot another one (or all `stimulus` where that is too large)."""
    stimuli = [
        Stimulus(id=f"p{number}-{k}", spec=Grating(orientation_deg=k, cycles_per_deg=1)) for k in range(max(slots, 2))
    ]
    stimuli += [Stimulus(id=f"l{r}", spec=LatentImage(generator="g", row=r)) for r in latent_rows]
    roles: list[Role] = ["candidate", "reference"]
    return Proposal(
        proposal=number,
        phase=0,
        agent="test",
        generation=number,
        model_version="v",
        stimuli=tuple(stimuli),
        plan=tuple(Slot(stimulus=stimulus or k, role=roles[k % 2]) for k in range(slots)),
        tail_from=slots if tail_from is None else tail_from,
        final=final,
        fallback=fallback,
        frames=np.zeros(frames, np.uint8),
        latents=np.zeros((len(latent_rows), 2), np.float32),
    )


def intent_of(plan: TrialPlan) -> TrialIntent:
    return TrialIntent(
        trial=plan.trial,
        presentations=plan.presentations,
        proposals=tuple(s.proposal.proposal for s in plan.images),
        slots=tuple(s.slot for s in plan.images),
        start_host_ns=0,
    )


def presented_of(plan: TrialPlan, k: int) -> Presented:
    s = plan.images[k]
    return Presented(
        presentation=s.presentation,
        trial=plan.trial,
        position_in_trial=s.position,
        proposal=s.proposal.proposal,
        slot=s.slot,
        role=s.role,
        stimulus_id=s.stimulus.id,
        previous_stimulus_id=s.previous,
        frame_sha256="",
        due_host_ns=0,
        onset_flip_host_ns=0,
        offset_flip_host_ns=0,
        flips_host_ns=np.zeros(2, np.int64),
        late_flips=0,
        dropped_frames=0,
        image_row_px=0,
        patch_row_px=0,
        complete=True,
    )


# --- table ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "event"), [(s, e) for s in State for e in Event if (s, e) not in TABLE])
def test_an_event_without_entry_is_refused(state: State, event: Event) -> None:
    with pytest.raises(IllegalEvent, match=event.name):
        after(state, event)


def test_every_state_is_reached_and_only_two_are_final() -> None:
    reached = {State.WAITING}
    while more := {to for (at, _), to in TABLE.items() if at in reached} - reached:
        reached |= more
    assert reached == set(State)
    assert {s for s in State if not any(at is s for at, _ in TABLE)} == {State.STOPPED, State.LOST}


def test_after_a_stop_no_path_leads_to_an_onset() -> None:
    reached = {to for (_, event), to in TABLE.items() if event is Event.STOP}
    while more := {to for (at, _), to in TABLE.items() if at in reached} - reached:
        reached |= more
    assert not any((s, Event.ONSET) in TABLE for s in reached)
    assert State.STOPPED in reached


# --- grid -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refresh_hz", [59.94, 60.0, 85.0, 143.981])
def test_10000_trials_without_drift(refresh_hz: float) -> None:
    clock, rng = FakeClock(), np.random.default_rng(1)
    start = clock.now_ns()
    grid = FrameGrid(refresh_hz, start, follow=False)
    frames_per_trial = 10 * 12 + 18
    period = Fraction(10**12, round(refresh_hz * 1000))
    jitter = rng.integers(0, grid.period_ns // 3, 10_000).tolist()  # every trial's last flip comes that late
    for trial in range(10_000):
        grid.frame += frames_per_trial - 1
        clock.sleep_until_ns(grid.due_ns())
        clock.advance_ns(jitter[trial])
        assert not grid.flipped(clock.now_ns()).dropped
        exact = start + (trial + 1) * frames_per_trial * period
        assert 0 <= exact - grid.due_ns() < 1


@pytest.mark.parametrize(
    ("late_periods", "follow", "late", "dropped"),
    [
        (-0.1, False, False, 0),
        (0.0, False, False, 0),
        (0.49, False, False, 0),
        (0.51, False, True, 0),
        (0.99, False, True, 0),
        (1.01, False, True, 1),
        (3.2, False, True, 3),
        (-0.2, True, False, 0),
        (0.49, True, False, 0),
        (0.51, True, True, 1),
        (1.02, True, True, 1),
        (2.9, True, True, 3),
    ],
)
def test_a_flip_is_judged_by_its_stamp(late_periods: float, follow: bool, late: bool, dropped: int) -> None:
    grid = FrameGrid(60, 0, follow)
    grid.frame = 100
    due = grid.due_ns()
    verdict = grid.flipped(due + round(late_periods * grid.period_ns))
    assert (verdict.late, verdict.dropped) == (late, dropped)
    assert grid.frame == 101 + dropped


def test_a_missed_frame_moves_what_follows_by_whole_periods() -> None:
    grid = FrameGrid(50, 0, follow=False)
    grid.flipped(45_000_000)  # due at 0, periods of 20 ms: two passed without a flip
    assert grid.due_ns() == 60_000_000


def test_with_vsync_the_grid_follows_a_screen_of_another_rate() -> None:
    grid = FrameGrid(60, 0, follow=True)
    true_period = 1e9 / 59.8  # 0.3 % slower than the config says
    verdicts = [grid.flipped(round(4e6 + k * true_period)) for k in range(5000)]
    assert not any(v.late or v.dropped for v in verdicts)
    assert abs(grid.due_ns() - (4e6 + 5000 * true_period)) < 0.03 * true_period


# --- planner ----------------------------------------------------------------------------------------------------------


def test_trials_are_numbered_through_and_may_span_proposals() -> None:
    planner = Planner(4, 2)
    assert planner.next_trial() is None
    assert planner.fallback_trial() is None
    planner.add(proposal(0, slots=5))
    planner.add(proposal(1, slots=2))
    first, second, none = planner.next_trial(), planner.next_trial(), planner.next_trial()
    assert first is not None
    assert second is not None
    assert none is None
    assert [s.stimulus.id for s in first.images] == ["p0-0", "p0-1", "p0-2", "p0-3"]
    assert [s.stimulus.id for s in second.images] == ["p0-4", "p1-0", "p1-1"]
    assert [s.previous for s in second.images] == [None, "p0-4", "p1-0"]
    assert [s.position for s in second.images] == [0, 1, 2]
    assert [s.slot for s in second.images] == [4, 0, 1]
    assert [s.role for s in first.images] == ["candidate", "reference", "candidate", "reference"]
    assert (first.presentations, second.presentations) == ((0, 1, 2, 3), (4, 5, 6))
    assert (first.trial, second.trial) == (0, 1)


def test_fallbacks_go_round_and_are_no_slots() -> None:
    planner = Planner(2, 2)
    planner.add(proposal(3, slots=3, fallback=(2, 0, 1)))
    while planner.next_trial() is not None:
        pass
    plans = [planner.fallback_trial() for _ in range(3)]
    shown = [[s.stimulus.id for s in p.images] for p in plans if p is not None]
    assert shown == [["p3-2", "p3-0"], ["p3-1", "p3-2"], ["p3-0", "p3-1"]]
    assert all(s.slot == -1 and s.role == "fallback" for p in plans if p is not None for s in p.images)
    assert plans[-1] is not None
    assert plans[-1].presentations == (7, 8)


@pytest.mark.parametrize("last", [proposal(0, final=True), proposal(0, fallback=())])
def test_after_a_final_proposal_or_without_fallback_there_is_nothing(last: Proposal) -> None:
    planner = Planner(3, 2)
    planner.add(last)
    assert planner.next_trial() is not None
    assert planner.fallback_trial() is None


def test_a_proposal_that_comes_twice_is_shown_once() -> None:
    planner = Planner(10, 2)
    assert planner.add(proposal(0))
    assert not planner.add(proposal(0))
    assert planner.waiting == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (proposal(0, stimulus=7), "slot 0 names stimulus 7 of 3"),
        (proposal(0, fallback=(0, 3)), "fallback"),
        (proposal(0, fallback=(-1,)), "fallback"),
        (proposal(0, tail_from=4), "tail_from 4"),
        (proposal(0, latent_rows=(0, 2), frames=(2, 4, 6, 3)), "frame 2 of 2"),
        (proposal(0, latent_rows=(0, 1), frames=(2, 6, 4, 3)), "the image square is"),
    ],
)
def test_a_proposal_that_points_nowhere_is_refused(bad: Proposal, message: str) -> None:
    with pytest.raises(BadProposal, match=message):
        check_proposal(bad, (4, 6))


def test_a_sound_proposal_passes() -> None:
    check_proposal(proposal(0, latent_rows=(0, 1), frames=(2, 4, 6, 3)), (4, 6))
    blank = proposal(0).model_copy(update={"stimuli": (Stimulus(id="b", spec=Blank()),) * 3})
    check_proposal(blank, (100, 100))  # no latent stimulus: its frames are not looked at


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 6), st.integers(0, 40), st.booleans())
def test_after_a_restart_every_slot_is_shown_once_and_no_number_twice(
    sizes: list[int], per_trial: int, killed_after: int, fall_back: bool
) -> None:
    """Kill the rig after any presentation; a new planner, fed with the log, shows exactly the rest."""
    proposals = [proposal(k, slots=n) for k, n in enumerate(sizes)]
    before = Planner(per_trial, 2)
    log: list[TrialIntent | Presented] = []
    for p in proposals:
        before.add(p)
    shown: list[tuple[int, int]] = []
    numbers: list[int] = []
    while len(shown) < killed_after:
        plan = before.next_trial()
        if plan is None:
            plan = before.fallback_trial() if fall_back else None
            fall_back = False
        if plan is None:
            break
        log.append(intent_of(plan))
        for k, image in enumerate(plan.images):
            if len(shown) == killed_after:
                break
            log.append(presented_of(plan, k))
            shown.append((image.proposal.proposal, image.slot))
    numbers = [n for d in log if isinstance(d, TrialIntent) for n in d.presentations]
    after_restart = Planner(per_trial, 2)
    for p in proposals:
        after_restart.add(p)
    for document in log:
        if isinstance(document, TrialIntent):
            after_restart.intended(document)
        else:
            after_restart.presented(document)
    assert set(after_restart.never_presented()) == set(numbers) - {
        d.presentation for d in log if isinstance(d, Presented)
    }
    assert after_restart.never_presented() == ()
    while (plan := after_restart.next_trial()) is not None:
        numbers += plan.presentations
        shown += [(s.proposal.proposal, s.slot) for s in plan.images]
    slots = [key for key in shown if key[1] >= 0]
    assert sorted(slots) == [(k, s) for k, n in enumerate(sizes) for s in range(n)]
    assert len(set(numbers)) == len(numbers)
