"""Thresholds of the screen by hand, and what is done to a place that does not fit on the screen."""

import numpy as np
import pytest

from models.agents.placing import around
from models.agents.screen import SILENT, UNRELIABLE, UNTUNED, Screen
from models.agents.selection import measure
from models.agents.types import F64, Told
from stimuli.spec import Place
from tests.test_first_minutes import screener

IMAGES, REPEATS, BLANKS = 6, 6, 4
HERE = Place(center_deg=(0.0, 0.0), size_deg=8.0)


def told(agent: Screen, image_hz: F64, blank_hz: F64) -> None:
    """Show everything; rates to images (image, repeat) and to blanks (presentation,) of the one unit."""
    shown, blanks = np.zeros(IMAGES, np.int64), 0
    for number in range(REPEATS):
        work = agent.ask()
        while not work.step():
            pass
        batch, rows = work.result(), []
        for k, slot in enumerate(batch.plan):
            if slot.role == "blank":
                rate, blanks = blank_hz[blanks], blanks + 1
            else:
                rate = image_hz[slot.stimulus, shown[slot.stimulus]]
                shown[slot.stimulus] += 1
            rows.append(Told(number, k, slot.role, batch.stimuli[slot.stimulus].id, np.array([rate])))
        agent.tell(rows)


def reasons(image_hz: F64, blank_hz: F64, **settings: float) -> tuple[str, ...]:
    agent = screener(("u0",), HERE, None, count=IMAGES, repeats=REPEATS, blanks=BLANKS, least_driven_hz=0, **settings)
    told(agent, image_hz, blank_hz)
    return agent.judged().reasons[0]


def test_a_unit_responds_at_half_the_chance_of_each_of_the_two_looks() -> None:
    """Blanks against images and images against each other: two chances to be a false discovery."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        image_hz, blank_hz = rng.poisson(13.0, (IMAGES, REPEATS)) * 1.0, rng.poisson(10.0, REPEATS * BLANKS) * 1.0
        found = measure(image_hz, blank_hz, np.random.default_rng(1))
        if 0.005 < found.p_blank < 0.05 and found.p_tuned > 0.2:
            assert SILENT not in reasons(image_hz, blank_hz, chance=2.2 * found.p_blank)
            assert SILENT in reasons(image_hz, blank_hz, chance=1.5 * found.p_blank)
            return
    pytest.fail("no unit answered images weakly, and all alike")


def test_a_reliability_that_is_chance_is_not_enough_whatever_the_threshold() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        image_hz, blank_hz = rng.poisson(12.0, (IMAGES, REPEATS)) * 1.0, rng.poisson(3.0, REPEATS * BLANKS) * 1.0
        found = measure(image_hz, blank_hz, np.random.default_rng(1))  # as the judgement draws: its phase's index
        if found.reliability > 0.3 and found.p_tuned > 0.02:
            assert reasons(image_hz, blank_hz, least_reliability=0.1) == (UNTUNED,)
            return
    pytest.fail("no noise looked reliable by chance")


def test_a_cell_with_one_favourite_is_good() -> None:
    """Resampled images leave its favourite out every third time: the interval reaches down to nothing."""
    rng = np.random.default_rng(0)
    expected = np.full((IMAGES, REPEATS), 3.0)
    expected[2] = 40.0
    image_hz, blank_hz = rng.poisson(expected) * 1.0, rng.poisson(3.0, REPEATS * BLANKS) * 1.0
    found = measure(image_hz, blank_hz, np.random.default_rng(1))
    assert found.reliability_low < 0.5 < found.reliability
    assert reasons(image_hz, blank_hz) == ()
    assert reasons(image_hz, blank_hz, least_reliability=0.999) == (UNRELIABLE,)


def test_a_place_that_does_not_fit_is_made_smaller_before_it_is_moved() -> None:
    field = Place(center_deg=(5.0, 0.0), size_deg=2.0)

    def fits(place: Place) -> str:
        return "" if place.center_deg[0] + place.size_deg / 2 <= 6.5 else "beyond the right edge"

    found = around([field], 2.0, fits)
    assert found.place == Place(center_deg=(5.0, 0.0), size_deg=3.0)
    assert (found.shrunk_deg, found.moved_deg) == (1.0, 0.0)
    off = around([Place(center_deg=(6.0, 0.0), size_deg=2.0)], 2.0, fits)  # too far out even for the field itself
    assert off.place is not None
    assert off.place.size_deg == 2.0
    assert off.place.center_deg[0] == pytest.approx(5.5)
