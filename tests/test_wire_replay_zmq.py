"""Replay over the open wires: tapes of what the sources' own ledger recorded of a bridge on paper, and sessions."""

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from rig.animal import tape_file
from rig.animal.replayed_zmq import BridgeTrack
from rig.clock import ReplayTime
from rig.config.sources import LslBehaviourSource
from rig.encoding import encode, encode_entry
from rig.links.ports import free_port
from rig.messages import (
    ClockSample,
    Continuity,
    Entry,
    Envelope,
    Fault,
    Response,
    SessionStart,
    UnitList,
)
from rig.recording.journal import JournalWriter, read_all
from rig.replay.records import ReplayError
from rig.replay.wire_compare import compare
from rig.replay.wire_recording import load
from rig.replay.wire_tape import NotReplayable
from rig.replay.wire_tape_zmq import BridgeTape, zmq_tape
from rig.sources.sockets import request_socket
from rig.sources.zmq_parse import Refusal, parse_reply, parse_spikes
from tests.paper_bridge import BLOCK, FIRST_SAMPLE, RATE_HZ, Bridge, Wire, host_at, played, rows, sample_at, told
from tests.test_zmq_sessions import run_short

ROOT = Path(__file__).parent.parent


def faults(log: list[Entry]) -> set[str]:
    return {e.document.what for e in log if isinstance(e.document, Fault)}


TROUBLE = {
    "nothing": {},
    "lost": {"lose": (100, 101, 102, 250)},
    "lost tail": {"lose": tuple(range(100, 160))},
    "restart": {"restart": (200,)},
    "other units": {"other_units": (100, 220)},
    "burst": {"stall": (150, 215)},
    "silent clock": {"silent": (120, 300)},
    "all of it": {
        "lose": (90, 300), "restart": (200,), "other_units": (120, 180), "stall": (240, 270), "silent": (310, 400),
    },
}  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("wire", ["spikes", "traces"])
def test_the_sources_own_ledger_makes_the_same_of_a_tape_as_of_the_recorded_traffic(wire: Wire, trouble: str) -> None:
    log = Bridge(wire, **TROUBLE[trouble]).record()  # type: ignore[arg-type]
    again = played(zmq_tape(log, "probe", wire)).log
    assert rows(again) == rows(log)
    assert len(rows(log)) > 250
    assert told(again) == told(log)
    assert faults(again) == faults(log)
    expected = {
        "lost": "messages lost", "lost tail": "messages lost", "restart": "device restarted",
        "other units": "unit list changed", "silent clock": "no clock reply", "burst": "no data",
    }  # fmt: skip
    assert expected.get(trouble, "") in faults(log) | {""}


def test_gaps_that_a_bridge_declares_are_declared_again() -> None:
    log = Bridge("spikes", overflow=(80, 200)).record()
    again = played(zmq_tape(log, "probe", "spikes")).log
    assert told(again)["gaps"] == told(log)["gaps"]
    assert [g[3] for g in told(log)["gaps"]] == [0, 0, 0]
    assert "samples missing" in faults(again)


@pytest.mark.parametrize("wire", ["spikes", "traces"])
def test_what_came_before_the_first_list_of_units_loses_no_edge(wire: Wire) -> None:
    log = Bridge(wire, joined=5).record()
    again = played(zmq_tape(log, "probe", wire)).log
    listed = next(e.envelope.receipt_host_ns for e in log if isinstance(e.document, UnitList))
    one, other = ([row for row in rows(entries) if row[0] == "edge"] for entries in (log, again))
    assert {row[:4] for row in one} == {row[:4] for row in other}
    assert {row for row in one if row[4] > listed} <= set(other)
    assert [row for row in rows(log) if row[0] != "edge"] == [row for row in rows(again) if row[0] != "edge"]
    assert told(again) == told(log)


def test_a_unit_without_spikes_costs_no_message() -> None:
    log = Bridge("spikes", empty=True).record()
    tape = zmq_tape(log, "probe", "spikes")
    counted = max(e.document.messages for e in log if isinstance(e.document, Continuity))
    assert abs(len(tape.due_host_ns) - counted) <= 2
    again = played(tape).log
    marks = [{e.document.watermark_sample for e in one if isinstance(e.document, Continuity)} for one in (log, again)]
    assert len(marks[0] & marks[1]) > 0.8 * len(marks[0]) > 200
    true_ns = np.array([host_at(FIRST_SAMPLE + (k + 1) * BLOCK) for k in range(40, 400)])
    true_ns = true_ns[-len(tape.due_host_ns) :]
    assert np.abs(tape.due_host_ns - true_ns).max() < 30_000_000, "sent when the samples were due"


