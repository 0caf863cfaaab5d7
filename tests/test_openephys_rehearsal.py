"""Whole sessions with the animal over the Open Ephys wire when things go wrong, and with units of our own threshold."""

import subprocess
import sys
from pathlib import Path

import pytest

from rig.links.ports import free_port
from rig.messages import (
    Continuity,
    Entry,
    Fault,
    Presented,
    Response,
)
from rig.recording.journal import read_all

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.display, pytest.mark.timeout(400)]

CONFIG = """
name: rehearsal
display: {{size_px: [400, 300], width_cm: 30}}
presentation: {{on_s: 0.1, off_s: 0.1, images_per_trial: 12, inter_trial_s: 0.25}}
sources: [{{type: openephys, name: probe, port: {port}, http_port: null, {more}}}]
responses: {{units: [{units}]}}
phases: [{{agent: present, images: [natural, gratings], count: {count}, repeats: 2, blanks: 2}}]
animal: {{neurons: 4, wire_faults: {{{faults}}}}}
"""


def run(tmp_path: Path, text: str) -> list[Entry]:
    config = tmp_path / "rehearsal.yaml"
    config.write_text(text)
    command = [sys.executable, "-m", "rig.cli", "demo", "--config", str(config)]
    command += ["--sessions", str(tmp_path / "sessions")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=140)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = [p for p in (tmp_path / "sessions").iterdir() if (p / "session.journal").exists()]
    return read_all(folder / "session.journal")


def test_quirks_and_faults_leave_no_silence(tmp_path: Path, private_screen: str) -> None:
    faults = "quirks: true, switches: [drop@5.5, freeze@7, restart_reset@10]"
    log = run(tmp_path, CONFIG.format(port=free_port(2), more="", units='"E01#0", "E02#0"', count=16, faults=faults))
    told = {e.document.what for e in log if isinstance(e.document, Fault)}
    assert {"non-ASCII name", "messages lost", "samples missing", "acquisition restarted"} <= told
    presented = [e.document for e in log if isinstance(e.document, Presented)]
    responses = [e.document for e in log if isinstance(e.document, Response)]
    assert len(responses) == len(presented) > 2 * 16 + 2 * 2  # what was missing is shown again
    missing = [r for r in responses if not r.usable]
    assert missing
    assert all(r.reason for r in missing)
    assert sum(r.usable for r in responses) > 25
    assert len({e.document.run for e in log if isinstance(e.document, Continuity)}) >= 2


def test_multi_unit_activity_of_our_own_threshold(tmp_path: Path, private_screen: str) -> None:
    more = "multiunit: {channels: [0, 1], threshold_sd: -5}"
    log = run(tmp_path, CONFIG.format(port=free_port(2), more=more, units='"MUA0", "MUA1"', count=8, faults=""))
    responses = [e.document for e in log if isinstance(e.document, Response)]
    assert len(responses) == 20
    usable = [r for r in responses if r.usable]
    assert len(usable) >= 18
    assert sum(r.count.sum() for r in usable) > 0
