"""What is believed of codes that were measured once or a few times: means, shrunken as far as their noise demands.

Part of the noise-aware search. A code of generation t has a true score drawn from N(m_t, v_t); each measurement adds
noise of variance s2. After n measurements of mean y, belief is the posterior (Efron & Morris 1973, with unequal n)

    mean = m_t + r (y - m_t),      variance = v_t (1 - r),      r = v_t / (v_t + s2 / n).

m_t: mean over the generation. v_t: what is left of the variance over the generation's codes without noise, a tenth of
it at least: there always is some difference, and a code must be able to prove it. s2: from differences between
measurements of the same image; the newest count most, because the noise of counts grows with the rate. It comes out too
large rather than too small, as lucky codes are measured again more often than others. A centre has no peers but its
neighbours in time: its m is the mean score of the centres around it, its v the variance of their true differences.
"""

from bisect import bisect_right
from typing import Any

import numpy as np

from stimuli.search.optimiser import F64

NOISE_KEPT = 0.97  # weight of older differences when one comes in: the newest 30 or so count
LEAST_DIFFERENCES = 5  # before, all of a generation's variance is taken for noise
NEIGHBOURS = 4  # centres on either side
CENTER_SPREAD = 0.05  # sd of true differences between neighbouring centres, relative to that within a generation
LEAST_TRUE = 0.1  # part of the variance over a generation that is taken for no noise, whatever repeats say
HELD = 400  # codes whose sums are kept


def normal_scores(scores: F64) -> F64:
    """Return the expected normal order statistics of scores (row,), nearly (Blom 1958); equal scores share theirs."""
    # Here and not above: every process reads the config, which names this module, and scipy takes half a second.
    from scipy.special import ndtri

    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # of equal ones their mean rank
    scored: F64 = ndtri((rank - 0.375) / (len(scores) + 0.25))
    out: F64 = scored - scored.mean()
    return out


class Beliefs:
    """Running sums of scores by code, generation statistics, and the noise."""

    def __init__(self) -> None:
        self._sums: dict[int, list[float]] = {}  # code: measurements, sum, newest
        self._peers: list[tuple[int, float, float]] = []  # first code of a generation, m_t, total variance
        self._centers: list[int] = []
        self._weight, self._squares = 0.0, 0.0  # of differences between measurements

    @property
    def noise(self) -> float | None:
        """Variance of a single measurement; None before there were enough repeats."""
        if self._weight < LEAST_DIFFERENCES:
            return None
        return self._squares / self._weight / 2

    def tell(self, code_id: int, score: float) -> None:
        """Take a measurement."""
        sums = self._sums.get(code_id)
        if sums is not None:
            self._difference(score - sums[2])
            sums[0] += 1
            sums[1] += score
            sums[2] = score
            return
        self._sums[code_id] = [1.0, score, score]
        if len(self._sums) > HELD:
            self._forget()

    def center(self, code_id: int) -> None:
        """Say that this code is the centre of a generation."""
        self._centers = [*self._centers, code_id][-4 * NEIGHBOURS :]

    @property
    def newest_center(self) -> int | None:
        """Identity of the newest centre; None before there is one."""
        return self._centers[-1] if self._centers else None

    @property
    def center_measurements(self) -> float:
        """Measurements behind the estimate of the newest centre: those of its neighbours count too."""
        return self._near(self._centers[-1])[0] if self._centers else 0.0

    def is_center(self, code_id: int) -> bool:
        """Return whether a code was the centre of a generation, as far as that is remembered."""
        return code_id in self._centers

    def settle(self, ids: tuple[int, ...], means: F64) -> None:
        """Take down mean and variance of a generation of codes `ids` with mean scores (row,), NaN = missing."""
        known = means[np.isfinite(means)]
        if len(known) < 2:
            return
        entry = (ids[0], float(known.mean()), float(known.var(ddof=1)))
        self._peers = [p for p in self._peers if p[0] != ids[0]]
        self._peers.append(entry)
        self._peers = sorted(self._peers)[-HELD:]

    def of(self, code_id: int | None) -> tuple[float, float]:
        """Return posterior mean and sd of a code that was measured."""
        assert code_id is not None  # noqa: S101 - only codes with identities are measured
        count, total, _ = self._sums.get(code_id, [0.0, 0.0, 0.0])
        middle, variance = self._prior(code_id)
        noise = self.noise
        between = 0.0 if noise is None else max(variance - noise, LEAST_TRUE * variance)
        if self.is_center(code_id):
            middle, between = self._around(code_id, middle), CENTER_SPREAD**2 * variance
        within = (variance if noise is None else noise) / max(count, 1.0)
        trust = between / (between + within) if between > 0 and count else 0.0
        mean = middle + trust * (total / max(count, 1.0) - middle)
        return mean, float(np.sqrt(between * (1 - trust)))

    @property
    def reliability(self) -> float | None:
        """Part of the variance over the newest generation that is no noise; None while that cannot be told."""
        noise, variance = self.noise, self._peers[-1][2] if self._peers else 0.0
        return None if noise is None or not variance > 0 else min(max(1 - noise / variance, 0.0), 1.0)

    def worth(self, count: F64) -> F64:
        """Return the weights (row,) that means of `count` measurements deserve: 1 for one, more for more."""
        known = self.reliability
        out: F64 = count / (1 + (count - 1) * (0.5 if known is None else known))
        return out

    def state(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "sums": [[k, *v] for k, v in self._sums.items()],
            "peers": [list(p) for p in self._peers],
            "centers": list(self._centers),
            "weight": self._weight,
            "squares": self._squares,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state."""
        self._sums = {int(k): [float(x) for x in v] for k, *v in state["sums"]}
        self._peers = [(int(k), float(m), float(v)) for k, m, v in state["peers"]]
        self._centers = [int(k) for k in state["centers"]]
        self._weight, self._squares = float(state["weight"]), float(state["squares"])

    def _difference(self, size: float) -> None:
        self._weight = NOISE_KEPT * self._weight + 1
        self._squares = NOISE_KEPT * self._squares + size**2

    def _prior(self, code_id: int) -> tuple[float, float]:
        """Return mean and variance of the generation a code belongs to; of the newest before it if that is unknown."""
        if not self._peers:
            return 0.0, 0.0
        at = max(bisect_right(self._peers, code_id, key=lambda p: p[0]) - 1, 0)
        return self._peers[at][1:]

    def _around(self, code_id: int, otherwise: float) -> float:
        count, total = self._near(code_id)
        return total / count if count else otherwise

    def _near(self, code_id: int) -> tuple[float, float]:
        """Return number and sum of the measurements of a centre and its neighbours in time."""
        at = self._centers.index(code_id)
        near = [self._sums[k] for k in self._centers[max(0, at - NEIGHBOURS) : at + NEIGHBOURS + 1] if k in self._sums]
        return sum(s[0] for s in near), sum(s[1] for s in near)

    def _forget(self) -> None:
        """Drop what is believed worst of the older half."""
        order = sorted(self._sums)
        old = sorted(order[: HELD // 2], key=lambda k: self.of(k)[0])
        for code_id in old[: HELD // 4]:
            del self._sums[code_id]
