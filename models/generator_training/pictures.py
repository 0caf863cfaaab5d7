"""Training patches out of folders of pictures: which pictures, which are held out, and square crops of them.

Called by the training loop's command. Reads pictures and writes one memory-mapped file of patches; knows no network.

A list file says which pictures below a root folder are used: one line per glob, `COUNT GLOB`, where COUNT is the number
of patches taken from each picture, or `- GLOB` to leave pictures out again; `#` starts a comment.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]

SIDE = 128  # pixels of a patch
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".dds")
KINDS = ("train", "train_patches", "held_out", "held_out_patches", "copies", "unusable")
SMALLEST = 96  # shorter side of a usable picture: a patch is never enlarged by more than a third
FLAT_LEVELS = 10.0  # a patch whose levels have a smaller sd is sky or wall: one in five of those is enough
SAME_PICTURE = 0.93  # correlation of thumbnails above which two files show one photograph
LARGEST_READ = 1600  # longer side to which a picture is reduced on reading


class BadPictures(ValueError):
    """The pictures or their list cannot be used; says which and what to do."""


@dataclass(frozen=True)
class Picture:
    """One picture file, how many patches to take from it and whether it is held out."""

    path: Path
    name: str
    """Path below the root: the same on every machine, so that the same pictures are held out."""
    patches: int
    held_out: bool


def read_list(root: Path, listing: Path | None, patches_each: int, held_out: float) -> list[Picture]:
    """Return the pictures below `root`, sorted by name.

    Without `listing` every picture file below `root` counts, `patches_each` patches from each. A fraction `held_out`
    of the pictures, chosen by a hash of their names, is kept out of training.
    """
    counts: dict[str, int] = {}
    if listing is None:
        every = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
        counts = dict.fromkeys(every, patches_each)
    for number, (count, pattern) in enumerate([] if listing is None else _lines(listing), 1):
        found = [path for path in root.glob(pattern) if path.is_file()]
        if not found:
            raise BadPictures(f"{listing}, entry {number}: nothing below {root} matches {pattern}; unpack it or cut it")
        for path in found:
            name = path.relative_to(root).as_posix()
            if count:
                counts[name] = count
            else:
                counts.pop(name, None)
    out = [Picture(root / name, name, count, _share(name) < held_out) for name, count in sorted(counts.items())]
    if not out:
        raise BadPictures(f"no pictures below {root}; name a folder that holds photographs")
    return out


def _lines(listing: Path) -> list[tuple[int, str]]:
    out = []
    for raw in listing.read_text(encoding="utf-8").splitlines():
        line = raw.split("#")[0].strip()
        if not line:
            continue
        count, _, pattern = line.partition(" ")
        if not (count == "-" or count.isdigit()) or not pattern.strip():
            raise BadPictures(f"{listing}: {raw!r}; a line is a number of patches (or -) and a glob")
        out.append((0 if count == "-" else int(count), pattern.strip()))
    return out


def _share(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


def open_picture(path: Path) -> Image.Image | None:
    """Return the picture as RGB or RGBA, at most LARGEST_READ pixels a side, or None if it is none or too small."""
    try:
        with Image.open(path) as file:
            file.draft("RGB", (LARGEST_READ, LARGEST_READ))
            see_through = "A" in file.getbands() or "transparency" in file.info
            picture: Image.Image = file.convert("RGBA" if see_through else "RGB")
    except (UnidentifiedImageError, OSError, NotImplementedError):  # a texture format that Pillow does not read
        return None
    if min(picture.size) < SMALLEST:
        return None
    if max(picture.size) > LARGEST_READ:
        picture.thumbnail((LARGEST_READ, LARGEST_READ), Image.Resampling.BOX)
    return picture


def thumbnail(picture: Image.Image) -> F64:
    """Return a 16 x 16 grey thumbnail as a vector of mean 0 and length 1, by which copies are recognised."""
    grey = np.asarray(picture.convert("L").resize((16, 16), Image.Resampling.BOX), np.float64).ravel()
    grey -= grey.mean()
    length = float(np.linalg.norm(grey))
    return grey / length if length > 0 else grey


def crop(picture: Image.Image, backdrop: U8 | None, rng: np.random.Generator) -> U8:
    """Return one patch (SIDE, SIDE, rgb): a random square of the picture, flipped, its light and colour varied.

    The square's side is log-uniform between SIDE and the shorter side, so that objects and their textures are both
    seen. Transparent parts show `backdrop` (SIDE, SIDE, rgb), or a random colour.
    """
    shorter = min(picture.size)
    side = round(float(np.exp(rng.uniform(np.log(min(SIDE, shorter)), np.log(shorter)))))
    left = int(rng.integers(picture.width - side + 1))
    top = int(rng.integers(picture.height - side + 1))
    square = picture.crop((left, top, left + side, top + side))
    square = square.resize((SIDE, SIDE), Image.Resampling.BICUBIC if side < SIDE else Image.Resampling.BOX)
    pixels = np.asarray(square, np.float64)
    levels = pixels[..., :3]
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        alpha = pixels[..., 3:] / 255
        behind = rng.uniform(0, 255, 3) if backdrop is None else backdrop.astype(np.float64)
        levels = alpha * levels + (1 - alpha) * behind
    if rng.random() < 0.5:
        levels = levels[:, ::-1]
    if rng.random() < 0.05:
        levels = np.repeat(levels.mean(axis=2, keepdims=True), 3, axis=2)
    mean = levels.mean()
    levels = (levels - mean) * rng.uniform(0.8, 1.25) + mean + rng.uniform(-20, 20)
    levels = levels * np.exp(rng.normal(0, 0.06, 3))  # the light's colour
    out: U8 = np.clip(np.round(levels), 0, 255).astype(np.uint8)
    return out


def take_patches(picture: Image.Image, count: int, backdrops: list[U8], rng: np.random.Generator) -> list[U8]:
    """Return `count` patches of a picture; flat ones are mostly drawn again. `backdrops` lie behind cut-out objects."""
    out: list[U8] = []
    for _ in range(count):
        for _attempt in range(6):
            backdrop = backdrops[int(rng.integers(len(backdrops)))] if backdrops and rng.random() < 0.6 else None
            patch = crop(picture, backdrop, rng)
            if patch.std() > FLAT_LEVELS or rng.random() < 0.2:
                break
        out.append(patch)
    return out


def write_patches(pictures: list[Picture], folder: Path, seed: int) -> dict[str, dict[str, int]]:
    """Write `train.npy` and `held_out.npy` (n, SIDE, SIDE, rgb) into `folder`; return what came from where.

    The result has, for each folder right below the root and for `all`, the pictures trained on, held out, left out as
    copies and left out as unusable, and the patches. A training picture that looks like a held-out one (thumbnails
    correlate above SAME_PICTURE) is left out: packages ship the same photograph in several sizes. Held-out pictures
    give at most four patches each.
    """
    rng = np.random.default_rng(seed)
    known = _held_out_thumbnails(pictures)
    parts: dict[str, list[U8]] = {"train": [], "held_out": []}
    used: dict[str, dict[str, int]] = {}
    backdrops: list[U8] = []
    for picture in pictures:
        counts = [used.setdefault(key, dict.fromkeys(KINDS, 0)) for key in ("all", picture.name.split("/")[0])]
        image = open_picture(picture.path)
        copied = known.size and image is not None and float((known @ thumbnail(image)).max()) > SAME_PICTURE
        if image is None or (copied and not picture.held_out):
            for each in counts:
                each["unusable" if image is None else "copies"] += 1
            continue
        part = "held_out" if picture.held_out else "train"
        count = min(picture.patches, 4) if picture.held_out else picture.patches
        taken = take_patches(image, count, [] if picture.held_out else backdrops, rng)
        parts[part].extend(taken)
        for each in counts:
            each[part] += 1
            each[f"{part}_patches"] += len(taken)
        if not picture.held_out and image.mode == "RGB":
            backdrops.append(taken[0])
    for part, patches in parts.items():
        if not patches:
            raise BadPictures(f"no {part.replace('_', '-')} patch; give more pictures or another held-out share")
        order = rng.permutation(len(patches))
        np.save(folder / f"{part}.npy", np.stack([patches[k] for k in order]))
    return used


def _held_out_thumbnails(pictures: list[Picture]) -> F64:
    opened = [open_picture(picture.path) for picture in pictures if picture.held_out]
    return np.array([thumbnail(image) for image in opened if image is not None])
