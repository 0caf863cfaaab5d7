"""The model: starts its own warm-up (`python -m models.warmup`), which makes real batches, and judges its figures.

The rig imports no model; the figures come as one line of JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from rig.config.session import Config
from rig.preflight.result import Result
from rig.supervision.processes import ONE_THREAD

LONGEST_S = 60.0
STEP_WARN_S = 0.1  # a work step may keep the model server from the log for so long


def warm_up(config: Config) -> dict[str, Any] | Result:
    """Run the model's warm-up and return its figures; the failure if there are none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-m", "models.warmup", str(path)],
                capture_output=True,
                text=True,
                timeout=LONGEST_S,
                env={**os.environ, **ONE_THREAD},
            )
        except subprocess.TimeoutExpired:
            cure = "make the generator or the population smaller, or give the model server a faster computer"
            return Result("model", "fail", f"not warm after {LONGEST_S:g} s", cure)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        return Result("model", "fail", last[0] if last else "it ended without a word", "mend the config as it says")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def judged(figures: dict[str, Any], config: Config) -> Result:
    """Judge the times of `models.warmup`: each phase's batches must be ready within the tail of the batch before."""
    said, slow = [], []
    rhythm = config.presentation
    for phase in figures["phases"]:
        # A batch without a tail is followed by the pause between trials at least.
        tail_s = max(phase["tail"] * (rhythm.on_s + rhythm.off_s), rhythm.inter_trial_s)
        line = (
            f"phase {phase['phase'] + 1} ({phase['agent']}): first batch {phase['first_s'] * 1e3:.0f} ms, then p50 "
            f"{phase['batch_p50_s'] * 1e3:.0f}, p99 {phase['batch_p99_s'] * 1e3:.0f} ms of {phase['batches']}; "
            f"step p50 {phase['step_p50_s'] * 1e3:.1f}, p99 {phase['step_p99_s'] * 1e3:.1f} ms"
        )
        said.append(line)
        if phase["batches"] and phase["batch_p99_s"] > tail_s:
            slow.append(f"phase {phase['phase'] + 1}: a batch takes longer than its tail of {tail_s:.2f} s lasts")
        if phase["step_p99_s"] > STEP_WARN_S:
            slow.append(f"phase {phase['phase'] + 1}: a work step takes {phase['step_p99_s']:.2f} s")
    said.append(f"agents built in {figures['start_s']:.1f} s")
    if slow:
        cure = "show more references or re-shows (the tail), or make the generator smaller; else fallbacks are shown"
        return Result("model", "warn", "; ".join([*slow, *said]), cure)
    return Result("model", "ok", "; ".join(said))
