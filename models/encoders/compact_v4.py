"""Published compact models of macaque V4 neurons as an encoder, from a folder that the user gives.

Cowley, Stan, Pillow, Smith (bioRxiv 2023.11.22.568315); `models.truth_v4` reads the files and holds the network.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.encoders.encoder import Seen
from models.encoders.eye import Eye
from models.encoders.weights import digest_of, take_weights, weights_of
from models.truth_v4 import (
    MEAN_RGB,
    SIDE,
    CompactModel,
    fit_rate,
    load_model,
    neuron_numbers,
    outputs,
    recorded_counts,
    recorded_images,
)

EYE = Eye(SIDE, SIDE, 3, MEAN_RGB, (1.0,))


class CompactV4(nn.Module):
    """One network for each unit. Rate = softplus(a · output + b), or the output itself without operating points.

    Spikes per 100 ms; the plain output has an arbitrary offset and scale and is often negative.
    """

    def __init__(self, models: Mapping[str, CompactModel], operating_points: Tensor | None = None) -> None:
        """Take models by unit name; `operating_points` (unit, 2): a and b of each."""
        super().__init__()
        self._names = tuple(models)
        self.models = nn.ModuleList(models.values())
        self.rectified = operating_points is not None
        self.register_buffer("operating_points", torch.zeros(len(models), 2))
        if operating_points is not None:
            self.operating_points.copy_(operating_points)
        self.eval().requires_grad_(False)

    operating_points: Tensor

    @property
    def units(self) -> tuple[str, ...]:
        """Return the units' names."""
        return self._names

    @property
    def eye(self) -> Eye:
        """Return the eye: 112 x 112, colours, the published means."""
        return EYE

    @property
    def name(self) -> str:
        """Return what it is and a hash over units and weights."""
        return f"compact_v4-{digest_of(self, self._head())}"

    def rates(self, x: Tensor, units: Tensor | None = None) -> Tensor:
        """Return mean responses (n, unit); only the wanted units' networks are computed."""
        wanted = list(range(len(self._names))) if units is None else [int(k) for k in units]
        x = x.contiguous(memory_format=torch.channels_last)
        found = torch.stack([self.models[k](x) for k in wanted], 1)
        if not self.rectified:
            return found
        a, b = self.operating_points[wanted].T
        return nn.functional.softplus(a * found + b)

    def seen(self, unit: int) -> Seen:
        """Return the whole picture: the readout is dense."""
        return Seen(0, SIDE, 0, SIDE)

    def state(self) -> dict[str, Any]:
        """Return units and weights."""
        return {**self._head(), "weights": weights_of(self)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the state of an encoder of the same units. Raises ValueError."""
        mine = self._head()
        if any(state.get(key) != mine[key] for key in mine):
            raise ValueError(f"compact V4: the state is of {state.get('units')}, this encoder of {list(self._names)}")
        take_weights(self, state["weights"])

    def _head(self) -> dict[str, Any]:
        return {"kind": "compact_v4", "units": list(self._names), "rectified": self.rectified}


def compact_v4(
    folder: Path, session: str, neurons: int | None = None, recorded: Path | None = None, fit_images: int = 200
) -> CompactV4:
    """Load the first `neurons` (None: all) published models of a session; raises ConfigError.

    `folder` holds models_torch and nums_filters. `recorded`: a folder with images and responses_averaged, whose first
    `fit_images` pictures set the operating points; without it rates are the plain outputs.
    """
    numbers = neuron_numbers(folder, session)[:neurons]
    models = {f"neuron{n}": load_model(folder, session, n) for n in numbers}
    if recorded is None:
        return CompactV4(models)
    pictures, counts = recorded_images(recorded, session, fit_images), recorded_counts(recorded, session)
    points = [
        fit_rate(outputs(model, pictures), counts[n, : len(pictures)])
        for n, model in zip(numbers, models.values(), strict=True)
    ]
    return CompactV4(models, torch.from_numpy(np.array(points)))
