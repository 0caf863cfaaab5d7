"""Columns and tables of an NWB file, and data that are read from `session.h5` only while they are written."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from hdmf.backends.hdf5 import H5DataIO
from hdmf.common import DynamicTable, VectorData, VectorIndex
from hdmf.data_utils import GenericDataChunkIterator
from pynwb.event import EventsTable, TimestampVectorData

from rig.export.presentations import Field

CHUNK_VALUES = 1 << 17  # of one chunk of the file
BUFFER_VALUES = 1 << 22  # read at once, a whole number of chunks
REGULAR_TO_S = 1e-9  # timestamps as regular as this are given as a rate


class Streamed(GenericDataChunkIterator):  # type: ignore[misc]
    """An array that is read in stretches while the file is written: `read(first, end)` returns rows."""

    def __init__(
        self, shape: tuple[int, ...], dtype: Any, read: Callable[[int, int], npt.NDArray[Any]], rows: int = 0
    ) -> None:
        """Describe the array; `rows` to read at once, 0 for as many as fit."""
        self._shape, self._read = shape, read
        self._kind: np.dtype[Any] = np.dtype(dtype)
        width = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        columns = [min(n, 256) for n in shape[1:]]
        chunk = max(1, min(shape[0], CHUNK_VALUES // max(1, int(np.prod(columns)))))
        wanted = rows or max(1, BUFFER_VALUES // max(1, width))
        buffer = min(shape[0], max(1, wanted // chunk) * chunk)
        super().__init__(chunk_shape=(chunk, *columns), buffer_shape=(buffer, *shape[1:]))

    def _get_data(self, selection: tuple[slice, ...]) -> npt.NDArray[Any]:
        rows = selection[0]
        return self._read(int(rows.start), int(rows.stop))[(slice(None), *selection[1:])]

    def _get_maxshape(self) -> tuple[int, ...]:
        return self._shape

    def _get_dtype(self) -> np.dtype[Any]:
        return self._kind


def compressed(data: Any) -> H5DataIO:
    """Return data that the file keeps compressed (gzip, the fastest level, which every HDF5 can read)."""
    return H5DataIO(data, compression="gzip", compression_opts=1, shuffle=True)


def streamed(shape: tuple[int, ...], dtype: Any, read: Callable[[int, int], npt.NDArray[Any]], rows: int = 0) -> Any:
    """Return a compressed array that is read while it is written; an empty one where there is nothing to read."""
    if 0 in shape:
        return np.zeros(shape, dtype)
    return compressed(Streamed(shape, dtype, read, rows))


def columns(fields: Sequence[Field]) -> list[VectorData]:
    """Return the columns of a table; a ragged one stands behind its index, as pynwb wants it."""
    out = []
    for f in fields:
        unit = f" [{f.unit}]" if f.unit not in ("", "1") else ""
        column = VectorData(name=f.name, description=f.description + unit, data=f.values)
        if f.ends is not None:
            out.append(VectorIndex(name=f"{f.name}_index", data=f.ends, target=column))
        out.append(column)
    return out


def table(name: str, description: str, fields: Sequence[Field]) -> DynamicTable | None:
    """Return a table, None if it has no rows."""
    if not len(fields[0].ends if fields[0].ends is not None else fields[0].values):
        return None
    return DynamicTable(name=name, description=description, columns=columns(fields))


def events(name: str, description: str, source: str, times: npt.NDArray[Any], fields: Sequence[Field]) -> EventsTable:
    """Return a table of events in order of time; an event whose time is not known is left out by the caller."""
    order = np.argsort(times, kind="stable")
    stamp = TimestampVectorData(name="timestamp", description="When it was, s since session start", data=times[order])
    rest = [Field(f.name, f.unit, f.description, _ordered(f.values, order)) for f in fields]
    return EventsTable(name=name, description=description, source_description=source, columns=[stamp, *columns(rest)])


def _ordered(values: Any, order: npt.NDArray[Any]) -> Any:
    return values[order] if isinstance(values, np.ndarray) else [values[k] for k in order]


def ragged(rows: Sequence[Sequence[Any]], empty: Any) -> tuple[Any, npt.NDArray[np.uint64]]:
    """Return (all values, ends of the rows) of a ragged column; `empty` stands alone if no row holds anything."""
    ends = np.cumsum([len(row) for row in rows]).astype(np.uint64)
    values = [value for row in rows for value in row]
    return (values, ends) if values else ([empty], np.ones(len(rows), np.uint64))


def timing(times: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return `rate` and `starting_time` for times that are perfectly regular, else `timestamps`."""
    if len(times) > 2:
        period = (times[-1] - times[0]) / (len(times) - 1)
        if period > 0 and np.abs(np.diff(times) - period).max() < REGULAR_TO_S:
            return {"rate": float(1 / period), "starting_time": float(times[0])}
    return {"timestamps": times}
