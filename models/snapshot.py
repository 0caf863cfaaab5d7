"""Snapshots of the model server's state, so that a restarted server need not fold the whole log again.

A snapshot is one NumPy archive (`.npz`, never pickle): the state's arrays, and its other values as JSON with a hash
over everything. It says which session, which program and which journal entry it stands at. Only a short cut: every
one of them may be deleted, and what cannot be trusted is refused by `read`. Written and read by the edge of the model
server (`models.__main__`); it decides nothing and sends nothing.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.server import state_hash
from rig.messages import Envelope, SessionStart
from rig.provenance import program_identity

FORMAT = "stimloop model snapshot 1"
KEEP = 3
ARRAY = "__array__"  # key that stands for an array in the JSON part


__all__ = ["Snapshot", "SnapshotError", "Snapshots", "program_identity", "session_identity", "usable"]


class SnapshotError(ValueError):
    """A snapshot that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Snapshot:
    """A state of the fold and the journal entry after which it held."""

    envelope: Envelope
    """Of the last entry that was handled."""
    state: dict[str, Any]


def session_identity(start: SessionStart) -> str:
    """Return what no other session shares: a hash over the first document of its journal."""
    return hashlib.sha256(start.model_dump_json().encode()).hexdigest()


class Snapshots:
    """The snapshots of one session in one folder."""

    def __init__(self, folder: Path, session: str, program: str) -> None:
        """Use `folder` (made when the first one is written); `session` and `program` are identities as above."""
        self._folder, self._session, self._program = folder, session, program

    def newest_first(self) -> list[Path]:
        """Return the files there are."""
        return sorted(self._folder.glob("model-*.npz"), reverse=True)

    def write(self, snapshot: Snapshot) -> Path:
        """Write beside and rename, so that a kill leaves the older ones whole; remove all but the last three.

        Raises OSError. Nothing is forced to the disk: a snapshot that a power loss spoils is refused when it is read.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        arrays: list[npt.NDArray[Any]] = []
        head = {
            "format": FORMAT,
            "session": self._session,
            "program": self._program,
            "envelope": snapshot.envelope.model_dump(mode="json"),
            "state": _without_arrays(snapshot.state, arrays),
            "sha256": state_hash(snapshot.state),
        }
        path = self._folder / _name(snapshot.envelope.seq)
        beside = path.with_suffix(".part")
        members: dict[str, Any] = {"head": _as_bytes(json.dumps(head)), **{f"a{k}": a for k, a in enumerate(arrays)}}
        with beside.open("wb") as file:
            np.savez(file, **members)
        os.replace(beside, path)
        for old in self.newest_first()[KEEP:]:
            old.unlink(missing_ok=True)
        return path

    def read(self, path: Path) -> Snapshot:
        """Read one. Raises SnapshotError for one that is torn, damaged, of another session or of another program."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                head = json.loads(archive["head"].tobytes())
                arrays = [archive[f"a{k}"] for k in range(len(archive.files) - 1)]
            if head["format"] != FORMAT:
                raise SnapshotError(f"{path.name}: {str(head['format'])[:80]!r} is not {FORMAT!r}")
            if head["session"] != self._session:
                raise SnapshotError(f"{path.name}: it belongs to another session")
            if head["program"] != self._program:
                raise SnapshotError(f"{path.name}: it was made by another version of the program")
            state = _with_arrays(head["state"], arrays)
            if state_hash(state) != head["sha256"]:
                raise SnapshotError(f"{path.name}: its contents do not match their hash")
            envelope = Envelope.model_validate(head["envelope"])
            if path.name != _name(envelope.seq):
                raise SnapshotError(f"{path.name}: it stands at entry {envelope.seq}; somebody has renamed it")
            return Snapshot(envelope, state)
        except (SnapshotError, MemoryError):
            raise
        except Exception as error:  # what a damaged archive may raise cannot be listed; it is a short cut only
            raise SnapshotError(f"{path.name}: torn or damaged ({type(error).__name__}: {str(error)[:120]})") from error

    def set_aside(self, path: Path) -> None:
        """Rename one that cannot be used, so that it is named once only. Raises OSError."""
        os.replace(path, path.with_suffix(".bad"))


def _name(seq: int) -> str:
    return f"model-{seq:012d}.npz"


def _as_bytes(text: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def _without_arrays(value: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    """Return `value` with each array moved to `arrays` and named by its number."""
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError("a state holds an array of objects; use numbers")
        arrays.append(value)
        return {ARRAY: len(arrays) - 1}
    if isinstance(value, dict):
        if bad := [key for key in value if not isinstance(key, str) or key == ARRAY]:
            raise TypeError(f"a state has the key {bad[0]!r}; use names")
        return {key: _without_arrays(item, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(item, arrays) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _with_arrays(value: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    if isinstance(value, dict):
        if set(value) == {ARRAY}:
            return arrays[value[ARRAY]]
        return {key: _with_arrays(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_arrays(item, arrays) for item in value]
    return value


def usable(snapshots: Snapshots, before_seq: int) -> Iterable[tuple[Path, Snapshot | SnapshotError]]:
    """Yield each snapshot, newest first, or why it cannot be used; one at `before_seq` or later is of a lost log."""
    for path in snapshots.newest_first():
        try:
            snapshot = snapshots.read(path)
            if snapshot.envelope.seq >= before_seq:
                raise SnapshotError(f"{path.name}: it stands at entry {snapshot.envelope.seq}, which the log has lost")
            yield path, snapshot
        except SnapshotError as error:
            yield path, error
