"""The figures of a bench as JSON: in a file, or with `--json` alone on standard output and nothing else there."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write the figures to this file; without a file, print them alone.")
]
ALONE = Path("-")


def with_alone(arguments: Sequence[str]) -> list[str]:
    """Return the words of a `bench` command with the file `-` after a `--json` that names none."""
    out: list[str] = []
    for k, word in enumerate(arguments):
        out.append(word)
        following = arguments[k + 1] if k + 1 < len(arguments) else "--"
        if word == "--json" and following.startswith("--"):
            out.append(str(ALONE))
    return out


@contextmanager
def words_aside(json_file: Path | None) -> Iterator[None]:
    """Send what is said meanwhile to the error stream if standard output is for the figures."""
    if json_file != ALONE:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def write(json_file: Path | None, figures: Mapping[str, Any]) -> None:
    """Write the figures where the user wants them; raises OSError."""
    if json_file is None:
        return
    text = json.dumps(figures, indent=1) + "\n"
    if json_file == ALONE:
        typer.echo(text, nl=False)
    else:
        json_file.write_text(text, encoding="utf-8")
