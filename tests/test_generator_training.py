"""The training of our generator: pictures in, weights file out, checkpoints that go on exactly."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from models.generator_training.codes import LOSS_BLOCKS, Codes
from models.generator_training.features import IMAGENET_MEAN, IMAGENET_SD, Features, _pretrained
from models.generator_training.loop import Settings, Training, begin, load_training, sampled_codes
from models.generator_training.pictures import SIDE, BadPictures, read_list, take_patches, write_patches
from models.generator_training.weights_file import codes_of, write_weights
from models.generators import natural
from rig.cli import app
from rig.config.generators import NaturalGenerator
from stimuli.bank import natural_bank

TINY = Settings(
    latent=16, widths=(32, 16, 16, 8), batch=4, sampled=2, code_patches=64, rate=2e-2,
    feature_from=2, sampled_from=4, adversarial_from=4, critics_head_start=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a dozen photographs."""
    folder = tmp_path_factory.mktemp("pictures")
    bank = natural_bank()
    for name in bank.names[:14]:
        Image.fromarray(bank.image(name, 160, 160)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def patches(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("patches")
    write_patches(read_list(pictures, None, 6, 0.1), folder, 3)
    return np.load(folder / "train.npy")


@pytest.fixture(scope="module")
def encoder() -> Features:
    torch.set_num_threads(1)
    return Features()


@pytest.fixture(scope="module")
def trained(patches: np.ndarray, encoder: Features) -> tuple[Training, list[dict[str, float]]]:
    """Return a tiny training after 40 steps on the same four patches, and the losses of each."""
    training = begin(patches, encoder, TINY)
    rng = np.random.default_rng(5)
    return training, [training.update(patches[:4], encoder, rng, 1.0) for _ in range(40)]


def test_the_folded_encoder_computes_what_the_package_computes(encoder: Features) -> None:
    levels = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    network = _pretrained()
    mean, sd = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_SD))
    with torch.inference_mode():
        x = network._swish(network._bn0(network._conv_stem((levels - mean) / sd)))
        for block in network._blocks[: max(LOSS_BLOCKS) + 1]:
            x = block(x)
        torch.testing.assert_close(encoder(levels, LOSS_BLOCKS)[max(LOSS_BLOCKS)], x, rtol=1e-3, atol=1e-3)


def test_losses_fall_and_the_critics_take_part(trained: tuple[Training, list[dict[str, float]]]) -> None:
    _, losses = trained
    both = [loss["image"] + loss["feature"] for loss in losses if "feature" in loss]
    assert len(both) == 38
    assert np.mean(both[-3:]) < 0.97 * np.mean(both[:3])
    assert [sum(name in loss for loss in losses) for name in ("critics", "adversarial", "code")] == [37, 36, 36]


def test_codes_of_photographs_are_white_and_come_back(
    trained: tuple[Training, list[dict[str, float]]], patches: np.ndarray, encoder: Features
) -> None:
    training, _ = trained
    codes = codes_of(patches, training.codes, encoder)
    assert 0.6 < float(codes.std(0).mean()) < 1.7
    off = torch.corrcoef(codes.T) - torch.eye(TINY.latent)
    assert float(off.square().mean().sqrt()) < 0.3
    again = training.codes.encode(training.codes.expected(codes))
    torch.testing.assert_close(again, codes, rtol=1e-3, atol=1e-3)


