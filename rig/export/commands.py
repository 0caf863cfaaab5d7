"""`stimloop export`: a session for other programs, as NWB, tables or pictures. It never changes the session."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()
errors = Console(stderr=True)


def export(
    folder: Annotated[Path, typer.Argument(help="Session folder, for example sessions/2026-11-21-demo.")],
    nwb: Annotated[bool, typer.Option("--nwb", help="One NWB 2 file with everything (docs/export.md).")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Tables: presentations, responses, units ...")] = False,
    images: Annotated[bool, typer.Option("--images", help="Every frame as a PNG, an index, contact sheets.")] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for exports.")] = Path("exports"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Export a session for other programs; the session itself is only read.

    Example: stimloop export sessions/2026-11-21-demo --nwb --csv --images
    """
    from rig.config.subject import lacking
    from rig.export.csv_tables import write_csv
    from rig.export.images import write_images
    from rig.export.session_file import ExportError, opened
    from rig.export.times import Clocks

    if not (nwb or csv or images):
        raise _die("choose what to export: --nwb, --csv, --images, or several of them")
    try:
        with opened(folder, lambda text: console.print(text, highlight=False, soft_wrap=True)) as view:
            if nwb:
                from rig.export.nwb import write_nwb

                path = write_nwb(view, out, overwrite)
                console.print(f"NWB file [bold]{path}[/] ({path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)
                if missing := lacking(view.config, view.simulated):
                    console.print(f"it lacks: {', '.join(missing)}", highlight=False, soft_wrap=True)
            if csv:
                made = _fresh(out / view.name / "csv", overwrite)
                for note in write_csv(view, Clocks(view), made):
                    console.print(note, highlight=False, soft_wrap=True)
                console.print(f"tables [bold]{made}[/], their columns are told in {made / 'README.md'}", soft_wrap=True)
            if images:
                made = _fresh(out / view.name / "images", overwrite)
                count = write_images(view, Clocks(view), made)
                console.print(f"{count} images [bold]{made}[/], with index.csv and contact sheets", soft_wrap=True)
    except (ExportError, OSError) as error:
        raise _die(error) from error


def _fresh(folder: Path, overwrite: bool) -> Path:
    """Return an empty folder. Raises ExportError if there is something in it and it must not be replaced."""
    from rig.export.session_file import ExportError

    if folder.exists() and any(folder.iterdir()):
        if not overwrite:
            raise ExportError(f"{folder} is there already; use --overwrite to replace it, or another --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _die(message: object) -> typer.Exit:
    errors.print(f"[bold red]error[/] {message}", highlight=False, soft_wrap=True)
    return typer.Exit(2)
