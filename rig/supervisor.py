"""The supervisor: starts all children of a session, waits until all are ready, and ends them in order.

It touches no data. A child that cannot start or that dies ends the session with its reason and its cure; Ctrl-C and
SIGTERM end it in order: the rig finishes its image, the last responses come in, then every file is closed.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from rig.clock import Clock
from rig.config import Config
from rig.timing import drain_s

READY_S = 30.0
STOP_S = 8.0
POLL_S = 0.05
VIEW_RESTARTS = 3
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
# Libraries that start a thread per core starve the screen; the model server sets its own, logged, number for torch.
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    **dict.fromkeys(("OMP_DYNAMIC", "MKL_DYNAMIC"), "FALSE"),
}


class SessionFailed(RuntimeError):
    """A session could not start or go on; the message gives the reason and the cure."""


class Child:
    """One child process, its status lines and its log file."""

    def __init__(self, name: str, arguments: list[str], log: Path) -> None:
        """Start `python -m ...` with `arguments`; stderr goes to `log`."""
        self.name = name
        self.log = log
        self.ready: dict[str, object] | None = None
        self.failed: tuple[str, str] | None = None
        self.notes: set[str] = set()
        self._lines: queue.Queue[str] = queue.Queue()
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **ONE_THREAD},
                start_new_session=os.name != "nt",  # Ctrl-C is for the supervisor, which ends them in order
            )
        self._reader = threading.Thread(target=self._read, name=f"{name} status", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - it was asked for
        for line in self.process.stdout:
            self._lines.put(line.decode("utf-8", "replace"))

    def update(self) -> None:
        """Take the status lines that have come."""
        while True:
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                return
            try:
                said = json.loads(line)
            except ValueError:
                continue  # a library printed something; its place is not here, and it means nothing to us
            if not isinstance(said, dict):
                continue
            if "ready" in said:
                self.ready = said["ready"]
            elif "failed" in said:
                self.failed = (str(said["failed"]), str(said.get("cure", "")))
            elif "note" in said:
                self.notes.add(str(said["note"]))

    @property
    def exit_code(self) -> int | None:
        """Exit code, None while it runs."""
        return self.process.poll()

    def say(self, word: str) -> None:
        """Write a word ("go", "stop") to the child."""
        try:
            assert self.process.stdin is not None  # noqa: S101 - it was asked for
            self.process.stdin.write(word.encode() + b"\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # it has ended; its exit code tells

    def end(self, timeout_s: float, reason: str = "") -> bool:
        """Ask the child to stop and wait; kill it after `timeout_s`. Returns whether it ended by itself."""
        self.say(f"stop {reason}")
        try:
            self.process.wait(timeout_s)
            orderly = True
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            orderly = False
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):  # a word it never read
                self.process.stdin.close()
        self._reader.join(2.0)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.update()
        return orderly

    def why(self) -> str:
        """Return reason and cure of a child that failed or died."""
        self._reader.join(1.0)
        self.update()
        if self.failed is not None:
            return f"{self.name}: {self.failed[0]}\n  cure: {self.failed[1]}"
        tail = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        return (
            f"{self.name} ended with code {self.exit_code}"
            + (f": {tail[0]}" if tail else "")
            + f"\n  cure: see {self.log}"
        )


def wait_ready(children: list[Child], clock: Clock, stopped: Callable[[], bool] = lambda: False) -> None:
    """Wait until all children say that they are ready; raises SessionFailed with the reason of one that cannot."""
    end_ns = clock.now_ns() + int(READY_S * 1e9)
    while waiting := [c for c in children if c.ready is None]:
        for child in children:
            child.update()
            if child.failed is not None or child.exit_code is not None:
                raise SessionFailed(child.why())
        if stopped():
            raise SessionFailed("stopped before all processes were ready")
        if clock.now_ns() > end_ns:
            names = ", ".join(c.name for c in waiting)
            raise SessionFailed(f"not ready after {READY_S:.0f} s: {names}\n  cure: see {waiting[0].log}")
        clock.sleep_until_ns(clock.now_ns() + int(POLL_S * 1e9))


class Supervisor:
    """Runs the children of one session."""

    def __init__(self, folder: Path, config: Config, simulated: bool, clock: Clock) -> None:
        """Run the session whose folder holds `config.yaml`; `simulated`: against the simulated animal."""
        self._simulated = simulated
        self._reason = ""  # why the session ends, where that is not the rig's own affair
        self._folder = folder
        self._config = config
        self._clock = clock
        self._children: dict[str, Child] = {}
        self._stop_signals = 0
        self._started = False
        self._views = 0
        self._ended_badly: list[Child] = []
        self._watch_error: Exception | None = None
        (folder / "logs").mkdir(exist_ok=True)

    def _start(self, name: str, module: str, *extra: str) -> Child:
        arguments = ["-m", module, "--folder", str(self._folder), *extra]
        child = Child(name, arguments, self._folder / "logs" / f"{name}.log")
        self._children[name] = child
        return child

    def _wait(self) -> None:
        """Wait for all children that were started, those too that were ready before: one may have died since."""
        wait_ready([*self._children.values()], self._clock, lambda: self._stop_signals > 0)

    def _nap(self) -> None:
        self._clock.sleep_until_ns(self._clock.now_ns() + int(POLL_S * 1e9))

    def _signal(self, number: int, frame: FrameType | None) -> None:
        self._stop_signals += 1

    def run(self, watch: Callable[[], None]) -> str:
        """Run the session to its end; `watch()` is called about 20 times a second. Returns why it ended.

        Raises SessionFailed, after everything has been closed in order, when a child could not start or died.
        """
        before = {s: signal.signal(s, self._signal) for s in STOP_SIGNALS}
        try:
            self._start_all()
            reason = self._until_end(watch)
        finally:
            self._end_all(watch)
            for s, handler in before.items():
                signal.signal(s, handler)
        if self._ended_badly:
            raise SessionFailed("\n".join(child.why() for child in self._ended_badly))
        if self._watch_error is not None:
            raise self._watch_error
        return reason

    def _start_all(self) -> None:
        recorder = self._start("recorder", "rig.recorder", *(["--simulated"] if self._simulated else []))
        self._wait()
        assert recorder.ready is not None  # noqa: S101 - just waited for
        endpoint = ("--endpoint", str(recorder.ready["endpoint"]))
        display = "rig.display.session" if self._config.guest is None else "rig.display.guest"
        others = [self._start("rig", display, *endpoint), self._start("model", "models", *endpoint)]
        if self._config.outputs:
            others.append(self._start("outputs", "rig.outputs", *endpoint))
        others += [self._start(s.name, "rig.sources", *endpoint, "--name", s.name) for s in self._config.sources]
        others.append(self._start("view", "rig.view.h5"))
        self._wait()
        for child in self._children.values():
            child.say("go")
        self._started = True

    def _replaced(self, child: Child) -> bool:
        """Start the view again where it died: it folds the journal from the start, and nobody else notices."""
        if child.name != "view" or self._views >= VIEW_RESTARTS:
            return False
        self._views += 1
        child.end(0.1)
        self._start("view", "rig.view.h5")
        return True

    def _until_end(self, watch: Callable[[], None]) -> str:
        rig = self._children["rig"]
        while True:
            watch()
            if self._stop_signals:
                return "stopped by the user"
            for child in [*self._children.values()]:
                child.update()
                if child.exit_code is not None and child is not rig and not self._replaced(child):
                    self._reason = f"{child.name} ended with code {child.exit_code}"
                    raise SessionFailed(child.why())
            if rig.exit_code is not None:
                if rig.exit_code != 0:
                    raise SessionFailed(rig.why())
                return "complete"
            self._nap()

    def _end_all(self, watch: Callable[[], None]) -> None:
        """End the children in the order that loses nothing."""
        children = self._children
        if not self._started:  # nothing was shown: no order to keep, and the user waits for the reason
            for child in children.values():
                child.say("stop")
        if "rig" in children:
            rig, recorder = children["rig"], children["recorder"]
            rhythm = self._config.presentation
            rig.end(STOP_S + rhythm.on_s + rhythm.off_s)  # it finishes the image that is on the screen
            end_ns = self._clock.now_ns() + int(drain_s(self._config) * 1e9)
            while self._started and recorder.exit_code is None and "drained" not in recorder.notes:
                recorder.update()
                self._watch(watch)
                if self._clock.now_ns() > end_ns:
                    break
                self._nap()
        names = [n for n in children if n not in ("rig", "recorder", "view")]
        for name in names:
            children[name].say("stop")
        bad = []
        for name in [*names, "recorder", "view"]:
            if name in children:
                orderly = children[name].end(STOP_S if name != "view" else 60.0, self._reason)
                if not orderly or children[name].exit_code != 0:
                    bad.append(children[name])
        self._watch(watch)
        self._ended_badly = bad

    def _watch(self, watch: Callable[[], None]) -> None:
        """Show progress; whatever goes wrong there must not keep the children from being ended in order."""
        try:
            watch()
        except Exception as error:  # noqa: BLE001 - a picture, not the data
            self._watch_error = error
