"""Continuous channels with spikes in noise, for those who detect with a threshold of their own. Pure."""

import numpy as np
import numpy.typing as npt

from rig.animal.openephys_wire import PEAK_INDEX, spike_waveform

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
NOISE_UV = 10.0
PEAK_UV = -120.0


class Voltage:
    """Channel c holds the spikes of unit c modulo the number of units, in Gaussian noise of 10 uV."""

    def __init__(self, channels: int, units: int, rng: np.random.Generator) -> None:
        """Start before the first block."""
        self._channels, self._units, self._rng = channels, units, rng
        self._shape = spike_waveform(PEAK_UV)[0]
        self._tail: F32 = np.zeros((channels, self._shape.size), dtype=np.float32)  # of the last block's spikes

    def block(self, first: int, num_samples: int, unit: I64, sample: I64) -> F32:
        """Return (channel, sample) in microvolts; the peak of spike k is at `sample[k]`, in this block.

        What of a waveform would lie before the block is cut off: it was sent already.
        """
        size = self._shape.size
        clean = np.zeros((self._channels, num_samples + size), dtype=np.float32)
        clean[:, :size] += self._tail
        for u, s in zip(unit.tolist(), sample.tolist(), strict=True):
            start = s - first - PEAK_INDEX
            cut = max(0, -start)
            clean[u % self._units :: self._units, start + cut : start + size] += self._shape[cut:]
        self._tail = clean[:, num_samples:]
        noise = self._rng.standard_normal((self._channels, num_samples), dtype=np.float32)
        volts: F32 = clean[:, :num_samples] + np.float32(NOISE_UV) * noise
        return volts
