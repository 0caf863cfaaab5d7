"""Reads the config file of a session: unknown keys refused, one clear error per mistake, with its place and cure.

Used by `stimloop run`, `animal`, `check`, the benches and each process of a session.
"""

from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rig.config.part import Part
from rig.config.session import Config


class ConfigError(ValueError):
    """A config file the user must mend; the message names the file, the field and the cure."""


class _OneOfEach(yaml.SafeLoader):
    """YAML as usual, but a key given twice is a mistake and not a silent last-one-wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused below
            if key.value in seen:
                twice = f"the key {key.value!r} is given twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _keys(part: type[Part]) -> set[str]:
    """Return the names of the fields of `part` and of everything derived from it."""
    return set(part.model_fields).union(*(_keys(p) for p in part.__subclasses__()))


def _explain(e: ErrorDetails) -> str:
    """Say what is wrong in one line: the field as it stands in the file, the reason, the cure."""
    # Loc also holds the tag of a source, an agent, a generator or a place, which is no key of the file.
    tagged = {2} if e["loc"][:1] in (("sources",), ("phases",), ("outputs",)) else set()
    tagged |= {k + 1 for k, p in enumerate(e["loc"]) if p in ("generator", "optimiser", "place")}
    loc = [p for k, p in enumerate(e["loc"]) if k not in tagged]
    where = ".".join(str(p) for p in loc)
    message, context = e["msg"].removeprefix("Value error, "), e.get("ctx", {})
    match e["type"]:
        case "extra_forbidden":
            key, known = str(loc[-1]), _keys(Part)
            near = get_close_matches(key, known, n=1)
            cure = f"did you mean {near[0]!r}?" if near else "remove it or check its spelling"
            message = "no key of this part; check where it belongs" if key in known else f"unknown key; {cure}"
        case "missing":
            message = "missing; add it, as the files in configs/ do"
        case "union_tag_invalid":
            message = f"{context['tag']!r} is no {context['discriminator']}; choose one of {context['expected_tags']}"
        case "union_tag_not_found":
            message = f"{context['discriminator']} is missing; it says which kind this is"
        case "too_short":
            message = "empty; give at least one"
        case "value_error":
            pass
        case _:
            reason = message[0].lower() + message[1:].replace("tuple", "list")
            message = f"{reason}, not {shorten(repr(e['input']), 60)}"
    return f"{where}: {message}" if where else message


def parse(text: str, place: str = "config") -> Config:
    """Validate the text of a config file; raises ConfigError with one line per mistake, naming `place` and field."""
    try:
        raw = yaml.load(text, Loader=_OneOfEach)  # noqa: S506 a SafeLoader
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ConfigError(f"{place}: not YAML: {reason}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{place}: empty or not a mapping; start from one of the files in configs/")
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        # A list whose elements are wrong counts as too short as well: the element's own mistake says it all.
        inside = {e["loc"][:k] for e in error.errors() for k in range(1, len(e["loc"]))}
        found = [e for e in error.errors() if not (e["type"] == "too_short" and e["loc"] in inside)]
        lines = [line for e in found for line in _explain(e).split("\n")]
        raise ConfigError("\n".join(f"{place}: {line}" for line in lines)) from error


def load(path: Path) -> tuple[Config, str]:
    """Read and validate a config file; return it with its verbatim text. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cure = "give the path of a YAML file such as configs/demo.yaml"
        raise ConfigError(f"{path}: cannot be read: {error}; {cure}") from error
    return parse(text, str(path)), text
