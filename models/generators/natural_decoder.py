"""The decoder of our natural-image generator: a code -> an image, one linear layer and a small convolutional network.

Built by the generator, which loads its weights, and by the training, which makes them. A code holds whitened principal
components of a picture's features (models/generator_training/codes.py). The linear layer starts as their inverse: it
gives back the mean features on an 8 x 8 grid and the picture at 16 x 16 pixels; the convolutions draw the rest.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 128  # pixels of an image
GRID = 8  # places a side at which features are pooled
COARSE = 16  # pixels a side of the coarse picture in the code's components


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a leaky rectifier, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the input's shape."""
        y: Tensor = self.second(functional.leaky_relu(self.first(functional.leaky_relu(x, 0.2)), 0.2))
        return x + y


class Enlarge(nn.Module):
    """Twice as many pixels a side, by a 1 x 1 convolution whose channels become places."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(inward, 4 * outward, 1)
        self.spread = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, outward, 2 y, 2 x) from (n, inward, y, x)."""
        out: Tensor = self.spread(self.mix(x))
        return out


class NaturalDecoder(nn.Module):
    """Codes (n, latent) -> levels (n, rgb, SIDE, SIDE), 0..1.

    `feature_channels` is the number of feature maps in the code's components; `widths` are the channels at 8, 16, 32
    and 64 places a side.
    """

    def __init__(self, latent: int, feature_channels: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.latent, self.feature_channels, self.widths = latent, feature_channels, widths
        self.components = nn.Linear(latent, 3 * COARSE**2 + feature_channels * GRID**2)
        at8, at16, at32, at64 = widths
        self.body = nn.Sequential(
            nn.Conv2d(feature_channels + 12, at8, 3, padding=1),
            Residual(at8),
            Enlarge(at8, at16),
            Residual(at16),
            Enlarge(at16, at32),
            Residual(at32),
            Enlarge(at32, at64),
            nn.LeakyReLU(0.2),
            nn.Conv2d(at64, at64, 3, padding=1),
            nn.LeakyReLU(0.2),
        )
        self.last = nn.Conv2d(at64, 12, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, codes: Tensor) -> Tensor:
        """Return levels (n, rgb, SIDE, SIDE) in 0..1; gradients pass wherever the levels are not at their bounds."""
        return self.unbounded(codes).clamp(0.0, 1.0)

    def unbounded(self, codes: Tensor) -> Tensor:
        """Return levels before clipping, for training."""
        components: Tensor = self.components(codes)
        split = 3 * COARSE**2
        coarse = components[:, :split].reshape(-1, 3, COARSE, COARSE)
        features = components[:, split:].reshape(-1, self.feature_channels, GRID, GRID)
        maps = torch.cat([features, functional.pixel_unshuffle(coarse, 2)], 1)
        drawn: Tensor = self.last(self.body(maps.contiguous(memory_format=torch.channels_last)))
        drawn = functional.pixel_shuffle(drawn, 2)
        base = functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return 0.5 + 0.25 * (base + drawn)
