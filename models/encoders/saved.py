"""A network from its file alone: `models.encoders.weights.write_state(path, network.state())` wrote it."""

from pathlib import Path

import torch
from pydantic import ValidationError

from models.encoders.eye import Eye
from models.encoders.network import Network
from models.encoders.weights import read_state
from rig.config.encoders import Architecture


def read_network(path: Path) -> Network:
    """Return the network of a file, with its architecture, eye, units and weights. Raises ValueError."""
    state = read_state(path)
    if state.get("kind") != "network":
        raise ValueError(f"{path}: holds a {state.get('kind')} encoder; give the file of a network")
    try:
        architecture = Architecture.model_validate(state["architecture"])
        channels, height, width, mean, sd = state["eye"]
        eye = Eye(height, width, channels, tuple(mean), tuple(sd))
        units = state["units"]
        cortex = {key: torch.zeros(len(names), 2) for key, names in units.items()}  # the file's own come with restore
        network = Network(architecture, eye, units, cortex=cortex if architecture.predicts_points else None)
        network.restore(state)
    except (KeyError, TypeError, ValidationError, ValueError) as error:
        raise ValueError(f"{path}: is no network that this version can use ({error}); fit and save it again") from error
    return network
