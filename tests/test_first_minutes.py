"""The first ten minutes on paper: receptive fields found, good units proposed, useless ones rejected with reasons."""

import copy

import numpy as np
import pytest

from models.agents.builder import build_from_config
from models.agents.carried import Carried, fields_of, place_for
from models.agents.evolve import Evolve
from models.agents.map import Conclusion, Map
from models.agents.screen import OUTSIDE, Screen, Timing
from models.agents.types import F64, Told
from models.server import batch_hash, state_hash
from rig.config.phases import MapPhase, ScreenPhase
from rig.config.reading import parse
from rig.config.scoring import Psth
from stimuli.bank import natural_bank
from stimuli.limits import check_frame
from stimuli.render import render
from stimuli.spec import BankImage, Patches, Place, Stimulus
from tests.virtual_units import BACKGROUND, Subject, rect_of, run, scattered

BANKS = {"natural": natural_bank()}
MAPPED = Place(center_deg=(0.0, 0.0), size_deg=16.0)
BEGIN_S, END_S = 0.05, 0.15
USED_S = (0.05, 0.15)


def refusal(place: Place) -> str:
    try:
        rect_of(place)
    except ValueError as error:
        return str(error)
    return ""


def mapper(units: tuple[str, ...], seed: int = 1, **settings: object) -> Map:
    phase = MapPhase.model_validate(settings)
    shape = rect_of(MAPPED)[0].shape
    return Map(phase, 0, units, MAPPED, BACKGROUND, shape, refusal, np.random.default_rng(seed))


def screener(
    units: tuple[str, ...], place: Place, fields: dict[str, Place] | None, refused: str = "", **settings: object
) -> Screen:
    phase = ScreenPhase.model_validate(settings)
    names = BANKS["natural"].names[: phase.count]
    stimuli = tuple(Stimulus(id=f"natural-{n}", spec=BankImage(bank="natural", name=n)) for n in names)
    rng = np.random.default_rng(3)
    timing = Timing(Psth(), USED_S, lambda _: refused)
    return Screen(phase, 1, stimuli, units, rect_of(place)[0].shape, rng, place, place, fields, timing)


def course(rates: F64) -> F64:
    """Expected spikes (unit, bin): 5 spikes/s, and the rates from 50 to 150 ms after the onset."""
    psth = Psth()
    begins = np.round(psth.window_s[0] + psth.bin_s * np.arange(psth.bins), 4)
    inside = (begins >= BEGIN_S) & (begins < END_S)
    return np.where(inside, rates[:, None], 5.0) * psth.bin_s


class Session:
    """Both phases, as `configs/first_ten_minutes.yaml` has them."""

    def __init__(self) -> None:
        self.subject = Subject(scattered(8, 4.0, np.random.default_rng(1)), BANKS, np.random.default_rng(7))
        self.map = mapper(self.subject.units)
        number = run(self.map, self.subject)
        self.map_s = self.subject.seconds
        left = self.map.leaves()
        place = left["place"]
        assert place is not None
        self.screen = screener(self.subject.units, place, left["fields"])
        run(self.screen, self.subject, number, course)


@pytest.fixture(scope="module")
def session() -> Session:
    return Session()


def test_receptive_fields_are_found_within_half_a_degree(session: Session) -> None:
    report = session.map.report()
    for cell, unit in zip(session.subject.cells, session.subject.units, strict=False):
        assert report[f"{unit}: field"] == 1
        off = np.hypot(report[f"{unit}: right_deg"] - cell.azimuth_deg, report[f"{unit}: up_deg"] - cell.elevation_deg)
        assert off < 0.5, unit
        assert 0.5 * cell.sigma_deg < report[f"{unit}: sigma_deg"] < 2 * cell.sigma_deg
    z = [
        (report[f"{u}: right_deg"] - c.azimuth_deg) / report[f"{u}: right_sd_deg"]
        for c, u in zip(session.subject.cells, session.subject.units, strict=False)
    ]
    assert np.sqrt(np.mean(np.square(z))) < 2  # what is said not to be known is about what is not known


