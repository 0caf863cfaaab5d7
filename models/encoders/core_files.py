"""Cores for another day, in one safetensors file: what networks learnt that belongs to none of their units."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.encoders.eye import Eye
from models.encoders.weights import Arrays, read_state, write_state
from rig.config.encoders import Architecture

KIND = "cores"


@dataclass(frozen=True)
class Cores:
    """Trained cores of one architecture."""

    architecture: Architecture
    eye: Eye
    weights: Sequence[Arrays]
    """Of each core its parameters and buffers by name."""


def head_of(architecture: Architecture, eye: Eye) -> dict[str, Any]:
    """Return what a core must have in common with the file that it begins from."""
    return {"core": architecture.core.model_dump(mode="json"), "eye": [*eye.shape, list(eye.mean), list(eye.sd)]}


def write_cores(path: Path, cores: Cores) -> None:
    """Write cores; beside and renamed, so that a kill leaves no half of a file. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {f"{k}.{name}": array for k, core in enumerate(cores.weights) for name, array in core.items()}
    beside = path.with_suffix(".part")
    write_state(beside, {"kind": KIND, **head_of(cores.architecture, cores.eye), "weights": weights})
    os.replace(beside, path)


def read_cores(path: Path, architecture: Architecture, eye: Eye, sha256: str | None = None) -> list[Arrays]:
    """Return the cores that `write_cores` wrote, for networks of this architecture and eye.

    `sha256`: hash of the file, hexadecimal, where only that one will do. Raises ValueError.
    """
    state = read_state(path)
    if sha256 is not None and (found := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256:
        raise ValueError(
            f"{path}: another file than the one that the session began from (its sha256 is {found[:12]}..., that one's "
            f"was {sha256[:12]}...); put that one back"
        )
    if state.get("kind") != KIND:
        raise ValueError(f"{path}: holds a {state.get('kind')}, no cores; give a file of a session's folder encoders")
    for name, mine in head_of(architecture, eye).items():
        if state.get(name) != mine:
            raise ValueError(f"{path}: its {name} is {state.get(name)}, here it is {mine}; give the same settings")
    cores: dict[int, Arrays] = {}
    for name, array in state["weights"].items():
        member, _, rest = name.partition(".")
        if not member.isdecimal() or not np.isfinite(array).all():
            raise ValueError(f"{path}: its {name} is no part of a core, or not finite; give another file")
        cores.setdefault(int(member), {})[rest] = np.array(array)
    if not cores:
        raise ValueError(f"{path}: holds no core; give another file")
    return [cores[k] for k in sorted(cores)]
