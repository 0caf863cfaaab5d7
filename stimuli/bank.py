"""Image banks: named pictures, cropped square and resampled to the image size. Two kinds: natural and folders.

Called by the renderer (pixels) and by the agents' builder (names only; no picture is opened until it is drawn). The
natural bank uses photographs that are installed with scikit-image and scikit-learn, so that references need no
download. Level values are taken as they stand in the files (no sRGB decoding), as is usual for natural images here.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from stimuli.limits import HALF_RANGE, levels_of

U8 = npt.NDArray[np.uint8]

KEPT = 64  # rendered pictures kept for the next request
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Crop:
    """A square of a photograph of an installed package."""

    package: str
    file: str
    top: int
    left: int
    size: int


def _crops(package: str, file: str, **squares: tuple[int, int, int]) -> dict[str, Crop]:
    stem = file.split("/")[-1].split(".")[0].split("_")[0]
    return {f"{stem}-{name}": Crop(package, file, *square) for name, square in squares.items()}


# Name = (top, left, size) in pixels of the photograph; chosen by eye for distinct content.
NATURAL: dict[str, Crop] = {
    **_crops(
        "skimage", "data/astronaut.png",
        whole=(0, 0, 512), face=(0, 128, 256), suit=(256, 0, 256), helmet=(256, 230, 256), shuttle=(0, 256, 256),
    ),
    **_crops(
        "skimage", "data/camera.png",
        whole=(0, 0, 512), head=(0, 64, 256), skyline=(0, 256, 256), tripod=(256, 128, 256),
    ),
    **_crops(
        "skimage", "data/chelsea.png",
        left=(0, 0, 300), right=(0, 151, 300), eye=(60, 110, 130), nose=(165, 170, 135),
    ),
    **_crops(
        "skimage", "data/coffee.png",
        left=(0, 0, 400), right=(0, 200, 400), cup=(0, 170, 230), spoon=(200, 200, 200),
    ),
    **_crops("skimage", "data/rocket.jpg", tower=(0, 213, 427), base=(213, 213, 213)),
    **_crops(
        "skimage", "data/motorcycle_left.png",
        left=(0, 0, 500), right=(0, 241, 500), engine=(250, 245, 250), wheel=(250, 491, 250), tank=(0, 245, 250),
    ),
    **_crops("skimage", "data/grass.png", blades=(0, 0, 256)),
    **_crops("skimage", "data/gravel.png", stones=(0, 0, 256)),
    **_crops("skimage", "data/brick.png", wall=(0, 0, 256)),
    **_crops("skimage", "data/coins.png", rows=(0, 0, 303), four=(0, 0, 151)),
    **_crops(
        "sklearn", "datasets/images/china.jpg",
        pagoda=(0, 0, 427), roof=(20, 100, 213), floors=(213, 110, 213), trees=(213, 0, 213),
    ),
    **_crops("sklearn", "datasets/images/flower.jpg", left=(0, 0, 427), right=(0, 213, 427), petals=(200, 200, 213)),
}  # fmt: skip


class Bank:
    """A named, ordered set of pictures; each is opened when it is first asked for."""

    def __init__(
        self, name: str, sources: Mapping[str, Callable[[], Image.Image]], match: tuple[float, float] | None
    ) -> None:
        """Remember where the square pictures come from.

        `match` is the mean level (0-255) and RMS contrast (sd / 127.5) to which pictures are scaled; None shows them
        as they are.
        """
        self.name = name
        self.names: tuple[str, ...] = tuple(sources)
        self._sources = dict(sources)
        self._match = match
        self._ready: OrderedDict[tuple[str, int, int], U8] = OrderedDict()

    def image(self, name: str, height: int, width: int) -> U8:
        """Return picture `name` as a frame (y, x, rgb) of `height` x `width` pixels (read-only, linear light)."""
        if name not in self._sources:
            some = ", ".join(self.names[:8])
            raise ValueError(f"image bank {self.name!r} has no picture {name!r}; it has {len(self.names)}: {some} ...")
        key = (name, height, width)
        if key not in self._ready:
            frame = np.asarray(self._sources[name]().resize((width, height), Image.Resampling.LANCZOS), np.uint8)
            frame = frame.copy() if self._match is None else match_levels(frame, *self._match)
            frame.flags.writeable = False
            self._ready[key] = frame
            if len(self._ready) > KEPT:
                self._ready.popitem(last=False)
        self._ready.move_to_end(key)
        return self._ready[key]


def match_levels(frame: U8, mean: float, contrast: float) -> U8:
    """Return `frame` with its mean level and RMS contrast (over pixels and channels) scaled to the given ones.

    Levels are cut off at 0 and 255; gain and offset are searched so that mean and contrast hold after the cut.
    """
    values = frame.astype(np.float64)
    sd = float(values.std())
    if sd < 1:
        raise ValueError("a picture without contrast cannot be matched; take it out of the bank")
    # What becomes of each of the 256 levels is all that is searched for: a picture has many more pixels.
    levels, counts = (np.arange(256.0) - values.mean()) / sd, np.bincount(frame.ravel(), minlength=256)
    gain, offset = contrast * HALF_RANGE, mean
    out = np.arange(256, dtype=np.uint8)
    for _ in range(20):
        out = np.clip(np.rint(levels * gain + offset), 0, 255).astype(np.uint8)
        now_mean, now_contrast = levels_of(np.bincount(out, counts, 256))
        gain *= contrast / max(now_contrast, 1e-3)
        offset += mean - now_mean
    return out[frame]


def natural_bank(mean_level: float = 128.0, contrast: float = 0.25) -> Bank:
    """Return the bank "natural": photographs shipped in installed packages, matched in mean level and RMS contrast.

    Give the session's background as `mean_level` and the generator's contrast as `contrast`: then an evolved image
    can beat a reference by its pattern only.
    """
    return Bank("natural", {name: opener(crop) for name, crop in NATURAL.items()}, (mean_level, contrast))


def opener(crop: Crop) -> Callable[[], Image.Image]:
    """Return what opens a square of a photograph; opening raises FileNotFoundError where its package is not there."""

    def read() -> Image.Image:
        # The packages are found, not imported: importing them takes seconds and brings nothing here.
        spec = find_spec(crop.package)
        path = None if spec is None or spec.origin is None else Path(spec.origin).parent / crop.file
        if path is None or not path.exists():
            raise FileNotFoundError(
                f"the natural bank needs {crop.file} of the package {crop.package}, which is not there; "
                "install the versions in constraints.txt"
            )
        picture = _rgb(path)
        return picture.crop((crop.left, crop.top, crop.left + crop.size, crop.top + crop.size))

    return read


def folder_bank(path: Path, name: str | None = None) -> Bank:
    """Return a bank of the pictures in a folder, in order of their file names, shown as they are.

    Pictures are cropped to their central square and resampled; `name` is the folder's name if not given. Picture
    names are the file names.
    """
    if not path.is_dir():
        raise ValueError(f"image bank {path}: not a folder; give a folder of pictures under banks in the config")
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise ValueError(f"image bank {path}: no pictures in it; put {', '.join(SUFFIXES)} files there")
    return Bank(name or path.name, {file.name: _square_opener(file) for file in files}, None)


def _square_opener(path: Path) -> Callable[[], Image.Image]:
    def read() -> Image.Image:
        picture = _rgb(path)
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        return picture.crop((left, top, left + side, top + side))

    return read


def _rgb(path: Path) -> Image.Image:
    """Read an 8-bit picture as RGB; refuse what would be changed silently on the way."""
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode not in ("1", "L", "P", "RGB", "LA", "PA", "RGBA"):
                raise ValueError(f"{path}: pixels of kind {picture.mode}; save it as an 8-bit grey or RGB picture")
            if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[:, :, 3].min() < 255:
                raise ValueError(f"{path}: has transparent pixels; flatten it onto a background first")
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({error}); take it out of the folder") from error
