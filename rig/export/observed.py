"""When each unit was observed: where its device's data are complete, and the unit was there.

Used by `rig.export.nwb_units`. A unit is there as the response fold takes it (`rig.responses.spikes_kept`): while the
device's list of units names it; where a device sends no lists, from the unit's first spike on. What lies outside is
missing, not zero.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rig.export.session_file import SessionView
from rig.export.times import Clocks, DeviceTime

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Span = tuple[int, int]  # first sample, end
ALWAYS: Span = (-(1 << 62), 1 << 62)


def spans_of_spikes(view: SessionView) -> dict[tuple[int, int], list[int]]:
    """Return the first and last sample of each (source, run)'s spikes."""
    spans: dict[tuple[int, int], list[int]] = {}
    for part in view.stretches("spikes", ("source", "run", "sample")):
        for source in np.unique(part["source"]).tolist():
            for run in np.unique(part["run"][part["source"] == source]).tolist():
                samples = part["sample"][(part["source"] == source) & (part["run"] == run)]
                span = spans.setdefault((source, run), [int(samples.min()), int(samples.max())])
                span[0], span[1] = min(span[0], int(samples.min())), max(span[1], int(samples.max()))
    return spans


class Observed:
    """When the units of one device were observed; gaps, silences and units that are not there are left out."""

    def __init__(
        self, view: SessionView, clocks: Clocks, source: int, spikes: dict[tuple[int, int], list[int]]
    ) -> None:
        """`spikes`: first and last sample of each (source, run)'s spikes; they widen what the watermarks say."""
        names = ("source", "run", "watermark_sample", "receipt_host_ns")
        column = {n: view.column(f"continuity/{n}") for n in names}
        boots = clocks.boots(column["receipt_host_ns"])
        self._runs: dict[int, tuple[list[Span], DeviceTime, I64, I64]] = {}
        of_source = (column["source"] == source) & (column["watermark_sample"] > 0)
        for run in np.unique(column["run"][of_source]).tolist():
            here = np.flatnonzero(of_source & (column["run"] == run))
            watermarks = column["watermark_sample"][here]
            first, last = int(watermarks.min()), int(watermarks.max())
            heard = last
            if (source, run) in spikes:
                heard = spikes[source, run][0]
                first, last = min(first, heard), max(last, spikes[source, run][1] + 1)
            device = clocks.devices.get((source, run, int(boots[here[0]])))
            if device is not None:
                whole = _whole(view, source, run, first, last, heard)
                self._runs[run] = whole, device, np.maximum.accumulate(watermarks), column["receipt_host_ns"][here]
        self._lists = _lists(view, source)
        self._known: dict[tuple[tuple[Span, ...], ...], F64] = {}

    def of(self, unit: int, first_spike_s: float) -> F64:
        """Return when a row of /units was observed, axes (interval, start and end), s.

        `first_spike_s`: its first spike, which begins its first interval where the device sends no lists.
        """
        there = tuple(self._there(unit, run) for run in self._runs)
        if there not in self._known:
            self._known[there] = self._seconds(there)
        found = self._known[there]
        if self._lists:
            return found
        found = found[found[:, 1] > first_spike_s].copy()
        found[:, 0] = np.maximum(found[:, 0], first_spike_s)
        return found

    def _there(self, unit: int, run: int) -> tuple[Span, ...]:
        """Return in which samples of a run the device's lists name a unit."""
        if not self._lists:
            return (ALWAYS,)
        lists = self._lists.get(run, [])
        starts = [ALWAYS[0], *(sample for sample, _ in lists[1:]), ALWAYS[1]]  # the first list holds from the beginning
        spans = zip(starts, starts[1:], (units for _, units in lists), strict=False)
        return tuple((start, end) for start, end, units in spans if unit in units and end > start)

    def _seconds(self, there: Sequence[tuple[Span, ...]]) -> F64:
        out = [np.empty((0, 2))]
        for spans, (whole, device, watermarks, receipts) in zip(there, self._runs.values(), strict=True):
            both = [(max(a, c), min(b, d)) for a, b in whole for c, d in spans if min(b, d) > max(a, c)]
            if both:
                edges = np.array(both, dtype=np.int64).ravel()
                out.append(device.seconds(edges, np.interp(edges, watermarks, receipts)).reshape(-1, 2))
        found = np.concatenate(out)
        return np.asarray(found[np.argsort(found[:, 0], kind="stable")])


def _whole(view: SessionView, source: int, run: int, first: int, last: int, heard: int) -> list[Span]:
    """Return the stretches from `first` to `last` in which nothing of a run is missing.

    What went before the program joined a run is no gap in what was observed: that began with the spike first `heard`.
    """
    gap: dict[str, npt.NDArray[Any]] = {
        n: view.column(f"continuity/gaps/{n}") for n in ("source", "run", "first_sample", "end_sample")
    }
    holes = np.flatnonzero((gap["source"] == source) & (gap["run"] == run))
    out, at = [], first
    for k in holes[np.argsort(gap["first_sample"][holes])].tolist():
        begin, end = int(gap["first_sample"][k]), int(gap["end_sample"][k])
        if begin > at:
            out.append((at, min(begin, last)))
        at = max(at, end if begin > 0 else min(end, heard))
    if at < last:
        out.append((at, last))
    return [(a, b) for a, b in out if b > a]


def _lists(view: SessionView, source: int) -> dict[int, list[tuple[int, frozenset[int]]]]:
    """Return a device's lists by run: (from which sample, which rows of /units), ascending."""
    names = ("source", "run", "from_sample", "first", "count")
    rows = zip(*(view.column(f"unit_lists/{n}").tolist() for n in names), strict=True)
    unit = view.column("unit_lists/units/unit")
    out: dict[int, list[tuple[int, frozenset[int]]]] = {}
    for of, run, sample, first, count in rows:
        if of == source:
            out.setdefault(run, []).append((sample, frozenset(unit[first : first + count].tolist())))
    for lists in out.values():
        lists.sort(key=lambda one: one[0])
    return out
