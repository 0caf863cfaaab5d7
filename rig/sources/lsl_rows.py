"""Rows of the two LSL streams into spikes, edges, watermarks and gaps; the format is in docs/wires/lsl.md.

Pure: rows in, values out. Called by `rig.sources.lsl_spikes` and `lsl_traces`. Nothing in a row may raise: what cannot
be right is refused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rig.messages import (
    Gap,
)

COUNT_MARK = -2
WATERMARK = -1
MAX_SAMPLE = 1 << 53


@dataclass
class Taken:
    """What one chunk of rows brought."""

    rows: list[tuple[int, ...]] = field(default_factory=list)  # spikes (unit, sample) or edges (line, state, sample)
    marks: list[tuple[int, int]] = field(default_factory=list)  # (index of the row in the chunk, watermark sample)
    gaps: list[Gap] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    restarted: bool = False  # counts or samples went back: another run of the device


class Lane:
    """Keeps account of one stream: how many rows came against how many were sent."""

    def __init__(self, kind: Literal["spikes", "edges"], units: int = 0) -> None:
        """`units`: number of unit names, for spikes."""
        self.kind = kind
        self.watermark: int | None = None
        self.received = 0
        self.lost = 0
        self._highest = (units - 1, MAX_SAMPLE) if kind == "spikes" else (63, 1, MAX_SAMPLE)
        self._announced: int | None = None
        self._since = 0  # rows since the last watermark
        self._sent = 0  # the sender's count at the last watermark

    def take(self, chunk: Sequence[Sequence[float]]) -> Taken:
        """Account for a chunk of rows in order of arrival."""
        taken = Taken()
        for index, row in enumerate(chunk):
            values = _whole(row, len(self._highest))
            if values is None:
                taken.refused.append(f"a row {list(row)[:4]} that is not {len(self._highest)} whole numbers")
            elif self.kind == "spikes" and values[0] == COUNT_MARK:
                self._announced = values[1]
            elif values[0] == WATERMARK:
                count = self._announced if self.kind == "spikes" else values[1]
                self._announced = None
                if count is None:
                    taken.refused.append("a watermark row without a count row before it")
                    continue
                self._mark(count, values[-1], taken)
                taken.marks.append((index, values[-1]))
            elif all(0 <= value <= top for value, top in zip(values, self._highest, strict=True)):
                self._since += 1
                self.received += 1
                taken.rows.append(values)
            else:
                taken.refused.append(f"a row {values} out of range (highest {self._highest})")
        return taken

    def _mark(self, sent: int, sample: int, taken: Taken) -> None:
        if self.watermark is None:  # joined here: what was sent before the first watermark was not seen whole
            taken.gaps.append(Gap(first_sample=0, end_sample=sample, messages=0))
        elif sent < self._sent or sample < self.watermark:
            taken.restarted = True
        elif (lost := sent - self._sent - self._since) != 0:
            # More rows than announced is as wrong as fewer: the stretch cannot be trusted either way.
            self.lost += max(lost, 0)
            taken.gaps.append(Gap(first_sample=self.watermark, end_sample=sample, messages=max(lost, 0)))
        self.watermark, self._sent, self._since = sample, sent, 0


def _whole(row: Sequence[float], length: int) -> tuple[int, ...] | None:
    if len(row) != length or not all(math.isfinite(v) and v == int(v) and abs(v) <= MAX_SAMPLE for v in row):
        return None
    return tuple(int(v) for v in row)
