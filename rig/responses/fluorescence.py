"""From raw fluorescence to dF/F while the frames come: neuropil subtraction and a running baseline.

F = raw - coefficient * neuropil. F0 is a percentile of F over the last `baseline_window_s`, taken over means of short
blocks (120 to the window) and not over single frames, so that the noise of a frame does not pull the percentile down;
offline programs smooth before they take a percentile for the same reason (suite2p's "maximin" uses a Gaussian).
"""

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

BLOCKS = 120  # block means in the window: the percentile is known to 1 %
WARM_UP_BLOCKS = BLOCKS // 12  # before that many there is no F0
REFRESHES = 4  # F0 of each unit is taken anew once in so many blocks, a part of the units at each frame


class RunningBaseline:
    """F0 of many units, from the frames so far. The same frames give the same F0."""

    def __init__(self, units: int, percentile: float, window_frames: float) -> None:
        """Begin before the first frame; `percentile` 0 to 100, `window_frames` the length of the window in frames."""
        self.block_frames = max(1, round(window_frames / BLOCKS))
        self._share = percentile / 100
        self._blocks = np.full((units, BLOCKS), np.nan, np.float32)
        self._sum = np.zeros(units)
        self._measured = np.zeros(units, np.int64)  # frames in the block that is being filled
        self._frames = 0
        self._filled = 0
        self._baseline = np.full(units, np.nan)

    def take(self, fluorescence: F64) -> F64:
        """Take F (unit,) of one frame, NaN where not measured; return F0 (unit,), NaN where there is none yet."""
        measured = np.isfinite(fluorescence)
        self._sum += np.where(measured, fluorescence, 0.0)
        self._measured += measured
        self._frames += 1
        if self._frames % self.block_frames == 0:
            mean = np.full(len(self._sum), np.nan)
            np.divide(self._sum, self._measured, out=mean, where=self._measured > 0)
            self._blocks[:, self._filled % BLOCKS] = mean
            self._filled += 1
            self._sum[:] = 0
            self._measured[:] = 0
            if self._filled == WARM_UP_BLOCKS:
                self._refresh(slice(0, len(mean)))
        if self._filled >= WARM_UP_BLOCKS:
            turns = self.block_frames * REFRESHES
            turn = self._frames % turns
            units = len(self._baseline)
            self._refresh(slice(units * turn // turns, units * (turn + 1) // turns))
        return self._baseline

    def _refresh(self, units: slice) -> None:
        """Take the percentile anew for some units; it needs as many measured blocks as the start did."""
        part = np.sort(self._blocks[units, : min(self._filled, BLOCKS)], axis=1)  # NaN goes last
        count = np.count_nonzero(np.isfinite(part), axis=1)
        place = self._share * (count - 1)
        low = np.maximum(np.floor(place), 0).astype(np.int64)
        rows = np.arange(len(part))
        high = np.minimum(low + 1, part.shape[1] - 1)
        fraction = (place - low).astype(np.float32)
        value = part[rows, low]
        rest = np.where(fraction > 0, part[rows, high] - value, 0)
        self._baseline[units] = np.where(count >= WARM_UP_BLOCKS, value + fraction * rest, np.nan)
