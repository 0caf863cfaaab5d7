"""When a child that died is started again. Pure; the supervisor (`rig.supervision.supervisor`) asks and does it.

The first restart is at once. Further ones within a minute wait, each twice as long as the one before, and too many of
them in a minute end the session: a child that cannot live must not keep an animal waiting.
"""

from collections import deque

MINUTE_NS = 60_000_000_000
FIRST_WAIT_NS = 500_000_000
LONGEST_WAIT_NS = 8_000_000_000


class Restarts:
    """The restarts of one child."""

    def __init__(self, most_per_minute: int) -> None:
        """Allow `most_per_minute` restarts within any minute."""
        self._most = most_per_minute
        self._deaths: deque[int] = deque()

    @property
    def lately(self) -> int:
        """Number of deaths in the minute before the last one, itself included."""
        return len(self._deaths)

    def died(self, now_ns: int) -> int | None:
        """Take a death at `now_ns`; return from when on it may be started again, None where it may not."""
        while self._deaths and now_ns - self._deaths[0] >= MINUTE_NS:
            self._deaths.popleft()
        self._deaths.append(now_ns)
        earlier = len(self._deaths) - 1
        if earlier >= self._most:
            return None
        return now_ns if earlier == 0 else now_ns + min(FIRST_WAIT_NS << (earlier - 1), LONGEST_WAIT_NS)
