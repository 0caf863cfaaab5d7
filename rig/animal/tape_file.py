"""A tape: what devices put on their wires, message by message with its time, in a file that needs no stimloop to read.

Written from a session's journal by `rig.replay.wire`, which may not know this package, and played by
`rig.animal.replayed`, which may not know documents; so each has its own few lines, and this is the format:

a numpy `.npz` without pickles. `head`: bytes of a JSON object, {"version": 1, "devices": [{"wire", "name", "port",
"stream", "units"}]}. For device k the arrays `k_due_host_ns`, `k_kind`, `k_number`, `k_sample`, `k_a`, `k_b`, int64,
one element per message, in the order in which they are sent. Wire "openephys": kind 0 a spike of unit `a`, 1 an edge
(line `a`, state `b`), 2 a block of `a` samples at `b` Hz from `sample` on; `number` is the message number.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
VERSION = 1
COLUMNS = ("due_host_ns", "kind", "number", "sample", "a", "b")


class TapeError(ValueError):
    """A file that is no tape, or one of another version; the message names it."""


@dataclass(frozen=True)
class Tracks:
    """One device of a tape."""

    wire: str
    name: str
    port: int
    stream: str
    units: tuple[str, ...]
    columns: dict[str, I64]  # COLUMNS, (message,)


def read(path: Path) -> list[Tracks]:
    """Return the devices of a tape; raises TapeError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            head = json.loads(file["head"].tobytes())
            if head["version"] != VERSION:
                raise TapeError(f"{path} is a tape of version {head['version']}, this program plays {VERSION}")
            out = []
            for k, device in enumerate(head["devices"]):
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
