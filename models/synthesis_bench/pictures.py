"""What simulated units of the V1 twin are shown: photographs, and pictures near the images that a network made."""

import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from models.encoders.network import Network
from rig.config.reading import ConfigError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

AT_ONCE = 16
MOST_BLEND, MOST_NOISE = 0.5, 0.8  # shares of another image, and of noise (sd, relative to the image's)
SHIFT_PX, NOISE_BLUR_PX = 1, 1.0
CONTRASTS = (0.6, 1.0, 1.0)  # relative to the image's


@dataclass(frozen=True)
class Simulated:
    """What was shown to the simulated units, and what they answered."""

    pictures: Tensor
    """(picture, 1, y, x), standardised by the twin's eye."""
    photograph: npt.NDArray[np.int64]
    """(picture,): the photograph that it was cut from."""
    responses: F32
    """(picture, unit), without noise, in response sds."""


def photographs(folder: Path, most: int, rng: np.random.Generator) -> U8:
    """Return different pictures (n, y, x, rgb) of one size from the zip files in `folder`. Raises ConfigError."""
    found: dict[bytes, U8] = {}
    for path in sorted(folder.glob("*.zip")):
        try:
            with zipfile.ZipFile(path) as archive:
                for name in sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".png"))):
                    picture = np.asarray(Image.open(BytesIO(archive.read(name))).convert("RGB"))
                    found.setdefault(picture.tobytes(), picture)
        except (OSError, zipfile.BadZipFile) as error:
            raise ConfigError(f"--images {path}: cannot be read ({error})") from error
    sizes = {picture.shape for picture in found.values()}
    if len(found) < 100 or len(sizes) > 1:
        raise ConfigError(
            f"--images {folder}: {len(found)} pictures of {len(sizes)} sizes in its zip files; give the folder of"
            " images_*.zip (docs/synthesis.md), pictures of one size, 100 of them at least"
        )
    whole = np.stack(list(found.values()))
    return whole[rng.permutation(len(whole))[:most]]


def cut(pictures: U8, twin: Network) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """Return what the twin's eye sees of the top and the bottom of each photograph, and which photograph it is."""
    _, rows, columns, _ = pictures.shape
    height = min(rows, round(columns * twin.eye.height / twin.eye.width))
    parts = [twin.eye.see(pictures[:, top : top + height]) for top in (0, rows - height)]
    return torch.cat(parts), np.tile(np.arange(len(pictures)), 2)


@torch.inference_mode()
def answers(twin: Network, units: tuple[int, ...], pictures: Tensor) -> F32:
    """Return what the units answer to the pictures (picture, unit), without noise, in response sds."""
    device = next(twin.parameters()).device
    wanted = torch.tensor(units, device=device)
    parts = [
        twin.rates(pictures[k : k + AT_ONCE].to(device), wanted).cpu() for k in range(0, len(pictures), AT_ONCE)
    ]
    found: F32 = torch.cat(parts).clamp_min(0).numpy()
    return found


def near(frames: U8, copies: int, rng: np.random.Generator) -> U8:
    """Return frames (n, y, x, rgb) and `copies` pictures near each of them, ((copies + 1) * n, y, x, rgb).

    Each is blended with another of the frames, or not, moved by a pixel at most, and covered by smooth noise.
    """
    away = frames.astype(np.float64) - frames.mean((1, 2, 3), keepdims=True)
    one = (len(frames), 1, 1, 1)
    found = [frames]
    for _ in range(copies):
        share = rng.uniform(0, MOST_BLEND, one) * rng.integers(0, 2, one)
        made = (1 - share) * away + share * away[rng.permutation(len(away))]
        for k, shift in enumerate(rng.integers(-SHIFT_PX, SHIFT_PX + 1, (len(away), 2))):
            made[k] = np.roll(made[k], shift, (0, 1))
        white = rng.standard_normal((*made.shape[:3], 1))
        noise = ndimage.gaussian_filter(white, (0, NOISE_BLUR_PX, NOISE_BLUR_PX, 0))
        sd = made.std((1, 2, 3), keepdims=True) / noise.std((1, 2, 3), keepdims=True)
        made += noise * sd * rng.uniform(0, MOST_NOISE, one)
        made = frames.mean((1, 2, 3), keepdims=True) + made * rng.choice(CONTRASTS, one)
        found.append(np.rint(np.clip(made, 0, 255)).astype(np.uint8))
    return np.concatenate(found)
