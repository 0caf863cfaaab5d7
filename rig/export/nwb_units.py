"""The Units table of an NWB file: spike times through the refitted clock, raw samples, and when each was observed.

Spikes stand in `session.h5` in order of arrival. They are sorted by unit on disk, in two passes over stretches of the
table and one over the units, so that memory holds one stretch, or the spikes of the busiest unit.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hdmf.common import DynamicTableRegion, VectorIndex
from pynwb import NWBFile
from pynwb.misc import Units

from rig.export.nwb_tables import columns, streamed
from rig.export.observed import Observed, spans_of_spikes
from rig.export.presentations import Field
from rig.export.session_file import SessionView
from rig.export.times import BootsInOrder, Clocks

I64 = npt.NDArray[np.int64]
FIELDS: dict[str, np.dtype[Any]] = {
    "spike_times": np.dtype("<f8"),
    "spike_sample": np.dtype("<i8"),
    "spike_run": np.dtype("<i8"),
}


@dataclass
class SortedSpikes:
    """Spikes sorted by unit and time, in one file per column."""

    folder: Path
    unit: I64  # (unit,) rows of /units that have spikes or could have
    ends: npt.NDArray[np.uint64]  # (unit,) end of each unit's spikes
    runs: int

    def read(self, column: str, first: int, end: int) -> npt.NDArray[Any]:
        """Return values of spikes `first` to `end`."""
        dtype = FIELDS[column]
        with (self.folder / column).open("rb") as file:
            file.seek(first * dtype.itemsize)
            return np.fromfile(file, dtype, end - first)

    def first_s(self, unit: int) -> float:
        """Return the time of the first spike of a unit, s; infinite where it has none."""
        first = int(self.ends[unit - 1]) if unit else 0
        end = int(self.ends[unit])
        return float(self.read("spike_times", first, first + 1)[0]) if end > first else float("inf")


def sort_spikes(view: SessionView, clocks: Clocks, units: I64, folder: Path) -> SortedSpikes:
    """Sort the spikes of the rows `units` of /units by unit and time into files in `folder`."""
    rows = view.rows("units")
    count = np.zeros(rows, np.int64)
    seen: set[int] = set()
    for part in view.stretches("spikes", ("unit", "run")):
        count += np.bincount(part["unit"], minlength=rows)
        seen.update(np.unique(part["run"]).tolist())
    ends = np.cumsum(count[units])
    free = np.zeros(rows, np.int64)
    free[units] = ends - count[units]
    with ExitStack() as stack:
        files = {c: stack.enter_context(open(folder / c, "w+b", buffering=0)) for c in FIELDS}
        _scatter(view, clocks, free, files)
        for end, length in zip(ends.tolist(), count[units].tolist(), strict=True):
            _order_unit(files, end - length, length)
    return SortedSpikes(folder, units, ends.astype(np.uint64), len(seen))


def _put(file: FileIO, values: npt.NDArray[Any], at: int) -> None:
    """Write values from element `at` on."""
    file.seek(at * values.dtype.itemsize)
    left = memoryview(values.tobytes())
    while left:  # a write may be short
        left = left[file.write(left) or 0 :]


def _get(file: FileIO, dtype: np.dtype[Any], at: int, count: int) -> npt.NDArray[Any]:
    """Read `count` values from element `at` on."""
    file.seek(at * dtype.itemsize)
    return np.fromfile(file, dtype, count)


def _scatter(view: SessionView, clocks: Clocks, free: I64, files: dict[str, FileIO]) -> None:
    boots = BootsInOrder(clocks.host)
    for part in view.stretches("spikes", ("unit", "sample", "arrival_host_ns", "run", "source")):
        arrival = part["arrival_host_ns"]
        times = clocks.of_rows(part["source"], part["run"], part["sample"], arrival, clocks.boots(arrival, boots))
        order = np.argsort(part["unit"], kind="stable")
        unit = part["unit"][order]
        values = {"spike_times": times[order], "spike_sample": part["sample"][order], "spike_run": part["run"][order]}
        first = np.flatnonzero(np.diff(unit, prepend=-1))
        for begin, end in zip(first.tolist(), [*first[1:].tolist(), len(unit)], strict=True):
            at = int(free[unit[begin]])
            for column, dtype in FIELDS.items():
                _put(files[column], values[column][begin:end].astype(dtype), at)
            free[unit[begin]] += end - begin


def _order_unit(files: dict[str, FileIO], first: int, length: int) -> None:
    """Bring the spikes of one unit into order of time; they arrive nearly so."""
    times = _get(files["spike_times"], FIELDS["spike_times"], first, length)
    if (np.diff(times) >= 0).all():
        return
    order = np.argsort(times, kind="stable")
    for column, dtype in FIELDS.items():
        _put(files[column], _get(files[column], dtype, first, length)[order], first)


def electrode_of(unit: str) -> str:
    """Return the electrode that a unit's name begins with: "E01" of "E01#0", "MUA3" of itself."""
    return unit.split("#", maxsplit=1)[0]


