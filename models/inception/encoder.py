"""The encoder that the inception agent fits while the session runs: a ridge readout of fixed features.

Behind the protocol of `models.encoders.encoder`, so that synthesis needs to know nothing of it. Used with the weights
of one moment; the next fit makes another one.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.encoders.encoder import Seen
from models.encoders.eye import Eye
from models.inception.features import COUNT, SIDE, features

F64 = npt.NDArray[np.float64]


def eye_for(background: int) -> Eye:
    """Return the eye of the encoder: luminance around the background, one unit half of the range of levels."""
    return Eye(SIDE, SIDE, 1, (float(background),), (127.5,))


class FeatureReadout:
    """Mean responses as weighted sums of fixed features (`models.inception.features`)."""

    def __init__(self, units: tuple[str, ...], eye: Eye, weights: F64, offset: F64) -> None:
        """`weights` (feature, unit) and `offset` (unit,), in the unit of the responses."""
        if weights.shape != (COUNT, len(units)) or offset.shape != (len(units),):
            raise ValueError(f"weights {weights.shape}, offset {offset.shape} for {COUNT} features, {len(units)} units")
        self.units, self.eye = units, eye
        self._weights, self._offset = weights, offset
        self._matrix = torch.from_numpy(weights.astype(np.float32))
        self._constant = torch.from_numpy(offset.astype(np.float32))

    @property
    def name(self) -> str:
        """What it is and a hash over everything that decides its output."""
        digest = hashlib.sha256(self._weights.tobytes() + self._offset.tobytes() + repr(self.eye).encode())
        return f"features-{digest.hexdigest()[:8]}"

    def rates(self, x: Tensor, units: Tensor | None = None) -> Tensor:
        """Return mean responses (n, unit) to what the eye sees (n, 1, SIDE, SIDE); `units`: columns wanted."""
        matrix, constant = self._matrix, self._constant
        if units is not None:
            matrix, constant = matrix[:, units], constant[units]
        return features(x) @ matrix + constant

    def seen(self, unit: int) -> Seen:
        """Return the whole picture: every feature may have a weight."""
        return Seen(0, SIDE, 0, SIDE)

    def state(self) -> dict[str, Any]:
        """Return the weights."""
        return {"weights": self._weights.copy(), "offset": self._offset.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over weights. Raises ValueError where they do not fit."""
        weights, offset = np.array(state["weights"], np.float64), np.array(state["offset"], np.float64)
        self.__init__(self.units, self.eye, weights, offset)  # type: ignore[misc]
