"""A session of any length in a fraction of its time, for benches of what reads journals: replay, view, export.

This is a simulation without screen, sockets and processes: nothing in the journal was shown to anybody. Everything
that decides is the real code: the programme that plans trials and makes frames, the recorder's response windows, the
model server's fold and its work; the journal holds the documents that they would have left. Made up are only time, the
neurons (rates of a given population, Poisson spikes), and one device: 40 blocks and 40 Continuity a second, 4 clock
pairs a second, photodiode edges, on a clock that drifts.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rig.clock import FakeClock
from rig.config.field import field_rect, in_field
from rig.config.session import Config
from rig.display.frames import Made
from rig.display.places import places
from rig.display.programme import WANTS, Programme
from rig.display.trial import Showing, TrialPlan
from rig.encoding import encode, encode_entry
from rig.messages import (
    ClockSample,
    Continuity,
    Document,
    EdgeBlock,
    Entry,
    Envelope,
    Presented,
    SessionStop,
    SpikeBlock,
    StopRequested,
    Tick,
    TrialIntent,
    kind_of,
)
from rig.provenance import process_started, session_start
from rig.recording.journal import JournalWriter
from rig.replay.frames import frame_maker
from rig.replay.model_side import LiveFold, Neurons
from rig.responses.windows import WindowFold
from stimuli.geometry import Rect

F64 = npt.NDArray[np.float64]
PERIOD_NS = 25_000_000
STEPS = 5  # of constant rate in a period
WORK_NS = 120_000_000  # from an order of the model server's fold to its WorkDone
LIGHT_NS = 9_000_000  # from the flip stamp to the photodiode's edge
LATENCY_NS = 50_000_000  # from light to firing rate
RATE_HZ, PPM = 30_000.0, 40.0
START_NS = 5_000_000_000_000
FIRST_IMAGE_NS = 2_000_000_000  # after the start: the clock map is known by then
DRAIN_NS = 3_000_000_000
FRAMES_KNOWN = 500


@dataclass
class _Line:
    """The rig's end of the bus."""

    session: "LongSession"
    process: str = "rig-1"
    full: str = ""  # the recorder always has room

    def send(self, document: Document) -> None:
        self.session.append("rig", document)


@dataclass(order=True)
class _Due:
    at_ns: int
    order: int
    act: Callable[[], None] = field(compare=False)