def test_a_checkpoint_goes_on_bit_for_bit(
    trained: tuple[Training, list[dict[str, float]]], patches: np.ndarray, encoder: Features, tmp_path: Path
) -> None:
    training, _ = trained
    training.save(tmp_path / "a.pt")
    first, second = load_training(tmp_path / "a.pt"), load_training(tmp_path / "a.pt")
    losses = [t.update(patches[:4], encoder, np.random.default_rng(1), 0.5) for t in (first, second)]
    assert losses[0] == losses[1]
    for a, b in zip(first.average.parameters(), second.average.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.step == training.step + 1


def test_the_weights_file_draws_what_was_trained(
    trained: tuple[Training, list[dict[str, float]]], patches: np.ndarray, encoder: Features, tmp_path: Path
) -> None:
    training, _ = trained
    path = tmp_path / "w.safetensors"
    figures = write_weights(training, patches, encoder, path)
    made = natural.decoder(NaturalGenerator(), path)
    codes = codes_of(patches[:3], training.codes, encoder)
    with torch.inference_mode():
        torch.testing.assert_close(made.network(codes), training.average(codes), atol=0.01, rtol=0)
        levels = torch.from_numpy(patches[:3]).permute(0, 3, 1, 2).float() / 255
        assert made.encoder is not None
        torch.testing.assert_close(made.encoder(levels), codes, atol=0.05, rtol=0.05)
    assert made.prior.mean.shape == made.prior.sd.shape == (TINY.latent,)
    assert made.prior.norm == pytest.approx(figures["norm_median"])


def test_sampled_codes_are_draws_and_crosses() -> None:
    codes = torch.arange(12.0).reshape(3, 4)
    out = sampled_codes(codes, 8, np.random.default_rng(0))
    assert out.shape == (8, 4)
    for row in out[4:]:
        assert all(float(v) in codes[:, k].tolist() for k, v in enumerate(row))


def test_held_out_pictures_and_their_copies_are_not_trained_on(pictures: Path, tmp_path: Path) -> None:
    listed = read_list(pictures, None, 4, 0.25)
    held_out = [picture for picture in listed if picture.held_out]
    assert held_out
    assert [p.name for p in held_out] == [p.name for p in read_list(pictures, None, 9, 0.25) if p.held_out]
    copy = tmp_path / "in"
    copy.mkdir()
    for picture in listed:
        (copy / picture.name).write_bytes(picture.path.read_bytes())
    Image.open(held_out[0].path).resize((120, 120)).save(copy / "smaller.jpg")
    used = write_patches(read_list(copy, None, 4, 0.25), tmp_path, 1)["all"]
    assert used["copies"] >= 1 or next(p for p in read_list(copy, None, 4, 0.25) if p.name == "smaller.jpg").held_out


def test_a_cut_out_object_lies_on_a_backdrop() -> None:
    pixels = np.zeros((128, 128, 4), np.uint8)
    pixels[40:90, 40:90] = (200, 30, 30, 255)
    backdrop = np.full((SIDE, SIDE, 3), 90, np.uint8)
    found = take_patches(Image.fromarray(pixels), 20, [backdrop], np.random.default_rng(0))
    assert all(patch.shape == (SIDE, SIDE, 3) for patch in found)
    assert all(patch[0, 0].std() > 0 or patch[64, 64].std() > 0 for patch in found)


@pytest.mark.parametrize(
    ("line", "message"), [("seven *.png", "a line is a number"), ("7 *.gif", "nothing below"), ("7", "a line is a")]
)
def test_a_bad_list_is_refused(pictures: Path, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(f"# comment\n{line}\n")
    with pytest.raises(BadPictures, match=message):
        read_list(pictures, tmp_path / "list.txt", 4, 0.1)


def test_an_unfit_code_is_refused(patches: np.ndarray, encoder: Features) -> None:
    with pytest.raises(ValueError, match="shorter code"):
        begin(patches[:12], encoder, Settings(latent=16, code_patches=12))


def test_an_empty_code_has_the_shapes_of_its_settings() -> None:
    assert Codes(8, 104).encode(torch.zeros(2, 3 * 256 + 104 * 64)).shape == (2, 8)


def test_the_command_trains_and_goes_on(pictures: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    common = ["train-generator", str(pictures), "--work", str(work), "--latent", "6", "--batch", "4", "--threads", "1",
              "--patches", "2", "--held-out", "0.25"]  # fmt: skip
    done = CliRunner().invoke(app, [*common, "--images", "8"])
    assert done.exit_code == 0, done.output
    made = natural.decoder(NaturalGenerator(), work / "natural.safetensors")
    assert made.latent_shape == (6,)
    first = json.loads((work / "figures.json").read_text())
    assert first["steps"] == 2
    assert first["psnr_db"] > 5
    assert (work / "reconstructions.png").exists()
    assert (work / "samples.png").exists()
    refused = CliRunner().invoke(app, [*common, "--images", "12"])
    assert refused.exit_code == 2
    again = CliRunner().invoke(app, [*common, "--images", "12", "--resume"])
    assert again.exit_code == 0, again.output
    assert json.loads((work / "figures.json").read_text())["steps"] == 3


def test_the_command_says_when_to_stop_and_what_is_missing(pictures: Path, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["train-generator", str(pictures)]).exit_code == 2
    empty = CliRunner().invoke(
        app, ["train-generator", str(tmp_path), "--work", str(tmp_path / "w"), "--images", "4"]
    )
    assert empty.exit_code == 2
