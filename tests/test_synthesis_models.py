"""Images from two models, from saved ones, on another device; and the fine-tuning that keeps a computer busy."""

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from models.encoders.encoder import rates_of
from models.encoders.ensemble import Ensemble
from models.encoders.eye import Eye
from models.encoders.network import Network, fill_full, linear_nonlinear
from models.encoders.readouts import Point
from models.encoders.saved import read_network
from models.encoders.weights import write_state
from models.fine_tuning import FILE, FineTuning
from models.synthesis.devices import described, device_of, wait
from models.synthesis.engine import Synthesis, synthesise
from models.synthesis.focus import Focus, responses_of
from models.synthesis.objectives import Maximise
from models.synthesis.starts import draw
from models.synthesis_bench.comparing import Images, between_models, columns_of
from models.synthesis_bench.fitting import SESSION, architecture, place
from models.synthesis_bench.pictures import cut, near, patterns
from models.synthesis_bench.window import MARGIN_PX, window
from rig.cli import app
from rig.clock import FakeClock
from rig.config.encoders import Architecture
from rig.config.synthesis import Synthesis as Settings

F64 = npt.NDArray[np.float64]
TWIN = Path(os.environ.get("STIMLOOP_DATA", "../shared/data")) / "v1_twin"
CORE = {"type": "separable", "channels": 6, "layers": 2, "first_kernel_px": 5, "kernel_px": 3}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Benches set torch's threads and order of sums for their process."""
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(exact)


def gabor(shape: tuple[int, int], y0: float, x0: float, phase: float = 0.0) -> F64:
    y, x = np.mgrid[: shape[0], : shape[1]] - np.array([y0, x0])[:, None, None]
    found: F64 = np.exp(-(x**2 + y**2) / 18) * np.cos(0.9 * x + phase)
    return found


def linear(*filters: F64) -> Network:
    """Linear units e0, e1, .. with these filters (y, x)."""
    weights = np.stack([f - f.mean() for f in filters])
    made = linear_nonlinear(Eye(*weights.shape[1:]), [f"e{k}" for k in range(len(filters))], output="none")
    fill_full(made, weights.reshape(len(weights), -1), np.full(len(weights), 0.5))
    return made


def network(seed: int) -> Network:
    architecture = Architecture.model_validate({"core": CORE, "readout": {"type": "point", "start_range": 1.0}})
    return Network(architecture, Eye(20, 28), {"s": ["a", "b", "c"]}, seed)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_network_comes_back_from_its_file_alone(tmp_path: Path) -> None:
    made, path = network(3), tmp_path / "one.safetensors"
    write_state(path, made.state())
    back = read_network(path)
    assert (back.name, back.units, back.eye) == (made.name, made.units, made.eye)
    frames = np.random.default_rng(0).integers(0, 256, (4, 20, 28, 3), dtype=np.uint8)
    np.testing.assert_array_equal(rates_of(back, frames), rates_of(made, frames))
    for wrong, said in (({"kind": "ensemble"}, "holds a ensemble"), ({"eye": [1, 20]}, "is no network")):
        write_state(path, {**made.state(), **wrong})
        with pytest.raises(ValueError, match=said):
            read_network(path)


# --- two models -------------------------------------------------------------------------------------------------------


