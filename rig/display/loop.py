"""The rig's loop: shows what is proposed, trial by trial, and says what was on the screen.

One thread, owned by `rig.display.session`. Between trials it takes proposals, makes frames, fills textures and keeps
flipping the background; a trial is `rig.display.show`, and what is asked of gaze and outputs around it,
`rig.display.trial_outputs`. It never waits for the model: without a proposal in time it shows the declared fallback and
says so. It draws nothing by itself (`rig.display.window`), and decides nothing about order and makes no frame
(`rig.display.programme`).
"""

import gc
from collections import OrderedDict
from math import ceil
from typing import Protocol

from rig.clock import Clock
from rig.config.session import Config
from rig.display import programme
from rig.display.frames import FrameMaker, Made
from rig.display.pacing import FrameGrid
from rig.display.places import Places
from rig.display.programme import Programme
from rig.display.show import Course, Ending, OnsetLine, Ready, Screen, TrialShow
from rig.display.trial import Event, State, TrialPlan
from rig.display.trial_outputs import TrialOutputs
from rig.display.window import WindowLost
from rig.messages import Entry, Fault, StopRequested, TrialIntent
from stimuli.geometry import Rect
from stimuli.limits import FlashLimit, Light
from stimuli.spec import Place

IDLE_MARGIN_NS = 2_500_000  # a wait on the bus ends this long before a frame is due: background need not be exact


class Line(programme.Line, Protocol):
    """What the session needs of the bus; `rig.links.peer.Peer` is one."""

    def poll(self, timeout_s: float = 0.0) -> list[Entry]:
        """Return new entries."""
        ...


