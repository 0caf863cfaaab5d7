"""Counterfactual replay: one step from the record, whole evolutions against a twin, one error for each mistake."""

import json
from html import escape
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from models.agents import build_from_config
from models.server import WANTS, ModelServer
from models.truth import build
from models.twin import fit, reduced
from models.what_if import Generation, closed_loop, decode, evolving, facts, facts_in_words, would_show
from rig.bench.long_session import LongSession
from rig.cli import app
from rig.config.reading import parse
from rig.config.session import Config
from rig.config.targets import Target
from rig.display.places import places
from rig.messages import Proposal, Response, SessionStart
from rig.recording.journal import read_all
from rig.replay.counterfactual import alternative, counterfactual, folder_name
from rig.replay.counterfactual_figures import misses, verdict
from rig.replay.counterfactual_page import write
from rig.replay.model_side import WhatIf
from rig.replay.recorded import Pictures, read
from rig.replay.records import ReplayError
from stimuli.search.ga import PRESETS, XDreamGA

ROOT = Path(__file__).parent.parent


def server_of(config: Config) -> ModelServer:
    return ModelServer(build_from_config(config), len(config.phases), config.presentation.repeats_of_unusable)


MODELS = WhatIf(
    reduced=reduced,
    fit=fit,
    wants=WANTS,
    facts=lambda config, entries, before: facts(server_of(config), entries, before),
    facts_in_words=facts_in_words,
    evolving=evolving,
    would_show=would_show,
    decode=decode,
    closed_loop=closed_loop,
)
EVOLVE = {"agent": "evolve", "unit": "E03#0", "preset": "plos2020", "generations": 5, "references": 3}
PRESENT = {"agent": "present", "images": ["natural", "gratings"], "count": 12, "repeats": 2}


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixed set, then an evolution, as a short session leaves them."""
    raw = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    raw |= {"phases": [PRESENT, EVOLVE], "stimulus": {"size_deg": 4}}
    text = yaml.safe_dump(raw)
    config = parse(text)
    server = server_of(config)
    neurons = build(config.animal, *places(config).angles)
    folder = tmp_path_factory.mktemp("made") / "session"
    return LongSession(folder, config, text, server, WANTS, neurons, 1).run(3.0)


@pytest.fixture(scope="module")
def config(journal: Path) -> Config:
    start = read_all(journal, frozenset({"session_start"}))[0].document
    assert isinstance(start, SessionStart)
    return Config.model_validate(start.config)


def overrides(folder: Path, text: str, name: str = "other") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


OTHER = 'phases:\n  - {agent: present}\n  - {agent: evolve, unit: "E03#0", preset: invivo, generations: 4}\n'


def test_what_was_recorded_is_read_as_it_was_told(journal: Path, config: Config) -> None:
    session = read(journal, reduced)
    documents = [e.document for e in read_all(journal)]
    responses = [d for d in documents if isinstance(d, Response) and d.usable]
    assert len(session.image) == len(responses)
    assert np.array_equal(session.rates, np.stack([r.rate_hz for r in responses]))
    assert session.fixed.sum() == sum(r.role in ("reference", "blank") for r in responses)
    generations = session.phases[1]
    assert [g.generation for g in generations] == [0, 1, 2, 3, 4]
    unit = config.responses.units.index("E03#0")
    proposal = next(d for d in documents if isinstance(d, Proposal) and d.phase == 1 and d.generation == 2)
    told = {
        r.stimulus_id: r.rate_hz[unit] for r in responses if r.proposal == proposal.proposal and r.role == "candidate"
    }
    values = generations[2].values(Target(unit="E03#0"), config.responses.units)
    assert values.tolist() == [told[name] for name in generations[2].ids]
    assert np.array_equal(generations[2].codes, proposal.latents[: len(generations[2].ids)])
    # Each trial's picture is that of its stimulus.
    k = next(k for k, r in enumerate(responses) if r.stimulus_id == generations[2].ids[5])
    assert np.array_equal(session.pictures[session.image[k]], reduced(np.asarray(proposal.frames))[5])


def test_one_step_is_the_step_of_that_optimiser(config: Config) -> None:
    rng = np.random.default_rng(2)
    codes, scores = rng.standard_normal((20, 297), dtype=np.float32), rng.normal(10, 5, 20)
    found = would_show(config, 1, codes, scores, 3)
    same = XDreamGA(PRESETS["plos2020"], codes, np.random.default_rng([config.seed, 1, 3]))
    same.tell(scores)
    assert np.array_equal(found, same.ask())
    other = would_show(config.model_copy(update={"seed": config.seed + 1}), 1, codes, scores, 3)
    assert not np.array_equal(found, other)
    many = rng.standard_normal((33, 297), dtype=np.float32)  # another population than the preset's
    assert would_show(config, 1, many, rng.normal(10, 5, 33), 3).shape == many.shape
    fewer = parse(yaml.safe_dump(config.model_dump(mode="json")).replace("plos2020", "invivo"))  # keeps ten
    assert would_show(fewer, 1, many[:10], rng.normal(10, 5, 10), 3).shape == (10, 297)


def test_an_agent_climbs_a_twin_that_it_can_climb(journal: Path, config: Config) -> None:
    session = read(journal, reduced)
    unit = config.responses.units.index("E03#0")
    twin = fit(session.pictures, session.image, session.rates[:, unit], session.fixed, 0)
    longer = config.model_copy(
        update={"phases": (config.phases[0], config.phases[1].model_copy(update={"generations": 12}))}
    )
    world = (), {("E03#0", None): twin}, Pictures(config, reduced).at
    run = closed_loop(longer, 1, *world, 0, None)["p1"]
    assert len(run) == 12
    assert run[-1].mean > run[0].mean
    again = closed_loop(longer, 1, *world, 0, None)["p1"]
    assert [g.mean for g in again] == [g.mean for g in run]
    assert [g.mean for g in closed_loop(longer, 1, *world, 1, 3)["p1"]] != [g.mean for g in run[:3]]
    assert all(g.best >= g.mean for g in run)


def test_the_page_stands_beside_the_session_and_the_journal_is_untouched(journal: Path, tmp_path: Path) -> None:
    before = journal.read_bytes()
    files = [overrides(tmp_path, OTHER), overrides(tmp_path, "seed: 99\n", "reseeded")]
    said: list[str] = []
    found = counterfactual(journal, files, MODELS, 2, 3, said.append)
    found["phases"][0]["warnings"].append("not to be believed: a warning that every page must show")
    page = write(found, tmp_path / "out")
    assert journal.read_bytes() == before
    phase = found["phases"][0]
    assert list(phase["closed_loop"]) == ["recorded", "other", "reseeded"]
    assert [len(run["mean"]) for run in phase["closed_loop"].values()] == [3, 3, 3]
    steps = phase["one_step"]["rows"]
    assert set(steps) == {"recorded, other seed", "other", "reseeded"}
    assert [row["generation"] for row in steps["other"]] == [1, 2, 3, 4]
    figures = json.loads((tmp_path / "out" / "counterfactual.json").read_text())
    assert figures["phases"][0]["twins"]["E03#0"]["trials"] == phase["twins"]["E03#0"]["trials"]
    text = page.read_text()
    assert "E03#0" in text
    assert all(warning.split(":")[0] in text for warning in phase["warnings"])
    assert len(list((tmp_path / "out").glob("*.png"))) == 5
    assert "<b>Simulated:</b>" in text
    assert "minus recorded" in text
    assert text.count("n = 2") >= 8
    for name in ("held_out", "ceiling", "later"):
        r, (low, high) = phase["twins"]["E03#0"][f"{name}_r"], phase["twins"]["E03#0"][f"{name}_ci"]
        assert low <= high
        assert low - 0.2 < r < high + 0.2
        assert f"{r:.2f} [{low:.2f}, {high:.2f}]" in text
    assert [words.split(" minus")[0] for words in phase["verdicts"]] == ["other", "reseeded"]
    assert all(escape(words) in text for words in phase["verdicts"])
    assert any("held-out r" in line for line in said)


def test_another_generator_is_left_out_of_one_step_and_runs_in_the_loop(journal: Path, tmp_path: Path) -> None:
    text = OTHER.replace("generations: 4", "generations: 4, generator: {type: dct, frequencies: 5}")
    found = counterfactual(journal, [overrides(tmp_path, text)], MODELS, 2, 2, lambda _: None)
    phase = found["phases"][0]
    assert "its generator is another one" in phase["one_step"]["left_out"]["other"]
    assert len(phase["closed_loop"]["other"]["mean"]) == 2
    assert "recorded / other" not in phase["latent_similarity"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "give `seed` or `phases`"),
        ("[1, 2]", "give `seed` or `phases`"),
        ("seed: [", "cannot be read as YAML"),
        ("display: {gamma: 2}", "display: cannot be different in a counterfactual"),
        ("seed: 1\n", "says nothing that differs"),
        ("seed: x\n", "seed"),
        ("phases: [{agent: evolve, unit: 'E03#0', generation: 3}]", "generation"),
        ("phases: [{agent: evolve, unit: 'E99#0'}]", "E99#0"),
        ("phases: [{agent: present}]", "has 0 evolve phases, the session has 1"),
        ("phases: [{agent: evolve, unit: 'E01#0'}]", "the session evolved for E03#0; keep the unit"),
    ],
)
def test_each_mistake_in_the_overrides_gives_one_clear_error(
    journal: Path, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ReplayError) as refused:
        counterfactual(journal, [overrides(tmp_path, text)], MODELS, 2, 2, lambda _: None)
    assert message in str(refused.value)
    assert "Traceback" not in str(refused.value)


def test_the_same_name_twice_and_one_repeat_are_refused(journal: Path, tmp_path: Path) -> None:
    one = overrides(tmp_path, "seed: 5\n")
    with pytest.raises(ReplayError, match="the same name"):
        counterfactual(journal, [one, one], MODELS, 2, 2, lambda _: None)
    with pytest.raises(ReplayError, match="two or more runs"):
        counterfactual(journal, [one], MODELS, 1, 2, lambda _: None)


def test_the_name_is_that_of_the_file_or_the_one_given(config: Config, tmp_path: Path) -> None:
    assert alternative(overrides(tmp_path, "seed: 5\n", "reseeded"), config).name == "reseeded"
    assert alternative(overrides(tmp_path, "seed: 5\nname: fifth\n"), config).name == "fifth"


def test_the_folder_has_the_name_that_the_file_gives(journal: Path, tmp_path: Path) -> None:
    one = overrides(tmp_path, "seed: 5\nname: published-defaults\n")
    two = overrides(tmp_path, "seed: 6\n", "second")
    assert folder_name(journal, [one]) == "published-defaults"
    assert folder_name(journal, [one, two]) == "published-defaults-second"


def test_a_difference_is_told_from_chance_or_said_not_to_be() -> None:
    words = verdict("other", {"mean": 2.0, "sem": 0.9, "runs": 5}, "spikes/s")
    assert words.startswith("other minus recorded: +2.0 ± 0.9 spikes/s (SE, n = 5 runs): against the twin not dist")
    assert "twin more than the" in verdict("other", {"mean": 2.0, "sem": 0.5, "runs": 5}, "spikes/s")
    assert "twin less than the" in verdict("other", {"mean": -2.0, "sem": 0.5, "runs": 5}, "spikes/s")


def test_a_twin_on_which_the_recorded_agent_ends_elsewhere_than_the_neuron_is_warned_of() -> None:
    def run(*means: float) -> list[Generation]:
        none = np.zeros(1, np.float32)
        return [Generation(mean, mean, none, none.astype(np.uint8), 0.0) for mean in means]

    runs = [run(5, end) for end in (6.1, 7.9, 7.2, 8.3, 7.0)]
    measured = [np.array([5.0, 6.0, 4.0]), np.array([16.0, 17.0, 15.0, np.nan])]
    (words,) = misses(runs, measured)
    assert "at generation 2 the recorded agent reaches 7.3 ± 0.4 against it (SEM, n = 5 runs)" in words
    assert "16.0 on average" in words
    assert misses(runs, [measured[0], np.array([7.0, 8.0, 9.0])]) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--verify", "--repeats", "3"], "--repeats goes with --counterfactual"),
        (["--speed", "4"], "--speed goes with --wire"),
        (["--wire", "--generations", "4"], "--generations goes with --counterfactual"),
        (["--frames"], "--frames goes with --verify"),
    ],
)
def test_an_option_without_the_one_that_it_goes_with_is_refused(journal: Path, words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["replay", str(journal.parent), *words])
    assert result.exit_code == 2
    assert said in result.output
