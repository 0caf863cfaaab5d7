"""The XDream genetic algorithm: each published step, its state, and what it does to bad input."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stimuli.bank import natural_bank
from stimuli.generators import DctGenerator
from stimuli.geometry import image_rect, pixel_angles
from stimuli.search.ga import F64, PRESETS, GASettings, XDreamGA, fitness

NAMES = sorted(PRESETS)


def make(settings: GASettings, size: int = 30, seed: int = 0) -> XDreamGA:
    rng = np.random.default_rng(seed)
    return XDreamGA(settings, rng.standard_normal((settings.population, size), dtype=np.float32), rng)


def changed(settings: GASettings, **fields: float) -> GASettings:
    return GASettings(**{**settings.__dict__, **fields})


# --- the published steps ----------------------------------------------------------------------------------------------


def test_presets_are_the_published_numbers() -> None:
    assert PRESETS["plos2020"] == GASettings(20, 0.5, 0.5, 2.0, 0.5, 0)
    assert PRESETS["actmax"] == GASettings(40, 0.25, 0.75, 0.5, 0.75, 10)
    assert (PRESETS["invivo"].population, PRESETS["invivo"].conserve) == (40, 10)


@pytest.mark.parametrize("name", NAMES)
def test_step_1_unmeasured_codes_go_unchanged_into_the_tail(name: str) -> None:
    ga = make(PRESETS[name])
    codes = ga.ask()
    scores = np.arange(len(codes), dtype=np.float64)
    missing = [3, 11, 4]
    scores[missing] = np.nan
    ga.tell(scores)
    assert np.array_equal(ga.ask()[-3:], codes[sorted(missing)])
    assert ga.origin[-3:] == (3, 4, 11)
    assert len(ga.ask()) == len(codes)


def test_step_2_and_3_fitness_by_hand() -> None:
    scores = np.array([4.0, 3.0, 2.0, 1.0, 0.0])
    kt = np.sqrt(2.0) / 2.0  # population sd of the scores over selectivity 2
    squashed = np.array([3.8, 3.0, 2.0, 1.0, 0.0])  # the 95th percentile is 3.8
    expected = np.exp((squashed - 3.8) / kt)
    assert fitness(scores, 2.0) == pytest.approx(expected / expected.sum())


def test_step_2_a_lucky_score_does_not_father_everybody() -> None:
    scores = np.linspace(0, 1, 40)
    scores[-1] = 50.0
    share = fitness(scores, 2.0)
    # Its temperature is large and its score is cut: it fathers about as many as the second best.
    assert share[-1] < 1.5 * share[-2]


def test_step_2_equal_scores_make_equal_parents() -> None:
    assert fitness(np.full(7, 3.3), 2.0) == pytest.approx(np.full(7, 1 / 7))


def test_step_3_parents_are_drawn_by_fitness_and_may_coincide() -> None:
    ga = make(changed(PRESETS["plos2020"], population=4000), size=1)
    scores = np.random.default_rng(5).normal(size=4000)
    ga.tell(scores)
    pairs = np.array(ga.parents)
    share = np.bincount(pairs.ravel(), minlength=4000) / pairs.size
    top = np.argsort(-scores)
    for group in (top[:400], top[400:2000], top[2000:]):
        assert share[group].sum() == pytest.approx(fitness(scores, 2.0)[group].sum(), abs=0.02)
    assert abs(np.corrcoef(scores[pairs].T)[0, 1]) < 0.06  # drawn independently


def test_step_3_both_parents_may_be_the_same_code() -> None:
    ga, same = make(PRESETS["plos2020"]), 0
    for k in range(50):
        ga.tell(np.random.default_rng(k).normal(size=20))
        same += sum(a == b for a, b in ga.parents)
    assert 50 < same < 500  # of 1,000; more than 1 in 20 as better codes father more


def test_step_4_and_5_genes_come_from_the_first_parent_and_mutate_as_often_as_the_settings_say() -> None:
    settings = PRESETS["actmax"]
    rng = np.random.default_rng(0)
    start = np.repeat(np.arange(40, dtype=np.float32)[:, None] * 1000, 2000, axis=1)  # each gene names its code
    ga = XDreamGA(settings, start, rng)
    ga.tell(rng.normal(size=40))
    children, parents = ga.ask()[10:], np.array(ga.parents[10:])
    differ = parents[:, 0] != parents[:, 1]
    donor = np.rint(children / 1000)
    first = donor[differ] == parents[differ, :1]
    second = donor[differ] == parents[differ, 1:]
    assert np.all(first | second)
    assert first.mean() == pytest.approx(0.75, abs=0.01)
    steps = children - 1000 * donor
    assert np.mean(steps != 0) == pytest.approx(0.25, abs=0.01)
    assert steps[steps != 0].std() == pytest.approx(0.75, abs=0.01)
    assert steps.mean() == pytest.approx(0, abs=0.01)


def test_step_6_the_best_stay_unmutated_in_front() -> None:
    ga = make(PRESETS["invivo"])
    codes, scores = ga.ask(), np.random.default_rng(1).normal(size=40)
    ga.tell(scores)
    order = np.argsort(-scores)
    assert np.array_equal(ga.ask()[:10], codes[order[:10]])
    assert ga.origin[:10] == tuple(order[:10])
    assert set(ga.origin[10:]) == {-1}
    assert all(len(p) == 2 for p in ga.parents[10:])
    assert not any((child == codes).all(axis=1).any() for child in ga.ask()[10:])


def test_the_best_is_taken_before_mating_and_its_score_is_not_squashed() -> None:
    ga = make(PRESETS["plos2020"])  # nothing is kept: after mating the best code is gone
    codes, scores = ga.ask(), np.arange(20, dtype=np.float64)
    scores[7] = 1000.0
    ga.tell(scores)
    assert ga.best_score == 1000.0
    assert ga.best_code is not None
    assert np.array_equal(ga.best_code, codes[7])


# --- missing and bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nothing_measured_means_the_same_population_again(name: str) -> None:
    ga = make(PRESETS[name])
    codes = ga.ask()
    ga.tell(np.full(len(codes), np.nan))
    assert np.array_equal(ga.ask(), codes)
    assert ga.best_score is None
    ga.tell(np.arange(len(codes), dtype=np.float64))
    assert ga.best_score == len(codes) - 1


def test_fewer_measured_than_kept_are_all_kept() -> None:
    ga = make(PRESETS["invivo"])
    codes, scores = ga.ask(), np.full(40, np.nan)
    scores[[5, 30]] = 1.0, 2.0
    ga.tell(scores)
    assert np.array_equal(ga.ask()[:2], codes[[30, 5]])
    assert sorted(ga.origin) == list(range(40))


def test_bad_scores_change_nothing() -> None:
    ga = make(PRESETS["plos2020"])
    before = ga.ask()
    with pytest.raises(ValueError, match="inf is no response"):
        ga.tell(np.array([np.inf] + [0.0] * 19))
    with pytest.raises(ValueError, match="population of 20"):
        ga.tell(np.zeros(19))
    assert np.array_equal(ga.ask(), before)
    assert ga.generation == 0
    scores = np.arange(20, dtype=np.float64)
    ga.tell(scores)
    assert np.array_equal(scores, np.arange(20, dtype=np.float64))  # the caller's array is left alone


@pytest.mark.parametrize(
    "fields",
    [
        {"population": 1, "conserve": 0}, {"conserve": 40}, {"conserve": -1},
        {"mutation_rate": 1.1}, {"mutation_rate": float("nan")}, {"heritability": -0.1},
        {"mutation_size": -1.0}, {"mutation_size": float("nan")}, {"selectivity": 0.0}, {"selectivity": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_settings_without_meaning_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"population|probabilities|positive"):
        changed(PRESETS["invivo"], **fields)


def test_start_codes_are_checked() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"\(20, latent\)"):
        XDreamGA(PRESETS["plos2020"], np.zeros((19, 4), np.float32), rng)
    with pytest.raises(ValueError, match="NaN"):
        XDreamGA(PRESETS["plos2020"], np.full((20, 4), np.nan, np.float32), rng)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_scores_work_or_raise_and_never_leave_a_nan(data: st.DataObject) -> None:
    population = data.draw(st.integers(2, 12))
    chosen = GASettings(
        population,
        mutation_rate=data.draw(st.floats(0, 1)),
        mutation_size=data.draw(st.one_of(st.floats(0, 2), st.sampled_from([1e20, 1e38]))),
        selectivity=data.draw(st.floats(1e-3, 1e3)),
        heritability=data.draw(st.floats(0, 1)),
        conserve=data.draw(st.integers(0, population - 1)),
    )
    ga = make(chosen, size=data.draw(st.integers(1, 5)), seed=data.draw(st.integers(0, 99)))
    for _ in range(3):
        before = ga.ask()
        scores = data.draw(arrays(np.float64, population, elements=st.floats(width=64)))
        try:
            ga.tell(scores)
        except (ValueError, FloatingPointError):
            assert np.array_equal(ga.ask(), before)
            continue
        after = ga.ask()
        assert not np.isinf(scores).any()
        assert after.shape == before.shape
        assert np.isfinite(after).all()
        carried = [k for k in ga.origin if k >= 0]
        assert set(np.flatnonzero(np.isnan(scores))) <= set(carried)
        assert len(set(carried)) == len(carried)


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_search_goes_on_bit_for_bit(name: str) -> None:
    ga, rng = make(PRESETS[name]), np.random.default_rng(9)
    scores = rng.poisson(5, (6, PRESETS[name].population)).astype(np.float64)
    scores[:, 2] = np.nan
    for row in scores[:3]:
        ga.tell(row)
    state = ga.state()
    other = make(PRESETS[name], seed=1)
    other.restore(json_round_trip(state))
    for row in scores[3:]:
        assert np.array_equal(ga.ask(), other.ask())
        ga.tell(row)
        other.tell(row)
    assert np.array_equal(ga.ask(), other.ask())
    assert (ga.origin, ga.parents, ga.best_score) == (other.origin, other.parents, other.best_score)
    untouched = make(PRESETS[name], seed=2)
    untouched.restore(state)  # the state taken then is not changed by what came after
    assert untouched.generation == 3
    with pytest.raises(ValueError, match="shape"):
        make(PRESETS[name], size=7).restore(state)


def json_round_trip(state: dict[str, object]) -> dict[str, object]:
    """Arrays apart, a state survives JSON."""
    held = {k: v for k, v in state.items() if isinstance(v, np.ndarray)}
    return {**json.loads(json.dumps({k: v for k, v in state.items() if k not in held})), **held}


def test_equal_seeds_give_equal_searches() -> None:
    a, b, c = (make(PRESETS["invivo"], seed=s) for s in (4, 4, 5))
    for ga in (a, b, c):
        ga.tell(np.arange(40, dtype=np.float64))
    assert np.array_equal(a.ask(), b.ask())
    assert not np.array_equal(a.ask(), c.ask())


# --- what it is for ---------------------------------------------------------------------------------------------------

SIZE, WIDTH_CM, DISTANCE_CM = (800, 600), 40.0, 30.0


class Cell:
    """A V1 cell at the image centre: quadrature Gabor energy, or one half-rectified phase, through a saturation."""

    def __init__(self, cycles_per_deg: float, orientation_deg: float, simple: bool) -> None:
        rect = image_rect(SIZE, WIDTH_CM, DISTANCE_CM, 10.0, (0.0, 0.0))
        azimuth, elevation = pixel_angles(rect, SIZE, WIDTH_CM, DISTANCE_CM)
        self.height, self.width = azimuth.shape
        theta, sigma = np.radians(orientation_deg), 0.35 / cycles_per_deg
        across = 2 * np.pi * cycles_per_deg * (elevation * np.cos(theta) - azimuth * np.sin(theta))
        envelope = np.exp(-(azimuth**2 + elevation**2) / (2 * sigma**2))
        pair = [
            envelope * (wave - (envelope * wave).sum() / envelope.sum()) for wave in (np.cos(across), np.sin(across))
        ]
        self._pair = np.stack([f / np.abs(f).sum() for f in pair]).reshape(2, -1)  # +-1 for the best binary image
        self._simple = simple

    def rate_hz(self, frames: np.ndarray) -> F64:
        grey = frames.astype(np.float64).mean(axis=3).reshape(len(frames), -1) / 127.5 - 1
        even, odd = self._pair @ grey.T
        energy = np.maximum(even, 0) ** 2 if self._simple else even**2 + odd**2
        rate: F64 = 2 + 60 * energy / (energy + 0.2**2)
        return rate


@pytest.mark.parametrize("simple", [False, True], ids=["complex", "simple"])
@pytest.mark.parametrize("name", NAMES)
def test_evolution_finds_what_a_v1_cell_likes_through_poisson_noise(name: str, simple: bool) -> None:
    """In 15 generations the noise-free mean of a generation doubles, in 20 it passes the best natural picture.

    The first for each cell, the second in the geometric mean over cells: a picture may happen to suit one of them.
    """
    bank = natural_bank()
    gain = []
    for seed in range(4):
        cell, rng = Cell(0.3, 35.0 + 50 * seed, simple), np.random.default_rng(seed)
        best_natural = cell.rate_hz(np.stack([bank.image(n, cell.height, cell.width) for n in bank.names])).max()
        generator = DctGenerator(cell.height, cell.width, 10, 0.75, 0.25)
        settings = changed(PRESETS[name], population=40)  # the same number of images for all presets
        ga = XDreamGA(settings, generator.start(40, rng), rng)
        means = []
        for _ in range(21):
            rate = cell.rate_hz(generator.decode(ga.ask()))
            means.append(rate.mean())
            ga.tell(rng.poisson(rate * 0.1) / 0.1)
        assert means[15] > 2 * means[0]
        gain.append(means[20] / best_natural)
    assert np.exp(np.mean(np.log(gain))) > 1


def test_without_selection_evolution_goes_nowhere() -> None:
    """The control of the test above: with scores that say nothing the mean response does not double."""
    cell, rng = Cell(0.3, 35.0, False), np.random.default_rng(0)
    generator = DctGenerator(cell.height, cell.width, 10, 0.75, 0.25)
    ga = XDreamGA(PRESETS["invivo"], generator.start(40, rng), rng)
    first = cell.rate_hz(generator.decode(ga.ask())).mean()
    for _ in range(15):
        ga.tell(rng.poisson(5.0, 40) / 0.1)
    assert cell.rate_hz(generator.decode(ga.ask())).mean() < 2 * first
