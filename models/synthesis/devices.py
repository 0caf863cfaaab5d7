"""Where a synthesis computes: the processor, or a GPU that torch can use. Same code; a device is a parameter of it."""

import os
from typing import Literal

import torch

Choice = Literal["auto", "cpu", "cuda"]


def device_of(choice: Choice) -> torch.device:
    """Return the device asked for; auto: the GPU where torch has one. Raises ValueError for a GPU that is not there."""
    there = torch.cuda.is_available()
    if choice == "cuda" and not there:
        raise ValueError("device cuda: torch finds no GPU here; choose cpu or auto, or install a torch built for CUDA")
    return torch.device("cuda" if choice != "cpu" and there else "cpu")


def described(device: torch.device) -> str:
    """Return a line for the reader: which device, and how many threads it has or what it is called."""
    if device.type == "cuda":
        return f"GPU ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"processor ({threads} thread{'' if threads == 1 else 's'})"


def make_exact(device: torch.device) -> None:
    """Let torch give the same bits on every run, in single precision throughout; before the device's first work.

    On a GPU sums are otherwise taken in any order, and products rounded to 10 bits (TF32) where that is quicker.
    """
    torch.use_deterministic_algorithms(True)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it where order must not vary
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = False


def wait(device: torch.device) -> None:
    """Wait until a GPU has done all it was given: only then is a time the time of the work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
