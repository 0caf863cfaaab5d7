"""The generator "taef2": the decoder of a tiny image autoencoder (Bohan, MIT licence), whose weights are the user's.

A decoder and no generative network: codes of photographs, mixtures and crossovers of them look natural, codes drawn
at random look like foliage. So give its encoder too, and start evolution from pictures.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.generators.files import stamp
from models.generators.state_dicts import fill, read_state
from models.generators.torch_generator import Decoder
from rig.config.generators import Taef2Generator
from stimuli.generators.generator import Prior

CHANNELS = 32
REDUCTION = 8  # pixels along each axis for one place of a code
WIDTH = 64
# Mean and sd of each channel over codes of the natural bank's 36 photographs (112 pixels, levels as in the files).
MEANS = (
    0.25, -0.16, 0.06, -0.06, 0.05, -0.24, -0.18, 0.36, -0.02, 0.09, 0.02, 0.06, 0.21, 0.30, -0.28, 0.13,
    -0.16, 0.33, -0.04, 0.33, 0.08, 0.07, 0.37, -0.45, -0.06, -0.31, -0.04, -0.29, 0.10, 0.03, 0.18, 0.16,
)  # fmt: skip
SDS = (
    0.74, 0.99, 1.02, 0.95, 0.73, 1.04, 0.78, 0.81, 0.94, 0.65, 0.69, 0.94, 0.74, 0.67, 0.87, 1.06,
    0.83, 0.67, 0.71, 1.07, 0.80, 0.65, 0.79, 0.79, 0.89, 0.78, 1.00, 0.81, 0.76, 1.00, 0.75, 1.02,
)  # fmt: skip


class SoftClamp(nn.Module):
    """Codes softly cut off at -3 and 3."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes within bounds."""
        return 3 * torch.tanh(x / 3)


class Block(nn.Module):
    """Three convolutions around an identity; `pooled` ones first mix channels, normalised over the whole picture."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        self.pool = (
            nn.Sequential(
                nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False),
                nn.GroupNorm(4, 4 * WIDTH),
                nn.ReLU(),
                nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False),
            )
            if pooled
            else None
        )
        self.conv = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class LevelClamp(nn.Module):
    """Levels cut off at 0 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the levels within bounds."""
        return torch.clamp(x, 0, 1)


def decoder_network() -> nn.Sequential:
    """Return the decoder, codes (n, 32, y, x) -> pictures (n, 3, 8 y, 8 x), with the names of the published weights."""

    def doubled() -> tuple[nn.Module, nn.Module]:
        return nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)

    return nn.Sequential(
        SoftClamp(), nn.Conv2d(CHANNELS, WIDTH, 3, padding=1), nn.ReLU(),
        Block(pooled=True), Block(pooled=True), Block(pooled=True),
        *doubled(), Block(), Block(), Block(),
        *doubled(), Block(), Block(), Block(),
        *doubled(), Block(), nn.Conv2d(WIDTH, 3, 3, padding=1), LevelClamp(),
    )  # fmt: skip


def encoder_network() -> nn.Sequential:
    """Return the encoder, pictures (n, 3, y, x) of levels 0 to 1 -> codes (n, 32, y / 8, x / 8)."""

    def halved() -> nn.Module:
        return nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False)

    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, padding=1), Block(),
        halved(), Block(), Block(), Block(),
        halved(), Block(), Block(), Block(),
        halved(), Block(pooled=True), Block(pooled=True), Block(pooled=True),
        nn.Conv2d(WIDTH, CHANNELS, 3, padding=1),
    )  # fmt: skip


def decoder(settings: Taef2Generator) -> Decoder:
    """Return the networks of `settings`, loaded once for all image sizes. Raises ValueError that says what is wrong."""
    encoder = None if settings.encoder is None else stamp(settings.encoder)
    return _decoder(stamp(settings.weights), encoder, settings.side)


@lru_cache(maxsize=4)
def _decoder(weights: tuple[Path, int, int], encoder: tuple[Path, int, int] | None, side: int) -> Decoder:
    with torch.device("meta"):
        network, back = decoder_network(), encoder_network()
    digest = fill(network, read_state(weights[0], "taef2 decoder"), weights[0], {})
    if encoder is not None:
        fill(back, read_state(encoder[0], "taef2 encoder"), encoder[0], {})
    shape = (CHANNELS, side // REDUCTION, side // REDUCTION)
    return Decoder("taef2", digest, network, shape, side, prior(side), None if encoder is None else back)


def prior(side: int) -> Prior:
    """Return independent normal values with each channel's mean and sd."""
    places = (side // REDUCTION) ** 2
    mean = np.repeat(np.array(MEANS, np.float32), places)
    sd = np.repeat(np.array(SDS, np.float32), places)
    return Prior(mean, sd, float(np.sqrt(np.sum(np.square(mean, dtype=np.float64) + np.square(sd, dtype=np.float64)))))
