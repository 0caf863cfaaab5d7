"""`stimloop compare-evolutions`: how alike the images are that two sessions evolved for the same target."""

import json
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from rig.config.reading import ConfigError
from rig.saved_evolution import Evolved, Image, evolutions

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
C128 = npt.NDArray[np.complex128]

IMAGES = 5
OF_FIRST = 20  # images of each first generation: their pairs say what chance gives
RANGE = (2.5, 97.5)  # percentiles of the pairs by chance
ENERGY_SIDE = 64  # pixels to which a picture is reduced for its orientation energy
CYCLES = (2.0, 4.0, 8.0)  # per image side
ORIENTATIONS = 6
POOL = 8  # positions of the pooled energy along each side
LABEL_PX = 16  # height of a line of words on a picture
MEASURES = {"pixels": "pixels r", "energy": "energy r", "ssim": "SSIM", "codes": "code cosine"}
console, errors = Console(), Console(stderr=True)
EXAMPLE = """Compare the images that two sessions evolved for the same target, for example of two days.

stimloop compare-evolutions sessions/2026-11-20-evolve sessions/2026-11-21-evolve --picture both.png
"""
WORDS = (
    "Means over pairs, one image of each session. First generation: images before anything was chosen, and in brackets "
    "the range of 95 % of their pairs; * lies above it, more alike than chance (of 40 figures without any likeness one "
    "does). Other target: the best of one target "
    "beside the best of another. energy r: correlation of local orientation energy, which a shift of bars by half a "
    "period does not change, as it changes nothing for a complex cell."
)


@dataclass(frozen=True)
class Alike:
    """How alike pairs of images are, mean over all pairs of one from each session."""

    pixels: float
    """Correlation over pixels and channels, both in the size of the smaller."""
    energy: float
    """Correlation of local orientation energy."""
    ssim: float
    """Structural similarity (Wang et al. 2004) of the luminance."""
    codes: float | None
    """Cosine of the latent codes; None where the generators are not the same."""
    pairs: int


@dataclass(frozen=True)
class Comparison:
    """One target in two sessions."""

    target: str
    phases: tuple[int, int]
    generators: tuple[str, str]
    best: Alike
    """The best image of each."""
    top: Alike
    """The best IMAGES of each."""
    other: Alike | None
    """The best IMAGES of this target beside those of all other targets; None where there is one target."""
    start: Alike
    """Images of the first generations: what chance alone gives, or a common start."""
    chance: dict[str, tuple[float, float]]
    """Of each measure, the range (percentiles RANGE) of single pairs of images of the first generations."""
    common: int
    """Images with which both began, or of the first session with which the second began: no chance made these alike."""


# --- measures ---------------------------------------------------------------------------------------------------------


def pixel_correlation(a: U8, b: U8) -> float:
    """Return the correlation of two frames (y, x, rgb), NaN where one has no contrast."""
    return _correlation(a.astype(np.float64).ravel(), b.astype(np.float64).ravel())


def _correlation(x: F64, y: F64) -> float:
    if x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def ssim(a: U8, b: U8) -> float:
    """Return the structural similarity of the mean of the channels of two frames (y, x, rgb)."""
    from skimage.metrics import structural_similarity  # a second of every other command

    x, y = (f.astype(np.float64).mean(axis=2) for f in (a, b))
    return float(structural_similarity(x, y, data_range=255.0))  # type: ignore[no-untyped-call]


def cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Return the cosine between two codes (latent,)."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    return float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-300))


@cache
def _filters() -> C128:
    """Return the spectra (cycles x orientation, y, x) of Gabors one octave wide, of one half of the plane each.

    With one half only, the filtered picture is complex and its size is the energy of a quadrature pair (Adelson &
    Bergen 1985).
    """
    v, u = np.meshgrid(*2 * (np.fft.fftfreq(ENERGY_SIDE) * ENERGY_SIDE,), indexing="ij")
    out = []
    for cycles in CYCLES:
        for turn in np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS:
            apart = (u - cycles * np.cos(turn)) ** 2 + (v - cycles * np.sin(turn)) ** 2
            out.append(np.exp(-apart / (2 * (cycles / 2.5) ** 2)))
    return np.stack(out).astype(np.complex128)


