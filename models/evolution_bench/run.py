"""One run of the bench: an optimiser against a simulated neuron, until its presentations are spent.

What an optimiser learns is noisy; what it is judged by is the true rate of the image that it nominates blind.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch

from models.evolution_bench.contestants import Contestant, build
from models.evolution_bench.noise import Stream, measured
from models.evolution_bench.populations import cached_neuron
from models.generators.factory import build_generator
from rig.config.evolution_bench import OURS, SIDE, BenchRun, Noise
from rig.config.generators import AnyGenerator
from stimuli.generators import Generator
from stimuli.search.drift import Drift
from stimuli.search.optimiser import Asked, Nominee, Scores

F64 = npt.NDArray[np.float64]
BACKGROUND = 128
DRIFT_WINDOW = 50.0  # presentations
CENTER_EVERY = 5  # generations between points of the curve of the search's centre: its picture must be decoded for it


def run(spec: BenchRun, now_ns: Callable[[], int]) -> dict[str, Any]:
    """Compute one run; return its row. `now_ns` measures the optimiser's own time."""
    torch.set_num_threads(1)  # several runs share the computer
    evolution = Evolution(spec, now_ns)
    while evolution.step():
        pass
    return evolution.row()


@lru_cache(maxsize=8)
def _generator(settings: AnyGenerator) -> Generator:
    return build_generator(settings, SIDE, SIDE, BACKGROUND)


def check_generator(settings: AnyGenerator) -> None:
    """Raise what a run would raise if this generator cannot be made."""
    _generator(settings)


