"""A private virtual screen (Xvfb) for the demo, the benches and machines without a display."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SCREEN_PRIORITY = 8
CURE = "install Debian's xvfb (apt-get install xvfb), or log in on the screen that shows the stimuli and set DISPLAY"


class NoScreen(RuntimeError):
    """There is no screen to draw on; the message says how to get one."""


@contextmanager
def virtual_screen(size_px: tuple[int, int], until_unused: bool = False) -> Iterator[str]:
    """Start an Xvfb of `size_px`, set DISPLAY to it, and end it by its pid. Raises NoScreen.

    `until_unused`: it also ends by itself when its last client has gone, so that none is left behind by a kill.
    """
    program = shutil.which("Xvfb")
    if program is None:
        raise NoScreen(f"no virtual screen: Xvfb is not installed; {CURE}")
    read_end, write_end = os.pipe()
    server = subprocess.Popen(
        [program, "-displayfd", str(write_end), "-screen", "0", f"{size_px[0]}x{size_px[1]}x24", "-nolisten", "tcp"]
        + ["-terminate"] * until_unused,
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
        os.environ["DISPLAY"] = f":{number}"
        yield os.environ["DISPLAY"]
    finally:
        if before is None:
            os.environ.pop("DISPLAY", None)
        else:
            os.environ["DISPLAY"] = before
        server.terminate()
        server.wait(10)
