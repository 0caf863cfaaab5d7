"""Rows that come at a fixed rate: which frame each is, and which frames between them are missing.

Pure. A stream may carry its own frame counter in a channel with the label "frame" or "sample"; then a hole in the
counter is a lost frame. Otherwise rows are counted, and a hole in the stamps of more than 1.5 periods is lost frames.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rig.messages import Gap
from rig.sources.lsl_stamps import Verdict
from rig.sources.lsl_streams import I64, Described, Restarted

COUNTERS = ("frame", "sample")
HOLE_PERIODS = 1.5
MAX_FRAME = 1 << 53
SILENT_LEAST_NS = 500_000_000
SILENT_PERIODS = 10


def counter_channel(stream: Described) -> int | None:
    """Return the channel that carries the stream's own frame counter, None if there is none."""
    found = [k for k, label in enumerate(stream.labels) if label.strip().lower() in COUNTERS]
    return found[0] if found else None


def silent_ns(rate_hz: float) -> int | None:
    """Return the silence that is a fault at a nominal rate; None for an irregular stream."""
    return max(SILENT_LEAST_NS, round(SILENT_PERIODS * 1e9 / rate_hz)) if rate_hz > 0 else None


@dataclass(frozen=True)
class Numbered:
    """Rows with their frame."""

    index: I64  # (kept,) which of the rows given are kept
    frame: I64  # (kept,)
    sample: I64  # (kept,) us of the sender's LSL clock
    lost: int  # frames that are missing before or between them
    gaps: tuple[Gap, ...]


class FrameCount:
    """Numbers the rows of one run of one stream."""

    def __init__(self, rate_hz: float) -> None:
        """`rate_hz`: nominal rate, 0 for an irregular stream, in which only a counter can tell losses."""
        self._period_us = 1e6 / rate_hz if rate_hz > 0 else 0.0
        self._frame = -1
        self._sample: int | None = None  # of the last row with a time

    @property
    def frame(self) -> int:
        """Number of the last row, -1 before the first."""
        return self._frame

    @property
    def last_sample(self) -> int | None:
        """Sample of the last row that has a time."""
        return self._sample

    def take(self, sample: I64, verdicts: list[Verdict], counter: npt.NDArray[np.float64] | None) -> Numbered:
        """Give rows (row,) their frames by their counter or stamps; rows with a wrong stamp are left out.

        Raises Restarted if the counter went back. A counter that is no whole number counts as not there.
        """
        index, frames, gaps, lost = [], [], [], 0
        for k, at in enumerate(sample.tolist()):
            if verdicts[k] == "wrong":
                continue
            missing = self._missing(at, None if counter is None else float(counter[k]))
            first, self._sample = self._sample, at
            self._frame += 1 + missing
            if first is None:  # what was before the first row was not seen
                gaps.append(Gap(first_sample=0, end_sample=at, messages=0))
            elif missing or verdicts[k] == "stale":
                begin = min(first + max(round(self._period_us), 1), at)
                end = at if verdicts[k] == "good" else at + max(round(self._period_us), 1)
                gaps.append(Gap(first_sample=begin, end_sample=end, messages=missing))
            lost += missing
            index.append(k)
            frames.append(self._frame)
        kept = np.array(index, dtype=np.int64)
        return Numbered(kept, np.array(frames, dtype=np.int64), sample[kept], lost, tuple(gaps))

    def _missing(self, at: int, counted: float | None) -> int:
        """Return how many frames are missing before a row."""
        if counted is not None and counted == np.rint(counted) and 0 <= counted < MAX_FRAME:
            if self._sample is None:
                self._frame = int(counted) - 1
                return 0
            if counted <= self._frame:
                raise Restarted(f"the frame counter went from {self._frame} to {counted:g}")
            return int(counted) - self._frame - 1
        if self._sample is None or self._period_us == 0:
            return 0
        periods = (at - self._sample) / self._period_us
        return round(periods) - 1 if periods > HOLE_PERIODS else 0
