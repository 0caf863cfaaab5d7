"""`stimloop bench mei`: a perfect model scores 1, and a fit that has seen next to nothing does not."""

import numpy as np
import pytest

from models.mei_bench.run import agreed, compared, experiment, images_of, run
from rig.config.mei_bench import MeiBench

TINY = MeiBench(
    units=4, scored=2, presentations=60, members=1, iterations=20, starts=1,
    training={"batch": 32, "most_epochs": 1, "decays": 0},
)  # fmt: skip


def test_the_cells_themselves_as_model_reach_their_optimum() -> None:
    asked = TINY.model_copy(update={"iterations": 120, "starts": 3})
    made = experiment(asked)
    rows = compared(asked, made, images_of(made.truth, asked))
    assert [row["kind"] for row in rows] == ["simple", "complex"]
    assert all(0.98 < row["fraction_of_optimum"] < 1.02 for row in rows)
    assert all(row["r_with_truth"] > 0.999 for row in rows)
    assert rows[0]["filter_correlation"] > 0.8  # the rest: what the cell is normalised by
    assert rows[0]["oracle_ridge_correlation"] < rows[0]["filter_correlation"]  # of 60 single presentations
    assert rows[1]["subspace_overlap"] > 0.8


def test_a_fit_that_has_seen_little_is_told_from_a_good_one() -> None:
    said: list[str] = []
    found = run(TINY.model_copy(update={"twice": True}), said.append)
    assert found["units"] == len(found["rows"]) == 2
    assert found["reached_in"] < 1
    assert -1 <= found["filter_correlation_median"] <= 1
    assert 0 <= found["subspace_overlap_median"] <= 1
    assert np.isfinite(found["oracle_ridge_correlation_median"])
    assert len(said) == 4
    assert -1 <= found["agreement_simple"] <= 1
    assert [row["kind"] for row in found["rows_of_two"]] == ["simple", "complex"]


def test_two_recordings_of_the_same_cells_share_no_picture_and_the_cells_agree_with_themselves() -> None:
    asked = TINY.model_copy(update={"iterations": 60, "starts": 2})
    first, second = (experiment(asked, which) for which in (0, 1))
    assert first.cells == second.cells
    np.testing.assert_array_equal(first.unseen, second.unseen)
    shown = [{p.numpy().tobytes() for p in made.eye.levels(made.recording.images).round()} for made in (first, second)]
    assert len(shown[0]) == len(shown[1]) == asked.presentations
    assert not shown[0] & shown[1]
    found = agreed(first, images_of(first.truth, asked, 0), images_of(second.truth, asked, 1))
    assert found["agreement_simple"] > 0.95
    assert found["agreement_closest_complex"] >= found["agreement_complex"]  # which phase it is, only the start decides
    assert min(found["share_simple"], found["share_complex"]) > 0.98
    with pytest.raises(ValueError, match="1600 at most"):
        MeiBench(presentations=1601, twice=True)
