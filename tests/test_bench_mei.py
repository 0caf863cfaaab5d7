"""`stimloop bench mei`: a perfect model scores 1, and a fit that has seen next to nothing does not."""

import numpy as np

from models.mei_bench.run import compared, experiment, run
from rig.config.mei_bench import MeiBench

TINY = MeiBench(
    units=4, scored=2, presentations=60, members=1, iterations=20, starts=1,
    training={"batch": 32, "most_epochs": 1, "decays": 0},
)  # fmt: skip


def test_the_cells_themselves_as_model_reach_their_optimum() -> None:
    asked = TINY.model_copy(update={"iterations": 120, "starts": 3})
    made = experiment(asked)
    rows = compared(asked, made, made.truth)
    assert [row["kind"] for row in rows] == ["simple", "complex"]
    assert all(0.98 < row["fraction_of_optimum"] < 1.02 for row in rows)
    assert all(row["r_with_truth"] > 0.999 for row in rows)
    assert rows[0]["filter_correlation"] > 0.8  # the rest: what the cell is normalised by
    assert rows[0]["oracle_ridge_correlation"] < rows[0]["filter_correlation"]  # of 60 single presentations
    assert rows[1]["subspace_overlap"] > 0.8


def test_a_fit_that_has_seen_little_is_told_from_a_good_one() -> None:
    said: list[str] = []
    found = run(TINY, said.append)
    assert found["units"] == len(found["rows"]) == 2
    assert found["reached_in"] < 1
    assert -1 <= found["filter_correlation_median"] <= 1
    assert 0 <= found["subspace_overlap_median"] <= 1
    assert np.isfinite(found["oracle_ridge_correlation_median"])
    assert len(said) == 2
