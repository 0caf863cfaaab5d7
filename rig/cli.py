"""The command line and the composition root: the one module that may know all three packages.

It joins the rig with the models and the simulated animal; every heavy import happens inside the command that needs it.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rig.animal.commands import fake_app
from rig.bench.commands import bench_app
from rig.clock import HostClock
from rig.config import Config, ConfigError, Subject, load
from rig.messages import (
    Entry,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Closed-loop visual neuroscience: show images, record neurons, evolve the next images, log everything.",
)
app.add_typer(bench_app, name="bench")
app.add_typer(fake_app, name="fake")
console = Console()
errors = Console(stderr=True)
ConfigFile = Annotated[Path, typer.Argument(help="Config file of the session, YAML.")]
SessionFolder = Annotated[Path, typer.Argument(help="Session folder, for example sessions/2026-11-21-demo.")]
Sessions = Annotated[Path, typer.Option("--sessions", help="Folder in which sessions are kept.")]


def _die(message: object) -> typer.Exit:
    errors.print(f"[bold red]error[/] {message}", highlight=False, soft_wrap=True)
    return typer.Exit(2)


def _config(path: Path) -> tuple[Config, str]:
    try:
        return load(path)
    except ConfigError as error:
        raise _die(error) from error


def _existing(folder: Path) -> Path:
    if not (folder / "session.journal").exists():
        raise _die(
            f"{folder} holds no session.journal; give the folder of a session, for example sessions/<date>-<name>"
        )
    return folder


@app.command()
def run(config: ConfigFile, sessions: Sessions = Path("sessions")) -> None:
    """Run a session: screen, devices, model, log."""
    from rig.runs import new_folder, run_session
    from rig.supervisor import SessionFailed

    settings, text = _config(config)
    if settings.subject == Subject():
        raise _die(f"{config}: subject: missing; name the animal (id, species), or use `stimloop demo --config`")
    try:
        clock = HostClock()
        folder = new_folder(sessions, settings.name, text, clock)
        console.print(f"session folder [bold]{folder}[/]", soft_wrap=True)
        reason = run_session(folder, settings, False, clock, console)
    except (SessionFailed, OSError) as error:
        raise _die(error) from error
    console.print(f"session {reason}; log {folder / 'session.journal'}, data {folder / 'session.h5'}", soft_wrap=True)
    _write_report(folder)


@app.command()
def animal(
    config: ConfigFile,
    truth: Annotated[Path, typer.Option("--truth", help="Folder for the truth of the simulation.")] = Path("truth"),
) -> None:
    """Run the simulated animal: it looks at the screen and plays the recording device of the config."""
    import numpy as np

    from models.truth import build
    from rig.animal.process import look_rects
    from rig.animal.process import run as run_animal
    from rig.child import Stop
    from stimuli.bank import natural_bank
    from stimuli.geometry import pixel_angles

    settings, _ = _config(config)
    stop, display = Stop(), settings.display
    try:
        rect, _ = look_rects(settings)
        azimuth, elevation = pixel_angles(rect, display.size_px, display.width_cm, display.distance_cm)
        bank = natural_bank()
        pictures = np.stack([bank.image(name, 112, 112) for name in bank.names])
        population = build(settings.animal, azimuth, elevation, pictures)
    except ConfigError as error:
        raise _die(f"{config}: {error}") from error
    raise typer.Exit(run_animal(settings, truth, population, stop))


@app.command()
def demo(
    config: Annotated[Path | None, typer.Option("--config", help="Another config than the shipped demo.")] = None,
    sessions: Sessions = Path("sessions"),
) -> None:
    """Watch a simulated neuron's favourite image evolve: screen, eye, neurons, wire, recorder, evolution, log."""
    from rig.demo import run_demo
    from rig.display.virtual import NoScreen
    from rig.supervisor import SessionFailed

    path = config or Path(__file__).parent.parent / "configs" / "demo.yaml"
    settings, text = _config(path)
    try:
        folder, ok = run_demo(settings, text, sessions, HostClock(), console)
    except (SessionFailed, NoScreen, OSError) as error:
        raise _die(error) from error
    _write_report(folder)
    if not ok:
        raise _die("the demo ran to its end but did not reach its goals; see the lines above")


@app.command()
def replay(
    folder: SessionFolder,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every decision with the journal.")] = False,
) -> None:
    """Run the live code again from the journal of a session."""
    from threadpoolctl import threadpool_limits

    from models.agents import build_from_config
    from models.server import WANTS, ModelServer
    from rig.journal import JournalReader
    from rig.messages import (
        Proposal,
        SessionStart,
    )
    from rig.replay import verify as verify_log

    if not verify:
        raise _die("choose what to replay: --verify")

    def make(start: SessionStart) -> ModelServer:
        settings = Config.model_validate(start.config)
        _torch_as_live(settings)
        return ModelServer(build_from_config(settings), len(settings.phases))

    reader = JournalReader(_existing(folder) / "session.journal")
    entries: list[Entry] = []
    while new := reader.read(final=True):
        entries += new
    reader.close()
    try:
        with threadpool_limits(1):  # as the supervisor gives it to the live model server
            verdict = verify_log(entries, make, WANTS)
    except ValueError as error:
        raise _die(error) from error
    table = Table("decision", "identical", box=None)
    for kind, n in sorted(verdict.identical.items()):
        table.add_row(kind, str(n))
    console.print(table)
    for line in [*verdict.different, *verdict.missing][:20]:
        errors.print(line)
    whole = _completeness(entries, reader.damaged_bytes + reader.bad_records)
    for line in whole:
        errors.print(f"[yellow]incomplete log[/] {line}", highlight=False)
    if not verdict.identical:
        raise _die("the journal holds no decision that could be compared")
    if not verdict.agrees:
        raise _die(f"{len(verdict.different)} decisions differ, {len(verdict.missing)} are missing or new")
    proposals = sum(isinstance(e.document, Proposal) for e in entries)
    console.print(
        f"identical: {verdict.identical.get('proposal', 0)} of {proposals} proposals, "
        f"{verdict.decisions} decisions in all"
    )
    if whole:
        raise typer.Exit(3)


