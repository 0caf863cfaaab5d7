"""What a column and a table of `session.h5` are, the columns that many tables share, and rows not yet written.

Read by `rig.view.tables` and `rig.view.device_tables` (which list the tables), the folds (which fill buffers) and
`rig.view.h5` (which makes the datasets). No I/O, no HDF5. Tables only ever grow at their end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FORMAT = "stimloop session view"
FORMAT_VERSION = 3
HOST = "host monotonic"
UTC = "utc"
DEVICE = "device"  # replaced by "device <source>" where the session has only one source
NO_TIME = int(np.iinfo(np.int64).min)

Kind = Literal["i8", "i4", "u2", "u1", "f8", "f4", "bool", "text"]


@dataclass(frozen=True)
class Column:
    """One dataset: its type, unit, meaning, clock (times only) and the value that means "not known"."""

    name: str
    kind: Kind
    unit: str
    description: str
    clock: str | None = None
    missing: int | float | None = None
    per_unit: bool = False  # one value per unit of `responses/units`, NaN where a unit was not scored


@dataclass(frozen=True)
class Schema:
    """One table: its path in the file, what one row is, and its columns."""

    path: str
    description: str
    columns: tuple[Column, ...]


def number(name: str, description: str, missing: int | None = None, kind: Kind = "i8") -> Column:
    """Return a column of a count or index."""
    return Column(name, kind, "1", description, missing=missing)


def text(name: str, description: str, unit: str = "text") -> Column:
    """Return a column of a text."""
    return Column(name, "text", unit, description)


def host(name: str, description: str, missing: int | None = None) -> Column:
    """Return a column of a time on the host clock, ns."""
    return Column(name, "i8", "ns", description, HOST, missing)


def sample(name: str, description: str, missing: int | None = None) -> Column:
    """Return a column of a time on a device's clock."""
    return Column(name, "i8", "device sample", description, DEVICE, missing)


SEQ = number("seq", "Sequence number of the journal entry")
RECEIPT = host("receipt_host_ns", "When the recorder received the document")
SOURCE = number("source", "Device: row of /sources/name", kind="u1")
RUN = number("run", "Acquisition run of the device; its samples count anew in each run")
ARRIVAL = host("arrival_host_ns", "When the message that carried it was received")
SLOT = number("slot", "Index into the proposal's plan, -1 for a fallback", -1)
ROLE = text("role", "candidate, reference, reshow, confirmation, blank or fallback")
PROPOSAL = number("proposal", "Number of the proposal in the session")
PHASE = number("phase", "Index of the phase in the config, -1 if the proposal is not in the log", -1)
GENERATION = number("generation", "Generation or block within the phase, -1 if not known", -1)
SHA = text("frame_sha256", "sha256 over the bytes (y, x, rgb) of the frame as drawn, hexadecimal")


@dataclass
class Buffer:
    """Rows of one table that are not in the file yet, as columns of equal length."""

    schema: Schema
    rows: int = 0  # ever appended, written ones included
    pending: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make one empty list per column."""
        self.pending = {c.name: [] for c in self.schema.columns}
        self._names = self.pending.keys()

    def append(self, values: Mapping[str, Any]) -> None:
        """Add one row; it must have exactly the table's columns."""
        if values.keys() != self._names:
            raise KeyError(f"{self.schema.path}: columns {sorted(values.keys() ^ self._names)} are missing or unknown")
        for name, value in values.items():
            self.pending[name].append(value)
        self.rows += 1

    def extend(self, count: int, values: Mapping[str, npt.NDArray[Any] | Sequence[Any] | int]) -> None:
        """Add `count` rows at once; a plain integer stands for all of them."""
        if values.keys() != self._names:
            raise KeyError(f"{self.schema.path}: columns {sorted(values.keys() ^ self._names)} are missing or unknown")
        for name, value in values.items():  # all before any: a table never gets columns of unequal length
            if not isinstance(value, int) and len(value) != count:
                raise ValueError(f"{self.schema.path}/{name}: {len(value)} values for {count} rows")
        for name, value in values.items():
            if isinstance(value, int):
                self.pending[name].extend([value] * count)
            else:
                self.pending[name].extend(value.tolist() if isinstance(value, np.ndarray) else value)
        self.rows += count

    def take(self) -> dict[str, list[Any]]:
        """Return the buffered rows and forget them."""
        taken = self.pending
        self.pending = {name: [] for name in self._names}
        return taken

    def __len__(self) -> int:
        """Return the number of buffered rows."""
        return len(next(iter(self.pending.values())))


@dataclass
class Stack:
    """Arrays of one shape that become the rows of one dataset."""

    shape: tuple[int, ...]
    rows: int = 0
    pending: list[npt.NDArray[Any]] = field(default_factory=list)

    def append(self, value: npt.NDArray[Any]) -> int:
        """Add one array and return its row."""
        self.pending.append(value)
        self.rows += 1
        return self.rows - 1
