"""The CMA-ES variants: their equations, against dense or separate forms of them, and their speed against peers."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest

from stimuli.generators.generator import Prior, normal_prior
from stimuli.search.cholesky_cma import CholeskyCMA, CholeskySettings, FactorProduct
from stimuli.search.factory import build_optimiser
from stimuli.search.optimiser import F64, Optimiser, Scores
from stimuli.search.recombination import rank_weights
from stimuli.search.separable_cma import SeparableCMA, SeparableSettings
from stimuli.search.sphere_cma import SphereCMA, SphereSettings, around, slerp

# --- rank weights and constants ---------------------------------------------------------------------------------------


def test_the_constants_for_40_codes_of_4096_are_the_published_ones() -> None:
    weights = rank_weights(40)
    assert len(weights) == 20
    assert weights == pytest.approx(np.log(20.5 / np.arange(1, 21)) / np.log(20.5 / np.arange(1, 21)).sum())
    search = CholeskyCMA(CholeskySettings(), np.zeros((1, 4096), np.float32), 3.0, np.random.default_rng(0))
    assert 1 / np.sum(weights**2) == pytest.approx(11.31, abs=0.005)
    assert search._cs == pytest.approx(0.0499, abs=5e-5)
    assert search._cc == pytest.approx(9.76e-4, rel=1e-3)
    assert search._c1 == pytest.approx(1.19e-7, rel=2e-3)
    assert search._damps == pytest.approx(1.0499, abs=5e-5)
    assert search._chi == pytest.approx(63.996, abs=5e-4)


def test_the_separable_learning_rate_is_that_of_the_full_method_times_a_third_of_n() -> None:
    n, mu = 50, 1 / np.sum(rank_weights(40) ** 2)
    search = SeparableCMA(SeparableSettings(), None, np.zeros(n), np.ones(n), np.random.default_rng(0))
    full = 2 / mu / (n + np.sqrt(2)) ** 2 + (1 - 1 / mu) * min(1, (2 * mu - 1) / ((n + 2) ** 2 + mu))
    assert search._ccov == pytest.approx(full * (n + 2) / 3)


# --- Cholesky ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1.19e-7, 0.02])
def test_the_product_of_factors_is_the_dense_matrix_of_the_paper(rate: float) -> None:
    """A and its inverse after 60 updates, by the authors' recursion with dense matrices."""
    n, rng = 40, np.random.default_rng(3)
    a, inverse, product = np.eye(n), np.eye(n), FactorProduct(n)
    for _ in range(60):
        path = rng.standard_normal(n) * rng.uniform(0.1, 3)
        v = path @ inverse
        norm2 = float(v @ v)
        root = np.sqrt(1 + norm2 * rate / (1 - rate))
        inverse = (inverse - (1 - 1 / root) / norm2 * np.outer(inverse @ v, v)) / np.sqrt(1 - rate)
        a = np.sqrt(1 - rate) * (a + (root - 1) / norm2 * np.outer(v, path))
        product.update(path, rate)
    rows = rng.standard_normal((7, n))
    assert np.abs(product.times(rows) - rows @ a).max() < 1e-10
    assert np.abs(product.times_inverse(rows) - rows @ inverse).max() < 1e-10
    assert np.abs(product.times_inverse(product.times(rows)) - rows).max() < 1e-10


def test_an_update_adds_the_path_to_the_covariance() -> None:
    n, rng, product = 12, np.random.default_rng(0), FactorProduct(12)
    covariance = np.eye(n)
    for _ in range(5):
        path = rng.standard_normal(n)
        covariance = 0.9 * covariance + 0.1 * np.outer(path, path)
        product.update(path, 0.1)
    a = product.times(np.eye(n))
    assert a.T @ a == pytest.approx(covariance)
    before = product.times(np.eye(n))
    product.update(np.zeros(n), 0.1)  # no path, no change
    assert np.array_equal(product.times(np.eye(n)), before)


