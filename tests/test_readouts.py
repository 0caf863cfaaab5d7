"""Readouts that learn during the session: equal to the batch solution, honest leave-one-out, holes, warm starts."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from models.readouts.batch import difference, leave_one_out, solve_at_once
from models.readouts.dual_ridge import DualRidge
from models.readouts.inverse_factor import BLOCK, InverseFactor, NotPositiveDefinite
from models.readouts.kernels import Kernel, typical
from models.readouts.row_readout import RIDGES
from models.readouts.streaming import StreamingReadout

F64 = npt.NDArray[np.float64]
UNITS = ("a", "b", "c", "d")
WIDTH = 12


def data(trials: int, seed: int = 0, noise: float = 1.0) -> tuple[F64, F64]:
    """Return features (trial, WIDTH) and responses (trial, unit): linear, with a mean and noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((trials, WIDTH))
    w = np.random.default_rng(99).standard_normal((WIDTH, len(UNITS)))
    return x, 5 + x @ w + noise * rng.standard_normal((trials, len(UNITS)))


def built(kind: Literal["linear", "gaussian"] = "linear", **more: Any) -> StreamingReadout:
    return StreamingReadout(Kernel(kind, float(WIDTH), **more), WIDTH)


def kernel_of(readout: StreamingReadout, x: F64) -> F64:
    trials = np.arange(len(x))
    return readout.kernel.rows(x, x, trials, trials)


@pytest.mark.parametrize("kind", ["linear", "gaussian"])
def test_every_update_equals_the_batch_solution(kind: Literal["linear", "gaussian"]) -> None:
    x, y = data(BLOCK + 60)
    weights = np.random.default_rng(1).integers(1, 5, len(x)).astype(float)
    readout, first = built(kind), 0
    for size in (2, 1, 7, 40, 150, 60, 50, 6):
        here = slice(first, first + size)
        readout.update(x[here], UNITS, y[here], weights[here])
        first += size
        assert difference(readout.readout, kernel_of(readout, x[:first])) < 1e-9
    assert first == len(x)
    inner = kernel_of(readout, x)
    for unit, ridge in enumerate(readout.readout.ridges(UNITS)):
        alpha, mean = solve_at_once(inner, y[:, [unit]], weights, ridge)
        np.testing.assert_allclose(readout.predict(x, UNITS)[:, [unit]], inner @ alpha + mean, atol=1e-9)


def test_leave_one_out_is_a_fit_without_the_trial_and_decides_the_ridge() -> None:
    x, y = data(30, noise=3.0)
    weights = np.random.default_rng(1).integers(1, 5, len(x)).astype(float)
    readout = built()
    readout.update(x, UNITS, y, weights)
    left = leave_one_out(kernel_of(readout, x), y, weights, RIDGES)
    inner = kernel_of(readout, x)
    for trial in (0, 13, 29):
        rest = np.delete(np.arange(30), trial)
        for k, ridge in enumerate(RIDGES):
            alpha, mean = solve_at_once(inner[np.ix_(rest, rest)], y[rest], weights[rest], ridge)
            np.testing.assert_allclose(left[k, trial], inner[trial, rest] @ alpha + mean, atol=1e-9)
    errors = np.einsum("rtu,t->ru", (y - left) ** 2, weights)
    best = np.argmin(errors, axis=0)
    np.testing.assert_allclose(readout.readout.ridges(UNITS), np.array(RIDGES)[best])
    for unit, name in enumerate(UNITS):
        trials, predicted = readout.readout.left_out(name)
        np.testing.assert_array_equal(trials, np.arange(30))
        np.testing.assert_allclose(predicted, left[best[unit], :, unit], atol=1e-9)


def test_a_repeated_image_counts_as_its_mean_with_that_weight() -> None:
    x, y = data(20)
    one, two = (StreamingReadout(Kernel("linear", WIDTH), WIDTH, (1.0,)) for _ in range(2))
    one.update(np.repeat(x, 3, axis=0), UNITS, np.repeat(y, 3, axis=0) + np.tile([[-1.0], [0.0], [1.0]], (20, 4)))
    two.update(x, UNITS, y, np.full(20, 3.0))
    np.testing.assert_allclose(one.predict(x, UNITS), two.predict(x, UNITS), atol=1e-9)


