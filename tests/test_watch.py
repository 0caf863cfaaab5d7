"""Proposed units are watched: what changed is said, what did not is not, and a picture elsewhere is another image."""

from dataclasses import replace

import numpy as np
import pytest

from models.agents.carried import Carried, Measured, Screened
from models.agents.types import F64, Role, Told
from models.agents.watch import GONE, OTHER, STRONGER, WEAKER, Watch
from stimuli.spec import BankImage, Stimulus

WINDOW_S, BLANK_HZ, SCREENED, REPEATS, SHOWN = 0.1, 5.0, 36, 10, 6


class Unit:
    """Poisson spikes to images; the second of two scored units, the first one is not proposed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.true_hz = BLANK_HZ + self.rng.gamma(1.0, 15.0, SCREENED)
        drawn = self.draw(np.repeat(self.true_hz[:, None], REPEATS, axis=1))
        self.measured = drawn.mean(axis=1)
        noise = drawn.var(axis=1, ddof=1).mean() / REPEATS
        self.reliability = max(0.0, 1 - noise / self.measured.var())

    def draw(self, hz: F64) -> F64:
        return self.rng.poisson(np.maximum(hz, 0) * WINDOW_S) / WINDOW_S

    def carried(self) -> Carried:
        two = [np.array([np.nan, rate]) for rate in self.measured]
        references = tuple(
            Measured(Stimulus(id=f"n{k}", spec=BankImage(bank="natural", name="x")), rate, np.full(2, REPEATS))
            for k, rate in enumerate(two)
        )
        screened = Screened(("other", "good"), np.array([np.nan, self.reliability]), np.array([0.0, BLANK_HZ]))
        return Carried(1, "screen", units=("good",), references=references, screened=screened)

    def span(self) -> list[int]:
        """As evolve chooses references: at equal steps of rank, the best one by its measured mean among them."""
        return [int(k) for k in np.argsort(self.measured)[np.linspace(0, SCREENED - 1, SHOWN).round().astype(int)]]


def generation(watch: Watch, unit: Unit, hz: F64, suffix: str = "", blank_hz: float = BLANK_HZ) -> list[str]:
    """Show each reference once, and two blanks."""
    rows: list[tuple[Role, str, float]] = [("reference", f"n{k}{suffix}", float(hz[k])) for k in unit.span()]
    rows += [("blank", "blank", blank_hz)] * 2 + [("candidate", "c1", 90.0)]
    rates = [np.array([np.nan, unit.draw(np.array(hz))]) for _, _, hz in rows]
    drawn = [Told(0, k, role, name, rates[k]) for k, (role, name, _) in enumerate(rows)]
    watch.take([*drawn, Told(0, 20, "reference", "n0", None)])
    return watch.news()


def test_a_unit_that_stays_what_it_was_is_not_called_changed() -> None:
    """Although its best reference was chosen for its luck, too."""
    gains = []
    for seed in range(30):
        unit = Unit(seed)
        watch = Watch([unit.carried()])
        for _ in range(20):
            assert generation(watch, unit, unit.true_hz) == []
        now = watch.now()["good"]
        gains.append((now.gain - 1) / now.gain_se)
        assert watch.report()["changed"] == 0
    assert abs(np.mean(gains)) < 0.5  # no bias to speak of
    assert 0.6 < np.std(gains) < 1.5  # and the errors are about right


@pytest.mark.parametrize(
    ("change", "words"),
    [("dead", GONE), ("weak", WEAKER), ("strong", STRONGER), ("turned", OTHER), ("spontaneous", GONE)],
)
def test_what_changed_is_said_once_and_soon(change: str, words: str) -> None:
    within = []
    for seed in range(8):
        unit = Unit(seed)
        watch = Watch([unit.carried()])
        for _ in range(6):
            generation(watch, unit, unit.true_hz)
        driven = unit.true_hz - BLANK_HZ
        turned = unit.true_hz.copy()
        turned[unit.span()] = unit.true_hz[unit.span()][::-1]
        after, blank = {
            "dead": (0 * driven, 0.0),
            "weak": (BLANK_HZ + 0.33 * driven, BLANK_HZ),
            "strong": (BLANK_HZ + 5.0 * driven, BLANK_HZ),
            "turned": (turned, BLANK_HZ),
            "spontaneous": (BLANK_HZ + 0 * driven, BLANK_HZ),
        }[change]
        said: list[str] = []
        for number in range(30):
            if news := generation(watch, unit, after, blank_hz=blank):
                said += news
                within.append(number)
        assert said, (seed, watch.now())
        assert any(words in one for one in said), (seed, said)
        assert len(said) <= 2  # on its way to nothing it is weaker first
    assert np.median(within) <= 12


def test_another_place_is_compared_with_its_own_beginning() -> None:
    unit = Unit(1)
    watch = Watch([unit.carried()])
    elsewhere = BLANK_HZ + 0.4 * (unit.true_hz - BLANK_HZ)  # would be too little at the screened place
    for _ in range(30):
        assert generation(watch, unit, elsewhere, "@3_0_5deg") == []
    now = watch.now()["good"]
    assert now.gain == pytest.approx(1, abs=3 * now.gain_se)
    assert now.gain_se < 0.4
    said = [news for _ in range(30) for news in generation(watch, unit, 0 * elsewhere, "@3_0_5deg", 0.0)]
    assert GONE in said[-1]


def test_it_comes_back_and_that_is_said_too() -> None:
    unit = Unit(2)
    watch = Watch([unit.carried()])
    for _ in range(15):
        generation(watch, unit, 0 * unit.true_hz, blank_hz=0.0)
    said = [news for _ in range(20) for news in generation(watch, unit, unit.true_hz)]
    assert "answers about as it did again" in said[-1]
    assert watch.report()["changed"] == 0


def test_a_restored_watch_says_the_same() -> None:
    unit = Unit(3)
    left = (Carried(0, "map"), unit.carried())
    one = Watch(left)
    for number in range(14):
        generation(one, unit, unit.true_hz * (number < 7), "" if number % 2 else "@1_1_4deg")
    other = Watch(left)
    other.restore(one.state())
    state = unit.rng.bit_generator.state
    for watch in (one, other):
        unit.rng.bit_generator.state = state
        generation(watch, unit, 0 * unit.true_hz)
    assert one.report() == other.report() != {}
    assert one.following((*left, Carried(2, "evolve"))) is one
    again = one.following((*left, replace(unit.carried(), phase=3)))
    assert again is not one
    assert again.now() == {}


def test_without_a_screen_nothing_is_watched() -> None:
    watch = Watch([Carried(0, "map")])
    watch.take([Told(0, 0, "reference", "n1", np.array([1.0, 2.0]))])
    assert (watch.report(), watch.news()) == ({}, [])
    assert watch.state()["blanks"].shape == (0, 0)


def test_rates_that_were_half_luck_are_expected_half_as_far_from_their_mean() -> None:
    """By hand: reliability 0.5, so that of 10 and 30 spikes/s 15 and 25 are to come, and 15 and 25 come."""
    screened_hz, now_hz = [10.0, 30.0] * 3, [15.0, 25.0] * 3
    references = tuple(
        Measured(Stimulus(id=f"n{k}", spec=BankImage(bank="natural", name="x")), np.array([hz]), np.array([10_000]))
        for k, hz in enumerate(screened_hz)
    )
    screened = Screened(("good",), np.array([0.5]), np.array([2.0]))
    watch = Watch([Carried(0, "screen", units=("good",), references=references, screened=screened)])
    for repeat in range(8):
        rows = [Told(0, k, "reference", f"n{k}", np.array([hz + (-1) ** repeat])) for k, hz in enumerate(now_hz)]
        watch.take([*rows, Told(0, 9, "blank", "blank", np.array([2.0]))])
    now = watch.now()["good"]
    assert (now.gain, now.level, now.tuning) == pytest.approx((1.0, 1.0, 1.0))
