"""A real recorder in a process of its own, to be killed by tests; and disks of a few MB to be filled by them."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rig.clock import HostClock
from rig.links.peer import Peer
from rig.messages import Entry

ROOT = Path(__file__).parent.parent
CONFIG = """
sources: [{{type: openephys, name: probe}}]
responses: {{units: ["E01#0", "E02#0", "E03#0"]}}
phases: [{{agent: present}}]
display: {{gamma: 1.8}}
storage: {{reserve_gb: {reserve_gb}}}
"""
WITHIN_S = 30.0


class RecorderChild:
    """`python -m rig.recording.recorder` on a folder; started again, it takes the same address."""

    def __init__(self, folder: Path, reserve_gb: float = 0.0, largest_file: int | None = None) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(CONFIG.format(reserve_gb=reserve_gb))
        self.folder, self.endpoint, self.said = folder, "tcp://127.0.0.1:0", list[dict[str, object]]()
        self._largest = largest_file
        self.start()

    def start(self) -> None:
        def limit() -> None:
            if self._largest is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self._largest, resource.RLIM_INFINITY))

        self.process = subprocess.Popen(
            [sys.executable, "-m", "rig.recording.recorder", "--folder", str(self.folder), "--endpoint", self.endpoint],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=limit,
        )  # fmt: skip
        assert self.process.stdout is not None
        said = json.loads(self.process.stdout.readline())
        self.said.append(said)
        if "ready" in said:
            self.endpoint = said["ready"]["endpoint"]

    def kill(self) -> None:
        """Kill it as the kernel would: nothing of it runs any more."""
        self.process.kill()
        self.process.communicate()

    def end(self) -> int:
        """Tell it to stop, wait, and keep what it said."""
        assert self.process.stdin is not None
        self.process.stdin.write("stop\n")  # and left open: its end would mean that the supervisor is gone
        self.process.stdin.flush()
        return self.wait()

    def wait(self) -> int:
        """Wait until it ends by itself."""
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        self.process.wait(WITHIN_S)
        self.process.communicate()
        self.said += [json.loads(line) for line in out.splitlines()]
        return self.process.returncode


def until(done: Callable[[], object], *peers: Peer) -> list[Entry]:
    """Turn the peers until `done()`; return the entries they got."""
    clock = HostClock()
    end_ns = clock.now_ns() + int(WITHIN_S * 1e9)
    entries: list[Entry] = []
    while not done():
        assert clock.now_ns() < end_ns, "it did not happen in time"
        for peer in peers:
            entries += peer.poll(0.005)
    return entries


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own, of so many MB; a test that needs one is skipped where none can be mounted."""
    path.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
