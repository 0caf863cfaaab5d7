"""The control agent: goals, natural baselines, images shown back, restored bit for bit, and what it claims."""

from typing import Any

import numpy as np
import pytest

from models.agents import build_from_config
from models.agents.control import Control
from models.control.goals import Goal, goals_of
from models.control.making import SILENT, different, different_frames
from models.control.natural import Norm, best_by_halves, norm_of, range_of, shrunk
from models.control.results import Shown, compared, of_goals
from models.inception.learner import Judged
from models.metrics.sums import ImageSums
from models.server import batch_hash, state_hash
from models.statistics import benjamini_hochberg, paired_scores, paired_tests, share
from models.synthesis.engine import Synthesised
from rig.config.inception import LoopPhase
from rig.config.reading import parse
from rig.config.session import Config
from stimuli.limits import frame_levels
from tests.inception_units import CONFIG, SHORT, Subject, go_on

UNITS = 4
OWN: dict[str, Any] = {
    "agent": "control", "most_sites": 3, "most_alike": 0.99, "made": 2, "starts": 4, "least_score": -1,
    "least_oracle": -1, "targets": {"apart": {"E01#0": 2.0, "E02#0": -1.0}},
}  # fmt: skip


def config(**settings: Any) -> Config:
    names = ", ".join(f'"E{k:02d}#0"' for k in range(1, UNITS + 1))
    shared = {name: value for name, value in SHORT.items() if name in LoopPhase.model_fields}
    return parse(CONFIG.format(units=names, phase=shared | OWN | settings))


def agent_of(of: Config) -> Control:
    agent = build_from_config(of)(0)
    assert isinstance(agent, Control)
    return agent


@pytest.fixture(scope="module")
def finished() -> tuple[Control, Subject]:
    """A whole phase in which a tenth of the responses is lost."""
    of = config()
    agent = agent_of(of)
    subject = Subject(of, agent.loop, lost=0.1)
    go_on(agent, subject, [])
    return agent, subject


def test_each_goal_has_its_images_beside_natural_ones_that_are_shown_exactly_as_before(
    finished: tuple[Control, Subject],
) -> None:
    agent, subject = finished
    assert agent.finished() == "6 repeats of 28 images of 3 units were shown back"
    back = [b for b in subject.batches if any(slot.role == "confirmation" for slot in b.plan)]
    assert len(back) >= 6
    assert all(len({slot.stimulus for slot in b.plan}) > 1 for b in back)
    natural = {s.id: agent.loop.picture(s) for s in agent.loop.natural.stimuli}
    usual = np.median([frame_levels(frame)[1] for frame in list(natural.values())[:100]])
    goals = [kind.rsplit("-", 1)[0] for made in agent.loop.made for kind in list(made.images)[:1]]
    assert goals == ["stretch"] * 3 + ["one_hot"] * 3 + ["apart"]
    for made in agent.loop.made:
        assert [kind.rsplit("-", 1)[1] for kind in made.images] == ["1", "2", "natural", "predicted"]
        for kind, image in made.images.items():
            said = made.stimulus("p0", kind, 0, "encoder").figures["contrast"]
            assert said == pytest.approx(frame_levels(image.frame)[1])
            if image.of:
                assert np.array_equal(image.frame, natural[image.of])
            else:
                level, contrast = frame_levels(image.frame)
                assert level == pytest.approx(128, abs=0.01)
                assert contrast == pytest.approx(usual, abs=2e-3)
            assert len(subject.told[made.id_of("p0", kind)]) == 6  # lost ones were shown again
        first, second, measured, predicted = made.images.values()
        assert first.predicted >= second.predicted > max(measured.predicted, predicted.predicted)
        assert not np.array_equal(first.frame, second.frame)


