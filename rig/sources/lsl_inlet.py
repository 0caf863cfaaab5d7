"""One LSL stream that is being read: the inlet, its description, and a thread that samples the clock offset.

The door to pylsl. LSL itself corrects no stamp (`processing_flags=0`) and recovers nothing in silence
(`recover=False`): both would hide what has to be in the log. The offset is asked for in a thread, since the first
answer takes up to 0.6 s, in which rows must go on being read.
"""

import ctypes
import os
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pylsl
from pylsl.lib import lib
from pylsl.util import LostError
from pylsl.util import TimeoutError as LslTimeoutError

from rig.sources.lsl_streams import Described

F64 = npt.NDArray[np.float64]

BUFFER_S = 60
IRREGULAR_BUFFER = 3600  # hundreds of rows: 18 s at 20,000 rows/s
CHUNK = 4096
FIRST_OFFSET_S = 1.0
ASK_S = 0.05
TOLD = {
    pylsl.cf_float32: "float32", pylsl.cf_double64: "double64", pylsl.cf_string: "string", pylsl.cf_int32: "int32",
    pylsl.cf_int16: "int16", pylsl.cf_int8: "int8", pylsl.cf_int64: "int64",
}  # fmt: skip
# liblsl's own rhythm, 8 probes every 2 s, gives a clock map too few round trips: 5 probes every quarter of a second.
TUNING = "[tuning]\nTimeProbeCount = 5\nTimeUpdateMinProbes = 4\nTimeProbeInterval = 0.02\nTimeUpdateInterval = 0.25\n"

_offset_of = lib.lsl_time_correction_ex  # pylsl wraps only the call that does not tell the round trip
_offset_of.restype = ctypes.c_double


def tune() -> None:
    """Ask liblsl for more round trips; before anything else of LSL. A lab's own lsl_api.cfg is left alone."""
    places = [Path("lsl_api.cfg"), Path.home() / "lsl_api" / "lsl_api.cfg", Path("/etc/lsl_api/lsl_api.cfg")]
    if "LSLAPICFG" not in os.environ and not any(p.exists() for p in places):
        pylsl.set_config_content(TUNING)


@dataclass(frozen=True)
class RoundTrip:
    """One answer of the sender's clock."""

    remote_s: float  # the sender's LSL clock in the middle of the round trip
    offset_s: float  # to add to it to get this computer's LSL clock at that moment
    round_trip_s: float  # the offset is wrong by half of it at most


class OpenStream:
    """A connected stream; raises LostError or TimeoutError of pylsl if it is not there any more."""

    def __init__(self, info: pylsl.StreamInfo) -> None:
        """Connect; takes a second at most."""
        irregular = info.nominal_srate() == pylsl.IRREGULAR_RATE
        buffer = IRREGULAR_BUFFER if irregular else BUFFER_S
        self.uid: str = info.uid()
        self.offset: RoundTrip | None = None
        self._text = info.channel_format() == pylsl.cf_string
        self._inlet = pylsl.StreamInlet(info, max_buflen=buffer, recover=False, processing_flags=0, as_numpy=True)
        self._trips: deque[RoundTrip] = deque()
        self._closing = threading.Event()
        try:
            # First the description, which may be long: rows that came meanwhile would be old when they are read.
            self.described = _described(self._inlet.info(timeout=1.0))
            self._inlet.open_stream(timeout=1.0)
        except (LslTimeoutError, LostError):
            self._inlet.close_stream()
            raise
        self._thread = threading.Thread(target=self._ask, name=f"offset of {self.described.name}", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        """Ask for the offset until closed; liblsl measures it anew by itself, and only new answers are kept."""
        told = None
        while not self._closing.is_set():
            remote, trip, error = ctypes.c_double(), ctypes.c_double(), ctypes.c_int()
            offset = _offset_of(
                self._inlet.obj,
                ctypes.byref(remote),
                ctypes.byref(trip),
                ctypes.c_double(FIRST_OFFSET_S),
                ctypes.byref(error),
            )
            if error.value == 0 and remote.value != told:
                told = remote.value
                self._trips.append(RoundTrip(remote.value, float(offset), trip.value))
            elif error.value not in (0, -1):  # anything but a time-out: the reading side sees that it is lost
                return
            self._closing.wait(ASK_S)

    def offsets(self) -> list[RoundTrip]:
        """Return the answers since the last call; the newest is kept in `offset`."""
        out = []
        while self._trips:
            self.offset = self._trips.popleft()
            out.append(self.offset)
        return out

    def reset_said(self) -> bool:
        """Return whether liblsl itself says that the sender's clock was reset since the last call."""
        return bool(self._inlet.was_clock_reset())

    def pull(self) -> tuple[Any, F64]:
        """Return rows (row, channel), numbers or bytes, and their stamps (row,) in s; raises LostError."""
        rows, stamps = self._inlet.pull_chunk(timeout=0.0, max_samples=CHUNK)
        return rows, np.asarray(stamps, dtype=np.float64)

    def close(self) -> None:
        """End the thread, then the inlet."""
        self._closing.set()
        self._thread.join()
        self._inlet.close_stream()


def _described(info: pylsl.StreamInfo) -> Described:
    """Read what is needed of the description; what is not there is empty."""
    labels, offsets = [], []
    channel = info.desc().child("channels").child("channel")
    for _ in range(info.channel_count()):
        labels.append(channel.child_value("label"))
        offsets.append(_number(channel.child_value("scan_offset_s")))
        channel = channel.next_sibling("channel")
    units, unit = [], info.desc().child("units").child("unit")
    while not unit.empty():
        units.append(unit.child_value())
        unit = unit.next_sibling("unit")
    return Described(
        name=info.name(),
        source_id=info.source_id(),
        hostname=info.hostname(),
        format=TOLD.get(info.channel_format(), "unknown"),
        rate_hz=float(info.nominal_srate()),
        labels=tuple(labels),
        scan_offset_s=tuple(offsets),
        units=tuple(units),
        device_hz=_number(info.desc().child_value("sample_rate_hz")),
    )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if np.isfinite(value) else 0.0
