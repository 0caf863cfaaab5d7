"""What the parts of an LSL source hand to each other: how a stream describes itself, rows, and the account of a run.

Pure: no pylsl here, so that everything that judges rows can be tested without a network.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from rig.messages import Document, Gap

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

State = Literal["connecting", "online", "streaming", "stalled", "offline"]

STAMP_HZ = 1e6  # streams without a device counter are counted in us of the sender's LSL clock
DOCS = "see docs/wires/lsl.md for what the stream must look like"


class WrongStream(Exception):
    """A stream that has the right name and the wrong content."""

    def __init__(self, reason: str, cure: str = DOCS) -> None:
        super().__init__(reason)
        self.reason, self.cure = reason, cure


class Restarted(Exception):
    """The device began to count anew: another run."""


@dataclass(frozen=True)
class Described:
    """A stream as its sender describes it."""

    name: str
    source_id: str
    hostname: str
    format: str  # double64, float32, int32, ... or string
    rate_hz: float  # nominal; 0 for irregular
    labels: tuple[str, ...]  # of the channels; "" where the description names none
    scan_offset_s: tuple[float, ...] = ()  # of the channels, 0 where not stated
    units: tuple[str, ...] = ()  # names for rows that carry a unit index
    device_hz: float = 0.0  # sample_rate_hz of the description: of the sample counter that travels in the rows


@dataclass(frozen=True)
class Pulled:
    """Rows that came together from one stream."""

    rows: Any  # (row, channel): numbers, or bytes for a stream of strings
    stamp_s: F64  # (row,) the sender's LSL clock
    sent_host_ns: I64  # (row,) the same moment on the host clock, by the present offset
    arrival_ns: int


@dataclass
class Progress:
    """How far one run has come."""

    rate_hz: float = STAMP_HZ  # of the samples
    watermark: int | None = None  # None before the first
    received: int = 0  # rows
    lost: int = 0
    gaps: list[Gap] = field(default_factory=list)  # new ones; whoever sends them empties the list
    ready: bool = False  # usable data have come
    silent_ns: int | None = None  # silence for so long is a fault; None where silence is normal


class Reader(Protocol):
    """The account of one run: rows of its streams in, documents out. Made anew for each run."""

    progress: Progress

    def take(self, stream: int, pulled: Pulled) -> None:
        """Take rows of the stream of this number; raises Restarted."""
        ...

    def harvest(self, run: int, now_ns: int | None) -> list[Document]:
        """Return what came since the last call; `now_ns` None ends the run."""
        ...


def numbers(stream: Described) -> None:
    """Raise WrongStream if the stream does not carry numbers."""
    if stream.format == "string":
        raise WrongStream(f"LSL stream {stream.name!r} carries text, expected numbers")


def named(stream: Described) -> tuple[str, ...]:
    """Return the labels of the channels, each there and once; raises WrongStream."""
    missing = [k for k, label in enumerate(stream.labels) if not label]
    twice = sorted(label for label, times in Counter(stream.labels).items() if times > 1)
    cure = f"give each channel of the stream its own `label` in the description; {DOCS}"
    if missing:
        raise WrongStream(f"LSL stream {stream.name!r} gives no label for channel {missing[0]}", cure)
    if twice:
        raise WrongStream(f"LSL stream {stream.name!r} has two channels with the label {twice[0]!r}", cure)
    return stream.labels


def whole_us(stamp_s: F64) -> I64:
    """Return stamps (row,) as whole us of the sender's clock; what is no time at all becomes -1."""
    usable = np.isfinite(stamp_s) & (np.abs(stamp_s) < 1e9)
    return np.where(usable, np.rint(np.where(usable, stamp_s, 0.0) * STAMP_HZ), -1).astype(np.int64)


def host_ns(stamp_s: F64, offset_s: float, base_ns: int) -> I64:
    """Return stamps (row,) of the sender's LSL clock as host ns; 0, which no age limit lets pass, for what is no time.

    `offset_s` leads to this computer's LSL clock, `base_ns` from there to the host clock.
    """
    usable = np.isfinite(stamp_s) & (np.abs(stamp_s) < 1e9)
    return np.where(usable, np.rint((np.where(usable, stamp_s, 0.0) + offset_s) * 1e9) + base_ns, 0).astype(np.int64)
