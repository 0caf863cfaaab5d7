"""Masks, contrast tuning, agreement between starts, and the bench of synthesis."""

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner

from models.encoders.eye import Eye
from models.encoders.network import Network, fill_full, linear_nonlinear
from models.synthesis.agreement import agreement, correlations
from models.synthesis.engine import synthesise
from models.synthesis.masks import gaussian_mask, image_mask, tight_mask, under
from models.synthesis.objectives import Maximise
from models.synthesis.starts import draw
from models.synthesis.tuning import contrast_tuning
from rig.cli import app
from rig.config.synthesis import Synthesis as Settings

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
DATA = Path(os.environ.get("STIMLOOP_DATA", Path(__file__).parents[2] / "shared" / "data"))


def gabor(phase: float = 0.0, at: tuple[float, float] = (18.0, 30.0), sigma: tuple[float, float] = (4.0, 4.0)) -> F64:
    y, x = np.mgrid[:36, :64].astype(float)
    y, x = y - at[0], x - at[1]
    window = np.exp(-(y**2) / (2 * sigma[0] ** 2) - x**2 / (2 * sigma[1] ** 2))
    found: F64 = window * np.cos(2 * np.pi * 0.12 * x + phase)
    return found


def frames_of(*patterns: F64) -> U8:
    levels = np.clip(np.rint(128 + 100 * np.stack(patterns)), 0, 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, 3)


def linear(output: str = "none") -> Network:
    pattern = gabor()
    network = linear_nonlinear(Eye(36, 64), ("u",), output=output)
    fill_full(network, (pattern - pattern.mean()).reshape(1, -1), np.zeros(1))
    return network.requires_grad_(False)


# --- masks ------------------------------------------------------------------------------------------------------------


def test_the_image_mask_covers_the_pattern_and_no_speck() -> None:
    levels = 128 + 100 * gabor(sigma=(6.0, 6.0))
    levels[2, 60] = 255.0  # a speck far away
    mask = image_mask(levels[None], 128.0)
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert mask[18, 30] > 0.99
    assert mask[2, 60] < 0.01
    away = np.hypot(*(np.mgrid[:36, :64] - np.array([18, 30])[:, None, None]))
    assert mask[away < 4].min() > 0.9
    assert mask[away > 22].max() < 0.05
    with pytest.raises(ValueError, match="nothing stands out"):
        image_mask(np.full((1, 36, 64), 128.0), 128.0)


def test_the_gaussian_mask_has_the_moments_of_the_energy() -> None:
    y, x = np.mgrid[:36, :64].astype(float)
    blob = np.exp(-((y - 20) ** 2) / (2 * 4.0**2) - (x - 28) ** 2 / (2 * 8.0**2))  # its energy has sd 4/√2, 8/√2
    mask = gaussian_mask(128 + 50 * blob[None], 128.0)
    assert np.unravel_index(mask.argmax(), mask.shape) == (20, 28)
    expected = np.exp(-((y - 20) ** 2) / 16 - (x - 28) ** 2 / 64) ** (1.875 / 2)
    np.testing.assert_allclose(mask, expected, atol=0.02)


def test_the_tight_mask_keeps_the_response_and_is_tighter() -> None:
    pattern = gabor(sigma=(5.0, 5.0))
    levels = 128 + 100 * pattern[None]
    wanted = np.exp(-((np.mgrid[:36, :64] - np.array([18, 30])[:, None, None]) ** 2).sum(0) / (2 * 2.5**2)) * pattern

    def response(picture: F64) -> float:
        return float(((picture - 128) * wanted).sum())

    mask = tight_mask(levels, 128.0, response)
    wide = tight_mask(levels, 128.0, response, share=0.9999)
    assert mask.sum() < wide.sum()
    assert response(under(levels, mask, 128.0)) >= 0.9 * response(under(levels, wide, 128.0))
    assert response(under(levels, mask, 128.0)) < response(levels)


# --- contrast tuning --------------------------------------------------------------------------------------------------


def test_contrast_tuning_of_a_linear_unit_is_linear_until_it_clips() -> None:
    encoder = linear()
    tuning = contrast_tuning(encoder, 0, torch.from_numpy(128 + 20 * gabor())[None].float(), Settings(), count=40)
    assert (np.diff(tuning.contrast) > 0).all()
    assert tuning.contrast[0] < 0.005
    assert len(tuning.contrast) < 40  # the first one that is out of reach is the last
    unclipped = tuning.contrast < 0.05  # the peak reaches black and white at about 0.11
    slope = tuning.rate[unclipped] / tuning.contrast[unclipped]
    np.testing.assert_allclose(slope[-8:], slope[-1], rtol=0.02)
    assert tuning.rate[-1] < 0.95 * slope[-1] * tuning.contrast[-1]
    assert tuning.best_contrast == tuning.contrast[tuning.rate.argmax()]
    bounded = contrast_tuning(encoder, 0, torch.from_numpy(128 + 20 * gabor())[None].float(), Settings(), 10, most=0.03)
    assert bounded.contrast[-1] == pytest.approx(0.03, abs=2e-4)
    with pytest.raises(ValueError, match="without contrast"):
        contrast_tuning(encoder, 0, torch.full((1, 36, 64), 90.0), Settings())


