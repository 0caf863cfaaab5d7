"""Evolving for several targets at once: objectives, fairness, places, references, drift, stop rules, what is left."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from models.agents import Batch, Told, build_from_config
from models.agents.carried import Carried, Measured
from models.agents.evolve import Evolve
from models.agents.present import Present
from models.agents.references import spanning
from models.agents.stop import plateau, stopped
from models.server import state_hash
from models.truth import build as population
from rig.config.animal import Simulation
from rig.config.evolution import Stop
from rig.config.reading import ConfigError, parse
from rig.config.targets import Target
from stimuli.geometry import image_rect, pixel_angles
from stimuli.spec import BankImage, LatentImage, Stimulus

F64 = npt.NDArray[np.float64]
BASE = """
seed: 5
sources: [{{type: openephys, photodiode_line: null}}]
responses: {{units: [u0, u1, u2, u3], baseline: {{kind: none}}}}
display: {{size_px: [200, 160], width_cm: 40, distance_cm: 57}}
stimulus: {{size_deg: 6}}
phases: [{{agent: evolve, {phase}, optimiser: {{type: xdream, preset: plos2020, population: 12}},
  generator: {{frequencies: 6}}}}]
"""
UNITS = ("u0", "u1", "u2", "u3")


def evolving(phase: str, carried: tuple[Carried, ...] = (), seed: int = 5) -> Evolve:
    config = parse(BASE.format(phase=phase).replace("seed: 5", f"seed: {seed}"))
    made = build_from_config(config)(0, carried)
    assert isinstance(made, Evolve)
    return made


class Cells:
    """The built-in V1 cells looking at the frames of batches; bank images get a rate of their own."""

    def __init__(self, noise: bool = False) -> None:
        rect = image_rect((200, 160), 40.0, 57.0, 6.0, (0.0, 0.0))
        azimuth, elevation = pixel_angles(rect, (200, 160), 40.0, 57.0)
        self._cells = population(Simulation(neurons=4, seed=3), azimuth, elevation)
        self._rng = np.random.default_rng(0) if noise else None
        self.gain: F64 = np.ones(4)

    def truth(self, batch: Batch) -> list[F64]:
        out = []
        for k, stimulus in enumerate(batch.stimuli):
            if isinstance(stimulus.spec, LatentImage):
                out.append(self._cells.rate_hz(batch.frames[stimulus.spec.row].astype(np.float32) / 255))
            else:
                rng = np.random.default_rng([len(stimulus.id), *map(ord, stimulus.id[-6:])])
                out.append(rng.uniform(5, 40, 4))
            assert k < len(batch.stimuli)
        return out

    def told(self, batch: Batch, proposal: int, lost: frozenset[int] = frozenset()) -> list[Told]:
        truth, rows = self.truth(batch), []
        for k, slot in enumerate(batch.plan):
            rates = truth[slot.stimulus] * self.gain
            rates = rates if self._rng is None else self._rng.poisson(rates * 0.15) / 0.15
            answer = None if k in lost else rates.astype(np.float64)
            rows.append(Told(proposal, k, slot.role, batch.stimuli[slot.stimulus].id, answer))
        return rows


def finish(made: Evolve) -> Batch:
    work = made.ask()
    while not work.step():
        pass
    return work.result()


def run(made: Evolve, cells: Cells, most: int = 100, gain_per_batch: float = 1.0) -> list[Batch]:
    """Run as the model server does: the tail of the batch before, then the main part of this one."""
    batches: list[Batch] = []
    tail: list[Told] = []
    while made.finished() is None and len(batches) < most:
        batch = finish(made)
        rows = cells.told(batch, len(batches))
        made.tell([*tail, *rows[: batch.tail_from]])
        tail = rows[batch.tail_from :]
        batches.append(batch)
        cells.gain = cells.gain * gain_per_batch
    made.tell(tail)
    return batches


# --- objectives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "value", "title"),
    [
        ({"unit": "u1"}, 20.0, "u1"),
        ({"unit": "u1", "suppress": True}, 20.0, "suppress u1"),
        ({"unit": "u3", "minus": "u0"}, 30.0, "u3 - u0"),
        ({"units": ["u0", "u3"]}, 25.0, "mean of u0, u3"),
        ({"units": ["u0", "u3"], "weights": [3, 1]}, 17.5, "mean of u0, u3"),
        ({"direction": {"u0": 3, "u1": -4}}, (30 - 80) / 5, "direction u0, u1"),
        ({"unit": "u2", "name": "the good one"}, 30.0, "the good one"),
    ],
)
def test_objectives_by_hand(target: dict[str, Any], value: float, title: str) -> None:
    made = Target.model_validate(target)
    rates = np.array([10.0, 20.0, 30.0, 40.0])
    assert float(made.value(rates, UNITS)) == pytest.approx(value)
    assert made.value(np.stack([rates, rates * 2]), UNITS) == pytest.approx([value, 2 * value])
    assert made.title == title
    assert made.sign == (-1 if "suppress" in target else 1)


def test_a_unit_without_a_value_leaves_a_group_its_others_and_nothing_else() -> None:
    rates = np.array([10.0, np.nan, 30.0, 40.0])
    assert float(Target(units=("u0", "u1")).value(rates, UNITS)) == 10.0
    assert np.isnan(Target(units=("u0", "u1"), weights=(1, 2)).value(rates, UNITS))  # less than half of the weight
    assert np.isnan(Target(unit="u0", minus="u1").value(rates, UNITS))
    assert np.isnan(Target(direction={"u0": 1, "u1": 1}).value(rates, UNITS))


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ("references: 4", "one of unit, units, targets; given: none"),
        ("unit: u0, units: [u1]", "given: unit and units"),
        ("targets: [{unit: u0, units: [u1]}]", "one of unit .and minus., units, direction; given: unit and units"),
        ("targets: [{unit: u0}, {unit: u0}]", "two targets are called 'u0'"),
        ("targets: [{units: [u0, u1], weights: [1]}]", "weights: 1 for 2 units"),
        ("targets: [{direction: {u0: 0}}]", "points nowhere"),
        ("targets: [{minus: u0, units: [u1]}]", "minus goes with unit"),
        ("units: [u0, u9]", r"phases.0.units: 'u9' is not in responses.units"),
        ("units: proposed", "no phase before it proposes units"),
        ("unit: u0, sizes_deg: [4, 90]", "u0 at 90 deg"),
        ("unit: u0, reshows: 0, stop: {plateau_generations: 3}", "re-shows tell a plateau, and reshows is 0"),
    ],
)
def test_mistakes_are_named(phase: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(BASE.format(phase=phase))


def test_proposed_units_are_the_best_of_what_was_left() -> None:
    text = BASE.format(phase="units: proposed, most_units: 2").replace("phases: [", "phases: [{agent: screen}, ")
    make = build_from_config(parse(text))
    made = make(1, (Carried(0, "screen", units=("u3", "u1", "u0")),))
    assert isinstance(made, Evolve)
    assert [e.target.title for e in made.evolutions] == ["u3", "u1"]
    with pytest.raises(ValueError, match="no phase before it proposed a unit"):
        make(1, (Carried(0, "screen"),))


# --- several at once --------------------------------------------------------------------------------------------------


def test_a_batch_holds_one_generation_of_each_target_shuffled_together_and_one_tail() -> None:
    made = evolving("units: [u0, u1, u2], generations: 3, reshows: 2, blanks: 2")
    batches = run(made, Cells())
    assert len(batches) == 3
    for batch in batches:
        main = [batch.stimuli[s.stimulus].id for s in batch.plan[: batch.tail_from] if s.role == "candidate"]
        of = [name[:5] for name in main]
        assert {name: of.count(name) for name in of} == {"p0-t0": 12, "p0-t1": 12, "p0-t2": 12}
        assert of != sorted(of)
        half = of[: len(of) // 2]
        assert min(half.count(f"p0-t{k}") for k in range(3)) >= 2  # shuffled, not one after another
    tail = [s.role for s in batches[1].plan[batches[1].tail_from :]]
    assert tail.count("reshow") == 6
    total = len(batches[1].plan)
    assert 0.13 < tail.count("reference") / total < 0.17
    ids = [s.id for s in batches[1].stimuli]
    assert len(set(ids)) == len(ids)


def test_every_target_climbs_by_its_own_responses_and_suppression_falls() -> None:
    targets = "targets: [{unit: u0}, {unit: u1, suppress: true}, {unit: u2, minus: u3}, {units: [u0, u3]}]"
    made, cells = evolving(f"{targets}, generations: 14"), Cells()
    batches = run(made, cells)

    def mean(batch: Batch, number: int) -> float:
        truth, target = cells.truth(batch), made.evolutions[number].target
        own = [k for k, s in enumerate(batch.stimuli) if s.id.startswith(f"p0-t{number}-")]
        return float(np.mean([target.sign * target.value(truth[k], UNITS) for k in own]))

    for number in range(4):
        first, last = mean(batches[0], number), mean(batches[-1], number)
        assert last > first + 1.0, made.evolutions[number].target.title
    report = made.report()
    assert report["u0: mean"] > 0
    assert report["mean"] == pytest.approx(np.mean([report[f"{e.target.title}: mean"] for e in made.evolutions]))


def test_what_one_target_does_changes_nothing_for_another() -> None:
    """The same unit alone and beside another: the same codes, because each has a stream of its own."""
    pair = run(evolving("units: [u0, u1], generations: 4, references: 4, correct_drift: false"), Cells())
    alone = run(evolving("units: [u0], generations: 4, references: 4, correct_drift: false"), Cells())
    for a, b in zip(pair, alone, strict=True):
        own = [s.spec.row for s in a.stimuli if isinstance(s.spec, LatentImage) and s.id.startswith("p0-t0-")]
        rows = [s.spec.row for s in b.stimuli if isinstance(s.spec, LatentImage)]
        assert np.array_equal(a.latents[own], b.latents[rows])


def test_sizes_take_turns_and_each_has_frames_of_its_own_size() -> None:
    made = evolving("unit: u0, sizes_deg: [3, 6], generations: 3, references: 2")
    rng = np.random.default_rng(0)
    batches, tail = [], list[Told]()
    while made.finished() is None:
        batch = finish(made)
        rows = [
            Told(len(batches), k, s.role, batch.stimuli[s.stimulus].id, rng.uniform(0, 9, 4))
            for k, s in enumerate(batch.plan)
        ]
        made.tell([*tail, *rows[: batch.tail_from]])
        tail = rows[batch.tail_from :]
        batches.append(batch)
    assert [b.place.size_deg for b in batches if b.place is not None] == pytest.approx([3, 6, 3, 6, 3, 6])
    assert [b.generation for b in batches] == [0, 0, 1, 1, 2, 2]
    assert batches[1].frames.shape[1] > 1.8 * batches[0].frames.shape[1]
    assert {s.id[:5] for s in batches[0].stimuli if isinstance(s.spec, LatentImage)} == {"p0-t0"}
    names = [{s.id for s in b.stimuli if isinstance(s.spec, BankImage)} for b in batches[:2]]
    assert not names[0] & names[1]  # at another size it is another image
    assert [e.target.title for e in made.evolutions] == ["u0 at 3 deg", "u0 at 6 deg"]


@pytest.mark.parametrize("where", ["told", "partly told", "asked"])
def test_killed_and_restored_within_a_generation_it_goes_on_bit_for_bit(where: str) -> None:
    phase = "targets: [{unit: u0}, {unit: u1, suppress: true}], generations: 6"
    never, cells = evolving(phase), Cells(noise=True)
    tail: list[Told] = []
    for k in range(3):
        batch = finish(never)
        rows = cells.told(batch, k, frozenset({2, 9}))
        never.tell([*tail, *rows[: batch.tail_from]])
        tail = rows[batch.tail_from :]
    batch = finish(never)
    rows = cells.told(batch, 3)
    if where != "asked":
        never.tell([*tail, *rows[: batch.tail_from if where == "told" else 7]])
    again = evolving(phase)
    again.restore(never.state())
    assert state_hash(again.state()) == state_hash(never.state())
    for made in (never, again):
        made.tell([*tail, *rows[: batch.tail_from]])
    a, b = finish(never), finish(again)
    assert (a.stimuli, a.plan) == (b.stimuli, b.plan)
    assert np.array_equal(a.frames, b.frames)
    assert never.report() == again.report()


# --- references and drift ---------------------------------------------------------------------------------------------


def measured(rates: list[list[float]]) -> tuple[Carried, ...]:
    images = tuple(
        Measured(Stimulus(id=f"natural-{k}", spec=BankImage(bank="natural", name=name)), np.array(r), np.full(4, 5))
        for k, (name, r) in enumerate(zip(NAMES, rates, strict=False))
    )
    return (Carried(0, "screen", references=images),)


NAMES = (
    "astronaut-whole", "astronaut-face", "astronaut-suit", "astronaut-helmet", "camera-whole", "camera-head",
    "coffee-cup", "coffee-left", "coins-rows", "brick-wall",
)  # fmt: skip


def test_references_span_the_measured_range_from_the_weakest_to_the_best() -> None:
    carried = measured([[float(k), 9.0 - k, 5.0, 5.0] for k in range(10)])
    shown = evolving("unit: u0, references: 4", carried).groups[0].references
    assert sorted(int(s.id.removeprefix("natural-")) for s in shown) == [0, 3, 6, 9]
    both = spanning([Target(unit="u0"), Target(unit="u1")], UNITS, carried[0].references, 4)
    assert {m.stimulus.id for m in both} >= {"natural-0", "natural-9"}
    assert len({m.stimulus.id for m in both}) == 4
    more = evolving("unit: u0, references: 12", carried).groups[0].references
    assert len({s.id for s in more}) == 12  # unmeasured pictures fill up
    assert len({s.spec for s in more}) == 12


def test_without_measurements_fifteen_per_cent_are_references_and_six_at_least() -> None:
    for phase, least in (("unit: u0", 6), ("units: [u0, u1, u2, u3]", 10)):
        batch = finish(evolving(phase))
        assert sum(s.role == "reference" for s in batch.plan) == least


def test_scores_are_corrected_for_a_falling_gain_and_both_are_said() -> None:
    made, cells = evolving("unit: u0, generations: 20, references: 10"), Cells()
    run(made, cells, gain_per_batch=0.95)
    assert cells.gain[0] < 0.4
    said = [s for s in made.scored() if s.source == "reference"]
    assert said
    ratio = np.array([s.corrected / s.raw for s in said])
    assert np.median(ratio) > 1.15  # towards the level of the whole run, as far as the evidence goes
    flat, still = evolving("unit: u0, generations: 20, references: 10"), Cells()
    run(flat, still)
    assert all(s.corrected == pytest.approx(s.raw, rel=0.05, abs=0.5) for s in flat.scored())


def test_each_candidate_s_raw_and_corrected_value_is_said_once() -> None:
    made, cells = evolving("units: [u0, u1], generations: 2"), Cells()
    batch = finish(made)
    rows = cells.told(batch, 0)
    made.tell(rows[: batch.tail_from])
    said = made.scored()
    assert {(s.proposal, s.slot) for s in said} == {(0, r.slot) for r in rows[: batch.tail_from] if r.role != "blank"}
    truth = {r.slot: r.rate_hz for r in rows}
    for s in said:
        rates = truth[s.slot]
        assert rates is not None
        assert s.raw == rates[UNITS.index(s.target)]
        assert (s.source, s.corrected) == ("candidate", s.raw)  # nothing is known of drift yet


# --- stop rules -------------------------------------------------------------------------------------------------------


def test_plateau_by_hand() -> None:
    flat = [(10.0 + (-1) ** k, 1.0, 2) for k in range(12)]
    rising = [(10.0 + 3 * k, 1.0, 2) for k in range(12)]
    assert plateau(flat, 6)
    assert not plateau(rising, 6)
    assert not plateau(flat[:11], 6)  # not enough yet
    stop = Stop(plateau_generations=6)
    assert stopped(stop, [flat, rising], 100, 10, 0.0) is None
    assert "plateau: re-shows of the last 6 generations" in str(stopped(stop, [flat, flat], 100, 10, 0.0))


def test_it_ends_at_a_plateau_when_nothing_can_be_gained() -> None:
    made = evolving("unit: u0, generations: 100, stop: {plateau_generations: 4}")
    rng, batches, tail = np.random.default_rng(0), 0, list[Told]()
    while made.finished() is None:
        batch = finish(made)
        rows = [
            Told(batches, k, s.role, batch.stimuli[s.stimulus].id, rng.normal(20, 3, 4))
            for k, s in enumerate(batch.plan)
        ]
        made.tell([*tail, *rows[: batch.tail_from]])
        tail, batches = rows[batch.tail_from :], batches + 1
        assert batches < 90
    assert "plateau" in str(made.finished())
    made.tell(tail)
    assert "plateau" in str(made.finished())  # a reason that was given stays


def test_it_ends_when_the_budget_is_used_up_or_the_animal_stopped_looking() -> None:
    made = evolving("unit: u0, generations: 100, stop: {presentations: 100}")
    batches = run(made, Cells())
    assert sum(len(b.plan) for b in batches) <= 100 < sum(len(b.plan) for b in batches) + len(batches[-1].plan)
    assert made.finished() == "the budget of 100 presentations is used up"
    made = evolving("unit: u0, generations: 100, stop: {unusable_share: 0.5, unusable_over: 20}")
    batch = finish(made)
    made.tell(Cells().told(batch, 0)[: batch.tail_from])
    assert made.finished() is None
    asleep = finish(made)
    made.tell(Cells().told(asleep, 1, frozenset(range(2, 40)))[: asleep.tail_from])
    assert "the animal stopped looking" in str(made.finished())


# --- what is left -----------------------------------------------------------------------------------------------------


def test_it_leaves_bets_starts_references_and_where_each_evolution_stood() -> None:
    made = evolving("units: [u0, u1], generations: 5, references: 6")
    cells = Cells()
    batches = run(made, cells)
    left = Carried(0, "evolve", **made.leaves())
    assert [t.title for t in left.targets] == ["u0", "u1"]
    of = [n for n in left.images if n.target == "u1" and n.source == "evolved"]
    assert of
    assert all(n.stimulus.id.startswith("p0-t1-") for n in of)
    assert [n.estimate for n in of] == sorted((n.estimate for n in of), reverse=True)
    shown = {s.id: b.frames[s.spec.row] for b in batches for s in b.stimuli if isinstance(s.spec, LatentImage)}
    for n in left.images:  # the frame that was shown, bit for bit
        assert np.array_equal(n.frame, shown[n.stimulus.id])
    assert sum(n.source == "start" for n in left.images) == 6
    for m in left.references:
        assert m.presentations.tolist() == [5] * 4
    assert [e.target for e in left.ends] == ["u0", "u1"]
    assert left.ends[0].codes.shape == (12, made.generator.latent_size)
    again = Carried.restored(left.state())
    assert state_hash(again.state()) == state_hash(left.state())


@pytest.mark.parametrize("generations", [1, 3])
@pytest.mark.parametrize("optimiser", [f"{kind}, population: 8" for kind in ("xdream", "sphere_cma", "noise_aware")])
def test_the_bet_knows_the_last_generation_and_its_tail(generations: int, optimiser: str) -> None:
    """Nobody asks the optimiser for a further generation, and so nothing else would tell it of the last one."""
    text = BASE.format(phase=f"unit: u0, generations: {generations}, references: 6, blanks: 0, correct_drift: false")
    made = build_from_config(parse(text.replace("xdream, preset: plos2020, population: 12", optimiser)))(0, ())
    assert isinstance(made, Evolve)
    sums: dict[str, list[float]] = {}
    tail: list[Told] = []
    for number in range(generations):
        batch, rows = finish(made), []
        for k, slot in enumerate(batch.plan):
            name = batch.stimuli[slot.stimulus].id
            value = 10.0 if slot.role == "reference" else 20.0 * (number + 1) + k  # every generation beats the last
            rows.append(Told(number, k, slot.role, name, np.full(4, value)))
            if slot.role != "reference":
                sums.setdefault(name, []).append(value)
        made.tell([*tail, *rows[: batch.tail_from]])
        tail = rows[batch.tail_from :]
    before = state_hash(made.evolutions[0].optimiser.state())
    made.tell(tail)
    bets = [n for n in made.leaves()["images"] if n.source == "evolved"]
    assert bets[0].stimulus.id in {s.id for s in batch.stimuli}
    assert {n.stimulus.id: n.measurements for n in bets} == {n.stimulus.id: len(sums[n.stimulus.id]) for n in bets}
    if optimiser.startswith(("xdream", "sphere")):  # bets on the best means
        means = {name: float(np.mean(values)) for name, values in sums.items()}
        assert [n.stimulus.id for n in bets] == sorted(means, key=lambda name: -means[name])[: len(bets)]
    assert state_hash(made.evolutions[0].optimiser.state()) == before  # asking what it bets on changes nothing


def test_references_that_a_screen_showed_at_the_same_place_are_the_same_images() -> None:
    """So that they are pooled, and watched units are compared with their screening; elsewhere they are others."""
    there = "place: {center_deg: [1, 1], size_deg: 4}"
    screen = f"phases: [{{agent: screen, count: 8, repeats: 4, {there}}}, "
    shown: dict[str, set[str]] = {}
    for where in (there, "blanks: 2"):
        text = BASE.format(phase=f"unit: u0, references: 8, {where}").replace("phases: [", screen)
        make = build_from_config(parse(text))
        screening = make(0)
        batch = finish(screening)  # type: ignore[arg-type]
        rows = [Told(0, k, s.role, batch.stimuli[s.stimulus].id, np.full(4, 9.0)) for k, s in enumerate(batch.plan)]
        screening.tell(rows)
        left = Present.leaves(screening)  # type: ignore[arg-type]
        made = make(1, (Carried(0, "screen", references=left["references"]),))
        assert isinstance(made, Evolve)
        shown[where] = {r.id for r in made.groups[0].references}
        assert {m.place for m in left["references"]} == {batch.place}
        assert batch.place is not None
    screened = {s.id for s in batch.stimuli} - {"blank"}
    assert shown[there] == screened
    assert shown["blanks: 2"] == {f"{name}@usual" for name in screened}


@pytest.mark.parametrize(
    ("optimiser", "message"),
    [
        ("noise_aware, population: 6, remeasured: 20", "population 6 with 20 measured again; need 4 new ones"),
        ("noise_aware, least_angle_deg: 60", "need 0 < least <= angle < 90"),
        ("sphere_cma, start: as_published", "an optimiser that starts as published takes no start codes"),
    ],
)
def test_an_optimiser_that_could_not_begin_is_refused_with_the_config(optimiser: str, message: str) -> None:
    """And not when its phase begins, in the session."""
    text = BASE.format(phase="unit: u0, start: {type: natural}")
    with pytest.raises(ConfigError, match=rf"phases\.0.*{message}"):
        parse(text.replace("xdream, preset: plos2020, population: 12", optimiser))
