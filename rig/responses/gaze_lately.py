"""Where the gaze was in the last seconds, for a person to read: the rig's fault and the terminal name it.

Pure: time is handed in. It judges nothing (`rig.responses.fixation` does), so the arrival of a row is time enough.
"""

from collections import deque

import numpy as np

from rig.config.outputs import Fixation
from rig.messages import BehaviourBlock, Document, ProcessStarted
from rig.responses.fixation import RECORDER, gaze_deg

LATELY_NS = 2_000_000_000


class GazeLately:
    """Follows the gaze of one source."""

    def __init__(self, fixation: Fixation) -> None:
        """Start without gaze."""
        self._fixation = fixation
        self._boot: str | None = None
        self._seen: deque[tuple[int, float, float, int]] = deque()  # of each block: arrival, sums of x and y, rows

    def take(self, document: Document) -> None:
        """Take a document; all but the gaze source's blocks, and a new boot of the computer, are ignored."""
        wanted = self._fixation
        if isinstance(document, ProcessStarted) and document.name == RECORDER:
            if document.boot_id != self._boot:  # arrivals before it are on another clock
                self._seen.clear()
            self._boot = document.boot_id
        if not isinstance(document, BehaviourBlock) or document.source != wanted.source or not len(document.sample):
            return
        gaze = gaze_deg(wanted, document)
        if gaze is None:
            return
        x, y = gaze.T
        seen = np.isfinite(x) & np.isfinite(y)
        arrival = int(document.arrival_host_ns[-1])
        self._seen.append((arrival, float(x[seen].sum()), float(y[seen].sum()), int(seen.sum())))
        while self._seen[0][0] < arrival - LATELY_NS:
            self._seen.popleft()

    def words(self, now_host_ns: int) -> str:
        """Return its mean over the last 2 s before `now_host_ns`, and the window, in degrees (right, up)."""
        rows = [row for row in self._seen if now_host_ns - row[0] <= LATELY_NS]
        count = sum(n for *_, n in rows)
        where = "gaze not seen"
        if count:
            where = f"gaze at ({sum(r[1] for r in rows) / count:.1f}, {sum(r[2] for r in rows) / count:.1f}) deg"
        right, up = self._fixation.center_deg
        return f"{where}, window ({right:g}, {up:g}) r {self._fixation.radius_deg:g}"
