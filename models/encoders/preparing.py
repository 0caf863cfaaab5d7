"""What a fit does before its first step: checks the data, and sets what follows from them without learning."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.encoders.network import Network
from models.encoders.readouts import Point
from models.encoders.recordings import Recording
from rig.config.encoders import Training

F64 = npt.NDArray[np.float64]

EPS = 1e-8  # in the logarithm, as published
LEAST_RATE = 0.05  # of the sd: where the bias of a unit that hardly responds begins
SPREAD = 1e-12  # variances below are none


def loss(predicted: Tensor, responses: Tensor, kind: str) -> tuple[Tensor, int]:
    """Return the loss summed over presentations and units (row, unit), and how many there are; NaN: no response.

    Poisson: p - r log(p + 1e-8), the likelihood up to a constant. Gaussian: (p - r)² / 2.
    """
    there = torch.isfinite(responses)
    r = torch.where(there, responses, 0.0)
    each = predicted - r * torch.log(predicted + EPS) if kind == "poisson" else (predicted - r).square() / 2
    return torch.where(there, each, 0.0).sum(), int(there.sum())


def check(network: Network, session: str, recording: Recording, training: Training) -> None:
    """Check that a recording can be fitted by this network. Raises ValueError."""
    part, eye, architecture = network.of(session), network.eye, network.architecture
    if tuple(recording.images.shape[1:]) != eye.shape:
        raise ValueError(f"session {session}: images are {tuple(recording.images.shape)}; the eye sees {eye.shape}")
    if recording.responses.shape[1] != len(part.units):
        raise ValueError(
            f"session {session}: responses of {recording.responses.shape[1]} units; the encoder has {len(part.units)}"
        )
    if not len(recording.training_rows) or len(recording.scoring_rows) < 2:
        raise ValueError(
            f"session {session}: {len(recording.training_rows)} presentations to train on and"
            f" {len(recording.scoring_rows)} held out; show more images, or hold out another share"
        )
    if training.loss == "poisson":
        if np.nanmin(recording.responses) < 0:
            raise ValueError(f"session {session}: a response is below 0; set training.loss to gaussian")
        if architecture.output == "none":
            raise ValueError("output none predicts rates below 0; set training.loss to gaussian, or another output")
    for name, values, wanted in (
        ("gaze", recording.gaze, 2 if architecture.gaze else 0),
        ("behaviour", recording.behaviour, architecture.behaviours),
    ):
        columns = 0 if values is None else values.shape[1]
        if columns != wanted:
            raise ValueError(f"session {session}: {columns} columns of {name}; the architecture takes {wanted}")


def prepare(network: Network, session: str, recording: Recording, rows: list[int] | slice) -> None:
    """Set scales (response sd) and biases of units `rows`, and the means and sds of gaze and behaviour.

    From training presentations alone. The bias makes the first prediction the unit's mean response.
    """
    part, trained = network.of(session), recording.training_rows
    responses = recording.responses[trained].astype(np.float64)
    there = np.isfinite(responses)
    count = np.maximum(there.sum(0), 1)
    mean = np.where(there, responses, 0).sum(0) / count
    variance = np.where(there, (responses - mean) ** 2, 0).sum(0) / count
    sd = np.where(variance > SPREAD, np.sqrt(np.maximum(variance, SPREAD)), 1.0)
    bias = _bias(mean / sd, network.architecture.output)
    with torch.no_grad():
        part.scale[rows] = torch.from_numpy(sd.astype(np.float32))[rows]
        part.readout.bias[rows] = torch.from_numpy(bias.astype(np.float32))[rows]
        for values, module in ((recording.gaze, part.shift), (recording.behaviour, part.gain)):
            if values is not None and module is not None:
                chosen = values[trained].astype(np.float64)
                spread = chosen.std(0)
                module.mean.copy_(torch.from_numpy(chosen.mean(0)))
                module.sd.copy_(torch.from_numpy(np.where(spread > 0, spread, 1.0)))


def trained_parameters(network: Network, frozen: bool) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name, in the network's order."""
    return {n: p for n, p in network.named_parameters() if not (frozen and n.startswith("core."))}


def keep_points_inside(network: Network, session: str) -> None:
    """Bring learned points that left the picture back to its border."""
    readout = network.of(session).readout
    if isinstance(readout, Point) and not readout.from_cortex:
        with torch.no_grad():
            readout.mu.clamp_(-1, 1)


def _bias(mean: F64, output: str) -> F64:
    """Return what `output` turns into `mean` (unit,)."""
    if output == "none":
        return mean
    mean = np.maximum(mean, LEAST_RATE)
    if output == "softplus":
        bias: F64 = mean + np.log(-np.expm1(-mean))
        return bias
    bias = np.where(mean >= 1, mean - 1, np.log(np.minimum(mean, 1)))
    return bias
