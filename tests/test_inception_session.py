"""A whole inception session on paper: replayed bit for bit with every frame, and told in the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.server import WANTS
from rig.messages import Entry, ModelUpdated, PhaseEnded, Presented, Proposal, Response
from rig.recording.journal import read_all
from rig.replay.session import verify_session
from rig.replay.verify import verify
from rig.report.confirmation import fixed
from rig.report.data import open_session
from rig.report.figures import BLACK, GREEN, GREY, ORANGE
from rig.report.first_minutes import of_unit
from rig.report.inception import gallery, row_maximum, shown_back
from rig.report.model_checks import curve, measured
from rig.report.page import write
from rig.view.h5 import build
from stimuli.limits import frame_levels
from tests.test_replay import made, make
from tests.test_replay import write as write_log

PHASE: dict[str, Any] = {
    "agent": "inception", "train": 40, "test": 10, "test_repeats": 4, "block": 30, "waiting": 10, "repeats": 6,
    "most_units": 2, "starts": 2, "iterations": 20, "least_score": -1, "least_oracle": -1, "grid_step": 6,
    "controls": ["linear", "natural"], "contrast_tuning": [0.05, 0.2],
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
    assert ended.reason == "6 repeats of 14 images of 2 units were shown back"
    proposals = [d for d in documents if isinstance(d, Proposal)]
    assert {p.agent for p in proposals} == {"inception"}
    shown = [d for d in documents if isinstance(d, Presented)]
    frames: dict[str, set[str]] = {}
    for one in shown:
        frames.setdefault(one.stimulus_id, set()).add(one.frame_sha256)
    assert all(len(of) == 1 for of in frames.values())
    back = [one.stimulus_id for one in shown if one.role == "confirmation"]
    assert sorted(back.count(name) for name in set(back)) == [6] * 14
    first = next(k for k, one in enumerate(shown) if one.role == "confirmation")
    assert all(one.role in ("confirmation", "blank") for one in shown[first:])


def test_the_replay_fits_and_synthesises_again_and_takes_neither_from_the_log(journal: Path) -> None:
    """First responses changed: each later fit and every image made from them comes out another, and is named."""
    entries = read_all(journal)
    changed, told = 10, []
    for entry in entries:
        document = entry.document
        if isinstance(document, Response) and document.role != "blank" and changed:
            document, changed = document.model_copy(update={"rate_hz": document.rate_hz * changed}), changed - 1
        told.append(Entry(entry.envelope, document))
    verdict = verify(told, make, WANTS)
    different = [line.split()[0] for line in verdict.different]
    updates = sum(isinstance(e.document, ModelUpdated) for e in entries)
    assert different.count("model_updated") >= updates // 2
    shown_back = [
        e.envelope.cause_seq
        for e in entries
        if isinstance(e.document, Proposal) and any(slot.role == "confirmation" for slot in e.document.plan)
    ]
    named = "\n".join(verdict.different)
    assert all(f"proposal caused by entry {seq} " in named for seq in shown_back)
    responses = sum(isinstance(e.document, Response) for e in entries)
    assert verdict.identical["response"] == responses - 9  # the last of the ten was multiplied by 1


def test_the_report_shows_scores_images_and_what_was_told_apart(journal: Path) -> None:
    build(journal.parent)
    page = write(journal.parent).read_text(encoding="utf-8")
    last = [e.document for e in read_all(journal) if isinstance(e.document, ModelUpdated)][-1]
    assert "<b>2 units chosen</b>" in page
    assert f"in {round(2 * last.report['row_maximum'])} of 2 units" in page
    assert f"More than <b>linear field</b>: {round(2 * last.report['better_linear'])} of 2 units" in page
    assert "% of the units" not in page  # of two
    units = {score.target for score in last.scores}
    own = {u: [last.report[f"{u}: {kind}"] for kind in ("mei", "linear", "natural")] for u in units}
    differences = [means[0] - means[1] for means in own.values()]
    assert f"difference {np.median(differences):+.1f} spikes/s (median over units)" in page
    best = sum(means[0] > max(means[1:]) for means in own.values())
    assert f"had the highest mean of all images of its unit in {best} of 2" in page
    with open_session(journal.parent / "session.h5") as session:
        ids, figures = session.texts("stimuli/stimulus_id"), session.texts("stimuli/figures")
        said = [json.loads(figures[ids.index(s.stimulus_id)])["predicted"] for s in last.scores if s.source == "mei"]
    measured_hz = [means[0] for means in own.values()]
    assert f"The model had predicted {np.median(said):.1f} spikes/s for it, {np.median(measured_hz):.1f} were" in page
    contrasts = sorted(last.report[f"{unit}: contrast"] for unit in units)
    assert f"sd / 127.5 over the whole image: {contrasts[0]:.3f}" in page
    assert ("columns of a higher contrast" in page) == (contrasts[1] - contrasts[0] >= 0.002)
    figures = {path.stem for path in (journal.parent / "figures").glob("*.png")}
    drawn = {"learning_0", "learning_units_0", "meis_0", "confusion_0", "contrast_0", "model_0", "frequencies_0"}
    assert drawn <= figures
    with open_session(journal.parent / "session.h5") as session:
        for score in last.scores:
            column = session.units.index(score.target)
            rates = session.rates(column, phase=0, role="confirmation", stimulus=score.stimulus_id)
            assert rates.mean() == pytest.approx(score.raw)
            assert len(rates) == score.presentations == 6
            if score.source == "mei":
                assert f"<td class=n>{score.raw:.1f} ± {score.error:.1f}</td>" in page


def test_the_report_counts_units_with_all_responses_and_says_how_many_were_chosen(
    journal: Path, tmp_path: Path
) -> None:
    """The same log, but for the second unit, which does not answer to any image shown back."""
    told, last = [], {}
    for entry in read_all(journal):
        document = entry.document
        if isinstance(document, ModelUpdated):
            last = dict(document.report)
        if isinstance(document, Response) and document.role == "confirmation":
            rates = document.rate_hz.copy()
            rates[document.units.index("E02#0")] = np.nan
            document = document.model_copy(update={"rate_hz": rates})
        told.append(Entry(entry.envelope, document))
    images: dict[str, dict[str, str]] = {}
    for where, log in ((journal, None), (tmp_path / "silent", told)):
        path = where if log is None else write_log(where, log)
        build(path.parent)
        with open_session(path.parent / "session.h5") as session:
            for unit, kind, stimulus in fixed(session, 0):
                images.setdefault(unit, {})[kind] = stimulus
            assert set(images) >= {"E02#0"}
            said = row_maximum(session, 0, last | {"row_maximum": 1.0}, images)
            assert ("in 2 of 2 units" in said) == (log is None)
            assert ("in 1 of 1 unit" in said) == (log is not None)
            assert ("; 2 were chosen, images of 2 were shown back, and counted are those" in said) == (log is not None)
            more = row_maximum(session, 0, last | {"chosen": 3.0}, images)
            assert "; 3 were chosen, images of 2 were shown back" in more


def test_the_page_tells_which_way_images_differ(journal: Path) -> None:
    """With a report by which every test against the linear field was sure, and none against the natural image."""
    last = [e.document for e in read_all(journal) if isinstance(e.document, ModelUpdated)][-1]
    units = list(dict.fromkeys(score.target for score in last.scores))
    report = dict(last.report) | {f"{u}: q_linear": 0.01 for u in units} | {f"{u}: q_natural": 0.5 for u in units}
    report |= {"better_linear": 0.5, "worse_linear": 0.0}
    images: dict[str, dict[str, str]] = {}
    build(journal.parent)
    with open_session(journal.parent / "session.h5") as session:
        for unit, kind, stimulus in fixed(session, 0):
            images.setdefault(unit, {})[kind] = stimulus
        drawn = gallery(session, 0, images, report)
        means = {
            (unit, kind): session.rates(session.units.index(unit), phase=0, role="confirmation", stimulus=name).mean()
            for unit, of in images.items()
            for kind, name in of.items()
        }
        page = shown_back(session, 0, images, report, lambda name, figure, caption: "")
    colours = [axes.texts[0].get_color() for axes in drawn.axes]
    expected = []
    for unit in images:
        expected += [BLACK, GREEN if means[unit, "mei"] > means[unit, "linear"] else ORANGE, GREY]
    assert colours == expected
    assert "More than <b>linear field</b>: 1 of 2 units; less: 0 of 2 units" in page


def test_images_at_other_contrasts_are_shown_and_compared_with_nothing(journal: Path) -> None:
    last = [e.document for e in read_all(journal) if isinstance(e.document, ModelUpdated)][-1]
    assert {score.source for score in last.scores} == {
        "mei", "linear", "natural", "mei_at_0.05", "mei_at_0.2", "natural_at_0.05", "natural_at_0.2",
    }  # fmt: skip
    tests = {name.split(": ")[1] for name in last.report if ": q_" in name}
    assert tests == {"q_linear", "q_natural"}
    with open_session(journal.parent / "session.h5") as session:
        units = {score.target for score in last.scores}
        for score in last.scores:
            shown = session.picture(score.stimulus_id)
            assert shown is not None
            asked = float(score.source.partition("_at_")[2] or last.report[f"{score.target}: contrast"])
            mean_level, contrast = frame_levels(shown)
            assert mean_level == pytest.approx(128, abs=0.05)
            assert contrast == pytest.approx(asked, abs=5e-4)
        for unit in units:
            kinds = {score.source: score.stimulus_id for score in last.scores if score.target == unit}
            points = measured(session, 0, unit, kinds, "mei", last.report[f"{unit}: contrast"])
            assert points[:, 0].tolist() == sorted(points[:, 0].tolist())
            assert len(points) == 3
            assert points[0, 1] == pytest.approx(last.report[f"{unit}: mei_at_0.05"])
            assert points[0, 2] == pytest.approx(last.report[f"{unit}: mei_at_0.05_se"])


def test_the_model_of_each_unit_is_checked_by_the_end(journal: Path) -> None:
    last = [e.document for e in read_all(journal) if isinstance(e.document, ModelUpdated)][-1]
    for unit in {score.target for score in last.scores}:
        one = of_unit(last.report, unit)
        shares = [one[f"eigenvalue_{k}"] for k in range(1, 11)]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1 + 1e-9
        assert one["dimensions"] >= 1
        assert {"encoder_r", "linear_r", "linearised_r", "linear_alike", "filter_mei", "filter_linear"} <= set(one)
        contrast, rate = curve(one)
        at_own = np.interp(one["contrast"], contrast, rate)
        own = next(s for s in last.scores if s.target == unit and s.source == "mei")
        with open_session(journal.parent / "session.h5") as session:
            ids = session.texts("stimuli/stimulus_id")
            figures = json.loads(session.texts("stimuli/figures")[ids.index(own.stimulus_id)])
        assert at_own == pytest.approx(figures["predicted"], rel=0.1, abs=0.5)  # of the frame that was shown
