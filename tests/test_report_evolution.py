"""What the report says of several evolutions: each target its own images and references, true directions, claims."""

from pathlib import Path

import numpy as np
import pytest

from rig.config.targets import Target
from rig.confirmation import Claim, Repeats, claims
from rig.messages import ModelUpdated
from rig.recording.journal import read_all
from rig.report import confirmation, evolution
from rig.report.data import Session, open_session
from rig.report.figures import best_stimulus, raster_groups
from rig.report.page import write
from rig.report.targets import each_target
from rig.view.h5 import build
from rig.why.derived import explain
from tests.test_counterfactual_targets import recorded

EVOLVE = {
    "agent": "evolve", "generations": 3, "references": 3, "blanks": 1, "reshows": 1,
    "targets": [{"unit": "E03#0"}, {"unit": "E03#0", "size_deg": 2, "name": "small"},
                {"unit": "E01#0", "suppress": True}, {"unit": "E03#0", "minus": "E01#0"}],
    "optimiser": {"type": "xdream", "preset": "plos2020", "population": 8},
}  # fmt: skip
CONFIRM = {"agent": "confirm", "repeats": 20, "images": 2, "references": 1, "starts": 1, "blanks": 1}
TITLES = ["E03#0", "small", "suppress E01#0", "E03#0 - E01#0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = recorded(tmp_path_factory.mktemp("made") / "many", [EVOLVE, CONFIRM], 2.5).parent
    build(made)
    return made


def about(session: Session, title: str) -> Session:
    return next(one for _, of, one in each_target(session, 0) if of == title)


def test_each_target_has_its_own_images_and_the_references_of_its_own_place(folder: Path) -> None:
    with open_session(folder / "session.h5") as session:
        assert [of for _, of, _ in each_target(session, 0)] == TITLES
        references = {}
        for number, (_, title, one) in enumerate(each_target(session, 0)):
            shown = evolution.strip(one, 0)
            assert len(shown) == 4
            assert all(name.startswith(f"p0-t{number}-g00{g}-") for g, (name, _) in enumerate(shown[:1]))
            assert all(name.startswith(f"p0-t{number}-") for name, _ in shown[:-1])
            here = one.usable & (one.phase == 0) & (one.role == "reference")
            references[title] = set(one.stimulus_id[here])
            assert len(references[title]) == 3
            _, groups = raster_groups(one, 0)
            assert all(one.usable[group.rows].all() for group in groups)
        assert all(name.endswith("_2deg") for name in references["small"])
        assert not references["small"] & references["E03#0"]


def test_rates_are_drawn_as_the_neurons_gave_them_and_the_best_of_a_suppressed_unit_is_the_lowest(
    folder: Path,
) -> None:
    with open_session(folder / "session.h5") as session:
        one, column = about(session, "suppress E01#0"), session.units.index("E01#0")
        assert one.unit_of(0) == column
        kept = one.usable
        assert np.array_equal(one.rate_hz[kept], session.rate_hz[kept], equal_nan=True)
        own = one.usable & (one.phase == 0) & (one.role == "candidate") & (one.generation == 0)
        lowest = one.rate_hz[own, column].min()
        name, caption = evolution.strip(one, 0)[0]
        assert one.rate_hz[own & (one.stimulus_id == name), column].min() == lowest
        assert caption.startswith(f"generation 1\nonce {lowest:.0f} spikes/s")
        best = best_stimulus(one, 0, column, "reference")
        assert best is not None
        references = {str(n) for n in one.stimulus_id[one.usable & (one.phase == 0) & (one.role == "reference")]}
        means = [np.mean(one.rates(column, phase=0, role="reference", stimulus=n)) for n in references]
        assert best[1] == pytest.approx(min(means))
        apart = about(session, "E03#0 - E01#0")
        here = apart.usable & (apart.phase == 0)
        by_hand = session.rate_hz[here, session.units.index("E03#0")] - session.rate_hz[here, column]
        assert np.array_equal(apart.rate_hz[here, apart.unit_of(0)], by_hand, equal_nan=True)


def test_a_claim_is_about_the_first_bet_whichever_image_was_shown_first(folder: Path) -> None:
    updates = [e.document for e in read_all(folder / "session.journal", frozenset({"model_updated"}))]
    ordered = [(s.target, s.source, s.stimulus_id) for s in updates[-1].scores if isinstance(updates[-1], ModelUpdated)]
    with open_session(folder / "session.h5") as session:
        assert confirmation.fixed(session, 1) == ordered
        found = {c.target: c for c in claims(confirmation.repeats(session, 1))}
        for title in TITLES:
            first = next(name for target, source, name in ordered if (target, source) == (title, "evolved"))
            assert found[title].evolved.stimulus_id == first


def test_the_page_shows_the_pictures_and_claims_from_the_confirmation_alone(folder: Path) -> None:
    page = write(folder).read_text(encoding="utf-8")
    assert 'proves nothing of them. What is claimed, from fresh repeats: <a href="#phase-2">' in page
    assert '<h2 id="phase-2">Phase 2: confirmation' in page
    assert "the lower the better: it was suppressed" in page
    assert "images of 2 degrees at (0, 0)" in page
    assert "<b>Confirmed for " in page
    assert " of 4 targets</b>" in page
    for k, title in enumerate(TITLES):
        assert f"<h3>{title}</h3>" in page
        assert (folder / "figures" / f"confirmed_1_t{k}.png").stat().st_size > 10_000
        assert (folder / "figures" / f"evolution_0_t{k}.png").exists()


def test_why_follows_each_target_where_places_take_turns(folder: Path) -> None:
    with open_session(folder / "session.h5") as session:
        newest = ("p0-t1-g002", "p0-t1-g001")
        last = next(str(name) for name in session.stimulus_id[::-1] if str(name).startswith(newest))
    found, _ = explain(folder, last, None)
    assert found["asked_by"]["unit"] == "E03#0"  # and not the mean over all units
    parents = found["stimuli"][last]["parents"]
    assert parents
    assert all(p["stimulus_id"].startswith("p0-t1-") and p["response"]["usable"] and p["rank"] for p in parents)
    parent = parents[0]["stimulus_id"]
    told, _ = explain(folder, str(parents[0]["response"]["presentation"]), None)
    assert told["presentation"]["stimulus_id"] == parent
    assert last in told["used"]["children"]


@pytest.mark.parametrize(
    ("difference", "p", "suppress", "outcome", "words"),
    [
        (12.0, 0.01, False, "confirmed", "Confirmed: The evolved image x gave 22.0 ± 0.0 spikes/s"),
        (-12.0, 0.01, True, "confirmed", "It gave less, as was aimed at."),
        (12.0, 0.01, True, "reversed", "It was to give less, and gave more."),
        (-12.0, 0.01, False, "reversed", "Against the aim: "),
        (12.0, 0.2, False, "open", "Not confirmed: "),
        (12.0, float("nan"), False, "unknown", "Nothing is claimed."),
    ],
)
def test_words_say_what_was_aimed_at(difference: float, p: float, suppress: bool, outcome: str, words: str) -> None:
    means = {"x": 10 + difference, "y": 10.0}
    evolved, reference = (Repeats("t", "evolved", name, np.full(20, mean)) for name, mean in means.items())
    claim = Claim("t", evolved, reference, difference, 1.0, 20, p, p)
    target = Target(unit="u", suppress=suppress)
    assert confirmation.outcome(claim, target) == outcome
    assert words in confirmation.in_words(claim, "spikes/s", 1, target)
    assert confirmation.outcome(claim, target, 40) == "unfinished"  # whatever p has become by then
    early = confirmation.in_words(claim, "spikes/s", 1, target, 40)
    assert early.startswith("Nothing is claimed: the block was broken off before its 40 repeats.")
    assert "p = " not in early


def test_a_reference_that_gave_more_than_the_one_of_the_claim_is_named() -> None:
    def shown(source: str, name: str, mean: float) -> Repeats:
        return Repeats("t", source, name, np.linspace(mean - 1, mean + 1, 20))

    of = [shown("evolved", "x", 9.0), shown("reference", "y", 5.0), shown("reference", "z", 7.0)]
    claim, target = claims(of)[0], Target(unit="u")
    assert claim.reference.stimulus_id == "y"
    assert "Another reference of this block, z, gave more: 7.0" in confirmation.strongest(claim, of, target, "Hz", 1)
    assert "differs from it by +2.0" in confirmation.strongest(claim, of, target, "Hz", 1)
    assert confirmation.strongest(claim, of, Target(unit="u", suppress=True), "Hz", 1) == ""
