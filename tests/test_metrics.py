"""Scores against simulated truth: values, spread, coverage of intervals, missing repeats, and what is not defined."""

import numpy as np
import numpy.typing as npt
import pytest

from models import metrics
from models.metrics import Bootstrap, Estimate, LiveScores

F64 = npt.NDArray[np.float64]

DRAWS = 400  # units serve as draws: everything is vectorised over them
IMAGES, REPEATS = 300, 6


def gaussian(r2: float, seed: int, images: int = IMAGES, units: int = DRAWS) -> tuple[F64, F64]:
    """Return an optimally scaled prediction of the given true R2, and responses; signal variance 1, noise 4."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(images, units))
    prediction = r2 * signal + np.sqrt(r2 * (1 - r2)) * rng.normal(size=signal.shape)
    return prediction, signal[:, None] + 2 * rng.normal(size=(images, REPEATS, units))


def near(found: F64, mean: float, sd: float) -> None:
    """Assert mean and spread over draws; the known figures are rounded to .001 and come from 1,500 draws."""
    error = sd * np.sqrt(1 / len(found) + 1 / 1500)
    assert np.mean(found) == pytest.approx(mean, abs=4 * error + 0.001)
    assert np.std(found) == pytest.approx(sd, rel=0.15)


# True R2, then mean and sd of naive r2 and R2_ER, then means of FEVe and of the correlation to single trials.
TABLE = [
    (1.0, (0.599, 0.035), (1.002, 0.062), 1.002, 0.446),
    (0.5, (0.302, 0.044), (0.504, 0.071), 0.501, 0.316),
    (0.2, (0.122, 0.035), (0.201, 0.057), 0.196, 0.199),
]


@pytest.mark.parametrize(("truth", "naive", "unbiased", "feve", "single"), TABLE)
def test_the_table_of_known_values_comes_out(
    truth: float, naive: tuple[float, float], unbiased: tuple[float, float], feve: float, single: float
) -> None:
    prediction, responses = gaussian(truth, seed=round(10 * truth))
    found = metrics.scores(prediction, responses, bootstrap=None)
    near(found["correlation_to_average"].value ** 2, *naive)
    near(found["r2_er"].value, *unbiased)
    fev = found["fev"].value
    assert fev.mean() == pytest.approx(0.1993, abs=0.004)
    known = found["feve"].value[np.isfinite(found["feve"].value)]
    assert known.mean() == pytest.approx(feve, abs=0.013)
    assert found["single_trial_correlation"].value.mean() == pytest.approx(single, abs=0.005)
    assert found["oracle_jackknife"].value.mean() == pytest.approx(0.3315, abs=0.005)
    assert found["oracle_conservative"].value.mean() == pytest.approx(0.5765, abs=0.003)
    # the ceiling of the single-trial correlation, sqrt(FEV) = .447, lies between the two oracles
    assert found["oracle_jackknife"].value.mean() < np.sqrt(0.2) < found["oracle_conservative"].value.mean()


def test_formulas_are_the_published_ones_written_out() -> None:
    """One unit, equal repeats: each formula again, as it stands in its source."""
    prediction, responses = gaussian(0.5, seed=3, images=40, units=1)
    p, r = prediction[:, 0], responses[:, :, 0]
    mean, n, m = r.mean(axis=1), REPEATS, 40
    s2 = r.var(axis=1, ddof=1).mean()
    found = {name: e.value[0] for name, e in metrics.scores(prediction, responses, bootstrap=None).items()}
    assert found["correlation_to_average"] == pytest.approx(np.corrcoef(p, mean)[0, 1], abs=1e-7)
    assert found["single_trial_correlation"] == pytest.approx(np.corrcoef(np.repeat(p, n), r.ravel())[0, 1], abs=1e-7)
    others = (r.sum(axis=1, keepdims=True) - r) / (n - 1)
    assert found["oracle_jackknife"] == pytest.approx(np.corrcoef(r.ravel(), others.ravel())[0, 1], abs=1e-7)
    v, w = mean.var(), r.var(axis=1).mean()
    assert found["oracle_conservative"] == pytest.approx(v / np.sqrt(v * (v + w)), abs=1e-12)
    total = r.var(ddof=1)
    assert found["fev"] == pytest.approx((total - s2) / total, abs=1e-12)
    if found["fev"] > 0.15:
        assert found["feve"] == pytest.approx(1 - (((r - p[:, None]) ** 2).mean() - s2) / (total - s2), abs=1e-12)
    x, y = p - p.mean(), mean - mean.mean()
    top = (x @ y) ** 2 - s2 / n * (x @ x)
    assert found["r2_er"] == pytest.approx(top / (x @ x * (y @ y) - s2 / n * (m - 1) * (x @ x)), abs=1e-12)
    counts = np.random.default_rng(0).poisson(4.0 + 3 * np.sin(np.arange(40))[:, None], (40, n)).astype(float)
    stable = 2 * np.sqrt(counts + 3 / 8)
    snr = stable.mean(axis=1).var(ddof=1) / stable.var(axis=1, ddof=1).mean()
    assert metrics.signal_to_noise(counts[:, :, None], None).value[0] == pytest.approx(snr, abs=1e-12)


def poisson(seed: int, images: int, most: int, least: int) -> tuple[F64, F64, F64]:
    """Return prediction, true rates and counts with unequal repeats; the prediction has R2 .5 on average."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(2.0, 1.5, (images, DRAWS))
    z = (rate - 3) / np.sqrt(4.5)
    prediction = 3 + np.sqrt(4.5) * (0.5 * z + 0.5 * rng.normal(size=z.shape))
    counts = rng.poisson(rate[:, None], (images, most, DRAWS)).astype(np.float64)
    repeats = rng.integers(least, most + 1, rate.shape)
    counts[np.arange(most)[None, :, None] >= repeats[:, None]] = np.nan
    return prediction, rate, counts


