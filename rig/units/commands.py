"""`stimloop units`: units that were sorted again after the session."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

units_app = typer.Typer(no_args_is_help=True, help="Units that were sorted offline.")
console = Console()
errors = Console(stderr=True)
EXIT_REFUSED = 2
EXAMPLE = """Make a session again with the units that Kilosort and Phy found in its recording.

For example, with Open Ephys, whose recording has its sample_numbers.npy beside continuous.dat:

stimloop units import kilosort4/ sessions/2026-11-21-demo --sample-numbers continuous/ProbeA-AP/sample_numbers.npy
"""


@units_app.callback()
def _units() -> None:
    """Keep `import` a word of the command, also while there is one."""


def _die(message: object) -> typer.Exit:
    errors.print(f"[bold red]error[/] {message}", highlight=False, soft_wrap=True)
    return typer.Exit(EXIT_REFUSED)


def _same(words: list[str]) -> dict[str, int]:
    out = {}
    for word in words:
        unit, equals, cluster = word.rpartition("=")
        if not equals or not unit or not cluster.isdecimal():
            raise _die(f"--same {word!r}: write it as UNIT=CLUSTER, for example E01#0=12")
        out[unit] = int(cluster)
    return out


@units_app.command("import", help=EXAMPLE)
def import_(
    phy: Annotated[Path, typer.Argument(metavar="PHY_FOLDER", help="Folder that Kilosort wrote and Phy saved to.")],
    session: Annotated[Path, typer.Argument(help="Folder of the recorded session; it stays as it is.")],
    groups: Annotated[str, typer.Option(help="Groups of clusters to import, for example good,mua.")] = "good",
    sample_numbers: Annotated[
        list[Path] | None,
        typer.Option(help="sample_numbers.npy of the recording; again for each, where several were sorted together."),
    ] = None,
    offset_samples: Annotated[
        int | None, typer.Option(help="Instead: the device's number of the first sample of the sorted file.")
    ] = None,
    run: Annotated[
        list[int] | None,
        typer.Option(help="Acquisition run in the recording, from 0; may be repeated. Else as the spikes prove."),
    ] = None,
    sample_rate: Annotated[float | None, typer.Option(help="Samples/s, where params.py does not say it.")] = None,
    same: Annotated[
        list[str] | None, typer.Option(metavar="UNIT=CLUSTER", help="The cluster that a unit seen online is.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New session folder; SESSION-sorted without.")] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Import also where the spikes do not fit those seen online.")
    ] = False,
) -> None:
    """Make a session again with units sorted offline."""
    from rig.clock import HostClock
    from rig.units.importing import Options, import_units
    from rig.units.phy import UnitsError
    from rig.view.h5 import build

    if not (session / "session.journal").exists():
        cure = "give the folder of a session, for example sessions/<date>-<name>"
        raise _die(f"{session} holds no session.journal; {cure}")
    options = Options(
        groups=tuple(g.strip() for g in groups.split(",") if g.strip()),
        numbers=tuple(sample_numbers or ()),
        offset=offset_samples,
        runs=tuple(run or ()),
        sample_rate_hz=sample_rate,
        same=_same(same or []),
        checked=not unchecked,
    )
    target = out or session.resolve().parent / f"{session.resolve().name}-sorted"
    try:
        made = import_units(phy, session, target, options, HostClock())
    except (UnitsError, OSError) as error:
        raise _die(error) from error
    table = Table("unit", "spikes", "fires together with", "share of its spikes", box=None)
    for name, spikes in made.units.items():
        twins = [m for m in made.matches if f"phy{m.cluster}" == name]
        shares = ", ".join(f"{m.share:.0%}" for m in twins)
        table.add_row(name, str(spikes), ", ".join(m.online for m in twins), shares)
    console.print(table)
    for words in made.left_out:
        errors.print(f"[yellow]warning[/] {words}", highlight=False, soft_wrap=True)
    console.print(
        f"{made.responses} responses made anew, {made.usable} usable, of {made.presentations} presentations; "
        f"log {made.folder / 'session.journal'}, data {build(made.folder)}",
        highlight=False,
        soft_wrap=True,
    )
