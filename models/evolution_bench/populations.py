"""The neurons of the bench: V1 cells, published compact V4 models, readouts of a network. Frames in, true rates out.

A rate is the mean count of one presentation, response window 100 ms. Every neuron sees squares of 112 pixels.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.truth import V1, draw_cells
from models.truth_v4 import CompactModel, centred, load_model, softplus
from rig.config.evolution_bench import SIDE, BenchUnit

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
Neuron = Callable[[U8], F64]
"""Raw outputs (n,) for frames (n, y, x, rgb)."""

WINDOW_S = 0.1
V1_CELLS = 1000  # numbers to choose from; every cell is drawn with a seed of its own
V1_SEED = 5
DEGREES = 10.0
V4_BATCH = 8  # the first layer's maps of so many images stay in the processor's cache: 3 times as fast as 40


def neuron(unit: BenchUnit) -> Callable[[U8], F64]:
    """Return the true rates (n,) of `unit` as a function of frames (n, 112, 112, rgb)."""
    raw = raw_output(unit)
    if unit.population == "v1":
        return raw
    return lambda frames: softplus(unit.a * (raw(frames) - unit.center) / unit.spread + unit.b)


def raw_output(unit: BenchUnit) -> Neuron:
    """Return the function that a unit computes before scale and threshold; for V1 its rate."""
    if unit.population == "v1":
        return v1_cell(unit.number)
    if unit.population == "v4":
        if unit.models is None or unit.session is None:
            raise ValueError(f"{unit.name}: a V4 unit needs the folder and the session of its compact model")
        model = fused(load_model(unit.models, unit.session, unit.number))
        return lambda frames: compact_outputs(model, frames)
    from models.evolution_bench.deep import readout  # its network is an optional package

    return readout(unit.layer, unit.number)


def v1_cell(number: int) -> Neuron:
    """Return the rates of V1 cell `number` for frames on 10 x 10 degrees; even ones are simple, odd ones complex."""
    angles = (np.arange(SIDE) + 0.5) / SIDE * DEGREES - DEGREES / 2
    azimuth, elevation = np.meshgrid(angles, -angles)
    pair = draw_cells(2, azimuth, elevation, np.random.default_rng([V1_SEED, number]))
    cell = V1((pair[number % 2],), azimuth, elevation)
    levels = np.arange(256, dtype=np.float32) / np.float32(255)

    def rates(frames: U8) -> F64:
        return np.array([cell.rate_hz(levels[frame])[0] for frame in frames]) * WINDOW_S

    return rates


def fused(model: CompactModel) -> CompactModel:
    """Return the model with each normalisation folded into the convolution before it: same outputs to 1e-6, faster."""
    for k in range(5):
        name = "layer0_conv" if k == 0 else f"layer{k}_conv_point"
        convolution, norm = model.layers[name], model.layers[f"layer{k}_bn"]
        model.layers[name] = fuse_conv_bn_eval(convolution, norm)  # type: ignore[type-var, arg-type]
        model.layers[f"layer{k}_bn"] = nn.Identity()
    return model.eval()


def compact_outputs(model: CompactModel, frames: U8) -> F64:
    """Return the raw outputs (n,) of a compact model for frames (n, y, x, rgb), in small batches."""
    out = np.empty(len(frames))
    with torch.inference_mode():
        for k in range(0, len(frames), V4_BATCH):
            out[k : k + V4_BATCH] = model(centred(frames[k : k + V4_BATCH]).contiguous()).numpy()
    return out


@lru_cache(maxsize=2)
def cached_neuron(unit: BenchUnit) -> Callable[[U8], F64]:
    """Return `neuron(unit)`; the runs of a unit come one after the other."""
    return neuron(unit)
