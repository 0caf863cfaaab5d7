"""The clock map on simulated devices: drift, wander, jitter, stalls, restarts, large numbers."""

import itertools
import math
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from rig.clocks.clockmap import ClockMap
from rig.messages import ClockSample

F64 = npt.NDArray[np.float64]
Delays = Callable[[np.random.Generator, int], F64]
RATE = 30_000.0
BLOCK_S = 0.0232
SAMPLE0 = 123_456_789_012
HOST0 = 987_654_321_098_765


def pair(sample: float, host_ns: int, method: str, run: int = 0, **more: int) -> ClockSample:
    return ClockSample.model_validate(
        {"source": "probe", "run": run, "device_sample": sample, "pair_host_ns": host_ns, "method": method, **more}
    )


def wired(rng: np.random.Generator, n: int) -> F64:
    return np.asarray(rng.lognormal(np.log(1e-4), 0.7, n)) + (rng.random(n) < 0.05) * rng.exponential(5e-3, n)


def wifi(rng: np.random.Generator, n: int) -> F64:
    return rng.lognormal(np.log(1e-3), 0.7, n) + (rng.random(n) < 0.2) * rng.exponential(5e-3, n)


def gui(rng: np.random.Generator, n: int) -> F64:
    """Return delays as on a live GUI: 0.8-1.0 ms, sometimes much more."""
    late: F64 = (rng.random(n) < 0.1) * rng.exponential(10e-3, n)
    late += np.maximum(rng.normal(0.9e-3, 0.2e-3, n), 0.3e-3)
    return late


def stalls(rng: np.random.Generator, n: int) -> F64:
    """Return delays of a reader that stands still for 3 s of every 20 s and then gets everything at once."""
    phase = (np.arange(n) * BLOCK_S + 5) % 20
    late: F64 = np.maximum(wired(rng, n), np.where(phase < 3, 3 - phase, 0.0))
    return late


def simulate(delays: Delays, seed: int, seconds: float = 180.0) -> tuple[F64, F64]:
    """Return error and stated uncertainty (ns) of moments within the last 0.3 s, asked for 4 times a second."""
    rng = np.random.default_rng(seed)
    t = np.arange(0, seconds, BLOCK_S)
    turn = 1200 / (2 * np.pi)
    device = RATE * (t * (1 + 40e-6) + 5e-6 * turn * (1 - np.cos(t / turn)))  # 40 ppm, and 5 ppm wander in 20 min
    ends = np.floor(device).astype(np.int64)
    arrivals = t + delays(rng, len(t))
    clockmap, errors, stated = ClockMap(RATE), [], []
    per_pair = 10
    for k in range(0, len(t) - per_pair, per_pair):
        best = k + int(np.argmin((arrivals - ends / RATE)[k : k + per_pair]))
        clockmap.take(pair(int(ends[best]) + SAMPLE0, HOST0 + round(arrivals[best] * 1e9), "arrival", 1))
        for ago_s in (0.0, 0.1, 0.3):
            moment = max(t[k + per_pair] - ago_s, 0.0)
            mapped = clockmap.to_host_ns(float(np.interp(moment, t, device)) + SAMPLE0)
            if mapped is not None:
                errors.append(mapped[0] - HOST0 - moment * 1e9)
                stated.append(mapped[1])
    assert len(errors) > 0.95 * 3 * len(t) / per_pair
    return np.abs(np.array(errors)), np.array(stated, dtype=np.float64)


@pytest.mark.parametrize("delays", [wired, wifi, gui, stalls])
@pytest.mark.parametrize("seed", [0, 1])
def test_error_is_below_a_millisecond_and_inside_what_is_stated(delays: Delays, seed: int) -> None:
    errors, stated = simulate(delays, seed)
    assert np.quantile(errors, 0.99) < 1e6
    assert np.mean(errors <= stated) >= 0.99
    assert np.median(stated) < 1.5e6  # it is worth something


JITTERS: dict[str, Delays] = {
    "uniform 2 ms": lambda rng, n: rng.uniform(0, 2e-3, n),
    "exponential 2 ms": lambda rng, n: rng.exponential(2e-3, n),
    "uniform 5 ms": lambda rng, n: rng.uniform(0, 5e-3, n),
}


