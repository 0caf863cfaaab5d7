"""The inception agent: what is shown when, what is held out, images alike, restored bit for bit, and what it claims."""

import gc
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from models.agents.inception import Inception
from models.agents.types import Told
from models.inception.gabors import with_contrast
from models.inception.made import MEI
from models.server import batch_hash, state_hash
from rig.config.inception import CONTROLS, MOST_FRAME_BYTES
from rig.config.reading import ConfigError
from rig.encoding import MAX_ARRAY_BYTES
from stimuli.limits import frame_levels
from stimuli.spec import BankImage, LatentImage
from tests.inception_units import Subject, agent_of, config, go_on, next_batch

UNITS = 4


def done(lost: float = 0.0, seed: int = 0, **settings: Any) -> tuple[Inception, Subject]:
    """Return an agent after its whole phase, and who answered."""
    of = config(UNITS, **settings)
    agent = agent_of(of)
    subject = Subject(of, agent, seed=seed, lost=lost)
    go_on(agent, subject, [])
    return agent, subject


@pytest.fixture(scope="module")
def finished() -> tuple[Inception, Subject]:
    """A phase with nothing lost and every control."""
    return done(controls=list(CONTROLS))


def test_natural_images_come_first_then_waiting_then_only_what_was_made(finished: tuple[Inception, Subject]) -> None:
    agent, subject = finished
    roles = ["confirmation" if any(s.role == "confirmation" for s in b.plan) else "natural" for b in subject.batches]
    assert roles == sorted(roles, reverse=True)  # no natural one after the first that is shown back
    assert roles.count("confirmation") == agent.phase.repeats == 6
    naturals = [b for b, role in zip(subject.batches, roles, strict=True) if role == "natural"]
    held_out = {s.id for s in agent.natural.stimuli[agent.natural.train :]}
    for batch in naturals[len(agent.blocks) :]:  # while units are chosen and images are made
        assert {batch.stimuli[s.stimulus].id for s in batch.plan} <= held_out | {"blank"}
        assert batch.tail_from < len(batch.plan) / 3  # nearly all of it covers a computation
    shown = [b.stimuli[s.stimulus].id for b in naturals for s in b.plan]
    assert all(shown.count(s.id) == 1 for s in agent.natural.stimuli[: agent.natural.train])
    assert all(shown.count(name) >= 6 for name in held_out)


def test_the_model_is_never_fitted_to_a_held_out_image(finished: tuple[Inception, Subject]) -> None:
    agent, _ = finished
    assert agent.known().presentations == agent.natural.train == 120
    assert len(agent.test) >= 12 * 6
    assert {agent.natural.held_out(k) for k, _ in agent.test} == {True}
    names = [s.spec.name for s in agent.natural.stimuli if isinstance(s.spec, BankImage)]
    assert len(set(names)) == len(names) == 132


def test_every_image_shown_back_has_one_mean_level_and_contrast_after_8_bit(
    finished: tuple[Inception, Subject],
) -> None:
    agent, subject = finished
    assert len(agent.made) == 2
    for made in agent.made:
        assert list(made.images) == [MEI, *CONTROLS]
        levels = np.array([frame_levels(image.frame) for image in made.images.values()])
        assert np.abs(levels[:, 0] - 128).max() < 0.01
        assert np.ptp(levels[:, 1]) < 5e-4
        assert levels[0, 1] == pytest.approx(made.contrast, abs=5e-4)
    back = [b for b in subject.batches if b.plan[0].role == "confirmation" or b.plan[1].role == "confirmation"]
    for batch in back:
        for stimulus in batch.stimuli:
            if isinstance(stimulus.spec, LatentImage):
                made = next(m for m in agent.made if stimulus.id.startswith(f"p0-u{m.unit}-"))
                image = made.images[stimulus.id.split("-")[-1]]
                assert np.array_equal(batch.frames[stimulus.spec.row], image.frame)
                assert np.array_equal(batch.latents[stimulus.spec.row], image.code)
                seen = agent.eye.see(image.frame[None]).flatten().numpy()
                assert np.array_equal(image.code, seen)


def test_blocks_shown_back_hold_every_image_once_in_fresh_order(finished: tuple[Inception, Subject]) -> None:
    _, subject = finished
    back = [b for b in subject.batches if any(s.role == "confirmation" for s in b.plan)]
    orders = []
    for batch in back:
        names = [batch.stimuli[s.stimulus].id for s in batch.plan if s.role == "confirmation"]
        assert len(names) == len(set(names)) == 12
        orders.append(tuple(names))
    assert len(set(orders)) == len(orders)
    units = [[name.split("-")[1] for name in order] for order in orders]
    assert any(a != b for of in units for a, b in pairwise(of))  # interleaved, not unit by unit
    assert back[-1].final


