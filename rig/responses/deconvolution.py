"""Which events made a calcium trace: non-negative AR(1) deconvolution, as the frames come, with a fixed lag.

The problem, for each unit (Friedrich, Zhou & Paninski, PLoS Comput Biol 2017, "OASIS", eq. 4 with p = 1):

    minimise  sum_t (y_t - c_t)^2 / 2   subject to   s_t = c_t - g c_(t-1) >= 0,  c >= 0

y is dF/F, c the calcium, s the events, g = exp(-frame period / decay time). There is no sparsity penalty: Pachitariu,
Stringer & Harris (J Neurosci 2018) found that plain non-negative deconvolution recovers spikes best and suite2p uses
it; a penalty would need a noise level per unit. Noise therefore makes small events everywhere; a response's baseline
subtracts them.

The solver keeps the frames in pools, within which c only decays, and joins a new pool with the one before as long as
the new one lies below the decay of the old (the pool adjacent violators of OASIS). All units are solved side by side.

What the lag means. The event of frame t is handed out as soon as frame t + lag is there, and equals *exactly* what
the batch algorithm (`deconvolve`) gives for frame t on all data up to frame t + lag. Later data can change that in
two ways only: a pool that began at t grows (its height changes) or is joined to the one before (its event becomes 0).
The influence of a frame falls by g per frame; tests/test_deconvolution.py and `stimloop bench calcium` measure the
difference from the batch over the whole recording against the lag.
"""

import math

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

# Pools are kept for the lag and this many decay times before it. A new pool would have to be joined through all of
# them to be wrong, and then by e^-5 of the oldest.
KEPT_DECAYS = 5.0


class Pools:
    """The solution of the problem up to the newest frame, for all units: a stack of pools each."""

    def __init__(self, units: int, decay: float, depth: int) -> None:
        """Begin without a frame; `decay` is g, 0 < g < 1; the newest `depth` pools of each unit are kept."""
        if not 0 < decay < 1:
            raise ValueError(f"the decay per frame is {decay}; it must lie between 0 and 1")
        self._log_decay = math.log(decay)
        self._depth = depth
        self._first = np.arange(units, dtype=np.int64) * depth  # place of each unit's stack in the flat arrays
        self._value = np.zeros(units * depth)
        self._weight = np.zeros(units * depth)
        self._start = np.zeros(units * depth, np.int64)
        self.top = np.full(units, -1, np.int64)  # number of the newest pool, -1 if there is none
        self._bottom = np.zeros(units, np.int64)  # number of the oldest pool that is kept

    def push(self, frame: int, y: F64) -> None:
        """Take one frame; `y` (unit,) is dF/F, NaN where not measured. Frames come in order; holes are no data."""
        units = np.flatnonzero(np.isfinite(y))
        self.top[units] += 1
        top = self.top[units]
        np.maximum(self._bottom, self.top - (self._depth - 1), out=self._bottom)
        at = self._first[units] + top % self._depth
        self._value[at], self._weight[at], self._start[at] = y[units], 1.0, frame
        joinable = top > self._bottom[units]
        units = units[joinable]
        at = at[joinable]
        while len(units):
            before = self._first[units] + (self.top[units] - 1) % self._depth
            decay = self.decayed(self._start[at] - self._start[before])
            low = self._value[at] < decay * self._value[before]
            units, at, before, decay = units[low], at[low], before[low], decay[low]
            weight = decay * self._weight[at]
            total = self._weight[before] + decay * weight
            self._value[before] = (self._weight[before] * self._value[before] + weight * self._value[at]) / total
            self._weight[before] = total
            self.top[units] -= 1
            more = self.top[units] > self._bottom[units]
            units, at = units[more], before[more]

    def decayed(self, frames: I64) -> F64:
        """Return g to the power `frames`."""
        return np.asarray(np.exp(frames * self._log_decay))

    def start(self, pool: I64) -> I64:
        """Return the first frame of pool number `pool` (unit,) of each unit."""
        return np.asarray(self._start[self._first + pool % self._depth])

    def height(self, pool: I64) -> F64:
        """Return the calcium at the first frame of pool number `pool` (unit,) of each unit."""
        return np.asarray(np.maximum(self._value[self._first + pool % self._depth], 0.0))


class FixedLag:
    """Online deconvolution of many units: frames go in, events of `lag` frames ago come out."""

    def __init__(self, units: int, decay: float, lag: int) -> None:
        """Begin before the first frame.

        `decay` is g per frame, `lag` a number of frames >= 0. Memory: about 24 bytes for each unit and frame of the
        lag and of the decay times that are kept.
        """
        self.lag = lag
        kept = math.ceil(-KEPT_DECAYS / math.log(decay)) if 0 < decay < 1 else 0
        self._pools = Pools(units, decay, lag + 3 + kept)
        self._read = np.full(units, -1, np.int64)  # pool of the frame that was handed out last

    def push(self, frame: int, y: F64) -> None:
        """Take the dF/F (unit,) of one frame; NaN where not measured. `frame` counts lost frames too."""
        self._pools.push(frame, y)
        np.minimum(self._read, self._pools.top, out=self._read)

    def events(self, frame: int) -> F64:
        """Return the events (unit,) of `frame`, in dF/F.

        Ask for each pushed frame in order: when frame + lag is pushed, or before the first frame behind it is.
        """
        following = np.minimum(self._read + 1, self._pools.top)
        new = (following > self._read) & (self._pools.start(following) == frame)
        self._read[new] += 1
        events = np.zeros(len(new))
        has_past = new & (self._read > 0)  # the first pool holds the calcium that was there at the start: no event
        if has_past.any():
            past = np.maximum(self._read - 1, 0)
            since = self._pools.start(self._read) - self._pools.start(past)
            rise = self._pools.height(self._read) - self._pools.decayed(since) * self._pools.height(past)
            events[has_past] = np.maximum(rise[has_past], 0.0)
        return events


def deconvolve(y: F64, decay: float) -> F64:
    """Return the events (frame, unit) of whole traces `y` (frame, unit): the batch algorithm.

    NaN in `y` is a frame without data: its event is 0. `decay` is g per frame, 0 < g < 1.
    """
    frames, units = y.shape
    online = FixedLag(units, decay, lag=frames)
    for frame in range(frames):
        online.push(frame, y[frame])
    return np.stack([online.events(frame) for frame in range(frames)]) if frames else np.zeros((0, units))
