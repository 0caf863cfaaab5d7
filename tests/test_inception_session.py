"""A whole inception session on paper: replayed bit for bit with every frame, and told in the report."""

from pathlib import Path
from typing import Any

import pytest

from models.server import WANTS
from rig.messages import ModelUpdated, PhaseEnded, Presented, Proposal
from rig.recording.journal import read_all
from rig.replay.session import verify_session
from rig.report.data import open_session
from rig.report.page import write
from rig.view.h5 import build
from tests.test_replay import made, make

PHASE: dict[str, Any] = {
    "agent": "inception", "train": 40, "test": 10, "test_repeats": 4, "block": 30, "waiting": 10, "repeats": 6,
    "most_units": 2, "starts": 2, "iterations": 20, "least_score": -1, "least_oracle": -1, "grid_step": 6,
    "controls": ["linear", "natural"],
}  # fmt: skip


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of a session to its end."""
    return made(tmp_path_factory.mktemp("made") / "inception", [PHASE], 1.0)


def test_its_replay_decides_the_same_and_makes_the_same_frames(journal: Path) -> None:
    outcome = verify_session(journal, make, WANTS, frames=True)
    assert (outcome.verdict.different, outcome.verdict.missing) == ([], [])
    documents = [e.document for e in read_all(journal)]
    (ended,) = [d for d in documents if isinstance(d, PhaseEnded)]
    assert ended.reason == "6 repeats of 6 images of 2 units were shown back"
    proposals = [d for d in documents if isinstance(d, Proposal)]
    assert {p.agent for p in proposals} == {"inception"}
    shown = [d for d in documents if isinstance(d, Presented)]
    frames: dict[str, set[str]] = {}
    for one in shown:
        frames.setdefault(one.stimulus_id, set()).add(one.frame_sha256)
    assert all(len(of) == 1 for of in frames.values())
    back = [one.stimulus_id for one in shown if one.role == "confirmation"]
    assert sorted(back.count(name) for name in set(back)) == [6] * 6
    first = next(k for k, one in enumerate(shown) if one.role == "confirmation")
    assert all(one.role in ("confirmation", "blank") for one in shown[first:])


def test_the_report_shows_scores_images_and_what_was_told_apart(journal: Path) -> None:
    build(journal.parent)
    page = write(journal.parent).read_text(encoding="utf-8")
    last = [e.document for e in read_all(journal) if isinstance(e.document, ModelUpdated)][-1]
    assert "<b>2 units chosen</b>" in page
    assert f"in {last.report['row_maximum']:.0%} of the units" in page
    assert f"More than <b>linear field</b>: {last.report['better_linear']:.0%} of the units" in page
    figures = {path.stem for path in (journal.parent / "figures").glob("*.png")}
    assert {"learning_0", "meis_0", "confusion_0"} <= figures
    with open_session(journal.parent / "session.h5") as session:
        for score in last.scores:
            column = session.units.index(score.target)
            rates = session.rates(column, phase=0, role="confirmation", stimulus=score.stimulus_id)
            assert rates.mean() == pytest.approx(score.raw)
            assert len(rates) == score.presentations == 6
            if score.source == "mei":
                assert f"<td class=n>{score.raw:.1f} ± {score.error:.1f}</td>" in page
