"""Replay over the wire: tapes made from a journal, the clock of a replay, the rig's stand-in, and all of it."""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rig.animal import tape_file
from rig.clock import REPLAY_VARIABLE, ReplayTime
from rig.encoding import encode, encode_entry
from rig.messages import (
    ClockSample,
    Continuity,
    Document,
    EdgeBlock,
    Entry,
    Fault,
    Origin,
    Presented,
    Proposal,
    Response,
    SessionStart,
    SpikeBlock,
)
from rig.recording.journal import JournalWriter, read_all
from rig.replay.records import ReplayError
from rig.replay.stand_in import Recorded, StandIn
from rig.replay.wire_command import parse_speed
from rig.replay.wire_compare import compare
from rig.replay.wire_recording import load
from rig.replay.wire_tape import DATA, EDGE, NotReplayable, Tape, openephys_tape
from rig.sources.continuity import Ledger
from rig.sources.openephys_parse import Data, Spike, Ttl
from tests.paper_session import Made, paper_session

ROOT = Path(__file__).parent.parent
STIMLOOP = [sys.executable, "-m", "rig.cli"]
HARVEST_NS = 25_000_000


@pytest.fixture(scope="module")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return paper_session(tmp_path_factory.mktemp("lossy") / "recorded", generations=1, lose=(3.0, 6.1))


@pytest.fixture(scope="module")
def log(lossy: Made) -> list[Entry]:
    return read_all(lossy.folder / "session.journal")


def played(tape: Tape) -> list[Document]:
    """Return what the Open Ephys source's own ledger makes of a tape."""
    ledger, out, due = Ledger("probe", 7), list[Document](), int(tape.due_host_ns[0])
    columns = (tape.due_host_ns, tape.kind, tape.number, tape.sample, tape.a, tape.b)
    for now, kind, number, sample, a, b in zip(*(c.tolist() for c in columns), strict=True):
        while now >= due:
            out += ledger.harvest(due)
            due += HARVEST_NS
        if kind == DATA:
            ledger.take(Data(number, "p", 0, a, sample, float(b), False), now)
        elif kind == EDGE:
            ledger.take(Ttl(number, "p", a, b, sample, 0, False), now)
        else:
            electrode, _, sorted_id = tape.units[a].partition("#")
            ledger.take(Spike(number, "p", 103, electrode, int(sorted_id), sample, False), now)
    return [*out, *ledger.harvest(due)]


def gaps(documents: list[Document]) -> list[tuple[int, int, int]]:
    found = (g for d in documents if isinstance(d, Continuity) for g in d.gaps)
    return [(g.first_sample, g.end_sample, g.messages) for g in found]


def spikes(documents: list[Document]) -> list[tuple[str, int, int]]:
    blocks = [d for d in documents if isinstance(d, SpikeBlock)]
    return sorted(
        (b.units[u], s, t)
        for b in blocks
        for u, s, t in zip(b.unit.tolist(), b.sample.tolist(), b.arrival_host_ns.tolist(), strict=True)
    )


def edges(documents: list[Document]) -> list[tuple[int, int, int]]:
    blocks = [d for d in documents if isinstance(d, EdgeBlock)]
    return sorted(row for b in blocks for row in zip(b.line.tolist(), b.state.tolist(), b.sample.tolist(), strict=True))


def test_the_sources_own_ledger_makes_the_same_of_a_tape_as_of_the_recorded_traffic(log: list[Entry]) -> None:
    before = [e.document for e in log]
    after = played(openephys_tape(log, "probe"))
    assert spikes(after) == spikes(before)
    assert spikes(before), "the recording must hold spikes"
    assert edges(after) == edges(before)
    assert edges(before)
    told = gaps(before)
    assert [m for _, _, m in told].count(0) < len(told), "the recording must have lost messages"
    assert gaps(after) == told
    lost = [max(d.lost_messages for d in docs if isinstance(d, Continuity)) for docs in (before, after)]
    assert lost[0] == lost[1] > 0


