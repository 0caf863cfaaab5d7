"""Sorted spikes on the samples of a session: where the sorted file lies in it, and whether that can be true.

Pure. A sorter counts the samples of a file from 0. The session counts the device's samples since acquisition started.
What joins the two is the number of the file's first sample (Open Ephys: `sample_numbers.npy` beside continuous.dat).
Whether it is right shows in the spikes: a neuron that was seen online and sorted offline fires in both at the same
sample. So trains seen online and sorted ones are correlated, and the peak must lie at lag 0. Used by
`rig.units.importing`.
"""

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter1d

from rig.units.phy import UnitsError

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

CHUNK = 1 << 22  # sample numbers looked at together
BIN_S = 0.001
TOLERANCE_S = 0.001  # a sorter may call another point of the waveform the spike's time
LEAST_SPIKES = 30  # of a unit seen online
LEAST_SURE = 8.0  # standard deviations of chance by which a peak stands out
LEAST_SHARE = 0.1  # of an online unit's spikes, to call a cluster the same neuron
NEAR, FAR = (3, 5), (6, 8)  # bins to each side that tell what chance makes, firing to the same images included
AROUND = (3, 25)  # bins to each side whose mean is the least that chance makes
ASIDE_S = (0.004, 0.008)  # the same for a pair of units, lags in s
MOST_BINS = 1 << 24  # 4.6 hours


@dataclass(frozen=True)
class Stretch:
    """Consecutive samples of the sorted file that were recorded in one run of the device."""

    run: int
    file_first: int  # index in the sorted file
    first_sample: int  # the device's number of that sample
    length: int


def stretches(run: int, numbers: I64, file_first: int) -> list[Stretch]:
    """Return the stretches of a file whose samples have these device numbers (sample,); raises UnitsError."""
    if not len(numbers):
        raise UnitsError("sample_numbers.npy is empty; give the one of the recording that was sorted")
    breaks = [0]
    for at in range(0, len(numbers), CHUNK):  # an hour has a hundred million of them, mapped from the file
        steps = np.diff(numbers[at : at + CHUNK + 1])
        if np.any(steps <= 0):
            _goes_back(numbers, at + int(np.flatnonzero(steps <= 0)[0]))
        breaks += (np.flatnonzero(steps != 1) + at + 1).tolist()
    ends = [*breaks[1:], len(numbers)]
    return [Stretch(run, file_first + a, int(numbers[a]), b - a) for a, b in zip(breaks, ends, strict=True)]


def _goes_back(numbers: I64, at: int) -> NoReturn:
    raise UnitsError(
        f"sample_numbers.npy goes back from {numbers[at]} to {numbers[at + 1]}: it holds several runs of the device; "
        "give one file per run, each with its own --sample-numbers"
    )


def to_samples(times: I64, parts: list[Stretch]) -> tuple[I64, I64]:
    """Return run and device sample of each spike time; raises UnitsError for one beyond the file."""
    first = np.array([p.file_first for p in parts])
    k = np.searchsorted(first, times, side="right") - 1
    length = np.array([p.length for p in parts])
    inside = (k >= 0) & (times - first[k] < length[k])
    if not inside.all():
        bad = int(times[~inside][0])
        raise UnitsError(
            f"a spike lies at sample {bad} of the sorted file, which has {int(first[-1] + length[-1])} samples by its "
            "sample_numbers.npy; give the one of the recording that was sorted"
        )
    shift = np.array([p.first_sample for p in parts]) - first
    return np.array([p.run for p in parts])[k], times + shift[k]


# --- whether it can be true -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """The sorted cluster that fires together with a unit that was seen online."""

    online: str
    cluster: int
    share: float  # of the online unit's spikes that have one of the cluster's within TOLERANCE_S, less chance
    sure: float  # standard deviations of chance


def lag_of(online: I64, sorted_: I64, rate_hz: float) -> tuple[int, float]:
    """Return the lag in samples (sorted less online) at which two trains agree best, over all lags, and how sure it is.

    Both (spike,) ascending, device samples of one run; in general of many units together. Trains are counted in bins of
    1 ms and correlated; what slower changes of both rates explain is taken away, so that firing to the same images
    makes no peak. Sure: standard deviations of chance. Raises UnitsError where the two lie hours apart.
    """
    width = rate_hz * BIN_S
    origin = int(min(online[0], sorted_[0]))
    a, b = (((train - origin) / width).astype(np.int64) for train in (online, sorted_))
    length = int(max(a[-1], b[-1])) + 1
    if length > MOST_BINS:
        raise UnitsError(
            f"sorted and online spikes span {length * BIN_S / 3600:.1f} hours; at this offset they cannot be of one "
            "session: correct --offset-samples or sample_numbers.npy"
        )
    size = 1 << (2 * length - 1).bit_length()
    spectra = [np.fft.rfft(np.bincount(train, minlength=size).astype(np.float64)) for train in (a, b)]
    together = np.fft.irfft(np.conj(spectra[0]) * spectra[1], size)  # at lag k: sum over t of a[t] b[t + k]
    pairs = together + np.roll(together, -1)  # the grid of bins splits a pair's distance over two
    sure = _sure(pairs, _chance(pairs))
    peak = int(np.argmax(sure))
    bins = peak if peak < size // 2 else peak - size
    off = _nearest(online + round((bins + 0.5) * width), sorted_)
    near = off[np.abs(off) <= width]
    return round((bins + 0.5) * width) + (int(np.median(near)) if len(near) else 0), float(sure[peak])


