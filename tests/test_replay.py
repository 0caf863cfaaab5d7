"""Replay over logs made by the real folds: verify with restarts, damage and frames; any moment; speed without lists."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from models.agents import build_from_config
from models.server import WANTS, ModelServer
from models.truth import build
from rig.bench.long_session import LongSession
from rig.bench.replay import session_s
from rig.clock import FakeClock, HostClock
from rig.config.reading import parse
from rig.config.session import Config
from rig.display.places import places
from rig.encoding import encode, encode_entry
from rig.messages import (
    Document,
    Entry,
    Envelope,
    Origin,
    Presented,
    Proposal,
    Response,
    SessionStart,
    StimulusPrepared,
)
from rig.provenance import process_started
from rig.recording.journal import JournalWriter, read_all
from rig.replay.frames import FramesCheck
from rig.replay.moment import clock_words, export, parse_when, rebuild, words
from rig.replay.records import Log, Record, ReplayError
from rig.replay.session import verify_session
from rig.replay.verdict import Verdict
from rig.replay.verify import Fold, run_parts, verify

ROOT = Path(__file__).parent.parent
MINUTES = 0.5
EVOLVE = {"agent": "evolve", "unit": "E03#0", "generations": 3, "references": 2, "reshows": 1, "blanks": 1}
PRESENT = {"agent": "present", "images": ["natural", "gratings"], "count": 5, "repeats": 2, "blanks": 1}


def make(start: SessionStart) -> Fold:
    config = Config.model_validate(start.config)
    return ModelServer(build_from_config(config), len(config.phases), config.presentation.repeats_of_unusable)


def made(folder: Path, phases: list[dict[str, object]], minutes: float = MINUTES, **changes: object) -> Path:
    raw = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    raw |= {"phases": phases, "stimulus": {"size_deg": 4}, **changes}
    text = yaml.safe_dump(raw)
    config = parse(text)
    server = ModelServer(build_from_config(config), len(config.phases), config.presentation.repeats_of_unusable)
    neurons = build(config.animal, *places(config).angles)
    return LongSession(folder, config, text, server, WANTS, neurons, 1).run(minutes)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole session: a fixed set, then an evolution, to their ends."""
    return made(tmp_path_factory.mktemp("made") / "both", [PRESENT, {**EVOLVE, "preset": "plos2020"}], 2.0)


@pytest.fixture(scope="module")
def entries(journal: Path) -> list[Entry]:
    return read_all(journal)


def checked(entries: list[Entry]) -> Verdict:
    return verify(entries, make, WANTS)


def with_document(entry: Entry, **changes: object) -> Entry:
    return Entry(entry.envelope, entry.document.model_copy(update=changes))


def encoded(document: Document | None) -> list[bytes]:
    assert document is not None
    return encode(document)


def first(entries: list[Entry], kind: type[Document]) -> Entry:
    return next(e for e in entries if isinstance(e.document, kind))


def write(folder: Path, entries: list[Entry]) -> Path:
    folder.mkdir()
    writer = JournalWriter(folder / "session.journal", folder.name)
    for entry in entries:
        writer.append(entry.envelope.seq, encode_entry(entry.envelope, encode(entry.document)))
    writer.close()
    return folder / "session.journal"


# --- verify -----------------------------------------------------------------------------------------------------------


def test_a_whole_session_comes_out_the_same_in_two_processes(journal: Path, entries: list[Entry]) -> None:
    outcome = verify_session(journal, make, WANTS, frames=True)
    verdict = outcome.verdict
    assert (verdict.different, verdict.missing, outcome.incomplete) == ([], [], ())
    counts = {k: sum(isinstance(e.document, k) for e in entries) for k in (Proposal, Response, StimulusPrepared)}
    assert verdict.identical["proposal"] == counts[Proposal] == outcome.proposals == 5
    assert verdict.identical["response"] == counts[Response] > 60
    assert verdict.identical["frame"] == counts[StimulusPrepared]
    assert verdict.identical["presented frame"] == verdict.identical["presented as planned"] == counts[Response]
    assert verdict.identical["phase_ended"] == 2
    assert verify_session(journal, make, WANTS, frames=False).verdict.decisions < verdict.decisions


def test_one_process_finds_the_same_as_two(journal: Path, entries: list[Entry]) -> None:
    two = verify_session(journal, make, WANTS, frames=False).verdict
    assert checked(entries).identical == two.identical