def orientation_energy(frame: U8) -> F64:
    """Return the local orientation energy of a frame (y, x, rgb), standardised for each spatial frequency, flat."""
    grey = Picture.fromarray(frame).convert("L").resize((ENERGY_SIDE, ENERGY_SIDE), Picture.Resampling.BOX)
    levels = np.asarray(grey, np.float64)
    size = np.abs(np.fft.ifft2(np.fft.fft2(levels - levels.mean()) * _filters()))
    step = ENERGY_SIDE // POOL
    pooled = size.reshape(len(CYCLES), ORIENTATIONS, POOL, step, POOL, step).mean(axis=(3, 5))
    flat = pooled.reshape(len(CYCLES), -1)
    spread = flat.std(axis=1, keepdims=True)
    out: F64 = ((flat - flat.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)).ravel()
    return out


def energy_correlation(a: U8, b: U8) -> float:
    """Return the correlation of the local orientation energy of two frames (y, x, rgb)."""
    return _correlation(orientation_energy(a), orientation_energy(b))


def _same_size(a: U8, b: U8) -> tuple[U8, U8]:
    height, width = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])

    def sized(frame: U8) -> U8:
        if frame.shape[:2] == (height, width):
            return frame
        return np.asarray(Picture.fromarray(frame).resize((width, height), Picture.Resampling.LANCZOS), np.uint8)

    return sized(a), sized(b)


def each_pair(
    first: list[Image], second: list[Image], same_generator: bool, apart: bool = False
) -> dict[str, F64]:
    """Return each measure of all pairs of images that have a picture; raises ValueError without any.

    `apart`: pairs of one and the same code are left out.
    """
    ours, theirs = ([(i, orientation_energy(i.frame)) for i in of if i.frame is not None] for of in (first, second))
    if not ours or not theirs:
        raise ValueError("no pictures to compare")
    out: dict[str, list[float]] = {name: [] for name in MEASURES if name != "codes" or same_generator}
    for (a, ea), (b, eb) in product(ours, theirs):
        assert a.frame is not None  # noqa: S101 - sorted out above
        assert b.frame is not None  # noqa: S101
        if apart and same_generator and np.array_equal(a.code, b.code):
            continue
        frames = _same_size(a.frame, b.frame)
        out["pixels"].append(pixel_correlation(*frames))
        out["energy"].append(_correlation(ea, eb))
        out["ssim"].append(ssim(*frames))
        if same_generator:
            out["codes"].append(cosine(a.code, b.code))
    return {name: np.array(values) for name, values in out.items()}


def _mean(pairs: dict[str, F64]) -> Alike:
    mean = {name: float(np.nanmean(of)) if np.isfinite(of).any() else float("nan") for name, of in pairs.items()}
    return Alike(mean["pixels"], mean["energy"], mean["ssim"], mean.get("codes"), len(pairs["pixels"]))


def alike(first: list[Image], second: list[Image], same_generator: bool) -> Alike:
    """Return the mean similarity over all pairs of images that have a picture; raises ValueError without any."""
    return _mean(each_pair(first, second, same_generator))


# --- two sessions -----------------------------------------------------------------------------------------------------


def _titled(of: list[Evolved]) -> dict[str, Evolved]:
    return {one.target.title: one for one in of}  # of several phases the last


def _same_generator(a: Evolved, b: Evolved) -> bool:
    same = a.generator.split("-")[0] == b.generator.split("-")[0]
    return same and all(x.code.size == y.code.size for x in a.first(1) for y in b.first(1))


def compare(first: list[Evolved], second: list[Evolved]) -> list[Comparison]:
    """Return one comparison for each target that both evolved for, of the last phase in which each did."""
    ours, theirs = _titled(first), _titled(second)
    out = []
    for title in [t for t in ours if t in theirs]:
        a, b = ours[title], theirs[title]
        same = _same_generator(a, b)
        others = [other for name, other in theirs.items() if name != title and _same_generator(a, other) == same]
        beside = [image for other in others for image in other.best(IMAGES)]
        start = each_pair(a.first(OF_FIRST), b.first(OF_FIRST), same, apart=True)
        low, high = RANGE
        out.append(
            Comparison(
                title,
                (a.phase + 1, b.phase + 1),
                (a.generator, b.generator),
                alike(a.best(1), b.best(1), same),
                alike(a.best(IMAGES), b.best(IMAGES), same),
                alike(a.best(IMAGES), beside, same) if beside else None,
                _mean(start),
                {
                    name: (float(np.nanpercentile(of, low)), float(np.nanpercentile(of, high)))
                    for name, of in start.items()
                    if np.isfinite(of).any()
                },
                _common(a, b) if same else 0,
            )
        )
    return out


def _common(a: Evolved, b: Evolved) -> int:
    """Return how many images of `b`'s first generation are images of `a`: the same seed, or a saved start."""
    there = {image.code.tobytes() for image in a.images.values()}
    return sum(image.code.tobytes() in there for image in b.first(len(b.images)))


