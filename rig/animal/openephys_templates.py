"""Headers of the Open Ephys wire, prepared: what changes from message to message is filled in, nothing else is made.

At 384 channels and 20,000 spikes/s, 36,000 headers are wanted in a second, and `json.dumps` would need a core. They are
made from `openephys_wire.header_text` and are its bytes, the GUI's truncation of non-ASCII headers included. Pure.
"""

from typing import Any

from rig.animal.openephys_wire import Style, data_fields, header_text, spike_fields, ttl_fields

# No name of a stream or a channel is likely to hold these, and none may.
_NUMBER, _SAMPLE, _COUNT, _BYTES, _TIME, _NODE = (9_000_000_000_000_001 + k for k in range(6))


class Template:
    """One header with holes for whole numbers, in the order in which they stand in it."""

    def __init__(self, fields: dict[str, Any], holes: tuple[int, ...], style: Style) -> None:
        """Prepare `fields`; each of `holes` stands in it once. Raises ValueError where a name holds such a number."""
        text = header_text(fields, style).replace("%", "%%")
        for hole in holes:
            if text.count(str(hole)) != 1:
                raise ValueError(f"a name of the stream holds the number {hole}; choose another name")
            text = text.replace(str(hole), "%d")
        self._whole = text.encode()
        # GUI 1.0 gives the length in code points: each continuation byte costs one at the end.
        self._cut = sum(0x80 <= byte <= 0xBF for byte in self._whole)

    def fill(self, numbers: tuple[int, ...]) -> bytes:
        """Return the header with its numbers."""
        header = self._whole % numbers
        return header[: -self._cut] if self._cut else header


def data_template(stream: str, channel: int, name: str, rate_hz: float, style: Style) -> Template:
    """Header of a channel; fill with (message_num, num_samples, sample_num, bytes, timestamp_ms)."""
    fields = data_fields(_NUMBER, stream, channel, name, _SAMPLE, rate_hz, _COUNT, _TIME)
    fields["data_size"] = _BYTES
    return Template(fields, (_NUMBER, _COUNT, _SAMPLE, _BYTES, _TIME), style)


def ttl_template(stream: str, source_node: int, style: Style) -> Template:
    """Header of an edge; fill with (message_num, sample_num, timestamp_ms)."""
    return Template(ttl_fields(_NUMBER, stream, source_node, _SAMPLE, _TIME), (_NUMBER, _SAMPLE, _TIME), style)


def spike_template(
    stream: str, electrode: str, sorted_id: int, threshold: tuple[float, ...], shape: tuple[int, int], style: Style
) -> Template:
    """Header of a unit's spikes, `shape` (channel, sample); fill with (message_num, node, sample_num, timestamp_ms)."""
    fields = spike_fields(_NUMBER, stream, _NODE, electrode, _SAMPLE, sorted_id, threshold, shape, _TIME)
    return Template(fields, (_NUMBER, _NODE, _SAMPLE, _TIME), style)
