"""`stimloop bench synthesis`: the command line of it, and what is printed."""

from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from pydantic import ValidationError
from rich.console import Console

from rig.bench.json_file import JsonFile, words_aside, write
from rig.clock import HostClock
from rig.config.reading import ConfigError
from rig.config.synthesis import SynthesisBench

KINDS = ("display", "natural")
Weights = Annotated[Path, typer.Option("--weights", help="Folder of the SENSORIUM 2022 model, or its file.")]
Other = Annotated[
    Path | None, typer.Option("--other", help="File of another model of the same units: do images agree?")
]
Units = Annotated[int, typer.Option("--units", min=1, help="Units, drawn at random.")]
Starts = Annotated[int, typer.Option("--starts", min=2, help="Images of each unit: noise and photographs in turn.")]
Singles = Annotated[int, typer.Option("--singles", min=1, help="Images that are also made one at a time.")]
Iterations = Annotated[int, typer.Option("--iterations", min=2, help="Steps of each image; published: 1000.")]
Contrast = Annotated[
    float, typer.Option("--contrast", min=0.01, max=1, help="RMS contrast (sd / 127.5) of the frames.")
]
Together = Annotated[int, typer.Option("--together", min=1, help="Images computed at once.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of both ways.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of units and starts.")]
console = Console()
errors = Console(stderr=True)


class Bench(Protocol):
    """The bench itself, which needs the models."""

    def __call__(
        self, asked: SynthesisBench, now_ns: Callable[[], int], say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Return figures and rows. Raises ConfigError."""
        ...


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def add_synthesis_bench(app: typer.Typer, side: Callable[[], Bench]) -> None:
    """Add `synthesis`, which needs the models: `rig.cli` joins them."""

    @app.command("synthesis")
    def synthesis_command(
        weights: Weights,
        json_file: JsonFile = None,
        other: Other = None,
        units: Units = 64,
        starts: Starts = 4,
        singles: Singles = 2,
        iterations: Iterations = 1000,
        contrast: Contrast = 0.25,
        together: Together = 8,
        threads: Threads = 2,
        seed: Seed = 0,
    ) -> None:
        """Make most exciting images of a mouse V1 model, many at once and one at a time; docs/synthesis.md.

        Example: stimloop bench synthesis --weights v1_twin --units 8 --starts 2 --json synthesis.json
        """
        try:
            asked = SynthesisBench.model_validate(
                {
                    "weights": weights,
                    "other": other,
                    "units": units,
                    "starts": tuple(islice(cycle(KINDS), starts)),
                    "singles": singles,
                    "seed": seed,
                    "threads": threads,
                    "settings": {"iterations": iterations, "contrast": contrast, "together": together},
                }
            )
            with words_aside(json_file):
                found = side()(asked, HostClock().now_ns, _say)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            errors.print(f"[bold red]error[/] {name}: {first['msg']}".replace(": Value error,", ":"), highlight=False)
            raise typer.Exit(2) from error
        except ConfigError as error:
            errors.print(f"[bold red]error[/] {error}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error
        with words_aside(json_file):
            _report(found)
        write(json_file, found)


def _report(found: dict[str, Any]) -> None:
    """Print the figures."""
    _say(
        f"{found['images']} images, {found['iterations']} iterations: {found['together_s']:.0f} s together,"
        f" {found['single_s']:.0f} s one at a time ({found['single_measured_on']}):"
        f" {found['speedup_vs_single']:.1f} times as fast, {found['threads']} threads"
    )
    _say(f"response of the displayed frames, ours over one at a time: {found['activation_ratio']:.3f}")
    _say(
        f"agreement between starts within the mask: median {found['agreement_median']:.3f},"
        f" at least .95 in {found['agreement_at_least_.95']:.0%} of units;"
        f" several equally good images: {', '.join(found['multimodal']) or 'none'}"
    )
    if "agreement_with_other" in found:
        _say(f"agreement with the other model's images: median {found['agreement_with_other']:.3f}")
    _say(
        f"frames: mean level off by {found['worst_mean_error_levels']:.4f} levels at most, RMS by"
        f" {found['worst_rms_error_levels']:.4f}; contrast out of reach in {found['contrast_out_of_reach']}"
    )
