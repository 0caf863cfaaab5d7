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

from models.encoders.eye import Eye
from models.encoders.network import Network
from rig.config.reading import ConfigError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

AT_ONCE = 16
MOST_BLEND, MOST_NOISE = 0.5, 0.8  # shares of another image, and of noise (sd, relative to the image's)
SHIFT_PX, NOISE_BLUR_PX = 1, 1.0
CONTRASTS = (0.6, 1.0, 1.0)  # relative to the image's
PATTERN = -1
PIECE = (0.5, 0.95)  # height of a piece, of what fits into a photograph
OFF, APART_PX = 0.45, 3.0  # of patterns: middle, in halves of the picture from its own; sd of Gabors around it
NOISE_SHARE, NOISE_BLURS_PX, NOISE_SIZES = 0.3, (0.7, 3.0), (0.17, 0.65)  # sizes: sigma, in halves of the picture
MOST_GABORS, CYCLES_PER_PX, SIGMAS_PX, STRENGTHS = 4, (0.02, 0.2), (1.5, 8.0), (0.5, 1.0, 1.0)


@dataclass(frozen=True)
class Simulated:
    """What was shown to the simulated units, and what they answered."""

    pictures: Tensor
    """(picture, 1, y, x), standardised by the twin's eye."""
    photograph: I64
    """(picture,): the photograph that it was cut from, or PATTERN."""
    responses: F32
    """(picture, unit), without noise, in response sds."""

    def part(self, wanted: npt.NDArray[np.bool_]) -> "Simulated":
        """Return some of the pictures."""
        return Simulated(self.pictures[wanted], self.photograph[wanted], self.responses[wanted])


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


def cut(pictures: U8, eye: Eye, count: int, rng: np.random.Generator) -> tuple[Tensor, I64]:
    """Return what `eye` sees of `count` pieces of each photograph (n, y, x, rgb), and which photograph each is from.

    Pieces have the eye's shape and lie anywhere, between half of what fits and nearly all of it; half are mirrored.
    """
    _, rows, columns, _ = pictures.shape
    fits = min(float(rows), columns * eye.height / eye.width)
    photograph = np.repeat(np.arange(len(pictures)), count)
    pieces = np.empty((len(photograph), eye.height, eye.width, 3), np.uint8)
    for k, which in enumerate(photograph):
        height = round(fits * rng.uniform(*PIECE))
        width = min(columns, round(height * eye.width / eye.height))
        top, left = rng.integers(0, rows - height + 1), rng.integers(0, columns - width + 1)
        piece = pictures[which, top : top + height, left : left + width][:, :: rng.choice((-1, 1))]
        small = Image.fromarray(np.ascontiguousarray(piece)).resize((eye.width, eye.height), Image.Resampling.BOX)
        pieces[k] = np.asarray(small)
    return eye.see(pieces), photograph


def patterns(eye: Eye, count: int, contrast: float, rng: np.random.Generator) -> Tensor:
    """Return what `eye` sees of `count` grey pictures that no photograph is like, as strong as images made of a model.

    Most are sums of one to four Gabors of any place, size and shape, the others smooth noise under a window; of RMS
    `contrast` (sd / 127.5), a third of them of half that.
    """
    y, x = np.mgrid[: eye.height, : eye.width] - np.array([eye.height - 1, eye.width - 1])[:, None, None] / 2
    half = np.array([eye.height, eye.width]) / 2
    made = np.empty((count, eye.height, eye.width))
    for k in range(count):
        middle = rng.uniform(-OFF, OFF, 2) * half
        if rng.random() < NOISE_SHARE:
            noise = ndimage.gaussian_filter(rng.standard_normal(y.shape), rng.uniform(*NOISE_BLURS_PX))
            made[k] = noise / noise.std() * _window(y - middle[0], x - middle[1], rng.uniform(*NOISE_SIZES) * half)
            continue
        made[k] = 0
        for _ in range(rng.integers(1, MOST_GABORS + 1)):
            at = middle + rng.normal(0, APART_PX, 2)
            angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
            cycles = np.exp(rng.uniform(*np.log(CYCLES_PER_PX)))
            along = (x - at[1]) * np.cos(angle) + (y - at[0]) * np.sin(angle)
            across = (y - at[0]) * np.cos(angle) - (x - at[1]) * np.sin(angle)
            carrier = np.cos(2 * np.pi * cycles * along + phase)
            made[k] += rng.normal(1, 0.5) * _window(across, along, rng.uniform(*SIGMAS_PX, 2)) * carrier
    made -= made.mean((1, 2), keepdims=True)
    strength = 127.5 * contrast * rng.choice(STRENGTHS, (count, 1, 1)) / made.std((1, 2), keepdims=True)
    levels = np.rint(np.clip(128 + made * strength, 0, 255)).astype(np.uint8)
    return eye.see(levels[..., None].repeat(3, 3))


def _window(y: F64, x: F64, sigmas: F64) -> F64:
    found: F64 = np.exp(-((y / sigmas[0]) ** 2 + (x / sigmas[1]) ** 2) / 2)
    return found


@torch.inference_mode()
def answers(twin: Network, pictures: Tensor) -> F32:
    """Return what the twin's units answer to the pictures (picture, unit), without noise."""
    device = next(twin.parameters()).device
    parts = [twin.rates(pictures[k : k + AT_ONCE].to(device)).cpu() for k in range(0, len(pictures), AT_ONCE)]
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
