"""Responses: a pure fold over the journal that measures what the units did after each image.

Called by the recorder for every journalled entry, in order; emits one Response per Presented, and Faults. It reads no
clock and does no I/O, so that replay and offline recomputation run the same code. A window closes on journalled data
(the source's watermark), a silent source on journalled Ticks. Missing or partial data is scored missing, never zero.
"""

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from difflib import get_close_matches

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
    TrialIntent,
)

KEEP_S = 20.0
LAG_POOL = 51
# Faults in which the rig itself names presentations that it announced and did not show.
NEVER_SHOWN = frozenset({"trial cut short", "window lost", "rig restarted"})
UNSEEN_AFTER = 10  # responses after which a unit without a single spike is a fault
F64 = npt.NDArray[np.float64]


@dataclass
class _Device:
    """What the scored source has delivered in its present run."""

    run: int = -1
    rate_hz: float = 0.0
    watermark: int | None = None
    kept_from: int = 0  # what came before this sample was never there, or is forgotten
    spikes: dict[str, list[int]] = field(default_factory=dict)
    edges: list[int] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)


def _mean_of_known(rows: F64) -> F64:
    """Return the mean over rows (row, unit), leaving out what is NaN; NaN where a unit has no row."""
    known = np.isfinite(rows)
    total = np.where(known, rows, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


class WindowFold:
    """Opens a window for each Presented and closes it when its data are complete."""

    def __init__(self, config: Config) -> None:
        """Score `config.responses.units` on the first source of the config."""
        self._config = config
        self._source = config.neural.name
        self._line = config.neural.photodiode_line if config.display.patch is not None else None
        self._units = config.responses.units
        self._device = _Device()
        self._clockmap = ClockMap()
        self._open: deque[Presented] = deque()
        self._announced: set[int] = set()  # presentations of a TrialIntent that nothing has accounted for yet
        self._lags_ns: deque[int] = deque(maxlen=LAG_POOL)
        self._early: deque[F64] = deque(maxlen=config.responses.baseline.pool)
        self._seen: set[str] = set()  # units whose spikes have ever come
        self._unseen_said = False
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
            self._announced.discard(document.presentation)
            self._open.append(document)
            return self._close_ready()
        if isinstance(document, TrialIntent):
            self._announced.update(document.presentations)
        elif isinstance(document, Fault):
            if document.what in NEVER_SHOWN:
                self._announced.difference_update(document.presentations)
        elif isinstance(document, Tick):
            return self._close_all() if document.closing else self._time_out(document.tick_host_ns)
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
            self._clockmap.add(document.device_sample, document.pair_host_ns, document.run)
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
        if first:
            return []
        return self._give_up("acquisition restarted before its data were in")

    def _give_up(self, reason: str) -> list[Document]:
        out: list[Document] = [self._missing(shown, reason) for shown in self._open]
        self._open.clear()
        return out

    def _close_all(self) -> list[Document]:
        """Account for everything at the end of the session: no presentation stays without a response or a word."""
        out = self._give_up("the session was closed before its data were in")
        if self._announced:
            lost = tuple(sorted(self._announced))
            self._announced.clear()
            detail = f"{len(lost)} announced presentations have no record of their flips; they may have been shown"
            done = "the session is closed; nothing is scored for them"
            out.append(Fault(what="announced and not recorded", detail=detail, done=done, presentations=lost))
        return out

    def _add_spikes(self, block: SpikeBlock) -> None:
        self._seen.update(block.units)
        for k, unit in enumerate(block.units):
            if unit in self._units:
                samples = self._device.spikes.setdefault(unit, [])
                samples.extend(block.sample[block.unit == k].tolist())
                samples.sort()  # nearly sorted already: spikes come late and out of order

    def _forget(self) -> None:
        """Drop data that no open or future window can need; what would need them all the same is not covered."""
        device = self._device
        if device.watermark is None or device.rate_hz <= 0:
            return
        horizon = device.watermark - int(KEEP_S * device.rate_hz)
        if self._open:
            oldest = self._clockmap.to_sample(self._open[0].onset_flip_host_ns)
            horizon = min(horizon, int(oldest[0] - 2 * device.rate_hz)) if oldest is not None else horizon
        if horizon <= device.kept_from:
            return
        device.kept_from = horizon
        for samples in device.spikes.values():
            del samples[: bisect_left(samples, horizon)]
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
            shown = self._open[0]
            due = shown.onset_flip_host_ns + int((settings.window_s[1] + settings.timeout_s) * 1e9)
            if now_ns < due:
                break
            self._open.popleft()
            out.append(self._missing(shown, f"no complete data from {self._source} within {settings.timeout_s} s"))
        return out

    def _try_close(self, shown: Presented) -> list[Document] | None:
        """Return the Response (and Faults) of a presentation, None while its data are incomplete."""
        device = self._device
        if not shown.complete:
            return [self._missing(shown, "presentation was cut short")]
        if device.watermark is None or device.rate_hz <= 0:
            return None
        patch_ns = self._scanout_ns(shown.patch_row_px)
        predicted = self._clockmap.to_sample(shown.onset_flip_host_ns + self._lag_ns() + patch_ns)
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
        out.append(self._score(shown, onset, uncertainty_ns, source, edge))
        return [*out, *self._unseen()]

    def _unseen(self) -> list[Document]:
        """Say once which scored units the source has never sent: most often a name that is not quite right."""
        missing = [u for u in self._units if u not in self._seen]
        if not missing or self._unseen_said or self.responses < UNSEEN_AFTER:
            return []
        self._unseen_said = True
        near = {u: get_close_matches(u, sorted(self._seen), 1) for u in missing}
        sent = ", ".join(sorted(self._seen)[:30]) or "none"
        hints = ", ".join(f"{u!r}" + (f" (perhaps {m[0]!r})" if m else "") for u, m in near.items())
        return [
            Fault(
                what="unit never seen",
                detail=f"{self._source} sent no spike of {hints}; it sends {sent}",
                done="these units are scored missing, not zero, until their first spike; correct responses.units",
            )
        ]

    def _lag_ns(self) -> int:
        """Return the lag from flip stamp to light in the top row: measured where edges were seen, else the config's."""
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
        # Image and patch are lit when the scan-out reaches their rows; `predicted` is the time of the patch.
        rate = self._device.rate_hz
        patch_ns = self._scanout_ns(shown.patch_row_px)
        shift = round((self._scanout_ns(shown.image_row_px) - patch_ns) * 1e-9 * rate)
        if edge is None:
            uncertainty_ns = predicted[1] + 0.5e9 / self._config.display.refresh_hz
            return round(predicted[0]) + shift, int(uncertainty_ns), "flip"
        mapped = self._clockmap.to_host_ns(edge)
        if mapped is not None:
            self._lags_ns.append(mapped[0] - shown.onset_flip_host_ns - patch_ns)
        return edge + shift, int(1e9 / rate) + 1, "photodiode"

    def _scanout_ns(self, row_px: float) -> int:
        display = self._config.display
        return round(display.scanout_s * row_px / display.size_px[1] * 1e9)

    # --- scoring ------------------------------------------------------------------------------------------------------

    def _counts(self, start: int, end: int) -> F64:
        counts = []
        for unit in self._units:
            samples = self._device.spikes.get(unit, [])
            number = bisect_left(samples, end) - bisect_left(samples, start)
            counts.append(number if unit in self._seen else np.nan)
        return np.array(counts, dtype=np.float64)

    def _covered(self, spans: list[tuple[int, int]]) -> float:
        """Fraction of the spans (start, end) that was delivered: no gap in it, neither forgotten nor yet to come."""
        total = sum(end - start for start, end in spans)
        marks = np.zeros(total, dtype=bool)
        at = 0
        for start, end in spans:
            for first, last in self._holes(start, end):
                lo, hi = max(first, start), min(last, end)
                if hi > lo:
                    marks[at + lo - start : at + hi - start] = True
            at += end - start
        return 1.0 - float(marks.sum()) / max(total, 1)

    def _holes(self, start: int, end: int) -> list[tuple[int, int]]:
        device = self._device
        delivered_to = end if device.watermark is None else device.watermark
        gaps = [(g.first_sample, g.end_sample) for g in device.gaps]
        return [(start, device.kept_from), (delivered_to, end), *gaps]

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
                early = _mean_of_known(np.array(self._early))
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