def picture(first: list[Evolved], second: list[Evolved], path: Path, names: tuple[str, str] = ("", "")) -> None:
    """Write a picture: a row for each target, the best images of the first session, a gap, those of the second.

    Above each row stands its target, above all the `names` of the sessions.
    """
    ours, theirs = _titled(first), _titled(second)
    side, gap = 120, 12 + LABEL_PX
    both = [t for t in ours if t in theirs]
    sheet = Picture.new("RGB", (2 * IMAGES * (side + 4) + gap, LABEL_PX + len(both) * (side + gap)), "white")
    words, font = ImageDraw.Draw(sheet), ImageFont.load_default(LABEL_PX - 3)
    for half, name in enumerate(names):
        words.text((half * (IMAGES * (side + 4) + gap), 0), name, "black", font)
    for row, title in enumerate(both):
        top = LABEL_PX + row * (side + gap)
        words.text((0, top), f"{title}, the best {IMAGES} of each", "black", font)
        for half, one in enumerate((ours[title], theirs[title])):
            for k, image in enumerate(one.best(IMAGES)):
                if image.frame is not None:
                    small = Picture.fromarray(image.frame).resize((side, side), Picture.Resampling.LANCZOS)
                    sheet.paste(small, ((half * IMAGES + k) * (side + 4) + half * gap, top + LABEL_PX + 4))
    sheet.save(path)


# --- the command ------------------------------------------------------------------------------------------------------


def _table(one: Comparison) -> Table:
    shown = {"best": one.best, f"best {IMAGES}": one.top, "other target": one.other}
    columns = {name: of for name, of in shown.items() if of is not None}
    table = Table(one.target, *columns, "first generation", title_justify="left")
    for measure, name in MEASURES.items():
        if measure not in one.chance:
            table.add_row(name, "other generator")
            continue
        low, high = one.chance[measure]
        cells = [f"{(v := getattr(of, measure)):.2f}{'*' if v > high else ''}" for of in columns.values()]
        table.add_row(name, *cells, f"{getattr(one.start, measure):.2f} [{low:.2f}, {high:.2f}]")
    pairs = [str(of.pairs) for of in (*columns.values(), one.start)]
    table.add_row("pairs", *pairs)
    return table


def common_start(one: Comparison) -> str:
    """Say that both began with some of the same images, and what follows; "" if they did not."""
    if not one.common:
        return ""
    return (
        f"{one.target}: the second began with {one.common} images of the first (the same `seed`, or a saved start). "
        "Likeness may come from that, and stars say nothing of the unit: give each day a seed of its own."
    )


def in_words(one: Comparison) -> str:
    """Say of one target whether the two sessions' best images are more alike than chance."""
    above = [MEASURES[m] for m, (_, high) in one.chance.items() if (v := getattr(one.top, m)) is not None and v > high]
    if above:
        return (
            f"{one.target}: the best {IMAGES} are more alike than {RANGE[1]:g} % of chance pairs by "
            f"{' and '.join(above)}, {len(above)} of {len(one.chance)} measures."
        )
    return f"{one.target}: the best {IMAGES} of both are not told from images that chance alone made, by any measure."


def compare_evolutions(
    first: Annotated[Path, typer.Argument(help="Folder of one session.")],
    second: Annotated[Path, typer.Argument(help="Folder of the other session.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
    sheet: Annotated[
        Path | None, typer.Option("--picture", help="Write a PNG with the best images of both, a row for each target.")
    ] = None,
) -> None:
    """Run the command."""
    try:
        ours, theirs = evolutions(first), evolutions(second)
        found = compare(ours, theirs)
        if sheet is not None and found:
            picture(ours, theirs, sheet, (first.resolve().name, second.resolve().name))
    except (ConfigError, ValueError, OSError) as error:
        errors.print(f"[bold red]error[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    if not found:
        there = [", ".join(dict.fromkeys(one.target.title for one in of)) or "none" for of in (ours, theirs)]
        errors.print(
            f"[bold red]error[/] the two sessions evolved for no target in common: {first} for {there[0]}; {second} "
            f"for {there[1]}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(2)
    if as_json:
        console.print_json(json.dumps([asdict(one) for one in found]))
        return
    for one in found:
        console.print(_table(one))
        console.print(in_words(one), highlight=False, soft_wrap=True)
        if said := common_start(one):
            console.print(said, style="yellow", highlight=False, soft_wrap=True)
    console.print(WORDS, highlight=False, soft_wrap=True)
