"""The rig's loop: shows what is proposed, trial by trial, and says what was on the screen.

One thread, owned by `rig.session`. Between trials it takes proposals, makes frames, fills textures and keeps flipping
the background; from the first to the last flip of a trial it only draws, waits, flips and sends one Presented after
each image. It never waits for the model: without a proposal in time it shows the declared fallback and says so. It
draws nothing by itself (`rig.display`), decides nothing about order (`rig.trial`), and makes no frame (`rig.frames`).
"""

import gc
from collections import OrderedDict
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from rig.clock import Clock
from rig.config import Config
from rig.display import WindowLost
from rig.frames import FrameMaker, Made
from rig.messages import (
    Document,
    Entry,
    Fault,
    PhaseEnded,
    Presented,
    ProcessStarted,
    Proposal,
    StimulusPrepared,
    StopRequested,
    TrialIntent,
)
from rig.pacing import FrameGrid
from rig.trial import BadProposal, Event, Planner, Showing, State, TrialPlan, after, check_proposal
from stimuli.geometry import Rect

# Its own TrialIntent and Presented tell a restarted rig what is done; its own ProcessStarted, that it has read it all.
WANTS = frozenset({"proposal", "phase_ended", "trial_intent", "presented", "process_started"})
IDLE_MARGIN_NS = 2_500_000  # a wait on the bus ends this long before a frame is due: background need not be exact
PATIENCE_NS = 5_000_000_000  # where nothing is declared to fall back to, background for this long is a fault


class Screen(Protocol):
    """What the session needs of a window; `rig.display.Window` is one."""

    textures: int

    def upload(self, texture: int, frame: npt.NDArray[np.uint8]) -> None:
        """Fill texture number `texture`."""
        ...

    def draw(self, texture: int | None, patch: bool) -> None:
        """Draw the next frame."""
        ...

    def flip(self) -> int:
        """Show it; return the host stamp."""
        ...


class Line(Protocol):
    """What the session needs of the bus; `rig.bus.Peer` is one."""

    process: str

    def send(self, document: Document) -> None:
        """Send without blocking."""
        ...

    def poll(self, timeout_s: float = 0.0) -> list[Entry]:
        """Return new entries."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything sent is journalled."""
        ...


class Flip(NamedTuple):
    """One flip: when it was due, when it came, how well."""

    due_ns: int
    stamp_ns: int
    late: bool
    dropped: int


@dataclass(frozen=True)
class Ready:
    """A presentation whose frame is in a texture."""

    showing: Showing
    texture: int
    made: Made


class Ending(Protocol):
    """What the session needs of `rig.child.Stop`."""

    go: bool

    orphaned: bool

    def __bool__(self) -> bool:
        """Whether the session must end."""
        ...


@dataclass(frozen=True)
class Places:
    """Where things are drawn, and the visual angles of the image's pixels."""

    rect: Rect
    patch: Rect | None
    angles: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


