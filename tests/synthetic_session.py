"""A made-up session: a deterministic, plausible sequence of journal entries. Nothing in it was ever recorded.

For tests of what is folded from a journal (the view, the report). Rates follow a made-up rule, so that an evolution
rises; clocks drift, one message is lost, one edge is missing, some flips are late, one process says a fault.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rig.config.reading import parse
from rig.config.session import Config
from rig.encoding import encode, encode_entry
from rig.messages import (
    BarcodeSent,
    BehaviourBlock,
    ClockSample,
    Continuity,
    Document,
    EdgeBlock,
    Entry,
    Envelope,
    Fault,
    Gap,
    Marker,
    ModelUpdated,
    OutputDone,
    OutputRequest,
    PhaseEnded,
    Presented,
    ProcessStarted,
    Proposal,
    Response,
    Role,
    SessionStart,
    SessionStop,
    Slot,
    SpikeBlock,
    StimulusPrepared,
    StopRequested,
    Tick,
    TraceBlock,
    TrialIntent,
    UnitList,
    WorkDone,
)
from rig.recording.journal import JournalWriter
from stimuli.bank import natural_bank
from stimuli.generators import DctGenerator
from stimuli.render import gamma_table
from stimuli.spec import BankImage, Blank, LatentImage, Stimulus

START_NS = 7_000_000_000_000
UTC_NS = 1_790_000_000_000_000_000
RATE_HZ = 30_000.0
DRIFT = 40e-6
FRAME_NS = 16_666_667
U8 = npt.NDArray[np.uint8]

EVOLVE = """\
  - agent: evolve
    unit: "E01#0"
    generations: {generations}
    generator: {{type: dct, frequencies: 6}}
"""
PRESENT = """\
  - agent: present
    images: [natural]
    count: 6
    repeats: {generations}
