"""One child process as its parent sees it: its status lines, its log file, its end.

Used by the supervisor, and by the benches and checks that start children of their own. How a child talks:
`rig.supervision.child`.
"""

import json
import os
import queue
import secrets
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

from rig.clock import Clock
from rig.supervision.liveness import Sign
from rig.supervision.starting import Starting, busy_now, cure

KILL_S = 5.0  # a process that a kill has not ended by then waits inside the kernel, for a disk or a device
POLL_S = 0.05
HEAD = "--- "  # begins the line that says when a process was started and how
MARK = "STIMLOOP_START"  # in the environment of a child and of everything that it starts
# Libraries that start a thread per core starve the screen; the model server sets its own, logged, number for torch.
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    **dict.fromkeys(("OMP_DYNAMIC", "MKL_DYNAMIC"), "FALSE"),
}


class SessionFailed(RuntimeError):
    """A session could not start or go on; the message gives the reason and the cure."""


def runs(process: psutil.Process) -> bool:
    """Whether a process still runs; one that is dead and only not reaped yet holds nothing."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Child:
    """One child process, its status lines and its log file."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        inherited: tuple[int, ...] = (),
    ) -> None:
        """Start `python -m ...` with `arguments`; stderr goes to `log`.

        `environment` is added to our own, the descriptors `inherited` stay open.
        """
        self.name = name
        self.log = log
        self.ready: dict[str, object] | None = None
        self.failed: tuple[str, str] | None = None
        self.since_ns: int | None = None  # since when it had failed, where it was not at once; host clock
        self.notes: set[str] = set()
        self.tells: list[str] = []  # what the experimenter must know at once, until the supervisor has said it
        self.journalled: set[int] = set()  # numbers of what the recorder was told to journal, and did
        self.mark = secrets.token_hex(8)
        self._unsaid = b""  # what did not fit into the pipe yet
        self._lines: queue.Queue[str] = queue.Queue()
        command = [sys.executable, *arguments]
        with log.open("ab") as stderr:
            self._said_from = stderr.tell()  # of this process, not of the one before it, which wrote to the same file
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **ONE_THREAD, **(environment or {}), MARK: self.mark},
                pass_fds=inherited,
                start_new_session=os.name != "nt",  # Ctrl-C is for the supervisor, which ends them in order
            )
            self._seen = psutil.Process(self.process.pid)
            begun = datetime.fromtimestamp(self._seen.create_time(), UTC).isoformat(" ", "seconds")
            # It may have said something already: its own words come before this line then.
            stderr.write(f"{HEAD}{begun} process {self.process.pid}: {shlex.join(command)}\n".encode())
        self._used_s = 0.0
        assert self.process.stdin is not None  # noqa: S101 - it was asked for
        if os.name != "nt":
            os.set_blocking(self.process.stdin.fileno(), False)
        self._reader = threading.Thread(target=self._read, name=f"{name} status", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - it was asked for
        with self.process.stdout as lines:  # ends when nobody holds the pipe any more, also none that it started
            for line in lines:
                self._lines.put(line.decode("utf-8", "replace"))

    def update(self) -> None:
        """Take the status lines that have come."""
        if self._unsaid:
            self._write()
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
                self.since_ns = said.get("since_host_ns")
            elif "note" in said:
                self.notes.add(str(said["note"]))
            elif "tell" in said:
                self.tells.append(str(said["tell"]))
            elif "journalled" in said:
                self.journalled.add(int(said["journalled"]))

    @property
    def exit_code(self) -> int | None:
        """Exit code, None while it runs."""
        return self.process.poll()

    @property
    def used_s(self) -> float:
        """Processor time that it has got, s, without what it has started; of one that has ended, as last seen."""
        with suppress(psutil.Error):
            times = self._seen.cpu_times()
            self._used_s = times.user + times.system
        return self._used_s

    def say(self, word: str) -> None:
        """Write a line ("go", "stop" ...) to the child, without waiting: a frozen one must not hold up its parent."""
        self._unsaid += word.encode() + b"\n"
        self._write()

    def _write(self) -> None:
        """Write what fits into the pipe; the rest goes out with the next word or look, once the child reads again."""
        try:
            assert self.process.stdin is not None  # noqa: S101 - it was asked for
            while self._unsaid:
                self._unsaid = self._unsaid[os.write(self.process.stdin.fileno(), self._unsaid) :]
        except BlockingIOError:
            return
        except (BrokenPipeError, ValueError):
            self._unsaid = b""  # it has ended; its exit code tells

    def end(self, timeout_s: float, reason: str = "") -> bool:
        """Ask the child to stop and wait; kill it after `timeout_s`. Returns whether it ended by itself."""
        self.say(f"stop {reason}")
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        self._close()
        return True

    def kill(self) -> bool:
        """Kill it at once, stopped or not, and reap it; what it had started is in `left_behind`.

        Returns False for one that even a kill does not end within 5 s, because the kernel holds it.
        """
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(KILL_S)
        self._close()
        return self.process.returncode is not None

    def _close(self) -> None:
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):  # a word it never read
                self.process.stdin.close()
        self._reader.join(0.5)
        self.update()

    def left_behind(self) -> list[psutil.Process]:
        """Return the processes that it had started, directly or not, and that still run; some 10 ms of work.

        They end by themselves when their pipes close (a guardian lowers its line first); until then they may hold a
        port or a line.
        """
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = process.pid != self.process.pid and process.environ().get(MARK) == self.mark
                if ours and runs(process):
                    found.append(process)
        return found

    def why(self) -> str:
        """Return reason and cure of a child that failed or died."""
        self._reader.join(1.0)
        self.update()
        if self.failed is not None:
            return f"{self.name}: {self.failed[0]}\n  cure: {self.failed[1]}"
        return f"{self.name} {self.how_ended()}\n  cure: see {self.log}"

    def how_ended(self) -> str:
        """Return in words, in one line, how it ended."""
        if self.failed is not None:
            return f"failed: {self.failed[0]}"
        code = self.exit_code
        if code is None:
            return f"cannot be killed: the system holds process {self.process.pid}, which waits for a disk or a device"
        if code < 0:
            return f"was killed by signal {_signal_name(-code)}"
        with self.log.open("rb") as file:
            file.seek(self._said_from)
            said = file.read().decode("utf-8", "replace").strip().splitlines()
        tail = [line for line in said if not line.startswith(HEAD)][-1:]
        return f"ended with code {code}" + (f": {tail[0]}" if tail else "")


def _signal_name(number: int) -> str:
    """Return what a signal is called; real-time signals between the first and the last have no name of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"{number} ({signal.strsignal(number) or 'unknown'})"


def wait_ready(children: list[Child], clock: Clock, stopped: Callable[[], bool] = lambda: False) -> None:
    """Wait until all children say that they are ready; raises SessionFailed with the reason of one that cannot."""
    silent = Sign(0)  # nobody reads the counter of such a child
    starting = [Starting(clock.now_ns(), silent) for _ in children]
    while any(child.ready is None for child in children):
        for child, start in zip(children, starting, strict=True):
            child.update()
            if child.failed is not None or child.exit_code is not None:
                raise SessionFailed(child.why())
            now_ns = clock.now_ns()
            if child.ready is None and start.stuck(now_ns, silent, child.used_s):
                why = start.why(now_ns, child.used_s)
                raise SessionFailed(f"{child.name} {why}\n  cure: {cure(child.log, busy_now())}")
        if stopped():
            raise SessionFailed("stopped before all processes were ready")
        clock.sleep_until_ns(clock.now_ns() + int(POLL_S * 1e9))
