"""A fold that goes on from a snapshot says, bit by bit, what the fold says that was never stopped."""

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rig.clock import HostClock
from rig.config.reading import load, parse
from rig.config.session import Config
from rig.encoding import encode
from rig.links.bus import Hub
from rig.links.peer import Peer
from rig.messages import (
    BarcodeSent,
    Continuity,
    Document,
    Entry,
    Envelope,
    Fault,
    Gap,
    Presented,
    ProcessStarted,
    Response,
    SpikeBlock,
    Tick,
    TraceBlock,
    UnitList,
    kind_of,
)
from rig.recording import fold_snapshot
from rig.recording.fold_snapshot import FoldSnapshots, restored, take
from rig.recording.journal import read_all
from rig.recording.recorder import Recorder
from rig.responses.windows import WindowFold
from tests import test_fold_survives, test_gates, test_sync_line, test_traces
from tests.paper_session import paper_session
from tests.recorder_child import ROOT, RecorderChild, until
from tests.synthetic_session import Synthetic

Session = tuple[Config, list[Entry]]
MS = 1_000_000


def again(fold: WindowFold, config: Config) -> WindowFold:
    """The fold as it comes back from its snapshot, of which no object is shared with it."""
    encoder = take(fold, config)
    text = "".join(encoder.pieces()).encode()
    return restored(text, encoder.arrays(), config)


def said(fold: WindowFold, entries: list[Entry]) -> list[list[list[bytes]]]:
    return [[encode(d) for d in fold.apply(entry)] for entry in entries]


# --- sessions ---------------------------------------------------------------------------------------------------------


def of_documents(config: Config, documents: list[tuple[str, Document]]) -> Session:
    entries = [
        Entry(Envelope(seq=k, receipt_host_ns=k, sender=sender, process=sender, sender_seq=k), document)
        for k, (sender, document) in enumerate(documents, start=1)
    ]
    return config, entries


def on_paper(folder: Path, photodiode: bool) -> Session:
    """Spikes, edges, a model server; blocks are lost twice."""
    made = paper_session(folder / f"paper-{photodiode}", generations=1, lose=(7.0, 16.0), photodiode=photodiode)
    config, _ = load(made.folder / "config.yaml")
    return config, read_all(made.folder / "session.journal")


def synthetic(_: Path) -> Session:
    session = Synthetic(kind="both", generations=2, size=8)
    return session.config, list(session.entries())


def runs_and_boots(_: Path) -> Session:
    """Two runs, then another boot of the computer, documents that raise in between, images that wait over each end."""
    log = test_fold_survives.Log()
    log.take(test_fold_survives.started("boot-1"), "recorder")
    log.run(1000 * 10**9, run=9000, presentations=range(0, 8), seconds=3.0)
    for name, poison in test_fold_survives.poisons():
        if "last run" not in name:
            log.take(poison, "rig" if isinstance(poison, Presented) else "probe")
    log.run(1003 * 10**9, run=9001, presentations=range(8, 16))
    log.take(log.presented(16, 1007 * 10**9), "rig")
    log.take(test_fold_survives.started("boot-2"), "recorder")
    log.run(5 * 10**9, run=50, presentations=range(17, 27))
    log.close()
    return parse(test_fold_survives.CONFIG), log.entries


class Noted:
    """Stands where a fold is fed, and only keeps what it is fed with."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def apply(self, entry: Entry) -> list[Document]:
        self.entries.append(entry)
        return []


def with_behaviour(_: Path) -> Session:
    """Two gates: gaze that leaves and blinks, running; rows that were lost; a block baseline."""
    gates = "{fixation: {source: eye, radius_deg: 2.0}, criteria: [{source: eye, channel: running_cm_s, most: 9}]}"
    stretches = ((1.0, 1.1, test_gates.AWAY), (1.5, 1.6, test_gates.BLINK), (2.0, 2.2, test_gates.RUNS))
    noted = Noted()
    rig = test_gates.Rig(noted, stretches, eye_gap=(3.0, 3.05))  # type: ignore[arg-type]
    for k in range(12):
        rig.both(0.8 + 0.25 * k)
        rig.show(k, 0.7 + 0.25 * k)
    rig.both(8.0)
    rig.take(Tick(tick_host_ns=test_gates.host(9.0)))
    return test_gates.config(gates), noted.entries


def imaging(measure: str) -> Session:
    """60 s of 12 ROIs with lost frames, a list that changes, and a device that is started again."""
    units = tuple(f"roi{k}" for k in range(12))
    config = parse(f"""
