"""What is subtracted from a response: nothing, its own early window, or the early windows of the last presentations.

Pure; part of the response fold (`rig.responses.windows`). A pooled baseline needs presentations before it is worth
anything: of a single early window of 40 ms one spike makes 25 spikes/s. So the first responses of a session wait for
LEAST measured presentations and are then given out together, all with the same baseline. They wait no longer than the
model does: once the main part of the first proposal is measured, or after MOST_WAITING presentations, they go out with
what there is, and `Response.baseline_n` says how many that was. A guest decides for itself when to show the next image,
so nothing waits in its sessions.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rig.config.scoring import Baseline
from rig.messages import Proposal, Response

LEAST = 10  # presentations: their mean adds a tenth of the variance that a single one would
MOST_WAITING = 2 * LEAST  # presentations after which nothing waits, whatever was measured
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Waiting:
    response: Response
    length_s: float


def _mean_of_known(rows: F64) -> F64:
    """Return the mean over rows (row, unit), leaving out what is NaN; NaN where a unit has no row."""
    known = np.isfinite(rows)
    total = np.where(known, rows, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


class Baselines:
    """Completes closed responses, in their order."""

    def __init__(self, settings: Baseline) -> None:
        """Subtract what `settings` say."""
        self._kind = settings.kind
        # Early windows as counts of a response window, and the length of that, s: it may change in a session.
        self._pool: deque[tuple[F64, float]] = deque(maxlen=settings.pool)
        self._least = min(LEAST, settings.pool)
        self._waiting: list[_Waiting] = []
        self._main: set[tuple[int, int]] | None = None  # (proposal, slot) of the first one not closed; None: no plan
        self._closed = 0

    @property
    def waits(self) -> bool:
        """Whether responses wait for the pool."""
        if self._kind != "block" or not self._main or self._closed >= MOST_WAITING:
            return False
        return len(self._pool) < self._least

    def planned(self, proposal: Proposal) -> list[Response]:
        """Take note of what is to be measured; return what waits no longer."""
        if self._main is None:
            self._main = {(proposal.proposal, slot) for slot in range(proposal.tail_from)}
            return []
        self._main = set()
        return self.release()

    def take(self, response: Response, early: F64 | None = None, length_s: float = 1.0) -> list[Response]:
        """Take the next closed response; return those that are complete now, in the order in which they were taken.

        `early` (unit,) is what its own baseline window expects `count` to be, None without one; `length_s` is what
        `count` is divided by.
        """
        self._closed += 1
        if self._main is not None:
            self._main.discard((response.proposal, response.slot))
        if response.usable and early is not None and self._kind == "block":
            self._pool.append((early, length_s))
        elif response.usable:
            response = self._less(response, early, length_s, 1)
        self._waiting.append(_Waiting(response, length_s))
        return [] if self.waits else self.release()

    def release(self) -> list[Response]:
        """Complete whatever waits with what there is, and return it."""
        out = [
            self._less(one.response, self._pooled(one.length_s), one.length_s, len(self._pool))
            if one.response.usable and self._kind == "block"
            else one.response
            for one in self._waiting
        ]
        self._waiting.clear()
        return out

    def _pooled(self, length_s: float) -> F64 | None:
        """Return what the pool expects of a window of `length_s`, None where there is no pool."""
        if not self._pool:
            return None
        return _mean_of_known(np.array([early * (length_s / of_s) for early, of_s in self._pool]))

    @staticmethod
    def _less(response: Response, baseline: F64 | None, length_s: float, presentations: int) -> Response:
        """Return the response with its baseline, and its rate above it."""
        expected = np.zeros(len(response.count)) if baseline is None else baseline
        return response.model_copy(
            update={
                "baseline": expected,
                "baseline_n": None if baseline is None else presentations,
                "rate_hz": (response.count - expected) / length_s,
            }
        )
