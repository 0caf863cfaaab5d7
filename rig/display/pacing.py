"""When each frame is due: a grid of absolute deadlines, and what a flip's stamp says about it.

Pure arithmetic, used by `rig.display.loop`; reads no clock and draws nothing. Frame k is due at start + k * period,
computed from k in integers: k advances by addition, so rounding never adds up, whatever the refresh rate.
"""

from dataclasses import dataclass

PULL = 8  # with vsync the grid moves by 1/8 of each flip's error: slow against jitter, fast against a wrong rate


@dataclass(frozen=True)
class Verdict:
    """What one flip was like."""

    late: bool
    """More than half a frame after it was due."""
    dropped: int
    """Whole frame periods that passed without a flip before this one."""


class FrameGrid:
    """Deadlines of the frames of a session.

    Parameters
    ----------
    refresh_hz
        Frames per second, kept to 1/1000 Hz.
    start_ns
        Host time of frame 0, ns.
    follow
        True where flip() itself waits for the screen: the grid then follows the stamps. False where the grid
        is what makes the rhythm: then it never moves.
    """

    def __init__(self, refresh_hz: float, start_ns: int, follow: bool) -> None:
        self._millihertz = round(refresh_hz * 1000)
        self._start_ns = start_ns
        self._follow = follow
        self.frame = 0

    @property
    def period_ns(self) -> int:
        """Length of a frame, ns, rounded down."""
        return 10**12 // self._millihertz

    def due_ns(self, ahead: int = 0) -> int:
        """Return when the next frame, or the one `ahead` frames after it, is due, host ns."""
        return self._start_ns + (self.frame + ahead) * 10**12 // self._millihertz

    def flipped(self, stamp_ns: int) -> Verdict:
        """Take the stamp of the flip that was due; step to the next frame that can still be met.

        A missed frame shifts what follows by whole periods: an image is never shown for fewer frames than asked.
        """
        error = stamp_ns - self.due_ns()
        period = self.period_ns
        # A flip that waits for the screen comes about on time or a whole frame later: round. Without vsync the
        # period belongs to its flip until it is over: floor.
        dropped = max(0, (error + (period // 2 if self._follow else 0)) // period)
        if self._follow:
            self._start_ns += (error - dropped * period) // PULL
        self.frame += 1 + dropped
        return Verdict(late=error > period // 2, dropped=dropped)
