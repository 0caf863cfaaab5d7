"""Responses: a pure fold over the journal that measures what the units did after each image.

Called by the recorder for every journalled entry, in order; emits one Response per Presented, and Faults. It reads no
clock and does no I/O, so that replay and offline recomputation run the same code. A window closes on journalled data
(the source's watermark), a silent source on journalled Ticks. Missing or partial data is scored missing, never zero.
"""

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rig.clockmap import ClockMap
from rig.config import Config
from rig.messages import (
    ClockSample,
    Continuity,
    Document,
    EdgeBlock,
    Entry,
    Fault,
    Gap,
    Presented,
    Response,
    SpikeBlock,
    Tick,
)

KEEP_S = 20.0
LAG_POOL = 51
F64 = npt.NDArray[np.float64]


@dataclass
class _Open:
    """A presentation that waits for its data."""

    shown: Presented
    run: int
    deadline_ns: int | None = None


@dataclass
class _Device:
    """What the scored source has delivered in its present run."""

    run: int = -1
    rate_hz: float = 0.0
    watermark: int | None = None
    spikes: dict[str, list[int]] = field(default_factory=dict)
    edges: list[int] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)


class WindowFold:
    """Opens a window for each Presented and closes it when its data are complete."""

    def __init__(self, config: Config) -> None:
        """Score `config.responses.units` on the first source of the config."""
        self._config = config
        self._source = config.sources[0].name
        self._line = config.sources[0].photodiode_line if config.display.patch is not None else None
        self._units = config.responses.units
        self._device = _Device()
        self._clockmap = ClockMap()
        self._open: deque[_Open] = deque()
        self._lags_ns: deque[int] = deque(maxlen=LAG_POOL)
        self._early: deque[F64] = deque(maxlen=config.responses.baseline.pool)
        self.responses = 0
        self.usable = 0

    @property
    def waiting(self) -> int:
        """Number of presentations whose response is still open."""
        return len(self._open)

    def apply(self, entry: Entry) -> list[Document]:
        """Take one entry; return the documents it causes."""
        document = entry.document
        if isinstance(document, Presented):
            self._open.append(_Open(document, self._device.run))
            return self._close_ready()
        if isinstance(document, Tick):
            return self._time_out(document.tick_host_ns)
        if getattr(document, "source", None) != self._source or isinstance(document, Response):
            return []
        out: list[Document] = []
        if isinstance(document, SpikeBlock | EdgeBlock | ClockSample | Continuity):
            if document.run < self._device.run:
                return []  # a re-sent block of a run that is over
            if document.run > self._device.run:
                out += self._new_run(document.run)
        if isinstance(document, SpikeBlock):
            self._add_spikes(document)
        elif isinstance(document, EdgeBlock) and self._line is not None:
            rising = (document.line == self._line) & (document.state == 1)
            self._device.edges = sorted([*self._device.edges, *document.sample[rising].tolist()])
        elif isinstance(document, ClockSample):
            self._clockmap.add(document.device_sample, document.arrival_host_ns, document.run)
        elif isinstance(document, Continuity):
            self._device.rate_hz = document.sample_rate_hz or self._device.rate_hz
            self._clockmap.nominal_hz = self._device.rate_hz or None
            self._device.gaps += document.gaps
            if self._device.watermark is None or document.watermark_sample > self._device.watermark:
                self._device.watermark = document.watermark_sample
            out += self._close_ready()
            self._forget()
        return out

    def _new_run(self, run: int) -> list[Document]:
        first = self._device.run < 0
        self._device = _Device(run=run)
        out: list[Document] = []
        if first:
            for waiting in self._open:
                waiting.run = run
        else:
            while self._open:
                out.append(self._missing(self._open.popleft().shown, "acquisition restarted before its data were in"))
        return out

    def _add_spikes(self, block: SpikeBlock) -> None:
        for k, unit in enumerate(block.units):
            if unit in self._units:
                self._device.spikes.setdefault(unit, []).extend(block.sample[block.unit == k].tolist())

    def _forget(self) -> None:
        """Drop data that no open or future window can need (spikes arrive unsorted, so by value)."""
        device = self._device
        if device.watermark is None or device.rate_hz <= 0:
            return
        horizon = device.watermark - int(KEEP_S * device.rate_hz)
        if self._open:
            oldest = self._clockmap.to_sample(self._open[0].shown.onset_flip_host_ns)
            horizon = min(horizon, int(oldest[0] - 2 * device.rate_hz)) if oldest is not None else horizon
        for samples in device.spikes.values():
            if len(samples) > 64 and min(samples[:64]) < horizon:
                samples[:] = [s for s in samples if s >= horizon]
        device.edges = device.edges[bisect_left(device.edges, horizon) :]
        device.gaps = [g for g in device.gaps if g.end_sample >= horizon]

    # --- closing ------------------------------------------------------------------------------------------------------

    def _close_ready(self) -> list[Document]:
        out: list[Document] = []
        while self._open:
            closed = self._try_close(self._open[0])
            if closed is None:
                break
            self._open.popleft()
            out += closed
        return out

    def _time_out(self, now_ns: int) -> list[Document]:
        out: list[Document] = []
        settings = self._config.responses
        while self._open:
            shown = self._open[0].shown
            due = shown.onset_flip_host_ns + int((settings.window_s[1] + settings.timeout_s) * 1e9)
            if now_ns < due:
                break
            self._open.popleft()
            out.append(self._missing(shown, f"no complete data from {self._source} within {settings.timeout_s} s"))
        return out

    def _try_close(self, waiting: _Open) -> list[Document] | None:
        """Return the Response (and Faults) of a presentation, None while its data are incomplete."""
        shown, device = waiting.shown, self._device
        if waiting.run != device.run:
            waiting.run = device.run
        if not shown.complete:
            return [self._missing(shown, "presentation was cut short")]
        if device.watermark is None or device.rate_hz <= 0:
            return None
        predicted = self._clockmap.to_sample(shown.onset_flip_host_ns + self._lag_ns())
        if predicted is None:
            return None
        settings, rate = self._config.responses, device.rate_hz
        tolerance = int(settings.edge_tolerance_s * rate)
        base = settings.baseline.window_s if settings.baseline.kind != "none" else settings.window_s
        last = max(settings.window_s[1], base[1])
        if device.watermark < predicted[0] + tolerance + last * rate:
            return None
        out: list[Document] = []
        edge = self._take_edge(predicted[0], tolerance)
        onset, uncertainty_ns, source = self._onset(shown, edge, predicted)
        if edge is None and self._line is not None:
            out.append(
                Fault(
                    what="photodiode edge missing",
                    detail=f"no rising edge on line {self._line} within {settings.edge_tolerance_s} s of the flip",
                    done="onset taken from the flip stamp and the measured lag",
                    since_host_ns=shown.onset_flip_host_ns,
                    presentations=(shown.presentation,),
                )
            )
        return [*out, self._score(shown, onset, uncertainty_ns, source, edge)]

    def _lag_ns(self) -> int:
        """Return the lag from flip stamp to light: measured where edges were seen, else the config's."""
        if self._lags_ns:
            return int(np.median(np.array(self._lags_ns)))
        return int(self._config.display.lag_s * 1e9)

    def _take_edge(self, predicted: float, tolerance: int) -> int | None:
        """Return and use up the rising edge nearest to the predicted onset: paired by time, never by order."""
        edges = self._device.edges
        near = [e for e in edges if abs(e - predicted) <= tolerance]
        if not near:
            return None
        best = min(near, key=lambda e: abs(e - predicted))
        edges.remove(best)
        return best

    def _onset(self, shown: Presented, edge: int | None, predicted: tuple[float, int]) -> tuple[int, int, str]:
        """Return onset of the image in device samples, its uncertainty in ns, and where it comes from."""
        display = self._config.display
        rate = self._device.rate_hz
        rows = display.size_px[1]
        if edge is None:
            image_rows_s = display.scanout_s * shown.image_row_px / rows
            uncertainty_ns = predicted[1] + 0.5e9 / display.refresh_hz
            return round(predicted[0] + image_rows_s * rate), int(uncertainty_ns), "flip"
        # The patch and the image are lit when the scan-out reaches their rows.
        shift_s = display.scanout_s * (shown.image_row_px - shown.patch_row_px) / rows
        mapped = self._clockmap.to_host_ns(edge)
        if mapped is not None:
            self._lags_ns.append(mapped[0] - shown.onset_flip_host_ns)
        return edge + round(shift_s * rate), int(1e9 / rate) + 1, "photodiode"

    # --- scoring ------------------------------------------------------------------------------------------------------

    def _counts(self, start: int, end: int) -> F64:
        spikes = self._device.spikes
        return np.array([sum(start <= s < end for s in spikes.get(u, ())) for u in self._units], dtype=np.float64)

    def _covered(self, spans: list[tuple[int, int]]) -> float:
        """Fraction of the spans (start, end) that no gap touches."""
        total = sum(end - start for start, end in spans)
        marks = np.zeros(total, dtype=bool)
        at = 0
        for start, end in spans:
            for gap in self._device.gaps:
                lo, hi = max(gap.first_sample, start), min(gap.end_sample, end)
                if hi > lo:
                    marks[at + lo - start : at + hi - start] = True
            at += end - start
        return 1.0 - float(marks.sum()) / max(total, 1)

    def _score(self, shown: Presented, onset: int, uncertainty_ns: int, source: str, edge: int | None) -> Response:
        settings, rate = self._config.responses, self._device.rate_hz

        def span(window_s: tuple[float, float]) -> tuple[int, int]:
            return onset + round(window_s[0] * rate), onset + round(window_s[1] * rate)

        window, base = span(settings.window_s), span(settings.baseline.window_s)
        spans = [window] if settings.baseline.kind == "none" else [window, base]
        coverage = self._covered(spans)
        usable = coverage >= settings.min_coverage
        length_s = (window[1] - window[0]) / rate
        count = self._counts(*window)
        baseline = np.zeros(len(self._units))
        if settings.baseline.kind != "none":
            early = self._counts(*base) * (window[1] - window[0]) / (base[1] - base[0])
            if settings.baseline.kind == "block" and usable:
                self._early.append(early)
                early = np.mean(np.array(self._early), axis=0)
            baseline = early
        if not usable:
            count, baseline = np.full_like(count, np.nan), np.full_like(baseline, np.nan)
        mapped = self._clockmap.to_host_ns(onset)
        edge_host = self._clockmap.to_host_ns(edge) if edge is not None else None
        self.responses += 1
        self.usable += usable
        return Response(
            presentation=shown.presentation,
            proposal=shown.proposal,
            slot=shown.slot,
            role=shown.role,
            stimulus_id=shown.stimulus_id,
            source=self._source,
            usable=usable,
            reason="" if usable else f"only {coverage:.1%} of its windows is covered by complete data",
            onset_source="photodiode" if source == "photodiode" else "flip",
            onset_sample=onset,
            onset_host_ns=None if mapped is None else mapped[0],
            onset_uncertainty_ns=uncertainty_ns,
            onset_host_uncertainty_ns=None if mapped is None else mapped[1],
            flip_to_edge_ns=None if edge_host is None else edge_host[0] - shown.onset_flip_host_ns,
            window_start_sample=window[0],
            window_end_sample=window[1],
            coverage=coverage,
            units=self._units,
            count=count,
            baseline=baseline,
            rate_hz=(count - baseline) / length_s,
        )

    def _missing(self, shown: Presented, reason: str) -> Response:
        nan = np.full(len(self._units), np.nan)
        self.responses += 1
        return Response(
            presentation=shown.presentation,
            proposal=shown.proposal,
            slot=shown.slot,
            role=shown.role,
            stimulus_id=shown.stimulus_id,
            source=self._source,
            usable=False,
            reason=reason,
            onset_source="none",
            onset_sample=None,
            onset_host_ns=None,
            onset_uncertainty_ns=None,
            onset_host_uncertainty_ns=None,
            flip_to_edge_ns=None,
            coverage=0.0,
            units=self._units,
            count=nan,
            baseline=nan,
            rate_hz=nan,
        )
