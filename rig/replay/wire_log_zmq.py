"""What the journal holds of a bridge on the open wires, run by run and period by period.

Pure. Called by `wire_tape_zmq`. A source journals what it took between two harvests and closes it with a Continuity: a
`Period` here. Within it the order of messages shows in their arrivals only.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rig.messages import ClockSample, Continuity, EdgeBlock, Entry, Fault, Gap, SpikeBlock, TraceBlock, UnitList


@dataclass(frozen=True)
class TraceRow:
    """One frame."""

    frame: int
    sample: int
    values: npt.NDArray[np.float32]
    neuropil: npt.NDArray[np.float32] | None
    motion: npt.NDArray[np.float32] | None


@dataclass
class Period:
    """What one Continuity closes: what a source took between two harvests."""

    rows: list[tuple[int, int, Any]] = field(default_factory=list)  # arrival, epoch of its list, row
    edges: list[tuple[int, tuple[int, int, int]]] = field(default_factory=list)  # arrival, (line, state, sample)
    messages: int = 0
    lost: int = 0
    gaps: tuple[Gap, ...] = ()
    watermark: int = 0
    receipt_ns: int = 0


@dataclass
class BridgeRun:
    """What the journal holds of one run."""

    number: int
    rate_hz: float = 0.0
    lists: list[UnitList] = field(default_factory=list)
    lists_before: list[int] = field(default_factory=list)  # for each period: lists known at its end
    periods: list[Period] = field(default_factory=list)
    open: Period = field(default_factory=Period)
    counted: tuple[int, int] = (0, 0)  # messages and lost ones of the Continuity before
    pairs: list[ClockSample] = field(default_factory=list)

    @property
    def ends_ns(self) -> int:
        """When the last of it was journalled, host ns."""
        return self.periods[-1].receipt_ns if self.periods else 0


def runs_of(entries: Iterable[Entry], source: str) -> tuple[list[BridgeRun], list[int]]:
    """Return the runs of a source that hold data, and when the log said that nobody told the time, host ns."""
    runs: dict[int, BridgeRun] = {}
    silences: list[int] = []
    for entry in entries:
        document, receipt_ns = entry.document, entry.envelope.receipt_host_ns
        if isinstance(document, Fault) and document.what == "no clock reply" and entry.envelope.sender == source:
            silences.append(receipt_ns)
        if getattr(document, "source", None) != source or (number := getattr(document, "run", None)) is None:
            continue
        if runs and number < max(runs):
            continue  # sent again by a source that had not heard that it was journalled
        _note(runs.setdefault(number, BridgeRun(number)), document, receipt_ns)
    kept = [run for _, run in sorted(runs.items()) if run.lists and any(p.messages for p in run.periods)]
    return kept, silences


def _note(run: BridgeRun, document: object, receipt_ns: int) -> None:
    """Take one document of the source."""
    period, epoch = run.open, len(run.lists) - 1
    if isinstance(document, UnitList):
        run.lists.append(document)
    elif isinstance(document, SpikeBlock) and epoch >= 0:
        index = {name: k for k, name in enumerate(run.lists[-1].units)}
        units = [index[name] for name in document.units]
        columns = (document.unit.tolist(), document.sample.tolist(), document.arrival_host_ns.tolist())
        period.rows += [(at, epoch, (units[u], sample)) for u, sample, at in zip(*columns, strict=True)]
    elif isinstance(document, TraceBlock) and epoch >= 0:
        for k, (frame, sample) in enumerate(zip(document.frame.tolist(), document.sample.tolist(), strict=True)):
            neuropil = None if document.neuropil is None else document.neuropil[k]
            motion = None if document.motion is None else document.motion[k]
            row = TraceRow(frame, sample, document.values[k], neuropil, motion)
            period.rows.append((int(document.arrival_host_ns[k]), epoch, row))
    elif isinstance(document, EdgeBlock):
        edges = zip(document.line.tolist(), document.state.tolist(), document.sample.tolist(), strict=True)
        period.edges += zip(document.arrival_host_ns.tolist(), edges, strict=True)
    elif isinstance(document, ClockSample):
        run.pairs.append(document)
    elif isinstance(document, Continuity):
        run.rate_hz = document.sample_rate_hz or run.rate_hz
        period.messages = document.messages - run.counted[0]
        period.lost = document.lost_messages - run.counted[1]
        run.counted = document.messages, document.lost_messages
        period.gaps, period.watermark, period.receipt_ns = document.gaps, document.watermark_sample, receipt_ns
        run.periods.append(period)
        run.lists_before.append(len(run.lists))
        run.open = Period()
