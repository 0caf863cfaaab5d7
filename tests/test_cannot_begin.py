"""A phase that cannot begin is named when the session starts, also where it comes after others."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from models.__main__ import CannotBegin, begins
from rig.config.reading import parse
from rig.config.session import Config
from tests.inception_units import SHORT
from tests.test_inception_networks import TINY
from tests.test_snapshot import EVOLVE, Session, config_text

FIRST = {"agent": "present", "images": ["natural"], "count": 5, "repeats": 2}
MAP = {"agent": "map"}


def config(*phases: dict[str, Any], **more: Any) -> Config:
    raw = {
        "display": {"size_px": [200, 150], "width_cm": 40, "distance_cm": 30}, "stimulus": {"size_deg": 12},
        "sources": [{"type": "openephys"}], "responses": {"units": ["a", "b", "c", "d"]}, "phases": [*phases],
    }  # fmt: skip
    return parse(yaml.safe_dump(raw | more))


@pytest.mark.parametrize(
    ("later", "says"),
    [
        ({"images": ["natural"]}, r"phases\.1\.train, test: 120 \+ 12 images, but its banks have 36 together"),
        ({"encoder": TINY | {"start": "none.safetensors"}}, r"phases\.1\.encoder: none\.safetensors: cannot be read"),
        ({"encoder": TINY | {"readout": {"type": "point", "cortex": True}}}, "phases.1.encoder: .* cortical positions"),
        ({"place": "mapped", "images": ["natural"]}, r"phases\.1\.train, test: .*; ask for fewer, or add a folder"),
    ],
)
def test_a_loop_behind_another_phase_is_refused_at_the_start(later: dict[str, Any], says: str) -> None:
    before = MAP if "place" in later else FIRST
    with pytest.raises(CannotBegin, match=says):
        begins(config(before, SHORT | later))
    begins(config(before, SHORT | {"place": later.get("place")}))


def test_so_are_pictures_of_a_folder_that_is_not_there_and_too_few_for_a_later_phase(tmp_path: Path) -> None:
    with pytest.raises(CannotBegin, match=r"nowhere: not a folder; give a folder of pictures under banks"):
        begins(config(FIRST, FIRST | {"images": ["mine"]}, banks={"mine": str(tmp_path / "nowhere")}))
    with pytest.raises(CannotBegin, match=r"phases\.1\.count: 50, but natural have 36 images together"):
        begins(config(FIRST, FIRST | {"count": 50}))


def test_the_process_says_it_to_its_supervisor_before_it_is_ready(tmp_path: Path) -> None:
    phase = str(FIRST | {"count": 50}).replace("'", "")
    session = Session(tmp_path, config_text(EVOLVE, phase))
    try:
        while session.process.poll() is None:
            session.step()
        assert session.process.stdout is not None
        (said,) = session.process.stdout.read().splitlines()
        assert '"failed": "phases.1.count: 50, but natural have 36 images together"' in said
        assert not (tmp_path / "snapshots").exists()
    finally:
        session.close()
