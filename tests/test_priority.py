"""What stands back: the process itself, and the group by which a Linux desktop shares the processor."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOOK = (
    "import os; from pathlib import Path; from rig.priority import step_back; print(step_back());"
    "group = Path('/proc/self/autogroup'); print(os.nice(0), group.read_text() if group.exists() else '')"
)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has priority classes in place of nice values")
def test_a_child_that_stands_back_does_so_beside_other_sessions_too() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=ROOT, start_new_session=True, capture_output=True, text=True, check=True
    )
    words, figures, *_ = ran.stdout.splitlines()
    assert words.startswith("below normal")
    assert figures.split()[0] == "10"
    if Path("/proc/self/autogroup").exists():
        assert words == "below normal, its autogroup too"
        assert figures.endswith("nice 10")


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel does not group by sessions")
def test_one_that_shares_its_session_leaves_the_others_in_it_as_they_were() -> None:
    """`stimloop model` in a terminal: what else runs there is no business of it."""
    first = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LOOK!r}], check=True)"
    ran = subprocess.run(
        [sys.executable, "-c", first], cwd=ROOT, start_new_session=True, capture_output=True, text=True, check=True
    )
    words, figures, *_ = ran.stdout.splitlines()
    assert words == "below normal"
    assert figures.split()[0] == "10"
    assert figures.endswith("nice 0")
