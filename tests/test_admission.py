"""What a peer may say: hostile and mistaken ones change nothing of what the others and the log hold."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from rig.clock import HostClock
from rig.config.reading import parse
from rig.links.bus import Hub
from rig.links.keys import client_keys, make, server_keys
from rig.links.peer import NotWelcome, Peer
from rig.messages import (
    ClockSample,
    Document,
    Fault,
    Pause,
    Response,
    SessionStart,
    SessionStop,
    Tick,
)
from rig.provenance import process_started, program
from rig.recording.journal import JournalWriter, read_all
from rig.recording.recorder import Recorder
from rig.recording.storage import Disk
from tests.test_bus import CONFIG, Bench, fault, start
from tests.test_messages import EXAMPLES

CLOCK = HostClock()


def faults(bench: Bench) -> list[Fault]:
    return [e.document for e in read_all(bench.path) if isinstance(e.document, Fault)]


@contextmanager
def raw(bench: Bench, name: str) -> Iterator["zmq.Socket[bytes]"]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 200)
    socket.setsockopt(zmq.IDENTITY, name.encode())
    socket.connect(bench.hub.endpoint)
    try:
        yield socket
    finally:
        socket.close()


def hello(name: str, process: str, first_unacked: int = 1) -> bytes:
    head = {"op": "hello", "name": name, "process": process, "last_seq": 0, "wants": [], "protocol": 1}
    return json.dumps({**head, "first_unacked": first_unacked}).encode()


def test_nobody_acknowledges_the_documents_of_another(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    rig = Peer("rig", bench.hub.endpoint, frozenset(), CLOCK)
    rig.send(fault(0))
    bench.turn(rig, until=lambda _: rig.unacked == 0)
    with raw(bench, "eve") as eve:
        eve.send(hello("eve", rig.process, 2**52))
        bench.turn(turns=200, until=lambda _: bench.recorder.malformed)
    for k in range(1, 6):
        rig.send(fault(k))
    bench.turn(rig, until=lambda _: rig.unacked == 0)
    assert [f.detail for f in faults(bench) if f.what == "test"] == [str(k) for k in range(6)]
    rig.close()
    bench.recorder.close("test")


def test_nobody_claims_more_than_this_recorder_has_acknowledged(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with raw(bench, "rig") as liar:
        liar.send(hello("rig", "rig-1", 8))
        bench.turn(turns=200, until=lambda _: liar.poll(0))
        assert json.loads(liar.recv())["op"] == "no"
    assert "says that 7 of its documents are acknowledged: 0 are" in faults(bench)[0].detail
    bench.recorder.close("test")


def test_what_a_restarted_recorder_cannot_know_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    endpoint = bench.hub.endpoint
    rig = Peer("rig", endpoint, frozenset(), CLOCK)
    rig.send(fault(0))
    bench.turn(rig, until=lambda _: rig.unacked == 0)
    whole = bench.path.stat().st_size
    rig.send(fault(1))
    rig.send(fault(2))
    bench.turn(rig, until=lambda _: rig.unacked == 0)
    bench.kill()
    with bench.path.open("r+b") as file:  # a power loss
        file.truncate(whole)
    again = Bench(tmp_path, endpoint)
    rig.send(fault(3))
    again.turn(rig, until=lambda _: rig.unacked == 0, turns=2000)
    said = faults(again)
    assert [f.detail for f in said if f.what == "test"] == ["0", "3"]
    (lost,) = (f for f in said if "lost" in f.what)
    assert (lost.what, lost.detail.split(":")[0]) == ("2 documents lost", f"documents 2 to 3 of {rig.process}")
    rig.close()
    again.recorder.close("test")


def _examples() -> list[Document]:
    own = [d for d in EXAMPLES if isinstance(d, SessionStart | SessionStop | Tick | Pause | Response)]
    pair = ClockSample(source="probe", run=1, device_sample=1, pair_host_ns=1, method="barcode", uncertainty_ns=1)
    return [*own, pair, process_started("recorder", CLOCK, {})]


def test_only_the_recorder_says_what_is_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bob = Peer("bob", bench.hub.endpoint, frozenset(), CLOCK)
    session = bench.hub.session
    for document in _examples():
        bob.send(document)
    bob.send(fault(0))
    bench.turn(bob, until=lambda _: bob.unacked == 0)
    senders = {e.envelope.sender for e in read_all(bench.path) if not isinstance(e.document, Fault)}
    assert len(_examples()) >= 7
    assert senders == {"recorder"}
    assert bob.refused == len(_examples())
    assert bench.hub.session == session
    assert sum(f.what == "refused document" for f in faults(bench)) == len(_examples())
    bob.close()
    bench.recorder.close("test")


def test_a_remote_model_says_only_what_models_say(tmp_path: Path) -> None:
    make(tmp_path / "keys", "model")
    hub = Hub("tcp://127.0.0.1:0", ("tcp://127.0.0.1:0", server_keys(tmp_path / "keys" / "server", "model")))
    recorder = Recorder(tmp_path / "session.journal", hub, parse(CONFIG), CLOCK, start)
    keys = client_keys(tmp_path / "keys" / "model")
    model = Peer("model", hub.remote_endpoint, frozenset(), CLOCK, keys=keys, program=program())
    model.send(process_started("model", CLOCK, {}))
    model.send(fault(0))
    model.send(next(d for d in EXAMPLES if d.__class__.__name__ == "Presented"))
    for _ in range(1000):
        recorder.step(0.005)
        model.poll(0.002)
        if not model.unacked:
            break
    assert (model.unacked, model.refused) == (0, 1)
    details = [e.document.detail for e in read_all(recorder.journal.path) if isinstance(e.document, Fault)]
    assert any("presented: not what a model server says" in d for d in details)
    model.close()
    recorder.close("test")


def test_nobody_is_named_recorder(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    other = Peer("recorder", bench.hub.endpoint, frozenset(), CLOCK)
    with pytest.raises(NotWelcome, match="own name"):
        bench.turn(other, turns=300)
    other.close()
    bench.recorder.close("test")


def test_names_that_came_and_went_leave_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rig.recording.routes.SILENT_NS", 1_500_000_000)
    bench = Bench(tmp_path)
    for k in range(40):
        with raw(bench, f"x{k}") as one:
            one.send(hello(f"x{k}", f"x{k}-1"))
            bench.turn(turns=3)
    early = Peer("early", bench.hub.endpoint, frozenset({"tick"}), CLOCK)
    with pytest.raises(NotWelcome, match="more than 32 peers"):
        bench.turn(early, turns=300)
    early.close()
    bench.turn(turns=1000, until=lambda _: not bench.hub._known)
    late = Peer("late", bench.hub.endpoint, frozenset({"tick"}), CLOCK)
    bench.turn(late, until=lambda got: got[0])
    late.close()
    bench.recorder.close("test")


def test_two_processes_of_one_name_are_named_and_the_first_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rig.links.peer.SILENT_NS", 1_200_000_000)
    bench = Bench(tmp_path)
    first = Peer("rig", bench.hub.endpoint, frozenset(), CLOCK)
    bench.turn(first, until=lambda _: first.session)
    second = Peer("rig", bench.hub.endpoint, frozenset(), CLOCK)
    bench.turn(first, second, until=lambda _: second.session)
    first.send(fault(1))
    bench.turn(first, second, until=lambda _: not first.unacked, turns=3000)
    said = [f for f in faults(bench) if f.what == "name taken over"]
    assert said
    assert f"{first.process} and {second.process} both run" in said[0].detail
    first.close()
    second.close()
    bench.recorder.close("test")


def test_a_process_that_is_started_again_at_once_is_no_takeover(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for k in range(3):
        peer = Peer("rig", bench.hub.endpoint, frozenset(), CLOCK)
        peer.send(fault(k))
        bench.turn(peer, until=lambda _, peer=peer: not peer.unacked)  # type: ignore[misc]
        peer.close()
    bench.turn(turns=200)
    assert {f.what for f in faults(bench)} == {"test"}
    bench.recorder.close("test")


def test_what_is_known_of_a_start_stays_known_when_it_says_hello_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    peer = Peer("rig", bench.hub.endpoint, frozenset(), CLOCK)
    peer.send(fault(0))
    bench.turn(peer, until=lambda _: not peer.unacked)
    peer._hello(CLOCK.now_ns())
    bench.turn(peer, turns=20)
    client = bench.recorder._routes.client("rig")
    assert client is not None
    assert client.journalled
    peer.close()
    bench.recorder.close("test")


def test_the_journal_is_synced_until_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rig.recording.storage.SYNC_EVERY_S", 0.01)
    journal, synced = JournalWriter(tmp_path / "j", "s"), threading.Semaphore(0)
    sync = journal.sync
    monkeypatch.setattr(journal, "sync", lambda: (sync(), synced.release()))
    disk = Disk(journal, CLOCK)
    for _ in range(3):
        assert synced.acquire(timeout=60)
    disk.end()
    assert disk.look() != 0  # raises nothing: every sync went well
    journal.close()


def test_the_log_says_where_an_outside_witness_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STIMLOOP_WITNESS", raising=False)
    assert process_started("rig", CLOCK, {"a": "b"}).notes == {"a": "b"}
    monkeypatch.setenv("STIMLOOP_WITNESS", "/w")
    assert process_started("rig", CLOCK, {"a": "b"}).notes == {"a": "b", "witness": "/w"}
