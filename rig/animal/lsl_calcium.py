"""The animal's calcium wire over LSL: fluorescence, neuropil and TTL edges, stamped with the sender's LSL clock.

The format is described in docs/wires/lsl.md. The microscope and the photodiode have the device's drifting clock; the
sender stamps what they do with its own (`DeviceClock.host_ns`), as a computer beside the microscope would.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pylsl

from rig.animal.calcium import Microscope
from rig.animal.device_clock import DeviceClock
from rig.animal.lsl_faults import Outlets
from rig.animal.lsl_outlets import BLOCK_SAMPLES, WATERMARK, edges_maker, outlet
from rig.animal.wire import Block
from rig.clock import Clock
from rig.config.sources import CalciumSimulation, LslCalciumSource

STAMP_HZ = 1e6  # samples in rows are us of the sender's LSL clock
I64 = npt.NDArray[np.int64]


def sender_s(device: DeviceClock, sample: float) -> float:
    """Return the sender's LSL clock, s, when the device's counter reached `sample`."""
    return device.host_ns(sample) * 1e-9


class EdgeRows:
    """Rows of the edges stream: samples in us of the sender's LSL clock, each block closed by a watermark."""

    def __init__(self, device: DeviceClock) -> None:
        self._device, self._sent = device, 0

    def us(self, sample: float) -> float:
        """Return a device sample as us of the sender's LSL clock."""
        return float(round(sender_s(self._device, sample) * STAMP_HZ))

    def rows(self, block: Block) -> tuple[list[list[float]], list[list[float]]]:
        """Return the edges of a block, and the row that says how many were sent before which moment."""
        edges = [[float(line), float(state), self.us(sample)] for line, state, sample in block.edges]
        self._sent += len(edges)
        return edges, [[WATERMARK, float(self._sent), self.us(block.first_sample + block.num_samples)]]

    def restart(self) -> None:
        """Count from 0 again: the streams are new."""
        self._sent = 0


class LslCalcium:
    """Serves the streams that an `lsl_calcium` source names; call `close` to end them."""

    block_samples = BLOCK_SAMPLES
    offset = 0

    def __init__(
        self,
        units: tuple[str, ...],
        clock: Clock,
        source: LslCalciumSource,
        settings: CalciumSimulation,
        device: DeviceClock,
        rng: np.random.Generator,
        switches: Sequence[str] = (),
    ) -> None:
        self._clock, self._device = clock, device
        self._microscope = Microscope(len(units), settings, device.rate_hz, device.start_sample, rng)
        offsets = self._microscope.scan_offset_s.tolist()
        traces = partial(
            outlet, labels=units, rate_hz=settings.frame_hz, format_=pylsl.cf_float32, unit="a.u.",
            scan_offset_s=offsets,
        )  # fmt: skip
        makers: list[Callable[[], pylsl.StreamOutlet]] = [partial(traces, source.stream, "Calcium")]
        self._neuropil = len(makers) if source.neuropil is not None else None
        if source.neuropil is not None:
            makers.append(partial(traces, source.neuropil, "Neuropil"))
        self._edges = len(makers) if source.edges is not None else None
        if source.edges is not None:
            makers.append(edges_maker(source.edges, STAMP_HZ))
        self._outlets = Outlets(makers, switches)
        self._restarts = 0
        self._rows = EdgeRows(device)

    def send(self, block: Block) -> None:
        """Push the frames that ended with this block, and its edges."""
        self._outlets.turn(self._clock.now_ns() * 1e-9)
        if self._outlets.restarts != self._restarts:
            self._restarts = self._outlets.restarts
            self._rows.restart()
        end = block.first_sample + block.num_samples
        frames = self._microscope.frames(block.spike_unit, block.spike_sample, end)
        stamps = [sender_s(self._device, float(s)) for s in frames.sample]
        self._outlets.push(0, frames.fluorescence, stamps)
        if self._neuropil is not None:
            self._outlets.push(self._neuropil, frames.neuropil, stamps)
        if self._edges is not None:
            edges, mark = self._rows.rows(block)
            stamp_s = sender_s(self._device, end)
            self._outlets.push(self._edges, edges, [stamp_s] * len(edges))
            self._outlets.push(self._edges, mark, [stamp_s], True)

    def close(self) -> None:
        """End the streams."""
        self._outlets.close()