def test_a_changed_response_is_named_and_so_is_what_followed_from_it(entries: list[Entry]) -> None:
    chosen = [e for e in entries if isinstance(e.document, Response) and e.document.role == "candidate"][3]
    assert isinstance(chosen.document, Response)
    other = with_document(chosen, rate_hz=chosen.document.rate_hz + 50)
    verdict = checked([other if e is chosen else e for e in entries])
    named = f"response caused by entry {chosen.envelope.cause_seq} (journal entry {chosen.envelope.seq}) differs"
    assert named in verdict.different
    assert any(line.startswith("model_updated") for line in verdict.different)
    assert verdict.identical["response"] > 0


def test_a_missing_a_new_and_a_repeated_decision_are_each_named(entries: list[Entry]) -> None:
    response = first(entries, Response)
    gone = checked([e for e in entries if e is not response]).missing
    assert f"response caused by entry {response.envelope.cause_seq}: replay makes it, the journal has none" in gone
    end = entries[-1].envelope
    foreign = end.model_copy(update={"sender": "model", "cause_seq": 5, "cause_index": 7})
    stranger = Entry(foreign, first(entries, Proposal).document)
    assert any("replay makes none" in line for line in checked([*entries[:-1], stranger, entries[-1]]).missing)
    twice = Entry(response.envelope.model_copy(update={"seq": end.seq}), response.document)
    assert any("caused it twice" in line for line in checked([*entries[:-1], twice, entries[-1]]).different)


def test_restarts_in_the_log_change_no_decision(entries: list[Entry], tmp_path: Path) -> None:
    """Every process starts again in the middle; what its fold says again is not journalled again."""
    cut = len(entries) // 2
    clock = FakeClock(entries[cut].envelope.receipt_host_ns)
    again = [
        Entry(
            Envelope(seq=0, receipt_host_ns=clock.now_ns(), sender=name, process=f"{name}-2", sender_seq=1),
            process_started(name, clock, {}),
        )
        for name in ("recorder", "rig", "model", "probe")
    ]
    place: dict[int, int] = {}
    out: list[Entry] = []
    for k, entry in enumerate([*entries[: cut + 1], *again, *entries[cut + 1 :]], start=1):
        place.setdefault(entry.envelope.seq, k)
        cause = entry.envelope.cause_seq
        changes = {"seq": k, "cause_seq": None if cause is None else place[cause]}
        out.append(Entry(entry.envelope.model_copy(update=changes), entry.document))
    outcome = verify_session(write(tmp_path / "again", out), make, WANTS, frames=False)
    assert outcome.verdict.agrees, outcome.verdict.different[:3] + outcome.verdict.missing[:3]
    assert {name: n for name, n in outcome.starts.items() if n == 2}.keys() == {"recorder", "rig", "model", "probe"}


def test_a_torn_log_agrees_as_far_as_it_goes(journal: Path, tmp_path: Path) -> None:
    data = journal.read_bytes()
    rng = np.random.default_rng(3)
    for cut in rng.integers(len(data) // 3, len(data) - 2000, 3).tolist():
        torn = tmp_path / f"torn{cut}"
        torn.mkdir()
        (torn / "session.journal").write_bytes(data[:cut])
        outcome = verify_session(torn / "session.journal", make, WANTS, frames=True)
        assert outcome.verdict.agrees, outcome.verdict.different[:3] + outcome.verdict.missing[:3]
        assert any("without SessionStop" in line for line in outcome.incomplete)


def test_a_derived_session_compares_responses_only(entries: list[Entry], tmp_path: Path) -> None:
    origin = Origin(session="other", journal_sha256="0" * 64, made_utc_ns=1, how={})
    start = with_document(entries[0], derived_from=origin)
    proposal = first(entries, Proposal)
    other = with_document(proposal, model_version="not what a fold would say")  # and nobody may ask it to
    outcome = verify_session(
        write(tmp_path / "derived", [start, *(other if e is proposal else e for e in entries[1:])]), make, WANTS, False
    )
    assert outcome.derived
    assert outcome.verdict.agrees
    assert outcome.verdict.identical["response"] > 60
    assert "proposal" not in outcome.verdict.identical


def test_a_frame_that_was_not_the_planned_one_is_found(entries: list[Entry]) -> None:
    def found(log: list[Entry]) -> list[str]:
        verdict = Verdict()
        start = log[0].document
        assert isinstance(start, SessionStart)
        run_parts(map(Record.of, log), [FramesCheck(start, verdict)])
        return verdict.different

    assert found(entries) == []
    prepared = next(e for e in entries if isinstance(e.document, StimulusPrepared) and e.document.frame is not None)
    assert isinstance(prepared.document, StimulusPrepared)
    frame = np.array(prepared.document.frame)
    frame[0, 0, 0] ^= 1
    changed = with_document(prepared, frame=frame)
    assert any("is not the one it names" in line for line in found([changed if e is prepared else e for e in entries]))
    wrong = with_document(prepared, frame_sha256="0" * 64, frame=None)
    assert any("comes out otherwise" in line for line in found([wrong if e is prepared else e for e in entries]))
    shown = next(e for e in entries if isinstance(e.document, Presented) and e.document.role == "candidate")
    refused = with_document(shown, refused="it is said to be too bright")
    assert any("says it was refused" in line for line in found([refused if e is shown else e for e in entries]))


def test_what_cannot_be_replayed_is_refused_with_one_reason(tmp_path: Path, entries: list[Entry]) -> None:
    with pytest.raises(ReplayError, match="does not begin with a SessionStart"):
        checked(entries[1:])
    with pytest.raises(ReplayError, match="the journal is empty"):
        checked([])
    old = with_document(entries[0], config={**entries[0].document.config, "of_old": 1})  # type: ignore[attr-defined]
    with pytest.raises(ReplayError, match="config is not one of this version of the program"):
        checked([old, *entries[1:]])
    bank = tmp_path / "pictures"
    start = entries[0].document
    assert isinstance(start, SessionStart)
    config = start.config | {"banks": {"mine": str(bank)}}
    with pytest.raises(ReplayError, match="must be where they were"):
        FramesCheck(start.model_copy(update={"config": config}), Verdict())


# --- the command ------------------------------------------------------------------------------------------------------


def stimloop(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "rig.cli", "replay", *words], cwd=ROOT, capture_output=True, text=True, timeout=100
    )


