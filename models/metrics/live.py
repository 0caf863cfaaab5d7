"""Scores while the session runs: each prediction is fixed before its response is seen.

Folded by whoever predicts held-out images, presentation by presentation. Pure; constant memory per image.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from models.metrics.formulas import FORMULAS
from models.metrics.intervals import Bootstrap, Estimate
from models.metrics.score import measure
from models.metrics.sums import ImageSums

F64 = npt.NDArray[np.float64]
LIVE = Bootstrap(draws=200)


class LiveScores:
    """Per-unit scores of the presentations told so far.

    `predict` before a presentation's response is known, then `tell`; a response that nobody predicted counts for the
    scores of the data alone (oracles, FEV, SNR), and for no score of the model. With a model that learns, each repeat
    of an image is scored with the prediction of its own time.
    """

    def __init__(self, units: int) -> None:
        """Start with nothing; `units` is the number of columns of predictions and responses."""
        if units < 1:
            raise ValueError("scores of no unit: give one or more")
        self._units = units
        self._at: dict[str, int] = {}
        self._data = ImageSums.empty(0, units)
        self._scored = ImageSums.empty(0, units)
        self._waiting: dict[str, tuple[str, F64]] = {}
        self._told: set[str] = set()

    def predict(self, presentation: str, image: str, prediction: F64) -> None:
        """Fix the prediction (unit,) for `presentation`, which will show `image`; NaN where a unit has none.

        `presentation` is any name that is used once. Raises ValueError after its response was told, or for a second
        prediction of it: a prediction that came after the fact is none.
        """
        if presentation in self._told:
            raise ValueError(f"presentation {presentation!r}: its response is known already; predict before `tell`")
        if presentation in self._waiting:
            raise ValueError(f"presentation {presentation!r} is predicted already; a prediction stands")
        self._waiting[presentation] = image, self._checked(prediction, "prediction").copy()

    def tell(self, presentation: str, image: str, response: F64) -> None:
        """Take the response (unit,) of a presentation; NaN where a unit has none. Told twice, it counts once.

        Raises ValueError if another image was predicted.
        """
        response = self._checked(response, "response")
        if presentation in self._told:
            return
        predicted = self._waiting.get(presentation)
        if predicted is not None and predicted[0] != image:
            raise ValueError(f"presentation {presentation!r} showed {image!r}, but {predicted[0]!r} was predicted")
        self._told.add(presentation)
        self._waiting.pop(presentation, None)
        if image not in self._at:
            self._at[image] = len(self._at)
            self._data.grow()
            self._scored.grow()
        row = np.array([self._at[image]])
        self._data.add(row, None, response[None])
        if predicted is not None:
            self._scored.add(row, predicted[1][None], response[None])

    def forget(self, presentation: str) -> None:
        """Drop the prediction of a presentation that was never shown or has no usable response."""
        self._waiting.pop(presentation, None)

    def figures(self, name: str, bootstrap: Bootstrap | None = LIVE) -> Estimate:
        """Return the score `name` of each unit, as of now."""
        if name in FORMULAS and not FORMULAS[name].predicts:
            return measure(name, self._data, bootstrap)
        return measure(name, self._scored, bootstrap)

    @property
    def images(self) -> tuple[str, ...]:
        """Return the images told so far, in order of first appearance."""
        return tuple(self._at)

    def state(self) -> dict[str, Any]:
        """Return everything that decides later figures: arrays and JSON-able values."""
        return {
            "images": list(self._at),
            "data": self._data.state(),
            "scored": self._scored.state(),
            "waiting": [[name, image, value.copy()] for name, (image, value) in self._waiting.items()],
            "told": sorted(self._told),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of scores of as many units. Raises ValueError for another number."""
        data, scored = ImageSums.restored(state["data"]), ImageSums.restored(state["scored"])
        if data.count.shape[1] != self._units:
            raise ValueError(f"this state has scores of {data.count.shape[1]} units, not of {self._units}")
        self._at = {str(name): k for k, name in enumerate(state["images"])}
        self._data, self._scored = data, scored
        self._waiting = {str(n): (str(i), np.array(v, np.float64)) for n, i, v in state["waiting"]}
        self._told = {str(name) for name in state["told"]}

    def _checked(self, values: F64, what: str) -> F64:
        values = np.asarray(values, np.float64)
        if values.shape != (self._units,):
            raise ValueError(f"the {what} is {values.shape}, but there are {self._units} units")
        return values
