"""Acknowledged means journalled: real recorders are killed, cut, flipped, starved of disk, and nothing is lost."""

import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rig.cli import app
from rig.clock import HostClock
from rig.config.reading import parse
from rig.links.bus import Hub
from rig.links.peer import Peer
from rig.messages import (
    Document,
    Entry,
    Fault,
    Pause,
    SessionStart,
    SessionStop,
    SpikeBlock,
    Tick,
    kind_of,
)
from rig.recording.journal import JournalWriter, last_whole_seq, read_all
from rig.recording.recorder import Recorder
from rig.recording.records import record
from rig.recording.recover import recover
from rig.view.h5 import build, up_to_date
from tests.recorder_child import CONFIG, ROOT, RecorderChild, small_disk, until
from tests.synthetic_session import Synthetic
from tests.test_messages import EXAMPLES
from tests.test_view import contents

MB = 1 << 20


def fault(detail: str) -> Fault:
    return Fault(what="test", detail=detail, done="nothing")


def block(k: int, spikes: int = 200) -> SpikeBlock:
    rng = np.random.default_rng(k)
    return SpikeBlock(
        source="probe",
        run=1,
        units=("E01#0",),
        unit=np.zeros(spikes, np.uint16),
        sample=np.sort(rng.integers(750 * k, 750 * (k + 1), spikes)),
        arrival_host_ns=np.full(spikes, k, np.int64),
    )


def acked(peer: Peer) -> int:
    """Number of the last document that the peer holds as acknowledged."""
    return peer._sent - peer.unacked


def of(folder: Path, process: str) -> list[int]:
    """The sender's own numbers of all that is journalled of one process start, in journal order."""
    entries = read_all(folder / "session.journal")
    return [e.envelope.sender_seq for e in entries if e.envelope.process == process]


def documents(folder: Path, kind: type[Document]) -> list[Document]:
    return [e.document for e in read_all(folder / "session.journal") if isinstance(e.document, kind)]


# --- killed -----------------------------------------------------------------------------------------------------------


