"""The animal's spikes wire: what a bridge from a spike sorter publishes (docs/wires/spikes.md)."""

import numpy as np

from rig.animal.device_clock import DeviceClock
from rig.animal.wire import Block
from rig.animal.zmq_bridge import Bridge, BridgeFaults, Schedule
from rig.clock import Clock
from rig.config.sources import WireFaults

BLOCK_SAMPLES = 750  # 25 ms at 30 kHz: 40 messages a second
LIST_EVERY = 40  # messages between two repetitions of the unit list
BEHIND = 150  # samples by which `through` lags with quirks on: a sorter that is sure only after 5 ms


class SpikesPublisher:
    """Serves spikes and TTL edges on `port`, the device's clock on `port + 1`; call `close` to end it."""

    block_samples = BLOCK_SAMPLES

    def __init__(
        self,
        units: tuple[str, ...],
        clock: Clock,
        port: int,
        device: DeviceClock,
        settings: WireFaults,
        rng: np.random.Generator,
    ) -> None:
        self.faults = BridgeFaults()
        self._schedule = Schedule(settings.switches, device.rate_hz)
        self._units, self._rate_hz, self._quirks, self._rng = units, device.rate_hz, settings.quirks, rng
        self._messages = 0
        self._list, self._names = 0, list(units)
        self._bridge = Bridge("spikes", port, device, clock, self.faults)

    @property
    def offset(self) -> int:
        """Device sample that the wire calls 0."""
        return self._bridge.offset

    @property
    def dropped(self) -> int:
        """Messages that were numbered and not sent."""
        return self._bridge.sent.dropped

    def send(self, block: Block) -> None:
        """Publish one block, also an empty one: it says how far the data are complete."""
        self._schedule.set(self.faults, block.first_sample)
        if self._bridge.begin(block.first_sample):
            self._messages = 0
        names = list(self._units)
        if self.faults.unit_list_change:
            names[-1] = f"{names[-1]}-new"
        changed, self._names = names != self._names, names
        self._list += changed
        offset, end = self._bridge.offset, block.first_sample + block.num_samples
        rows = np.stack([block.spike_unit, block.spike_sample - offset], axis=1)
        if self._quirks:
            rows = self._rng.permutation(rows)
        if self.faults.unit_list_change:
            rows = rows[rows[:, 0] != len(names) - 1]  # the new unit is silent
        fields = {
            "rate_hz": self._rate_hz,
            "list": self._list,
            "through": max(end - offset - BEHIND * self._quirks, 0),
            "ahead": BEHIND * self._quirks,
            "edges": [[line, state, sample - offset] for line, state, sample in block.edges],
        }
        if changed or self._messages % LIST_EVERY == 0:
            fields["units"] = names
        self._messages += 1
        self._bridge.put(fields, rows.astype("<i8").tobytes())

    def close(self) -> None:
        """End the wire."""
        self._bridge.close()
