"""Published models of mouse V1 as encoders, from files that the user gives: SENSORIUM 2022, the CNN and its LN control.

Willeke et al. 2022 (arXiv:2206.08666). Weights are never shipped. A file must hold exactly the expected tensors; the
error names the first that does not fit.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.encoders.cores import LAPLACE
from models.encoders.eye import Eye
from models.encoders.network import Network
from models.generators.state_dicts import State, read_state
from rig.config.encoders import Architecture

HEIGHT, WIDTH = 36, 64
LAPLACIAN = "core._input_weights_regularizer.laplace.filter"  # a constant of the training, in every file
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def sensorium(path: Path, linear: bool, mean: float, sd: float) -> Network:
    """Load core and readout of a SENSORIUM 2022 checkpoint: the CNN, or (`linear`) its control. Raises ValueError.

    `mean`, `sd`: of the levels of the training images, which the files lack. Rates are in units of each neuron's
    response sd. Units are called n0, n1, ... in the file's order; the session is named as in the file.
    """
    state = read_state(path, "SENSORIUM 2022 weights")
    layers = 3 if linear else 4
    features = [key for key in state if key.startswith("readout.") and key.endswith("._features")]
    if len(features) != 1:
        raise ValueError(
            f"{path}: expected one tensor readout.SESSION._features, found {len(features)}; this is no SENSORIUM 2022"
            " model of one recording"
        )
    session = features[0].removeprefix("readout.").removesuffix("._features")
    units, channels = int(state[features[0]].shape[-1]), 64
    _check(state, _shapes(layers, channels, units, session), path)
    if not torch.equal(state[LAPLACIAN], torch.tensor(LAPLACE).reshape(1, 1, 3, 3)):
        raise ValueError(f"{path}: tensor {LAPLACIAN} is not the Laplacian; this is no SENSORIUM 2022 model")
    architecture = Architecture.model_validate(
        {
            "core": {"type": "separable", "channels": channels, "layers": layers, "linear": linear},
            "readout": {"type": "point", "cortex": True},
        }
    )
    eye = Eye(HEIGHT, WIDTH, 1, (mean,), (sd,))
    names = {session: tuple(f"n{k}" for k in range(units))}
    network = Network(architecture, eye, names, cortex={session: state[f"readout.{session}.source_grid"]})
    network.load_state_dict(_renamed(state, layers, session, units))
    return network


def _shapes(layers: int, channels: int, units: int, session: str) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a checkpoint and their shapes."""
    shapes: dict[str, tuple[int, ...]] = {LAPLACIAN: (1, 1, 3, 3)}
    for k in range(layers):
        at = f"core.features.layer{k}"
        if k == 0:
            shapes[f"{at}.conv.weight"] = (channels, 1, 9, 9)
        else:
            shapes[f"{at}.ds_conv.in_depth_conv.weight"] = (channels, channels, 1, 1)
            shapes[f"{at}.ds_conv.spatial_conv.weight"] = (channels, 1, 7, 7)
            shapes[f"{at}.ds_conv.out_depth_conv.weight"] = (channels, channels, 1, 1)
        shapes |= {f"{at}.norm.{name}": () if name == NORM[-1] else (channels,) for name in NORM}
    at = f"readout.{session}"
    return shapes | {
        f"{at}.sigma": (1, units, 2, 2),
        f"{at}._features": (1, channels, 1, units),
        f"{at}.bias": (units,),
        f"{at}.source_grid": (units, 2),
        f"{at}.mu_transform.0.weight": (30, 2),
        f"{at}.mu_transform.0.bias": (30,),
        f"{at}.mu_transform.2.weight": (2, 30),
        f"{at}.mu_transform.2.bias": (2,),
    }


def _renamed(state: Mapping[str, Tensor], layers: int, session: str, units: int) -> State:
    """Return the checkpoint's tensors under our names, rows of units first."""
    ours: State = {"core.layers.0.0.weight": state["core.features.layer0.conv.weight"]}
    for k in range(layers):
        at = f"core.features.layer{k}"
        ours |= {f"core.layers.{k}.1.{name}": state[f"{at}.norm.{name}"] for name in NORM}
        if k > 0:
            for j, name in enumerate(("in_depth_conv", "spatial_conv", "out_depth_conv")):
                ours[f"core.layers.{k}.0.{j}.weight"] = state[f"{at}.ds_conv.{name}.weight"]
    at, to = f"readout.{session}", f"sessions.{session}"
    ours[f"{to}.scale"] = torch.ones(units)
    ours[f"{to}.readout.sigma"] = state[f"{at}.sigma"][0]
    ours[f"{to}.readout.features"] = state[f"{at}._features"][0, :, 0].T
    ours[f"{to}.readout.bias"] = state[f"{at}.bias"]
    ours[f"{to}.readout.cortex"] = state[f"{at}.source_grid"]
    for j in (0, 2):
        for name in ("weight", "bias"):
            ours[f"{to}.readout.place.{j}.{name}"] = state[f"{at}.mu_transform.{j}.{name}"]
    return ours


def _check(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raise ValueError naming the first tensor that lacks, is too many or does not fit."""
    for name, shape in wanted.items():
        if name not in state:
            raise ValueError(f"{path}: there is no tensor {name}; expected one of shape {shape}")
        found = state[name]
        if tuple(found.shape) != shape:
            raise ValueError(f"{path}: tensor {name} has shape {tuple(found.shape)}; expected {shape}")
        if not bool(found.isfinite().all()):
            raise ValueError(f"{path}: tensor {name} holds numbers that are not finite")
    if extra := sorted(set(state) - set(wanted)):
        raise ValueError(f"{path}: tensor {extra[0]} has no place in this model; expected {len(wanted)} tensors")
