"""One trial on the screen: from its first to its last flip only draw, wait, flip, and say what was shown.

Called by `rig.display.loop` with frames that are in textures already. Nothing else happens here: no bus is read, no
frame is made, nothing is collected; each image's Presented is one send without waiting, and an onset line is one write
to a pipe.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from rig.clock import Clock
from rig.config.session import Config
from rig.display.frames import Made
from rig.display.pacing import FrameGrid
from rig.display.places import Places
from rig.display.trial import Event, Showing, State, TrialPlan, after
from rig.display.window import WindowLost
from rig.messages import Document, Presented
from stimuli.geometry import Rect


class Screen(Protocol):
    """What the session needs of a window; `rig.display.window.Window` is one."""

    textures: int

    def upload(self, texture: int, frame: npt.NDArray[np.uint8], rect: Rect) -> None:
        """Fill texture number `texture`, to be drawn at `rect`."""
        ...

    def draw(self, texture: int | None, patch: bool) -> None:
        """Draw the next frame."""
        ...

    def flip(self) -> int:
        """Show it; return the host stamp."""
        ...


class Sender(Protocol):
    """What a trial needs of the bus."""

    def send(self, document: Document) -> None:
        """Send without blocking."""
        ...


class OnsetLine(Protocol):
    """A TTL line that is high while an image is on; `rig.outputs.onset.OnsetLines` are some."""

    def rise(self) -> None:
        """Raise it, without waiting."""
        ...

    def fall(self) -> None:
        """Lower it, without waiting."""
        ...

    def check(self) -> None:
        """Look between trials whether it obeys."""
        ...


class Ending(Protocol):
    """What the session needs of `rig.supervision.child.Stop`."""

    go: bool

    orphaned: bool

    def __bool__(self) -> bool:
        """Whether the session must end."""
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


class Course:
    """Where the rig is in its states, and why it is to end, once it is."""

    def __init__(self, stop: Ending) -> None:
        self.state = State.WAITING
        self.reason: str | None = None  # why nothing more is shown
        self._stop = stop

    def enter(self, event: Event) -> None:
        """Step to the state that follows; raises IllegalEvent."""
        self.state = after(self.state, event)

    @property
    def device_away(self) -> bool:
        """Whether the supervisor wants no further image for now: the source of a device is being started again."""
        return not self._stop.go

    def look_for_stop(self) -> None:
        """Notice that the supervisor wants the end, or is gone."""
        if self.reason is None and self._stop:
            self.reason = "the supervisor is gone" if self._stop.orphaned else "stopped by the supervisor"


class TrialShow:
    """Shows trials.

    Parameters
    ----------
    config, where
        The rhythm, and where images and patch lie.
    screen, sender, clock
        The window, the bus, time.
    grid, course
        The session's frame deadlines and state; both are advanced here.
    onset
        What is told of each onset and offset.
    """

    def __init__(
        self,
        config: Config,
        where: Places,
        screen: Screen,
        sender: Sender,
        clock: Clock,
        grid: FrameGrid,
        course: Course,
        onset: OnsetLine,
    ) -> None:
        rhythm, refresh = config.presentation, config.display.refresh_hz
        self.on_frames = round(rhythm.on_s * refresh)
        self.off_frames = round(rhythm.off_s * refresh)
        self._vsync = config.display.vsync
        self._where, self._screen, self._sender, self._clock = where, screen, sender, clock
        self._grid, self._course, self._onset = grid, course, onset
        self.shown: list[tuple[Ready, Presented]] = []  # of the trial that was shown last

    def show(self, plan: TrialPlan, images: Sequence[Ready]) -> None:
        """Show the prepared images; ends early, after an image, when a device is away or (STOPPING) the session ends.

        Raises WindowLost.
        """
        self.shown = []
        onset: Flip | None = None
        last = len(images) - 1
        for k, image in enumerate(images):
            follower = images[k + 1] if self.off_frames == 0 and k < last else None
            onset = self._show_image(plan.trial, image, onset, follower)
            if self._course.state is State.STOPPING:
                return
            if onset is None and k < last:
                for _ in range(self.off_frames - 1):
                    self._flip(None)
                if self._course.reason is not None:
                    self._course.enter(Event.STOP)
                    return
                if self.off_frames == 0 or self._course.device_away:  # without a period off, it was when this one went
                    break
        self._course.enter(Event.TRIAL_OVER)

    def _show_image(self, trial: int, image: Ready, onset: Flip | None, follower: Ready | None) -> Flip | None:
        """Show one image from its onset (already made if one replaced the other) to its offset.

        Returns the onset of `follower` if that took its place on the screen, None if the background did.
        """
        self._course.enter(Event.ONSET)
        flips: list[Flip] = [] if onset is None else [onset]
        try:
            while len(flips) < self.on_frames:
                flips.append(self._flip(image.texture))
                if len(flips) == 1:
                    self._onset.rise()
            if self._course.reason is not None:
                self._course.enter(Event.STOP)
                follower = None
            elif self._course.device_away:
                follower = None
            flips.append(self._flip(None if follower is None else follower.texture))
        except WindowLost:
            self._onset.fall()
            if flips:
                self._presented(trial, image, flips, complete=False)
            raise
        if follower is None:
            self._onset.fall()
            self._course.enter(Event.OFFSET)
        self._presented(trial, image, flips, complete=not image.made.refused)
        return None if follower is None else flips[-1]

    def _flip(self, texture: int | None) -> Flip:
        """Show one frame when it is due; the patch is white while an image is on."""
        self._screen.draw(texture, texture is not None)
        due_ns = self._grid.due_ns()
        if not self._vsync:
            self._clock.sleep_until_ns(due_ns)
        stamp_ns = self._screen.flip()
        verdict = self._grid.flipped(stamp_ns)
        self._course.look_for_stop()
        return Flip(due_ns, stamp_ns, verdict.late, verdict.dropped)

    def _presented(self, trial: int, image: Ready, flips: list[Flip], complete: bool) -> None:
        showing, where, row = image.showing, self._where, image.made.square.rect.center_row
        presented = Presented(
            presentation=showing.presentation,
            trial=trial,
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
            image_row_px=row,
            patch_row_px=row if where.patch is None else where.patch.center_row,
            complete=complete,
            refused=image.made.refused,
        )
        self._sender.send(presented)
        self.shown.append((image, presented))
