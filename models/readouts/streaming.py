"""A streamed readout of feature vectors: plain ridge, or a Gaussian kernel; for any frozen core or bank of features."""

from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from models.in_steps import at_once
from models.readouts.inverse_factor import BLOCK
from models.readouts.kernels import Features, Kernel
from models.readouts.row_readout import RIDGES, RowReadout

F64 = npt.NDArray[np.float64]
Int = npt.NDArray[np.intp]


class StreamingReadout:
    """Kernel ridge per unit on feature vectors (trial, width), updated by each batch."""

    def __init__(self, kernel: Kernel, width: int, ridges: Sequence[float] = RIDGES, prior: bool = False) -> None:
        """As `RowReadout`; `width`: numbers per feature vector."""
        self.kernel, self.width = kernel, width
        self.readout = RowReadout(ridges, prior)
        self._ridges = tuple(float(r) for r in ridges)
        self._features = np.zeros((0, width))
        self._batches: list[tuple[tuple[str, ...], F64, F64 | None, F64 | None]] = []

    @property
    def trials(self) -> int:
        """Return how many trials have been taken, those without a response included."""
        return self.readout.trials

    @property
    def units(self) -> tuple[str, ...]:
        """Return the units that have had a response, in no order that means anything."""
        return self.readout.units

    def update(
        self,
        features: Features,
        units: Sequence[str],
        responses: F64,
        weights: F64 | None = None,
        prior: F64 | None = None,
    ) -> None:
        """Take features (b, width) and responses (b, unit) as `RowReadout.update`. Raises ValueError."""
        self.learn(features, self.kernel_rows(features), units, responses, weights, prior)

    def kernel_rows(self, features: Features) -> tuple[F64, F64]:
        """Return the kernel of new trials with those so far and among themselves: can be had before the responses."""
        features = np.asarray(features, dtype=np.float64)
        if features.shape != (len(features), self.width):
            raise ValueError(f"features {features.shape}: this readout takes {self.width} numbers of each trial")
        first = self.readout.trials
        now = np.arange(first, first + len(features))
        old = self.kernel.rows(features, self._features[:first], now, np.arange(first))
        return old, self.kernel.rows(features, features, now, now)

    def learn(
        self,
        features: Features,
        rows: tuple[F64, F64],
        units: Sequence[str],
        responses: F64,
        weights: F64 | None = None,
        prior: F64 | None = None,
    ) -> None:
        """Take a batch whose `kernel_rows` are there already."""
        at_once(self.learn_in_steps(features, rows, units, responses, weights, prior))

    def learn_in_steps(
        self,
        features: Features,
        rows: tuple[F64, F64],
        units: Sequence[str],
        responses: F64,
        weights: F64 | None = None,
        prior: F64 | None = None,
    ) -> Generator[None, None, None]:
        """Yield after each step of what `learn` does: of no use until the last one."""
        yield from self.readout.update_in_steps(*rows, units, responses, weights, prior)
        end = self.readout.trials
        first = end - len(features)
        if end > len(self._features):
            longer = np.zeros((max(end, 2 * len(self._features), BLOCK), self.width))
            longer[:first] = self._features[:first]
            self._features = longer
        self._features[first:end] = features
        kept = (None if x is None else np.array(x, dtype=np.float64) for x in (weights, prior))
        self._batches.append((tuple(units), np.array(responses, dtype=np.float64), *kept))  # type: ignore[arg-type]

    def copied_in_steps(self) -> Generator[None, None, "StreamingReadout"]:
        """Yield after each step; return a copy that learns on its own from here."""
        out = StreamingReadout(self.kernel, self.width, self._ridges, self.readout.prior)
        out.readout = yield from self.readout.copied_in_steps()
        out._features, out._batches = self._features.copy(), list(self._batches)  # no batch ever changes
        yield
        return out

    def predict(self, features: Features, units: Sequence[str], prior: F64 | None = None) -> F64:
        """Return predicted responses (n, unit) to features (n, width), as of now; NaN for units without two trials."""
        trials = self.readout.trials
        now = np.full(len(features), trials)
        rows = self.kernel.rows(features, self._features[:trials], now, np.arange(trials))
        return self.readout.predict(rows, units, prior)

    def weights(self, units: Sequence[str]) -> tuple[F64, F64]:
        """Return weights (width, unit) and means (unit,) of a linear kernel: response = features @ weights + mean."""
        if self.kernel.kind != "linear" or self.kernel.drift or self.readout.prior:
            raise ValueError("only a linear kernel without drift and prior mean has weights of features; use predict")
        alpha, means = self.readout.dual(units)
        return self._features[: self.readout.trials].T @ alpha / self.kernel.scale, means

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs: the batches as they came."""
        return {
            "kernel": asdict(self.kernel),
            "ridges": list(self._ridges),
            "prior": self.readout.prior,
            "features": self._features[: self.readout.trials].copy(),
            "batches": [
                {"units": list(u), "responses": y.copy(), "weights": w, "prior": p} for u, y, w, p in self._batches
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` was, bit for bit on one machine: the same batches are folded again."""
        features = state["features"]
        again = StreamingReadout(Kernel(**state["kernel"]), features.shape[1], state["ridges"], state["prior"])
        for batch in state["batches"]:
            first, y = again.readout.trials, batch["responses"]
            again.update(features[first : first + len(y)], batch["units"], y, batch["weights"], batch["prior"])
        self.__dict__.update(again.__dict__)
