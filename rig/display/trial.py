"""One trial: which state may follow which, and which presentations make up the next trial.

Pure: no screen, socket or clock. `rig.display.loop` drives it and does what it says. The table refuses an event that a
state does not allow before anything changes; the planner turns Proposals into trials and numbers them, and, fed with a
log after a restart, knows what is left to show.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from rig.messages import (
    Presented,
    Proposal,
    Response,
    Role,
    TrialIntent,
)
from rig.shown_again import ShownAgain
from stimuli.spec import Blank, LatentImage, Stimulus


class State(Enum):
    """Where the rig is."""

    WAITING = "background; no trial planned"
    PREPARING = "background; frames of the next trial go into textures"
    READY = "background; the next trial waits for its time"
    IMAGE_ON = "an image is on the screen"
    IMAGE_OFF = "background between or after the images of a trial"
    LAST_IMAGE = "an image is on the screen and nothing will follow it"
    STOPPING = "no further image"
    STOPPED = "background is on the screen for good"
    LOST = "the window is gone"


class Event(Enum):
    """What happens to it."""

    PLANNED = "a trial was planned"
    PREPARED = "all its frames are in textures"
    ONSET = "a flip showed an image"
    OFFSET = "a flip removed the image and showed the background"
    TRIAL_OVER = "the trial's last image is gone"
    STOP = "no further image is wanted"
    CLEARED = "a flip showed the background after the stop"
    LOST = "the window failed"


TABLE: dict[tuple[State, Event], State] = {
    (State.WAITING, Event.PLANNED): State.PREPARING,
    (State.PREPARING, Event.PREPARED): State.READY,
    (State.READY, Event.ONSET): State.IMAGE_ON,
    (State.IMAGE_ON, Event.ONSET): State.IMAGE_ON,  # off_s = 0: one image replaces the other
    (State.IMAGE_ON, Event.OFFSET): State.IMAGE_OFF,
    (State.IMAGE_OFF, Event.ONSET): State.IMAGE_ON,
    (State.IMAGE_OFF, Event.TRIAL_OVER): State.WAITING,
    (State.WAITING, Event.STOP): State.STOPPING,
    (State.PREPARING, Event.STOP): State.STOPPING,
    (State.READY, Event.STOP): State.STOPPING,
    (State.IMAGE_OFF, Event.STOP): State.STOPPING,
    (State.IMAGE_ON, Event.STOP): State.LAST_IMAGE,
    (State.LAST_IMAGE, Event.OFFSET): State.STOPPING,
    (State.STOPPING, Event.CLEARED): State.STOPPED,
    **{(s, Event.LOST): State.LOST for s in State if s not in (State.STOPPED, State.LOST)},
}


class IllegalEvent(RuntimeError):
    """An event that the present state does not allow: a mistake in the program, never in the data."""


def after(state: State, event: Event) -> State:
    """Return the state that follows; raises IllegalEvent and changes nothing where the table has no entry."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise IllegalEvent(f"{event.name} ({event.value}) while {state.name} ({state.value})") from None


# --- what is shown next -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Showing:
    """One planned presentation."""

    presentation: int
    position: int
    proposal: Proposal
    slot: int
    """Index into the proposal's plan, -1 for a fallback."""
    role: Role
    stimulus: Stimulus
    previous: str | None
    """Identity of the image before it in the trial."""


@dataclass(frozen=True)
class TrialPlan:
    """The presentations of one trial, in order."""

    trial: int
    images: tuple[Showing, ...]

    @property
    def presentations(self) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(s.presentation for s in self.images)


Chosen = tuple[Proposal, int, Role, Stimulus]  # proposal, slot of it (-1: none), role, image


class BadProposal(ValueError):
    """A proposal that points at stimuli or frames it does not have; the message says where."""


