"""How received messages travel from the receiving process to the source: batches with arrival stamps, over a pipe.

Pure: bytes in, bytes out. Written by `openephys_receiver`, read by `openephys_sockets`. Only stamps, lengths and
frames: at 36,000 messages a second nothing may be done per message that a C loop can do for all of them.

A batch, little-endian: length of the rest (u32), number of messages n (u32), messages dropped so far (u64), host time
of the first drop since the batch before, ns (i64, 0 if none); then n arrivals in host ns (i64), n numbers of frames
(u8: DATA_MESSAGE, EVENT_MESSAGE or the number of frames of anything else), n sizes of whole payloads (u32), the lengths
of all frames that follow (u32), the frames.
"""

import struct
from array import array
from dataclasses import dataclass, field

HEAD = struct.Struct("<IIQq")
DATA_MESSAGE, EVENT_MESSAGE = 254, 255  # three frames of which the first is known and left out
LONGEST = 64 << 20  # bytes; a longer batch is garbage
MOST_BYTES = 16 << 20  # of a message; one of 30,000 samples has 120 kB
MOST_FRAMES = 253
SIGN_OF_LIFE_S = 0.5  # a batch comes at least this often, an empty one where there is nothing
_ENVELOPE = {DATA_MESSAGE: b"DATA\x00", EVENT_MESSAGE: b"EVENT\x00"}


@dataclass
class Batch:
    """Messages that wait to be written."""

    arrivals: "array[int]" = field(default_factory=lambda: array("q"))
    kinds: bytearray = field(default_factory=bytearray)
    sizes: "array[int]" = field(default_factory=lambda: array("I"))
    frames: list[bytes] = field(default_factory=list)
    bytes: int = 0


def pack(batch: Batch, dropped: int, dropped_since_ns: int | None) -> bytes:
    """Return the bytes of a batch."""
    lengths = array("I", map(len, batch.frames)).tobytes()
    rest = (batch.arrivals.tobytes(), bytes(batch.kinds), batch.sizes.tobytes(), lengths, *batch.frames)
    total = HEAD.size - 4 + sum(map(len, rest))
    return HEAD.pack(total, len(batch.kinds), dropped, dropped_since_ns or 0) + b"".join(rest)


@dataclass(frozen=True)
class Received:
    """A batch as it was read."""

    count: int
    dropped: int
    dropped_since_ns: int | None
    body: bytes
    whole: int  # bytes it took


def unpack_head(head: bytes, body: bytes) -> Received:
    """Return a batch from its head and what follows; `messages` splits it."""
    _, count, dropped, since = HEAD.unpack(head)
    return Received(count, dropped, since or None, body, len(head) + len(body))


Arrived = tuple[int, list[bytes], int]  # arrival in host ns, frames, size of the whole last frame


def messages(batch: Received) -> list[Arrived]:
    """Split a batch into its messages, in order of arrival."""
    n, body = batch.count, batch.body
    arrivals, sizes, lengths = array("q"), array("I"), array("I")
    arrivals.frombytes(body[: 8 * n])
    kinds = body[8 * n : 9 * n]
    sizes.frombytes(body[9 * n : 13 * n])
    count = sum(2 if kind >= DATA_MESSAGE else kind for kind in kinds)
    at = 13 * n + 4 * count
    lengths.frombytes(body[13 * n : at])
    out: list[Arrived] = []
    next_length = iter(lengths)
    for arrival, kind, size in zip(arrivals, kinds, sizes, strict=True):
        if kind >= DATA_MESSAGE:
            middle = at + next(next_length)
            end = middle + next(next_length)
            out.append((arrival, [_ENVELOPE[kind], body[at:middle], body[middle:end]], size))
        else:
            frames = []
            end = at
            for _ in range(kind):
                start, end = end, end + next(next_length)
                frames.append(body[start:end])
            out.append((arrival, frames, size))
        at = end
    return out
