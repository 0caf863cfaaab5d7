"""Generators with a network: gradients, DeePSiM weights in both naming schemes, taef2."""

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from models.__main__ import _server
from models.generators import deepsim, taef2
from models.generators.factory import build_generator
from models.generators.state_dicts import read_state
from models.generators.torch_generator import Decoder, TorchGenerator
from rig.config.generators import DeepsimGenerator, Taef2Generator
from rig.config.reading import parse
from stimuli.generators.generator import normal_prior
from stimuli.limits import frame_levels

State = dict[str, Tensor]
DATA = Path(os.environ.get("STIMLOOP_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(strict)


# --- any torch decoder ------------------------------------------------------------------------------------------------


def tiny_decoder() -> Decoder:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(12, 4 * 64), nn.Unflatten(1, (4, 8, 8)), nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(),
        nn.Upsample(scale_factor=4), nn.Conv2d(16, 3, 3, padding=1), nn.Sigmoid(),
    )  # fmt: skip
    return Decoder("tiny", "0", network.eval().requires_grad_(False), (12,), 32, normal_prior(12))


def test_gradients_reach_the_code_and_levels_are_those_of_the_frames() -> None:
    generator = TorchGenerator(tiny_decoder(), 32, 32, None, 128)
    codes = generator.start(3, np.random.default_rng(0))
    given = torch.from_numpy(codes).requires_grad_()
    levels = generator.levels(given)
    assert levels.shape == (3, 3, 32, 32)
    levels[1].sum().backward()
    assert given.grad is not None
    assert (given.grad.abs().sum(dim=1) > 0).tolist() == [False, True, False]
    frames = generator.decode(codes)
    assert np.abs(levels.detach().numpy().transpose(0, 2, 3, 1) * 255 - frames).max() <= 0.51
    assert generator.differentiable
    assert generator.encode is None


# --- DeePSiM ----------------------------------------------------------------------------------------------------------

# Written by hand from the published description: name in Wang's files, in XDream's, shape of the weight.
FC = (("defc7", "fc7", (4096, 4096)), ("defc6", "fc6", (4096, 4096)), ("defc5", "fc5", (4096, 4096)))
POOL = (
    ("Rconv6", "conv6", (512, 256, 3, 3)), ("Rconv7", "conv7", (512, 512, 3, 3)), ("Rconv8", "conv8", (512, 512, 3, 3)),
)  # fmt: skip
DECONVOLUTIONS = (
    ("deconv5", "tconv5_0", (256, 256, 4, 4)), ("conv5_1", "tconv5_1", (256, 512, 3, 3)),
    ("deconv4", "tconv4_0", (512, 256, 4, 4)), ("conv4_1", "tconv4_1", (256, 256, 3, 3)),
    ("deconv3", "tconv3_0", (256, 128, 4, 4)), ("conv3_1", "tconv3_1", (128, 128, 3, 3)),
    ("deconv2", "tconv2", (128, 64, 4, 4)), ("deconv1", "tconv1", (64, 32, 4, 4)), ("deconv0", "tconv0", (32, 3, 4, 4)),
)  # fmt: skip


def tile(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return random weights of a shape that keep the size of their input's values; a few numbers, many times."""
    few = torch.randn(shape[0], min(shape[1], 64), *shape[2:], generator=torch.Generator().manual_seed(seed))
    repeats = -(-shape[1] // few.shape[1])
    whole = few.repeat(1, repeats, *[1] * (len(shape) - 2))[:, : shape[1]]
    return whole * (1.5 / (np.prod(shape) / max(shape[0], shape[1])) ** 0.5)


def wang_state(layer: str) -> State:
    first = POOL if layer == "pool5" else FC
    if layer == "fc8":
        first = (("defc7", "fc7", (4096, 1000)), *FC[1:])
    out = State()
    for k, (name, _, shape) in enumerate((*first, *DECONVOLUTIONS)):
        size = (512, *shape[1:]) if layer == "pool5" and name == "deconv5" else shape
        out[f"{name}.weight"] = tile(size, k)
        deconvolution = (name, _, shape) in DECONVOLUTIONS
        out[f"{name}.bias"] = torch.zeros(size[1]) if deconvolution else torch.randn(size[0]) * 0.1
    return out


def xdream_state(state: State) -> State:
    """Return the same weights as XDream has them: its names, deconvolutions without bias."""
    names = {ours: theirs for ours, theirs, _ in (*FC, *POOL, *DECONVOLUTIONS)}
    without = {ours for ours, *_ in DECONVOLUTIONS}
    pairs = ((*key.split("."), tensor) for key, tensor in state.items())
    return {f"{names[a]}.{b}": t for a, b, t in pairs if not (b == "bias" and a in without)}


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    torch.manual_seed(0)
    return {layer: wang_state(layer) for layer in ("fc6", "fc8", "pool5")}


def pictures(state: State, layer: str) -> tuple[np.ndarray, str]:
    """Return what a state makes of two start codes, and the hash of its weights."""
    network, digest = deepsim.load(dict(state), layer, Path("given.pt"))
    codes = torch.from_numpy(deepsim.published_prior(layer).sample(2, np.random.default_rng(0)))
    with torch.inference_mode():
        return network(codes.reshape(2, *deepsim.SHAPES[layer])).numpy(), digest


@pytest.fixture(scope="module")
def plain(states: dict[str, State]) -> dict[str, tuple[np.ndarray, str]]:
    """Return what Wang's dicts draw, and the hashes of their weights."""
    return {layer: pictures(states[layer], layer) for layer in ("fc6", "pool5")}


@pytest.mark.parametrize("layer", ["fc6", "pool5"])
def test_both_naming_schemes_give_identical_images(
    states: dict[str, State], plain: dict[str, tuple[np.ndarray, str]], layer: str
) -> None:
    wang, (expected, digest) = states[layer], plain[layer]
    assert expected.shape == (2, 3, 256, 256)
    assert expected.std() > 0.1
    assert 0 <= expected.min() <= expected.max() <= 1
    older = {k.replace(".", ".1.") if "conv" in k else k: v for k, v in wang.items()}
    assert "deconv5.1.weight" in older
    others = (xdream_state(wang), {f"G.{k}": v for k, v in wang.items()}, older)
    for other in others if layer == "pool5" else others[:1]:  # fc6 is large
        images, same = pictures(other, layer)
        assert np.array_equal(images, expected)
        assert same == digest, "the name of a generator does not depend on the names in the file"


def test_the_network_is_the_published_one(
    states: dict[str, State], plain: dict[str, tuple[np.ndarray, str]]
) -> None:
    """The same computation, written out from the description."""
    w = states["fc6"]
    code = torch.from_numpy(deepsim.published_prior("fc6").sample(2, np.random.default_rng(0)))
    x = code[:1]
    for name in ("defc7", "defc6", "defc5"):
        x = nn.functional.leaky_relu(x @ w[f"{name}.weight"].T + w[f"{name}.bias"], 0.3)
    x = x.view(-1, 256, 4, 4)
    for name, _, shape in DECONVOLUTIONS:
        x = nn.functional.conv_transpose2d(x, w[f"{name}.weight"], stride=2 if shape[2] == 4 else 1, padding=1)
        x = x if name == "deconv0" else nn.functional.leaky_relu(x, 0.3)
    image = torch.clip(x[:, [2, 1, 0]] + torch.tensor([123.0, 117.0, 104.0]).view(1, 3, 1, 1), 0, 255) / 255
    assert plain["fc6"][0][0] == pytest.approx(image[0].numpy(), abs=1e-4)


def test_a_bias_of_a_deconvolution_counts_where_there_is_one(
    states: dict[str, State], plain: dict[str, tuple[np.ndarray, str]]
) -> None:
    shifted = states["pool5"] | {"deconv0.bias": torch.tensor([20.0, 0.0, 0.0])}  # of blue
    difference = (pictures(shifted, "pool5")[0] - plain["pool5"][0]) * 255
    assert np.median(difference[:, 2]) == pytest.approx(20, abs=0.1)
    assert np.abs(difference[:, :2]).max() < 1e-3


WRONG = {
    "shape": ("pool5", {"conv4_1.weight": torch.zeros(256, 128, 3, 3)}, [],
              r"tensor conv4_1\.weight has shape \(256, 128, 3, 3\); expected \(256, 256, 3, 3\)"),
    "missing": ("pool5", {}, ["deconv2.weight"],
                r"there is no tensor deconv2\.weight; expected one of shape \(128, 64, 4, 4\)"),
    "missing bias": ("pool5", {}, ["Rconv7.bias"], r"there is no tensor Rconv7\.bias; expected one of shape \(512,\)"),
    "too many": ("pool5", {"head.weight": torch.zeros(3)}, [], r"tensor head\.weight has no place in this network"),
    "twice": ("pool5", {"tconv2.weight": torch.zeros(3)}, [], r"deconv2\.weight and tconv2\.weight are the same one"),
    "broken": ("pool5", {"deconv1.bias": torch.full((32,), np.nan)}, [], r"deconv1\.bias .* does not hold finite"),
    "counts": ("pool5", {"deconv1.bias": torch.zeros(32, dtype=torch.int64)}, [], r"deconv1\.bias \(torch\.int64\)"),
    "another layer": ("fc8", {}, [], r"tensor defc7\.weight has shape \(4096, 1000\); expected \(4096, 4096\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_dict_is_refused_with_the_tensor_and_what_was_expected_and_found(
    states: dict[str, State], what: str
) -> None:
    layer, changes, without, words = WRONG[what]
    state = {k: v for k, v in (states[layer] | changes).items() if k not in without}
    with pytest.raises(ValueError, match=words) as error:
        deepsim.load(state, "fc6" if what == "another layer" else layer, Path("given.pt"))
    assert str(error.value).startswith("given.pt: ")
    assert "\n" not in str(error.value)


def test_a_missing_tensor_is_named_as_the_file_names_its_like(states: dict[str, State]) -> None:
    state = xdream_state(states["pool5"])
    del state["tconv3_1.weight"]
    with pytest.raises(ValueError, match=r"there is no tensor tconv3_1\.weight; expected one of shape"):
        deepsim.load(state, "pool5", Path("given.pt"))
    with pytest.raises(ValueError, match=r"tensor conv6\.weight is of another layer's generator than fc6"):
        deepsim.load(xdream_state(states["pool5"]), "fc6", Path("given.pt"))


def test_a_config_with_weights_gives_frames_that_depend_on_their_own_code_only(
    states: dict[str, State], tmp_path: Path
) -> None:
    path = tmp_path / "pool5.safetensors"
    save_file({k: v.half() for k, v in xdream_state(states["pool5"]).items()}, path)
    settings = DeepsimGenerator(weights=path, layer="pool5")
    generator = build_generator(settings, 80, 80, 120)
    assert (generator.latent_shape, generator.latent_size) == ((256, 6, 6), 9216)
    codes = generator.start(3, np.random.default_rng(0))
    assert np.linalg.norm(codes, axis=1) == pytest.approx(generator.prior.norm, rel=0.03)
    together = generator.decode(codes)
    assert frame_levels(together[0]) == pytest.approx((120, 0.3), rel=0.02)
    assert np.array_equal(generator.decode(codes[[2, 0]]), together[[2, 0]])
    larger = build_generator(settings, 100, 100, 120)
    assert larger.name != generator.name
    assert larger.decode(codes[:1]).shape == (1, 100, 100, 3)


# --- where fc6 codes start --------------------------------------------------------------------------------------------


def test_start_codes_have_the_published_mean_sd_and_norm() -> None:
    codes = deepsim.published_prior("fc6").sample(100, np.random.default_rng(0))
    norms = np.linalg.norm(codes, axis=1)
    assert norms.mean() == pytest.approx(deepsim.published_prior("fc6").norm, rel=0.01)
    assert norms.mean() == pytest.approx(267, rel=0.03)
    assert np.mean(codes == 0) == pytest.approx(0.84, abs=0.01)


def test_each_value_s_own_statistics_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    mean, sd = np.linspace(-3, 3, 1000), np.linspace(2, 0.1, 1000)
    np.savez(path, **{"fc8/mu": mean, "fc8/sig": sd})
    prior = deepsim.prior_from(path, "fc8")
    assert prior.mean == pytest.approx(mean)
    norms = np.linalg.norm(prior.sample(50, np.random.default_rng(0)), axis=1)
    assert norms.mean() == pytest.approx(prior.norm, rel=0.01)
    with pytest.raises(ValueError, match=r"stats\.npz: there is no array fc6/mu; docs/generators\.md says"):
        deepsim.prior_from(path, "fc6")
    np.savez(path, **{"fc8/mu": mean, "fc8/sig": sd[:9]})
    with pytest.raises(ValueError, match=r"fc8/sig is float64 \(9,\); expected finite numbers \(1000,\)"):
        deepsim.prior_from(path, "fc8")
    np.savez(path, **{"fc8/mu": mean, "fc8/sig": -sd})
    with pytest.raises(ValueError, match="negative"):
        deepsim.prior_from(path, "fc8")
    path.write_text("no archive")
    with pytest.raises(ValueError, match=r"stats\.npz: no \.npz file"):
        deepsim.prior_from(path, "fc8")


def test_the_published_file_of_statistics_gives_the_published_norm(tmp_path: Path) -> None:
    source = DATA / "generators" / "deepsim_code_stats" / "stats_caffenet.h5"
    if not source.exists():
        pytest.skip(f"no statistics at {source}; set STIMLOOP_DATA to the folder that holds generators/")
    with h5py.File(source) as file:  # as docs/generators.md does it
        arrays = {f"{layer}/{part}": file[layer][part][:] for layer in deepsim.SHAPES for part in ("mu", "sig")}
    np.savez(tmp_path / "stats.npz", **arrays)
    prior = deepsim.prior_from(tmp_path / "stats.npz", "fc6")
    codes = prior.sample(50, np.random.default_rng(0))
    assert np.linalg.norm(codes, axis=1).mean() == pytest.approx(267, rel=0.01)
    assert prior.norm == pytest.approx(267, rel=0.01)
    assert np.mean(codes == 0) == pytest.approx(0.84, abs=0.01)
    for layer, shape in deepsim.SHAPES.items():
        assert deepsim.prior_from(tmp_path / "stats.npz", layer).mean.shape == (np.prod(shape),)
        averages = [arrays[f"{layer}/{part}"].mean() for part in ("mu", "sig")]
        assert averages == pytest.approx(deepsim.PUBLISHED[layer], rel=0.01, abs=0.01)


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_that_hold_no_tensors_are_refused_with_a_cure(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with pytest.raises(ValueError, match=r"weights\.pt: there is no such file; give the fc6 generator as a state dict"):
        read_state(path, "fc6 generator")
    path.write_text("words")
    with pytest.raises(ValueError, match=r"weights\.pt: no torch file, or one with Python objects"):
        read_state(path, "fc6 generator")
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="'epoch' is a int and not a tensor"):
        read_state(path, "fc6 generator")
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="no torch file, or one with Python objects") as error:
        read_state(path, "fc6 generator")
    assert "weights_only" not in str(error.value), "nobody is told to read a file unsafely"
    torch.save(torch.zeros(3), path)
    with pytest.raises(ValueError, match="holds a Tensor and not tensors by name"):
        read_state(path, "fc6 generator")
    broken = tmp_path / "weights.safetensors"
    broken.write_bytes(b"\x10" * 40)
    with pytest.raises(ValueError, match=r"weights\.safetensors: cannot be read \(SafetensorError"):
        read_state(broken, "fc6 generator")
    with pytest.raises(ValueError, match=r"nothing\.pt: cannot be read: No such file"):
        build_generator(DeepsimGenerator(weights=tmp_path / "nothing.pt"), 64, 64, 128)


# --- taef2 ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taef2_random(tmp_path_factory: pytest.TempPathFactory) -> Taef2Generator:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("taef2")
    torch.save(taef2.decoder_network().half().state_dict(), folder / "decoder.pth")
    torch.save(taef2.encoder_network().half().state_dict(), folder / "encoder.pth")
    return Taef2Generator(weights=folder / "decoder.pth", encoder=folder / "encoder.pth", side=32)


def test_taef2_frames_depend_on_their_own_code_only(taef2_random: Taef2Generator) -> None:
    generator = build_generator(taef2_random, 40, 40, 128)
    assert generator.latent_shape == (32, 4, 4)
    codes = generator.start(5, np.random.default_rng(0))
    assert np.linalg.norm(codes, axis=1) == pytest.approx(generator.prior.norm, rel=0.1)
    together = generator.decode(codes)
    assert np.array_equal(generator.decode(codes[[4, 1]]), together[[4, 1]])
    assert generator.encode is not None
    back = generator.encode(together)
    assert back.shape == codes.shape
    assert np.array_equal(generator.encode(together[[3]])[0], back[3])
    assert build_generator(taef2_random.model_copy(update={"encoder": None}), 40, 40, 128).encode is None


def test_a_model_server_computes_it_with_as_many_threads_as_replay(taef2_random: Taef2Generator) -> None:
    config = parse(
        'sources: [{type: openephys}]\nresponses: {units: ["a"]}\nprocesses: {torch_threads: 3}\n'
        f'phases: [{{agent: evolve, unit: "a", generator: {{type: taef2, weights: "{taef2_random.weights}"}}}}]\n'
    )
    _server(config)
    assert torch.get_num_threads() == 3


def test_taef2_weights_that_are_not_are_refused(taef2_random: Taef2Generator) -> None:
    swapped = taef2_random.model_copy(update={"weights": taef2_random.encoder})
    with pytest.raises(ValueError, match=r"encoder\.pth: tensor 1\.weight|encoder\.pth: there is no tensor 1\.weight"):
        build_generator(swapped, 40, 40, 128)


def test_photographs_come_back_through_the_published_taef2_as_well_as_known() -> None:
    folder, zipped = DATA / "generators" / "taef2", DATA / "v4" / "images" / "images_190923.zip"
    if not (folder.exists() and zipped.exists()):
        pytest.skip(f"no taef2 at {folder}; set STIMLOOP_DATA to the folder that holds generators/ and v4/")
    settings = Taef2Generator(
        weights=folder / "taef2_decoder.pth", encoder=folder / "taef2_encoder.pth", contrast=None
    )
    generator = build_generator(settings, 112, 112, 128)
    with zipfile.ZipFile(zipped) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))[::150]
        photographs = [Image.open(io.BytesIO(archive.read(n))).convert("RGB") for n in names]
    frames = np.stack([np.asarray(p, np.uint8) for p in photographs])
    assert generator.encode is not None
    codes = generator.encode(frames)
    assert (codes.mean(), codes.std()) == pytest.approx((0.04, 0.88), abs=0.05)
    errors = np.square(generator.decode(codes) - frames.astype(float)).mean(axis=(1, 2, 3))
    psnr_db = 10 * np.log10(255**2 / errors)
    assert np.median(psnr_db) == pytest.approx(28.6, abs=2), "median of 200 photographs: 28.6 dB"
    assert psnr_db.min() > 22
