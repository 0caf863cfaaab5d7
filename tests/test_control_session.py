"""A whole control session on paper: replayed bit for bit with every frame, told in the report, and its truth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from models.server import WANTS
from models.truth import build_for
from models.truth_best import best_hz
from rig.cli import app
from rig.messages import ModelUpdated, PhaseEnded, Presented, Proposal
from rig.recording.journal import read_all
from rig.replay.frames import banks_of
from rig.replay.records import config_of, session_start
from rig.replay.session import verify_session
from rig.report.control import _verdict, goals, responses, seen
from rig.report.data import open_session
from rig.report.first_minutes import last_report
from rig.report.page import write
from rig.true_control import ControlTruth
from rig.true_rates import truths
from rig.view.h5 import build
from stimuli.spec import HELD_OUT, BankImage, LatentImage
from tests.test_replay import made, make
from tests.test_true_rates import broken_off

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
            if goal.kind == "target":
                for site, wanted in PHASE["targets"][goal.name].items():
                    low, high = seen(report, site)
                    assert low < 0 < high  # of the very responses that they are z-scored by
                    outside = f"{wanted:g} of {site}, which had between {low:.1f} and {high:.1f}"
                    assert (outside in page) == (not low <= wanted <= high)


def test_surely_higher_and_surely_lower_goals_stand_in_their_columns() -> None:
    report = {"stretch_goals": 4.0, "stretch_better_natural": 0.5, "stretch_worse_natural": 0.25}
    report |= {"stretch_above_natural": 0.75, "stretch_above_natural_low": 0.3, "stretch_above_natural_high": 0.95}
    page = _verdict("stretch", report, 0.05)
    assert "<th class=n>surely higher</th><th class=n>surely lower</th>" in page
    assert "(95 % interval 30% to 95%)</td><td class=n>2</td><td class=n>1</td>" in page


def test_true_scores_are_those_of_the_neurons_z_scored_by_true_rates_to_held_out_images(journal: Path) -> None:
    entries = [e.document for e in read_all(journal)]
    last = [d for d in entries if isinstance(d, ModelUpdated)][-1]
    (one,) = truths(journal.parent, build_for, best_hz)
    assert isinstance(one, ControlTruth)
    config = config_of(session_start(journal))
    cells, banks = build_for(config), banks_of(config)
    pictures = {}
    for d in entries:
        for s in d.stimuli if isinstance(d, Proposal) else ():
            if isinstance(s.spec, LatentImage):
                pictures[s.id] = np.array(d.frames[s.spec.row])
    side = next(iter(pictures.values())).shape[0]
    natural = {
        s.id: cells.rate_hz(banks[s.spec.bank].image(s.spec.name, side, side).astype(np.float32) / np.float32(255))
        for d in entries
        if isinstance(d, Proposal)
        for s in d.stimuli
        if isinstance(s.spec, BankImage)
    }
    assert len(natural) == 50
    stimuli = {s.id: s for d in entries if isinstance(d, Proposal) for s in d.stimuli}
    held_out = np.stack([rates for name, rates in natural.items() if HELD_OUT in stimuli[name].figures])
    assert len(held_out) == 10
    assert [goal.kind for goal in one.goals] == ["stretch"] * 2 + ["one_hot"] * 2 + ["target"]
    ids = {(score.target, score.source): score.stimulus_id for score in last.scores}
    for goal in one.goals[:2]:
        unit = goal.title.removeprefix("stretch ")
        column = cells.units.index(unit)
        mean, sd = held_out[:, column].mean(), held_out[:, column].std(ddof=1)
        for which, z in goal.true.items():
            rate = cells.rate_hz(pictures[ids[goal.title, which]].astype(np.float32) / np.float32(255))[column]
            assert z == pytest.approx((rate - mean) / sd)
            assert goal.measured[which] == last.report[f"{goal.title}: {which}"]
        best = max(natural, key=lambda name: natural[name][column])
        assert goal.best_natural_id == best
        assert goal.best_natural == pytest.approx((natural[best][column] - mean) / sd)
    stretch = one.of_kind("stretch")
    assert stretch["above_natural_measured"] == last.report["stretch_above_natural"]
    assert stretch["above_best_natural_true"] == np.mean([g.true["1"] > g.best_natural for g in one.goals[:2]])
    assert all(goal.best_natural >= max(goal.true["natural"], goal.true["predicted"]) for goal in one.goals)


def test_the_command_prints_true_scores_and_gives_figures(journal: Path) -> None:
    said = CliRunner().invoke(app, ["truth", str(journal.parent)])
    assert said.exit_code == 0, said.output
    assert "phase 1, one_hot, 2 goals: medians of the softmax" in said.output
    assert "of all natural images that the phase showed" in said.output
    assert "MEI" not in said.output
    (one,) = json.loads(CliRunner().invoke(app, ["truth", str(journal.parent), "--json"]).output)
    assert (one["agent"], [row["kind"] for row in one["kinds"]]) == ("control", ["stretch", "one_hot", "target"])
    assert len(one["comparisons"]) == 5


def test_of_a_phase_that_was_broken_off_the_command_says_that_nothing_was_tested(journal: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["truth", str(broken_off(journal, tmp_path / "broken"))])
    assert said.exit_code == 0, said.output
    assert "phase 1: nothing was tested: the session ended before the phase did: stop key" in said.output
