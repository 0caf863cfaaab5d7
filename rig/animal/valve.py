"""Fake output devices for tests and rehearsals: a register file with an observer, and a serial valve.

    python -m rig.animal.valve make FILE        makes a register file: a simulated parallel port
    python -m rig.animal.valve observe FILE     writes each change of the register, with its host time
    python -m rig.animal.valve serial           a valve controller on a pseudo terminal, docs/outputs.md

The last two print JSON lines: first {"ready": ...}, then {"level": 0 or 1, "host_ns": ...} whenever the line changed.
They end when their stdin does. They know nothing of the program that drives them.
"""

import argparse
import json
import mmap
import os
import select
import sys
from pathlib import Path
from typing import Any

from rig.clock import Clock, HostClock

LOOK_NS = 200_000
QUIET_NS = 80_000_000
MAX_PULSE_US = 5_000_000


def make_register(path: Path) -> Path:
    """Make a fake parallel port: one page of zeros, whose first byte holds the eight data lines."""
    path.write_bytes(bytes(mmap.PAGESIZE))
    return path


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _ended() -> bool:
    return bool(select.select([0], [], [], 0)[0]) and not os.read(0, 4096)


def observe(path: Path, clock: Clock) -> None:
    """Report each change of the register's first byte until stdin ends; the resolution is 0.2 ms."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 1, prot=mmap.PROT_READ) as register:
        level = register[0]
        _say(ready=str(path), level=level)
        due = clock.now_ns()
        while not _ended():
            now = register[0]
            if now != level:
                level = now
                _say(level=int(level != 0), host_ns=clock.now_ns(), byte=level)
            due = max(due + LOOK_NS, clock.now_ns() - LOOK_NS)
            clock.sleep_until_ns(due)


class SerialValve:
    """The device's side of the protocol of docs/outputs.md; it times the pulse and closes by itself.

    Parameters
    ----------
    clock
        Its own time.
    max_us
        The longest pulse it accepts, us.
    """

    def __init__(self, clock: Clock, max_us: int = MAX_PULSE_US) -> None:
        self._clock = clock
        self._max_us = max_us
        self._number: str | None = None
        self._opened_ns = self._length_ns = self._heard_ns = 0

    @property
    def open(self) -> bool:
        """Whether the valve is open."""
        return self._number is not None

    def hear(self, line: str) -> str:
        """Take one line of the host; return the answer, "" for none."""
        self._heard_ns = self._clock.now_ns()
        match line.split():
            case ["?"]:
                return f"stimloop-valve 1 {self._max_us}\n"
            case ["P", number, length] if number.isdigit() and length.isdigit():
                if self.open:
                    return f"R {number} busy\n"
                if not 0 < int(length) <= self._max_us:
                    return f"R {number} length\n"
                self._number, self._opened_ns, self._length_ns = number, self._heard_ns, int(length) * 1000
                return f"A {number} {length}\n"
            case ["X"]:
                return self._close("stop")
            case ["K"]:
                return ""
        return "R 0 unknown\n"

    def tick(self) -> str:
        """Close when it is time, or when the host has fallen silent; return what it says then."""
        now = self._clock.now_ns()
        if not self.open:
            return ""
        if now - self._opened_ns >= self._length_ns:
            return self._close("end")
        return self._close("quiet") if now - self._heard_ns > QUIET_NS else ""

    def _close(self, why: str) -> str:
        number, self._number = self._number, None
        return f"E {number} {(self._clock.now_ns() - self._opened_ns) // 1000} {why}\n" if number else ""


def serve_serial(clock: Clock, deaf: bool) -> None:
    """Be a valve on a pseudo terminal until stdin ends; a deaf one answers nothing but what it is."""
    import pty
    import tty

    master, slave = pty.openpty()
    tty.setraw(slave)
    valve, rest, level = SerialValve(clock), b"", False
    _say(ready=os.ttyname(slave))
    try:
        while True:
            ready, _, _ = select.select([0, master], [], [], 0.001 if valve.open else None)
            if 0 in ready and not os.read(0, 4096):
                return
            if master in ready:
                *lines, rest = (rest + os.read(master, 4096)).split(b"\n")
                for line in lines:
                    text = line.decode("ascii", "replace").strip()
                    answer = "" if deaf and text != "?" else valve.hear(text)
                    os.write(master, answer.encode())
            os.write(master, valve.tick().encode())
            if valve.open != level:
                level = valve.open
                _say(level=int(level), host_ns=clock.now_ns())
    finally:
        os.close(master)
        os.close(slave)


def main() -> int:
    """Run one of the fakes."""
    parser = argparse.ArgumentParser(prog="rig.animal.valve", description="Fake output devices of stimloop.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    watch = kinds.add_parser("observe", help="report each change of a register file")
    watch.add_argument("file", type=Path)
    make = kinds.add_parser("make", help="make a register file, a simulated parallel port")
    make.add_argument("file", type=Path)
    serial = kinds.add_parser("serial", help="a valve controller on a pseudo terminal")
    serial.add_argument("--deaf", action="store_true", help="never answer a pulse")
    options = parser.parse_args()
    clock = HostClock(spin_ns=0)
    if options.kind == "observe":
        observe(options.file, clock)
    elif options.kind == "make":
        make_register(options.file)
    else:
        serve_serial(clock, options.deaf)
    return 0


if __name__ == "__main__":
    sys.exit(main())
