"""What every child process of `stimloop run` shares: how it says ready or failed, and how it ends.

Protocol with the supervisor, over the standard pipes: the child writes one JSON object per line to stdout ({"ready":
{...}}, {"failed": reason, "cure": ..., "since_host_ns": ...}, {"note": ...}, {"journalled": n}, and {"tell": words}
for what the experimenter must know at once); the supervisor writes lines to its stdin: "go" (all are ready: trials
may begin), "hold" (no new trial), "stop" (with a reason, if there is one) and, to the recorder, "journal n {...}" (a
fault of its own for the log). The end of stdin means that the supervisor is gone.
Logging goes to stderr. A counter in shared memory says that the child's loop goes on (`rig.supervision.liveness`).
"""

import atexit
import gc
import json
import os
import signal
import sys
import threading
from collections import deque
from pathlib import Path

from rig.supervision.liveness import own_pulse

AWAY = "STIMLOOP_AWAY_SINCE"


def shield() -> None:
    """Leave Ctrl-C and SIGTERM to the supervisor, which ends the children in order; if it dies, their stdin ends.

    A shutdown of the machine or of a service signals every process at once: the recorder must not be the first to go.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    leave_at_once()


def leave_at_once() -> None:
    """Have the process end as soon as it has done its own clearing up.

    The interpreter would take apart all that the libraries hold, 0.1 to 0.4 s of each child that the session waits for
    in turn. What is ours was closed before.
    """
    atexit.register(gc.freeze)


class Stop:
    """Set when the supervisor says stop or is gone; asked by the child's loop in every round.

    Asking is the sign of life that the supervisor watches for (`rig.supervision.liveness`): a loop that does not ask
    any more is stuck. Work that takes long between two questions is put into `pulse.busy`.
    """

    def __init__(self) -> None:
        """Start the thread that reads stdin (a daemon: it ends with the process)."""
        self._event = threading.Event()
        self.pulse = own_pulse()
        self.go = False  # whether trials may begin; the supervisor takes it back while a device is away
        self.reason = ""  # what followed the word stop
        self.orphaned = False
        self._told: deque[tuple[int, str]] = deque()
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def _read(self) -> None:
        # os.read and not sys.stdin: a daemon thread inside a buffered reader aborts interpreter shutdown.
        rest = b""
        while True:
            data = os.read(0, 65536)
            if not data:
                self.orphaned = True
                self._event.set()
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._hear(line.decode("utf-8", "replace"))

    def _hear(self, line: str) -> None:
        word, _, text = line.partition(" ")
        if word in ("go", "hold"):
            self.go = word == "go"
        elif word == "stop":
            self.reason = text.strip()
            self._event.set()
        elif word == "journal":
            number, _, document = text.partition(" ")
            self._told.append((int(number), document))

    def told(self) -> list[tuple[int, str]]:
        """Return what the supervisor wants to be journalled: its number, and a Fault as JSON. For the recorder."""
        out = []
        while self._told:
            out.append(self._told.popleft())
        return out

    def __bool__(self) -> bool:
        """Whether the child must end."""
        self.pulse.beat()
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` for the stop; return whether it came. No sign of life: any thread may wait."""
        return self._event.wait(timeout_s)


def away_since_ns() -> int | None:
    """Return since when (host clock) the process was away that this one replaces; None at the session's start."""
    given = os.environ.get(AWAY)
    return None if given is None else int(given)


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
