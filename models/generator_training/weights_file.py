"""Writes the weights file of a trained generator: what `models.generators.natural` reads."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.generator_training.codes import EARLY_BLOCK, Codes
from models.generator_training.features import LAST_BLOCK, Features
from models.generator_training.loop import U8, Training
from models.generators.natural import FORMAT


def codes_of(patches: U8, codes: Codes, encoder: Features, batch: int = 16) -> torch.Tensor:
    """Return the codes (n, latent) of patches (n, y, x, rgb)."""
    out = []
    with torch.inference_mode():
        for start in range(0, len(patches), batch):
            levels = torch.from_numpy(patches[start : start + batch].copy()).permute(0, 3, 1, 2).float() / 255
            out.append(codes.encode(codes.components(levels, encoder(levels, (EARLY_BLOCK, LAST_BLOCK)))))
    return torch.cat(out)


def write_weights(training: Training, patches: U8, encoder: Features, path: Path) -> dict[str, float]:
    """Write the averaged decoder, the code and its statistics over `patches` to `path`, in half precision.

    `patches` (n, y, x, rgb) should not be those from which the code was computed. Returns some statistics.
    """
    codes = codes_of(patches, training.codes, encoder)
    s = training.settings
    norms = codes.norm(dim=1)
    off = torch.corrcoef(codes.T) - torch.eye(s.latent)
    norm = float(norms.median())
    about = {
        "latent": s.latent, "feature_channels": len(training.codes.feature_mean), "widths": list(s.widths),
        "norm": norm, "steps": training.step, "seed": s.seed,
    }  # fmt: skip
    state = {f"decoder.{name}": tensor.half() for name, tensor in training.average.state_dict().items()}
    state |= {f"code.{name}": tensor for name, tensor in training.codes.compact().items()}
    state |= {"prior.mean": codes.mean(0), "prior.sd": codes.std(0)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, path,
        {"format": FORMAT, "about": json.dumps(about)},
    )
    return {
        "norm_median": norm, "norm_5": float(norms.quantile(0.05)), "norm_95": float(norms.quantile(0.95)),
        "sd_min": float(codes.std(0).min()), "sd_max": float(codes.std(0).max()),
        "correlation_rms": float(off.square().mean().sqrt()), "megabytes": path.stat().st_size / 1e6,
    }  # fmt: skip
