"""Cells that are no Gabors: they do what their parameters say, and their own best image beats every Gabor by far."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from models.truth import V1, Gabor, Scattered, build, build_for
from models.truth_mixed import OneCell, draw_mixed
from models.truth_optimum import optimum, rates_and_slopes, within
from models.truth_shapes import BothParts, Cell, Curved, Surround, Terms, terms_of
from rig.config.animal import CellKind, Simulation
from rig.config.session import Config
from stimuli.geometry import Rect, pixel_angles

F64 = npt.NDArray[np.float64]

PX = 36  # 10 degrees on as many pixels as Walker's images have rows
_ANGLES = (np.arange(PX) + 0.5) / PX * 10 - 5
AZIMUTH, ELEVATION = np.meshgrid(_ANGLES, -_ANGLES)
KINDS: tuple[CellKind, ...] = ("simple", "complex", "curved", "both_parts", "surround")
RMS = 0.15  # of light, around grey 0.5
MOST_OF_A_GABOR_CELL = 0.7

CURVED = Curved(0.3, -0.2, 0.8, 1.3, 0.37, 20.0, 40.0, 1.0, 0.5, True, 5.0, 90.0)
BOTH = BothParts(0.0, 0.0, (1.2, 0.6), (10.0, 100.0), 0.75, 0.37, 5.0, 90.0)
SURROUND = Surround(0.2, 0.1, 0.9, 1.8, 0.37, 30.0, 0.0, 2.0, 1.0, True, 5.0, 90.0)


def rate(terms: Terms, light: F64) -> F64:
    """Return rates (n,) for light (n, y, x)."""
    about = light.reshape(len(light), -1) - 0.5
    linear, squares = (t.reshape(len(t), -1) for t in (terms.linear, terms.squares))
    return terms.rate_hz(about @ linear.T, (about * about) @ squares.T)


def gabors(cell: Cell) -> F64:
    """Return the published grid (Walker 2019) on 36 pixels, (n, y, x), but only places within 1.5 degrees of the cell.

    Phase 0, 90, 180, 270; wavelength 4 to 20 px; 8 orientations; sigma 2 to 9 px; places in 7 steps of .1 of the image.
    """
    yy, xx = np.mgrid[:PX, :PX].astype(np.float32) - np.float32((PX - 1) / 2)
    lengths, orientations, sigmas, phases = (
        a.reshape(-1, 1, 1)
        for a in np.meshgrid(
            np.array([4, 7, 10, 15, 20], np.float32), np.arange(8, dtype=np.float32) * np.float32(np.pi / 8),
            np.array([2, 3, 5, 7, 9], np.float32), np.arange(4, dtype=np.float32) * np.float32(np.pi / 2),
        )
    )
    places = (np.arange(-3, 4) * 0.1 * PX).tolist()
    out = []
    for y in places:
        for x in places:
            if max(abs(x / PX * 10 - cell.azimuth_deg), abs(-y / PX * 10 - cell.elevation_deg)) > 1.5:
                continue
            across = -(xx - x) * np.sin(orientations) + (yy - y) * np.cos(orientations)
            envelope = np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigmas**2))
            out.append(envelope * np.cos(2 * np.pi * across / lengths + phases))
    patches = np.concatenate(out).astype(np.float32)
    loud = RMS / np.sqrt((patches**2).mean(axis=(1, 2), keepdims=True))
    return within(0.5 + patches * np.minimum(loud, 0.5), RMS)


def test_a_gabor_cell_of_a_mixture_is_the_one_of_v1() -> None:
    rng = np.random.default_rng(0)
    for complex_cell in (False, True):
        cell = Gabor(0.4, -0.3, 1.2, 0.3, 30.0, 50.0, complex_cell, 5.0, 90.0)
        alone, v1 = OneCell(cell, AZIMUTH, ELEVATION), V1((cell,), AZIMUTH, ELEVATION)
        for image in rng.random((5, PX, PX, 3)).astype(np.float32):
            assert alone.rate_hz(image) == pytest.approx(v1.rate_hz(image), rel=1e-5)
    with pytest.raises(ValueError, match="this cell was built for"):
        alone.rate_hz(np.zeros((PX, PX + 1, 3), np.float32))


@pytest.mark.parametrize("cell", [CURVED, replace(CURVED, complex_cell=False), BOTH, SURROUND])
def test_grey_of_any_level_gives_the_baseline(cell: Cell) -> None:
    terms = terms_of(cell, AZIMUTH, ELEVATION)
    levels = np.array([0.0, 0.3, 1.0])[:, None, None] * np.ones((1, PX, PX))
    assert rate(terms, levels) == pytest.approx([5.0] * 3, abs=0.01)


def test_curved_cells_prefer_their_curvature() -> None:
    terms = terms_of(CURVED, AZIMUTH, ELEVATION)
    bent = [replace(CURVED, curvature_per_deg=k) for k in (1.0, 0.5, 0.0, -0.5, -1.0)]
    own, half, straight, _, opposite = rate(terms, np.stack([terms_of(c, AZIMUTH, ELEVATION).preferred for c in bent]))
    assert own > half > straight > opposite
    assert straight - 5 < 0.6 * (own - 5)
    assert opposite - 5 < 0.15 * (own - 5)
    # opponency alone lowers what a straight grating gives
    lenient = terms_of(replace(CURVED, opponency=0.0), AZIMUTH, ELEVATION)
    straight_light = terms_of(bent[2], AZIMUTH, ELEVATION).preferred[None]
    assert rate(lenient, straight_light)[0] - 5 > 1.3 * (straight - 5)
    shifted = replace(CURVED, phase_deg=130.0)
    assert rate(terms, terms_of(shifted, AZIMUTH, ELEVATION).preferred[None])[0] > 0.85 * own
    simple = terms_of(replace(CURVED, complex_cell=False), AZIMUTH, ELEVATION)
    assert rate(simple, terms_of(replace(CURVED, phase_deg=220.0), AZIMUTH, ELEVATION).preferred[None])[0] < 6


def test_one_part_alone_drives_a_cell_that_needs_both_hardly() -> None:
    terms = terms_of(BOTH, AZIMUTH, ELEVATION)
    distance = np.hypot(AZIMUTH - BOTH.apart_deg[0], ELEVATION - BOTH.apart_deg[1])
    first = np.where(distance < 1.3, terms.preferred, 0.5)
    second = np.where(distance < 1.3, 0.5, terms.preferred)
    both, one, other = rate(terms, np.stack([terms.preferred, first, second])) - 5
    assert both > 50
    assert one < 0.2 * both
    assert other < 0.3 * both


def test_the_surround_alone_is_silent_and_changes_the_centre() -> None:
    terms = terms_of(SURROUND, AZIMUTH, ELEVATION)
    quiet = terms_of(Gabor(0.2, 0.1, 0.9, 0.37, 30.0, 0.0, True, 5.0, 90.0), AZIMUTH, ELEVATION)
    centre = quiet.preferred
    away = (AZIMUTH - 0.2) ** 2 + (ELEVATION - 0.1) ** 2 > 1.8**2

    def wave(orientation_deg: float) -> F64:
        t = np.deg2rad(orientation_deg)
        across = -(AZIMUTH - 0.2) * np.sin(t) + (ELEVATION - 0.1) * np.cos(t)
        return 0.5 + 0.5 * np.cos(2 * np.pi * 0.37 * across)

    same, other = (np.where(away, wave(o), centre) for o in (30.0, 120.0))
    alone = np.where(away, wave(120.0), 0.5)
    plain, suppressed, facilitated, nothing = rate(terms, np.stack([centre, same, other, alone])) - 5
    assert suppressed < 0.75 * plain
    assert facilitated > 1.3 * plain
    assert nothing < 0.15 * plain


def test_slopes_are_those_of_the_rates() -> None:
    rng = np.random.default_rng(0)
    light = np.clip(0.5 + 0.2 * rng.normal(size=(2, PX, PX)), 0, 1)
    for cell in draw_mixed(KINDS, (0.0, 0.0), 1.0, 1.0, rng):
        terms = terms_of(cell, AZIMUTH, ELEVATION)
        at = 0.5 * light + 0.5 * terms.preferred
        _, slope = rates_and_slopes(terms, at)
        step = 1e-4 * rng.normal(size=at.shape)
        change = rate(terms, at + step) - rate(terms, at - step)
        assert change == pytest.approx(2 * (slope * step).sum(axis=(1, 2)), rel=1e-3, abs=1e-6)


def test_the_truth_as_an_encoder_says_the_true_rates_and_their_slopes() -> None:
    import torch

    from models.encoders.encoder import Encoder, rates_of
    from models.truth_encoder import TruthEncoder

    rng = np.random.default_rng(2)
    cells = draw_mixed(KINDS, (0.0, 0.0), 1.0, 1.0, rng)
    truth: Encoder = TruthEncoder(cells, AZIMUTH, ELEVATION)
    frames = rng.integers(0, 256, (3, PX, PX, 1), dtype=np.uint8).repeat(3, axis=3)
    found = rates_of(truth, frames)
    for unit, cell in enumerate(cells):
        assert found[:, unit] == pytest.approx(rate(terms_of(cell, AZIMUTH, ELEVATION), frames[..., 0] / 255), rel=1e-3)
    x = truth.eye.see(frames).requires_grad_(True)
    some = truth.rates(x, torch.tensor([3, 1]))
    assert some.detach().numpy() == pytest.approx(found[:, [3, 1]], rel=1e-5)
    (slope,) = torch.autograd.grad(some[:, 1].sum(), x)
    _, known = rates_and_slopes(terms_of(cells[1], AZIMUTH, ELEVATION), frames[..., 0] / 255)
    assert slope[:, 0].numpy() == pytest.approx(known, rel=1e-2, abs=1e-3 * np.abs(known).max())
    assert len(truth.units) == 5
    y0, y1, x0, x1 = truth.seen(1)
    middle = (ELEVATION[:, 0] < cells[1].elevation_deg).argmax(), (AZIMUTH[0] > cells[1].azimuth_deg).argmax()
    assert y0 <= middle[0] <= y1
    assert x0 <= middle[1] <= x1
    truth.restore(truth.state())
    with pytest.raises(ValueError, match="this state is of"):
        TruthEncoder(cells[:2], AZIMUTH, ELEVATION).restore(truth.state())


@pytest.mark.parametrize("kind", KINDS)
def test_only_gabor_cells_are_driven_by_the_best_gabor_as_by_their_own_best_image(kind: CellKind) -> None:
    """Of rate above baseline, at the same RMS contrast; the grid holds 800 Gabors at each of up to 9 places."""
    rng = np.random.default_rng(7)
    for cell in draw_mixed((kind,) * 2, (0.0, 0.0), 1.0, 1.0, rng):
        terms = terms_of(cell, AZIMUTH, ELEVATION)
        best = optimum(terms, RMS, rng)
        assert best.light.min() >= 0
        assert best.light.max() <= 1
        assert np.sqrt(((best.light - 0.5) ** 2).mean()) <= RMS * (1 + 1e-9)
        assert rate(terms, best.light[None])[0] == pytest.approx(best.rate_hz)
        grid = rate(terms, gabors(cell)).max() - cell.baseline_hz
        share = grid / (best.rate_hz - cell.baseline_hz)
        assert (share > MOST_OF_A_GABOR_CELL) == isinstance(cell, Gabor), f"{cell}: the best Gabor reaches {share:.2f}"
        assert share <= 1  # nothing in the grid beats what the search found
        assert best.rate_hz < cell.baseline_hz + 1.15 * cell.max_hz


def test_the_config_builds_a_seeded_mixture_of_the_kinds_it_names() -> None:
    azimuth, elevation = pixel_angles(Rect(348, 248, 104, 104), (800, 600), 40.0, 30.0)
    simulation = Simulation(population="mixed", neurons=7, seed=4, mix=("curved", "complex", "surround"))
    population = build(simulation, azimuth, elevation)
    assert isinstance(population, Scattered)
    cells = [part.cell.cell for part in population.parts if isinstance(part.cell, OneCell)]
    assert [type(c) for c in cells] == [Curved, Gabor, Surround, Curved, Gabor, Surround, Curved]
    assert population.units == tuple(f"E{k:02d}#0" for k in range(1, 8))
    again = build(simulation, azimuth, elevation)
    image = np.random.default_rng(0).random((104, 104, 3)).astype(np.float32)
    assert np.array_equal(population.rate_hz(image), again.rate_hz(image))
    other = build(simulation.model_copy(update={"seed": 5}), azimuth, elevation)
    assert not np.array_equal(population.rate_hz(image), other.rate_hz(image))
    for cell, place in zip(cells, population.receptive_fields, strict=True):
        assert place == cell.place
        assert np.abs(place.center_deg).max() + place.size_deg / 2 < 5.5
    # the cells answer to what the screen shows in steps of a pixel as the model on its own pixels does
    terms = terms_of(cells[0], azimuth, elevation)
    shown = np.repeat(terms.preferred[..., None], 3, axis=2).astype(np.float32)
    assert population.rate_hz(shown)[0] == pytest.approx(rate(terms, terms.preferred[None])[0], rel=0.05)
    default = build(Simulation(population="mixed", neurons=10), azimuth, elevation)
    assert isinstance(default, Scattered)
    kinds = {type(p.cell.cell) for p in default.parts if isinstance(p.cell, OneCell)}
    assert kinds == {Gabor, Curved, BothParts, Surround}


def test_a_mixture_lies_where_the_receptive_field_says(config_with_animal: Config) -> None:
    field = config_with_animal.animal.receptive_field
    assert field is not None
    for place in build_for(config_with_animal).receptive_fields:
        assert np.abs(np.subtract(place.center_deg, field.center_deg)).max() <= 1.0


@pytest.fixture
def config_with_animal() -> Config:
    import yaml

    text = yaml.safe_load((Path(__file__).parents[1] / "configs" / "demo.yaml").read_text())
    text["animal"] = text.get("animal", {}) | {
        "population": "mixed", "neurons": 5,
        "receptive_field": {"center_deg": [4.0, -3.0], "size_deg": 6.0, "scatter_deg": 1.0},
    }  # fmt: skip
    return Config.model_validate(text)


def test_a_mixture_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np; from models.truth import build; from rig.config.animal import Simulation;"
        "build(Simulation(population='mixed'), *np.mgrid[-5:5:20j, -5:5:20j][::-1]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
