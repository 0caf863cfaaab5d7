"""The independent observer of an output line, as a fixture: it says when the line was high, from another process."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOW_WITHIN_MS = 100.0


class Observer:
    """`python -m rig.animal.valve observe`: sees the line from outside, in a process of its own."""

    def __init__(self, register: Path) -> None:
        self.changes: list[tuple[int, int]] = []  # (level, host ns)
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rig.animal.valve", "observe", str(register)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert "ready" in json.loads(self.process.stdout.readline())
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            with self._changed:
                self.changes.append((said["level"], said["host_ns"]))
                self._changed.notify_all()

    def wait(self, level: int, seconds: float) -> int:
        """Wait until the last change is to `level`; return its host time, ns."""
        with self._changed:
            there = self._changed.wait_for(lambda: bool(self.changes) and self.changes[-1][0] == level, seconds)
            assert there, f"the line did not become {level} within {seconds} s: {self.changes}"
            return self.changes[-1][1]

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self._thread.join(5)
        self.process.stdout.close()


@contextmanager
def observed(register: Path) -> Iterator[Observer]:
    observer = Observer(register)
    try:
        yield observer
    finally:
        observer.close()