def test_units_appear_die_and_miss_trials_and_each_learns_from_its_own() -> None:
    x, y = data(60)
    y[:25, 1] = np.nan  # appears
    y[40:, 2] = np.nan  # dies
    y[[3, 17, 18, 55], 3] = np.nan
    readout = built()
    readout.update(x[:20], UNITS[:1] + UNITS[2:], y[:20][:, [0, 2, 3]])  # a unit not yet known to anybody
    readout.update(x[20:45], UNITS, y[20:45])
    readout.update(x[45:], UNITS[:2] + UNITS[3:], y[45:][:, [0, 1, 3]])
    assert difference(readout.readout, kernel_of(readout, x)) < 1e-9
    for unit, name in enumerate(UNITS):
        there = np.flatnonzero(np.isfinite(y[:, unit]))
        alone = built()
        alone.update(x[there], (name,), y[there][:, [unit]])
        np.testing.assert_allclose(readout.predict(x, (name,)), alone.predict(x, (name,)), atol=1e-9)
        np.testing.assert_array_equal(readout.readout.left_out(name)[0], there)
    assert sorted(readout.units) == sorted(UNITS)
    assert np.isnan(readout.predict(x[:3], ("nobody", "a"))[:, 0]).all()
    with pytest.raises(ValueError, match="nobody has had no response"):
        readout.readout.left_out("nobody")


def test_weights_of_a_linear_readout_predict_as_it_does() -> None:
    x, y = data(50)
    y[:10, 1] = np.nan
    readout = built()
    readout.update(x, UNITS, y)
    weights, mean = readout.weights(UNITS)
    np.testing.assert_allclose(x @ weights + mean, readout.predict(x, UNITS), atol=1e-9)
    with pytest.raises(ValueError, match="only a linear kernel"):
        built("gaussian").weights(UNITS)


def test_a_prior_mean_helps_early_is_scaled_and_does_no_harm_where_it_is_wrong() -> None:
    x, y = data(400, noise=2.0)
    truth, scene = data(300, seed=5, noise=0.0)[::-1]
    earlier = built()
    earlier.update(x[:380], UNITS, y[:380])
    drawn = np.random.default_rng(3)
    plain = built()
    warm, wrong = (StreamingReadout(Kernel("linear", WIDTH), WIDTH, prior=True) for _ in range(2))
    of_trials, of_scenes = earlier.predict(x[380:], UNITS), earlier.predict(scene, UNITS)
    nonsense = drawn.standard_normal(of_trials.shape)
    responses = 0.6 * y[380:]  # the same units, weaker today
    for first in range(0, 20, 5):
        here = slice(first, first + 5)
        plain.update(x[380:][here], UNITS, responses[here])
        warm.update(x[380:][here], UNITS, responses[here], prior=of_trials[here])
        wrong.update(x[380:][here], UNITS, responses[here], prior=nonsense[here])
        assert difference(warm.readout, kernel_of(warm, x[380 : 385 + first])) < 1e-9

    def error(found: F64) -> float:
        return float(np.mean((found - 0.6 * truth) ** 2))

    cold = error(plain.predict(scene, UNITS))
    assert error(warm.predict(scene, UNITS, of_scenes)) < 0.3 * cold
    assert error(wrong.predict(scene, UNITS, drawn.standard_normal(of_scenes.shape))) < 1.5 * cold
    gains = next(learned.solution.gain for learned in warm.readout.learned())
    np.testing.assert_allclose(gains, 0.6, atol=0.25)  # from 20 trials
    for share, bound in ((1 / 3, 1.0), (-1.0, 0.0)):  # 1.8 and -0.6 would fit: more than was known, and its opposite
        other = StreamingReadout(Kernel("linear", WIDTH), WIDTH, prior=True)
        other.update(x[380:], UNITS, responses, prior=share * of_trials)
        gains = next(learned.solution.gain for learned in other.readout.learned())
        np.testing.assert_array_equal(gains, bound)
    with pytest.raises(ValueError, match="prior means"):
        warm.update(x[:2], UNITS, y[:2])
    with pytest.raises(ValueError, match="prior means"):
        plain.predict(scene, UNITS, of_scenes)


