"""`stimloop bench ...`: the commands; each figure is measured in a module of its own, imported when it is asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from rig.clock import HostClock
from rig.screen import NoScreen
from rig.supervisor import SessionFailed

bench_app = typer.Typer(no_args_is_help=True, help="Measure this machine: figures, not tests.")
console = Console()
errors = Console(stderr=True)
Sessions = Annotated[Path, typer.Option("--sessions", help="Folder in which sessions are kept.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")]


def _bench(measure: Callable[[], dict[str, Any]], json_file: Path | None) -> None:
    """Print figures, and rows of figures as lines; write them to a file where asked."""
    try:
        figures = measure()
    except (SessionFailed, NoScreen, OSError) as error:
        errors.print(f"[bold red]error[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    for name, value in figures.items():
        if name == "rows":
            for row in value:
                console.print("  ".join(f"{k}={v}" for k, v in row.items()), highlight=False, soft_wrap=True)
        else:
            console.print(f"{name:24s} {value}", highlight=False, soft_wrap=True)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


@bench_app.command("display")
def display_command(
    json_file: JsonFile = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Length of each of the two runs.")] = 10.0,
    sessions: Sessions = Path("sessions"),
) -> None:
    """Count late flips with the model server computing all the time, and with it idle."""
    from rig.bench.display import display

    _bench(lambda: display(minutes, sessions, HostClock(), console), json_file)


@bench_app.command("onset")
def onset_command(
    json_file: JsonFile = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Length of the run.")] = 10.0,
    sessions: Sessions = Path("sessions"),
) -> None:
    """Measure onset times against the truth of the simulated animal, and account for every presentation."""
    from rig.bench.display import onset

    _bench(lambda: onset(minutes, sessions, HostClock(), console), json_file)
