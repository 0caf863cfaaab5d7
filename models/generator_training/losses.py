"""What the decoder is trained for: DeePSiM's three losses (Dosovitskiy & Brox 2016), with the critic on features.

Image loss: absolute difference of levels. Feature loss: absolute difference of the encoder's features, each channel in
units of its sd, and of how much they vary within small places (texture). Adversarial loss: small critics judge features
instead of pixels (projected GAN, Sauer et al. 2021), which costs no further network and needs few pictures.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

Statistics = dict[int, tuple[Tensor, Tensor]]
CRITIC_BLOCKS = (0, 2, 4)
TEXTURE_GRID = 8


def standardised(features: dict[int, Tensor], statistics: Statistics) -> dict[int, Tensor]:
    """Return features with each channel at mean 0 and sd 1 over photographs."""
    return {
        block: (x - statistics[block][0][:, None, None]) / statistics[block][1][:, None, None]
        for block, x in features.items()
    }


def image_loss(drawn: Tensor, levels: Tensor) -> Tensor:
    """Return the mean absolute difference of levels (n, rgb, y, x)."""
    return (drawn - levels).abs().mean()


def feature_loss(drawn: dict[int, Tensor], wanted: dict[int, Tensor]) -> Tensor:
    """Return the mean absolute difference of standardised features, averaged over blocks."""
    return torch.stack([(drawn[block] - wanted[block]).abs().mean() for block in wanted]).mean()


def texture_loss(drawn: dict[int, Tensor], wanted: dict[int, Tensor]) -> Tensor:
    """Return the mean absolute difference of how much each feature varies within each of 8 x 8 places.

    A smooth picture minimises the feature loss wherever the code does not say where each blade of grass stands; it
    lacks the grass. This asks for as much of it, anywhere within the place.
    """
    terms = [
        (_variation(drawn[block]) - _variation(wanted[block])).abs().mean()
        for block in wanted
        if wanted[block].shape[-1] > TEXTURE_GRID
    ]
    return torch.stack(terms).mean()


def _variation(features: Tensor) -> Tensor:
    window = features.shape[-1] // TEXTURE_GRID
    mean = functional.avg_pool2d(features, window)
    square = functional.avg_pool2d(features.square(), window)
    return (square - mean.square()).clamp_min(0).add(1e-3).sqrt()


class Critics(nn.Module):
    """One small network per block, which gives each place a number: high for photographs, low for drawn pictures."""

    def __init__(self, channels: dict[int, int], width: int = 32) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({str(block): _head(count, width) for block, count in channels.items()})

    def forward(self, features: dict[int, Tensor]) -> list[Tensor]:
        """Return the judgements of standardised features, one map (n, 1, y, x) per block."""
        return [head(features[int(block)]) for block, head in self.heads.items()]


def _head(channels: int, width: int) -> nn.Module:
    norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(
        norm(nn.Conv2d(channels, width, 4, 2, 1)), nn.LeakyReLU(0.2),
        norm(nn.Conv2d(width, width, 4, 2, 1)), nn.LeakyReLU(0.2),
        norm(nn.Conv2d(width, 1, 3, 1, 1)),
    )


def critics_loss(photographs: list[Tensor], drawn: list[Tensor]) -> Tensor:
    """Return the hinge loss that the critics lower."""
    terms = [
        functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
        for real, fake in zip(photographs, drawn, strict=True)
    ]
    return torch.stack(terms).mean()


def adversarial_loss(drawn: list[Tensor]) -> Tensor:
    """Return what the decoder lowers to please the critics."""
    return -torch.stack([judged.mean() for judged in drawn]).mean()
