"""The bank "tiles": square pieces of the photographs of the bank "natural", none overlapping another, in eight poses.

For rehearsals of experiments that show hundreds of natural images once, without a download. Flat pieces (sky, coat) are
left out. The first names are the pieces as they stand; then come the same ones turned and mirrored. For real
experiments give a folder of one's own pictures: these stem from twelve photographs.
"""

from collections.abc import Callable
from functools import lru_cache

from PIL import Image

from stimuli.bank import Bank, Crop, natural_bank, opener

SIDE = 72  # pixels of a photograph
# Photograph: rows and columns of tiles, and those (row by row) whose levels have an sd below 16.
PHOTOGRAPHS: dict[tuple[str, str], tuple[int, int, frozenset[int]]] = {
    ("skimage", "data/astronaut.png"): (7, 7, frozenset({1, 8, 18})),
    ("skimage", "data/camera.png"): (
        7, 7, frozenset({0, 1, 3, 4, 5, 6, 7, 11, 12, 13, 15, 22, 23, 28, 29, 33, 34, 35, 36, 41, 42}),
    ),
    ("skimage", "data/chelsea.png"): (4, 6, frozenset()),
    ("skimage", "data/coffee.png"): (5, 8, frozenset({0})),
    ("skimage", "data/rocket.jpg"): (5, 8, frozenset({7, 37, 38, 39})),
    ("skimage", "data/motorcycle_left.png"): (6, 10, frozenset({3, 50, 51})),
    ("skimage", "data/grass.png"): (7, 7, frozenset()),
    ("skimage", "data/gravel.png"): (7, 7, frozenset()),
    ("skimage", "data/brick.png"): (7, 7, frozenset()),
    ("skimage", "data/coins.png"): (4, 5, frozenset()),
    ("sklearn", "datasets/images/china.jpg"): (5, 8, frozenset({5, 6, 7, 8, 13, 14, 15, 21, 22, 29})),
    ("sklearn", "datasets/images/flower.jpg"): (5, 8, frozenset({2, 33})),
}  # fmt: skip
TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def tiles_bank(mean_level: float = 128.0, contrast: float = 0.25) -> Bank:
    """Return the bank, matched in mean level and RMS contrast as `stimuli.bank.natural_bank` is."""
    tiles: list[tuple[str, Crop]] = []
    for (package, file), (rows, columns, flat) in PHOTOGRAPHS.items():
        stem = file.split("/")[-1].split(".")[0].split("_")[0]
        for k in range(rows * columns):
            if k not in flat:
                row, column = divmod(k, columns)
                tiles.append((f"{stem}-{k:02d}", Crop(package, file, row * SIDE, column * SIDE, SIDE)))
    sources: dict[str, Callable[[], Image.Image]] = {}
    for mirrored in (False, True):
        for quarter, turn in enumerate(TURNS):
            pose = f"-{'m' if mirrored else ''}{quarter * 90}" if mirrored or quarter else ""
            sources |= {name + pose: _posed(crop, mirrored, turn) for name, crop in tiles}
    return Bank("tiles", sources, (mean_level, contrast))


def built_in_banks(mean_level: float, contrast: float) -> dict[str, Bank]:
    """Return the banks that need no folder, by name: what the rig shows under "natural" and "tiles"."""
    return {"natural": natural_bank(mean_level, contrast), "tiles": tiles_bank(mean_level, contrast)}


@lru_cache(maxsize=len(PHOTOGRAPHS))
def _photograph(package: str, file: str, side: int) -> Image.Image:
    """Return a whole photograph: decoding it anew for each of its tiles would keep the rig busy between trials."""
    rows, columns, _ = PHOTOGRAPHS[package, file]
    return opener(Crop(package, file, 0, 0, max(rows, columns) * side))()


def _posed(crop: Crop, mirrored: bool, turn: Image.Transpose | None) -> Callable[[], Image.Image]:
    def posed() -> Image.Image:
        whole = _photograph(crop.package, crop.file, crop.size)
        picture = whole.crop((crop.left, crop.top, crop.left + crop.size, crop.top + crop.size))
        if mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return picture if turn is None else picture.transpose(turn)

    return posed