def test_what_is_stated_follows_from_the_fresh_repeats_and_the_natural_images(
    finished: tuple[Control, Subject],
) -> None:
    agent, subject = finished
    report, sites = agent.report(), [one.unit for one in agent.loop.chosen]
    held_out: dict[int, list[Any]] = {}
    for image, rates in agent.loop.test:
        held_out.setdefault(image, []).append(rates)
    means = np.array([np.mean(of, axis=0) for of in held_out.values()])
    mean, sd = means.mean(axis=0), means.std(axis=0, ddof=1)
    scores = {(s.target, s.source): s.raw for s in agent.scored()}
    for k, unit in enumerate(sites):
        name = agent.loop.units[unit]
        assert report[f"{name}: natural_sd"] == pytest.approx(sd[unit])
        for which in ("1", "2", "natural", "predicted"):
            rates = np.mean(subject.told[f"p0-u{unit}-stretch-{which}"], axis=0)
            z = (rates[unit] - mean[unit]) / sd[unit]
            assert report[f"stretch {name}: {which}"] == scores[f"stretch {name}", which] == pytest.approx(z)
            rates = np.mean(subject.told[f"p0-u{unit}-one_hot-{which}"], axis=0)
            powers = np.exp((rates - mean) / sd)[sites]
            assert report[f"one_hot {name}: {which}"] == pytest.approx(powers[k] / powers.sum())
    assert report["stretch_goals"] == report["one_hot_goals"] == 3
    above = [report[f"stretch {agent.loop.units[u]}: less_natural"] > 0 for u in sites]
    assert report["stretch_above_natural"] == pytest.approx(np.mean(above))
    assert all(np.isfinite(value) for value in report.values())
    assert len(agent.leaves()["references"]) == 12


def test_natural_images_are_chosen_by_what_was_known_before_they_are_shown_back(
    finished: tuple[Control, Subject],
) -> None:
    agent, _ = finished
    loop, sums = agent.loop, agent._sums
    assert sums.count.sum() == UNITS * (len(loop.test) + loop.known().presentations + len(loop.pending))
    frames = np.stack([loop.picture(s) for s in loop.natural.stimuli])
    x = loop.encoder().eye.see(frames)
    predicted = loop.encoder().rates(x).double().numpy()
    made = loop.made[0]
    best = loop.natural.stimuli[int(predicted[:, made.unit].argmax())].id
    assert made.images["stretch-predicted"].of == best


def test_a_restored_agent_makes_the_same_images_and_goes_on_bit_for_bit() -> None:
    of = config(train=40, iterations=20, starts=2, made=1, goals=["one_hot"], targets={})
    never, again = agent_of(of), agent_of(of)
    subject = Subject(of, never.loop, lost=0.05)
    late = go_on(never, subject, [], 6)  # the sites are chosen, their images come next
    work = never.ask()
    assert never.loop.chosen
    assert not never.loop.made
    work.step()  # killed in the middle of it
    again.restore(never.state())
    hashes, states = [], []
    for agent in (never, again):
        copy = Subject(of, agent.loop, lost=0.05, batches=list(subject.batches))
        go_on(agent, copy, late)
        hashes.append([batch_hash(b) for b in copy.batches])
        states.append(state_hash(agent.state()))
    assert hashes[0] == hashes[1]
    assert states[0] == states[1]
    assert never.report() == again.report()


def test_a_phase_whose_sites_leave_no_goal_ends_and_says_so() -> None:
    of = config(train=40, iterations=20, starts=1, made=1, goals=["one_hot"], sites=["E01#0"], targets={})
    agent = agent_of(of)
    subject = Subject(of, agent.loop)
    go_on(agent, subject, [])  # type: ignore[arg-type] # waited for ever: nothing can be made
    assert "1 there is no goal for it: one_hot needs two sites" in str(agent.finished())
    assert "E01#0: rejected, there is no goal for it: one_hot needs two sites" in agent.report()
    assert subject.batches[-1].final
    assert agent.scored() == ()


# --- parts ------------------------------------------------------------------------------------------------------------


def test_goals_and_what_responses_are_worth() -> None:
    goals = goals_of(("stretch", "one_hot"), ("a", "b", "c"), (2, 0), {"t": {"b": 1.0, "c": -1.0}})
    titles = ["stretch c", "stretch a", "one_hot c", "one_hot a", "target t"]
    assert [goal.title for goal in goals] == titles
    assert goals[4].sites == (1, 2)
    z = np.array([[1.0, 3.0], [0.0, 0.0]])
    assert goals[0].score(z[:, :1]).tolist() == [1.0, 0.0]
    assert goals[3].score(z) == pytest.approx([1 / (1 + np.exp(-2.0)), 0.5])
    assert goals[4].score(z) == pytest.approx([-np.sqrt((0 + 16) / 2), -1.0])
    assert [g.kind for g in goals_of(("stretch", "one_hot"), ("a",), (0,), {})] == ["stretch"]  # softmax of one: 1


