"""Scores of the truth of a control phase; the command on a whole session is in test_control_session."""

import numpy as np
import pytest

from models.control.goals import Goal
from rig.messages import ImageScore
from rig.true_control import Stated, control_truth, worth


@pytest.mark.parametrize("kind", ["stretch", "one_hot", "target"])
def test_scores_are_those_by_which_the_agent_judges(kind: str) -> None:
    z = np.random.default_rng(0).standard_normal((7, 3))
    wanted = (1.0, -1.0, 0.5) if kind == "target" else ()
    goal = Goal(kind, "b", (0, 1, 2), 1, wanted)  # type: ignore[arg-type]
    assert worth(kind, z, 1, wanted) == pytest.approx(goal.score(z))


def test_what_was_found_is_right_or_wrong_by_the_true_scores() -> None:
    units = ("a", "b")
    report = {f"{unit}: natural_{what}": value for unit in units for what, value in (("mean", 4.0), ("sd", 3.0))}
    for title, less, q in (("stretch a", 2.0, 0.01), ("stretch b", 2.0, 0.01)):
        report |= {f"{title}: {figure}_natural": value for figure, value in (("less", less), ("q", q))}
        report |= {f"{title}: {figure}_predicted": value for figure, value in (("less", 1.0), ("q", 0.4))}
    shown = {"a1": [30, 0], "an": [20, 0], "ap": [29, 0], "b1": [0, 15], "bn": [0, 25], "bp": [0, 14]}
    scores = tuple(
        ImageScore(target=f"stretch {name[0]}", stimulus_id=name, source=which, raw=0.0, corrected=0.0, presentations=9)
        for name, which in zip(shown, ("1", "natural", "predicted") * 2, strict=True)
    )
    rates = {name: np.array(rate, np.float64) for name, rate in shown.items()}
    natural = {"x": np.array([20.0, 25.0]), "y": np.array([31.0, 0.0])}
    held_out = {name: np.full(2, 10 + sign * np.sqrt(12.5)) for name, sign in (("h", 1), ("i", -1))}  # sd 5
    one = control_truth(0, Stated(scores, report, {}, 0.05), units, rates, natural | held_out, held_out)
    assert [goal.found for goal in one.goals] == [{"natural": 1, "predicted": 0}] * 2
    assert [goal.right("natural") for goal in one.goals] == [True, False]
    row = one.of_kind("stretch")
    assert (row["against_natural_found"], row["against_natural_wrong"], row["against_predicted_found"]) == (2, 1, 0)
    assert (row["above_natural_true"], row["above_best_natural_true"]) == (0.5, 0.0)
    assert (row["made_true"], row["best_natural_true"]) == pytest.approx(((4 + 1) / 2, (4.2 + 3) / 2))
