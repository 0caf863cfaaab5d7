"""Counterfactual replay of a session like those on a rig: units proposed, several targets and sizes, a confirmation.

What earlier phases left is made again from the log, each target is answered, and nothing is left out in silence.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from models.agents.evolve import Evolve
from models.server import WANTS
from models.truth import build_for
from rig.bench.long_session import LongSession
from rig.config.reading import parse
from rig.config.session import Config
from rig.config.targets import Target
from rig.messages import Proposal, SessionStart
from rig.recording.journal import read_all
from rig.replay.counterfactual import counterfactual
from rig.replay.counterfactual_page import write
from rig.replay.records import ReplayError
from tests.test_replay_counterfactual import MODELS, overrides, server_of

ROOT = Path(__file__).parent.parent
XDREAM = {"type": "xdream", "preset": "plos2020", "population": 12}
OWN = {"agent": "evolve", "generations": 4, "references": 2, "blanks": 1, "reshows": 1, "optimiser": XDREAM}
SCREEN = {
    "agent": "screen", "images": ["natural", "gratings"], "count": 16, "repeats": 8, "blanks": 2, "chance": 0.2,
    "least_reliability": 0.0, "least_driven_hz": 0.0,
}  # fmt: skip
TARGETS = [{"unit": "E01#0", "suppress": True}, {"unit": "E03#0", "minus": "E01#0", "name": "apart", "size_deg": 2}]
PHASES = [
    SCREEN,
    {**OWN, "units": "proposed", "most_units": 2},
    {**OWN, "targets": TARGETS},
    {"agent": "confirm", "repeats": 20, "images": 1, "references": 1},
]
OTHER = """
phases:
  - {agent: screen}
  - {agent: evolve, units: proposed, most_units: 2, generations: 3, references: 2, optimiser: {type: xdream}}
  - agent: evolve
    targets: [{unit: "E01#0", suppress: true}]
    generations: 3
    references: 2
    optimiser: {type: separable_cma}
"""


def recorded(folder: Path, phases: list[dict[str, Any]], minutes: float) -> Path:
    """Record a session of the simulated animal, whose images may lie at several places; return its journal."""
    raw = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    text = yaml.safe_dump(raw | {"phases": phases, "stimulus": {"size_deg": 4}})
    config = parse(text)
    return LongSession(folder, config, text, server_of(config), WANTS, build_for(config), 1).run(minutes)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("made") / "session", PHASES, 2.5)


@pytest.fixture(scope="module")
def config(journal: Path) -> Config:
    start = read_all(journal, frozenset({"session_start"}))[0].document
    assert isinstance(start, SessionStart)
    return Config.model_validate(start.config)


def test_the_recorded_agent_is_made_again_from_what_earlier_phases_left(journal: Path, config: Config) -> None:
    entries = read_all(journal)
    facts = MODELS.facts(config, iter(entries), 1)
    made_again = MODELS.evolving(config, 1, facts)
    shown = next(d for e in entries if isinstance(d := e.document, Proposal) and d.phase == 1)
    assert [e.target.unit for e in made_again] == list(facts[0].units[:2])
    agent = server_of(config)._build(1, facts)
    assert isinstance(agent, Evolve)
    work = agent.ask()
    while not work.step():
        pass
    batch = work.result()  # bit for bit what was shown: units, references and start codes are all the same
    assert batch.stimuli == shown.stimuli
    assert batch.plan == shown.plan
    assert np.array_equal(batch.frames, shown.frames)
    with pytest.raises(ValueError, match="no phase before it proposed a unit"):
        MODELS.evolving(config, 1, ())


@pytest.mark.slow
def test_each_target_is_answered_and_all_else_is_named(journal: Path, config: Config, tmp_path: Path) -> None:
    said: list[str] = []
    found = counterfactual(journal, [overrides(tmp_path, OTHER)], MODELS, 2, 3, said.append)
    units = [e.target.title for e in MODELS.evolving(config, 1, MODELS.facts(config, iter(read_all(journal)), 1))]
    assert [(p["phase"], p["unit"]) for p in found["phases"]] == [
        *((1, unit) for unit in units), (2, "suppress E01#0"), (2, "apart"),
    ]  # fmt: skip
    assert any(words.startswith(f"phase 2: units proposed by phase 1 (screen): {units[0]}") for words in found["given"])
    left_out = "\n".join(found["left_out"])
    assert "phase 1 (screen): what it found is given to every agent" in left_out
    assert "phase 4 (confirm): shows images that were fixed before" in left_out
    assert "phase 3, apart: left out of other, which has no such target" in left_out
    assert all(f"left out: {words}" in said for words in found["left_out"])
    by = {p["unit"]: p for p in found["phases"]}
    assert list(by["apart"]["twins"]) == ["E03#0", "E01#0"]
    assert list(by["apart"]["closed_loop"]) == ["recorded"]
    down = by["suppress E01#0"]
    assert list(down["closed_loop"]) == ["recorded", "other"]
    assert down["suppressed"]
    assert "separable_cma goes by more than the newest generation" in down["one_step"]["left_out"]["other"]
    for run in down["closed_loop"].values():
        assert run["best"][-1] <= run["mean"][-1]  # the best of a suppressed target is the lowest
    assert [row["generation"] for row in by[units[0]]["one_step"]["rows"]["other"]] == [1, 2, 3]
    page = write(found, tmp_path / "out").read_text(encoding="utf-8")
    assert "Left out, and why" in page
    assert "the lower the better" in page
    figures = json.loads((tmp_path / "out" / "counterfactual.json").read_text())
    assert figures["left_out"] == found["left_out"]
    assert (tmp_path / "out" / "closed_loop_phase3_t1.png").exists()


def test_measured_values_are_those_of_the_target(journal: Path, config: Config) -> None:
    from rig.replay.recorded import read

    session = read(journal, MODELS.reduced)
    target = Target.model_validate(TARGETS[1])
    generation = next(g for g in session.phases[2] if g.place is not None).of("p2-t1-g")
    values = generation.values(target, config.responses.units)
    e01, e03 = (config.responses.units.index(name) for name in ("E01#0", "E03#0"))
    by_hand = [generation.rates[i][0][e03] - generation.rates[i][0][e01] for i in generation.ids]
    assert np.allclose(values, by_hand)
    assert len(values) == 12


@pytest.mark.slow
def test_another_place_or_no_common_target_is_one_clear_error(journal: Path, tmp_path: Path) -> None:
    moved = OTHER.replace("suppress: true}]", "suppress: true, size_deg: 3}]")
    with pytest.raises(ReplayError, match=r"phases\.2\.place: not where the session's images of suppress E01#0 lay"):
        counterfactual(journal, [overrides(tmp_path, moved)], MODELS, 2, 1, lambda _: None)
    none = OTHER.replace('{unit: "E01#0", suppress: true}', '{unit: "E02#0"}')
    with pytest.raises(ReplayError, match=r"E02#0, but the session evolved for suppress E01#0, apart; keep the unit"):
        counterfactual(journal, [overrides(tmp_path, none)], MODELS, 2, 1, lambda _: None)
