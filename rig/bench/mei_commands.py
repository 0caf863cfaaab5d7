"""`stimloop bench mei`: its command line, and what is printed."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from rig.bench.json_file import JsonFile, words_aside, write
from rig.config.mei_bench import MeiBench

Units = Annotated[int, typer.Option("--units", help="Simulated cells, simple and complex in turn.")]
Scored = Annotated[int, typer.Option("--scored", help="Cells that images are made for.")]
Presentations = Annotated[int, typer.Option("--presentations", help="Pictures, each shown once.")]
Window = Annotated[float, typer.Option("--window", help="Time in which spikes are counted, s.")]
Members = Annotated[int, typer.Option("--members", help="Networks that predict together.")]
Epochs = Annotated[int, typer.Option("--epochs", help="Passes of each training at most.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of cells, pictures and spikes.")]
NoiseFree = Annotated[bool, typer.Option("--noise-free", help="Fit to the mean responses: what noise costs.")]
Twice = Annotated[bool, typer.Option("--twice", help="Record the cells again (pictures: 1600 at most).")]
Run = Callable[[MeiBench, Callable[[str], None]], dict[str, Any]]
console = Console()
errors = Console(stderr=True)


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def add_mei_bench(app: typer.Typer, side: Callable[[], Run]) -> None:
    """Add `mei`, which needs the models: `rig.cli` joins them."""

    @app.command("mei")
    def mei_command(
        json_file: JsonFile = None,
        units: Units = 96,
        scored: Scored = 48,
        presentations: Presentations = 2000,
        window: Window = 0.2,
        members: Members = 5,
        epochs: Epochs = 40,
        seed: Seed = 0,
        noise_free: NoiseFree = False,
        twice: Twice = False,
    ) -> None:
        """Fit networks to known cells and compare their best images with the true ones; docs/encoders.md.

        About 5 minutes of one core with the defaults. Example: stimloop bench mei --seed 21 --json mei.json
        """
        try:
            asked = MeiBench(
                units=units, scored=scored, presentations=presentations, window_s=window, members=members, seed=seed,
                noise_free=noise_free, twice=twice,
            )  # fmt: skip
            training = asked.training.model_copy(update={"most_epochs": epochs})
        except ValidationError as error:
            first = error.errors()[0]
            errors.print(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", markup=False)
            raise typer.Exit(2) from error
        with words_aside(json_file):
            found = side()(asked.model_copy(update={"training": training}), _say)
            for name, value in found.items():
                if not name.startswith("rows"):
                    _say(f"{name}: {value:.3g}")
        if json_file is not None:
            write(json_file, {"bench": "mei", "asked": asked.model_dump(mode="json"), **found})
