"""Multi-unit activity from the continuous channels: our own threshold, where the GUI detects no spikes.

Called by the loop of the Open Ephys source with every Data message; spikes and gaps go into its ledger. Causal: a
crossing hangs on nothing that comes after it, so that a channel's spikes are complete as far as its voltage is.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, sosfilt, sosfilt_zi

from rig.config.sources import Multiunit
from rig.sources.columns import Faults
from rig.sources.openephys_parse import Data

F64 = npt.NDArray[np.float64]
ORDER = 2
WARM_UP_S = 0.5  # until the noise is known; until then nothing is detected, which is told as a gap
SETTLE_PERIODS = 3  # of the band's lowest frequency: what the filter needs behind a hole
MEMORY_S = 10.0  # the noise is the median over this time
KEPT_HZ = 200.0  # rate at which absolute values are kept for it
REFRESH_S = 0.5
GAUSS = 0.6745  # median of |x| over sd of a Gaussian (Quian Quiroga et al. 2004, eq. 3.1)


class Account(Protocol):
    """What a ledger does for this module."""

    faults: Faults
    run: int

    def detected(self, unit: str, sample: int, arrival_host_ns: int) -> None: ...  # noqa: D102
    def unusable(self, first: int, end: int) -> None: ...  # noqa: D102


class Detector:
    """Threshold crossings in a block of channels, from block to block; pure."""

    def __init__(self, settings: Multiunit, channels: int, rate_hz: float) -> None:
        """Start before the first block of `channels` channels. Raises ValueError where the band does not fit."""
        self._settings = settings
        self._rate_hz = rate_hz
        self._sos: F64 | None = None
        if settings.band_hz is not None:
            if settings.band_hz[1] >= rate_hz / 2:
                raise ValueError(
                    f"multiunit.band_hz reaches to {settings.band_hz[1]:g} Hz, the stream has {rate_hz:g} samples/s; "
                    "end the band below half of that"
                )
            self._sos = np.asarray(butter(ORDER, settings.band_hz, "bandpass", fs=rate_hz, output="sos"))
        self._step = max(1, round(rate_hz / KEPT_HZ))
        self._kept: F64 = np.full((channels, round(MEMORY_S * KEPT_HZ)), np.nan)
        self._kept_count = 0
        self._threshold: F64 | None = None
        self._fresh = 0  # samples since the threshold was computed
        self._seen = 0
        self._phase = 0
        self._state: F64 | None = None
        self._beyond = np.zeros(channels, dtype=bool)
        self._last = np.full(channels, np.iinfo(np.int64).min // 2)

    @property
    def noise_sd(self) -> F64 | None:
        """Noise sd of each channel (channel,), None until it is known."""
        return None if self._threshold is None else self._threshold / self._settings.threshold_sd

    def hole(self) -> None:
        """Forget the filter's past: samples are missing before the next block. The noise stays known."""
        self._state = None

    def block(self, volts: F64, first: int) -> tuple[list[tuple[int, int]], int]:
        """Take a block (channel, sample) from `first` on; return crossings (channel index, sample) and `blind`.

        `blind` is the number of samples at its start in which nothing could be detected.
        """
        blind = self._settle(volts)
        filtered = self._filter(volts)
        self._remember(filtered[:, blind:])
        if self._threshold is None:
            return [], volts.shape[1]
        sign = -1.0 if self._settings.threshold_sd < 0 else 1.0
        beyond = sign * filtered > np.abs(self._threshold)[:, None]
        before = np.concatenate([self._beyond[:, None], beyond[:, :-1]], axis=1)
        self._beyond = beyond[:, -1]
        starts = beyond & ~before
        starts[:, :blind] = False
        return self._apart(np.argwhere(starts), first), blind

    def _settle(self, volts: F64) -> int:
        if self._state is not None or self._sos is None or self._settings.band_hz is None:
            return 0
        # As if the first value had stood there for ever: without it an offset of the channel rings for long.
        self._state = sosfilt_zi(self._sos)[:, None, :] * volts[None, :, :1]
        return min(int(volts.shape[1]), round(SETTLE_PERIODS / self._settings.band_hz[0] * self._rate_hz))

    def _filter(self, volts: F64) -> F64:
        if self._sos is None:
            return volts
        filtered, self._state = sosfilt(self._sos, volts, axis=1, zi=self._state)
        return np.asarray(filtered)

    def _remember(self, filtered: F64) -> None:
        """Keep every so many absolute values and, twice a second, take their median."""
        few = np.abs(filtered[:, self._phase :: self._step])
        self._phase = (self._phase - filtered.shape[1]) % self._step
        size = self._kept.shape[1]
        for column in few.T:
            self._kept[:, self._kept_count % size] = column
            self._kept_count += 1
        self._seen += filtered.shape[1]
        self._fresh += filtered.shape[1]
        known = self._threshold is not None
        if self._seen < WARM_UP_S * self._rate_hz or (known and self._fresh < REFRESH_S * self._rate_hz):
            return
        self._fresh = 0
        sd = np.nanmedian(self._kept[:, : min(self._kept_count, size)], axis=1) / GAUSS
        # A channel of zeros has no noise and no spikes either.
        self._threshold = np.where(sd > 0, sd, np.inf) * self._settings.threshold_sd

    def _apart(self, crossings: npt.NDArray[np.int64], first: int) -> list[tuple[int, int]]:
        """Return those crossings that are at least the dead time behind the one before."""
        dead = self._settings.dead_time_s * self._rate_hz
        out: list[tuple[int, int]] = []
        for channel, at in crossings.tolist():
            sample = first + at
            if sample - self._last[channel] >= dead:
                self._last[channel] = sample
                out.append((channel, sample))
        return out


