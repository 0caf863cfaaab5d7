"""The windows bench: it finds every wrong count, and the real thing has none."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rig.animal.device_clock import DeviceClock
from rig.animal.truth_log import Truth
from rig.bench.windows import bench_config, differences, row, windows, windows_beside_truth
from rig.clock import HostClock
from rig.links.ports import free_port
from rig.messages import Response

RATE = 30_000.0
START_NS = 10**12
WINDOW_S = (0.05, 0.15)
EDGE = 100_000  # true sample
RESTART = 150_000


def truth(*spikes: int) -> Truth:
    """Two units, of which the second fires; edges at 100,000 and 200,000, and the wire restarts in between."""
    edges = np.array([EDGE, 2 * EDGE])
    return Truth(
        units=("a#0", "b#0"),
        device=DeviceClock(RATE, 0.0, 0.0, 0.0, START_NS, 0),
        latency_s=0.0,
        smoothing_s=0.0,
        edge_host_ns=START_NS + np.rint(edges * 1e9 / RATE).astype(np.int64),
        edge_earliest_ns=START_NS + np.rint(edges * 1e9 / RATE).astype(np.int64),
        edge_state=np.ones(2, np.uint8),
        edge_sample=edges,
        image_host_ns=np.zeros(0, np.int64),
        image_earliest_ns=np.zeros(0, np.int64),
        image_sha256=(),
        image_patch_on=np.zeros(0, bool),
        rates=np.zeros((0, 2)),
        spike_unit=np.ones(len(spikes), np.int64),
        spike_sample=np.array(sorted(spikes), np.int64),
        run_first_sample=np.array([0, RESTART]),
        run_offset=np.array([0, RESTART]),
    )


def response(onset: int, count: int, uncertainty_ms: float, offset: int = 0) -> Response:
    """Answer for an onset at a true sample, in the wire's own samples."""
    counts = np.array([count, 0.0])
    return Response(
        presentation=7,
        proposal=0,
        slot=0,
        role="candidate",
        stimulus_id="s",
        source="probe",
        usable=True,
        reason="",
        onset_source="flip",
        onset_sample=onset - offset,
        onset_host_ns=START_NS + round(onset * 1e9 / RATE),
        onset_uncertainty_ns=round(uncertainty_ms * 1e6),
        onset_host_uncertainty_ns=0,
        flip_to_edge_ns=None,
        window_start_sample=onset - offset + 1500,
        window_end_sample=onset - offset + 4500,
        coverage=1.0,
        units=("b#0", "a#0"),
        count=counts,
        baseline=np.zeros(2),
        rate_hz=counts * 10,
    )


def one(answer: Response, *spikes: int, photodiode: bool) -> dict[str, object]:
    return row(windows_beside_truth([answer], truth(*spikes), WINDOW_S), 1, photodiode, RATE)


def test_counts_are_compared_unit_by_unit_in_the_same_samples() -> None:
    spikes = (EDGE + 1499, EDGE + 1500, EDGE + 4499, EDGE + 4500)
    good = one(response(EDGE, 2, 0.03), *spikes, photodiode=True)
    assert (good["equal"], good["unexplained"], good["equal_fraction"]) == (1, 0, 1.0)
    bad = one(response(EDGE, 3, 0.03), *spikes, photodiode=True)
    assert (bad["equal"], bad["unexplained"], bad["explained"]) == (0, 1, 0)


def test_samples_of_a_later_run_are_brought_to_the_true_ones() -> None:
    answer = response(2 * EDGE, 1, 0.03, offset=RESTART)
    assert one(answer, 2 * EDGE + 2000, photodiode=True)["equal"] == 1
    lost = response(2 * EDGE, 1, 0.03, offset=RESTART + 6000)  # 0.2 s off: these samples are of no run there was
    assert one(lost, 2 * EDGE + 2000, photodiode=True)["unexplained"] == 1
    assert one(lost, 2 * EDGE + 2000, photodiode=False)["unexplained"] == 1


def test_a_difference_is_explained_only_by_spikes_within_the_uncertainty() -> None:
    early = EDGE - 60  # 2 ms
    spikes = (EDGE + 1450, EDGE + 2000)  # the first lies between the two starts
    inside = one(response(early, 2, 8.0), *spikes, photodiode=False)
    assert (inside["equal"], inside["explained"], inside["unexplained"]) == (0, 1, 0)
    too_far = one(response(early, 2, 1.0), *spikes, photodiode=False)
    assert (too_far["explained"], too_far["unexplained"]) == (0, 1)
    invented = one(response(early, 3, 8.0), *spikes, photodiode=False)
    assert (invented["explained"], invented["unexplained"]) == (0, 1)
    rows = windows_beside_truth([response(early, 2, 8.0)], truth(*spikes), WINDOW_S)
    (listed,) = differences(rows[0], RATE)
    assert (listed["unit"], listed["counted"], listed["true"], listed["onset_error_ms"]) == ("b#0", 2, 1, -2.0)


def test_a_presentation_that_the_animal_did_not_see_is_unexplained() -> None:
    assert one(response(3 * EDGE, 0, 8.0), photodiode=False)["unexplained"] == 1


def test_the_quirks_are_on() -> None:
    config, _ = bench_config(10, photodiode=False, port=6000)
    assert config.animal.wire_faults.quirks
    names = [s.split("@")[0] for s in config.animal.wire_faults.switches]
    assert names == ["restart_reset", "back_jump", "restart_keep"]
    assert config.neural.photodiode_line is None
    assert len(config.responses.units) == config.animal.neurons


@pytest.mark.display
@pytest.mark.timeout(400)
@pytest.mark.slow
def test_every_count_of_a_real_session_is_true(tmp_path: Path, private_screen: str) -> None:
    figures = windows(0.15, tmp_path, HostClock(), Console(quiet=True), free_port(2))
    json.dumps(figures)
    lit, dark = figures["rows"]
    assert (lit["photodiode"], dark["photodiode"]) == (True, False)
    assert lit["usable"] > 20
    assert lit["spikes"] > 50
    assert lit["equal_fraction"] == 1.0
    assert dark["equal_in_same_interval"] == dark["usable"] > 15
    assert dark["unexplained"] == 0