def start_up(jitter: Delays, seed: int, seconds: int, ppm: float) -> tuple[list[float], list[float], ClockMap, int]:
    """Return error and bound (ns) at each pair from the start on, the map, and most arrivals in a row not believed."""
    rng, clockmap, errors, stated = np.random.default_rng(seed), ClockMap(RATE), [], []
    late = 1e-3 + jitter(rng, 4 * seconds)
    ignored = longest = 0
    for k in range(4 * seconds):
        sample, true = SAMPLE0 + math.floor(7_500 * k * (1 + ppm * 1e-6)), HOST0 + 250_000_000 * k
        ignored = 0 if clockmap.take(pair(sample, true + round(late[k] * 1e9), "arrival")) else ignored + 1
        longest = max(longest, ignored)
        mapped = clockmap.to_host_ns(sample)
        errors.append(math.nan if mapped is None else abs(mapped[0] - true))
        stated.append(math.nan if mapped is None else mapped[1])
    return errors, stated, clockmap, longest


@pytest.mark.parametrize("jitter", JITTERS)
def test_from_the_first_second_on_arrivals_state_what_they_do_not_know(jitter: str) -> None:
    """200 starts of 6 s, 40 ppm, smallest delay 1 ms: at each moment the bound holds in 99 % of them."""
    starts = [start_up(JITTERS[jitter], seed, 6, 40) for seed in range(200)]
    errors, stated = (np.array([start[k] for start in starts])[:, 5:] for k in (0, 1))  # 5 pairs over 1 s
    assert errors.shape == (200, 19)
    assert np.mean(errors <= stated, axis=0).min() >= 0.99  # nor is there a moment without a map
    assert errors.max() < 8e6
    assert np.median(stated[:, -1]) < 8e6
    assert max(longest for *_, longest in starts) < 8  # nobody is locked out
    assert not any(clockmap.steps_host_ns for _, _, clockmap, _ in starts)


@pytest.mark.parametrize(("jitter", "ppm"), [(j, 40.0) for j in JITTERS] + [("exponential 2 ms", -900.0)])
def test_in_the_first_minute_arrivals_find_the_rate(jitter: str, ppm: float) -> None:
    """Also a File Reader's, 900 ppm off: it is within what is doubted from the start."""
    starts = [start_up(JITTERS[jitter], seed, 40, ppm) for seed in range(12)]
    inside = [e <= s for errors, stated, *_ in starts for e, s in zip(errors[5:], stated[5:], strict=True)]
    assert np.mean(inside) >= 0.99
    for errors, stated, clockmap, longest in starts:
        assert max(errors[80:]) < 4e6
        assert stated[-1] < 2.5e6
        assert clockmap.drift_ppm() == pytest.approx(ppm, abs=40)
        assert longest < 8
        assert clockmap.steps_host_ns == []
        assert ("clock drift" in [what for what, _ in clockmap.warnings()]) == (ppm == -900)


def test_several_late_arrivals_in_a_row_are_in_the_bound_before_they_are_believed() -> None:
    rng, clockmap = np.random.default_rng(4), ClockMap(RATE)
    for k in range(300):
        sample, step = SAMPLE0 + 7_500 * k, 15_000_000 if k >= 240 else 0
        clockmap.take(pair(sample, host_of(sample, step) + round(wired(rng, 1)[0] * 1e9), "arrival"))
        if k >= 245:
            error, stated = error_ns(clockmap, k, step)
            assert error <= stated
    assert clockmap.steps_host_ns == []  # 15 s: not yet


def test_without_delay_it_is_exact_whatever_the_origin() -> None:
    clockmap = ClockMap()
    for k in range(40):
        clockmap.take(pair(SAMPLE0 + 7_500 * k, HOST0 + 250_000_000 * k, "arrival", 3))
    mapped = clockmap.to_host_ns(SAMPLE0 + 7_500 * 39 + 3)
    assert mapped is not None
    assert abs(mapped[0] - (HOST0 + 250_000_000 * 39 + 100_000)) <= 10
    back = clockmap.to_sample(mapped[0])
    assert back is not None
    assert back[0] == pytest.approx(SAMPLE0 + 7_500 * 39 + 3, abs=1e-3)
    assert clockmap.ns_per_sample() == pytest.approx(1e9 / RATE, rel=1e-9)


def test_it_says_nothing_before_it_knows() -> None:
    clockmap = ClockMap()
    assert clockmap.to_host_ns(0) is None
    assert clockmap.to_sample(0) is None
    for k in range(4):
        clockmap.take(pair(30_000 * k, 10**9 * k, "arrival", 0))
    assert clockmap.to_host_ns(0) is None  # four pairs
    for k in range(20):
        clockmap.take(pair(300 * (k + 1), 10_000_000 * (k + 1), "arrival", 1))
    assert clockmap.to_host_ns(0) is None  # many pairs within 0.2 s