def dense_cholesky(n: int, generations: int, seed: int, goal: Callable[[F64], F64]) -> list[F64]:
    """The published algorithm with dense matrices, from the code 0: the codes of each generation."""
    rng, population, sigma = np.random.default_rng(seed), 12, 3.0
    weights = np.log(6.5) - np.log(np.arange(1, 7))
    weights /= weights.sum()
    mueff = 1 / np.sum(weights**2)
    cs, cc, c1 = np.sqrt(mueff) / (np.sqrt(mueff) + np.sqrt(n)), 4 / (n + 4), 2 / (n + np.sqrt(2)) ** 2
    damps = 1 + cs + 2 * max(0, np.sqrt((mueff - 1) / (n + 1)) - 1)
    chi = np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
    mean, a, inverse, ps, pc = np.zeros(n), np.eye(n), np.eye(n), np.zeros(n), np.zeros(n)
    out, z, evaluated, changed_at = [np.zeros((1, n))], np.empty((0, n)), 0, 0
    for g in range(1, generations):
        if g > 1:
            best = np.argsort(-goal(out[-1]), kind="stable")[:6]
            mean, zw = weights @ out[-1][best], weights @ z[best]
            ps = (1 - cs) * ps + np.sqrt(cs * (2 - cs) * mueff) * zw
            pc = (1 - cc) * pc + np.sqrt(cc * (2 - cc) * mueff) * zw @ a
            sigma *= np.exp(cs / damps * (np.linalg.norm(ps) / chi - 1))
            if evaluated - changed_at > 10 * population:
                changed_at = evaluated
                v = pc @ inverse
                norm2 = v @ v
                root = np.sqrt(1 + norm2 * c1 / (1 - c1))
                inverse = (inverse - (1 - 1 / root) / norm2 * np.outer(inverse @ v, v)) / np.sqrt(1 - c1)
                a = np.sqrt(1 - c1) * (a + (root - 1) / norm2 * np.outer(v, pc))
        z = rng.standard_normal((population, n))
        evaluated += population
        out.append((mean + sigma * z @ a).astype(np.float32).astype(np.float64))
    return out


def test_the_whole_search_is_that_with_dense_matrices() -> None:
    n, steep = 9, np.linspace(1, 6, 9)

    def goal(codes: F64) -> F64:
        return -np.square((codes - 2) * steep).sum(axis=1)

    settings = CholeskySettings(population=12, start="as_published")
    search = build_optimiser(settings, normal_prior(n), np.random.default_rng(5))
    for g, codes in enumerate(dense_cholesky(n, 60, 5, goal)):
        asked = search.ask()
        assert asked.codes == pytest.approx(codes, abs=1e-4), g
        search.tell(Scores.of(asked.code_ids, goal(asked.codes.astype(np.float64))))
    assert isinstance(search, CholeskyCMA)
    assert len(search._a.vectors) == 5  # updates 11, 22, .. 55 of 58
    assert np.abs(search._a.times(np.eye(n)) - np.eye(n)).max() > 0.02  # and not the identity: 200 times the tolerance


def test_the_published_first_generation_is_one_image_and_moves_nothing() -> None:
    drawn = []
    for score in (0.0, 50.0, np.nan):
        search = build_optimiser(CholeskySettings(start="as_published"), normal_prior(30), np.random.default_rng(1))
        first = search.ask()
        assert not first.codes.any()
        assert first.codes.shape == (1, 30)
        search.tell(Scores.of(first.code_ids, [score]))
        drawn.append(search.ask())
        assert search.center is not None
        assert not search.center.any()
    assert drawn[0].codes.std() == pytest.approx(3.0, rel=0.05)
    assert drawn[0].codes.tobytes() == drawn[1].codes.tobytes() == drawn[2].codes.tobytes()


# --- sphere -----------------------------------------------------------------------------------------------------------


