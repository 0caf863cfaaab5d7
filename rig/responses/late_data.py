"""Data that came after the windows they fall into were closed: counted, and the presentation named.

Pure; part of the response fold (`rig.responses.windows`).
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rig.responses.device_data import Span
from rig.responses.fault_batch import FaultBatch

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Closed:
    presentation: int
    spans: tuple[Span, ...]
    usable: bool


class ClosedWindows:
    """The windows of one run that were closed of late."""

    def __init__(self, source: str, faults: FaultBatch) -> None:
        """Start without windows; late data of `source` are added to `faults`."""
        self._source, self._faults = source, faults
        self._closed: deque[_Closed] = deque()

    def add(self, presentation: int, spans: tuple[Span, ...], usable: bool) -> None:
        """Take note of a response that was given."""
        self._closed.append(_Closed(presentation, spans, usable))

    def late(self, sample: I64, what: str) -> None:
        """Count `sample` (event,) in closed windows; `what` says of what kind the events are."""
        for closed in self._closed:
            inside = np.zeros(len(sample), dtype=np.bool_)
            for start, end in closed.spans:
                inside |= (sample >= start) & (sample < end)
            if number := int(inside.sum()):
                state = "closed as usable" if closed.usable else "missing already"
                self._faults.add(
                    "late data",
                    f"{number} {what} of {self._source} fall into the windows of presentation {closed.presentation}, "
                    f"which was {state}",
                    "logged, not counted in its response",
                    (closed.presentation,),
                )

    def forget(self, before_sample: int) -> None:
        """Drop windows that ended before a sample."""
        while self._closed and max(end for _, end in self._closed[0].spans) < before_sample:
            self._closed.popleft()
