"""The bytes of the Open Ephys ZMQ Interface plugin (0.3.3 and 1.0): frames made from values, nothing else.

Used by the animal's server and by tests that compare with captured traffic. Pure: no socket, no clock. Key order, CRLF
line ends and the plugin's own bug (headers with non-ASCII names lose their last bytes) are part of the format.
"""

import json
import struct
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Style = Literal["0.6", "1.0"]
F32 = npt.NDArray[np.float32]

DATA_ENVELOPE = b"DATA\x00"
EVENT_ENVELOPE = b"EVENT\x00"
TTL_EVENT = 3
TTL = struct.Struct("<BBQ")
SPIKE_SAMPLES = 40
PEAK_INDEX = 9
LARGEST_PLAIN_FLOAT = 1e6  # the GUI writes larger numbers with an exponent, which this module does not imitate


def header_text(fields: dict[str, Any], style: Style) -> str:
    """Return a header's text as the GUI makes it: `fields` in their order, JSON of indent 2 with CRLF."""
    return json.dumps(fields, indent=2, ensure_ascii=style == "0.6").replace("\n", "\r\n")


def header_bytes(fields: dict[str, Any], style: Style) -> bytes:
    """Return a header as the GUI sends it.

    GUI 1.0 gives the frame's length in code points, so every UTF-8 continuation byte in the text costs one byte at the
    end of the frame; GUI 0.6 escapes non-ASCII text and loses nothing.
    """
    text = header_text(fields, style)
    return text.encode()[: len(text)]


def _plain(value: float, what: str) -> float:
    if abs(value) >= LARGEST_PLAIN_FLOAT:
        raise ValueError(f"{what} {value} needs the GUI's exponent notation; keep it below {LARGEST_PLAIN_FLOAT:.0f}")
    return float(value)


def data_fields(
    message_num: int,
    stream: str,
    channel_num: int,
    channel_name: str,
    sample_num: int,
    sample_rate: float,
    num_samples: int,
    timestamp_ms: int,
) -> dict[str, Any]:
    """Return the header of one continuous channel's block of `num_samples` from `sample_num` on."""
    return {
        "message_num": message_num,
        "type": "data",
        "content": {
            "stream": stream,
            "channel_num": channel_num,
            "channel_name": channel_name,
            "num_samples": num_samples,
            "sample_num": sample_num,
            "sample_rate": _plain(sample_rate, "sample_rate"),
        },
        "data_size": 4 * num_samples,
        "timestamp": timestamp_ms,
    }


def data_frames(
    message_num: int,
    stream: str,
    channel_num: int,
    channel_name: str,
    sample_num: int,
    sample_rate: float,
    samples: F32,
    timestamp_ms: int,
    style: Style = "1.0",
) -> list[bytes]:
    """Return the three frames of one continuous channel's block: `samples` (sample,) from `sample_num` on."""
    fields = data_fields(
        message_num, stream, channel_num, channel_name, sample_num, sample_rate, len(samples), timestamp_ms
    )
    return [DATA_ENVELOPE, header_bytes(fields, style), samples.astype("<f4").tobytes()]


def ttl_fields(message_num: int, stream: str, source_node: int, sample_num: int, timestamp_ms: int) -> dict[str, Any]:
    """Return the header of one TTL edge."""
    return {
        "message_num": message_num,
        "type": "event",
        "content": {"stream": stream, "source_node": source_node, "type": TTL_EVENT, "sample_num": sample_num},
        "data_size": TTL.size,
        "timestamp": timestamp_ms,
    }


def ttl_frames(
    message_num: int,
    stream: str,
    source_node: int,
    sample_num: int,
    line: int,
    state: int,
    word: int,
    timestamp_ms: int,
    style: Style = "1.0",
) -> list[bytes]:
    """Return the three frames of one TTL edge; `line` is 0-based, `word` holds lines 0-63 after the edge."""
    fields = ttl_fields(message_num, stream, source_node, sample_num, timestamp_ms)
    return [EVENT_ENVELOPE, header_bytes(fields, style), TTL.pack(line, state, word)]


def spike_fields(
    message_num: int,
    stream: str,
    source_node: int,
    electrode: str,
    sample_num: int,
    sorted_id: int,
    threshold: tuple[float, ...],
    shape: tuple[int, int],
    timestamp_ms: int,
) -> dict[str, Any]:
    """Return the header of one spike whose waveform has `shape` (channel, sample); `sample_num` is its peak."""
    return {
        "message_num": message_num,
        "type": "spike",
        "spike": {
            "stream": stream,
            "source_node": source_node,
            "electrode": electrode,
            "sample_num": sample_num,
            "num_channels": shape[0],
            "num_samples": shape[1],
            "sorted_id": sorted_id,
            "threshold": [_plain(t, "threshold") for t in threshold],
        },
        "timestamp": timestamp_ms,
    }


def spike_frames(
    message_num: int,
    stream: str,
    source_node: int,
    electrode: str,
    sample_num: int,
    sorted_id: int,
    threshold: tuple[float, ...],
    waveform: F32,
    timestamp_ms: int,
    style: Style = "1.0",
) -> list[bytes]:
    """Return the three frames of one spike: `waveform` (channel, sample) in microvolts, `sample_num` of the peak."""
    channels, samples = waveform.shape
    fields = spike_fields(
        message_num, stream, source_node, electrode, sample_num, sorted_id, threshold, (channels, samples), timestamp_ms
    )
    return [EVENT_ENVELOPE, header_bytes(fields, style), waveform.astype("<f4").tobytes()]


def spike_waveform(peak_uv: float) -> F32:
    """Return a one-channel spike (1, 40), microvolts: trough of `peak_uv` (negative) at index 9, then a slow hump."""
    t = np.arange(SPIKE_SAMPLES, dtype=np.float64) - PEAK_INDEX
    trough = np.exp(-0.5 * (t / 1.8) ** 2)
    hump = np.where(t > 0, (t / 7.0) * np.exp(1 - t / 7.0), 0.0)
    return np.asarray((peak_uv * (trough - 0.4 * hump))[None, :], dtype=np.float32)


def heartbeat_reply(request: bytes) -> bytes:
    """Return what the plugin answers to one request on its heartbeat socket."""
    if not request:
        return b"heartbeat received"
    try:
        message = json.loads(request)
    except ValueError:  # also bytes that are not UTF-8
        return b"JSON message could not be read"
    if isinstance(message, dict) and message.get("type") == "event":
        return b"message correctly parsed"
    return b"heartbeat received"
