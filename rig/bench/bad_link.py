"""Bad links between two ends, for tests and benches: late, lossy, and cut for a while.

`PacketLink` joins two network namespaces by a link of our own that delays and loses packets, as `tc netem` does where
the kernel has it: TCP itself must send again. It needs Linux and root. `ProxyLink` is for everywhere else: a TCP proxy
on loopback that delays bytes, stalls as a lossy link does, and cuts. Both are seeded.
"""

import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from rig.clock import Clock

TUN = Path("/dev/net/tun")
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
LONGEST_PACKET = 1 << 16
STALL_S = 0.2  # what a lost packet costs TCP at least


def can_join_namespaces() -> bool:
    """Whether this machine and user can make a PacketLink."""
    if os.name != "posix" or os.geteuid() != 0 or not TUN.exists():
        return False
    try:
        return subprocess.run(["ip", "netns", "list"], capture_output=True).returncode == 0
    except OSError:
        return False


class PacketLink:
    """Two network namespaces and the link between them.

    Parameters
    ----------
    name
        Prefix of the names of the namespaces, at most 8 letters; `ends` are their full names.
    delay_s, loss
        One-way delay, s, and fraction of packets lost, each way.
    seed, clock
        Of the losses; time.

    `addresses` are those of the two ends. `cut` and `mend` break and join the link. Raises OSError without root.
    """

    addresses = ("10.213.77.1", "10.213.77.2")

    def __init__(self, name: str, delay_s: float, loss: float, seed: int, clock: Clock) -> None:
        self.ends = (f"{name}-a", f"{name}-b")
        self.lost = self.passed = 0
        self._delay_ns, self._loss, self._clock = int(delay_s * 1e9), loss, clock
        self._rng = np.random.default_rng(seed)
        self._cut, self._over = threading.Event(), threading.Event()
        self._files: list[int] = []
        with ExitStack() as unmade:
            unmade.callback(self._remove)
            for end, own, other in zip(self.ends, self.addresses, self.addresses[::-1], strict=True):
                self._make(end, own, other)
            unmade.pop_all()
        self._thread = threading.Thread(target=self._carry, name="bad link")
        self._thread.start()

    def _make(self, end: str, own: str, other: str) -> None:
        file = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        self._files.append(file)
        # Made here and then moved: the descriptor stays with the device.
        fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH", end.encode(), _IFF_TUN | _IFF_NO_PI))
        for line in (
            f"netns add {end}",
            f"link set {end} netns {end}",
            f"-n {end} link set lo up",
            f"-n {end} addr add {own} peer {other} dev {end}",
            f"-n {end} link set {end} mtu 1400 up",
        ):
            done = subprocess.run(["ip", *line.split()], capture_output=True, text=True)
            if done.returncode != 0:
                raise OSError(f"ip {line}: {done.stderr.strip()}")

    def command(self, end: int, *arguments: str) -> list[str]:
        """Return the command line that runs `arguments` at end 0 or 1."""
        return ["ip", "netns", "exec", self.ends[end], *arguments]

    def cut(self) -> None:
        """Let nothing through any more."""
        self._cut.set()

    def mend(self) -> None:
        """Let it through again."""
        self._cut.clear()

    def _carry(self) -> None:
        a, b = self._files
        other = {a: b, b: a}
        on_the_way: deque[tuple[int, int, bytes]] = deque()
        while not self._over.is_set():
            wait_s = 0.05 if not on_the_way else max(0.0, (on_the_way[0][0] - self._clock.now_ns()) * 1e-9)
            for file in select.select([a, b], [], [], min(wait_s, 0.05))[0]:
                packet = os.read(file, LONGEST_PACKET)
                if self._cut.is_set() or self._rng.random() < self._loss:
                    self.lost += 1
                    continue
                on_the_way.append((self._clock.now_ns() + self._delay_ns, other[file], packet))
            while on_the_way and on_the_way[0][0] <= self._clock.now_ns():
                _, file, packet = on_the_way.popleft()
                os.write(file, packet)
                self.passed += 1

    def _remove(self) -> None:
        for file in self._files:
            os.close(file)
        for end in self.ends:
            subprocess.run(["ip", "netns", "delete", end], capture_output=True)

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the link and the namespaces; end what runs in them before."""
        self._over.set()
        self._thread.join()
        self._remove()


class _Way:
    """One direction of a proxied connection."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self.waiting: deque[tuple[int, bytes]] = deque()
        self.unsent = b""
        self.not_before_ns = 0


class ProxyLink:
    """A TCP proxy on loopback: connect to `port` to reach `target`, an address on loopback.

    Bytes arrive `delay_s` later; a chunk is "lost" with probability `loss`, which holds up everything behind it for
    `STALL_S`, as TCP does. `cut` lets nothing through, with the connections left standing; `drop` closes them.
    """

    def __init__(self, target: tuple[str, int], delay_s: float, loss: float, seed: int, clock: Clock) -> None:
        self._target, self._delay_ns, self._loss, self._clock = target, int(delay_s * 1e9), loss, clock
        self._rng = np.random.default_rng(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._cut, self._drop, self._over = threading.Event(), threading.Event(), threading.Event()
        self._ways: list[_Way] = []
        self._thread = threading.Thread(target=self._carry, name="bad link")
        self._thread.start()

    def cut(self) -> None:
        """Let nothing through any more."""
        self._cut.set()

    def mend(self) -> None:
        """Let it through again."""
        self._cut.clear()

    def drop(self) -> None:
        """Close all connections once."""
        self._drop.set()

    def _carry(self) -> None:
        while not self._over.is_set():
            sources = [w.source for w in self._ways]
            ready = select.select([self._listener, *sources], [], [], 0.002)[0]
            if self._drop.is_set():
                self._drop.clear()
                for way in list(self._ways):
                    self._end(way)
                continue
            if self._listener in ready:
                self._accept()
            for way in list(self._ways):
                if way in self._ways and not (self._taken(way, way.source in ready) and self._given(way)):
                    self._end(way)

    def _accept(self) -> None:
        near = self._listener.accept()[0]
        try:
            far = socket.create_connection(self._target, 1.0)
        except OSError:
            near.close()
            return
        for each in (near, far):
            each.setblocking(False)
        self._ways += [_Way(near, far), _Way(far, near)]

    def _taken(self, way: _Way, ready: bool) -> bool:
        if not ready or len(way.waiting) > 1000:
            return True
        try:
            data = way.source.recv(LONGEST_PACKET)
        except BlockingIOError:
            return True
        except OSError:
            return False
        now = self._clock.now_ns()
        if data and self._rng.random() < self._loss:
            way.not_before_ns = now + int(STALL_S * 1e9)
        way.not_before_ns = max(way.not_before_ns, now + self._delay_ns)
        way.waiting.append((way.not_before_ns, data))
        return bool(data)

    def _given(self, way: _Way) -> bool:
        while not self._cut.is_set() and (way.unsent or (way.waiting and way.waiting[0][0] <= self._clock.now_ns())):
            way.unsent = way.unsent or way.waiting.popleft()[1]
            try:
                way.unsent = way.unsent[way.target.send(way.unsent) :]
            except BlockingIOError:
                return True
            except OSError:
                return False
        return True

    def _end(self, way: _Way) -> None:
        for each in [w for w in self._ways if way.source in (w.source, w.target)]:
            self._ways.remove(each)
            each.source.close()

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything."""
        self._over.set()
        self._thread.join()
        for way in list(self._ways):
            self._end(way)
        self._listener.close()
