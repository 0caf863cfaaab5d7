"""Commands that read the log of a session: `stimloop clocks`, `recover`, `journal`. Joined by `rig.cli`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()
errors = Console(stderr=True)
SessionFolder = Annotated[Path, typer.Argument(help="Session folder, for example sessions/2026-11-21-demo.")]


def die(message: object) -> typer.Exit:
    """Print an error; return what ends the command with exit code 2."""
    errors.print(f"[bold red]error[/] {message}", highlight=False, soft_wrap=True)
    return typer.Exit(2)


def existing(folder: Path) -> Path:
    """Return the folder of a session; ends the command where it is none."""
    if not (folder / "session.journal").exists():
        raise die(
            f"{folder} holds no session.journal; give the folder of a session, for example sessions/<date>-<name>"
        )
    return folder


def clocks(
    folder: SessionFolder,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    barcodes: Annotated[int | None, typer.Option("--barcodes", help="0-based TTL line that carries barcodes.")] = None,
) -> None:
    """Fit every device's clock again, from both sides, and compare with the map that the session used."""
    import json

    from rig.clocks.barcodes import BarcodeFormat
    from rig.clocks.clockfit import KINDS_NEEDED, compare_barcodes, figures, photodiode_lags, runs_of
    from rig.recording.journal import read_all

    entries = read_all(existing(folder) / "session.journal", KINDS_NEEDED)
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
        raise die(f"{folder}: the journal holds no clock pairs; no device was connected")
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def recover(folder: SessionFolder) -> None:
    """Rebuild session.h5 from the journal, also from one that was torn by a kill or a power loss.

    Example: stimloop recover sessions/2026-11-21-demo
    """
    from rig.recording.recover import recover as rebuild
    from rig.view.session_file import NoRoom

    try:
        said = rebuild(existing(folder))
    except NoRoom as error:
        die(f"{error}; free space there. The journal is as it was")
        sys.stderr.flush()
        os._exit(2)  # HDF5 may hold a file that it cannot close
    except OSError as error:
        raise die(f"{folder}: {error}; the journal is as it was") from error
    for line in said:
        console.print(line, highlight=False, soft_wrap=True)


def journal(
    folder: SessionFolder,
    kind: Annotated[str | None, typer.Option("--kind", help="Only documents of this kind.")] = None,
    limit: Annotated[int, typer.Option("--limit", help="At most so many lines.")] = 1000,
) -> None:
    """List a session's journal: one JSON object a line; long arrays and pictures are given by their shape."""
    from rig.encoding import summary
    from rig.messages import (
        DOCUMENT_TYPES,
    )
    from rig.recording.journal import JournalReader

    if kind is not None and kind not in DOCUMENT_TYPES:
        raise die(f"no documents of kind {kind!r}; there are: {', '.join(sorted(DOCUMENT_TYPES))}")
    reader = JournalReader(existing(folder) / "session.journal", None if kind is None else frozenset({kind}))
    count = 0
    while entries := reader.read(final=True):
        for entry in entries:
            count += 1
            if count <= limit:
                typer.echo(summary(entry))
    if count > limit:
        errors.print(f"{count - limit} more; use --limit {count}")
    if reader.damaged_bytes or reader.bad_records:
        errors.print(f"{reader.damaged_bytes} damaged bytes, {reader.bad_records} unreadable records")
    reader.close()
