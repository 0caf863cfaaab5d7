"""A private virtual screen (Xvfb) for the demo, the benches and machines without a display.

It ends with whoever started it, also by a kill: it runs with -terminate (it ends when its last client goes), and its
owner is a client that draws nothing (`_attend`), from before the first window on. A window that outlives the owner, as
the rig's does until it has finished its image, keeps it until then.
"""

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SCREEN_PRIORITY = 8
ANSWER_S = 20.0
CURE = "install Debian's xvfb (apt-get install xvfb), or log in on the screen that shows the stimuli and set DISPLAY"


class NoScreen(RuntimeError):
    """There is no screen to draw on; the message says how to get one."""


@contextmanager
def virtual_screen(size_px: tuple[int, int]) -> Iterator[str]:
    """Start an Xvfb of `size_px`, set DISPLAY to it, and end it by its pid. Raises NoScreen.

    Where this process is killed it ends by itself, after the last window on it.
    """
    program = shutil.which("Xvfb")
    if program is None:
        raise NoScreen(f"no virtual screen: Xvfb is not installed; {CURE}")
    read_end, write_end = os.pipe()
    size = f"{size_px[0]}x{size_px[1]}x24"
    server = subprocess.Popen(
        [program, "-displayfd", str(write_end), "-screen", "0", size, "-nolisten", "tcp", "-terminate"],
        pass_fds=(write_end,),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C must reach the session first, not its screen
    )
    os.close(write_end)
    # It stands for the monitor, which no busy program can hold up. Below the rig's own priority.
    if hasattr(os, "sched_setscheduler"):
        with suppress(PermissionError):
            os.sched_setscheduler(server.pid, os.SCHED_FIFO, os.sched_param(SCREEN_PRIORITY))
    before = os.environ.get("DISPLAY")
    try:
        with os.fdopen(read_end) as answer:
            number = answer.readline().strip()
        if not number:
            raise NoScreen(f"Xvfb ended at once with code {server.wait()}; {CURE}")
        with _attend(int(number)):
            os.environ["DISPLAY"] = f":{number}"
            yield os.environ["DISPLAY"]
    finally:
        if before is None:
            os.environ.pop("DISPLAY", None)
        else:
            os.environ["DISPLAY"] = before
        server.terminate()
        server.wait(10)


@contextmanager
def _attend(number: int) -> Iterator[None]:
    """Be a client of the X server `number` for the time of the body. Raises NoScreen.

    Byte order, version 11.0 and no authorisation, as chapter 8 of the X11 protocol has it; 1 is the server's yes.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(ANSWER_S)
        try:
            client.connect(f"/tmp/.X11-unix/X{number}")  # noqa: S108 - where every X server of a Unix is found
            client.sendall(struct.pack("<cxHHHHxx", b"l", 11, 0, 0, 0))
            said = client.recv(8)
        except OSError as error:
            raise NoScreen(f"Xvfb runs as :{number} and does not answer ({error}); {CURE}") from error
        if said[:1] != b"\x01":
            raise NoScreen(f"Xvfb runs as :{number} and refuses its own owner ({said!r}); {CURE}")
        yield
