"""The animal's LSL wire: one outlet of spike events and one of TTL edges, with in-band watermarks.

The format is described in docs/wires.md, section "LSL spikes". It never waits for a listener.
"""

import uuid

import numpy as np
import pylsl

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
        self, units: tuple[str, ...], clock: Clock, spikes_name: str, edges_name: str | None, rate_hz: float = 30_000.0
    ) -> None:
        self._clock = clock
        self._spikes_sent = 0
        self._edges_sent = 0
        run = uuid.uuid4().hex
        labels: tuple[str, ...] = ("unit", "sample")
        self._spikes = _outlet(spikes_name, "Spikes", labels, units, rate_hz, f"stimloop-animal-spikes-{run}")
        self._edges = None
        if edges_name is not None:
            labels = ("line", "state", "sample")
            self._edges = _outlet(edges_name, "TTL", labels, (), rate_hz, f"stimloop-animal-edges-{run}")

    def send(self, block: Block) -> None:
        """Push one block: its rows in order of sample, then the watermark."""
        # LSL's clock is the host's monotonic clock in seconds; the stamp is that of sending.
        stamp_s = self._clock.now_ns() * 1e-9
        end = block.first_sample + block.num_samples
        order = np.lexsort((block.spike_unit, block.spike_sample))
        rows = [[float(block.spike_unit[k]), float(block.spike_sample[k])] for k in order]
        self._spikes_sent += len(rows)
        rows += [[COUNT_MARK, float(self._spikes_sent)], [WATERMARK, float(end)]]
        self._spikes.push_chunk(rows, stamp_s)
        if self._edges is not None:
            edges = [[float(line), float(state), float(sample)] for line, state, sample in block.edges]
            self._edges_sent += len(edges)
            edges.append([WATERMARK, float(self._edges_sent), float(end)])
            self._edges.push_chunk(edges, stamp_s)

    def close(self) -> None:
        """End both streams."""
        del self._spikes
        del self._edges


def _outlet(
    name: str, kind: str, labels: tuple[str, ...], units: tuple[str, ...], rate_hz: float, source_id: str
) -> pylsl.StreamOutlet:
    info = pylsl.StreamInfo(name, kind, len(labels), pylsl.IRREGULAR_RATE, pylsl.cf_double64, source_id)
    desc = info.desc()
    desc.append_child_value("device", "simulated animal")
    desc.append_child_value("sample_rate_hz", str(rate_hz))
    channels = desc.append_child("channels")
    for label in labels:
        channel = channels.append_child("channel")
        channel.append_child_value("label", label)
        channel.append_child_value("unit", "samples" if label == "sample" else "index")
    if units:
        names = desc.append_child("units")
        for unit in units:
            names.append_child_value("unit", unit)
    return pylsl.StreamOutlet(info)