@pytest.mark.slow  # nine runs of the command, each of which loads torch
def test_exit_codes_and_words(journal: Path, entries: list[Entry], tmp_path: Path) -> None:
    good = stimloop(str(journal.parent), "--verify")
    assert (good.returncode, good.stderr) == (0, "")
    assert "identical: 5 of 5 proposals" in good.stdout
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "session.journal").write_bytes(journal.read_bytes()[:-700])
    incomplete = stimloop(str(torn), "--verify")
    assert incomplete.returncode == 3
    assert "incomplete log the session was not closed in order" in incomplete.stderr
    response = first(entries, Response)
    assert isinstance(response.document, Response)
    changed = with_document(response, coverage=0.5)
    other = write(tmp_path / "other", [changed if e is response else e for e in entries])
    different = stimloop(str(other.parent), "--verify")
    assert different.returncode == 4
    assert "1 decisions differ, 0 are missing or new" in different.stderr
    nothing = stimloop(str(tmp_path), "--verify")
    assert nothing.returncode == 2
    assert "holds no session.journal" in nothing.stderr
    unsaid = stimloop(str(journal.parent))
    assert unsaid.returncode == 2
    assert "choose one thing to replay" in unsaid.stderr


# --- any moment -------------------------------------------------------------------------------------------------------


def test_a_moment_is_what_the_entries_before_it_say(journal: Path, entries: list[Entry]) -> None:
    shown = [e for e in entries if isinstance(e.document, Presented)]
    chosen = shown[30].document
    assert isinstance(chosen, Presented)
    moment = rebuild(journal, parse_when(f"p{chosen.presentation}"), make, WANTS)
    seq = shown[30].envelope.seq
    before = [e.document for e in entries if e.envelope.seq <= seq]
    assert moment.seq == seq
    assert moment.presentations == 31
    assert moment.usable == sum(isinstance(d, Response) and d.usable for d in before)
    proposals = [d for d in before if isinstance(d, Proposal)]
    assert (moment.phase, moment.generation) == (proposals[-1].phase, proposals[-1].generation)
    assert encoded(moment.last_shown) == encode(chosen)
    assert moment.on_screen is None  # its record comes when it is over
    planned = moment.planned
    assert planned is not None
    following = [e.document for e in shown[31 : 31 + len(planned.images)]]
    assert [one.stimulus.id for one in planned.images] == [d.stimulus_id for d in following if isinstance(d, Presented)]
    assert moment.remade.agrees
    assert moment.remade.identical["proposal"] == len(proposals)
    same = rebuild(journal, parse_when(str(seq)), make, WANTS)
    assert words(same) == words(moment)


