"""The process that lowers a line when the pulser does not: `python -m rig.outputs.guardian`, started by `pair`.

It can only lower. It does so when the pulser dies or falls silent while the line is up, when the pulse's last moment
has passed, and when the owner dies; a pulser that is stopped and not dead is killed, so that it never raises the line
later. `Guardian` decides and is pure but for its line; `main` turns it.
"""

import sys

from rig.clock import Clock
from rig.outputs import records as r
from rig.outputs.lines import HeldLine
from rig.outputs.watcher import serve


class Guardian:
    """Guards one line; the parameters are those of `rig.outputs.pulser.Pulser`, with the pulser in place of itself."""

    def __init__(self, line: HeldLine, owner: r.Tell, pulser: r.Tell, clock: Clock) -> None:
        self._line = line
        self._owner = owner
        self._pulser = pulser
        self._clock = clock
        self._number: int | None = None
        self._latest_ns = self._beat_ns = self._heard_ns = 0

    def owner_said(self, told: r.Told) -> None:
        """Ignore: the owner speaks to the pulser."""

    def partner_said(self, told: r.Told) -> None:
        """Take a record of the pulser."""
        self._heard_ns = self._clock.now_ns()
        if told.kind == r.ARM:
            self._number, self._latest_ns = told.number, told.value
            self._beat_ns = self._heard_ns + r.BEAT_NS
            self._pulser(r.ARMED, told.number, 0)
        elif told.kind == r.DISARM and told.number == self._number:
            self._number = None

    def tick(self) -> bool:
        """Do what is due; return whether the pulser has failed: then `end` follows at once."""
        if self._number is None:
            return False
        now = self._clock.now_ns()
        if now > self._latest_ns or now - self._heard_ns > r.SILENCE_NS:
            return True
        if now >= self._beat_ns:
            self._beat_ns = now + r.BEAT_NS
            self._pulser(r.BEAT, 0, 0)
        return False

    def due_ns(self) -> int | None:
        """Return when `tick` has something to do, host ns; None while nothing is up."""
        return None if self._number is None else min(self._beat_ns, self._latest_ns + 1)

    def end(self) -> None:
        """Lower the line, whatever the pulser does."""
        self._line.set(False)
        if self._number is not None:
            self._owner(r.RESCUED, self._number, self._clock.now_ns())
            self._number = None


if __name__ == "__main__":
    sys.exit(serve(Guardian))
