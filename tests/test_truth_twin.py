"""The published V1 model as the animal: right neurons, right pixels, right scale; mistakes named."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models.truth import build, build_for
from models.truth_twin import COLUMNS, ROWS, TRAINING_MEAN, TRAINING_SD, Twin, points_px
from rig.config.animal import Simulation
from rig.config.reading import ConfigError
from rig.config.session import Config
from stimuli.geometry import Rect, pixel_angles

AZIMUTH, ELEVATION = pixel_angles(Rect(346, 246, 108, 108), (800, 600), 40.0, 30.0)


@pytest.fixture(scope="module")
def weights() -> Path:
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("STIMLOOP_DATA", default)) / "v1_twin" / "sensorium_sota_model.pth"
    if not path.exists():
        pytest.skip(f"no V1 model at {path}; set STIMLOOP_DATA to the folder that holds v1_twin/")
    return path


@pytest.fixture(scope="module")
def twin(weights: Path) -> Twin:
    found = build(Simulation(population="twin", weights=weights, neurons=12, seed=3), AZIMUTH, ELEVATION)
    assert isinstance(found, Twin)
    return found


def test_rates_are_the_network_on_the_image_in_the_middle_of_grey(twin: Twin) -> None:
    """Whole pixels: each of the network's is the mean of 3 x 3 of the image's."""
    image = np.random.default_rng(0).random((108, 108, 3)).astype(np.float32)
    light = image @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    field = np.full((ROWS, COLUMNS), 0.5)
    field[:, 14:50] = light.reshape(36, 3, 36, 3).mean(axis=(1, 3))
    x = torch.from_numpy((field * 255 - TRAINING_MEAN) / TRAINING_SD).float()[None, None]
    with torch.inference_mode():
        whole = twin.network.rates(x)[0].numpy()
    assert whole.shape == (7776,)
    assert twin.rate_hz(image) == pytest.approx(30.0 * whole[twin.numbers], rel=1e-4, abs=1e-3)
    assert np.all(twin.rate_hz(image) >= 0)


def test_neurons_are_drawn_by_seed_from_those_that_look_into_the_image(twin: Twin, weights: Path) -> None:
    points = points_px(twin.network)[twin.numbers]
    assert np.abs(points - [COLUMNS / 2, ROWS / 2]).max() <= 14
    assert len(set(twin.numbers.tolist())) == 12
    assert twin.units[0] == "E01#0"
    same = Simulation(population="twin", weights=weights, neurons=2, numbers=(7, 5000), response_sd_hz=60.0)
    named = build(same, AZIMUTH, ELEVATION)
    assert isinstance(named, Twin)
    assert named.numbers.tolist() == [7, 5000]
    image = np.random.default_rng(0).random((108, 108, 3)).astype(np.float32)
    plain = Twin(twin.network, named.numbers, 30.0, twin._view, twin._place)
    assert named.rate_hz(image) == pytest.approx(2 * plain.rate_hz(image))


def test_a_neuron_answers_to_what_is_where_its_receptive_field_is_said_to_be(twin: Twin) -> None:
    """Noise in the stated square moves a neuron's rate more than the same noise in an equal square elsewhere."""
    rng = np.random.default_rng(1)
    inside, outside = [], []
    for unit, place in enumerate(twin.receptive_fields[:4]):
        (right, up), half = place.center_deg, place.size_deg / 2
        here = (np.abs(AZIMUTH - right) < half) & (np.abs(ELEVATION - up) < half)
        away = up - 2.2 * half if up > 0 else up + 2.2 * half
        there = (np.abs(AZIMUTH - right) < half) & (np.abs(ELEVATION - away) < half)
        for mask, found in ((here, inside), (there, outside)):
            coarse = np.kron(rng.random((4, 27, 27)), np.ones((4, 4)))
            images = np.where(mask, coarse, 0.5)[..., None].repeat(3, axis=3).astype(np.float32)
            found.append(np.std([twin.rate_hz(image)[unit] for image in images]))
    assert np.mean(inside) > 3 * np.mean(outside)


def test_the_twin_lies_where_the_receptive_field_of_the_config_says(weights: Path) -> None:
    import yaml

    text = yaml.safe_load((Path(__file__).parents[1] / "configs" / "demo.yaml").read_text())
    animal = {"population": "twin", "weights": str(weights), "neurons": 4}
    text["animal"] = animal | {"receptive_field": {"center_deg": [3.0, 2.0], "size_deg": 8.0}}
    for place in build_for(Config.model_validate(text)).receptive_fields:
        assert np.abs(np.subtract(place.center_deg, (3.0, 2.0))).max() < 4.0
    text["animal"]["receptive_field"]["scatter_deg"] = 1.0
    with pytest.raises(ValueError, match="neurons lie where they lie"):
        Config.model_validate(text)


def test_mistakes_are_named(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="population twin needs weights"):
        Simulation(population="twin")
    with pytest.raises(ValueError, match="must be 3 different ones"):
        Simulation(population="twin", weights=weights, neurons=3, numbers=(1, 1, 2))

    def complaint(**change: object) -> str:
        simulation = Simulation(population="twin", weights=weights).model_copy(update=change)
        with pytest.raises(ConfigError) as caught:
            build(simulation, AZIMUTH, ELEVATION)
        return str(caught.value)

    assert "animal.weights: population twin needs" in complaint(weights=None)
    assert "neuron 7776 asked for" in complaint(numbers=(0, 7776), neurons=2)
    assert "8000 asked for" in complaint(neurons=8000)
    assert "animal.weights" in complaint(weights=tmp_path / "none.pth")
    assert "animal.weights" in complaint(weights=weights.parent / "sensorium_ln_model.pth")
