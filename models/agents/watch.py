"""Whether proposed units are still what they were at screening: told by references that are shown again. Pure.

Used by the model server in all phases after a screen. Whatever an agent shows as a reference (natural images among the
evolved ones, those of a confirmation block) says how a unit answers now. For one unit, s_i is what image i gave above
blank at screening, r_i the mean of its newest presentations less the newest blanks:

    gain   = sum s_i r_i / sum s_i^2,                         1: answers as it did, 0: not at all;
    level  = sum r_i / sum s_i,                               the same of the mean over images;
    tuning = sum (s_i - s) (r_i - r) / sum (s_i - s)^2,       0: prefers these images no more (s, r: means).

References are chosen by what they gave, so the best ones gave more than they usually do: s_i are shrunken towards the
mean of all images by the unit's reliability, the regression of the true rate on the measured one. An image that was not
screened (the same picture elsewhere or larger is another image) is compared with its own first presentations.

A unit is called changed where its gain lies beyond a limit by `BEYOND` standard errors; it is said once, and never
acted upon: the experiment and its unit are the experimenter's.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.agents.carried import Carried
from models.agents.types import F64, Told

NEWEST = 10  # presentations of each reference that say how a unit answers now
NEWEST_BLANKS = 40
LEAST_IMAGES, LEAST_REPEATS, LEAST_BLANKS = 4, 4, 6  # before anything is said of a unit
MOST_IMAGES = 100  # that are followed; agents that show thousands of references need no watch by all of them
BEYOND = 3.0  # standard errors
FIGURES = ("gain", "level", "tuning")
NO_MORE, LESS, MORE, LEAST_TUNING = 0.25, 0.5, 2.0, 0.25
GONE, WEAKER, STRONGER = "answers the references no more", "answers less than half as much", "answers more than twice"
OTHER = "prefers other images than it did"
WORSE = {"": 0, OTHER: 1, WEAKER: 2, STRONGER: 2, GONE: 3}  # what is said of a unit that was called changed before


@dataclass(frozen=True)
class Now:
    """How one unit answers now, relative to its screening."""

    gain: float
    gain_se: float
    level: float
    level_se: float
    tuning: float
    tuning_se: float
    images: int
    presentations: int

    @property
    def change(self) -> str:
        """What is different, "" for nothing that is sure."""
        high, low = self.gain + BEYOND * self.gain_se, self.gain - BEYOND * self.gain_se
        if self.tuning + BEYOND * self.tuning_se < LEAST_TUNING and self.level - BEYOND * self.level_se > NO_MORE:
            return OTHER
        if high < NO_MORE:
            return GONE
        if high < LESS:
            return WEAKER
        return STRONGER if low > MORE else ""


class Watch:
    """Follows the units that the newest screen proposed."""

    def __init__(self, carried: Sequence[Carried] = ()) -> None:
        """Watch what `carried` proposes; nothing where no phase has screened."""
        left = next((c for c in reversed(carried) if c.screened is not None), None)
        self._phase = -1 if left is None else left.phase
        self._screened = None if left is None else left.screened
        self._columns: tuple[int, ...] = ()
        # Image: what it gave (unit,) and over how many presentations; then its newest ones.
        self._then: dict[str, tuple[F64, F64]] = {}
        self._first: dict[str, list[F64]] = {}
        self._newest: dict[str, deque[F64]] = {}
        self._blanks: deque[F64] = deque(maxlen=NEWEST_BLANKS)
        self._said: dict[str, str] = {}
        if left is not None and left.screened is not None:
            self._columns = tuple(left.screened.units.index(name) for name in left.units)
            for m in left.references:
                columns = list(self._columns)
                self._then[m.stimulus.id] = m.rate_hz[columns], m.presentations[columns].astype(np.float64)
        self.units: tuple[str, ...] = () if left is None else left.units

    def following(self, carried: Sequence[Carried]) -> "Watch":
        """Return the watch of the next phase: this one, or a new one where a phase has screened since."""
        new = Watch(carried)
        if new._phase != self._phase:
            return new
        self._first = {name: rates for name, rates in self._first.items() if len(rates) >= NEWEST}
        known = self._then.keys() | self._first.keys()
        self._newest = {name: rates for name, rates in self._newest.items() if name in known}
        return self

    def take(self, told: Iterable[Told]) -> None:
        """Take outcomes in the order of their presentations."""
        for row in told if self.units else ():
            if row.rate_hz is None:
                continue
            rate_hz = np.asarray(row.rate_hz, np.float64)[list(self._columns)]
            if row.role == "blank":
                self._blanks.append(rate_hz)
            elif row.stimulus_id in self._then or len(self._first.get(row.stimulus_id, ())) >= NEWEST:
                self._newest.setdefault(row.stimulus_id, deque(maxlen=NEWEST)).append(rate_hz)
            elif row.role == "reference" and (row.stimulus_id in self._first or len(self._first) < MOST_IMAGES):
                self._first.setdefault(row.stimulus_id, []).append(rate_hz)

    def now(self) -> dict[str, Now]:
        """Return what is known of each unit by now; without those of which too little is."""
        if self._screened is None:
            return {}
        out = {}
        for k, name in enumerate(self.units):
            one = self._one(k, float(self._screened.reliability[self._columns[k]]))
            if one is not None:
                out[name] = one
        return out

    def report(self) -> dict[str, float]:
        """Return figures for the log.

        watched: units of which enough is known; changed: how many of them answer otherwise than at screening; for each,
        after `watch, UNIT`: gain, level and tuning with their standard errors, and `changed, WHAT` 1.
        """
        now = self.now()
        if not now:
            return {}
        out = {"watched": float(len(now)), "changed": float(sum(bool(one.change) for one in now.values()))}
        for name, one in now.items():
            figures = {f"{name}{se}": getattr(one, f"{name}{se}") for name in FIGURES for se in ("", "_se")}
            out |= {f"watch, {name}: {figure}": value for figure, value in figures.items() if np.isfinite(value)}
            if one.change:
                out[f"watch, {name}: changed, {one.change}"] = 1.0
        return out

    def news(self) -> list[str]:
        """Return in words what changed, or changed back, since it was last asked."""
        out = []
        for name, one in self.now().items():
            before = self._said.get(name, "")
            if one.change == before or 0 < WORSE[one.change] <= WORSE[before]:
                continue
            over = f"gain {one.gain:.2f} ± {one.gain_se:.2f}, tuning {one.tuning:.2f} ± {one.tuning_se:.2f}, over the "
            over += f"newest {one.presentations} presentations of {one.images} references; 1: as at screening"
            if one.change:
                self._said[name] = one.change
                out.append(f"{name} {one.change} ({over})")
            elif one.gain - one.gain_se > LESS and one.gain + one.gain_se < MORE and one.tuning > 2 * LEAST_TUNING:
                del self._said[name]  # well inside the limits again: no to and fro at a limit
                out.append(f"{name} answers about as it did again ({over})")
        return out

    def state(self) -> dict[str, Any]:
        """Return arrays and JSON-able values; what was left by phases is not in it."""
        return {
            "first": {name: np.array(rates) for name, rates in self._first.items()},
            "newest": {name: np.array(rates) for name, rates in self._newest.items()},
            "blanks": np.array(self._blanks).reshape(len(self._blanks), len(self.units)),
            "said": dict(self._said),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state of a watch over the same phases."""
        self._first = {name: list(rates) for name, rates in state["first"].items()}
        self._newest = {name: deque(rates, maxlen=NEWEST) for name, rates in state["newest"].items()}
        self._blanks = deque(state["blanks"], maxlen=NEWEST_BLANKS)
        self._said = dict(state["said"])

    def _one(self, k: int, reliability: float) -> Now | None:
        """Compare a unit's newest presentations of all references with what is known of them from before."""
        then, means, presentations, squares = [], [], [], 0.0
        for name, rows in self._newest.items():
            rates = np.array([row[k] for row in rows])
            rates = rates[np.isfinite(rates)]
            rate, count = self._before(name, k)
            if len(rates) >= LEAST_REPEATS and count >= LEAST_REPEATS:
                then.append((rate, count, float(name in self._then)))
                means.append(float(rates.mean()))
                presentations.append(len(rates))
                squares += float(((rates - rates.mean()) ** 2).sum())
        blanks = np.array([row[k] for row in self._blanks])
        blanks = blanks[np.isfinite(blanks)]
        if len(means) < LEAST_IMAGES or len(blanks) < LEAST_BLANKS or self._screened is None:
            return None
        noise = max(squares / (sum(presentations) - len(presentations)), 1e-9)  # variance of one presentation
        rate, count, screened = np.array(then).T
        mean = float(np.nanmean([rates[k] for rates, _ in self._then.values()]))
        share = np.full(len(rate), min(max(reliability, 0.0), 1.0))
        others = screened == 0
        if others.any():  # of images whose reliability is told by their spread alone
            spread = float(rate[others].var())
            share[others] = max(0.0, 1 - noise / float(count[others].mean()) / max(spread, 1e-12))
        center = np.where(others, rate[others].mean() if others.any() else 0.0, mean)
        expected = center + share * (rate - center) - float(self._screened.blank_hz[self._columns[k]])
        above, spread_of = np.array(means) - blanks.mean(), np.array([float(n) for n in presentations])
        blank_variance = float(blanks.var()) / len(blanks)
        return _compared(expected, share * noise / count, above, noise / spread_of, blank_variance, sum(presentations))

    def _before(self, name: str, k: int) -> tuple[float, float]:
        """Return what an image gave a unit at first, and over how many presentations."""
        if name in self._then:
            rate, count = self._then[name]
            return (float(rate[k]), float(count[k])) if np.isfinite(rate[k]) else (0.0, 0.0)
        rates = np.array([row[k] for row in self._first.get(name, ())])
        rates = rates[np.isfinite(rates)]
        return (float(rates.mean()), float(len(rates))) if len(rates) else (0.0, 0.0)


def _compared(s: F64, s_variance: F64, r: F64, r_variance: F64, blank_variance: float, presentations: int) -> Now:
    """Return gain and tuning of rates `r` by expected ones `s`, each (image,) above blank."""

    def slope(x: F64, s: F64) -> tuple[float, float]:  # x r over x s, and its standard error
        along = float(x @ s)
        if abs(along) < 1e-9:
            return float("nan"), float("inf")
        at = float(x @ r) / along
        variance = float(x**2 @ (r_variance + at**2 * s_variance)) + float(x.sum()) ** 2 * blank_variance
        return at, float(np.sqrt(variance)) / abs(along)

    return Now(*slope(s, s), *slope(np.ones(len(s)), s), *slope(s - s.mean(), s), len(s), presentations)
