"""The fixation window: whether the gaze stayed inside, judged from a behaviour source's documents alone.

Pure: no clock, no I/O. The rig's loop asks it before a trial and after one; the response fold asks it for each
presentation. The gaze has its own device and clock map; times handed in and out are host ns.

Only rows in which the gaze was seen count. A blink, a lost track and lost data are all the same: a stretch without
gaze, which may be as long as `max_gap_s`.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

from rig.clocks.clockmap import ClockMap
from rig.config.outputs import Fixation
from rig.messages import BehaviourBlock, ClockSample, Continuity, Document, Gap, ProcessStarted

KEEP_S = 60.0  # longer than any response may wait: windows, time-outs and lags are below 20 s
LATE_S = 0.15  # a gaze sample this old is no news of the eye: three periods of a source, and the network
RECORDER = "recorder"  # whose boot is that of the host clock
Verdict = Literal["held", "broken", "missing", "open"]


def gaze_deg(fixation: Fixation, block: BehaviourBlock) -> npt.NDArray[np.float64] | None:
    """Return the gaze (row; right, up), degrees, NaN where it was not seen; None if the block has no such channels."""
    if fixation.x not in block.channels or fixation.y not in block.channels:
        return None
    values = block.values[:, [block.channels.index(fixation.x), block.channels.index(fixation.y)]]
    return np.asarray(values * np.array(fixation.gain) + np.array(fixation.offset_deg), np.float64)


def within(fixation: Fixation, gaze: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return (row,) whether each gaze (row; right, up), degrees, lies in the window; the rim counts as inside."""
    away = gaze - np.array(fixation.center_deg)
    return np.asarray(np.hypot(away[:, 0], away[:, 1]) <= fixation.radius_deg)


def in_gaps(sample: npt.NDArray[np.int64], gaps: Iterable[Gap]) -> npt.NDArray[np.bool_]:
    """Return which of the samples (row,) lie in a gap."""
    inside = np.zeros(len(sample), dtype=np.bool_)
    for gap in gaps:
        inside |= (sample >= gap.first_sample) & (sample < gap.end_sample)
    return inside


class GazeWindow:
    """Follows the gaze of one source against one fixation window."""

    def __init__(self, fixation: Fixation) -> None:
        """Start without gaze: nothing is held before the first seconds of data have tied its clock to the host's."""
        self._fixation = fixation
        self._boot: str | None = None
        self._map = ClockMap()
        self._forget_all(-1)

    def _forget_all(self, run: int) -> None:
        self._run = run
        self._watermark: int | None = None
        self._sample = np.zeros(0, dtype=np.int64)  # (row,) device samples in which the gaze was seen, ascending
        self._inside = np.zeros(0, dtype=np.bool_)  # (row,)

    def take(self, document: Document) -> None:
        """Take a document; but for new boots, all but the rows, clock pairs and continuity of its source is ignored."""
        if isinstance(document, ProcessStarted) and document.name == RECORDER:
            self._new_boot(document.boot_id)
        if not isinstance(document, BehaviourBlock | ClockSample | Continuity):
            return
        if document.source != self._fixation.source or document.run < self._run:
            return
        if document.run > self._run:
            self._forget_all(document.run)
        if isinstance(document, BehaviourBlock):
            self._add(document)
        elif isinstance(document, ClockSample):
            self._map.take(document)
        else:
            self._map.nominal_hz = document.sample_rate_hz or self._map.nominal_hz
            self._watermark = max(document.watermark_sample, self._watermark or document.watermark_sample)
            if document.gaps:  # rows that came too old, or in pieces: not seen
                kept = ~in_gaps(self._sample, document.gaps)
                self._sample, self._inside = self._sample[kept], self._inside[kept]
            self._forget()

    def _new_boot(self, boot_id: str) -> None:
        """Begin anew where the computer was restarted: the host clock counts from another zero."""
        before, self._boot = self._boot, boot_id
        if before not in (None, boot_id):
            self._map = ClockMap()
            self._forget_all(-1)

    def _add(self, block: BehaviourBlock) -> None:
        gaze = gaze_deg(self._fixation, block)
        if gaze is None:
            return
        seen = np.isfinite(gaze).all(axis=1)
        sample = np.concatenate([self._sample, block.sample[seen]])
        inside = np.concatenate([self._inside, within(self._fixation, gaze[seen])])
        order = np.argsort(sample, kind="stable")
        self._sample, self._inside = sample[order], inside[order]

    def _forget(self) -> None:
        period_ns = self._map.ns_per_sample()
        if period_ns is None or not len(self._sample):
            return
        first = int(np.searchsorted(self._sample, self._sample[-1] - int(KEEP_S * 1e9 / period_ns)))
        if first > len(self._sample) // 2:  # in large steps: copying each time would cost more than it frees
            self._sample, self._inside = self._sample[first:].copy(), self._inside[first:].copy()

    def _host_ns(self, sample: int) -> int:
        mapped = self._map.to_host_ns(sample)
        return 0 if mapped is None else mapped[0]  # callers have asked for ns_per_sample before: the map is known

    def held_since(self, now_host_ns: int) -> int | None:
        """Return the host time since when the gaze is inside without a break up to its newest sample, ns.

        None if it is outside, if its clock is not known yet, or if nothing was seen for max_gap_s + 0.15 s.
        """
        period_ns = self._map.ns_per_sample()
        if period_ns is None or not len(self._sample) or not self._inside[-1]:
            return None
        longest_ns = self._fixation.max_gap_s * 1e9
        if now_host_ns - self._host_ns(int(self._sample[-1])) > longest_ns + LATE_S * 1e9:
            return None
        # Row k begins a new stretch if it comes too long after the one before, or if that one was outside.
        begins = (np.diff(self._sample) * period_ns > longest_ns) | ~self._inside[:-1]
        last = np.flatnonzero(begins)
        return self._host_ns(int(self._sample[last[-1] + 1 if len(last) else 0]))

    def verdict(self, start_host_ns: int, end_host_ns: int) -> tuple[Verdict, int | None]:
        """Judge the gaze from start to end, host ns.

        held: inside all the time; broken: seen outside, with the time of it (the start, if it was outside when last
        seen before); missing: not seen for longer than max_gap_s, with the time it was seen last, None if never; open:
        its data are not there yet. A break counts as soon as it is known.
        """
        period_ns = self._map.ns_per_sample()
        if period_ns is None or self._watermark is None:
            return "open", None
        zero = self._host_ns(self._watermark)
        host: npt.NDArray[np.int64] = zero + np.rint((self._sample - self._watermark) * period_ns).astype(np.int64)
        first, end = (int(k) for k in np.searchsorted(host, [start_host_ns, end_host_ns], side="left"))
        longest_ns = self._fixation.max_gap_s * 1e9
        if 0 < first < len(host) and not self._inside[first - 1] and host[first] - host[first - 1] <= longest_ns:
            return "broken", start_host_ns
        outside = np.flatnonzero(~self._inside[first:end])
        if len(outside):
            return "broken", int(host[first + outside[0]])
        if zero < end_host_ns:
            return "open", None
        # The stretch before the window counts whole; the one at its end only as far as the window goes.
        seen = host[max(first - 1, 0) : end]
        if first == end:
            return "missing", int(seen[-1]) if len(seen) else None
        if first == 0 and host[0] - start_host_ns > longest_ns:
            return "missing", None
        long = np.flatnonzero(np.diff([*seen, end_host_ns]) > longest_ns)
        return ("missing", int(seen[long[0]])) if len(long) else ("held", None)
