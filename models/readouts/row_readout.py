"""Readouts that learn during the session: after each batch of trials the exact ridge solution of every unit.

Takes kernel rows of what was shown (`models.readouts.streaming` and `.learning` make them) and responses with
holes; units may appear, die and miss single trials. A unit's readout is fitted to just the trials that have its
response. Units with the same holes share one growing factor; a batch that only some of a set respond to parts the set,
which costs a copy of the factor. Pure: no clock, no random draws.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.in_steps import at_once
from models.readouts.dual_ridge import DualRidge, Solution

F64 = npt.NDArray[np.float64]
Int = npt.NDArray[np.intp]

RIDGES = tuple(float(x) for x in 10.0 ** np.arange(-1.0, 2.1, 0.5))
"""Noise variance over signal variance, as a kernel of scale 1 has it: from nearly clean averages to single trials."""


@dataclass
class _Alike:
    """Units that have had responses in the same trials."""

    units: list[str]
    trials: Int
    ridge: DualRidge
    solution: Solution | None = None


@dataclass(frozen=True)
class Learned:
    """Trials of some units and what they have taught."""

    units: tuple[str, ...]
    trials: Int
    responses: F64
    """(trial, unit)."""
    weights: F64
    """(trial,)."""
    prior: F64 | None
    """(trial, unit)."""
    solution: Solution


class RowReadout:
    """Kernel ridge per unit, updated by each batch."""

    def __init__(self, ridges: Sequence[float] = RIDGES, prior: bool = False) -> None:
        """`ridges`: the grid from which each unit has its own, in the unit of the kernel.

        `prior`: each batch brings prior means, what the readout of an earlier session predicts.
        """
        self.prior, self.trials = prior, 0
        self._ridges = np.asarray(ridges, dtype=np.float64)
        self._alike: list[_Alike] = []

    @property
    def units(self) -> tuple[str, ...]:
        """Return the units that have had a response, in no order that means anything."""
        return tuple(unit for alike in self._alike for unit in alike.units)

    def update(
        self,
        old: F64,
        new: F64,
        units: Sequence[str],
        responses: F64,
        weights: F64 | None = None,
        prior: F64 | None = None,
    ) -> None:
        """Take a batch: kernel rows with all trials so far (b, n) and among themselves (b, b), responses (b, unit).

        NaN is a missing response. `weights` (b,) or (b, unit), 1 if not given: of how many presentations a response is
        the mean. `prior` (b, unit): the prior means, 0 for a unit that an earlier session does not know. Raises
        ValueError, and has then changed nothing; NotPositiveDefinite, for rows of no kernel, and is then of no use.
        """
        at_once(self.update_in_steps(old, new, units, responses, weights, prior))

    def update_in_steps(
        self,
        old: F64,
        new: F64,
        units: Sequence[str],
        responses: F64,
        weights: F64 | None = None,
        prior: F64 | None = None,
    ) -> Generator[None, None, None]:
        """Yield after each step of what `update` does: of no use until the last one."""
        responses = np.array(responses, dtype=np.float64)
        weights = np.ones(len(new)) if weights is None else np.asarray(weights, dtype=np.float64)
        if weights.ndim == 1 and responses.ndim == 2:
            weights = np.repeat(weights[:, None], responses.shape[1], axis=1)
        prior = None if prior is None else np.array(prior, dtype=np.float64)
        self._check(old, new, units, responses, weights, prior)
        weights = np.where(np.isnan(responses), 0.0, weights)
        first, self.trials = self.trials, self.trials + len(new)
        known = set(self.units)
        seen = np.flatnonzero((weights > 0).any(axis=0))
        if fresh := [units[k] for k in seen if units[k] not in known]:
            self._alike.append(_Alike(fresh, np.zeros(0, np.intp), DualRidge(self._ridges, len(fresh), self.prior)))
        column = {unit: k for k, unit in enumerate(units)}
        for alike in list(self._alike):
            for part, rows in self._parted(alike, column, weights):
                columns = [column[unit] for unit in part.units]
                mean = None if prior is None else prior[rows][:, columns]
                past = old[rows] if len(part.trials) == first else old[np.ix_(rows, part.trials)]
                given = responses[rows][:, columns]
                own = new[np.ix_(rows, rows)]
                yield from part.ridge.append_in_steps(past, own, given, weights[rows, columns[0]], mean)
                part.trials = np.concatenate([part.trials, rows + first])
                part.solution = None

    def _check(
        self, old: F64, new: F64, units: Sequence[str], responses: F64, weights: F64, prior: F64 | None
    ) -> None:
        b, shape = len(new), (len(new), len(units))
        if old.shape != (b, self.trials) or new.shape != (b, b):
            raise ValueError(f"kernel rows {old.shape} and {new.shape} do not continue {self.trials} trials")
        if responses.shape != shape or weights.shape != shape:
            raise ValueError(
                f"responses {responses.shape} and weights {weights.shape} do not fit {b} trials, {len(units)} units"
            )
        if len(set(units)) != len(units):
            raise ValueError("a unit is named twice")
        if not (np.isfinite(old).all() and np.isfinite(new).all()) or np.isinf(responses).any():
            raise ValueError("features and responses must be finite (a response that is missing is NaN)")
        if not (weights[~np.isnan(responses)] > 0).all() or np.isinf(weights).any():
            raise ValueError("the weight of a response must be positive and finite")
        if (prior is not None) != self.prior:
            raise ValueError("prior means come with every batch or with none, as the readout was made")
        if prior is not None and (prior.shape != shape or not np.isfinite(prior).all()):
            raise ValueError(f"prior means {prior.shape} must be finite numbers of shape {shape}")

    def _parted(self, alike: _Alike, column: dict[str, int], weights: F64) -> list[tuple[_Alike, Int]]:
        """Return the sets that a set becomes, where some of it lack what others have, and the batch's rows of each."""
        nothing = np.zeros(len(weights))
        patterns: dict[bytes, list[int]] = {}
        for k, unit in enumerate(alike.units):
            pattern = weights[:, column[unit]] if unit in column else nothing
            patterns.setdefault(pattern.tobytes(), []).append(k)
        parts = [alike]
        if len(patterns) > 1:
            self._alike.remove(alike)
            parts = [
                _Alike([alike.units[k] for k in members], alike.trials, alike.ridge.part(np.array(members)))
                for members in patterns.values()
            ]
            self._alike.extend(parts)
        rows = [np.flatnonzero(np.frombuffer(pattern)) for pattern in patterns]
        return [(part, taken) for part, taken in zip(parts, rows, strict=True) if len(taken)]

    def solve(self) -> None:
        """Bring every unit's solution up to date, which else happens at the first question."""
        at_once(self.solve_in_steps())

    def solve_in_steps(self) -> Generator[None, None, None]:
        """Yield after each step of what `solve` does."""
        for alike in self._alike:
            if alike.ridge.trials >= 2 and alike.solution is None:
                alike.solution = yield from alike.ridge.solution_in_steps()

    def copied_in_steps(self) -> Generator[None, None, "RowReadout"]:
        """Yield after each step; return a copy that learns on its own from here."""
        out = RowReadout(self._ridges.tolist(), self.prior)
        out.trials = self.trials
        for alike in self._alike:
            ridge = yield from alike.ridge.copied_in_steps()
            out._alike.append(_Alike(list(alike.units), alike.trials, ridge, alike.solution))
        return out

    def learned(self) -> Iterator["Learned"]:
        """Give what each set of units has learned from, and its solution; for checks."""
        for alike in self._alike:
            if alike.ridge.trials >= 2:
                yield Learned(tuple(alike.units), alike.trials, *alike.ridge.learned(), self._solved(alike))

    def _solved(self, alike: _Alike) -> Solution:
        if alike.solution is None:
            alike.solution = alike.ridge.solution()
        return alike.solution

    def predict(self, rows: F64, units: Sequence[str], prior: F64 | None = None) -> F64:
        """Return predicted responses (n, unit) from kernel rows with all trials (n, trial), as of now.

        NaN for units without two trials. `prior` (n, unit): the prior means, where the readout was made with them.
        """
        if (prior is not None) != self.prior:
            raise ValueError("give prior means to a readout that learned with them, and to no other")
        if rows.shape != (len(rows), self.trials):
            raise ValueError(f"kernel rows {rows.shape} do not fit {self.trials} trials")
        out = np.full((len(rows), len(units)), np.nan)
        for alike, wanted, columns in self._wanted(units):
            found = self._solved(alike)
            out[:, columns] = rows[:, alike.trials] @ found.alpha[:, wanted] + found.mean[wanted]
            if prior is not None:
                out[:, columns] += found.gain[wanted] * prior[:, columns]
        return out

    def _wanted(self, units: Sequence[str]) -> Iterator[tuple[_Alike, list[int], list[int]]]:
        """Give each set that can be solved, its wanted units and their columns in `units`."""
        column = {unit: k for k, unit in enumerate(units)}
        for alike in self._alike:
            wanted = [k for k, unit in enumerate(alike.units) if unit in column]
            if wanted and alike.ridge.trials >= 2:
                yield alike, wanted, [column[alike.units[k]] for k in wanted]

    def ridges(self, units: Sequence[str]) -> F64:
        """Return the ridge of each unit (unit,); NaN without two trials."""
        out = np.full(len(units), np.nan)
        for alike, wanted, columns in self._wanted(units):
            out[columns] = self._ridges[self._solved(alike).ridge[wanted]]
        return out

    def left_out(self, unit: str) -> tuple[Int, F64]:
        """Return a unit's trials (trial,) and the prediction of each from all others (trial,)."""
        for alike in self._alike:
            if unit in alike.units:
                return alike.trials, self._solved(alike).left_out[:, alike.units.index(unit)]
        raise ValueError(f"unit {unit} has had no response")

    def dual(self, units: Sequence[str]) -> tuple[F64, F64]:
        """Return dual weights (trial, unit), 0 for trials without a response, and means (unit,); NaN as `predict`."""
        out, means = np.full((self.trials, len(units)), np.nan), np.full(len(units), np.nan)
        for alike, wanted, columns in self._wanted(units):
            found = self._solved(alike)
            out[:, columns] = 0.0
            out[alike.trials[:, None], columns] = found.alpha[:, wanted]
            means[columns] = found.mean[wanted]
        return out, means
