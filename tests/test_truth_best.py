"""The best that a simulated unit can do at the contrast and place of an image."""

import numpy as np
import pytest
import yaml

from models.truth import build_for
from models.truth_best import best_hz
from rig.config.field import field_rect
from rig.config.reading import parse
from rig.config.session import Config
from stimuli.geometry import Rect

CONTRAST = 0.12
SAMPLE = {
    "sources": [{"type": "openephys"}], "responses": {"units": ["E01#0"]},
    "phases": [{"agent": "evolve", "unit": "E01#0"}],
}  # fmt: skip


def config(**animal: object) -> Config:
    return parse(yaml.safe_dump(SAMPLE | {"animal": {"neurons": 6, "seed": 3, **animal}}))


@pytest.mark.parametrize("animal", [{"population": "v1"}, {"population": "mixed"}], ids=["v1", "mixed"])
def test_no_image_of_that_contrast_does_better_and_more_contrast_does_more(animal: dict[str, object]) -> None:
    settings = config(**animal)
    cells, image = build_for(settings), field_rect(settings)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((20, image.height // 20, image.width // 20)).repeat(20, 1).repeat(20, 2)
    noise = np.clip(0.5 + noise / noise.std() * CONTRAST * 0.5, 0, 1).astype(np.float32)
    padded = np.full((len(noise), image.height, image.width, 3), 0.5, np.float32)
    padded[:, : noise.shape[1], : noise.shape[2]] = noise[..., None]
    shown = np.array([cells.rate_hz(one) for one in padded])
    for k, unit in enumerate(cells.units):
        best = best_hz(settings, cells, unit, image, CONTRAST)
        faint = best_hz(settings, cells, unit, image, CONTRAST / 4)
        assert best is not None
        assert faint is not None
        assert best > shown[:, k].max()
        assert best > faint > cells.rate_hz(np.full_like(padded[0], 0.5))[k]


def test_it_is_not_told_of_replaced_units_nor_of_cells_that_look_beyond_the_image() -> None:
    settings = config(population="mixed", useless={"E02#0": "constant"})
    cells, image = build_for(settings), field_rect(settings)
    assert best_hz(settings, cells, "E02#0", image, CONTRAST) is None
    assert best_hz(settings, cells, "E01#0", image, CONTRAST) is not None
    corner = Rect(image.left, image.top, image.width // 4, image.height // 4)
    assert best_hz(settings, cells, "E01#0", corner, CONTRAST) is None