def test_a_tape_keeps_the_arrivals_that_the_clock_map_was_made_of(log: list[Entry]) -> None:
    pairs = {int(e.document.device_sample): e.document.pair_host_ns for e in log if isinstance(e.document, ClockSample)}
    again = {
        int(d.device_sample): d.pair_host_ns
        for d in played(openephys_tape(log, "probe"))
        if isinstance(d, ClockSample)
    }
    both = set(pairs) & set(again)
    assert len(both) > 0.7 * len(pairs) > 10
    assert {again[s] - pairs[s] for s in both} == {0}


def test_a_second_run_is_sent_as_a_new_acquisition(log: list[Entry]) -> None:
    half = len(log) // 2
    moved: list[Entry] = []
    for k, entry in enumerate(log):
        document = entry.document
        if k > half and getattr(document, "source", None) == "probe" and hasattr(document, "run"):
            entry = Entry(entry.envelope, document.model_copy(update={"run": document.run + 1}))
        moved.append(entry)
    documents = played(openephys_tape(moved, "probe"))
    runs = Counter(d.run for d in documents if isinstance(d, Continuity))
    assert len(runs) == 2
    assert "acquisition restarted" in {d.what for d in documents if isinstance(d, Fault)}
    assert len(spikes(documents)) == len(spikes([e.document for e in moved]))


def test_traffic_without_blocks_is_refused_by_name() -> None:
    with pytest.raises(NotReplayable, match="eye: the journal holds no data"):
        openephys_tape([], "eye")


# --- the clock --------------------------------------------------------------------------------------------------------


def test_a_replays_clock_stands_jumps_and_never_goes_back(tmp_path: Path) -> None:
    one, other = ReplayTime.make(tmp_path / "clock"), ReplayTime(tmp_path / "clock")
    one.set(5_000, 0.0)
    assert one.now_ns() == other.now_ns() == 5_000
    one.set(4_000, 0.0)
    assert other.now_ns() == 5_000
    one.set(9_000, 1000.0)
    other.sleep_until_ns(1_000_000_000)
    assert one.now_ns() >= 1_000_000_000
    one.close()
    other.close()


def test_an_unchanged_process_has_the_replays_clock_for_its_host_clock(tmp_path: Path) -> None:
    time = ReplayTime.make(tmp_path / "clock")
    time.set(123_456_789_000, 0.0)
    code = "from rig.clock import HostClock; print(HostClock().now_ns())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200, check=True,
        env={**os.environ, **ReplayTime.environment(tmp_path / "clock")},
    )  # fmt: skip
    time.close()
    assert int(done.stdout) == 123_456_789_000


NO_PROOF = ("{clock}", "no replay has started this process")
OF_ANOTHER = ("999999999:{clock}", "no replay has started this process")
NO_PAGE = ("{pid}:{clock}-gone", "FileNotFoundError")


@pytest.mark.parametrize(
    ("words", "left_over", "why"),
    [
        pytest.param(("run", "configs/demo.yaml"), *NO_PROOF, id="run, no proof"),
        pytest.param(("run", "configs/demo.yaml"), *OF_ANOTHER, id="run, another's"),
        pytest.param(("run", "configs/demo.yaml"), *NO_PAGE, id="run, no page"),
        pytest.param(("bench", "clocks"), *OF_ANOTHER, id="bench"),
        pytest.param(("animal", "configs/demo.yaml"), *OF_ANOTHER, id="animal"),
    ],
)
def test_a_replays_clock_in_the_environment_of_a_live_session_is_refused(
    tmp_path: Path, words: tuple[str, ...], left_over: str, why: str
) -> None:
    ReplayTime.make(tmp_path / "clock").close()
    given = left_over.format(clock=tmp_path / "clock", pid=os.getpid())
    done = subprocess.run(
        [sys.executable, "-m", "rig.cli", *words], cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={**os.environ, REPLAY_VARIABLE: given},
    )  # fmt: skip
    assert done.returncode == 2
    assert f"{REPLAY_VARIABLE}={given} is set, but {why}" in done.stderr
    assert "unset STIMLOOP_REPLAY_CLOCK" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "clock-gone").exists()


