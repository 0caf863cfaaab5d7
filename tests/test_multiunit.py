"""Multi-unit activity from the voltage: detection on traces with known spikes; watermark, gaps, runs. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from rig.animal.openephys_voltage import NOISE_UV, Voltage
from rig.config.sources import Multiunit
from rig.messages import (
    Continuity,
    Document,
    Fault,
    Gap,
    SpikeBlock,
)
from rig.sources.continuity import DEFERRAL, Ledger
from rig.sources.multiunit import WARM_UP_S, Detector, ThresholdUnits
from rig.sources.openephys_parse import Data

N = 696
RATE_HZ = 30_000.0
F32 = npt.NDArray[np.float32]


@dataclass
class Probe:
    """Channels with one unit each whose spikes are known, cut into blocks."""

    channels: int
    blocks: int
    seed: int = 0
    spikes_per_s: float = 20.0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        voltage = Voltage(self.channels, self.channels, rng)
        self.true: list[list[int]] = [[] for _ in range(self.channels)]
        self.volts: list[F32] = []
        last = np.full(self.channels, -1000)
        for k in range(self.blocks):
            units, samples = [], []
            for s in np.flatnonzero(rng.random(N) < self.channels * self.spikes_per_s / RATE_HZ):
                unit, at = int(rng.integers(self.channels)), k * N + int(s)
                if at - last[unit] > 60 and s >= 9:  # apart, and not cut by the block's beginning
                    last[unit] = at
                    self.true[unit].append(at)
                    units.append(unit)
                    samples.append(at)
            self.volts.append(voltage.block(k * N, N, np.array(units, np.int64), np.array(samples, np.int64)))


def detect(detector: Detector, probe: Probe) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(probe.channels)]
    for k, volts in enumerate(probe.volts):
        for channel, sample in detector.block(volts.astype(np.float64), k * N)[0]:
            found[channel].append(sample)
    return found


def hits(true: list[int], found: list[int]) -> tuple[int, int]:
    """Return how many true spikes were found within 0.5 ms, and how many finds belong to no spike."""
    mine, real = np.array(found), np.array(true)
    hit = sum(bool((np.abs(mine - s) <= 15).any()) for s in real)
    false = sum(not (np.abs(real - s) <= 15).any() for s in mine)
    return hit, false


@pytest.mark.parametrize("band", [(300.0, 6000.0), None])
def test_known_spikes_are_found_and_noise_is_not(band: tuple[float, float] | None) -> None:
    probe = Probe(channels=3, blocks=430)  # 10 s
    found = detect(Detector(Multiunit(channels=(0, 1, 2), threshold_sd=-5.0, band_hz=band), 3, RATE_HZ), probe)
    warm = WARM_UP_S * RATE_HZ + 2 * N
    for true, mine in zip(probe.true, found, strict=True):
        real = [s for s in true if s > warm]
        assert len(real) > 100
        hit, false = hits(real, mine)
        assert hit >= 0.99 * len(real)
        assert false <= 0.02 * len(real)  # 5 sd of Gaussian noise: about 0.01 /s


def test_the_noise_is_that_of_the_trace_and_not_moved_by_spikes() -> None:
    quiet, loud = (Detector(Multiunit(channels=(0,), band_hz=None), 1, RATE_HZ) for _ in range(2))
    detect(quiet, Probe(1, 100, spikes_per_s=0.0))
    detect(loud, Probe(1, 100, spikes_per_s=100.0))
    assert quiet.noise_sd is not None
    assert loud.noise_sd is not None
    assert quiet.noise_sd[0] == pytest.approx(NOISE_UV, rel=0.1)
    assert loud.noise_sd[0] == pytest.approx(NOISE_UV, rel=0.3)  # its sd with spikes is twice that


def test_detection_does_not_hang_on_how_the_trace_is_cut() -> None:
    probe = Probe(channels=2, blocks=120)
    whole = np.concatenate(probe.volts, axis=1).astype(np.float64)
    results = []
    for length in (256, 1024):
        detector = Detector(Multiunit(channels=(0, 1), threshold_sd=-6.0), 2, RATE_HZ)
        found = []
        for first in range(0, whole.shape[1] - length, length):
            found += detector.block(whole[:, first : first + length], first)[0]
        results.append({f for f in found if 20_000 < f[1] < 80_000})
    assert len(results[0]) > 50
    # The threshold is renewed at other moments, which may move a crossing by a sample.
    same = {(c, s + d) for c, s in results[0] for d in (-1, 0, 1)}
    assert len(results[1] - same) <= 0.02 * len(results[1])


def test_positive_thresholds_look_up() -> None:
    probe = Probe(channels=1, blocks=200)
    probe.volts = [-v for v in probe.volts]
    settings = Multiunit(channels=(0,), threshold_sd=6.0, band_hz=None)
    (found,) = detect(Detector(settings, 1, RATE_HZ), probe)
    real = [s for s in probe.true[0] if s > 20_000]
    assert hits(real, found)[0] >= 0.99 * len(real)


def test_a_band_beyond_half_the_rate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"6000 Hz, the stream has 2500 samples/s; end the band"):
        Detector(Multiunit(channels=(0,)), 1, 2500.0)


# --- from messages to documents ---------------------------------------------------------------------------------------


def messages(probe: Probe, first_block: int = 0, number: int = 0) -> Iterator[Data]:
    for k in range(first_block, probe.blocks):
        for channel in range(probe.channels):
            number += 1
            yield Data(number, "s", channel, N, k * N, RATE_HZ, False, probe.volts[k][channel].tobytes())


def fold(units: ThresholdUnits, ledger: Ledger, stream: list[Data]) -> list[Document]:
    documents: list[Document] = []
    for k, message in enumerate(stream):
        now = 10**9 + int(message.sample_num / RATE_HZ * 1e9) + k % 4 * 1000
        ledger.take(message, now)
        units.take(message, now, ledger)
        documents += ledger.harvest(now)
    return documents


def gaps(documents: list[Document], run: int = 0) -> list[Gap]:
    return [g for d in documents if isinstance(d, Continuity) and d.run == run for g in d.gaps]


def spikes(documents: list[Document], unit: str, run: int = 0) -> list[int]:
    blocks = [d for d in documents if isinstance(d, SpikeBlock) and d.run == run]
    return [int(s) for b in blocks for k, s in zip(b.unit, b.sample, strict=True) if b.units[k] == unit]


def covered(found: list[Gap], sample: int) -> bool:
    return any(g.first_sample <= sample < g.end_sample for g in found)


def faults(documents: list[Document]) -> list[str]:
    return [d.what for d in documents if isinstance(d, Fault)]


SETTINGS = Multiunit(channels=(0, 1), threshold_sd=-5.0)


def test_what_is_not_yet_known_is_a_gap_and_nothing_comes_behind_the_watermark() -> None:
    probe = Probe(channels=2, blocks=150)
    units, ledger = ThresholdUnits("probe", SETTINGS), Ledger("probe", 0, own_threshold=True)
    watermark, late = 0, []
    documents: list[Document] = []
    for message in messages(probe):
        assert units.settled == (message.sample_num >= WARM_UP_S * RATE_HZ)  # of what came before: sessions begin then
        new = fold(units, ledger, [message])
        late += [s for unit in ("MUA0", "MUA1") for s in spikes(new, unit) if s < watermark]
        watermark = next(d.watermark_sample for d in reversed(new) if isinstance(d, Continuity))
        documents += new
    assert late == []
    assert watermark == 149 * N - DEFERRAL
    blind = gaps(documents)
    assert covered(blind, 0)
    assert covered(blind, int(WARM_UP_S * RATE_HZ) - N)
    assert not covered(blind, int(WARM_UP_S * RATE_HZ) + 2 * N)
    for channel in (0, 1):
        real = [s for s in probe.true[channel] if not covered(blind, s) and s < watermark]
        hit, _ = hits(real, spikes(documents, f"MUA{channel}"))
        assert hit >= 0.97 * len(real)
    assert faults(documents) == []


def test_a_lost_channel_makes_its_block_a_gap() -> None:
    probe = Probe(channels=2, blocks=120)
    stream = [m for m in messages(probe) if m.message_num != 2 * 80 + 2]  # channel 1 of block 80
    documents = fold(ThresholdUnits("probe", SETTINGS), Ledger("probe", 0, own_threshold=True), stream)
    found = gaps(documents)
    assert all(covered(found, 80 * N + k) for k in range(N))
    assert not covered(found, 85 * N)
    assert "messages lost" in faults(documents)


def test_skipped_samples_are_not_filtered_across() -> None:
    probe = Probe(channels=2, blocks=120, spikes_per_s=0.0)
    shifted = list(messages(probe))
    for k, m in enumerate(shifted):
        if m.sample_num >= 80 * N:
            volts = (np.frombuffer(m.samples, "<f4") + 400.0).astype("<f4").tobytes()
            shifted[k] = m._replace(sample_num=m.sample_num + 5000, samples=volts)
    documents = fold(ThresholdUnits("probe", SETTINGS), Ledger("probe", 0, own_threshold=True), shifted)
    found = gaps(documents)
    assert covered(found, 80 * N + 5000)  # the filter settles
    assert not covered(found, 82 * N + 5000)
    assert [s for s in spikes(documents, "MUA0") if not covered(found, s)] == []  # the step of 400 uV is no spike


def test_a_new_run_begins_anew() -> None:
    probe = Probe(channels=2, blocks=60)
    stream = [*messages(probe), *messages(probe)]
    documents = fold(ThresholdUnits("probe", SETTINGS), Ledger("probe", 0, own_threshold=True), stream)
    assert covered(gaps(documents, 1), int(WARM_UP_S * RATE_HZ) - N)
    assert min(spikes(documents, "MUA0", 1)) > WARM_UP_S * RATE_HZ - N


def test_a_channel_that_is_not_sent_is_named() -> None:
    settings = Multiunit(channels=(0, 1, 7), threshold_sd=-5.0)
    probe = Probe(channels=2, blocks=60)
    documents = fold(
        ThresholdUnits("probe", settings), Ledger("probe", 0, own_threshold=True), list(messages(probe))
    )
    (fault,) = [d for d in documents if isinstance(d, Fault)]
    assert fault.what == "multiunit channel not sent"
    assert "channel 7" in fault.detail
    assert "channel mask" in fault.done
    assert spikes(documents, "MUA0")  # the others go on


def test_values_that_are_no_numbers_do_not_stay_in_the_filter() -> None:
    probe = Probe(channels=2, blocks=100)
    probe.volts[70][1, 3] = np.nan
    documents = fold(
        ThresholdUnits("probe", SETTINGS), Ledger("probe", 0, own_threshold=True), list(messages(probe))
    )
    assert covered(gaps(documents), 70 * N)
    real = [s for s in probe.true[1] if s > 75 * N and s < 98 * N]
    hit, _ = hits(real, spikes(documents, "MUA1"))
    assert hit >= 0.95 * len(real)


def test_short_blocks_cost_our_own_threshold_nothing() -> None:
    ledger = Ledger("probe", 0, own_threshold=True)
    for k in range(5):
        ledger.take(Data(k + 1, "s", 0, 174, k * 174, RATE_HZ, False), 10**9 + k * 5_800_000)
    documents = ledger.harvest(10**9)
    assert faults(documents) == []
    assert not any(covered(gaps(documents), k) for k in range(174, 700))