def test_the_image_on_the_screen_at_a_time_is_found(journal: Path, entries: list[Entry]) -> None:
    start = entries[0].document
    chosen = [e.document for e in entries if isinstance(e.document, Presented)][40]
    assert isinstance(start, SessionStart)
    assert isinstance(chosen, Presented)
    middle_ns = (chosen.onset_flip_host_ns + chosen.offset_flip_host_ns) // 2 - start.start_host_ns
    moment = rebuild(journal, parse_when(f"{middle_ns * 1e-9:.3f}s"), make, WANTS)
    assert encoded(moment.on_screen) == encode(chosen)
    assert moment.presentations == 40
    assert any(f"on the screen: {chosen.stimulus_id}" in line for line in words(moment))
    dark = rebuild(journal, parse_when(f"{middle_ns * 1e-9 + 0.1:.3f}s"), make, WANTS)
    assert dark.on_screen is None
    assert encoded(dark.last_shown) == encode(chosen)


@pytest.mark.parametrize(
    ("text", "kind", "number"),
    [
        ("1234", "entry", 1234),
        ("p57", "presentation", 57),
        ("12:30", "time", 750_000_000_000),
        ("1:02:30", "time", 3_750_000_000_000),
        ("90s", "time", 90_000_000_000),
        ("2.5s", "time", 2_500_000_000),
    ],
)
def test_moments_are_written_in_three_ways(text: str, kind: str, number: int) -> None:
    when = parse_when(text)
    assert (when.kind, when.number) == (kind, number)


@pytest.mark.parametrize("text", ["", "yesterday", "p", "-5", "12:", "p5.5"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ReplayError, match="is no moment"):
        parse_when(text)


@pytest.mark.parametrize("text", ["99999999", "p99999", "9:00:00"])
def test_a_moment_that_never_came_is_refused(journal: Path, text: str) -> None:
    with pytest.raises(ReplayError, match=r"this session has no .* the log has"):
        rebuild(journal, parse_when(text), make, WANTS)


def test_times_are_said_as_people_do() -> None:
    assert [clock_words(s * 1_000_000_000) for s in (0, 61, 3723)] == ["00:00", "01:01", "1:02:03"]


def test_the_session_of_a_moment_is_a_session(journal: Path, tmp_path: Path) -> None:
    before = journal.read_bytes()
    moment = rebuild(journal, parse_when("p30"), make, WANTS)
    export(journal, moment, tmp_path / "then", HostClock())
    copy = tmp_path / "then" / "session.journal"
    copied = read_all(copy)
    assert [e.envelope.seq for e in copied] == list(range(1, moment.seq + 1))
    start = copied[0].document
    assert isinstance(start, SessionStart)
    assert start.cut_from is not None  # it says that it is a part, and of what
    assert start.cut_from.how["up to entry"] == str(moment.seq)
    assert start.cut_from.journal_sha256 == hashlib.sha256(before).hexdigest()
    assert verify_session(copy, make, WANTS, frames=True).verdict.agrees
    from rig.view.h5 import build as build_view

    assert build_view(tmp_path / "then").exists()
    assert journal.read_bytes() == before
    with pytest.raises(FileExistsError):
        export(journal, moment, tmp_path / "then", HostClock())


# --- long sessions ----------------------------------------------------------------------------------------------------


def test_the_made_session_has_what_a_real_one_has(journal: Path, entries: list[Entry]) -> None:
    kinds = {e.document.model_dump(include={"kind"})["kind"] for e in entries}
    assert {"session_start", "process_started", "spike_block", "edge_block", "continuity", "clock_sample"} <= kinds
    assert {"tick", "trial_intent", "presented", "response", "work_done", "model_updated", "session_stop"} <= kinds
    responses = [e.document for e in entries if isinstance(e.document, Response)]
    assert all(r.usable and r.onset_source == "photodiode" for r in responses)
    assert entries[0].document.simulated  # type: ignore[attr-defined]
    took_ns = entries[-1].envelope.receipt_host_ns - entries[0].envelope.receipt_host_ns
    assert session_s(journal) == pytest.approx(took_ns * 1e-9, rel=0.05)
    evolved = [r for r in responses if r.role == "candidate"]
    assert len(evolved) == 60


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_memory_of_verify_does_not_grow_with_the_session(tmp_path: Path) -> None:
    """Twice the journal, the same peak: nothing of what was compared is kept."""
    import tracemalloc

    def peak(minutes: float) -> int:
        path = made(tmp_path / f"m{minutes}", [{**EVOLVE, "generations": 2000}], minutes)
        tracemalloc.start()
        run = verify(Log(path), make, WANTS)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert run.agrees or all("journal has none" in line for line in run.missing)
        return most

    short, long = peak(1.5), peak(4.5)  # windows and clock maps hold a minute
    assert long < 1.25 * short
