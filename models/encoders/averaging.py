"""Running means of a network's weights over optimiser steps (Polyak and Juditsky 1992, SIAM J. Control Optim. 30, 838).

At a rate that never falls weights wander around what is best; their mean lies nearer. For `models.encoders.training`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.encoders.weights import Arrays, take_weights, weights_of


class RunningMeans:
    """Means of parameters and buffers, which take the network's place while it is scored."""

    def __init__(self, share: float) -> None:
        """Keep `share` of the means at each step; 0: do nothing at all."""
        self.share = share
        self._means: dict[str, Tensor] = {}
        self._count = 0
        self._own: Arrays = {}  # the network's own weights while the means are in their place

    def begin(self) -> None:
        """Forget what was: the next weights are the first."""
        self._means, self._count, self._own = {}, 0, {}

    def add(self, network: nn.Module) -> None:
        """Take in the weights after a step. The first steps count alike: else the start would linger."""
        if not self.share:
            return
        self._count += 1
        if self._count == 1:
            self._means = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
            return
        new = max(1 - self.share, 1 / self._count)
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                self._means[name].lerp_(tensor.detach(), new)
            else:  # batches that were counted
                self._means[name].copy_(tensor)

    def put_into(self, network: nn.Module) -> None:
        """Let the means take the place of the network's weights, where there are any."""
        if self._means:
            self._own = weights_of(network)
            network.load_state_dict(self._means)

    def take_out_of(self, network: nn.Module) -> None:
        """Give the network its own weights back."""
        if self._own:
            take_weights(network, self._own)
            self._own = {}

    def state(self) -> dict[str, Any]:
        """Return the means, their count, and the weights that they stand in for."""
        means = {name: tensor.numpy().copy() for name, tensor in self._means.items()}
        return {"means": means, "count": self._count, "own": {name: array.copy() for name, array in self._own.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self._means = {name: torch.from_numpy(np.array(array)) for name, array in state["means"].items()}
        self._count = int(state["count"])
        self._own = {name: np.array(array) for name, array in state["own"].items()}
