"""The animal's recording device: every block of samples, takes what happened and puts it on the wire, on time.

Runs in a thread of its own, paced by the device's own clock: deadlines are samples, so nothing accumulates. A block
waits for the eye and the neurons if they are behind; it is then late, as on a busy amplifier computer, but never wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rig.animal.cortex import Cortex, Edge
from rig.animal.device_clock import DeviceClock
from rig.animal.sync_input import SyncInput
from rig.animal.truth_log import TruthLog
from rig.animal.wire import Block, Wire
from rig.clock import Clock

LATE_NS = 10_000_000
FLUSH_NS = 1_000_000_000
PATIENCE_S = 0.1
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Firing(Protocol):
    """Neurons of a kind: `rig.animal.neurons.Neurons`, `rig.animal.noise_free.NoiseFreeNeurons`."""

    smoothing_s: float

    @property
    def lead_s(self) -> float: ...  # noqa: D102
    def onset(self, sample: int) -> None: ...  # noqa: D102
    def see(self, host_ns: int, rates_hz: F64, shown: bool) -> None: ...  # noqa: D102
    def advance(self, until_sample: int) -> tuple[I64, I64]: ...  # noqa: D102


@dataclass
class Lateness:
    """How punctual the device was."""

    blocks: int = 0
    late_blocks: int = 0  # sent more than 10 ms after their last sample
    longest_ns: int = 0


class Amplifier:
    """Digitises from device sample `start_sample` on."""

    def __init__(
        self,
        wire: Wire,
        neurons: Firing,
        cortex: Cortex,
        device: DeviceClock,
        truth: TruthLog,
        clock: Clock,
        line: int,
        start_sample: int,
        sync: tuple[int, SyncInput] | None = None,
    ) -> None:
        self.lateness = Lateness()
        self._wire, self._neurons, self._cortex, self._device = wire, neurons, cortex, device
        self._truth, self._clock, self._line = truth, clock, line
        self._sync = sync  # TTL line of the device, and what is wired to it
        self._lead_ns = int(neurons.lead_s * 1e9)
        self._first = start_sample
        self._offset: int | None = None
        self._flush_ns = clock.now_ns() + FLUSH_NS

    def run(self, stop: Callable[[], bool]) -> None:
        """Send block after block until `stop()` is true."""
        while not stop():
            self.block(stop)

    def block(self, stop: Callable[[], bool]) -> None:
        """Wait for the end of the next block and send it; give up if `stop()` becomes true first."""
        end = self._first + self._wire.block_samples
        due_ns = int(self._device.host_ns(end))
        self._clock.sleep_until_ns(due_ns)
        got = None
        while got is None:
            got = self._cortex.collect(due_ns, due_ns - self._lead_ns, PATIENCE_S)
            if stop():
                return
        edges, images = got
        stamped = tuple((self._line, e.state, self._stamp(e, end)) for e in edges)
        for _, state, at in stamped:
            if state == 1:
                self._neurons.onset(at)
        for image in images:
            self._neurons.see(image.host_ns, image.rates_hz, image.patch_on)
            self._truth.image(image)
        unit, sample = self._neurons.advance(end)
        if self._sync is not None:
            stamped = tuple(sorted((*stamped, *self._synced(*self._sync, due_ns, end)), key=lambda edge: edge[2]))
        self._wire.send(Block(self._first, end - self._first, unit, sample, stamped))
        self._truth.spikes(unit, sample)
        if self._wire.offset != self._offset:
            self._offset = self._wire.offset
            self._truth.event("run", sample=self._first, offset=self._offset)
        self._first = end
        self._account(due_ns)

    def _stamp(self, edge: Edge, end: int) -> int:
        """Digitise an edge: the sample during which it was seen."""
        sample = min(int(self._device.true_sample(edge.host_ns)), end - 1)
        self._truth.edge(edge, sample)
        return sample

    def _synced(self, line: int, wired: SyncInput, due_ns: int, end: int) -> list[tuple[int, int, int]]:
        """Return line, state, sample of the edges on the line that is wired to the host's own output."""
        edges = [(e.state, int(self._device.true_sample(e.host_ns))) for e in wired.before(due_ns)]
        return [(line, state, min(max(sample, self._first), end - 1)) for state, sample in edges]

    def _account(self, due_ns: int) -> None:
        now_ns = self._clock.now_ns()
        late_ns = now_ns - due_ns
        self.lateness.blocks += 1
        self.lateness.late_blocks += late_ns > LATE_NS
        self.lateness.longest_ns = max(self.lateness.longest_ns, late_ns)
        if now_ns >= self._flush_ns:
            self._truth.flush()
            self._flush_ns = now_ns + FLUSH_NS
