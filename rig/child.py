"""What every child process of `stimloop run` shares: how it says ready or failed, and how it ends.

Protocol with the supervisor, over the standard pipes: the child writes one JSON object per line to stdout
({"ready": {...}}, {"failed": reason, "cure": ...}, {"note": ...}); the supervisor writes "go" (all are ready) and
"stop" (with a reason, if there is one) to its stdin; the end of stdin means that it is gone. Logging goes to stderr.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path


def shield() -> None:
    """Leave Ctrl-C and SIGTERM to the supervisor, which ends the children in order; if it dies, their stdin ends.

    A shutdown of the machine or of a service signals every process at once: the recorder must not be the first to go.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Stop:
    """Set when the supervisor says stop or is gone; polled by the child's loop."""

    def __init__(self) -> None:
        """Start the thread that reads stdin (a daemon: it ends with the process)."""
        self._event = threading.Event()
        self.go = False
        self.reason = ""  # what followed the word stop
        self.orphaned = False
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def _read(self) -> None:
        # os.read and not sys.stdin: a daemon thread inside a buffered reader aborts interpreter shutdown.
        while True:
            data = os.read(0, 4096)
            if not data:
                self.orphaned = True
                self._event.set()
                return
            if b"go" in data:
                self.go = True
            if b"stop" in data:
                self.reason = data[data.index(b"stop") + 4 :].decode("utf-8", "replace").strip()
                self._event.set()

    def __bool__(self) -> bool:
        """Whether the child must end."""
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` for the stop; return whether it came."""
        return self._event.wait(timeout_s)


def say(**fields: object) -> None:
    """Write one status line for the supervisor, for example say(ready={"endpoint": ...})."""
    try:
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the supervisor is gone; stdin's end tells the loop
        pass


def fail(reason: str, cure: str) -> int:
    """Say why this child cannot start or go on and what cures it; return the exit code to use."""
    say(failed=reason, cure=cure)
    return 2


def boot_id() -> str:
    """Return an identity of this boot of this machine, so that monotonic times are never compared across boots."""
    path = Path("/proc/sys/kernel/random/boot_id")
    if path.exists():
        return path.read_text().strip()
    import psutil  # only where the kernel has no boot id

    return f"boot-{int(psutil.boot_time())}"
