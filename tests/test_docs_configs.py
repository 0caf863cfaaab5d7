"""What the pages in docs/ tell one to write and type: phases that are configs, commands and options that exist."""

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from rig.cli import app
from rig.config.reading import parse

DOCS = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
BLOCK = re.compile(r"^ {4}phases:\n(?:(?: {4}.*)?\n)+", re.MULTILINE)
LINE = re.compile(r"`stimloop ([a-z-]+(?: [^`]*)?)`|^(?: {4})?stimloop ([a-z-]+.*)$", re.MULTILINE)
SAMPLE: dict[str, Any] = {
    "sources": [{"type": "openephys"}], "responses": {"units": ["E01#0", "E02#0", "E03#0", "E07#0"]},
    "presentation": {"on_s": 0.1, "off_s": 0.1},
}  # fmt: skip


def blocks() -> list[Any]:
    found = [(page, block) for page in DOCS for block in BLOCK.findall(page.read_text(encoding="utf-8"))]
    return [pytest.param(textwrap.dedent(block), id=f"{page.stem}-{k}") for k, (page, block) in enumerate(found)]


@pytest.mark.parametrize("block", blocks())
def test_phases_in_the_docs_are_a_config(block: str) -> None:
    told = yaml.safe_load(block)
    phases = parse(yaml.safe_dump(SAMPLE | told)).phases
    assert [phase.agent for phase in phases] == [phase["agent"] for phase in told["phases"]]


def test_every_page_of_issue_6_with_a_phase_is_among_them() -> None:
    assert {"inception", "control", "across_days"} <= {str(one.id).split("-")[0] for one in blocks()}


def test_commands_and_their_options_in_the_docs_exist() -> None:
    commands, mistakes = get_command(app), []
    for page in DOCS:
        for inline, line in LINE.findall(page.read_text(encoding="utf-8")):
            words = (inline or line).split("#")[0].split()
            group, names = commands, list[str]()
            while words and hasattr(group, "commands") and words[0] in group.commands:
                names.append(words[0])
                group = group.commands[words.pop(0)]
            if not names and inline:  # a line of prose may begin with the program's name
                mistakes.append(f"{page.name}: stimloop {' '.join(words[:2])}")
            known = {option for one in group.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
            options = [word.split("=")[0] for word in words if word.startswith("--")]
            mistakes += [f"{page.name}: {' '.join(names)} {one}" for one in options if one not in known]
    assert mistakes == []