class TexturePool:
    """Which frame is in which texture, for which place; a frame that is still there is not uploaded again."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._held: OrderedDict[tuple[str, Rect] | int, int] = OrderedDict(
            (k, k) for k in range(screen.textures)
        )  # oldest first

    def place(self, made: Made) -> int:
        """Return the texture that holds the frame; it stays there for the next `textures` - 1 other frames."""
        key = made.sha256, made.square.rect
        if key not in self._held:
            _, texture = self._held.popitem(last=False)
            self._screen.upload(texture, made.frame, made.square.rect)
            self._held[key] = texture
        self._held.move_to_end(key)
        return self._held[key]


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
    onset
        TTL lines that follow the images.
    """

    def __init__(
        self,
        config: Config,
        where: Places,
        screen: Screen,
        line: Line,
        frames: FrameMaker,
        clock: Clock,
        stop: Ending,
        onset: OnsetLine,
    ) -> None:
        refresh, rhythm = config.display.refresh_hz, config.presentation
        self._vsync = config.display.vsync
        self._where = where
        self._screen = screen
        self._line = line
        self._frames = frames
        self._clock = clock
        self._stop = stop
        self._programme = Programme(rhythm, where, frames, line, clock)
        self._pool = TexturePool(screen)
        self._grid = FrameGrid(refresh, clock.now_ns() + 10**9 // round(refresh), self._vsync)
        self._course = Course(stop)
        self._trials = TrialShow(config, where, screen, line, clock, self._grid, self._course, onset)
        self._inter_trial = max(ceil(rhythm.inter_trial_s * refresh - 1e-6), self._trials.off_frames)
        self._outputs = TrialOutputs(config, line, clock)
        self._onset = onset
        self._flashes = FlashLimit(frames.grey.luminance, config.limits.max_flash_hz)
        self._announced = False  # the trial that is ready has its TrialIntent
        self._onset_frame = 0  # frame from which the next trial may start
        self._plan: TrialPlan | None = None
        self._ready: list[Ready] = []
        self._to_do: set[int] = set()  # presentations announced and not yet sent as Presented

    @property
    def state(self) -> State:
        """Where the rig is."""
        return self._course.state

    def run(self) -> None:
        """Show what is proposed until the supervisor or the last phase's end stops it. Raises WindowLost."""
        try:
            while self.state is not State.STOPPED:
                if self._course.reason is not None and self.state is not State.STOPPING:
                    self._course.enter(Event.STOP)
                self._step()
        except WindowLost as error:
            self._course.enter(Event.LOST)
            self._cut("window lost", str(error))
            self._line.send(StopRequested(reason=f"window lost: {error}"))
            raise
        self._cut("trial cut short", self._course.reason or "")
        self._line.send(StopRequested(reason=self._course.reason or ""))

    def _cut(self, what: str, detail: str) -> None:
        if self._to_do or what == "window lost":
            numbers = tuple(sorted(self._to_do))
            self._line.send(
                Fault(what=what, detail=detail, done="these presentations were never shown", presentations=numbers)
            )

    # --- between trials

    def _step(self) -> None:
        """Do one piece of work and one frame of background; or, when it is time, show the trial."""
        if self.state is State.WAITING:
            self._choose()
        elif self.state is State.PREPARING:
            self._prepare_one()
        elif self.state is State.READY and self._grid.frame >= self._onset_frame:
            if not self._announced:
                if self._may_begin:
                    self._announce_if_fixated()
            elif self._outputs.gated or not self._course.device_away:  # one that fixates is not kept waiting
                self._show()
                return
        self._background_frame()
        if self.state is State.STOPPING:
            self._course.enter(Event.CLEARED)

    def _background_frame(self) -> None:
        self._screen.draw(None, False)
        if self.state is not State.STOPPING:
            while True:
                rest_ns = 0 if self._vsync else self._grid.due_ns() - self._clock.now_ns() - IDLE_MARGIN_NS
                for entry in self._line.poll(max(rest_ns, 0) * 1e-9):
                    self._take(entry)
                if rest_ns < 1_000_000:  # the bus waits in whole ms
                    break
            self._outputs.step()
        self._grid.flipped(self._screen.flip())
        self._course.look_for_stop()

    def _take(self, entry: Entry) -> None:
        if not self._programme.take(entry):
            self._outputs.take(entry.document)
        if self._course.reason is None:
            self._course.reason = self._programme.ended

    @property
    def _may_begin(self) -> bool:
        """Whether a trial may begin: every process is ready, and the session is not paused."""
        return self._programme.caught_up and self._stop.go and not self._programme.held

    def _choose(self) -> None:
        """Plan the next trial; the fallback if its time has come and nothing is proposed."""
        if not self._may_begin:
            return
        plan = self._programme.planner.next_trial()
        if plan is None and self._grid.frame >= self._onset_frame:
            plan = self._programme.fall_back()
        if plan is None:
            return
        self._plan, self._ready = plan, []
        self._course.enter(Event.PLANNED)

    def _prepare_one(self) -> None:
        """Make the next frame of the planned trial and put it into a texture; after the last one announce the trial."""
        plan = self._plan
        if plan is None:
            raise RuntimeError("no trial is planned; the transition table does not allow this")
        showing = plan.images[len(self._ready)]
        made = self._within_flashes(self._programme.make(showing), showing.proposal.place)
        self._ready.append(Ready(showing, self._pool.place(made), made))
        self._programme.say_prepared(showing, made)
        if len(self._ready) < len(plan.images):
            return
        gc.collect()  # nothing is collected in a trial: collect now
        self._onset_frame = max(self._onset_frame, self._grid.frame + 2)
        self._course.enter(Event.PREPARED)
        self._announced = False
        if not self._outputs.gated and self._may_begin:
            self._announce(plan)

    def _within_flashes(self, made: Made, place: Place | None) -> Made:
        """Return the frame, or the background where it would make too many flashes at its place in the trial."""
        on, period = self._trials.on_frames, self._trials.on_frames + self._trials.off_frames
        # The earliest frame at which the trial may begin: a later one only has fewer flashes in its first second.
        first = max(self._onset_frame - self._grid.frame, 2)
        planned: list[Light] = []
        last = 0 if self._plan is None else len(self._plan.images) - 1  # the background follows it in any rhythm
        for k, one in enumerate([*(image.made for image in self._ready), made]):
            planned.append(Light(self._grid.due_ns(first + k * period), one.luminance, one.square.spot))
            if self._trials.off_frames or k == last:
                planned.append(self._flashes.cleared(self._grid.due_ns(first + k * period + on)))
        refusal = self._flashes.refusal(planned, made.luminance)
        return self._frames.refuse(refusal, place) if refusal else made

    def _announce_if_fixated(self) -> None:
        """Begin the trial with the next frame if the animal fixates."""
        if self._plan is not None and self._outputs.acquired():
            self._onset_frame = self._grid.frame + 1
            self._announce(self._plan)

    def _announce(self, plan: TrialPlan) -> None:
        self._announced = True
        self._to_do.update(plan.presentations)
        start_ns = self._grid.due_ns(self._onset_frame - self._grid.frame)
        self._line.send(
            TrialIntent(
                trial=plan.trial,
                presentations=plan.presentations,
                proposals=tuple(s.proposal.proposal for s in plan.images),
                slots=tuple(s.slot for s in plan.images),
                start_host_ns=start_ns,
            )
        )
        self._outputs.trial_begins(plan, start_ns)

    def _show(self) -> None:
        """Show the prepared trial, then do what waited for its end."""
        if self._plan is None:
            raise RuntimeError("no trial is planned; the transition table does not allow this")
        try:
            self._trials.show(self._plan, self._ready)
        finally:
            self._to_do.difference_update(p.presentation for _, p in self._trials.shown)
        self._onset_frame = self._grid.frame - 1 + self._inter_trial
        for image, presented in self._trials.shown:
            made = image.made
            self._flashes.shown(Light(presented.onset_flip_host_ns, made.luminance, made.square.spot))
            self._flashes.shown(self._flashes.cleared(presented.offset_flip_host_ns))
        self._onset.check()
        self._outputs.trial_over(self._plan, [presented for _, presented in self._trials.shown])
        if self._to_do and self.state is State.WAITING:
            self._put_back(self._plan)

    def _put_back(self, plan: TrialPlan) -> None:
        """Keep planned what a trial, cut because a device is away, has not shown."""
        rest = [showing for showing in plan.images if showing.presentation in self._to_do]
        self._line.send(
            Fault(
                what="trial cut short",
                detail=f"trial {plan.trial}: the source of a device is away",
                done="not shown: these images come first when it is back, under new numbers",
                presentations=tuple(s.presentation for s in rest),
            )
        )
        self._programme.planner.put_back(rest)
        self._to_do.clear()

