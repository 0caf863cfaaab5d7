"""Fits: what they must not touch or see, more data and other units on the way, and what they refuse."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from models.encoders.network import Network
from models.encoders.recordings import Recording, held_out_images
from models.encoders.scoring import Correlations
from models.encoders.training import Fit, best_of
from rig.config.encoders import WALKER_TRAINING, Architecture, Training
from tests.known_cells import CELLS, CORE, QUICK, cells, fit, recorded, same


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from threads, and beside other tests lose minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_held_out_responses_decide_nothing_but_the_score() -> None:
    eye, recording = recorded(60)
    other = recording.responses.copy()
    other[recording.held_out[recording.shown]] = 7.0 + np.arange(CELLS)
    weights = []
    for responses in (recording.responses, other):
        data = Recording(recording.images, recording.shown, responses, recording.held_out)
        architecture = Architecture.model_validate({"core": CORE})
        running = Fit(Network(architecture, eye, {"s": cells().units}, 3), {"s": data}, QUICK, 5)
        for _ in range(5):
            running.step()
        weights.append(running.network.state()["weights"])
    assert same(*weights)


def test_held_out_images_stay_so_whatever_comes_later() -> None:
    identities = [f"{k:x}" for k in range(2000)]
    chosen = held_out_images(identities, 0.2, seed=1)
    assert 0.16 < chosen.mean() < 0.24
    np.testing.assert_array_equal(held_out_images(identities[500:], 0.2, seed=1), chosen[500:])
    assert (held_out_images(identities, 0.2, seed=2) != chosen).any()
    assert not held_out_images(identities, 0.0, 1).any()
    assert held_out_images(identities, 1.0, 1).all()


def test_missing_responses_count_for_nothing() -> None:
    eye, recording = recorded(60)
    rows = np.arange(60)
    silent = np.where((rows % 3 == 0)[:, None], np.float32(np.nan), recording.responses)
    fewer = np.flatnonzero(rows % 3)
    training = QUICK.model_copy(update={"fixed_norms": True, "batch": 64, "most_epochs": 1})
    weights = []
    for data in (
        Recording(recording.images, rows, silent, recording.held_out),
        Recording(recording.images, fewer, recording.responses[fewer], recording.held_out),
    ):
        network = Network(
            Architecture.model_validate({"core": CORE, "readout": {"type": "full"}}), eye, {"s": cells().units}, 3
        )
        running = Fit(network, {"s": data}, training, 5)
        while not running.step():
            pass
        weights.append(running.network.state()["weights"])
    for name, array in weights[0].items():
        np.testing.assert_allclose(weights[1][name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_fit_ends_with_the_best_weights_it_has_seen() -> None:
    running = fit(training=QUICK.model_copy(update={"rate": 0.5, "patience": 2, "decays": 0, "most_epochs": 50}))
    best = -np.inf
    while not running.step():
        best = max(best, running.progress.newest)
    assert running.progress.finished == "no better score"
    assert running.progress.epoch < 50
    assert running.progress.best == best
    assert running.progress.newest < best
    weights = best_of(running.state())["weights"]
    assert same(running.finish().state()["weights"], weights)
    recording = running.recordings["s"]
    score = Correlations(CELLS)
    rows = recording.scoring_rows
    with torch.inference_mode():
        predicted = running.network.rates(recording.images[torch.from_numpy(recording.shown[rows])])
    score.add(predicted.numpy(), recording.responses[rows])
    assert float(score.values().mean()) == pytest.approx(best, abs=1e-5)
    assert not any(p.requires_grad for p in running.network.parameters())


def test_a_plateau_and_a_stop_by_hand_go_back_to_the_best_weights() -> None:
    training = QUICK.model_copy(update={"rate": 0.5, "patience": 2, "decays": 1, "most_epochs": 50})
    running = fit(training=training)
    while not running.progress.newest < running.progress.best:
        running.step()
    assert not same(running.network.state()["weights"], best_of(running.state())["weights"])
    while running.progress.rate == 0.5:
        running.step()
    assert same(running.network.state()["weights"], best_of(running.state())["weights"])
    other = fit(training=training)
    other.restore(running.state())
    for _ in range(4):
        running.step()
        other.step()
        assert same(other.state(), running.state())  # at the lower rate
    best = best_of(running.state())["weights"]
    assert not same(running.network.state()["weights"], best)
    assert same(running.finish().state()["weights"], best)
    assert running.progress.finished == "stopped"
    assert running.step()  # and stays so


def test_more_data_begin_from_the_best_weights_and_earlier_held_out_images_stay() -> None:
    running = fit(60)
    while not running.step():
        pass
    best = best_of(running.state())["weights"]
    _, more = recorded(90)
    images, held_out = more.images.clone(), more.held_out.copy()
    old = running.recordings["s"]
    images[:60], held_out[:60] = old.images, old.held_out
    larger = Recording(images, more.shown, more.responses, held_out)
    running.extend({"s": larger})
    assert same(running.network.state()["weights"], best)
    assert running.progress.finished is None
    while running.progress.epoch == 0:
        running.step()
    start = running.progress.best
    while not running.step():
        pass
    assert running.progress.best >= start  # never worse than where it began
    with pytest.raises(ValueError, match="chosen once"):
        running.extend({"s": Recording(images, more.shown, more.responses, ~held_out)})


def test_units_that_appear_and_die_leave_the_others_rows_and_moments() -> None:
    running = fit()
    for _ in range(6):
        running.step()
    before, moments = best_of(running.state())["weights"], running.state()["moments"]
    old = running.recordings["s"]
    units = (*cells().units[2:], "E99#0")
    responses = np.concatenate([old.responses[:, 2:], old.responses[:, :1] * 3 + 1], 1)
    running.change_units("s", units, Recording(old.images, old.shown, responses, old.held_out), seed=8)
    after, now = running.network.state()["weights"], running.state()["moments"]
    for name in ("mu", "features", "bias", "sigma"):
        key = f"sessions.s.readout.{name}"
        np.testing.assert_array_equal(after[key][:-1], before[key][2:])
        np.testing.assert_array_equal(now[key]["exp_avg"][:-1], moments[key]["exp_avg"][2:])
        assert not now[key]["exp_avg"][-1].any()
        assert now[key]["exp_avg"][0].any()
    assert all(same(after[n], a) for n, a in before.items() if n.startswith("core."))
    fresh = responses[~old.held_out, -1]
    assert after["sessions.s.scale"][-1] == pytest.approx(fresh.std(), rel=1e-5)
    while not running.step():
        pass
    assert running.finish().units == units


def test_sessions_share_a_core() -> None:
    eye, first = recorded(60)
    _, second = recorded(61)
    architecture = Architecture.model_validate({"core": CORE})
    sessions = {"monday": cells().units, "tuesday": ("a", "b")}
    fewer = Recording(second.images, second.shown, second.responses[:, :2], second.held_out)
    data = {"monday": first, "tuesday": fewer}
    running = Fit(Network(architecture, eye, sessions, 3), data, QUICK, 5)
    start = running.network.state()["weights"]
    while not running.step():
        pass
    end = running.finish().state()["weights"]
    assert running.network.units == ("a", "b")
    for name in ("core.layers.0.0.weight", "sessions.monday.readout.features", "sessions.tuesday.readout.features"):
        assert not same(start[name], end[name])
    # a later session on the core that the earlier ones left: only what is new is prepared
    later = running.network
    later.add_session("wednesday", ("x",), seed=4)
    only = Recording(first.images, first.shown, first.responses[:, :1], first.held_out)
    warm = Fit(later, {"wednesday": only}, QUICK.model_copy(update={"readouts_only": True}), 1, fresh=("wednesday",))
    while not warm.step():
        pass
    assert all(same(later.state()["weights"][n], a) for n, a in end.items())
    assert later.units == ("x",)
    with pytest.raises(ValueError, match="a name of its own"):
        later.add_session("monday", ("x",), seed=4)


def changed(**parts: Any) -> Recording:
    recording = recorded(60)[1]
    fields = {name: getattr(recording, name) for name in ("images", "shown", "responses", "held_out")}
    return Recording(**(fields | parts))


def refused(training: Training = QUICK, architecture: dict[str, Any] | None = None, **parts: Any) -> None:
    eye, _ = recorded(60)
    made = Network(Architecture.model_validate({"core": CORE} | (architecture or {})), eye, {"s": cells().units}, 1)
    Fit(made, {"s": changed(**parts)}, training, 1)


def test_data_that_do_not_fit_are_refused_with_the_cure() -> None:
    responses, held_out = recorded(60)[1].responses, recorded(60)[1].held_out
    with pytest.raises(ValueError, match="loss to gaussian"):
        refused(responses=responses - 3)
    with pytest.raises(ValueError, match="another output"):
        refused(architecture={"output": "none"})
    with pytest.raises(ValueError, match="responses of 5 units; the encoder has 6"):
        refused(responses=responses[:, :5])
    with pytest.raises(ValueError, match="0 held out; show more images"):
        refused(held_out=held_out & False)
    with pytest.raises(ValueError, match="0 columns of gaze; the architecture takes 2"):
        refused(architecture={"gaze": True})
    with pytest.raises(ValueError, match=r"the eye sees \(1, 24, 24\)"):
        refused(images=torch.zeros(60, 1, 24, 30))
    with pytest.raises(ValueError, match="missing ones are NaN"):
        changed(responses=np.full_like(responses, np.inf))
    with pytest.raises(ValueError, match="none of the 60"):
        changed(shown=np.arange(1, 61))
    with pytest.raises(ValueError, match="a finite row for each"):
        changed(gaze=np.full((60, 2), np.nan, np.float32))


def test_walkers_settings_are_the_published_ones() -> None:
    t = WALKER_TRAINING
    assert t.rate * t.decay == pytest.approx(0.001)
    assert (t.batch, t.rate, t.decays, t.patience, t.most_epochs) == (60, 0.005, 1, 10, 500)
    assert (t.laplacian, t.sparsity, t.tolerance) == (50, 0.1, 1e-6)
