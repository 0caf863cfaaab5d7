"""Snapshots of the recorder's response fold, so that a killed recorder need not fold the whole journal again.

One NumPy archive (`.npz`, never pickle): the fold as `rig.recording.graph` writes it, with a hash over everything. It
names the journal entry it stands at, the program and the config. Only a short cut: every one may be deleted, and one
that cannot be trusted is named in a Fault, set aside, and the next older one or the journal alone is used.
"""

import hashlib
import json
import os
import threading
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

import rig.messages
from rig.clocks import barcodes, clocklines, clockmap
from rig.config.session import Config
from rig.messages import Document, Envelope
from rig.provenance import program_identity
from rig.recording.graph import Encoder, GraphError, Room, Size, class_name, decode, parts_of
from rig.responses import (
    baseline,
    deconvolution,
    device_data,
    fault_batch,
    fixation,
    fluorescence,
    gates,
    late_data,
    onset,
    scored,
    spikes_kept,
    sync_line,
    traces,
    unit_watch,
    windows,
)
from rig.responses.windows import WindowFold

FORMAT = "stimloop fold snapshot 1"
KEEP = 2
EVERY_NS = 60_000_000_000  # of a session: that much is folded again after a kill, about 1.3 s for 384 channels
PAUSE_S = 0.002  # between pieces of work in the thread that writes: the recorder's loop has its turn
FOLDS: tuple[ModuleType, ...] = (
    barcodes, clocklines, clockmap, baseline, deconvolution, device_data, fault_batch, fixation, fluorescence, gates,
    late_data, onset, scored, spikes_kept, sync_line, traces, unit_watch, windows,
)  # fmt: skip


# All that `rig.responses.windows` imports (tests/test_fold_snapshot.py looks), and what writes and reads its state.
TEXT = (
    "rig/responses/*.py", "rig/clocks/*.py", "rig/config/*.py", "rig/messages.py", "rig/documents/*.py",
    "rig/timing.py", "stimuli/**/*.py",
    "rig/__init__.py", "rig/links/__init__.py", "rig/links/loopback.py", "rig/recording/graph.py",
    "rig/recording/fold_snapshot.py",
)  # fmt: skip


class SnapshotError(ValueError):
    """A snapshot that cannot be used; the message says which and why."""


def _classes() -> dict[str, type]:
    """Return what a state of the fold may consist of: the classes of its modules, and the documents."""
    of_folds = [
        kind for module in FOLDS for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__
    ]  # fmt: skip
    documents = [k for k in vars(rig.messages).values() if isinstance(k, type) and issubclass(k, Document)]
    return {class_name(kind): kind for kind in (*of_folds, *documents)}


CLASSES = _classes()


@cache
def program() -> str:
    """Return a hash over all program text that decides what a fold makes of a log, and what a snapshot of it holds."""
    return program_identity(TEXT)


def take(fold: WindowFold, config: Config, room: Room | None = None, rehearse: bool = False) -> Encoder:
    """Return the state of a fold over `config` as it is now. Raises GraphError."""
    encoder = Encoder(CLASSES, dict(parts_of(config)), room, rehearse)
    encoder.take(fold)
    return encoder


def restored(text: bytes, arrays: dict[str, npt.NDArray[Any]], config: Config) -> WindowFold:
    """Return a fold with that state. Raises GraphError."""
    fold = decode(text, arrays, CLASSES, dict(parts_of(config)))
    if not isinstance(fold, WindowFold) or set(vars(fold)) != set(vars(WindowFold(config))):
        raise GraphError("it holds no response fold of this version")
    return fold


