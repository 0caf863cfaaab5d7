"""Whether a device's sample counter keeps pace with the clock: a jump ahead, a stand-still, or just late data.

Pure. Used by `rig.sources.continuity`. Message numbers say nothing about it: a device that stood still for 6 s, or a
file that was wound on, goes on numbering without a hole, and every later sample number means another moment.
"""

from typing import Literal

Verdict = Literal["steady", "late", "ahead", "stood still"]

TOLERANCE_NS = 150_000_000  # blocks come every 23 ms, jittered by some more
PPM = 2_000  # a File Reader plays 870 ppm slow
SETTLING_NS = 2_000_000_000  # the first blocks may come late: no reference yet
PATIENCE_NS = 1_000_000_000  # a backlog is read in less, or shrinks meanwhile
SHRINKS_NS = 50_000_000


class Pace:
    """Follows the least delay between sample counter and host clock within one run."""

    def __init__(self) -> None:
        """Start without a reference."""
        self._least: float | None = None  # smallest delay, ns, let go by PPM
        self._first_ns = 0
        self._at_ns = 0
        self._late: tuple[float, int] | None = None  # smallest delay of a late spell, host ns when it last shrank

    def judge(self, sample: int, host_ns: int, rate_hz: float, slack_ns: int = 0) -> Verdict:
        """Compare a sample (the first after a block) with its arrival; `slack_ns` is added to the tolerance.

        "late": not to be trusted yet, it may be a backlog. "ahead" and "stood still": from here on sample numbers mean
        other moments; begin anew with a new Pace.
        """
        delay = host_ns - sample * (1e9 / rate_hz)
        if self._least is None:
            self._least, self._first_ns, self._at_ns = delay, host_ns, host_ns
            return "steady"
        passed_ns = host_ns - self._at_ns
        tolerance = TOLERANCE_NS + slack_ns + passed_ns * PPM * 1e-6
        if delay < self._least - tolerance and host_ns > self._first_ns + SETTLING_NS:
            return "ahead"
        if delay <= self._least + tolerance:
            self._least, self._at_ns, self._late = min(delay, self._least + passed_ns * PPM * 1e-6), host_ns, None
            return "steady"
        if self._late is None or delay < self._late[0] - SHRINKS_NS:
            self._late = (delay, host_ns)
        return "stood still" if host_ns > self._late[1] + PATIENCE_NS else "late"