@pytest.mark.parametrize("wire", ["spikes", "traces"])
def test_the_clock_port_tells_the_devices_time(wire: Wire) -> None:
    log = Bridge(wire).record()
    clock = zmq_tape(log, "probe", wire).clock
    pairs = [e.document for e in log if isinstance(e.document, ClockSample)]
    assert {p.method for p in pairs} == {"round_trip"}
    off_ns = [(sample - sample_at(ns)) * 1e9 / RATE_HZ for ns, sample in zip(clock.host_ns, clock.sample, strict=True)]
    raw_ns = [(p.device_sample - sample_at(p.pair_host_ns)) * 1e9 / RATE_HZ for p in pairs]
    assert len(off_ns) == len(pairs) > 30
    assert max(map(abs, off_ns)) < 20_000
    assert np.std(off_ns) < np.std(raw_ns), "a line through several pairs is better than each"
    assert len(clock.mute_ns) == 0


def test_a_bridge_that_tells_only_the_newest_sample_does_so_again() -> None:
    log = Bridge("spikes", present=False).record()
    tape = zmq_tape(log, "probe", "spikes")
    assert tape.clock.present is False
    again = played(tape).log
    assert {e.document.method for e in again if isinstance(e.document, ClockSample)} == {"arrival"}
    assert "no clock reply" not in faults(again)


def test_what_cannot_be_told_apart_is_refused_by_name() -> None:
    log = Bridge("spikes", present=False, silent=(150, 400)).record()
    with pytest.raises(NotReplayable, match=r"probe: its bridge told the newest sample.*--verify"):
        zmq_tape(log, "probe", "spikes")
    with pytest.raises(NotReplayable, match="eye: the journal holds no data"):
        zmq_tape(log, "eye", "spikes")


def test_times_ascend_and_numbers_have_only_the_recorded_holes() -> None:
    tape = zmq_tape(Bridge("spikes", lose=(100, 101, 250)).record(), "probe", "spikes")
    assert (np.diff(tape.due_host_ns) >= 0).all()
    ends, first = tape.frame_end.tolist(), [0, *tape.message_end.tolist()]
    raw = tape.content.tobytes()
    numbers = [json.loads(raw[ends[f - 1] if f else 0 : ends[f]])["number"] for f in first[:-1]]
    assert [b - a for a, b in pairwise(numbers) if b - a != 1] == [3, 2]


# --- the player -------------------------------------------------------------------------------------------------------


def tracks(tape: BridgeTape, path: Path, port: int) -> tape_file.BridgeTracks:
    clock = tape.clock
    device = {"wire": tape.wire, "name": "probe", "port": port, "rate_hz": tape.rate_hz, "runs": tape.runs,
              "present": clock.present}  # fmt: skip
    head = json.dumps({"version": tape_file.VERSION, "devices": [device]}).encode()
    arrays = {"due_host_ns": tape.due_host_ns, "message_end": tape.message_end, "frame_end": tape.frame_end,
              "content": tape.content, "clock_run": clock.run, "clock_host_ns": clock.host_ns,
              "clock_sample": clock.sample, "mute_ns": clock.mute_ns, "told": clock.told}  # fmt: skip
    np.savez(path, head=np.frombuffer(head, dtype=np.uint8), **{f"0_{name}": a for name, a in arrays.items()})
    (one,) = tape_file.read(path)
    assert isinstance(one, tape_file.BridgeTracks)
    return one


@pytest.fixture
def playing(tmp_path: Path) -> Iterator[tuple[BridgeTape, BridgeTrack, ReplayTime, int]]:
    tape = zmq_tape(Bridge("spikes", silent=(200, 320)).record(), "probe", "spikes")
    port, time = free_port(2), ReplayTime.make(tmp_path / "clock")
    track = BridgeTrack(tracks(tape, tmp_path / "tape.npz", port), time, still=True)
    yield tape, track, time, port
    track.close()
    time.close()


def ask(port: int, most_ms: int) -> bytes | None:
    with request_socket(f"tcp://127.0.0.1:{port + 1}") as req:
        assert req.poll(2000, zmq.POLLOUT)
        req.send(b"time?")
        return req.recv() if req.poll(most_ms) else None


