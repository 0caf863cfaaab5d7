"""Snapshots: a restored fold goes on bit for bit, a bad file is refused, and a killed server is back in time."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.agents import build_from_config
from models.server import WANTS, ModelServer
from models.snapshot import Snapshot, SnapshotError, Snapshots, program_identity, session_identity, usable
from rig.clock import HostClock
from rig.config.reading import parse
from rig.config.session import Config
from rig.encoding import encode
from rig.links.bus import Hub
from rig.links.peer import Peer
from rig.messages import (
    Document,
    Entry,
    Envelope,
    Fault,
    PhaseEnded,
    ProcessStarted,
    Proposal,
    Response,
    SessionStart,
    WorkDone,
    kind_of,
)
from rig.provenance import DECIDING, HERE
from rig.recording.journal import read_all
from rig.recording.recorder import Recorder

EVOLVE = "{agent: evolve, unit: u1, generations: 3, references: 2, reshows: 1, blanks: 1, generator: {frequencies: 4}}"
PRESENT = "{agent: present, images: [natural, gratings], count: 4, repeats: 3, blanks: 1}"
CONFIG = """
seed: {seed}
sources: [{{type: openephys, photodiode_line: null}}]
responses: {{units: [u0, u1], baseline: {{kind: none}}}}
phases: {phases}
display: {{size_px: [200, 160], width_cm: 16, distance_cm: 30}}
stimulus: {{size_deg: {size_deg}}}
"""


def config_text(*phases: str, seed: int = 0, size_deg: float = 2.0) -> str:
    return CONFIG.format(phases=f"[{', '.join(phases)}]", seed=seed, size_deg=size_deg)


def session_start(config: Config, text: str = "") -> SessionStart:
    return SessionStart(
        simulated=True, session="s", config_yaml=text, config=config.model_dump(mode="json"), versions={}, commit=None,
        dirty=None, start_host_ns=1, start_utc_ns=2,
    )  # fmt: skip


def response(proposal: Proposal, slot: int, presentation: int, usable: bool = True) -> Response:
    """Return what two noise-free units answer: rates depend on the image alone."""
    stimulus = proposal.stimuli[proposal.plan[slot].stimulus]
    rate = np.array([1.0, float(sum(map(ord, stimulus.id)) % 97)])
    return Response(
        presentation=presentation, proposal=proposal.proposal, slot=slot, role=proposal.plan[slot].role,
        stimulus_id=stimulus.id, source="probe", usable=usable, reason="" if usable else "lost", onset_source="none",
        onset_sample=None, onset_host_ns=None, onset_uncertainty_ns=None, onset_host_uncertainty_ns=None,
        flip_to_edge_ns=None, coverage=1.0, units=("u0", "u1"), count=rate, baseline=rate * 0, rate_hz=rate,
    )  # fmt: skip


def fold(config: Config) -> ModelServer:
    return ModelServer(build_from_config(config), len(config.phases), config.presentation.repeats_of_unusable)


def whole_log(config: Config) -> list[Entry]:
    """Return the log of a session with a fold that never stopped; every 7th response is not usable."""
    server, log, said = fold(config), list[Entry](), 0

    def put(document: Document) -> None:
        n = len(log) + 1
        log.append(Entry(Envelope(seq=n, receipt_host_ns=n, sender="x", process="x", sender_seq=n), document))
        for caused in server.handle(log[-1]):
            put(caused)

    put(session_start(config))
    while server.work is not None:
        while not server.work.step():
            pass
        put(server.work_done())
        proposal = next(e.document for e in reversed(log) if isinstance(e.document, Proposal))
        for slot in range(len(proposal.plan)):
            said += 1
            if said % 7 == 0:
                put(response(proposal, slot, 10_000 + said, usable=False))
            put(response(proposal, slot, said))
    assert isinstance(log[-1].document, PhaseEnded)
    return log


def fed(server: ModelServer, log: list[Entry]) -> list[bytes]:
    return [b for e in log if kind_of(e.document) in WANTS for d in server.handle(e) for b in encode(d)]


def a_snapshot(tmp_path: Path, seq: int = 60) -> tuple[Snapshots, Path, Snapshot]:
    config = parse(config_text(EVOLVE))
    log = whole_log(config)[:seq]
    server = fold(config)
    fed(server, log)
    snapshot = Snapshot(log[-1].envelope, server.state())
    snapshots = Snapshots(tmp_path, session_identity(session_start(config)), "program")
    return snapshots, snapshots.write(snapshot), snapshot


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "phases", [(EVOLVE,), (PRESENT,), (PRESENT, EVOLVE, PRESENT)], ids=["evolve", "present", "all"]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_fold_restored_from_a_file_goes_on_as_one_that_never_stopped(
    phases: tuple[str, ...], seed: int, tmp_path: Path
) -> None:
    config = parse(config_text(*phases, seed=seed))
    log = whole_log(config)
    snapshots = Snapshots(tmp_path, session_identity(session_start(config)), "program")
    stops = sorted(np.random.default_rng(seed).choice(np.arange(1, len(log)), 6, replace=False).tolist())
    # Right after work was asked for, and right after its result was taken.
    stops += [k + 1 for k, e in enumerate(log) if isinstance(e.document, WorkDone)][:2]
    stops += [k for k, e in enumerate(log) if isinstance(e.document, WorkDone)][:2]
    stops.append(max(k for k, e in enumerate(log) if isinstance(e.document, Response)))  # in the last tail
    never, at = fold(config), 0
    for stop in sorted(set(stops)):
        fed(never, log[at:stop])
        at = stop
        written = Snapshot(log[stop - 1].envelope, never.state())
        read = snapshots.read(snapshots.write(written))
        assert read.envelope == written.envelope
        restored, whole = fold(config), fold(config)
        restored.restore(read.state)
        fed(whole, log[:stop])
        assert (restored.work is None) == (whole.work is None)
        assert fed(restored, log[stop:]) == fed(whole, log[stop:])


def test_a_session_has_an_identity_of_its_own() -> None:
    config = parse(config_text(EVOLVE))
    start = session_start(config)
    assert session_identity(start) != session_identity(start.model_copy(update={"start_utc_ns": 3}))
    assert session_identity(start) == session_identity(SessionStart.model_validate_json(start.model_dump_json()))
    assert all(any(HERE.glob(pattern)) for pattern in DECIDING), "a part of the program has moved"


# --- files ------------------------------------------------------------------------------------------------------------


def test_only_the_last_three_are_kept_and_none_is_half_written(tmp_path: Path) -> None:
    snapshots, _, snapshot = a_snapshot(tmp_path)
    for seq in (61, 70, 1000):
        snapshots.write(Snapshot(snapshot.envelope.model_copy(update={"seq": seq}), snapshot.state))
    assert [p.name for p in snapshots.newest_first()] == [f"model-{n:012d}.npz" for n in (1000, 70, 61)]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_torn_snapshot_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    snapshots, path, _ = a_snapshot(tmp_path)
    whole = path.read_bytes()
    for size in np.linspace(0, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:size])
        with pytest.raises(SnapshotError, match=r"model-0+60\.npz: torn or damaged"):
            snapshots.read(path)


def test_a_flipped_byte_is_refused_or_without_meaning(tmp_path: Path) -> None:
    snapshots, path, snapshot = a_snapshot(tmp_path)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for at in rng.choice(len(whole), 150, replace=False):
        data = bytearray(whole)
        data[at] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            read = snapshots.read(path)
        except SnapshotError:
            refused += 1
        else:  # padding of the archive, dates of its members
            assert read.envelope == snapshot.envelope
            assert str(read.state) == str(snapshots_as_read(snapshot))
    assert refused > 100


def test_no_flipped_bit_of_the_archive_s_own_words_escapes(tmp_path: Path) -> None:
    """Its members' heads and its directory decide what zipfile does: none of their bits may crash the start."""
    snapshots = Snapshots(tmp_path, "s", "p")
    envelope = Envelope(seq=60, receipt_host_ns=1, sender="model", process="m", sender_seq=1)
    path = snapshots.write(Snapshot(envelope, {"a": np.arange(3)}))
    whole, refused = path.read_bytes(), 0
    bits = [bit for bit in range(8 * len(whole)) if not 8 * 800 < bit < 8 * (len(whole) - 400)]
    for bit in bits:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert snapshots.read(path).envelope == envelope
        except SnapshotError as error:
            refused += "model-" in str(error)
    assert refused > len(bits) / 3