def test_a_new_run_forgets_the_old_one() -> None:
    clockmap = ClockMap()
    for k in range(20):
        clockmap.take(pair(7_500 * k, 250_000_000 * k, "arrival", 0))
    assert clockmap.to_host_ns(0) is not None
    clockmap.take(pair(100, 10**12, "arrival", 1))
    assert clockmap.to_host_ns(100) is None


def test_a_backlog_read_in_one_burst_gives_no_map() -> None:
    """Its arrivals say nothing about the device: a rate far from the nominal one is refused, where that is known."""
    clockmap = ClockMap(RATE)
    for k in range(20):
        clockmap.take(pair(7_500 * k, 10**9 + 60_000_000 * k, "arrival", 0))
    assert clockmap.to_host_ns(0) is None
    clockmap.nominal_hz = None
    assert clockmap.to_host_ns(0) is not None


def test_it_follows_only_the_last_minute() -> None:
    clockmap = ClockMap()
    sample = 0
    for k in range(800):  # the first 100 s run 1 % slow
        sample += 7_425 if k < 400 else 7_500
        clockmap.take(pair(sample, 250_000_000 * k, "arrival", 0))
    assert clockmap.ns_per_sample() == pytest.approx(1e9 / RATE, rel=1e-9)


def test_uncertainty_grows_with_distance_from_the_pairs() -> None:
    rng = np.random.default_rng(0)
    clockmap = ClockMap()
    for k, delay in enumerate(wifi(rng, 60)):
        clockmap.take(pair(7_500 * k, round(250_000_000 * k + delay * 1e9), "arrival", 0))
    stated = [clockmap.to_host_ns(7_500 * 59 + ahead) for ahead in (0, 30_000, 300_000, 3_000_000)]
    values = [s[1] for s in stated if s is not None]
    assert len(values) == 4
    assert values == sorted(values)
    assert values[3] > 1.4 * values[0]


def test_pairs_that_are_not_newer_change_nothing_but_the_trust_until_the_next_good_one() -> None:
    clockmap = ClockMap()
    for k in range(20):
        clockmap.take(pair(7_500 * k, 250_000_000 * k, "arrival", 0))
    before = clockmap.to_host_ns(150_000)
    clockmap.take(pair(7_500 * 19, 250_000_000 * 25, "arrival", 0))
    clockmap.take(pair(7_500 * 3, 250_000_000 * 26, "arrival", 0))
    clockmap.take(pair(7_500 * 18, 250_000_000 * 18, "arrival", 0))  # sent again
    assert clockmap.to_host_ns(150_000) == before
    clockmap.take(pair(7_500 * 30, 250_000_000, "arrival", 0))
    doubted = clockmap.to_host_ns(150_000)
    clockmap.take(pair(7_500 * 20, 250_000_000 * 20, "arrival", 0))
    after = clockmap.to_host_ns(150_000)
    assert before is not None
    assert doubted is not None
    assert after is not None
    assert before[0] == doubted[0] == after[0]
    assert doubted[1] > 10**9 > 1_100_000 > after[1]


def test_the_same_pairs_give_the_same_map_bit_for_bit() -> None:
    def run() -> list[tuple[int, int] | None]:
        clockmap = ClockMap()
        out = []
        for k, delay in enumerate(gui(np.random.default_rng(5), 300)):
            clockmap.take(pair(7_500 * k, round(250_000_000 * k + delay * 1e9), "arrival", 0))
            out.append(clockmap.to_host_ns(7_500 * k))
        return out

    assert run() == run()


def test_exact_pairs_take_over() -> None:
    clockmap = ClockMap()
    for k in range(40):
        clockmap.take(pair(7_500 * k, 250_000_000 * k + 4_000_000, "arrival"))  # a path never faster than 4 ms
    for k in range(10):
        clockmap.take(pair(30_000 * k, 10**9 * k, "edge", uncertainty_ns=10_000))
    mapped = clockmap.to_host_ns(270_000)
    assert mapped is not None
    assert abs(mapped[0] - 9 * 10**9) < 1_000
    assert mapped[1] < 100_000


# --- kinds of pairs, steps, warnings ----------------------------------------------------------------------------------


def host_of(sample: float, step_ns: int = 0) -> int:
    """Return the true host time of a sample of an ideal 30 kHz device."""
    return HOST0 + round((sample - SAMPLE0) * 1e9 / RATE) + step_ns


def ask(rng: np.random.Generator, k: int, up: Delays = wired, down: Delays = wired, step_ns: int = 0) -> ClockSample:
    """Return the round trip that the device answers at its sample 7500 k, a quarter of a second after the last."""
    there, back = round(up(rng, 1)[0] * 1e9), round(down(rng, 1)[0] * 1e9)
    middle = host_of(SAMPLE0 + 7_500 * k, step_ns) + (back - there) // 2
    return pair(SAMPLE0 + 7_500 * k, middle, "round_trip", round_trip_ns=there + back)