"""
CONFIG = """\
name: synthetic
subject: {{id: nobody, species: synthetic data, area: V0}}   # a made-up session
display: {{gamma: {gamma}}}
sources: [{{type: openephys, name: probe}}]
responses: {{units: ["E01#0", "E02#0", "E03#0"]}}
phases:
"""


@dataclass
class Synthetic:
    """Makes the entries of one session; `generations` of `candidates` for an evolution, or blocks of a fixed set."""

    kind: str = "evolve"  # evolve, present or both
    generations: int = 4
    candidates: int = 12
    size: int = 32
    gamma: float = 1.8
    seed: int = 1
    silent: bool = False  # True: the device never delivers anything
    stops: bool = True  # False: the session was killed
    drawn: dict[str, str] = field(default_factory=dict)  # stimulus -> sha256 of its frame

    def __post_init__(self) -> None:
        """Prepare the world."""
        self._rng = np.random.default_rng(self.seed)
        self._seq = 0
        self._sender_seq: dict[str, int] = {}
        self._now = START_NS
        self._run = 1
        self._messages = 0
        self._lost = 0
        self._table = gamma_table(self.gamma)
        self._generator = DctGenerator(self.size, self.size, 6, 1.0, 0.25)
        self._target = self._generator.start(1, self._rng)[0]
        self._shown = self._responses = self._usable = self._faults = self._trial = self._proposals = 0
        self._sent: set[str] = set()
        self._scores: dict[str, float] = {}
        self._bank = natural_bank()
        phases = {"evolve": EVOLVE, "present": PRESENT, "both": PRESENT + EVOLVE}[self.kind]
        self.text = (CONFIG + phases).format(gamma=self.gamma, generations=self.generations)
        self.config: Config = parse(self.text)

    def entries(self) -> Iterator[Entry]:
        """Yield all entries of the session in order."""
        yield from self._opening()
        for number, phase in enumerate(self.config.phases):
            yield from self._evolve(number) if phase.agent == "evolve" else self._present(number)
            last = number == len(self.config.phases) - 1
            yield self._entry("model", PhaseEnded(phase=number, reason="all generations were shown", last=last))
        if self.stops:
            yield self._entry("rig", StopRequested(reason="the last phase ended"))
            yield self._entry(
                "recorder",
                SessionStop(
                    reason="finished",
                    presentations=self._shown,
                    responses=self._responses,
                    usable=self._usable,
                    faults=self._faults,
                ),
            )

    def _entry(self, sender: str, document: Document) -> Entry:
        self._seq += 1
        self._now += 50_000
        self._sender_seq[sender] = self._sender_seq.get(sender, 0) + 1
        self._faults += isinstance(document, Fault)
        envelope = Envelope(
            seq=self._seq,
            receipt_host_ns=self._now,
            sender=sender,
            process=f"{sender}-1",
            sender_seq=self._sender_seq[sender],
        )
        return Entry(envelope, document)

    def _opening(self) -> Iterator[Entry]:
        yield self._entry(
            "recorder",
            SessionStart(
                simulated=True, session="2026-09-22-synthetic",
                config_yaml=self.text,
                config=self.config.model_dump(mode="json"),
                versions={"python": "3.11", "stimloop": "0.0 (synthetic)"},
                commit="0" * 40,
                dirty=False,
                start_host_ns=self._now,
                start_utc_ns=UTC_NS,
            ),
        )
        for pid, name in enumerate(("recorder", "probe", "rig", "model"), start=100):
            yield self._entry(
                name,
                ProcessStarted(
                    name=name,
                    pid=pid,
                    boot_id="synthetic boot",
                    start_host_ns=self._now,
                    start_utc_ns=UTC_NS + self._now - START_NS,
                    notes={"pacing": "by clock"} if name == "rig" else {},
                ),
            )

    # --- what is proposed

    def _evolve(self, phase: int) -> Iterator[Entry]:
        codes = self._generator.start(self.candidates, self._rng)
        best: tuple[str, npt.NDArray[np.float32]] | None = None
        for generation in range(self.generations):
            ids = [f"p{phase}-g{generation:03d}-c{k:02d}" for k in range(len(codes))]
            rows = codes if best is None else np.concatenate([codes, best[1][None]])
            stimuli = [
                Stimulus(
                    id=i, spec=LatentImage(generator=self._generator.name, row=k), parents=(best[0],) if best else ()
                )
                for k, i in enumerate(ids)
            ]
            if best is not None:
                again = LatentImage(generator=self._generator.name, row=len(codes))
                parents = next(s.parents for s in self._previous if s.id == best[0])
                stimuli.append(Stimulus(id=best[0], spec=again, parents=parents))
            stimuli += [*self._references(4), Stimulus(id="blank", spec=Blank())]
            self._previous = stimuli
            plan: list[tuple[int, Role]] = [(k, "candidate") for k in range(len(ids))]
            plan += [(len(ids), "reshow")] * (2 if best is not None else 0)
            plan += [(k, "reference") for k in range(len(stimuli) - 5, len(stimuli) - 1)] + [
                (len(stimuli) - 1, "blank")
            ]
            self._scores = {}
            yield from self._show(phase, generation, "evolve", stimuli, plan, rows)
            top = int(np.argmax([self._scores.get(i, -np.inf) for i in ids]))  # one noisy score each, as in life
            best = ids[top], codes[top]
            noise = self._generator.start(len(codes), self._rng)
            codes = (0.8 * best[1] + 0.6 * noise + 0.12 * self._target).astype(np.float32)

    def _present(self, phase: int) -> Iterator[Entry]:
        for block in range(self.generations):
            stimuli = [*self._references(6), Stimulus(id="blank", spec=Blank())]
            plan: list[tuple[int, Role]] = [
                (int(k), "blank" if stimuli[k].id == "blank" else "reference")
                for k in self._rng.permutation(len(stimuli))
            ]
            yield from self._show(phase, block, "present", stimuli, plan, np.empty((0, 1), np.float32))

    def _references(self, count: int) -> list[Stimulus]:
        return [Stimulus(id=f"ref-{n}", spec=BankImage(bank="natural", name=n)) for n in self._bank.names[:count]]

    def _show(
        self,
        phase: int,
        generation: int,
        agent: str,
        stimuli: list[Stimulus],
        plan: list[tuple[int, Role]],
        codes: npt.NDArray[np.float32],
    ) -> Iterator[Entry]:
        number = self._proposals
        self._proposals += 1
        frames = self._generator.decode(codes) if len(codes) else np.empty((0, self.size, self.size, 3), np.uint8)
        proposal = Proposal(
            proposal=number,
            phase=phase,
            agent=agent,
            generation=generation,
            model_version=f"{number:08x}",
            stimuli=tuple(stimuli),
            plan=tuple(Slot(stimulus=k, role=r) for k, r in plan),
            tail_from=max(1, len(plan) - 5),
            final=generation == self.generations - 1,
            fallback=(len(stimuli) - 2,),
            frames=frames,
            latents=codes,
        )
        yield self._entry("model", proposal)
        rates: list[float] = []
        for slot, (index, role) in enumerate(plan):
            stimulus = stimuli[index]
            if slot % 10 == 0:
                yield from self._announce(number, slot, min(10, len(plan) - slot))
            drive = self._drive(stimulus, codes)
            yield from self._present_one(proposal, slot, role, stimulus, drive)
            if role == "candidate":
                rates.append(drive)
        yield self._entry("model", WorkDone(work=number, steps=7, data_through_seq=self._seq, sha256="ab" * 32))
        report = {"reference": 30.0} | ({"best": max(rates), "mean": float(np.mean(rates))} if rates else {})
        update = ModelUpdated(phase=phase, generation=generation, model_version=f"{number + 1:08x}", report=report)
        yield self._entry("model", update)

    def _drive(self, stimulus: Stimulus, codes: npt.NDArray[np.float32]) -> float:
        """Return the made-up mean rate of the first unit in the window, spikes/s."""
        if isinstance(stimulus.spec, Blank):
            return 0.0
        if isinstance(stimulus.spec, LatentImage):
            code = codes[stimulus.spec.row]
            match = float(code @ self._target / np.linalg.norm(code) / np.linalg.norm(self._target))
            return 15 + 110 * max(match, 0.0)
        return 12.0 + 6 * self._bank.names.index(stimulus.id.removeprefix("ref-"))

    # --- what is shown

    def _announce(self, proposal: int, slot: int, count: int) -> Iterator[Entry]:
        self._now += 300_000_000
        yield self._entry("recorder", Tick(tick_host_ns=self._now))
        yield self._entry(
            "rig",
            TrialIntent(
                trial=self._trial,
                presentations=tuple(range(self._shown, self._shown + count)),
                proposals=(proposal,) * count,
                slots=tuple(range(slot, slot + count)),
                start_host_ns=self._now,
            ),
        )
        self._trial += 1

    def _frame(self, proposal: Proposal, stimulus: Stimulus) -> tuple[U8, bool]:
        """Return the frame as drawn, and whether a Proposal of this log holds it."""
        if isinstance(stimulus.spec, LatentImage):
            return self._table[proposal.frames[stimulus.spec.row]], True
        if isinstance(stimulus.spec, BankImage):
            return self._table[self._bank.image(stimulus.spec.name, self.size, self.size)], False
        return np.full((self.size, self.size, 3), 128, np.uint8), False

    def _present_one(
        self, proposal: Proposal, slot: int, role: Role, stimulus: Stimulus, drive: float
    ) -> Iterator[Entry]:
        frame, in_proposal = self._frame(proposal, stimulus)
        sha = hashlib.sha256(frame.tobytes()).hexdigest()
        self.drawn[stimulus.id] = sha
        given = frame if not in_proposal and sha not in self._sent else None
        self._sent.add(sha)
        prepared = StimulusPrepared(stimulus_id=stimulus.id, proposal=proposal.proposal, frame_sha256=sha, frame=given)
        yield self._entry("rig", prepared)
        late = 9_000_000 if self._rng.random() < 0.02 else int(self._rng.exponential(150_000))
        due = self._now + 100_000_000
        flips = due + FRAME_NS * np.arange(7, dtype=np.int64) + self._rng.integers(0, 200_000, 7)
        flips[0] = due + late
        presented = Presented(
            presentation=self._shown,
            trial=self._trial - 1,
            position_in_trial=slot % 10,
            proposal=proposal.proposal,
            slot=slot,
            role=role,
            stimulus_id=stimulus.id,
            previous_stimulus_id=None if slot % 10 == 0 else proposal.stimuli[proposal.plan[slot - 1].stimulus].id,
            frame_sha256=sha,
            due_host_ns=due,
            onset_flip_host_ns=int(flips[0]),
            offset_flip_host_ns=int(flips[-1]),
            flips_host_ns=flips,
            late_flips=int(late > FRAME_NS / 2),
            dropped_frames=0,
            image_row_px=300.0,
            patch_row_px=584.0,
            complete=True,
        )
        self._now = int(flips[-1]) + 60_000_000
        yield self._entry("rig", presented)
        yield from self._device(presented, drive)
        self._shown += 1

    # --- what the device says

    def _sample(self, host_ns: int) -> int:
        return round((host_ns - START_NS) * RATE_HZ * (1 + DRIFT) / 1e9)

    def _device(self, shown: Presented, drive: float) -> Iterator[Entry]:
        if self.silent:
            yield self._entry("recorder", self._missing(shown, "no complete data from probe within 2.0 s"))
            return
        units = self.config.responses.units
        lag = int(self._rng.normal(3_000_000, 400_000))
        onset = self._sample(shown.onset_flip_host_ns + lag)
        edge_seen = self._shown % 37 != 5
        start, end = onset + round(0.05 * RATE_HZ), onset + round(0.15 * RATE_HZ)
        samples, unit = [], []
        for k in range(len(units)):
            spontaneous = self._rng.uniform(onset - 0.05 * RATE_HZ, onset + 0.15 * RATE_HZ, self._rng.poisson(5 * 0.2))
            evoked = start + (end - start) * self._rng.beta(1.3, 3, self._rng.poisson(0.1 * drive / (k + 1)))
            both = np.sort(np.concatenate([spontaneous, evoked])).astype(np.int64)
            samples.append(both)
            unit.append(np.full(len(both), k, np.uint16))
        sample, which = np.concatenate(samples), np.concatenate(unit)
        arrival = START_NS + (sample / RATE_HZ / (1 + DRIFT) * 1e9).astype(np.int64) + 8_000_000
        self._messages += len(sample) + 8
        source, run = "probe", self._run
        if len(sample):
            block = SpikeBlock(source=source, run=run, units=units, unit=which, sample=sample, arrival_host_ns=arrival)
            yield self._entry("probe", block)
        if edge_seen:
            edges = np.array([onset, self._sample(shown.offset_flip_host_ns + lag)], np.int64)
            yield self._entry(
                "probe",
                EdgeBlock(
                    source=source,
                    run=run,
                    line=np.zeros(2, np.uint8),
                    state=np.array([1, 0], np.uint8),
                    sample=edges,
                    arrival_host_ns=np.full(2, self._now, np.int64),
                ),
            )
        gap = self._shown == 8
        self._lost += gap
        delay = int(self._rng.exponential(2_000_000)) + 1_000_000
        pair = ClockSample(
            source=source, run=run, device_sample=float(self._sample(self._now)), pair_host_ns=self._now + delay
        )
        yield self._entry("probe", pair)
        yield self._entry(
            "probe",
            Continuity(
                source=source,
                run=run,
                state="streaming",
                sample_rate_hz=RATE_HZ,
                watermark_sample=self._sample(self._now) - 100,
                messages=self._messages,
                lost_messages=self._lost,
                gaps=(Gap(first_sample=start, end_sample=start + 600, messages=1),) if gap else (),
            ),
        )
        if gap:
            lost = Fault(
                what="messages lost",
                detail="1 message of probe between samples",
                done="the response it touches is scored missing",
                since_host_ns=self._now,
                presentations=(self._shown,),
            )
            yield self._entry("probe", lost)
        if not edge_seen:
            missing = Fault(
                what="photodiode edge missing",
                detail="no rising edge on line 0 within 0.04 s of the flip",
                done="onset taken from the flip stamp and the measured lag",
                since_host_ns=shown.onset_flip_host_ns,
                presentations=(self._shown,),
            )
            yield self._entry("recorder", missing)
        count = np.array([np.sum((sample >= start) & (sample < end) & (which == k)) for k in range(len(units))], float)
        yield self._entry("recorder", self._scored(shown, count, onset, lag if edge_seen else None, gap))

    def _scored(
        self, shown: Presented, count: npt.NDArray[np.float64], onset: int, lag: int | None, gap: bool
    ) -> Response:
        self._responses += 1
        self._usable += not gap
        baseline = np.full(len(count), np.nan if gap else 0.5)
        count = count * (np.nan if gap else 1)
        if shown.role == "candidate" and not gap:
            self._scores[shown.stimulus_id] = float(count[0])
        return Response(
            presentation=shown.presentation,
            proposal=shown.proposal,
            slot=shown.slot,
            role=shown.role,
            stimulus_id=shown.stimulus_id,
            source="probe",
            usable=not gap,
            reason="only 80.0% of its windows is covered by complete data" if gap else "",
            onset_source="flip" if lag is None else "photodiode",
            onset_sample=onset,
            onset_host_ns=shown.onset_flip_host_ns + (lag or 3_000_000),
            onset_uncertainty_ns=8_000_000 if lag is None else 33_334,
            onset_host_uncertainty_ns=1_000_000,
            flip_to_edge_ns=lag,
            window_start_sample=onset + round(0.05 * RATE_HZ),
            window_end_sample=onset + round(0.15 * RATE_HZ),
            coverage=0.8 if gap else 1.0,
            units=self.config.responses.units,
            count=count,
            baseline=baseline,
            baseline_n=None if gap else 50,
            rate_hz=(count - baseline) / 0.1,
        )

    def _missing(self, shown: Presented, reason: str) -> Response:
        self._responses += 1
        nan = np.full(len(self.config.responses.units), np.nan)
        return Response(
            presentation=shown.presentation,
            proposal=shown.proposal,
            slot=shown.slot,
            role=shown.role,
            stimulus_id=shown.stimulus_id,
            source="probe",
            usable=False,
            reason=reason,
            onset_source="none",
            onset_sample=None,
            onset_host_ns=None,
            onset_uncertainty_ns=None,
            onset_host_uncertainty_ns=None,
            flip_to_edge_ns=None,
            coverage=0.0,
            units=self.config.responses.units,
            count=nan,
            baseline=nan,
            rate_hz=nan,
        )


def other_devices(rows: int = 3, units: tuple[str, ...] = ("r0", "r1"), blocks: int = 2) -> list[Document]:
    """Return what a microscope, a tracker, a marker stream and an output would add to a session."""
    rng = np.random.default_rng(5)
    scope, offset = {"source": "scope", "run": 2}, np.linspace(0, 0.03, len(units))
    out: list[Document] = [
        UnitList(**scope, list_number=0, from_sample=0, units=units, scan_offset_s=offset, measure="fluorescence"),
        BarcodeSent(output="sync", number=4711, sent_host_ns=START_NS + 3, uncertainty_ns=120),
        Marker(source="notes", run=1, sample=None, arrival_host_ns=START_NS, text="the animal is awake"),
        Marker(source="notes", run=1, sample=77, arrival_host_ns=START_NS + 1, text="x"),
        OutputRequest(request="a1", output="valve", what="reward", duration_s=0.05, trial=3),
        OutputRequest(request="a2", output="lsl", what="marker", text="on", event_host_ns=START_NS, presentation=4),
        OutputDone(
            request="a1",
            output="valve",
            what="reward",
            done=True,
            started_host_ns=START_NS + 5,
            confirmed_host_ns=START_NS + 6,
            duration_s=0.0501,
            timed_by="device",
            volume_ul=4.0,
            session_volume_ul=12.0,
        ),
        OutputDone(request="a2", output="lsl", what="marker", done=False, reason="nobody listens"),
        ClockSample(source="scope", run=2, device_sample=4.5, pair_host_ns=9, method="round_trip", round_trip_ns=30),
        ClockSample(source="scope", run=2, device_sample=5.0, pair_host_ns=10, method="edge", uncertainty_ns=40),
    ]
    for block in range(blocks):
        frame = np.arange(block * rows, (block + 1) * rows, dtype=np.int64)
        columns = {"frame": frame, "sample": 1000 * frame, "arrival_host_ns": START_NS + frame}
        values = rng.random((rows, len(units)), dtype=np.float32)
        extra = {} if block == 0 else {"neuropil": values / 2, "motion": values[:, :1].repeat(3, axis=1)}
        out.append(TraceBlock(**scope, list_number=0, **columns, values=values, **extra))
        del columns["frame"]
        gaze = BehaviourBlock(
            source="eye", run=1, channels=("gaze_x_deg", "pupil_mm"), values=rng.random((rows, 2)), **columns
        )
        out.append(gaze)
    other = ("r1",)
    out.append(
        UnitList(
            **scope, list_number=1, from_sample=9000, units=other, scan_offset_s=np.zeros(1), measure="fluorescence"
        )
    )
    one = {"frame": np.array([9]), "sample": np.array([9000]), "arrival_host_ns": np.array([START_NS])}
    out.append(TraceBlock(**scope, list_number=1, **one, values=np.ones((1, 1), np.float32)))
    out.append(
        BehaviourBlock(
            source="eye",
            run=1,
            channels=("running_cm_s",),
            sample=np.array([5]),
            arrival_host_ns=np.array([6]),
            values=np.array([[np.nan]]),
        )
    )
    return out


def write_journal(folder: Path, entries: list[Entry]) -> Path:
    """Write entries as folder/session.journal, as the recorder would."""
    path = folder / "session.journal"
    writer = JournalWriter(path, "synthetic")
    try:
        for entry in entries:
            writer.append(entry.envelope.seq, encode_entry(entry.envelope, encode(entry.document)))
    finally:
        writer.close()
    return path
