"""What is shown next, whoever displays: proposals from the log, as trials, with their frames made and named.

Shared by our own rig (`rig.display.loop`) and a guest's (`rig.display.guest_rig`). It shows nothing and waits for
nothing.
"""

from typing import Protocol

from rig.clock import Clock
from rig.display.frames import FrameMaker, Made
from rig.display.places import Places
from rig.display.trial import BadProposal, Planner, Showing, TrialPlan, check_proposal
from rig.messages import (
    Document,
    Entry,
    Fault,
    PhaseEnded,
    Presented,
    ProcessStarted,
    Proposal,
    StimulusPrepared,
    TrialIntent,
)

# A rig's own TrialIntent and Presented tell a restarted one what is done; its ProcessStarted, that it has read it all.
WANTS = frozenset({"proposal", "phase_ended", "trial_intent", "presented", "process_started"})
PATIENCE_NS = 5_000_000_000  # where nothing is declared to fall back to, background for this long is a fault


class Line(Protocol):
    """What it needs of the bus; `rig.bus.Peer` is one."""

    process: str

    def send(self, document: Document) -> None:
        """Send without blocking."""
        ...


class Programme:
    """Follows the log and hands out trials.

    Parameters
    ----------
    images_per_trial
        Presentations in one trial.
    where, frames
        Where images lie, and what makes them.
    line
        The bus; ProcessStarted of this start was sent on it already.
    clock
        Time.
    """

    def __init__(self, images_per_trial: int, where: Places, frames: FrameMaker, line: Line, clock: Clock) -> None:
        self.planner = Planner(images_per_trial)
        self.caught_up = False  # whether everything that this session's log holds so far has been read
        self.ended: str | None = None  # why nothing more will be proposed
        self._where, self._frames, self._line, self._clock = where, frames, line, clock
        self._late_since_ns: int | None = None
        self._late_said = False
        self._prepared: set[tuple[int, str, str]] = set()
        self._sent_frames: set[str] = set()

    def take(self, entry: Entry) -> bool:
        """Take an entry of the log; return whether it was meant for the programme."""
        document = entry.document
        if isinstance(document, Proposal):
            self._take_proposal(document)
        elif isinstance(document, PhaseEnded):
            if document.last and self.ended is None:
                self.ended = f"phase {document.phase} ended: {document.reason}"
        elif entry.envelope.process == self._line.process:
            if isinstance(document, ProcessStarted):
                self._catch_up()
        elif isinstance(document, TrialIntent):
            self.planner.intended(document)
        elif isinstance(document, Presented):
            self.planner.presented(document)
        else:
            return False
        return True

    def _take_proposal(self, proposal: Proposal) -> None:
        try:
            check_proposal(proposal, (self._where.rect.height, self._where.rect.width))
        except BadProposal as error:
            self._line.send(Fault(what="bad proposal", detail=str(error), done="refused; nothing of it is shown"))
            return
        if self.planner.add(proposal):
            self._late_since_ns, self._late_said = None, False

    def _catch_up(self) -> None:
        self.caught_up = True
        lost = self.planner.never_presented()
        if lost:
            detail = f"{len(lost)} announced presentations have no record of their flips"
            done = "their slots are shown again under new numbers"
            self._line.send(Fault(what="rig restarted", detail=detail, done=done, presentations=lost))

    def fall_back(self) -> TrialPlan | None:
        """Return a trial of what was declared for a late proposal, None if there is none; say that it is late."""
        latest = self.planner.latest
        if latest is None:  # nothing was ever proposed
            return None
        if self._late_since_ns is None:
            self._late_since_ns = self._clock.now_ns()
        plan = self.planner.fallback_trial()
        patient = plan is None and self._clock.now_ns() - self._late_since_ns < PATIENCE_NS
        if not (patient or self._late_said):
            self._late_said = True
            self._line.send(
                Fault(
                    what="late proposal",
                    detail=f"no proposal after number {latest.proposal}",
                    done="background is shown" if plan is None else "fallback stimuli are shown until one comes",
                    since_host_ns=self._late_since_ns,
                    presentations=() if plan is None else plan.presentations,
                )
            )
        return plan

    def make(self, showing: Showing) -> Made:
        """Return the frame of a planned presentation; where a limit refuses it, the background and why."""
        return self._frames.make(showing.proposal, showing.stimulus)

    def say_prepared(self, showing: Showing, made: Made) -> None:
        """Name the exact frame that will be shown, once for each stimulus, and say it if that is not the stimulus."""
        if made.refused:
            self._line.send(
                Fault(
                    what="frame refused",
                    detail=f"stimulus {showing.stimulus.id}: {made.refused}",
                    done="background is shown instead and the presentation is marked incomplete",
                    presentations=(showing.presentation,),
                )
            )
        # The same stimulus may be refused in one place of a trial and shown in another: two frames.
        key = (showing.proposal.proposal, showing.stimulus.id, made.sha256)
        if key in self._prepared:
            return
        self._prepared.add(key)
        new = made.sha256 not in self._sent_frames and not made.in_proposal
        self._sent_frames.add(made.sha256)
        self._line.send(
            StimulusPrepared(
                stimulus_id=showing.stimulus.id,
                proposal=showing.proposal.proposal,
                frame_sha256=made.sha256,
                frame=made.frame if new else None,
            )
        )