def test_a_process_of_a_replay_says_so_in_the_log(tmp_path: Path) -> None:
    ReplayTime.make(tmp_path / "clock").close()
    code = """if True:
        from rig.clock import HostClock
        from rig.provenance import process_started
        print(process_started("one", HostClock(), {"a": "b"}).notes)"""
    asked = [sys.executable, "-c", code]
    notes = {
        with_page: subprocess.run(
            asked, cwd=ROOT, capture_output=True, text=True, timeout=200, check=True,
            env=dict(os.environ) | (ReplayTime.environment(tmp_path / "clock") if with_page else {}),
        ).stdout
        for with_page in (False, True)
    }  # fmt: skip
    assert "replay" not in notes[False]
    assert f"'clock': 'of a replay ({os.getpid()}:{tmp_path / 'clock'})'" in notes[True]


# --- the stand-in and the comparison ----------------------------------------------------------------------------------


class Sent:
    def __init__(self) -> None:
        self.documents: list[Document] = []

    def send(self, document: Document) -> None:
        self.documents.append(document)


def test_the_stand_in_waits_for_the_proposal_and_names_one_that_differs(log: list[Entry]) -> None:
    recorded = Recorded(frozenset({"probe"}), log)
    line = Sent()
    stand_in = StandIn(recorded, dict.fromkeys(recorded.senders, line))
    first = next(e for e in log if isinstance(e.document, Proposal))
    end_ns = log[-1].envelope.receipt_host_ns
    assert stand_in.waits(end_ns)
    assert stand_in.step(end_ns) == []
    assert stand_in.take(first) == ""
    stand_in.step(end_ns)
    shown = [d for d in line.documents if isinstance(d, Presented)]
    assert shown
    assert {d.proposal for d in shown} == {0}
    second = [e for e in log if isinstance(e.document, Proposal)][1]
    changed = Entry(second.envelope, second.document.model_copy(update={"model_version": "another"}))
    assert stand_in.take(changed) == "proposal 1 differs from the recorded one"
    stand_in.step(end_ns)
    assert {d.proposal for d in line.documents if isinstance(d, Presented)} == {0, 1}
    assert any("proposal did not come" in words for words in stand_in.missing())


def responses(log: list[Entry]) -> list[Response]:
    return [e.document for e in log if isinstance(e.document, Response)]


def test_a_response_by_an_edge_must_be_the_same(log: list[Entry]) -> None:
    before = responses(log)
    k = next(k for k, r in enumerate(before) if r.usable and r.onset_source == "photodiode")
    other = before[k].model_copy(update={"count": before[k].count + 1})
    found = compare(before, [*before[:k], other, *before[k + 1 :]], 30_000.0, True)
    assert found.identical == len(before) - 1
    assert not found.agrees
    assert found.unexplained == [f"presentation {before[k].presentation}: count"]
    assert compare(before, before, 30_000.0, True).identical == len(before)


@pytest.mark.parametrize(("off", "explained"), [(30, True), (3_000, False)])
def test_a_response_by_the_flip_may_differ_within_its_stated_bound(log: list[Entry], off: int, explained: bool) -> None:
    one = next(r for r in responses(log) if r.usable)
    one = one.model_copy(update={"onset_source": "flip", "onset_uncertainty_ns": 9_000_000})
    assert one.onset_sample is not None
    other = one.model_copy(update={"onset_sample": one.onset_sample + off, "count": one.count + 1})
    found = compare([one], [other], 30_000.0, True)
    assert found.agrees is explained
    assert (found.flip_within, len(found.flip_beyond)) == ((1, 0) if explained else (0, 1))