def test_units_without_a_field_get_none(session: Session) -> None:
    report = session.map.report()
    for unit in session.subject.useless:
        assert report[f"{unit}: field"] == 0, unit
    assert report["fields"] == 8
    assert "8 of 11 units have a receptive field" in (session.map.finished() or "")


def test_both_phases_take_less_than_ten_minutes(session: Session) -> None:
    assert session.map_s < session.subject.seconds < 600


def test_later_images_lie_around_the_fields(session: Session) -> None:
    left = session.map.leaves()
    place = left["place"]
    assert place is not None
    for cell in session.subject.cells:
        for value, center in zip((cell.azimuth_deg, cell.elevation_deg), place.center_deg, strict=True):
            assert abs(value - center) < place.size_deg / 2
    carried = (Carried(0, "map", **left),)
    assert fields_of(carried) == left["fields"]
    own = place_for(carried, "E06#0")
    assert own is not None
    assert own.size_deg < place.size_deg
    assert Carried.restored(carried[0].state()) == carried[0]


def test_good_units_are_proposed_and_useless_ones_rejected_with_reasons(session: Session) -> None:
    judgement = session.screen.judged()
    proposed = judgement.proposed
    judged = dict(zip(session.subject.units, zip(judgement.found, judgement.reasons, strict=True), strict=True))
    assert len(proposed) >= 6
    assert not set(proposed) & set(session.subject.useless)
    assert "does not respond" in judged["dead"][1]
    assert judged["untuned"][1][0] == "answers all images alike"
    assert "fires too little" in judged["rare"][1]
    for unit in session.subject.useless:
        assert "no receptive field" in judged[unit][1]
    reliabilities = [judged[u][0].reliability for u in proposed]
    assert reliabilities == sorted(reliabilities, reverse=True)
    assert session.screen.leaves()["units"] == proposed
    report = session.screen.report()
    assert report[f"{proposed[0]}: rank"] == 1
    assert report["dead: rejected, does not respond"] == 1
    assert all(np.isfinite(value) for value in report.values())


def test_the_window_found_is_that_of_the_answers(session: Session) -> None:
    window = session.screen.leaves()["window_s"]
    assert window is not None
    assert window[0] == pytest.approx(BEGIN_S, abs=0.011)
    assert window[1] == pytest.approx(END_S, abs=0.021)


def test_a_field_outside_the_image_is_a_reason(session: Session) -> None:
    fields = session.map.leaves()["fields"]
    best = session.screen.judged().proposed[0]
    other = copy.copy(session.screen)
    other.fields = fields | {best: Place(center_deg=(15.0, 0.0), size_deg=3.0)}
    other._judged = None
    reasons = dict(zip(other.units, other.judged().reasons, strict=True))[best]
    assert reasons == (OUTSIDE,)


def some_passes(agent: Map | Screen, subject: Subject, passes: int, first: int = 0) -> list[Told]:
    late: list[Told] = []
    for number in range(first, first + passes):
        work = agent.ask()
        while not work.step():
            pass
        batch = work.result()
        told = subject.answer(batch, number, course)
        agent.tell([*late, *told[: batch.tail_from]])
        late = told[batch.tail_from :]
    return late


@pytest.mark.parametrize("which", ["map", "screen"])
def test_a_restored_agent_goes_on_as_if_nothing_had_happened(which: str) -> None:
    def fresh() -> Map | Screen:
        units = ("E01#0", "E02#0", *Subject.useless)
        if which == "map":
            return mapper(units, presentations=300, squares_per_side=6, squares_per_frame=6)
        return screener(units, MAPPED, None, count=8, repeats=6)

    cells = scattered(2, 3.0, np.random.default_rng(0))
    one, subject = fresh(), Subject(cells, BANKS, np.random.default_rng(1))
    late = some_passes(one, subject, 4)
    other = fresh()
    other.restore(copy.deepcopy(one.state()))
    assert state_hash(other.state()) == state_hash(one.state())
    one.tell(late)
    other.tell(late)
    while one.finished() is None:
        batches = []
        for agent in (one, other):
            work = agent.ask()
            while not work.step():
                pass
            batches.append(work.result())
        assert batch_hash(batches[0]) == batch_hash(batches[1])
        told = subject.answer(batches[0], late[0].proposal + 1, course)
        late = told
        one.tell(told)
        other.tell(told)
    assert one.report() == other.report()
    assert one.leaves().keys() == other.leaves().keys()
    assert state_hash(other.state()) == state_hash(one.state())


