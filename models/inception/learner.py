"""What the inception agent has learnt so far: the readout fitted to what was told, and its honest scores.

Held-out images are never in the fit. Pure; a fit makes a new learner and leaves the old one as it was. What takes long
yields after each step of about 10 ms.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from models.inception.features import COUNT, LINEAR
from models.metrics.intervals import Bootstrap
from models.metrics.score import scores
from models.readouts.kernels import Kernel
from models.readouts.primal import fit_in_steps
from models.readouts.streaming import StreamingReadout

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Rows = Sequence[tuple[int, F64]]  # image, rates (unit,)

# Of `models.metrics.formulas`: with the mean of the repeats, with the noise-free tuning, and the data's own ceiling.
SCORES = ("correlation_to_average", "r2_er", "oracle_jackknife")
INTERVALS = Bootstrap(draws=200)
RIDGES = tuple(float(x) for x in 10.0 ** np.arange(-1.0, 3.6, 0.5))  # noise over signal variance; single trials: high
LINEAR_RIDGES = tuple(LINEAR * ridge for ridge in RIDGES)  # for standardised features: squared length is their number


@dataclass(frozen=True)
class Learner:
    """Everything that was learnt from the natural images."""

    units: tuple[str, ...]
    scale: F64
    """(2, feature): mean and sd of the features over natural images, fixed before the first response."""
    scores: F64
    """(score of SCORES, unit, value and ends of its 95 % interval) on held-out images; NaN where not defined."""
    weights: F64
    """(feature, unit): with `offset` they predict rates; zeros for a unit without responses."""
    offset: F64
    """(unit,)."""
    presentations: int = 0
    """How many are in the fit."""
    told: tuple[tuple[F32, F64], ...] = ()
    """Of each fit: standardised features (presentation, feature) and rates (presentation, unit); () once `concluded`.

    The readout is derived from them.
    """
    linear: F64 | None = None
    """(linear feature, unit): weights of a readout of the linear features alone; None until `concluded`."""
    readout: StreamingReadout | None = None
    """Never changed once it is here: a fit changes a copy. None: the next fit begins with all that was told."""

    @staticmethod
    def empty(units: tuple[str, ...], features: F32) -> "Learner":
        """Return one that has seen nothing; `features` (image, feature) of natural images fix the scale of each."""
        sd = features.std(axis=0, dtype=np.float64)
        scale = np.stack([features.mean(axis=0, dtype=np.float64), np.where(sd > 0, sd, 1.0)])
        none = np.full((len(SCORES), len(units), 3), np.nan)
        return Learner(units, scale, none, np.zeros((COUNT, len(units))), np.zeros(len(units)))

    @property
    def score(self) -> F64:
        """Correlation (unit,) with the mean responses to held-out images; NaN where it is not defined."""
        out: F64 = self.scores[0, :, 0]
        return out

    @property
    def median_score(self) -> float:
        """Median of `score` over the units that have one; NaN where none has."""
        known = self.score[np.isfinite(self.score)]
        return float(np.median(known)) if len(known) else float("nan")

    def with_rows(self, x: F32, y: F64) -> Generator[None, None, "Learner"]:
        """Return one that was also told these: features (presentation, feature), rates (presentation, unit) or NaN.

        Raises RuntimeError where the readout is `forgotten`.
        """
        if self.forgotten:
            raise RuntimeError("the readout is not there any more; take the learner that is `remembered`")
        readout = _readout() if self.readout is None else (yield from self.readout.copied_in_steps())
        new = self._standard(x), self._begun(y)
        yield from self._learnt(readout, (new,))
        found, mean = readout.weights(self.units)
        found, mean = np.nan_to_num(found) / self.scale[1][:, None], np.nan_to_num(mean)
        yield
        return replace(
            self, weights=found, offset=mean - self.scale[0] @ found, presentations=self.presentations + len(y),
            told=(*self.told, new), readout=readout,
        )  # fmt: skip

    def _begun(self, y: F64) -> F64:
        """Return rates with NaN for units that have not begun: they begin with batch 0, 1, 2, 4, 8, 16, 32, 48, ...

        A unit that fires first in the middle of a batch would have presentations of its own to lack, and with them
        factors of its own, of the size of all others' together. So those that come late come in few groups.
        """
        some = np.isfinite(y).any(axis=1)
        begun = np.zeros(y.shape[1], np.bool_)
        for _, rates in self.told:
            begun |= np.isfinite(rates).any(axis=0)
        batch = len(self.told)
        if some.any() and (batch & (batch - 1) == 0 or batch % 16 == 0):
            begun |= np.isfinite(y[np.argmax(some)])  # there from the first presentation of this batch on
        return np.where(begun, y, np.nan)

    @property
    def forgotten(self) -> bool:
        """Whether the readout's factors must be computed before the next fit: after a restart."""
        return self.readout is None and bool(self.told)

    def remembered(self) -> Generator[None, None, "Learner"]:
        """Return one with the readout that all fits so far have led to, bit for bit; where it is there, itself."""
        if not self.forgotten:
            return self
        readout = _readout()
        yield from self._learnt(readout, self.told)
        return replace(self, readout=readout)

    def _learnt(self, readout: StreamingReadout, told: Sequence[tuple[F32, F64]]) -> Generator[None, None, None]:
        """Tell a readout what comes after what it was told."""
        for features, rates in told:
            rows = readout.kernel_rows(features)
            yield
            yield from readout.learn_in_steps(features, rows, self.units, rates)
        yield from readout.readout.solve_in_steps()

    def scored(self, test_x: F32, test: Rows) -> "Learner":
        """Return one with scores on held-out images: their features (image, feature), their rows so far."""
        if not self.presentations or not test:
            return self
        return self.scored_as(test_x @ self.weights + self.offset, test)

    def scored_as(self, predicted: F64, test: Rows) -> "Learner":
        """Return one with the scores of predicted rates (image, unit) of held-out images, whoever predicted them."""
        found = scores(predicted, table(test, len(predicted), len(self.units)), SCORES, INTERVALS)
        ordered = [found[name] for name in SCORES]
        return replace(self, scores=np.stack([np.stack([s.value, s.low, s.high], axis=1) for s in ordered]))

    def concluded(self) -> Generator[None, None, "Learner"]:
        """Return one that is told nothing more: with the linear receptive fields, without what it was told.

        The readout's factors and the features are nearly all of an agent's memory and of its snapshots.
        """
        x = [features[:, :LINEAR] for features, _ in self.told] or [np.empty((0, LINEAR), np.float32)]
        y = [rates for _, rates in self.told] or [np.empty((0, len(self.units)))]
        found = yield from fit_in_steps(np.concatenate(x), np.concatenate(y), LINEAR_RIDGES)
        linear = np.asarray(found.weights / self.scale[1, :LINEAR, None], np.float64)
        return replace(self, told=(), linear=linear, readout=None)

    def _standard(self, x: F32) -> F32:
        out: F32 = ((x - self.scale[0]) / self.scale[1]).astype(np.float32)
        return out

    def state(self) -> dict[str, Any]:
        """Return arrays and JSON-able values."""
        x, y = [x for x, _ in self.told], [y for _, y in self.told]
        return {
            "scale": self.scale.copy(),
            "scores": self.scores.copy(),
            "weights": self.weights.copy(),
            "offset": self.offset.copy(),
            "presentations": self.presentations,
            "features": np.concatenate(x) if x else np.empty((0, COUNT), np.float32),
            "rates": np.concatenate(y) if y else np.empty((0, len(self.units))),
            "together": [len(rates) for rates in y],
            "linear": None if self.linear is None else self.linear.copy(),
        }

    @staticmethod
    def restored(units: tuple[str, ...], state: dict[str, Any]) -> "Learner":
        """Return what `state` was taken of; the readout's factors are computed behind the next block, if one comes."""
        ends = np.cumsum(state["together"], dtype=np.int64)[:-1]
        x, y = np.split(np.array(state["features"], np.float32), ends), np.split(np.array(state["rates"]), ends)
        told = tuple(zip(x, y, strict=True)) if state["together"] else ()
        linear = None if state["linear"] is None else np.array(state["linear"], np.float64)
        scale, scores, weights, offset = (
            np.array(state[name], np.float64) for name in ("scale", "scores", "weights", "offset")
        )
        return Learner(units, scale, scores, weights, offset, state["presentations"], told, linear)


