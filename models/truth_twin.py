"""A published model of mouse V1 as the simulated animal: neurons of a SENSORIUM 2022 network, loaded from a file.

Willeke et al. 2022 (arXiv:2206.08666); the weights are never shipped. rate = `response_sd_hz` times output, whose unit
is the sd of each neuron's responses. A simulated population, never evidence about mice: nobody recorded these
responses.

The network takes 36 x 64 grey pixels. Its 36 rows are the image's side; what it sees left and right of the image is
grey, as is the screen there. Levels count as light times 255, and are standardised by the mean and sd of the training
images, which the published files lack: 110 and 60 are taken for them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from models.truth import GREY, LUMINANCE, unit_names
from rig.config.animal import Simulation
from rig.config.reading import ConfigError
from stimuli.spec import Place

if TYPE_CHECKING:
    from models.encoders.network import Network

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

ROWS, COLUMNS = 36, 64
TRAINING_MEAN, TRAINING_SD = 110.0, 60.0  # levels; of the training images as far as known
EDGE = 4  # pixels of the network's input between the place where a drawn neuron looks and the image's edge
FIELD = 12  # side of what a neuron sees for the most part, in the same pixels: its first layer's kernels have 9


@dataclass(frozen=True)
class View:
    """Where the network's 36 rows lie in what the eye sees: a square of `side` pixels at `top`, `left`."""

    top: int
    left: int
    side: int


class Twin:
    """Neurons of the network by number; unit k is neuron `numbers[k]`."""

    def __init__(self, network: "Network", numbers: I64, hz: float, view: View, place: Place) -> None:
        """`hz`: spikes/s of one response sd; `place`: where `view` lies on the screen."""
        self.numbers = numbers
        self.network = network
        self._which, self._hz, self._view, self._place = torch.from_numpy(numbers), hz, view, place

    @property
    def units(self) -> tuple[str, ...]:
        """Return the unit names."""
        return unit_names(len(self.numbers))

    @property
    def receptive_fields(self) -> tuple[Place, ...]:
        """Return where each neuron looks, and about how much of the screen it sees."""
        per_px = self._place.size_deg / ROWS
        away = (points_px(self.network)[self.numbers] - np.array([COLUMNS, ROWS]) / 2) * [per_px, -per_px]
        centres = (away + np.array(self._place.center_deg)).tolist()
        return tuple(Place(center_deg=(x, y), size_deg=FIELD * per_px) for x, y in centres)

    def rate_hz(self, image: F32) -> F64:
        """Return the rates (unit,), spikes/s, for `image` (y, x, 3), light 0 to 1: all that the eye sees."""
        grey = np.einsum("yxc,c->yx", image, LUMINANCE)
        with torch.inference_mode():
            levels = torch.from_numpy(self._framed(grey) * np.float32(255))[None, None]
            x = self.network.eye.see_levels(self.network.eye.reduce(levels))
            out: F64 = self.network.rates(x, self._which)[0].double().numpy() * self._hz
        return np.maximum(out, 0.0)  # ELU + 1 in single precision can be a rounding error below 0

    def _framed(self, light: F32) -> F32:
        """Return what lies in the network's field (36 : 64), grey where the eye sees nothing."""
        view = self._view
        width = round(view.side * COLUMNS / ROWS)
        left, height = view.left - (width - view.side) // 2, view.side
        out = np.full((height, width), GREY, np.float32)
        rows = slice(max(view.top, 0), min(view.top + height, light.shape[0]))
        columns = slice(max(left, 0), min(left + width, light.shape[1]))
        out[rows.start - view.top : rows.stop - view.top, columns.start - left : columns.stop - left] = light[
            rows, columns
        ]
        return out


def points_px(network: "Network") -> F64:
    """Return where each neuron looks, (neuron, 2): x and y in pixels of the input, 0 at its left and upper edge."""
    from models.encoders.readouts import Point

    readout = network.of(network.session).readout
    if not isinstance(readout, Point):
        raise TypeError(f"a point readout is needed, not {type(readout).__name__}")
    with torch.inference_mode():
        at = readout.points().double().numpy()
    # -1 and 1 are the centres of the first and the last feature; the first layer's kernels of 9 pixels are not padded.
    features = np.array([network.core.shape[2], network.core.shape[1]], np.float64)
    out: F64 = (at + 1) / 2 * (features - 1) + 4.5
    return out


def load(simulation: Simulation, view: View, place: Place) -> Twin:
    """Load the network of `simulation.weights` and choose its neurons; raises ConfigError.

    Sets torch to one thread: the animal shares the machine with what it is watching.
    """
    from models.encoders.sensorium import sensorium

    torch.set_num_threads(1)
    if simulation.weights is None:
        raise ConfigError("animal.weights: population twin needs the file of the published model")
    try:
        network = sensorium(simulation.weights, False, TRAINING_MEAN, TRAINING_SD)
    except (OSError, ValueError) as error:
        raise ConfigError(f"animal.weights: {error}") from error
    there = len(network.units)
    if simulation.numbers is not None:
        if (worst := max(simulation.numbers)) >= there:
            raise ConfigError(f"animal.numbers: neuron {worst} asked for; {simulation.weights} has 0 to {there - 1}")
        numbers = np.array(simulation.numbers, np.int64)
    else:
        numbers = _drawn(simulation, points_px(network))
    return Twin(network, numbers, simulation.response_sd_hz, view, place)


def _drawn(simulation: Simulation, points: F64) -> I64:
    """Draw neurons that look into the image: the square in the middle of the field, without its edge."""
    inside = ROWS / 2 - EDGE
    within = np.flatnonzero((np.abs(points - np.array([COLUMNS, ROWS]) / 2) <= inside).all(axis=1))
    if len(within) < simulation.neurons:
        raise ConfigError(
            f"animal.neurons: {simulation.neurons} asked for; of {simulation.weights} {len(within)} look into the image"
        )
    rng = np.random.default_rng(np.random.SeedSequence([simulation.seed, 1]))
    return np.sort(rng.choice(within, simulation.neurons, replace=False)).astype(np.int64)