def test_a_baseline_may_pool_a_presentation_that_differs_within_its_bound(log: list[Entry]) -> None:
    first, second = (r for r in responses(log) if r.usable and r.baseline_n is not None and r.presentation in (3, 4))
    flip = first.model_copy(update={"onset_source": "flip", "onset_uncertainty_ns": 9_000_000})
    assert flip.onset_sample is not None
    moved = flip.model_copy(update={"onset_sample": flip.onset_sample + 30})
    pooled = second.model_copy(update={"baseline": second.baseline + 0.1, "rate_hz": second.rate_hz - 1})
    found = compare([flip, second], [moved, pooled], 30_000.0, True)
    assert (found.flip_within, found.pooled, found.agrees) == (1, 1, True)
    alone = compare([second], [pooled], 30_000.0, True)
    assert alone.edge_different, "with nothing to explain it, it is a difference"


def test_a_recording_that_was_cut_off_may_lack_its_last_responses(log: list[Entry]) -> None:
    all_ = responses(log)
    assert compare(all_[:-3], all_, 30_000.0, whole=False).cut_off == 3
    assert compare(all_[:-3], all_, 30_000.0, whole=False).agrees
    assert not compare(all_[:-3], all_, 30_000.0, whole=True).agrees


def test_what_a_restart_of_the_source_made_unusable_may_be_so_for_another_reason(log: list[Entry]) -> None:
    before = responses(log)
    lost = next(k for k, r in enumerate(before) if not r.usable)
    other = before[lost].model_copy(update={"reason": "acquisition restarted before its data were in"})
    after = [*before[:lost], other, *before[lost + 1 :]]
    assert not compare(before, after, 30_000.0, whole=True).agrees
    found = compare(before, after, 30_000.0, whole=True, restarted=True)
    assert found.agrees
    assert (found.restarts, found.identical) == (1, len(before) - 1)
    one = next(k for k, r in enumerate(before) if r.usable)
    now = before[one].model_copy(update={"usable": False, "reason": "lost"})
    changed = [*before[:one], now, *before[one + 1 :]]
    assert not compare(before, changed, 30_000.0, whole=True, restarted=True).agrees, "usable before, and not now"
    assert not compare(changed, before, 30_000.0, whole=True, restarted=True).agrees, "and the other way round"


# --- what cannot be sent again ----------------------------------------------------------------------------------------


def rewritten(folder: Path, log: list[Entry], start: SessionStart) -> Path:
    folder.mkdir()
    writer = JournalWriter(folder / "session.journal", folder.name)
    first = Entry(log[0].envelope, start)
    for entry in [first, *log[1:40]]:
        writer.append(entry.envelope.seq, encode_entry(entry.envelope, encode(entry.document)))
    writer.close()
    return folder


def test_what_cannot_be_sent_again_is_refused_with_the_reason(tmp_path: Path, log: list[Entry]) -> None:
    start = log[0].document
    assert isinstance(start, SessionStart)
    lsl = {**start.config, "sources": [{"type": "lsl_counts", "name": "probe", "stream": "counts"}]}
    multiunit = {**start.config, "sources": [{"type": "openephys", "name": "probe", "multiunit": {"channels": [1]}}]}
    origin = Origin(session="older", journal_sha256="0" * 64, made_utc_ns=1, how={})
    cases = {
        "of type lsl_counts; only Open Ephys": {"config": lsl},
        "found in its voltage": {"config": multiunit},
        "derived from older": {"derived_from": origin},
    }
    for k, (words, update) in enumerate(cases.items()):
        folder = rewritten(tmp_path / str(k), log, start.model_copy(update=update))
        with pytest.raises(ReplayError, match=words):
            load(folder)


