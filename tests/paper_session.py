"""A session on paper: the real folds joined in one process, on a made-up clock, so that it is recorded in a second.

Model server, planner, response windows, the Open Ephys source's ledger and the journal are the program's own; only the
screen and the animal are made up: a photodiode edge 1 ms after each flip, and units that fire more for some images than
for others. What comes out is a journal like any other. For tests of what is done with a recorded session.
"""

import hashlib
import heapq
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.agents import build_from_config
from models.server import WANTS, ModelServer
from rig.config.reading import parse
from rig.display.trial import Planner, TrialPlan
from rig.encoding import encode, encode_entry
from rig.messages import (
    Document,
    Entry,
    Envelope,
    PhaseEnded,
    Presented,
    ProcessStarted,
    Proposal,
    Response,
    SessionStart,
    SessionStop,
    StimulusPrepared,
    StopRequested,
    Tick,
    TrialIntent,
    kind_of,
)
from rig.recording.journal import JournalWriter
from rig.responses.windows import WindowFold
from rig.sources.continuity import Ledger
from rig.sources.openephys_parse import Data, Spike, Ttl

I64 = npt.NDArray[np.int64]
START_NS = 5_000_000_000_000
UTC_NS = 1_790_000_000_000_000_000
RATE_HZ = 30_000.0
PPM = 30e-6
FIRST_SAMPLE = 400_000
BLOCK = 696
FRAME_NS = 16_666_667
UNITS = ("E01#0", "E02#0", "E03#0", "E04#0")
BASE_HZ, DRIVEN_HZ = 8.0, 90.0

CONFIG = """
name: paper
seed: 3
display: {{size_px: [400, 300], refresh_hz: 60, width_cm: 30}}
stimulus: {{size_deg: 6}}
presentation: {{on_s: 0.1, off_s: 0.1, images_per_trial: 10, inter_trial_s: 0.3}}
sources: [{{type: openephys, name: probe, http_port: null, photodiode_line: {line}}}]
responses: {{units: ["E01#0", "E02#0"]}}
phases:
- {{agent: present, images: [natural], count: 3, repeats: 2, blanks: 1}}
- {{agent: evolve, unit: "E01#0", preset: plos2020, generations: {generations}, references: 2, reshows: 1, blanks: 1}}
"""


@dataclass(frozen=True)
class Made:
    """A recorded session and what is true of it."""

    folder: Path
    spikes: dict[str, I64]  # unit: device samples, whether they came over the wire or not
    first_sample: int
    end_sample: int
    lost_messages: int


