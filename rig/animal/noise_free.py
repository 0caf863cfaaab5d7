"""Neurons without noise: the same image gives the same spikes, placed from the edge of the photodiode.

`animal.noise: none`. Called by the amplifier like `rig.animal.neurons`; pure, without any random draw. The rule, so
that a count depends on the shown image and on nothing else:

* Only a presentation drives spikes: one volley after each rising edge of the photodiode, none in between (no
  spontaneous spikes that a window might or might not hold).
* The image is what the eye sees 30 ms after the edge (earlier for shorter images), when it has settled.
* The volley lasts from the latency on for as long as an image of this session is on (`presentation.on_s`), however
  long this one really was on: a late flip changes nothing.
* It is divided into bins of 10 ms that begin at edge + latency. After j bins round(rate * j * 10 ms) spikes have come,
  each bin's own within 2 ms of its middle.
* A volley has one spike at least, in its last bin if no other: some devices name a unit only by its spikes, and whether
  a unit is known already must not depend on which image came first.

So a window from the latency to the latency + on_s holds round(rate * on_s) spikes, or 1; any window whose ends lie at a
multiple of 10 ms after the latency keeps 3 ms from every spike, and counts the same also where its onset was taken from
the flip stamp and not from the photodiode.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rig.animal.device_clock import DeviceClock
from rig.animal.neurons import distinct

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

BIN_S = 0.01
SPREAD_S = 0.002  # a bin's spikes lie within this of its middle
SETTLED_S = 0.03
SETTLED_SHARE = 0.6  # of on_s: the image is never judged when it may be gone


@dataclass(frozen=True)
class _Seen:
    sample: float
    rates_hz: F64


class NoiseFreeNeurons:
    """Spikes of `units`, in device samples from `start_sample` on."""

    smoothing_s = 0.0

    def __init__(
        self,
        units: tuple[str, ...],
        device: DeviceClock,
        latency_s: float,
        on_s: float,
        dies: Mapping[str, float],
        start_sample: int,
    ) -> None:
        """`on_s` is how long an image is on; `dies` names units and when they fall silent, s after the start."""
        self._device = device
        self._latency_s = latency_s
        self._bins = max(1, round(on_s / BIN_S))
        self._settled_s = min(SETTLED_S, SETTLED_SHARE * on_s, latency_s + BIN_S / 2 - SPREAD_S)
        self._next = start_sample
        self._seen: list[_Seen] = []
        self._onsets: list[int] = []  # whose volleys are not made yet
        self._unit, self._sample = np.zeros(0, np.int64), np.zeros(0, np.int64)  # made, not handed out yet
        self._death = np.array([start_sample + dies.get(u, math.inf) * device.rate_hz for u in units])

    @property
    def lead_s(self) -> float:
        """Every image up to this long before a sample must be known before the spikes up to that sample are."""
        return self._latency_s + BIN_S / 2 - SPREAD_S - self._settled_s

    def onset(self, sample: int) -> None:
        """Take note that the photodiode rose at `sample`."""
        self._onsets.append(sample)

    def see(self, host_ns: int, rates_hz: F64, shown: bool) -> None:
        """Take the next retinal image: its noise-free rates (unit,), from `host_ns` on."""
        self._seen.append(_Seen(self._device.true_sample(host_ns), rates_hz))

    def advance(self, until_sample: int) -> tuple[I64, I64]:
        """Return (unit, sample) of all new spikes before `until_sample`, in order of sample."""
        rate = self._device.rate_hz
        first_spike = round((self._latency_s + BIN_S / 2 - SPREAD_S) * rate)
        while self._onsets and self._onsets[0] + first_spike < until_sample:
            self._make(self._onsets.pop(0))
        now = self._sample < until_sample
        unit, sample = self._unit[now], self._sample[now]
        self._unit, self._sample = self._unit[~now], self._sample[~now]
        # A volley is only late where the amplifier was told of its edge late; it must not rewrite what was sent.
        kept = (sample >= self._next) & (sample < self._death[unit])
        self._next = max(self._next, until_sample)
        unit, sample = unit[kept], sample[kept]
        order = np.lexsort((unit, sample))
        return unit[order], sample[order]

    def _make(self, onset: int) -> None:
        """Make the volley that answers an edge."""
        settled = onset + self._settled_s * self._device.rate_hz
        while len(self._seen) > 1 and self._seen[1].sample <= settled:
            del self._seen[0]
        if not self._seen or self._seen[0].sample > settled:
            return  # the eye has seen nothing yet
        units, samples = [self._unit], [self._sample]
        for k, rate_hz in enumerate(self._seen[0].rates_hz.tolist()):
            spikes = onset + volley(rate_hz, self._latency_s, self._bins, self._device.rate_hz)
            units.append(np.full(len(spikes), k, dtype=np.int64))
            samples.append(spikes)
        self._unit, self._sample = distinct(np.concatenate(units), np.concatenate(samples))


def volley(rate_hz: float, latency_s: float, bins: int, sample_rate_hz: float) -> I64:
    """Return when a neuron fires after an edge, in samples, ascending: round(rate * time) spikes, bin by bin."""
    due = np.floor(rate_hz * BIN_S * np.arange(bins + 1) + 0.5).astype(np.int64)
    due[-1] = max(due[-1], 1)
    times = []
    for j, count in enumerate(np.diff(due).tolist()):
        middle = latency_s + (j + 0.5) * BIN_S
        around = (np.arange(count) - (count - 1) / 2) * min(0.001, 2 * SPREAD_S / max(count - 1, 1))
        times.append(middle + around)
    samples: I64 = np.rint(np.concatenate(times) * sample_rate_hz).astype(np.int64)
    return samples
