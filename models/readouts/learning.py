"""The readout of a recording session: learns from each batch at once, and now and then chooses better kernels.

`take` brings a batch: the exact ridge solution under the present kernels, milliseconds. A `Retuning` runs in steps in
the background: it chooses kernels from the trials so far (`models.readouts.tuning`), folds all batches again under
them, and is then installed. Nothing here draws a random number or reads a clock: a replay that takes the same batches
and installs at the same trials has the same bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from models.readouts.batch import difference
from models.readouts.envelopes import CandidateDistances, Envelope, Similarity, grid, squared_distances
from models.readouts.row_readout import RowReadout
from models.readouts.shelf import Levels, Maps, Rounding, Shelf
from models.readouts.tuning import Chosen, choose, errors_of, gaussian, sample

F64 = npt.NDArray[np.float64]
Pairs = list[tuple[F64, F64]]


@dataclass(frozen=True)
class Rows:
    """The kernels of new images with all trials so far (b, n) and among themselves (b, b)."""

    tunings: int
    trials: int
    kernels: Pairs


@dataclass(frozen=True)
class Tuned:
    """How a readout is tuned."""

    envelopes: tuple[Envelope, ...] = field(default_factory=grid)
    """Candidates."""
    ridges: tuple[float, ...] = tuple(float(x) for x in 10.0 ** np.arange(-2.5, 1.1, 0.5))
    """Noise variance over signal variance."""
    kernels: int = 3
    """How many there may be at a time; the cost of an update is proportional."""
    kept_ridges: int = 2
    """Neighbouring ridges that each kernel keeps: a unit's own is chosen among them at every update."""
    most_sampled: int = 1000
    """Trials to choose kernels by; all trials are learned from."""
    drift: float = 0.0
    drift_trials: float = 1000.0


@dataclass(frozen=True)
class Batch:
    """Trials that came together."""

    levels: Levels
    units: tuple[str, ...]
    responses: F64
    """(trial, unit), NaN where there is none."""
    weights: F64
    """(trial, unit); 0 where there is no response."""
    prior: F64 | None
    """(trial, unit)."""


AT_ONCE = 50  # images to predict at a time


