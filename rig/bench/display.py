"""`stimloop bench display` and `onset`: figures of this machine, from real sessions with the simulated animal."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from rig.clock import Clock
from rig.compare import onset_figures
from rig.config.reading import parse
from rig.config.session import Config
from rig.demo import simulated_session
from rig.messages import (
    Presented,
)
from rig.progress import expected_s, planned

_HERE = Path(__file__).parent.parent.parent / "configs"


def lengthened_demo(name: str, minutes: float, burn: bool) -> tuple[Config, str]:
    """Return the demo's config, lengthened to `minutes`, with the model server kept busy or not."""
    raw: dict[str, Any] = yaml.safe_load((_HERE / "demo.yaml").read_text(encoding="utf-8"))
    raw["name"] = name
    raw.setdefault("processes", {})["burn"] = burn
    raw["phases"][0]["generations"] = 1
    one = parse(yaml.safe_dump(raw))
    each_s = expected_s(one, planned(one))
    raw["phases"][0]["generations"] = max(1, math.ceil(minutes * 60 / each_s))
    text = yaml.safe_dump(raw)
    return parse(text), text


def _lateness_ms(shown: list[Presented], refresh_hz: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return how late each flip of each presentation was against its due time, ms."""
    period = 1e9 / refresh_hz
    late = [p.flips_host_ns - p.due_host_ns - np.round(np.arange(len(p.flips_host_ns)) * period) for p in shown]
    return np.concatenate(late) / 1e6 if late else np.zeros(0)


def display(minutes: float, sessions: Path, clock: Clock, console: Console) -> dict[str, Any]:
    """Run twice, with the model server fine-tuning a core all the time and idle; return late flips and lateness."""
    figures: dict[str, Any] = {}
    for key, burn in (("late_flips", True), ("late_flips_idle", False)):
        config, text = lengthened_demo("bench-display" + ("" if burn else "-idle"), minutes, burn)
        folder, compared = simulated_session(config, text, sessions, clock, console)
        figures[key] = sum(p.late_flips for p in compared.shown)
        late, idle = _lateness_ms(compared.shown, config.display.refresh_hz), "" if burn else "_idle"
        figures[f"flips{idle}"] = len(late)
        for name, value in (("p50", np.percentile(late, 50)), ("p99", np.percentile(late, 99)), ("max", late.max())):
            figures[f"lateness{idle}_ms_{name}"] = round(float(value), 3)
        if burn:
            figures |= json.loads((folder / "core_steps.json").read_text(encoding="utf-8"))
    return figures


def onset(minutes: float, sessions: Path, clock: Clock, console: Console) -> dict[str, Any]:
    """Run one session; return the errors of its onset times against the animal's truth."""
    config, text = lengthened_demo("bench-onset", minutes, False)
    _, compared = simulated_session(config, text, sessions, clock, console)
    return dict(onset_figures(compared))
