"""Rewards in whole sessions: the shipped config end to end, and the kill of each process in the middle of a pulse."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from rig.animal.valve import make_register
from rig.clock import HostClock
from rig.links.ports import free_port
from rig.messages import Document, Fault, OutputDone, OutputRequest, Presented, ProcessStarted, TrialIntent
from rig.recording.journal import read_all
from tests.observer import LOW_WITHIN_MS, observed

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.display, pytest.mark.timeout(400)]


def short(folder: Path, **changes: Any) -> Path:
    """Write configs/reward.yaml with a few images only, and `changes`; return its path."""
    raw = yaml.safe_load((ROOT / "configs" / "reward.yaml").read_text())
    raw["sources"][0] |= {"port": free_port(2), "http_port": None}
    raw["display"] = {"size_px": [400, 300], "width_cm": 30, "refresh_hz": 60}
    raw["phases"][0] |= {"count": 4, "repeats": 3, "blanks": 1}
    raw |= changes
    path = folder / "short.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def demo(config: Path, sessions: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "rig.cli", "demo", "--config", str(config), "--sessions", str(sessions)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def log_of(sessions: Path) -> list[Document]:
    (folder,) = [p for p in sessions.iterdir() if (p / "session.journal").exists()]
    return [e.document for e in read_all(folder / "session.journal")]


Rewarded = tuple[list[Document], str, list[tuple[int, int]], str]


@pytest.fixture(scope="module")
def rewarded(private_screen: str, tmp_path_factory: pytest.TempPathFactory) -> Rewarded:
    """Run configs/reward.yaml, with a line that says image onsets besides.

    Returns the documents, what the session printed, the changes of that line as an observer saw them (level, host ns),
    and the log of the outputs.
    """
    base = tmp_path_factory.mktemp("rewarded")
    register = make_register(base / "port")
    shipped = yaml.safe_load((ROOT / "configs" / "reward.yaml").read_text())["outputs"]
    line = {"type": "parallel", "name": "ttl", "port": str(register), "line": 6, "onset": True}
    config = short(base, outputs=[*shipped, line])
    with observed(register) as observer, demo(config, base / "sessions") as process:
        output, _ = process.communicate(timeout=100)
    (said,) = (base / "sessions").glob("*/logs/outputs.log")
    return log_of(base / "sessions"), output, observer.changes, said.read_text()


def test_the_shipped_config_rewards_each_trial(rewarded: Rewarded) -> None:
    documents, output, _, said = rewarded
    asked = [d for d in documents if isinstance(d, OutputRequest)]
    done = [d for d in documents if isinstance(d, OutputDone)]
    trials = {d.trial for d in documents if isinstance(d, TrialIntent)}
    assert len(trials) >= 3, output
    assert {d.trial for d in asked} == trials
    assert [d.request for d in done] == [d.request for d in asked]
    assert {(d.done, d.timed_by, d.what) for d in done} == {(True, "none", "reward")}
    for k, d in enumerate(done, 1):
        assert d.volume_ul == pytest.approx(4.0)
        assert d.session_volume_ul == pytest.approx(4.0 * k)
    offsets = {d.trial: d.offset_flip_host_ns for d in documents if isinstance(d, Presented)}
    given = {r.trial: d.started_host_ns for r, d in zip(asked, done, strict=True)}
    for trial, started in given.items():
        assert trial is not None
        assert started is not None
        assert 0 < started - offsets[trial] < 500_000_000
    assert "outputs" in {d.name for d in documents if isinstance(d, ProcessStarted)}
    assert said.count("valve: reward pulse of 0.1 s trial-") == len(done)


def test_onset_lines_follow_the_images(rewarded: Rewarded) -> None:
    documents, output, changes, _ = rewarded
    shown = [d for d in documents if isinstance(d, Presented)]
    assert [d.detail for d in documents if isinstance(d, Fault) and d.what == "onset line"] == []
    assert len(shown) >= 15, output
    assert [level for level, _ in changes] == [1, 0] * len(shown)
    flips = [t for d in shown for t in (d.onset_flip_host_ns, d.offset_flip_host_ns)]
    late_ms = [(seen - flip) / 1e6 for (_, seen), flip in zip(changes, flips, strict=True)]
    assert min(late_ms) > 0
    assert sorted(late_ms)[len(late_ms) // 2] < 5


# --- kills ------------------------------------------------------------------------------------------------------------


def pids(parent: psutil.Process) -> dict[str, int]:
    """Return the session's processes by name: supervisor, animal, rig, model, outputs, pulser, ..."""
    found = {"supervisor": parent.pid}
    for process in parent.children(recursive=True):
        words = process.cmdline()
        if "-m" in words:
            module = words[words.index("-m") + 1]
            names = {"rig.display.session": "rig", "models": "model", "rig.cli": "animal", "rig.view.h5": "view"}
            name = names.get(module, module.split(".")[-1])
            found[name] = process.pid
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
@pytest.mark.parametrize(
    "victim",
    [
        "supervisor", "rig", "recorder", "model", "view", "sources", "openephys_receiver", "outputs", "pulser",
        "guardian",
    ],
)  # fmt: skip
def test_the_line_falls_when_any_process_of_a_session_does(
    victim: str, number: signal.Signals, private_screen: str, tmp_path: Path
) -> None:
    register = make_register(tmp_path / "port")
    reward = {"output": "valve", "pulse_s": 2.0, "max_pulse_s": 2.0, "max_per_minute_s": 60.0}
    config = short(
        tmp_path,
        outputs=[{"type": "parallel", "name": "valve", "port": str(register), "line": 2}],
        reward={**reward, "ul_per_s": 40.0, "max_session_ml": 20.0},
    )
    clock = HostClock(spin_ns=0)
    with observed(register) as observer:
        process = demo(config, tmp_path / "sessions")
        everybody = [psutil.Process(process.pid)]
        try:
            observer.wait(1, 60)
            found = pids(everybody[0])
            everybody += everybody[0].children(recursive=True)
            os.kill(found[victim], number)
            killed_ns = clock.now_ns()
            low_ns = observer.wait(0, 5)
        finally:
            for one in everybody:
                if one.is_running():
                    one.kill()
            process.communicate()
    after_ms = (low_ns - killed_ns) / 1e6
    assert after_ms < LOW_WITHIN_MS
    assert register.read_bytes()[:1] == b"\0"
