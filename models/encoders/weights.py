"""Weights of a network as arrays: for snapshots, for files, and for the hash in an encoder's name."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

Arrays = dict[str, npt.NDArray[Any]]

FORMAT = "stimloop encoder 1"


def weights_of(network: nn.Module) -> Arrays:
    """Return copies of all parameters and buffers by name."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}


def take_weights(network: nn.Module, weights: Mapping[str, npt.NDArray[Any]]) -> None:
    """Give a network its parameters and buffers. Raises ValueError naming the first that does not fit."""
    mine = network.state_dict()
    for name, tensor in mine.items():
        if name not in weights:
            raise ValueError(f"encoder: there is no {name} in this state; expected one of shape {tuple(tensor.shape)}")
        if tuple(weights[name].shape) != tuple(tensor.shape):
            raise ValueError(f"encoder: {name} has shape {weights[name].shape}; expected {tuple(tensor.shape)}")
    if extra := sorted(set(weights) - set(mine)):
        raise ValueError(f"encoder: {extra[0]} has no place in this network")
    network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})


def digest_of(network: nn.Module, head: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits over `head` (JSON-able) and all parameters and buffers."""
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name, array in sorted(weights_of(network).items()):
        digest.update(f"{name} {array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write an encoder's state as safetensors: its weights, and the rest as JSON in the header. Raises OSError."""
    head = {key: value for key, value in state.items() if key != "weights"}
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state["weights"].items()}
    try:
        save_file(tensors, path, {"format": FORMAT, "head": json.dumps(head)})
    except SafetensorError as error:  # a full disk, for example: none of Python's own errors
        raise OSError(f"{path}: cannot be written: {error}") from error


def read_state(path: Path) -> dict[str, Any]:
    """Read what `write_state` wrote. Raises ValueError."""
    try:
        with safe_open(path, "np") as file:
            head = file.metadata() or {}
            if head.get("format") != FORMAT:
                raise ValueError(f"{path}: is no {FORMAT!r} file; give one that this program wrote")
            return {**json.loads(head["head"]), "weights": {name: file.get_tensor(name) for name in file.keys()}}
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give an encoder that this program wrote") from error
