"""What the source tests share: a recorder's end of the bus that keeps everything, and a source run in a thread."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from rig.clock import HostClock
from rig.encoding import decode
from rig.links.bus import Hello, Hub, Submitted
from rig.links.peer import Peer
from rig.messages import (
    Document,
)

D = TypeVar("D", bound=Document)


class Flag:
    """A stop that a test sets."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()


class Collector:
    """Takes and acknowledges every document of its peers."""

    def __init__(self) -> None:
        self.hub = Hub("tcp://127.0.0.1:0")
        self.endpoint = self.hub.endpoint
        self.documents: list[Document] = []
        self._acked: dict[str, int] = {}
        self._clock = HostClock()

    def turn(self, timeout_s: float = 0.01) -> None:
        for incoming in self.hub.poll(timeout_s):
            if isinstance(incoming, Hello):
                self._acked = {incoming.process: self._acked.get(incoming.process, 0)}
                self.hub.welcome(incoming.name, self._acked[incoming.process])
            elif isinstance(incoming, Submitted):
                process = next(iter(self._acked))
                if incoming.n == self._acked[process] + 1:
                    self._acked[process] = incoming.n
                    self.documents.append(decode(incoming.frames))
                self.hub.ack(incoming.name, self._acked[process])

    def until(
        self, done: Callable[[], object], within_s: float = 60.0, each: Callable[[], object] | None = None
    ) -> None:
        """Turn until `done()`; call `each` in between."""
        end = self._clock.now_ns() + int(within_s * 1e9)
        while not done():
            assert self._clock.now_ns() < end, f"not within {within_s} s; last: {self.documents[-3:]}"
            self.turn()
            if each is not None:
                each()

    def all(self, kind: type[D]) -> list[D]:
        return [d for d in self.documents if isinstance(d, kind)]


class Running:
    """A source's loop in a thread, with its own peer; `with` ends it."""

    def __init__(self, collector: Collector, make: Callable[[Peer, Flag, Callable[..., None]], Any]) -> None:
        self.stop = Flag()
        self.said: list[dict[str, Any]] = []
        self.code: int | None = None
        self._collector = collector

        def body() -> None:
            peer = Peer("probe", collector.endpoint, frozenset(), HostClock())
            try:
                self.code = make(peer, self.stop, lambda **fields: self.said.append(fields)).run()
                peer.flush(1.0)
            finally:
                peer.close()

        self._thread = threading.Thread(target=body, name="source")
        self._thread.start()

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    @property
    def ready(self) -> bool:
        assert not any("failed" in said for said in self.said), self.said
        return any("ready" in said for said in self.said)

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        while self._thread.is_alive():
            self._collector.turn()
        self._thread.join()
        self._collector.hub.close()


def openephys_data(name: str) -> Path:
    """Return a capture of a real GUI; skips the test where the data are absent."""
    root = Path(__file__).parents[1]
    data = Path(os.environ.get("STIMLOOP_DATA", root.parent / "shared" / "data"))
    path = data / "openephys" / name
    if not path.exists():
        pytest.skip(f"no captured traffic at {path}: set STIMLOOP_DATA to the folder that holds openephys/")
    return path
