"""What every score needs of each image, and nothing more: sums over its presentations, so that scores can be folded.

Called by `models.metrics.score` (a finished table) and `models.metrics.live` (presentation by presentation); both end
in the same sums, so a live figure and the figure of the finished session are the same number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
ANSCOMBE = 3.0 / 8.0

_COUNT, _SUM, _SQUARE, _ANSCOMBE, _PREDICTED, _PREDICTED_SQUARE, _PRODUCT = range(7)


@dataclass
class ImageSums:
    """Sums over the usable presentations of each image.

    A presentation is usable for a unit where its response is finite and, with predictions, its prediction too.
    """

    values: F64
    """(7, image, unit): what the properties name."""
    counts_only: Bool
    """(unit,): all responses so far were whole numbers, none negative."""

    @property
    def count(self) -> F64:
        """Usable presentations (image, unit)."""
        return self._row(_COUNT)

    @property
    def sum(self) -> F64:
        """Of responses (image, unit)."""
        return self._row(_SUM)

    @property
    def square(self) -> F64:
        """Of squared responses (image, unit)."""
        return self._row(_SQUARE)

    @property
    def anscombe(self) -> F64:
        """Of 2 sqrt(response + 3/8), the variance-stabilised count (image, unit); NaN below -3/8."""
        return self._row(_ANSCOMBE)

    @property
    def predicted(self) -> F64:
        """Of predictions (image, unit)."""
        return self._row(_PREDICTED)

    @property
    def predicted_square(self) -> F64:
        """Of squared predictions (image, unit)."""
        return self._row(_PREDICTED_SQUARE)

    @property
    def product(self) -> F64:
        """Of prediction times response (image, unit)."""
        return self._row(_PRODUCT)

    def _row(self, which: int) -> F64:
        row: F64 = self.values[which]
        return row

    @classmethod
    def empty(cls, images: int, units: int) -> "ImageSums":
        """Return sums over nothing."""
        return cls(np.zeros((7, images, units)), np.ones(units, np.bool_))

    @classmethod
    def of(cls, prediction: F64 | None, responses: F64) -> "ImageSums":
        """Return the sums of `responses` (image, repeat, unit), NaN where missing, and `prediction` (image, unit).

        Without a prediction those sums are zero. Raises ValueError for other shapes and for infinite values.
        """
        responses = np.asarray(responses, np.float64)
        if responses.ndim != 3:
            raise ValueError(f"responses are {responses.shape}; give (image, repeat, unit), NaN where one is missing")
        images, repeats, units = responses.shape
        out = cls.empty(images, units)
        if prediction is not None:
            prediction = np.asarray(prediction, np.float64)
            if prediction.shape != (images, units):
                raise ValueError(f"prediction is {prediction.shape}, but responses want {(images, units)}")
        everyone = np.arange(images)
        for k in range(repeats):
            out.add(everyone, prediction, responses[:, k])
        return out

    def add(self, images: npt.NDArray[np.intp], prediction: F64 | None, responses: F64) -> None:
        """Add presentations of different images: `prediction` and `responses` are (presentation, unit)."""
        if np.isinf(responses).any() or (prediction is not None and np.isinf(prediction).any()):
            raise ValueError("a response or prediction is infinite; give NaN where there is none")
        there = np.isfinite(responses)
        if prediction is not None:
            there &= np.isfinite(prediction)
        r = np.where(there, responses, 0.0)
        p = np.zeros_like(r) if prediction is None else np.where(there, prediction, 0.0)
        with np.errstate(invalid="ignore"):
            stable = np.where(there, 2 * np.sqrt(r + ANSCOMBE), 0.0)
        self.values[:, images] += np.stack([there.astype(np.float64), r, r * r, stable, p, p * p, p * r])
        self.counts_only &= ((r >= 0) & (r == np.rint(r))).all(axis=0)

    def grow(self) -> None:
        """Add an image of which nothing is known yet."""
        self.values = np.concatenate([self.values, np.zeros((7, 1, self.values.shape[2]))], axis=1)

    def part(self, units: slice) -> "ImageSums":
        """Return the sums of some units."""
        return ImageSums(self.values[:, :, units], self.counts_only[units])

    def state(self) -> dict[str, Any]:
        """Return all arrays."""
        return {"values": self.values.copy(), "counts_only": self.counts_only.copy()}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "ImageSums":
        """Return sums from their `state`."""
        return cls(np.array(state["values"], np.float64), np.array(state["counts_only"], np.bool_))


def by_image(images: Sequence[str], responses: F64) -> tuple[tuple[str, ...], F64]:
    """Return names and responses (image, repeat, unit) from presentations, images in order of first appearance.

    `images` names what each presentation showed, `responses` are (presentation, unit). Images with fewer repeats than
    the most repeated one are filled up with NaN.
    """
    responses = np.asarray(responses, np.float64)
    if responses.ndim != 2 or len(responses) != len(images):
        raise ValueError(f"responses are {responses.shape}; give (presentation, unit) for {len(images)} presentations")
    names = tuple(dict.fromkeys(images))
    at = {name: k for k, name in enumerate(names)}
    rows: list[list[int]] = [[] for _ in names]
    for k, name in enumerate(images):
        rows[at[name]].append(k)
    out = np.full((len(names), max((len(r) for r in rows), default=0), responses.shape[1]), np.nan)
    for image, presentations in enumerate(rows):
        out[image, : len(presentations)] = responses[presentations]
    return names, out