def _completeness(entries: list[Entry], damage: int) -> list[str]:
    """Return what is missing from a log, in words; nothing for a session that was closed in order."""
    from rig.messages import (
        SessionStop,
    )

    out = []
    seqs = [e.envelope.seq for e in entries]
    if seqs != list(range(1, len(seqs) + 1)):
        out.append(f"{seqs[-1] - len(seqs)} entries are missing or damaged")
    if damage:
        out.append("part of the file is damaged")
    if not isinstance(entries[-1].document, SessionStop):
        out.append("the session was not closed in order: the log ends without SessionStop")
    return out


def _torch_as_live(settings: Config) -> None:
    """Use the live run's thread count: sums in another order give other bits."""
    import torch

    torch.set_num_threads(settings.processes.torch_threads)
    torch.use_deterministic_algorithms(True)


def _write_report(folder: Path) -> None:
    from rig.report.page import write

    console.print(f"report [bold]{write(folder)}[/], figures {folder / 'figures'}")


@app.command()
def report(folder: SessionFolder) -> None:
    """Write figures and a self-contained HTML report of a session."""
    _write_report(_existing(folder))


@app.command()
def check(config: ConfigFile) -> None:
    """Look before the session whether everything is in place; each failed check prints its cure."""
    from rig.preflight import checks

    settings, _ = _config(config)
    failed = 0
    for result in checks(settings, HostClock()):
        mark = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]FAIL[/]"}[result.status]
        console.print(f"{mark}  {result.name}: {result.message}", highlight=False, soft_wrap=True)
        if result.status != "ok":
            console.print(f"      cure: {result.remedy}", highlight=False, soft_wrap=True)
        failed += result.status == "fail"
    if failed:
        raise typer.Exit(1)


@app.command()
def clocks(
    folder: SessionFolder,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    barcodes: Annotated[int | None, typer.Option("--barcodes", help="0-based TTL line that carries barcodes.")] = None,
) -> None:
    """Fit every device's clock again, from both sides, and compare with the map that the session used."""
    import json

    from rig.clocks.barcodes import BarcodeFormat
    from rig.clocks.clockfit import KINDS_NEEDED, compare_barcodes, figures, photodiode_lags, runs_of
    from rig.journal import read_all

    entries = read_all(_existing(folder) / "session.journal", KINDS_NEEDED)
    runs = runs_of(entries)
    found = {
        "rows": [figures(run) for run in runs],
        "photodiode": photodiode_lags(runs, entries),
        "barcodes": [] if barcodes is None else compare_barcodes(runs, barcodes, BarcodeFormat()),
    }
    for row in (*found["rows"], *found["photodiode"], *found["barcodes"]):
        line = "  ".join(f"{k}={v}" for k, v in row.items() if k != "warnings")
        console.print(line, highlight=False, soft_wrap=True, markup=False)
        for warning in row.get("warnings", ()):
            errors.print(f"[yellow]warning[/] {row['source']}: {warning}", highlight=False, soft_wrap=True)
    if not runs:
        raise _die(f"{folder}: the journal holds no clock pairs; no device was connected")
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


@app.command()
def recover(folder: SessionFolder) -> None:
    """Rebuild session.h5 from the journal, also from one that was torn by a kill or a power loss."""
    from rig.view.h5 import build

    console.print(f"rebuilt [bold]{build(_existing(folder))}[/]", soft_wrap=True)


@app.command()
def journal(
    folder: SessionFolder,
    kind: Annotated[str | None, typer.Option("--kind", help="Only documents of this kind.")] = None,
    limit: Annotated[int, typer.Option("--limit", help="At most so many lines.")] = 1000,
) -> None:
    """List a session's journal: one JSON object a line; long arrays and pictures are given by their shape."""
    from rig.encoding import summary
    from rig.journal import JournalReader
    from rig.messages import (
        DOCUMENT_TYPES,
    )

    if kind is not None and kind not in DOCUMENT_TYPES:
        raise _die(f"no documents of kind {kind!r}; there are: {', '.join(sorted(DOCUMENT_TYPES))}")
    reader = JournalReader(_existing(folder) / "session.journal", None if kind is None else frozenset({kind}))
    count = 0
    while entries := reader.read(final=True):
        for entry in entries:
            count += 1
            if count <= limit:
                print(summary(entry))
    if count > limit:
        errors.print(f"{count - limit} more; use --limit {count}")
    if reader.damaged_bytes or reader.bad_records:
        errors.print(f"{reader.damaged_bytes} damaged bytes, {reader.bad_records} unreadable records")
    reader.close()


def main() -> None:
    """Run the command line."""
    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        signal.signal(number, lambda *_: sys.exit(143))  # so that screens and animals end with us
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
