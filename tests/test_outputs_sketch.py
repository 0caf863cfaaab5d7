"""The sketch of docs/outputs.md speaks the protocol: compiled for this computer, it is driven as a serial device.

On the board `unsigned long` has 32 bits; the copy that is compiled says so, and its clock wraps during the test.
"""

import os
import re
import shutil
import subprocess
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.clock import HostClock
from rig.messages import OutputRequest
from rig.outputs.devices import Job, Outcome
from rig.outputs.serial_device import SerialDevice

ROOT = Path(__file__).parent.parent
S = 1_000_000_000
COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None or os.name == "nt", reason="needs g++ and pseudo terminals")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = re.search(r"```cpp\n(.*?)```", (ROOT / "docs" / "outputs.md").read_text(), re.S)
    assert found is not None
    code = re.sub(r"unsigned long", "Word", found[1]).replace("%lu", "%u")
    folder = tmp_path_factory.mktemp("sketch")
    body = f'#include "Arduino.h"\ntypedef uint32_t Word;\n{code}\nint main() {{ setup(); for (;;) loop(); }}\n'
    (folder / "sketch.cpp").write_text(body)
    assert COMPILER is not None
    command = [COMPILER, "-Wall", "-I", str(ROOT / "tests" / "arduino"), "-o", str(folder / "sketch"), "sketch.cpp"]
    subprocess.run(command, cwd=folder, check=True, timeout=200)
    return folder / "sketch"


@pytest.fixture
def device(program: Path) -> Iterator[SerialDevice]:
    master, slave = os.openpty()
    tty.setraw(slave)
    process = subprocess.Popen([program], stdin=master, stdout=master, stderr=subprocess.DEVNULL)
    try:
        opened = SerialDevice(os.ttyname(slave), 115200, HostClock(spin_ns=0))
        yield opened
        opened.close()
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def pulse(device: SerialDevice, length_s: float, speak: bool = True) -> Outcome:
    clock = HostClock(spin_ns=0)
    device.begin(Job(OutputRequest(request="a", output="valve", what="reward"), round(length_s * S)))
    end_ns = clock.now_ns() + 5 * S
    while clock.now_ns() < end_ns:
        clock.sleep_until_ns(clock.now_ns() + (4_000_000 if speak else 120_000_000))
        if done := device.poll():
            return done[0]
    raise AssertionError("no outcome")


def test_the_sketch_times_its_pulses(device: SerialDevice) -> None:
    assert device.max_us == 1_000_000
    for length_s in (0.05, 0.3, 0.9):  # its clock wraps in one of them
        outcome = pulse(device, length_s)
        assert outcome.done, outcome.reason
        assert outcome.open_s == pytest.approx(length_s, abs=0.02)


def test_the_sketch_refuses_what_is_too_long(device: SerialDevice) -> None:
    device.max_us = 10**9  # as if the host did not know
    outcome = pulse(device, 1.001)
    assert not outcome.done
    assert "refused" in outcome.reason
    assert outcome.open_s == 0


def test_the_sketch_closes_when_nobody_speaks(device: SerialDevice) -> None:
    outcome = pulse(device, 0.9, speak=False)
    assert "heard nothing" in outcome.reason
    assert outcome.open_s == pytest.approx(0.08, abs=0.03)