# --- agreement --------------------------------------------------------------------------------------------------------


def test_correlation_counts_inside_the_mask_only() -> None:
    mask = np.zeros((36, 64))
    mask[8:28, 18:42] = 1.0
    rng = np.random.default_rng(0)
    surround = rng.standard_normal((2, 36, 64)) * (1 - mask)
    frames = frames_of(gabor() + surround[0], gabor() + surround[1], gabor(np.pi))
    found = correlations(frames, mask)
    assert found[0, 1] > 0.999
    assert found[0, 2] < -0.999
    with pytest.raises(ValueError, match="empty"):
        correlations(frames, np.zeros((36, 64)))
    assert correlations(frames_of(np.zeros((36, 64)), gabor()), mask)[0, 1] == pytest.approx(0, abs=1e-9)


def test_equally_good_images_that_differ_make_a_unit_multimodal() -> None:
    mask = image_mask((128 + 100 * gabor())[None], 128.0)
    frames = frames_of(gabor(), gabor(0.1), gabor(np.pi / 2), gabor(np.pi / 2 + 0.1), gabor(np.pi))
    both = agreement(frames, np.array([10.0, 9.9, 10.1, 9.8, 5.0]), mask)
    assert both.multimodal
    assert both.modes == ((2, 3), (0, 1))  # the best first; start 4 is no rival
    one = agreement(frames, np.array([10.0, 9.9, 5.0, 5.0, 5.0]), mask)
    assert one.modes == ((0, 1),)
    assert not one.multimodal
    assert one.equal_median > 0.98
    assert one.median < 0.5


def test_a_linear_unit_has_one_best_image_from_any_start() -> None:
    encoder = linear("softplus")
    settings = Settings(iterations=200, step_from=12.0, step_to=0.6, contrast=0.05)
    starts = draw(("display", "natural", "natural"), 1, encoder.eye, settings, np.random.default_rng(1))
    found = synthesise(encoder, Maximise((0,)), starts, settings)
    mask = image_mask((128 + 100 * gabor())[None], 128.0)
    agreed = agreement(found.frames[0], found.rates[0, :, 0], mask)
    assert not agreed.multimodal
    assert agreed.median > 0.98


# --- the bench --------------------------------------------------------------------------------------------------------


def weights() -> Path:
    folder = DATA / "v1_twin"
    if not (folder / "sensorium_sota_model.pth").exists():
        pytest.skip(f"no twin at {folder}; set STIMLOOP_DATA to the folder that holds v1_twin/")
    return folder


def test_the_bench_reports_speed_response_and_agreement(tmp_path: Path) -> None:
    out = tmp_path / "synthesis.json"
    arguments = ["--units", "2", "--starts", "2", "--singles", "1", "--iterations", "6", "--threads", "1"]
    arguments += ["--device", "cpu"]
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        other = str(weights() / "sensorium_ln_model.pth")
        command = ["bench", "synthesis", "--weights", str(weights()), "--other", other, *arguments, "--json", str(out)]
        done = CliRunner().invoke(app, command)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(exact)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert found["images"] == 4
    assert found["speedup_vs_single"] > 1.5
    assert found["activation_ratio"] > 0
    assert -1 <= found["agreement_median"] <= 1
    assert found["worst_mean_error_levels"] < 1e-3
    assert found["worst_rms_error_levels"] < 0.02
    assert [len(row["rates"]) for row in found["rows"]] == [2, 2]
    assert [row["unit"] for row in found["rows_with_other"]] == [row["unit"] for row in found["rows"]]
    assert found["device"] == "processor (1 thread)"
    assert "times as fast" in done.output


def test_the_bench_says_what_is_wrong(tmp_path: Path) -> None:
    missing = CliRunner().invoke(app, ["bench", "synthesis", "--weights", str(tmp_path)])
    assert missing.exit_code == 2
    assert "there is no sensorium_sota_model.pth" in missing.stderr
    (tmp_path / "sensorium_sota_model.pth").write_bytes(b"no weights")
    broken = CliRunner().invoke(app, ["bench", "synthesis", "--weights", str(tmp_path)])
    assert broken.exit_code == 2
    assert "error" in broken.stderr
    many = CliRunner().invoke(app, ["bench", "synthesis", "--weights", str(tmp_path), "--units", "1", "--singles", "9"])
    assert many.exit_code == 2
    assert "singles: no more than images" in many.stderr
