"""The Event Broadcaster wire of the animal: events and spikes of one stream as that Open Ephys plugin sends them.

One PUB socket, two frames a message: two bytes (0 TTL, 1 spike), then JSON or, in the raw format, binary. No counter
and no heartbeat. Written from the plugin's description; no captured traffic of it was at hand to compare the layout of
the JSON text with. The data socket belongs to the thread that calls `send`. It never waits for a listener.
"""

import json
import struct
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zmq

from rig.animal.openephys_wire import PEAK_INDEX, spike_waveform
from rig.animal.wire import Block, WireError

Format = Literal["json", "raw"]
F32 = npt.NDArray[np.float32]

TTL_TOPIC, SPIKE_TOPIC = b"\x00\x00", b"\x01\x00"
EVENT_NODE, SPIKE_NODE = 100, 103
BLOCK_SAMPLES = 696
DEFERRED_SAMPLES = 100  # spikes of a block's last 100 samples come with the next block
PEAK_UV, THRESHOLD_UV = -120.0, -60.0
PORTS_TRIED = 100
FAREWELL_MS = 200
_RAW_TTL = struct.Struct("<BBHHHqdBBQ")
_RAW_SPIKE = struct.Struct("<BBHHHqdH")


def _text(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, indent=2).replace("\n", "\r\n").encode()


def ttl_message(stream: str, rate_hz: float, sample: int, line: int, state: int) -> list[bytes]:
    """Return one TTL edge in JSON; `line` is 0-based."""
    fields = {
        "event_type": "ttl",
        "stream": stream,
        "source_node": EVENT_NODE,
        "sample_rate": rate_hz,
        "channel_name": f"TTL {line + 1}",
        "sample_number": sample,
        "line": line,
        "state": bool(state),
    }
    return [TTL_TOPIC, _text(fields)]


def spike_message(
    stream: str, rate_hz: float, electrode: str, sorted_id: int, sample: int, waveform: F32
) -> list[bytes]:
    """Return one spike in JSON; `waveform` (channel, sample) in microvolts gives the amplitudes."""
    fields: dict[str, Any] = {
        "event_type": "spike",
        "stream": stream,
        "source_node": SPIKE_NODE,
        "electrode": electrode,
        "num_channels": len(waveform),
        "sample_rate": rate_hz,
        "sample_number": sample,
        "sorted_id": sorted_id,
    }
    for k, channel in enumerate(waveform):
        fields[f"amp{k + 1}"] = -float(channel[PEAK_INDEX])
    return [SPIKE_TOPIC, _text(fields)]


def raw_ttl(sample: int, seconds: float, line: int, state: int, word: int) -> list[bytes]:
    """Return one TTL edge in the raw format, 34 bytes."""
    return [TTL_TOPIC, _RAW_TTL.pack(1, 3, EVENT_NODE, 0, 0, sample, seconds, line, state, word)]


def raw_spike(sample: int, seconds: float, channel: int, sorted_id: int, waveform: F32) -> list[bytes]:
    """Return one spike in the raw format: 26 bytes, a threshold for each channel, the waveform channel by channel."""
    channels = len(waveform)
    kind = {1: 1, 2: 2, 4: 3}[channels]
    head = _RAW_SPIKE.pack(2, kind, SPIKE_NODE, 0, channel, sample, seconds, sorted_id)
    thresholds = np.full(channels, THRESHOLD_UV, "<f4")
    return [SPIKE_TOPIC, head + thresholds.tobytes() + waveform.astype("<f4").tobytes()]


class EventBroadcaster:
    """Serves the events of one stream; call `close` to end it.

    `units` are names like "E01#0". With `search` it takes the next free port, as the plugin does; `port` tells which.
    """

    def __init__(
        self,
        units: tuple[str, ...],
        port: int = 5557,
        stream: str = "ProbeA-AP",
        rate_hz: float = 30_000.0,
        form: Format = "json",
        search: bool = False,
        block_samples: int = BLOCK_SAMPLES,
    ) -> None:
        self.offset = 0
        self.sent = 0  # messages put on the wire
        self.block_samples = block_samples
        self._names = [unit.rpartition("#") for unit in units]
        if wrong := [u for u, name in zip(units, self._names, strict=True) if not name[2].isdecimal()]:
            raise ValueError(f"unit {wrong[0]!r} is not named electrode#number; name it like E01#0")
        self._stream, self._rate_hz, self._form = stream, rate_hz, form
        self._waveform = spike_waveform(PEAK_UV)
        self._late: list[tuple[int, int]] = []
        self._word = 0
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.PUB)
        self._socket.linger = FAREWELL_MS
        self.port = self._bind(range(port, port + (PORTS_TRIED if search else 1)))

    def _bind(self, ports: range) -> int:
        for port in ports:
            try:
                self._socket.bind(f"tcp://127.0.0.1:{port}")
            except zmq.ZMQError as error:
                last = error
                continue
            return port
        self._socket.close()
        self._context.term()
        raise WireError(
            f"port {ports[0]} (Event Broadcaster) cannot be opened: {last.strerror}",
            "end the program that holds it, or give the source of type openephys_events another `port`",
        )

    def send(self, block: Block) -> None:
        """Put one block on the wire: spikes, grouped by electrode, then TTL edges."""
        everything = self._late + list(zip(block.spike_unit.tolist(), block.spike_sample.tolist(), strict=True))
        limit = block.first_sample + block.num_samples - DEFERRED_SAMPLES
        self._late = [s for s in everything if s[1] >= limit]
        for unit, sample in sorted(s for s in everything if s[1] < limit):
            self._put(self._spike(unit, sample - self.offset))
        for line, state, sample in block.edges:
            self._word = self._word | 1 << line if state else self._word & ~(1 << line)
            self._put(self._edge(line, state, sample - self.offset))

    def _spike(self, unit: int, sample: int) -> list[bytes]:
        electrode, _, number = self._names[unit]
        if self._form == "raw":
            return raw_spike(sample, sample / self._rate_hz, unit, int(number), self._waveform)
        return spike_message(self._stream, self._rate_hz, electrode, int(number), sample, self._waveform)

    def _edge(self, line: int, state: int, sample: int) -> list[bytes]:
        if self._form == "raw":
            return raw_ttl(sample, sample / self._rate_hz, line, state, self._word)
        return ttl_message(self._stream, self._rate_hz, sample, line, state)

    def _put(self, frames: list[bytes]) -> None:
        self._socket.send_multipart(frames)
        self.sent += 1

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        self._context.term()
