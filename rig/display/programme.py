"""What is shown next, whoever displays: proposals from the log, as trials, with their frames made and named.

Shared by our own rig (`rig.display.loop`) and a guest's (`rig.display.guest_rig`). It shows nothing and waits for
nothing.
"""

from typing import Protocol

from rig.clock import Clock
from rig.config.screen import Presentation
from rig.display.frames import FrameMaker, Made
from rig.display.places import Places, Square
from rig.display.trial import BadProposal, Planner, Showing, TrialPlan, check_proposal
from rig.messages import (
    FALLBACK_OVER,
    Document,
    Entry,
    Fault,
    Pause,
    PhaseEnded,
    Presented,
    ProcessStarted,
    Proposal,
    Response,
    StimulusPrepared,
    TrialIntent,
)
from stimuli.spec import Place

# A rig's own TrialIntent and Presented tell a restarted one what is done; its ProcessStarted, that it has read it all;
# a Response, whether its image is shown again; a Pause, that nothing more may be shown.
WANTS = frozenset({"proposal", "phase_ended", "trial_intent", "presented", "response", "process_started", "pause"})
PATIENCE_NS = 5_000_000_000  # where nothing is declared to fall back to, background for this long is a fault


class Line(Protocol):
    """What it needs of the bus; `rig.links.peer.Peer` is one."""

    process: str
    full: str
    """Why the recorder takes nothing at the moment, "" while it does."""

    def send(self, document: Document) -> None:
        """Send without blocking."""
        ...


class Programme:
    """Follows the log and hands out trials.

    Parameters
    ----------
    rhythm
        How long a trial is, how often an image without a usable response is shown again, for how long others stand in
        for a proposal that is late.
    where, frames
        Where images lie, and what makes them.
    line
        The bus; ProcessStarted of this start was sent on it already.
    clock
        Time.
    """

    def __init__(
        self, rhythm: Presentation, where: Places, frames: FrameMaker, line: Line, clock: Clock
    ) -> None:
        self.planner = Planner(rhythm.images_per_trial, rhythm.repeats_of_unusable)
        self._most_fallback_ns = int(rhythm.most_fallback_s * 1e9)
        self.caught_up = False  # whether everything that this session's log holds so far has been read
        self.ended: str | None = None  # why nothing more will be proposed
        self._paused = ""  # why nothing more may be shown, by the log
        self._where, self._frames, self._line, self._clock = where, frames, line, clock
        self._late_since_ns: int | None = None
        self._late_said = False
        self._fallback_since_ns: int | None = None  # since when only fallbacks are shown
        self._fallback_images = 0
        self._fallback_over = False  # whether it was said that they are shown no more
        self._prepared: set[tuple[int, str, str]] = set()
        self._sent_frames: set[str] = set()
        self._hidden: set[Place] = set()  # places that were said to lie under the fixation point

    @property
    def held(self) -> str:
        """Why no trial may begin at the moment, "" if one may: the session is paused, or nothing could be logged."""
        return self._paused or self._line.full

    def take(self, entry: Entry) -> bool:
        """Take an entry of the log; return whether it was meant for the programme."""
        document = entry.document
        if isinstance(document, Proposal):
            self._take_proposal(document)
        elif isinstance(document, PhaseEnded):
            if document.last and self.ended is None:
                self.ended = f"phase {document.phase + 1} ended: {document.reason}"
        elif isinstance(document, Pause):
            self._paused = document.reason if document.paused else ""
            self._fallback_since_ns = None  # nothing is shown in a pause
        elif isinstance(document, Response):
            self.planner.answered(document)
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
            square = self._where.at(proposal.place)
            check_proposal(proposal, square.shape)
        except ValueError as error:  # BadProposal, or a place where nothing may be drawn
            named = isinstance(error, BadProposal)
            detail = str(error) if named else f"proposal {proposal.proposal} of {proposal.agent}: its place: {error}"
            self._line.send(Fault(what="bad proposal", detail=detail, done="refused; nothing of it is shown"))
            return
        self._say_hidden(square)
        if self.planner.add(proposal):
            self._late_since_ns, self._late_said = None, False
            self._fallback_since_ns, self._fallback_images, self._fallback_over = None, 0, False

    def _say_hidden(self, square: Square) -> None:
        """Say once of each place, but the usual one, that the fixation point hides some of its images."""
        if square is self._where.usual or square.place in self._hidden or not self._where.hidden(square):
            return
        self._hidden.add(square.place)
        size, center = square.place.size_deg, square.place.center_deg
        self._line.send(
            Fault(
                what="fixation point over image",
                detail=f"images of {size:g} degrees at ({center[0]:g}, {center[1]:g}) lie under the fixation point",
                done="it is drawn over them: these pixels of each frame are hidden",
            )
        )

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
        if self._enough(latest.proposal):
            return None
        plan = self.planner.fallback_trial()
        self._fallback_images += 0 if plan is None else len(plan.images)
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

    def _enough(self, latest: int) -> bool:
        """Whether fallbacks were shown for as long as they may be; say so, once."""
        now = self._clock.now_ns()
        if self._fallback_since_ns is None:
            self._fallback_since_ns = now
        if now - self._fallback_since_ns < self._most_fallback_ns:
            return self._fallback_over
        if self._fallback_images and not self._fallback_over:
            self._fallback_over = True
            seconds = (now - self._fallback_since_ns) * 1e-9
            self._line.send(
                Fault(
                    what=FALLBACK_OVER,
                    detail=f"no proposal after number {latest} for {seconds:.0f} s, in which {self._fallback_images} "
                    "fallback images were shown; look at the model server",
                    done="background is shown until a proposal comes",
                    since_host_ns=self._late_since_ns,
                )
            )
        return self._fallback_over

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
