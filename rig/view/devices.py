"""What the devices said and were told, and the responses made of it, as rows of `session.h5`: part of the view's fold.

Pure, like `rig.view.fold`, which hands the documents in. Spikes, edges and pairs become rows of tables; traces and
behaviour become matrices, one group for each run and list of units or channels.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rig.messages import (
    BarcodeSent,
    BehaviourBlock,
    ClockSample,
    Continuity,
    Document,
    EdgeBlock,
    Entry,
    Marker,
    OutputDone,
    OutputRequest,
    Response,
    SpikeBlock,
    TraceBlock,
    UnitList,
)
from rig.view.columns import ARRIVAL, NO_TIME, Buffer
from rig.view.device_tables import (
    BEGAN,
    BEHAVIOUR,
    CHANNELS,
    FRAME,
    MOTION,
    NAN,
    NEUROPIL,
    SCAN_OFFSET,
    UNIT_NAMES,
    VALUES,
)
from rig.view.sheets import Sheet

CONTINUITY_EVERY_NS = 1_000_000_000
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


def as_json(value: Any) -> str:
    """Return a value as JSON with sorted keys and no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def known(value: int | None, missing: int = NO_TIME) -> int:
    """Return `value`, or `missing` for None."""
    return missing if value is None else value


class DeviceFold:
    """Tables and sheets of the devices."""

    def __init__(self, tables: dict[str, Buffer], hole: Callable[[Entry, str, str], None]) -> None:
        """Fill `tables`; `hole(entry, what, detail)` is told what is not there that should be."""
        self._tables = tables
        self._hole = hole
        self.response_units: list[str] = []
        self.sheets: dict[str, Sheet] = {}
        self._sources: dict[str, int] = {}
        self._units: dict[tuple[str, str], int] = {}
        self._last_units: dict[str, tuple[tuple[str, ...], I64]] = {}  # of each source: names and their rows
        self._lists: dict[tuple[str, int, int], UnitList] = {}
        self._channels: dict[tuple[str, int], list[tuple[str, ...]]] = {}
        self._response_column: dict[str, int] = {}
        self._response_at: tuple[tuple[str, ...], I64] = ((), np.zeros(0, np.int64))
        self._continuity: dict[str, tuple[tuple[Any, ...], int]] = {}
        self.folds: dict[type[Document], Callable[[Entry, Any], None]] = {
            SpikeBlock: self._spikes,
            EdgeBlock: self._edges,
            UnitList: self._unit_list,
            TraceBlock: self._traces,
            BehaviourBlock: self._behaviour,
            Marker: self._marker,
            BarcodeSent: self._barcode,
            Continuity: self._continuity_row,
            ClockSample: self._clock_sample,
            Response: self._response,
            OutputRequest: self._output_request,
            OutputDone: self._output_done,
        }

    @property
    def source_names(self) -> list[str]:
        """Names of the devices in order of /sources."""
        return list(self._sources)

    @property
    def pending_bytes(self) -> int:
        """Size of the matrices that are not written yet, bytes."""
        return sum(s.pending_bytes for s in self.sheets.values())

    def _row(self, table: str, **values: Any) -> None:
        self._tables[table].append(values)

    def source(self, name: str) -> int:
        """Return the row of /sources of a device, adding a new one."""
        if name not in self._sources:
            self._sources[name] = len(self._sources)
            self._row("sources", name=name)
        return self._sources[name]

    def _unit_rows(self, source: str, names: tuple[str, ...]) -> I64:
        """Return the rows of /units of a device's units, adding new ones."""
        last = self._last_units.get(source)
        if last is not None and last[0] == names:
            return last[1]
        for name in names:
            if (source, name) not in self._units:
                self._units[source, name] = len(self._units)
                self._row("units", name=name, source=self.source(source))
        rows = np.array([self._units[source, name] for name in names], dtype=np.int64)
        self._last_units[source] = (names, rows)
        return rows

    # --- spikes, edges, markers

    def _spikes(self, entry: Entry, d: SpikeBlock) -> None:
        rows = self._unit_rows(d.source, d.units)
        self._tables["spikes"].extend(
            len(d.unit),
            {
                "unit": rows[d.unit] if len(rows) else d.unit,
                "sample": d.sample,
                "arrival_host_ns": d.arrival_host_ns,
                "run": d.run,
                "source": self.source(d.source),
            },
        )

    def _edges(self, entry: Entry, d: EdgeBlock) -> None:
        columns: dict[str, Any] = {
            "line": d.line,
            "state": d.state,
            "sample": d.sample,
            "arrival_host_ns": d.arrival_host_ns,
        }
        self._tables["edges"].extend(len(d.line), {**columns, "run": d.run, "source": self.source(d.source)})

    def _marker(self, entry: Entry, d: Marker) -> None:
        self._row(
            "markers",
            seq=entry.envelope.seq,
            source=self.source(d.source),
            run=d.run,
            sample=known(d.sample),
            arrival_host_ns=d.arrival_host_ns,
            text=d.text,
        )

    def _barcode(self, entry: Entry, d: BarcodeSent) -> None:
        values = {"output": d.output, "number": d.number, "sent_host_ns": d.sent_host_ns}
        self._row("barcodes", seq=entry.envelope.seq, uncertainty_ns=d.uncertainty_ns, **values)

    # --- traces and behaviour

    def _unit_list(self, entry: Entry, d: UnitList) -> None:
        rows = self._unit_rows(d.source, d.units)
        held = self._lists.setdefault((d.source, d.run, d.list_number), d)
        if held.units != d.units or not np.array_equal(held.scan_offset_s, d.scan_offset_s):
            detail = f"list {d.list_number} of {d.source}, run {d.run}, came again with other units or scan offsets"
            self._hole(entry, "unit list used twice", detail)
        table = self._tables["unit_lists/units"]
        self._row(
            "unit_lists",
            seq=entry.envelope.seq,
            source=self.source(d.source),
            run=d.run,
            list_number=d.list_number,
            from_sample=d.from_sample,
            measure=d.measure,
            first=table.rows,
            count=len(d.units),
        )
        table.extend(len(d.units), {"unit": rows, "scan_offset_s": d.scan_offset_s})

    def _traces(self, entry: Entry, d: TraceBlock) -> None:
        path = f"traces/{_group(d.source)}_run{d.run}_list{d.list_number}"
        sheet = self.sheets.get(path)
        if sheet is None:
            sheet = self.sheets[path] = self._trace_sheet(entry, d, path)
        columns = {FRAME: d.frame, BEGAN: d.sample, ARRIVAL: d.arrival_host_ns}
        sheet.append(len(d.frame), {**columns, VALUES: d.values, NEUROPIL: d.neuropil, MOTION: d.motion})

    def _trace_sheet(self, entry: Entry, d: TraceBlock, path: str) -> Sheet:
        units = self._lists.get((d.source, d.run, d.list_number))
        width = d.values.shape[1]
        if units is None or len(units.units) != width:
            what = "is not in the log" if units is None else f"has {len(units.units)} units"
            detail = f"list {d.list_number} of {d.source}, run {d.run}, {what}: traces of {width} units have no names"
            self._hole(entry, "unit list missing", detail)
            names, offset = ("",) * width, np.full(width, np.nan)
        else:
            names, offset = units.units, units.scan_offset_s
        self._row("traces", source=self.source(d.source), run=d.run, list_number=d.list_number, path=f"/{path}")
        return Sheet(
            path,
            f"Frames or bins of {d.source}, one row each, raw as they came",
            f"device {d.source}",
            {"source": d.source, "run": d.run, "list_number": d.list_number},
            [(UNIT_NAMES, names), (SCAN_OFFSET, offset)],
        )

    def _behaviour(self, entry: Entry, d: BehaviourBlock) -> None:
        seen = self._channels.setdefault((d.source, d.run), [])
        if d.channels not in seen:
            seen.append(d.channels)
        path = f"behaviour/{_group(d.source)}_run{d.run}_set{seen.index(d.channels)}"
        sheet = self.sheets.get(path)
        if sheet is None:
            sheet = self.sheets[path] = Sheet(
                path,
                f"Behaviour from {d.source}, one row per sample",
                f"device {d.source}",
                {"source": d.source, "run": d.run},
                [(CHANNELS, d.channels)],
            )
            row = {"source": self.source(d.source), "run": d.run}
            self._row("behaviour", **row, channels=as_json(d.channels), path=f"/{path}")
        sheet.append(len(d.sample), {BEGAN: d.sample, ARRIVAL: d.arrival_host_ns, BEHAVIOUR: d.values})

    # --- how complete and when

    def _continuity_row(self, entry: Entry, d: Continuity) -> None:
        now = entry.envelope.receipt_host_ns
        source = self.source(d.source)
        state = (d.run, d.state, d.lost_messages, d.sample_rate_hz)
        last, last_ns = self._continuity.get(d.source, ((), 0))
        if state != last or now - last_ns >= CONTINUITY_EVERY_NS:
            self._continuity[d.source] = (state, now)
            fields = d.model_dump(exclude={"kind", "version", "gaps", "source"})
            self._row("continuity", **fields, receipt_host_ns=now, source=source)
        for gap in d.gaps:
            self._row(
                "continuity/gaps",
                receipt_host_ns=now,
                first_sample=gap.first_sample,
                end_sample=gap.end_sample,
                messages=gap.messages,
                run=d.run,
                source=source,
            )

    def _clock_sample(self, entry: Entry, d: ClockSample) -> None:
        self._row(
            "clocks",
            device_sample=d.device_sample,
            pair_host_ns=d.pair_host_ns,
            method=d.method,
            round_trip_ns=known(d.round_trip_ns),
            uncertainty_ns=known(d.uncertainty_ns),
            run=d.run,
            source=self.source(d.source),
        )

    # --- responses

    def name_response_units(self, names: tuple[str, ...]) -> None:
        """Give each unit a column of the responses, new ones behind those that have one."""
        for name in names:
            if name not in self._response_column:
                self._response_column[name] = len(self.response_units)
                self.response_units.append(name)

    def _per_unit(self, units: tuple[str, ...], values: F64) -> F64:
        """Return one row over all columns known so far, NaN for a unit that has no value."""
        if self._response_at[0] != units:
            self._response_at = (units, np.array([self._response_column[u] for u in units], dtype=np.int64))
        row = np.full(len(self.response_units), np.nan)
        row[self._response_at[1]] = values
        return row

    def _response(self, entry: Entry, d: Response) -> None:
        self.name_response_units(d.units)
        arrays = {"count": d.count, "baseline": d.baseline, "rate_hz": d.rate_hz}
        fields = d.model_dump(exclude={"kind", "version", "units", "behaviour", "psth", *arrays})  # the spikes are here
        times = ("onset_sample", "onset_host_ns", "onset_uncertainty_ns", "onset_host_uncertainty_ns")
        for name in (*times, "flip_to_edge_ns", "window_start_sample", "window_end_sample"):
            fields[name] = known(fields[name])
        fields["run"], fields["baseline_n"] = known(d.run, -1), known(d.baseline_n, -1)
        self._row(
            "responses",
            **fields,
            seq=entry.envelope.seq,
            clock=f"device {d.source}",
            behaviour=as_json(d.behaviour),
            **{name: self._per_unit(d.units, values) for name, values in arrays.items()},
        )

    # --- what was put out

    def _output_request(self, entry: Entry, d: OutputRequest) -> None:
        fields = d.model_dump(exclude={"kind", "version"})
        fields["event_host_ns"] = known(d.event_host_ns)
        fields["trial"], fields["presentation"] = known(d.trial, -1), known(d.presentation, -1)
        fields["duration_s"] = NAN if d.duration_s is None else d.duration_s
        self._row("outputs/requests", **fields, **_envelope(entry))

    def _output_done(self, entry: Entry, d: OutputDone) -> None:
        fields = d.model_dump(exclude={"kind", "version"})
        for name in ("started_host_ns", "confirmed_host_ns"):
            fields[name] = known(fields[name])
        for name in ("duration_s", "volume_ul", "session_volume_ul"):
            fields[name] = NAN if fields[name] is None else fields[name]
        self._row("outputs/done", **fields, **_envelope(entry))


def _group(source: str) -> str:
    """Return the name of a device as part of a group's name; raises ValueError for what cannot be one."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", source):
        raise ValueError(f"{source!r} is no name of a device: letters, digits, _ and - only")
    return source


def _envelope(entry: Entry) -> dict[str, int]:
    return {"seq": entry.envelope.seq, "receipt_host_ns": entry.envelope.receipt_host_ns}
