"""Which LSL time stamps can be true, and whether the sender's clock is still the one it was.

Pure. LSL stamps are known to jump by 10 to 20 s and by 200,000 s in some recordings, and LSL hands over the oldest data
first: a stamp is therefore judged against its arrival and against its neighbour before anything is measured by it.
"""

import math
from typing import Literal

from rig.sources.columns import Faults
from rig.sources.lsl_streams import Pulled

Verdict = Literal["good", "stale", "wrong"]

EARLY_NS = 50_000_000  # a row cannot arrive before it was stamped; the offset is known better than this
WRONG_NS = 600_000_000_000  # nobody buffers ten minutes: such a stamp is not old but wrong
DRIFT = 500e-6  # the worst crystals
STEP_S = 0.001  # a smaller step than this cannot be told from the scatter of the round trips


class StampCheck:
    """Judges the stamps of one stream, in order of arrival."""

    def __init__(
        self, place: str, max_age_s: float, faults: Faults, in_order: bool = True, done: str = "not used, not scored"
    ) -> None:
        """`place` names source and stream in faults; `in_order`: a stamp before the one before cannot be true.

        `done`: what becomes of a row whose stamp cannot be true.
        """
        self._place, self._max_age_ns, self._faults = place, round(max_age_s * 1e9), faults
        self._in_order, self._done = in_order, done
        self._last_s = -math.inf

    def judge(self, pulled: Pulled) -> list[Verdict]:
        """Return a verdict for each row; what is not good is noted as a fault."""
        age_ns = pulled.arrival_ns - pulled.sent_host_ns
        return [self._one(float(s), int(a), pulled) for s, a in zip(pulled.stamp_s, age_ns, strict=True)]

    def _one(self, stamp_s: float, age_ns: int, pulled: Pulled) -> Verdict:
        back = self._in_order and stamp_s < self._last_s
        if not math.isfinite(stamp_s) or stamp_s <= 0 or not -EARLY_NS <= age_ns <= WRONG_NS or back:
            against = "before the row before it" if back else f"{age_ns * 1e-9:.3f} s from its arrival"
            detail = f"{self._place}: the LSL time stamp {stamp_s:.3f} s lies {against}"
            self._faults.note("time stamp wrong", detail, self._done, pulled.arrival_ns)
            return "wrong"
        self._last_s = stamp_s
        if age_ns > self._max_age_ns:
            detail = f"{self._place}: a row was {age_ns * 1e-9:.2f} s old when it came (max_age_s allows"
            done = "its stretch is marked as a gap and is not scored; see why the sender or this computer fell behind"
            self._faults.note("data too old", f"{detail} {self._max_age_ns * 1e-9:g})", done, pulled.arrival_ns)
            return "stale"
        return "good"


class ClockWatch:
    """Follows the offset between a sender's LSL clock and ours; says when one of the two jumped."""

    def __init__(self) -> None:
        """Start before the first round trip."""
        self.last: tuple[float, float, float] | None = None  # remote, offset, round trip; s

    def take(self, remote_s: float, offset_s: float, round_trip_s: float) -> str | None:
        """Take a round trip; return in words how the clock jumped, None if it went on.

        `remote_s` is the sender's clock, `offset_s` what to add to get ours. Each offset is known to half of its round
        trip; between two of them no crystal drifts more than 500 ppm.
        """
        before, self.last = self.last, (remote_s, offset_s, round_trip_s)
        if before is None:
            return None
        passed_s, step_s = remote_s - before[0], offset_s - before[1]
        allowed_s = (round_trip_s + before[2]) / 2 + DRIFT * abs(passed_s) + STEP_S
        if passed_s < 0:
            return f"the sender's clock went back by {-passed_s:.3f} s"
        if abs(step_s) > allowed_s:
            return f"the offset of the sender's clock changed by {step_s:.3f} s within {passed_s:.1f} s"
        return None

    def same(self, other: "ClockWatch") -> bool:
        """Return whether both streams have one clock, as far as the last round trips can tell."""
        if self.last is None or other.last is None:
            return True
        allowed_s = (self.last[2] + other.last[2]) / 2 + STEP_S
        return abs(self.last[1] - other.last[1]) <= allowed_s
