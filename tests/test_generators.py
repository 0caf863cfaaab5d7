"""Generators: code -> frame."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stimuli.generators.dct import AXES, DctGenerator, cosine_basis
from stimuli.generators.soft_clip import soft_clip_drive
from stimuli.limits import check_frame, frame_levels

LIMITS = ((20.0, 235.0), 0.75)


def small(**changes: float) -> DctGenerator:
    arguments = {"height": 32, "width": 40, "frequencies": 6, "falloff": 0.75, "contrast": 0.25, **changes}
    return DctGenerator(**arguments)  # type: ignore[arg-type]


def test_bases_are_orthonormal() -> None:
    basis = cosine_basis(40, 12)
    assert np.allclose(basis.T @ basis / 40, np.eye(12))
    assert np.allclose(AXES @ AXES.T, np.eye(3))


@pytest.mark.parametrize("contrast", [0.1, 0.25, 0.4])
@pytest.mark.parametrize("background", [100, 128])
def test_start_images_have_the_background_as_mean_and_the_contrast_asked_for(contrast: float, background: int) -> None:
    generator = DctGenerator(64, 64, 10, 0.75, contrast, background)
    frames = generator.decode(generator.start(60, np.random.default_rng(0)))
    levels = np.array([frame_levels(frame) for frame in frames])
    assert levels[:, 0].mean() == pytest.approx(background, abs=1.0)
    assert levels[:, 1].mean() == pytest.approx(contrast, rel=0.03)
    assert levels[:, 1].std() < 0.05 * contrast
    assert levels[:, 1].max() < 1.1 * contrast


def test_drive_undoes_the_soft_clipping() -> None:
    z = np.random.default_rng(0).standard_normal(400_000)
    for rms in (0.1, 0.5, 0.74):
        x = soft_clip_drive(rms) * z
        assert np.sqrt(np.mean(x**2 / (1 + x**2))) == pytest.approx(rms, rel=0.01)


def test_start_codes_are_standard_normal_and_seeded() -> None:
    generator = small()
    codes = generator.start(200, np.random.default_rng(1))
    assert codes.shape == (200, 3 * 35) == (200, generator.latent_size)
    assert codes.dtype == np.float32
    assert codes.std() == pytest.approx(1, abs=0.02)
    assert np.array_equal(codes, generator.start(200, np.random.default_rng(1)))
    assert not np.array_equal(codes, generator.start(200, np.random.default_rng(2)))


def test_amplitude_falls_with_frequency() -> None:
    """A code of equal coefficients has 1/f**falloff amplitudes in the image; their signs are mixed to avoid a peak."""
    generator = DctGenerator(48, 48, 8, 1.0, 0.1)  # so little contrast that clipping is linear
    code = np.random.default_rng(0).choice([-1.0, 1.0], (1, generator.latent_size)).astype(np.float32)
    luminance = generator.decode(code)[0].astype(np.float64).mean(axis=2) - 128
    basis = cosine_basis(48, 8)
    spectrum = basis.T @ luminance @ basis / 48**2
    radius = np.hypot(*np.meshgrid(np.arange(8), np.arange(8)))
    equal = np.abs(spectrum * radius).ravel()[1:]
    assert equal == pytest.approx(equal.mean(), rel=0.1)
    assert np.array_equal(np.sign(spectrum).ravel()[1:], code[0, :63])
    assert abs(spectrum[0, 0]) < 0.5  # no constant part


def test_luminance_carries_most_contrast_and_colour_some() -> None:
    generator = small()
    frames = generator.decode(generator.start(50, np.random.default_rng(0))).astype(np.float64)
    variance = ((frames - 128) @ AXES.T).var(axis=(0, 1, 2))
    assert variance[0] > 4 * variance[1] > 0.2 * variance[0]
    assert variance[1] == pytest.approx(variance[2], rel=0.3)


def test_a_frame_depends_on_its_own_code_only() -> None:
    """Replay decodes in the same chunks, but re-shows are decoded in other company: bytes must be equal."""
    generator = DctGenerator(104, 104, 10, 0.75, 0.25)
    codes = generator.start(19, np.random.default_rng(3))
    together = generator.decode(codes)
    for k in (0, 7, 18):
        assert np.array_equal(generator.decode(codes[k : k + 1])[0], together[k])
    assert np.array_equal(np.concatenate([generator.decode(codes[:8]), generator.decode(codes[8:])]), together)


def test_the_length_of_a_code_does_not_matter() -> None:
    generator = small()
    codes = generator.start(4, np.random.default_rng(0))
    difference = generator.decode(codes).astype(int) - generator.decode(codes * np.float32(7.5))
    assert np.abs(difference).max() <= 1


def test_names_tell_settings_apart() -> None:
    names = {small().name, small(frequencies=7).name, small(falloff=1.0).name, small(contrast=0.3).name}
    names |= {small(background=120).name, small(width=42).name}
    assert len(names) == 6
    assert small().name == small().name
    assert all(name.startswith("dct-") and len(name) < 16 for name in names)


@settings(max_examples=150, deadline=None)
@given(
    arrays(
        np.float32,
        (2, 105),
        elements=st.one_of(st.floats(width=32), st.floats(-3, 3, width=32), st.sampled_from([0.0, 3e38, -3e38, 1e-45])),
    )
)
def test_any_code_gives_a_frame_within_limits_or_is_refused(codes: np.ndarray) -> None:
    generator = small()
    if not np.isfinite(codes).all():
        with pytest.raises(ValueError, match="NaN or infinity"):
            generator.decode(codes)
        return
    for code, frame in zip(codes, generator.decode(codes), strict=True):
        check_frame(frame, *LIMITS)
        if not code.any():
            assert np.unique(frame).tolist() == [128]


def test_wrong_shapes_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes \(n, 105\)"):
        small().decode(np.zeros((1, 104), np.float32))
    with pytest.raises(ValueError, match=r"lower generator\.frequencies"):
        small(frequencies=33)
    with pytest.raises(ValueError, match=r"choose generator\.contrast between"):
        small(contrast=0.9)
    with pytest.raises(ValueError, match="background nearer to 128"):
        small(contrast=0.25, background=20)
