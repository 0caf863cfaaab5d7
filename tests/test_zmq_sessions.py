"""The shipped configs of the open wires, shortened, run whole against the simulated animal."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rig.links.ports import free_port
from rig.messages import (
    ClockSample,
    Continuity,
    Entry,
    Fault,
    Response,
    SessionStop,
    TraceBlock,
    UnitList,
)
from rig.recording.journal import read_all

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.display, pytest.mark.timeout(400)]


def run_short(tmp_path: Path, name: str, changes: dict[str, Any]) -> list[Entry]:
    """Run a shipped config with some parts replaced, on free ports; return its journal."""
    settings = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    settings["display"] |= {"size_px": [400, 300], "width_cm": 30}
    settings["sources"][0]["port"] = free_port(2)
    settings["animal"]["neurons"] = 4
    settings["sources"][0].get("calcium", {})["baseline_window_s"] = 24  # F0 after 2 s
    for part, values in changes.items():
        if isinstance(values, dict):
            settings.setdefault(part, {}).update(values)
        else:
            settings[part] = values
    config = tmp_path / "short.yaml"
    config.write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, "-m", "rig.cli", "demo", "--config", str(config), "--sessions", str(tmp_path / "sessions")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = [p for p in (tmp_path / "sessions").iterdir() if (p / "session.journal").exists()]
    return read_all(folder / "session.journal")


def documents(log: list[Entry], kind: type) -> list[Any]:
    return [e.document for e in log if isinstance(e.document, kind)]


PRESENT = {"agent": "present", "images": ["natural"], "count": 6, "repeats": 3, "blanks": 1}


def test_a_session_over_the_spikes_wire(tmp_path: Path, private_screen: str) -> None:
    log = run_short(tmp_path, "spikes_wire", {"phases": [PRESENT]})
    responses = documents(log, Response)
    assert len(responses) == 21
    assert sum(r.usable and r.onset_source == "photodiode" for r in responses) >= 20
    assert sum(r.count.sum() for r in responses if r.usable) > 0
    assert {p.method for p in documents(log, ClockSample)} == {"round_trip"}
    assert {f.what for f in documents(log, Fault)} <= {"late proposal", "photodiode edge missing"}
    assert isinstance(log[-1].document, SessionStop)


def test_losses_on_the_wire_are_scored_missing_and_shown_again(tmp_path: Path, private_screen: str) -> None:
    faults = {"quirks": True, "switches": ["drop", "drop_tail", "stall"]}  # after 5 s, 12 s, 18 s
    log = run_short(tmp_path, "spikes_wire", {"phases": [{**PRESENT, "repeats": 6}], "animal": {"wire_faults": faults}})
    assert "messages lost" in {f.what for f in documents(log, Fault)}
    responses = documents(log, Response)
    missing = [r for r in responses if not r.usable]
    assert missing
    assert all(r.reason and np.isnan(r.count).all() for r in missing)
    assert len(responses) > 6 * 7
    pictures = {r.stimulus_id for r in responses} - {"blank"}
    assert len(pictures) == 6
    for name in pictures:  # shown again until each had its repeats
        assert sum(r.usable for r in responses if r.stimulus_id == name) >= 6, name


def test_a_session_over_the_traces_wire(tmp_path: Path, private_screen: str) -> None:
    quick = {
        "phases": [{**PRESENT, "count": 4, "repeats": 2}],
        "presentation": {"on_s": 0.3, "off_s": 0.5, "images_per_trial": 5, "inter_trial_s": 0.3},
        "responses": {"window_s": [0.05, 0.4]},
    }
    log = run_short(tmp_path, "zmq_calcium", quick)
    responses = documents(log, Response)
    good = [r for r in responses if r.usable]
    early = [r for r in responses if "no baseline F0 yet" in r.reason]
    assert len(good) + len(early) >= len(responses) - 1, [r.reason for r in responses]
    first_sample, rate_hz = documents(log, TraceBlock)[0].sample[0], documents(log, Continuity)[-1].sample_rate_hz
    early_s = [(r.onset_sample - first_sample) / rate_hz for r in early]
    assert all(onset_s < 2.5 for onset_s in early_s), early_s  # a twelfth of the window, and the baseline before onsets
    assert len(good) >= 9
    assert {(r.measure, r.onset_source) for r in good} == {("deconvolved", "photodiode")}
    assert all(np.isfinite(r.count).all() for r in good)
    assert sum(r.count.sum() for r in good) > 0
    (listed,) = documents(log, UnitList)
    assert listed.units == ("E01#0", "E02#0", "E03#0", "E04#0")
    frame = np.concatenate([b.frame for b in documents(log, TraceBlock)])
    assert (np.diff(frame) == 1).all()
    assert {f.what for f in documents(log, Fault)} <= {"late proposal", "photodiode edge missing"}
