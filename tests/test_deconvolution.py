"""Deconvolution: the batch solves the stated problem, and the fixed lag is the batch on the data up to it."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from rig.responses.deconvolution import FixedLag, deconvolve

F64 = npt.NDArray[np.float64]
DECAY = float(np.exp(-1 / 30 / 0.7))


def by_isotonic_regression(y: F64, decay: float) -> F64:
    """The same problem for one trace, by another algorithm: x_t = c_t / g^t is non-decreasing and >= 0."""
    t = np.flatnonzero(np.isfinite(y))
    power = decay ** np.arange(len(y))
    fit = isotonic_regression(y[t] / power[t], weights=power[t] ** 2).x
    calcium = np.zeros(len(y))
    calcium[t] = np.maximum(fit, 0) * power[t]
    for k in range(1, len(y)):  # between measured frames calcium only decays
        if not np.isfinite(y[k]):
            calcium[k] = decay * calcium[k - 1]
    events = np.zeros(len(y))
    events[1:] = calcium[1:] - decay * calcium[:-1]
    events[: t[0] + 1 if len(t) else 0] = 0
    return events


def traces(rng: np.random.Generator, frames: int, units: int, noise: float = 0.1, rate: float = 0.1) -> F64:
    spikes = rng.poisson(rate, (frames, units)) * 0.3
    calcium = np.zeros((frames, units))
    for t in range(1, frames):
        calcium[t] = DECAY * calcium[t - 1] + spikes[t]
    return calcium + noise * rng.standard_normal((frames, units))


def online(y: F64, decay: float, lag: int) -> F64:
    solver = FixedLag(y.shape[1], decay, lag)
    out = []
    for frame, row in enumerate(y):
        solver.push(frame, row)
        if frame >= lag:
            out.append(solver.events(frame - lag))
    return np.array(out)


@pytest.mark.parametrize("seed", range(6))
def test_the_batch_is_the_solution_of_the_problem(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = traces(rng, 150, 5, noise=(0.0, 0.05, 0.1, 0.3, 1.0, 0.1)[seed])
    if seed == 5:
        y[rng.random(y.shape) < 0.2] = np.nan
    got = deconvolve(y, DECAY)
    want = np.stack([by_isotonic_regression(y[:, k], DECAY) for k in range(5)], axis=1)
    measured = np.isfinite(y)
    np.testing.assert_allclose(got[measured], want[measured], atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    y=st.lists(st.floats(-2, 2) | st.just(float("nan")), min_size=1, max_size=40), decay=st.sampled_from([0.3, 0.9])
)
def test_the_batch_is_the_solution_for_any_trace(y: list[float], decay: float) -> None:
    trace = np.array(y)
    got = deconvolve(trace[:, None], decay)[:, 0]
    measured = np.isfinite(trace)
    np.testing.assert_allclose(got[measured], by_isotonic_regression(trace, decay)[measured], atol=1e-9)


def test_without_noise_the_events_are_the_spikes() -> None:
    y = np.zeros((60, 1))
    spikes = np.zeros(60)
    spikes[[10, 11, 30]] = 0.3, 0.6, 0.3
    for t in range(1, 60):
        y[t] = DECAY * y[t - 1] + spikes[t]
    np.testing.assert_allclose(deconvolve(y, DECAY)[:, 0], spikes, atol=1e-12)


@pytest.mark.parametrize("lag", [0, 1, 5, 15])
def test_the_fixed_lag_is_exactly_the_batch_on_the_data_up_to_it(lag: int) -> None:
    y = traces(np.random.default_rng(lag), 80, 8)
    y[20:23, 2] = np.nan
    got = online(y, DECAY, lag)
    for t in range(len(got)):
        np.testing.assert_allclose(got[t], deconvolve(y[: t + lag + 1], DECAY)[t], atol=1e-12)


def test_the_difference_from_the_whole_batch_falls_with_the_lag() -> None:
    y = traces(np.random.default_rng(3), 2000, 20)
    whole = deconvolve(y, DECAY)
    error = {
        lag: float(np.sqrt(np.mean((online(y, DECAY, lag) - whole[: len(y) - lag]) ** 2))) for lag in (0, 2, 8, 30, 90)
    }
    values = list(error.values())
    assert values == sorted(values, reverse=True)
    assert error[90] < 0.02 * error[0]


def test_forgotten_pools_change_nothing_that_can_be_seen() -> None:
    """The online solver keeps a few decay times; the batch keeps everything."""
    rng = np.random.default_rng(4)
    y = traces(rng, 1500, 10)
    y[700:900] -= np.linspace(0, 2, 200)[:, None]  # a long fall: pools are joined far back
    got = online(y, DECAY, 15)
    for t in (650, 720, 800, 899, 1400):
        np.testing.assert_allclose(got[t], deconvolve(y[: t + 16], DECAY)[t], atol=1e-3)


def test_lost_frames_are_time_without_data() -> None:
    y = traces(np.random.default_rng(5), 100, 4)
    y[40:47] = np.nan
    whole = online(y, DECAY, 10)
    solver = FixedLag(4, DECAY, 10)
    kept = [t for t in range(100) if not 40 <= t < 47]
    given: dict[int, F64] = {}
    waiting = []
    for t in kept:
        while waiting and waiting[0] + 10 < t:
            early = waiting.pop(0)
            given[early] = solver.events(early)
        solver.push(t, y[t])
        waiting.append(t)
        if waiting[0] + 10 == t:
            given[t - 10] = solver.events(waiting.pop(0))
    assert len(given) == 83
    for t, events in given.items():
        np.testing.assert_allclose(events, whole[t], atol=1e-12)


def test_a_decay_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        FixedLag(3, 1.0, 5)
