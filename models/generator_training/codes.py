"""The code of a picture: whitened principal components of its coarse levels and of its features.

Three groups of numbers describe a picture: its levels at 16 x 16 pixels, and the features of an early and a deep block
pooled on an 8 x 8 grid. Their leading principal components, each scaled to unit variance over photographs, are the
code: of about normal distribution, ordered from large to small structure, and smooth in the picture.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.generator_training.features import LAST_BLOCK, Features
from models.generators.natural_decoder import COARSE, GRID

EARLY_BLOCK = 2
SHARES = (1 / 3, 1 / 6, 1 / 2)  # of the total variance: coarse levels, early block, deep block
LOSS_BLOCKS = (0, EARLY_BLOCK, 4, LAST_BLOCK)  # features compared in training
LEVEL_SCALE = 0.25  # about the sd of levels in photographs; the decoder's output has the same scale


class Codes(nn.Module):
    """Pictures -> codes. All numbers are buffers: they are measured once, not trained."""

    feature_mean: Tensor
    feature_sd: Tensor
    mean: Tensor
    weights: Tensor
    scale: Tensor
    restore: Tensor

    def __init__(self, latent: int, feature_channels: int) -> None:
        """Make an empty one of the right shapes, to be filled by `measure` or from a file."""
        super().__init__()
        size = 3 * COARSE**2 + feature_channels * GRID**2
        self.latent = latent
        self.register_buffer("feature_mean", torch.zeros(feature_channels))
        self.register_buffer("feature_sd", torch.ones(feature_channels))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("weights", torch.ones(size))
        self.register_buffer("scale", torch.ones(latent))
        self.register_buffer("restore", torch.zeros(latent, size))

    def components(self, levels: Tensor, features: dict[int, Tensor]) -> Tensor:
        """Return the numbers of pictures (n, rgb, y, x) with their features, standardised: (n, components)."""
        coarse = (functional.adaptive_avg_pool2d(levels, COARSE) - 0.5) / LEVEL_SCALE
        pooled = torch.cat([functional.adaptive_avg_pool2d(features[b], GRID) for b in (EARLY_BLOCK, LAST_BLOCK)], 1)
        pooled = (pooled - self.feature_mean[:, None, None]) / self.feature_sd[:, None, None]
        return torch.cat([coarse.flatten(1), pooled.flatten(1)], 1)

    def encode(self, components: Tensor) -> Tensor:
        """Return codes (n, latent) of components (n, components)."""
        # `restore` is scale V' / weights with orthonormal V; the way back is weights V / scale
        return ((components - self.mean) * self.weights.square()) @ self.restore.T / self.scale.square()

    def compact(self) -> dict[str, Tensor]:
        """Return what a weights file needs besides the decoder, whose linear layer holds `restore` and `mean`."""
        return {name: getattr(self, name) for name in ("feature_mean", "feature_sd", "weights", "scale")}

    def expected(self, codes: Tensor) -> Tensor:
        """Return the components (n, components) that codes (n, latent) stand for."""
        return self.mean + codes @ self.restore


def channel_statistics(
    features: Iterable[dict[int, Tensor]], blocks: Iterable[int]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return mean and sd of each channel of `blocks` over batches of features."""
    sums: dict[int, list[Tensor]] = {block: [] for block in blocks}
    for batch in features:
        for block, kept in sums.items():
            x = batch[block].double()
            kept.append(torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))]))
    out = {}
    for block, kept in sums.items():
        mean, square = torch.stack(kept).mean(0)
        out[block] = (mean.float(), (square - mean.square()).clamp_min(1e-6).sqrt().float())
    return out


def measure(
    batches: list[Tensor], encoder: Features, statistics: dict[int, tuple[Tensor, Tensor]], latent: int, seed: int
) -> Codes:
    """Return the code of pictures like those in `batches`, each (n, rgb, y, x) with levels 0..1.

    Principal components by randomised subspace iteration (Halko, Martinsson & Tropp 2011).
    """
    pair = [statistics[EARLY_BLOCK], statistics[LAST_BLOCK]]
    codes = Codes(latent, sum(len(mean) for mean, _ in pair))
    # An average over the pooled places varies less than single places do; the groups' weights below make up for it.
    codes.feature_mean.copy_(torch.cat([mean for mean, _ in pair]))
    codes.feature_sd.copy_(torch.cat([sd for _, sd in pair]))
    with torch.no_grad():
        rows = [codes.components(batch, encoder(batch, (EARLY_BLOCK, LAST_BLOCK))) for batch in batches]
    table = torch.cat(rows)
    if len(table) <= latent:
        raise ValueError(f"{len(table)} patches for a code of {latent} numbers; give more pictures or a shorter code")
    codes.mean.copy_(table.mean(0))
    table -= codes.mean
    sizes = [3 * COARSE**2, len(pair[0][0]) * GRID**2, len(pair[1][0]) * GRID**2]
    weights = torch.cat([
        torch.full((size,), (share / float(part.square().sum() / len(table))) ** 0.5)
        for size, share, part in zip(sizes, SHARES, torch.split(table, sizes, 1), strict=True)
    ])
    table *= weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, singular, vectors = torch.svd_lowrank(table, q=min(latent + 32, *table.shape), niter=3)
    sd = singular[:latent] / (len(table) - 1) ** 0.5
    vectors = vectors[:, :latent]
    codes.weights.copy_(weights)
    codes.scale.copy_(sd)
    codes.restore.copy_((vectors * sd).T / weights)
    return codes


def rescale(codes: Codes, fresh: Tensor) -> None:
    """Make the sd of each value 1 over the codes `fresh` (n, latent) of pictures that `measure` did not see.

    Components overfit: the sd over the pictures that they were computed from is too large for the last ones.
    """
    sd = fresh.std(0)
    codes.scale.mul_(sd)
    codes.restore.mul_(sd[:, None])


def from_state(state: dict[str, Tensor]) -> Codes:
    """Return the code of a weights file: its tensors by name, those of other parts ignored."""
    restore = state["decoder.components.weight"].float().T
    codes = Codes(len(restore), len(state["code.feature_mean"]))
    codes.load_state_dict({
        **{name: state[f"code.{name}"].float() for name in ("feature_mean", "feature_sd", "weights", "scale")},
        "mean": state["decoder.components.bias"].float(), "restore": restore,
    })  # fmt: skip
    return codes
