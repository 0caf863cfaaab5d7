"""`stimloop bench ...`: the commands; each figure is measured in a module of its own, imported when it is asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rig.bench.json_file import JsonFile, words_aside, write
from rig.clock import HostClock
from rig.config.reading import ConfigError, load
from rig.display.virtual import NoScreen
from rig.replay.records import ReplayError
from rig.supervision.processes import SessionFailed

if TYPE_CHECKING:
    from rig.replay.model_side import ModelSide

bench_app = typer.Typer(no_args_is_help=True, help="Measure this machine: figures, not tests.")
console = Console()
errors = Console(stderr=True)
Sessions = Annotated[Path, typer.Option("--sessions", help="Folder in which sessions are kept.")]


def _bench(measure: Callable[[], dict[str, Any]], json_file: Path | None) -> None:
    """Print figures, and rows of figures as lines; write them to a file where asked."""
    try:
        with words_aside(json_file):
            figures = measure()
    except (ConfigError, SessionFailed, NoScreen, ReplayError, OSError) as error:
        errors.print(f"[bold red]error[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    with words_aside(json_file):
        for name, value in figures.items():
            if name == "rows":
                for row in value:
                    console.print("  ".join(f"{k}={v}" for k, v in row.items()), highlight=False, soft_wrap=True)
            else:
                console.print(f"{name:24s} {value}", highlight=False, soft_wrap=True)
    write(json_file, figures)


@bench_app.command("display")
def display_command(
    json_file: JsonFile = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Length of each of the two runs.")] = 10.0,
    sessions: Sessions = Path("sessions"),
) -> None:
    """Count late flips with the model server fine-tuning a network's core all the time, and with it idle."""
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


@bench_app.command("clocks")
def clocks_command(
    json_file: JsonFile = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Length of the run; all links are in the same one.")] = 10,
) -> None:
    """Measure clock maps over a wired and a WiFi-like network and over shared edges against the true clock."""
    from rig import priority
    from rig.bench.clocks import clocks

    # The delays are drawn: what else this computer does must not look like a slower network.
    granted = priority.ask(True)
    _bench(lambda: {"priority": granted, **clocks(minutes, HostClock())}, json_file)


@bench_app.command("windows")
def windows_command(
    json_file: JsonFile = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Length of each of the two runs.")] = 10.0,
    sessions: Sessions = Path("sessions"),
) -> None:
    """Compare the counts of every response with the animal's true spikes, with and without the photodiode."""
    from rig.bench.windows import windows

    _bench(lambda: windows(minutes, sessions, HostClock(), console), json_file)


@bench_app.command("loss")
def loss_command(
    json_file: JsonFile = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Length of each row, s.")] = 10.0,
    only: Annotated[str, typer.Option("--only", help="Rows of this fault or this stalled process, as printed.")] = "",
) -> None:
    """Count spikes lost between the Open Ephys wire and the journal, with stalls and with every fault switch on."""
    from rig.bench.loss import loss

    _bench(lambda: loss(seconds, only, HostClock(), console), json_file)


@bench_app.command("calcium")
def calcium_command(
    json_file: JsonFile = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Length of the run under load.")] = 10.0,
    rois: Annotated[int, typer.Option("--rois", min=1, help="Regions of interest under load, at 30 Hz.")] = 10_000,
    sessions: Sessions = Path("sessions"),
) -> None:
    """Compare deconvolved responses with true counts and the batch algorithm; then run many ROIs through a session."""
    from rig.bench.calcium import calcium

    _bench(lambda: calcium(minutes, rois, sessions, HostClock()), json_file)


@bench_app.command("fuzz")
def fuzz_command(
    json_file: JsonFile = None,
    messages: Annotated[int, typer.Option("--messages", min=10, help="Hostile messages at each socket.")] = 100_000,
    seed: Annotated[int, typer.Option("--seed", help="Another seed makes other messages.")] = 0,
    only: Annotated[str, typer.Option("--only", help="One socket, as printed.")] = "",
) -> None:
    """Fire hostile messages at every socket: what was refused, what crashed or grew. Exit code 1 if anything fell over.

    For example: stimloop bench fuzz --messages 10000 --only recorder
    """
    from rig.bench.fuzz import SOCKETS, fuzz

    if only and only not in SOCKETS:
        raise typer.BadParameter(f"no socket {only!r}; there are: {', '.join(SOCKETS)}", param_hint="--only")
    found: dict[str, Any] = {}

    def measure() -> dict[str, Any]:
        found.update(fuzz(messages, seed, only, HostClock()))
        return found

    _bench(measure, json_file)
    if found["crashes"]:
        raise typer.Exit(1)


@bench_app.command("latency")
def latency_command(
    json_file: JsonFile = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Length of the run.")] = 1.0,
    config: Annotated[
        Path | None, typer.Option("--config", help="A rig's config: its screen and devices, no simulated animal.")
    ] = None,
    sessions: Sessions = Path("sessions"),
) -> None:
    """Measure the photodiode loop and the event-to-output loop through the whole program; file them in the session."""
    from rig.bench.latency import latency

    def measure() -> dict[str, Any]:
        return latency(minutes, sessions, HostClock(), console, None if config is None else load(config)[1])

    _bench(measure, json_file)


@bench_app.command("chaos")
def chaos_command(
    json_file: JsonFile = None,
    kills: Annotated[int, typer.Option("--kills", min=1, help="Processes to kill or freeze, in all sessions.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of what is struck and when.")] = 1,
    sessions: Sessions = Path("sessions"),
) -> None:
    """Kill and freeze the processes of simulated sessions; check that nothing is lost and nothing decided otherwise.

    Example: stimloop bench chaos --kills 8 --seed 3. Exit code 1 if anything was violated; docs/chaos.md.
    """
    from rig.bench.chaos import chaos

    found: list[str] = []

    def measure() -> dict[str, Any]:
        figures = chaos(kills, seed, sessions, HostClock(), console)
        found.extend(figures["violations"])
        return figures

    _bench(measure, json_file)
    if found:
        raise typer.Exit(1)


@bench_app.command("soak")
def soak_command(
    json_file: JsonFile = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Length of the session.")] = 20.0,
    sessions: Sessions = Path("sessions"),
) -> None:
    """Run one long evolution session with all parts and measure the memory and CPU time of each process.

    Example: stimloop bench soak --minutes 20 --json soak.json
    """
    from rig.bench.soak import soak

    _bench(lambda: soak(minutes, sessions, HostClock(), console), json_file)


def add_replay_bench(app: typer.Typer, models: "Callable[[], ModelSide]") -> None:
    """Add `replay`, which needs the models: `rig.cli` joins them."""

    @app.command("replay")
    def replay_command(
        json_file: JsonFile = None,
        minutes: Annotated[float, typer.Option("--minutes", help="Length of the session that is replayed.")] = 60.0,
        session: Annotated[
            Path | None, typer.Option("--session", help="Replay this session's folder instead of a made one.")
        ] = None,
    ) -> None:
        """Replay an evolution session of an hour's length and measure how much faster than life that is."""
        from rig.bench.replay import replay

        _bench(lambda: replay(minutes, session, models(), HostClock()), json_file)
