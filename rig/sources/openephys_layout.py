"""Headers of Open Ephys' ZMQ Interface in the exact layout that the plugin writes, read without a JSON parser.

At 384 channels 16,500 headers come in a second, and 20,000 more at high rates: `json.loads` would need a core. Called
for each message before `openephys_parse.parse`. Whatever differs by one byte, or lies outside the ranges that `parse`
accepts, gives None and is read there: both ways give equal messages, which the tests try on random headers.
"""

import re
import struct

from rig.sources.openephys_parse import Data, Message, Spike, Ttl

_TTL = struct.Struct("<BBQ")
# JSON forbids leading zeros; 15 digits stay below the largest counter that is believed.
_WHOLE = rb"(0|[1-9][0-9]{0,14})"
_POSITIVE = rb"([1-9][0-9]{0,14})"
_SMALL = rb"(0|[1-9][0-9]{0,3})"
# Text without quotes, escapes and control characters, in plain ASCII: a header with other names may be cut short.
_NAME = rb'"([ !#-\[\]-~]*)"'
_END = rb'(?:,\r\n  "timestamp": (?:0|[1-9][0-9]*))?\r\n\}'  # plugins up to 0.3.1 send no time

_DATA = re.compile(
    rb'\{\r\n  "message_num": ' + _POSITIVE + rb',\r\n  "type": "data",\r\n  "content": \{\r\n    "stream": ' + _NAME
    + rb',\r\n    "channel_num": ' + _SMALL + rb'(?:,\r\n    "channel_name": "[ !#-\[\]-~]*")?,\r\n    "num_samples": '
    + rb'([1-9][0-9]{0,5}),\r\n    "sample_num": ' + _WHOLE + rb',\r\n    "sample_rate": ([1-9][0-9]{0,5}\.[0-9]{1,12})'
    + rb'\r\n  \},\r\n  "data_size": (?:0|[1-9][0-9]{0,8})' + _END
)  # fmt: skip
_SPIKE = re.compile(
    rb'\{\r\n  "message_num": ' + _POSITIVE + rb',\r\n  "type": "spike",\r\n  "spike": \{\r\n    "stream": ' + _NAME
    + rb',\r\n    "source_node": ' + _SMALL + rb',\r\n    "electrode": ' + _NAME + rb',\r\n    "sample_num": ' + _WHOLE
    + rb',\r\n    "num_channels": ([1-9]),\r\n    "num_samples": ([1-9][0-9]{0,3}),\r\n    "sorted_id": ' + _SMALL
    + rb',\r\n    "threshold": \[\r\n(?:      -?(?:0|[1-9][0-9]*)\.[0-9]+(?:,\r\n|\r\n))+    \]\r\n  \}' + _END
)  # fmt: skip
_TTL_HEADER = re.compile(
    rb'\{\r\n  "message_num": ' + _POSITIVE + rb',\r\n  "type": "event",\r\n  "content": \{\r\n    "stream": ' + _NAME
    + rb',\r\n    "source_node": ' + _SMALL + rb',\r\n    "type": 3,\r\n    "sample_num": ' + _WHOLE
    + rb'\r\n  \},\r\n  "data_size": 10' + _END
)  # fmt: skip
_match_data, _match_spike, _match_ttl = _DATA.fullmatch, _SPIKE.fullmatch, _TTL_HEADER.fullmatch


def read_data(header: bytes, payload: bytes, size: int) -> Data | None:
    """Return the message of a DATA header; `size` is that of the whole payload in bytes, `payload` what was kept."""
    found = _match_data(header)
    if found is None:
        return None
    number, stream, channel, count, sample, rate = found.groups()
    samples = int(count)
    if size != 4 * samples:
        return None
    return Data(int(number), stream.decode(), int(channel), samples, int(sample), float(rate), False, payload)


def read_event(header: bytes, payload: bytes, size: int) -> Message | None:
    """Return the message of a spike or TTL header, as `read_data` does."""
    found = _match_spike(header)
    if found is not None:
        number, stream, node, electrode, sample, channels, samples, sorted_id = found.groups()
        if size != 4 * int(channels) * int(samples):
            return None
        return Spike(int(number), stream.decode(), int(node), electrode.decode(), int(sorted_id), int(sample), False)
    found = _match_ttl(header)
    if found is None or len(payload) != _TTL.size:
        return None
    line, state, word = _TTL.unpack(payload)
    if line > 63 or state > 1:
        return None
    number, stream, _, sample = found.groups()
    return Ttl(int(number), stream.decode(), line, state, int(sample), word, False)