def check_proposal(proposal: Proposal, frame_shape: tuple[int, int]) -> None:
    """Raise BadProposal unless all indices of `proposal` hold and its frames are (height, width) = `frame_shape`.

    `frame_shape` is that of the proposal's place.
    """
    where, count = f"proposal {proposal.proposal} of {proposal.agent}", len(proposal.stimuli)
    for k, slot in enumerate(proposal.plan):
        if slot.stimulus >= count:
            raise BadProposal(f"{where}: slot {k} names stimulus {slot.stimulus} of {count}")
    if any(not 0 <= k < count for k in proposal.fallback):
        raise BadProposal(f"{where}: fallback {proposal.fallback} names a stimulus outside 0..{count - 1}")
    if proposal.tail_from > len(proposal.plan):
        raise BadProposal(f"{where}: tail_from {proposal.tail_from} lies after its {len(proposal.plan)} slots")
    rows = {s.spec.row for s in proposal.stimuli if isinstance(s.spec, LatentImage)}
    if rows and max(rows) >= len(proposal.frames):
        raise BadProposal(f"{where}: a stimulus names frame {max(rows)} of {len(proposal.frames)}")
    if rows and proposal.frames.shape[1:] != (*frame_shape, 3):
        raise BadProposal(
            f"{where}: frames of shape {proposal.frames.shape[1:]}, the image square is {(*frame_shape, 3)}"
        )