def test_what_is_told_of_images_is_the_mean_of_their_fresh_repeats(finished: tuple[Inception, Subject]) -> None:
    agent, subject = finished
    report, scores = agent.report(), {s.stimulus_id: s for s in agent.scored()}
    for made in agent.made:
        for kind in made.images:
            name = made.id_of("p0", kind)
            rates = np.array(subject.told[name])[:, made.unit]
            assert len(rates) == 6
            assert scores[name].raw == report[f"{agent.units[made.unit]}: {kind}"] == pytest.approx(rates.mean())
            assert scores[name].source == kind
            assert scores[name].target == agent.units[made.unit]
    left = agent.leaves()
    assert left["units"] == tuple(agent.units[made.unit] for made in agent.made)
    assert [n.estimate for n in left["images"]] == [scores[n.stimulus.id].raw for n in left["images"]]
    assert len(left["references"]) == 12


def test_the_images_do_what_they_are_for(finished: tuple[Inception, Subject]) -> None:
    agent, subject = finished
    for made in agent.made:
        true = {kind: subject.true_rates(image.frame)[made.unit] for kind, image in made.images.items()}
        grey = subject.true_rates(np.full_like(made.images[MEI].frame, 128))[made.unit]
        assert true[MEI] > grey + 10
        assert made.images[MEI].predicted >= max(image.predicted for image in made.images.values())
        assert made.images["gabor_optimised"].predicted >= made.images["gabor"].predicted - 0.5
    assert agent.report()["row_maximum"] == 1.0


def test_the_natural_controls_are_the_best_training_image_and_the_best_under_the_mask(
    finished: tuple[Inception, Subject],
) -> None:
    agent, _ = finished
    encoder = agent.encoder()
    light = torch.from_numpy(np.stack([agent.seen(k) for k in range(agent.natural.train)]))
    rates = encoder.rates(with_contrast(light, agent.phase.contrast)).detach().numpy()
    for made in agent.made:
        assert made.images["natural"].of == agent.natural.stimuli[rates[:, made.unit].argmax()].id
        whole, masked = (made.images[kind].frame.astype(int) for kind in ("natural", "natural_masked"))
        assert np.mean(np.abs(masked - 128) <= 1) > np.mean(np.abs(whole - 128) <= 1) + 0.2  # grey beside the mask


def test_lost_responses_are_made_up() -> None:
    agent, subject = done(lost=0.15, seed=3)
    assert agent.finished() == "6 repeats of 8 images of 2 units were shown back"
    assert {len(of) for of in subject.told.values()} == {6}
    assert agent.known().presentations >= 115  # what is still owed when images are made is not waited for
    assert agent.report()["missing"] > 20


def test_a_unit_that_is_gone_in_some_responses_costs_the_others_nothing() -> None:
    of = config(UNITS)
    agent = agent_of(of)
    subject = Subject(of, agent)
    rng = np.random.default_rng(5)
    late: list[Told] = []
    while agent.finished() is None:
        batch = next_batch(agent)
        told = []
        for row in subject.answer(batch, len(subject.batches)):
            assert row.rate_hz is not None
            rates = row.rate_hz.copy()
            rates[2] = np.nan if rng.random() < 0.3 else rates[2]
            told.append(Told(row.proposal, row.slot, row.role, row.stimulus_id, rates))
        subject.batches.append(batch)
        agent.tell([*late, *told[: batch.tail_from]])
        late = told[batch.tail_from :]
    assert agent.known().presentations == 120
    assert np.isfinite(agent.known().score).all()
    assert "E03#0: heldout_r" in agent.report()


@pytest.mark.parametrize("blocks", [3, 8])
def test_a_restored_agent_makes_the_same_images_and_goes_on_bit_for_bit(blocks: int) -> None:
    of = config(UNITS, controls=["gabor", "natural_masked"], train=60, iterations=20)
    never, again = agent_of(of), agent_of(of)
    subject = Subject(of, never, lost=0.05)
    late = go_on(never, subject, [], blocks)
    work = never.ask()
    work.step()  # killed in the middle of it
    again.restore(never.state())
    assert state_hash(again.state()) == state_hash(never.state())
    hashes, states = [], []
    for agent in (never, again):
        copy = Subject(of, agent, lost=0.05, batches=list(subject.batches))
        go_on(agent, copy, late)
        hashes.append([batch_hash(b) for b in copy.batches])
        states.append(state_hash(agent.state()))
    assert hashes[0] == hashes[1]
    assert states[0] == states[1]
    assert never.report() == again.report()


