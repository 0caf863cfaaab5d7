"""Contact sheets of a generator: held-out pictures beside what came back, random pictures, and ways between two."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.generator_training.loop import U8
from models.generators.natural import decoder
from rig.config.generators import NaturalGenerator

COLUMNS = 12
TILE = 80  # pixels of a picture on a sheet
WAYS = 5
STEPS = 9


def write_sheets(weights: Path, patches: U8, folder: Path, seed: int) -> list[Path]:
    """Write `reconstructions.png`, `samples.png` and `interpolations.png` for patches (n, y, x, rgb)."""
    made = decoder(NaturalGenerator(), weights)
    assert made.encoder is not None  # noqa: S101 - ours has one
    rng = np.random.default_rng([seed, 7])
    contrasty = [k for k in rng.permutation(len(patches)) if patches[k].std() > 30]
    chosen = patches[np.sort(contrasty[: 3 * COLUMNS])]
    with torch.inference_mode():
        levels = torch.from_numpy(chosen).permute(0, 3, 1, 2).float() / 255
        codes = made.encoder(levels)
        back = _pictures(made.network(codes))
        rows = []
        for start in range(0, len(chosen), COLUMNS):
            rows += [*chosen[start : start + COLUMNS], *back[start : start + COLUMNS]]
        random = _pictures(made.network(torch.from_numpy(made.prior.sample(4 * COLUMNS, rng))))
        ways = [_way(first, second) for first, second in zip(codes[:WAYS], codes[WAYS : 2 * WAYS], strict=False)]
        between = _pictures(made.network(torch.cat(ways))) if ways else random[:0]
    out = []
    for name, pictures, columns in (
        ("reconstructions", rows, COLUMNS),
        ("samples", list(random), COLUMNS),
        ("interpolations", list(between), STEPS),
    ):  # fmt: skip
        if pictures:
            out.append(folder / f"{name}.png")
            _sheet(pictures, columns).save(out[-1], optimize=True)
    return out


def _way(first: Tensor, second: Tensor) -> Tensor:
    """Return STEPS codes on the arc from one code to another, lengths interpolated."""
    t = torch.linspace(0, 1, STEPS)[:, None]
    a, b = first / first.norm(), second / second.norm()
    angle = torch.arccos((a @ b).clamp(-0.999, 0.999))
    arc = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    out: Tensor = arc * ((1 - t) * first.norm() + t * second.norm())
    return out


def _pictures(levels: Tensor) -> U8:
    out: U8 = (levels.permute(0, 2, 3, 1) * 255 + 0.5).to(torch.uint8).numpy()
    return out


def _sheet(pictures: list[U8], columns: int) -> Image.Image:
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (TILE + 2), rows * (TILE + 2)), (128, 128, 128))
    for k, picture in enumerate(pictures):
        tile = Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(tile, ((k % columns) * (TILE + 2), (k // columns) * (TILE + 2)))
    return sheet
