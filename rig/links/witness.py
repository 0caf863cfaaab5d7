"""What a process was told is journalled, and when it first had an entry of the log, noted outside of the program.

Off unless the environment names a folder: STIMLOOP_WITNESS=FOLDER. Then each `rig.links.peer.Peer` appends to a file of
its own there, `<process start>.jsonl`, one line with one write, so that what was acknowledged is known of a process
that was killed in the next instruction. Read by `stimloop bench chaos`, which compares it with the journal.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "STIMLOOP_WITNESS"


def digest(frames: Sequence[bytes]) -> str:
    """Return a hash of a document's frames."""
    out = hashlib.sha256()
    for frame in frames:
        out.update(len(frame).to_bytes(8, "little"))
        out.update(frame)
    return out.hexdigest()


class Witness:
    """Notes for one process start; without the variable it does nothing."""

    def __init__(self, process: str) -> None:
        """Open `<process>.jsonl` in the folder that the environment names, if it names one; raises OSError."""
        folder = os.environ.get(VARIABLE)
        self._file = None
        self._took = False
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._file = os.open(Path(folder) / f"{process}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def acknowledged(self, frames: Sequence[bytes], refused: bool = False) -> None:
        """Note a document that the recorder acknowledged or refused; `frames` as sent, the first names n and cause."""
        if self._file is not None:
            head = json.loads(frames[0])
            self._note(n=head["n"], cause=head["cause"], sha256=digest(frames[1:]), refused=refused)

    def took(self, seq: int, host_ns: int) -> None:
        """Note the first entry of the log that came."""
        if self._file is not None and not self._took:
            self._took = True
            self._note(took=seq, host_ns=host_ns)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _note(self, **fields: Any) -> None:
        assert self._file is not None  # noqa: S101 - asked before
        os.write(self._file, json.dumps(fields).encode() + b"\n")


@dataclass(frozen=True)
class Acknowledged:
    """One document that a process was told is journalled."""

    process: str
    n: int
    cause: tuple[int, int] | None
    sha256: str
    refused: bool


@dataclass(frozen=True)
class Notes:
    """What all processes of a session noted."""

    acknowledged: tuple[Acknowledged, ...]
    first_taken_host_ns: dict[str, int]
    """Process start -> host time at which its first entry of the log came."""


def read_notes(folder: Path) -> Notes:
    """Read the notes of all process starts; a torn last line, of a process killed while it wrote, is left out."""
    acknowledged, taken = [], {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().rpartition(b"\n")[0].splitlines():
            said = json.loads(line)
            if "took" in said:
                taken[path.stem] = int(said["host_ns"])
                continue
            cause = None if said["cause"] is None else (int(said["cause"][0]), int(said["cause"][1]))
            acknowledged.append(Acknowledged(path.stem, said["n"], cause, said["sha256"], said["refused"]))
    return Notes(tuple(acknowledged), taken)
