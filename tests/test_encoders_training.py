"""Fits: what they learn from known neurons, and that they resume to the bit."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from models.encoders.averaging import RunningMeans
from models.encoders.encoder import rates_of
from models.encoders.eye import Eye
from models.encoders.network import Network
from models.encoders.preparing import loss
from models.encoders.recordings import Recording, held_out_images
from models.encoders.scoring import Correlations
from models.encoders.training import Fit
from models.snapshot import _with_arrays, _without_arrays
from rig.config.encoders import Architecture, Training
from tests.known_cells import CELLS, QUICK, fit, pictures, same, truth


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from threads, and beside other tests lose minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- what is learned --------------------------------------------------------------------------------------------------


def test_a_convolutional_core_learns_complex_cells_and_a_linear_one_does_not() -> None:
    shown = pictures(150, seed=9)
    expected = truth(shown)
    scores = {}
    for linear in (False, True):
        running = fit(400, QUICK.model_copy(update={"most_epochs": 15}), linear=linear)
        while not running.step():
            pass
        predicted = rates_of(running.finish(), shown)
        scores[linear] = np.array([np.corrcoef(predicted[:, k], expected[:, k])[0, 1] for k in range(CELLS)])
    network, linear_control = scores[False], scores[True]
    assert np.median(network[1::2]) > 0.6  # of the noise-free means of pictures never seen
    assert np.median(linear_control[1::2]) < 0.35
    assert np.median(network[::2]) > 0.5
    assert np.median(linear_control[::2]) > 0.4


def test_a_gaze_shifter_and_a_gain_are_learned_from_data_that_need_them() -> None:
    """Units look elsewhere with gaze and fire more with running: knowing both predicts single presentations better."""
    rng = np.random.default_rng(3)
    eye = Eye(16, 16, 1, (0.0,), (1.0,))
    images = torch.from_numpy(rng.standard_normal((600, 1, 16, 16), dtype=np.float32))
    images = torch.nn.functional.avg_pool2d(images, 3, 1, 1) * 3
    gaze = rng.uniform(-1, 1, (600, 2)).astype(np.float32)
    running = rng.standard_normal((600, 1)).astype(np.float32)
    rows, columns = (8 + np.rint(3 * gaze[:, k]).astype(int) for k in (1, 0))
    means = np.stack([np.maximum(images[np.arange(600), 0, rows + k, columns].numpy(), 0) for k in (-1, 0, 1)], 1)
    responses = rng.poisson(2 * means * np.exp(0.5 * running) + 0.1).astype(np.float32)
    held_out = held_out_images([str(k) for k in range(600)], 0.2, 0)
    core = {"type": "walker", "channels": 4, "layers": 1, "first_kernel_px": 3, "kernel_px": 3}
    scores = []
    for knows in (True, False):
        more = {"gaze": knows, "behaviours": int(knows)}
        made = Network(Architecture.model_validate({"core": core, **more}), eye, {"s": ("a", "b", "c")}, 1)
        behaviour = {"gaze": gaze, "behaviour": running} if knows else {}
        data = Recording(images, np.arange(600), responses, held_out, **behaviour)
        running_fit = Fit(made, {"s": data}, Training(batch=32, rate=0.01, laplacian=0, most_epochs=20), 1)
        while not running_fit.step():
            pass
        scores.append(running_fit.progress.best)
        if knows:
            part = made.of("s")
            assert part.gain is not None
            gain = part.gain(torch.tensor([[-1.0], [1.0]]), None)
            assert (gain[1] / gain[0]).min() > 1.5  # the truth: e
    assert scores[0] > scores[1] + 0.15


def test_the_losses() -> None:
    predicted = torch.tensor([[1.0, 2.0], [0.5, 3.0]], requires_grad=True)
    responses = torch.tensor([[0.0, 4.0], [float("nan"), 1.0]])
    poisson, count = loss(predicted, responses, "poisson")
    assert count == 3
    poisson.backward()  # type: ignore[no-untyped-call]
    assert predicted.grad is not None
    torch.testing.assert_close(predicted.grad, torch.tensor([[1.0, -1.0], [0.0, 2 / 3]]))  # 1 - r / p, none for none
    assert poisson.item() == pytest.approx(1 + (2 - 4 * np.log(2)) + (3 - np.log(3)), rel=1e-6)
    assert loss(predicted, responses, "gaussian")[0].item() == pytest.approx((1 + 4 + 4) / 2)


def test_the_score_is_the_correlation_of_what_there_is() -> None:
    rng = np.random.default_rng(0)
    predicted, responses = rng.normal(size=(30, 3)).astype(np.float32), rng.normal(size=(30, 3)).astype(np.float32)
    responses[::3, 1], responses[:, 2] = np.nan, 2.0
    score = Correlations(3)
    score.add(predicted[:11], responses[:11])
    score.add(predicted[11:], responses[11:])
    there = np.isfinite(responses[:, 1])
    expected = [np.corrcoef(predicted[:, 0], responses[:, 0])[0, 1]]
    expected += [np.corrcoef(predicted[there, 1], responses[there, 1])[0, 1], 0.0]
    np.testing.assert_allclose(score.values(), expected, atol=1e-6)


# --- steps that resume ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "readout"),
    [
        (QUICK.model_copy(update={"slice": 5}), "point"),  # stops amid batches, with gradients half summed
        (QUICK.model_copy(update={"patience": 1, "decays": 1, "most_epochs": 4, "rate": 0.3}), "factorised"),
        (QUICK.model_copy(update={"patience": 1, "decays": 1, "rate": 0.1, "averaging": 0.8}), "point"),
        (QUICK.model_copy(update={"readouts_only": True, "slice": 16}), "full"),
    ],
)
def test_a_fit_goes_on_from_any_step_to_the_bit(training: Training, readout: str) -> None:
    whole = fit(training=training, readout=readout)
    states = [whole.state()]
    while not whole.step():
        states.append(whole.state())
    states.append(whole.state())
    for at in range(0, len(states) - 1, max(1, len(states) // 9)):
        other = fit(training=training, readout=readout, seed=99)
        for _ in range(3):
            other.step()  # it stood elsewhere before
        other.restore(states[at])
        assert same(other.state(), states[at])
        for later in states[at + 1 : at + 8]:
            other.step()
            assert same(other.state(), later)


def test_running_means_count_the_first_weights_alike_and_later_ones_by_their_share() -> None:
    weights = [3.0, 5.0, 10.0, 0.0, 2.0]
    layer, means = torch.nn.Linear(1, 1, bias=False), RunningMeans(0.75)
    for value in weights:
        torch.nn.init.constant_(layer.weight, value)
        means.add(layer)
    expected = float(np.mean(weights[:4])) * 0.75 + weights[4] * 0.25  # up to the fourth 1 / n is above 1 - share
    means.put_into(layer)
    assert layer.weight.item() == pytest.approx(expected)
    means.take_out_of(layer)
    assert layer.weight.item() == 2.0
    means.begin()
    means.put_into(layer)
    assert layer.weight.item() == 2.0


def test_what_is_scored_and_kept_with_averaging_is_the_mean_and_training_goes_on_from_the_weights_themselves() -> None:
    training = QUICK.model_copy(update={"averaging": 0.99, "most_epochs": 1})
    plain, averaged = fit(200, QUICK), fit(200, training)
    weights = []
    while averaged.progress.loss != averaged.progress.loss:
        before = averaged.network.core.state_dict()["layers.0.0.weight"].clone()
        averaged.step()
        plain.step()
        now = averaged.network.core.state_dict()["layers.0.0.weight"]
        if averaged.progress.epoch == 1 and not torch.equal(before, now):
            weights.append(plain.network.core.state_dict()["layers.0.0.weight"].clone())
    while not averaged.step():
        pass
    kept = averaged.finish().core.state_dict()["layers.0.0.weight"]
    assert len(weights) > 3
    torch.testing.assert_close(kept, torch.stack(weights).mean(0))


def test_a_fit_that_ended_at_its_last_epoch_goes_on_from_its_best_means_and_not_from_the_last() -> None:
    training = QUICK.model_copy(update={"averaging": 0.5, "most_epochs": 4, "rate": 0.3, "patience": 10})
    running = fit(training=training)
    while not running.step():
        pass
    ended = running.progress
    assert ended.finished == "most_epochs"
    assert ended.newest < ended.best
    running.extend(running.recordings)
    while np.isnan(running.progress.newest):
        running.step()
    assert running.progress.newest == ended.best


def test_a_state_survives_a_snapshot() -> None:
    training = QUICK.model_copy(update={"slice": 5})
    running = fit(training=training)
    for _ in range(20):
        running.step()
    arrays: list[npt.NDArray[Any]] = []
    text = json.dumps(_without_arrays(running.state(), arrays))
    other = fit(training=training, seed=7)
    other.restore(_with_arrays(json.loads(text), arrays))
    for _ in range(5):
        running.step()
        other.step()
    assert same(other.state(), running.state())


def test_slices_add_up_to_the_batch() -> None:
    """Adam's first moments after one step are the gradient of the batch."""
    found, steps = [], []
    for part in (None, 7):
        updates = {"fixed_norms": True, "readout_l1": 0.5, "slice": part}
        running = fit(training=QUICK.model_copy(update=updates), readout="factorised")
        while not (moments := running.state()["moments"]):
            running.step()
        found.append(moments)
        steps.append(running.steps)
    assert steps[1] > steps[0] + 4
    for name, first in found[0].items():
        largest = np.abs(first["exp_avg"]).max()
        assert largest > 0
        np.testing.assert_allclose(found[1][name]["exp_avg"], first["exp_avg"], atol=1e-5 * largest, err_msg=name)


