"""Ports of this computer that nobody listens on, for benches, replays over the wire and tests."""

import socket
from contextlib import ExitStack


def free_port(in_a_row: int = 1) -> int:
    """Return a TCP port of loopback that is free at this moment, with the `in_a_row` - 1 that follow it."""
    while True:
        with ExitStack() as held:
            first = 0
            try:
                for k in range(in_a_row):
                    each = held.enter_context(socket.socket())
                    each.bind(("127.0.0.1", first + k if first else 0))
                    first = first or int(each.getsockname()[1])
            except (OSError, OverflowError):
                continue
            return first
