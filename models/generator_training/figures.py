"""Figures of a trained generator on pictures that it was not trained on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.generator_training.codes import LOSS_BLOCKS
from models.generator_training.features import Features
from models.generator_training.loop import U8
from models.generators.natural import decoder
from rig.config.generators import NaturalGenerator


@dataclass(frozen=True)
class Figures:
    """How well pictures come back from their codes; correlations are medians over pictures."""

    pictures: int
    psnr_db: float
    """Of levels, median."""
    psnr_low_db: float
    """The 5 % quantile of it."""
    feature_correlation: dict[int, float]
    """Per block, over the channels and places of a picture's features."""
    blurred_correlation: dict[int, float]
    """The same for the picture reduced to 16 x 16 pixels and enlarged again: what levels alone would give."""
    code_correlation: float
    """Between a code and the code of the picture drawn from it."""
    prior_code_correlation: float
    """The same for random codes: how far a picture drawn from a random code has the features that were asked for."""


def measure_figures(weights: Path, patches: U8, encoder: Features, limit: int = 400) -> Figures:
    """Return the figures of a weights file on patches (n, y, x, rgb), `limit` of them at most."""
    made = decoder(NaturalGenerator(), weights)
    encode = made.encoder
    assert encode is not None  # noqa: S101 - ours has one
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(patches))[:limit])
    psnr: list[float] = []
    own: dict[int, list[float]] = {block: [] for block in LOSS_BLOCKS}
    plain: dict[int, list[float]] = {block: [] for block in LOSS_BLOCKS}
    codes: list[float] = []
    priors: list[float] = []
    with torch.inference_mode():
        for part in np.array_split(chosen, max(1, len(chosen) // 16)):
            levels = torch.from_numpy(patches[part]).permute(0, 3, 1, 2).float() / 255
            code = encode(levels)
            drawn = made.network(code)
            error = (drawn - levels).square().mean((1, 2, 3)).clamp_min(1e-8)
            psnr += (-10 * error.log10()).tolist()
            coarse = torch.nn.functional.adaptive_avg_pool2d(levels, 16)
            blurred = torch.nn.functional.interpolate(coarse, size=levels.shape[-2:], mode="bilinear")
            wanted, seen, dull = (encoder(x, LOSS_BLOCKS) for x in (levels, drawn, blurred))
            for block in LOSS_BLOCKS:
                own[block] += _correlations(wanted[block], seen[block])
                plain[block] += _correlations(wanted[block], dull[block])
            codes += _correlations(code, encode(drawn))
            random = torch.from_numpy(made.prior.sample(len(part), rng))
            priors += _correlations(random, encode(made.network(random)))
    return Figures(
        len(psnr), float(np.median(psnr)), float(np.quantile(psnr, 0.05)),
        {block: float(np.median(values)) for block, values in own.items()},
        {block: float(np.median(values)) for block, values in plain.items()},
        float(np.median(codes)), float(np.median(priors)),
    )  # fmt: skip


def _correlations(first: Tensor, second: Tensor) -> list[float]:
    """Return the correlation of each row of two batches of the same shape."""
    a, b = first.flatten(1), second.flatten(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    out: list[float] = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-9)).tolist()
    return out
