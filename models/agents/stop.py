"""When an evolution ends: the stop rules of the config, besides its number of generations.

Part of the evolve agent. Pure.
"""

from collections.abc import Sequence

import numpy as np

from rig.config.evolution import Stop

Reshown = Sequence[tuple[float, float, int]]  # of each winner: mean score of its re-shows, their variance, their number


class Lately:
    """Which of the last presentations were usable."""

    def __init__(self, over: int) -> None:
        """Look at the last `over` presentations."""
        self._over = over
        self._usable: list[bool] = []

    def take(self, usable: bool) -> None:
        """Take one."""
        self._usable = [*self._usable[-(self._over - 1) :], usable]

    def unusable_share(self) -> float:
        """Return the share that was not usable; 0 while there were fewer than are looked at."""
        if len(self._usable) < self._over:
            return 0.0
        return 1.0 - sum(self._usable) / self._over

    def state(self) -> list[bool]:
        """Return JSON-able values."""
        return list(self._usable)

    def restore(self, state: list[bool]) -> None:
        """Take over a state."""
        self._usable = list(state)


def plateau(reshown: Reshown, generations: int) -> bool:
    """Return whether re-shows of the last `generations` winners are no better than those of as many before.

    No better: the mean has not risen by more than the standard error of the difference, which holds the spread of the
    winners' means and so their noise too.
    """
    if len(reshown) < 2 * generations:
        return False
    late = np.array([mean for mean, _, _ in reshown[-generations:]])
    early = np.array([mean for mean, _, _ in reshown[-2 * generations : -generations]])
    error = float(np.sqrt((late.var(ddof=1) + early.var(ddof=1)) / generations))
    return bool(late.mean() - early.mean() <= error)


def stopped(stop: Stop, reshown: Sequence[Reshown], shown: int, next_size: int, unusable: float) -> str | None:
    """Return in words which rule holds, None if none does.

    `reshown`: of each target; `shown`: presentations of the phase so far, tail included; `next_size`: those of the next
    batch; `unusable`: share of the last presentations.
    """
    if stop.unusable_share is not None and unusable >= stop.unusable_share:
        return (
            f"{unusable:.0%} of the last {stop.unusable_over} presentations were not usable: the animal stopped "
            "looking, or the recording is at fault"
        )
    if stop.presentations is not None and shown + next_size > stop.presentations:
        return f"the budget of {stop.presentations} presentations is used up"
    k = stop.plateau_generations
    if k is not None and reshown and all(plateau(one, k) for one in reshown):
        of = "all targets" if len(reshown) > 1 else "its target"
        return f"plateau: re-shows of the last {k} generations were not better than those of {k} before, for {of}"
    return None