def test_scores_are_unbiased_with_poisson_counts_and_unequal_repeats() -> None:
    prediction, rate, counts = poisson(0, images=200, most=9, least=1)
    found = metrics.scores(prediction, counts, ["r2_er", "feve", "fev"], bootstrap=None)
    x, y = prediction - prediction.mean(axis=0), rate - rate.mean(axis=0)
    truth = {
        "r2_er": (x * y).sum(axis=0) ** 2 / ((x * x).sum(axis=0) * (y * y).sum(axis=0)),
        "feve": 1 - ((rate - prediction) ** 2).mean(axis=0) / rate.var(axis=0),
        "fev": rate.var(axis=0) / (rate.var(axis=0) + rate.mean(axis=0)),
    }
    for name, true in truth.items():
        away = found[name].value - true
        assert abs(away.mean()) < 4 * away.std() / np.sqrt(DRAWS) + 0.002, name
    # The median number of repeats in place of each image's own, as published for equal ones, is off by far more.
    repeats = np.isfinite(counts).sum(axis=1)
    mean = np.nansum(counts, axis=1) / repeats
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = np.nansum((counts - mean[:, None]) ** 2, axis=1) / (repeats - 1)
    s2, n = np.nanmean(np.where(repeats > 1, squares, np.nan), axis=0), np.median(repeats, axis=0)
    y = mean - mean.mean(axis=0)
    xx = (x * x).sum(axis=0)
    published = ((x * y).sum(axis=0) ** 2 - s2 / n * xx) / (xx * ((y * y).sum(axis=0) - s2 / n * 199))
    assert np.mean(published - truth["r2_er"]) < -0.02


@pytest.mark.parametrize("name", ["r2_er", "single_trial_correlation", "correlation_to_average", "fev"])
def test_intervals_cover_the_truth(name: str) -> None:
    truth = {"r2_er": 0.5, "single_trial_correlation": np.sqrt(0.1), "correlation_to_average": np.sqrt(0.3), "fev": 0.2}
    prediction, responses = gaussian(0.5, seed=8)
    found = metrics.scores(prediction, responses, [name], Bootstrap(draws=400))[name]
    below, above = np.mean(found.high < truth[name]), np.mean(found.low > truth[name])
    assert 0.91 <= 1 - below - above <= 0.98
    assert max(below, above) < 0.05  # to both sides
    assert np.all(found.low < found.value)
    assert np.all(found.value < found.high)


def test_intervals_are_seeded_and_the_same_in_any_company() -> None:
    prediction, responses = gaussian(0.5, seed=1, images=150, units=130)
    whole = metrics.r2_er(prediction, responses)
    alone = metrics.r2_er(prediction[:, 129:], responses[:, :, 129:])
    assert np.array_equal(whole.low, metrics.r2_er(prediction, responses).low)
    assert alone.low[0] == pytest.approx(whole.low[129], rel=1e-9)
    other = metrics.r2_er(prediction, responses, Bootstrap(seed=1))
    assert not np.array_equal(whole.low, other.low)
    assert np.array_equal(whole.value, other.value)
    with pytest.raises(ValueError, match="bootstrap of 10 draws"):
        Bootstrap(draws=10)


def reason(found: Estimate) -> str:
    assert np.isnan(found.value[0])
    assert np.isnan(found.low[0])
    return found.undefined[0]


