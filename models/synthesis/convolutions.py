"""Unpadded convolutions with fixed weights whose gradient towards the picture is quick on a CPU.

PyTorch's own backward pass of a convolution with few input channels, or with one filter a channel, takes several
times as long as its forward pass (2.13: ten times for one input channel). Here the gradient is again a forward
convolution, or a matrix product and a fold. Tensors are (n, channels, y, x), in memory best channels last.
"""

from typing import Any

import torch
from torch import Tensor, nn

FEW = 4  # input channels up to which a matrix product and a fold win


class Local(torch.autograd.Function):
    """One filter a channel: `weight` (channels, 1, k, k), and the same turned by 180 degrees for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, turned: Tensor) -> Tensor:
        """Return (n, channels, y - k + 1, x - k + 1)."""
        ctx.turned = turned
        return nn.functional.conv2d(x, weight, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of `x`: the correlation's transpose is the convolution with the turned filter."""
        turned: Tensor = ctx.turned
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        return nn.functional.conv2d(gradient, turned, padding=turned.shape[2] - 1, groups=len(turned)), None, None


class FromFew(torch.autograd.Function):
    """Few input channels: `weight` (out, channels, k, k), `bias` (out,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return (n, out, y - k + 1, x - k + 1)."""
        ctx.weight, ctx.size = weight, x.shape[2:]
        return nn.functional.conv2d(x.contiguous(memory_format=torch.channels_last), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of `x`: patches' gradients, added up where they overlap."""
        weight: Tensor = ctx.weight
        gradient = gradients[0]
        n, out = gradient.shape[:2]
        patches = gradient.permute(0, 2, 3, 1).reshape(-1, out) @ weight.contiguous().reshape(out, -1)
        columns = patches.reshape(n, -1, patches.shape[1]).transpose(1, 2)
        return nn.functional.fold(columns, ctx.size, weight.shape[2:]), None, None


def local(x: Tensor, weight: Tensor, back: Tensor) -> Tensor:
    """Return an unpadded convolution with one filter a channel; `back`: the same filters `turned`."""
    out: Tensor = Local.apply(x, weight, back)  # type: ignore[no-untyped-call]
    return out


def turned(weight: Tensor) -> Tensor:
    """Return filters turned by 180 degrees."""
    return weight.flip(2, 3).contiguous(memory_format=torch.channels_last)


def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return an unpadded convolution (n, out, ..) with full filters `weight` (out, channels, k, k)."""
    if weight.shape[1] <= FEW:
        out: Tensor = FromFew.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return out
    return nn.functional.conv2d(x, weight, bias)


def mixed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a 1x1 convolution (n, out, y, x), `weight` (channels, out): one matrix product, channels last."""
    n, channels, height, width = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(-1, channels)
    out = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
    return out.reshape(n, height, width, -1).permute(0, 3, 1, 2)