def test_sites_that_answer_alike_or_not_at_all_are_left_out() -> None:
    rng = np.random.default_rng(0)
    rates = rng.standard_normal((200, 5))
    rates[:, 1] = rates[:, 0] + 0.1 * rng.standard_normal(200)
    rates[:, 2] = -rates[:, 0]  # the opposite is not alike
    found = (*(Judged(k, ()) for k in range(4)), Judged(4, ("not predicted",)))
    known = np.array([True, True, True, False, False])
    out = {one.unit: one.against for one in different(found, rates, known, 0.7, 3, tuple("abcde"))}
    assert out == {0: (), 2: (), 1: ("answers like a",), 3: (SILENT,), 4: ("not predicted", SILENT)}
    fewer = different(found, rates, known, 1.0, 2, tuple("abcde"))
    assert [one.unit for one in fewer if not one.against] == [0, 1]
    assert {one.unit: one.against for one in fewer}[2] == ("others are better",)


def test_a_lucky_image_does_not_win_over_one_that_was_good_ten_times() -> None:
    rng = np.random.default_rng(1)
    true = rng.standard_normal((1060, 1))
    true[1050] = 3.5  # held out, and the best
    sums = ImageSums.empty(1060, 1)
    for repeat in range(10):
        there = np.arange(1060) if not repeat else np.arange(1000, 1060)
        sums.add(there, None, true[there] + 2.0 * rng.standard_normal((len(there), 1)))
    raw = sums.sum / np.maximum(sums.count, 1)
    best = shrunk(sums, 1000)
    assert raw.argmax() < 1000
    assert best.argmax() == 1050
    errors = [float(np.mean((one[:1000] - true[:1000]) ** 2)) for one in (best, raw)]
    assert errors[0] == pytest.approx(1 * 4 / (1 + 4), rel=0.15)  # of the best linear guess: t² s² / (t² + s²)
    assert errors[1] == pytest.approx(4, rel=0.15)


def test_means_that_differ_no_more_than_their_noise_are_all_alike() -> None:
    sums = ImageSums.empty(4, 1)
    for value in (-10.0, 10.0):  # held-out means of 1, 2 and 3: their variance of 1 is below the noise's, 200 / 2
        sums.add(np.array([1, 2, 3]), None, value + np.array([[1.0], [2.0], [3.0]]))
    sums.add(np.array([0]), None, np.array([[40.0]]))
    assert shrunk(sums, 1)[:, 0].tolist() == [2.0] * 4


def test_the_best_of_many_alike_images_is_no_better_than_the_others_when_cross_validated() -> None:
    goal, norm = Goal("stretch", "a", (0,), 0), Norm(np.zeros(1), np.ones(1))
    rng = np.random.default_rng(2)
    found = [best_by_halves(rng.standard_normal((40, 8, 1)), norm, goal) for _ in range(60)]
    assert abs(np.mean(found)) < 0.06
    table = rng.standard_normal((40, 8, 1))
    table[:, 6:] = np.nan
    table[7] += 5.0
    table[8, 1:] = np.nan  # a single repeat: left out
    assert best_by_halves(table, norm, goal) == pytest.approx(5.0, abs=1.2)
    assert np.isnan(best_by_halves(table[:, :1], norm, goal))


def test_norm_is_of_held_out_images_alone() -> None:
    sums = ImageSums.empty(5, 2)
    sums.add(np.array([0, 1]), None, np.array([[100.0, 1.0], [50.0, 1.0]]))
    sums.add(np.array([2, 3, 4]), None, np.array([[1.0, 4.0], [2.0, 4.0], [3.0, 4.0]]))
    norm = norm_of(sums, 2)
    assert norm.mean.tolist() == [2.0, 4.0]
    assert norm.sd[0] == 1.0
    assert np.isnan(norm.sd[1])
    assert [ends.tolist() for ends in range_of(sums, 2)] == [[1.0, 4.0], [3.0, 4.0]]
    assert np.isnan(range_of(ImageSums.empty(5, 2), 2)).all()


