"""A reward valve behind a device that times its pulses itself, by the protocol of docs/outputs.md.

The device closes the valve at the end of the pulse, and 80 ms after it last heard of this process while it is open.
"""

from contextlib import suppress

import serial

from rig.clock import Clock
from rig.outputs.devices import REWARDS, Job, Outcome
from rig.outputs.lines import OutputError

GREETING = "stimloop-valve 1 "
ASK_AGAIN_NS = 300_000_000  # an Arduino restarts when its port is opened, and is deaf for a second or two
GREETING_NS = 4_000_000_000
ALIVE_EVERY_NS = 15_000_000
ANSWER_NS = 200_000_000
CURE = "load the sketch of docs/outputs.md onto the device, and check outputs.port and baud"


class SerialDevice:
    """A valve that times itself. Raises OutputError where no such device answers."""

    takes = REWARDS

    def __init__(self, port: str, baud: int, clock: Clock) -> None:
        self._clock = clock
        self._where = port
        self._number = 0
        self._job: Job | None = None
        self._begun_ns = self._alive_ns = 0
        self._accepted_ns: int | None = None
        self._cut = ""
        self._done: list[Outcome] = []
        self._rest = b""
        try:
            self._port = serial.Serial(port, baud, timeout=0, write_timeout=0, exclusive=True)
        except (serial.SerialException, ValueError, OSError) as error:
            cure = "check the port's name, that nothing else has it open, and that this user may open it"
            raise OutputError(f"{port}: {error}", cure) from error
        try:
            self.max_us = self._greet()
        except OutputError:
            self._port.close()
            raise

    def _greet(self) -> int:
        """Return the longest pulse that the device accepts, us."""
        start = asked = self._clock.now_ns()
        self._write("?")
        while self._clock.now_ns() - start < GREETING_NS:
            for line in self._lines():
                if line.startswith(GREETING) and line[len(GREETING) :].isdigit():
                    return int(line[len(GREETING) :])
            if self._clock.now_ns() - asked > ASK_AGAIN_NS:
                asked = self._clock.now_ns()
                self._write("?")
            self._clock.sleep_until_ns(self._clock.now_ns() + 5_000_000)
        raise OutputError(f"{self._where}: no valve device answers within {GREETING_NS / 1e9:g} s", CURE)

    def _write(self, line: str) -> None:
        with suppress(serial.SerialException, OSError):  # an unplugged device: its silence is the answer
            self._port.write(line.encode() + b"\n")

    def _lines(self) -> list[str]:
        try:
            data = self._port.read(4096)
        except (serial.SerialException, OSError):
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("ascii", "replace").strip() for line in lines]

    def begin(self, job: Job) -> None:
        """Tell the device to pulse."""
        length_us = -(-job.length_ns // 1000)
        self._job, self._accepted_ns, self._cut = job, None, ""
        self._number += 1
        if length_us > self.max_us:
            self._over(False, f"not given: {length_us} us; the device allows {self.max_us} us", 0)
            return
        self._begun_ns = self._alive_ns = self._clock.now_ns()
        self._write(f"P {self._number} {length_us}")

    def poll(self) -> list[Outcome]:
        """Say that this process lives, and take the device's answers."""
        lines = self._lines()
        now = self._clock.now_ns()
        if self._job is not None:
            for line in lines:
                self._take(line.split(), now)
        job = self._job
        if job is not None:
            if now - self._alive_ns >= ALIVE_EVERY_NS:
                self._alive_ns = now
                self._write("K")
            due_ns = self._begun_ns + ANSWER_NS + (0 if self._accepted_ns is None else job.length_ns)
            if now > due_ns:
                self._write("X")
                what = "accept the pulse" if self._accepted_ns is None else "say that it closed"
                why = f"not confirmed: the device did not {what}; counted in full"
                self._over(False, why, job.length_ns, measured=False)
        done, self._done = self._done, []
        return done

    def _take(self, words: list[str], now: int) -> None:
        if len(words) < 2 or words[1] != str(self._number):
            return
        if words[0] == "A":
            self._accepted_ns = now
        elif words[0] == "R":
            self._over(False, f"not given: the device refused it: {' '.join(words[2:])}", 0)
        elif words[0] == "E" and len(words) == 4 and words[2].isdigit():
            open_ns, why = int(words[2]) * 1000, words[3]
            reasons = {"end": "", "quiet": "cut short: the device heard nothing for 80 ms"}
            self._over(why == "end", reasons.get(why, f"cut short: {self._cut}"), open_ns)

    def _over(self, done: bool, reason: str, open_ns: int, measured: bool = True) -> None:
        if self._job is not None:
            start, end = self._begun_ns or None, self._clock.now_ns()
            self._done.append(
                Outcome(self._job.request, done, reason, start, end, open_ns * 1e-9, measured, "device")
            )
        self._job = None

    def cut(self, why: str) -> None:
        """Tell the device to close now."""
        if self._job is not None:
            self._cut = why
            self._write("X")

    def close(self) -> None:
        """Close the valve and the port."""
        self._write("X")
        self._port.close()
