"""Agents: batches, what they make of late, missing, repeated and out-of-order rows, and their state."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from models.agents import Agent, Batch, Told, build, build_from_config
from models.agents.breeding import DECODE_CHUNK
from models.agents.builder import gratings
from models.agents.evolve import Evolve
from models.agents.present import Present
from rig.config.generators import DctGenerator
from rig.config.optimisers import XDream
from rig.config.phases import EvolvePhase, PresentPhase
from rig.config.reading import parse
from stimuli.bank import natural_bank
from stimuli.geometry import image_rect, pixel_angles
from stimuli.render import render
from stimuli.spec import BankImage, LatentImage

SIZE, WIDTH_CM, DISTANCE_CM = (400, 300), 40.0, 30.0
RECT = image_rect(SIZE, WIDTH_CM, DISTANCE_CM, 6.0, (0.0, 0.0))
ANGLES = pixel_angles(RECT, SIZE, WIDTH_CM, DISTANCE_CM)
UNITS = ("E01#0", "E02#0")
BANKS = {"natural": natural_bank()}
UNIT = 1

EVOLVE = EvolvePhase(
    unit=UNITS[UNIT], optimiser=XDream(preset="invivo"), generations=5, references=4, reshows=2, blanks=2,
    generator=DctGenerator(frequencies=6, falloff=0.75, contrast=0.25),
)  # fmt: skip
PRESENT = PresentPhase(images=("natural", "gratings"), count=6, repeats=3, blanks=2)


def agent(phase: EvolvePhase | PresentPhase = EVOLVE, seed: int = 0, index: int = 0) -> Any:
    return build(phase, index, seed, UNITS, ANGLES, 128, BANKS)


def evolving(**changes: Any) -> Evolve:
    made = agent(EVOLVE.model_copy(update=changes))
    assert isinstance(made, Evolve)
    return made


def finish(made: Agent) -> Batch:
    work = made.ask()
    while not work.step():
        pass
    return work.result()


def rows(batch: Batch, proposal: int, start: int, end: int, rate: Callable[[str, int], float | None]) -> list[Told]:
    """Answer slots `start` to `end`; `rate` gives spikes/s of the evolved unit by stimulus id and slot."""
    out = []
    for k in range(start, end):
        name = batch.stimuli[batch.plan[k].stimulus].id
        value = rate(name, k)
        rates = None if value is None else np.array([-7.0, value])
        out.append(Told(proposal, k, batch.plan[k].role, name, rates))
    return out


def main_rows(batch: Batch, proposal: int, rate: Callable[[str, int], float | None]) -> list[Told]:
    return rows(batch, proposal, 0, batch.tail_from, rate)


def tail_rows(batch: Batch, proposal: int, rate: Callable[[str, int], float | None]) -> list[Told]:
    return rows(batch, proposal, batch.tail_from, len(batch.plan), rate)


def brightness(batch: Batch) -> dict[str, float]:
    """A neuron that likes the upper left corner bright: a rate for each latent stimulus of a batch."""
    corner = batch.frames[:, : RECT.height // 2, : RECT.width // 2].mean(axis=(1, 2, 3))
    latent = [s for s in batch.stimuli if isinstance(s.spec, LatentImage)]
    return {s.id: float(corner[s.spec.row]) for s in latent if isinstance(s.spec, LatentImage)}


def run(made: Agent, first_proposal: int = 0, missing: frozenset[tuple[int, int]] = frozenset()) -> list[Batch]:
    """Run an agent to its end as the model server does: tail of the proposal before, then main of this one."""
    batches: list[Batch] = []
    tail: list[Told] = []
    proposal = first_proposal
    while True:
        batch = finish(made)
        batches.append(batch)
        likes = brightness(batch)

        def rate(name: str, slot: int, likes: dict[str, float] = likes, proposal: int = proposal) -> float | None:
            return None if (proposal, slot) in missing else likes.get(name, 50.0)

        made.tell([*tail, *main_rows(batch, proposal, rate)])
        tail = tail_rows(batch, proposal, rate)
        if made.finished() is not None:
            made.tell(tail)
            return batches
        proposal += 1
        assert len(batches) < 50


def same(a: Batch, b: Batch) -> bool:
    return (
        (a.generation, a.stimuli, a.plan, a.tail_from, a.fallback, a.final)
        == (b.generation, b.stimuli, b.plan, b.tail_from, b.fallback, b.final)
        and np.array_equal(a.frames, b.frames)
        and np.array_equal(a.latents, b.latents)
    )


# --- evolve: the batch ------------------------------------------------------------------------------------------------


def test_a_first_generation_is_candidates_among_blanks_then_references() -> None:
    batch = finish(agent(index=3))
    roles = [slot.role for slot in batch.plan]
    assert sorted(roles[: batch.tail_from]) == ["blank"] * 2 + ["candidate"] * 40
    assert roles[batch.tail_from :] == ["reference"] * 4
    assert [slot.stimulus for slot in batch.plan[: batch.tail_from]] != sorted(
        slot.stimulus for slot in batch.plan[: batch.tail_from]
    )
    ids = [s.id for s in batch.stimuli]
    assert len(set(ids)) == len(ids) == 45
    assert ids[:2] == ["p3-g000-c00", "p3-g000-c01"]
    assert batch.frames.shape == (40, RECT.height, RECT.width, 3)
    assert batch.latents.shape == (40, 3 * 35)
    assert batch.latents.dtype == np.float32
    assert batch.frames.dtype == np.uint8
    assert not batch.final
    for stimulus in batch.stimuli:
        if isinstance(stimulus.spec, BankImage):
            assert stimulus.id == f"ref-{stimulus.spec.name}"
            assert render(stimulus.spec, ANGLES, 128, BANKS).shape == batch.frames.shape[1:]


def test_every_latent_row_names_its_own_frame() -> None:
    made = agent()
    for batch in run(made):
        decoded = made.generator.decode(batch.latents)
        assert np.array_equal(decoded, batch.frames)
        latent = [s.spec for s in batch.stimuli if isinstance(s.spec, LatentImage)]
        assert [spec.row for spec in latent] == list(range(len(batch.frames)))
        assert {spec.generator for spec in latent} == {made.generator.name}


def test_references_are_the_same_in_every_tail_and_the_winners_are_shown_again() -> None:
    batches = run(agent())
    for before, batch in pairwise(batches):
        tail = [(slot.role, batch.stimuli[slot.stimulus].id) for slot in batch.plan[batch.tail_from :]]
        assert {name for role, name in tail if role == "reference"} == {
            before.stimuli[s.stimulus].id for s in before.plan[before.tail_from :] if s.role == "reference"
        }
        likes = brightness(before)
        candidates = [before.stimuli[s.stimulus].id for s in before.plan if s.role == "candidate"]
        best = sorted(candidates, key=lambda name: -likes[name])[:2]
        assert {name for role, name in tail if role == "reshow"} == set(best)
        assert {batch.stimuli[k].id for k in batch.fallback} == {name for _, name in tail}
    assert [b.generation for b in batches] == [0, 1, 2, 3, 4]
    assert [b.final for b in batches] == [False] * 4 + [True]


@pytest.mark.parametrize("preset", ["plos2020", "actmax", "invivo"])
def test_an_image_keeps_its_identity_and_its_pixels_through_the_generations(preset: str) -> None:
    """Kept codes and re-shows carry the id of the image they show; nothing else ever has that id."""
    pixels: dict[str, bytes] = {}
    parents: dict[str, tuple[str, ...]] = {}
    for batch in run(evolving(optimiser=XDream(preset=preset))):
        for stimulus in batch.stimuli:
            if isinstance(stimulus.spec, LatentImage):
                assert pixels.setdefault(stimulus.id, batch.frames[stimulus.spec.row].tobytes()) == (
                    batch.frames[stimulus.spec.row].tobytes()
                )
                assert parents.setdefault(stimulus.id, stimulus.parents) == stimulus.parents
    for name, named in parents.items():
        assert bool(named) == ("g000" not in name)
        assert all(parent in pixels and parent < name for parent in named)


def test_evolution_climbs() -> None:
    batches = run(evolving(generations=15))
    first, last = (np.mean(list(brightness(b).values())) for b in (batches[0], batches[-1]))
    spread = np.std(list(brightness(batches[0]).values()))
    assert last > first + 2 * spread


def test_without_tail_and_blanks_the_candidates_are_all() -> None:
    made = evolving(references=0, reshows=0, blanks=0)
    batches = run(made)
    assert all(b.tail_from == len(b.plan) == 40 and b.fallback for b in batches)
    assert "reference" not in made.report()


# --- evolve: work -----------------------------------------------------------------------------------------------------


def test_work_is_done_in_small_steps_and_touches_nothing_before_its_result_is_taken() -> None:
    made = agent()
    before = frozen(made.state())
    work, again = made.ask(), made.ask()
    with pytest.raises(RuntimeError, match="not computed yet"):
        work.peek()
    with pytest.raises(RuntimeError, match="not computed yet"):
        work.result()
    steps = 1
    while not work.step():
        steps += 1
    assert steps == work.steps == 1 + 40 // DECODE_CHUNK + 1
    assert work.step()
    assert work.steps == steps
    peeked = work.peek()
    assert frozen(made.state()) == before
    batch = work.result()
    assert batch is peeked is work.result()
    assert frozen(made.state()) != before
    while not again.step():
        pass
    assert same(again.peek(), batch)  # dropped work is simply done anew
    with pytest.raises(RuntimeError, match="ask again"):
        again.result()


def frozen(state: Any) -> str:
    return json.dumps(state, default=lambda a: [a.dtype.str, a.shape, a.tobytes().hex()], sort_keys=True)


def test_asking_before_everything_was_told_is_refused() -> None:
    made = agent()
    batch = finish(made)
    with pytest.raises(RuntimeError, match="0 of 42 main presentations"):
        made.ask()
    told = main_rows(batch, 0, lambda name, k: 1.0)
    made.tell(told[:-1])
    with pytest.raises(RuntimeError, match="41 of 42"):
        made.ask()
    made.tell([Told(0, 41, told[-1].role, told[-1].stimulus_id, None)])
    made.ask()


# --- rows that are late, missing, repeated, out of order --------------------------------------------------------------


def test_a_missing_candidate_is_shown_again_and_is_not_scored_zero() -> None:
    made = agent()
    batch = finish(made)
    lost = [k for k, slot in enumerate(batch.plan[: batch.tail_from]) if slot.role == "candidate"][5]
    name = batch.stimuli[batch.plan[lost].stimulus].id
    made.tell(main_rows(batch, 0, lambda n, k: None if k == lost else -20.0))  # below zero after the baseline
    after = finish(made)
    shown = [after.stimuli[s.stimulus] for s in after.plan if s.role == "candidate"]
    again = [s for s in shown if s.id == name]
    assert len(again) == 1
    assert isinstance(again[0].spec, LatentImage)
    assert again[0].spec.row == 39  # the tail of the population, as published
    assert made.report()["missing"] == 1
    assert made.report()["mean"] == -20.0
    made.tell(main_rows(after, 1, lambda n, k: None if n == name else 3.0))  # no old score stands in
    assert (made.report()["missing"], made.report()["mean"]) == (1, 3.0)


def test_a_generation_of_which_nothing_was_measured_is_shown_again() -> None:
    made = agent()
    first = finish(made)
    made.tell(main_rows(first, 0, lambda n, k: None))
    assert made.report() == {"generation": 0.0, "missing": 40.0}
    second = finish(made)
    assert np.array_equal(second.latents, first.latents)
    assert {s.id for s in second.stimuli} == {s.id for s in first.stimuli}
    assert [s.role for s in second.plan].count("reshow") == 0


def test_order_and_repetition_within_a_tell_do_not_matter() -> None:
    plain, messy = agent(), agent()
    for proposal in range(3):
        a, b = finish(plain), finish(messy)
        assert same(a, b)
        likes = brightness(a)
        told = main_rows(a, proposal, lambda n, k, likes=likes: likes.get(n, 3.0))  # type: ignore[misc]
        plain.tell(told)
        shuffled = [told[k] for k in np.random.default_rng(proposal).permutation(len(told))]
        messy.tell(shuffled[:20])
        wrong = [Told(t.proposal, t.slot, t.role, t.stimulus_id, np.array([99.0, 99.0])) for t in shuffled[:7]]
        messy.tell([*shuffled[10:], *shuffled, *wrong])
    assert plain.report() == messy.report()
    assert same(finish(plain), finish(messy))


def test_a_usable_row_after_a_missing_one_counts_while_its_generation_is_open() -> None:
    plain, late = agent(), agent()
    batch = finish(plain)
    assert same(finish(late), batch)
    told = main_rows(batch, 0, lambda n, k: float(k))
    plain.tell(told)
    late.tell([Told(t.proposal, t.slot, t.role, t.stimulus_id, None) for t in told[:9]])
    late.tell(told)
    late.tell([Told(t.proposal, t.slot, t.role, t.stimulus_id, None) for t in told])  # missing after usable: no news
    assert plain.report() == late.report()
    assert same(finish(plain), finish(late))


def test_late_rows_of_earlier_proposals_count_for_references_but_never_for_the_open_generation() -> None:
    plain, late = agent(), agent()
    first = finish(plain)
    finish(late)
    lost = next(k for k, slot in enumerate(first.plan) if slot.role == "candidate")
    told = main_rows(first, 0, lambda n, k: None if k == lost else float(k))
    for made in (plain, late):
        made.tell(told)
    second = finish(plain)
    finish(late)
    tail = tail_rows(first, 0, lambda n, k: 30.0)
    late.tell(tail)
    assert late.report()["reference"] == 30.0
    late.tell(tail_rows(first, 0, lambda n, k: 90.0))  # a repeated row counts once
    assert late.report()["reference"] == 30.0
    rest = main_rows(second, 1, lambda n, k: float(k % 7))
    plain.tell([*tail, *rest])
    late.tell(rest)
    late.tell(main_rows(first, 0, lambda n, k: 1e4))  # the lost one at last, the others once more
    assert plain.report() == late.report()
    assert same(finish(plain), finish(late))


def test_rows_that_fit_no_plan_are_refused_and_change_nothing() -> None:
    made = agent()
    batch = finish(made)
    good = main_rows(batch, 4, lambda n, k: 1.0)  # in a session with phases before, the first proposal is not 0
    made.tell(good[:3])
    before = frozen(made.state())
    wrong = [
        (Told(5, 3, good[3].role, good[3].stimulus_id, None), "told while 4 is open"),
        (Told(4, 3, good[3].role, "p0-g000-c99", None), "planned was"),
        (Told(4, 99, good[3].role, good[3].stimulus_id, None), "planned was nothing"),
        (Told(2, 3, "candidate", "x", None), "told while 4 is open|not one of this agent's"),
        (Told(4, 3, good[3].role, good[3].stimulus_id, np.array([1.0])), "2 numbers"),
        (Told(4, 3, good[3].role, good[3].stimulus_id, np.array([1.0, np.inf])), "rate_hz None"),
    ]
    for row, message in wrong:
        with pytest.raises(ValueError, match=message):
            made.tell([good[4], row])
        assert frozen(made.state()) == before
    made.tell([Told(4, -1, "fallback", "ref-x", None)])  # fallback images are no part of a plan
    assert frozen(made.state()) == before


# --- report and stop rule ---------------------------------------------------------------------------------------------


def test_report_by_hand() -> None:
    made = agent()
    assert made.report() == {"generation": 0.0}
    first = finish(made)
    winner = next(s.id for s in first.stimuli if s.id.endswith("c17"))
    rate = lambda n, k: 100.0 if n == winner else 10.0  # noqa: E731
    made.tell(main_rows(first, 0, rate))
    assert made.report() == {
        "generation": 0.0, "top_single_trial": 100.0, "mean": pytest.approx(490 / 40), "missing": 0.0,
    }  # fmt: skip
    second = finish(made)
    names = [s.id for s in second.stimuli if s.id.startswith("ref-")]
    references = {name: 20.0 + 4 * k for k, name in enumerate(names)}
    made.tell([*tail_rows(first, 0, lambda n, k: references[n]), *main_rows(second, 1, lambda n, k: 5.0)])
    report = made.report()
    assert (report["reference"], report["reference_mean"]) == (32.0, 26.0)
    assert (report["generation"], report["top_single_trial"]) == (1.0, 5.0)
    assert "best" not in report  # nothing was shown again yet


@pytest.mark.parametrize("again", [6.0, 4.0], ids=["stays the best", "is overtaken"])
def test_a_reshow_corrects_the_lucky_score_by_which_an_image_was_chosen(again: float) -> None:
    made = evolving(reshows=1)
    first = finish(made)
    winner = first.stimuli[17].id
    made.tell(main_rows(first, 0, lambda n, k: 100.0 if n == winner else 10.0))
    second = finish(made)
    made.tell(main_rows(second, 1, lambda n, k: again if n == winner else 5.0))
    third = finish(made)
    made.tell(tail_rows(second, 1, lambda n, k: 40.0 if n == winner else 0.0))
    made.tell(main_rows(third, 2, lambda n, k: 70.0 if n == winner else 5.0))
    report = made.report()
    assert report["reference"] == 0.0
    # its measured rate is what counts, not the 70 or 100 by which it was chosen
    assert (report["best"], report["best_reshows"]) == (40.0, 1.0)
    assert report["best_generation"] == (1.0 if again > 5 else 0.0)
    assert report["top_single_trial"] == (70.0 if again > 5 else 5.0)


def test_the_stop_rule_holds_after_the_last_generation_was_told() -> None:
    made = evolving(generations=2)
    assert made.finished() is None
    for proposal in range(2):
        batch = finish(made)
        assert made.finished() is None
        made.tell(main_rows(batch, proposal, lambda n, k: 1.0))
    assert batch.final
    assert made.finished() == "2 generations were shown"
    made.tell(tail_rows(batch, 1, lambda n, k: 9.0))  # the last tail still counts
    assert made.report()["reference"] == 9.0
    assert made.finished() is not None


# --- present ----------------------------------------------------------------------------------------------------------


def test_present_shows_each_image_in_each_block_in_fresh_order() -> None:
    made = agent(PRESENT)
    batches = run(made)
    assert len(batches) == 3
    orders = []
    for batch in batches:
        names = [batch.stimuli[s.stimulus].id for s in batch.plan]
        assert sorted(names) == sorted([s.id for s in made.stimuli] + ["blank"] * 2)
        assert batch.frames.shape == (0, RECT.height, RECT.width, 3)
        orders.append(tuple(names))
        for stimulus in batch.stimuli:
            assert not isinstance(stimulus.spec, LatentImage)
            assert render(stimulus.spec, ANGLES, 128, BANKS).shape == (RECT.height, RECT.width, 3)
    assert len(set(orders)) == 3
    assert [b.tail_from for b in batches] == [4, 4, 8]  # asked for in the middle of a block, except after the last
    assert made.finished() == "3 repeats of 6 stimuli were shown"
    assert {s.spec.type for s in made.stimuli} == {"bank", "grating"}
    report = made.report()
    assert (report["usable"], report["missing"], report["blank"]) == (24.0, 0.0, 21.5)


def test_present_shows_missing_presentations_again_until_all_have_a_response() -> None:
    lost = frozenset({(0, 1), (1, 6), (2, 0), (2, 1), (2, 7)})
    made = agent(PRESENT)
    batches = run(made, missing=lost)
    assert made.finished() is not None
    usable: dict[str, int] = {}
    for proposal, batch in enumerate(batches):
        for k, slot in enumerate(batch.plan):
            if (proposal, k) not in lost:
                name = batch.stimuli[slot.stimulus].id
                usable[name] = usable.get(name, 0) + 1
    assert len(batches) == 4
    assert {n for name, n in usable.items() if name != "blank"} == {3}


def test_present_gives_up_on_a_dead_recording() -> None:
    made = agent(PRESENT)
    lost = frozenset((p, k) for p in range(20) for k in range(60))
    batches = run(made, missing=lost)
    assert len(batches) == 6
    reason = made.finished()
    assert reason is not None
    assert "no usable response after 3 make-up blocks" in reason
    assert "best" not in made.report()


def test_gratings_fit_the_image_and_differ() -> None:
    stimuli = gratings(ANGLES)
    frames = {render(s.spec, ANGLES, 128, {}).tobytes() for s in stimuli}
    assert len({s.id for s in stimuli}) == len(frames) == len(stimuli) == 48


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [EVOLVE, PRESENT], ids=["evolve", "present"])
@pytest.mark.parametrize("partly", [False, True], ids=["told", "partly told"])
def test_a_restored_agent_goes_on_bit_for_bit(phase: EvolvePhase | PresentPhase, partly: bool) -> None:
    made = agent(phase)
    tail: list[Told] = []
    for proposal in range(2):
        batch = finish(made)
        rate = lambda n, k, p=proposal: None if k == 3 else float((k * 7 + p) % 11)  # noqa: E731
        told = main_rows(batch, proposal, rate)
        made.tell([*tail, *(told[:2] if partly and proposal == 1 else told)])
        tail = tail_rows(batch, proposal, rate)
    state = made.state()
    other = agent(phase)
    finish(other)  # it has drawn and moved on: the state decides all the same
    other.restore(json_round_trip(state))
    for each in (made, other):
        each.tell([*told, *tail])
    assert made.report() == other.report()
    assert same(finish(made), finish(other))
    assert frozen(made.state()) == frozen(other.state())


def json_round_trip(value: Any) -> Any:
    """Arrays apart, states survive JSON."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {json.loads(json.dumps(k)): json_round_trip(v) for k, v in value.items()}
    if isinstance(value, list):
        return [json_round_trip(v) for v in value]
    return json.loads(json.dumps(value))


