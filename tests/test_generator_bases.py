"""Priors, and the generators "pixels" and "gabors"."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from models.generators.factory import build_generator
from rig.config.generators import AnyGenerator, DctGenerator, GaborGenerator, PixelGenerator
from stimuli.bank import natural_bank
from stimuli.generators import Generator, Prior
from stimuli.generators.pixels import spread
from stimuli.limits import check_frame, frame_levels

BASES: dict[str, AnyGenerator] = {
    "dct": DctGenerator(frequencies=8),
    "pixels": PixelGenerator(side=12),
    "squares": PixelGenerator(side=12, smooth=False),
    "gabors": GaborGenerator(scales=(1, 2, 6), orientations=3),
}


def made(name: str, height: int = 64, width: int = 72, background: int = 128, **changes: object) -> Generator:
    return build_generator(BASES[name].model_copy(update=changes), height, width, background)


# --- priors -----------------------------------------------------------------------------------------------------------


def test_a_prior_with_a_factor_has_the_covariance_it_says() -> None:
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(6, 2)).astype(np.float32)
    alone = np.array([0, 0.5, 1, 0, 0, 2], np.float32)
    sd = np.sqrt(np.sum(factor**2, axis=1) + alone**2)
    codes = Prior(np.arange(6, dtype=np.float32), sd, 9.0, factor).sample(200_000, rng).astype(np.float64)
    assert codes.mean(axis=0) == pytest.approx(np.arange(6), abs=0.03)
    assert np.cov(codes.T) == pytest.approx(factor @ factor.T + np.diag(alone**2), abs=0.08)


def test_rectified_codes_are_never_negative_and_those_of_a_seed_are_the_same() -> None:
    prior = Prior(np.zeros(50, np.float32), np.ones(50, np.float32), 5.0, rectified=True)
    codes = prior.sample(100, np.random.default_rng(3))
    assert codes.dtype == np.float32
    assert codes.min() == 0
    assert np.mean(codes == 0) == pytest.approx(0.5, abs=0.03)
    assert np.array_equal(codes, prior.sample(100, np.random.default_rng(3)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sd": np.ones(3, np.float32)}, r"both are \(latent,\)"),
        ({"factor": np.ones((3, 2), np.float32)}, r"it is \(latent, k\) with latent 4"),
        ({"factor": np.full((4, 1), 1.1, np.float32)}, "larger variances than sd"),
        ({"norm": 0.0}, "above 0"),
        ({"mean": np.full(4, np.nan, np.float32)}, "finite"),
        ({"sd": -np.ones(4, np.float32)}, "not negative"),
    ],
)
def test_a_prior_whose_parts_do_not_fit_is_refused(changes: dict[str, object], words: str) -> None:
    given: dict[str, object] = {"mean": np.zeros(4, np.float32), "sd": np.ones(4, np.float32), "norm": 2.0}
    with pytest.raises(ValueError, match=words):
        Prior(**(given | changes))  # type: ignore[arg-type]


# --- every basis ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("background", [100, 128])
def test_start_images_have_the_background_as_mean_and_the_contrast_asked_for(name: str, background: int) -> None:
    generator = made(name, background=background, contrast=0.25)
    levels = np.array([frame_levels(f) for f in generator.decode(generator.start(40, np.random.default_rng(0)))])
    assert levels[:, 0] == pytest.approx(background, abs=6)
    assert levels[:, 0].mean() == pytest.approx(background, abs=1)
    assert levels[:, 1].mean() == pytest.approx(0.25, rel=0.04)
    assert levels[:, 1].std() < 0.02


@pytest.mark.parametrize("name", BASES)
def test_the_prior_is_that_of_the_start_codes_and_the_shape_that_of_a_code(name: str) -> None:
    generator = made(name)
    codes = generator.start(200, np.random.default_rng(1))
    assert codes.shape == (200, generator.latent_size) == (200, np.prod(generator.latent_shape))
    assert np.linalg.norm(codes, axis=1).mean() == pytest.approx(generator.prior.norm, rel=0.01)
    assert np.array_equal(codes, generator.prior.sample(200, np.random.default_rng(1)))


@pytest.mark.parametrize("name", BASES)
def test_a_frame_depends_on_its_own_code_only(name: str) -> None:
    generator = made(name, 104, 96)
    codes = generator.start(9, np.random.default_rng(3))
    together = generator.decode(codes)
    assert together.shape == (9, 104, 96, 3)
    for k in (0, 4, 8):
        assert np.array_equal(generator.decode(codes[k : k + 1])[0], together[k])
    order = np.random.default_rng(4).permutation(9)
    assert np.array_equal(generator.decode(codes[order]), together[order])
    assert np.array_equal(made(name, 104, 96).decode(codes), together), "another process"


@pytest.mark.parametrize("name", BASES)
def test_the_length_of_a_code_does_not_matter_and_the_zero_code_is_the_background(name: str) -> None:
    generator = made(name)
    codes = generator.start(3, np.random.default_rng(0))
    frames = generator.decode(codes).astype(int)
    for factor in (1e-30, 7.5, 1e35):
        assert np.abs(frames - generator.decode(codes * np.float32(factor))).max() <= 1
    assert np.unique(generator.decode(codes * 0)).tolist() == [128]


@pytest.mark.parametrize("name", BASES)
def test_extreme_codes_give_frames_within_limits_and_broken_ones_are_refused(name: str) -> None:
    generator = made(name)
    codes = np.zeros((4, generator.latent_size), np.float32)
    codes[0, 0], codes[1, -1], codes[2], codes[3, ::2] = 3e38, -1e-40, 1, -3e38
    for frame in generator.decode(codes):
        check_frame(frame, (20.0, 235.0), 0.75)
    codes[1, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        generator.decode(codes)
    with pytest.raises(ValueError, match=rf"takes \(n, {generator.latent_size}\)"):
        generator.decode(codes[:, 1:])


def test_names_tell_settings_apart() -> None:
    names = [made(n).name for n in BASES]
    names += [made(n, 66).name for n in BASES] + [made(n, background=120).name for n in BASES]
    names += [made("pixels", side=9).name, made("gabors", scales=(1, 2)).name, made("gabors", orientations=4).name]
    names += [made(n, contrast=0.2).name for n in BASES]
    assert len(set(names)) == len(names)
    assert all(len(name) < 24 for name in names)


def test_settings_that_do_not_fit_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lower generator\.side"):
        made("pixels", 10, 10)
    with pytest.raises(ValueError, match=r"lower generator\.scales"):
        made("gabors", 16, 16)
    with pytest.raises(ValueError, match=r"each of generator\.scales once"):
        made("gabors", scales=(2, 2))
    with pytest.raises(ValueError, match=r"choose generator\.contrast between"):
        made("gabors", contrast=0.9)


@pytest.mark.parametrize("name", ["dct", "pixels", "squares"])
def test_frames_that_a_basis_can_draw_come_back_from_their_codes(name: str) -> None:
    generator = made(name, 60, 72, contrast=0.2)
    codes = generator.start(4, np.random.default_rng(0))
    frames = generator.decode(codes)
    assert generator.encode is not None
    back = generator.encode(frames)
    assert np.linalg.norm(back, axis=1) == pytest.approx(generator.prior.norm, rel=1e-4)
    assert np.abs(generator.decode(back).astype(int) - frames).mean() < 1
    assert np.array_equal(generator.encode(frames[[2]])[0], back[2])
    with pytest.raises(ValueError, match=r"this generator encodes uint8 \(60, 72, 3\)"):
        generator.encode(frames[:, :50])
    assert np.array_equal(generator.encode(np.full((1, 60, 72, 3), 128, np.uint8)), codes[:1] * 0)


@pytest.mark.parametrize("name", ["dct", "pixels"])
def test_photographs_are_drawn_as_well_as_a_basis_can(name: str) -> None:
    """The best picture of as many numbers leaves out fine detail only."""
    generator = made(name, 64, 64, contrast=0.25)
    bank = natural_bank(128, 0.25)
    photographs = np.stack([bank.image(n, 64, 64) for n in bank.names[:8]])
    assert generator.encode is not None
    drawn = generator.decode(generator.encode(photographs))
    similar = []
    for one, other in zip(drawn, photographs, strict=True):  # of coarse detail, and without the overall colour
        coarse = [gaussian_filter(f.astype(float), (3, 3, 0)) for f in (one, other)]
        similar.append(np.corrcoef(*((f - f.mean(axis=(0, 1))).ravel() for f in coarse))[0, 1])
    assert min(similar) > 0.8, similar
    assert np.mean(similar) > 0.9
    assert made("gabors").encode is None


# --- pixels and gabors ------------------------------------------------------------------------------------------------


def test_pixels_are_where_their_code_says() -> None:
    generator = made("squares", 48, 48, side=4)
    code = np.zeros((3, 4, 4), np.float32)
    code[:, 1, 2] = 1  # white, second row, third column
    frame = generator.decode(code.reshape(1, -1))[0].astype(int)
    square = frame[12:24, 24:36]
    assert len(np.unique(square)) == 1
    rest = np.ones((48, 48), bool)
    rest[12:24, 24:36] = False
    assert square.max() > frame[rest].max()
    assert len(np.unique(frame[rest])) == 1


def test_smooth_pixels_interpolate() -> None:
    share = spread(8, 4, smooth=True)
    assert share.sum(axis=1) == pytest.approx(1)
    assert share @ np.arange(4, dtype=np.float32) == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    assert spread(8, 4, smooth=False).argmax(axis=1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def gabor_code(
    generator: Generator, colour: int, phase: int, scale: int, turn: int, row: int, column: int
) -> np.ndarray:
    """Return the code with one Gabor of the generator above; scale, turn, row and column count from 0."""
    code = np.zeros(generator.latent_shape, np.float32)
    places = [scale + 1 for scale in (1, 2, 6) for _ in range(3)]
    block = 3 * scale + turn
    code[colour, phase, sum(p**2 for p in places[:block]) + row * places[block] + column] = 1
    return code.reshape(1, -1)


def test_a_gabor_has_its_place_scale_orientation_phase_and_colour() -> None:
    generator = made("gabors", 70, 70)
    frame = generator.decode(gabor_code(generator, 0, 0, scale=2, turn=0, row=1, column=4))[0].astype(float)
    assert np.array_equal(frame[..., 0], frame[..., 1])  # luminance
    centre = (1.5 / 7 * 70, 4.5 / 7 * 70)
    energy = (frame[..., 0] - frame[0, 0, 0]) ** 2
    rows, columns = np.mgrid[:70, :70] + 0.5
    assert np.average(rows, weights=energy) == pytest.approx(centre[0], abs=1)
    assert np.average(columns, weights=energy) == pytest.approx(centre[1], abs=1)
    spectrum = np.abs(np.fft.fft2(frame[..., 0] - frame[..., 0].mean()))[:35, :35]
    down, across = np.unravel_index(spectrum.argmax(), spectrum.shape)
    assert (down, across) == (0, pytest.approx(6, abs=1))  # 6 cycles per image, along x
    even = frame[15, :, 0]  # through its centre, which lies between two pixels
    sine = generator.decode(gabor_code(generator, 0, 1, scale=2, turn=0, row=1, column=4))[0][15, :, 0].astype(float)
    middle = 45
    assert even[middle - 8 : middle] == pytest.approx(even[middle : middle + 8][::-1], abs=1.5)
    assert sine[middle - 8 : middle] - 128 == pytest.approx(128 - sine[middle : middle + 8][::-1], abs=3)
    coloured = generator.decode(gabor_code(generator, 1, 0, scale=1, turn=1, row=0, column=0))[0].astype(float)
    assert np.ptp(coloured[..., 2]) <= 1  # red against green: blue stays
    red, green = coloured[..., 0] - 128, coloured[..., 1] - 128
    assert np.corrcoef(red.ravel(), green.ravel())[0, 1] < -0.99


def test_scales_of_gabors_have_the_same_share_of_contrast() -> None:
    generator = made("gabors", 72, 72)
    rng = np.random.default_rng(0)
    bounds = np.cumsum([0, *(3 * (s + 1) ** 2 for s in (1, 2, 6))])
    powers = []
    for k in range(3):
        # In luminance, beside far stronger colour, which alone decides by how much an image is scaled.
        codes = np.zeros((60, *generator.latent_shape), np.float32)
        codes[:, 0, :, bounds[k] : bounds[k + 1]] = rng.normal(size=(60, 2, bounds[k + 1] - bounds[k]))
        codes[:, 1] = 30 * rng.normal(size=codes[:, 1].shape)
        pictures = generator.decode(codes.reshape(60, -1)).astype(float)
        luminance = pictures.sum(axis=3)
        powers.append(luminance.var())
    assert max(powers) < 1.25 * min(powers), powers  # 1.44 without the normalisation
