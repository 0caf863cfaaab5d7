"""Tests behind claims: right on equal truths as often as they say, and powerful enough on unequal ones."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from models.agents.selection import false_discoveries
from models.statistics import (
    LEAST_PAIRS,
    RESAMPLES,
    benjamini_hochberg,
    confusion,
    match_units,
    over_units,
    paired_scores,
    paired_tests,
    shared_images,
)

F64 = npt.NDArray[np.float64]


def at_most(hits: int, of: int, rate: float) -> bool:
    """Say whether so many hits are no more than `rate` allows, three standard errors included."""
    return hits <= rate * of + 3 * np.sqrt(of * rate * (1 - rate))


# --- Benjamini-Hochberg -----------------------------------------------------------------------------------------------


def test_q_values_reject_what_the_step_up_procedure_rejects() -> None:
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.random(40), rng.random(10) / 500, [np.nan]])
    q = benjamini_hochberg(p)
    for rate in (0.01, 0.05, 0.2):
        assert (q <= rate).tolist() == false_discoveries(p.tolist(), rate)
    assert benjamini_hochberg([0.01, 0.02, 0.03, 0.9]).tolist() == pytest.approx([0.04, 0.04, 0.04, 0.9])
    assert np.isnan(q[-1])
    assert benjamini_hochberg([]).shape == (0,)


# --- paired tests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", ["permutation", "wilcoxon"])
@pytest.mark.parametrize("repeats", [8, 20])
def test_equal_truths_are_found_different_in_at_most_5_percent(test: str, repeats: int) -> None:
    rng = np.random.default_rng(repeats)
    units = 400
    rate = rng.gamma(2.0, 2.0, units)
    first, second = rng.poisson(rate, (2, repeats, units)).astype(np.float64)
    for alternative in ("two-sided", "greater"):
        found = paired_tests(first, second, test, alternative)  # type: ignore[arg-type]
        assert at_most(int((found.p <= 0.05).sum()), units, 0.05)
        assert (found.p <= 0.5).mean() > 0.3  # not by never finding anything
        assert (found.q <= 0.05).sum() <= 1  # over all units together


def test_p_is_the_one_of_scipy() -> None:
    """All arrangements of ten pairs, one unit at a time."""
    d = np.random.default_rng(0).normal(0.4, 1.0, (10, 3))
    zero = np.zeros_like(d)
    for alternative in ("two-sided", "greater"):
        by_mean = paired_tests(d, zero, "permutation", alternative).p  # type: ignore[arg-type]
        by_rank = paired_tests(d, zero, "wilcoxon", alternative).p  # type: ignore[arg-type]
        for unit in range(3):
            known = stats.permutation_test(
                (d[:, unit],), lambda x, axis: x.mean(axis=axis), permutation_type="samples", vectorized=True,
                n_resamples=2000, alternative=alternative,
            )  # fmt: skip
            assert by_mean[unit] == pytest.approx(known.pvalue)
            ranked = stats.wilcoxon(d[:, unit], alternative=alternative, method="exact")
            assert by_rank[unit] == pytest.approx(ranked.pvalue)
    many = np.random.default_rng(1).normal(0.3, 1.0, (30, 1))
    t = stats.ttest_1samp(many[:, 0], 0.0).pvalue  # of normal differences nearly the same, where not all are tried
    assert paired_tests(many, np.zeros_like(many)).p[0] == pytest.approx(t, rel=0.15)
    all_higher = np.linspace(1.0, 2.0, 40)[:, None]  # no random swap does as much: the observed one counts, p is not 0
    none = np.zeros_like(all_higher)
    assert paired_tests(all_higher, none).p[0] == 1 / (RESAMPLES + 1)
    assert paired_scores(all_higher, none, lambda means: means[..., 0]).p == 1 / (RESAMPLES + 1)


def test_unequal_truths_are_found_after_correction() -> None:
    """Half of the units fire 60 % more to the first image: 20 repeats of about 4 and 6.4 spikes."""
    rng = np.random.default_rng(1)
    gain = np.where(np.arange(200) < 100, 1.6, 1.0)
    first, second = (rng.poisson(4.0 * g, (20, 200)).astype(np.float64) for g in (gain, np.ones(200)))
    for test in ("permutation", "wilcoxon"):
        found = paired_tests(first, second, test)  # type: ignore[arg-type]
        rejected = found.q <= 0.05
        assert rejected[:100].mean() > 0.6
        assert rejected[100:].sum() <= 0.05 * rejected.sum() + 3 * np.sqrt(0.05 * rejected.sum())
        assert found.difference[:100].mean() == pytest.approx(2.4, abs=0.3)


def test_pairs_with_a_missing_repeat_are_left_out_and_too_few_are_no_test() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(1.0, 1.0, (12, 3)), rng.normal(0.0, 1.0, (12, 3))
    whole = paired_tests(first, second)
    first[2:5, 0] = np.nan
    second[LEAST_PAIRS - 1 :, 1] = np.nan
    found = paired_tests(first, second)
    assert found.pairs.tolist() == [9, LEAST_PAIRS - 1, 12]
    assert np.isnan(found.p[1])
    assert np.isnan(found.q[1])
    assert np.isfinite(found.difference[1])
    assert found.p[2] == whole.p[2]  # seeded by unit
    assert found.q[2] == pytest.approx(benjamini_hochberg(found.p)[2])
    assert paired_tests(np.ones((8, 1)), np.ones((8, 1))).p[0] == 1.0
    with pytest.raises(ValueError, match=r"\(repeat, unit\), paired"):
        paired_tests(first, second[:3])


# --- over units -------------------------------------------------------------------------------------------------------


def test_a_population_is_tested_by_signed_ranks_of_its_units() -> None:
    rng = np.random.default_rng(4)
    control = rng.gamma(3.0, 5.0, 12)
    found = over_units(1.4 * control, control)
    assert (found.units, found.ratio, found.low, found.high) == pytest.approx((12, 1.4, 1.4, 1.4))
    assert found.p == pytest.approx(2 / 2**12)  # every unit has the same sign: 1 in 2^12 on either side
    assert np.isnan(over_units(control[:5], control[:5] + 1).p)
    missing = np.where(np.arange(12) < 4, np.nan, control)
    assert over_units(missing, control).units == 8
    assert over_units(missing, control).p == 1.0
    silent = over_units(control, np.where(np.arange(12) < 3, 0.0, control / 2))  # some answer to one alone
    assert (silent.ratio, silent.high) == (2.0, np.inf)
    assert np.isnan(over_units(control - 10, control).ratio)  # below the baseline: no ratio, but a test
    assert over_units(control - 10, control).p < 0.001


def test_over_units_equal_truths_are_found_different_in_5_percent_and_the_interval_holds_the_ratio() -> None:
    rng = np.random.default_rng(5)
    false = inside = 0
    for _ in range(300):
        control = rng.gamma(3.0, 5.0, 12)
        false += over_units(control + rng.standard_normal(12), control + rng.standard_normal(12)).p <= 0.05
        found = over_units(control * np.exp(0.3 + 0.4 * rng.standard_normal(12)), control)
        inside += found.low <= np.exp(0.3) <= found.high
    assert at_most(false, 300, 0.05)
    assert false > 2
    assert at_most(300 - inside, 300, 0.05)
    assert inside < 300


# --- confusion matrix -------------------------------------------------------------------------------------------------


def shown(rates: F64, repeats: int, rng: np.random.Generator) -> tuple[F64, npt.NDArray[np.int64]]:
    """Return counts (presentation, unit) and sets for true rates (unit, set)."""
    sets = np.tile(np.arange(rates.shape[1]), repeats)
    return rng.poisson(rates.T[sets]).astype(np.float64), sets


def test_own_images_are_the_row_maximum_where_truth_says_so_and_at_chance_where_not() -> None:
    rng = np.random.default_rng(0)
    rates = np.full((30, 30), 4.0)
    tuned = rates + 8 * np.eye(30)
    found = confusion(*shown(tuned, 10, rng), np.arange(30))
    assert found.hits == found.tested == 30
    assert found.p < 1e-10
    assert found.fraction_low > 0.8
    assert found.z.mean(axis=1) == pytest.approx(np.zeros(30), abs=1e-12)
    assert found.z.std(axis=1) == pytest.approx(np.ones(30))
    wrong = 0
    for _ in range(200):
        null = confusion(*shown(rates[:, :10], 10, rng), np.arange(30) % 10)
        wrong += null.p <= 0.05
        assert null.chance == 0.1
    assert at_most(wrong, 200, 0.05)


def test_a_row_without_a_complete_answer_is_not_tested_and_a_tie_is_no_maximum() -> None:
    rates = np.array([[5.0, 1.0, 1.0, np.nan, 2.0], [1.0, 1.0, 5.0, 1.0, 2.0], [0.0, 1.0, 5.0, 1.0, 2.0]])
    found = confusion(rates, [0, 1, 2], [0, 1, 1, 0, -1])
    # unit 0: its own; unit 1: all the same; unit 2: ties; unit 3: one answer missing; unit 4: has no images
    assert found.own_is_highest.tolist() == [True, False, False, False, False]
    assert found.tested == 3
    assert np.isnan(found.z[1]).all()
    assert np.isnan(found.z[3]).all()
    several = confusion(np.array([[4.0], [6.0], [1.0]]), [0, 0, 1], [0])
    assert several.own_is_highest.tolist() == [True]  # two images in one set
    with pytest.raises(ValueError, match="two sets or more"):
        confusion(rates[:, :1], [0, 0, 0], [0])
    with pytest.raises(ValueError, match=r"\(presentation, unit\)"):
        confusion(rates, [0, 1], [0, 1, 1, 0, -1])


# --- units of two days ------------------------------------------------------------------------------------------------


def two_days(units: int, images: int, rng: np.random.Generator) -> tuple[F64, F64]:
    """Return responses (image, repeat, unit) of the same units, tuned alike in part, on two days."""
    common = rng.gamma(2.0, 1.0, (images, 1))
    rate = 0.5 + common + rng.gamma(2.0, 1.5, (images, units))
    first, second = (rng.poisson(rate[:, None], (images, 5, units)).astype(np.float64) for _ in range(2))
    first[3, 2:, 0] = np.nan
    return first, second


def test_units_are_recognised_and_strangers_are_not() -> None:
    rng = np.random.default_rng(0)
    first, second = two_days(24, 80, rng)
    order = rng.permutation(24)
    true = match_units(first, second[:, :, order], [(int(u), k) for k, u in enumerate(order)])
    assert true.confirmed().mean() > 0.95
    assert true.null.mean() > 0.05  # strangers are alike too: the null is not at zero
    assert true.p.min() == 1 / (1 + len(true.null))  # of a pair more alike than all strangers: never 0
    wrong, of = 0, 0
    for seed in range(40):
        first, second = two_days(12, 60, np.random.default_rng(seed + 100))
        shifted = match_units(first[:, :, :6], second[:, :, 6:], [(k, k) for k in range(6)])
        wrong, of = wrong + int((shifted.p <= 0.05).sum()), of + 6
        assert shifted.rivals.max() > 0
    assert at_most(wrong, of, 0.05)


def test_one_wrong_pair_among_right_ones_is_not_confirmed() -> None:
    first, second = two_days(20, 100, np.random.default_rng(3))
    pairs = [(k, k) for k in range(18)] + [(18, 19), (19, 18)]
    found = match_units(first, second, pairs)
    assert found.confirmed()[:18].mean() > 0.9
    assert not found.confirmed()[18:].any()
    assert found.pairs[18] == (18, 19)


def test_a_match_never_uses_images_that_are_tested_later() -> None:
    names = [f"i{k}" for k in range(20)]
    assert shared_images(names, names[::-1], {"i3", "i7"}) == tuple(n for n in names if n not in ("i3", "i7"))
    with pytest.raises(ValueError, match="9 images were shown on both days"):
        shared_images(names, names, set(names[9:]))


def test_matching_refuses_what_leaves_no_null() -> None:
    first, second = two_days(4, 20, np.random.default_rng(0))
    with pytest.raises(ValueError, match="stands in two pairs"):
        match_units(first, second, [(0, 0), (0, 1), (2, 2)])
    with pytest.raises(ValueError, match="takes three or more"):
        match_units(first, second, [(0, 0), (1, 1)])
    with pytest.raises(ValueError, match="in the same order"):
        match_units(first, second[:19], [(0, 0), (1, 1), (2, 2)])
    with pytest.raises(ValueError, match="9 shared images"):
        match_units(first[:9], second[:9], [(0, 0), (1, 1), (2, 2)])
    second[:, :, 2] = 3.0
    found = match_units(first, second, [(0, 0), (1, 1), (2, 2)])
    assert np.isnan(found.similarity[2])
    assert not found.confirmed()[2]
