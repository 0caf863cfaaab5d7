"""Slow drift of a response's gain and offset, told by reference images that come again and again, taken out of scores.

Called by the evolve agent, one for each target. Pure: numbers in, numbers out; no draws; times are arguments, in any
unit (presentations, seconds) as long as `window` is in the same.

Model. Reference k scores on average, at time t,

    y_k(t) = mu_k (1 + g(t)) + h(t) + noise of variance v_k,

g the change of the gain, h the offset, both linear between knots, `KNOT_WINDOWS` windows apart. Prior: no drift at the
beginning, and random walks from there, from knot j - 1 to knot j

    g_0 = h_0 = 0,      g_j - g_(j-1) ~ N(0, r_g^2),      h_j - h_(j-1) ~ N(0, (s r_h)^2),      s = sd of the mu_k,

and a flat one for mu. Given r_g, r_h (and the last mu in the product) this is Bayesian linear regression, the estimates
are its posterior means: least squares, shrunken to "no drift" (Bishop 2006, eqs. 3.50-3.54). How much, the data say:
estimates are averaged over a grid of (r_g, r_h) that holds (0, 0), weighted with `PRIOR` and evidence (eq. 3.86), so
that steady responses are left nearly as they are and drifting ones are followed. v_k: half the mean square of
differences between presentations of reference k that follow each other, which slow drift hardly enters (von Neumann
1941), shrunken to the mean over references.

A score is corrected with the drift at its time, to what it would have been at the beginning:

    corrected = (score - h) / (1 + g).

No image is divided by. A reference that is no longer shown leaves its mu behind, and the others carry on. At least six
references that span the range of responses are needed to tell gain from offset; with fewer, or when all respond alike,
either explanation is as good, and both take a share.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from stimuli.search.optimiser import F64

STEPS = (0.0, 0.05, 0.15, 0.4)  # r_g, r_h: from none to 40 % between two knots
PRIOR = (0.8, 0.2 / 3, 0.2 / 3, 0.2 / 3)  # of these: a drift must be seen before it is corrected
KNOT_WINDOWS = 6
MOST_WINDOWS = 96  # more are joined in pairs: the cost of a fit and the memory stay bounded
LEAST_PAIRS = 6  # differences between presentations, over all references, before anything is corrected
PRIOR_PAIRS = 4  # weight of the mean variance in that of one reference
LEAST_GAIN = 0.2  # a response that fell to less than a fifth is not blown up further
NO_NOISE = 1e-12  # variance, relative to the variance between references, below which responses are called noise-free


@dataclass(frozen=True)
class Course:
    """Drift as fitted: `gain` (1 + g) and `offset` (knot,) at the times `knots` (knot,)."""

    knots: F64
    gain: F64
    offset: F64


class Drift:
    """Gain and offset over time, and scores without them."""

    def __init__(self, window: float = 50.0) -> None:
        """Follow changes over windows of `window` (presentations or seconds), about a generation each, or longer."""
        if not (np.isfinite(window) and window > 0):
            raise ValueError(f"a drift window of {window}; give a length of time above 0")
        self._window = float(window)
        self._names: list[str] = []
        # (reference, window): presentations, sum of scores
        self._count: F64 = np.zeros((0, 1))
        self._sum: F64 = np.zeros((0, 1))
        # (reference,): newest score, number and sum of squared differences between presentations in succession
        self._newest: F64 = np.zeros(0)
        self._pairs: F64 = np.zeros(0)
        self._squares: F64 = np.zeros(0)
        self._fitted: Course | None = None  # None: rows came since

    def tell(self, reference: str, value: float, when: float) -> None:
        """Take the score of a presentation of a reference at time `when` >= 0; NaN changes nothing."""
        if not (np.isfinite(when) and when >= 0):
            raise ValueError(f"reference {reference!r} at time {when}; times count from the beginning, from 0")
        if not np.isfinite(value):
            return
        if reference not in self._names:
            self._add(reference)
        row, at = self._names.index(reference), int(when // self._window)
        while at >= MOST_WINDOWS:
            self._join()
            at = int(when // self._window)
        if at >= self._count.shape[1]:
            more = ((0, 0), (0, at + 1 - self._count.shape[1]))
            self._count, self._sum = np.pad(self._count, more), np.pad(self._sum, more)
        if self._count[row].any():
            self._pairs[row] += 1
            self._squares[row] += (value - self._newest[row]) ** 2
        self._newest[row] = value
        self._count[row, at] += 1
        self._sum[row, at] += value
        self._fitted = None

    def correct(self, score: float, when: float) -> float:
        """Return what a score of time `when` would have been at the beginning; NaN stays NaN."""
        course = self.course()
        if course is None:
            return float(score)
        gain, offset = (float(np.interp(when, course.knots, x)) for x in (course.gain, course.offset))
        return (float(score) - offset) / max(gain, LEAST_GAIN)

    def course(self) -> Course | None:
        """Return the drift up to now; None while too little was told to say anything."""
        if self._pairs.sum() < LEAST_PAIRS or len(self._names) < 2:
            return None
        if self._fitted is None:
            self._fitted = self._fit()
        return self._fitted

    def state(self) -> dict[str, Any]:
        """Return arrays and JSON-able values."""
        return {
            "window": self._window,
            "names": list(self._names),
            "count": self._count.copy(),
            "sum": self._sum.copy(),
            "newest": self._newest.copy(),
            "pairs": self._pairs.copy(),
            "squares": self._squares.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state; the fit follows from it."""
        self._window, self._names = float(state["window"]), list(state["names"])
        self._count, self._sum = (np.array(state[k], dtype=np.float64) for k in ("count", "sum"))
        self._newest, self._pairs, self._squares = (
            np.array(state[k], dtype=np.float64) for k in ("newest", "pairs", "squares")
        )
        self._fitted = None

    def _add(self, reference: str) -> None:
        self._names.append(reference)
        self._count, self._sum = (np.pad(x, ((0, 1), (0, 0))) for x in (self._count, self._sum))
        for name in ("_newest", "_pairs", "_squares"):
            setattr(self, name, np.pad(getattr(self, name), (0, 1)))

    def _join(self) -> None:
        """Join neighbouring windows to windows of twice the length."""
        self._window *= 2
        for name in ("_count", "_sum"):
            x: F64 = getattr(self, name)
            x = np.pad(x, ((0, 0), (0, x.shape[1] % 2)))
            setattr(self, name, x[:, ::2] + x[:, 1::2])

    def _fit(self) -> Course:
        # Windows by knots: how much each knot counts at the middle of each window.
        place = (np.arange(self._count.shape[1]) + 0.5) / KNOT_WINDOWS
        numbers = np.arange(int(place[-1]) + 2)
        hats: F64 = np.asarray(np.maximum(0.0, 1.0 - np.abs(place[:, None] - numbers)), dtype=np.float64)
        knots: F64 = np.asarray(numbers * self._window * KNOT_WINDOWS, dtype=np.float64)
        mu: F64 = np.asarray(self._sum.sum(axis=1) / np.maximum(self._count.sum(axis=1), 1), dtype=np.float64)
        variance = self._variance(mu)
        for _ in range(2):  # the second time with mu of the beginning in the product g mu
            if not mu.std() > 0:
                return Course(knots, np.ones(len(knots)), np.zeros(len(knots)))
            evidence, solutions = self._solutions(mu, variance, hats[:, 1:])
            weights = np.exp(evidence - evidence.max())
            mean = (weights / weights.sum()) @ solutions
            mu, change, offset = np.split(mean, [len(mu), len(mu) + len(knots) - 1])
        return Course(knots, np.r_[1.0, 1.0 + change], np.r_[0.0, offset])

    def _variance(self, mu: F64) -> F64:
        """Return the noise variance (reference,) of one presentation."""
        pooled = self._squares.sum() / 2 / self._pairs.sum()
        out: F64 = (self._squares / 2 + PRIOR_PAIRS * pooled) / (self._pairs + PRIOR_PAIRS)
        floor = NO_NOISE * float(mu.var())
        return np.maximum(out, floor if floor > 0 else 1.0)

    def _solutions(self, slope: F64, variance: F64, hats: F64) -> tuple[F64, F64]:
        """Return log evidence (pair,) and mu, g_1.., h_1.. (pair, number) for each pair of steps of the grid."""
        weight, target = self._count / variance[:, None], self._sum / variance[:, None]
        references, later = len(slope), hats.shape[1]
        size, spread = references + 2 * later, float(slope.std())
        m, g, h = slice(0, references), slice(references, references + later), slice(references + later, size)
        # Normal equations of y = mu_k + slope_k hats g + hats h; slope: the last mu; g_0 = h_0 = 0 have no columns.
        normal, right = np.zeros((size, size)), np.zeros(size)
        normal[m, m] = np.diag(weight.sum(axis=1))
        normal[m, h] = weight @ hats
        normal[m, g] = slope[:, None] * (weight @ hats)
        normal[g, m], normal[h, m] = normal[m, g].T, normal[m, h].T
        normal[h, h] = hats.T @ (weight.sum(axis=0)[:, None] * hats)
        normal[g, h] = normal[h, g] = hats.T @ ((slope @ weight)[:, None] * hats)
        normal[g, g] = hats.T @ ((slope**2 @ weight)[:, None] * hats)
        right[m], right[g], right[h] = target.sum(axis=1), slope @ target @ hats, target.sum(axis=0) @ hats
        walk = 2 * np.eye(later) - np.eye(later, k=1) - np.eye(later, k=-1)
        walk[-1, -1] = 1  # precision of a random walk of unit steps from 0; its determinant is 1
        evidence, solutions = [], []
        for step_g, prior_g in zip(STEPS, PRIOR, strict=True):
            for step_h, prior_h in zip(STEPS, PRIOR, strict=True):
                free, precision, log_prior = np.ones(size, np.bool_), normal.copy(), 2 * np.log(prior_g * prior_h)
                for part, step in ((g, step_g), (h, spread * step_h)):
                    free[part] = step > 0
                    if step > 0:
                        precision[part, part] += walk / step**2
                        log_prior -= 2 * later * np.log(step)
                factor = cho_factor(precision[np.ix_(free, free)], lower=True)
                solution = np.zeros(size)
                solution[free] = cho_solve(factor, right[free])
                evidence.append(0.5 * (right @ solution + log_prior) - np.log(np.diag(factor[0])).sum())
                solutions.append(solution)
        return np.array(evidence), np.array(solutions)
