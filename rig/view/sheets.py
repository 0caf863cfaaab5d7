"""Rows of traces and behaviour on their way into `session.h5`: matrices of one width, appended row by row.

A sheet is one group of the file: every dataset in it has the same number of rows. The fold fills sheets, `rig.view.h5`
writes and empties them. No I/O, no HDF5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rig.view.columns import Column


@dataclass
class Part:
    """One dataset of a sheet: rows that are not in the file yet, and the row of the sheet at which they begin."""

    column: Column
    width: tuple[int, ...]  # () for one number per row
    start: int
    pending: list[npt.NDArray[Any]] = field(default_factory=list)


@dataclass
class Sheet:
    """A group of datasets of equal length."""

    path: str
    description: str
    clock: str  # "device <source>"
    attributes: dict[str, str | int]
    fixed: list[tuple[Column, Sequence[str] | npt.NDArray[Any]]]  # written once: the names of the columns
    rows: int = 0
    pending_bytes: int = 0
    parts: dict[str, Part] = field(default_factory=dict)

    def append(self, count: int, values: Mapping[Column, npt.NDArray[Any] | None]) -> None:
        """Add `count` rows. A column that is None now has no values: NaN, or no dataset if it never had any.

        Raises ValueError, and takes nothing, if lengths or widths disagree with what is there.
        """
        for column, array in values.items():
            part = self.parts.get(column.name)
            if array is not None and len(array) != count:
                raise ValueError(f"{self.path}/{column.name}: {len(array)} rows, expected {count}")
            if array is not None and part is not None and array.shape[1:] != part.width:
                raise ValueError(f"{self.path}/{column.name}: rows of {array.shape[1:]}, expected {part.width}")
        for column, array in values.items():
            if array is None and column.name not in self.parts:
                continue
            if array is not None and column.name not in self.parts:
                self.parts[column.name] = Part(column, array.shape[1:], self.rows)
            part = self.parts[column.name]
            rows = np.full((count, *part.width), np.nan, np.float32) if array is None else array
            part.pending.append(rows)
            self.pending_bytes += rows.nbytes
        self.rows += count

    def take(self) -> list[tuple[Part, int, npt.NDArray[Any]]]:
        """Return (part, first row, rows) for all that is to be written, and forget it."""
        taken = []
        for part in self.parts.values():
            if part.pending:
                rows = np.concatenate(part.pending)
                taken.append((part, part.start, rows))
                part.start += len(rows)
                part.pending = []
        self.pending_bytes = 0
        return taken
