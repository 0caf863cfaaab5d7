"""The owner's side of a guarded line: starts a pulser and a guardian, tells them what to do, hears what they did.

Used by the outputs process for rewards and by the rig for onset lines; neither ever raises a line itself. Nothing here
blocks but starting and closing. A pair that has failed stays failed: close it and make a new one.
"""

import os
import socket
import subprocess
import sys
from contextlib import suppress

from rig.clock import Clock
from rig.outputs import records as r
from rig.outputs.lines import OutputError, held_line, open_line

READY_S = 10.0
END_S = 1.0


class Pair:
    """A pulser and a guardian on one port.

    Parameters
    ----------
    port
        Path of the port.
    rts
        Its RTS line; else data line `line` of a parallel port (or bit `line` of a register file).
    clock
        Time.
    realtime
        Whether the two ask for real-time priority (processes.realtime).

    Raises OutputError where the port cannot be used or the two do not start.
    """

    def __init__(self, port: str, rts: bool, line: int, clock: Clock, realtime: bool = True) -> None:
        self._port = port
        self._clock = clock
        self._fd, kind = open_line(port, rts)
        self._line = held_line(self._fd, kind, line)
        ends = socket.socketpair()
        with ends[0], ends[1]:
            common = ["--fd", str(self._fd), "--kind", kind, "--line", str(line)]
            common += [] if realtime else ["--ordinary"]
            self.processes = [
                subprocess.Popen(
                    [sys.executable, "-m", f"rig.outputs.{role}", *common, "--partner", str(end.fileno())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=(self._fd, end.fileno()),
                    start_new_session=True,  # Ctrl-C is for the supervisor
                )
                for role, end in zip(("pulser", "guardian"), ends, strict=True)
            ]
        self._heard = [r.Mailbox(p.stdout.fileno()) for p in self.processes if p.stdout is not None]
        self._pulser = r.Mailbox(self.processes[0].stdin.fileno() if self.processes[0].stdin is not None else -1)
        try:
            self._wait_ready()
        except OutputError:
            self.close()
            raise

    def _wait_ready(self) -> None:
        began: set[int] = set()
        end_ns = self._clock.now_ns() + int(READY_S * 1e9)
        while len(began) < 2:
            for box in self._heard:
                began.update(t.number for t in box.read() if t.kind == r.BEGAN)
            if not self.alive or self._clock.now_ns() > end_ns:
                raise OutputError(f"{self._port}: the watchdog did not start", "see logs/outputs.log of the session")
            self._clock.sleep_until_ns(self._clock.now_ns() + 2_000_000)

    @property
    def alive(self) -> bool:
        """Whether both are there."""
        return all(box.open for box in self._heard)

    def pulse(self, number: int, length_ns: int) -> None:
        """Ask for a pulse; it ends early unless `keep_alive` is called at least every 20 ms."""
        self._pulser.tell(r.PULSE, number, length_ns)

    def raise_line(self, number: int, longest_ns: int) -> None:
        """Ask for the line to be raised until `stop`, but never longer than `longest_ns`."""
        self._pulser.tell(r.LEVEL, number, longest_ns)

    def keep_alive(self) -> None:
        """Say that the owner lives."""
        self._pulser.tell(r.ALIVE)

    def stop(self) -> None:
        """Lower the line now."""
        self._pulser.tell(r.STOP)

    def poll(self) -> list[r.Told]:
        """Return what the two have said since."""
        return [told for box in self._heard for told in box.read() if told.kind != r.BEGAN]

    def close(self) -> None:
        """End both and leave the line low."""
        for process in self.processes:
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()
        for process in self.processes:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        with suppress(OSError):  # the device may have been unplugged
            self._line.set(False)
        os.close(self._fd)
