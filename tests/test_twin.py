"""The twin: fitted to cells whose truth is known, it predicts what it was not fitted to, and says how well."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from models.truth import V1, draw_cells
from models.twin import SIDE, Noise, TooLittle, Twin, fit, noise_of, reduced
from stimuli.generators import DctGenerator

SIZE = 48
IMAGES, TRAINED, REPEATED, REPEATS = 360, 300, 60, 8
SIMPLE, COMPLEX = 0, 1


@dataclass
class World:
    frames: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.float64]
    """(image, cell) noise-free rates."""
    image: npt.NDArray[np.int64]
    fixed: npt.NDArray[np.bool_]
    seconds: float = 0.3

    def rates(self, cell: int, seed: int) -> npt.NDArray[np.float64]:
        """Return Poisson responses (trial,), spikes/s."""
        rng = np.random.default_rng(seed)
        return rng.poisson(self.truth[self.image, cell] * self.seconds) / self.seconds


@pytest.fixture(scope="module")
def world() -> World:
    rng = np.random.default_rng(4)
    generator = DctGenerator(SIZE, SIZE, 6, 0.75, 0.3)
    frames = generator.decode(generator.start(IMAGES, rng))
    elevation, azimuth = np.mgrid[5 : -5 : SIZE * 1j, -5 : 5 : SIZE * 1j]
    cells = V1(draw_cells(2, azimuth, elevation, rng), azimuth, elevation)
    truth = np.stack([cells.rate_hz((f / np.float32(255)).astype(np.float32)) for f in frames])
    image = np.concatenate([np.arange(IMAGES), np.repeat(np.arange(REPEATED), REPEATS - 1)])
    return World(frames, truth, image, np.ones(len(image), np.bool_))


@pytest.fixture(scope="module")
def twins(world: World) -> list[Twin]:
    """Fitted to the first images only."""
    known = world.image < TRAINED
    pictures, image, fixed = reduced(world.frames[:TRAINED]), world.image[known], world.fixed[known]
    return [fit(pictures, image, world.rates(cell, 1)[known], fixed, 0) for cell in (SIMPLE, COMPLEX)]


@pytest.mark.parametrize("cell", [SIMPLE, COMPLEX])
def test_it_predicts_images_that_it_was_not_fitted_to(world: World, twins: list[Twin], cell: int) -> None:
    predicted, worth = twins[cell].rate_hz(reduced(world.frames[TRAINED:])), twins[cell].worth
    true_r = np.corrcoef(predicted, world.truth[TRAINED:, cell])[0, 1]
    rates = world.rates(cell, 1)
    measured = np.array([rates[world.image == k].mean() for k in range(TRAINED, IMAGES)])
    assert true_r > 0.6
    # What it says of itself is what new images show, and no more than the noise allows.
    assert abs(worth.held_out_r - np.corrcoef(predicted, measured)[0, 1]) < 0.2
    assert worth.held_out_r < worth.ceiling_r + 0.1
    assert (worth.images, worth.trials) == (TRAINED, int((world.image < TRAINED).sum()))
    assert worth.warnings() == []


def test_a_complex_cell_needs_energy(twins: list[Twin]) -> None:
    assert "energy" in twins[COMPLEX].worth.features


@pytest.mark.parametrize("cell", [SIMPLE, COMPLEX])
def test_the_ceiling_is_what_the_truth_itself_reaches(world: World, twins: list[Twin], cell: int) -> None:
    known = world.image < TRAINED
    mean = np.bincount(world.image[known], world.rates(cell, 1)[known]) / np.bincount(world.image[known])
    truth_r = np.corrcoef(mean, world.truth[:TRAINED, cell])[0, 1]
    assert abs(twins[cell].worth.ceiling_r - truth_r) < 0.08


def test_noise_without_a_signal_is_said_to_be_worth_nothing(world: World) -> None:
    rates = np.random.default_rng(5).poisson(3.0, len(world.image)) / 0.1
    twin = fit(reduced(world.frames), world.image, rates, world.fixed, 0)
    assert abs(twin.worth.held_out_r) < 0.2
    assert any("explains little" in line for line in twin.worth.warnings())


def test_the_noise_of_poisson_repeats_grows_with_the_rate() -> None:
    rng = np.random.default_rng(6)
    rate = np.linspace(10, 80, 60)
    image = np.repeat(np.arange(60), 40)
    noise = noise_of(image, rng.poisson(rate[image] * 0.1) / 0.1, np.ones(len(image), np.bool_))
    assert noise.repeated == 60
    assert noise.variance(np.array([50.0]))[0] == pytest.approx(500.0, rel=0.1)  # rate / window
    assert noise.variance(np.array([20.0]))[0] == pytest.approx(200.0, rel=0.3)
    drawn = noise.draw(np.full(20_000, 50.0), rng)
    assert drawn.var() == pytest.approx(float(noise.variance(np.array([50.0]))[0]), rel=0.05)


def test_repeats_of_chosen_images_do_not_count_as_noise_where_others_were_repeated() -> None:
    rng = np.random.default_rng(7)
    image = np.concatenate([np.repeat(np.arange(10), 20), np.repeat(np.arange(10, 30), 2)])
    rates = rng.normal(0, 1, len(image))
    rates[200::2] += 8.0  # the first response of each chosen image was a lucky one
    fixed = image < 10
    lucky = np.array([4.0])  # their mean
    assert noise_of(image, rates, fixed).variance(lucky)[0] < 2.0
    assert noise_of(image, rates, np.ones_like(fixed)).variance(lucky)[0] > 20.0


def test_images_that_are_unlike_all_shown_ones_are_known_as_such(world: World, twins: list[Twin]) -> None:
    noise = np.random.default_rng(8).integers(0, 256, (20, SIDE, SIDE, 3), np.uint8)
    assert twins[SIMPLE].unknown(reduced(world.frames[:50])) == 0.0
    assert twins[SIMPLE].unknown(noise) == 1.0


def test_too_little_is_refused(world: World) -> None:
    pictures = reduced(world.frames[:20])
    image = np.arange(20)
    with pytest.raises(TooLittle, match="20 images have usable responses; a twin needs 40"):
        fit(pictures, image, np.arange(20.0), np.ones(20, np.bool_), 0)


def test_reduced_keeps_the_mean_and_a_uniform_grey() -> None:
    rng = np.random.default_rng(9)
    frames = rng.integers(0, 256, (3, 105, 99, 3), np.uint8)
    small = reduced(frames)
    assert small.shape == (3, SIDE, SIDE, 3)
    assert np.allclose(small.mean(axis=(1, 2)), frames.mean(axis=(1, 2)), atol=1.0)
    assert (reduced(np.full((1, 105, 99, 3), 128, np.uint8)) == 128).all()


def test_a_noise_model_has_no_negative_variance() -> None:
    assert (Noise(2.0, 0.5, 3).variance(np.array([-50.0, 0.0, 4.0])) == [2.0, 2.0, 4.0]).all()
