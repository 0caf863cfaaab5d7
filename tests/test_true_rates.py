"""`stimloop truth`: what a simulated animal's neurons truly do to the images shown back, beside what was found."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models import statistics
from models.truth import build_for
from models.truth_best import best_hz
from rig import true_rates
from rig.cli import app
from rig.config.reading import ConfigError
from rig.messages import Entry, ModelUpdated, Proposal, SessionStart, SessionStop
from rig.recording.journal import read_all
from rig.replay.records import config_of, session_start
from rig.true_rates import Pair, PhaseTruth, by_size, truths
from stimuli.spec import LatentImage
from tests.test_inception_session import journal
from tests.test_replay import with_document, write

__all__ = ["journal"]  # the session on paper of the tests next door


def test_true_rates_are_those_of_the_neurons_and_verdicts_those_of_the_log(journal: Path) -> None:
    entries = [e.document for e in read_all(journal)]
    last = [d for d in entries if isinstance(d, ModelUpdated)][-1]
    (one,) = truths(journal.parent, build_for, best_hz)
    assert isinstance(one, PhaseTruth)
    cells = build_for(config_of(session_start(journal)))
    frames = {
        s.id: d.frames[s.spec.row]
        for d in entries
        if isinstance(d, Proposal)
        for s in d.stimuli
        if isinstance(s.spec, LatentImage)
    }
    assert len(one.units) == 2
    assert len(one.pairs) == 2 * 2
    names = {(score.target, score.source): score.stimulus_id for score in last.scores}
    for pair in one.pairs:
        column = cells.units.index(pair.unit)
        for kind, rate in (("mei", pair.true_mei_hz), (pair.control, pair.true_control_hz)):
            assert rate == cells.rate_hz(frames[names[pair.unit, kind]].astype(np.float32) / np.float32(255))[column]
        assert pair.q == last.report[f"{pair.unit}: q_{pair.control}"]
        assert (pair.found != 0) == (pair.q <= 0.05)
    assert one.row_maximum_found == last.report["row_maximum"]
    grey = np.full((*frames[names[one.units[0], "mei"]].shape[:2], 3), np.float32(128 / 255))
    assert one.blank_hz == tuple(cells.rate_hz(grey)[[cells.units.index(unit) for unit in one.units]])
    assert all(0 < share <= 1 for share in one.shares_of_best if share is not None)
    assert None not in one.best_hz
    for row, unit in enumerate(one.units):
        for column, other in enumerate(one.units):
            light = frames[names[other, "mei"]].astype(np.float32) / np.float32(255)
            assert one.mei_hz[row, column] == cells.rate_hz(light)[cells.units.index(unit)]


def test_what_was_found_has_the_sign_of_what_was_measured(journal: Path, tmp_path: Path) -> None:
    """The same log, in which every test was sure."""
    entries = read_all(journal)
    at = max(k for k, e in enumerate(entries) if isinstance(e.document, ModelUpdated))
    last = entries[at].document
    assert isinstance(last, ModelUpdated)
    report = last.report | {name: 0.05 for name in last.report if ": q_" in name}
    sure = [*entries[:at], with_document(entries[at], report=report), *entries[at + 1 :]]
    (one,) = truths(write(tmp_path / "sure", sure).parent, build_for, best_hz)
    assert isinstance(one, PhaseTruth)
    assert len(one.pairs) == 4
    for pair in one.pairs:
        assert pair.found == np.sign(report[f"{pair.unit}: mei"] - report[f"{pair.unit}: {pair.control}"]) != 0


def pair(mei_hz: float, control_hz: float, found: int) -> Pair:
    return Pair("E01#0", "gabor", mei_hz, control_hz, mei_hz - control_hz, 0.01 if found else 0.9, found)


def test_as_many_repeats_are_asked_for_as_the_tests_take() -> None:
    assert true_rates.LEAST_PAIRS == statistics.LEAST_PAIRS


def test_comparisons_are_counted_by_how_much_they_truly_differ() -> None:
    pairs = (
        pair(30, 30, 0), pair(30, 30, 1), pair(30, 29, 0), pair(40, 31, 1), pair(40, 10, 1), pair(40, 10, -1),
        pair(10, 40, -1),
    )  # fmt: skip
    counts = {name: len(some) for name, some in by_size(pairs) if some}
    more = {"more, 0 to 10 %": 1, "more, 10 to 30 %": 1, "more, over 30 %": 2}
    assert counts == {"equal": 2, **more, "less, over 30 %": 1}
    mei_hz = np.array([[5.0, 1.0], [7.0, 6.0]])
    one = PhaseTruth(0, ("a", "b"), mei_hz, 1.0, pairs, blank_hz=(2.0, 2.0), best_hz=(8.0, None))
    assert one.shares_of_best == (0.5, None)
    assert "50% (median of 1 units, 50% to 50%); 90% or more in 0 of 1" in one.in_words()[-1]
    rows = {row["true_difference"]: (row["found"], row["wrong"]) for row in one.figures()["by_size"]}
    assert rows["equal"] == (0, 1)  # whatever was found where truth is equal is wrong
    assert rows["more, over 30 %"] == (1, 1)
    assert rows["less, over 30 %"] == (1, 0)
    assert one.row_maximum_true == 0.5
    assert one.first_true == ()  # no comparisons of its units
    assert json.loads(json.dumps(one.figures()))["shares_of_best"] == [0.5, None]


def test_a_most_exciting_image_is_first_where_it_truly_does_more_than_every_control() -> None:
    rates = {"a": ((30, 29), (30, 10)), "b": ((30, 29), (30, 31)), "c": ((30, 29), (30, 30))}
    pairs = tuple(Pair(unit, "x", mei, other, 5, 0.01, 1) for unit, two in rates.items() for mei, other in two)
    one = PhaseTruth(0, ("a", "b", "c", "d"), np.eye(4), None, pairs, best_hz=(None,) * 4, blank_hz=(0.0,) * 4)
    assert one.first_true == (True, False, False)
    assert "the MEI truly does most of all images of its unit in 1 of 3 units" in one.in_words()
    assert (one.figures()["mei_first_true"], one.figures()["mei_first_of"]) == (1, 3)
    titles = [str(column.header) for column in one.tables()[1].columns]
    assert titles == ["unit", "MEI", "x"]  # nothing is said of a best image that nobody knows


def test_the_command_prints_it_and_says_that_it_is_simulated(journal: Path) -> None:
    said = CliRunner().invoke(app, ["truth", str(journal.parent)])
    assert said.exit_code == 0, said.output
    assert "The animal was simulated: only so can true rates be known." in said.output
    assert "own image is the row maximum: truly in" in said.output
    assert "wrong: in the other, or where the true rates are equal" in said.output


def broken_off(journal: Path, folder: Path) -> Path:
    """Return the folder of the same session, stopped after the first score of an image shown back."""
    entries = read_all(journal)
    at = next(k for k, e in enumerate(entries) if isinstance(e.document, ModelUpdated) and e.document.scores)
    stop = SessionStop(reason="stop key", presentations=1, responses=1, usable=1, faults=0)
    return write(folder, [*entries[: at + 1], Entry(entries[at + 1].envelope, stop)]).parent


def test_of_a_phase_that_was_broken_off_it_says_that_nothing_was_tested_and_why(journal: Path, tmp_path: Path) -> None:
    folder = broken_off(journal, tmp_path / "broken")
    said = CliRunner().invoke(app, ["truth", str(folder)])
    assert said.exit_code == 0, said.output
    why = "the session ended before the phase did: stop key; tests are made when all was shown back"
    assert f"phase 1: nothing was tested: {why}" in said.output
    assert "comparisons" not in said.output
    assert "truly does most" not in said.output
    assert " so far\n" in said.output
    assert "found in the true direction" not in " ".join(said.output.split())
    (one,) = json.loads(CliRunner().invoke(app, ["truth", str(folder), "--json"]).output)
    assert (one["comparisons"], one["untested"].split(";")[0]) == ([], why.split(";")[0])
    (whole,) = truths(journal.parent, build_for, best_hz)
    assert whole.untested == ""


def test_a_real_animal_has_no_known_truth(journal: Path, tmp_path: Path) -> None:
    first, *others = read_all(journal)
    assert isinstance(first.document, SessionStart)
    real: list[Entry] = [with_document(first, simulated=False), *others[:50]]
    with pytest.raises(ConfigError, match="a real animal was recorded, whose true rates nobody knows"):
        truths(write(tmp_path / "real", real).parent, build_for, best_hz)
    simulated = write(tmp_path / "short", [first, *others[:50]]).parent
    why = "were shown back in this session: nothing was tested; phase 1, inception: the log ends before the phase"
    with pytest.raises(ConfigError, match=why):
        truths(simulated, build_for, best_hz)
    with pytest.raises(ConfigError, match=r"holds no session\.journal"):
        truths(tmp_path, build_for, best_hz)
