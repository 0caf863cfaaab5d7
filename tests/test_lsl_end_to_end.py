"""Shipped LSL configs as a user runs them: real processes, real streams, a real window, the simulated animal."""

import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rig.animal.lsl_counts import BIN_SAMPLES
from rig.animal.truth_log import Truth, read
from rig.messages import (
    BehaviourBlock,
    ClockSample,
    Fault,
    Presented,
    Response,
    SessionStop,
    TraceBlock,
    UnitList,
)
from rig.recording.journal import read_all
from tests.test_end_to_end import children_of

ROOT = Path(__file__).parent.parent
MILD = ("late proposal", "photodiode edge missing")
pytestmark = [pytest.mark.display, pytest.mark.timeout(400)]


def session(raw: dict[str, Any], base: Path) -> tuple[list[object], Truth, str]:
    """Run a config with the animal, as `stimloop demo` does; return documents, the animal's truth and the output."""
    raw["display"]["size_px"], raw["display"]["width_cm"] = [400, 300], 30
    config = base / "short.yaml"
    config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    command = [sys.executable, "-m", "rig.cli", "demo", "--config", str(config), "--sessions", str(base / "sessions")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    output = done.stdout + done.stderr
    (folder,) = [p for p in (base / "sessions").iterdir() if (p / "session.journal").exists()]
    documents = [e.document for e in read_all(folder / "session.journal")]
    assert children_of(base) == []
    return documents, read(folder.with_name(f"{folder.name}-truth")), output


def shipped(name: str) -> Any:
    return yaml.safe_load((ROOT / "configs" / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def calcium(tmp_path_factory: pytest.TempPathFactory, private_screen: str) -> tuple[list[object], Truth, str]:
    """Run a short session of configs/lsl_calcium.yaml; return its documents, the animal's truth and the output."""
    base = tmp_path_factory.mktemp("calcium")
    raw = shipped("lsl_calcium.yaml")
    tag = uuid.uuid4().hex[:6]  # LSL streams are visible to everybody on the network
    scope, behaviour = raw["sources"]
    for key in ("stream", "neuropil", "edges"):
        scope[key] += f"-{tag}"
    behaviour["stream"] = raw["animal"]["behaviour"]["stream"] = f"behaviour-{tag}"
    raw["animal"]["behaviour"] |= {"breaks_per_min": 30, "missing_per_min": 30}
    scope["calcium"]["baseline_window_s"] = 36  # F0 after 3 s
    raw["phases"][0] |= {"count": 4, "repeats": 2, "blanks": 1}
    raw["presentation"] = {"on_s": 0.3, "off_s": 0.5, "images_per_trial": 5, "inter_trial_s": 0.3}
    raw["responses"] |= {"window_s": [0.05, 0.4], "baseline": {"kind": "block", "window_s": [-0.2, 0.05]}}
    return session(raw, base)


def of(documents: list[object], kind: type) -> list:  # type: ignore[type-arg]
    return [d for d in documents if isinstance(d, kind)]


def test_the_session_over_lsl_calcium_is_complete(calcium: tuple[list[object], Truth, str]) -> None:
    documents, _, output = calcium
    assert isinstance(documents[-1], SessionStop), output
    responses = of(documents, Response)
    shown = [p.presentation for p in of(documents, Presented)]
    assert [r.presentation for r in responses] == shown == list(range(len(shown))), output
    assert len(shown) >= 10
    assert {r.measure for r in responses if r.usable} == {"deconvolved"}
    # The first images find no baseline of the fluorescence yet; they are shown again.
    assert sum(r.usable for r in responses) >= 8, [r.reason for r in responses]
    assert all(r.onset_source == "photodiode" for r in responses if r.usable)
    serious = [f"{f.what}: {f.detail}" for f in of(documents, Fault) if f.what != "late proposal"]
    assert serious == []
    (units,) = of(documents, UnitList)
    assert units.measure == "fluorescence"
    assert all(b.neuropil is not None for b in of(documents, TraceBlock))


def test_its_onsets_lie_where_the_animal_saw_them(calcium: tuple[list[object], Truth, str]) -> None:
    documents, truth, _ = calcium
    shown = {p.presentation: p for p in of(documents, Presented)}
    usable = [r for r in of(documents, Response) if r.usable]
    assert usable
    for r in usable:
        true_ns = truth.onset_ns(shown[r.presentation].onset_flip_host_ns)
        assert true_ns is not None
        assert r.onset_sample is not None
        assert r.onset_host_ns is not None
        # Samples are us of the animal's LSL clock, which is this computer's; an edge is digitised at 30 kHz.
        assert abs(r.onset_sample * 1000 - true_ns) < 40_000
        assert abs(r.onset_host_ns - true_ns) <= (r.onset_host_uncertainty_ns or 0) + 40_000
    assert {c.method for c in of(documents, ClockSample)} == {"round_trip"}


def test_behaviour_comes_with_it_and_agrees_with_the_truth(calcium: tuple[list[object], Truth, str]) -> None:
    documents, truth, _ = calcium
    blocks = of(documents, BehaviourBlock)
    sample = np.concatenate([b.sample for b in blocks])
    values = np.concatenate([b.values for b in blocks])
    assert blocks[0].channels == ("gaze_x_deg", "gaze_y_deg", "pupil_mm", "running_cm_s")

    def inside(kind: str) -> np.ndarray:  # type: ignore[type-arg]
        spans = [(n["start_ns"] / 1000, n["end_ns"] / 1000) for n in truth.notes if n["kind"] == kind]
        assert spans
        return np.any([(sample >= a + 1) & (sample < b - 1) for a, b in spans], axis=0)

    blind, away = inside("gaze_missing"), inside("gaze_break")
    assert blind.any()
    assert np.isnan(values[blind, 0]).all()
    assert (np.hypot(values[away & ~blind, 0], values[away & ~blind, 1]) > 3).all()


# --- spikes and counts ---


def true_counts(truth: Truth, response: Response, counts: bool) -> list[int]:
    """Count the animal's own spikes in a response's window; for binned counts those of the bins that begin in it."""
    start, end = response.window_start_sample, response.window_end_sample
    assert start is not None
    assert end is not None
    if counts:
        first = truth.device.start_sample
        near = range(*(int((truth.device.true_sample(us * 1000.0) - first) // BIN_SAMPLES) + k for us, k in
                       ((start, -2), (end, 3))))  # fmt: skip
        bins = [first + k * BIN_SAMPLES for k in near]
        inside = [b for b in bins if start <= round(truth.device.host_ns(b) / 1000) < end]
        start, end = inside[0], inside[-1] + BIN_SAMPLES
    return truth.counts(start, end)[: len(response.units)].tolist()


@pytest.mark.parametrize("counts", [False, True], ids=["spikes", "counts"])
def test_responses_over_lsl_are_what_the_animal_fired(tmp_path: Path, private_screen: str, counts: bool) -> None:
    raw, tag = shipped("lsl.yaml"), uuid.uuid4().hex[:6]
    (source,) = raw["sources"]
    source["stream"], source["edges"] = f"{source['stream']}-{tag}", f"{source['edges']}-{tag}"
    if counts:
        source["type"], raw["animal"]["wire"] = "lsl_counts", "lsl_counts"
    raw["phases"][0] |= {"generations": 1, "references": 2, "reshows": 0, "blanks": 1}
    documents, truth, output = session(raw, tmp_path)
    assert isinstance(documents[-1], SessionStop), output
    serious = [f"{f.what}: {f.detail}" for f in of(documents, Fault) if f.what not in MILD]
    assert serious == [], output
    usable = [r for r in of(documents, Response) if r.usable and r.onset_source == "photodiode"]
    assert len(usable) > 0.9 * len(of(documents, Presented)) > 30
    assert {r.measure for r in usable} == {"counts" if counts else "spikes"}
    # The first units of the animal are the ones that the config scores.
    wrong = [r.presentation for r in usable if r.count.tolist() != true_counts(truth, r, counts)]
    assert wrong == []
