"""The animal's LSL wire: one outlet of spike events and one of TTL edges, with in-band watermarks.

The format is described in docs/wires/lsl.md. It never waits for a listener.
"""

import uuid
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pylsl

from rig.animal.lsl_faults import Outlets
from rig.animal.wire import Block
from rig.clock import Clock

BLOCK_SAMPLES = 750  # 25 ms at 30 kHz: 40 watermarks a second
COUNT_MARK = -2.0
WATERMARK = -1.0


class LslOutlets:
    """Serves the streams `spikes_name` and, where given, `edges_name`; call `close` to end them."""

    block_samples = BLOCK_SAMPLES
    offset = 0

    def __init__(
        self,
        units: tuple[str, ...],
        clock: Clock,
        spikes_name: str,
        edges_name: str | None,
        rate_hz: float = 30_000.0,
        switches: Sequence[str] = (),
    ) -> None:
        self._clock = clock
        self._restarts = 0
        self._spikes_sent = 0
        self._edges_sent = 0
        makers: list[Callable[[], pylsl.StreamOutlet]] = [
            partial(outlet, spikes_name, "Spikes", ("unit", "sample"), device_hz=rate_hz, units=units, unit="index")
        ]
        if edges_name is not None:
            makers.append(edges_maker(edges_name, rate_hz))
        self._edges = edges_name is not None
        self._outlets = Outlets(makers, switches)

    def send(self, block: Block) -> None:
        """Push one block: its rows in order of sample, then the watermark."""
        # LSL's clock is the host's monotonic clock in seconds; the stamp is that of sending.
        stamp_s = self._clock.now_ns() * 1e-9
        self._outlets.turn(stamp_s)
        if self._outlets.restarts != self._restarts:
            self._restarts = self._outlets.restarts
            self._spikes_sent = self._edges_sent = 0
        end = block.first_sample + block.num_samples
        order = np.lexsort((block.spike_unit, block.spike_sample))
        rows = [[float(block.spike_unit[k]), float(block.spike_sample[k])] for k in order]
        self._spikes_sent += len(rows)
        self._outlets.push(0, rows, [stamp_s] * len(rows))
        self._outlets.push(0, [[COUNT_MARK, float(self._spikes_sent)], [WATERMARK, float(end)]], [stamp_s] * 2, True)
        if self._edges:
            edges = [[float(line), float(state), float(sample)] for line, state, sample in block.edges]
            self._edges_sent += len(edges)
            self._outlets.push(1, edges, [stamp_s] * len(edges))
            self._outlets.push(1, [[WATERMARK, float(self._edges_sent), float(end)]], [stamp_s], True)

    def close(self) -> None:
        """End both streams."""
        self._outlets.close()


def edges_maker(name: str, rate_hz: float) -> Callable[[], pylsl.StreamOutlet]:
    """Return what opens a stream of TTL edges whose samples count at `rate_hz`."""
    return partial(outlet, name, "TTL", ("line", "state", "sample"), device_hz=rate_hz, unit="index")


def outlet(
    name: str,
    kind: str,
    labels: Sequence[str],
    rate_hz: float = pylsl.IRREGULAR_RATE,
    format_: int = pylsl.cf_double64,
    device_hz: float | None = None,
    units: Sequence[str] = (),
    unit: str = "",
    scan_offset_s: Sequence[float] = (),
) -> pylsl.StreamOutlet:
    """Open a stream with one channel per label; `unit` is that of its values (a `sample` counts samples)."""
    source_id = f"stimloop-animal-{kind.lower()}-{uuid.uuid4().hex}"  # each start of a device is another sender
    info = pylsl.StreamInfo(name, kind, len(labels), rate_hz, format_, source_id)
    desc = info.desc()
    desc.append_child_value("device", "simulated animal")
    if device_hz is not None:
        desc.append_child_value("sample_rate_hz", str(device_hz))
    channels = desc.append_child("channels")
    for k, label in enumerate(labels):
        channel = channels.append_child("channel")
        channel.append_child_value("label", label)
        channel.append_child_value("unit", "samples" if label == "sample" else unit)
        if len(scan_offset_s):
            channel.append_child_value("scan_offset_s", repr(float(scan_offset_s[k])))
    if units:
        names = desc.append_child("units")
        for each in units:
            names.append_child_value("unit", each)
    return pylsl.StreamOutlet(info)
