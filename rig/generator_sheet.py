"""`stimloop generator show`: a sheet of start images of a generator, to look at before a session.

What it draws is what an evolution begins with: codes of the generator's prior, as frames of the screen of a config. The
generators need torch and the models: `rig.cli` joins them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image
from rich.console import Console

from rig.config.generators import (
    AnyGenerator,
    DctGenerator,
    GaborGenerator,
    NaturalGenerator,
    PixelGenerator,
)
from rig.config.phases import EvolvePhase
from rig.config.places import rect_of, usual
from rig.config.reading import ConfigError, load
from rig.config.screen import Display, Limits
from rig.config.session import Config
from stimuli.generators import Generator
from stimuli.limits import LimitExceeded, check_frame, frame_levels
from stimuli.spec import Place

U8 = npt.NDArray[np.uint8]
Build = Callable[[AnyGenerator, int, int, int], Generator]  # settings, height, width, background

WITHOUT_FILES: dict[str, AnyGenerator] = {
    "dct": DctGenerator(), "pixels": PixelGenerator(), "gabors": GaborGenerator(), "natural": NaturalGenerator(),
}  # fmt: skip
SIDE = 128  # pixels of an image without a config
GAP = 4  # pixels between images
EXIT_REFUSED = 2


def sheet(frames: U8, columns: int, background: int) -> U8:
    """Return frames (n, y, x, rgb) as one picture (y, x, rgb), row by row, with gaps of the background's level."""
    count, height, width, _ = frames.shape
    rows = -(-count // columns)
    out = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), background, np.uint8)
    for k, frame in enumerate(frames):
        top, left = GAP + k // columns * (height + GAP), GAP + k % columns * (width + GAP)
        out[top : top + height, left : left + width] = frame
    return out


def of_config(config: Config, phase: int | None) -> tuple[AnyGenerator, int, int]:
    """Return the generator of an evolve phase (None: the first one), and height and width of its frames, pixels.

    Raises ValueError where there is no such phase.
    """
    found = {k: p for k, p in enumerate(config.phases) if isinstance(p, EvolvePhase)}
    chosen = next(iter(found.values()), None) if phase is None else found.get(phase)
    if chosen is None:
        there = f"it has generators in {', '.join(f'phases.{k}' for k in found)}" if found else "no phase of it evolves"
        raise ValueError(f"no generator to show{'' if phase is None else f' in phases.{phase}'}: {there}")
    place = chosen.place if isinstance(chosen.place, Place) else usual(config.stimulus)
    rect = rect_of(config.display, place)
    return chosen.generator, rect.height, rect.width


def refused(frames: U8, limits: Limits) -> list[str]:
    """Return why frames would not be shown, one line for each that would not."""
    out = []
    for frame in frames:
        try:
            check_frame(frame, limits.mean_level, limits.max_rms_contrast)
        except LimitExceeded as error:
            out.append(str(error))
    return out


def add_generator(app: typer.Typer, build: Callable[[], Build]) -> None:
    """Add `generator show` to `app`; `build()` imports and returns what makes a generator when it is needed."""
    generator_app = typer.Typer(no_args_is_help=True, help="Generators: what turns an evolving code into an image.")
    app.add_typer(generator_app, name="generator")
    console, errors = Console(), Console(stderr=True)

    @generator_app.callback()
    def _generator() -> None:
        """Keep `show` a word of the command, also while there is one."""

    @generator_app.command()
    def show(
        config: Annotated[Path | None, typer.Argument(help="Config file with an evolve phase.")] = None,
        kind: Annotated[
            str | None, typer.Option("--type", help="Without a config: one of dct, pixels, gabors, natural.")
        ] = None,
        phase: Annotated[int | None, typer.Option(help="Which phase of the config, from 0; else its first.")] = None,
        out: Annotated[Path, typer.Option(help="Picture to write, .png.")] = Path("generator.png"),
        count: Annotated[int, typer.Option(min=1, max=400, help="Images on it.")] = 40,
        seed: Annotated[int, typer.Option(min=0, help="Of the codes.")] = 0,
    ) -> None:
        """Draw a sheet of the images with which an evolution begins.

        Example: stimloop generator show configs/evolve.yaml --out start-images.png
        """
        try:
            settings, height, width, display, limits = _asked(config, kind, phase)
            made = build()(settings, height, width, display.background)
            frames = made.decode(made.start(count, np.random.default_rng(seed)))
            Image.fromarray(sheet(frames, min(count, 8), display.background)).save(out)
        except (ConfigError, ValueError, OSError) as error:
            errors.print(f"[bold red]error[/] {error}", highlight=False, soft_wrap=True)
            raise typer.Exit(EXIT_REFUSED) from error
        levels = np.array([frame_levels(frame) for frame in frames])
        means, contrasts = (f"{levels[:, k].min():.{2 * k}f} to {levels[:, k].max():.{2 * k}f}" for k in (0, 1))
        console.print(f"{out}: {count} start images of {made.name}, {width} x {height} pixels", highlight=False)
        console.print(
            f"a code is {' x '.join(map(str, made.latent_shape))} numbers, typical length {made.prior.norm:.4g}; "
            f"mean level {means}, RMS contrast {contrasts}", highlight=False, soft_wrap=True,
        )  # fmt: skip
        if why := refused(frames, limits):
            console.print(f"[bold yellow]{len(why)} of them would not be shown[/]: {why[0]}", soft_wrap=True)


def _asked(
    config: Path | None, kind: str | None, phase: int | None
) -> tuple[AnyGenerator, int, int, Display, Limits]:
    if (config is None) == (kind is None):
        raise ValueError("give either a config or --type")
    if config is not None:
        whole, _ = load(config)
        return *of_config(whole, phase), whole.display, whole.limits
    if kind not in WITHOUT_FILES:
        known = ", ".join(WITHOUT_FILES)
        raise ValueError(f"--type {kind}: choose one of {known}; others need files, so write a config that names them")
    return WITHOUT_FILES[kind], SIDE, SIDE, Display(), Limits()