class _Paper:
    def __init__(
        self, folder: Path, generations: int, seed: int, lose: tuple[float, ...], photodiode: bool, config: str = CONFIG
    ) -> None:
        self.text = config.format(generations=generations, line="0" if photodiode else "null")
        self.config = parse(self.text)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(self.text)
        self.folder = folder
        self.journal = JournalWriter(folder / "session.journal", folder.name)
        self.windows = WindowFold(self.config)
        presentation = self.config.presentation
        self.model = ModelServer(
            build_from_config(self.config), len(self.config.phases), presentation.repeats_of_unusable
        )
        self.planner = Planner(presentation.images_per_trial, presentation.repeats_of_unusable)
        self.rng = np.random.default_rng(seed)
        self.lose = list(lose)
        self.now = START_NS
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.sent: dict[str, int] = {}
        self.prepared: set[tuple[int, str]] = set()
        self.ledger = Ledger("probe", 1)
        self.number = 500  # the source joins an acquisition that was going on
        self.sample = FIRST_SAMPLE
        self.edges: list[tuple[int, int]] = []  # host ns, state
        self.rates: list[tuple[int, int, tuple[float, ...]]] = []  # from, to host ns: spikes/s of each unit
        self.deferred: list[tuple[int, int]] = []
        self.true: dict[str, list[int]] = {u: [] for u in UNITS}
        self.lost = 0
        self.busy_until = 0
        self.stopped = False
        self.over = False

    # --- the journal ---

    def append(self, sender: str, document: Document, cause: tuple[int, int] | None = None) -> None:
        self.sent[sender] = self.sent.get(sender, 0) + 1
        seq = self.journal.last_seq + 1
        envelope = Envelope(
            seq=seq,
            receipt_host_ns=self.now,
            sender=sender,
            process=f"{sender}-1",
            sender_seq=self.sent[sender],
            cause_seq=None if cause is None else cause[0],
            cause_index=None if cause is None else cause[1],
        )
        self.journal.append(seq, encode_entry(envelope, encode(document)))
        entry = Entry(envelope, document)
        for index, caused in enumerate(self.windows.apply(entry)):
            self.append("recorder", caused, (seq, index))
        if kind_of(document) in WANTS:
            for index, caused in enumerate(self.model.handle(entry)):
                self.append("model", caused, (seq, index))
        self.routed(document)

    def routed(self, document: Document) -> None:
        if isinstance(document, Proposal):
            self.planner.add(document)
        elif isinstance(document, Response):
            self.planner.answered(document)
        elif isinstance(document, PhaseEnded) and document.last:
            self.stopped = True

    def at(self, t_ns: int, what: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.queue, (t_ns, self.count, what))

    # --- the rig ---

    def rig(self) -> None:
        if self.model.work is not None:
            while not self.model.work.step():
                pass
            self.append("model", self.model.work_done(), self.model.work_cause)
        if self.now >= self.busy_until:
            plan = self.planner.next_trial()
            if plan is not None:
                self.show(plan)
            elif self.stopped and not self.over:
                self.over = True
                self.append("rig", StopRequested(reason="all phases ended"))
        self.at(self.now + FRAME_NS, self.rig)

    def show(self, plan: TrialPlan) -> None:
        rhythm = self.config.presentation
        start = self.now + 3 * FRAME_NS
        proposals, slots = (tuple(getattr(s, n) for s in plan.images) for n in ("proposal", "slot"))
        for s in plan.images:
            if (s.proposal.proposal, s.stimulus.id) not in self.prepared:
                self.prepared.add((s.proposal.proposal, s.stimulus.id))
                digest = hashlib.sha256(s.stimulus.id.encode()).hexdigest()
                document = StimulusPrepared(
                    stimulus_id=s.stimulus.id, proposal=s.proposal.proposal, frame_sha256=digest, frame=None
                )
                self.append("rig", document)
        intent = TrialIntent(
            trial=plan.trial,
            presentations=plan.presentations,
            proposals=tuple(p.proposal for p in proposals),
            slots=slots,
            start_host_ns=start,
        )
        self.append("rig", intent)
        on, off = round(rhythm.on_s * 1e9), round(rhythm.off_s * 1e9)
        for k, s in enumerate(plan.images):
            onset = start + k * (on + off)
            digest = hashlib.sha256(s.stimulus.id.encode()).hexdigest()
            drive = [int(digest[2 * u : 2 * u + 2], 16) / 255 for u in range(len(UNITS))]
            self.rates.append((onset + 50_000_000, onset + 150_000_000, tuple(BASE_HZ + DRIVEN_HZ * d for d in drive)))
            self.edges += [(onset + 1_000_000, 1), (onset + on + 1_000_000, 0)]
            shown = Presented(
                presentation=s.presentation,
                trial=plan.trial,
                position_in_trial=s.position,
                proposal=s.proposal.proposal,
                slot=s.slot,
                role=s.role,
                stimulus_id=s.stimulus.id,
                previous_stimulus_id=s.previous,
                frame_sha256=digest,
                due_host_ns=onset,
                onset_flip_host_ns=onset,
                offset_flip_host_ns=onset + on,
                flips_host_ns=np.array([onset, onset + on], dtype=np.int64),
                late_flips=0,
                dropped_frames=0,
                image_row_px=150.0,
                patch_row_px=284.0,
                complete=True,
            )
            self.at(onset + on + 2_000_000, lambda shown=shown: self.append("rig", shown))
        self.busy_until = start + len(plan.images) * (on + off) + round(rhythm.inter_trial_s * 1e9)

    # --- the device ---

    def host_ns(self, sample: int) -> int:
        return START_NS + round((sample - FIRST_SAMPLE) * 1e9 / (RATE_HZ * (1 + PPM)))

    def block(self) -> None:
        first, end = self.sample, self.sample + BLOCK
        self.sample = end
        low, high = self.host_ns(first), self.host_ns(end)
        spikes = self.deferred
        self.deferred = []
        for u, name in enumerate(UNITS):
            rate = next((r[u] for a, b, r in self.rates if a <= low < b), BASE_HZ)
            for sample in np.sort(self.rng.integers(first, end, self.rng.poisson(rate * BLOCK / RATE_HZ))).tolist():
                self.true[name].append(sample)
                (spikes if sample < end - 100 else self.deferred).append((u, sample))
        self.rates = [r for r in self.rates if r[1] > low]
        per_ns = RATE_HZ * (1 + PPM) / 1e9
        edges = [(state, first + round((t - low) * per_ns)) for t, state in self.edges if low <= t < high]
        self.edges = [e for e in self.edges if e[0] >= high]
        losing = bool(self.lose) and high >= START_NS + self.lose[0] * 1e9
        if losing:
            self.lose.pop(0)
        for u, sample in sorted(spikes, key=lambda s: s[1]):
            electrode, _, number = UNITS[u].partition("#")
            self.message(lambda n, e=electrode, i=number, s=sample: Spike(n, "p", 103, e, int(i), s, False), losing)
        for state, sample in edges:
            self.message(lambda n, a=state, s=sample: Ttl(n, "p", 0, a, s, a, False), False)
        self.message(lambda n: Data(n, "p", 0, BLOCK, first, RATE_HZ, False), losing)
        self.at(self.host_ns(end + BLOCK) + int(self.rng.integers(500_000, 4_000_000)), self.block)

    def message(self, make: Callable[[int], Data | Spike | Ttl], losing: bool) -> None:
        self.number += 1
        if losing:
            self.lost += 1
        else:
            self.now += 20_000
            self.ledger.take(make(self.number), self.now)

    def harvest(self) -> None:
        for document in self.ledger.harvest(self.now):
            self.append("probe", document)
        self.at(self.now + 25_000_000, self.harvest)

    def tick(self) -> None:
        self.append("recorder", Tick(tick_host_ns=self.now))
        self.at(self.now + 1_000_000_000, self.tick)

    # --- all of it ---

    def run(self) -> Made:
        config = self.config
        start = SessionStart(
            session=self.folder.name, simulated=True, config_yaml=self.text, config=config.model_dump(mode="json"),
            versions={}, commit=None, dirty=None, start_host_ns=self.now, start_utc_ns=UTC_NS,
        )  # fmt: skip
        self.append("recorder", start)
        for name in ("recorder", "rig", "model", "probe"):
            document = ProcessStarted(
                name=name, pid=1, boot_id="paper", start_host_ns=self.now, start_utc_ns=UTC_NS, notes={}
            )
            self.append(name, document)
        self.at(self.host_ns(FIRST_SAMPLE + BLOCK) + 1_000_000, self.block)
        self.at(self.now + 25_000_000, self.harvest)
        self.at(self.now + 500_000_000, self.tick)
        self.at(self.now + 2_000_000_000, self.rig)
        while not (self.over and self.windows.waiting == 0):
            t, _, what = heapq.heappop(self.queue)
            self.now = max(self.now, t)
            what()
        self.append("recorder", Tick(tick_host_ns=self.now, closing=True))
        stop = SessionStop(
            reason="all phases ended", presentations=0, responses=self.windows.responses, usable=self.windows.usable,
            faults=0,
        )  # fmt: skip
        self.append("recorder", stop)
        self.journal.close()
        spikes = {u: np.array(sorted(s), dtype=np.int64) for u, s in self.true.items()}
        return Made(self.folder, spikes, FIRST_SAMPLE, self.sample, self.lost)


def paper_session(
    folder: Path,
    generations: int = 2,
    seed: int = 1,
    lose: tuple[float, ...] = (),
    photodiode: bool = True,
    config: str = CONFIG,
) -> Made:
    """Record a session into the new `folder`; at each of `lose` (s after its start) a block's messages are lost.

    `config` may hold {line} and {generations}.
    """
    return _Paper(folder, generations, seed, lose, photodiode, config).run()
