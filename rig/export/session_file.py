"""Reads `session.h5` for the exports, stretch by stretch, so that a session of any length fits into memory.

Used by the parts of `rig.export`; it only reads. Where `session.h5` is missing or older than its journal, the view is
made anew from the journal in a temporary folder: the session's own folder is never written to.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from rig.messages import SessionStart
from rig.recording.journal import JournalReader, last_whole_seq
from rig.view.columns import FORMAT, FORMAT_VERSION
from rig.view.h5 import build
from rig.view.tables import SCHEMAS

STRETCH_ROWS = 1 << 20
HASHED_AT_ONCE = 1 << 22


class ExportError(ValueError):
    """The session cannot be exported; the message names the thing and the cure."""


class SessionView:
    """The tables of a session. Columns are read when asked for; `journal` is the file they were made from."""

    def __init__(self, file: h5py.File, journal: Path, start: SessionStart) -> None:
        """Look at an open file. Raises ExportError if it is not a view that this program can read."""
        if file.attrs.get("format") != FORMAT or file.attrs.get("format_version") != FORMAT_VERSION:
            raise ExportError(f"{file.filename} is no session file of this version; delete it and run stimloop recover")
        self.file, self.journal, self.start = file, journal, start
        self.attributes: dict[str, Any] = dict(file.attrs)
        self.config: dict[str, Any] = json.loads(str(file.attrs["config"]) or "{}")
        self.sources = self.texts("sources/name")

    @property
    def name(self) -> str:
        """Name of the session's folder."""
        return str(self.attributes["session"])

    @property
    def simulated(self) -> bool:
        """Whether the simulated animal was recorded: then these are no data."""
        return bool(self.attributes["simulated"])

    def column(self, path: str) -> npt.NDArray[Any]:
        """Return a whole column, axes (row, ...)."""
        return np.asarray(self.file[path][:])

    def texts(self, path: str) -> list[str]:
        """Return a whole column of texts."""
        return [str(text) for text in self.file[path].asstr()[:]]

    def rows(self, table: str) -> int:
        """Return the number of rows of a table."""
        first = next(d for d in self.file[table].values() if isinstance(d, h5py.Dataset))
        return int(first.shape[0])

    def stretches(self, table: str, columns: tuple[str, ...]) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Yield some columns of a table, at most `STRETCH_ROWS` rows at a time."""
        for first in range(0, self.rows(table), STRETCH_ROWS):
            yield {c: self.file[f"{table}/{c}"][first : first + STRETCH_ROWS] for c in columns}

    def rate_hz(self, source: int) -> float:
        """Return the last nominal rate that a device stated, samples/s; 0 if none."""
        rates = self.column("continuity/sample_rate_hz")[self.column("continuity/source") == source]
        rates = rates[rates > 0]
        return float(rates[-1]) if len(rates) else 0.0

    def frame(self, row: int) -> npt.NDArray[np.uint8]:
        """Return the frame of a row of stimuli/frames as it was drawn, axes (y, x, rgb)."""
        frames = self.file["stimuli/frames"]
        height, width, at = (int(frames[c][row]) for c in ("height", "width", "row"))
        return np.asarray(frames[f"images_{height}x{width}"][at])

    def journal_sha256(self) -> str:
        """Return the sha256 of the journal, hexadecimal."""
        digest = hashlib.sha256()
        with self.journal.open("rb") as file:
            while part := file.read(HASHED_AT_ONCE):
                digest.update(part)
        return digest.hexdigest()


def _start(journal: Path) -> SessionStart:
    """Return the first document of a journal. Raises ExportError."""
    try:
        last = last_whole_seq(journal)
        reader = JournalReader(journal, frozenset({"session_start"}))
    except OSError as error:
        raise ExportError(f"{journal}: cannot be read: {error}") from error
    try:
        start = next((e.document for e in reader.read(final=True) if isinstance(e.document, SessionStart)), None)
    finally:
        reader.close()
    if last == 0:
        raise ExportError(f"{journal} holds no whole entry; there is nothing to export")
    if start is None:
        raise ExportError(f"{journal}: its first entry, SessionStart, is lost; without it nothing can be exported")
    return start


def _fresh(path: Path, last: int) -> bool:
    """Whether a view is there, can be read, and knows all entries."""
    if not path.exists():
        return False
    try:
        with h5py.File(path, "r") as file:
            made = file.attrs.get("format") == FORMAT and file.attrs.get("format_version") == FORMAT_VERSION
            whole = all(f"{s.path}/{c.name}" in file for s in SCHEMAS for c in s.columns)  # an older program knew fewer
            return bool(made and whole and int(file.attrs.get("last_seq", 0)) >= last)
    except OSError:
        return False


@contextmanager
def opened(folder: Path, say: Callable[[str], None]) -> Iterator[SessionView]:
    """Open a session for export; `say` is told if its view had to be made anew. Raises ExportError."""
    journal, view = folder / "session.journal", folder / "session.h5"
    if not journal.exists():
        raise ExportError(f"{folder} holds no session.journal; give the folder of a session")
    start = _start(journal)
    if _fresh(view, last_whole_seq(journal)):
        with h5py.File(view, "r") as file:
            yield SessionView(file, journal, start)
        return
    why = "is damaged, of an older program or older than its journal" if view.exists() else "is missing"
    say(f"{view} {why}: exporting from the journal (stimloop recover {folder} makes it anew for good)")
    with tempfile.TemporaryDirectory(prefix="stimloop-export-") as temporary:
        beside = Path(temporary) / "session.journal"
        try:
            beside.symlink_to(journal.resolve())
        except OSError as error:  # a system without symbolic links
            raise ExportError(f"{view} {why}; run stimloop recover {folder} first ({error})") from error
        with h5py.File(build(Path(temporary)), "r") as file:
            yield SessionView(file, journal, start)
