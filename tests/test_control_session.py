"""A whole control session on paper: replayed bit for bit with every frame, and told in the report."""

from pathlib import Path
from typing import Any

import pytest

from models.server import WANTS
from rig.messages import ModelUpdated, PhaseEnded, Presented
from rig.recording.journal import read_all
from rig.replay.session import verify_session
from rig.report.control import goals, responses
from rig.report.data import open_session
from rig.report.first_minutes import last_report
from rig.report.page import write
from rig.view.h5 import build
from tests.test_replay import made, make

PHASE: dict[str, Any] = {
    "agent": "control", "train": 40, "test": 10, "test_repeats": 4, "block": 30, "waiting": 10, "repeats": 6,
    "most_sites": 2, "most_alike": 1.0, "made": 1, "starts": 2, "iterations": 20, "least_score": -1, "least_oracle": -1,
    "targets": {"apart": {"E01#0": 2.0, "E02#0": -1.0}},
}  # fmt: skip


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of a session to its end."""
    return made(tmp_path_factory.mktemp("made") / "control", [PHASE], 1.2)


def test_its_replay_decides_the_same_and_makes_the_same_frames(journal: Path) -> None:
    outcome = verify_session(journal, make, WANTS, frames=True)
    assert (outcome.verdict.different, outcome.verdict.missing) == ([], [])
    documents = [e.document for e in read_all(journal)]
    (ended,) = [d for d in documents if isinstance(d, PhaseEnded)]
    assert ended.reason == "6 repeats of 15 images of 2 units were shown back"
    frames: dict[str, str] = {d.stimulus_id: d.frame_sha256 for d in documents if isinstance(d, Presented)}
    back = [d.stimulus_id for d in documents if isinstance(d, Presented) and d.role == "confirmation"]
    assert sorted(back.count(name) for name in set(back)) == [6] * 15
    # Natural images come back exactly as they were before.
    for name in {n for n in back if n.endswith(("natural", "predicted"))}:
        assert frames[name] in {sha for other, sha in frames.items() if other.startswith("tiles-")}


def test_the_report_shows_images_scores_and_baselines(journal: Path) -> None:
    build(journal.parent)
    page = write(journal.parent).read_text(encoding="utf-8")
    last = [e.document for e in read_all(journal) if isinstance(e.document, ModelUpdated)][-1]
    share = last.report["stretch_above_natural"]
    assert f"(cross-validated): <b>{round(2 * share)} of 2, {share:.0%}</b> (95 % interval" in page
    both = last.report["stretch_above_both"]
    assert f"the model predicts to be best: <b>{round(2 * both)} of 2, {both:.0%}</b> (95 % interval" in page
    assert "<td>best natural, predicted</td>" in page
    for figure in ("one_hot_made", "one_hot_natural", "one_hot_predicted", "stretch_best_natural"):
        assert f"<td class=n>{last.report[figure]:.2f}</td>" in page
    names = {path.stem for path in (journal.parent / "figures").glob("*.png")}
    kinds = {f"{kind}_{what}_0" for kind in ("stretch", "one_hot", "target") for what in ("scores", "images")}
    assert kinds | {"learning_0", "one_hot_population_0"} <= names
    with open_session(journal.parent / "session.h5") as session:
        report = last_report(session, 0)
        for goal in goals(session, 0, report):  # what the page draws is what the agent stated
            if goal.kind == "stretch":
                mean, error = responses(session, 0, report, goal, "1")
                assert mean[0] == pytest.approx(report[f"{goal.title}: 1"])
                assert error[0] == pytest.approx(report[f"{goal.title}: 1_se"])
