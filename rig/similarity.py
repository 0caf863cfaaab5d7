"""`stimloop compare-evolutions`: how alike the images are that two sessions evolved for the same target."""

import json
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image as Picture
from rich.console import Console
from rich.table import Table

from rig.config.reading import ConfigError
from rig.saved_evolution import Evolved, Image, evolutions

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

IMAGES = 5
console, errors = Console(), Console(stderr=True)
EXAMPLE = """Compare the images that two sessions evolved for the same target, for example of two days.

stimloop compare-evolutions sessions/2026-11-20-evolve sessions/2026-11-21-evolve
"""


@dataclass(frozen=True)
class Alike:
    """How alike pairs of images are, mean over all pairs of one from each session."""

    pixels: float
    """Correlation over pixels and channels, both in the size of the smaller."""
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
    start: Alike
    """Images of the first generations: what chance alone gives, or a common start."""


def pixel_correlation(a: U8, b: U8) -> float:
    """Return the correlation of two frames (y, x, rgb), NaN where one has no contrast."""
    x, y = (f.astype(np.float64).ravel() for f in (a, b))
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


def _same_size(a: U8, b: U8) -> tuple[U8, U8]:
    height, width = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])

    def sized(frame: U8) -> U8:
        if frame.shape[:2] == (height, width):
            return frame
        return np.asarray(Picture.fromarray(frame).resize((width, height), Picture.Resampling.LANCZOS), np.uint8)

    return sized(a), sized(b)


def alike(first: list[Image], second: list[Image], same_generator: bool) -> Alike:
    """Return the mean similarity over all pairs of images that have a picture; raises ValueError without any."""
    pairs = [(a, b) for a, b in product(first, second) if a.frame is not None and b.frame is not None]
    if not pairs:
        raise ValueError("no pictures to compare")
    frames = [_same_size(a.frame, b.frame) for a, b in pairs if a.frame is not None and b.frame is not None]
    codes = [cosine(a.code, b.code) for a, b in pairs] if same_generator else None
    return Alike(
        float(np.mean([pixel_correlation(*f) for f in frames])),
        float(np.mean([ssim(*f) for f in frames])),
        None if codes is None else float(np.mean(codes)),
        len(pairs),
    )


def compare(first: list[Evolved], second: list[Evolved]) -> list[Comparison]:
    """Return one comparison for each target that both evolved for, of the last phase in which each did."""
    ours, theirs = ({one.target.title: one for one in of} for of in (first, second))
    out = []
    for title in [t for t in ours if t in theirs]:
        a, b = ours[title], theirs[title]
        same = a.generator.split("-")[0] == b.generator.split("-")[0]
        same = same and all(x.code.size == y.code.size for x in a.first(1) for y in b.first(1))
        out.append(
            Comparison(
                title,
                (a.phase + 1, b.phase + 1),
                (a.generator, b.generator),
                alike(a.best(1), b.best(1), same),
                alike(a.best(IMAGES), b.best(IMAGES), same),
                alike(a.first(IMAGES), b.first(IMAGES), same),
            )
        )
    return out


def compare_evolutions(
    first: Annotated[Path, typer.Argument(help="Folder of one session.")],
    second: Annotated[Path, typer.Argument(help="Folder of the other session.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Run the command."""
    try:
        found = compare(evolutions(first), evolutions(second))
    except (ConfigError, ValueError) as error:
        errors.print(f"[bold red]error[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    if not found:
        errors.print("[bold red]error[/] the two sessions evolved for no target in common", highlight=False)
        raise typer.Exit(2)
    if as_json:
        console.print_json(json.dumps([asdict(one) for one in found]))
        return
    table = Table("target", "images", "pixels r", "SSIM", "code cosine", "pairs")
    for one in found:
        for name, of in (("best", one.best), (f"best {IMAGES}", one.top), ("first generation", one.start)):
            codes = "other generator" if of.codes is None else f"{of.codes:.2f}"
            table.add_row(one.target, name, f"{of.pixels:.2f}", f"{of.ssim:.2f}", codes, str(of.pairs))
    console.print(table)
    console.print("Means over pairs, one image of each session. The first generation says what chance gives.")
