"""`stimloop generator show`: the sheet, and what it says about configs that have nothing to show."""

from pathlib import Path

import numpy as np
import pytest
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from models.generators.factory import build_generator
from rig.config.reading import load, parse
from rig.config.screen import Limits
from rig.generator_sheet import GAP, add_generator, of_config, refused, sheet

ROOT = Path(__file__).parent.parent
CONFIG = """\
sources: [{type: openephys}]
responses: {units: ["E01#0"]}
phases:
- {agent: present}
- {agent: evolve, unit: "E01#0", generator: {type: pixels, side: 8, contrast: 0.2}}
- {agent: evolve, unit: "E01#0", generator: {type: gabors}, place: {center_deg: [1, 2], size_deg: 5}}
"""


def run(*words: str) -> Result:
    app = typer.Typer()
    add_generator(app, lambda: build_generator)
    return CliRunner().invoke(app, ["generator", "show", *words])


def test_images_lie_row_by_row_on_the_background() -> None:
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 6, 7, 3), np.uint8)
    whole = sheet(frames, 3, 128)
    assert whole.shape == (2 * (6 + GAP) + GAP, 3 * (7 + GAP) + GAP, 3)
    for k in range(5):
        top, left = GAP + k // 3 * (6 + GAP), GAP + k % 3 * (7 + GAP)
        assert np.array_equal(whole[top : top + 6, left : left + 7], frames[k])
    assert np.sum(whole == 128) == whole.size - frames.size


def test_the_generator_and_size_of_a_phase_are_found() -> None:
    config = parse(CONFIG)
    first, later = of_config(config, None), of_config(config, 2)
    assert [first[0].type, later[0].type] == ["pixels", "gabors"]
    assert of_config(config, 1) == first
    assert later[1] < first[1], "its place is smaller"
    with pytest.raises(ValueError, match=r"in phases\.0: it has generators in phases\.1, phases\.2"):
        of_config(config, 0)
    with pytest.raises(ValueError, match="no phase of it evolves"):
        of_config(load(ROOT / "configs" / "present.yaml")[0], None)


def test_frames_that_limits_would_refuse_are_counted() -> None:
    frames = np.full((3, 8, 8, 3), 128, np.uint8)
    frames[1] = 3
    (why,) = refused(frames, Limits())
    assert "mean level 3.0 is outside" in why


def test_the_command_draws_what_an_evolution_begins_with(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    out = tmp_path / "sheet.png"
    done = run(str(tmp_path / "config.yaml"), "--out", str(out), "--count", "3")
    assert done.exit_code == 0, done.stderr
    settings, height, width = of_config(parse(CONFIG), 1)
    generator = build_generator(settings, height, width, 128)
    assert generator.name in done.stdout
    assert "a code is 3 x 8 x 8 numbers" in done.stdout
    assert "RMS contrast 0.2" in done.stdout
    frames = generator.decode(generator.start(3, np.random.default_rng(0)))
    assert np.array_equal(np.asarray(Image.open(out)), sheet(frames, 3, 128))


def test_the_command_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.replace("type: gabors", "type: deepsim, weights: fc6.pt"))
    done = run(str(tmp_path / "config.yaml"), "--phase", "2", "--out", str(tmp_path / "sheet.png"))
    assert done.exit_code == 2
    assert done.stderr == "error fc6.pt: cannot be read: No such file or directory; give the path of the file\n"
    wrong = run("--type", "onnx")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error --type onnx: choose one of dct, pixels, gabors, natural; others need files")
