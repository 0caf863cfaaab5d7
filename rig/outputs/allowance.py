"""The limits on reward: per pulse, per minute, per session. Pure; nothing opens a valve without asking here.

What was given counts by the open time that was measured. Where that is unknown (a device that did not answer, a
process that died in mid-pulse) the whole pulse counts: the limits must hold for the animal, not on the average.
"""

from collections import deque

from rig.config.outputs import Reward

MINUTE_NS = 60_000_000_000


class Allowance:
    """What may still be given."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self._given: deque[tuple[int, float]] = deque()  # (start host ns, open s) of the last minute
        self._session_ul = 0.0

    @property
    def session_ul(self) -> float:
        """All volume so far, uL."""
        return self._session_ul

    def volume_ul(self, open_s: float) -> float:
        """Volume of an open time by the calibration, uL."""
        return open_s * self._reward.ul_per_s

    def refusal(self, length_s: float, now_host_ns: int) -> tuple[str, str]:
        """Return the limit that a pulse of `length_s` would exceed now, and why; both "" if it may be given."""
        reward = self._reward
        if length_s > reward.max_pulse_s + 1e-9:
            return "max_pulse_s", f"a pulse of {length_s:g} s exceeds reward.max_pulse_s {reward.max_pulse_s:g} s"
        while self._given and now_host_ns - self._given[0][0] >= MINUTE_NS:
            self._given.popleft()
        minute_s = sum(s for _, s in self._given)
        if minute_s + length_s > reward.max_per_minute_s + 1e-9:
            return "max_per_minute_s", (
                f"{minute_s:.3f} s were given in the last minute; {length_s:g} s more exceed reward.max_per_minute_s "
                f"{reward.max_per_minute_s:g} s"
            )
        if self._session_ul + self.volume_ul(length_s) > reward.max_session_ml * 1000 + 1e-6:
            return "max_session_ml", (
                f"{self._session_ul:.1f} uL were given; {self.volume_ul(length_s):.1f} uL more exceed "
                f"reward.max_session_ml {reward.max_session_ml:g} mL"
            )
        return "", ""

    def given(self, open_s: float, start_host_ns: int) -> None:
        """Count an open time that began at `start_host_ns`."""
        self._given.append((start_host_ns, open_s))
        self._session_ul += self.volume_ul(open_s)

    def new_boot(self, start_host_ns: int) -> None:
        """Begin on the host clock of another boot, whose times cannot be compared with those before it.

        What was given in the last minute that there was counts as given now: how long the computer was off is not known
        for certain, and the limit must hold for the animal.
        """
        if self._given:
            last_ns = self._given[-1][0]
            self._given = deque((start_host_ns, s) for t, s in self._given if last_ns - t < MINUTE_NS)

    def logged(self, volume_ul: float, start_host_ns: int | None) -> None:
        """Count a reward of an earlier start of this process, by what the log says of it."""
        self._session_ul += volume_ul
        if start_host_ns is not None:
            self._given.append((start_host_ns, volume_ul / self._reward.ul_per_s))
