"""`stimloop train-generator`: the command line of it. The training needs torch and the models: `rig.cli` joins them."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rig.config.generator_training import TrainingOrder

console = Console()
errors = Console(stderr=True)
Say = Callable[[str], None]
Train = Callable[[TrainingOrder, Say], None]


def add_train_generator(app: typer.Typer, side: Callable[[], Train]) -> None:
    """Add `train-generator`; `side` returns the function that does it and raises ValueError or RuntimeError."""

    @app.command("train-generator")
    def train_generator_command(
        pictures: Annotated[Path, typer.Argument(help="Folder with photographs, in folders of any depth.")],
        work: Annotated[Path, typer.Option("--work", help="Folder for patches, checkpoint and pictures.")] = Path(
            "generator-training"
        ),
        out: Annotated[Path | None, typer.Option("--out", help="Weights file. Default: natural.safetensors in --work.")]
        = None,
        listing: Annotated[
            Path | None, typer.Option("--list", help="Which pictures, and how many patches of each. Default: all.")
        ] = None,
        patches_each: Annotated[int, typer.Option("--patches", min=1, help="Of each picture, without --list.")] = 20,
        held_out: Annotated[
            float, typer.Option("--held-out", min=0.01, max=0.9, help="Fraction of the pictures kept out of training.")
        ] = 0.06,
        latent: Annotated[int, typer.Option("--latent", min=4, max=4096, help="Numbers in a code.")] = 512,
        batch: Annotated[int, typer.Option("--batch", min=2, help="Patches of a step, per process.")] = 8,
        images: Annotated[
            int | None, typer.Option("--images", min=1, help="Stop after so many patches, per process.")
        ] = None,
        minutes: Annotated[
            float | None, typer.Option("--minutes", min=0.01, help="Stop after so long, earlier runs included.")
        ] = None,
        seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
        processes: Annotated[int, typer.Option("--processes", min=1, help="They average their gradients.")] = 1,
        threads: Annotated[int, typer.Option("--threads", min=1, help="Of each process.")] = 2,
        half_precision: Annotated[
            bool, typer.Option("--half-precision", help="bfloat16 in the decoder: for processors that have it.")
        ] = False,
        resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --work.")] = False,
    ) -> None:
        """Train a natural-image generator on your own photographs (docs/generator.md).

        For example: stimloop train-generator photographs --minutes 120
        """
        if images is None and minutes is None:
            raise _die("say when to stop: --minutes or --images")
        order = TrainingOrder(
            pictures, listing, work, out or work / "natural.safetensors", patches_each, held_out, latent, batch, images,
            minutes, seed, processes, threads, half_precision, resume,
        )  # fmt: skip
        try:
            side()(order, _say)
        except (ValueError, RuntimeError, OSError) as error:
            raise _die(error) from error


def _say(line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def _die(message: object) -> typer.Exit:
    errors.print(f"[bold red]error[/] {message}", highlight=False, soft_wrap=True)
    return typer.Exit(2)