sources:
- {{type: traces_zmq, name: scope, port: 5558, photodiode_line: null,
   calcium: {{measure: {measure}, baseline_window_s: 12}}}}
responses: {{units: [{", ".join(units)}], window_s: [0.05, 0.55], baseline: {{kind: block, window_s: [-0.3, 0]}}}}
presentation: {{on_s: 0.2, off_s: 0.8}}
phases: [{{agent: present}}]
""")
    rate, host0 = test_traces.RATE_HZ, 10**12
    microscope, frames, _, _ = test_traces.recording(30.0, units=12)
    documents: list[tuple[str, Document]] = [("recorder", test_fold_survives.started("boot"))]
    shown = test_fold_survives.Log()
    number = 0
    for run in (1, 2):
        start_ns = host0 + run * 60 * 10**9
        names, listed = units, 0
        documents.append(("scope", listing(run, 0, names, microscope.scan_offset_s, 0)))
        for k in range(len(frames.frame)):
            sample = int(frames.sample[k])
            if k in (300, 301, 500):
                continue  # lost
            if k == 600:
                listed, names = 1, units[::-1]
                documents.append(("scope", listing(run, 1, names, microscope.scan_offset_s[::-1], sample)))
            order = slice(None) if listed == 0 else slice(None, None, -1)
            documents.append(("scope", TraceBlock(
                source="scope", run=run, list_number=listed, frame=frames.frame[k : k + 1],
                sample=frames.sample[k : k + 1], arrival_host_ns=frames.sample[k : k + 1],
                values=frames.fluorescence[k : k + 1, order], neuropil=frames.neuropil[k : k + 1, order],
            )))  # fmt: skip
            at_ns = start_ns + round(sample * 1e9 / rate)
            if k % 3 == 0:
                documents.append(("scope", test_fold_survives.ClockSample(
                    source="scope", run=run, device_sample=float(sample), pair_host_ns=at_ns + 3 * MS)))
                documents.append(("scope", Continuity(
                    source="scope", run=run, state="streaming", sample_rate_hz=rate, watermark_sample=sample + 1,
                    messages=k, lost_messages=0)))  # fmt: skip
            if k % 20 == 0 and k > 200:
                documents.append(("rig", shown.presented(number, at_ns - 200 * MS)))
                number += 1
            if k % 30 == 0:
                documents.append(("recorder", Tick(tick_host_ns=at_ns)))
    documents.append(("recorder", Tick(tick_host_ns=host0 + 10**12, closing=True)))
    return of_documents(config, documents)


def listing(run: int, number: int, units: tuple[str, ...], offset: Any, sample: int) -> UnitList:
    return UnitList(
        source="scope", run=run, list_number=number, from_sample=sample, units=units,
        scan_offset_s=np.ascontiguousarray(offset, np.float64), measure="fluorescence",
    )  # fmt: skip


def with_barcodes(_: Path) -> Session:
    """A barcode each 3 s, one of them damaged; some are told of late."""
    config, rate = test_sync_line.config_with_sync(), test_sync_line.RATE_HZ
    documents: list[tuple[str, Document]] = []
    for second in range(20):
        first = 1_000_000 + second * 30_000
        edges = []
        if second % 3 == 0:
            edges = test_sync_line.edges_of(1000 + second, first + 500)
            edges = edges[:9] + edges[10:] if second == 9 else edges
            out = BarcodeSent(output="sync", number=1000 + second, sent_host_ns=second * 10**9, uncertainty_ns=1000)
            documents.append(("sync", out))
        for k in range(5):
            low, high = first + k * 6000, first + (k + 1) * 6000
            if part := [edge for edge in edges if low <= edge[0] and (edge[0] < high or k == 4)]:
                documents.append(("probe", test_sync_line.block(part)))
            documents.append(("probe", SpikeBlock(
                source="probe", run=1, units=("a",), unit=np.zeros(1, np.uint16), sample=np.array([low + 9]),
                arrival_host_ns=np.array([low]))))  # fmt: skip
            documents.append(("probe", Continuity(
                source="probe", run=1, state="streaming", sample_rate_hz=rate, watermark_sample=high,
                messages=k, lost_messages=0,
                gaps=(Gap(first_sample=low, end_sample=low + 5, messages=1),))))  # fmt: skip
        documents.append(("recorder", Tick(tick_host_ns=second * 10**9)))
    return of_documents(config, documents)


SESSIONS: dict[str, tuple[Callable[[Path], Session], int]] = {
    # name: how it is made, how many responses and clock pairs the fold must have given for the comparison to say much
    "spikes": (lambda folder: on_paper(folder, True), 30),
    "no photodiode": (lambda folder: on_paper(folder, False), 30),
    "synthetic": (synthetic, 40),
    "runs and boots": (runs_and_boots, 27),
    "behaviour": (with_behaviour, 12),
    "deconvolved": (lambda _: imaging("deconvolved"), 60),
    "dff": (lambda _: imaging("dff"), 60),
    "barcodes": (with_barcodes, 6),
}


@pytest.fixture(scope="module", params=SESSIONS)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Any]:
    make, least = SESSIONS[request.param]
    config, entries = make(tmp_path_factory.mktemp("made"))
    fold = WindowFold(config)
    documents = [fold.apply(entry) for entry in entries]
    given = [d for some in documents for d in some if kind_of(d) in ("response", "clock_sample")]
    assert len(given) >= least, len(given)
    if request.param not in ("barcodes",):
        assert sum(isinstance(d, Response) and d.usable for d in given) >= least // 3
    return (config, entries), [[encode(d) for d in some] for some in documents]


def test_a_fold_that_is_snapshot_and_restored_again_and_again_says_the_same(session: tuple[Session, Any]) -> None:
    (config, entries), never_stopped = session
    rng = np.random.default_rng(7)
    moments = set(rng.choice(len(entries), min(100, len(entries) // 3), replace=False).tolist())
    moments |= {0, len(entries) - 1}
    fold = WindowFold(config)
    for k, entry in enumerate(entries):
        assert [encode(d) for d in fold.apply(entry)] == never_stopped[k], f"entry {k + 1}"
        if k in moments:
            fold = again(fold, config)


def test_going_on_after_a_snapshot_leaves_the_snapshot_as_it_was(session: tuple[Session, Any]) -> None:
    """What the thread writes is the state at its entry, though the fold goes on before the thread has begun."""
    (config, entries), never_stopped = session
    fold, before, taken = WindowFold(config), 0, []
    for at in (len(entries) // 3, len(entries) * 3 // 4):
        said(fold, entries[before:at])
        taken.append((at, take(fold, config)))
        before = at
    said(fold, entries[before:])
    for at, encoder in taken:
        text = "".join(encoder.pieces()).encode()
        late = restored(text, encoder.arrays(), config)
        assert said(late, entries[at:]) == never_stopped[at:]


# --- files ------------------------------------------------------------------------------------------------------------


def written(folder: Path, session: Session, *stands: int) -> tuple[FoldSnapshots, Callable[[int], Envelope | None]]:
    """Snapshots of a session after those entries, in `folder`."""
    config, entries = session
    snapshots, fold = FoldSnapshots(folder, config), WindowFold(config)
    for entry in entries:
        fold.apply(entry)
        if entry.envelope.seq in stands:
            snapshots.keep(fold, entry.envelope, [2], 0)
            snapshots.end()
            assert snapshots.failure() == ""
    return snapshots, lambda seq: entries[seq - 1].envelope


@pytest.fixture(scope="module")
def log() -> Session:
    return runs_and_boots(Path())


def test_the_last_two_are_kept_and_the_newest_is_used(tmp_path: Path, log: Session) -> None:
    snapshots, envelope = written(tmp_path, log, 100, 200, 300)
    assert [p.name for p in snapshots.newest_first()] == ["recorder-000000000300.npz", "recorder-000000000200.npz"]
    fold, at, unreadable, refused = snapshots.newest(len(log[1]), envelope)
    assert (at, unreadable, refused) == (300, [2], [])
    reference = WindowFold(log[0])
    assert said(fold, log[1][300:]) == said(reference, log[1])[300:]
    assert sorted(p.suffix for p in (tmp_path / "snapshots").iterdir()) == [".npz", ".npz"]


def test_a_torn_or_flipped_snapshot_is_named_and_the_older_one_is_used(tmp_path: Path, log: Session) -> None:
    snapshots, envelope = written(tmp_path, log, 200, 300)
    newest = snapshots.newest_first()[0]
    whole, rng = newest.read_bytes(), np.random.default_rng(5)
    used = 0
    for k in range(60):
        at = int(rng.integers(0, len(whole)))
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(0, 8))
        newest.write_bytes(whole[:at] if k % 2 else bytes(flipped))
        _, stands, _, refused = snapshots.newest(len(log[1]), envelope)
        if stands == 300:  # a flipped bit of the archive's own bookkeeping that means nothing
            assert refused == []
            used += 1
            continue
        assert stands == 200
        assert len(refused) == 1
        assert newest.name in refused[0]
        assert newest.with_suffix(".bad").exists()
    assert used < 20


def test_a_snapshot_of_something_else_is_named_and_not_used(
    tmp_path: Path, log: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, entries = log
    snapshots, envelope = written(tmp_path, log, 300)
    (path,) = snapshots.newest_first()

    def why(by: FoldSnapshots, last: int = len(entries), of: Callable[[int], Envelope | None] = envelope) -> str:
        _, at, _, refused = by.newest(last, of)
        assert at == 0
        path.with_suffix(".bad").rename(path)
        return refused[0]

    assert "the log ends at 299" in why(snapshots, last=299)
    other = {"seq": 300, "process": "another start"}
    assert "not the one that it was made after" in why(snapshots, of=lambda seq: envelope(seq).model_copy(update=other))  # type: ignore[union-attr]
    assert "not the one" in why(snapshots, of=lambda seq: None)
    longer = config.model_copy(update={"responses": config.responses.model_copy(update={"timeout_s": 3.0})})
    assert "another config" in why(FoldSnapshots(tmp_path, longer))
    monkeypatch.setattr(fold_snapshot, "program_identity", lambda _: "another")
    fold_snapshot.program.cache_clear()
    assert "another version of the program" in why(FoldSnapshots(tmp_path, config))
    fold_snapshot.program.cache_clear()
    monkeypatch.undo()
    path.rename(path.with_name("recorder-000000000299.npz"))
    _, at, _, refused = snapshots.newest(len(entries), envelope)
    assert at == 0
    assert "not the one" in refused[0]


def test_the_program_s_identity_covers_all_that_the_fold_imports() -> None:
    code = "import sys, rig.responses.windows; print(*(getattr(m, '__file__', '') for m in list(sys.modules.values())))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = (Path(name).relative_to(ROOT) for name in done.stdout.split() if Path(name).is_relative_to(ROOT))
    loaded = {path for path in ours if path.parts[0] in ("rig", "models", "stimuli")}  # .venv lies there too
    assert len(loaded) > 30
    assert loaded <= {path.relative_to(ROOT) for pattern in fold_snapshot.TEXT for path in ROOT.glob(pattern)}


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, log: Session) -> None:
    config, entries = log
    (tmp_path / "snapshots").write_text("a file where the folder should be")
    snapshots, fold = FoldSnapshots(tmp_path, config), WindowFold(config)
    said(fold, entries[:50])
    for expected in (True, False):
        snapshots.keep(fold, entries[49].envelope, [], 0)
        snapshots.end()
        assert bool(snapshots.failure()) == expected


# --- recorders --------------------------------------------------------------------------------------------------------


def fed(child: RecorderChild, peers: dict[str, Peer], entries: list[Entry]) -> None:
    """Send what peers of a recorder send, one after the other, so that the journals of two recorders agree."""
    before = ""
    for entry in entries:
        sender = entry.envelope.sender
        if sender == "recorder" or entry.envelope.cause_seq is not None:
            continue
        if sender != before:
            until(lambda: not any(peer.unacked for peer in peers.values()), *peers.values())
        before = sender
        if sender not in peers:
            peers[sender] = Peer(sender, child.endpoint, frozenset(), HostClock())
        peers[sender].send(entry.document)
    until(lambda: not any(peer.unacked for peer in peers.values()), *peers.values())


def by_recorder(folder: Path) -> list[list[bytes]]:
    """What the response fold made of the documents in a journal; times and numbers of the recorder itself left out."""
    documents = [e.document for e in read_all(folder / "session.journal")]
    return [encode(d) for d in documents if isinstance(d, Response)]


def test_a_killed_recorder_goes_on_from_its_snapshot_and_responds_as_one_never_killed(tmp_path: Path) -> None:
    _, entries = synthetic(tmp_path)
    cuts = [0, len(entries) // 3, len(entries) * 2 // 3, len(entries)]
    kept: list[str] = []
    for name in ("never", "killed"):
        child, peers = RecorderChild(tmp_path / name), dict[str, Peer]()
        try:
            for start, end in pairwise(cuts):
                fed(child, peers, entries[start:end])
                if name == "killed" and end < len(entries):
                    child.kill()
                    there = len(read_all(child.folder / "session.journal"))
                    child.start()
                    saved(child.folder, there, peers)
                    kept.append(notes(child.folder)["snapshot"])
            assert child.end() == 0
        finally:
            for peer in peers.values():
                peer.close()
            if child.process.poll() is None:
                child.kill()
    assert kept[0].startswith("none")
    assert all(k.startswith("recorder-0") for k in kept[1:])
    assert len(kept) == 2
    assert len(by_recorder(tmp_path / "never")) > 40
    assert by_recorder(tmp_path / "killed") == by_recorder(tmp_path / "never")


def saved(folder: Path, after: int, peers: dict[str, Peer]) -> None:
    """Wait for a snapshot that stands after an entry: one is taken at once after a restart."""
    until(lambda: stands(folder / "snapshots") > after, *peers.values())


def stands(folder: Path) -> int:
    return max((int(p.stem.split("-")[1]) for p in folder.glob("recorder-*.npz")), default=0)


def notes(folder: Path) -> dict[str, str]:
    started = [e.document for e in read_all(folder / "session.journal") if isinstance(e.document, ProcessStarted)]
    return [d.notes for d in started if d.name == "recorder"][-1]


def recorder(folder: Path, config: Config, entries: list[Entry]) -> Recorder:
    start = next(d.document for d in entries if kind_of(d.document) == "session_start")
    return Recorder(folder / "session.journal", Hub("tcp://127.0.0.1:0"), config, HostClock(), lambda: start)  # type: ignore[arg-type,return-value]


def test_what_a_kill_kept_from_the_journal_is_said_after_the_restart_also_with_a_snapshot(tmp_path: Path) -> None:
    """The journal ends between an entry and what it caused, and the snapshot stands before that entry."""
    config, entries = synthetic(tmp_path)
    folder = tmp_path / "s"
    folder.mkdir()
    first = recorder(folder, config, entries)
    sent = [e.document for e in entries if e.envelope.sender in ("probe", "rig", "model")]
    for k, document in enumerate(sent):
        first.submit(document)
        if k == len(sent) // 2 and (stand := first.stand()) is not None:
            first.snapshots.keep(*stand, 0)
    first.abandon()
    path = folder / "session.journal"
    whole = read_all(path)
    at = first.snapshots.newest_first()[0]
    caused = [e for e in whole if isinstance(e.document, Response) and e.envelope.seq > stands(at.parent) + 50]
    cut = caused[len(caused) // 2]
    second = recorder(folder, config, entries)
    offset = second._index.offset(cut.envelope.seq)
    second.abandon()
    with path.open("r+b") as file:
        file.truncate(offset)
    third = recorder(folder, config, entries)
    third.submit(Tick(tick_host_ns=1))
    third.abandon()
    after = [e for e in read_all(path) if e.envelope.seq >= cut.envelope.seq]
    owed = [e for e in after if e.envelope.cause_seq == cut.envelope.cause_seq]
    assert [encode(e.document) for e in owed[:1]] == [encode(cut.document)]
    assert third.snapshots.used.startswith(at.name)
    envelopes = [e.envelope for e in read_all(path) if e.envelope.cause_seq is not None]
    causes = [(envelope.cause_seq, envelope.cause_index) for envelope in envelopes]
    assert len(causes) == len(set(causes))  # and nothing twice


def test_a_snapshot_that_the_log_has_lost_is_a_fault_and_the_whole_journal_is_folded(tmp_path: Path) -> None:
    config, entries = synthetic(tmp_path)
    folder = tmp_path / "s"
    folder.mkdir()
    first = recorder(folder, config, entries)
    for k in range(20):
        first.submit(Tick(tick_host_ns=k))
    stand = first.stand()
    assert stand is not None
    first.snapshots.keep(stand[0], replace_seq(stand[1], 500), [], 0)
    first.abandon()
    second = recorder(folder, config, entries)
    second.abandon()
    (fault,) = [e.document for e in read_all(folder / "session.journal") if isinstance(e.document, Fault)]
    assert (fault.what, "the log ends at 21" in fault.detail) == ("snapshot refused", True)
    assert second.presentations == 0


def replace_seq(envelope: Envelope, seq: int) -> Envelope:
    return envelope.model_copy(update={"seq": seq})
