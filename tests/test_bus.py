"""Peers and recorder over real sockets: what is sent is journalled once, what is wanted arrives once, in order."""

import json
import threading
from pathlib import Path

import pytest
import zmq

from rig.clock import FakeClock, HostClock
from rig.config.reading import parse
from rig.config.session import Config
from rig.encoding import encode
from rig.links.bus import Hub, Malformed, parse_incoming
from rig.links.peer import Peer, TooMuchUnacked
from rig.messages import (
    Fault,
    SessionStart,
    StopRequested,
    Tick,
)
from rig.recording.journal import JournalWriter, read_all
from rig.recording.recorder import Recorder

CONFIG = """
sources: [{type: openephys}]
responses: {units: ["E01#0"]}
phases: [{agent: present}]
"""


def start() -> SessionStart:
    return SessionStart(
        simulated=True, session="s",
        config_yaml=CONFIG,
        config={},
        versions={},
        commit=None,
        dirty=None,
        start_host_ns=1,
        start_utc_ns=2,
    )


class Bench:
    """A recorder on a free port, stepped by hand."""

    def __init__(self, folder: Path, endpoint: str = "tcp://127.0.0.1:0") -> None:
        self.path = folder / "session.journal"
        self.hub = self._bind(endpoint)
        self.recorder = Recorder(self.path, self.hub, parse(CONFIG), HostClock(), start)

    @staticmethod
    def _bind(endpoint: str) -> Hub:
        for _ in range(200):  # the address of the one before is free only once ZMQ's own thread has closed it
            try:
                return Hub(endpoint)
            except OSError:
                threading.Event().wait(0.02)
        return Hub(endpoint)

    def turn(self, *peers: Peer, until: "object" = None, turns: int = 400) -> list[list[int]]:
        """Step recorder and peers until `until()` holds; return the sequence numbers each peer received."""
        got: list[list[int]] = [[] for _ in peers]
        for _ in range(turns):
            self.recorder.step(0.005)
            for k, peer in enumerate(peers):
                got[k] += [e.envelope.seq for e in peer.poll(0.002)]
            if until is not None and until(got):  # type: ignore[operator]
                return got
        assert until is None, "the wires did not get there in time"
        return got

    def kill(self) -> None:
        """End without SessionStop, as a kill does."""
        self.recorder.journal.close()
        self.hub.close()


def faults(path: Path) -> list[str]:
    return [e.document.detail for e in read_all(path) if isinstance(e.document, Fault)]


def fault(k: int) -> Fault:
    return Fault(what="test", detail=str(k), done="nothing")


def test_documents_are_journalled_once_and_routed_in_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    a = Peer("a", bench.hub.endpoint, frozenset(), HostClock())
    b = Peer("b", bench.hub.endpoint, frozenset({"fault"}), HostClock())
    for k in range(1000):
        a.send(fault(k))
    _, got = bench.turn(a, b, until=lambda got: len(got[1]) == 1000 and a.unacked == 0)
    assert got == sorted(set(got))
    assert faults(bench.path) == [str(k) for k in range(1000)]
    a.close()
    b.close()
    bench.recorder.close("test")


