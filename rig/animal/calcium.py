"""The simulated microscope: true spikes become fluorescence, frame by frame, as a two-photon line scan sees it.

Each spike adds `spike_dff` to the calcium of its ROI, which decays with `tau_s`. The scan passes each ROI at its own
time within the frame. Added are the neuropil (a signal that neighbouring ROIs share), the noise of photon counting,
bleaching, and motion of the tissue, whose part along the optical axis dims the ROIs. Seeded: the same generator state
and spikes give the same frames.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rig.config.sources import CalciumSimulation

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

PATCH_UNITS = 25  # ROIs that share one neuropil signal
NEUROPIL_TAU_S = 2.0  # memory of the neuropil's own fluctuations
NEUROPIL_SD = 0.1  # their size, dF/F of the neuropil
MOTION_TAU_S = 1.0
MOTION_SD_UM = (1.0, 1.0, 0.5)  # brain motion in a head-fixed animal is a few um
AXIAL_SD_UM = 5.0  # half width of the focus along the optical axis, as the sd of a Gaussian
BRIGHTNESS = 500.0  # median F0, arbitrary units of the digitiser


@dataclass(frozen=True)
class Frames:
    """Frames that are complete."""

    frame: I64  # (k,) frame counter from 0
    sample: I64  # (k,) device sample at which the frame began
    fluorescence: F32  # (k, unit)
    neuropil: F32  # (k, unit), around each ROI
    motion: F32  # (k, 3), um: x, y, z


class Microscope:
    """Turns spikes into frames."""

    def __init__(
        self, units: int, settings: CalciumSimulation, rate_hz: float, start_sample: int, rng: np.random.Generator
    ) -> None:
        """Start the first frame at `start_sample`; samples count at `rate_hz`."""
        self._settings = settings
        self._rate_hz = rate_hz
        self._start_sample = start_sample
        self._rng = rng
        self._period = rate_hz / settings.frame_hz  # samples, not a whole number
        self._frame_s = 1 / settings.frame_hz
        self.scan_offset_s: F64 = np.sort(rng.uniform(0, self._frame_s, units))  # lines are scanned from the top
        self.f0: F64 = BRIGHTNESS * np.exp(0.3 * rng.standard_normal(units))
        self._neuropil_f0 = self.f0 * rng.uniform(0.6, 1.0, units)
        self._patch = np.arange(units) // PATCH_UNITS
        self._patch_size = np.bincount(self._patch).astype(float) if units else np.zeros(0)
        self._calcium = np.zeros(units)
        self._shared = NEUROPIL_SD * rng.standard_normal(len(self._patch_size))
        self._motion = np.array(MOTION_SD_UM) * rng.standard_normal(3)
        self._next = 0
        self._late: tuple[I64, F64, F64] = (np.zeros(0, np.int64), np.zeros(0), np.zeros(0))

    def frame_start(self, frame: int | I64) -> F64:
        """Return the device sample, not rounded, at which a frame begins: the same however many frames were made."""
        return np.asarray(self._start_sample + np.asarray(frame) * self._period)

    def frames(self, spike_unit: I64, spike_sample: I64 | F64, until_sample: float) -> Frames:
        """Return all frames that ended before `until_sample`.

        `spike_unit` (spike,) and `spike_sample` (spike,) are the spikes since the last call; every spike before
        `until_sample` must have been given by now.
        """
        unit, at, weight = self._by_frame(spike_unit, spike_sample)
        first = self._next
        count = 0
        while float(self.frame_start(first + count + 1)) <= until_sample:
            count += 1
        self._next = first + count
        now = at < self._next
        self._late = (unit[~now], at[~now], weight[~now])
        units = len(self._calcium)
        added = np.zeros((count, units))
        np.add.at(added, ((at[now] - first).astype(np.int64), unit[now]), weight[now])
        frame = np.arange(first, first + count, dtype=np.int64)
        fluorescence = np.empty((count, units), np.float32)
        neuropil = np.empty((count, units), np.float32)
        motion = np.empty((count, 3), np.float32)
        for k in range(count):
            self._step(added[k])
            fluorescence[k], neuropil[k] = self._image(first + k)
            motion[k] = self._motion
        return Frames(frame, np.rint(self.frame_start(frame)).astype(np.int64), fluorescence, neuropil, motion)

    def _by_frame(self, spike_unit: I64, spike_sample: I64 | F64) -> tuple[I64, F64, F64]:
        """Return unit, first frame that sees it, and what is left then, of each spike, those kept for later first."""
        unit = np.asarray(spike_unit, np.int64)
        since = (np.asarray(spike_sample, float) - self._start_sample) / self._rate_hz - self.scan_offset_s[unit]
        at = np.maximum(np.ceil(since / self._frame_s), self._next)
        left = self._settings.spike_dff * np.exp(-np.maximum(at * self._frame_s - since, 0) / self._settings.tau_s)
        late = self._late
        return np.concatenate([late[0], unit]), np.concatenate([late[1], at]), np.concatenate([late[2], left])

    def _step(self, added: F64) -> None:
        """Go on by one frame."""
        self._calcium = self._calcium * np.exp(-self._frame_s / self._settings.tau_s) + added
        for state, tau_s, sd in (
            (self._shared, NEUROPIL_TAU_S, NEUROPIL_SD),
            (self._motion, MOTION_TAU_S, np.array(MOTION_SD_UM)),
        ):
            stay = np.exp(-self._frame_s / tau_s)
            state *= stay
            state += sd * np.sqrt(1 - stay**2) * self._rng.standard_normal(len(state))

    def _image(self, frame: int) -> tuple[F32, F32]:
        """Return fluorescence and neuropil (unit,) of one frame."""
        settings = self._settings
        hours = frame * self._frame_s / 3600
        bright = (1 - settings.bleaching_per_h) ** hours * np.exp(-0.5 * (self._motion[2] / AXIAL_SD_UM) ** 2)
        patch = np.bincount(self._patch, self._calcium, len(self._patch_size)) / self._patch_size
        neuropil = self._neuropil_f0 * (1 + (patch + self._shared)[self._patch])
        signal = self.f0 * (1 + self._calcium)
        seen = bright * (signal + settings.neuropil * neuropil)
        # photon counting: the variance grows with the light; noise_dff is its sd at F0 with the resting neuropil
        rest = self.f0 + settings.neuropil * self._neuropil_f0
        noise = settings.noise_dff * self.f0 * np.sqrt(np.maximum(seen, 0) / rest)
        seen = seen + noise * self._rng.standard_normal(len(seen))
        # the ring around an ROI has many more pixels than the ROI: its noise is left out
        return seen.astype(np.float32), (bright * neuropil).astype(np.float32)
