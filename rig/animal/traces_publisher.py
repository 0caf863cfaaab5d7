"""The animal's traces wire: what a bridge from a two-photon microscope publishes (docs/wires/traces.md)."""

import numpy as np

from rig.animal.calcium import Microscope
from rig.animal.device_clock import DeviceClock
from rig.animal.wire import Block
from rig.animal.zmq_bridge import Bridge, BridgeFaults, Schedule
from rig.clock import Clock
from rig.config.sources import CalciumSimulation, WireFaults

BLOCK_SAMPLES = 750  # 25 ms at 30 kHz
LIST_EVERY_S = 1.0


class TracesPublisher:
    """Serves frames and TTL edges on `port`, the device's clock on `port + 1`; call `close` to end it."""

    block_samples = BLOCK_SAMPLES

    def __init__(
        self,
        units: tuple[str, ...],
        clock: Clock,
        port: int,
        device: DeviceClock,
        calcium: CalciumSimulation,
        settings: WireFaults,
        rng: np.random.Generator,
    ) -> None:
        self.faults = BridgeFaults()
        self._schedule = Schedule(settings.switches, device.rate_hz)
        self._units, self._rate_hz = units, device.rate_hz
        self._microscope = Microscope(len(units), calcium, device.rate_hz, device.start_sample, rng)
        self._frame_samples = device.rate_hz / calcium.frame_hz
        self._newest_end = device.start_sample  # up to which the frames made so far reach
        self._list_due, self._list, self._names = 0, 0, list(units)
        self._bridge = Bridge("traces", port, device, clock, self.faults)

    @property
    def offset(self) -> int:
        """Device sample that the wire calls 0."""
        return self._bridge.offset

    @property
    def dropped(self) -> int:
        """Messages that were numbered and not sent."""
        return self._bridge.sent.dropped

    def send(self, block: Block) -> None:
        """Publish the frames that ended within a block; without one the message says how far the data go."""
        self._schedule.set(self.faults, block.first_sample)
        restarted = self._bridge.begin(block.first_sample)
        names = list(self._units)
        if self.faults.unit_list_change:
            names[-1] = f"{names[-1]}-new"
        if names != self._names or restarted or block.first_sample >= self._list_due:
            self._list += names != self._names
            self._names, self._list_due = names, block.first_sample + int(LIST_EVERY_S * self._rate_hz)
            fields = {"kind": "units", "rate_hz": self._rate_hz, "list": self._list, "units": names}
            self._bridge.put(fields, self._microscope.scan_offset_s.astype("<f8").tobytes())
        end, offset = block.first_sample + block.num_samples, self._bridge.offset
        made = self._microscope.frames(block.spike_unit, block.spike_sample, end)
        if len(made.frame):
            self._newest_end = int(made.sample[-1] + self._frame_samples)
        # A frame that began before the samples did does not exist for the wire.
        seen = made.sample >= offset
        values = made.fluorescence[seen]
        if self.faults.unit_list_change:
            values = values.copy()
            values[:, -1] = np.nan  # the new ROI is not measured
        self._bridge.put(
            {
                "kind": "frames",
                "rate_hz": self._rate_hz,
                "list": self._list,
                "rois": len(names),
                "through": max(self._newest_end - offset, 0),
                "frames": np.stack([made.frame[seen], made.sample[seen] - offset], axis=1).tolist(),
                "motion": np.round(made.motion[seen].astype(float), 3).tolist(),
                "edges": [[line, state, sample - offset] for line, state, sample in block.edges],
            },
            values.astype("<f4").tobytes(),
            made.neuropil[seen].astype("<f4").tobytes(),
        )

    def close(self) -> None:
        """End the wire."""
        self._bridge.close()