def test_the_schedules_are_the_published_angles() -> None:
    narrow = SphereSettings(schedule="exp")
    assert narrow.angle_deg(0) == pytest.approx(50)
    assert narrow.angle_deg(74) == narrow.angle_deg(500) == pytest.approx(7.33)
    assert narrow.angle_deg(37) == pytest.approx(np.sqrt(50 * 7.33))
    wide = SphereSettings(schedule="inv")
    assert wide.angle_deg(0) == pytest.approx(15 + 1 / 0.0163)
    assert wide.angle_deg(74) == wide.angle_deg(100) == pytest.approx(15 + 1 / (0.0017 * 75 + 0.0146))


def test_half_as_far_again_on_the_arc() -> None:
    a, b = np.eye(5)[0], np.array([np.cos(0.4), np.sin(0.4), 0, 0, 0])
    out = slerp(a, b, 1.5)
    assert out == pytest.approx([np.cos(0.6), np.sin(0.6), 0, 0, 0])
    assert slerp(a, a, 1.5) == pytest.approx(a)
    assert np.isfinite(slerp(a, -a, 1.5)).all()


def test_codes_lie_on_the_sphere_at_the_angle_that_the_schedule_says() -> None:
    rng, n = np.random.default_rng(0), 2000
    center = rng.standard_normal(n)
    center /= np.linalg.norm(center)
    codes = around(center, rng.standard_normal((50, n)), np.radians(30))
    assert np.linalg.norm(codes, axis=1) == pytest.approx(np.ones(50))
    assert np.degrees(np.arccos(codes @ center)) == pytest.approx(np.full(50, 30), rel=0.08)
    assert np.degrees(np.arccos(codes @ center)).mean() == pytest.approx(30, rel=0.01)


def test_a_sphere_search_by_hand() -> None:
    """First update: the normalised weighted mean; later: the centre first and without weight, slerp by 1.5."""
    n, search = 15, build_optimiser(SphereSettings(population=6), normal_prior(15), np.random.default_rng(2))
    weights = np.log(3.5) - np.log([1, 2, 3])
    weights /= weights.sum()
    first = search.ask()
    scores = np.array([1.0, 5.0, 3.0, 2.0, 4.0, 0.0])
    search.tell(Scores.of(first.code_ids, scores))
    mean = weights @ first.codes[[1, 4, 2]].astype(np.float64)
    second = search.ask()
    assert len(second.codes) == 7
    assert second.codes[0] == pytest.approx(mean / np.linalg.norm(mean) * np.sqrt(n), rel=1e-5)
    assert np.linalg.norm(second.codes, axis=1) == pytest.approx(np.full(7, np.sqrt(n)), rel=1e-6)
    search.tell(Scores.of(second.code_ids, np.array([99.0, *scores])))
    old, mean = second.codes[0].astype(np.float64), weights @ second.codes[1:][[1, 4, 2]].astype(np.float64)
    old, mean = old / np.linalg.norm(old), mean / np.linalg.norm(mean)
    angle = np.arccos(old @ mean)
    center = search.ask().codes[0] / np.sqrt(n)
    assert np.arccos(center @ old) == pytest.approx(1.5 * angle, rel=1e-4)
    assert np.arccos(center @ mean) == pytest.approx(0.5 * angle, rel=1e-4)


def test_a_sphere_search_finds_the_best_direction() -> None:
    n, rng = 50, np.random.default_rng(0)
    wish = rng.standard_normal(n)
    wish /= np.linalg.norm(wish)
    search = build_optimiser(SphereSettings(), normal_prior(n), rng)
    for _ in range(76):
        asked = search.ask()
        search.tell(Scores.of(asked.code_ids, asked.codes @ wish))
    assert isinstance(search, SphereCMA)
    assert search.center is not None
    assert search.center @ wish / np.sqrt(n) > 0.99


# --- how fast they converge, against independent programs -------------------------------------------------------------

N, POPULATION, BEGIN = 50, 40, 3.0
SCALE = 10.0 ** (1.5 * np.arange(N) / (N - 1))  # condition number 1,000
ROTATION = np.linalg.qr(np.random.default_rng(7).standard_normal((N, N)))[0]
PRIOR = Prior(np.full(N, BEGIN, np.float32), np.ones(N, np.float32), float(np.sqrt(N * (BEGIN**2 + 1))))