def test_what_is_not_defined_says_why() -> None:
    prediction, responses = gaussian(0.5, seed=2, images=30, units=1)
    once = responses.copy()
    once[:, 1:] = np.nan
    for name in ("oracle_jackknife", "oracle_conservative", "fev", "feve", "r2_er"):
        found = metrics.scores(prediction, once, [name])[name]
        assert "no image has two usable repeats" in reason(found)
    assert np.isfinite(metrics.correlation_to_average(prediction, once).value[0])
    few = once.copy()
    few[:2, 1] = 1.0
    assert "2 images with two usable repeats" in reason(metrics.r2_er(prediction, few))
    assert "2 images with a usable response" in reason(metrics.r2_er(prediction[:2], responses[:2]))
    assert "do not vary" in reason(metrics.single_trial_correlation(np.ones_like(prediction), responses))
    assert "prediction does not vary" in reason(metrics.r2_er(np.full_like(prediction, 1e6 / 3), responses))
    constant = np.full_like(responses, 0.1)
    for name in ("oracle_jackknife", "fev", "r2_er", "feve"):
        assert reason(metrics.scores(prediction, constant, [name])[name])
    assert "not counts" in reason(metrics.signal_to_noise(responses))
    noise = np.random.default_rng(0).normal(size=(100, 4, 1))
    assert "explainable variance is not above" in reason(metrics.feve(prediction[:1].repeat(100, axis=0), noise))
    # a prediction that is missing for some images leaves those out, and says how many there were
    part = prediction.copy()
    part[10:] = np.nan
    assert metrics.r2_er(part, responses).images[0] == 10
    with pytest.raises(ValueError, match=r"give \(image, repeat, unit\)"):
        metrics.r2_er(prediction, responses[:, 0])
    with pytest.raises(ValueError, match="there is no score 'r2'"):
        metrics.scores(prediction, responses, ["r2"])
    with pytest.raises(ValueError, match="compares responses with a prediction"):
        metrics.scores(None, responses, ["r2_er"])
    with pytest.raises(ValueError, match="infinite"):
        metrics.r2_er(prediction, np.where(responses > 1, np.inf, responses))


def test_presentations_are_sorted_into_images() -> None:
    names, table = metrics.by_image(["b", "a", "b"], np.array([[1.0], [2.0], [3.0]]))
    assert names == ("b", "a")
    assert table[:, :, 0].tolist()[0] == [1.0, 3.0]
    assert np.isnan(table[1, 1, 0])


# --- live -------------------------------------------------------------------------------------------------------------


def folded(live: LiveScores, prediction: F64, responses: F64, order: npt.NDArray[np.intp]) -> None:
    repeats = responses.shape[1]
    for at in order.tolist():
        image, repeat = divmod(at, repeats)
        live.predict(f"p{at}", f"i{image}", prediction[image])
        live.tell(f"p{at}", f"i{image}", responses[image, repeat])


def test_live_scores_are_those_of_the_finished_table_and_survive_a_restart() -> None:
    prediction, responses = gaussian(0.5, seed=5, images=20, units=3)
    responses[3, 1:, 1] = np.nan
    order = np.random.default_rng(0).permutation(20 * REPEATS)
    live, again = LiveScores(3), LiveScores(3)
    folded(live, prediction, responses, order[:50])
    live.predict("open", "i0", prediction[0])
    again.restore(live.state())
    for one in (live, again):
        folded(one, prediction, responses, order[50:])
        one.forget("open")
    whole = metrics.scores(prediction, responses, bootstrap=None)
    for name, expected in whole.items():
        found = live.figures(name, None)
        assert np.array_equal(found.value, again.figures(name, None).value, equal_nan=True)
        assert found.value == pytest.approx(expected.value, rel=1e-9, nan_ok=True), name
        assert found.undefined == expected.undefined
    ends = live.figures("r2_er"), again.figures("r2_er")
    assert np.array_equal(ends[0].low, ends[1].low, equal_nan=True)
    assert np.isfinite(ends[0].low).any()


def test_a_prediction_after_the_fact_is_none() -> None:
    live = LiveScores(2)
    live.predict("one", "a", np.ones(2))
    with pytest.raises(ValueError, match="a prediction stands"):
        live.predict("one", "a", np.zeros(2))
    with pytest.raises(ValueError, match="'a' was predicted"):
        live.tell("one", "b", np.ones(2))
    live.tell("one", "a", np.ones(2))
    live.tell("one", "a", np.full(2, 7.0))  # told twice, it counts once
    with pytest.raises(ValueError, match="is known already"):
        live.predict("one", "a", np.ones(2))
    live.tell("two", "b", np.ones(2))  # nobody predicted it: the data's, not the model's
    assert live.figures("single_trial_correlation", None).presentations.tolist() == [1, 1]
    assert live.figures("oracle_jackknife", None).presentations.tolist() == [2, 2]
    with pytest.raises(ValueError, match="scores of 2 units, not of 3"):
        LiveScores(3).restore(live.state())
    with pytest.raises(ValueError, match="there are 2 units"):
        live.tell("three", "b", np.ones(3))


def test_a_model_that_learns_is_scored_by_what_it_said_at_the_time() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=40)
    live = LiveScores(1)
    for repeat in range(4):
        for image in range(40):
            # worthless before the second half of the session, perfect after; the responses have no noise
            said = signal[image] if repeat >= 2 else rng.normal()
            live.predict(f"{repeat}-{image}", str(image), np.array([said]))
            live.tell(f"{repeat}-{image}", str(image), signal[[image]])
    found = live.figures("single_trial_correlation", None).value[0]
    assert 0.3 < found < 0.7
