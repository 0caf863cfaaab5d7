"""The HDF5 file of a session under construction: makes the datasets and writes what `rig.view.fold` has gathered.

HDF5 cannot even close a file that found no room on its disk (it ends in a segmentation fault): room is looked for
before each write, and a process to which it happened all the same must leave by `os._exit`.
"""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rig.recording.storage import free_bytes
from rig.view.columns import DEVICE, FORMAT, FORMAT_VERSION, Buffer, Column, Stack
from rig.view.device_tables import RESPONSE_UNITS
from rig.view.fold import ViewFold
from rig.view.sheets import Sheet
from rig.view.tables import CODES, IMAGES, SCHEMAS

CHUNK_ROWS = 1024
CHUNK_BYTES = 128 << 10  # of matrices: an append touches few chunks, and one unit is read without the others
CHUNK_COLUMNS = 1024
ROOM_BYTES = 8 << 20  # kept free by whoever writes session.h5, besides what is about to be written
NO_ROOM = ("errno = 28", "errno = 27", "errno = 122")  # as HDF5 words ENOSPC, EFBIG, EDQUOT; it raises what it likes

_DTYPES: dict[str, Any] = {
    "i8": np.dtype("<i8"),
    "i4": np.dtype("<i4"),
    "u2": np.dtype("<u2"),
    "u1": np.dtype("u1"),
    "f8": np.dtype("<f8"),
    "f4": np.dtype("<f4"),
    "bool": np.dtype("?"),
    "text": h5py.string_dtype("utf-8"),
}
_DESCRIPTIONS = {
    "": "A stimloop session, made from its journal. Tables are groups of datasets of equal length, one per column. "
    "Join presentations, responses and flips by `presentation`; presentations and stimuli by `stimulus_id`.",
    "stimuli": "One row per stimulus identity that was ever proposed; frames, codes and preparations in the subgroups",
    "stimuli/latents": "Latent codes by their length",
    "outputs": "Rewards, markers and messages: what was asked for and what became of it",
    "model": "What chose the stimuli: updates, proposals with their plans, computations, ended phases",
}
_CLOCKS = (
    "Times in ns on the clock 'host monotonic' (the session computer's monotonic clock; only differences have a "
    "meaning, and only within one boot, see /processes) or 'utc' (since 1970). Samples count on the clock of their "
    "device, 'device <source>', anew in each acquisition run; raw pairs of both clocks are in /clocks."
)


class NoRoom(OSError):
    """There is no room on the disk for session.h5. The journal is not touched by that."""


