"""Reads the weights that a user gives for a generator, and says in one line what is wrong with them.

State dicts as safetensors or as torch files (read with weights_only=True: a file cannot run code).
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - what torch.load raises; nothing is unpickled here

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

State = dict[str, Tensor]


def read_state(path: Path, what: str) -> State:
    """Return the tensors of a file by name; `what` names the weights in errors. Raises ValueError."""
    cure = f"give the {what} as a state dict, saved by torch.save or as .safetensors"
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file; {cure}") from error
    except UnpicklingError as error:  # torch's own words advise to read the file unsafely
        raise ValueError(f"{path}: no torch file, or one with Python objects besides tensors; {cure}") from error
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {reason}); {cure}") from error
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{path}: holds a {type(state).__name__} and not tensors by name; {cure}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{path}: {name!r} is a {type(tensor).__name__} and not a tensor; {cure}")
    return dict(state)


def fill(network: nn.Module, state: State, path: Path, names: Mapping[str, str]) -> str:
    """Give `network` (made on the "meta" device) the tensors of `state`, and return a hash over them.

    Tensors are stored in single precision. `names`: what the file calls those whose names differ. Raises ValueError
    that names the first tensor that lacks or is too many, or that has another shape, with what was expected and found.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    digest = hashlib.sha256()
    for name, shape in wanted.items():
        called = names.get(name, name)
        if name not in state:
            raise ValueError(f"{path}: there is no tensor {called}; expected one of shape {shape}")
        found = state[name]
        if tuple(found.shape) != shape:
            raise ValueError(f"{path}: tensor {called} has shape {tuple(found.shape)}; expected {shape}")
        if not found.is_floating_point() or not bool(found.isfinite().all()):
            raise ValueError(f"{path}: tensor {called} ({found.dtype}) does not hold finite floating-point numbers")
        state[name] = found = found.detach().to(torch.float32).contiguous()
        digest.update(name.encode() + repr(shape).encode() + found.numpy().tobytes())
    if extra := sorted(set(state) - set(wanted)):
        there = names.get(extra[0], extra[0])
        raise ValueError(f"{path}: tensor {there} has no place in this network; it is of another kind of generator")
    network.load_state_dict(state, assign=True)
    network.eval().requires_grad_(False)
    return digest.hexdigest()
