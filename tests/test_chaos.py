"""The chaos suite (`make chaos`): more than a hundred kills and freezes in real simulated sessions.

STIMLOOP_CHAOS_SEED and STIMLOOP_CHAOS_KILLS choose another seed and number. What each check finds is tested without
sessions in test_chaos_checks.py; here the faults are planted in a session that really ran.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from rig.bench.chaos import chaos, judge
from rig.bench.chaos_session import Ran, run
from rig.clock import HostClock
from rig.encoding import encode, encode_entry
from rig.messages import Document, Presented, Proposal, Response
from rig.recording.journal import JournalWriter, read_all
from rig.view.h5 import build
from tests.synthetic_session import Synthetic, write_journal

SEED = int(os.environ.get("STIMLOOP_CHAOS_SEED", "1"))
KILLS = int(os.environ.get("STIMLOOP_CHAOS_KILLS", "110"))
pytestmark = [pytest.mark.chaos, pytest.mark.display, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, private_screen: str) -> Ran:
    """Return one short session that nothing was done to."""
    return run(tmp_path_factory.mktemp("calm"), SEED, 2, (), HostClock(spin_ns=0))


def rewritten(ran: Ran, target: Path, kind: type[Document], **changes: object) -> Ran:
    """Return the session with one document of its journal changed, the third of its kind."""
    target.mkdir()
    entries = read_all(ran.folder / "session.journal")
    chosen = [e.envelope.seq for e in entries if isinstance(e.document, kind)][2 if kind is not Proposal else 1]
    writer = JournalWriter(target / "session.journal", target.name)
    for e in entries:
        document = e.document.model_copy(update=changes) if e.envelope.seq == chosen else e.document
        writer.append(e.envelope.seq, encode_entry(e.envelope, encode(document)))
    writer.close()
    for name in ("config.yaml", "session.h5"):
        shutil.copy(ran.folder / name, target)
    return dataclasses.replace(ran, folder=target)


def kinds_of_violation(ran: Ran, undisturbed: Ran) -> set[str]:
    judged = judge(ran, read_all(undisturbed.folder / "session.journal"))
    return {line.split(":")[0] for line in judged.violations}


def test_a_session_that_nothing_was_done_to_is_in_order(calm: Ran) -> None:
    assert judge(calm, read_all(calm.folder / "session.journal")).violations == []


def test_an_edited_response_is_found(calm: Ran, tmp_path: Path) -> None:
    response = [e.document for e in read_all(calm.folder / "session.journal") if isinstance(e.document, Response)][2]
    edited = rewritten(calm, tmp_path / "edited", Response, rate_hz=response.rate_hz + 50)
    assert kinds_of_violation(edited, calm) == {"replay"}


def test_an_edited_proposal_and_a_second_presentation_of_one_slot_are_found(calm: Ran, tmp_path: Path) -> None:
    log = read_all(calm.folder / "session.journal")
    proposal = [e.document for e in log if isinstance(e.document, Proposal)][1]
    other = rewritten(calm, tmp_path / "proposal", Proposal, latents=proposal.latents + 1)
    assert {"generations", "replay", "acknowledged"} <= kinds_of_violation(other, calm)
    third = [e.document for e in log if isinstance(e.document, Presented)][2]
    twice = rewritten(calm, tmp_path / "twice", Presented, slot=third.slot + 1)
    assert {"repeats", "acknowledged"} <= kinds_of_violation(twice, calm)


def test_a_session_file_of_another_session_is_found(calm: Ran, tmp_path: Path) -> None:
    fewer = rewritten(calm, tmp_path / "fewer", Response)
    (tmp_path / "other").mkdir()
    write_journal(tmp_path / "other", list(Synthetic(generations=1).entries()))
    shutil.copy(build(tmp_path / "other"), fewer.folder / "session.h5")
    assert kinds_of_violation(fewer, calm) == {"session.h5"}


def test_an_acknowledged_document_that_is_not_in_the_journal_is_found(calm: Ran, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    shutil.copytree(calm.witness, witness)
    (notes, *_) = witness.glob("rig-*.jsonl")
    lost = {"n": 99_999, "cause": None, "sha256": "0" * 64, "refused": False}
    notes.write_text(notes.read_text() + json.dumps(lost) + "\n")
    assert kinds_of_violation(dataclasses.replace(calm, witness=witness), calm) == {"acknowledged"}


def test_nothing_is_lost_by_a_hundred_kills_and_freezes(private_screen: str, tmp_path: Path) -> None:
    figures = chaos(KILLS, SEED, tmp_path, HostClock(spin_ns=0), Console(width=200))
    assert figures["violations"] == []
    assert figures["strikes"] >= KILLS
    assert figures["in_pulse"] >= KILLS / 10
    assert {name for name in figures if name.startswith("struck_")} >= {
        f"struck_{name}" for name in ("model", "rig", "recorder", "source", "view")
    }