class ThresholdUnits:
    """Puts the channels of a block together and files what crosses their thresholds as units 'MUA<channel>'."""

    def __init__(self, source: str, settings: Multiunit) -> None:
        """Detect on `settings.channels` of `source`."""
        self._source = source
        self._settings = settings
        self._wanted = frozenset(settings.channels)
        self._present: tuple[int, ...] | None = None  # channels of one whole block
        self._detector: Detector | None = None
        self._run = -1
        self._block: tuple[int, int] | None = None  # first sample, length
        self._volts: dict[int, bytes] = {}
        self._arrival_ns = 0
        self._end: int | None = None  # of the last block used
        self._refused = False

    @property
    def settled(self) -> bool:
        """Whether the noise is known, so that spikes are found; also where none ever will be."""
        return self._refused or (self._detector is not None and self._detector.noise_sd is not None)

    def take(self, data: Data, arrival_host_ns: int, account: Account) -> None:
        """Take one channel of one block, after the account has taken it."""
        if account.run != self._run:
            self._run, self._detector, self._block, self._end, self._volts = account.run, None, None, None, {}
        if data.channel not in self._wanted or self._refused:
            if self._block is not None and data.sample_num != self._block[0]:
                self._finish(data.sample_rate_hz, account)
            return
        if self._block is not None and data.sample_num != self._block[0]:
            self._finish(data.sample_rate_hz, account)
        if len(data.samples) != 4 * data.num_samples:  # its header was beyond what the receiving process reads
            return
        self._block = (data.sample_num, data.num_samples)
        self._volts[data.channel] = data.samples
        self._arrival_ns = arrival_host_ns
        if self._present is not None and len(self._volts) == len(self._present):
            self._finish(data.sample_rate_hz, account)

    def _finish(self, rate_hz: float, account: Account) -> None:
        """Detect in the block that is complete, or that another one follows."""
        block, self._block = self._block, None
        volts, self._volts = self._volts, {}
        if block is None:
            return
        channels = tuple(sorted(volts))
        if self._present is None or not set(channels) <= set(self._present):
            self._meet(channels, account)
        first, length = block
        if channels != self._present:  # some were lost
            self._blind(first, first + length, account)
            return
        try:
            self._detector = self._detector or Detector(self._settings, len(channels), rate_hz)
        except ValueError as error:
            self._refused = True
            account.faults.once("multiunit refused", f"{self._source}: {error}", "no multi-unit activity is detected")
            return
        rows = np.stack([np.frombuffer(volts[c], "<f4") for c in channels]).astype(np.float64)
        if not np.isfinite(rows).all():  # one NaN would stay in the filter for ever
            self._blind(first, first + length, account)
            return
        if self._end != first:
            self._detector.hole()
        self._end = first + length
        found, blind = self._detector.block(rows, first)
        if blind:
            account.unusable(first, first + blind)
        for k, sample in found:
            account.detected(f"MUA{channels[k]}", sample, self._arrival_ns)

    def _blind(self, first: int, end: int, account: Account) -> None:
        account.unusable(first, end)
        if self._detector is not None:
            self._detector.hole()

    def _meet(self, channels: tuple[int, ...], account: Account) -> None:
        """Learn which of the channels are sent."""
        self._present, self._detector = tuple(sorted({*channels, *(self._present or ())})), None
        if missing := sorted(self._wanted - set(channels)):
            names = ", ".join(map(str, missing))
            detail = f"{self._source}: the ZMQ Interface does not send channel {names}, which multiunit asks for"
            done = "no multi-unit activity there; select it in the plugin's channel mask, or take it out of the config"
            account.faults.once("multiunit channel not sent", detail, done)