def test_a_kernel_that_fades_follows_units_that_change() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((600, WIDTH))
    start, end = rng.standard_normal((2, WIDTH))
    share = np.linspace(0, 1, 600)[:, None]
    y = ((x * ((1 - share) * start + share * end)).sum(axis=1) + 0.3 * rng.standard_normal(600))[:, None]
    steady, fading = built(), built(drift=0.9, drift_trials=200.0)
    for readout in (steady, fading):
        for first in range(0, 600, 100):
            readout.update(x[first : first + 100], ("a",), y[first : first + 100])
    assert difference(fading.readout, kernel_of(fading, x)) < 1e-9
    today = rng.standard_normal((200, WIDTH))
    errors = [float(np.mean((r.predict(today, ("a",))[:, 0] - today @ end) ** 2)) for r in (steady, fading)]
    assert errors[1] < 0.6 * errors[0]


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return bool(a == b)


def test_state_restores_bit_for_bit_and_so_does_what_follows() -> None:
    x, y = data(340)
    y[100:120, 0] = np.nan
    one, two = built("gaussian"), StreamingReadout(Kernel(), 1)
    for first in range(0, 300, 50):
        one.update(x[first : first + 50], UNITS, y[first : first + 50])
    kept = one.state()
    two.restore(kept)
    assert same(kept, two.state())
    for readout in (one, two):
        readout.update(x[300:], UNITS, y[300:])
    assert same(one.state(), two.state())
    assert one.predict(x, UNITS).tobytes() == two.predict(x, UNITS).tobytes()
    assert not same(kept, one.state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((2, WIDTH + 1))}, "this readout takes 12 numbers"),
        ({"features": np.full((2, WIDTH), np.nan)}, "finite"),
        ({"responses": np.full((2, 4), np.inf)}, "finite"),
        ({"responses": np.zeros((3, 4))}, "do not fit 2 trials"),
        ({"units": ("a", "a", "c", "d")}, "named twice"),
        ({"weights": np.zeros(2)}, "must be positive"),
    ],
)
def test_bad_batches_are_refused_and_change_nothing(change: dict[str, Any], message: str) -> None:
    x, y = data(20)
    readout = built()
    readout.update(x, UNITS, y)
    before = readout.predict(x, UNITS)
    given: dict[str, Any] = {"features": x[:2], "units": UNITS, "responses": y[:2]}
    with pytest.raises(ValueError, match=message):
        readout.update(**given | change)
    assert readout.trials == 20
    np.testing.assert_array_equal(before, readout.predict(x, UNITS))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        DualRidge(np.array([1.0, 0.0]), 1)
    with pytest.raises(ValueError, match="must be positive"):
        Kernel(scale=0.0)
    with pytest.raises(ValueError, match="do not vary"):
        typical(np.ones((5, 3)), "linear")
    factor = InverseFactor()
    with pytest.raises(NotPositiveDefinite):
        factor.append(np.zeros((1, 0)), np.array([[-1.0]]))
    with pytest.raises(ValueError, match="do not continue"):
        factor.append(np.zeros((1, 3)), np.ones((1, 1)))
    one = built()
    one.update(np.zeros((1, WIDTH)), UNITS, np.ones((1, 4)))
    assert np.isnan(one.predict(np.zeros((1, WIDTH)), UNITS)).all()  # one trial is no fit


def test_the_typical_scale_makes_a_kernel_of_scale_one() -> None:
    x, _ = data(300)
    x *= 7
    linear = Kernel("linear", typical(x, "linear"))
    trials = np.arange(len(x))
    centred = x - x.mean(axis=0)
    assert np.trace(linear.rows(centred, centred, trials, trials)) / len(x) == pytest.approx(1)
    gaussian = Kernel("gaussian", typical(x, "gaussian"))
    away = gaussian.rows(x, x, trials, trials)[np.triu_indices(len(x), 1)]
    assert np.median(away) == pytest.approx(np.exp(-1))