class TexturePool:
    """Which frame is in which texture; a frame that is still there is not uploaded again."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._held: OrderedDict[str | int, int] = OrderedDict((k, k) for k in range(screen.textures))  # oldest first

    def place(self, made: Made) -> int:
        """Return the texture that holds the frame; it stays there for the next `textures` - 1 other frames."""
        if made.sha256 not in self._held:
            _, texture = self._held.popitem(last=False)
            self._screen.upload(texture, made.frame)
            self._held[made.sha256] = texture
        self._held.move_to_end(made.sha256)
        return self._held[made.sha256]


class Session:
    """The loop of the rig.

    Parameters
    ----------
    config
        The session's config.
    where
        Where images and patch lie.
    screen
        The window, with at least `images_per_trial` textures.
    line
        The bus; ProcessStarted of this start was sent on it already.
    frames
        Makes frames.
    clock, stop
        Time, and whether the supervisor wants the end.
    """

    def __init__(
        self, config: Config, where: Places, screen: Screen, line: Line, frames: FrameMaker, clock: Clock, stop: Ending
    ) -> None:
        refresh = config.display.refresh_hz
        rhythm = config.presentation
        self._on = round(rhythm.on_s * refresh)
        self._off = round(rhythm.off_s * refresh)
        self._inter_trial = max(ceil(rhythm.inter_trial_s * refresh - 1e-6), self._off)
        self._vsync = config.display.vsync
        self._where = where
        self._screen = screen
        self._line = line
        self._frames = frames
        self._clock = clock
        self._stop = stop
        self._planner = Planner(rhythm.images_per_trial)
        self._pool = TexturePool(screen)
        self._grid = FrameGrid(refresh, clock.now_ns() + 10**9 // round(refresh), self._vsync)
        self._state = State.WAITING
        self._caught_up = False
        self._onset_frame = 0  # frame from which the next trial may start
        self._late_since_ns: int | None = None
        self._late_said = False
        self._reason: str | None = None  # why nothing more is shown
        self._plan: TrialPlan | None = None
        self._ready: list[Ready] = []
        self._prepared: set[tuple[int, str]] = set()
        self._sent_frames: set[str] = set()
        self._to_do: set[int] = set()  # presentations announced and not yet sent as Presented

    @property
    def state(self) -> State:
        """Where the rig is."""
        return self._state

    def run(self) -> None:
        """Show what is proposed until the supervisor or the last phase's end stops it. Raises WindowLost."""
        try:
            while self._state is not State.STOPPED:
                if self._reason is not None and self._state is not State.STOPPING:
                    self._enter(Event.STOP)
                self._step()
        except WindowLost as error:
            self._enter(Event.LOST)
            self._cut("window lost", str(error))
            self._line.send(StopRequested(reason=f"window lost: {error}"))
            raise
        self._cut("trial cut short", self._reason or "")
        self._line.send(StopRequested(reason=self._reason or ""))

    def _enter(self, event: Event) -> None:
        self._state = after(self._state, event)

    def _cut(self, what: str, detail: str) -> None:
        if self._to_do or what == "window lost":
            numbers = tuple(sorted(self._to_do))
            self._line.send(
                Fault(what=what, detail=detail, done="these presentations were never shown", presentations=numbers)
            )

    # --- between trials

    def _step(self) -> None:
        """Do one piece of work and one frame of background; or, when it is time, show the trial."""
        if self._state is State.WAITING:
            self._choose()
        elif self._state is State.PREPARING:
            self._prepare_one()
        elif self._state is State.READY and self._grid.frame >= self._onset_frame:
            self._show()
            return
        self._background_frame()
        if self._state is State.STOPPING:
            self._enter(Event.CLEARED)

    def _background_frame(self) -> None:
        self._screen.draw(None, False)
        if self._state is not State.STOPPING:
            while True:
                rest_ns = 0 if self._vsync else self._grid.due_ns() - self._clock.now_ns() - IDLE_MARGIN_NS
                for entry in self._line.poll(max(rest_ns, 0) * 1e-9):
                    self._take(entry)
                if rest_ns < 1_000_000:  # the bus waits in whole ms
                    break
        self._grid.flipped(self._screen.flip())
        self._look_for_stop()

    def _look_for_stop(self) -> None:
        if self._reason is None and self._stop:
            self._reason = "the supervisor is gone" if self._stop.orphaned else "stopped by the supervisor"

    def _take(self, entry: Entry) -> None:
        document = entry.document
        if isinstance(document, Proposal):
            self._take_proposal(document)
        elif isinstance(document, PhaseEnded):
            if document.last and self._reason is None:
                self._reason = f"phase {document.phase} ended: {document.reason}"
        elif entry.envelope.process == self._line.process:
            if isinstance(document, ProcessStarted):
                self._catch_up()
        elif isinstance(document, TrialIntent):
            self._planner.intended(document)
        elif isinstance(document, Presented):
            self._planner.presented(document)

    def _take_proposal(self, proposal: Proposal) -> None:
        try:
            check_proposal(proposal, (self._where.rect.height, self._where.rect.width))
        except BadProposal as error:
            self._line.send(Fault(what="bad proposal", detail=str(error), done="refused; nothing of it is shown"))
            return
        if self._planner.add(proposal):
            self._late_since_ns, self._late_said = None, False

    def _catch_up(self) -> None:
        self._caught_up = True
        lost = self._planner.never_presented()
        if lost:
            self._line.send(
                Fault(
                    what="rig restarted",
                    detail=f"{len(lost)} announced presentations have no record of their flips",
                    done="their slots are shown again under new numbers",
                    presentations=lost,
                )
            )

    def _choose(self) -> None:
        """Plan the next trial; the fallback if its time has come and nothing is proposed."""
        if not (self._caught_up and self._stop.go):  # nothing is shown before every process is ready
            return
        plan = self._planner.next_trial()
        if plan is None and self._grid.frame >= self._onset_frame:
            plan = self._fall_back()
        if plan is None:
            return
        self._plan, self._ready = plan, []
        self._enter(Event.PLANNED)

    def _fall_back(self) -> TrialPlan | None:
        latest = self._planner.latest
        if latest is None:  # nothing was ever proposed
            return None
        if self._late_since_ns is None:
            self._late_since_ns = self._clock.now_ns()
        plan = self._planner.fallback_trial()
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

    def _prepare_one(self) -> None:
        """Make the next frame of the planned trial and put it into a texture; after the last one announce the trial."""
        plan = self._plan
        if plan is None:
            raise RuntimeError("no trial is planned; the transition table does not allow this")
        showing = plan.images[len(self._ready)]
        made = self._frames.make(showing.proposal, showing.stimulus)
        self._ready.append(Ready(showing, self._pool.place(made), made))
        self._say_prepared(showing, made)
        if len(self._ready) < len(plan.images):
            return
        gc.collect()  # nothing is collected in a trial: collect now
        self._onset_frame = max(self._onset_frame, self._grid.frame + 2)
        self._to_do.update(plan.presentations)
        self._line.send(
            TrialIntent(
                trial=plan.trial,
                presentations=plan.presentations,
                proposals=tuple(s.proposal.proposal for s in plan.images),
                slots=tuple(s.slot for s in plan.images),
                start_host_ns=self._grid.due_ns(self._onset_frame - self._grid.frame),
            )
        )
        self._enter(Event.PREPARED)

    def _say_prepared(self, showing: Showing, made: Made) -> None:
        if made.refused:
            self._line.send(
                Fault(
                    what="frame refused",
                    detail=f"stimulus {showing.stimulus.id}: {made.refused}",
                    done="background is shown instead and the presentation is marked incomplete",
                    presentations=(showing.presentation,),
                )
            )
        key = (showing.proposal.proposal, showing.stimulus.id)
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

    # --- a trial

    def _show(self) -> None:
        """Show the prepared trial."""
        onset: Flip | None = None
        last = len(self._ready) - 1
        for k, image in enumerate(self._ready):
            follower = self._ready[k + 1] if self._off == 0 and k < last else None
            onset = self._show_image(image, onset, follower)
            if self._state is State.STOPPING:
                return
            if onset is None and k < last:
                for _ in range(self._off - 1):
                    self._flip(None)
                if self._reason is not None:
                    self._enter(Event.STOP)
                    return
        self._onset_frame = self._grid.frame - 1 + self._inter_trial
        self._enter(Event.TRIAL_OVER)

    def _show_image(self, image: Ready, onset: Flip | None, follower: Ready | None) -> Flip | None:
        """Show one image from its onset (already made if one replaced the other) to its offset.

        Returns the onset of `follower` if that took its place on the screen, None if the background did.
        """
        self._enter(Event.ONSET)
        flips: list[Flip] = [] if onset is None else [onset]
        try:
            while len(flips) < self._on:
                flips.append(self._flip(image.texture))
            if self._reason is not None:
                self._enter(Event.STOP)
                follower = None
            flips.append(self._flip(None if follower is None else follower.texture))
        except WindowLost:
            if flips:
                self._presented(image, flips, complete=False)
            raise
        if follower is None:
            self._enter(Event.OFFSET)
        self._presented(image, flips, complete=not image.made.refused)
        return None if follower is None else flips[-1]

    def _flip(self, texture: int | None) -> Flip:
        """Show one frame when it is due; the patch is white while an image is on."""
        self._screen.draw(texture, texture is not None)
        due_ns = self._grid.due_ns()
        if not self._vsync:
            self._clock.sleep_until_ns(due_ns)
        stamp_ns = self._screen.flip()
        verdict = self._grid.flipped(stamp_ns)
        self._look_for_stop()
        return Flip(due_ns, stamp_ns, verdict.late, verdict.dropped)

    def _presented(self, image: Ready, flips: list[Flip], complete: bool) -> None:
        showing, where = image.showing, self._where
        self._to_do.discard(showing.presentation)
        self._line.send(
            Presented(
                presentation=showing.presentation,
                trial=0 if self._plan is None else self._plan.trial,
                position_in_trial=showing.position,
                proposal=showing.proposal.proposal,
                slot=showing.slot,
                role=showing.role,
                stimulus_id=showing.stimulus.id,
                previous_stimulus_id=showing.previous,
                frame_sha256=image.made.sha256,
                due_host_ns=flips[0].due_ns,
                onset_flip_host_ns=flips[0].stamp_ns,
                offset_flip_host_ns=flips[-1].stamp_ns,
                flips_host_ns=np.array([f.stamp_ns for f in flips], np.int64),
                late_flips=sum(f.late for f in flips),
                dropped_frames=sum(f.dropped for f in flips),
                image_row_px=where.rect.center_row,
                patch_row_px=where.rect.center_row if where.patch is None else where.patch.center_row,
                complete=complete,
            )
        )
