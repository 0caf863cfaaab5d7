"""How the owner of a line, its pulser and its guardian talk: records of 17 bytes through pipes and a socket.

A record is a letter and two integers; the letters are below. Used by `rig.outputs.pair`, `pulser` and `guardian`, and
free of everything else: the two watchers must be small, start fast and hold no surprises.
"""

import os
from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

RECORD = Struct("<cqq")

# owner to pulser
PULSE = b"P"  # number, length in ns: a pulse that ends early if the owner falls silent
LEVEL = b"O"  # number, longest length in ns: the owner ends it with STOP
ALIVE = b"K"  # the owner lives
STOP = b"X"  # lower the line now
# pulser and guardian to the owner
BEGAN = b"B"  # process id: ready
UP = b"U"  # number, host ns before the line was raised
DOWN = b"D"  # number, ns from raising to lowering: at its time
STOPPED = b"C"  # the same, because the owner said so
OWNER_SILENT = b"Q"  # the same, because the owner said nothing
GUARDIAN_SILENT = b"G"  # the same, because the guardian said nothing; the pair has ended
NOT_RAISED = b"N"  # number: the guardian did not answer in time, or the line was up already
RESCUED = b"g"  # number, host ns at which the guardian had lowered the line; the pair has ended
# between pulser and guardian
WHO = b"I"  # process id
ARM = b"A"  # number, host ns at which the guardian lowers the line whatever the pulser does
ARMED = b"R"  # number
BEAT = b"H"
DISARM = b"L"  # number

BEAT_NS = 5_000_000
SILENCE_NS = 40_000_000  # of the other watcher while a line is up
OWNER_SILENCE_NS = 60_000_000  # of the owner
ARM_NS = 25_000_000  # longest time from asking the guardian to its answer
WATCHER_PRIORITY = 20  # SCHED_FIFO; above the rig's 10: they work for microseconds and must not wait for a frame


class Told(NamedTuple):
    """One record."""

    kind: bytes
    number: int
    value: int


Tell = Callable[[bytes, int, int], None]


class Mailbox:
    """One end of a pipe or socket, by its file descriptor."""

    def __init__(self, fd: int) -> None:
        """Take over nothing: the descriptor stays its owner's."""
        self.fd = fd
        self.open = True
        self._rest = b""
        os.set_blocking(fd, False)

    def read(self) -> list[Told]:
        """Return what has come; `open` is False once the other end has closed or died."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return []
        except OSError:  # a reset socket
            data = b""
        if not data:
            self.open = False
        self._rest += data
        whole = len(self._rest) // RECORD.size * RECORD.size
        told = [Told(*fields) for fields in RECORD.iter_unpack(self._rest[:whole])]
        self._rest = self._rest[whole:]
        return told

    def tell(self, kind: bytes, number: int = 0, value: int = 0) -> None:
        """Write one record without ever blocking; a reader that is gone or asleep is found out by its silence."""
        try:
            os.write(self.fd, RECORD.pack(kind, number, value))
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return