def test_images_of_two_models_agree_where_their_units_want_the_same() -> None:
    """Unit e0 has one filter in both models, e1 two that are orthogonal: neither image drives the other's unit."""
    shape, settings = (24, 32), Settings(iterations=40, step_from=30.0, step_to=3.0, contrast=0.05)
    same = gabor(shape, 12, 10)
    even, odd = gabor(shape, 12, 22), gabor(shape, 12, 22, np.pi / 2)
    made = []
    for number, encoder in enumerate((linear(same, even), linear(same, odd))):
        starts = draw(("display", "natural"), 2, encoder.eye, settings, np.random.default_rng(number))
        made.append(Images(encoder, (0, 1), synthesise(encoder, Maximise((0, 1)), starts, settings)))
    alike, unlike = between_models(made[0], made[1], made[0].masks())
    assert (alike["unit"], unlike["unit"]) == ("e0", "e1")
    assert alike["agreement"] > 0.95
    assert alike["closest"] >= alike["agreement"]
    assert min(alike["share_first"], alike["share_second"]) > 0.95
    assert abs(unlike["agreement"]) < 0.4
    assert max(unlike["share_first"], unlike["share_second"]) < 0.5
    own = made[0].rates(made[0].best)
    np.testing.assert_allclose(own, made[0].found.rates[[0, 1], made[0].found.best, 0], rtol=1e-5)
    assert columns_of(made[0].encoder, ("e1", "e0")) == (1, 0)
    with pytest.raises(ValueError, match="no unit e7"):
        columns_of(made[0].encoder, ("e0", "e7"))


def test_points_begin_where_units_look_whether_they_know_light_from_dark_or_not() -> None:
    rng = np.random.default_rng(0)
    pictures = torch.nn.functional.avg_pool2d(torch.from_numpy(rng.standard_normal((700, 1, 38, 66))), 3, 1).float()
    flat = pictures.flatten(1).double().numpy()
    at = ((12.0, 14.0), (22.0, 45.0))
    simple = np.maximum(flat @ gabor((36, 64), *at[0]).ravel(), 0)
    complex_cell = sum((flat @ gabor((36, 64), *at[1], phase).ravel()) ** 2 for phase in (0, np.pi / 2))
    made = Network(architecture(16, 3), Eye(36, 64), {SESSION: ["simple", "complex"]})
    place(made, pictures, np.stack([simple, complex_cell], 1).astype(np.float32))
    readout = made.of(SESSION).readout
    assert isinstance(readout, Point)
    rows, columns = readout.shape[1:]
    found = (readout.points().numpy() + 1) / 2 * [columns - 1, rows - 1] + 10  # pixels: (9 + 2 * 6 - 1) / 2
    assert np.abs(found[:, ::-1] - np.array(at)).max() <= 3


