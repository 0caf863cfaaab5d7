"""The process that raises a line and lowers it at its time: `python -m rig.outputs.pulser`, started by `pair`.

It raises the line only after the guardian has said that it is armed, and lowers it at the end of the pulse, when the
owner says stop, dies or falls silent, and when the guardian dies or falls silent: what is not watched is not open.
`Pulser` decides and is pure but for its line; `main` turns it. It imports neither numpy nor any document.
"""

import sys

from rig.clock import Clock
from rig.outputs import records as r
from rig.outputs.lines import HeldLine
from rig.outputs.watcher import serve


class Pulser:
    """Raises and lowers one line.

    Parameters
    ----------
    line
        The line, low.
    owner, guardian
        Tell the owner and the guardian a record.
    clock
        Host time.
    """

    def __init__(self, line: HeldLine, owner: r.Tell, guardian: r.Tell, clock: Clock) -> None:
        self._line = line
        self._owner = owner
        self._guardian = guardian
        self._clock = clock
        self._number: int | None = None  # of the pulse that is armed or up
        self._raised_ns: int | None = None
        self._asked_ns = self._length_ns = self._beat_ns = self._heard_owner_ns = self._heard_guardian_ns = 0
        self._watched = False

    def owner_said(self, told: r.Told) -> None:
        """Take a record of the owner."""
        now = self._heard_owner_ns = self._clock.now_ns()
        if told.kind in (r.PULSE, r.LEVEL):
            if self._number is not None:
                self._owner(r.NOT_RAISED, told.number, 0)
                return
            self._number, self._length_ns, self._watched = told.number, told.value, told.kind == r.PULSE
            self._asked_ns = self._heard_guardian_ns = now
            self._beat_ns = now + r.BEAT_NS
            # The guardian's own deadline lies after the pulser's by the longest time between asking and raising.
            self._guardian(r.ARM, told.number, now + told.value + 2 * r.ARM_NS)
        elif told.kind == r.STOP and self._raised_ns is not None:
            self._down(r.STOPPED)
        elif told.kind == r.STOP and self._number is not None:
            self._not_raised()

    def partner_said(self, told: r.Told) -> None:
        """Take a record of the guardian."""
        now = self._heard_guardian_ns = self._clock.now_ns()
        if told.kind != r.ARMED or told.number != self._number or self._raised_ns is not None:
            return
        if now - self._asked_ns > r.ARM_NS:
            self._not_raised()
            return
        self._raised_ns = now
        self._line.set(True)
        self._owner(r.UP, told.number, now)

    def tick(self) -> bool:
        """Do what is due; return whether the guardian has failed, and the pair with it."""
        if self._number is None:
            return False
        now = self._clock.now_ns()
        if self._raised_ns is None:
            if now - self._asked_ns <= r.ARM_NS:
                return False
            self._not_raised()
            return True
        if now - self._raised_ns >= self._length_ns:
            self._down(r.DOWN)
        elif self._watched and now - self._heard_owner_ns > r.OWNER_SILENCE_NS:
            self._down(r.OWNER_SILENT)
        elif now - self._heard_guardian_ns > r.SILENCE_NS:
            self._down(r.GUARDIAN_SILENT)
            return True
        elif now >= self._beat_ns:
            self._beat_ns = now + r.BEAT_NS
            self._guardian(r.BEAT, 0, 0)
        return False

    def due_ns(self) -> int | None:
        """Return when `tick` has something to do, host ns; None while nothing is up."""
        if self._number is None:
            return None
        if self._raised_ns is None:
            return self._asked_ns + r.ARM_NS + 1
        return min(self._raised_ns + self._length_ns, self._beat_ns)

    def end(self) -> None:
        """Lower the line for good: the owner or the guardian is gone."""
        if self._raised_ns is not None:
            self._down(r.GUARDIAN_SILENT)
        self._line.set(False)

    def _down(self, why: bytes) -> None:
        self._line.set(False)
        if self._number is not None and self._raised_ns is not None:
            self._owner(why, self._number, self._clock.now_ns() - self._raised_ns)
            self._guardian(r.DISARM, self._number, 0)
        self._number = self._raised_ns = None

    def _not_raised(self) -> None:
        if self._number is not None:
            self._owner(r.NOT_RAISED, self._number, 0)
            self._guardian(r.DISARM, self._number, 0)
        self._number = None


if __name__ == "__main__":
    sys.exit(serve(Pulser))
