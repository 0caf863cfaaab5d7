"""Several processes that train one decoder: each takes its own patches, and the gradients are averaged in every step.

On a machine whose cores are shared with other work this is faster than threads, which wait for each other in every
layer and not once a step.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, distributed


def join(rank: int, count: int, meeting: Path) -> Callable[[list[Tensor]], None] | None:
    """Meet the other processes at the file `meeting` and return what averages tensors over all; None if alone."""
    if count == 1:
        return None
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: nothing leaves it
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)

    def exchange(tensors: list[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= count
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    return exchange
