"""What a source gathers between two sends: spikes and edges as columns, clock pairs, faults that do not flood the log.

Pure. Used by `rig.sources.continuity` and `rig.sources.lsl`.
"""

from dataclasses import dataclass

import numpy as np

from rig.messages import (
    ClockSample,
    Document,
    EdgeBlock,
    Fault,
    SpikeBlock,
)

FAULT_EVERY_NS = 1_000_000_000
PAIR_EVERY_NS = 250_000_000


class Columns:
    """Spikes and edges of one run since the last `take`, in order of arrival."""

    def __init__(self, source: str) -> None:
        """Start empty."""
        self._source = source
        self._units: dict[str, int] = {}  # name: index, in the order in which they first came
        self._unit: list[int] = []
        self._sample: list[int] = []
        self._arrival_ns: list[int] = []
        self._edges: list[tuple[int, int, int, int]] = []

    def spike(self, unit: str, sample: int, arrival_host_ns: int) -> None:
        """Add a spike."""
        units = self._units
        self._unit.append(units.setdefault(unit, len(units)))
        self._sample.append(sample)
        self._arrival_ns.append(arrival_host_ns)

    def edge(self, line: int, state: int, sample: int, arrival_host_ns: int) -> None:
        """Add a TTL edge."""
        self._edges.append((line, state, sample, arrival_host_ns))

    def take(self, run: int) -> list[Document]:
        """Return SpikeBlock and EdgeBlock, each only if there is something in it, and start empty again."""
        documents: list[Document] = []
        if self._unit:
            documents.append(
                SpikeBlock(
                    source=self._source,
                    run=run,
                    units=tuple(self._units),
                    unit=np.array(self._unit, dtype=np.uint16),
                    sample=np.array(self._sample, dtype=np.int64),
                    arrival_host_ns=np.array(self._arrival_ns, dtype=np.int64),
                )
            )
            self._units, self._unit, self._sample, self._arrival_ns = {}, [], [], []
        if self._edges:
            line, state, sample, arrival = zip(*self._edges, strict=True)
            documents.append(
                EdgeBlock(
                    source=self._source,
                    run=run,
                    line=np.array(line, dtype=np.uint8),
                    state=np.array(state, dtype=np.uint8),
                    sample=np.array(sample, dtype=np.int64),
                    arrival_host_ns=np.array(arrival, dtype=np.int64),
                )
            )
            self._edges = []
        return documents


class ClockPairs:
    """Of the pairs of each quarter of a second the one with the smallest delay."""

    def __init__(self, source: str) -> None:
        """Start without pairs."""
        self._source = source
        self._best: tuple[float, int, int] | None = None  # delay against nominal time, device sample, host ns
        self._due_ns: int | None = None
        self._told = -1

    def offer(self, sample: int, host_ns: int, rate_hz: float) -> None:
        """Take a pair; over a quarter of a second the nominal rate will do to compare delays."""
        if sample <= self._told:
            return
        delay = host_ns - sample * (1e9 / rate_hz)
        if self._best is None or delay < self._best[0]:
            self._best = (delay, sample, host_ns)
        if self._due_ns is None:
            self._due_ns = host_ns + PAIR_EVERY_NS

    def take(self, run: int, now_ns: int | None) -> list[Document]:
        """Return the best pair if its quarter of a second is over, or at once where `now_ns` is None."""
        if self._best is None or (now_ns is not None and self._due_ns is not None and now_ns < self._due_ns):
            return []
        _, sample, host_ns = self._best
        self._best, self._due_ns, self._told = None, None, sample
        return [ClockSample(source=self._source, run=run, device_sample=sample, pair_host_ns=host_ns)]


@dataclass
class _Pending:
    detail: str
    done: str
    since_host_ns: int | None
    more: int = 0
    last: str = ""


class Faults:
    """Faults of one source: the first of a kind at once, more of the same together once a second, none forgotten."""

    def __init__(self) -> None:
        """Start without faults."""
        self._pending: dict[str, _Pending] = {}
        self._sent_ns: dict[str, int] = {}
        self._once: set[str] = set()

    def note(self, what: str, detail: str, done: str, since_host_ns: int | None = None) -> None:
        """Remember a fault of the kind `what`."""
        pending = self._pending.get(what)
        if pending is None:
            self._pending[what] = _Pending(detail, done, since_host_ns)
        else:
            pending.more += 1
            pending.last = detail

    def once(self, what: str, detail: str, done: str, since_host_ns: int | None = None) -> None:
        """Remember a fault that is worth saying only once in the life of this source."""
        if what not in self._once:
            self._once.add(what)
            self.note(what, detail, done, since_host_ns)

    def due(self, now_ns: int, everything: bool = False) -> list[Document]:
        """Return the faults to send now; with `everything` also those that would wait."""
        out: list[Document] = []
        for what, pending in list(self._pending.items()):
            sent = self._sent_ns.get(what)
            if not everything and sent is not None and now_ns < sent + FAULT_EVERY_NS:
                continue
            more = f"; and {pending.more} more of this kind, the last: {pending.last}" if pending.more else ""
            out.append(
                Fault(what=what, detail=pending.detail + more, done=pending.done, since_host_ns=pending.since_host_ns)
            )
            self._sent_ns[what] = now_ns
            del self._pending[what]
        return out
