"""Responses: a pure fold over the journal that measures what the units did after each image.

Called by the recorder for every journalled entry, in order; emits one Response per Presented, and Faults. It reads no
clock and does no I/O, so that replay and offline recomputation run the same code. A window closes on journalled data
(when the source's watermark says that its values are final, and the behaviour is there to judge by), a silent source
on journalled Ticks. Missing or partial data is scored missing, never zero.

Onsets are found in `rig.responses.onset`, data kept in `rig.responses.device_data`, units watched in
`rig.responses.unit_watch`, behaviour judged in `rig.responses.gates`, baselines subtracted in `rig.responses.baseline`,
late data named in `rig.responses.late_data`.
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rig.clocks.clockmap import ClockMap
from rig.config import Config
from rig.messages import (
    ClockSample,
    Continuity,
    Document,
    EdgeBlock,
    Entry,
    Fault,
    Presented,
    Proposal,
    Response,
    SpikeBlock,
    Tick,
    TraceBlock,
    TrialIntent,
    UnitList,
)
from rig.responses.baseline import Baselines
from rig.responses.device_data import DeviceData, Span
from rig.responses.fault_batch import FaultBatch
from rig.responses.gates import Gates, Judged
from rig.responses.late_data import ClosedWindows
from rig.responses.onset import Onset, Onsets
from rig.responses.spikes_kept import SpikesKept
from rig.responses.unit_watch import UnitWatch
from rig.timing import patience_s, window_end_s

KEEP_S = 20.0
# Faults in which the rig itself names presentations that it announced and did not show.
NEVER_SHOWN = frozenset({"trial cut short", "window lost", "rig restarted"})
F64 = npt.NDArray[np.float64]
OfDevice = SpikeBlock | TraceBlock | EdgeBlock | UnitList | ClockSample | Continuity


@dataclass(frozen=True)
class _Measured:
    """What the scored source says about one presentation; whether it counts is for the gates to say."""

    onset: Onset
    onset_host: tuple[int, int] | None  # ns, bound on its error
    flip_to_edge_ns: int | None
    window: Span
    spans: tuple[Span, ...]  # window, and baseline window if there is one
    coverage: float
    lost_messages: int
    measure: Literal["spikes", "counts", "deconvolved", "dff"]
    count: F64
    early: F64 | None  # what the baseline window says `count` should be
    reason: str


@dataclass
class _Open:
    """A presentation whose response is not closed yet."""

    shown: Presented
    measured: _Measured | None = None


class WindowFold:
    """Opens a window for each Presented and closes it when its data are complete."""

    def __init__(self, config: Config) -> None:
        """Score `config.responses.units` on the first source of the config."""
        self._config = config
        self._source = config.neural.name
        self._units = config.responses.units
        line = config.neural.photodiode_line if config.display.patch is not None else None
        self._faults = FaultBatch()
        self._clockmap = ClockMap()
        self._watch = UnitWatch(self._source, self._units, self._faults)
        self._onsets = Onsets(config, self._source, line, self._faults)
        self._gates = Gates(config, self._faults)
        self._device = self._new_device(-1)
        self._closed = ClosedWindows(self._source, self._faults)
        self._open: deque[_Open] = deque()
        self._announced: set[int] = set()  # presentations of a TrialIntent that nothing has accounted for yet
        self._baselines = Baselines(config.responses.baseline)
        settings = config.responses
        self._windows = {"responses.window_s": settings.window_s}
        if settings.baseline.kind != "none":
            self._windows["responses.baseline.window_s"] = settings.baseline.window_s
        self._too_short = ""  # why no window can be scored, once it is known
        self.responses = 0
        self.usable = 0

    @property
    def waiting(self) -> int:
        """Number of presentations whose data are still waited for."""
        return len(self._open)

    def _new_device(self, run: int) -> DeviceData:
        return DeviceData(run, self._config.neural, self._units, self._watch.seen)

    # --- what comes in ------------------------------------------------------------------------------------------------

    def apply(self, entry: Entry) -> list[Document]:
        """Take one entry; return the documents it causes."""
        document, closing = entry.document, False
        out: list[Document] = []
        if isinstance(document, Presented):
            self._announced.discard(document.presentation)
            self._open.append(_Open(document))
            self._onsets.shown(document)
            self._watch.shown()
            out += self._close_ready()
        elif isinstance(document, TrialIntent):
            self._announced.update(document.presentations)
        elif isinstance(document, Proposal):
            out += self._baselines.planned(document)
        elif isinstance(document, Fault):
            if document.what in NEVER_SHOWN:
                self._announced.difference_update(document.presentations)
        elif isinstance(document, Tick):
            closing = document.closing
            out += self._close_all() if closing else self._tick(document.tick_host_ns)
        elif isinstance(document, OfDevice) and document.source == self._source:
            out += self._take(document)
        else:
            self._gates.take(document)
            if isinstance(document, Continuity):
                out += self._close_ready()
        return [*out, *self._faults.due(everything=closing)]

    def _take(self, document: OfDevice) -> list[Document]:
        """Take a document of the scored source."""
        device, out = self._device, list[Document]()
        if document.run < device.run:
            return []  # a re-sent block of a run that is over
        if document.run > device.run:
            out += self._new_run(document.run)
            device = self._device
        if isinstance(document, UnitList | SpikeBlock | TraceBlock):
            self._add(document)
        elif isinstance(document, EdgeBlock):
            self._onsets.take(document)
        elif isinstance(document, ClockSample):
            self._clockmap.take(document)
        else:
            self._say(device.complete(document))
            self._clockmap.nominal_hz = device.rate_hz or None
            self._look_at_windows()
            out += self._close_ready()
            if device.watermark is not None:
                self._onsets.judge(self._clockmap, device.rate_hz, device.watermark)
            self._forget()
        return out

    def _add(self, document: UnitList | SpikeBlock | TraceBlock) -> None:
        device = self._device
        if isinstance(document, UnitList):
            self._watch.listed(document)
        else:
            sample, what = document.sample, "frames or bins"
            if isinstance(document, SpikeBlock):
                self._watch.fired(document, device)
                kept, what = device.kept, "spikes of scored units"
                sample = kept.scored(document)[1] if isinstance(kept, SpikesKept) else sample[:0]
            if device.watermark is not None and (late := sample[sample < device.watermark]).size:
                self._closed.late(late, what)
        self._say(device.take(document))

    def _look_at_windows(self) -> None:
        """Say once in a run if its frames are too long for the windows."""
        if self._too_short:
            return
        self._too_short = self._device.too_short(self._windows)
        if self._too_short:
            done = "no response is usable until the windows are longer"
            self._faults.add("window too short", f"{self._source}: {self._too_short}", done)

    def _say(self, problems: list[str]) -> None:
        for problem in problems:
            done = "what it touches is scored missing, never zero"
            self._faults.add("data problem", f"{self._source}: {problem}", done)

    def _new_run(self, run: int) -> list[Document]:
        before, out = self._device, list[Document]()
        if before.run >= 0:
            out += self._give_up("acquisition restarted before its data were in")
            self._judge_edges()
        # The old run's map says nothing of the new run's samples.
        self._clockmap = ClockMap()
        self._onsets.new_run()
        self._watch.new_run()
        self._device, self._too_short = self._new_device(run), ""
        self._closed = ClosedWindows(self._source, self._faults)
        return out

    def _judge_edges(self) -> None:
        self._onsets.judge(self._clockmap, self._device.rate_hz, self._device.watermark or 0, everything=True)

    def _give_up(self, reason: str) -> list[Document]:
        out: list[Document] = [r for one in self._open for r in self._missing(one.shown, reason)]
        self._open.clear()
        return out

    def _close_all(self) -> list[Document]:
        """Account for everything at the end of the session: no presentation stays without a response or a word."""
        out = [*self._give_up("the session was closed before its data were in"), *self._baselines.release()]
        self._judge_edges()
        if self._announced:
            lost = tuple(sorted(self._announced))
            self._announced.clear()
            detail = f"{len(lost)} announced presentations have no record of their flips; they may have been shown"
            done = "the session is closed; nothing is scored for them"
            out.append(Fault(what="announced and not recorded", detail=detail, done=done, presentations=lost))
        return out

    def _forget(self) -> None:
        """Drop data that no open or future window can need; what would need them all the same is not covered."""
        device = self._device
        if device.watermark is None or device.rate_hz <= 0:
            return
        horizon = device.watermark - int(KEEP_S * device.rate_hz)
        if self._open:
            oldest = self._clockmap.to_sample(self._open[0].shown.onset_flip_host_ns)
            horizon = min(horizon, int(oldest[0] - 2 * device.rate_hz)) if oldest is not None else horizon
        device.forget(horizon)
        # Edges are judged late: when every record of a presentation must have come.
        longest = int((KEEP_S + self._config.presentation.on_s) * device.rate_hz)
        self._onsets.forget(horizon - longest, self._clockmap)
        self._closed.forget(horizon)

    # --- closing ------------------------------------------------------------------------------------------------------

    def _tick(self, now_host_ns: int) -> list[Document]:
        """Let time pass: what is overdue is scored missing, and what is watched over is looked at."""
        self._faults.tick(now_host_ns)
        self._watch.look(self._device)
        warnings = [(self._source, *w) for w in self._clockmap.warnings()]
        for source, what, detail in [*warnings, *self._gates.clock_warnings()]:
            self._faults.add(what, f"{source}: {detail}", "the clock map goes on; its uncertainty states what is known")
        out: list[Document] = []
        while self._open:
            due = self._open[0].shown.onset_flip_host_ns + int(patience_s(self._config) * 1e9)
            if now_host_ns < due:
                break
            out += [*self._overdue(self._open.popleft()), *self._close_ready()]
        return out

    def _overdue(self, one: _Open) -> list[Response]:
        """Close a presentation whose data did not come in time."""
        measured = one.measured
        if measured is not None:
            return self._response(one.shown, measured, self._judged(measured, overdue=True) or Judged("", {}))
        predicted, rate = self._onsets.predicted(one.shown, self._clockmap), self._device.rate_hz
        if predicted is not None and rate > 0:
            self._closed.add(one.shown.presentation, self._spans(round(predicted[0]), rate), usable=False)
        waited_s = self._config.responses.timeout_s
        return self._missing(one.shown, f"no complete data from {self._source} within {waited_s} s")

    def _close_ready(self) -> list[Document]:
        out: list[Document] = []
        while self._open:
            one = self._open[0]
            if not one.shown.complete:
                refused = one.shown.refused
                why = f"its frame was refused: {refused}" if refused else "presentation was cut short"
                out += self._missing(one.shown, why)
            else:
                one.measured = one.measured or self._measure(one.shown)
                judged = None if one.measured is None else self._judged(one.measured)
                if one.measured is None or judged is None:
                    break
                out += self._response(one.shown, one.measured, judged)
                self._watch.unseen(self.responses)
            self._open.popleft()
        return out

    def _judged(self, measured: _Measured, overdue: bool = False) -> Judged | None:
        """Return what the animal did from onset to window end; None while that is not known."""
        if measured.onset_host is None:
            return Judged("the onset could not be placed on the host's clock", {})
        start = measured.onset_host[0]
        return self._gates.judge(start, start + int(self._config.responses.window_s[1] * 1e9), overdue)

    # --- scoring ------------------------------------------------------------------------------------------------------

    def _spans(self, onset: int, rate_hz: float) -> tuple[Span, ...]:
        """Return the window, and the baseline window if there is one, in device samples."""
        settings = self._config.responses
        windows = [settings.window_s, *([settings.baseline.window_s] if settings.baseline.kind != "none" else [])]
        return tuple((onset + round(start * rate_hz), onset + round(end * rate_hz)) for start, end in windows)

    def _measure(self, shown: Presented) -> _Measured | None:
        """Measure a presentation; None while its data are not final."""
        device, settings = self._device, self._config.responses
        predicted, through, rate = self._onsets.predicted(shown, self._clockmap), device.final_through, device.rate_hz
        if predicted is None or through is None or device.watermark is None:
            return None
        tolerance = int(settings.edge_tolerance_s * rate)
        if through < predicted[0] + tolerance + window_end_s(self._config) * rate:
            return None
        onset = self._onsets.onset(shown, self._clockmap, rate)
        spans = self._spans(onset.sample, rate)
        coverage = device.covered(spans)
        count, early = device.kept.values(*spans[0]), None
        if len(spans) > 1:
            (start, end), (base_start, base_end) = spans
            early = device.kept.values(base_start, base_end)
            if device.kept.measure != "dff":  # a sum; dF/F is a mean, whatever the window's length
                early = early * ((end - start) / (base_end - base_start))
        reason = self._too_short
        if not reason and coverage < settings.min_coverage:
            reason = f"only {coverage:.1%} of its windows is covered by complete data"
        elif not reason and onset.uncertainty_ns > settings.max_onset_uncertainty_s * 1e9:
            known_ms = onset.uncertainty_ns / 1e6
            reason = f"its onset is known to {known_ms:.0f} ms only (responses.max_onset_uncertainty_s)"
        elif not reason:
            missing = [s for s, v in zip(spans, (count, early), strict=False) if v is not None and np.isnan(v).all()]
            reason = device.why_missing(missing[0]) if missing else ""
        edge_host = self._clockmap.to_host_ns(onset.edge) if onset.edge is not None else None
        return _Measured(
            onset=onset,
            onset_host=self._clockmap.to_host_ns(onset.sample),
            flip_to_edge_ns=None if edge_host is None else edge_host[0] - shown.onset_flip_host_ns,
            window=spans[0],
            spans=spans,
            coverage=coverage,
            lost_messages=device.lost_messages(spans),
            measure=device.kept.measure,
            count=count,
            early=early,
            reason=reason,
        )

    def _response(self, shown: Presented, measured: _Measured, judged: Judged) -> list[Response]:
        """Close a presentation; return the responses that are complete by that."""
        reason = "; ".join(filter(None, (measured.reason, judged.reason)))
        rate_hz, (start, end) = self._device.rate_hz, measured.window
        nan = np.full(len(self._units), np.nan)
        length_s = 1.0 if measured.measure == "dff" else (end - start) / rate_hz
        self.responses += 1
        self.usable += not reason
        self._closed.add(shown.presentation, measured.spans, usable=not reason)
        host = measured.onset_host
        response = Response(
            presentation=shown.presentation,
            proposal=shown.proposal,
            slot=shown.slot,
            role=shown.role,
            stimulus_id=shown.stimulus_id,
            source=self._source,
            run=self._device.run,
            usable=not reason,
            reason=reason,
            onset_source=measured.onset.source,
            onset_sample=measured.onset.sample,
            onset_host_ns=None if host is None else host[0],
            onset_uncertainty_ns=measured.onset.uncertainty_ns,
            onset_host_uncertainty_ns=None if host is None else host[1],
            flip_to_edge_ns=measured.flip_to_edge_ns,
            window_start_sample=start,
            window_end_sample=end,
            coverage=measured.coverage,
            lost_messages=measured.lost_messages,
            measure=measured.measure,
            behaviour=judged.behaviour,
            units=self._units,
            count=nan if reason else measured.count,
            baseline=nan,
            rate_hz=nan,
        )
        return self._baselines.take(response, measured.early, length_s)

    def _missing(self, shown: Presented, reason: str) -> list[Response]:
        nan = np.full(len(self._units), np.nan)
        self.responses += 1
        response = Response(
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
            measure=self._device.kept.measure,
            units=self._units,
            count=nan,
            baseline=nan,
            rate_hz=nan,
        )
        return self._baselines.take(response)
