"""`stimloop bench refit`: a recorded session streamed into the online readouts, scored on images never learned.

Two readouts see the same images in the same order. `plain`: one block of the frozen network and kernel ridge, solved
once at the end. Ours: `models.readouts.learning`, updated batch by batch, its kernels tuned at each point of the
curve. All choices are made on training images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.metrics.score import r2_er
from models.readouts.learning import LearningReadout
from models.readouts.shelf import pooled
from models.refit_bench.features import feature_maps
from models.refit_bench.plain import plain_prediction
from models.refit_bench.recording import Session, Split, read, split
from models.refit_bench.scoring import correlations, gain, median
from rig.config.reading import ConfigError
from rig.config.refit_bench import RefitBench

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
Int = npt.NDArray[np.intp]

BLOCKS = (2, 4, 5, 7, 8, 12, 15)
SIDE_PX = 112
CELLS = 7
PLAIN_BLOCK = 7
FEWEST = 10  # images to tune on


@dataclass
class Point:
    """One split's figures at one number of images."""

    images_seen: int
    r: F64
    """Of each unit with the held-out images' mean responses, after the tuning at this point."""
    r_untuned: F64 | None
    """The same just before this tuning: what the updates had reached under the kernels of the point before."""
    r2_er: F64 | None
    max_abs_diff: float
    update_ms: list[float]
    tune_ms: float


def run(choices: RefitBench, now_ns: Callable[[], int], say: Callable[[str], None]) -> dict[str, Any]:
    """Compute the bench; return rows and figures, ready for JSON. Raises ConfigError and OSError."""
    session = read(choices.data, choices.session)
    begun = now_ns()
    maps = feature_maps(session.images, BLOCKS, SIDE_PX, choices.features)
    features_ms = (now_ns() - begun) / 1e6 / len(session.images)
    small = {b: pooled(m, CELLS) for b, m in maps.items()}
    say(f"session {choices.session}: {session.distinct} images, {session.responses.shape[1]} units")
    curves, plains = [], []
    for number in range(choices.splits):
        parts = split(session, choices.held_out, choices.seed + number)
        stream = Stream(session, parts, small, choices, now_ns, every_update=number == 0)
        curves.append(stream.run())
        plains.append(
            correlations(plain_prediction(session, parts, maps[PLAIN_BLOCK]), session.responses[parts.held_out])
        )
        last = curves[-1][-1]
        say(
            f"split {number}: median r {np.nanmedian(last.r):.3f} after {last.images_seen} images;"
            f" plain block {PLAIN_BLOCK} {np.nanmedian(plains[-1]):.3f}"
        )
    return _figures(choices, session, curves, plains) | {"features_ms": features_ms}


