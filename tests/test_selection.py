"""Measures by which units are chosen, against data whose truth is known."""

import numpy as np
import pytest

from models.agents.placing import around, region_of
from models.agents.receptive_field import ShownSquare, fit
from models.agents.selection import false_discoveries, measure, spearman_brown
from models.agents.timecourse import TimeCourses
from stimuli.spec import Place


def counts(tuning: np.ndarray, repeats: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(tuning[:, None], 2.0, (len(tuning), repeats))


def test_reliability_is_that_of_the_mean_over_all_repeats() -> None:
    """Signal variance 1, noise variance 4, 8 repeats: 1 / (1 + 4 / 8)."""
    rng = np.random.default_rng(0)
    found = [measure(counts(rng.normal(size=60), 8, rng), rng.normal(size=30), rng) for _ in range(20)]
    assert np.mean([f.reliability for f in found]) == pytest.approx(1 / 1.5, abs=0.05)
    covered = [f.reliability_low < 1 / 1.5 < f.reliability_high for f in found]
    assert np.mean(covered) >= 0.75  # a percentile bootstrap of 60 images is a little narrow
    assert spearman_brown(0.5) == pytest.approx(2 / 3)


def test_units_without_tuning_are_rarely_found() -> None:
    rng = np.random.default_rng(1)
    found = [measure(rng.poisson(0.6, (20, 10)) / 0.1, rng.poisson(0.6, 40) / 0.1, rng) for _ in range(60)]
    for name in ("p_blank", "p_tuned"):
        chances = np.array([getattr(f, name) for f in found])
        assert np.mean(chances < 0.05) <= 0.15
        assert 0.3 < np.median(chances) < 0.7
    assert abs(np.mean([f.driven_hz for f in found])) < 0.5  # the top images of one half, measured in the other
    assert sum(false_discoveries([f.p_tuned for f in found], 0.01)) == 0


def test_cells_that_are_mostly_silent_are_found_to_be_tuned() -> None:
    """Five images of 36 drive the cell, one spike each: ranks find such a cell half of the time."""
    rng = np.random.default_rng(2)
    expected = np.full(36, 0.06)
    expected[:5] = 1.0
    drift = np.linspace(0.5, 1.5, 10)  # the same for all images of a repeat

    def chance(mean: np.ndarray) -> float:
        rates = rng.poisson(mean[:, None] * drift) / 0.1 + rng.normal(0, 1, (36, 10))  # less a noisy baseline
        rates[3, 2] = np.nan
        return measure(rates, np.zeros(8), rng).p_tuned

    assert sum(chance(expected) < 0.001 for _ in range(10)) >= 9
    flat = [chance(np.full(36, 0.2)) for _ in range(40)]
    assert 0.3 < np.median(flat) < 0.7
    assert min(flat) > 0.0005


def test_sparseness_has_its_ends() -> None:
    rng = np.random.default_rng(0)
    one = np.zeros((20, 4))
    one[3] = 50.0
    assert measure(one, np.zeros(8), rng).sparseness == pytest.approx(1)
    assert measure(np.full((20, 4), 30.0), np.zeros(8), rng).sparseness == pytest.approx(0)
    assert measure(one, np.zeros(8), rng).best == 3


def test_too_little_data_gives_nan_and_no_error() -> None:
    rng = np.random.default_rng(0)
    found = measure(np.full((4, 3), np.nan), np.array([]), rng)
    assert np.isnan([found.p_blank, found.p_tuned, found.reliability, found.driven_hz, found.sparseness]).all()
    assert found.presentations == 0
    assert found.best == -1
    silent = measure(np.zeros((5, 4)), np.zeros(4), rng)
    assert silent.p_tuned == silent.p_blank == 1
    assert silent.reliability == 0


def test_false_discoveries_follow_benjamini_and_hochberg() -> None:
    p = [0.01, 0.04, 0.03, 0.005, 0.55, float("nan")]  # of 5 tests at 0.05: up to 0.04 <= 4/5 * 0.05
    assert false_discoveries(p, 0.05) == [True, True, True, True, False, False]
    assert false_discoveries([0.02, 0.9], 0.02) == [False, False]
    assert false_discoveries([], 0.05) == []


def test_shuffles_find_no_field_where_there_is_none() -> None:
    rng = np.random.default_rng(5)
    at = [(float(x), float(y)) for x in range(-3, 4) for y in range(-3, 4)]
    shown, blocks = [], []
    for block in range(8):
        for _ in range(25):
            chosen = rng.choice(len(at), 6, replace=False)
            shown.append([ShownSquare(*at[k], 1.0, 1 if i < 3 else -1) for i, k in enumerate(chosen)])
            blocks.append(block)
    rates = rng.poisson(np.tile([0.05, 0.6, 3.0], 12), (len(shown), 36)) / 0.1  # rare spikes too
    found = fit(shown, np.array(blocks), rates, (0.0, 0.0), 7.0, np.random.default_rng(0))
    chances = np.array([f.p for f in found if f is not None])
    assert len(chances) == 36
    assert np.mean(chances < 0.05) <= 0.17
    assert chances.min() > 0.0005
    constant = fit(shown, np.array(blocks), np.ones((len(shown), 1)), (0.0, 0.0), 7.0, np.random.default_rng(0))
    assert constant == [None]


def test_a_latency_is_found_by_what_the_unit_prefers() -> None:
    rng = np.random.default_rng(2)
    images, units, bins = 12, 2, 25
    courses = TimeCourses(images, units, bins, -0.05, 0.01)
    prefers = rng.permutation(np.linspace(0, 60, images))
    for _ in range(10):
        for image in range(images):
            expected = np.full((units, bins), 10.0)
            expected[0, 12:20] = prefers[image]  # 70 to 150 ms; the second unit answers nothing
            drawn = rng.poisson(expected * 0.01).astype(float)
            courses.take(image, drawn[:, 10:20].sum(axis=1) / 0.1, drawn)
    first, second = courses.course(0), courses.course(1)
    assert first is not None
    assert second is not None
    assert first.latency_s == pytest.approx(0.07, abs=0.011)
    assert first.end_s == pytest.approx(0.15, abs=0.011)
    assert np.isnan(second.latency_s)
    assert courses.window([0]) == (first.latency_s, first.end_s)
    assert courses.window([]) is None


def field(right: float, up: float, size: float) -> Place:
    return Place(center_deg=(right, up), size_deg=size)


def test_images_are_fitted_into_the_screen_and_it_is_said() -> None:
    def inside(limit: float) -> object:
        def fits(place: Place) -> str:
            far = max(abs(c) for c in place.center_deg) + place.size_deg / 2
            return "" if far <= limit + 1e-9 else "it leaves the screen"

        return fits

    free = around([field(2, 1, 4)], 1.5, inside(20))  # type: ignore[arg-type]
    assert (free.place, free.words) == (field(2, 1, 6), "images of 6 degrees at (2, 1)")
    shrunk = around([field(6, 0, 4)], 2.0, inside(9))  # type: ignore[arg-type]
    assert shrunk.place == field(6, 0, 6)
    assert shrunk.shrunk_deg == 2
    assert "not 8, to fit into the screen" in shrunk.words
    moved = around([field(8, 0, 4)], 1.0, inside(9))  # type: ignore[arg-type]
    assert moved.place == field(7, 0, 4)
    assert moved.moved_deg == pytest.approx(1)
    nowhere = around([field(0, 0, 30)], 1.0, inside(9))  # type: ignore[arg-type]
    assert nowhere.place is None
    assert "it leaves the screen" in nowhere.words


def test_a_closer_look_stays_within_what_is_mapped() -> None:
    mapped = field(1, 1, 16)
    assert region_of([field(8, 1, 4), field(5, 0, 3)], mapped, 2.0, 0.8) == field(5.75, 0.75, 6.5)
    assert region_of([field(1, 1, 15)], mapped, 2.0, 0.8) is None
    assert region_of([], mapped, 2.0, 0.8) is None
    assert region_of([field(1, 1, 0.5)], mapped, 4.0, 0.8) == field(1, 1, 4)