class SessionFile:
    """An HDF5 file under construction, and the fold whose rows it takes."""

    def __init__(self, path: Path, room_bytes: int = ROOM_BYTES) -> None:
        """Make the file with all tables empty; an older file at `path` is replaced.

        Raises NoRoom, as `write` and `close` do, where less than `room_bytes` would be left free.
        """
        self.path = path
        self.fold = ViewFold()
        self.broken = False  # HDF5 found no room in mid-write: the file cannot even be closed
        self._room_bytes = room_bytes
        self.look_for_room()
        self._file = h5py.File(path, "w")
        self._device_clock = ""
        self._attributes: dict[str, Any] = {}  # of the file, as they were written
        for key, value in {"format": FORMAT, "format_version": FORMAT_VERSION, "clock_statement": _CLOCKS}.items():
            self._file.attrs[key] = value
        for schema in SCHEMAS:
            group = self._file.require_group(schema.path)
            group.attrs["description"] = schema.description
            for column in schema.columns:
                self._dataset(f"{schema.path}/{column.name}", column, (None,) if column.per_unit else ())
        self._dataset("responses/units", RESPONSE_UNITS, ())
        self._file.require_group("stimuli/latents")
        for path_, text in _DESCRIPTIONS.items():
            self._file[path_ or "/"].attrs["description"] = text
        self.write()

    def _dataset(self, path: str, column: Column, shape: tuple[int | None, ...]) -> h5py.Dataset:
        """Make an empty dataset of rows of `shape`; None in it can grow."""
        wide = None in shape
        if wide:
            columns = min(max(len(self.fold.devices.response_units), 16), CHUNK_COLUMNS)
            chunk: tuple[int, ...] = _matrix_chunk(columns, 8)
        else:
            chunk = (1 if shape else CHUNK_ROWS, *(n for n in shape if n is not None))
        made = self._file.create_dataset(
            path,
            shape=(0, *(n or 0 for n in shape)),
            maxshape=(None, *shape),
            dtype=_DTYPES[column.kind],
            chunks=chunk,
            fillvalue=np.nan if wide else None,
            compression="gzip" if column is IMAGES else None,
            compression_opts=1 if column is IMAGES else None,
        )
        _describe(made, column)
        return made

    def look_for_room(self) -> None:
        """Raise NoRoom if what is gathered may not be written; nothing is lost, and it can be tried again."""
        free, need = free_bytes(self.path.parent), self._room_bytes + 2 * self.fold.devices.pending_bytes
        if free < need:
            raise NoRoom(
                f"{free / 1e6:.0f} MB free on the disk of {self.path.parent}, session.h5 needs {need / 1e6:.0f} MB"
            )

    def write(self) -> None:
        """Write all gathered rows and flush the file."""
        self.look_for_room()
        try:
            self._write()
        except (OSError, RuntimeError) as error:
            if not any(words in str(error) for words in NO_ROOM):
                raise
            self.broken = True
            raise NoRoom(f"the disk of {self.path.parent} was full before session.h5 was written") from error

    def _write(self) -> None:
        units = self.fold.devices.response_units
        written = self._file["responses/units"]
        if len(units) > len(written):
            _append(written, units[len(written) :])
        for buffer in self.fold.tables.values():
            if len(buffer):
                self._write_table(buffer, len(units))
        for sheet in self.fold.devices.sheets.values():
            self._write_sheet(sheet)
        for name, column, stacks in (
            ("stimuli/frames", IMAGES, self.fold.proposed.images),
            ("stimuli/latents", CODES, self.fold.proposed.codes),
        ):
            for size, stack in stacks.items():
                self._write_stack(f"{name}/{column.name}_{size}", column, stack)
        self._write_attributes()
        self._file.flush()

    def _write_table(self, buffer: Buffer, units: int) -> None:
        taken = buffer.take()
        for column in buffer.schema.columns:
            dataset = self._file[f"{buffer.schema.path}/{column.name}"]
            rows = taken[column.name]
            if column.per_unit:  # rows gathered before a unit was known are shorter
                block = np.full((len(rows), units), np.nan)
                for k, row in enumerate(rows):
                    block[k, : len(row)] = row
                if not len(dataset):  # now it is known how many columns there will be: chunks of a fitting shape
                    del self._file[f"{buffer.schema.path}/{column.name}"]
                    dataset = self._dataset(f"{buffer.schema.path}/{column.name}", column, (None,))
                dataset.resize(units, axis=1)
                _append(dataset, block)
            elif column.kind == "text":
                _append(dataset, rows)
            else:
                _append(dataset, _numbers(rows, _DTYPES[column.kind]))

    def _write_stack(self, path: str, column: Column, stack: Stack) -> None:
        if path not in self._file:
            self._dataset(path, column, stack.shape)
        if stack.pending:
            _append(self._file[path], np.stack(stack.pending))
            stack.pending.clear()

    def _write_sheet(self, sheet: Sheet) -> None:
        if sheet.path not in self._file:
            group = self._file.create_group(sheet.path)
            group.attrs.update({"description": sheet.description, **sheet.attributes})
            for column, values in sheet.fixed:
                _describe(group.create_dataset(column.name, data=values, dtype=_DTYPES[column.kind]), column)
        group = self._file[sheet.path]
        for part, start, rows in sheet.take():
            column = part.column
            if column.name not in group:
                dtype = _DTYPES[column.kind]
                made = group.create_dataset(
                    column.name,
                    shape=(start, *part.width),
                    maxshape=(None, *part.width),
                    dtype=dtype,
                    chunks=_matrix_chunk(min(part.width[0], CHUNK_COLUMNS), dtype.itemsize)
                    if part.width and part.width[0]
                    else (CHUNK_ROWS, *(1 for _ in part.width)),
                    fillvalue=np.nan if dtype.kind == "f" else None,
                )
                _describe(made, column)
                if column.clock == DEVICE:
                    made.attrs["clock"] = sheet.clock
            _append(group[column.name], rows)

    def _write_attributes(self) -> None:
        for name, value in self.fold.attributes.items():
            if name not in self._attributes or self._attributes[name] != value:
                self._file.attrs[name] = self._attributes[name] = value
        names = self.fold.devices.source_names
        clock = f"{DEVICE} {names[0]}" if len(names) == 1 else f"{DEVICE} <source>, the device in the column source"
        if clock != self._device_clock:
            self._device_clock = clock
            for schema in SCHEMAS:
                for column in schema.columns:
                    if column.clock == DEVICE:
                        self._file[f"{schema.path}/{column.name}"].attrs["clock"] = clock

    def close(self, final: Path) -> None:
        """Write what is left, close, and give the file its final name."""
        self.write()
        self._file.close()
        os.replace(self.path, final)

    def abandon(self) -> None:
        """Close without a final name, and leave no file behind."""
        if not self.broken:
            self._file.close()
        self.path.unlink(missing_ok=True)


def _matrix_chunk(columns: int, itemsize: int) -> tuple[int, int]:
    """Return the shape of a chunk of a matrix of `columns` columns, at least 16 rows long."""
    return max(16, min(4096, CHUNK_BYTES // (columns * itemsize))), columns


def _describe(dataset: h5py.Dataset, column: Column) -> None:
    dataset.attrs["description"] = column.description
    dataset.attrs["unit"] = column.unit
    if column.clock is not None:
        dataset.attrs["clock"] = column.clock
    if column.missing is not None:
        dataset.attrs["missing_value"] = column.missing


def _numbers(rows: list[Any], dtype: "np.dtype[Any]") -> np.ndarray[Any, "np.dtype[Any]"]:
    """Return a column; a count beyond its range is nonsense, and in the journal: here stands the end of the range."""
    try:
        return np.array(rows, dtype=dtype)
    except OverflowError:
        limits = np.iinfo(dtype)
        return np.array([min(max(int(n), int(limits.min)), int(limits.max)) for n in rows], dtype=dtype)


def _append(dataset: h5py.Dataset, rows: Any) -> None:
    start = len(dataset)
    dataset.resize(start + len(rows), axis=0)
    dataset[start:] = rows


def last_seq_in(path: Path) -> int:
    """Return the number of the last entry that a session.h5 holds; -1 if it cannot be read by this version."""
    try:
        with h5py.File(path) as file:
            known = file.attrs.get("format") == FORMAT and file.attrs.get("format_version") == FORMAT_VERSION
            return int(file.attrs["last_seq"]) if known else -1
    except (OSError, RuntimeError, KeyError):  # absent, or no HDF5 file: torn, cut, of another kind
        return -1
