"""Time courses of responses: when a unit begins to answer, and which window holds its answer. Pure.

Used by the screen agent. Counts in bins around the onset, summed for each image (blanks are one more) and for its odd
and even presentations. Which images a unit prefers is taken from the rates of one half; the time course of that
preference from the counts of the other:

    answer(t) = sum over images of weight(image; one half) * mean count(image, t; other half),

weights being mean rates less their mean over images. What does not depend on the image, such as the answer to the image
before in a random order, cancels; and as the halves are independent, the response window from which the rates come
leaves no mark in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.agents.types import F64

LEAST_REPEATS = 2  # of each image in each half, on average
BEYOND = 3.0  # standard errors by which the answer must stand out in two bins in a row; twice that in a single one
SHARE = 0.25  # of the peak at which the answer counts as ended
ROUNDED = 4  # decimals of s
LEAST_WINDOW_S = 0.03


@dataclass(frozen=True)
class Course:
    """One unit's answer; times from the onset, s."""

    latency_s: float
    """Begin of its first bin; NaN where there is none."""
    end_s: float
    """End of the last bin above a quarter of the peak, in one piece with it; NaN where there is none."""
    answer_hz: F64
    """(bin,) rate to the images that the unit prefers, less that to the others."""
    error_hz: F64
    """(bin,) standard error of that."""


class TimeCourses:
    """Sums of binned counts of some units."""

    def __init__(self, images: int, units: int, bins: int, start_s: float, bin_s: float) -> None:
        """Of `images` kinds of presentations; bins are `bin_s` long, the first begins `start_s` after the onset."""
        self._start_s, self._bin_s = start_s, bin_s
        self._next = np.zeros(images, np.int64)  # half of each image's next presentation
        self._number: F64 = np.zeros((2, images, units))
        self._rate: F64 = np.zeros((2, images, units))
        self._count: F64 = np.zeros((2, images, units, bins))
        self._baseline: F64 = np.zeros((images, units))
        self._square: F64 = np.zeros((units, bins))

    def take(self, image: int, rate_hz: F64, psth: F64, baseline_hz: F64 | None = None) -> None:
        """Take rates (unit,) and counts (unit, bin) of one presentation; NaN for a unit that was not there.

        `baseline_hz` (unit,) is what was subtracted from the rates, None for nothing.
        """
        half = int(self._next[image])
        self._next[image] = 1 - half
        known = np.isfinite(rate_hz) & np.isfinite(psth).all(axis=1)
        counts = np.where(known[:, None], psth, 0.0)
        self._number[half, image] += known
        self._rate[half, image] += np.where(known, rate_hz, 0.0)
        self._count[half, image] += counts
        self._square += counts**2
        if baseline_hz is not None:
            self._baseline[image] += np.where(known, baseline_hz, 0.0)

    def rates_hz(self, window_s: tuple[float, float]) -> F64:
        """Return mean rates (image, unit), less the baseline, in the bins of a window; NaN where nothing was taken."""
        edges = self.edges_s()
        inside = (edges[:-1] >= window_s[0] - 1e-9) & (edges[1:] <= window_s[1] + 1e-9)
        number = self._number.sum(axis=0)
        counts = self._count[..., inside].sum(axis=(0, 3)) / (self._bin_s * max(int(inside.sum()), 1))
        return np.where(number > 0, (counts - self._baseline) / np.maximum(number, 1), np.nan)

    def edges_s(self) -> F64:
        """Return the begins of the bins and the end of the last one (bin + 1,), s from the onset."""
        edges: F64 = np.round(self._start_s + self._bin_s * np.arange(self._square.shape[1] + 1), ROUNDED)
        return edges

    def course(self, unit: int) -> Course | None:
        """Return a unit's answer, None where too little was measured."""
        number = self._number[:, :, unit]
        shown = (number > 0).all(axis=0)
        if shown.sum() < 2 or number[:, shown].sum() < 2 * LEAST_REPEATS * shown.sum():
            return None
        number = number[:, shown]
        rate = self._rate[:, shown, unit] / number
        mean = self._count[:, shown, unit] / number[:, :, None]
        weight = rate - rate.mean(axis=1, keepdims=True)
        norm = float(np.abs(weight).sum())
        if norm == 0:
            return None
        # Within images and halves; a bin with hardly a spike is not known to be silent: one more in all of them.
        within = self._square[unit] - (number[:, :, None] * mean**2).sum(axis=(0, 1)) + 1.0
        variance = within / max(float(number.sum()) - number.size, 1.0)
        answer = sum((weight[1 - half][:, None] * mean[half]).sum(axis=0) for half in (0, 1))
        spread = sum(float((weight[1 - half] ** 2 / number[half]).sum()) for half in (0, 1))
        scale = 2 / norm / self._bin_s  # the positive weights sum to a quarter of the norm in each half
        return self._timed(np.asarray(answer) * scale, np.sqrt(variance * spread) * scale)

    def window(self, units: Sequence[int]) -> tuple[float, float] | None:
        """Return the window that holds what `units` answer together, None where nothing stands out."""
        known = [course for course in map(self.course, units) if course is not None]
        if not known:
            return None
        together = np.sum([course.answer_hz / course.error_hz for course in known], axis=0) / np.sqrt(len(known))
        course = self._timed(together, np.ones(len(together)))
        if not np.isfinite(course.latency_s):
            return None
        return course.latency_s, round(max(course.end_s, course.latency_s + LEAST_WINDOW_S), ROUNDED)

    def state(self) -> dict[str, Any]:
        """Return the sums."""
        names = ("next", "number", "rate", "count", "square", "baseline")
        return {name: getattr(self, f"_{name}").copy() for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of the same shape."""
        self._next = np.array(state["next"], np.int64)
        self._number, self._rate = np.array(state["number"]), np.array(state["rate"])
        self._count, self._square = np.array(state["count"]), np.array(state["square"])
        self._baseline = np.array(state["baseline"], np.float64)

    def _timed(self, answer: F64, error: F64) -> Course:
        edges = self.edges_s()
        size = np.where(edges[:-1] >= 0, answer / error, 0.0)
        pairs = (size[:-1] >= BEYOND) & (size[1:] >= BEYOND)
        first = np.flatnonzero(np.append(pairs, False) | (size >= 2 * BEYOND))
        if not len(first):
            return Course(float("nan"), float("nan"), answer, error)
        begin = int(first[0])
        peak = begin + int(np.argmax(answer[begin:]))
        end = peak
        while end + 1 < len(answer) and answer[end + 1] >= SHARE * answer[peak]:
            end += 1
        return Course(float(edges[begin]), float(edges[end + 1]), answer, error)
