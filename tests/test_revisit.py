"""Units of two days: the table first, responses to shared images verify it, images of the first day are shown again."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from models.agents import build_from_config
from models.agents.revisit import Revisit
from models.agents.types import Batch, Told
from models.server import WANTS, ModelServer, state_hash
from models.truth import build
from rig.bench.long_session import LongSession
from rig.config.reading import ConfigError, parse
from rig.config.revisit import RevisitPhase
from rig.display.places import places
from rig.messages import ModelUpdated, PhaseEnded, Presented, Proposal, Response
from rig.recording.journal import read_all
from rig.replay.records import config_of, session_start
from rig.replay.session import verify_session
from rig.report.page import write
from rig.saved_evolution import with_saved
from rig.view.h5 import build as build_view
from stimuli.spec import LatentImage
from tests.test_inception_session import PHASE
from tests.test_replay import ROOT, make

FIRST: dict[str, Any] = PHASE | {
    "test": 24, "test_repeats": 8, "block": 80, "most_units": 3, "controls": ["linear", "natural_masked"],
}  # fmt: skip
UNITS = [f"E{k:02d}#0" for k in range(1, 17)]  # fewer make a coarse null
SAME = {name: name for name in UNITS}
WRONG = {name: name for name in UNITS[:14]} | {"E15#0": "E16#0"}  # a mistake in the table


def text_of(phases: list[dict[str, Any]]) -> str:
    raw = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    raw |= {"phases": phases, "stimulus": {"size_deg": 4}}
    raw["responses"] |= {"units": UNITS}
    raw["animal"] |= {"neurons": len(UNITS)}
    return yaml.safe_dump(raw)


def session(folder: Path, phases: list[dict[str, Any]], seed: int) -> Path:
    """Record a session on paper, with the neurons that every session here has; return its journal."""
    text = text_of(phases)
    config, text = with_saved(parse(text), text)
    server = ModelServer(build_from_config(config), len(config.phases), config.presentation.repeats_of_unusable)
    neurons = build(config.animal, *places(config).angles)
    return LongSession(folder, config, text, server, WANTS, neurons, seed).run(5.0)


def revisit(first: Path, units: dict[str, str], **settings: Any) -> dict[str, Any]:
    asked = {"shared": 24, "shared_repeats": 8, "repeats": 6}
    return {"agent": "revisit", "session": str(first.parent), "units": units, **asked, **settings}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return session(tmp_path_factory.mktemp("days") / "first", [FIRST], 1)


@pytest.fixture(scope="module")
def second(first: Path) -> Path:
    return session(first.parent.parent / "second", [revisit(first, WRONG)], 2)


def last_report(journal: Path) -> ModelUpdated:
    return [e.document for e in read_all(journal) if isinstance(e.document, ModelUpdated)][-1]


def answered(agent: Revisit, batch: Batch, proposal: int, same: bool) -> list[Told]:
    """Return what is told of a batch: to shared images each unit does what it did that day, if it is the same."""
    names = [one.id for one in agent.shared.stimuli]
    out = []
    for k, slot in enumerate(batch.plan):
        name = batch.stimuli[slot.stimulus].id
        rates = np.random.default_rng([proposal, k]).uniform(10, 20, len(agent.units))
        if name in names and same:
            for before, today in agent.shared.pairs:
                rates[today] += 20 * agent.shared.before_hz[names.index(name), before]
        lost = k % 7 == 3 and proposal % 2 == 0
        out.append(Told(proposal, k, slot.role, name, None if lost else rates))
    return out


def go_on(agent: Revisit, first: int, end: int, same: bool = True) -> Batch:
    """Show batches from number `first`, to `end` or the last; return the newest."""
    for number in range(first, end):
        work = agent.ask()
        while not work.step():
            pass
        batch = work.result()
        agent.tell(answered(agent, batch, number, same))
        if agent.finished() is not None:
            break
    return batch


def test_true_pairs_are_verified_and_a_wrong_one_is_left_out(second: Path) -> None:
    report = last_report(second).report
    assert report["pairs"] == 15
    assert report["E16#0: similarity"] < report["null_high"]
    assert report["E16#0: rejected, no more alike than other units"] == 1
    same = [today for before, today in WRONG.items() if before == today]
    assert np.mean([report[f"{name}: similarity"] for name in same]) > report["null_high"]
    assert report["verified"] >= 6
    assert report["verified"] == len([n for n in same if f"{n}: rejected" not in str(report)])


def test_only_images_of_verified_units_are_shown_and_never_among_those_that_verify(first: Path, second: Path) -> None:
    entries = [e.document for e in read_all(second)]
    shown = [d for d in entries if isinstance(d, Presented)]
    roles = [d.role for d in shown if d.role != "blank"]
    assert roles == sorted(roles, reverse=True)  # references first, then what was made
    shared = {d.stimulus_id for d in shown if d.role == "reference"}
    tested = {d.stimulus_id for d in shown if d.role == "confirmation"}
    assert len(shared) == 24
    proposals = [d for d in entries if isinstance(d, Proposal)]
    stimuli = {s.id: s for p in proposals for s in p.stimuli}
    assert not shared & (tested | {of for name in tested for of in stimuli[name].parents})
    report = last_report(second)
    assert {score.target for score in report.scores} <= {n for n in UNITS if f"{n}: rejected" not in str(report.report)}
    # The very frames of the first day.
    before = {
        s.id.split("-", 1)[1]: p.frames[s.spec.row]
        for p in (e.document for e in read_all(first))
        if isinstance(p, Proposal)
        for s in p.stimuli
        if isinstance(s.spec, LatentImage)
    }
    for p in proposals:
        for s in p.stimuli:
            if isinstance(s.spec, LatentImage):
                assert np.array_equal(p.frames[s.spec.row], before[s.id.split("-", 1)[1]])


def test_means_are_of_todays_fresh_repeats_beside_those_of_that_day(first: Path, second: Path) -> None:
    report, before = last_report(second), last_report(first)
    rates: dict[str, list[Response]] = {}
    for entry in read_all(second):
        if isinstance(entry.document, Response) and entry.document.usable:
            rates.setdefault(entry.document.stimulus_id, []).append(entry.document)
    assert report.scores
    for score in report.scores:
        own = [r.rate_hz[r.units.index(score.target)] for r in rates[score.stimulus_id]]
        assert len(own) == score.presentations == 6
        assert score.raw == pytest.approx(np.mean(own))
        name = f"{score.target}: {score.source}"
        assert report.report[f"{name}_before"] == before.report[name]
    (ended,) = [e.document for e in read_all(second) if isinstance(e.document, PhaseEnded)]
    assert "verified units were shown" in ended.reason


def test_its_replay_needs_no_other_session_and_decides_the_same(second: Path) -> None:
    outcome = verify_session(second, make, WANTS, frames=True)
    assert (outcome.verdict.different, outcome.verdict.missing) == ([], [])


def test_without_a_verified_unit_it_ends_and_says_so(second: Path) -> None:
    agent = build_from_config(config_of(session_start(second)))(0)
    assert isinstance(agent, Revisit)
    last = go_on(agent, 0, 40, same=False)
    assert agent.finished() == "none of 15 units was verified to be the same: no image was shown back"
    assert agent.report()["verified"] == 0
    assert agent.scored() == ()
    assert last.final
    assert last.tail_from == len(last.plan)
    assert {slot.role for slot in last.plan} == {"reference", "blank"}


def test_verified_units_without_images_end_it_at_once(second: Path) -> None:
    given = build_from_config(config_of(session_start(second)))(0)
    assert isinstance(given, Revisit)
    rng = np.random.default_rng(0)
    agent = Revisit(given.phase, given.shared, [], given.units, given.frame_shape, rng)
    go_on(agent, 0, 40)
    assert agent.finished() == "no image was made for any of 15 verified units: none was shown back"
    assert agent._block == agent.phase.shared_repeats


@pytest.mark.parametrize("blocks", [5, 8, 11])
def test_a_restored_agent_verifies_and_goes_on_alike(second: Path, blocks: int) -> None:
    build_again = build_from_config(config_of(session_start(second)))
    never, again = build_again(0), build_again(0)
    assert isinstance(never, Revisit)
    assert isinstance(again, Revisit)
    go_on(never, 0, blocks)
    again.restore(never.state())
    assert state_hash(never.state()) == state_hash(again.state())
    for agent in (never, again):
        go_on(agent, blocks, 40)
    assert never.verified is not None
    assert len(never.verified.good) == 15  # also the wrong pair: here today's unit does what that day's did
    assert never.finished() is not None
    assert never.report() == again.report()
    assert state_hash(never.state()) == state_hash(again.state())


def test_the_table_may_be_a_file(first: Path, tmp_path: Path) -> None:
    table = tmp_path / "units.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = [(a, b, "stack") for a, b in SAME.items()]
        csv.writer(file).writerows([("before", "today", "by"), *rows, ("E17#0", "", "not found")])
    asked = revisit(first, {}) | {"table": str(table)}
    del asked["units"]
    config, text = with_saved(parse(text_of([asked])), text_of([asked]))
    (phase,) = config.phases
    assert isinstance(phase, RevisitPhase)
    assert phase.units == SAME
    assert with_saved(config, text) == (config, text)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"session": "nowhere"}, r"phases\.0: session: nowhere holds no session\.journal"),
        ({"units": {"E01#0": "E01#0"}}, r"phases\.0: units: 1 named; to tell a match from chance it takes 3"),
        ({"units": {**SAME, "E06#0": "E05#0"}}, r"'E05#0' stands for two units"),
        ({"units": {**SAME, "E17#0": "E17#0"}}, r"phases\.0\.units: 'E17#0' is not in responses\.units"),
        ({"units": {"X": "E01#0", "E02#0": "E02#0", "E03#0": "E03#0"}}, r"'X' was no unit of session first"),
        ({"phase": 2}, r"no images of an inception phase were shown back in the phase asked for \(there are: 1\)"),
        ({"table": "units.csv"}, r"one of units and table"),
    ],
)
def test_mistakes_are_named(first: Path, settings: dict[str, Any], says: str) -> None:
    text = text_of([revisit(first, SAME) | settings])
    with pytest.raises(ConfigError, match=says):
        with_saved(parse(text), text)


def test_another_size_is_refused_because_the_pictures_would_differ(first: Path) -> None:
    raw = yaml.safe_load(text_of([revisit(first, SAME)])) | {"display": {"size_px": [800, 600], "distance_cm": 60}}
    text = yaml.safe_dump(raw)
    with pytest.raises(ConfigError, match="would not be the picture that was shown that day"):
        with_saved(parse(text), text)


def test_the_report_names_every_pair(second: Path) -> None:
    build_view(second.parent)
    page = write(second.parent).read_text(encoding="utf-8")
    assert "<td>E15#0</td><td>E16#0</td>" in page
    assert "no more alike than other units" in page


@pytest.mark.slow
def test_images_of_both_days_are_compared_where_the_session_makes_its_own(first: Path) -> None:
    phases = [revisit(first, SAME), {**FIRST, "train": 41}]
    journal = session(first.parent.parent / "both", phases, 5)
    build_view(journal.parent)
    page = write(journal.parent).read_text(encoding="utf-8")
    updates = [e.document for e in read_all(journal) if isinstance(e.document, ModelUpdated)]
    verified = {score.target for one in updates if one.phase == 0 for score in one.scores}
    own = {score.target for score in last_report(journal).scores}
    assert verified & own
    part = page[page.index("<h3>Images of both days</h3>") :]
    for unit in verified & own:
        assert f"<td>{unit}</td>" in part