def test_scores_of_populations_are_tested_as_single_units_are_and_their_intervals_hold() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.standard_normal((2, 9, 1))
    linear = paired_scores(first, second, lambda z: z[..., 0])
    assert linear.p == pytest.approx(paired_tests(first, second).p[0])
    assert linear.difference == pytest.approx(float((first - second).mean()))
    goal = Goal("one_hot", "a", (0, 1, 2), 0)
    true = np.array([[1.5, 0.0, 0.0], [0.5, 0.5, 0.0]])
    inside = false = 0
    for _ in range(100):
        noisy = true[:, None] + 0.5 * rng.standard_normal((2, 12, 3))
        found = paired_scores(noisy[0], noisy[1], goal.score)
        inside += found.low <= float(goal.score(true[0]) - goal.score(true[1])) <= found.high
        same = rng.standard_normal((2, 12, 3))
        false += paired_scores(same[0], same[1], goal.score).p <= 0.05
    assert 85 <= inside <= 99
    assert false <= 12
    missing = noisy[0].copy()
    missing[2, 1] = np.nan
    assert paired_scores(missing, noisy[1], goal.score).pairs == 11
    assert np.isnan(paired_scores(first[:3], second[:3], lambda z: z[..., 0]).p)


def test_the_best_of_some_images_is_scored_by_the_repeats_that_did_not_choose_it() -> None:
    uneven, even = np.array([[10.0], [0.0]] * 3), np.array([[4.0], [6.0]] * 3)
    one = Shown(Goal("stretch", "a", (0,), 0), {"1": uneven, "2": even, "natural": even, "predicted": uneven})
    assert one.best(one.made) == one.best(one.natural) == (0.0 + 4.0) / 2  # and not (10 + 6) / 2
    assert one.error("1") == pytest.approx(uneven.std(ddof=1) / np.sqrt(6))  # of a linear score the jackknife is that


def test_tests_of_goals_are_corrected_for_all_goals_and_both_natural_images_together() -> None:
    rng = np.random.default_rng(4)
    each = [{"1": 0.6, "natural": 0.0, "predicted": 0.3}, {"1": 0.5, "natural": 0.3, "predicted": 0.0}]
    goals = [Goal("stretch", name, (0,), 0) for name in "ab"]
    z = [{which: mean + rng.standard_normal((30, 1)) for which, mean in of.items()} for of in each]
    out = compared([Shown(goal, of) for goal, of in zip(goals, z, strict=True)], 0.05)
    p = {name: value for name, value in out.items() if ": p_" in name}
    assert len(set(p.values())) == 4
    q = dict(zip(p, benjamini_hochberg(list(p.values())), strict=True))
    assert {name.replace(": p_", ": q_"): value for name, value in q.items()} == {n: out[n] for n in out if ": q_" in n}


def test_of_the_better_frames_those_are_taken_that_differ_most_from_all_taken_before() -> None:
    rng = np.random.default_rng(5)
    best, other = rng.integers(0, 200, (2, 8, 8, 3))
    alike = best + rng.integers(0, 9, best.shape)
    every = np.stack([best, alike, 255 - best, other, other, best, best, best]).astype(np.uint8)[None]
    none = np.zeros((1, 8))
    found = Synthesised(every, np.arange(8.0, 0.0, -1.0)[None], none[..., None], none, none, none > 0)
    taken = different_frames(found, 0, 3)
    for frame, expected in zip(taken, (0, 2, 3), strict=True):
        assert np.array_equal(frame, every[0, expected])


def test_shares_over_goals_count_what_they_say() -> None:
    rng = np.random.default_rng(4)

    def shown(kind: Any, name: str, made: float, natural: float, predicted: float) -> Shown:
        means = {"1": made, "2": made - 1, "natural": natural, "predicted": predicted}
        goal = Goal(kind, name, (0,), 0)
        return Shown(goal, {w: m + 0.3 * rng.standard_normal((20, 1)) for w, m in means.items()})

    every = [shown("stretch", "a", 5, 2, 3), shown("stretch", "b", 5, 2, 7), shown("stretch", "c", 2, 5, 1)]
    out = of_goals(every) | compared(every, 0.05)
    assert out["stretch_goals"] == 3
    assert (out["stretch_above_natural"], out["stretch_above_predicted"]) == pytest.approx((2 / 3, 2 / 3))
    assert (out["stretch_better_natural"], out["stretch_worse_natural"]) == pytest.approx((2 / 3, 1 / 3))
    assert out["stretch_above_both"] == out["stretch_better_both"] == pytest.approx(1 / 3)
    assert (out["stretch_above_natural_low"], out["stretch_above_natural_high"]) == share(2, 3)[1:]
    assert out["stretch a: best_made"] == pytest.approx(5, abs=0.3)
    assert out["stretch b: best_natural"] == pytest.approx(7, abs=0.3)
    assert out["stretch_above_best"] == pytest.approx(1 / 3)
    assert share(0, 0)[0] != share(0, 0)[0]  # NaN