def test_the_number_of_steps_does_not_depend_on_what_happens_to_be_in_memory() -> None:
    of = config(UNITS, controls=["natural"], train=60, iterations=20)
    warm = agent_of(of)
    subject = Subject(of, warm)
    go_on(warm, subject, [], 3)
    cold = agent_of(of)
    cold.restore(warm.state())
    steps = []
    for agent in (warm, cold):
        work = agent.ask()
        while not work.step():
            pass
        steps.append(work.steps)
    assert steps[0] == steps[1]


def test_responses_that_come_while_a_block_is_computed_are_in_the_fit_after_it() -> None:
    of = config(UNITS, train=60)
    agent = agent_of(of)
    late = go_on(agent, Subject(of, agent), [], 2)
    trained = {s.id for s in agent.natural.stimuli[: agent.natural.train]}
    came = [one.stimulus_id for one in late if one.stimulus_id in trained]
    assert came
    work = agent.ask()
    agent.tell(late)
    while not work.step():
        pass
    work.result()
    assert [agent.natural.stimuli[image].id for image, _ in agent.pending] == came


def test_a_work_that_was_taken_leaves_nothing_behind() -> None:
    agent = agent_of(config(UNITS, train=60))
    work = agent.ask()
    while not work.step():
        pass
    work.result()
    gone = weakref.ref(work)
    gc.disable()  # a cycle would keep what was learnt before: hundreds of MB for each block of a long session
    try:
        del work
        assert gone() is None
    finally:
        gc.enable()


def test_without_a_good_unit_the_phase_ends_and_says_why() -> None:
    agent, subject = done(least_score=0.99)
    assert agent.finished() is not None
    assert "no unit was predicted (least_score 0.99)" in str(agent.finished())
    assert subject.batches[-1].final
    assert subject.batches[-1].tail_from == len(subject.batches[-1].plan)
    assert agent.report()["chosen"] == 0
    assert agent.report()["E01#0: rejected, not predicted"] == 1
    assert agent.scored() == ()
    assert agent.leaves()["units"] == ()


def test_only_units_that_are_asked_for_and_no_more_than_asked_for() -> None:
    agent, _ = done(units=["E02#0"], most_units=3, least_score=-1, least_oracle=-1)
    assert [made.unit for made in agent.made] == [1]
    assert agent.report()["E04#0: rejected, not asked for"] == 1
    agent, _ = done(most_units=1, least_score=-1, least_oracle=-1)
    assert len(agent.made) == 1
    assert sum("others are better" in name for name in agent.report()) == 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"images": ["nowhere"]}, r"phases\.0\.images: no bank 'nowhere'; choose from natural, tiles"),
        ({"units": ["E09#0"]}, r"phases\.0\.units: 'E09#0' is not in responses\.units"),
        ({"contrast": 0.49, "grid_step": 9}, r"grid_step: .* less than or equal to 6"),
        ({"controls": ["gabor", "gabor"]}, r"controls: 'gabor' is given twice"),
        ({"test": 3}, r"test: .* greater than or equal to 10"),
        ({"repeats": 4}, r"repeats: .* greater than or equal to 6"),
    ],
)
def test_mistakes_in_the_config_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config(UNITS, **settings)


def test_the_most_that_a_config_may_ask_for_is_what_the_log_takes() -> None:
    assert MOST_FRAME_BYTES == MAX_ARRAY_BYTES


def test_too_few_pictures_are_named() -> None:
    with pytest.raises(ValueError, match=r"phases\.0\.train, test: 120 \+ 12 images, but its banks have 36 together"):
        agent_of(config(UNITS, images=["natural"]))


def test_asking_too_early_and_telling_what_was_not_planned_are_refused() -> None:
    of = config(UNITS)
    agent = agent_of(of)
    batch = next_batch(agent)
    with pytest.raises(RuntimeError, match="tell every one of them first"):
        agent.ask()
    with pytest.raises(ValueError, match="planned was"):
        agent.tell([Told(0, 0, "candidate", "x", np.zeros(UNITS))])
    other = agent_of(of)
    with pytest.raises(RuntimeError, match="not computed yet"):
        other.ask().peek()
    assert batch.generation == 0
