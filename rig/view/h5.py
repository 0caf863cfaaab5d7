"""The process that keeps `session.h5`: it tails the journal and writes what `rig.view.fold` gathers from it.

`python -m rig.view.h5 --folder F` writes F/session.h5.part and renames it to session.h5 at the end; `build` makes the
same file from a journal at rest. The file is a view: it can be deleted, and is made anew from entry 1 after a kill.
It feeds nothing back to the session. While it is being written nobody else can read it: live pages read the journal.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rig.child import Stop, fail, say, shield
from rig.clock import Clock, HostClock
from rig.journal import JournalReader
from rig.view.columns import DEVICE, FORMAT, FORMAT_VERSION, Buffer, Column
from rig.view.device_tables import RESPONSE_UNITS
from rig.view.fold import Stack, ViewFold
from rig.view.sheets import Sheet
from rig.view.tables import CODES, IMAGES, SCHEMAS

CHUNK_ROWS = 1024
CHUNK_BYTES = 128 << 10  # of matrices: an append touches few chunks, and one unit is read without the others
CHUNK_COLUMNS = 1024
PENDING_BYTES = 32 << 20  # traces that wait for the next write while the view catches up
FLUSH_EVERY_NS = 1_000_000_000
POLL_S = 0.05
# After a stop without SessionStop (the recorder died, or is just ending) wait this long for more entries.
LAST_ENTRIES_NS = 1_500_000_000

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


class SessionFile:
    """An HDF5 file under construction, and the fold whose rows it takes."""

    def __init__(self, path: Path) -> None:
        """Make the file with all tables empty; an older file at `path` is replaced."""
        self.path = path
        self.fold = ViewFold()
        self._file = h5py.File(path, "w")
        self._device_clock = ""
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

    def write(self) -> None:
        """Write all gathered rows and flush the file."""
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
            ("stimuli/frames", IMAGES, self.fold.images),
            ("stimuli/latents", CODES, self.fold.codes),
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
                _append(dataset, np.array(rows, dtype=_DTYPES[column.kind]))

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
            if name not in self._file.attrs or self._file.attrs[name] != value:
                self._file.attrs[name] = value
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
        self.abandon()
        os.replace(self.path, final)

    def abandon(self) -> None:
        """Close without a final name."""
        self._file.close()


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


def _append(dataset: h5py.Dataset, rows: Any) -> None:
    start = len(dataset)
    dataset.resize(start + len(rows), axis=0)
    dataset[start:] = rows


def build(folder: Path, until: int | None = None) -> Path:
    """Make folder/session.h5 from folder/session.journal (whole, torn or damaged) and return its path.

    `until` is the last sequence number to take. An older session.h5 is replaced only when the new one is complete.
    """
    reader = JournalReader(folder / "session.journal")
    out = SessionFile(folder / "session.h5.rebuild")
    try:
        done = False
        while not done and (entries := reader.read(final=True)):
            for entry in entries:
                if until is not None and entry.envelope.seq > until:
                    done = True
                    break
                out.fold.apply(entry)
            out.write()
        out.close(folder / "session.h5")
    except BaseException:
        out.abandon()
        out.path.unlink(missing_ok=True)
        raise
    finally:
        reader.close()
    return folder / "session.h5"


def follow(folder: Path, stop: Stop, clock: Clock) -> None:
    """Tail the journal into session.h5.part until told to stop, then read to its end and finish the file."""
    journal = folder / "session.journal"
    while not journal.exists():
        if stop.wait(POLL_S):
            return
    out = SessionFile(folder / "session.h5.part")
    reader = JournalReader(journal)
    try:
        _tail(out, reader, stop, clock)
        out.close(folder / "session.h5")
    except BaseException:
        out.abandon()
        raise
    finally:
        reader.close()
    # A recorder that was killed in mid-write cuts its last record while we stand behind it: then entries pass unseen.
    if out.fold.missing_entries or reader.damaged_bytes:
        say(note="the journal was cut or damaged while it was followed: session.h5 is made anew from it")
        build(folder)


def _tail(out: SessionFile, reader: JournalReader, stop: Stop, clock: Clock) -> None:
    flush_due = clock.now_ns() + FLUSH_EVERY_NS
    last_new = 0
    while True:
        stopping = bool(stop)  # before reading: what was journalled before the stop is then surely read
        entries = reader.read()
        for entry in entries:
            out.fold.apply(entry)
            if out.fold.devices.pending_bytes > PENDING_BYTES:
                out.write()
        now = clock.now_ns()
        if now >= flush_due or len(entries) > 1000:  # the second: far behind, bound the memory
            out.write()
            flush_due = now + FLUSH_EVERY_NS
        if entries:
            last_new = now
        elif stopping:
            last_new = last_new or now
            if out.fold.attributes["closed_in_order"] or now - last_new > LAST_ENTRIES_NS:
                return
            clock.sleep_until_ns(now + int(POLL_S * 1e9))
        else:
            stop.wait(POLL_S)


def main(arguments: list[str] | None = None) -> int:
    """Run the view process; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m rig.view.h5", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="session folder")
    parser.add_argument("--endpoint", help="taken as from all children and not used: the view reads the journal only")
    folder: Path = parser.parse_args(arguments).folder
    if not folder.is_dir():
        return fail(f"{folder} is not a folder", "give the folder of a session")
    stop = Stop()
    say(ready={"file": str(folder / "session.h5")})
    try:
        follow(folder, stop, HostClock())
    except OSError as error:
        return fail(
            f"session.h5 cannot be written in {folder}: {error}",
            "free space on this disk; the journal is not touched, and stimloop recover makes the file from it",
        )
    return 0


if __name__ == "__main__":
    shield()
    sys.exit(main())