def test_a_frozen_core_is_left_alone_and_its_features_computed_once() -> None:
    training = QUICK.model_copy(update={"readouts_only": True, "slice": 16})
    running = fit(training=training)
    before = {n: a for n, a in running.network.state()["weights"].items() if n.startswith("core.")}
    readout = running.network.state()["weights"]["sessions.s.readout.features"]
    calls: list[int] = []
    running.network.core.register_forward_hook(lambda module, given, out: calls.append(len(given[0])))
    while running.progress.epoch < 2:
        running.step()
    assert not same(running.network.state()["weights"]["sessions.s.readout.features"], readout)
    while not running.step():
        pass
    assert sum(calls) == 60
    after = running.network.state()["weights"]
    assert all(same(after[n], a) for n, a in before.items())


def test_a_backbone_is_tuned_only_if_asked_for() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the optional package of this core is not installed")
    eye = Eye(32, 32, 3, (127.5,), (60.0,))
    frames = np.random.default_rng(1).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    counts = np.random.default_rng(2).poisson(2.0, (24, 2)).astype(np.float32)
    data = {"s": Recording(eye.see(frames), np.arange(24), counts, np.arange(24) < 5)}
    for tuned in (False, True):
        core = {"type": "efficientnet_lite0", "block": 1, "tuned": tuned}
        made = Network(Architecture.model_validate({"core": core}), eye, {"s": ("a", "b")}, 1)
        before = made.state()["weights"]
        running = Fit(made, data, QUICK.model_copy(update={"batch": 8, "rate": 1e-3}), 1)
        for _ in range(4):
            running.step()
        after = made.state()["weights"]
        changed_names = {n for n, a in before.items() if not same(after[n], a)}
        assert any(n.startswith("core.") for n in changed_names) == tuned
        assert "sessions.s.readout.features" in changed_names


def test_the_example_of_the_docs_runs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "encoders.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], env=alone, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("0.", "-0."))
