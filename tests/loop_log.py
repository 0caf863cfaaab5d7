"""Logs of loops on paper, with faults, and a server that reads one while it is restored from snapshots all along.

Units on paper answer what the fold proposes; responses are lost, late, out of order, repeated, without a value for some
units. Nothing is shown and no time passes.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.agents import build_from_config
from models.server import ModelServer, state_hash
from models.snapshot import Snapshot, Snapshots, session_identity
from models.truth import V1, draw_cells
from rig.config.places import angles_of, rect_of, usual
from rig.config.session import Config
from rig.encoding import encode
from rig.messages import Document, Entry, Envelope, Fault, PhaseEnded, Proposal, Response, kind_of
from stimuli.spec import BankImage, LatentImage
from stimuli.tiles import built_in_banks
from tests.test_snapshot import session_start

F64 = npt.NDArray[np.float64]
SECONDS = 0.1
MOST = 3000  # entries; more: the fold goes round in circles


@dataclass(frozen=True)
class Faults:
    """How often what goes wrong, 0 to 1."""

    lost: float = 0.0
    """A response is not usable."""
    lost_batches: float = 0.0
    """None of a proposal's is."""
    no_value: float = 0.0
    """A response has no value for one of the units."""
    no_values: float = 0.0
    """It has none at all."""
    gone_from: int = MOST
    """From this presentation on the first unit has none."""
    repeated: float = 0.0
    """An older response comes once more."""
    disorder: int = 1
    """Of so many that are open, any comes next."""
    eager: float = 0.2
    """The work is done before the next response."""


@dataclass
class Log:
    """What the fold that never stopped was given and said."""

    config: Config
    faults: Faults
    seed: int
    entries: list[Entry] = field(default_factory=list)
    said: list[list[bytes]] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Run the session to its end."""
        self._rng = np.random.default_rng(self.seed)
        rect = rect_of(self.config.display, usual(self.config.stimulus))
        self._shape, angles = (rect.height, rect.width), angles_of(self.config.display, rect)
        units = self.config.responses.units
        self._cells = V1(draw_cells(len(units), *angles, np.random.default_rng(7)), *angles)
        self._banks = built_in_banks(float(self.config.display.background), self.config.natural_contrast)
        self._rates = lru_cache(maxsize=None)(self._rates_of)
        self._open: list[tuple[Proposal, int]] = []
        self._lost: set[int] = set()
        self._presentations = 0
        self._server = fold(self.config)
        self._run()

    @property
    def reasons(self) -> list[str]:
        """Why each phase ended."""
        return [d.reason for d in self.documents if isinstance(d, PhaseEnded)]

    @property
    def faults_named(self) -> list[str]:
        """What the fold complained of."""
        return [d.detail for d in self.documents if isinstance(d, Fault)]

    def _run(self) -> None:
        self._put(session_start(self.config))
        sent: list[Response] = []
        while not any(isinstance(d, PhaseEnded) and d.last for d in self.documents):
            assert len(self.entries) < MOST
            work = self._server.work
            if work is not None and (not self._open or self._rng.random() < self.faults.eager):
                while not work.step():
                    pass
                self._put(self._server.work_done())
                continue
            assert self._open, "nothing is asked for and nothing is open"
            proposal, slot = self._open.pop(int(self._rng.integers(min(len(self._open), self.faults.disorder))))
            sent.append(self._answer(proposal, slot))
            again = len(self.documents)
            self._put(sent[-1])
            if again == len(self.documents) and self._server._again._open.get(proposal.proposal, {}).get(slot):
                self._open.insert(min(3, len(self._open)), (proposal, slot))  # shown again
            if self._rng.random() < self.faults.repeated:
                self._put(sent[int(self._rng.integers(max(0, len(sent) - 40), len(sent)))])

    def _put(self, document: Document) -> None:
        seq = len(self.entries) + 1
        envelope = Envelope(seq=seq, receipt_host_ns=seq, sender="x", process="x", sender_seq=seq)
        self.entries.append(Entry(envelope, document))
        caused = self._server.handle(self.entries[-1])
        self.said.append([part for one in caused for part in encode(one)])
        self.states.append(state_hash(self._server.state()))
        self.documents += caused
        for one in caused:
            if isinstance(one, Proposal):
                self._open += [(one, slot) for slot in range(len(one.plan))]
                if self._rng.random() < self.faults.lost_batches:
                    self._lost.add(one.proposal)

    def _answer(self, proposal: Proposal, slot: int) -> Response:
        self._presentations += 1
        rng, faults, spec = self._rng, self.faults, proposal.stimuli[proposal.plan[slot].stimulus].spec
        if isinstance(spec, LatentImage):
            true = self._rates(np.asarray(proposal.frames[spec.row]).tobytes())
        else:
            true = self._rates((spec.bank, spec.name) if isinstance(spec, BankImage) else b"")
        rate = rng.poisson(true * SECONDS) / SECONDS
        usable = rng.random() >= faults.lost and proposal.proposal not in self._lost
        if rng.random() < faults.no_value:
            rate[rng.integers(len(rate))] = np.nan
        if rng.random() < faults.no_values:
            rate[:] = np.nan
        if self._presentations >= faults.gone_from:
            rate[0] = np.nan
        return Response(
            presentation=self._presentations, proposal=proposal.proposal, slot=slot, role=proposal.plan[slot].role,
            stimulus_id=proposal.stimuli[proposal.plan[slot].stimulus].id, source="probe", usable=bool(usable),
            reason="" if usable else "lost", onset_source="none", onset_sample=None, onset_host_ns=None,
            onset_uncertainty_ns=None, onset_host_uncertainty_ns=None, flip_to_edge_ns=None, coverage=1.0,
            units=self.config.responses.units, count=rate, baseline=rate * 0, rate_hz=rate,
        )  # fmt: skip

    def _rates_of(self, shown: bytes | tuple[str, str]) -> F64:
        grey = np.full((*self._shape, 3), self.config.display.background, np.uint8)
        if isinstance(shown, tuple):
            grey = self._banks[shown[0]].image(shown[1], *self._shape)
        elif shown:
            grey = np.frombuffer(shown, np.uint8).reshape(grey.shape)
        return self._cells.rate_hz(grey.astype(np.float32) / 255)


def fold(config: Config) -> ModelServer:
    """Return a fresh one."""
    return ModelServer(build_from_config(config), len(config.phases), config.presentation.repeats_of_unusable)


def restored_all_along(log: Log, folder: Path, share: float, seed: int = 0) -> tuple[list[str], int]:
    """Read `log` with a server that is killed before a `share` of the entries, and goes on from its own snapshot.

    Each time a fresh server takes the state over, as it was written and read, mostly in the middle of a work. Returns
    what differs from the fold that never stopped, in output or state, and how many documents were compared.
    """
    snapshots = Snapshots(folder, session_identity(session_start(log.config)), "program")
    rng = np.random.default_rng(seed)
    server, different, compared = fold(log.config), list[str](), 0
    for k, entry in enumerate(log.entries):
        if k and rng.random() < share:
            for _ in range(int(rng.integers(30))):
                if server.work is None or server.work.step():
                    break
            path = snapshots.write(Snapshot(log.entries[k - 1].envelope, server.state()))
            server = fold(log.config)
            server.restore(snapshots.read(path).state)
        caused = server.handle(entry)
        compared += len(caused)
        if [part for one in caused for part in encode(one)] != log.said[k]:
            different.append(f"entry {k} ({kind_of(entry.document)}): other documents")
        elif state_hash(server.state()) != log.states[k]:
            different.append(f"entry {k} ({kind_of(entry.document)}): another state")
    return different, compared
