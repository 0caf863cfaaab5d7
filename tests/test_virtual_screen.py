"""The private screen ends with whoever started it, however that one ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from rig.display.virtual import NoScreen, _attend, virtual_screen
from rig.supervision.processes import runs

pytestmark = pytest.mark.skipif(shutil.which("Xvfb") is None, reason="Xvfb is not installed (apt-get install xvfb)")

ROOT = Path(__file__).parent.parent
OWNER = """
import sys, psutil
from rig.display.virtual import virtual_screen
with virtual_screen((64, 64)) as display:
    (screen,) = psutil.Process().children()
    print(display[1:], screen.pid, flush=True)
    sys.stdin.read()
"""


@contextmanager
def owner() -> Iterator[tuple["subprocess.Popen[str]", int, psutil.Process]]:
    """Start a process that has a private screen; yields it, the screen's number and the X server."""
    screen = None
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            number, pid = map(int, process.stdout.readline().split())
            screen = psutil.Process(pid)
            yield process, number, screen
        finally:
            process.kill()
            if screen is not None and runs(screen):
                screen.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_screen_that_was_never_drawn_on_ends_with_its_killed_owner(number: signal.Signals) -> None:
    with owner() as (process, _, screen):
        assert runs(screen)
        process.send_signal(number)
        process.wait(60)
        psutil.wait_procs([screen], timeout=100)
        assert not runs(screen)


def test_a_window_that_outlives_the_owner_keeps_the_screen_until_it_closes() -> None:
    with owner() as (process, number, screen):
        with _attend(number):  # the rig draws its last image
            process.kill()
            process.wait(60)
            with pytest.raises(psutil.TimeoutExpired):
                screen.wait(0.5)
        psutil.wait_procs([screen], timeout=100)
        assert not runs(screen)


def test_a_screen_stays_between_two_sessions_and_display_is_put_back() -> None:
    before = os.environ.get("DISPLAY")
    with virtual_screen((64, 64)) as display:
        (screen,) = (p for p in psutil.Process().children() if "Xvfb" in p.name())
        for _ in range(2):
            with _attend(int(display[1:])):
                pass
        with pytest.raises(psutil.TimeoutExpired):
            screen.wait(0.3)
    assert not runs(screen)
    assert os.environ.get("DISPLAY") == before


def test_a_server_that_is_no_x_server_is_named(tmp_path: Path) -> None:
    place = Path("/tmp/.X11-unix")  # noqa: S108 - where X servers are
    place.mkdir(mode=0o1777, exist_ok=True)
    number = 90_000 + os.getpid() % 9_000
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / f"X{number}"))
        try:
            with pytest.raises(NoScreen, match=f"Xvfb runs as :{number} and does not answer"), _attend(number):
                pass  # nobody listens
        finally:
            (place / f"X{number}").unlink()
