"""A tape: what devices put on their wires, message by message with its time, in a file that needs no stimloop to read.

Written from a session's journal by `rig.replay.wire`, which may not know this package, and played by
`rig.animal.replayed`, which may not know documents; so each has its own few lines, and this is the format:

a numpy `.npz` without pickles. `head`: bytes of a JSON object, {"version": 1, "devices": [{"wire", "name", "port",
"stream", "units"}]}. For device k the arrays `k_due_host_ns`, `k_kind`, `k_number`, `k_sample`, `k_a`, `k_b`, int64,
one element per message, in the order in which they are sent. Wire "openephys": kind 0 a spike of unit `a`, 1 an edge
(line `a`, state `b`), 2 a block of `a` samples at `b` Hz from `sample` on; `number` is the message number.

Wires "spikes" and "traces": the device also has "rate_hz", "runs" (what the bridge called them) and "present", and the
arrays are others. Messages as they go over the wire: `k_due_host_ns` and `k_message_end` (frames up to the message's
last one), one per message; `k_frame_end` (bytes up to its last one), one per frame; `k_content`, the bytes, uint8. The
clock port: `k_clock_run`, `k_clock_host_ns`, `k_clock_sample` (float64), knots of a line of the device's counter over
host time in each run; `k_mute_ns` (from, to), when nobody answers; `k_told` (from host ns, run, number), what it
says of the newest message.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
VERSION = 1
COLUMNS = ("due_host_ns", "kind", "number", "sample", "a", "b")
BRIDGES = ("spikes", "traces")


class TapeError(ValueError):
    """A file that is no tape, or one of another version; the message names it."""


@dataclass(frozen=True)
class BridgeTracks:
    """One device of a tape that is a bridge of the open wires; its arrays are described above."""

    wire: str
    name: str
    port: int
    rate_hz: float
    runs: tuple[str, ...]
    present: bool
    due_host_ns: I64
    message_end: I64
    frame_end: I64
    content: npt.NDArray[np.uint8]
    clock_run: I64
    clock_host_ns: I64
    clock_sample: npt.NDArray[np.float64]
    mute_ns: I64
    told: I64


@dataclass(frozen=True)
class Tracks:
    """One device of a tape."""

    wire: str
    name: str
    port: int
    stream: str
    units: tuple[str, ...]
    columns: dict[str, I64]  # COLUMNS, (message,)


def _bridge(path: Path, device: dict[str, Any], array: Callable[[str], npt.NDArray[Any]]) -> BridgeTracks:
    """Return a bridge of the open wires; raises TapeError."""
    whole = {
        name: array(name).astype(np.int64, casting="same_kind")
        for name in ("due_host_ns", "message_end", "frame_end", "clock_run", "clock_host_ns", "mute_ns", "told")
    }
    tracks = BridgeTracks(
        wire=str(device["wire"]),
        name=str(device["name"]),
        port=int(device["port"]),
        rate_hz=float(device["rate_hz"]),
        runs=tuple(map(str, device["runs"])),
        present=bool(device["present"]),
        content=array("content").astype(np.uint8, casting="same_kind"),
        clock_sample=array("clock_sample").astype(np.float64, casting="same_kind"),
        **whole,
    )
    ends = len(tracks.due_host_ns) == len(tracks.message_end) and tracks.message_end[-1:] == len(tracks.frame_end)
    if not ends or tracks.frame_end[-1] != len(tracks.content) or not len(tracks.told):
        raise TapeError(f"{path}: the messages of {tracks.name} are not whole")
    if not len(tracks.clock_run) == len(tracks.clock_host_ns) == len(tracks.clock_sample):
        raise TapeError(f"{path}: the columns of {tracks.name} differ in length")
    return tracks


def read(path: Path) -> list[Tracks | BridgeTracks]:
    """Return the devices of a tape; raises TapeError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            head = json.loads(file["head"].tobytes())
            if head["version"] != VERSION:
                raise TapeError(f"{path} is a tape of version {head['version']}, this program plays {VERSION}")
            out: list[Tracks | BridgeTracks] = []
            for k, device in enumerate(head["devices"]):
                if device["wire"] in BRIDGES:
                    out.append(_bridge(path, device, lambda name, k=k: file[f"{k}_{name}"]))  # type: ignore[misc]
                    continue
                columns = {name: file[f"{k}_{name}"].astype(np.int64, casting="same_kind") for name in COLUMNS}
                if len({len(column) for column in columns.values()}) != 1:
                    raise TapeError(f"{path}: the columns of {device['name']} differ in length")
                words = (str(device["wire"]), str(device["name"]), int(device["port"]), str(device["stream"]))
                out.append(Tracks(*words, tuple(map(str, device["units"])), columns))
            return out
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, TapeError):
            raise
        raise TapeError(f"{path} is no tape: {error}") from error
