"""What the scored source has delivered in its present run: how far, with which holes, and its spikes or traces.

Pure; part of the response fold (`rig.responses.windows`).
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rig.config.scoring import Psth
from rig.config.sources import LslCalciumSource, LslCountSource, NeuralSource, TracesWireSource
from rig.messages import Continuity, Gap, SpikeBlock, TraceBlock, UnitList
from rig.responses.spikes_kept import SpikesKept
from rig.responses.traces import TraceFold

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Span = tuple[int, int]  # first sample, end
MOST_EARLY = 4_000  # documents kept while the device's rate is not known: 100 s of a source


class DeviceData:
    """One run of the scored source."""

    def __init__(self, run: int, source: NeuralSource, units: tuple[str, ...], seen: set[str]) -> None:
        """Begin run number `run` without data. `seen`: the units that ever sent a spike."""
        self.run = run
        self.rate_hz = 0.0
        self.watermark: int | None = None
        self.lost_samples = 0  # length of all gaps so far
        self.kept: SpikesKept | TraceFold
        if isinstance(source, TracesWireSource | LslCalciumSource | LslCountSource):
            self.kept = TraceFold(source, units)
        else:
            self.kept = SpikesKept(units, seen)
        self._kept_from = 0  # what came before this sample was never there, or is forgotten
        self._gaps: list[Gap] = []
        self._early: deque[UnitList | SpikeBlock | TraceBlock] = deque()  # came before the device's rate was known

    @property
    def final_through(self) -> int | None:
        """Sample before which values are final; None before anything is known."""
        if self.watermark is None or self.rate_hz <= 0:
            return None
        return self.kept.final_through(self.watermark)

    def take(self, document: UnitList | SpikeBlock | TraceBlock) -> list[str]:
        """Take data; return what is wrong with them, in words."""
        if self.rate_hz <= 0:
            self._early.append(document)
            self._drop_early()
            return []
        kept = self.kept
        if isinstance(kept, TraceFold):
            return [] if isinstance(document, SpikeBlock) else kept.take(document, self.rate_hz)
        return [] if isinstance(document, TraceBlock) else kept.take(document, self.rate_hz)

    def complete(self, continuity: Continuity) -> list[str]:
        """Take how far the data are complete; return what is wrong with those that had to wait for the rate."""
        self.rate_hz = continuity.sample_rate_hz or self.rate_hz
        problems: list[str] = []
        if self.rate_hz > 0:
            early, self._early = self._early, deque()
            problems = [problem for document in early for problem in self.take(document)]
        self._gaps += continuity.gaps
        self.lost_samples += sum(g.end_sample - g.first_sample for g in continuity.gaps)
        if self.watermark is None or continuity.watermark_sample > self.watermark:
            self.watermark = continuity.watermark_sample
        return problems

    def _drop_early(self) -> None:
        """Drop the oldest of too many documents that wait for the rate; windows that need them are not covered."""
        if len(self._early) <= MOST_EARLY:
            return
        oldest = self._early.popleft()
        if not isinstance(oldest, UnitList):
            self._kept_from = max(self._kept_from, int(oldest.sample.max(initial=-1)) + 1)
        elif not any(isinstance(one, UnitList) for one in self._early):
            self._early.append(oldest)  # the list that holds
            self._drop_early()

    def why_missing(self, span: Span) -> str:
        """Return in words why no unit has a value in a span."""
        if isinstance(self.kept, TraceFold):
            return self.kept.why_missing(*span)
        return "none of its units was there"

    def too_short(self, windows: dict[str, tuple[float, float]]) -> str:
        """Return in words which of the windows, s from the onset, are too short for what this source sends; "" if none.

        `windows` are named as in the config. Spikes have times of their own: for them no window is too short.
        """
        if not isinstance(self.kept, TraceFold):
            return ""
        short = {name: self.kept.too_short(window_s) for name, window_s in windows.items()}
        return "; ".join(f"{name} {words}" for name, words in short.items() if words)

    def forget(self, before_sample: int) -> None:
        """Drop what came before a sample; a window that would need it all the same is not covered."""
        if before_sample <= self._kept_from:
            return
        self._kept_from = before_sample
        self.kept.forget(before_sample)
        self._gaps = [g for g in self._gaps if g.end_sample >= before_sample]

    def covered(self, spans: Sequence[Span]) -> float:
        """Return the fraction of the spans that was delivered: in no gap, neither forgotten nor yet to come."""
        total = sum(end - start for start, end in spans)
        marks = np.zeros(total, dtype=np.bool_)
        at = 0
        for start, end in spans:
            for first, last in self._holes(start, end):
                low, high = max(first, start), min(last, end)
                if high > low:
                    marks[at + low - start : at + high - start] = True
            at += end - start
        return 1.0 - float(marks.sum()) / max(total, 1)

    def course(self, onset: int, settings: Psth) -> F32 | None:
        """Return the spikes (unit, bin) around an onset; None where there are no spikes or not all bins are covered."""
        if not isinstance(self.kept, SpikesKept):
            return None
        at_s = settings.window_s[0] + settings.bin_s * np.arange(settings.bins + 1)
        edges = onset + np.rint(at_s * self.rate_hz).astype(np.int64)
        return self.kept.course(edges) if self.covered([(int(edges[0]), int(edges[-1]))]) == 1 else None

    def _holes(self, start: int, end: int) -> list[Span]:
        delivered_to = end if self.watermark is None else self.watermark
        gaps = [(g.first_sample, g.end_sample) for g in self._gaps]
        return [(start, self._kept_from), (delivered_to, end), *gaps]

    def lost_messages(self, spans: Sequence[Span]) -> int:
        """Return how many messages are missing in the gaps that touch the spans; each gap counts whole, and once."""

        def touches(gap: Gap, span: Span) -> bool:
            if gap.end_sample > gap.first_sample:
                return gap.first_sample < span[1] and gap.end_sample > span[0]
            return span[0] < gap.first_sample <= span[1]  # no samples of its own: it ends another gap

        return sum(g.messages for g in self._gaps if any(touches(g, span) for span in spans))
