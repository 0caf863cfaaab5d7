"""The animal's wire of binned spike counts over LSL, with TTL edges, stamped with the sender's LSL clock.

The format is described in docs/wires/lsl.md: one channel per unit, one row per bin, its stamp the bin's beginning.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pylsl

from rig.animal.device_clock import DeviceClock
from rig.animal.lsl_calcium import STAMP_HZ, EdgeRows, sender_s
from rig.animal.lsl_faults import Outlets
from rig.animal.lsl_outlets import edges_maker, outlet
from rig.animal.wire import Block
from rig.clock import Clock
from rig.config.sources import LslCountSource

BIN_SAMPLES = 300  # 10 ms at 30 kHz


class LslCounts:
    """Serves the streams that an `lsl_counts` source names; a block is one bin. Call `close` to end them."""

    block_samples = BIN_SAMPLES
    offset = 0

    def __init__(
        self,
        units: tuple[str, ...],
        clock: Clock,
        source: LslCountSource,
        device: DeviceClock,
        switches: Sequence[str] = (),
    ) -> None:
        self._clock, self._device, self._units = clock, device, len(units)
        # A channel of its own counts the bins, so that a lost row is known also where stamps jitter.
        labels = (*units, "frame")
        rate_hz = device.rate_hz / BIN_SAMPLES
        makers: list[Callable[[], pylsl.StreamOutlet]] = [
            partial(outlet, source.stream, "Counts", labels, rate_hz, pylsl.cf_float32, unit="spikes")
        ]
        self._edges = source.edges is not None
        if source.edges is not None:
            makers.append(edges_maker(source.edges, STAMP_HZ))
        self._outlets = Outlets(makers, switches)
        self._restarts = 0
        self._rows = EdgeRows(device)
        self._bin = 0

    def send(self, block: Block) -> None:
        """Push the bin that is this block, and its edges."""
        self._outlets.turn(self._clock.now_ns() * 1e-9)
        if self._outlets.restarts != self._restarts:
            self._restarts = self._outlets.restarts
            self._rows.restart()
            self._bin = 0
        counts = np.bincount(block.spike_unit, minlength=self._units).astype(np.float32)
        row = np.append(counts, np.float32(self._bin))[None, :]
        self._bin += 1
        self._outlets.push(0, row, [sender_s(self._device, block.first_sample)])
        if self._edges:
            edges, mark = self._rows.rows(block)
            stamp_s = sender_s(self._device, block.first_sample + block.num_samples)
            self._outlets.push(1, edges, [stamp_s] * len(edges))
            self._outlets.push(1, mark, [stamp_s], True)

    def close(self) -> None:
        """End the streams."""
        self._outlets.close()
