"""One output line that stays where it was put: RTS of a serial port, a data line of a parallel port, a register file.

Used by the pulser and the guardian through one and the same open file, which the line's owner hands to both: a serial
port then falls back to low when the last of them is gone, and a parallel port belongs to both at once. POSIX only.
"""

import os
import stat
import sys
from typing import Literal, Protocol

LineKind = Literal["rts", "parport", "register"]

# linux/ppdev.h: _IO('p', 0x8b), _IOW('p', 0x86, unsigned char)
PPCLAIM = 0x708B
PPWDATA = 0x40017086


class OutputError(RuntimeError):
    """An output that cannot be used; `cure` says what to do."""

    def __init__(self, reason: str, cure: str) -> None:
        super().__init__(reason)
        self.cure = cure


class HeldLine(Protocol):
    """A line that somebody must lower again."""

    def set(self, high: bool) -> None:
        """Raise or lower it. Raises OSError if the device is gone."""
        ...


class RtsLine:
    """RTS of a serial port."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def set(self, high: bool) -> None:
        """Raise or lower RTS."""
        import fcntl
        import termios

        fcntl.ioctl(self._fd, termios.TIOCMBIS if high else termios.TIOCMBIC, termios.TIOCM_RTS.to_bytes(4, "little"))


class ParallelLine:
    """Data line `line` (0-7) of a parallel port; the others are low."""

    def __init__(self, fd: int, line: int) -> None:
        self._fd = fd
        self._high = bytes([1 << line])

    def set(self, high: bool) -> None:
        """Write all eight data lines."""
        import fcntl

        fcntl.ioctl(self._fd, PPWDATA, self._high if high else b"\0")


class RegisterLine:
    """Bit `line` of the first byte of an ordinary file: the simulated port of rig/animal/valve.py."""

    def __init__(self, fd: int, line: int) -> None:
        self._fd = fd
        self._high = bytes([1 << line])

    def set(self, high: bool) -> None:
        """Write the byte."""
        os.pwrite(self._fd, self._high if high else b"\0", 0)


def open_line(port: str, rts: bool) -> tuple[int, LineKind]:
    """Open the port of a held line, low, and return its descriptor and kind. Raises OutputError."""
    if os.name == "nt":
        raise OutputError(
            f"{port}: lines that a watchdog guards need Linux or macOS",
            "use a serial device that times its pulses itself: type: serial, mode: device",
        )
    try:
        fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise OutputError(
            f"{port}: {error.strerror}", "check the port's name, and that this user may open it (groups dialout, lp)"
        ) from error
    try:
        kind: LineKind = "register" if stat.S_ISREG(os.fstat(fd).st_mode) else "rts" if rts else "parport"
        prepare(fd, kind)
        held_line(fd, kind, 0).set(False)
    except OSError as error:
        os.close(fd)
        what = "serial port with an RTS line" if rts else "parallel port"
        raise OutputError(f"{port} is no {what}: {error.strerror}", "give the right port in outputs") from error
    return fd, kind


def prepare(fd: int, kind: LineKind) -> None:
    """Make the port obey: no modem control, low when closed (serial); claimed (parallel). Raises OSError."""
    import fcntl

    if kind == "rts":
        import termios

        try:
            mode = termios.tcgetattr(fd)
            mode[2] = (mode[2] | termios.CLOCAL | termios.HUPCL) & ~termios.CRTSCTS
            termios.tcsetattr(fd, termios.TCSANOW, mode)
        except termios.error as error:
            raise OSError(*error.args) from error
    elif kind == "parport":
        if not sys.platform.startswith("linux"):
            raise OSError(0, "parallel ports are supported on Linux only")
        fcntl.ioctl(fd, PPCLAIM)


def held_line(fd: int, kind: LineKind, line: int) -> HeldLine:
    """Return the line of an open port."""
    if kind == "rts":
        return RtsLine(fd)
    return ParallelLine(fd, line) if kind == "parport" else RegisterLine(fd, line)