def test_a_session_over_a_reboot_has_no_one_clock(tmp_path: Path, log: list[Entry]) -> None:
    folder = tmp_path / "rebooted"
    folder.mkdir()
    writer = JournalWriter(folder / "session.journal", "rebooted")
    for k, entry in enumerate(log[:40]):
        document = entry.document
        if k == 2:
            document = document.model_copy(update={"boot_id": "another"})
        writer.append(entry.envelope.seq, encode_entry(entry.envelope, encode(document)))
    writer.close()
    with pytest.raises(ReplayError, match="over a reboot"):
        load(folder)


@pytest.mark.parametrize(("text", "speed"), [("1", 1.0), ("4x", 4.0), ("max", 0.0)])
def test_speeds(text: str, speed: float) -> None:
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["fast", "0", "-1", "1000", "nan"])
def test_speeds_that_are_none(text: str) -> None:
    with pytest.raises(ReplayError, match="--speed"):
        parse_speed(text)


def test_a_file_that_is_no_tape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tape.npz"
    path.write_bytes(b"something else")
    with pytest.raises(tape_file.TapeError, match="is no tape"):
        tape_file.read(path)
    np.savez(path, head=np.frombuffer(b'{"version": 2, "devices": []}', dtype=np.uint8))
    with pytest.raises(tape_file.TapeError, match="version 2"):
        tape_file.read(path)


# --- for real ---------------------------------------------------------------------------------------------------------


def replay(folder: Path, out: Path, speed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STIMLOOP, "replay", str(folder), "--wire", "--speed", speed, "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=100, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


def test_real_processes_make_the_same_responses_and_decisions_again(
    lossy: Made, log: list[Entry], tmp_path: Path
) -> None:
    out = tmp_path / "again"
    done = replay(lossy.folder, out, "max")
    assert done.returncode == 0, done.stdout + done.stderr
    again = read_all(out / "session.journal")
    start = again[0].document
    assert isinstance(start, SessionStart)
    assert start.replay_of is not None
    assert start.replay_of.session == lossy.folder.name
    journal = (lossy.folder / "session.journal").read_bytes()
    assert start.replay_of.journal_sha256 == hashlib.sha256(journal).hexdigest()
    found = compare((e.document for e in log), (e.document for e in again), 30_000.0, True)
    assert found.identical == found.by_edge == len(responses(log)) > 20
    assert not all(r.usable for r in responses(log)), "what was lost must show in the recording"
    for kind in ("proposal", "model_updated", "phase_ended"):
        old, new = ([encode(e.document)[0] for e in entries if kind_is(e, kind)] for entries in (log, again))
        assert old == new
        assert old
    assert gaps([e.document for e in again])[: len(gaps([e.document for e in log]))] == gaps([e.document for e in log])
    assert (out / "session.h5").exists()
    assert "response identical" in done.stdout


def kind_is(entry: Entry, kind: str) -> bool:
    return getattr(entry.document, "kind", "") == kind


def test_onsets_by_flips_are_counted_and_explained(tmp_path: Path) -> None:
    made = paper_session(tmp_path / "flips", generations=1, photodiode=False)
    done = replay(made.folder, tmp_path / "again", "4")
    table = dict(re.findall(r"^ *(\S.*?) {2,}(\d+) *$", done.stdout, re.MULTILINE))
    total = len(responses(read_all(made.folder / "session.journal")))
    assert table["response by a photodiode's edge"] == "0", done.stdout + done.stderr
    assert table["response different otherwise"] == "0", done.stdout + done.stderr
    rows = ("response identical", "response different, within its onset's stated bound",
            "response different in its baseline, which pools those")  # fmt: skip
    assert sum(int(table[row]) for row in rows) == total > 20


def test_a_folder_that_is_there_is_left_alone(lossy: Made, tmp_path: Path) -> None:
    done = replay(lossy.folder, tmp_path, "max")
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert "--out" in done.stderr
    assert list(tmp_path.iterdir()) == []