def snapshots_as_read(snapshot: Snapshot) -> Any:
    """Return the state with lists for tuples, as JSON gives them back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return plain(snapshot.state)


def test_a_foreign_snapshot_is_refused_and_one_beyond_the_log_too(tmp_path: Path) -> None:
    snapshots, path, _ = a_snapshot(tmp_path)
    with pytest.raises(SnapshotError, match="belongs to another session"):
        Snapshots(tmp_path, "another", "program").read(path)
    config = parse(config_text(EVOLVE))
    identity = session_identity(session_start(config))
    with pytest.raises(SnapshotError, match="another version of the program"):
        Snapshots(tmp_path, identity, "newer").read(path)
    assert [type(s) for _, s in usable(snapshots, 61)] == [Snapshot]
    ((_, refused),) = usable(snapshots, 60)
    assert "entry 60, which the log has lost" in str(refused)
    path.write_bytes(b"something else")
    ((_, refused),) = usable(snapshots, 61)
    assert isinstance(refused, SnapshotError)


def test_what_cannot_be_written_without_pickle_is_refused(tmp_path: Path) -> None:
    snapshots, _, snapshot = a_snapshot(tmp_path)
    for state in ({"a": np.array([None])}, {1: 2}, {"__array__": 3}, {"a": object()}):
        with pytest.raises(TypeError):
            snapshots.write(Snapshot(snapshot.envelope, state))  # type: ignore[arg-type]


# --- the process ------------------------------------------------------------------------------------------------------


class Session:
    """`python -m models` beside a recorder that the test steps; the test answers what is proposed."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder, self.text, self.config, self.clock = folder, text, parse(text), HostClock()
        self.journal = folder / "session.journal"
        self.hub = Hub("tcp://127.0.0.1:0")
        self.recorder = Recorder(
            self.journal, self.hub, self.config, self.clock, lambda: session_start(self.config, text)
        )
        self.rig = Peer("rig", self.hub.endpoint, frozenset({"proposal", "phase_ended"}), self.clock)
        self.answered = 0
        self.ended = False
        self.open: list[tuple[Proposal, int]] = []
        self.ready: list[dict[str, Any]] = []
        self.process = self.spawn()

    def spawn(self) -> subprocess.Popen[str]:
        arguments = ["-m", "models", "--folder", str(self.folder), "--endpoint", self.hub.endpoint]
        return subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def step(self) -> None:
        self.recorder.step(0.002)
        for entry in self.rig.poll():
            if isinstance(entry.document, Proposal):
                self.open += [(entry.document, k) for k in range(len(entry.document.plan))]
            else:
                self.ended = True

    def until(self, done: Callable[[], bool], seconds: float = 60) -> float:
        """Step until `done`; return the time it took, s."""
        begin = self.clock.now_ns()
        while not done():
            assert self.clock.now_ns() < begin + seconds * 1e9, "it did not get there in time"
            assert self.process.poll() is None, "the model server has ended"
            self.step()
        return (self.clock.now_ns() - begin) * 1e-9

    def answer(self, count: int = 1) -> None:
        for _ in range(count):
            self.until(lambda: bool(self.open))
            proposal, slot = self.open.pop(0)
            self.answered += 1
            self.recorder.submit(response(proposal, slot, self.answered))  # as its windows would say it

    def run_until(self, done: Callable[[], bool]) -> None:
        """Answer whatever is proposed until `done`."""
        end_ns = self.clock.now_ns() + 60_000_000_000
        while not done():
            assert self.clock.now_ns() < end_ns, "it did not get there in time"
            if self.open:
                self.answer(min(10, len(self.open)))
            else:
                self.step()

    def saved(self, count: int) -> None:
        self.until(lambda: len(list(self.folder.glob("snapshots/*.npz"))) == count)

    def read(self) -> list[Entry]:
        return read_all(self.journal)

    def count(self, kind: type) -> int:
        return sum(isinstance(e.document, kind) for e in self.read())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=200)

    def restart(self) -> None:
        """Start the killed server again, and answer it."""
        starts = self.count(ProcessStarted)
        self.process = self.spawn()
        self.until(lambda: self.count(ProcessStarted) > starts)
        self.answer()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=200)
        self.rig.close()
        self.recorder.close("test over")


