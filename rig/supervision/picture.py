"""What the terminal shows of a session, in a thread of its own.

A terminal that was stopped (Ctrl-S, a remote shell that hangs) or a log that is slow to read holds up the picture only:
the supervisor goes on tending its children.
"""

import queue
import threading
from collections.abc import Callable

LOOK_S = 0.05
LAST_S = 10.0  # what the last picture may take; a terminal that stands still is left alone then


class Picture:
    """Calls `watch` about 20 times a second, and `tell` for each line."""

    def __init__(self, watch: Callable[[], None], tell: Callable[[str], None]) -> None:
        """Start the thread; lines are told at once, `watch` is called once `watching` is set."""
        self.error: Exception | None = None  # the last thing that went wrong in `watch` or `tell`
        self.watching = False
        self._watch, self._tell = watch, tell
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="picture", daemon=True)
        self._thread.start()

    def tell(self, line: str) -> None:
        """Have a line told, without waiting."""
        self._lines.put(line)

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            self._show()
        self._show()  # what came last

    def _show(self) -> None:
        try:
            while not self._lines.empty():
                self._tell(self._lines.get())
            if self.watching:
                self._watch()
        except Exception as error:  # noqa: BLE001 - a picture, not the data
            self.error = error

    def close(self) -> None:
        """Show what is left, and end."""
        self._over.set()
        self._thread.join(LAST_S)
