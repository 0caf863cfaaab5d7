"""Messages into the Open Ephys GUI's own recording, which name the trials: labels, never times.

The GUI answers over HTTP whenever it likes, so that a thread sends them, in order; each says what became of it.
"""

import queue
import threading

from rig.clock import Clock
from rig.outputs.devices import TEXTS, Job, Outcome
from rig.sources.openephys_http import GuiError, send_message

CLOSE_S = 2.0
MOST_WAITING = 50  # of a GUI that does not answer; more are refused


class GuiMessages:
    """Sends messages to one GUI."""

    takes = TEXTS

    def __init__(self, host: str, port: int, session: str, clock: Clock) -> None:
        self._where = (host, port)
        self._session = session
        self._clock = clock
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._done: queue.Queue[Outcome] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="gui messages", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            started = self._clock.now_ns()
            try:
                send_message(*self._where, f"stimloop {self._session} {job.request.text}")
            except GuiError as error:
                self._done.put(Outcome(job.request, False, f"{error}; {error.cure}", started))
            else:
                self._done.put(Outcome(job.request, True, "", started, self._clock.now_ns()))

    def begin(self, job: Job) -> None:
        """Queue a message."""
        if self._jobs.qsize() >= MOST_WAITING:
            self._done.put(Outcome(job.request, False, f"{MOST_WAITING} messages wait for the GUI already"))
        else:
            self._jobs.put(job)

    def poll(self) -> list[Outcome]:
        """Return what was sent or refused."""
        done = []
        while not self._done.empty():
            done.append(self._done.get())
        return done

    def close(self) -> None:
        """Send what is queued, for up to 2 s."""
        self._jobs.put(None)
        self._thread.join(CLOSE_S)