def test_pictures_near_images_are_like_them_and_an_ensemble_s_windows_give_its_mean() -> None:
    rng = np.random.default_rng(0)
    frames = np.clip(128 + 60 * np.stack([gabor((20, 28), 9, x) for x in (8, 14, 20)]), 0, 255)
    frames = np.rint(frames).astype(np.uint8)[..., None].repeat(3, 3)
    found = near(frames, 8, rng)
    assert found.shape == (27, 20, 28, 3)
    np.testing.assert_array_equal(found[:3], frames)
    alike = np.corrcoef(found[..., 0].reshape(27, -1))
    assert np.median([alike[k, k % 3] for k in range(3, 27)]) > 0.5
    assert alike[0, 3:].max() < 0.9999
    encoder = Ensemble((network(1), network(2)))
    x, units = encoder.eye.see(frames), torch.tensor([[2], [0], [1]])
    expected = encoder.rates(x).gather(1, units)
    torch.testing.assert_close(responses_of(encoder, 1)(x, units), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padded", [True, False])
def test_a_window_answers_as_the_whole_and_unpadded_networks_are_computed_in_windows(padded: bool) -> None:
    core = CORE | {"layers": 3, "padded": padded}
    architecture = Architecture.model_validate({"core": core, "readout": {"type": "point", "start_range": 0.3}})
    whole = Network(architecture, Eye(40, 52, 1, (110.0,), (60.0,)), {"s": [f"u{k}" for k in range(9)]}, 5).eval()
    with torch.no_grad():
        whole.of("s").scale.copy_(torch.arange(1.0, 10.0))
    columns = (7, 2, 4)
    part = window(whole, columns)
    assert part.units == ("u7", "u2", "u4")
    assert part.eye.height < 40 or part.eye.width < 52
    seen = [whole.seen(k) for k in columns]
    top, left = (max(0, min(one[axis] for one in seen) - MARGIN_PX) for axis in (0, 2))
    x = torch.randn(4, 1, 40, 52, generator=torch.Generator().manual_seed(0))
    inner = x[:, :, top : top + part.eye.height, left : left + part.eye.width]
    expected = whole.rates(x, torch.tensor(columns))
    torch.testing.assert_close(part.rates(inner), expected, rtol=1e-4, atol=1e-5)
    units = torch.tensor([[1], [0], [2], [1]])
    wanted = part.rates(inner).gather(1, units)
    torch.testing.assert_close(responses_of(part, 1)(inner, units), wanted, rtol=1e-4, atol=1e-5)


def test_a_window_as_narrow_as_its_filters_answers_as_the_whole() -> None:
    architecture = Architecture.model_validate({"core": CORE, "readout": {"type": "point"}})
    whole = Network(architecture, Eye(40, 5), {"s": ("a", "b")}, 5).eval()
    part = window(whole, (1,))
    top = max(0, whole.seen(1)[0] - MARGIN_PX)
    x = torch.randn(2, 1, 40, 5, generator=torch.Generator().manual_seed(0))
    answered = part.rates(x[:, :, top : top + part.eye.height])
    torch.testing.assert_close(answered, whole.rates(x)[:, 1:], rtol=1e-4, atol=1e-5)


def test_pieces_lie_within_photographs_and_patterns_have_their_contrast() -> None:
    rng = np.random.default_rng(0)
    shades = np.arange(5, dtype=np.uint8) * 50
    photographs = np.broadcast_to(shades[:, None, None, None], (5, 60, 60, 3))
    eye = Eye(12, 14, 1, (0.0,), (1.0,))
    pieces, photograph = cut(photographs, eye, 3, rng)
    assert photograph.tolist() == np.repeat(range(5), 3).tolist()
    expected = np.broadcast_to(shades[photograph][:, None, None, None], pieces.shape)
    np.testing.assert_allclose(pieces.numpy(), expected, atol=1e-4)
    ramp = np.broadcast_to((np.arange(60, dtype=np.uint8) * 4)[:, None], (1, 60, 60, 3)) * np.uint8([1, 0, 0])
    turned = np.sign(np.diff(cut(ramp, eye, 200, rng)[0].numpy()[:, 0], axis=2).mean((1, 2)))
    assert 70 < (turned < 0).sum() < 130  # half are mirrored
    assert cut(ramp, eye, 9, rng)[0].max() > 20  # red stays red, which counts three times as much as blue
    made = patterns(Eye(40, 44, 1, (0.0,), (1.0,)), 60, 0.2, rng).numpy()[:, 0]
    assert np.abs(made.mean((1, 2)) - 128).max() < 12  # bright and dark parts are clipped
    contrasts = made.std((1, 2)) / 127.5
    assert contrasts.max() < 0.21
    assert 0.09 < np.median(contrasts[contrasts < 0.12]) < 0.11 < np.quantile(contrasts, 0.6)
    assert np.abs(np.corrcoef(made.reshape(60, -1))[~np.eye(60, dtype=bool)]).mean() < 0.3


def test_the_bench_of_two_networks_runs_and_keeps_them(tmp_path: Path) -> None:
    if not (TWIN / "sensorium_sota_model.pth").exists():
        pytest.skip(f"no twin at {TWIN}; set STIMLOOP_DATA to the folder that holds v1_twin/")
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for k in range(100):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 10, 3), dtype=np.uint8))
            packed = io.BytesIO()
            coarse.resize((64, 40), Image.Resampling.BICUBIC).save(packed, "png")
            archive.writestr(f"{k}.png", packed.getvalue())
    out = tmp_path / "agreement.json"
    command = ["bench", "agreement", "--weights", str(TWIN), "--images", str(tmp_path), "--units", "2", "--starts", "2"]
    command += ["--epochs", "3", "--iterations", "4", "--threads", "1", "--out", str(tmp_path), "--json", str(out)]
    command += ["--learned", "5", "--members", "2", "--rounds", "1", "--filters", "4", "--layers", "2"]
    command += ["--pieces", "3", "--patterns", "40"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "round 1: own images drive the units to" in done.output
    found = json.loads(out.read_text())
    assert -1 <= found["agreement_with_other"] <= 1
    assert len(found["rows_with_other"]) == 2
    assert len(found["share_of_truth"]) == len(found["score_median"]) == 2
    made = [read_network(tmp_path / f"network_{k}.safetensors") for k in ("1_1", "1_2", "2_1", "2_2")]
    assert len({network.name for network in made}) == 4
    units = made[0].units
    assert all((network.units, network.core.shape[0]) == (units, 4) for network in made)
    assert (len(units), units[:2]) == (5, tuple(row["unit"] for row in found["rows_with_other"]))
    fewer = CliRunner().invoke(app, [*command, "--learned", "1"])
    assert fewer.exit_code == 2
    assert "learned: 1 of 2 units" in fewer.stderr
    empty = CliRunner().invoke(app, [*command[:5], str(tmp_path / "none"), *command[6:]])
    assert empty.exit_code == 2
    assert "0 pictures" in empty.stderr


# --- devices ----------------------------------------------------------------------------------------------------------


def test_every_tensor_of_a_step_is_on_the_device_that_is_given() -> None:
    """Torch's device without numbers stands in for a GPU: it refuses a step that mixes it with the processor."""
    settings, units = Settings(iterations=2), torch.tensor([[0], [2]])
    starts = draw(("display",), 2, network(0).eye, settings, np.random.default_rng(0))
    other = torch.device("meta")
    places = Focus(network(0))._places(units[:, 0], other)  # where windows lie is computed from numbers
    assert {one.device.type for one in (places.share, places.pixels)} == {"meta"}
    work = Synthesis(network(0).to(other), Maximise((0, 2)), starts, settings, other)
    seeing = work._responses
    assert isinstance(seeing, Focus)
    work._x, work._group_goals, work._group_units = (
        x.to(other) for x in (torch.from_numpy(starts[:, 0]), torch.arange(2), units)
    )
    seeing._units_before, seeing._places_before = work._group_units, places
    climbed = work._climbed(0)
    assert (climbed.device.type, climbed.shape) == ("meta", (2, 1, 20, 28))
    seeing._places_before = Focus(network(0))._places(units[:, 0], torch.device("cpu"))
    with pytest.raises(RuntimeError, match="device"):
        work._climbed(1)


def test_a_device_is_chosen_named_and_refused_where_it_is_not_there() -> None:
    there = torch.cuda.is_available()
    assert device_of("cpu").type == "cpu"
    assert device_of("auto").type == ("cuda" if there else "cpu")
    assert described(torch.device("cpu")) == "processor (1 thread)"
    wait(torch.device("cpu"))
    if not there:
        with pytest.raises(ValueError, match="no GPU here; choose cpu or auto"):
            device_of("cuda")
        done = CliRunner().invoke(app, ["bench", "synthesis", "--weights", "nowhere", "--device", "cuda"])
        assert done.exit_code == 2
        assert "--device" in done.stderr


# --- fine-tuning without end ------------------------------------------------------------------------------------------


def test_fine_tuning_computes_slices_of_a_core_and_says_how_many(tmp_path: Path) -> None:
    tuning = FineTuning(1, FakeClock().now_ns)
    before = {name: p.clone() for name, p in tuning.network.core.named_parameters()}
    for _ in range(8):  # four slices that score, then a batch of four
        tuning.step()
    assert any(not torch.equal(before[name], p) for name, p in tuning.network.core.named_parameters())
    tuning.write(tmp_path)
    assert json.loads((tmp_path / FILE).read_text())["core_steps"] == 8