class Stream:
    """One split: its training images batch by batch."""

    def __init__(
        self,
        session: Session,
        parts: Split,
        maps: dict[int, F32],
        choices: RefitBench,
        now_ns: Callable[[], int],
        every_update: bool,
    ) -> None:
        """`every_update`: each update is compared with the batch solution, else only the last one before each point."""
        self.readout = LearningReadout()
        self._session, self._parts, self._maps, self._batch = session, parts, maps, choices.batch
        self._now_ns, self._every = now_ns, every_update
        self._units = tuple(f"unit{k:03d}" for k in range(session.responses.shape[1]))
        identity = session.identity[parts.training]
        self._seen = np.cumsum(np.diff(identity, prepend=-1) != 0)  # columns of one image follow each other
        if self._seen[-1] < FEWEST:
            raise ConfigError(f"--session {choices.session}: {self._seen[-1]} training images are too few")
        last = int(self._seen[-1])
        self._marks = sorted({m for m in choices.curve if FEWEST <= m < last} | {last})

    def run(self) -> list[Point]:
        """Return the curve's points."""
        points: list[Point] = []
        start, kernels = 0, list[F64]()
        for number, mark in enumerate(self._marks):
            stop = self._stop(mark)
            times, worst = [], 0.0
            for first in range(start, stop, self._batch):
                columns = self._parts.training[first : min(first + self._batch, stop)]
                times.append(self._learn(columns))
                if kernels and (self._every or first + self._batch >= stop):
                    worst = max(worst, self.readout.difference(kernels))
            untuned = correlations(self._predicted(), self._truth()) if kernels else None
            begun = self._now_ns()
            tuning = self.readout.retune()
            tuning.run()
            self.readout.install(tuning)
            tune_ms = (self._now_ns() - begun) / 1e6
            ahead = self._stop(self._marks[min(number + 1, len(self._marks) - 1)])
            kernels = self.readout.kernels_of({b: m[self._parts.training[:ahead]] for b, m in self._maps.items()})
            worst = max(worst, self.readout.difference(kernels))
            points.append(self._scored(mark, untuned, worst, times, tune_ms))
            start = stop
        return points

    def _stop(self, mark: int) -> int:
        """Return how many columns show the first `mark` images."""
        return int(np.searchsorted(self._seen, mark, side="right"))

    def _learn(self, columns: Int) -> float:
        """Take a batch; return how long the update took, ms: from the responses to the new predictions' weights."""
        maps = {b: m[columns] for b, m in self._maps.items()}
        rows = self.readout.rows(maps)  # of images that are on screen: before there is a response
        weights = np.maximum(self._session.repeats[columns], 1).astype(np.float64)
        begun = self._now_ns()
        self.readout.take(maps, self._units, self._session.responses[columns], weights, rows=rows)
        for readout in self.readout.streams():
            readout.solve()
        return (self._now_ns() - begun) / 1e6

    def _truth(self) -> F64:
        return self._session.responses[self._parts.held_out]

    def _predicted(self) -> F64:
        return self.readout.predict({b: m[self._parts.held_out] for b, m in self._maps.items()}, self._units)

    def _scored(self, mark: int, untuned: F64 | None, worst: float, times: list[float], tune_ms: float) -> Point:
        predicted, trials = self._predicted(), self._session.trials
        corrected = None
        if trials is not None:
            corrected = r2_er(predicted, trials[self._parts.held_out], None).value
        return Point(mark, correlations(predicted, self._truth()), untuned, corrected, worst, times, tune_ms)


def _figures(
    choices: RefitBench, session: Session, curves: Sequence[list[Point]], plains: Sequence[F64]
) -> dict[str, Any]:
    rows = [_row(points) for points in zip(*curves, strict=True)]
    final = [curve[-1] for curve in curves]
    plain = [median(r) for r in plains]
    return {
        "session": choices.session,
        "units": int(session.responses.shape[1]),
        "images": session.distinct,
        "held_out_images": round(choices.held_out * session.distinct),
        "responses": "averages" if session.trials is None else "single trials",
        "splits": choices.splits,
        "rows": rows,
        "plain_r_median": float(np.mean([r for r in plain if r is not None])),
        "plain_r_by_split": plain,
        "gain_over_plain": gain([p.r for p in final], list(plains)),
    }


def _row(points: Sequence[Point]) -> dict[str, Any]:
    by_split = [median(p.r) for p in points]
    untuned = [median(p.r_untuned) for p in points if p.r_untuned is not None]
    corrected = [median(p.r2_er) for p in points if p.r2_er is not None]
    times = [ms for p in points for ms in p.update_ms]
    return {
        "images_seen": points[0].images_seen,
        "heldout_r_median": _mean(by_split),
        "heldout_r_by_split": by_split,
        "heldout_r_untuned": _mean(untuned),
        "heldout_r2_er_median": _mean(corrected),
        "update_ms": median(np.array(times)),
        "update_ms_99": float(np.quantile(times, 0.99)),
        "tune_ms": float(np.median([p.tune_ms for p in points])),
        "max_abs_diff_to_batch": max(p.max_abs_diff for p in points),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [v for v in values if v is not None]
    return float(np.mean(defined)) if defined else None
