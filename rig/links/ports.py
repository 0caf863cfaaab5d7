"""Ports of this computer that nobody listens on, for benches, replays over the wire and tests."""

import secrets
import socket
from contextlib import ExitStack

# Below what Linux (32768 to 60999), Windows and macOS (49152 to 65535) give to outgoing connections: a port from there
# may be taken by any connection that is made before whoever asked for it listens on it.
FIRST, LAST = 12_000, 32_000
TRIES = 1000


def free_port(in_a_row: int = 1) -> int:
    """Return a TCP port of loopback that is free at this moment, with the `in_a_row` - 1 that follow it.

    Drawn at random, so that two programs that ask at the same time get different ones. Raises OSError.
    """
    for _ in range(TRIES):
        first = FIRST + secrets.randbelow(LAST - FIRST - in_a_row)
        with ExitStack() as held:
            try:
                for k in range(in_a_row):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", first + k))
            except OSError:
                continue
            return first
    raise OSError(f"no {in_a_row} ports in a row are free between {FIRST} and {LAST} on this computer")