def test_missing_responses_and_units_cost_the_others_nothing() -> None:
    cells = scattered(2, 2.0, np.random.default_rng(4))
    subject = Subject(cells, BANKS, np.random.default_rng(2))
    agent = mapper(subject.units, presentations=400, squares_per_side=8, squares_per_frame=8)
    rng, number, late = np.random.default_rng(0), 0, list[Told]()
    while agent.finished() is None:
        work = agent.ask()
        while not work.step():
            pass
        batch = work.result()
        told = []
        for row in subject.answer(batch, number):
            rates = np.array(row.rate_hz)
            rates[2] = np.nan  # never seen
            if number > 3:
                rates[0] = np.nan  # gone
            gone = rng.random() < 0.1
            told.append(Told(row.proposal, row.slot, row.role, row.stimulus_id, None if gone else rates))
        agent.tell([*late, *told[: batch.tail_from]])
        late, number = told[batch.tail_from :], number + 1
    agent.tell(late)
    report = agent.report()
    assert report["missing"] > 20
    assert report["E02#0: field"] == 1
    assert report["dead: field"] == 0
    assert "dead: p" not in report  # nothing is known of it
    assert agent.finished() is not None


def test_a_field_whose_place_is_not_known_well_is_none_and_that_is_said() -> None:
    """With a quarter of the frames: what counts as a field lies where it is said to lie, about as well as is said."""
    cells = scattered(8, 4.0, np.random.default_rng(11))
    subject = Subject(cells, BANKS, np.random.default_rng(12))
    agent = mapper(subject.units, presentations=400, widest_interval=0.12)
    run(agent, subject)
    report, left = agent.report(), agent.leaves()
    unsure = [u for u in subject.units if report.get(f"{u}: unsure")]
    assert unsure
    for unit in unsure:
        assert report[f"{unit}: interval"] > 0.12
        assert report[f"{unit}: field"] == 0
        assert unit not in left["fields"]
    assert f"{len(unsure)} more have one whose place is not known well enough" in (agent.finished() or "")
    inside, there = 0, [(c, u) for c, u in zip(cells, subject.units, strict=False) if report[f"{u}: field"]]
    for cell, unit in there:
        off = report[f"{unit}: right_deg"] - cell.azimuth_deg, report[f"{unit}: up_deg"] - cell.elevation_deg
        sd = report[f"{unit}: right_sd_deg"], report[f"{unit}: up_sd_deg"]
        assert all(abs(d) < 4 * s for d, s in zip(off, sd, strict=True)), unit
        inside += sum(abs(d) < 1.96 * s for d, s in zip(off, sd, strict=True))
    assert inside >= 0.75 * 2 * len(there) > 0


