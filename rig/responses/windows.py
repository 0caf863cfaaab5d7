"""Responses: a pure fold over the journal that measures what the units did after each image.

Called by the recorder for every journalled entry, in order; emits one Response per Presented, and Faults. It reads no
clock and does no I/O, so that replay and offline recomputation run the same code. A window closes on journalled data
(when the source's watermark says that its values are final, and the behaviour is there to judge by), a silent source
on journalled Ticks. Missing or partial data is scored missing, never zero.

A document that cannot be taken is left out and said, here and not in the recorder, so that a replay leaves it out too;
a presentation that cannot be scored is missing. Host time never crosses a reboot: the recorder's ProcessStarted tells.

Onsets are found in `rig.responses.onset`, data kept in `rig.responses.device_data`, units watched in
`rig.responses.unit_watch`, behaviour judged in `rig.responses.gates`, baselines subtracted in `rig.responses.baseline`,
late data named in `rig.responses.late_data`.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rig.clocks.clockmap import ClockMap
from rig.config.session import Config
from rig.messages import (
    BarcodeSent,
    ClockSample,
    Continuity,
    Document,
    EdgeBlock,
    Entry,
    Fault,
    PhaseEnded,
    Presented,
    ProcessStarted,
    Proposal,
    SpikeBlock,
    Tick,
    TraceBlock,
    TrialIntent,
    UnitList,
    kind_of,
)
from rig.responses.baseline import Baselines
from rig.responses.device_data import DeviceData
from rig.responses.fault_batch import FaultBatch
from rig.responses.gates import Gates, Judged
from rig.responses.late_data import ClosedWindows
from rig.responses.onset import Onsets
from rig.responses.scored import Measured, measured, missing, scored, spans_of
from rig.responses.spikes_kept import SpikesKept
from rig.responses.sync_line import SyncLine
from rig.responses.unit_watch import UnitWatch
from rig.timing import patience_s, window_end_s

KEEP_S = 20.0
# Faults in which the rig names presentations that it announced and, as far as it knows, did not show.
NEVER_SHOWN = frozenset({"trial cut short", "window lost", "rig restarted"})
RECORDER = "recorder"  # whose boot is that of the host clock; a model server may live on another machine
OfDevice = SpikeBlock | TraceBlock | EdgeBlock | UnitList | ClockSample | Continuity


@dataclass
class _Open:
    """A presentation whose response is not closed yet."""

    shown: Presented
    known_ns: int  # when the recorder had it, host clock
    window_s: tuple[float, float]  # in which it is measured
    measured: Measured | None = None


class WindowFold:
    """Opens a window for each Presented and closes it when its data are complete."""

    def __init__(self, config: Config) -> None:
        """Score `config.responses.units` on the first source of the config."""
        self._config = config
        self._source = config.neural.name
        self._units = config.responses.units
        self._faults = FaultBatch()
        self._watch = UnitWatch(self._source, self._units, self._faults)
        self._out: list[Document] = []  # what the entry that is being taken causes
        self._boot: str | None = None
        self._recorder_ns = 0  # when the recorder was last started, host clock
        self._begin_clocks()
        self._open: deque[_Open] = deque()
        self._announced: set[int] = set()  # presentations of a TrialIntent that nothing has accounted for yet
        self._baselines = Baselines(config.responses.baseline)
        settings = config.responses
        self._window_s = settings.window_s  # until the end of a phase says another one (docs/decisions/0014)
        self._windows = {"responses.window_s": settings.window_s}
        if settings.baseline.kind != "none":
            self._windows["responses.baseline.window_s"] = settings.baseline.window_s
        self.responses = 0
        self.usable = 0

    def _begin_clocks(self) -> None:
        """Begin without any clock map, and without anything that is placed in time."""
        line = self._config.neural.photodiode_line if self._config.display.patch is not None else None
        self._clockmap = ClockMap()
        self._onsets = Onsets(self._config, self._source, line, self._faults)
        self._gates = Gates(self._config, self._faults)
        self._sync = SyncLine(self._config, self._source, self._faults)
        self._closed = ClosedWindows(self._source, self._faults)
        self._device = self._new_device(-1)
        self._too_short = ""  # why no window can be scored, once it is known

    @property
    def waiting(self) -> int:
        """Number of presentations whose data are still waited for."""
        return len(self._open)

    def _new_device(self, run: int) -> DeviceData:
        return DeviceData(run, self._config.neural, self._units, self._watch.seen)

    # --- what comes in ------------------------------------------------------------------------------------------------

    def apply(self, entry: Entry) -> list[Document]:
        """Take one entry; return the documents it causes. One that cannot be taken is left out, with a Fault."""
        document = entry.document
        where = f"entry {entry.envelope.seq} ({kind_of(document)} of {entry.envelope.sender})"
        self._faults.guarded(where, lambda: self._take(entry))
        out, self._out = self._out, []
        return [*out, *self._faults.due(everything=isinstance(document, Tick) and document.closing)]

    def _take(self, entry: Entry) -> None:
        document = entry.document
        if isinstance(document, Presented):
            self._announced.discard(document.presentation)
            self._open.append(_Open(document, entry.envelope.receipt_host_ns, self._window_s))
            self._onsets.shown(document)
            self._watch.shown()
            self._close_ready()
        elif isinstance(document, TrialIntent):
            self._announced.update(document.presentations)
            self._onsets.announced(document)
        elif isinstance(document, Proposal):
            self._out += self._baselines.planned(document)
        elif isinstance(document, PhaseEnded):
            self._window_s = document.window_s or self._window_s
        elif isinstance(document, BarcodeSent):
            self._sync.sent(document)
        elif isinstance(document, Fault):
            if document.what in NEVER_SHOWN:
                self._announced.difference_update(document.presentations)
            if document.what in NEVER_SHOWN - {"rig restarted"}:  # nobody knows what was on the screen at a death
                self._onsets.accounted(document.presentations)
        elif isinstance(document, ProcessStarted):
            if entry.envelope.sender == RECORDER:
                self._new_boot(document.boot_id)
                self._recorder_ns = entry.envelope.receipt_host_ns
        elif isinstance(document, Tick):
            self._close_all() if document.closing else self._tick(document.tick_host_ns)
        elif isinstance(document, OfDevice) and document.source == self._source:
            self._take_scored(document)
        else:
            self._gates.take(document)
            if isinstance(document, Continuity):
                self._close_ready()

    def _new_boot(self, boot_id: str) -> None:
        """Begin anew where the machine was restarted: the host clock counts from another zero."""
        before, self._boot = self._boot, boot_id
        if before in (None, boot_id):
            return
        waited = len(self._open)
        self._give_up("the computer was restarted before its data were in")
        self._judge_edges(everything=True)
        self._begin_clocks()
        self._watch.new_run()
        self._faults.new_boot()
        detail = f"{waited} presentations waited for their data"
        done = "they are not usable; clocks are mapped anew, and no time before is compared with one after"
        self._faults.add("computer restarted", detail, done)

    def _take_scored(self, document: OfDevice) -> None:
        """Take a document of the scored source."""
        device = self._device
        if document.run < device.run:
            return  # a re-sent block of a run that is over
        if document.run > device.run:
            self._new_run(document.run)
            device = self._device
        if isinstance(document, UnitList | SpikeBlock | TraceBlock):
            self._add(document)
        elif isinstance(document, EdgeBlock):
            self._onsets.take(document)
            self._sync.take(document)
        elif isinstance(document, ClockSample):
            self._clockmap.take(document)
        else:
            self._say(device.complete(document))
            self._clockmap.nominal_hz = device.rate_hz or None
            self._look_at_windows()
            self._out += self._sync.pairs(device.run, device.watermark, device.rate_hz)
            self._close_ready()
            if device.watermark is not None:
                self._judge_edges(everything=False)
            self._forget()

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

    def _new_run(self, run: int) -> None:
        if self._device.run >= 0:
            self._give_up("acquisition restarted before its data were in")
            self._judge_edges(everything=True)
        # The old run's map says nothing of the new run's samples.
        self._clockmap = ClockMap()
        self._onsets.new_run()
        self._sync.new_run()
        self._watch.new_run()
        self._device, self._too_short = self._new_device(run), ""
        self._closed = ClosedWindows(self._source, self._faults)

    def _judge_edges(self, everything: bool) -> None:
        rate_hz, watermark = self._device.rate_hz, self._device.watermark or 0
        judge = self._onsets.judge
        if not self._faults.guarded("edges", lambda: judge(self._clockmap, rate_hz, watermark, everything)):
            self._onsets.new_run()  # without the edges that it cannot judge

    def _give_up(self, reason: str) -> None:
        while self._open:
            self._missing(self._open.popleft().shown, reason)

    def _close_all(self) -> None:
        """Account for everything at the end of the session: no presentation stays without a response or a word."""
        self._give_up("the session was closed before its data were in")
        self._out += self._baselines.release()
        if self._announced:
            lost = tuple(sorted(self._announced))
            self._announced.clear()
            detail = f"{len(lost)} announced presentations have no record of their flips; they may have been shown"
            done = "no response is made up for them; their slots are shown again if the session goes on"
            self._out.append(Fault(what="announced and not recorded", detail=detail, done=done, presentations=lost))
        self._judge_edges(everything=True)

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

    def _tick(self, now_host_ns: int) -> None:
        """Let time pass: what is overdue is scored missing, and what is watched over is looked at."""
        self._faults.tick(now_host_ns)
        self._faults.guarded("the watch over units", lambda: self._watch.look(self._device))
        warnings = [(self._source, *w) for w in self._clockmap.warnings()]
        for source, what, detail in [*warnings, *self._gates.clock_warnings()]:
            self._faults.add(what, f"{source}: {detail}", "the clock map goes on; its uncertainty states what is known")
        while self._open:
            first = self._open[0]
            # While the recorder is away, peers keep what they have to say: their time begins when it is back.
            since_ns = max(first.shown.onset_flip_host_ns, first.known_ns, self._recorder_ns)
            if now_host_ns < since_ns + int(patience_s(self._config, first.window_s) * 1e9):
                break
            one = self._open.popleft()
            self._or_missing(one.shown, lambda one=one: self._overdue(one))  # type: ignore[misc]
            self._close_ready()

    def _or_missing(self, shown: Presented, close: Callable[[], None]) -> None:
        """Close a presentation; one that cannot be scored is missing, and the next ones go on."""
        before = self.responses
        if not self._faults.guarded(f"presentation {shown.presentation}", close) and self.responses == before:
            self._missing(shown, "it could not be scored: see the fault")

    def _overdue(self, one: _Open) -> None:
        """Close a presentation whose data did not come in time."""
        measured = one.measured
        if measured is not None:
            self._response(one.shown, measured, self._judged(one, measured, overdue=True) or Judged("", {}))
            return
        predicted, rate = self._onsets.predicted(one.shown, self._clockmap), self._device.rate_hz
        if predicted is not None and rate > 0:
            spans = spans_of(self._config.responses.baseline, one.window_s, round(predicted[0]), rate)
            self._closed.add(one.shown.presentation, spans, usable=False)
        waited_s = self._config.responses.timeout_s
        self._missing(one.shown, f"no complete data from {self._source} within {waited_s} s")

    def _close_ready(self) -> None:
        while self._open:
            one, before = self._open[0], self.responses
            self._or_missing(one.shown, lambda one=one: self._close(one))  # type: ignore[misc]
            if self.responses == before:
                break
            self._open.popleft()

    def _close(self, one: _Open) -> None:
        """Close a presentation if its data are final."""
        if not one.shown.complete:
            refused = one.shown.refused
            why = f"its frame was refused: {refused}" if refused else "presentation was cut short"
            self._missing(one.shown, why)
            return
        one.measured = one.measured or self._measure(one.shown, one.window_s)
        judged = None if one.measured is None else self._judged(one, one.measured)
        if one.measured is not None and judged is not None:
            self._response(one.shown, one.measured, judged)
            self._watch.unseen(self.responses)

    def _judged(self, one: _Open, measured: Measured, overdue: bool = False) -> Judged | None:
        """Return what the animal did from onset to window end; None while that is not known."""
        if measured.onset_host is None:
            return Judged("the onset could not be placed on the host's clock", {})
        start = measured.onset_host[0]
        return self._gates.judge(start, start + int(one.window_s[1] * 1e9), overdue)

    # --- scoring ------------------------------------------------------------------------------------------------------

    def _measure(self, shown: Presented, window_s: tuple[float, float]) -> Measured | None:
        """Measure a presentation; None while its data are not final."""
        device, settings = self._device, self._config.responses
        predicted, through, rate = self._onsets.predicted(shown, self._clockmap), device.final_through, device.rate_hz
        if predicted is None or through is None:
            return None
        tolerance = int(settings.edge_tolerance_s * rate)
        if through < predicted[0] + tolerance + window_end_s(self._config, window_s) * rate:
            return None
        onset = self._onsets.onset(shown, self._clockmap, rate)
        return measured(shown, onset, device, self._clockmap, settings, window_s, self._too_short)

    def _response(self, shown: Presented, measured: Measured, judged: Judged) -> None:
        """Close a presentation that was measured; responses that are complete by that go out."""
        device, (start, end) = self._device, measured.window
        response = scored(shown, measured, judged, self._source, device.run, self._units)
        self.responses += 1
        self.usable += response.usable
        self._closed.add(shown.presentation, measured.spans, response.usable)
        length_s = 1.0 if measured.measure == "dff" else (end - start) / device.rate_hz
        self._out += self._baselines.take(response, measured.early, length_s)

    def _missing(self, shown: Presented, reason: str) -> None:
        self.responses += 1
        measure = self._device.kept.measure
        self._out += self._baselines.take(missing(shown, reason, self._source, self._units, measure))
