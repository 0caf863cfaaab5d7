"""`stimloop replay`: the command. What it joins with the models is given by `rig.cli`, the composition root."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from rig.messages import SessionStart

if TYPE_CHECKING:
    from rig.replay.model_side import LiveFold, ModelSide
    from rig.replay.session import Outcome

console = Console()
errors = Console(stderr=True)

MOST_LINES = 20
CANNOT, INCOMPLETE, DIFFERENT = 2, 3, 4  # exit codes; docs/replay.md
HELP = """Run the live code again from the journal of a session.

Say what to replay, for example:

stimloop replay sessions/2026-11-21-demo --verify

stimloop replay sessions/2026-11-21-demo --until 12:30 --out before-the-drift

stimloop replay sessions/2026-11-21-demo --counterfactual other.yaml

stimloop replay sessions/2026-11-21-demo --wire --speed 4
"""


def _die(message: object, code: int = CANNOT) -> typer.Exit:
    errors.print(f"[bold red]error[/] {message}", highlight=False, soft_wrap=True)
    return typer.Exit(code)


def _journal(folder: Path) -> Path:
    path = folder / "session.journal"
    if not path.exists():
        raise _die(
            f"{folder} holds no session.journal; give the folder of a session, for example sessions/<date>-<name>"
        )
    return path


def add_replay(app: typer.Typer, models: "Callable[[], ModelSide]") -> None:
    """Add the command to `app`; `models()` imports and returns the model side when it is needed."""

    @app.command("replay", help=HELP)
    def replay(
        folder: Annotated[Path, typer.Argument(help="Session folder, for example sessions/2026-11-21-demo.")],
        verify: Annotated[bool, typer.Option("--verify", help="Compare every decision with the journal.")] = False,
        frames: Annotated[
            bool, typer.Option("--frames", help="With --verify: make every frame again and compare its sha256.")
        ] = False,
        until: Annotated[
            str,
            typer.Option(
                "--until",
                metavar="MOMENT",
                help="Say what the session was at a journal entry (1234), a presentation (p57) or a time (12:30, 90s).",
            ),
        ] = "",
        counterfactual: Annotated[
            list[Path] | None,
            typer.Option("--counterfactual", metavar="OTHER.yaml", help="Other phases or seed; may be repeated."),
        ] = None,
        repeats: Annotated[
            int | None, typer.Option("--repeats", help="With --counterfactual: runs of each agent; 5 without.")
        ] = None,
        generations: Annotated[
            int | None, typer.Option("--generations", min=1, help="With --counterfactual: at most so many.")
        ] = None,
        wire: Annotated[
            bool, typer.Option("--wire", help="Send the recorded traffic again to source, recorder and model server.")
        ] = False,
        speed: Annotated[
            str, typer.Option("--speed", metavar="N|max", help="With --wire: how many times as fast; 1 without.")
        ] = "",
        out: Annotated[
            Path | None,
            typer.Option("--out", help="New folder for what is made: the session up to --until, --wire's or the page."),
        ] = None,
    ) -> None:
        path = _journal(folder)
        for option, given, goes_with, chosen in (
            ("--frames", frames, "--verify", verify),
            ("--repeats", repeats is not None, "--counterfactual", bool(counterfactual)),
            ("--generations", generations is not None, "--counterfactual", bool(counterfactual)),
            ("--speed", bool(speed), "--wire", wire),
        ):
            if given and not chosen:
                raise _die(f"{option} goes with {goes_with}")
        if verify + wire + bool(until) + bool(counterfactual) != 1:
            raise _die("choose one thing to replay: --verify, --wire, --until MOMENT, or --counterfactual OTHER.yaml")
        if out is not None and out.exists():
            raise _die(f"{out} exists; give --out a new folder")
        if verify:
            _verify(path, models(), frames)
        elif wire:
            _wire(folder, out, speed or "1")
        elif until:
            _until(path, models(), until, out)
        elif counterfactual:
            _counterfactual(path, models(), counterfactual, 5 if repeats is None else repeats, generations, out)


def _maker(models: "ModelSide") -> "Callable[[SessionStart], LiveFold]":
    from rig.replay.records import config_of

    def make(start: SessionStart) -> "LiveFold":
        return models.server(config_of(start))

    return make


def _verify(path: Path, models: "ModelSide", frames: bool) -> None:
    from threadpoolctl import threadpool_limits

    from rig.replay.records import ReplayError
    from rig.replay.session import verify_session

    try:
        with threadpool_limits(1):  # as the supervisor gives it to the live model server
            outcome = verify_session(path, _maker(models), models.wants, frames)
    except (ReplayError, OSError, ValueError) as error:
        raise _die(error) from error
    _say(outcome)


def _wire(folder: Path, out: Path | None, speed: str) -> None:
    from rig.replay.records import ReplayError
    from rig.replay.wire_command import replay_wire
    from rig.view.h5 import build

    try:
        agrees, made = replay_wire(folder, out, speed, console, errors)
    except (ReplayError, OSError, ValueError) as error:
        raise _die(error) from error
    build(made)
    if not agrees:
        raise _die("the replay differs from the recording; see the lines above")


def _until(path: Path, models: "ModelSide", text: str, out: Path | None) -> None:
    from threadpoolctl import threadpool_limits

    from rig.clock import HostClock
    from rig.replay.moment import export, parse_when, rebuild, words
    from rig.replay.records import ReplayError

    try:
        with threadpool_limits(1):
            moment = rebuild(path, parse_when(text), _maker(models), models.wants)
        for line in words(moment):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        if out is None:
            return
        export(path, moment, out, HostClock())
    except (ReplayError, OSError, ValueError) as error:
        raise _die(error) from error
    from rig.report.page import write
    from rig.view.h5 import build

    data, page = build(out), write(out)
    console.print(f"journal up to there {out / 'session.journal'}, data {data}, report {page}", soft_wrap=True)


def _counterfactual(
    path: Path, models: "ModelSide", files: list[Path], repeats: int, generations: int | None, out: Path | None
) -> None:
    from threadpoolctl import threadpool_limits

    from rig.replay.counterfactual import counterfactual, folder_name
    from rig.replay.counterfactual_page import write
    from rig.replay.records import ReplayError

    try:
        folder = out or path.parent / "counterfactual" / folder_name(path, files)
    except (ReplayError, OSError) as error:
        raise _die(error) from error
    if folder.exists():
        raise _die(f"{folder} exists; delete it, or give --out a new folder")

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    try:
        with threadpool_limits(1):
            found = counterfactual(path, files, models.what_if(), repeats, generations, say)
        page = write(found, folder)
    except (ReplayError, OSError, ValueError) as error:
        raise _die(error) from error
    for phase in found["phases"]:
        of = f"phase {phase['phase'] + 1}, {phase['unit']}"
        for name, run in phase["closed_loop"].items():
            last = f"{run['mean'][-1]:.1f} ± {run['mean_sem'][-1]:.1f} {found['unit_of_rates']}, n = {run['runs']} runs"
            say(f"{of}, {name}: last generation {last} of the twin")
        for words in phase["verdicts"]:
            say(f"{of}: {words}")
        for warning in phase["warnings"]:
            errors.print(f"[yellow]warning[/] {of}: {warning}", highlight=False, soft_wrap=True)
    say(f"page {page}")


def _say(outcome: "Outcome") -> None:
    """Print an outcome and exit with its code."""
    verdict = outcome.verdict
    table = Table("decision", "identical", box=None)
    for kind, n in sorted(verdict.identical.items()):
        table.add_row(kind, str(n))
    console.print(table)
    found = [*verdict.different, *verdict.missing]
    for line in found[:MOST_LINES]:
        errors.print(line, highlight=False, soft_wrap=True)
    if len(found) > MOST_LINES:
        errors.print(f"and {len(found) - MOST_LINES} more")
    for line in outcome.incomplete:
        errors.print(f"[yellow]incomplete log[/] {line}", highlight=False, soft_wrap=True)
    if not verdict.identical:
        raise _die("the journal holds no decision that could be compared")
    if not verdict.agrees:
        if outcome.other_program:
            errors.print(outcome.other_program, highlight=False, soft_wrap=True)
        raise _die(f"{len(verdict.different)} decisions differ, {len(verdict.missing)} are missing or new", DIFFERENT)
    restarted = {name: n - 1 for name, n in sorted(outcome.starts.items()) if n > 1}
    if restarted:
        words = ", ".join(f"{name} {n}" for name, n in restarted.items())
        console.print(f"restarts in this log: {words}; decisions are compared across them", soft_wrap=True)
    if outcome.derived:
        console.print(
            f"derived session: {verdict.identical['response']} responses identical; its units were sorted again after "
            "the session, so that its proposals were not made from these responses and are not compared",
            soft_wrap=True,
        )
    else:
        console.print(
            f"identical: {verdict.identical['proposal']} of {outcome.proposals} proposals, "
            f"{verdict.decisions} decisions in all"
        )
    if outcome.incomplete:
        raise typer.Exit(INCOMPLETE)
