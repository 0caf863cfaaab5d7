"""One post of a session (recorder, rig, a source ...): the child that fills it now, and how it is filled again.

Owned by the supervisor, which decides what a death means; here is how it is seen, and that everything a dead child had
started is gone before the next one takes its port, its line or its window.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from rig.clock import Clock
from rig.supervision.child import AWAY
from rig.supervision.liveness import Pulses, Stillness
from rig.supervision.processes import Child, runs
from rig.supervision.restarts import Restarts
from rig.supervision.starting import Starting

LEAVE_NS = 1_500_000_000  # what a dead child had started ends by itself within this; then it is killed


class Post:
    """A post and who fills it.

    Parameters
    ----------
    name, arguments
        Of the child: `python -m ...`.
    log
        File for its stderr.
    longest_s
        How long it may stand still, s.
    restarts
        When it may be started again.
    pulses, slot
        Its counter.
    clock
        Time.
    environment
        What else its child finds in its environment.
    """

    def __init__(
        self,
        name: str,
        arguments: list[str],
        log: Path,
        longest_s: float,
        restarts: Restarts,
        pulses: Pulses,
        slot: int,
        clock: Clock,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.arguments, self.log = name, arguments, log
        self.restarts = restarts
        self.child: Child | None = None
        self.last: Child | None = None  # the one that fell last
        self.stopping = False  # it was told to end, or will be
        self.over = False  # nobody fills it any more
        self._longest_ns = int(longest_s * 1e9)
        self._pulses, self._slot, self._clock = pulses, slot, clock
        self._environment = {**pulses.environment(slot), **(environment or {})}
        self._stillness = Stillness(0, pulses.look(slot))
        self._starting = Starting(0, pulses.look(slot))
        self._due_ns = self._leave_ns = 0
        self._away_ns: int | None = None  # since when nobody has been ready, after a death
        self._left: list[psutil.Process] = []
        self._told_to_stop: Child | None = None

    @property
    def ready(self) -> bool:
        """Whether its child has said that it is ready."""
        return self.child is not None and self.child.ready is not None

    @property
    def since_ns(self) -> int:
        """When its child was last seen to do something, host clock."""
        return self._stillness.since_ns

    def fill(self) -> Child:
        """Start a child."""
        now_ns, sign = self._clock.now_ns(), self._pulses.look(self._slot)
        environment = dict(self._environment)
        if self._away_ns is not None:
            environment[AWAY] = str(self._away_ns)
        self.child = Child(self.name, self.arguments, self.log, environment, self._pulses.inherited)
        self._stillness, self._starting = Stillness(now_ns, sign), Starting(now_ns, sign)
        return self.child

    def look(self, now_ns: int) -> str:
        """Look at the child; return in words what is wrong with it, "" if it goes on."""
        child = self.child
        if child is None:
            return ""
        before = child.ready
        child.update()
        if child.ready is not before:  # what it took to start is not held against it
            self._stillness, self._away_ns = Stillness(now_ns, self._pulses.look(self._slot)), None
        if child.exit_code is not None:
            return child.how_ended()
        sign = self._pulses.look(self._slot)
        still_ns = self._stillness.look(now_ns, sign)
        if child.ready is None:
            stuck = self._starting.stuck(now_ns, sign, child.used_s)
            return self._starting.why(now_ns, child.used_s) if stuck else ""
        longest_ns = self._longest_ns if sign.longest_ns is None else sign.longest_ns
        if still_ns > longest_ns:
            return f"stood still for {still_ns * 1e-9:.1f} s, its longest busy time is {longest_ns * 1e-9:g} s"
        return ""

    def vacate(self, now_ns: int, due_ns: int) -> bool:
        """Kill and reap what is left of the child; the post may be filled again from `due_ns` on.

        Returns False where the child cannot be killed: nobody can fill the post then.
        """
        if self.child is None:
            return True
        failed_ns = self.since_ns if self.child.since_ns is None else self.child.since_ns
        self._away_ns, self._due_ns = self._away_ns or min(self.since_ns, failed_ns), due_ns
        return self._reap(self.child, now_ns)

    def _reap(self, child: Child, now_ns: int) -> bool:
        reaped = child.kill()
        self.last, self.child = child, None
        self._leave_ns = now_ns + LEAVE_NS
        self._left += child.left_behind()
        return reaped

    def free(self, now_ns: int) -> bool:
        """Return whether the post may be filled: its time has come and nothing of its last child runs any more."""
        return self.deserted(now_ns) and now_ns >= self._due_ns

    def deserted(self, now_ns: int) -> bool:
        """Return whether nothing that earlier children had started runs any more; kill what does not end by itself."""
        self._left = [p for p in self._left if runs(p)]
        if now_ns > self._leave_ns:
            for process in self._left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        return not self._left

    def stop(self, reason: str = "") -> None:
        """Tell the child to end; each child hears it once, however often it is asked for."""
        self.stopping = True
        if self.child is not None and self.child is not self._told_to_stop:
            self._told_to_stop = self.child
            self.child.say(f"stop {reason}")

    def finish(self) -> bool:
        """Reap the child, killing it if it still runs; return whether it ended by itself and well."""
        self.over = True
        if self.child is None:
            return True
        orderly = self.child.exit_code == 0
        self._reap(self.child, self._clock.now_ns())
        return orderly