def add_units(nwb: NWBFile, view: SessionView, clocks: Clocks, spiking: list[int], folder: Path) -> bool:
    """Add devices' electrodes and the Units table for the sources `spiking`; return whether there are any units."""
    source = view.column("units/source").astype(np.int64)
    rows = np.flatnonzero(np.isin(source, spiking))
    if not len(rows):
        return False
    names = view.texts("units/name")
    electrode = _add_electrodes(nwb, view, [(int(source[k]), electrode_of(names[k])) for k in rows])
    spikes = sort_spikes(view, clocks, rows, folder)
    total = int(spikes.ends[-1])
    spans = spans_of_spikes(view)
    observed = {s: Observed(view, clocks, s, spans) for s in spiking}
    seen = [observed[int(source[k])].of(int(k), spikes.first_s(n)) for n, k in enumerate(rows.tolist())]
    fields = [
        Field("unit_name", "", "Name of the unit, as the device gives it", [names[k] for k in rows]),
        Field("source", "", "Device that recorded it", [view.sources[source[k]] for k in rows]),
    ]
    descriptions = {
        "spike_times": "Spikes, s since session start: device samples through the offline two-sided clock refit",
        "spike_sample": "The same spikes on the device's own sample counter, raw",
        "spike_run": "Acquisition run of the device in which the sample counts",
    }
    for column, dtype in FIELDS.items():
        if column == "spike_run" and spikes.runs < 2:
            continue

        def read(first: int, end: int, column: str = column) -> npt.NDArray[Any]:
            return spikes.read(column, first, end)

        fields.append(Field(column, "", descriptions[column], streamed((total,), dtype, read), spikes.ends))
    if sum(len(s) for s in seen):
        ends = np.cumsum([len(s) for s in seen]).astype(np.uint64)
        what = (
            "When the device's data are known to be complete (to its last spike at least) and the unit was there; "
            "outside it is missing, not silent"
        )
        fields.append(Field("obs_intervals", "s", what, np.concatenate(seen), ends))
    region = DynamicTableRegion(
        name="electrodes", description="Electrode of the unit", data=electrode, table=nwb.electrodes
    )
    index = VectorIndex(
        name="electrodes_index", data=np.arange(1, len(rows) + 1, dtype=np.uint64), target=region
    )
    nwb.units = Units(
        name="units",
        description="Sorted units or multi-unit channels as the recording system sent them during the session"
        if view.start.derived_from is None
        else "Units of an offline sorter, joined with the session by sample number (stimloop units import)",
        columns=[*columns(fields), index, region],
        resolution=clocks.resolution_s(),
        electrode_table=nwb.electrodes,
    )
    return True


def _add_electrodes(nwb: NWBFile, view: SessionView, wanted: list[tuple[int, str]]) -> list[int]:
    """Add one row per electrode that a unit came from, one group per device; return each unit's row."""
    recording, area = view.config.get("recording", {}), view.config.get("subject", {}).get("area")
    nwb.add_electrode_column("electrode_name", "Name of the electrode, as in the units' names")
    positions = any(said.get("electrodes") for said in recording.values())
    place: dict[tuple[int, str], int] = {}
    for source, name in wanted:
        if (source, name) in place:
            continue
        device = view.sources[source]
        said = recording.get(device, {})
        where = said.get("area") or area or "unknown"
        if device not in nwb.electrode_groups:
            what = said.get("probe") or f"electrodes of {device}"
            nwb.create_electrode_group(name=device, description=what, location=where, device=nwb.devices[device])
        known = said.get("electrodes", {}).get(name, (np.nan,) * 3) if positions else ()
        nwb.add_electrode(
            location=where,
            group=nwb.electrode_groups[device],
            filtering=said.get("filters") or "unknown",
            reference=said.get("reference") or "unknown",
            electrode_name=name,
            **{axis: float(value) for axis, value in zip("xyz", known, strict=False)},
        )
        place[source, name] = len(place)
    return [place[one] for one in wanted]