class _Streams:
    """The kernels of one tuning and what they have learned."""

    def __init__(self, chosen: tuple[Chosen, ...], prior: bool) -> None:
        self.chosen, self.shelf, self.batches = chosen, Shelf(), 0
        self.readouts = [RowReadout(c.ridges, prior) for c in chosen]
        self._kernel_of = {unit: k for k, c in enumerate(chosen) for unit in c.units}

    def rows(self, levels: Levels) -> Pairs:
        """Return the kernels of new images with those so far and among themselves."""
        trials = self.shelf.count
        if not trials:
            self.shelf.add({block: found[:0] for block, found in levels.items()})
        now, past = np.arange(trials, trials + len(next(iter(levels.values())))), np.arange(trials)
        found = squared_distances(self.shelf, levels, [c.similarity for c in self.chosen])
        return [
            (c.similarity.of(old, now, past), c.similarity.of(among, now, now))
            for c, (old, among) in zip(self.chosen, found, strict=True)
        ]

    def parts(self, units: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
        """Give each kernel and the columns of its units; units that were unknown at the tuning take the first."""
        for k in range(len(self.chosen)):
            yield k, [c for c, unit in enumerate(units) if self._kernel_of.get(unit, 0) == k]

    def learn(self, batch: Batch, rows: Pairs) -> None:
        for k, columns in self.parts(batch.units):
            names = [batch.units[c] for c in columns]
            prior = None if batch.prior is None else batch.prior[:, columns]
            weights = np.where(batch.weights > 0, batch.weights, 1.0)[:, columns]
            self.readouts[k].update(*rows[k], names, batch.responses[:, columns], weights, prior)
        self.shelf.add(batch.levels)
        self.batches += 1


class LearningReadout:
    """Predicts units' responses from the feature maps of a frozen core."""

    def __init__(
        self,
        tuned: Tuned | None = None,
        prior: bool = False,
        rounding: Rounding | None = None,
        chosen: tuple[Chosen, ...] = (),
    ) -> None:
        """Begin without trials; all but `tuned` are the warm start from an earlier session.

        `prior`: batches bring prior means, what the readout of that session predicts for the same units. `rounding`:
        that of the maps; None: taken from the first batch, which then must be typical. `chosen`: its kernels, used
        until there is a tuning; without them nothing is predicted before the first one.
        """
        self.tuned, self.prior = tuned or Tuned(), prior
        self.batches: list[Batch] = []
        self.rounding = rounding
        self._tunings = 0
        self._streams = _Streams(chosen, prior) if chosen else None

    @property
    def trials(self) -> int:
        """Return how many have been taken."""
        return sum(len(b.responses) for b in self.batches)

    @property
    def chosen(self) -> tuple[Chosen, ...]:
        """Return the kernels in use; none before the first tuning."""
        return () if self._streams is None else self._streams.chosen

    def rows(self, maps: Maps) -> Rows | None:
        """Return the kernels in use of images with all trials so far: can be had before their responses are there.

        None before the first batch, and before there are kernels.
        """
        if self._streams is None or self.rounding is None:
            return None
        return Rows(self._tunings, self.trials, self._streams.rows(self._levels(maps)))

    def _levels(self, maps: Maps) -> Levels:
        if self.rounding is None:
            raise ValueError("nothing has been taken yet: there is no rounding of maps")
        return self.rounding.levels(maps)

    def take(
        self,
        maps: Maps,
        units: Sequence[str],
        responses: F64,
        weights: F64 | None = None,
        prior: F64 | None = None,
        rows: Rows | None = None,
    ) -> None:
        """Learn from a batch, as `RowReadout.update`; `rows`: those of these maps, used if nothing has changed since.

        Before the first tuning a batch is only kept. Raises ValueError, and has then changed nothing.
        """
        responses = np.array(responses, dtype=np.float64)
        weights = np.ones(responses.shape) if weights is None else np.asarray(weights, dtype=np.float64)
        if weights.ndim == 1:
            weights = np.repeat(weights[:, None], responses.shape[1], axis=1)
        if weights.shape != responses.shape or responses.shape[1] != len(units):
            raise ValueError(f"responses {responses.shape}, weights {weights.shape} and {len(units)} units do not fit")
        if any(len(m) != len(responses) for m in maps.values()):
            raise ValueError(f"{len(responses)} responses, but maps of {[len(m) for m in maps.values()]} images")
        if (prior is not None) != self.prior:
            raise ValueError("prior means come with every batch or with none, as the readout was made")
        if np.isinf(responses).any() or (prior is not None and not np.isfinite(prior).all()):
            raise ValueError("responses and prior means must be finite (a response that is missing is NaN)")
        if prior is not None and prior.shape != responses.shape:
            raise ValueError(f"prior means {prior.shape} do not fit responses {responses.shape}")
        if not (weights[~np.isnan(responses)] > 0).all() or np.isinf(weights).any() or len(set(units)) != len(units):
            raise ValueError("the weight of a response must be positive and finite, and each unit be named once")
        weights = np.where(np.isnan(responses), 0.0, weights)
        if self.rounding is None:
            self.rounding = Rounding.like(maps)
        mean = None if prior is None else np.array(prior, dtype=np.float64)
        batch = Batch(self._levels(maps), tuple(units), responses, weights, mean)
        if self._streams is not None:
            fresh = rows is not None and (rows.tunings, rows.trials) == (self._tunings, self.trials)
            self._streams.learn(batch, rows.kernels if rows and fresh else self._streams.rows(batch.levels))
        self.batches.append(batch)

    def predict(self, maps: Maps, units: Sequence[str], prior: F64 | None = None) -> F64:
        """Return predicted responses (image, unit); NaN for units without responses, and before the first tuning."""
        count = len(next(iter(maps.values())))
        out = np.full((count, len(units)), np.nan)
        if self._streams is None or self.rounding is None:
            return out
        for first in range(0, count, AT_ONCE):
            here = slice(first, first + AT_ONCE)
            rows = self._streams.rows(self._levels({b: m[here] for b, m in maps.items()}))
            for k, columns in self._streams.parts(units):
                mean = None if prior is None else prior[here, columns]
                out[here, columns] = self._streams.readouts[k].predict(rows[k][0], [units[c] for c in columns], mean)
        return out

    def kernels_of(self, maps: Maps) -> list[F64]:
        """Return the kernels in use (image, image) of images shown in this order, made anew: for checks."""
        levels, similarities = self._levels(maps), [c.similarity for c in self.chosen]
        shelf, count = Shelf(), len(next(iter(levels.values())))
        shelf.add(levels)
        trials, parts = np.arange(count), []
        for first in range(0, count, AT_ONCE):
            here = slice(first, first + AT_ONCE)
            found = squared_distances(shelf, {b: x[here] for b, x in levels.items()}, similarities)
            parts.append([s.of(x, trials[here], trials) for s, (x, _) in zip(similarities, found, strict=True)])
        return [np.concatenate(rows) for rows in zip(*parts, strict=True)]

    def difference(self, kernels: Sequence[F64]) -> float:
        """Return how far the streamed solutions are from those solved at once, with `kernels_of` these trials."""
        n = self.trials
        return max(difference(r, kernel[:n, :n]) for r, kernel in zip(self.streams(), kernels, strict=True))

    def streams(self) -> list[RowReadout]:
        """Return the readouts of the kernels in use, for looking at."""
        return [] if self._streams is None else self._streams.readouts

    def retune(self) -> "Retuning":
        """Begin a tuning on all trials so far."""
        return Retuning(self)

    def install(self, retuning: "Retuning") -> None:
        """Use the kernels that a finished tuning has chosen. Raises ValueError if it has not caught up."""
        if retuning.streams is None or retuning.streams.batches != len(self.batches):
            raise ValueError("this tuning has not taken all batches yet: step it until it says that nothing is left")
        self._streams, self._tunings = retuning.streams, self._tunings + 1

    def state(self) -> dict[str, Any]:
        """Return the batches as they came and the kernels in use."""
        rounding = self.rounding
        return {
            "tunings": self._tunings,
            "rounding": None if rounding is None else {"centre": dict(rounding.centre), "step": dict(rounding.step)},
            "chosen": [
                {"similarity": asdict(c.similarity), "ridges": list(c.ridges), "units": list(c.units)}
                for c in self.chosen
            ],
            "batches": [vars(b) | {"units": list(b.units), "levels": dict(b.levels)} for b in self.batches],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` was, bit for bit on one machine: all batches are folded again under its kernels."""
        rounding = state["rounding"]
        self.rounding = None if rounding is None else Rounding(rounding["centre"], rounding["step"])
        self._tunings = state["tunings"]
        self.batches = [Batch(**b | {"units": tuple(b["units"])}) for b in state["batches"]]
        self._streams = None
        if state["chosen"]:
            self._streams = _Streams(tuple(_chosen(c) for c in state["chosen"]), self.prior)
            for batch in self.batches:
                self._streams.learn(batch, self._streams.rows(batch.levels))


def _chosen(state: dict[str, Any]) -> Chosen:
    parts = state["similarity"] | {
        "envelope": Envelope(**state["similarity"]["envelope"]),
        "power": tuple((int(block), float(power)) for block, power in state["similarity"]["power"]),
    }
    return Chosen(Similarity(**parts), tuple(state["ridges"]), tuple(state["units"]))


class Retuning:
    """The choice of kernels from the trials so far, in steps; changes nothing of the readout until it is installed."""

    def __init__(self, readout: LearningReadout) -> None:
        if not readout.batches:
            raise ValueError("there is no trial to tune on")
        self.batches = len(readout.batches)
        self.streams: _Streams | None = None
        self._readout = readout
        self._work = self._steps()

    def step(self) -> bool:
        """Do a little; return whether something is left. New batches may come between steps: they are taken too."""
        if next(self._work, None) is not None:
            return True
        return self._fold()

    def run(self) -> None:
        """Do all of it at once."""
        while self.step():
            pass

    def _fold(self) -> bool:
        if self.streams is None:
            raise RuntimeError("the tuning has failed: look at the first error")
        batches = self._readout.batches
        if self.streams.batches < len(batches):
            batch = batches[self.streams.batches]
            self.streams.learn(batch, self.streams.rows(batch.levels))
        return self.streams.batches < len(batches)

    def _steps(self) -> Iterator[int]:
        readout, how = self._readout, self._readout.tuned
        known = readout.batches[: self.batches]
        shelf = Shelf()
        for batch in known:
            shelf.add(batch.levels)
        taken = sample(shelf.count, how.most_sampled)
        apart = CandidateDistances(shelf, taken, how.envelopes)
        for block in shelf.sizes:
            apart.add(block)
            yield block
        units, y, w, p = _table(known, readout.prior)
        y, w, p = y[taken], w[taken], None if p is None else p[taken]
        errors, candidates = [], []
        for k, envelope in enumerate(how.envelopes):
            kernel, scale = gaussian(apart.of(k))
            errors.append(errors_of(kernel, y, w, p, how.ridges))
            candidates.append(Similarity(envelope, apart.powers[k], scale, how.drift, how.drift_trials))
            yield len(errors)
        chosen = choose(candidates, np.array(errors), units, how.ridges, how.kernels, how.kept_ridges)
        self.streams = _Streams(chosen, readout.prior)


def _table(batches: Sequence[Batch], with_prior: bool) -> tuple[tuple[str, ...], F64, F64, F64 | None]:
    """Return all units, and responses, weights and prior means (trial, unit): weight 0 where there is no response."""
    units = tuple(dict.fromkeys(unit for batch in batches for unit in batch.units))
    column = {unit: k for k, unit in enumerate(units)}
    shape = (sum(len(b.responses) for b in batches), len(units))
    y, w, p = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    first = 0
    for batch in batches:
        rows = slice(first, first + len(batch.responses))
        columns = [column[unit] for unit in batch.units]
        y[rows, columns], w[rows, columns] = np.nan_to_num(batch.responses), batch.weights
        if batch.prior is not None:
            p[rows, columns] = batch.prior
        first = rows.stop
    return units, y, w, p if with_prior else None
