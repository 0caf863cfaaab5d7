"""`stimloop keys ...`: make and show the keys of links between computers (docs/remote.md)."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

keys_app = typer.Typer(no_args_is_help=True, help="Keys of encrypted links to other computers.")
console = Console()
errors = Console(stderr=True)


def _die(message: object) -> typer.Exit:
    errors.print(f"[bold red]error[/] {message}", highlight=False, soft_wrap=True)
    return typer.Exit(2)


@keys_app.command("new")
def new(
    folder: Annotated[Path, typer.Argument(help="Folder for the keys, for example keys.")],
    client: Annotated[
        str, typer.Option("--client", help="Who may connect: model or guest; a second one is model-gpu2.")
    ] = "model",
) -> None:
    """Make a key pair for the rig's computer, if there is none, and one for a client: stimloop keys new keys."""
    from rig.links.keys import SERVER, KeysError, make

    try:
        made = make(folder, client)
    except (KeysError, OSError) as error:
        raise _die(error) from error
    for each in made:
        where = "stays on the rig's computer" if each.name == SERVER else "move it to the other computer"
        console.print(f"made [bold]{each}[/]: {where}", highlight=False, soft_wrap=True)
    console.print("Who has a *.key_secret file can take that end's place: never send one by mail.", soft_wrap=True)


@keys_app.command("show")
def show(folder: Annotated[Path, typer.Argument(help="Folder with keys.")]) -> None:
    """List the keys in a folder and who may connect; secrets are not shown. Exit code 1 if others can read one."""
    from rig.links.keys import KeysError, listing

    try:
        lines = listing(folder)
    except (KeysError, OSError) as error:
        raise _die(error) from error
    if not lines:
        raise _die(f"{folder} holds no keys; make some with `stimloop keys new {folder}`")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if any("WRONG" in line for line in lines):
        raise typer.Exit(1)
