"""The generator that ships with the program: its file, its frames, its codes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.generators import natural
from models.generators.factory import build_generator
from models.generators.torch_generator import TorchGenerator
from rig.config.generators import NaturalGenerator
from stimuli.bank import natural_bank

BACKGROUND = 128


@pytest.fixture(scope="module")
def generator() -> TorchGenerator:
    torch.set_num_threads(1)
    made = build_generator(NaturalGenerator(contrast=None), 128, 128, BACKGROUND)
    assert isinstance(made, TorchGenerator)
    return made


def test_it_ships_and_is_small(generator: TorchGenerator) -> None:
    assert natural.WEIGHTS.stat().st_size <= 20e6
    assert generator.name.startswith("natural-")
    assert generator.differentiable
    assert generator.latent_size == generator.latent_shape[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_frame_depends_on_its_own_code_only(
    generator: TorchGenerator, threads: int, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: torch.set_num_threads(1))
    torch.set_num_threads(threads)
    codes = generator.start(23, np.random.default_rng(1))
    frames = generator.decode(codes)
    assert frames.shape == (23, 128, 128, 3)
    assert frames.dtype == np.uint8
    order = np.random.default_rng(2).permutation(23)
    np.testing.assert_array_equal(generator.decode(codes[order]), frames[order])
    np.testing.assert_array_equal(generator.decode(codes[17:18]), frames[17:18])
    np.testing.assert_array_equal(generator.decode(np.vstack([50 * codes[:3], codes[4:5]]))[3], frames[4])


def test_codes_of_the_prior_draw_different_pictures_with_contrast(generator: TorchGenerator) -> None:
    frames = generator.decode(generator.start(12, np.random.default_rng(3))).astype(float)
    assert np.median(frames.std(axis=(1, 2, 3))) > 15
    assert np.median(np.abs(frames[1:] - frames[:-1]).mean(axis=(1, 2, 3))) > 20
    # as in photographs, most of the power lies at low spatial frequencies
    power = np.abs(np.fft.fft2(frames.mean(axis=3) - frames.mean(axis=(1, 2, 3))[:, None, None])) ** 2
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    assert power[:, radius < 0.05].sum() > 5 * power[:, radius > 0.15].sum()


def test_the_prior_is_that_of_photographs(generator: TorchGenerator) -> None:
    prior = generator.prior
    lengths = np.linalg.norm(prior.sample(200, np.random.default_rng(0)), axis=1)
    assert np.median(lengths) == pytest.approx(prior.norm, rel=0.15)
    assert np.abs(prior.mean).max() < 0.6
    assert 0.5 < prior.sd.min() <= prior.sd.max() < 2


def test_levels_have_gradients(generator: TorchGenerator) -> None:
    codes = torch.from_numpy(generator.start(2, np.random.default_rng(4))).requires_grad_(True)
    levels = generator.levels(codes)
    assert levels.shape == (2, 3, 128, 128)
    assert 0 <= float(levels.detach().min())
    assert float(levels.detach().max()) <= 1
    levels[0].mean().backward()
    assert codes.grad is not None
    assert float(codes.grad[0].abs().sum()) > 0
    assert float(codes.grad[1].abs().sum()) == 0


def test_photographs_come_back(generator: TorchGenerator) -> None:  # these were among the training pictures
    bank = natural_bank()
    frames = np.stack([bank.image(name, 128, 128) for name in bank.names[:6]])
    encode = generator.encode
    assert encode is not None
    back = generator.decode(encode(frames))
    pairs = zip(frames.astype(float), back.astype(float), strict=True)
    found = [np.corrcoef(original.ravel(), drawn.ravel())[0, 1] for original, drawn in pairs]
    assert min(found) > 0.6
    assert np.median(found) > 0.75


def test_other_sizes_and_contrast() -> None:
    made = build_generator(NaturalGenerator(), 90, 120, BACKGROUND)
    frames = made.decode(made.start(2, np.random.default_rng(0))).astype(float)
    assert frames.shape == (2, 90, 120, 3)
    assert frames.std(axis=(1, 2, 3)) / 127.5 == pytest.approx(0.3, abs=0.02)
    assert frames.mean(axis=(1, 2, 3)) == pytest.approx(BACKGROUND, abs=2)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="format None"):
        natural.decoder(NaturalGenerator(), tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        natural.decoder(NaturalGenerator(), tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        natural.decoder(NaturalGenerator(), tmp_path / "missing.safetensors")