def test_a_late_peer_gets_the_log_from_where_it_says(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    a = Peer("a", bench.hub.endpoint, frozenset(), HostClock())
    for k in range(20):
        a.send(fault(k))
    bench.turn(a, until=lambda _: a.unacked == 0)
    everything = [e.envelope.seq for e in read_all(bench.path) if isinstance(e.document, Fault)]
    late = Peer("late", bench.hub.endpoint, frozenset({"fault"}), HostClock(), last_seq=everything[9])
    (got,) = bench.turn(late, until=lambda got: len(got[0]) == 10)
    assert got == everything[10:]
    a.close()
    late.close()
    bench.recorder.close("test")


def test_a_restarted_recorder_gets_everything_again_and_journals_it_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    endpoint = bench.hub.endpoint
    a = Peer("a", endpoint, frozenset({"fault"}), HostClock())
    got: list[int] = []
    for k in range(50):
        a.send(fault(k))
    (first,) = bench.turn(a, until=lambda got: len(got[0]) >= 20)
    got += first
    bench.kill()
    for k in range(50, 80):
        a.send(fault(k))
    again = Bench(tmp_path, endpoint)
    (rest,) = again.turn(a, until=lambda more: len(got) + len(more[0]) == 80 and a.unacked == 0, turns=2000)
    assert len(set(got + rest)) == 80
    assert faults(again.path) == [str(k) for k in range(80)]
    a.close()
    again.recorder.close("test")


def test_a_restarted_fold_that_says_it_again_is_journalled_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = Peer("model", bench.hub.endpoint, frozenset(), HostClock())
    first.send(fault(0), cause=(1, 0))
    bench.turn(first, until=lambda _: first.unacked == 0)
    first.close()
    second = Peer("model", bench.hub.endpoint, frozenset(), HostClock())
    second.send(fault(0), cause=(1, 0))
    second.send(fault(1), cause=(1, 1))
    bench.turn(second, until=lambda _: second.unacked == 0)
    assert faults(bench.path) == ["0", "1"]
    second.close()
    bench.recorder.close("test")


def test_a_refused_document_does_not_stop_its_sender_even_across_a_restart(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    endpoint = bench.hub.endpoint
    a = Peer("a", endpoint, frozenset(), HostClock())
    a.send(fault(0))
    a._sent += 1  # a document that no recorder can read
    a._unacked.append((a._sent, [json.dumps({"op": "doc", "n": a._sent, "cause": None}).encode(), b"not a document"]))
    bench.turn(a, until=lambda _: a.unacked == 0)
    assert a.refused == 1
    bench.kill()
    again = Bench(tmp_path, endpoint)
    a.send(fault(1))
    again.turn(a, until=lambda _: a.unacked == 0, turns=2000)
    details = faults(again.path)
    assert "0" in details
    assert "1" in details
    assert any("not a document" in d for d in details)
    a.close()
    again.recorder.close("test")


def test_a_slow_peer_holds_up_nobody_and_misses_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    a = Peer("a", bench.hub.endpoint, frozenset(), HostClock())
    slow = Peer("slow", bench.hub.endpoint, frozenset({"fault"}), HostClock())
    bench.turn(slow, turns=20)
    for k in range(2000):
        a.send(fault(k))
    bench.turn(a, until=lambda _: a.unacked == 0)
    (got,) = bench.turn(slow, until=lambda got: len(got[0]) == 2000)
    assert got == sorted(set(got))
    a.close()
    slow.close()
    bench.recorder.close("test")


def test_the_session_ends_with_its_sums(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    a = Peer("rig", bench.hub.endpoint, frozenset(), HostClock())
    assert not bench.recorder.drained
    a.send(fault(0))
    a.send(StopRequested(reason="done"))
    bench.turn(a, until=lambda _: a.unacked == 0)
    assert bench.recorder.drained
    bench.recorder.close("done")
    last = read_all(bench.path)[-1].document
    assert (last.reason, last.faults, last.presentations) == ("done", 1, 0)  # type: ignore[attr-defined]
    a.close()


@pytest.mark.parametrize(
    "frames",
    [[b""], [b"{"], [b"[]"], [b'{"op": 1}'], [b'{"op":"doc"}'], [b'{"op":"hello","name":"other"}'], [b"\xff\xfe"], []],
    ids=str,
)
def test_malformed_messages_are_values_not_exceptions(frames: list[bytes]) -> None:
    assert isinstance(parse_incoming(b"a", frames), Malformed)


def test_garbage_on_the_socket_is_a_counted_fault(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    raw: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    raw.setsockopt(zmq.LINGER, 0)
    raw.connect(bench.hub.endpoint)
    for k in range(200):
        raw.send_multipart([bytes([k]) * k, *encode(Tick(tick_host_ns=k))])
    bench.turn(turns=3000, until=lambda _: bench.recorder.malformed == 200)
    assert sum("so far" in d for d in faults(bench.path)) == 10
    raw.close()
    bench.recorder.close("test")


def test_config_of_the_tests_is_valid() -> None:
    assert isinstance(parse(CONFIG), Config)


def test_flush_hands_out_each_entry_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    a = Peer("a", bench.hub.endpoint, frozenset({"fault"}), HostClock())
    bench.turn(a, turns=10)
    for k in range(5):
        a.send(fault(k))
    for _ in range(40):
        bench.recorder.step(0.005)
    assert a.flush(2.0)
    got = [e.envelope.seq for _ in range(20) for e in a.poll(0.01)]
    assert len(got) == 5
    assert len(set(got)) == 5
    a.close()
    bench.recorder.close("test")


def test_flush_without_a_recorder_ends_in_time_and_keeps_little(tmp_path: Path) -> None:
    a = Peer("a", "tcp://127.0.0.1:9", frozenset({"fault"}), HostClock())
    a.send(fault(0))
    assert not a.flush(0.3)
    assert a.unacked == 1
    assert a.poll() == []
    a.close()


def test_a_pause_of_the_peer_does_not_start_a_recovery(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    clock = FakeClock(HostClock().now_ns())
    a = Peer("a", bench.hub.endpoint, frozenset(), clock)
    bench.turn(a, turns=20)
    hellos: list[int] = []
    said = a._hello
    a._hello = lambda now: (hellos.append(now), said(now))[0]  # type: ignore[method-assign,assignment,func-returns-value]
    for k in range(3):
        a.send(fault(k))
        for _ in range(10):
            bench.recorder.step(0.005)
        clock.advance_ns(1_650_000_000)  # a trial, in which the rig does not poll
    a.send(fault(3))
    bench.turn(a, until=lambda _: a.unacked == 0)
    assert hellos == []
    a.close()
    bench.recorder.close("test")


def test_a_large_record_in_the_middle_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "session.journal"
    writer = JournalWriter(path, "s")
    for seq in range(1, 60):
        size = 9 << 20 if seq == 20 else 100
        writer.append(seq, bytes([seq]) * size)
    writer.close()
    again = JournalWriter(path, "s")
    assert (again.last_seq, again.cut_bytes) == (59, 0)
    again.close()


def test_what_a_peer_keeps_is_bounded_and_its_end_is_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rig.links.peer.MOST_UNACKED_BYTES", 100_000)
    a = Peer("a", "tcp://127.0.0.1:9", frozenset(), HostClock())
    while a.unacked_bytes < 99_000:
        a.send(fault(0))
    with pytest.raises(TooMuchUnacked, match=r"documents .* wait to be journalled and no more can be kept"):
        a.send(Fault(what="test", detail="x" * 2000, done="nothing"))
    assert 90_000 < a.unacked_bytes <= 100_000
    assert a.unacked > 100
    a.close()


def test_a_recorder_without_room_is_not_sent_the_same_again_and_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    a = Peer("a", bench.hub.endpoint, frozenset({"fault"}), HostClock())
    bench.turn(a, turns=10)
    bench.recorder.full, bench.recorder._retry_ns = "the disk is full", 2**62
    for k in range(50):
        a.send(fault(k))
    bench.turn(a, until=lambda _: a.full == "the disk is full")
    pushed = a._push
    sent: list[bytes] = []
    a._push = lambda frames: (sent.append(frames[0]), pushed(frames))[1]  # type: ignore[method-assign]
    bench.turn(a, turns=60)
    assert all(b'"doc"' not in frame for frame in sent)
    assert a.unacked == 50
    bench.recorder._retry_ns = 0
    (got,) = bench.turn(a, until=lambda got: a.unacked == 0 and len(got[0]) == 51)
    assert a.full == ""
    assert [e.document.what for e in read_all(bench.path) if e.envelope.seq in got][:1] == ["journal full"]
    a.close()
    bench.recorder.close("test")