def test_what_is_acknowledged_is_in_the_journal_whenever_the_recorder_is_killed(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    child = RecorderChild(tmp_path / "s")
    peers = [Peer(name, child.endpoint, frozenset(), HostClock()) for name in ("probe", "rig")]
    try:
        for start in range(5):
            looks = int(rng.integers(5, 150))  # a moment that depends on nothing the recorder does
            for k in range(looks):
                peers[0].send(block(k, int(rng.integers(1, 3000))))
                peers[1].send(fault(f"{start} {k}"))
                for peer in peers:
                    peer.poll()
            if start == 0:
                until(lambda: all(acked(p) for p in peers), *peers)
            child.kill()
            for peer in peers:
                there = of(child.folder, peer.process)
                assert there == list(range(1, len(there) + 1))  # each once, in order
                assert len(there) >= acked(peer)
            endpoint = child.endpoint
            child.start()
            assert child.endpoint == endpoint
        until(lambda: not any(p.unacked for p in peers), *peers)
        assert child.end() == 0
        for peer in peers:
            assert of(child.folder, peer.process) == list(range(1, peer._sent + 1))
    finally:
        for peer in peers:
            peer.close()
        if child.process.poll() is None:
            child.kill()


def test_a_session_with_a_killed_recorder_gives_the_same_file_live_and_rebuilt(tmp_path: Path) -> None:
    entries = list(Synthetic(kind="both", generations=2, size=24).entries())
    child = RecorderChild(tmp_path / "s")
    view = subprocess.Popen(
        [sys.executable, "-m", "rig.view.h5", "--folder", str(child.folder)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    peers: dict[str, Peer] = {}
    try:
        for number, entry in enumerate(entries):
            sender = entry.envelope.sender
            if sender == "recorder" or isinstance(entry.document, SessionStop):
                continue
            if sender not in peers:
                peers[sender] = Peer(sender, child.endpoint, frozenset(), HostClock())
            peers[sender].send(entry.document)
            for peer in peers.values():
                peer.poll()
            if number in (len(entries) // 3, len(entries) // 2):
                until(lambda: (child.folder / "session.h5.part").exists(), *peers.values())
                child.kill()
                child.start()
        until(lambda: not any(p.unacked for p in peers.values()), *peers.values())
        assert child.end() == 0
        view.communicate("stop\n", timeout=200)
        assert view.returncode == 0
    finally:
        for peer in peers.values():
            peer.close()
        for process in (child.process, view):
            if process.poll() is None:
                process.kill()
                process.communicate()
    live = contents(child.folder / "session.h5")
    (child.folder / "session.h5").rename(tmp_path / "live.h5")
    said = recover(child.folder)
    assert contents(child.folder / "session.h5") == live
    assert any("started 3 times" in line for line in said)
    assert len(live) > 100


# --- damaged ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The journal of a session that a real recorder wrote, with every kind of document in it."""
    folder = tmp_path_factory.mktemp("real")
    hub = Hub("tcp://127.0.0.1:0")
    text = CONFIG.format(reserve_gb=0)
    entries = list(Synthetic(kind="evolve", generations=2, candidates=5, size=16).entries())
    start = next(e.document for e in entries if isinstance(e.document, SessionStart))
    recorder = Recorder(folder / "session.journal", hub, parse(text), HostClock(), lambda: start)
    skip = {"session_start", "session_stop", "response", "stop_requested"}
    lines = {n: Peer(n, hub.endpoint, frozenset(), HostClock()) for n in ("probe", "rig", "model")}
    for entry in entries:
        if kind_of(entry.document) not in skip and entry.envelope.sender in lines:
            lines[entry.envelope.sender].send(entry.document)
    for document in EXAMPLES:
        if kind_of(document) not in skip:
            lines["probe"].send(document)
    for _ in range(2000):
        recorder.step(0.001)
        for line in lines.values():
            line.poll()
        if not any(line.unacked for line in lines.values()):
            break
    recorder.close("made")
    for line in lines.values():
        line.close()
    return (folder / "session.journal").read_bytes()


def ends(data: bytes) -> list[int]:
    """Where each record of a whole journal ends; the header's first."""
    out, at = [], 0
    while at < len(data):
        at += 20 + int.from_bytes(data[at + 4 : at + 8], "little")
        out.append(at)
    return out


def test_a_journal_cut_at_a_thousand_places_is_recovered_up_to_its_last_whole_record(
    session: bytes, tmp_path: Path
) -> None:
    path, rng = tmp_path / "session.journal", np.random.default_rng(12)
    stops = np.array(ends(session))
    seqs = [e.envelope.seq for e in _read(path, session)]
    assert len(seqs) == len(stops) - 1 > 150
    for cut in rng.integers(0, len(session), 1000):
        path.write_bytes(session[:cut])
        whole = max(int((stops <= cut).sum()) - 1, 0)
        writer = JournalWriter(path, "s")
        assert writer.last_seq == whole
        assert writer.cut_bytes == (int(cut) - int(stops[whole]) if cut >= stops[0] else int(cut))
        writer.append(whole + 1, b"x" * 100)
        extra = record(whole + 1, b"x" * 100)
        writer.close()
        kept = session[: stops[whole]] if cut >= stops[0] else path.read_bytes()[: -len(extra)]
        assert path.read_bytes() == kept + extra
        assert last_whole_seq(path) == whole + 1


def _read(path: Path, data: bytes) -> list[Entry]:
    path.write_bytes(data)
    return read_all(path)


def _restarted(folder: Path) -> tuple[list[Entry], list[Entry]]:
    """Start a recorder on a journal, let a peer read all of it, close it; return journal and what the peer got."""
    hub = Hub("tcp://127.0.0.1:0")
    config = parse(CONFIG.format(reserve_gb=0))
    start = next(d for d in EXAMPLES if isinstance(d, SessionStart))
    recorder = Recorder(folder / "session.journal", hub, config, HostClock(), lambda: start)
    everything = frozenset(kind_of(d) for d in EXAMPLES)
    late = Peer("late", hub.endpoint, everything, HostClock())
    got: list[Entry] = []
    for _ in range(3000):
        recorder.step(0.001)
        got += late.poll()
        if got and got[-1].envelope.seq == recorder.journal.last_seq:
            break
    recorder.close("test")
    late.close()
    return read_all(folder / "session.journal"), got


def test_a_recorder_goes_on_from_a_journal_that_was_cut_anywhere(session: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(13)
    for cut in [0, 3, 40, *rng.integers(0, len(session), 5)]:
        (tmp_path / "session.journal").write_bytes(session[:cut])
        before = last_whole_seq(tmp_path / "session.journal") if cut else 0
        entries, got = _restarted(tmp_path)
        assert [e.envelope.seq for e in entries] == list(range(1, len(entries) + 1))
        assert len(entries) > before
        assert isinstance(entries[-1].document, SessionStop)
        assert [e.envelope.seq for e in got] == [e.envelope.seq for e in entries[: len(got)]]
        recover(tmp_path)


def test_a_recorder_goes_on_from_a_journal_with_flipped_bytes_and_names_them(session: bytes, tmp_path: Path) -> None:
    rng, stops = np.random.default_rng(14), np.array(ends(session))
    for at in rng.integers(stops[0], stops[-2], 6):
        damaged = bytearray(session)
        damaged[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "session.journal").write_bytes(damaged)
        hit = int((stops <= at).sum())  # records 0 .. hit - 1 end before: the number of the entry it lies in
        entries, got = _restarted(tmp_path)
        seqs = [e.envelope.seq for e in entries]
        assert hit not in seqs
        assert hit not in [e.envelope.seq for e in got]
        assert seqs == [k for k in range(1, seqs[-1] + 1) if k != hit]
        said = [e.document.detail for e in entries if isinstance(e.document, Fault) and "damaged" in e.document.what]
        assert len(said) == 1
        assert "1 entries cannot be read" in said[0]
        assert any(line.startswith("missing: 1 of") for line in recover(tmp_path))


def test_a_byte_that_flips_while_the_session_runs_costs_that_entry_and_no_peer(tmp_path: Path) -> None:
    hub, path = Hub("tcp://127.0.0.1:0"), tmp_path / "session.journal"
    start = next(d for d in EXAMPLES if isinstance(d, SessionStart))
    recorder = Recorder(path, hub, parse(CONFIG.format(reserve_gb=0)), HostClock(), lambda: start)
    for k in range(20):
        recorder.submit(fault(str(k)))
    recorder._routes._cache.clear()
    offset = recorder._index.offset(10)
    with path.open("r+b") as file:
        file.seek(offset + 60)
        byte = file.read(1)
        file.seek(offset + 60)
        file.write(bytes([byte[0] ^ 4]))
    late = Peer("late", hub.endpoint, frozenset({"fault"}), HostClock())
    got: list[Entry] = []
    for _ in range(1000):
        recorder.step(0.001)
        got += late.poll()
        if got and got[-1].document.what == "journal damaged":  # type: ignore[attr-defined]
            break
    assert [e.document.detail for e in got[:-1]] == [str(k) for k in range(20) if k != 8]  # type: ignore[attr-defined]
    assert "entry 10" in got[-1].document.detail  # type: ignore[attr-defined]
    late.close()
    recorder.close("test")


# --- no room ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 16) as path:
        yield path


def fill(disk: Path, leave: int) -> Path:
    """Write a file that leaves so many bytes free."""
    ballast = disk / "ballast"
    with ballast.open("ab") as file:
        while (free := shutil.disk_usage(disk).free) > leave:
            try:
                file.write(bytes(min(free - leave, MB)))
                file.flush()
            except OSError:
                break
    return ballast


def test_a_disk_that_fills_pauses_the_session_loses_nothing_and_goes_on_with_space(disk: Path) -> None:
    child = RecorderChild(disk / "s", reserve_gb=0.006)
    source = Peer("probe", child.endpoint, frozenset(), HostClock())
    rig = Peer("rig", child.endpoint, frozenset({"pause"}), HostClock())
    got: list[Entry] = []
    try:
        ballast = fill(disk, 4 * MB)
        got += until(lambda: documents(child.folder, Pause), source, rig)
        for k in range(40):  # 3 MB more than there is room for
            source.send(block(k, 10_000))
            got += rig.poll() + source.poll()
        got += until(lambda: rig.full and source.full, source, rig)
        before = acked(source)
        there = of(child.folder, source.process)
        assert there == list(range(1, len(there) + 1))
        assert 40 > len(there) >= before > 0
        assert "free space on this disk" in rig.full
        assert child.process.poll() is None
        until(lambda: acked(source) == len(there), source)  # what was taken just before the disk was full
        kept = source.unacked_bytes
        for _ in range(30):  # nothing is sent again and again meanwhile
            source.poll(0.01)
        assert source.unacked_bytes == kept
        ballast.unlink()
        until(lambda: source.unacked == 0 and not rig.full, source, rig)
        until(lambda: [d.paused for d in documents(child.folder, Pause)] == [True, False], source, rig)
        assert child.end() == 0
    finally:
        source.close()
        rig.close()
        if child.process.poll() is None:
            child.kill()
    assert of(child.folder, source.process) == list(range(1, 41))
    faults = [d.what for d in documents(child.folder, Fault)]
    assert faults.index("disk nearly full") < faults.index("journal full")
    assert isinstance(got[0].document, Pause)
    assert got[0].document.paused
    assert "reserve" in got[0].document.reason
    assert isinstance(read_all(child.folder / "session.journal")[-1].document, SessionStop)
    assert any("the session waits" in str(said.get("tell")) for said in child.said)


def test_a_recorder_that_is_killed_on_a_full_disk_still_has_what_it_acknowledged(disk: Path) -> None:
    child = RecorderChild(disk / "s")
    source = Peer("probe", child.endpoint, frozenset(), HostClock())
    try:
        until(lambda: acked(source) >= 0 and source._welcomed, source)
        ballast = fill(disk, MB // 2)
        for k in range(10):
            source.send(block(k, 10_000))
            source.poll()
        until(lambda: source.full and acked(source), source)
        before = acked(source)
        child.kill()
        there = of(child.folder, source.process)
        assert there == list(range(1, len(there) + 1))
        assert len(there) >= before > 0
        child.start()
        assert "ready" in child.said[-1]
        ballast.unlink()
        until(lambda: source.unacked == 0, source)
        assert child.end() == 0
    finally:
        source.close()
        if child.process.poll() is None:
            child.kill()
    assert of(child.folder, source.process) == list(range(1, 11))


def test_a_limit_on_the_file_is_a_full_disk_too(tmp_path: Path) -> None:
    child = RecorderChild(tmp_path / "s", largest_file=400_000)
    source = Peer("probe", child.endpoint, frozenset(), HostClock())
    try:
        for k in range(10):
            source.send(block(k, 5_000))
        until(lambda: source.full and acked(source), source)
        assert "File too large" in source.full
        assert 0 < acked(source) < 10
        resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until(lambda: source.unacked == 0, source)
        assert child.end() == 0
    finally:
        source.close()
        if child.process.poll() is None:
            child.kill()
    assert of(child.folder, source.process) == list(range(1, 11))


def test_a_session_that_ends_on_a_full_disk_says_so_and_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    child = RecorderChild(tmp_path / "s", largest_file=200_000)
    source = Peer("probe", child.endpoint, frozenset(), HostClock())
    try:
        for k in range(5):
            source.send(block(k, 5_000))
        until(lambda: source.full and acked(source), source)
        before = acked(source)
        assert child.end() == 2
    finally:
        source.close()
        if child.process.poll() is None:
            child.kill()
    assert "the log has no end" in str(child.said[-1]["failed"])
    there = of(child.folder, source.process)
    assert there == list(range(1, len(there) + 1))
    assert 5 > len(there) >= before > 0


# --- the view, where there is no room ---------------------------------------------------------------------------------


def _view(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "rig.view.h5", "--folder", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _journal(folder: Path, blocks: int, reserve_gb: float) -> JournalWriter:
    from rig.encoding import encode, encode_entry
    from rig.messages import Envelope

    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG.format(reserve_gb=reserve_gb))
    writer = JournalWriter(folder / "session.journal", folder.name)
    start = next(d for d in EXAMPLES if isinstance(d, SessionStart))
    for seq, document in enumerate([start, *(block(k, 5_000) for k in range(blocks)), Tick(tick_host_ns=1)], start=1):
        envelope = Envelope(seq=seq, receipt_host_ns=seq, sender="probe", process="probe-1", sender_seq=seq)
        writer.append(seq, encode_entry(envelope, encode(document)))
    return writer


def test_the_view_waits_for_room_and_gives_way_to_the_journal(disk: Path) -> None:
    _journal(disk / "s", 20, reserve_gb=0.008).close()
    ballast = fill(disk, 2 * MB)  # less than half of the reserve
    view = _view(disk / "s")
    try:
        assert view.stdout is not None
        view.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            view.wait(2.5)
        assert shutil.disk_usage(disk).free > MB  # it left the room alone
        ballast.unlink()
        out, _ = view.communicate("stop\n", timeout=200)
    finally:
        if view.poll() is None:
            view.kill()
            view.communicate()
    assert (view.returncode, out) == (0, "")
    live = contents(disk / "s" / "session.h5")
    build(disk / "s")
    assert contents(disk / "s" / "session.h5") == live


@pytest.mark.parametrize("reserve_gb", [0.008, 0.0], ids=["waited in vain", "full in mid-write"])
def test_a_view_without_room_ends_with_one_clear_message_and_leaves_nothing(disk: Path, reserve_gb: float) -> None:
    _journal(disk / "s", 20, reserve_gb).close()
    ballast = fill(disk, MB)
    view = _view(disk / "s")
    out, _ = view.communicate("stop\n", timeout=200)
    assert view.returncode == 2, out  # and not by a signal: HDF5 crashes when it closes a file that found no room
    assert '"failed"' in out
    assert "stimloop recover" in out
    assert sorted(p.name for p in (disk / "s").iterdir()) == ["config.yaml", "session.journal"]
    ballast.unlink()
    assert recover(disk / "s")[-1].startswith("the session was not closed in order")


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_second_recorder_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    first = RecorderChild(tmp_path / "s")
    try:
        second = RecorderChild(tmp_path / "s")
        assert second.wait() == 2
        assert "in use by another process" in str(second.said[0]["failed"])
        assert first.end() == 0
    finally:
        if first.process.poll() is None:
            first.kill()
    assert isinstance(read_all(tmp_path / "s" / "session.journal")[-1].document, SessionStop)


def test_a_folder_that_cannot_be_written_is_refused_with_its_cure(disk: Path) -> None:
    (disk / "s").mkdir()
    (disk / "s" / "config.yaml").write_text(CONFIG.format(reserve_gb=0))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "rig.recording.recorder", "--folder", str(disk / "s")],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Read-only file system; choose a folder that can be written" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_folder_that_vanishes_ends_the_session_and_loses_nothing(how: str, tmp_path: Path) -> None:
    child = RecorderChild(tmp_path / "s")
    source = Peer("probe", child.endpoint, frozenset(), HostClock())
    try:
        for k in range(20):
            source.send(block(k))
        until(lambda: source.unacked == 0, source)
        if how == "deleted":
            shutil.rmtree(tmp_path / "s")
        else:
            (tmp_path / "s").rename(tmp_path / "elsewhere")
        assert child.wait() == 2
    finally:
        source.close()
        if child.process.poll() is None:
            child.kill()
    said = str(child.said[-1]["failed"])
    assert how in said
    assert "stimloop recover" in said
    where = tmp_path / ("s-rescued" if how == "deleted" else "elsewhere")
    assert of(where, source.process) == list(range(1, 21))
    recover(where)


# --- session.h5 that is older than its journal ------------------------------------------------------------------------


def test_a_session_file_older_than_its_journal_is_noticed(session: bytes, tmp_path: Path) -> None:
    path, stops = tmp_path / "session.journal", ends(session)
    assert not up_to_date_after(path, session[: stops[-10]])
    build(tmp_path)
    assert up_to_date(tmp_path)
    path.write_bytes(session[: stops[-10] + 7])  # a torn record is nothing that it lacks
    assert up_to_date(tmp_path)
    path.write_bytes(session)
    assert not up_to_date(tmp_path)
    build(tmp_path)
    assert up_to_date(tmp_path)
    data = (tmp_path / "session.h5").read_bytes()
    (tmp_path / "session.h5").write_bytes(data[: len(data) // 2])
    assert not up_to_date(tmp_path)


def up_to_date_after(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    return up_to_date(path.parent)


def test_report_makes_an_old_session_file_anew_and_says_so(session: bytes, tmp_path: Path) -> None:
    path, stops = tmp_path / "session.journal", ends(session)
    path.write_bytes(session[: stops[-10]])
    build(tmp_path)
    path.write_bytes(session)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "older than the journal" in done.stdout
    assert up_to_date(tmp_path)


@pytest.mark.parametrize("data", [b"", b"my notes", record(0, b"{}")], ids=["empty", "notes", "only a header"])
def test_recover_refuses_what_is_no_journal(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "session.journal").write_bytes(data)
    (tmp_path / "session.h5").write_bytes(b"what was there before")
    done = CliRunner().invoke(app, ["recover", str(tmp_path)])
    assert done.exit_code == 2
    assert "holds no whole entry" in done.stderr
    assert (tmp_path / "session.h5").read_bytes() == b"what was there before"
