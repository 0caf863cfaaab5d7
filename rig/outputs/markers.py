"""Markers as an LSL stream: each with the time of what it marks, not of when it was sent.

LSL's clock and the host clock are one on Linux; elsewhere their difference is measured at each marker.
"""

import uuid

import pylsl

from rig.clock import Clock
from rig.outputs.devices import TEXTS, Job, Outcome

READS = 5


class MarkerOutlet:
    """One LSL marker stream."""

    takes = TEXTS

    def __init__(self, stream: str, session: str, clock: Clock) -> None:
        self._clock = clock
        # A source id that no other start has: an inlet of an earlier session must not take this for its recovery.
        info = pylsl.StreamInfo(stream, "Markers", 1, pylsl.IRREGULAR_RATE, pylsl.cf_string, uuid.uuid4().hex)
        info.desc().append_child_value("session", session)
        self._outlet = pylsl.StreamOutlet(info)
        self._done: list[Outcome] = []

    def _offset_s(self) -> float:
        """LSL clock minus host clock, s, by the shortest of some double reads."""
        tries = []
        for _ in range(READS):
            before = self._clock.now_ns()
            lsl_s = float(pylsl.local_clock())
            after = self._clock.now_ns()
            tries.append((after - before, lsl_s - (before + after) / 2e9))
        return min(tries)[1]

    def mark(self, text: str, event_host_ns: int) -> None:
        """Send a text with the time of its event."""
        self._outlet.push_sample([text], event_host_ns * 1e-9 + self._offset_s())

    def begin(self, job: Job) -> None:
        """Send a marker."""
        request, now = job.request, self._clock.now_ns()
        self.mark(request.text, now if request.event_host_ns is None else request.event_host_ns)
        self._done.append(Outcome(request, True, "", now, self._clock.now_ns()))

    def poll(self) -> list[Outcome]:
        """Return what was sent."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """End the stream."""
        del self._outlet
