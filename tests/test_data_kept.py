"""What the response fold keeps of the scored source does not grow for ever."""

import numpy as np

from rig.config.sources import OpenEphysSource
from rig.messages import Continuity, SpikeBlock, UnitList
from rig.responses.device_data import MOST_EARLY, DeviceData
from rig.responses.spikes_kept import SpikesKept


def listed(from_sample: int, *units: str) -> UnitList:
    offsets = np.zeros(len(units))
    return UnitList(
        source="p", run=1, list_number=0, from_sample=from_sample, units=units, scan_offset_s=offsets, measure="spikes"
    )


def block(sample: int) -> SpikeBlock:
    one = np.array([sample], dtype=np.int64)
    return SpikeBlock(source="p", run=1, units=("a",), unit=np.zeros(1, np.uint16), sample=one, arrival_host_ns=one)


def complete(watermark: int, rate_hz: float) -> Continuity:
    return Continuity(
        source="p", run=1, state="streaming", sample_rate_hz=rate_hz, watermark_sample=watermark, messages=1,
        lost_messages=0, gaps=(),
    )  # fmt: skip


def test_lists_that_no_window_can_need_are_forgotten() -> None:
    kept = SpikesKept(("a", "b"), set())
    for k in range(100):
        kept.take(listed(1000 * k, "a", *(("b",) if k % 2 else ())), 30_000.0)
        kept.forget(1000 * k - 2500)
        assert len(kept._lists) <= 4
    # At 98,000 the list without "b" began, at 99,000 that with it.
    assert np.isnan(kept.values(98_000, 98_500)).tolist() == [False, True]
    assert np.isnan(kept.values(97_000, 97_500)).tolist() == [False, False]
    kept.forget(10**6)
    assert np.isnan(kept.values(10**6, 10**6 + 1)).tolist() == [False, False]


def test_what_waits_for_the_rate_is_bounded_and_what_is_dropped_is_not_covered() -> None:
    data = DeviceData(1, OpenEphysSource(name="p"), ("a",), set())
    data.take(listed(0, "a"))
    for k in range(MOST_EARLY + 500):
        data.take(block(100 * k))
        data.complete(complete(100 * k, 0.0))
    assert len(data._early) <= MOST_EARLY
    assert data.final_through is None
    data.complete(complete(100 * (MOST_EARLY + 500), 30_000.0))
    assert data.covered([(0, 100)]) == 0.0
    assert data.covered([(60_000, 70_000)]) == 1.0
    assert data.kept.values(60_000, 70_000).tolist() == [100.0]  # the list is still there