def test_the_fit_is_a_work_of_its_own_in_short_steps() -> None:
    subject = Subject(scattered(2, 3.0, np.random.default_rng(0)), BANKS, np.random.default_rng(1))
    agent = mapper(subject.units, presentations=100, squares_per_side=6, squares_per_frame=6, closer=False)
    some_passes(agent, subject, 2)
    shown = 0
    while not isinstance(work := agent.ask(), Conclusion):
        while not work.step():
            pass
        batch = work.result()
        shown += len(batch.plan)
        agent.tell(subject.answer(batch, 2 + batch.generation))
    assert agent.finished() is None
    assert "fields" not in agent.report()
    other = mapper(subject.units, presentations=100, squares_per_side=6, squares_per_frame=6, closer=False)
    other.restore(copy.deepcopy(agent.state()))  # while the fit goes on
    with pytest.raises(RuntimeError, match="not fitted yet"):
        work.peek()
    while not work.step():
        pass
    assert work.steps > 4 * len(subject.units)
    assert work.peek().plan == ()
    assert agent.finished() is None  # before the result is taken
    work.result()
    assert "have a receptive field" in (agent.finished() or "")
    again = other.ask()
    while not again.step():
        pass
    again.result()
    assert other.report() == agent.report()
    assert state_hash(other.state()) == state_hash(agent.state())


def test_every_frame_keeps_mean_level_and_contrast_and_is_shown_once() -> None:
    subject = Subject(scattered(1, 3.0, np.random.default_rng(0)), BANKS, np.random.default_rng(1))
    agent = mapper(subject.units, presentations=200)
    seen: list[str] = []
    angles = rect_of(MAPPED)
    for number in range(3):
        work = agent.ask()
        while not work.step():
            pass
        batch = work.result()
        for stimulus in batch.stimuli:
            assert isinstance(stimulus.spec, Patches)
            frame = render(stimulus.spec, angles, BACKGROUND, {})
            check_frame(frame, (20.0, 235.0), 0.75)
            assert abs(float(frame.mean()) - BACKGROUND) < 3  # squares are of whole pixels
            seen.append(stimulus.spec.model_dump_json())
        agent.tell(subject.answer(batch, number))
    assert len(set(seen)) == len(seen)


def test_without_any_field_there_is_no_place_and_it_is_said() -> None:
    subject = Subject(scattered(1, 3.0, np.random.default_rng(0)), BANKS, np.random.default_rng(1))
    agent = mapper(("dead", "rare"), presentations=120, squares_per_side=6, squares_per_frame=6)
    rng, number = np.random.default_rng(3), 0
    while agent.finished() is None:
        work = agent.ask()
        while not work.step():
            pass
        batch = work.result()
        rows = [(k, slot, batch.stimuli[slot.stimulus].id) for k, slot in enumerate(batch.plan)]
        agent.tell([Told(number, k, s.role, name, rng.poisson([0.6, 0.01]) / 0.1) for k, s, name in rows])
        number += 1
    assert subject.units
    assert agent.leaves()["place"] is None
    assert "0 of 2 units have a receptive field; no field to place images by" in (agent.finished() or "")


CONFIG = """
sources: [{type: openephys}]
responses: {units: ["E01#0", "E02#0", "E03#0"]}
phases:
- {agent: map, place: {center_deg: [0, 0], size_deg: 16}}
- {agent: screen, place: mapped}
- {agent: evolve, units: proposed, most_units: 1, place: mapped, generations: 2}
"""


def test_later_phases_take_units_and_places_from_what_was_found() -> None:
    build = build_from_config(parse(CONFIG))
    assert isinstance(build(0), Map)
    with pytest.raises(ValueError, match=r"phases.1.place: mapped, but no phase before it found a place"):
        build(1)
    all_of_them, own = Place(center_deg=(1.0, 1.0), size_deg=9.0), Place(center_deg=(2.0, 0.0), size_deg=5.0)
    fields = {"E02#0": Place(center_deg=(2.0, 0.0), size_deg=4.0)}
    mapped = Carried(0, "map", place=all_of_them, fields=fields, places={"E02#0": own})
    screen = build(1, (mapped,))
    assert isinstance(screen, Screen)
    assert (screen.image, screen.fields) == (all_of_them, fields)
    evolve = build(2, (mapped, Carried(1, "screen", units=("E02#0", "E01#0"))))
    assert isinstance(evolve, Evolve)
    (group,) = evolve.groups
    assert group.place == own  # around its own field, not all
    assert [e.target.unit for e in group.evolutions] == ["E02#0"]