def test_the_player_sends_what_is_due_and_tells_the_time(
    playing: tuple[BridgeTape, BridgeTrack, ReplayTime, int],
) -> None:
    tape, track, time, port = playing
    assert not track.listened
    with zmq.Context() as context, context.socket(zmq.SUB) as sub:
        sub.subscribe(b"")
        sub.connect(f"tcp://127.0.0.1:{port}")
        wait = threading.Event()
        while not track.listened:
            wait.wait(0.01)
        half = int(tape.due_host_ns[len(tape.due_host_ns) // 4])
        time.set(half, 0.0)
        assert track.send(half) == np.searchsorted(tape.due_host_ns, half, side="right")
        assert track.next_due_ns == tape.due_host_ns[len(tape.due_host_ns) // 4 + 1]
        assert sub.poll(2000)
        message = parse_spikes(sub.recv_multipart())
        assert not isinstance(message, Refusal)
        assert message.units == ("a", "b", "c")
    answer = ask(port, 2000)
    assert answer is not None
    reply = parse_reply(answer, "spikes")
    assert not isinstance(reply, Refusal)
    assert abs(reply.sample - sample_at(half)) < 1
    assert reply.number == len(tape.due_host_ns) // 4 + 1
    silent = host_at(FIRST_SAMPLE + 260 * BLOCK)
    time.set(silent, 0.0)
    assert ask(port, 200) is None, "nobody answered then"


def test_the_clock_of_a_replay_waits_for_the_sources_questions(
    playing: tuple[BridgeTape, BridgeTrack, ReplayTime, int],
) -> None:
    tape, track, time, port = playing
    first = [ns for ns in tape.clock.host_ns.tolist() if ns > tape.due_host_ns[0]]
    assert track.through_ns == first[0]
    time.set(first[0], 0.0)
    assert ask(port, 2000) is not None
    wait = threading.Event()
    for _ in range(200):  # as long as a burst may last, it stands still
        if track.through_ns != first[0]:
            break
        wait.wait(0.01)
    assert track.through_ns == first[1]
    far = tape.clock.host_ns[60] if len(tape.clock.host_ns) > 60 else tape.clock.host_ns[-1]
    time.set(int(far), 0.0)
    ask(port, 300)
    for _ in range(200):
        if track.through_ns != far:
            break
        wait.wait(0.01)
    assert track.through_ns == far + 1_500_000_000


def test_a_tape_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    tape = zmq_tape(Bridge("spikes").record(), "probe", "spikes")
    short = BridgeTape(**{**vars(tape), "content": tape.content[:-1]})
    with pytest.raises(tape_file.TapeError, match="probe are not whole"):
        tracks(short, tmp_path / "tape.npz", 5)


# --- for real ---------------------------------------------------------------------------------------------------------


def replayed(folder: Path, out: Path, speed: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "rig.cli", "replay", str(folder), "--wire", "--speed", speed, "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=150, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(re.findall(r"^ *(\S.*?) {2,}(\d+) *$", done.stdout, re.MULTILINE))


PRESENT = {"agent": "present", "images": ["natural"], "blanks": 1}


@pytest.mark.slow
@pytest.mark.display
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("name", "images", "faults_shown"),
    [
        ("spikes_wire", {"count": 6, "repeats": 9}, {"quirks": True, "switches": ["restart", "drop"]}),
        ("zmq_calcium", {"count": 4, "repeats": 3}, {"switches": ["drop"]}),
    ],
)
def test_a_session_comes_out_the_same_again(
    tmp_path: Path, private_screen: str, name: str, images: dict[str, int], faults_shown: dict[str, Any]
) -> None:
    log = run_short(tmp_path, name, {"phases": [PRESENT | images], "animal": {"wire_faults": faults_shown}})
    (folder,) = [p for p in (tmp_path / "sessions").iterdir() if (p / "session.journal").exists()]
    responses = [e.document for e in log if isinstance(e.document, Response)]
    by_edge = sum(r.onset_source == "photodiode" for r in responses)
    for speed in ("1", "max"):
        table = replayed(folder, tmp_path / speed, speed)
        same, within = (
            int(table[f"response {how}"]) for how in ("identical", "different, within its onset's stated bound")
        )
        assert int(table["response by a photodiode's edge"]) == by_edge > 10
        assert same + within == len(responses), table
        assert same >= by_edge, "all whose onset is an edge"
        again = read_all(tmp_path / speed / "session.journal")
        assert compare([*responses], [e.document for e in again], RATE_HZ, True).agrees
        for kind in ("proposal", "model_updated", "phase_ended"):
            one, other = (
                [encode(e.document)[0] for e in entries if getattr(e.document, "kind", "") == kind]
                for entries in (log, again)
            )
            assert one == other
            assert one
        assert Counter(g[3] for g in told(again)["gaps"]) == Counter(g[3] for g in told(log)["gaps"])


def test_other_sources_beside_it_are_refused_by_name(tmp_path: Path) -> None:
    config = {
        "name": "x", "seed": 1, "display": {"size_px": [400, 300], "refresh_hz": 60, "width_cm": 30},
        "sources": [
            {"type": "spikes_zmq", "name": "probe", "port": 5560},
            LslBehaviourSource(stream="gaze").model_dump(),
        ],
        "responses": {"units": ["a"]}, "phases": [{"agent": "present", "images": ["natural"]}],
    }  # fmt: skip
    start = SessionStart(
        session="x", simulated=True, config_yaml="", config=config, versions={}, commit=None, dirty=None,
        start_host_ns=1, start_utc_ns=1,
    )  # fmt: skip
    writer = JournalWriter(tmp_path / "session.journal", "x")
    envelope = Envelope(seq=1, receipt_host_ns=1, sender="recorder", process="r-1", sender_seq=1, cause_seq=None,
                        cause_index=None)  # fmt: skip
    writer.append(1, encode_entry(envelope, encode(start)))
    writer.close()
    with pytest.raises(ReplayError, match=r"'behaviour' is of type lsl_behaviour; only Open Ephys .* the open wires"):
        load(tmp_path)
