"""The shipped config of the Event Broadcaster, shortened, run whole against the simulated animal."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rig.links.ports import free_port
from rig.messages import (
    Continuity,
    Entry,
    Fault,
    Marker,
    Response,
    SessionStop,
)
from rig.recording.journal import read_all

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.display, pytest.mark.timeout(400)]


def documents(log: list[Entry], kind: type) -> list[Any]:
    return [e.document for e in log if isinstance(e.document, kind)]


def test_a_session_over_the_event_broadcaster(tmp_path: Path, private_screen: str) -> None:
    settings = yaml.safe_load((ROOT / "configs" / "openephys_events.yaml").read_text(encoding="utf-8"))
    settings["display"] |= {"size_px": [400, 300], "width_cm": 30}
    settings["sources"][0] |= {"port": free_port(2), "http_port": free_port(2)}
    settings["animal"]["neurons"] = 4
    settings["phases"] = [{"agent": "present", "images": ["natural"], "count": 6, "repeats": 3, "blanks": 1}]
    config = tmp_path / "short.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "rig.cli", "demo", "--config", str(config), "--sessions", str(tmp_path / "sessions")],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = [p for p in (tmp_path / "sessions").iterdir() if (p / "session.journal").exists()]
    log = read_all(folder / "session.journal")
    responses = documents(log, Response)
    assert len(responses) == 21
    usable = [r for r in responses if r.usable]
    assert sum(r.onset_source == "photodiode" for r in usable) >= 19, [r.reason for r in responses]
    assert sum(r.count.sum() for r in usable) > 0
    whats = {f.what for f in documents(log, Fault)}
    assert "losses cannot be counted" in whats
    assert whats <= {"losses cannot be counted", "late proposal", "photodiode edge missing", "late event"}
    assert "ACQUIRE" in documents(log, Marker)[0].text, "the simulated GUI answers over HTTP"
    assert {c.state for c in documents(log, Continuity)} <= {"connecting", "online", "streaming"}
    assert isinstance(log[-1].document, SessionStop)
