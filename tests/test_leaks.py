"""The leak checks see what they claim to see, and the configuration of pytest lets nothing pass."""

import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

from tests.leaks import held, leaked


def test_a_left_thread_is_named() -> None:
    before, stop = held(), threading.Event()
    thread = threading.Thread(target=stop.wait, name="left over")
    thread.start()
    assert leaked(before, grace_ns=0) == ["thread 'left over'"]
    stop.set()
    thread.join()
    assert leaked(before) == []


def test_a_left_socket_is_named() -> None:
    before = held()
    with socket.socket() as left:
        left.bind(("127.0.0.1", 0))
        left.listen()
        (found,) = leaked(before, grace_ns=0)
        assert str(left.getsockname()[1]) in found
    assert leaked(before) == []


def test_a_left_process_is_named_even_as_a_zombie() -> None:
    before = held()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (found,) = leaked(before, grace_ns=0)
    assert found.startswith(f"process {child.pid}")
    child.kill()
    assert leaked(before, grace_ns=500_000_000)[0].startswith(f"process {child.pid}")
    child.communicate()
    assert leaked(before) == []


ROOT = Path(__file__).parent.parent
NEGLIGENT = """
import gc, threading, warnings
import pytest

def test_sound():
    assert True

def test_leaves_a_thread():
    threading.Thread(target=threading.Event().wait, daemon=True).start()

def test_warns():
    warnings.warn("of our own", DeprecationWarning)

def test_lets_a_thread_die():
    thread = threading.Thread(target=int, args=("x",))
    thread.start()
    thread.join()

def test_leaves_a_file_open():
    open(__file__)
    gc.collect()

@pytest.mark.xfail
def test_is_mended():
    assert True
"""


def run_pytest(folder: Path, text: str) -> str:
    path = folder / "test_negligent.py"
    path.write_text(text)
    options = ["-rA", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "tests.leaks", str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    return done.stdout


def test_negligent_tests_fail_and_sound_ones_pass(tmp_path: Path) -> None:
    report = run_pytest(tmp_path, NEGLIGENT)
    passed = set(re.findall(r"^PASSED \S+::(\w+)", report, re.MULTILINE))
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", report, re.MULTILINE))
    assert passed - failed == {"test_sound"}, report
    assert failed >= set(re.findall(r"def (test_\w+)", NEGLIGENT)) - {"test_sound"}, report


def test_a_misspelt_mark_fails(tmp_path: Path) -> None:
    assert "'lsow' not found" in run_pytest(tmp_path, "import pytest\n@pytest.mark.lsow\ndef test_it():\n    pass\n")