class Evolution:
    """A run in progress."""

    def __init__(self, spec: BenchRun, now_ns: Callable[[], int]) -> None:
        self.spec, self._now_ns = spec, now_ns
        self._rates = cached_neuron(spec.unit)
        self._generator = _generator(spec.generator)
        seed = (spec.seed, crc32(spec.unit.name.encode()))
        self._stream = Stream(seed, spec.disturbed)
        self._optimiser: Contestant = build(
            spec.optimiser, self._generator.prior, spec.presentations, np.random.default_rng([*seed, 0])
        )
        self._true: dict[int, float] = {}  # of every code that was shown
        self._late: list[tuple[int, float, float]] = []
        self._drift = Drift(DRIFT_WINDOW) if spec.optimiser == OURS and spec.reference_share > 0 else None
        self._references_shown = 0
        self._owed = 0.0  # references, a fraction of one carried to the next generation
        self._update_ms: list[float] = []
        self._curve: list[tuple[int, float, float | None]] = []
        self.presentations, self.usable = 0, 0

    def step(self) -> bool:
        """Show a generation and tell its scores; return False if the budget has no room for it."""
        spec = self.spec
        asked, ask_ms = self._timed(self._optimiser.ask)
        owed = self._owed
        if self._drift is not None:
            owed += len(asked.code_ids) * spec.reference_share / (1 - spec.reference_share)
        references = int(owed)
        spent = self.usable if spec.disturbed else self.presentations
        expected = len(asked.code_ids) + references
        if spec.disturbed:
            expected = round(expected * 0.8)
        if spent + expected > spec.presentations:
            return False
        self._owed = owed - references
        told = self._show(asked)
        self._show_references(references)  # the tail of the generation, so that the correction is of now
        _, tell_ms = self._timed(lambda: self._optimiser.tell(self._corrected(told)))
        if self._curve:  # the first ask makes no update
            self._update_ms.append(ask_ms + tell_ms)
        center = self._center_rate() if len(self._curve) % CENTER_EVERY == 0 else None
        self._curve.append((self.presentations, self._true_rate(self._nominee()), center))
        return True

    def row(self) -> dict[str, Any]:
        """Return the result, of the optimiser as the last `ask` left it: updated with all that it was told."""
        spec, nominee, center = self.spec, self._nominee(), self._center_rate()
        if self._curve:
            self._curve[-1] = (*self._curve[-1][:2], center)
        return {
            "unit": spec.unit.name,
            "generator": spec.label,
            "noise": spec.noise,
            "optimiser": spec.optimiser,
            "seed": spec.seed,
            "disturbed": spec.disturbed,
            "presentations": self.presentations,
            "usable": self.usable,
            "references": self._references_shown,
            "images": len(self._true),
            "true_best": self._true_rate(nominee),
            "estimate": nominee.estimate,
            "measurements": nominee.measurements,
            "true_center": center,
            "best_shown": max(self._true.values()),
            "update_ms": float(np.median(self._update_ms)) if self._update_ms else None,
            "curve": self._curve,
            "key": spec.key,
        }

    # --- inside -------------------------------------------------------------------------------------------------------

    def _timed(self, call: Callable[[], Any]) -> tuple[Any, float]:
        start = self._now_ns()
        out = call()
        return out, (self._now_ns() - start) * 1e-6

    def _show(self, asked: Asked) -> list[tuple[int, float, float]]:
        """Show the codes of a generation in their order; return what is known before the next one.

        Rows are code, score (NaN: dropped) and the presentation's number, which stands for its time.
        """
        new = [k for k, code_id in enumerate(asked.code_ids) if code_id not in self._true]
        if new:  # a code that comes again is the same image
            rates = self._rates(self._generator.decode(asked.codes[new]))
            self._true.update({asked.code_ids[k]: float(r) for k, r in zip(new, rates, strict=True)})
        true = np.array([self._true[code_id] for code_id in asked.code_ids])
        first = float(self.presentations)
        scores, late = self._measure(true)
        rows = [(i, float(s), first + k) for k, (i, s) in enumerate(zip(asked.code_ids, scores, strict=True))]
        told = self._late + [row for row, later in zip(rows, late, strict=True) if not later]
        self._late = [row for row, later in zip(rows, late, strict=True) if later]
        return told

    def _show_references(self, count: int) -> None:
        """Show references in turn; a late one is lost, as good as dropped."""
        if self._drift is None or count == 0:
            return
        rates = self.spec.unit.natural_rates
        which = [(self._references_shown + k) % len(rates) for k in range(count)]
        self._references_shown += count
        first = float(self.presentations)
        scores, late = self._measure(np.array([rates[k] for k in which]))
        for k, reference in enumerate(which):
            if not late[k]:
                self._drift.tell(str(reference), float(scores[k]), first + k)

    def _corrected(self, rows: list[tuple[int, float, float]]) -> Scores:
        drift = self._drift
        scores = [score if drift is None else drift.correct(score, when) for _, score, when in rows]
        return Scores.of([code_id for code_id, _, _ in rows], scores)

    def _measure(self, true: F64) -> tuple[F64, npt.NDArray[np.bool_]]:
        """Present images of these rates; return scores, NaN where dropped, and which come late."""
        outcomes = self._stream.outcomes(len(true))
        noise: Noise = self.spec.noise
        scores = measured(true * outcomes.gain, self._stream.uniform(len(true)), noise)
        self.presentations += len(true)
        self.usable += int((~outcomes.dropped).sum())
        scores[outcomes.dropped] = np.nan
        return scores, outcomes.late

    def _nominee(self) -> Nominee:
        nominees = self._optimiser.nominate(1)
        if not nominees:
            raise RuntimeError(f"{self.spec.optimiser} nominates nothing after {self.presentations} presentations")
        return nominees[0]

    def _center_rate(self) -> float | None:
        """Return the true rate of the image in the middle of the search; looking at it costs no presentation here."""
        center = self._optimiser.center
        return None if center is None else float(self._rates(self._generator.decode(center[None]))[0])

    def _true_rate(self, nominee: Nominee) -> float:
        if nominee.code_id is not None and nominee.code_id in self._true:
            return self._true[nominee.code_id]
        return float(self._rates(self._generator.decode(nominee.code[None]))[0])