class FoldSnapshots:
    """The snapshots of one session in its folder."""

    def __init__(self, folder: Path, config: Config, every_ns: int = EVERY_NS) -> None:
        """Use the folder `snapshots` in the session's `folder`; it is made when the first one is written."""
        self._folder, self._config, self._every_ns = folder / "snapshots", config, every_ns
        self._program = program()
        self.used = "none: the journal from its beginning"
        self._config_sha256 = hashlib.sha256(config.model_dump_json().encode()).hexdigest()
        self._due_ns: int | None = None
        self._thread: threading.Thread | None = None
        self._room: Room | None = None
        self._failure = ""
        self._said = False

    def newest_first(self) -> list[Path]:
        """Return the files there are."""
        return sorted(self._folder.glob("recorder-*.npz"), reverse=True)

    # --- reading ------------------------------------------------------------------------------------------------------

    def newest(
        self, last_seq: int, envelope: Callable[[int], Envelope | None]
    ) -> tuple[WindowFold, int, list[int], list[str]]:
        """Return the fold of the newest good snapshot, its entry, the entries that could not be read then; and faults.

        `last_seq` is the journal's last entry, `envelope(seq)` that of any (None: damaged). Without a good one, a new
        fold and 0. A snapshot that cannot be used is set aside; the faults say in words which and why.
        """
        refused: list[str] = []
        for path in self.newest_first():
            try:
                fold, at, unreadable = self.read(path, last_seq, envelope)
                self.used = f"{path.name}, entry {at}"
                return fold, at, unreadable, refused
            except SnapshotError as error:
                refused.append(str(error))
                with suppress(OSError):  # a folder that cannot be written: it will be named again
                    os.replace(path, path.with_suffix(".bad"))
        return WindowFold(self._config), 0, [], refused

    def read(
        self, path: Path, last_seq: int, envelope: Callable[[int], Envelope | None]
    ) -> tuple[WindowFold, int, list[int]]:
        """Read one. Raises SnapshotError for one that is torn, foreign, of another program, or newer than the log."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                members = {name: archive[name] for name in archive.files}
            head_text, text = (members.pop(name).tobytes() for name in ("head", "state"))
            head = json.loads(head_text)
            if head["format"] != FORMAT:
                raise SnapshotError(f"{path.name}: {str(head['format'])[:80]!r} is not {FORMAT!r}")
            if head["program"] != self._program:
                raise SnapshotError(f"{path.name}: it was made by another version of the program")
            if head["config"] != self._config_sha256:
                raise SnapshotError(f"{path.name}: it was made with another config")
            arrays = {_dtype_of(name): array for name, array in members.items()}
            if _digest(text, arrays, head["envelope"], head["unreadable"]) != head["sha256"]:
                raise SnapshotError(f"{path.name}: its contents do not match their hash")
            at = Envelope.model_validate(head["envelope"])
            if at.seq > last_seq:
                raise SnapshotError(f"{path.name}: it stands at entry {at.seq}, and the log ends at {last_seq}")
            if path.name != _name(at.seq) or envelope(at.seq) != at:
                raise SnapshotError(f"{path.name}: entry {at.seq} of the log is not the one that it was made after")
            return restored(text, arrays, self._config), at.seq, [int(seq) for seq in head["unreadable"]]
        except SnapshotError:
            raise
        except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
            raise SnapshotError(f"{path.name}: torn or damaged ({str(error)[:120]})") from error

    # --- writing ------------------------------------------------------------------------------------------------------

    def due(self, now_ns: int) -> bool:
        """Return whether one is due at `now_ns`; the first one `every_ns` after the first look."""
        if self._due_ns is None:
            self._due_ns = now_ns + self._every_ns
        return now_ns >= self._due_ns and (self._thread is None or not self._thread.is_alive())

    def hurry(self) -> None:
        """Take one as soon as possible: much had to be folded again."""
        self._due_ns = 0

    def keep(self, fold: WindowFold, at: Envelope, unreadable: list[int], now_ns: int) -> None:
        """Take the fold as it is after entry `at`, and let a thread write it.

        Where the fold holds large arrays, a thread gets memory for their copies first, and this is due again at once.
        """
        room, self._room = self._room, None
        try:
            if room is None and (sizes := take(fold, self._config, rehearse=True).sizes):
                self._due_ns = now_ns
                self._start(self._make_room, sizes)
                return
            self._due_ns = now_ns + self._every_ns
            self._start(self._written, take(fold, self._config, room), at, unreadable)
        except GraphError as error:
            self._due_ns, self._failure = now_ns + self._every_ns, str(error)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        self._thread = threading.Thread(target=work, args=arguments, name="snapshot")
        self._thread.daemon = True  # a recorder that ends need not wait for it
        self._thread.start()

    def _make_room(self, sizes: list[Size]) -> None:
        self._room = Room(sizes)

    def failure(self) -> str:
        """Return why the last one could not be written; said once, "" else."""
        words, self._failure = self._failure, ""
        if self._said or not words:
            return ""
        self._said = True
        return words

    def end(self, timeout_s: float = 10.0) -> None:
        """Wait for the one that is being written."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _written(self, encoder: Encoder, at: Envelope, unreadable: list[int]) -> None:
        turn = threading.Event()
        try:
            self._write(encoder, at, unreadable, lambda: bool(turn.wait(PAUSE_S)))
        except (OSError, GraphError) as error:
            self._failure = str(error)

    def _write(self, encoder: Encoder, at: Envelope, unreadable: list[int], pause: Callable[[], object]) -> None:
        """Write beside and rename, so that a kill leaves the older ones whole; remove all but the last two.

        Raises OSError, GraphError. Nothing is forced to the disk: what a power loss spoils is refused when it is read.
        """
        text = "".join(encoder.pieces(pause)).encode()
        arrays = encoder.arrays()
        pause()
        envelope = at.model_dump(mode="json")
        head = {
            "format": FORMAT,
            "program": self._program,
            "config": self._config_sha256,
            "envelope": envelope,
            "unreadable": unreadable,
            "sha256": _digest(text, arrays, envelope, unreadable),
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / _name(at.seq)
        beside = path.with_suffix(".part")
        members: dict[str, Any] = {"head": _as_bytes(json.dumps(head).encode()), "state": _as_bytes(text)}
        members |= {_member(dtype): array for dtype, array in arrays.items()}
        try:
            with beside.open("wb") as file:
                np.savez(file, **members)
            os.replace(beside, path)
        except OSError:
            with suppress(OSError):
                beside.unlink()
            raise
        for old in [*self.newest_first()[KEEP:], *self._folder.glob("recorder-*.part")]:
            old.unlink(missing_ok=True)


def _name(seq: int) -> str:
    return f"recorder-{seq:012d}.npz"


def _member(dtype: str) -> str:
    return "array_" + dtype[1:]


def _dtype_of(member: str) -> str:
    return np.dtype(member.removeprefix("array_")).str


def _as_bytes(text: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(text, np.uint8)


def _digest(text: bytes, arrays: dict[str, npt.NDArray[Any]], envelope: object, unreadable: object) -> str:
    digest = hashlib.sha256(json.dumps([envelope, unreadable, sorted(arrays)]).encode() + text)
    for _, array in sorted(arrays.items()):
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
