"""A reward valve on a held line: the pulser raises and lowers it, the guardian sees to it, this only asks.

While a pulse is on, `poll` must be called at least every 20 ms: it tells the pulser that the outputs process lives.
After a failure of the pair a new one is started before the next pulse.
"""

from rig.clock import Clock
from rig.outputs import records as r
from rig.outputs.devices import REWARDS, Job, Outcome
from rig.outputs.lines import OutputError
from rig.outputs.pair import Pair

ALIVE_EVERY_NS = 10_000_000
ANSWER_NS = 300_000_000  # longest time past a pulse's end until the pair must have said what became of it
WHY = {
    r.OWNER_SILENT: "cut short: the outputs process did not run for 60 ms",
    r.GUARDIAN_SILENT: "cut short: its guardian did not answer",
    r.RESCUED: "cut short by the guardian: the pulser ended or did not answer",
}


class GuardedValve:
    """A valve on RTS or on a data line of a parallel port. Raises OutputError."""

    takes = REWARDS

    def __init__(self, port: str, rts: bool, line: int, clock: Clock, realtime: bool = True) -> None:
        self._place = (port, rts, line, clock, realtime)
        self._clock = clock
        self.pair: Pair | None = Pair(*self._place)
        self._number = 0
        self._job: Job | None = None
        self._begun_ns = 0
        self._alive_ns = 0
        self._raised_ns: int | None = None
        self._cut = ""
        self._done: list[Outcome] = []

    def begin(self, job: Job) -> None:
        """Ask for the pulse."""
        self._number += 1
        self._job, self._raised_ns, self._cut = job, None, ""
        try:
            if self.pair is None:
                self.pair = Pair(*self._place)
        except OutputError as error:
            self._over(False, f"not given: {error}; {error.cure}", 0)
            return
        self._begun_ns = self._alive_ns = self._clock.now_ns()
        self.pair.pulse(self._number, job.length_ns)

    def poll(self) -> list[Outcome]:
        """Say that this process lives, hear what the pair says, and notice when it says nothing any more."""
        if self.pair is not None:
            now = self._clock.now_ns()
            if self._job is not None and now - self._alive_ns >= ALIVE_EVERY_NS:
                self._alive_ns = now
                self.pair.keep_alive()
            for told in self.pair.poll():
                self._take(told)
            late = self._job is not None and now - self._begun_ns > self._job.length_ns + ANSWER_NS
            if late or not self.pair.alive:
                self._give_up("the watchdog said nothing any more" if late else "the watchdog ended")
        done, self._done = self._done, []
        return done

    def cut(self, why: str) -> None:
        """Lower the line now; the outcome names `why`."""
        if self._job is not None and self.pair is not None:
            self._cut = why
            self.pair.stop()

    def close(self) -> None:
        """End the pair; the line is low."""
        if self.pair is not None:
            self.pair.close()
            self.pair = None

    def _take(self, told: r.Told) -> None:
        job = self._job
        if job is None or told.number != self._number:
            return
        if told.kind == r.UP:
            self._raised_ns = told.value
        elif told.kind == r.DOWN:
            self._over(True, "", told.value)
        elif told.kind == r.NOT_RAISED:
            self._over(False, "not given: " + (self._cut or "its guardian did not answer"), 0)
        elif told.kind == r.STOPPED:
            self._over(False, f"cut short: {self._cut}", told.value)
        elif told.kind == r.RESCUED:
            self._over(False, WHY[told.kind], told.value - (self._raised_ns or self._begun_ns))
        elif told.kind in WHY:
            self._over(False, WHY[told.kind], told.value)

    def _over(self, done: bool, reason: str, open_ns: int, measured: bool = True) -> None:
        if self._job is not None:
            start = self._raised_ns or self._begun_ns or None
            now = self._clock.now_ns()
            outcome = Outcome(self._job.request, done, reason, start, now, open_ns * 1e-9, measured, "watchdog")
            self._done.append(outcome)
        self._job = None

    def _give_up(self, why: str) -> None:
        """End a pair that has failed (which lowers the line); an open pulse counts in full."""
        self.close()
        if self._job is not None:
            self._over(False, f"not confirmed: {why}; counted in full", self._job.length_ns, measured=False)