def test_a_state_taken_earlier_is_not_changed_by_what_follows() -> None:
    made = agent()
    batch = finish(made)
    state = made.state()
    before = frozen(state)
    made.tell(main_rows(batch, 0, lambda n, k: float(k)))
    finish(made)
    assert frozen(state) == before


@pytest.mark.parametrize("phase", [EVOLVE, PRESENT], ids=["evolve", "present"])
def test_seed_and_phase_decide_the_draws(phase: EvolvePhase | PresentPhase) -> None:
    batch = finish(agent(phase))
    assert same(batch, finish(agent(phase)))
    for other in (agent(phase, seed=1), agent(phase, index=1)):
        assert not same(batch, finish(other))


# --- builder ----------------------------------------------------------------------------------------------------------


def test_agents_are_built_from_a_config() -> None:
    config = parse(
        "sources: [{type: openephys}]\n"
        "responses: {units: ['E01#0', 'E02#0']}\n"
        "phases: [{agent: present, images: [gratings], count: 3}, {agent: evolve, unit: 'E02#0', references: 3}]\n"
    )
    make = build_from_config(config)
    first, second = make(0), make(1)
    assert isinstance(first, Present)
    assert isinstance(second, Evolve)
    assert [e.target.unit for e in second.evolutions] == ["E02#0"]
    rect = image_rect(config.display.size_px, config.display.width_cm, config.display.distance_cm, 10.0, (0.0, 0.0))
    assert finish(second).frames.shape == (40, rect.height, rect.width, 3)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (EVOLVE.model_copy(update={"unit": "E09#0"}), r"phases\.0\.unit: 'E09#0'"),
        (EVOLVE.model_copy(update={"references": 99}), r"phases\.0\.references: 99"),
        (PRESENT.model_copy(update={"images": ("faces",)}), "no image bank named 'faces'; use gratings, natural"),
        (PRESENT.model_copy(update={"count": 500}), "count: 500, but natural, gratings have 84 images together"),
    ],
)
def test_what_cannot_be_built_is_named(phase: EvolvePhase | PresentPhase, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agent(phase)


@pytest.mark.parametrize("phase", [EVOLVE, PRESENT], ids=["evolve", "present"])
def test_a_unit_that_was_never_seen_has_no_rate_and_spoils_nothing(phase: EvolvePhase | PresentPhase) -> None:
    made = agent(phase)
    batch = finish(made)
    rows = main_rows(batch, 0, lambda n, k: 10.0)
    blind = 0 if isinstance(phase, PresentPhase) else UNITS.index(phase.unit)
    unseen = []
    for r in rows:
        assert r.rate_hz is not None
        rate = r.rate_hz.copy()
        rate[blind] = np.nan
        unseen.append(replace(r, rate_hz=rate))
    made.tell(unseen)
    report = made.report()
    assert all(np.isfinite(v) for v in report.values())
    if isinstance(phase, EvolvePhase):
        assert report["missing"] == sum(r.role == "candidate" for r in rows)
    else:
        assert report["mean"] == 10.0


def without(rows: list[Told], unit: int, slots: set[int]) -> list[Told]:
    """Return the rows with no value for a unit in some slots."""
    out = []
    for r in rows:
        assert r.rate_hz is not None
        rate = r.rate_hz.copy()
        rate[unit] = np.nan
        out.append(replace(r, rate_hz=rate) if r.slot in slots else r)
    return out


def test_a_candidate_without_a_value_of_the_evolved_unit_is_missing_and_comes_again() -> None:
    made = evolving(blanks=0)
    batch = finish(made)
    rows = main_rows(batch, 0, lambda n, k: float(k))
    made.tell(without(rows, UNIT, {0, 3}))
    assert made.report()["missing"] == 2
    again = finish(made)
    names = {again.stimuli[s.stimulus].id for s in again.plan if s.role == "candidate"}
    assert {batch.stimuli[batch.plan[k].stimulus].id for k in (0, 3)} <= names


def test_a_value_that_another_unit_lacks_does_not_matter_to_the_evolved_one() -> None:
    plain, other = evolving(), evolving()
    rows = main_rows(finish(plain), 0, lambda n, k: float(k))
    finish(other)
    plain.tell(rows)
    other.tell(without(rows, 1 - UNIT, set(range(len(rows)))))
    assert plain.report() == other.report()


def test_a_row_with_the_value_counts_after_one_without_it() -> None:
    plain, late = evolving(), evolving()
    rows = main_rows(finish(plain), 0, lambda n, k: float(k))
    finish(late)
    plain.tell(rows)
    late.tell(without(rows, UNIT, {2, 5}))
    assert late.report()["missing"] > 0
    late.tell([rows[2], rows[5], rows[5]])
    assert plain.report() == late.report()


def test_present_counts_a_repeat_for_the_units_that_have_a_value() -> None:
    made = agent(PRESENT)
    batch = finish(made)
    rows = main_rows(batch, 0, lambda n, k: 10.0)
    assert len(rows) == 4
    made.tell(without(rows, 0, {1}))
    report = made.report()
    assert (report["usable"], report["missing"], report["least_of_a_unit"]) == (4.0, 0.0, 3.0)
    assert agent(PRESENT).report().keys() & {"least_of_a_unit"} == set()


def test_present_shows_again_what_no_unit_has_a_value_for() -> None:
    made = agent(PRESENT)
    batch = finish(made)
    rows = main_rows(batch, 0, lambda n, k: 10.0)
    shown = next(r for r in rows if r.role != "blank")
    made.tell(without(without(rows, 0, {shown.slot}), 1, {shown.slot}))
    assert made.report()["missing"] == 1.0
    names = [b.stimuli[s.stimulus].id for b in [finish(made)] for s in b.plan]
    assert names.count(shown.stimulus_id) == 2
