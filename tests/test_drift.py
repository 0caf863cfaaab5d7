"""Drift correction on simulated references whose gain and offset are known at any time."""

from collections.abc import Callable

import numpy as np
import pytest

from stimuli.search.drift import LEAST_GAIN, MOST_WINDOWS, Drift

PER_GENERATION, REFERENCES = 47, 7  # 15 % references
MEANS = np.array([0.6, 1.2, 2.0, 3.0, 4.5, 6.0, 9.0])  # counts: they span the range
TEN_MINUTES = 1800.0  # presentations, three a second
GENERATIONS = 50
Course = Callable[[float], float]


def one(_: float) -> float:
    return 1.0


def zero(_: float) -> float:
    return 0.0


def simulate(
    gain: Course, offset: Course, noise: str, seed: int, stops: int | None = None
) -> tuple[float, float, float]:
    """Return rms errors of noise-free probes over a session: corrected, raw, and the sd of one noisy score."""
    rng, drift = np.random.default_rng(seed), Drift(float(PER_GENERATION))
    corrected, raw, spread = [], [], []

    def score(mean: float, when: float) -> float:
        value = mean * gain(when) + offset(when)
        if noise == "poisson":
            return float(rng.poisson(max(value, 0.0)))
        return value * max(0.0, 1 + 0.2 * rng.standard_normal())

    when = 0.0
    for generation in range(GENERATIONS):
        for k, mean in enumerate(MEANS):
            if stops is None or k != stops or generation < GENERATIONS / 2:
                drift.tell(f"reference {k}", score(float(mean), when), when)
            when += 1
        when += PER_GENERATION - REFERENCES
        for mean in (1.5, 5.0, 10.0) if generation % 5 == 4 else ():
            value = mean * gain(when) + offset(when)
            corrected.append(drift.correct(value, when) - mean)
            raw.append(value - mean)
            spread.append(np.sqrt(mean) if noise == "poisson" else 0.2 * mean)
    return tuple(float(np.sqrt(np.mean(np.square(x)))) for x in (corrected, raw, spread))  # type: ignore[return-value]


@pytest.mark.parametrize("noise", ["poisson", "gain"])
def test_steady_responses_are_left_as_they_are(noise: str) -> None:
    runs = np.array([simulate(one, zero, noise, seed) for seed in range(7)])
    added = runs[:, 0] ** 2 / np.mean(runs[:, 2] ** 2)  # variance, relative to that of one score
    assert np.median(added) < 0.02
    assert np.mean(added) < 0.08  # a session in a few, lucky draws of the best references look like drift


COURSES: dict[str, tuple[Course, Course]] = {
    "gain up by 50 % in 10 minutes": (lambda t: 1 + 0.5 * t / TEN_MINUTES, zero),
    "gain down by 50 % in 10 minutes": (lambda t: 0.5 ** (t / TEN_MINUTES), zero),
    "offset only": (one, lambda t: 3 * t / TEN_MINUTES),
}


@pytest.mark.parametrize("noise", ["poisson", "gain"])
@pytest.mark.parametrize("course", COURSES)
def test_drift_is_taken_out(course: str, noise: str) -> None:
    runs = np.array([simulate(*COURSES[course], noise, seed) for seed in range(3)])
    corrected, raw, _ = np.sqrt(np.mean(np.square(runs), axis=0))
    assert corrected < 0.7 * raw


def test_a_reference_that_is_no_longer_shown_is_no_drift() -> None:
    _, _, single = steady = np.array([simulate(one, zero, "gain", seed, stops=6) for seed in range(3)]).T
    assert np.median(steady[0] ** 2) < 0.02 * np.mean(single**2)
    drifting = np.array([simulate(*COURSES["offset only"], "gain", seed, stops=6) for seed in range(3)])
    assert drifting[:, 0].mean() < 0.7 * drifting[:, 1].mean()


def test_gain_and_offset_are_told_apart_without_noise() -> None:
    drift, rng = Drift(50.0), np.random.default_rng(0)
    for when in np.arange(0.0, 2000.0, 5.0):
        k = int(rng.integers(len(MEANS)))
        drift.tell(str(k), float(MEANS[k] * (1 + 0.4 * when / 2000) + 2.0 * np.sin(when / 600)), when)
    when = 1500.0
    for mean in (1.0, 6.0, 20.0):  # the last is far above all references
        value = mean * (1 + 0.4 * when / 2000) + 2.0 * np.sin(when / 600)
        assert drift.correct(value, when) == pytest.approx(mean, abs=0.25)


def test_little_is_known_little_is_done() -> None:
    drift = Drift()
    assert drift.correct(7.25, 10.0) == 7.25
    drift.tell("a", 1.0, 0.0)
    drift.tell("a", 30.0, 100.0)  # one image alone never scales others
    drift.tell("b", float("nan"), 100.0)
    assert drift.correct(7.25, 100.0) == 7.25
    assert np.isnan(drift.correct(float("nan"), 100.0))


def test_equal_responses_to_all_references_are_no_error() -> None:
    drift = Drift(10.0)
    for when in range(60):
        drift.tell(str(when % 6), 3.0, float(when))
    assert drift.correct(5.0, 60.0) == pytest.approx(5.0)


def test_silent_references_change_nothing() -> None:
    drift = Drift(10.0)
    for when in range(60):
        drift.tell(str(when % 6), 0.0, float(when))
    assert drift.correct(5.0, 60.0) == 5.0


def test_long_sessions_keep_their_memory_bounded() -> None:
    drift, rng = Drift(10.0), np.random.default_rng(0)
    for when in range(3000):
        drift.tell(str(when % 7), float(rng.poisson(MEANS[when % 7])), float(when))
    assert drift.state()["count"].shape[1] <= MOST_WINDOWS
    assert drift.correct(5.0, 3000.0) == pytest.approx(5.0, abs=0.5)


def test_restored_drift_corrects_bit_for_bit() -> None:
    drift, rng = Drift(20.0), np.random.default_rng(3)
    rows = [(str(t % 7), float(rng.poisson(MEANS[t % 7] * (1 + t / 500))), float(t)) for t in range(400)]
    for row in rows[:200]:
        drift.tell(*row)
    drift.correct(3.0, 150.0)
    other = Drift()
    other.restore(drift.state())
    for row in rows[200:]:
        drift.tell(*row)
        other.tell(*row)
    assert [other.correct(x, 390.0) for x in (0.5, 3.0, 20.0)] == [drift.correct(x, 390.0) for x in (0.5, 3.0, 20.0)]


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        Drift(0.0)
    with pytest.raises(ValueError, match="times count from the beginning"):
        Drift().tell("a", 1.0, -1.0)


def test_a_response_that_nearly_vanished_is_not_blown_up_without_end() -> None:
    drift = Drift(20.0)
    for when in range(1400):
        drift.tell(str(when % 7), float(MEANS[when % 7]) * (1.0 if when < 400 else 0.02), float(when))
    course = drift.course()
    assert course is not None
    assert np.interp(1399.0, course.knots, course.gain) < LEAST_GAIN / 2
    assert drift.correct(10.0, 1399.0) - drift.correct(0.0, 1399.0) == pytest.approx(10.0 / LEAST_GAIN)
