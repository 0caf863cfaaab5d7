"""`stimloop bench refit`: the command line of it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from rig.bench.json_file import JsonFile, words_aside, write
from rig.clock import HostClock
from rig.config.reading import ConfigError
from rig.config.refit_bench import RefitBench

if TYPE_CHECKING:
    from rig.bench.refit import RefitSide

CURVE = "25,50,100,200,300,480,900"
Data = Annotated[Path, typer.Option("--data", help="Folder with images/ and responses_averaged/ or responses_raw/.")]
Session = Annotated[str, typer.Option("--session", help="Recording session, as in images_SESSION.zip.")]
Splits = Annotated[int, typer.Option("--splits", help="Splits into training and held-out images.")]
HeldOut = Annotated[float, typer.Option("--held-out", help="Fraction of the distinct images that only score.")]
Batch = Annotated[int, typer.Option("--batch", help="Presentations of one update.")]
Curve = Annotated[str, typer.Option("--curve", help="Numbers of training images at which to tune and score.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the first split; the next ones follow.")]
Features = Annotated[Path | None, typer.Option("--features", help="Folder that keeps the network's features.")]
Timing = Annotated[bool, typer.Option("--timing", help="Also time updates of 100 units after 2,000 trials.")]
console = Console()
errors = Console(stderr=True)


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def add_refit_bench(app: typer.Typer, side: "Callable[[], RefitSide]") -> None:
    """Add `refit`, which needs the models: `rig.cli` joins them."""

    @app.command("refit")
    def refit_command(
        data: Data,
        session: Session,
        json_file: JsonFile = None,
        splits: Splits = 5,
        held_out: HeldOut = 0.25,
        batch: Batch = 10,
        curve: Curve = CURVE,
        seed: Seed = 0,
        features: Features = None,
        timing: Timing = False,
    ) -> None:
        """Stream a recorded session into the online readouts and score them on images never learned; docs/refit.md.

        Example: stimloop bench refit --data recordings/v4 --session 201025 --json refit.json
        """
        from rig.bench.refit import BATCHES, TRIALS, UNITS, lines

        try:
            choices = _choices(
                data=data, session=session, splits=splits, held_out=held_out, batch=batch, curve=curve, seed=seed,
                features=features,
            )  # fmt: skip
            models, now_ns = side(), HostClock().now_ns
            with words_aside(json_file):
                found = models.run(choices, now_ns, _say)
            if timing:
                found["timing"] = models.time_updates(UNITS, TRIALS, BATCHES, now_ns)
        except (ConfigError, OSError) as error:
            errors.print(f"[bold red]error[/] {error}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error
        with words_aside(json_file):
            for line in lines(found):
                _say(line)
        write(json_file, found)


def _choices(curve: str, **given: object) -> RefitBench:
    """Return the settings; raises ConfigError that names the option."""
    try:
        return RefitBench.model_validate(given | {"curve": [int(word) for word in curve.split(",")]})
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{option}: {first['msg']}, not {first['input']!r}") from error
    except ValueError as error:
        raise ConfigError(f"--curve {curve}: give numbers of images, for example {CURVE}") from error
