"""`stimloop bench calcium`: its figures say what they claim, and its load runs through real processes."""

from pathlib import Path

import numpy as np
import pytest

from rig.bench.calcium import batch, carry_over, correlation, lag_difference, online, record
from rig.bench.calcium_load import load
from rig.clock import HostClock
from rig.config.sources import Calcium, CalciumSimulation


def test_carry_over_is_the_share_of_the_image_before() -> None:
    rng = np.random.default_rng(1)
    drive = rng.gamma(0.5, 2.0, (400, 6))
    left = np.concatenate([np.zeros((1, 6)), drive[:-1]])
    assert carry_over(3 * drive + 7, drive) == pytest.approx(0.0, abs=1e-9)
    assert carry_over(3 * drive + 1.2 * left + rng.normal(0, 0.1, drive.shape), drive) == pytest.approx(0.4, abs=0.02)


def test_correlation_is_the_mean_over_rois() -> None:
    true = np.random.default_rng(2).poisson(2.0, (500, 2)).astype(float)
    response = np.stack([true[:, 0] * 5 + 1, -true[:, 1]], axis=1)
    assert correlation(response, true) == pytest.approx(0.0)
    assert correlation(response[:400], true) == pytest.approx(0.0)  # the last ones came too late to be scored


def test_online_reaches_what_the_batch_reaches_and_leaves_less_of_the_image_before() -> None:
    recording = record(130, 3, CalciumSimulation())
    settings = Calcium()
    mean_dff, events, dff = batch(recording, settings)
    got = online(recording, settings)
    assert np.isfinite(got).all()
    assert correlation(got, recording.true) >= 0.95 * correlation(events, recording.true)
    assert abs(carry_over(got, recording.drive)) < 0.2 * carry_over(mean_dff, recording.drive)


    differences = [lag_difference(dff[:900, :20], 0.7, lag_s) for lag_s in (0.1, 1.0, 3.0)]
    assert [d[1] for d in differences] == sorted((d[1] for d in differences), reverse=True)
    assert differences[-1][0] > 0.9


@pytest.mark.timeout(400)
@pytest.mark.slow
def test_the_load_goes_through_all_processes_without_loss(tmp_path: Path) -> None:
    figures = load(0.15, 60, tmp_path, HostClock())
    assert figures["frames_published"] >= figures["frames_journalled"] > 0.15 * 60 * 30
    assert (figures["messages_lost"], figures["frames_missing"]) == (0, 0)
    assert 10 < figures["responses"] == figures["presentations_shown"]
    assert figures["usable"] > 0
    assert {row["process"] for row in figures["rows"]} == {"publisher", "recorder", "model", "scope", "view"}
    assert all(row["cpu_share_of_a_core"] > 0 and row["memory_mb_peak"] > 10 for row in figures["rows"])
    assert figures["view_mb"] >= 0
