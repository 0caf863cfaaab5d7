"""A session with an evolution of two targets and its confirmation: replayed, filed, and told in the report."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from models.server import WANTS
from rig.messages import ModelUpdated, PhaseEnded, Presented, Proposal
from rig.recording.journal import read_all
from rig.replay.session import verify_session
from rig.report.data import open_session
from rig.report.page import write
from rig.report.targets import each_target
from rig.view.h5 import build
from tests.test_replay import made, make

EVOLVE = {
    "agent": "evolve", "units": ["E03#0", "E01#0"], "generations": 3, "references": 6, "blanks": 1,
    "optimiser": {"type": "xdream", "preset": "plos2020", "population": 10},
}  # fmt: skip
CONFIRM = {"agent": "confirm", "repeats": 20, "images": 1, "references": 1, "blanks": 1}


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("made") / "many", [EVOLVE, CONFIRM], 2.0)


def test_its_replay_decides_the_same_and_the_confirmed_images_were_shown_before(journal: Path) -> None:
    outcome = verify_session(journal, make, WANTS, frames=True)
    assert (outcome.verdict.different, outcome.verdict.missing) == ([], [])
    entries = read_all(journal)
    assert [e.document.phase for e in entries if isinstance(e.document, PhaseEnded)] == [0, 1]
    shown = [e.document for e in entries if isinstance(e.document, Presented)]
    frames: dict[str, set[str]] = {}
    for one in shown:
        frames.setdefault(one.stimulus_id, set()).add(one.frame_sha256)
    assert all(len(of) == 1 for of in frames.values())  # the same image is the same bytes in both phases
    confirmed = {p.stimulus_id for p in shown if p.role == "confirmation"}
    before = {p.stimulus_id for p in shown if p.role in ("candidate", "reshow", "reference")}
    assert confirmed <= before
    proposals = [e.document for e in entries if isinstance(e.document, Proposal)]
    assert {p.agent for p in proposals if p.phase == 1} == {"confirm"}
    assert [sum(p.stimulus_id == name and p.role == "confirmation" for p in shown) for name in confirmed] == (
        [20] * len(confirmed)
    )


def test_report_and_file_say_what_the_fresh_repeats_say(journal: Path) -> None:
    build(journal.parent)
    updates = [e.document for e in read_all(journal) if isinstance(e.document, ModelUpdated)]
    last = updates[-1]
    with h5py.File(journal.parent / "session.h5") as file:
        scores = file["model/scores"]
        phase, raw = scores["phase"][:], scores["raw"][:]
        assert len(raw) == sum(len(u.scores) for u in updates)
        assert np.array_equal(raw[-len(last.scores) :], [s.raw for s in last.scores])
        assert set(scores["target"].asstr()[:][phase == 0]) == {"E03#0", "E01#0"}
        assert set(scores["source"].asstr()[:][phase == 1]) == {"evolved", "reference"}
        roles = file["presentations/role"].asstr()[:]
        assert (roles == "confirmation").sum() == 20 * len({s.stimulus_id for s in last.scores})
    page = write(journal.parent).read_text(encoding="utf-8")
    assert "confirmation" in page
    assert "use these presentations only" in page
    for target in ("E03#0", "E01#0"):
        value, error = last.report[f"{target}: evolved"], last.report[f"{target}: evolved_se"]
        assert f"gave {value:.1f} ± {error:.1f} spikes/s (20 repeats)" in page
        assert f"p = {last.report[f'{target}: p']:.2g} (corrected)" in page
        assert f"<h3>{target}</h3>" in page
    with open_session(journal.parent / "session.h5") as session:
        (first, title, about), (_, _, other) = each_target(session, 0)
        assert (first, title) == ("_t0", "E03#0")
        own = about.usable & (about.phase == 0) & (about.role == "candidate")
        assert own.sum() == (other.usable & (other.phase == 0) & (other.role == "candidate")).sum() == 30
        assert all(name.startswith("p0-t0-") for name in about.stimulus_id[own])
        assert about.units[about.unit_of(0)] == "E03#0"
    assert json.dumps(last.report)
