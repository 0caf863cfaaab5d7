"""Confirmation: what is fixed before, fresh interleaved repeats, and claims from these presentations only."""

from typing import Any

import numpy as np
import pytest

from models.agents import Batch, Told, build
from models.agents.carried import Carried, Measured, Nominated
from models.agents.confirm import Confirm
from models.server import state_hash
from rig.config.phases import ConfirmPhase
from rig.config.reading import ConfigError, parse
from rig.config.targets import Target
from rig.confirmation import Repeats, claims, holm, sign_flip_p
from stimuli.bank import natural_bank
from stimuli.geometry import image_rect, pixel_angles
from stimuli.spec import BankImage, LatentImage, Place, Stimulus

SIZE, WIDTH_CM, DISTANCE_CM = (400, 300), 40.0, 30.0
RECT = image_rect(SIZE, WIDTH_CM, DISTANCE_CM, 6.0, (0.0, 0.0))
ANGLES = pixel_angles(RECT, SIZE, WIDTH_CM, DISTANCE_CM)
UNITS = ("a", "b", "c")
FACE, CUP, ROCK = (
    Measured(
        Stimulus(id=f"ref-{name}", spec=BankImage(bank="natural", name=name)), np.array(rates), np.array([5, 5, 5])
    )
    for name, rates in (
        ("astronaut-face", [30.0, 4.0, 9.0]),
        ("coffee-cup", [20.0, 8.0, 1.0]),
        ("gravel-stones", [10.0, 6.0, np.nan]),
    )
)
THERE = Place(center_deg=(2.0, 1.0), size_deg=3.0)


def nominated(name: str, target: str, row: int, source: str = "evolved", place: Place | None = None) -> Nominated:
    shape = (RECT.height, RECT.width) if place is None else (40, 44)
    frame = np.full((*shape, 3), row + 1, np.uint8)
    stimulus = Stimulus(id=name, spec=LatentImage(generator="dct-1", row=row))
    return Nominated(target, source, stimulus, "dct-1", np.full(6, row, np.float32), frame, 1.0, 0.1, 4, place)


def left(place_of_b: Place | None = None) -> Carried:
    return Carried(
        phase=1,
        agent="evolve",
        targets=(Target(unit="a"), Target(unit="b", suppress=True)),
        images=(
            nominated("p1-t0-g004-c03", "a", 3),
            nominated("p1-t0-g004-c01", "a", 1),
            nominated("p1-t0-g004-c02", "a", 2),
            nominated("p1-t0-g000-c00", "a", 0, "start"),
            nominated("p1-t1-g004-c09", "suppress b", 9, place=place_of_b),
        ),
        references=(FACE, CUP, ROCK),
    )


def confirming(carried: Carried | None = None, seed: int = 0, **settings: Any) -> Confirm:
    phase = ConfirmPhase(**{"starts": 1, **settings})
    banks = {"natural": natural_bank()}
    made = build(phase, 2, seed, UNITS, ANGLES, 128, banks, (carried or left(),))
    assert isinstance(made, Confirm)
    return made


def finish(made: Confirm) -> Batch:
    work = made.ask()
    while not work.step():
        pass
    return work.result()


def run(
    made: Confirm, rates: dict[str, float], noise: float, rng: np.random.Generator, lost: float = 0.0
) -> list[Batch]:
    """Answer with unit a's (and with 10 less, b's) rates plus noise; a share of presentations is lost."""
    batches: list[Batch] = []
    while made.finished() is None:
        batch = finish(made)
        told = []
        for k, slot in enumerate(batch.plan):
            name = batch.stimuli[slot.stimulus].id
            rate = rates.get(name, 5.0) + rng.normal(0, noise)
            answer = None if rng.random() < lost else np.array([rate, rate - 10, 0.0])
            told.append(Told(len(batches), k, slot.role, name, answer))
        made.tell(told)
        batches.append(batch)
        assert len(batches) < 200
    return batches


def test_what_is_shown_was_fixed_before_by_estimates_and_means_of_earlier_phases() -> None:
    batch = finish(confirming())
    assert [s.id for s in batch.stimuli] == [
        "p1-t0-g004-c03", "p1-t0-g004-c01", "p1-t0-g000-c00", "ref-astronaut-face", "ref-coffee-cup", "p1-t1-g004-c09",
        "ref-gravel-stones", "blank",
    ]  # fmt: skip
    # Unit b is suppressed: the references that drive it least, 4 and 6, are its best ones.
    fixed = [(f.title, f.source, batch.stimuli[f.image].id) for f in confirming()._chosen.fixed]
    assert fixed == [
        ("a", "evolved", "p1-t0-g004-c03"),
        ("a", "evolved", "p1-t0-g004-c01"),
        ("a", "start", "p1-t0-g000-c00"),
        ("a", "reference", "ref-astronaut-face"),
        ("a", "reference", "ref-coffee-cup"),
        ("suppress b", "evolved", "p1-t1-g004-c09"),
        ("suppress b", "reference", "ref-astronaut-face"),
        ("suppress b", "reference", "ref-gravel-stones"),
    ]
    for stimulus in batch.stimuli:
        if isinstance(stimulus.spec, LatentImage):
            assert batch.frames[stimulus.spec.row, 0, 0, 0] == batch.latents[stimulus.spec.row, 0] + 1


