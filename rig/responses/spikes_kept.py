"""The spikes of the scored units in one run of a source, for counting in windows.

Pure; it has the shape of `rig.responses.traces.TraceFold`, so that responses are measured alike from spikes and from
traces.
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rig.messages import SpikeBlock, UnitList

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Chunk:
    """Scored spikes of one block, in order of arrival."""

    unit: I64  # (spike,) place in the scored units
    sample: I64  # (spike,)
    first: int
    last: int


class SpikesKept:
    """Spikes of one run; a new run needs a new one."""

    def __init__(self, units: tuple[str, ...], seen: set[str]) -> None:
        """Count for `units`. `seen` are the units that ever sent a spike; it is read, not changed.

        A source that sends no UnitList does not say which units it has: then a unit is there once it was seen.
        """
        self._units = units
        self._place = {name: k for k, name in enumerate(units)}
        self._named: tuple[str, ...] = ()  # units of the last block, and their places: -1 where not scored
        self._placed = np.zeros(0, dtype=np.int64)
        self._seen = seen
        self._chunks: deque[_Chunk] = deque()
        self._lists: list[tuple[int, frozenset[str]]] = []  # from which sample, which units; ascending

    @property
    def measure(self) -> Literal["spikes"]:
        """Return what `values` gives."""
        return "spikes"

    def take(self, document: UnitList | SpikeBlock, rate_hz: float) -> list[str]:
        """Take a document of this run; nothing can be wrong with it. `rate_hz` is not needed for spikes."""
        if isinstance(document, UnitList):
            self._lists.append((document.from_sample, frozenset(document.units)))
            self._lists.sort(key=lambda one: one[0])
            return []
        unit, sample = self.scored(document)
        if len(sample):
            self._chunks.append(_Chunk(unit, sample, int(sample.min()), int(sample.max())))
        return []

    def scored(self, block: SpikeBlock) -> tuple[I64, I64]:
        """Return place among the scored units (spike,) and sample (spike,) of a block's spikes of scored units."""
        if block.units != self._named:  # a source names the same units in each block
            self._named = block.units
            self._placed = np.array([self._place.get(name, -1) for name in block.units], dtype=np.int64)
        unit = self._placed[block.unit]
        return unit[unit >= 0], block.sample[unit >= 0]

    def final_through(self, watermark_sample: int) -> int:
        """Return the sample before which counts are final: the watermark itself."""
        return watermark_sample

    def values(self, start_sample: int, end_sample: int) -> F64:
        """Return the number of spikes (unit,) in [start, end); NaN for a unit that was not there all the time."""
        counts = np.zeros(len(self._units), dtype=np.float64)
        for chunk in self._chunks:
            if chunk.first < end_sample and chunk.last >= start_sample:
                inside = (chunk.sample >= start_sample) & (chunk.sample < end_sample)
                counts += np.bincount(chunk.unit[inside], minlength=len(counts))
        counts[~self._there(start_sample, end_sample)] = np.nan
        return counts

    def course(self, edges: I64) -> F32:
        """Return the spikes (unit, bin) between each edge (bin + 1,), samples, and the next; NaN as in `values`."""
        counts = np.zeros((len(self._units), len(edges) - 1), dtype=np.float32)
        start, end = int(edges[0]), int(edges[-1])
        for chunk in self._chunks:
            if chunk.first < end and chunk.last >= start:
                inside = (chunk.sample >= start) & (chunk.sample < end)
                bins = np.searchsorted(edges, chunk.sample[inside], side="right") - 1
                np.add.at(counts, (chunk.unit[inside], bins), 1)
        counts[~self._there(start, end)] = np.nan
        return counts

    def _there(self, start: int, end: int) -> npt.NDArray[np.bool_]:
        if not self._lists:
            return np.array([name in self._seen for name in self._units], dtype=np.bool_)
        before = [units for sample, units in self._lists if sample <= start]
        within = [units for sample, units in self._lists if start < sample < end]
        lists = [before[-1] if before else self._lists[0][1], *within]
        return np.array([all(name in units for units in lists) for name in self._units], dtype=np.bool_)

    def forget(self, before_sample: int) -> None:
        """Drop spikes and lists that no window from `before_sample` on can need."""
        while self._chunks and self._chunks[0].last < before_sample:
            self._chunks.popleft()
        while len(self._lists) > 1 and self._lists[1][0] <= before_sample:
            self._lists.pop(0)
