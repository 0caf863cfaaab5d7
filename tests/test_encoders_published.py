"""Published weights as encoders: SENSORIUM 2022 and compact V4 models, where the data are; refusals always."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.encoders.compact_v4 import compact_v4
from models.encoders.cores import LAPLACE
from models.encoders.encoder import rates_of
from models.encoders.sensorium import sensorium
from models.encoders.weights import read_state, write_state
from models.truth_v4 import fit_rate, load_model, outputs, recorded_counts, recorded_images
from rig.config.reading import ConfigError

DATA = Path(os.environ.get("STIMLOOP_DATA", Path(__file__).parents[2] / "shared" / "data"))
UNITS = 5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from threads, and beside other tests lose minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checkpoint(layers: int = 4) -> dict[str, Tensor]:
    """Return tensors under the names of the published files, of few units."""
    drawn = torch.Generator().manual_seed(1)

    def some(*shape: int) -> Tensor:
        return torch.rand(shape, generator=drawn) - 0.5

    state = {"core._input_weights_regularizer.laplace.filter": torch.tensor(LAPLACE).reshape(1, 1, 3, 3)}
    for k in range(layers):
        at = f"core.features.layer{k}"
        if k == 0:
            state[f"{at}.conv.weight"] = some(64, 1, 9, 9)
        else:
            state[f"{at}.ds_conv.in_depth_conv.weight"] = some(64, 64, 1, 1)
            state[f"{at}.ds_conv.spatial_conv.weight"] = some(64, 1, 7, 7)
            state[f"{at}.ds_conv.out_depth_conv.weight"] = some(64, 64, 1, 1)
        for name in ("weight", "bias", "running_mean"):
            state[f"{at}.norm.{name}"] = some(64)
        state[f"{at}.norm.running_var"] = some(64) + 1
        state[f"{at}.norm.num_batches_tracked"] = torch.tensor(7)
    at = "readout.mouse-1"
    state |= {f"{at}.sigma": some(1, UNITS, 2, 2), f"{at}._features": some(1, 64, 1, UNITS), f"{at}.bias": some(UNITS)}
    state |= {f"{at}.source_grid": some(UNITS, 2), f"{at}.mu_transform.0.weight": some(30, 2)}
    state |= {f"{at}.mu_transform.0.bias": some(30), f"{at}.mu_transform.2.weight": some(2, 30)}
    return state | {f"{at}.mu_transform.2.bias": some(2)}


def straightforward(state: dict[str, Tensor], x: Tensor, linear: bool) -> Tensor:
    """Return the responses (n, unit) as models.md describes them, one operation after the other."""
    functional = torch.nn.functional
    for k in range(3 if linear else 4):
        at = f"core.features.layer{k}"
        if k == 0:
            x = functional.conv2d(x, state[f"{at}.conv.weight"])
        else:
            x = functional.conv2d(x, state[f"{at}.ds_conv.in_depth_conv.weight"])
            x = functional.conv2d(x, state[f"{at}.ds_conv.spatial_conv.weight"], padding=3, groups=64)
            x = functional.conv2d(x, state[f"{at}.ds_conv.out_depth_conv.weight"])
        mean, variance = state[f"{at}.norm.running_mean"], state[f"{at}.norm.running_var"]
        x = functional.batch_norm(x, mean, variance, state[f"{at}.norm.weight"], state[f"{at}.norm.bias"])
        x = x if linear else functional.elu(x)
    at = "readout.mouse-1"
    hidden = state[f"{at}.source_grid"] @ state[f"{at}.mu_transform.0.weight"].T + state[f"{at}.mu_transform.0.bias"]
    mu = (functional.elu(hidden) @ state[f"{at}.mu_transform.2.weight"].T + state[f"{at}.mu_transform.2.bias"]).tanh()
    columns = []
    for unit in range(UNITS):
        column, row = (mu[unit] + 1) / 2 * (torch.tensor([x.shape[3], x.shape[2]]) - 1)
        c, r = int(column), int(row)
        a, b = column - c, row - r
        up, down = x[:, :, r], x[:, :, r + 1]
        above, below = ((1 - a) * line[..., c] + a * line[..., c + 1] for line in (up, down))
        found = (1 - b) * above + b * below
        columns.append(found @ state[f"{at}._features"][0, :, 0, unit] + state[f"{at}.bias"][unit])
    return functional.elu(torch.stack(columns, 1)) + 1


@pytest.mark.parametrize("linear", [False, True])
def test_a_checkpoint_computes_what_its_paper_says(linear: bool, tmp_path: Path) -> None:
    state = checkpoint(3 if linear else 4)
    torch.save(state, tmp_path / "model.pth")
    loaded = sensorium(tmp_path / "model.pth", linear, mean=110.0, sd=60.0)
    assert loaded.units == ("n0", "n1", "n2", "n3", "n4")
    frames = np.random.default_rng(2).integers(0, 256, (3, 72, 128, 3), dtype=np.uint8)
    x = loaded.eye.see(frames)
    torch.testing.assert_close(loaded.rates(x), straightforward(state, x, linear), rtol=1e-4, atol=1e-5)
    assert loaded.rates(x).std(0).median() > 1e-3
    write_state(tmp_path / "ours.safetensors", loaded.state())  # where points come from cortex, the state holds that
    name = loaded.name
    loaded.change_units("mouse-1", ("n3",), 1, torch.zeros(1, 2))
    assert loaded.name != name
    loaded.restore(read_state(tmp_path / "ours.safetensors"))
    assert loaded.name == name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"core.features.layer3.norm.bias": None}, r"no tensor core.features.layer3.norm.bias; expected .* \(64,\)"),
        ({"readout.mouse-1.sigma": torch.zeros(1, 4, 2, 2)}, r"sigma has shape \(1, 4, 2, 2\); expected \(1, 5"),
        ({"core.extra": torch.zeros(2)}, r"core.extra has no place in this model"),
        ({"readout.mouse-1.bias": torch.full((5,), float("nan"))}, r"readout.mouse-1.bias holds numbers that are not"),
        ({"readout.mouse-1._features": None}, r"expected one tensor readout.SESSION._features, found 0"),
        ({"core._input_weights_regularizer.laplace.filter": torch.zeros(1, 1, 3, 3)}, "is not the Laplacian"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    change: dict[str, Tensor | None], words: str, tmp_path: Path
) -> None:
    state = {name: t for name, t in (checkpoint() | change).items() if t is not None}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=words):
        sensorium(tmp_path / "model.safetensors", False, 110.0, 60.0)


def test_the_linear_control_is_not_taken_for_the_network(tmp_path: Path) -> None:
    save_file(checkpoint(3), tmp_path / "ln.safetensors")
    with pytest.raises(ValueError, match="layer3"):
        sensorium(tmp_path / "ln.safetensors", False, 110.0, 60.0)
    save_file(checkpoint(4), tmp_path / "cnn.safetensors")
    with pytest.raises(ValueError, match="layer3"):
        sensorium(tmp_path / "cnn.safetensors", True, 110.0, 60.0)


def published(folder: str) -> Path:
    path = DATA / folder
    if not path.is_dir():
        pytest.skip(f"no published weights at {path}; set STIMLOOP_DATA to the folder that holds {folder}/")
    return path


def crops(count: int) -> npt.NDArray[np.uint8]:
    """Return pieces of photographs of the shape that mice were shown, 63 x 112."""
    return recorded_images(published("v4"), "201025", count)[:, 24:87]


def test_the_published_models_of_mouse_v1_agree_as_they_should() -> None:
    """Of shared/data/README.md: both finite, mean output .32, median correlation .62 over neurons."""
    folder, shown = published("v1_twin"), crops(40)
    cnn = rates_of(sensorium(folder / "sensorium_sota_model.pth", False, 110.0, 60.0), shown)
    ln = rates_of(sensorium(folder / "sensorium_ln_model.pth", True, 110.0, 60.0), shown)
    assert np.isfinite(cnn).all()
    assert np.isfinite(ln).all()
    assert cnn.mean() == pytest.approx(0.32, abs=0.03)
    each = [np.corrcoef(cnn[:, k], ln[:, k])[0, 1] for k in range(0, cnn.shape[1], 5)]
    assert np.median(each) == pytest.approx(0.62, abs=0.05)


def test_compact_models_are_one_encoder() -> None:
    folder = published("v4")
    shown, counts = recorded_images(folder, "190923", 24), recorded_counts(folder, "190923")
    plain = compact_v4(folder / "compact_models", "190923", 3)
    assert plain.units == ("neuron0", "neuron1", "neuron2")
    raw = np.stack([outputs(load_model(folder / "compact_models", "190923", n), shown) for n in range(3)], 1)
    np.testing.assert_allclose(rates_of(plain, shown), raw, rtol=1e-4, atol=1e-5)
    one = plain.rates(plain.eye.see(shown[:4]), torch.tensor([2]))
    np.testing.assert_allclose(one[:, 0].numpy(), raw[:4, 2], rtol=1e-4, atol=1e-5)
    fitted = compact_v4(folder / "compact_models", "190923", 3, recorded=folder, fit_images=24)
    rates = rates_of(fitted, shown[:10])
    a, b = fit_rate(raw[:, 1], counts[1, :24])
    np.testing.assert_allclose(rates[:, 1], np.logaddexp(0, a * raw[:10, 1] + b), rtol=1e-3)
    assert fitted.name != plain.name
    again = compact_v4(folder / "compact_models", "190923", 3, recorded=folder, fit_images=10)
    again.restore(fitted.state())
    assert again.name == fitted.name
    with pytest.raises(ValueError, match="compact V4"):
        plain.restore(fitted.state())


def test_a_folder_without_compact_models_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none: .* has no models_torch"):
        compact_v4(tmp_path, "190923")