def quadratic(x: F64) -> F64:
    return np.square(x).sum(axis=-1)


def ellipsoid(x: F64) -> F64:
    return np.square(SCALE * x).sum(axis=-1)


def rotated(x: F64) -> F64:
    return ellipsoid(x @ ROTATION)


def ours(search: Optimiser, goal: Callable[[F64], F64], below: float, most: int = 500) -> int:
    """Return the generation in which the best value first fell below `below`."""
    for g in range(most):
        asked = search.ask()
        values = goal(asked.codes.astype(np.float64))
        if values.min() < below:
            return g
        search.tell(Scores.of(asked.code_ids, -values))
    return most


def of_cmaes(separable: bool, goal: Callable[[F64], F64], below: float, most: int = 500) -> int:
    import cmaes

    kind = cmaes.SepCMA if separable else cmaes.CMA
    search = kind(mean=np.full(N, BEGIN), sigma=1.0, population_size=POPULATION, seed=3)
    for g in range(most):
        codes = [search.ask() for _ in range(POPULATION)]
        values = [float(goal(x)) for x in codes]
        if min(values) < below:
            return g
        search.tell(list(zip(codes, values, strict=True)))
    return most


def of_pycma(goal: Callable[[F64], F64], below: float, diagonal: bool, most: int = 500) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import cma

        chosen = {"popsize": POPULATION, "seed": 3, "verbose": -9, "CMA_active": False, "CMA_diagonal": diagonal}
        search = cma.CMAEvolutionStrategy(np.full(N, BEGIN), 1.0, chosen)
        for g in range(most):
            codes = search.ask()
            values = [float(goal(np.asarray(x))) for x in codes]
            if min(values) < below:
                return g
            search.tell(codes, values)
    return most


def test_on_a_quadratic_both_are_about_as_fast_as_their_peers() -> None:
    full, diagonal = of_cmaes(False, quadratic, 1e-3), of_cmaes(True, quadratic, 1e-3)
    pycma = of_pycma(quadratic, 1e-3, False)
    cholesky = ours(build_optimiser(CholeskySettings(), PRIOR, np.random.default_rng(1)), quadratic, 1e-3)
    separable = ours(build_optimiser(SeparableSettings(), PRIOR, np.random.default_rng(1)), quadratic, 1e-3)
    assert 0.75 * full < cholesky < 1.25 * full
    assert 0.75 * diagonal < separable < 1.25 * diagonal
    assert cholesky < 1.1 * pycma


def test_on_an_ellipsoid_along_the_axes_the_separable_one_is_as_fast_as_its_peers() -> None:
    separable = ours(build_optimiser(SeparableSettings(), PRIOR, np.random.default_rng(1)), ellipsoid, 1e-3)
    assert 0.7 * of_cmaes(True, ellipsoid, 1e-3) < separable < 1.1 * of_pycma(ellipsoid, 1e-3, True)


def test_on_a_rotated_ellipsoid_only_the_axes_matter_to_the_separable_one() -> None:
    """Ros & Hansen 2008: it needs the axes. The Cholesky variant learns too slowly for either, and equally (c1, one
    path in eleven generations); it must not see the axes at all."""
    reached = {}
    for goal in (ellipsoid, rotated):
        for settings in (SeparableSettings(), CholeskySettings()):
            search = build_optimiser(settings, PRIOR, np.random.default_rng(1))
            for _ in range(150):
                asked = search.ask()
                values = goal(asked.codes.astype(np.float64))
                search.tell(Scores.of(asked.code_ids, -values))
            reached[type(settings), goal] = float(np.log10(values.min()))
    start = np.log10(ellipsoid(np.full(N, BEGIN)))
    assert reached[SeparableSettings, ellipsoid] < start - 3
    assert reached[SeparableSettings, rotated] > reached[SeparableSettings, ellipsoid] + 2
    assert abs(reached[CholeskySettings, rotated] - reached[CholeskySettings, ellipsoid]) < 0.7
    assert reached[CholeskySettings, rotated] < start - 1
