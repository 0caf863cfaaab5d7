"""Where an image of a derived session comes from: chosen in the session it was made from, by the units of then.

A session made by `stimloop units import` shows the same images with other units. What was chosen, and what the agent
was told, happened in the session that its SessionStart names (derived_from). So that is where it is read; the response
of the sorted units stands beside it. Used by `rig.why.tree`.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from rig.messages import Origin
from rig.recording.journal import JournalReader
from rig.why.origin import KINDS, Build, NotInLog, Provenance


def read(folder: Path, build: Build | None = None) -> Provenance:
    """Fold the journal of a session, also one that still grows. Raises OSError."""
    found = Provenance(build)
    reader = JournalReader(folder / "session.journal", KINDS)
    try:
        while entries := reader.read(final=True):
            for entry in entries:
                found.apply(entry)
    finally:
        reader.close()
    return found


def explain(
    folder: Path, what: str, original: Path | None, build: Build | None = None
) -> tuple[dict[str, Any], list[int]]:
    """Return what is known of a presentation (its number, or the id of its stimulus), and all showings of the image.

    `original`: folder of the session that a derived one was made from; beside it without. `build` makes the generators
    that decode latent codes again; without it no frame is compared. The answer is that of
    `Provenance.explain`; of a derived session it has `derived` besides. Raises NotInLog, OSError.
    """
    if not (folder / "session.journal").exists():
        raise NotInLog(f"{folder} holds no session.journal; give the folder of a session")
    found = read(folder, build)
    number = re.fullmatch(r"p?([0-9]+)", what)
    numbers = [int(number[1])] if number else found.presentations_of(what)
    answer = found.explain(numbers[0])
    origin = None if found.start is None else found.start.derived_from
    if origin is None:
        if original is not None:
            raise NotInLog(f"{folder} was not made from another session; leave out --original")
        return answer, numbers
    derived = {"session": answer["session"]["name"], "from": origin.session, "response": answer["response"]}
    source = original or folder.resolve().parent / origin.session
    if lacking := _lacking(source, origin):
        return _without(answer, derived, lacking), numbers
    then, _ = explain(source, str(numbers[0]), None, build)
    return then | {"derived": derived | {"lacking": ""}}, numbers


def _lacking(source: Path, origin: Origin) -> str:
    """Return why the original session cannot be read, "" if it can."""
    journal = source / "session.journal"
    if not journal.exists():
        return f"session {origin.session} is not there ({source}); give its folder with --original"
    with journal.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != origin.journal_sha256:
            return f"{journal} is not the journal that this session was made from (its sha256 is another one)"
    return ""


def _without(answer: dict[str, Any], derived: dict[str, Any], lacking: str) -> dict[str, Any]:
    """Take out what only the original session tells: unit, responses that chose, what was told to the agent."""
    parents = [p for node in answer["stimuli"].values() for p in node.get("parents", [])]
    for parent in parents:
        parent |= {"response": None, "rank": None, "of": None}
    return answer | {
        "asked_by": answer["asked_by"] | {"unit": None},
        "response": None,
        "used": None,
        "derived": derived | {"lacking": lacking},
    }