def _chance(values: F64) -> F64:
    """Return the most that each bin (bin,) should hold by chance.

    Units that fire to the same images make hills in a correlogram, some ms wide: a parabola through the bins on both
    sides is followed, and the standard error of that added. Units that are the same neuron make a peak of a bin or two.
    """
    near, far = (_beside(values, *reach) for reach in (NEAR, FAR))
    near_sq, far_sq = (float(np.mean(np.arange(low, high + 1) ** 2)) for low, high in (NEAR, FAR))
    bend = near_sq / (far_sq - near_sq)
    around = np.maximum(_beside(values, *AROUND), 1.0)
    error = np.sqrt(around * ((1 + bend) ** 2 + bend**2) / (2 * (NEAR[1] - NEAR[0] + 1)))
    return np.asarray(np.maximum(near + (near - far) * bend, around) + error, dtype=np.float64)


def _sure(count: F64, chance: F64) -> F64:
    """Return by how many standard deviations counts exceed chance, exact also for few (the Poisson deviance)."""
    n = np.maximum(count, chance)  # fewer than by chance says nothing here
    return np.asarray(np.sqrt(np.maximum(2 * (n * np.log(n / chance) - (n - chance)), 0.0)), dtype=np.float64)


def _beside(values: F64, low: int, high: int) -> F64:
    """Return the mean of the bins that lie `low` to `high` bins to both sides of each bin."""
    outer, inner = 2 * high + 1, 2 * low - 1
    sums = [uniform_filter1d(values, width, mode="wrap") * width for width in (outer, inner)]
    return np.asarray((sums[0] - sums[1]) / (outer - inner), dtype=np.float64)


def _nearest(at: I64, train: I64) -> I64:
    """Return for each moment how far the nearest spike of a train (spike,) is, signed."""
    after = np.minimum(np.searchsorted(train, at), len(train) - 1)
    before = np.maximum(after - 1, 0)
    first, second = train[before] - at, train[after] - at
    return np.where(np.abs(first) <= np.abs(second), first, second)


def matches(online: dict[str, I64], clusters: dict[int, I64], rate_hz: float) -> list[Match]:
    """Return for each online unit the cluster that fires together with it at lag 0, where there is one.

    All trains (spike,) ascending, device samples of one run.
    """
    reach = TOLERANCE_S * rate_hz
    near, far = (round(s * rate_hz) for s in ASIDE_S)
    bend = near**2 / (far**2 - near**2)
    out = []
    for name, train in online.items():
        found = []
        for cluster, spikes in clusters.items():
            if len(train) < LEAST_SPIKES or not len(spikes):
                continue
            hits, *beside = (
                int(np.sum(np.abs(_nearest(train + off, spikes)) <= reach)) for off in (0, -near, near, -far, far)
            )
            chance = max((beside[0] + beside[1]) / 2 * (1 + bend) - (beside[2] + beside[3]) / 2 * bend, 0.0)
            sure = _sure(np.array([hits], dtype=np.float64), np.array([max(chance, 1.0)]))[0]
            found.append(Match(name, cluster, (hits - chance) / len(train), float(sure)))
        best = max(found, key=lambda m: m.share, default=None)
        if best is not None and best.sure >= LEAST_SURE and best.share >= LEAST_SHARE:
            out.append(best)
    return out


def check(online: I64, sorted_: I64, rate_hz: float) -> None:
    """Raise UnitsError if the trains say that the offset is wrong, with by how much, or have nothing in common.

    All online units together (spike,), all sorted ones together (spike,), ascending, device samples of one run.
    """
    if len(online) < LEAST_SPIKES or len(sorted_) < LEAST_SPIKES:
        raise UnitsError(
            f"{len(online)} spikes online and {len(sorted_)} sorted ones are too few to tell whether they lie where "
            "they should; if you know that the offset is right, import with --unchecked"
        )
    lag, sure = lag_of(online, sorted_, rate_hz)
    if sure < LEAST_SURE:
        raise UnitsError(
            "the sorted spikes and those that came online have nothing in common, at no lag: this is the sorting of "
            "another recording or of other channels (--unchecked imports it all the same)"
        )
    if abs(lag) > TOLERANCE_S * rate_hz:
        raise UnitsError(
            "the sorted spikes do not lie where the session's do: both fire together when the sorted ones are taken "
            f"{abs(lag)} samples ({abs(lag) / rate_hz:.4f} s) {'earlier' if lag > 0 else 'later'}; change the offset "
            f"by {-lag:+d} samples, or give the sample_numbers.npy of the recording that was sorted"
        )