def error_ns(clockmap: ClockMap, k: int, step_ns: int = 0) -> tuple[float, float]:
    """Return error and stated bound at sample 7500 k."""
    mapped = clockmap.to_host_ns(SAMPLE0 + 7_500 * k)
    assert mapped is not None
    return abs(mapped[0] - host_of(SAMPLE0 + 7_500 * k, step_ns)), mapped[1]


def never(rng: np.random.Generator, n: int) -> F64:
    """A direction without delay: as lopsided as a path can be, and nothing in the pairs shows it."""
    return np.zeros(n)


@pytest.mark.parametrize(("up", "down"), [(wired, wired), (wifi, wifi), (wifi, never), (never, wired), (gui, never)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_round_trips_stay_within_what_they_state_however_lopsided_the_path(up: Delays, down: Delays, seed: int) -> None:
    rng, clockmap, inside = np.random.default_rng(seed), ClockMap(RATE), []
    for k in range(1200):
        clockmap.take(ask(rng, k, up, down))
        if clockmap.line is not None:
            error, stated = error_ns(clockmap, k + 1)
            inside.append(error <= stated)
    assert len(inside) > 1190  # from the fifth pair on
    assert np.mean(inside) >= 0.99
    assert clockmap.warnings() == []


def test_round_trips_take_over_from_arrivals_and_arrivals_come_back_when_they_end() -> None:
    rng, clockmap = np.random.default_rng(0), ClockMap(RATE)
    kinds = []
    for k in range(1000):
        sample = SAMPLE0 + 7_500 * k
        clockmap.take(pair(sample, host_of(sample) + 900_000 + round(wired(rng, 1)[0] * 1e9), "arrival"))
        if 100 <= k < 300:
            clockmap.take(ask(rng, k))
        if clockmap.line is not None:
            kinds.append(clockmap.line.kind)
            error, stated = error_ns(clockmap, k)
            assert error <= stated
    assert kinds[0] == kinds[-1] == "arrival"
    assert kinds[200] == "round_trip"
    changes = sum(a != b for a, b in itertools.pairwise(kinds))
    assert changes == 2


def test_a_few_edges_set_the_offset_and_arrivals_the_slope_between_them() -> None:
    """An edge every 20 s: three in a minute make no line of their own, and still the path's delay is gone."""
    rng, clockmap, errors = np.random.default_rng(1), ClockMap(RATE), []
    for k in range(480):
        sample = SAMPLE0 + 7_500 * k
        clockmap.take(pair(sample, host_of(sample) + 4_000_000 + round(wired(rng, 1)[0] * 1e9), "arrival"))
        if k % 80 == 0:
            clockmap.take(pair(sample, host_of(sample), "edge", uncertainty_ns=50_000))
        if k > 90:
            errors.append(error_ns(clockmap, k))
    assert max(e for e, _ in errors) < 200_000
    assert all(e <= stated for e, stated in errors)
    assert clockmap.line is not None
    assert clockmap.line.kind == "exact"
    assert [what for what, _ in clockmap.warnings()] == ["clock residual"]  # the arrivals claimed 1 ms and were 4 off


def test_a_wrong_edge_now_and_then_does_no_harm() -> None:
    rng, clockmap = np.random.default_rng(2), ClockMap(RATE)
    for k in range(400):
        wrong = 8_333_333 if rng.random() < 0.1 else 0  # paired with the edge before
        sample = SAMPLE0 + 7_500 * k
        clockmap.take(pair(sample, host_of(sample, wrong), "edge", uncertainty_ns=50_000))
        if k > 20:
            error, stated = error_ns(clockmap, k)
            assert error < 50_000 < stated
    assert clockmap.steps_host_ns == []
    assert [what for what, _ in clockmap.warnings()] == ["clock residual"]
    assert clockmap.warnings() == []  # once


@pytest.mark.parametrize("step_ns", [3_000_000, -3_000_000, 2 * 10**9, -2 * 10**9])
@pytest.mark.parametrize("method", ["round_trip", "edge"])
def test_a_step_of_a_clock_is_found_said_and_followed(step_ns: int, method: str) -> None:
    rng, clockmap = np.random.default_rng(3), ClockMap(RATE)
    for k in range(400):
        step = step_ns if k >= 200 else 0
        sample = SAMPLE0 + 7_500 * k
        edge = pair(sample, host_of(sample, step), "edge", uncertainty_ns=40_000)
        clockmap.take(edge if method == "edge" else ask(rng, k, step_ns=step))
        if k > 20:  # also while the map does not know yet which of the two to believe
            error, stated = error_ns(clockmap, k, step)
            assert error <= stated
    assert len(clockmap.steps_host_ns) == 1
    news = clockmap.warnings()
    assert [what for what, _ in news] == ["clock residual", "clock stepped"]
    said = re.search(r"by ([+-][0-9.]+) ms", news[1][1])
    assert said is not None
    assert float(said[1]) == pytest.approx(step_ns * 1e-6, abs=0.1)


@pytest.mark.parametrize("step_ns", [15_000_000, -15_000_000])
def test_arrivals_show_a_step_later_and_with_less_certainty(step_ns: int) -> None:
    rng, clockmap = np.random.default_rng(4), ClockMap(RATE)
    for k in range(500):
        sample, step = SAMPLE0 + 7_500 * k, step_ns if k >= 200 else 0
        clockmap.take(pair(sample, host_of(sample, step) + round(wired(rng, 1)[0] * 1e9), "arrival"))
        if k > 300:  # at most 20 s of being late, then 5 s to find the new slope
            error, stated = error_ns(clockmap, k, step)
            assert error <= stated
    ((_, detail),) = [w for w in clockmap.warnings() if w[0] == "clock stepped"]
    assert "or the path" in detail


def test_kinds_that_contradict_each_other_for_good_are_no_steps() -> None:
    """Edges of the wrong line, 5 ms off: said once, and the bound holds the truth."""
    rng, clockmap = np.random.default_rng(8), ClockMap(RATE)
    for k in range(400):
        clockmap.take(ask(rng, k))
        if k % 4 == 0:
            sample = SAMPLE0 + 7_500 * k
            clockmap.take(pair(sample, host_of(sample) + 5_000_000, "edge", uncertainty_ns=40_000))
        if k > 40:  # the first round trips alone cannot tell
            error, stated = error_ns(clockmap, k)
            assert error <= stated + 500_000  # by as much as the newest round trip is itself off
    assert clockmap.steps_host_ns == []
    assert [what for what, _ in clockmap.warnings()] == ["clock residual"]


def test_a_reader_that_stands_still_is_no_step() -> None:
    rng, clockmap = np.random.default_rng(5), ClockMap(RATE)
    late = stalls(rng, 8000)
    for k in range(0, 8000, 10):
        sample = SAMPLE0 + round(k * BLOCK_S * RATE)
        clockmap.take(pair(sample, host_of(sample) + round(late[k] * 1e9), "arrival"))
    assert clockmap.steps_host_ns == []
    assert clockmap.warnings() == []


@pytest.mark.parametrize(("ppm", "warned"), [(100, False), (-100, False), (200, True), (-200, True)])
@pytest.mark.parametrize("method", ["arrival", "round_trip"])
def test_more_than_150_ppm_is_warned_of_once_per_run(ppm: int, warned: bool, method: str) -> None:
    rng, clockmap = np.random.default_rng(6), ClockMap(RATE)
    said = []
    for run in (0, 1):
        for k in range(400):
            sample = SAMPLE0 + 7_500 * k * (1 + ppm * 1e-6)
            late = round(wired(rng, 1)[0] * 1e9)
            host_ns = host_of(SAMPLE0 + 7_500 * k) + (late if method == "arrival" else 0)
            clockmap.take(pair(sample, host_ns, method, run, round_trip_ns=2 * late))
            said += clockmap.warnings()
    assert [what for what, _ in said] == ["clock drift"] * (2 * warned)
    assert clockmap.drift_ppm() == pytest.approx(ppm, abs=5)


def test_a_pair_without_its_round_trip_is_worth_no_more_than_an_arrival() -> None:
    clockmap = ClockMap(RATE)
    for k in range(40):
        clockmap.take(pair(SAMPLE0 + 7_500 * k, host_of(SAMPLE0 + 7_500 * k), "round_trip"))
    assert error_ns(clockmap, 39)[1] >= 1_000_000


def test_the_nominal_rate_may_come_late() -> None:
    clockmap = ClockMap()
    for k in range(40):
        clockmap.take(pair(SAMPLE0 + 7_500 * k, host_of(SAMPLE0 + 7_500 * k), "edge", uncertainty_ns=50_000))
    assert clockmap.drift_ppm() is None
    clockmap.nominal_hz = RATE
    assert clockmap.drift_ppm() == pytest.approx(0, abs=1e-3)
    clockmap.nominal_hz = RATE * 1.05
    assert clockmap.to_host_ns(SAMPLE0) is None  # not believed