@pytest.fixture
def session(tmp_path: Path) -> Any:
    made = Session(tmp_path, config_text(EVOLVE, size_deg=8.0))
    yield made
    made.close()


def verdict_of(entries: list[Entry]) -> list[str]:
    """Return how a fresh fold, never killed, differs from what the journal has of the model; nothing if it agrees."""
    start = entries[0].document
    assert isinstance(start, SessionStart)
    server = fold(Config.model_validate(start.config))
    kinds = ("proposal", "model_updated", "phase_ended")
    live = {
        (e.envelope.cause_seq, e.envelope.cause_index): encode(e.document)
        for e in entries
        if kind_of(e.document) in kinds
    }
    assert len(live) == sum(kind_of(e.document) in kinds for e in entries)
    out = []
    for entry in entries:
        if kind_of(entry.document) in WANTS:
            for index, document in enumerate(server.handle(entry)):
                if live.pop((entry.envelope.seq, index), None) != encode(document):
                    out.append(f"{kind_of(document)} caused by {entry.envelope.seq}")
    return out + [f"{key} has no equal" for key in live]


def test_a_killed_server_goes_on_with_the_same_generation_and_decides_the_same(session: Session) -> None:
    session.answer(20)
    session.saved(1)
    session.kill()
    session.restart()
    main = next(e.document for e in session.read() if isinstance(e.document, Proposal)).tail_from
    session.answer(main - session.answered)  # now it works: kill it in the middle
    session.kill()
    assert session.count(Proposal) == 1
    session.process = session.spawn()
    session.until(lambda: session.count(Proposal) == 2)
    session.kill()
    session.process = session.spawn()
    session.run_until(lambda: session.ended)
    entries = session.read()
    assert verdict_of(entries) == []
    assert session.count(Proposal) == 3
    assert not [e for e in entries if isinstance(e.document, Fault)]
    assert [p.generation for p in (e.document for e in entries) if isinstance(p, Proposal)] == [0, 1, 2]