def test_every_block_shows_each_image_once_in_fresh_order_with_the_role_confirmation() -> None:
    made = confirming()
    batches = run(made, {}, 1.0, np.random.default_rng(0))
    assert len(batches) == 20
    orders = set()
    for batch in batches:
        shown = [(slot.role, batch.stimuli[slot.stimulus].id) for slot in batch.plan]
        assert sorted(name for role, name in shown if role == "confirmation") == sorted(
            s.id for s in batch.stimuli if s.id != "blank"
        )
        assert [role for role, _ in shown].count("blank") == 1
        orders.add(tuple(name for _, name in shown))
    assert len(orders) == 20


def test_lost_presentations_are_made_up_so_that_each_image_has_its_repeats() -> None:
    made = confirming()
    run(made, {}, 1.0, np.random.default_rng(1), lost=0.2)
    assert {len(r.scores) for r in made.repeats_so_far()} == {20}
    assert made.finished() == "20 repeats of 7 stimuli were shown"


def test_images_of_two_places_take_turns_by_block() -> None:
    made = confirming(left(THERE))
    batches = run(made, {}, 1.0, np.random.default_rng(2), lost=0.1)
    assert [b.place for b in batches[:4]] == [None, THERE, None, THERE]
    assert {len(r.scores) for r in made.repeats_so_far()} == {20}
    assert {s.id for s in batches[1].stimuli} == {
        "p1-t1-g004-c09", "ref-astronaut-face@2_1_3deg", "ref-gravel-stones@2_1_3deg", "blank",
    }  # fmt: skip
    assert batches[1].frames.shape == (1, 40, 44, 3)
    assert batches[0].frames.shape == (3, RECT.height, RECT.width, 3)


def test_report_and_claims_are_of_the_first_bets_by_hand() -> None:
    made = confirming()
    truth = {"p1-t0-g004-c03": 42.0, "p1-t0-g004-c01": 90.0, "ref-astronaut-face": 30.0, "p1-t1-g004-c09": 12.0}
    run(made, truth, 3.0, np.random.default_rng(3))
    report = made.report()
    assert report["a: evolved"] == pytest.approx(42, abs=2)  # not the image that turned out better
    assert report["a: reference"] == pytest.approx(30, abs=2)
    assert report["a: difference"] == report["a: evolved"] - report["a: reference"]
    assert report["a: evolved_n"] == report["a: reference_n"] == 20
    assert report["a: evolved_se"] == pytest.approx(3 / np.sqrt(20), rel=0.4)
    assert report["a: p"] == pytest.approx(2 / 10_000)  # the smallest there is, times two targets
    assert report["suppress b: difference"] == pytest.approx((12 - 10) - (30 - 10), abs=2)
    scores = {(s.target, s.source, s.stimulus_id): s for s in made.scored()}
    one = scores["a", "evolved", "p1-t0-g004-c03"]
    assert (one.raw, one.presentations) == (report["a: evolved"], 20)
    assert one.error == report["a: evolved_se"]
    assert made.leaves() == {}


def test_without_an_effect_p_is_uniform_and_never_zero() -> None:
    rng = np.random.default_rng(4)
    p = np.array([sign_flip_p(rng.poisson(20, 20) - rng.poisson(20, 20).astype(float)) for _ in range(300)])
    assert 0.02 < (p < 0.05).mean() < 0.09
    assert 0.44 < p.mean() < 0.56
    assert sign_flip_p(np.full(20, 5.0)) == pytest.approx(1 / 10_000)
    assert np.isnan(sign_flip_p(np.ones(5)))
    assert sign_flip_p(np.zeros(20)) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    corrected = holm([float("nan"), 0.01])
    assert np.isnan(corrected[0])
    assert corrected[1] == 0.01


def test_slow_drift_falls_out_of_the_pairs() -> None:
    drift = np.linspace(0, 40, 20)
    rng = np.random.default_rng(5)
    evolved = Repeats("a", "evolved", "x", 52 + drift + rng.normal(0, 2, 20))
    reference = Repeats("a", "reference", "y", 50 + drift + rng.normal(0, 2, 20))
    (claim,) = claims([evolved, reference])
    assert claim.error < 1.0 < evolved.error
    assert claim.p < 0.05
    assert claims([evolved]) == []


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_a_restored_confirmation_goes_on_bit_for_bit(stop: int) -> None:
    never = confirming(left(THERE))
    for k in range(stop):
        batch = finish(never)
        never.tell([
            Told(k, i, s.role, batch.stimuli[s.stimulus].id, None if i == 1 else np.full(3, float(i)))
            for i, s in enumerate(batch.plan)
        ])
    again = confirming(left(THERE), seed=9)
    again.restore(never.state())
    assert state_hash(again.state()) == state_hash(never.state())
    a, b = finish(never), finish(again)
    assert (a.stimuli, a.plan, a.place) == (b.stimuli, b.plan, b.place)
    assert np.array_equal(a.frames, b.frames)
    assert again.report() == never.report()


def test_nothing_to_confirm_and_wrong_orders_are_named() -> None:
    with pytest.raises(ValueError, match=r"phases\.2: no earlier phase left an image to confirm"):
        confirming(Carried(0, "present", references=(FACE,)))
    base = "sources: [{type: openephys}]\nresponses: {units: [a]}\n"
    with pytest.raises(ConfigError, match=r"phases\.0: confirm shows what an evolve phase before it found"):
        parse(base + "phases: [{agent: confirm}, {agent: evolve, unit: a}]")
    with pytest.raises(ConfigError, match=r"greater than or equal to 20"):
        parse(base + "phases: [{agent: evolve, unit: a}, {agent: confirm, repeats: 10}]")
