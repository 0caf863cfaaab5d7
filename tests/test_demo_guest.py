"""A demo whose guest leaves early: the session says so, and does not call its own goals missed."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rig.display.guest_rig import SAID_BYE
from rig.links.ports import free_port
from rig.messages import Presented, StopRequested
from rig.recording.journal import read_all
from tests.test_end_to_end import STIMLOOP, children_of

ROOT = Path(__file__).parent.parent
GUEST = """
import sys, time
sys.path.insert(0, sys.argv[2])
from guest_client import Stimloop

loop = Stimloop(sys.argv[1], "a guest with little time")
for trial, images in loop.trials():
    for presentation, pixels, _rect in images:
        onset = time.perf_counter_ns()
        time.sleep(0.1)
        offset = time.perf_counter_ns()
        time.sleep(0.1)
        loop.shown(presentation, pixels, onset, offset)
    break
loop.ask(say="bye", reason="the animal is tired")
"""


@pytest.mark.display
@pytest.mark.timeout(400)
def test_a_guest_that_says_bye_ends_the_session_in_order(tmp_path: Path, private_screen: str) -> None:
    raw = yaml.safe_load((ROOT / "configs" / "guest.yaml").read_text())
    raw["guest"]["port"] = free_port(2)
    raw["sources"][0]["port"] = free_port(2)
    raw["display"].update(size_px=[400, 300], width_cm=20)
    raw["animal"]["neurons"] = 4
    assert raw["phases"][0]["agent"] == "evolve", "its goal is an evolution, which six presentations are not"
    config = tmp_path / "guest.yaml"
    config.write_text(yaml.safe_dump(raw))
    address = f"tcp://127.0.0.1:{raw['guest']['port']}"
    guest = subprocess.Popen([sys.executable, "-c", GUEST, address, str(ROOT / "docs" / "examples")])
    try:
        command = [*STIMLOOP, "demo", "--config", str(config), "--sessions", str(tmp_path / "sessions")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        output = done.stdout + done.stderr
        assert guest.wait(60) == 0, output
    finally:
        if guest.poll() is None:
            guest.kill()
            guest.wait()
    assert done.returncode == 0, output
    assert f"{SAID_BYE}: the animal is tired; the goals of the config are not judged" in output
    assert "did not reach its goals" not in output
    (folder,) = [p for p in (tmp_path / "sessions").iterdir() if (p / "session.journal").exists()]
    documents = [e.document for e in read_all(folder / "session.journal")]
    assert len([d for d in documents if isinstance(d, Presented)]) == 6
    assert [d.reason for d in documents if isinstance(d, StopRequested)] == [f"{SAID_BYE}: the animal is tired"]
    assert children_of(tmp_path) == []
