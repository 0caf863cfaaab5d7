"""`stimloop bench windows`: spike counts of real sessions against the spikes that the simulated animal truly fired.

Two sessions through the real screen, with every quirk of the fake Open Ephys wire on, and acquisition restarting in
mid-session: numbering from 0, going on, and jumping back. With the photodiode each count
must equal the animal's count in the same interval of device samples. Without it the window is where the flip stamp
says; it is compared with the window that begins at the true edge, and every difference is listed with whether spikes
within the stated onset uncertainty of a window edge explain it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from rich.console import Console

from rig.animal.truth_log import Truth, read
from rig.clock import Clock
from rig.config.reading import parse
from rig.config.session import Config
from rig.demo import simulated_session
from rig.messages import Presented, Response
from rig.progress import expected_s, planned
from rig.recording.journal import read_all

_DEMO = Path(__file__).parent.parent.parent / "configs" / "demo.yaml"
RESTARTS = ("restart_reset", "back_jump", "restart_keep")
START_S = 8.0  # from the animal's first block to the first image, about
MISPLACED_S = 0.1  # a window this far from where its onset lies in true device time is in another run

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """A usable response beside the truth, in true device samples."""

    presentation: int
    units: tuple[str, ...]
    counted: I64  # (unit,)
    in_same_interval: I64 | None  # (unit,) true spikes between the samples that the response names; None: no such run
    in_true_window: I64 | None  # (unit,) true spikes in the window that begins at the true edge; None: no edge seen
    onset_error_samples: int | None
    uncertainty_samples: float

    @property
    def same(self) -> bool:
        """Whether the counts are the true ones in the same interval."""
        return self.in_same_interval is not None and bool(np.array_equal(self.counted, self.in_same_interval))

    @property
    def true(self) -> bool:
        """Whether the counts are those of the true window."""
        return self.in_true_window is not None and bool(np.array_equal(self.counted, self.in_true_window))

    def explained(self, unit: int) -> bool:
        """Whether a unit's difference from the true window is made by spikes within the onset uncertainty alone.

        It is if the count is the true one between the samples that the response names, and these lie no farther from
        the true window's than the uncertainty (and one sample, since both windows are whole samples).
        """
        if self.onset_error_samples is None or abs(self.onset_error_samples) > self.uncertainty_samples + 1:
            return False
        return self.in_same_interval is not None and int(self.counted[unit]) == int(self.in_same_interval[unit])


def windows_beside_truth(responses: list[Response], truth: Truth, window_s: tuple[float, float]) -> list[Window]:
    """Put every usable response beside the truth; `window_s` is that of the config, s from the onset."""
    return [_beside(r, truth, window_s) for r in responses if r.usable]


def _beside(response: Response, truth: Truth, window_s: tuple[float, float]) -> Window:
    start, end, onset = response.window_start_sample, response.window_end_sample, response.onset_sample
    host_ns, uncertainty_ns = response.onset_host_ns, response.onset_uncertainty_ns
    if start is None or end is None or onset is None or host_ns is None or uncertainty_ns is None:
        raise ValueError(f"presentation {response.presentation} is usable and names no window")
    place = np.array([truth.units.index(u) for u in response.units])
    rate = truth.device.rate_hz
    about = truth.device.true_sample(host_ns)  # tells the run: within one, the wire's samples are off by one number
    runs = np.flatnonzero(truth.run_first_sample <= about)
    offset = int(truth.run_offset[runs[-1]]) if len(runs) else 0
    placed = abs(onset + offset - about) <= MISPLACED_S * rate  # else its samples are of no run that the animal knows
    rising = truth.edge_sample[truth.edge_state == 1]
    near_ns = truth.onset_ns(host_ns) if placed else None
    true_onset = None if near_ns is None else int(rising[truth.edge_host_ns[truth.edge_state == 1] == near_ns][0])
    true_counts = None
    if true_onset is not None:
        first, last = (true_onset + round(at_s * rate) for at_s in window_s)
        true_counts = truth.counts(first, last)[place]
    return Window(
        presentation=response.presentation,
        units=response.units,
        counted=np.nan_to_num(response.count, nan=-1).astype(np.int64),
        in_same_interval=truth.counts(start + offset, end + offset)[place] if placed else None,
        in_true_window=true_counts,
        onset_error_samples=None if true_onset is None else onset + offset - true_onset,
        uncertainty_samples=uncertainty_ns * 1e-9 * rate,
    )


def row(rows: list[Window], presentations: int, photodiode: bool, rate_hz: float) -> dict[str, Any]:
    """Return the figures of one session: `equal` in the same interval with, in the true window without photodiode."""
    lost = set[int]()
    if not photodiode:
        lost |= {d["presentation"] for w in rows for d in differences(w, rate_hz) if not d["explained"]}
    lost |= {w.presentation for w in rows if not (w.same if photodiode else w.in_true_window is not None)}
    equal = sum(w.same if photodiode else w.true for w in rows)
    errors = [abs(w.onset_error_samples) for w in rows if w.onset_error_samples is not None]
    within = sum(abs(w.onset_error_samples or 0) <= w.uncertainty_samples + 1 for w in rows)

    def ms(samples: list[float], q: float) -> float:
        return round(float(np.percentile(samples, q)) / rate_hz * 1e3, 4) if samples else float("nan")

    uncertainties = [w.uncertainty_samples for w in rows]
    return {
        "photodiode": photodiode,
        "presentations": presentations,
        "usable": len(rows),
        "spikes": int(sum(w.counted.sum() for w in rows)),
        "equal": equal,
        "equal_fraction": equal / len(rows) if rows else float("nan"),
        "explained": len(rows) - equal - len(lost),
        "unexplained": len(lost),
        "equal_in_same_interval": sum(w.same for w in rows),
        "uncertainty_ms_p50": ms(uncertainties, 50),
        "uncertainty_ms_p99": ms(uncertainties, 99),
        "onset_error_ms_p50": ms([float(e) for e in errors], 50),
        "onset_error_ms_p99": ms([float(e) for e in errors], 99),
        "onset_within_uncertainty": within,
    }


def differences(window: Window, rate_hz: float) -> list[dict[str, Any]]:
    """Return each unit whose count is not that of the true window."""
    if window.in_true_window is None:
        return []
    return [
        {
            "presentation": window.presentation,
            "unit": name,
            "counted": int(window.counted[k]),
            "true": int(window.in_true_window[k]),
            "onset_error_ms": round((window.onset_error_samples or 0) / rate_hz * 1e3, 4),
            "uncertainty_ms": round(window.uncertainty_samples / rate_hz * 1e3, 4),
            "explained": window.explained(k),
        }
        for k, name in enumerate(window.units)
        if window.counted[k] != window.in_true_window[k]
    ]


def bench_config(minutes: float, photodiode: bool, port: int) -> tuple[Config, str]:
    """Return the demo's config with a fixed set of images for `minutes`, all quirks on, with or without photodiode."""
    raw: dict[str, Any] = yaml.safe_load(_DEMO.read_text(encoding="utf-8"))
    raw["name"] = "bench-windows" + ("" if photodiode else "-no-photodiode")
    raw["sources"][0] |= {"port": port, "photodiode_line": 0 if photodiode else None}
    raw["responses"]["units"] = [f"E{k:02d}#0" for k in range(1, raw["animal"]["neurons"] + 1)]
    phase = {"agent": "present", "images": ["natural"], "count": 20, "repeats": 1, "blanks": 2}
    raw["phases"] = [phase]
    seconds = START_S + 60 * minutes * np.array([0.5, 0.7, 0.9])
    restarts = [f"{n}@{at_s:.1f}" for n, at_s in zip(RESTARTS, seconds, strict=True)]
    raw["animal"]["wire_faults"] = {"quirks": True, "switches": restarts if minutes >= 0.5 else restarts[:1]}
    one = parse(yaml.safe_dump(raw))
    phase["repeats"] = max(1, math.ceil(minutes * 60 / expected_s(one, planned(one))))
    text = yaml.safe_dump(raw)
    return parse(text), text


