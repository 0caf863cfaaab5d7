"""The bench of long sessions: its slopes on made samples, and a short run of the whole."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rig.bench.soak import Sample, row

ROOT = Path(__file__).parent.parent


def samples(seconds: float, mb_per_h: float, cpu: float = 0.25, jumps: bool = False) -> list[Sample]:
    rng = np.random.default_rng(1)
    out = []
    for t in np.arange(0.0, seconds, 10.0).tolist():
        loading = 40.0 * min(t / 200, 1.0)  # libraries and buffers, until 200 s
        spike = 60.0 if jumps and int(t / 10) % 12 == 0 else 0.0  # a file is being written
        out.append(Sample(t, 100 + loading + mb_per_h * t / 3600 + float(rng.normal(0, 0.05)) + spike, 180, cpu * t))
    return out


@pytest.mark.parametrize("mb_per_h", [0.0, 6.0, -3.0])
@pytest.mark.parametrize("jumps", [False, True])
def test_the_slope_is_that_of_the_settled_process(mb_per_h: float, jumps: bool) -> None:
    found = row("recorder", samples(1800, mb_per_h, jumps=jumps))
    assert found["mb_per_h"] == pytest.approx(mb_per_h, abs=0.5)
    assert found["from_s"] == 300
    assert found["cpu_share"] == pytest.approx(0.25, abs=0.001)
    assert found["mb_start"] == pytest.approx(160 if jumps else 100, abs=0.5)


def test_a_run_too_short_for_a_slope_says_so_and_a_leak_is_seen() -> None:
    assert row("view", samples(40, 0))["mb_per_h"] is None
    assert row("view", samples(1200, 120))["mb_per_h"] == pytest.approx(120, abs=1)
    assert row("view", samples(600, 0), starts=2)["cpu_share"] is None  # its CPU time began anew


@pytest.mark.slow
@pytest.mark.display
def test_a_short_soak_measures_every_process(private_screen: str, tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    command = [sys.executable, "-m", "rig.cli", "bench", "soak", "--minutes", "0.5", "--json", str(file)]
    done = subprocess.run(
        [*command, "--sessions", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(file.read_text())
    rows = {r["process"]: r for r in figures["rows"]}
    assert set(rows) >= {"animal", "supervisor", "recorder", "rig", "model", "source", "receiver", "outputs", "view"}
    assert all(r["mb_end"] > 5 and r["starts"] == 1 for r in rows.values())
    assert figures["presentations"] > 50
    assert figures["nwb_mb"] > 0, figures