class Planner:
    """Turns proposals into numbered trials.

    Parameters
    ----------
    images_per_trial
        Presentations in one trial; a trial is shorter where no more are planned.
    repeats
        How often a slot without a usable response is shown again.
    """

    def __init__(self, images_per_trial: int, repeats: int) -> None:
        self._size = images_per_trial
        self._again = ShownAgain(repeats)
        self._under_way: dict[tuple[int, int], set[int]] = {}  # presentations of each slot without a response
        self._proposals: dict[int, Proposal] = {}
        self._slots: dict[tuple[int, int], None] = {}  # ordered: (proposal, slot) still to be shown
        self._repeats: set[tuple[int, int]] = set()  # of these, the ones that are shown again
        self._latest = -1
        self._fallback_at = 0
        self._trial = 0
        self._presentation = 0
        self._open: set[int] = set()

    # --- what comes in

    def add(self, proposal: Proposal) -> bool:
        """Queue the slots of a proposal that passed `check_proposal`; False if it was there before."""
        if proposal.proposal <= self._latest:
            return False
        self._latest, self._fallback_at = proposal.proposal, 0
        self._proposals[proposal.proposal] = proposal
        self._slots.update({(proposal.proposal, k): None for k in range(len(proposal.plan))})
        self._again.planned(proposal.proposal, len(proposal.plan))
        self._forget()
        return True

    def answered(self, response: Response) -> None:
        """Take a response: a slot without a usable one is planned again, inside its proposal."""
        key, verdict = (response.proposal, response.slot), self._again.take(response)
        under_way = self._under_way.get(key, set())
        under_way.discard(response.presentation)
        if verdict == "again" and not under_way:  # by a restart a slot may be shown twice: the other one decides then
            self._show_again(key, response.presentation)
        elif verdict == "final":
            self._slots.pop(key, None)
            self._repeats.discard(key)
            self._forget()

    def _show_again(self, key: tuple[int, int], presentation: int) -> None:
        """Plan a slot again, at a place drawn among the images that come next, as many as make a trial.

        So that it comes soon and after other images, not with all other repeats or alone. The draw depends on what was
        lost, by numbers that are in the log.
        """
        keys = [k for k in self._slots if k != key]
        rng = np.random.default_rng([*key, presentation])
        at = int(rng.integers(min(len(keys), self._size - 1) + 1))
        self._slots = dict.fromkeys([*keys[:at], key, *keys[at:]])
        self._repeats.add(key)

    def intended(self, intent: TrialIntent) -> None:
        """Take a trial that an earlier start of this process announced: its numbers are never used again."""
        self._trial = max(self._trial, intent.trial + 1)
        self._presentation = max(self._presentation, max(intent.presentations, default=-1) + 1)
        self._open.update(intent.presentations)

    def presented(self, presented: Presented) -> None:
        """Take a presentation that an earlier start of this process finished: its slot is done."""
        key = (presented.proposal, presented.slot)
        self._slots.pop(key, None)
        self._repeats.discard(key)
        if self._again.waits(presented.proposal):
            self._under_way.setdefault(key, set()).add(presented.presentation)
        self._open.discard(presented.presentation)

    def put_back(self, images: Sequence[Showing]) -> None:
        """Plan these again, before everything else: they were announced and not shown. Fallbacks are not repeated."""
        first = {(s.proposal.proposal, s.slot): None for s in images if s.slot >= 0}
        for s in images:
            self._under_way.get((s.proposal.proposal, s.slot), set()).discard(s.presentation)
        self._proposals.update({s.proposal.proposal: s.proposal for s in images if s.slot >= 0})
        self._slots = {**first, **self._slots}

    def never_presented(self) -> tuple[int, ...]:
        """Return, once, the numbers that were announced before a restart and never presented."""
        numbers, self._open = tuple(sorted(self._open)), set()
        return numbers

    # --- what goes out

    @property
    def waiting(self) -> int:
        """Number of slots still to be shown."""
        return len(self._slots)

    @property
    def latest(self) -> Proposal | None:
        """The last proposal, None if there never was one."""
        return self._proposals.get(self._latest)

    def next_trial(self) -> TrialPlan | None:
        """Return the next trial from what was proposed, None if nothing is left; a trial may span proposals.

        A trial that shows an image again and would be shorter than others is filled up.
        """
        keys = list(self._slots)[: self._size]
        chosen: list[Chosen] = []
        for number, k in keys:
            proposal = self._proposals[number]
            slot = proposal.plan[k]
            chosen.append((proposal, k, slot.role, proposal.stimuli[slot.stimulus]))
            del self._slots[number, k]
        if self._repeats.intersection(keys) and len(chosen) < self._size:
            chosen = self._filled(chosen)
        self._repeats.difference_update(keys)
        return self._number(chosen)

    def _filled(self, chosen: list[Chosen]) -> list[Chosen]:
        """Put other images of the same proposal around those of a short trial, of which no agent is told.

        The first is always one of these: an image after a long background meets a less adapted eye than the others.
        """
        proposal = chosen[-1][0]
        again = {stimulus.id for _, _, _, stimulus in chosen}
        declared = proposal.fallback or tuple(dict.fromkeys(slot.stimulus for slot in proposal.plan))
        pool = [proposal.stimuli[k] for k in declared]
        others = [s for s in pool if s.id not in again]
        pool = [s for s in others if not isinstance(s.spec, Blank)] or others or pool
        rng = np.random.default_rng([proposal.proposal, self._trial])
        order = rng.permutation(len(pool))
        places = set((1 + rng.choice(self._size - 1, len(chosen), replace=False)).tolist())
        planned, out = iter(chosen), list[Chosen]()
        for position in range(self._size):
            fill = pool[order[position % len(pool)]]
            out.append(next(planned) if position in places else (proposal, -1, "fallback", fill))
        return out

    def fallback_trial(self) -> TrialPlan | None:
        """Return a trial of the last proposal's fallback stimuli, each in turn; None if final or without any."""
        proposal = self.latest
        if proposal is None or proposal.final or not proposal.fallback:
            return None
        # Not longer than one round: a proposal that comes meanwhile must not wait for a whole trial of repeats.
        count = min(self._size, len(proposal.fallback))
        chosen: list[Chosen] = []
        for k in range(count):
            index = proposal.fallback[(self._fallback_at + k) % len(proposal.fallback)]
            chosen.append((proposal, -1, "fallback", proposal.stimuli[index]))
        self._fallback_at += count
        return self._number(chosen)

    def _number(self, chosen: list[Chosen]) -> TrialPlan | None:
        if not chosen:
            return None
        images, previous = [], None
        for position, (proposal, slot, role, stimulus) in enumerate(chosen):
            number = self._presentation + position
            images.append(Showing(number, position, proposal, slot, role, stimulus, previous))
            if slot >= 0:
                self._under_way.setdefault((proposal.proposal, slot), set()).add(number)
            previous = stimulus.id
        plan = TrialPlan(self._trial, tuple(images))
        self._trial += 1
        self._presentation += len(images)
        self._forget()
        return plan

    def _forget(self) -> None:
        # Frames of a proposal are megabytes: keep only what may still be shown and what may be fallen back to.
        needed = {number for number, _ in self._slots} | {self._latest}
        for number in [n for n in self._proposals if n not in needed and not self._again.waits(n)]:
            del self._proposals[number]
        for key in [k for k in self._under_way if k[0] not in self._proposals]:
            del self._under_way[key]