def test_bad_snapshots_are_named_and_the_one_before_them_is_used(session: Session) -> None:
    session.saved(1)
    session.run_until(lambda: session.count(Proposal) == 2)
    session.saved(2)
    session.kill()
    older, newest = sorted((session.folder / "snapshots").glob("*.npz"))
    newest.write_bytes(newest.read_bytes()[:-50])
    # Of a log that went further than this one: as after a power loss that took the journal's last second.
    identity = session_identity(session_start(session.config, session.text))
    snapshots = Snapshots(older.parent, identity, program_identity())
    good = snapshots.read(older)
    snapshots.write(Snapshot(good.envelope.model_copy(update={"seq": 999}), good.state))
    # Of a log that has other entries at that place.
    other = good.envelope.model_copy(update={"seq": good.envelope.seq + 3})
    snapshots.write(Snapshot(other, good.state))
    session.process = session.spawn()
    session.run_until(lambda: session.ended)
    faults = [e.document for e in session.read() if isinstance(e.document, Fault)]
    assert {f.what for f in faults} == {"snapshot refused"}
    words = ["entry 999, which the log has lost", "torn or damaged", f"entry {other.seq} of the log is not the one"]
    assert len(faults) == len(words)
    assert all(word in fault.detail for word, fault in zip(words, faults, strict=True))
    assert newest.with_suffix(".bad").exists()
    assert verdict_of(session.read()) == []


def test_a_snapshot_of_another_session_is_refused_and_the_log_is_read_from_its_beginning(
    session: Session, tmp_path: Path
) -> None:
    session.answer(1)
    session.saved(1)
    session.kill()
    (path,) = (session.folder / "snapshots").glob("*.npz")
    start = session_start(session.config, session.text)
    mine = Snapshots(path.parent, session_identity(start), program_identity())
    foreign = Snapshots(path.parent, session_identity(start.model_copy(update={"start_utc_ns": 9})), program_identity())
    foreign.write(mine.read(path))
    session.process = session.spawn()
    session.run_until(lambda: session.ended)
    (fault,) = (e.document for e in session.read() if isinstance(e.document, Fault))
    assert "belongs to another session" in fault.detail
    assert verdict_of(session.read()) == []


def test_the_process_says_from_where_it_goes_on(session: Session) -> None:
    session.answer(1)
    session.saved(1)
    session.process.kill()
    said, _ = session.process.communicate(timeout=200)
    assert json.loads(said.splitlines()[0])["ready"]["snapshot"].startswith("none")
    session.restart()
    session.process.kill()
    said, _ = session.process.communicate(timeout=200)
    assert "model-" in said or said == ""  # it may have been killed before it was ready
