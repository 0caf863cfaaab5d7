"""From rates to spikes: latency, smoothing, noise and the nuisances a real recording has.

Called by the amplifier with the images in order of time, then asked for the spikes up to a device sample. Pure given
its random generator: it reads no clock, no screen and no file. Neurons without any of this: `rig.animal.noise_free`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rig.animal.device_clock import DeviceClock

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

STEP_SAMPLES = 30
SMOOTHING_S = 0.005  # membrane-like low-pass of the rate
GAIN_SHAPE = 10.0  # gamma gain per retinal image: relative sd 1 / sqrt(10)
ADAPTATION_S = 1.0
ADAPTATION_HZ = 40.0  # recent rate that halves the response
DRIFT_S = 600.0
ARTEFACTS_EVERY_S = 5.0


@dataclass(frozen=True)
class Habits:
    """What the simulated neurons do beside following the image."""

    noise: Literal["poisson", "overdispersed"] = "poisson"
    latency_s: float = 0.05
    gain_drift: float = 0.0
    dies: Mapping[str, float] | None = None  # unit name: seconds after the start
    adaptation: bool = False
    carry_over: float = 0.0
    artefacts: bool = False


@dataclass(frozen=True)
class _Segment:
    """From `start_sample` on the image drives these rates (latency included)."""

    start_sample: float
    drive_hz: F64


class Neurons:
    """Spikes of `units`, in device samples from `start_sample` on."""

    smoothing_s = SMOOTHING_S

    def __init__(
        self, units: tuple[str, ...], device: DeviceClock, habits: Habits, rng: np.random.Generator, start_sample: int
    ) -> None:
        dies = dict(habits.dies or {})
        count = len(units)
        self._device, self._habits, self._rng = device, habits, rng
        self._next = start_sample
        self._step_s = STEP_SAMPLES / device.rate_hz
        self._segment = _Segment(-math.inf, np.zeros(count))
        self._coming: list[_Segment] = []
        self._image_hz: F64 | None = None  # what the last image shown with a white patch drove
        self._smooth = np.zeros(count)
        self._recent = np.zeros(count)
        self._log_gain = np.zeros(count)
        self._death = np.array([start_sample + dies.get(u, math.inf) * device.rate_hz for u in units])

    @property
    def lead_s(self) -> float:
        """Every image up to this long before a sample must be known before the spikes up to that sample are."""
        return self._habits.latency_s

    def onset(self, sample: int) -> None:
        """Take note that the photodiode rose at `sample`; these neurons follow the image alone."""

    def see(self, host_ns: int, rates_hz: F64, shown: bool) -> None:
        """Take the next retinal image: its noise-free rates (unit,), from `host_ns` on.

        `shown` says that an image is on (the patch is white): only such images carry over into later responses.
        """
        drive = rates_hz
        if shown:
            if self._image_hz is not None:
                part = self._habits.carry_over
                drive = (1 - part) * rates_hz + part * self._image_hz
            self._image_hz = rates_hz
        if self._habits.noise == "overdispersed":
            drive = drive * self._rng.gamma(GAIN_SHAPE, 1 / GAIN_SHAPE, len(drive))
        start = self._device.true_sample(host_ns + self._habits.latency_s * 1e9)
        self._coming.append(_Segment(start, drive))

    def advance(self, until_sample: int) -> tuple[I64, I64]:
        """Return (unit, sample) of all new spikes before `until_sample`, in order of sample.

        Every image that drives them must have been given to `see`.
        """
        if until_sample <= self._next:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        first, self._next = self._next, until_sample
        self._drift((until_sample - first) / self._device.rate_hz)
        unit, sample = self._random(first, until_sample)
        if self._habits.artefacts:
            unit, sample = self._with_artefacts(unit, sample, first, until_sample)
        alive = sample < self._death[unit]
        unit, sample = unit[alive], sample[alive]
        order = np.lexsort((unit, sample))
        return unit[order], sample[order]

    def _drift(self, dt_s: float) -> None:
        """Let the log gain of each unit wander: Ornstein-Uhlenbeck, sd `gain_drift` after ten minutes."""
        if self._habits.gain_drift == 0:
            return
        keep = math.exp(-dt_s / DRIFT_S)
        sd = self._habits.gain_drift / math.sqrt(1 - math.exp(-2.0))
        step = self._rng.normal(size=len(self._log_gain))
        self._log_gain = keep * self._log_gain + sd * math.sqrt(1 - keep**2) * step

    def _enter_segments(self, sample: float) -> None:
        """Make the segment that `sample` lies in the current one."""
        while self._coming and self._coming[0].start_sample <= sample:
            self._segment = self._coming.pop(0)

    def _random(self, first: int, until: int) -> tuple[I64, I64]:
        """Draw Poisson spikes in steps of 1 ms."""
        starts = np.arange(first, until, STEP_SAMPLES)
        lengths = np.minimum(STEP_SAMPLES, until - starts)
        expected = np.empty((len(starts), len(self._smooth)))
        gain = np.exp(self._log_gain)
        for k, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            self._enter_segments(start + length / 2)
            dt_s = length / self._device.rate_hz
            self._smooth += (self._segment.drive_hz - self._smooth) * -math.expm1(-dt_s / self.smoothing_s)
            rate = self._smooth * gain
            if self._habits.adaptation:
                rate = rate / (1 + self._recent / ADAPTATION_HZ)
                self._recent += (rate - self._recent) * dt_s / ADAPTATION_S
            expected[k] = rate * dt_s
        counts = self._rng.poisson(expected)
        step, unit = np.nonzero(counts)
        repeats = counts[step, unit]
        step, unit = np.repeat(step, repeats), np.repeat(unit, repeats)
        sample = starts[step] + self._rng.integers(0, lengths[step], dtype=np.int64)
        return distinct(unit.astype(np.int64), sample)

    def _with_artefacts(self, unit: I64, sample: I64, first: int, until: int) -> tuple[I64, I64]:
        """Add events that hit all units at the same sample."""
        rate = (until - first) / self._device.rate_hz / ARTEFACTS_EVERY_S
        times = self._rng.integers(first, until, int(self._rng.poisson(rate)), dtype=np.int64)
        everyone = np.arange(len(self._smooth), dtype=np.int64)
        unit = np.concatenate([unit, np.tile(everyone, len(times))])
        sample = np.concatenate([sample, np.repeat(times, len(everyone))])
        return distinct(unit, sample)


def distinct(unit: I64, sample: I64) -> tuple[I64, I64]:
    """Drop second spikes of one unit at the same sample: no detector could tell them apart."""
    pairs = np.unique(np.stack([sample, unit], axis=1), axis=0)
    return pairs[:, 1], pairs[:, 0]
