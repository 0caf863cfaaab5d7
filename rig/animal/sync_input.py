"""A TTL input of the simulated amplifier that is wired to a simulated parallel port (an ordinary file).

The port's first byte is looked at every 0.2 ms, so its edges are stamped up to that late: a real amplifier samples its
inputs with its own clock, to one sample.
"""

import mmap
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rig.animal.wire import WireError
from rig.clock import Clock

LOOK_NS = 200_000


@dataclass(frozen=True)
class LineEdge:
    """A change of level, seen at a host time."""

    state: int
    host_ns: int


class SyncInput:
    """Watches one bit of a register file in a thread of its own."""

    def __init__(self, port: Path, bit: int, clock: Clock, ask: Callable[[], object] = lambda: None) -> None:
        """Open the file; `ask` gets the thread its priority. Raises WireError where there is no such file."""
        try:
            with port.open("rb") as file:
                self._register = mmap.mmap(file.fileno(), 1, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise WireError(
                f"animal.sync_port: {port} cannot be read as a simulated port ({error})",
                "make it with `python -m rig.animal.valve make FILE`",
            ) from error
        self._mask, self._clock, self._ask = 1 << bit, clock, ask
        self._edges: deque[LineEdge] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sync input", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        self._ask()
        level = 0
        due_ns = self._clock.now_ns()
        while not self._stop.is_set():
            now = int(bool(self._register[0] & self._mask))
            if now != level:
                level = now
                self._edges.append(LineEdge(level, self._clock.now_ns()))
            due_ns = max(due_ns + LOOK_NS, self._clock.now_ns() - LOOK_NS)
            self._clock.sleep_until_ns(due_ns)

    def before(self, host_ns: int) -> list[LineEdge]:
        """Return the edges seen before a host time that were not returned yet, in order."""
        out: list[LineEdge] = []
        while self._edges and self._edges[0].host_ns < host_ns:
            out.append(self._edges.popleft())
        return out

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(1.0)
        self._register.close()
