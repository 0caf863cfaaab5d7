"""`stimloop bench refit`: reads both layouts, splits by distinct image, scores honestly, runs as one command."""

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from models.evolution_bench.deep import missing
from models.refit_bench.plain import plain_prediction
from models.refit_bench.recording import Session, read, split
from models.refit_bench.run import run
from models.refit_bench.scoring import correlations, gain
from models.refit_bench.timing import time_updates
from rig.cli import app
from rig.clock import FakeClock
from rig.config.reading import ConfigError
from rig.config.refit_bench import RefitBench

F64 = npt.NDArray[np.float64]
DATA = Path(os.environ.get("STIMLOOP_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_network = pytest.mark.skipif(missing() is not None, reason=str(missing()))
COUNT, UNITS = 40, 3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from threads, and beside other tests lose minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(count: int = COUNT) -> list[bytes]:
    """Return JPEG files of blobs: the last two show the first two again."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(count - 2):
        small = (rng.integers(0, 256, (6, 6, 3)) * rng.uniform(0.1, 1.0)).astype(np.uint8)  # dark to bright
        file = io.BytesIO()
        Image.fromarray(small).resize((112, 112), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
        out.append(file.getvalue())
    return [*out, *out[:2]]


def recording(folder: Path, trials: bool) -> F64:
    """Write a session "day" and return its responses (neuron, image[, repeat]): the mean luminance of three places."""
    (folder / "images").mkdir(parents=True)
    files, levels = pictures(), []
    with zipfile.ZipFile(folder / "images" / "images_day.zip", "w") as archive:
        for k in reversed(range(COUNT)):  # the order in the file is not the order of the columns
            archive.writestr(f"inside/image{k + 1:04d}.jpg", files[k])
    for file in files:
        picture = np.asarray(Image.open(io.BytesIO(file)), dtype=float).mean(axis=2)
        levels.append([picture[:56, :56].mean(), picture[56:, 56:].mean(), picture.mean()])
    rates = np.array(levels).T / 10
    rng = np.random.default_rng(1)
    kind = "raw" if trials else "averaged"
    if trials:
        responses = rng.poisson(rates[:, :, None].repeat(6, axis=2)).astype(float)
        responses[:, ::3, 4:] = np.nan
        responses[1, 5] = np.nan  # a unit that was not there
    else:
        responses = rates + 0.3 * rng.standard_normal(rates.shape)
    (folder / f"responses_{kind}").mkdir()
    np.save(folder / f"responses_{kind}" / "responses_day.npy", responses)
    return responses


def choices(folder: Path, **more: Any) -> RefitBench:
    return RefitBench.model_validate({"data": folder, "session": "day", "splits": 2, "curve": (15,), **more})


def test_both_layouts_are_read(tmp_path: Path) -> None:
    averaged, raw = recording(tmp_path / "a", False), recording(tmp_path / "r", True)
    one, two = read(tmp_path / "a", "day"), read(tmp_path / "r", "day")
    np.testing.assert_array_equal(one.responses, averaged.T)
    np.testing.assert_allclose(two.responses[:, 0], np.nanmean(raw[0], axis=1))
    assert one.trials is None
    assert two.trials is not None
    np.testing.assert_array_equal(two.trials, raw.transpose(1, 2, 0))
    np.testing.assert_array_equal(two.repeats[:, 0], np.where(np.arange(COUNT) % 3 == 0, 4, 6))
    assert np.isnan(two.responses[5, 1])
    assert two.repeats[5, 1] == 0
    for session in (one, two):
        assert session.distinct == COUNT - 2
        np.testing.assert_array_equal(session.identity[-2:], [0, 1])
        assert session.images.shape == (COUNT, 112, 112, 3)
    light = one.images[:, :56, :56].mean(axis=(1, 2, 3))
    assert np.corrcoef(light, one.responses[:, 0])[0, 1] > 0.9  # images and columns belong together


def test_an_image_is_never_both_learned_and_held_out(tmp_path: Path) -> None:
    recording(tmp_path, False)
    session = read(tmp_path, "day")
    held = set()
    for seed in range(12):
        parts = split(session, 0.25, seed)
        assert len(set(parts.training) | set(parts.held_out)) == COUNT
        assert not set(session.identity[parts.training]) & set(session.identity[parts.held_out])
        assert len(set(session.identity[parts.held_out])) == round(0.25 * (COUNT - 2))
        np.testing.assert_array_equal(parts.training, split(session, 0.25, seed).training)
        held.add(tuple(parts.held_out))
    assert len(held) == 12


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("responses", "it must hold responses_raw/responses_day.npy"),
        ("shape", "holds float64 of shape"),
        ("columns", "40 images, but .* has 39 columns"),
        ("images", "images_day.zip cannot be read"),
    ],
)
def test_a_folder_of_another_layout_is_refused_in_words(tmp_path: Path, broken: str, message: str) -> None:
    responses = recording(tmp_path, False)
    path = tmp_path / "responses_averaged" / "responses_day.npy"
    if broken == "responses":
        path.unlink()
    elif broken == "shape":
        np.save(path, responses[0])
    elif broken == "columns":
        np.save(path, responses[:, :39])
    else:
        (tmp_path / "images" / "images_day.zip").unlink()
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, "day")


@needs_network
@pytest.mark.parametrize("trials", [False, True])
def test_the_bench_runs_on_both_layouts_and_again_gives_the_same(tmp_path: Path, trials: bool) -> None:
    recording(tmp_path, trials)
    said: list[str] = []
    clock = FakeClock()
    found = run(choices(tmp_path, features=tmp_path / "kept"), clock.now_ns, said.append)
    again = run(choices(tmp_path, features=tmp_path / "kept"), clock.now_ns, said.append)
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(again))
    assert [row["images_seen"] for row in found["rows"]] == [15, 28]
    for row in found["rows"]:
        assert row["max_abs_diff_to_batch"] < 1e-6
        assert (row["heldout_r2_er_median"] is not None) == trials
        assert len(row["heldout_r_by_split"]) == 2
    assert found["rows"][0]["heldout_r_untuned"] is None
    assert found["rows"][-1]["heldout_r_median"] > 0.5
    assert found["responses"] == ("single trials" if trials else "averages")
    assert any("split 1" in line for line in said)


def test_the_plain_readout_finds_a_linear_unit_and_leaves_missing_ones_out() -> None:
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((200, 2, 2, 3)).astype(np.float32)
    y = maps.reshape(200, -1) @ rng.standard_normal((12, 2)) + 3
    y[:, 1] = np.nan
    identity = np.arange(200)
    session = Session(np.zeros((200, 1, 1, 3), np.uint8), identity, y, np.isfinite(y).astype(np.intp), None)
    parts = split(session, 0.25, 0)
    predicted = plain_prediction(session, parts, maps)
    assert np.corrcoef(predicted[:, 0], y[parts.held_out, 0])[0, 1] > 0.99
    assert np.isnan(predicted[:, 1]).all()


def test_scores_are_of_what_is_there() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 50, 3))
    y[::2, 1] = np.nan
    y[:, 2] = 4.0
    found = correlations(x, y)
    assert found[0] == pytest.approx(np.corrcoef(x[:, 0], y[:, 0])[0, 1])
    assert found[1] == pytest.approx(np.corrcoef(x[1::2, 1], y[1::2, 1])[0, 1])
    assert np.isnan(found[2])
    plain = [rng.normal(0.5, 0.1, 40) for _ in range(3)]
    ours = [p + 0.05 + rng.normal(0, 0.02, 40) for p in plain]
    better = gain(ours, plain)
    assert better["mean_low"] < 0.05 < better["mean_high"]
    assert better["median_low"] > 0
    assert better["units"] == 40
    nothing = gain([p + rng.normal(0, 0.02, 40) for p in plain], plain)
    assert nothing["mean_low"] < 0 < nothing["mean_high"]


def test_updates_are_timed_with_the_clock_it_is_given() -> None:
    ticks = iter(range(0, 10**12, 2_000_000))
    rows = time_updates(6, 40, (1, 2), lambda: next(ticks))
    assert [(r["trials"], r["batch"], r["update_ms"]) for r in rows] == [(40, 1, 6.0), (40, 2, 6.0)]  # three kernels


@needs_network
def test_the_command_writes_json_and_names_what_is_wrong(tmp_path: Path) -> None:
    recording(tmp_path, False)
    command = ["bench", "refit", "--data", str(tmp_path), "--session", "day", "--splits", "1", "--curve", "12"]
    done = CliRunner().invoke(app, [*command, "--features", str(tmp_path / "kept"), "--json", "-"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {"images_seen", "heldout_r_median", "heldout_r2_er_median", "update_ms", "max_abs_diff_to_batch"} <= set(
        found["rows"][0]
    )
    for option, value, message in (
        ("--curve", "a", "--curve a: give numbers"),
        ("--held-out", "2", "--held-out: "),
        ("--session", "night", "responses_night.npy"),
    ):
        done = CliRunner().invoke(app, [*command, option, value])
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())


@needs_network
@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "v4").exists(), reason=f"no recordings in {DATA / 'v4'}: set STIMLOOP_DATA")
def test_v4_neurons_are_predicted_better_than_by_one_block() -> None:
    """180 training images of a real session, one split: the full bench is a command."""
    given = RefitBench(data=DATA / "v4", session="190923", splits=1, held_out=0.85, curve=(100,))
    found = run(given, FakeClock().now_ns, lambda _: None)
    last = found["rows"][-1]
    assert last["images_seen"] == 180
    assert last["max_abs_diff_to_batch"] < 1e-6
    assert last["heldout_r_median"] > 0.50
    assert found["gain_over_plain"]["mean_low"] > 0.03