def session(
    minutes: float, photodiode: bool, sessions: Path, clock: Clock, console: Console, port: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run one session; return its row of figures, and every difference from the true windows. Raises SessionFailed."""
    config, text = bench_config(minutes, photodiode, port)
    folder, _ = simulated_session(config, text, sessions, clock, console)
    documents = [e.document for e in read_all(folder / "session.journal", frozenset({"presented", "response"}))]
    truth = read(folder.parent / f"{folder.name}-truth")
    responses = [d for d in documents if isinstance(d, Response)]
    beside = windows_beside_truth(responses, truth, config.responses.window_s)
    shown, rate_hz = sum(isinstance(d, Presented) for d in documents), truth.device.rate_hz
    figures = row(beside, shown, photodiode, rate_hz) | {"runs": len(truth.run_first_sample)}
    return figures, [d for w in beside for d in differences(w, rate_hz)]


def windows(minutes: float, sessions: Path, clock: Clock, console: Console, port: int = 5556) -> dict[str, Any]:
    """Run a session of `minutes` with the photodiode and one without; return a row of figures for each.

    `differences` are those without the photodiode. Raises SessionFailed.
    """
    lit, _ = session(minutes, True, sessions, clock, console, port)
    dark, different = session(minutes, False, sessions, clock, console, port)
    return {"rows": [lit, dark], "differences": different}
