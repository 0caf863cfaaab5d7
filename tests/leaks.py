"""Fails a test that leaves a thread, a child process or a socket behind.

Fixtures of wider scope (a screen, a module's server) are set up before the first look and so are allowed; whatever
they leave behind at the end of the run fails the run.
"""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rig.clock import HostClock

GRACE_NS = 3_000_000_000  # closing is asynchronous: ZeroMQ's reaper thread, the kernel's reaping of a killed child
# Native libraries keep these for the life of the process, started by whichever test uses them first.
KEPT_THREADS = ("pymp-", "ThreadPoolExecutor-torch", "Dummy-")


@dataclass(frozen=True)
class Held:
    """What this process holds: the things that can leak, by identity, with words to name them."""

    threads: dict[int, str]
    processes: dict[tuple[int, float], str]
    sockets: dict[str, int]  # descriptors; where they lead is asked when there is one to name

    def since(self, before: "Held") -> list[str]:
        """Name what is held now and was not before."""
        sockets = {name: fd for name, fd in self.sockets.items() if name not in before.sockets}
        addresses = _addresses() if sockets else {}
        return [
            *(f"thread {name}" for key, name in self.threads.items() if key not in before.threads),
            *(f"process {name}" for key, name in self.processes.items() if key not in before.processes),
            *(f"socket {name} {addresses.get(fd, '')}" for name, fd in sockets.items()),
        ]


def _has_children() -> bool:
    """Whether this process has any; a look at all processes of the machine, as psutil takes one, costs ten times that.

    Where the kernel does not say so, the answer is yes.
    """
    try:
        return any((task / "children").read_text() for task in Path("/proc/self/task").iterdir())
    except OSError:  # not built into this kernel, not Linux, or a thread that ended while we looked
        return True


def _processes() -> dict[tuple[int, float], str]:
    found: dict[tuple[int, float], str] = {}
    if not _has_children():
        return found
    for child in psutil.Process().children(recursive=True):
        try:
            found[child.pid, child.create_time()] = f"{child.pid} ({' '.join(child.cmdline())[:120]})"
        except psutil.ZombieProcess:  # ended and never waited for
            found[child.pid, child.create_time()] = f"{child.pid} (a zombie)"
        except psutil.NoSuchProcess:  # it ended while we looked: not a leak
            continue
    return found


def _addresses() -> dict[int, str]:
    """Say where each socket descriptor leads; reads the tables of the whole machine, 100 times the cost of all else."""
    return {c.fd: f"{c.laddr} -> {c.raddr} {c.status}" for c in psutil.Process().net_connections("all")}


def _sockets() -> dict[str, int]:
    """Socket descriptors by inode; looked up in /proc, which also shows unix and netlink sockets."""
    if not Path("/proc/self/fd").exists():
        return {}  # only Linux shows them all
    found = {}
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:  # the descriptor of this very listing
            continue
        if target.startswith("socket:"):
            found[target] = int(descriptor)
    return found


def held() -> Held:
    """Look at what this process holds now."""
    threads = {t.ident or 0: f"{t.name!r}" for t in threading.enumerate() if not t.name.startswith(KEPT_THREADS)}
    return Held(threads, _processes(), _sockets())


def leaked(before: Held, grace_ns: int = GRACE_NS) -> list[str]:
    """Name what is held beyond `before` once `grace_ns` has passed; returns as soon as there is nothing."""
    clock = HostClock()
    end_ns = clock.now_ns() + grace_ns
    while (found := held().since(before)) and clock.now_ns() < end_ns:
        threading.Event().wait(0.02)
    return found


@pytest.fixture(autouse=True, scope="session")
def _nothing_left_by_the_run() -> Iterator[None]:
    before = held()
    yield
    if found := leaked(before):
        pytest.fail("the test run leaves behind: " + "; ".join(found))


@pytest.fixture(autouse=True)
def _nothing_left_by_the_test() -> Iterator[None]:
    before = held()
    yield
    if found := leaked(before):
        pytest.fail("the test leaves behind: " + "; ".join(found) + "; close or join them in the test")