def _readout() -> StreamingReadout:
    return StreamingReadout(Kernel("linear", float(COUNT)), COUNT, RIDGES)  # standardised: squared length is COUNT


def table(rows: Rows, images: int, units: int) -> F64:
    """Return the rates (image, repeat, unit) of rows, NaN where an image has fewer repeats than another."""
    by_image: list[list[F64]] = [[] for _ in range(images)]
    for image, rates in rows:
        by_image[image].append(rates)
    out = np.full((images, max(len(of) for of in by_image), units), np.nan)
    for image, of in enumerate(by_image):
        for repeat, rates in enumerate(of):
            out[image, repeat] = rates
    return out


@dataclass(frozen=True)
class Judged:
    """What selection made of one unit."""

    unit: int
    against: tuple[str, ...]
    """Why no images are made for it; () for those that they are made for."""


def judged(
    learner: Learner, wanted: Sequence[bool], least_score: float, least_oracle: float, most: int
) -> tuple[Judged, ...]:
    """Return all units, first those that images are made for, by their score: no more than `most`.

    A unit must be `wanted`, be predicted on held-out images, and answer alike to their repeats.
    """
    score, oracle = learner.score, learner.scores[SCORES.index("oracle_jackknife"), :, 0]
    found = []
    for unit, asked_for in enumerate(wanted):
        against = [] if asked_for else ["not asked for"]
        if not score[unit] >= least_score:
            against.append("not predicted")
        if not oracle[unit] >= least_oracle:
            against.append("not reliable")
        found.append(Judged(unit, tuple(against)))
    good = sorted((one for one in found if not one.against), key=lambda one: -score[one.unit])
    crowded = [Judged(one.unit, ("others are better",)) for one in good[most:]]
    return (*good[:most], *crowded, *(one for one in found if one.against))
