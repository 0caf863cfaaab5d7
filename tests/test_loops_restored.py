"""Restore fuzz of inception, control and revisit: killed again and again, whatever is lost, they decide the same."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image as Picture

from models.agents import builder
from models.in_steps import at_once
from models.inception.features import COUNT
from models.inception.learner import Learner
from models.server import state_hash
from models.truth import V1, draw_cells
from rig.config.inception import LoopPhase
from rig.config.places import angles_of, rect_of, usual
from rig.config.reading import parse
from rig.config.session import Config
from stimuli.tiles import built_in_banks
from tests.inception_units import SHORT
from tests.loop_log import Faults, Log, restored_all_along
from tests.test_control import OWN
from tests.test_inception_networks import TINY

UNITS = [f"E{k:02d}#0" for k in range(1, 6)]
SMALL: dict[str, Any] = SHORT | {
    "train": 40, "test": 10, "test_repeats": 4, "iterations": 20, "least_score": -1, "least_oracle": -1,
    "controls": ["linear", "natural_masked", "natural"], "contrast_tuning": [0.05],
}  # fmt: skip
BANK = SMALL | {"controls": ["natural"], "contrast_tuning": []}
AVERAGED = TINY["training"] | {"averaging": 0.9, "decays": 1, "patience": 1}
NETWORK = BANK | {
    "encoder": TINY | {"steps": 6, "side_px": 24, "validation_of_each": True, "training": AVERAGED},
}  # fmt: skip
CONTROL: dict[str, Any] = {k: v for k, v in SMALL.items() if k in LoopPhase.model_fields} | OWN | {
    "most_sites": 2, "made": 1, "starts": 2,
}  # fmt: skip
ONE_HOT = CONTROL | {"goals": ["one_hot"], "targets": {}}
HARD = Faults(lost=0.15, lost_batches=0.1, no_value=0.2, no_values=0.03, repeated=0.1, disorder=6)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the 3,720 stimuli of the tiles once and not for each of hundreds of restored agents."""
    stimuli = builder._bank_stimuli("tiles", built_in_banks(128.0, 0.25)["tiles"].names)
    real = builder._bank_stimuli
    monkeypatch.setattr(builder, "_bank_stimuli", lambda bank, names: stimuli if bank == "tiles" else real(bank, names))


def config(*phases: dict[str, Any], seed: int = 0, again: int = 1) -> Config:
    raw = {
        "seed": seed, "display": {"size_px": [200, 150], "width_cm": 40, "distance_cm": 30},
        "stimulus": {"size_deg": 12}, "presentation": {"repeats_of_unusable": again},
        "sources": [{"type": "openephys"}], "responses": {"units": UNITS, "baseline": {"kind": "none"}},
        "phases": [*phases],
    }  # fmt: skip
    return parse(yaml.safe_dump(raw))


def revisit(**changes: Any) -> dict[str, Any]:
    """Return a revisit phase with what it takes of another day, on which the same cells answered without noise."""
    rng, tiles, of = np.random.default_rng(3), built_in_banks(128.0, 0.25)["tiles"], config(BANK)
    angles = angles_of(of.display, rect_of(of.display, usual(of.stimulus)))
    cells = V1(draw_cells(len(UNITS), *angles, np.random.default_rng(7)), *angles)
    names = tiles.names[:2400:100]
    shared = [{"id": f"tiles-{n}", "bank": "tiles", "name": n, "frame_sha256": "0" * 64} for n in names]
    made = []
    for unit in UNITS[:3]:
        for kind in ("mei", "natural"):
            out = io.BytesIO()
            Picture.fromarray(rng.integers(90, 160, (32, 32, 3)).astype(np.uint8)).save(out, "PNG")
            png = base64.b64encode(out.getvalue()).decode()
            made.append({"id": f"p0-{unit}-{kind}", "unit": unit, "kind": kind, "of": [], "mean_hz": 20.0,
                         "error_hz": 1.0, "presentations": 6, "frame_png_base64": png})  # fmt: skip
    rates = np.stack([cells.rate_hz(tiles.image(name, *angles[0].shape).astype(np.float32) / 255) for name in names])
    means = base64.b64encode(rates.astype("<f8").tobytes()).decode()
    taken = {"session": "before", "phase": 0, "place": None, "units": UNITS, "shared": shared, "images": made,
             "means_base64": means}  # fmt: skip
    return {"agent": "revisit", "session": "before", "units": {u: u for u in UNITS}, "shared": 24, "shared_repeats": 3,
            "repeats": 6, "taken": taken} | changes  # fmt: skip


def checked(of: Config, faults: Faults, folder: Path, share: float, seed: int = 1) -> Log:
    log = Log(of, faults, seed)
    different, compared = restored_all_along(log, folder, share, seed)
    assert different == []
    assert compared == len(log.documents) > 10
    assert log.faults_named == []
    return log


def test_inception_is_killed_again_and_again_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    log = checked(config(BANK), HARD, tmp_path, 0.2)
    assert "images of 2 units were shown back" in log.reasons[0] or "still have no usable response" in log.reasons[0]


def test_revisit_is_killed_before_every_third_entry(tmp_path: Path) -> None:
    # Enough repeats that the cells are known by their noisy responses, and their images are shown.
    faults = Faults(lost=0.1, no_value=0.1, repeated=0.1, disorder=6)
    log = checked(config(revisit(chance=0.2, shared_repeats=12)), faults, tmp_path, 0.3)
    assert "verified units were shown" in log.reasons[0]


def test_a_fit_after_a_restart_is_the_same_also_where_units_lack_single_responses() -> None:
    rng, units = np.random.default_rng(18), tuple("abcde")
    never = again = Learner.empty(units, rng.standard_normal((40, COUNT)).astype(np.float32))
    for count in (7, 4, 11, 9, 5):
        x, y = rng.standard_normal((count, COUNT)).astype(np.float32), rng.poisson(5.0, (count, 5)) * 10.0
        y[rng.random(y.shape) < 0.06] = np.nan
        never = at_once(never.with_rows(x, y))
        back = Learner.restored(units, again.state())
        if back.told:
            with pytest.raises(RuntimeError, match="take the learner that is `remembered`"):
                at_once(back.with_rows(x, y))
        again = at_once(at_once(back.remembered()).with_rows(x, y))
        assert state_hash(never.state()) == state_hash(again.state())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    "phases",
    [(SMALL,), (NETWORK,), (CONTROL,), (BANK, ONE_HOT), (CONTROL | {"encoder": TINY | {"steps": 6}, "targets": {}},)],
    ids=["inception", "networks", "control", "both", "control of networks"],
)
def test_a_loop_is_killed_before_every_entry(phases: tuple[dict[str, Any], ...], seed: int, tmp_path: Path) -> None:
    log = checked(config(*phases, seed=seed, again=seed - 1), HARD, tmp_path, 1.0, seed)
    assert len(log.reasons) == len(phases)  # every phase came to its end
