"""An output line as an independent process sees it (`rig.animal.valve observe`), for benches that need its times."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LineWatch:
    """The changes of a line so far; a thread reads them."""

    def __init__(self, register: Path) -> None:
        """Start the observer of the simulated port `register`."""
        self.changes: list[tuple[int, int]] = []
        """(level, host ns), in order."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rig.animal.valve", "observe", str(register)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None  # noqa: S101 - asked for
        json.loads(self._process.stdout.readline())  # it is ready
        self._thread = threading.Thread(target=self._read, name="line", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - asked for
        for text in self._process.stdout:
            said = json.loads(text)
            self.changes.append((int(said["level"]), int(said["host_ns"])))

    def level(self) -> bool:
        """Return whether the line is high."""
        return bool(self.changes) and self.changes[-1][0] == 1

    def close(self) -> None:
        """End the observer."""
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101, PT018 - asked for
        self._process.stdin.close()
        self._process.wait(5.0)
        self._thread.join(5.0)
        self._process.stdout.close()


@contextmanager
def observed(register: Path) -> Iterator[LineWatch]:
    """Watch a simulated port."""
    watch = LineWatch(register)
    try:
        yield watch
    finally:
        watch.close()