class LongSession:
    """Makes one session; `run` writes its journal.

    Parameters
    ----------
    folder
        New session folder; `config.yaml` and `session.journal` are written there.
    config, text
        The config and its verbatim text.
    fold, wants
        A fresh model fold, and the kinds of documents that it takes.
    neurons
        The population that answers; the scored units must be among its units.
    seed
        Of the spikes and the delays.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        text: str,
        fold: LiveFold,
        wants: frozenset[str],
        neurons: Neurons,
        seed: int,
    ) -> None:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        self.path = folder / "session.journal"
        self._folder, self._config, self._text = folder, config, text
        self._model, self._wants, self._neurons = fold, wants, neurons
        self._rng = np.random.default_rng(seed)
        self._clock = FakeClock(START_NS)
        self._journal = JournalWriter(self.path, folder.name)
        self._windows = WindowFold(config)
        self._counts: dict[str, int] = {}
        self._due: list[_Due] = []
        self._for_model: list[Entry] = []
        self._submitted = -1
        where = places(config)
        self._patch = where.patch
        self._frames = frame_maker(config)
        rhythm = config.presentation
        self._programme = Programme(rhythm, where, self._frames, _Line(self), self._clock)
        self._busy_until_ns = START_NS + FIRST_IMAGE_NS
        self._source = config.neural.name
        self._messages = 0
        self._known: dict[tuple[str, Rect], F64] = {}  # rates (unit,) of frames lately shown, and where
        self._field = field_rect(config)
        self._grey = self._rates(self._frames.grey)
        self._retina: list[tuple[int, F64]] = [(START_NS, self._grey)]  # from which host time on, which rates
        self._edges: list[tuple[int, int]] = []  # sample, state: not sent yet

    # --- the recorder -------------------------------------------------------------------------------------------------

    def append(self, sender: str, document: Document, cause: tuple[int, int] | None = None) -> None:
        """Journal a document as the recorder would, with all that it causes there."""
        self._counts[sender] = self._counts.get(sender, 0) + 1
        seq = self._journal.last_seq + 1
        envelope = Envelope(
            seq=seq,
            receipt_host_ns=self._clock.now_ns(),
            sender=sender,
            process=f"{sender}-1",
            sender_seq=self._counts[sender],
            cause_seq=None if cause is None else cause[0],
            cause_index=None if cause is None else cause[1],
        )
        self._journal.append(seq, encode_entry(envelope, encode(document)))
        entry = Entry(envelope, document)
        kind = kind_of(document)
        if kind in self._wants:
            self._for_model.append(entry)
        caused = self._windows.apply(entry)
        for index, one in enumerate(caused):
            self.append("recorder", one, (seq, index))
        if kind in WANTS:
            self._programme.take(entry)

    def run(self, minutes: float) -> Path:
        """Let `minutes` of the session pass, or less if its last phase ends before; return the journal's path."""
        clock = self._clock
        self.append("recorder", session_start(self._folder, self._config, self._text, True, clock))
        for name in ("recorder", self._source, "rig", "model"):
            self.append(name, process_started(name, clock, {"simulation": "no screen, no sockets"}))
        end_ns = START_NS + int(minutes * 60e9)
        tick_ns = START_NS
        while clock.now_ns() < end_ns and self._programme.ended is None:
            self._period(True)
            if clock.now_ns() >= tick_ns:
                tick_ns += 1_000_000_000
                self.append("recorder", Tick(tick_host_ns=clock.now_ns()))
        self._finish(tick_ns)
        return self.path

    def _finish(self, tick_ns: int) -> None:
        """Show the trial that is announced to its end, let the last responses come, and close."""
        clock = self._clock
        drained_ns = max(clock.now_ns(), self._busy_until_ns) + DRAIN_NS
        self.append("rig", StopRequested(reason=self._programme.ended or "the time was over"))
        while clock.now_ns() < drained_ns:
            self._period(False)
            if clock.now_ns() >= tick_ns:
                tick_ns += 1_000_000_000
                self.append("recorder", Tick(tick_host_ns=clock.now_ns()))
        self.append("recorder", Tick(tick_host_ns=clock.now_ns(), closing=True))
        windows = self._windows
        stop = SessionStop(
            reason=self._programme.ended or "the time was over", presentations=windows.responses,
            responses=windows.responses, usable=windows.usable, faults=0,
        )  # fmt: skip
        self.append("recorder", stop)
        self._journal.close()

    def _period(self, showing: bool) -> None:
        """Let 25 ms pass: the device, the model server, the rig."""
        clock = self._clock
        now_ns = clock.now_ns()
        self._deliver(now_ns, now_ns + PERIOD_NS)
        clock.advance_ns(PERIOD_NS)
        while self._due and self._due[0].at_ns <= clock.now_ns():
            heapq.heappop(self._due).act()
        self._think()
        if showing and clock.now_ns() >= self._busy_until_ns and self._programme.caught_up:
            plan = self._programme.planner.next_trial() or self._programme.fall_back()
            if plan is not None:
                self._show(plan)

    def _at(self, at_ns: int, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, _Due(at_ns, len(self._due) + self._journal.last_seq * 1000, act))

    # --- the model server ---------------------------------------------------------------------------------------------

    def _think(self) -> None:
        """Hand the model's fold what it wants, and do the work that it asks for."""
        entries, self._for_model = self._for_model, []
        for entry in entries:
            for index, document in enumerate(self._model.handle(entry)):
                self.append("model", document, (entry.envelope.seq, index))
            self._work()

    def _work(self) -> None:
        work = self._model.work
        if work is None or self._submitted == self._model.work_number:
            return
        self._submitted = self._model.work_number
        while not work.step():
            pass
        done, cause = self._model.work_done(), self._model.work_cause
        self._at(self._clock.now_ns() + WORK_NS, lambda: self.append("model", done, cause))

    # --- the rig ------------------------------------------------------------------------------------------------------

    def _show(self, plan: TrialPlan) -> None:
        """Announce a trial and plan all that its images will cause."""
        rhythm, now_ns = self._config.presentation, self._clock.now_ns()
        made = [self._programme.make(one) for one in plan.images]
        for one, frame in zip(plan.images, made, strict=True):
            self._programme.say_prepared(one, frame)
        start_ns = now_ns + 60_000_000
        intent = TrialIntent(
            trial=plan.trial,
            presentations=plan.presentations,
            proposals=tuple(s.proposal.proposal for s in plan.images),
            slots=tuple(s.slot for s in plan.images),
            start_host_ns=start_ns,
        )
        self.append("rig", intent)
        period_ns = int((rhythm.on_s + rhythm.off_s) * 1e9)
        for k, (one, frame) in enumerate(zip(plan.images, made, strict=True)):
            self._image(plan, one, frame, start_ns + k * period_ns)
        self._busy_until_ns = start_ns + len(made) * period_ns + int(rhythm.inter_trial_s * 1e9)

    def _image(self, plan: TrialPlan, one: Showing, made: Made, onset_ns: int) -> None:
        offset_ns = onset_ns + int(self._config.presentation.on_s * 1e9)
        for state, at_ns, rates in ((1, onset_ns, self._rates(made)), (0, offset_ns, self._grey)):
            self._edges.append((self._sample(at_ns + LIGHT_NS), state))
            self._retina.append((at_ns + LIGHT_NS + LATENCY_NS, rates))
        frame_ns = round(1e9 / self._config.display.refresh_hz)
        flips = np.arange(onset_ns, offset_ns + frame_ns // 2, frame_ns, dtype=np.int64)
        rect, patch = made.square.rect, self._patch
        shown = Presented(
            presentation=one.presentation,
            trial=plan.trial,
            position_in_trial=one.position,
            proposal=one.proposal.proposal,
            slot=one.slot,
            role=one.role,
            stimulus_id=one.stimulus.id,
            previous_stimulus_id=one.previous,
            frame_sha256=made.sha256,
            due_host_ns=onset_ns,
            onset_flip_host_ns=onset_ns,
            offset_flip_host_ns=offset_ns,
            flips_host_ns=flips,
            late_flips=0,
            dropped_frames=0,
            image_row_px=rect.center_row,
            patch_row_px=0.0 if patch is None else patch.center_row,
            complete=not made.refused,
            refused=made.refused,
        )
        self._at(offset_ns, lambda: self.append("rig", shown))

    # --- neurons and device -------------------------------------------------------------------------------------------

    def _rates(self, made: Made) -> F64:
        """Return the rates of all units (unit,) for a frame; the same frame comes again and again."""
        known, key = self._known, (made.sha256, made.square.rect)
        if key not in known:
            seen = in_field(made.frame, made.square.rect, self._field, self._frames.background_level)
            light = (seen / np.float32(255)) ** np.float32(self._config.display.gamma)
            known[key] = self._neurons.rate_hz(light.astype(np.float32))
            if len(known) > FRAMES_KNOWN:
                known.pop(next(iter(known)))
        return known[key]

    def _sample(self, host_ns: int) -> int:
        return round((host_ns - START_NS) * 1e-9 * RATE_HZ * (1 + PPM * 1e-6)) + 1_000_000

    def _deliver(self, from_ns: int, to_ns: int) -> None:
        """Send what the device measured in a period, 2 ms after it."""
        name, first, end = self._source, self._sample(from_ns), self._sample(to_ns)
        arrival_ns = to_ns + 2_000_000
        unit, sample = self._spikes(from_ns, first, end)
        if len(sample):
            stamps = np.full(len(sample), arrival_ns, np.int64)
            block = SpikeBlock(
                source=name, run=1, units=self._neurons.units, unit=unit, sample=sample, arrival_host_ns=stamps
            )
            self.append(name, block)
        edges = [e for e in self._edges if e[0] < end]
        if edges:
            self._edges = [e for e in self._edges if e[0] >= end]
            line = self._config.neural.photodiode_line or 0
            self.append(
                name,
                EdgeBlock(
                    source=name,
                    run=1,
                    line=np.full(len(edges), line, np.uint8),
                    state=np.array([s for _, s in edges], np.uint8),
                    sample=np.array([s for s, _ in edges], np.int64),
                    arrival_host_ns=np.full(len(edges), arrival_ns, np.int64),
                ),
            )
        self._messages += 10
        if from_ns % (10 * PERIOD_NS) == START_NS % (10 * PERIOD_NS):
            delay_ns = 1_000_000 + int(self._rng.exponential(200_000.0))
            self.append(
                name, ClockSample(source=name, run=1, device_sample=float(end), pair_host_ns=to_ns + delay_ns)
            )
        self.append(
            name,
            Continuity(
                source=name, run=1, state="streaming", sample_rate_hz=RATE_HZ, watermark_sample=end,
                messages=self._messages, lost_messages=0,
            ),
        )  # fmt: skip

    def _spikes(self, from_ns: int, first: int, end: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
        """Draw the spikes of a period: unit and sample (spike,), by sample."""
        while len(self._retina) > 1 and self._retina[1][0] <= from_ns:
            self._retina.pop(0)
        step_ns = PERIOD_NS // STEPS
        rates = []
        at = 0
        for k in range(STEPS):
            while at + 1 < len(self._retina) and self._retina[at + 1][0] <= from_ns + k * step_ns:
                at += 1
            rates.append(self._retina[at][1])
        counts = self._rng.poisson(np.stack(rates) * (step_ns * 1e-9))
        step, unit = np.nonzero(counts)
        repeats = counts[step, unit]
        step, unit = np.repeat(step, repeats), np.repeat(unit, repeats)
        length = (end - first) / STEPS
        sample = first + ((step + self._rng.random(len(step))) * length).astype(np.int64)
        order = np.argsort(sample, kind="stable")
        return unit[order].astype(np.uint16), sample[order]
