"""Images from encoders: frames that keep their rules, steps as published, optima that are known, replay."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from models.encoders.encoder import Seen
from models.encoders.eye import Eye
from models.encoders.network import Network, fill_full, linear_nonlinear
from models.synthesis.engine import Synthesis, synthesise
from models.synthesis.focus import EachAlone, Focus, Whole, responses_of
from models.synthesis.frames import displayed, shown
from models.synthesis.objectives import Diverse, Maximise, Minimise, OneHot, Sites, Stretch, TargetVector
from models.synthesis.schedule import Schedule, blurred, preconditioner
from models.synthesis.starts import draw
from models.truth import EXPONENT, GRATING_ENERGY, SEMISATURATION, V1, draw_cells
from rig.config.encoders import Architecture
from rig.config.synthesis import Synthesis as Settings

F64 = npt.NDArray[np.float64]
QUICK = Settings(iterations=150, step_from=12.0, step_to=0.6, contrast=0.2)


def ln(weights: F64, bias: float = 0.0) -> Network:
    """A linear encoder with weights (unit, y, x) for a grey eye."""
    eye = Eye(*weights.shape[1:])
    network = linear_nonlinear(eye, tuple(f"u{k}" for k in range(len(weights))), output="none")
    fill_full(network, weights.reshape(len(weights), -1), np.full(len(weights), bias))
    return network.requires_grad_(False)


def gabor(shape: tuple[int, int], phase: float = 0.0, cycles: float = 0.15, sigma: float = 4.0) -> F64:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    y, x = y - (shape[0] - 1) / 2, x - (shape[1] - 1) / 2
    return np.exp(-(x**2 + y**2) / (2 * sigma**2)) * np.cos(2 * np.pi * cycles * x + phase)


class Energy:
    """A complex cell: the summed squares of two filters in quadrature (an encoder of one unit)."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.eye = Eye(*shape)
        self.units = ("complex",)
        pair = np.stack([gabor(shape, 0.0), gabor(shape, np.pi / 2)])
        pair -= pair.mean((1, 2), keepdims=True)
        self._pair = torch.from_numpy(pair.reshape(2, -1)).float()

    def rates(self, x: Tensor, units: Tensor | None = None) -> Tensor:
        found = (x.flatten(1) @ self._pair.T).square().sum(1, keepdim=True)
        return found if units is None else found[:, units]

    def seen(self, unit: int) -> Seen:
        return Seen(0, self.eye.height, 0, self.eye.width)

    name = "energy"

    def state(self) -> dict[str, object]:
        return {}

    def restore(self, state: dict[str, object]) -> None:
        pass


# --- frames -----------------------------------------------------------------------------------------------------------


def pictures(rng: np.random.Generator) -> dict[str, F64]:
    """Pictures (1, c, y, x) of every awkward kind."""
    binary = np.where(rng.random((1, 1, 36, 64)) < 0.3, 0.0, 255.0)
    spot = np.full((1, 1, 36, 64), 100.0)
    spot[..., 10:26, 20:40] = 180 + 40 * rng.standard_normal((16, 20))
    ramp = np.linspace(0, 255, 36 * 64).reshape(1, 1, 36, 64)
    return {
        "noise": 128 + 60 * rng.standard_normal((1, 1, 36, 64)),
        "faint": 128 + 0.3 * rng.standard_normal((1, 1, 36, 64)),
        "colour": 90 + 30 * rng.standard_normal((1, 3, 40, 40)),
        "binary": binary, "spot": spot, "ramp": ramp,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["noise", "faint", "colour", "binary", "spot", "ramp"])
@pytest.mark.parametrize(("mean", "contrast"), [(128.0, 0.25), (110.3, 0.4), (60.0, 0.1)])
def test_mean_and_contrast_are_exact_in_the_8_bit_frame(kind: str, mean: float, contrast: float) -> None:
    levels = pictures(np.random.default_rng(3))[kind]
    found = displayed(torch.from_numpy(levels).float(), Settings(mean_level=mean, contrast=contrast))
    shape = levels.shape
    assert found.frames.shape == (1, *shape[2:], 3)
    assert found.frames.dtype == np.uint8
    frame = found.frames if shape[1] == 3 else found.frames[..., :1]
    assert abs(frame.mean() - mean) <= 0.5 / frame.size + 1e-12  # no sum of whole levels is nearer
    assert frame.std() / 127.5 == pytest.approx(found.contrast[0])
    assert found.reached[0]
    assert abs(frame.std() - contrast * 127.5) < 0.02  # levels


def test_a_contrast_that_clipping_forbids_is_said_to_be_out_of_reach() -> None:
    """One pixel in a thousand cannot carry an RMS contrast of 0.25, and noise is not blown up to carry it."""
    levels = torch.full((1, 1, 36, 64), 128.0)
    levels[0, 0, 18, 30:32] = 200.0
    found = displayed(levels, Settings(contrast=0.25))
    assert not found.reached[0]
    assert found.contrast[0] < 0.05
    assert abs(found.mean_level[0] - 128) < 1e-3
    flat = displayed(torch.full((1, 1, 36, 64), 77.0), Settings())
    assert not flat.reached[0]
    assert (flat.frames == 128).all()


def test_a_bound_leaves_fainter_pictures_as_they_are() -> None:
    rng = np.random.default_rng(0)
    levels = torch.from_numpy(128 + 10 * rng.standard_normal((1, 1, 36, 64))).float()
    faint = displayed(levels, Settings(contrast=0.25, rule="at_most"))
    assert faint.contrast[0] * 127.5 == pytest.approx(float(levels.std()), abs=0.05)
    strong = displayed(levels, Settings(contrast=0.05, rule="at_most"))
    assert strong.contrast[0] * 127.5 <= 0.05 * 127.5 + 0.02
    assert strong.reached[0]


def test_frames_larger_than_the_input_are_exact_too_and_come_back_through_the_eye() -> None:
    eye = Eye(36, 64)
    levels = torch.from_numpy(128 + 25 * np.stack([gabor((36, 64))])[None]).float()
    found = displayed(levels, Settings(contrast=0.1, frame_px=(144, 256)))
    assert found.frames.shape == (1, 144, 256, 3)
    assert abs(found.contrast[0] * 127.5 - 12.75) < 0.02
    back = eye.levels(eye.see(found.frames)).flatten()
    assert np.corrcoef(back, levels.flatten())[0, 1] > 0.99


@pytest.mark.parametrize("rule", ["equal", "at_most"])
def test_the_loop_sees_what_the_display_will_show(rule: str) -> None:
    for kind, levels in pictures(np.random.default_rng(1)).items():
        if kind in ("faint", "binary"):  # all of its levels round alike: the frame differs by design
            continue
        settings = Settings.model_validate({"contrast": 0.3, "rule": rule})
        seen = shown(torch.from_numpy(levels).float(), settings).numpy()
        frame = displayed(torch.from_numpy(levels).float(), settings).frames.transpose(0, 3, 1, 2)
        assert np.abs(seen - frame[:, : levels.shape[1]]).mean() < 1.0, kind


# --- steps ------------------------------------------------------------------------------------------------------------


def test_the_preconditioner_is_the_published_one() -> None:
    found = preconditioner(36, 64, 0.1).numpy()
    fy, fx = np.meshgrid(np.fft.fftfreq(36, 1 / 36), np.fft.fftfreq(64, 1 / 64), indexing="ij")
    t = 1 / np.maximum(1, (fx**2 + fy**2) ** 0.1)
    np.testing.assert_allclose(found, (t / t.mean())[:, :33], rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.3, 1.5])
def test_the_blur_is_scipys(sigma: float) -> None:
    x = np.random.default_rng(0).standard_normal((20, 31))
    ours = blurred(torch.from_numpy(x).float()[None, None], sigma)[0, 0].numpy()
    np.testing.assert_allclose(ours, ndimage.gaussian_filter(x, sigma, mode="reflect", truncate=8), atol=2e-6)


def test_a_step_changes_the_mean_pixel_by_the_published_amount() -> None:
    schedule = Schedule(Settings(), 36, 64)
    gradient = torch.randn(2, 1, 36, 64, generator=torch.Generator().manual_seed(0))
    for iteration, size in ((0, 3.0), (999, 0.125)):
        change = schedule.step(gradient, iteration).abs().mean((1, 2, 3)).numpy()
        np.testing.assert_allclose(change, size * 0.1 / 255 * 60, rtol=1e-5)
    assert (schedule.step(torch.zeros(1, 1, 36, 64), 0) == 0).all()


# --- windows ----------------------------------------------------------------------------------------------------------


def network(core: dict[str, object], height: int = 22, width: int = 30) -> Network:
    """A network with weights, norms and points of all kinds, some of the points at the picture's border."""
    architecture = Architecture.model_validate({"core": core, "readout": {"type": "point", "start_range": 1.0}})
    made = Network(architecture, Eye(height, width), {"s": [f"u{k}" for k in range(12)]}, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr, operator]
                module.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr, operator]
                module.weight.uniform_(0.5, 2, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
        readout = made.of("s").readout
        readout.features.normal_(generator=generator)  # type: ignore[union-attr, operator]
        readout.mu[:2] = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])  # type: ignore[union-attr, operator, index]
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize(
    "core",
    [
        {"type": "separable", "channels": 6, "layers": 3, "first_kernel_px": 5, "kernel_px": 5},
        {"type": "separable", "channels": 6, "layers": 3, "first_kernel_px": 5, "kernel_px": 5, "linear": True},
        {"type": "separable", "channels": 6, "layers": 1, "first_kernel_px": 5},
        {"type": "walker", "channels": 5, "layers": 4, "first_kernel_px": 7, "kernel_px": 3},
    ],
    ids=["separable", "linear", "one layer", "walker"],
)
def test_windows_give_what_the_whole_network_gives(core: dict[str, object]) -> None:
    made = network(core)
    assert isinstance(responses_of(made, 1), Focus)
    assert isinstance(responses_of(made, 2), Whole)
    units = torch.arange(12)[:, None]
    x = torch.randn(12, 1, 22, 30, generator=torch.Generator().manual_seed(3))
    results = []
    for way in (Focus(made), Whole(made)):
        leaf = x.clone().requires_grad_(True)
        rates = way(leaf, units)
        (gradient,) = torch.autograd.grad((rates * torch.arange(1, 13)[:, None]).sum(), leaf)
        results.append((rates.detach().numpy(), gradient.numpy()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-3, atol=1e-5)
    assert np.abs(results[1][1]).max() > 1e-3


def test_what_cannot_be_windowed_is_computed_whole() -> None:
    full = ln(np.ones((3, 8, 8)))
    assert isinstance(responses_of(full, 1), Whole)
    with pytest.raises(ValueError, match="point readout"):
        Focus(full)
    x, units = torch.randn(5, 1, 8, 8), torch.tensor([[0, 1], [2, 1], [0, 2], [1, 0], [2, 2]])
    np.testing.assert_allclose(Whole(full)(x, units).numpy(), EachAlone(full)(x, units).numpy(), rtol=1e-5)


# --- known optima -----------------------------------------------------------------------------------------------------


def test_the_image_of_a_linear_unit_is_its_filter() -> None:
    """By Cauchy and Schwarz no picture of that contrast does better; clipping does not bind at this contrast."""
    filters = np.stack([gabor((30, 40)), gabor((30, 40), 1.0, 0.08)])
    filters -= filters.mean((1, 2), keepdims=True)
    encoder = ln(filters)
    settings = QUICK.model_copy(update={"contrast": 0.05})
    starts = draw(("published", "natural"), 2, encoder.eye, settings, np.random.default_rng(0))
    for objective, sign in ((Maximise((0, 1)), 1.0), (Minimise((0, 1)), -1.0)):
        found = synthesise(encoder, objective, starts, settings)
        best = np.linalg.norm(filters.reshape(2, -1), axis=1) * np.sqrt(30 * 40) * 0.05 * 127.5 / 63.75
        offset = (128 - 127.5) / 63.75 * filters.sum((1, 2))
        assert (sign * (found.rates[..., 0] - offset[:, None]) > 0.98 * best[:, None]).all()
        again = encoder.rates(encoder.eye.see(found.frames[0])).numpy()[:, 0]
        np.testing.assert_allclose(found.rates[0, :, 0], again, rtol=1e-5)  # the score is that of the frame
        np.testing.assert_allclose(found.scores, sign * found.rates[..., 0])
        assert found.reached.all()


def test_colours_and_another_standardisation_change_nothing() -> None:
    """Steps are in levels: an eye that only subtracts means, as that of the V4 models, gets the same images."""
    pattern = gabor((24, 32))
    weights = np.stack([pattern, -0.5 * pattern, 0.2 * pattern])
    weights -= weights.mean()
    settings = QUICK.model_copy(update={"contrast": 0.05})
    agree = []
    for eye in (Eye(24, 32, 3, (116.2, 109.3, 100.4), (1.0,)), Eye(24, 32, 3)):
        encoder = linear_nonlinear(eye, ("u",), output="none")
        fill_full(encoder, weights.reshape(1, -1), np.zeros(1))
        starts = draw(("natural",), 1, eye, settings, np.random.default_rng(0))
        found = synthesise(encoder.requires_grad_(False), Maximise((0,)), starts, settings)
        frame = found.frames[0, 0].astype(float).transpose(2, 0, 1)
        assert np.corrcoef(frame.ravel(), weights.ravel())[0, 1] > 0.98
        agree.append(frame)
    assert np.abs(agree[0] - agree[1]).max() <= 1


class TruthV1:
    """The simulated animal's V1 cells, differentiable: the equations of `models.truth.V1` in torch."""

    def __init__(self, truth: V1, side: int) -> None:
        self.truth, self.eye, self.units, self.name = truth, Eye(side, side), truth.units, "truth"
        self._phases = torch.from_numpy(truth._filters).reshape(2, len(truth.cells), -1)
        self._windows = torch.from_numpy(truth._windows)

    def rates(self, x: Tensor, units: Tensor | None = None) -> Tensor:
        light = (self.eye.levels(x) / 255 - 0.5).flatten(1)
        even, odd = (light @ phase.T for phase in self._phases)
        pool = (light.square() @ self._windows.T - (light @ self._windows.T).square()) / GRATING_ENERGY
        is_complex = torch.tensor([c.complex_cell for c in self.truth.cells])
        drive = torch.where(is_complex, (even.square() + odd.square() + 1e-12).sqrt(), even.clamp_min(1e-6))
        most, base = (torch.tensor([getattr(c, n) for c in self.truth.cells]) for n in ("max_hz", "baseline_hz"))
        rate = base + most * (1 + SEMISATURATION) * drive**EXPONENT / (
            SEMISATURATION + pool.clamp_min(1e-9) ** (EXPONENT / 2)
        )
        return (rate if units is None else rate[:, units]).float()

    def seen(self, unit: int) -> Seen:
        return Seen(0, self.eye.height, 0, self.eye.width)

    def state(self) -> dict[str, object]:
        return {}

    def restore(self, state: dict[str, object]) -> None:
        pass


def true_optimum(truth: V1, cell: int, settings: Settings, side: int) -> float:
    """Return the highest rate (above baseline) of any picture of this mean and contrast: Kuhn and Tucker's conditions.

    rate = f(drive, pool) under a given sum of squares and black and white as limits: where its gradient vanishes, the
    light is alpha k / (1 + beta e) between the limits, k the filter (of some phase), e the window, beta >= 0 since the
    pool divides. Contrast gives alpha; beta and phase are searched.
    """
    window = truth._windows[cell].astype(np.float64)
    phases = truth._filters.reshape(2, len(truth.cells), -1)[:, cell].astype(np.float64)
    angles = np.linspace(0, np.pi, 6, endpoint=False) if truth.cells[cell].complex_cell else np.zeros(1)
    best = 0.0
    for beta in (0.0, *np.geomspace(0.03, 300, 14) / window.max()):
        light = (np.cos(angles)[:, None] * phases[0] + np.sin(angles)[:, None] * phases[1]) / (1 + beta * window)
        levels = torch.from_numpy(128 + 1e3 * light / np.abs(light).max()).reshape(-1, 1, side, side)
        found = displayed(levels, settings)
        rates = [truth.rate_hz(f.astype(np.float32) / 255)[cell] for f in found.frames[found.reached]]
        best = max(best, *rates) if rates else best
    return best - truth.cells[cell].baseline_hz


def test_images_of_simulated_v1_cells_reach_the_true_constrained_optimum() -> None:
    side = 36
    azimuth, elevation = np.meshgrid(np.linspace(-5, 5, side), np.linspace(5, -5, side))
    truth = V1(draw_cells(6, azimuth, elevation, np.random.default_rng(4)), azimuth, elevation)
    encoder = TruthV1(truth, side)
    starts = draw(("natural", "display"), 6, encoder.eye, QUICK, np.random.default_rng(5))
    found = synthesise(encoder, Maximise(tuple(range(6))), starts, QUICK)
    for cell in range(6):
        frame = found.frames[cell, found.best[cell]]
        rate = truth.rate_hz(frame.astype(np.float32) / 255)[cell] - truth.cells[cell].baseline_hz  # the truth itself
        assert rate / true_optimum(truth, cell, QUICK, side) > 0.98  # asked for: 0.9


# --- populations ------------------------------------------------------------------------------------------------------


def test_stretch_one_hot_and_target_vectors_do_what_they_say() -> None:
    """Two overlapping filters: stretching one drives the other too, one-hot does not."""
    first, second = gabor((30, 40)), gabor((30, 40), 0.6)
    filters = np.stack([first - first.mean(), second - second.mean()])
    encoder = ln(filters)
    sites = Sites((0, 1), (0.0, 0.0), (5.0, 5.0))
    starts = draw(("natural",), 2, encoder.eye, QUICK, np.random.default_rng(0))
    stretched = synthesise(encoder, Stretch(sites), starts, QUICK)
    one_hot = synthesise(encoder, OneHot(sites), starts, QUICK)
    z = one_hot.rates / 5.0
    share = [np.exp(x[k]) / np.exp(x).sum() for k, x in enumerate(z[:, 0])]
    np.testing.assert_allclose(np.exp(one_hot.scores[:, 0]), share, rtol=1e-5)
    own, other = z[[0, 1], 0, [0, 1]], z[[0, 1], 0, [1, 0]]
    assert (stretched.scores[:, 0] > own).all()
    alike = float((filters[0] * filters[1]).sum() / np.sqrt((filters**2).sum((1, 2)).prod()))
    assert alike > 0.7
    assert (other < 0).all()
    wanted = ((2.0, -2.0), (0.0, 3.0))
    hit = synthesise(encoder, TargetVector(sites, wanted), starts, QUICK)
    np.testing.assert_allclose(hit.rates[:, 0] / 5.0, wanted, atol=0.25)


def test_diverse_images_drive_a_complex_cell_alike_and_differ() -> None:
    encoder = Energy((30, 40))
    starts = draw(("natural", "display", "natural"), 1, encoder.eye, QUICK, np.random.default_rng(2))
    best = synthesise(encoder, Maximise((0,)), starts, QUICK).rates.max()
    window = np.abs(gabor((30, 40))) > 0.1
    longer = QUICK.model_copy(update={"iterations": 400})
    varied = synthesise(encoder, Diverse((0,), (float(best),), window[None].astype(float)), starts, longer)
    assert (varied.rates > 0.8 * best).all()
    inside = varied.frames[0, :, :, :, 0][:, window].astype(float)
    correlation = np.corrcoef(inside)[np.triu_indices(3, 1)]
    assert correlation.max() < 0.2  # three phases can be 120 degrees apart: -0.5


def test_objectives_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="as many means"):
        Sites((0, 1), (0.0,), (1.0, 1.0))
    with pytest.raises(ValueError, match="sds above 0"):
        Sites((0,), (0.0,), (0.0,))
    with pytest.raises(ValueError, match="twice"):
        Sites((0, 0), (0.0, 0.0), (1.0, 1.0))
    with pytest.raises(ValueError, match="2 finite"):
        TargetVector(Sites((0, 1), (0.0, 0.0), (1.0, 1.0)), ((1.0,),))
    with pytest.raises(ValueError, match="empty"):
        Diverse((0,), (1.0,), np.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match="at least one"):
        _ = Maximise(()).watched
    with pytest.raises(ValueError, match="out of reach"):
        Settings(mean_level=10.0, contrast=0.9)


# --- the work ---------------------------------------------------------------------------------------------------------


def test_a_synthesis_replays_bit_for_bit_and_knows_its_length() -> None:
    encoder = network({"type": "separable", "channels": 6, "layers": 2, "first_kernel_px": 5, "kernel_px": 5})
    settings = Settings(iterations=12, together=4)
    starts = draw(("display", "natural"), 5, encoder.eye, settings, np.random.default_rng(0))
    first = Synthesis(encoder, Maximise((0, 3, 5, 7, 9)), starts, settings)
    for _ in range(20):
        assert not first.step()
    with pytest.raises(RuntimeError, match=r"20 of 46 steps"):
        first.result()
    while not first.step():
        pass
    assert first.steps == first.total_steps == 46  # three groups of 12 iterations, and 10 frames
    assert first.step()
    again = synthesise(encoder, Maximise((0, 3, 5, 7, 9)), starts, settings)
    for name in ("frames", "scores", "rates", "contrast"):
        np.testing.assert_array_equal(getattr(first.result(), name), getattr(again, name))
    assert again.frames.shape == (5, 2, 22, 30, 3)


def test_images_of_one_group_stay_together_and_wrong_starts_are_refused() -> None:
    encoder = ln(np.ones((2, 8, 8)))
    diverse = Diverse((0, 1), (1.0, 1.0), np.ones((2, 8, 8)))
    settings = Settings(iterations=1, together=2)
    starts = draw(("published",) * 3, 2, encoder.eye, settings, np.random.default_rng(0))
    assert Synthesis(encoder, diverse, starts, settings).total_steps == 2 + 6  # three images each, more than `together`
    assert Synthesis(encoder, Maximise((0, 1)), starts, settings).total_steps == 3 + 6
    for bad, said in (
        (starts[:1], "2 goals"), (starts[:, :, :, :4], "expected"), (starts + 300, "0 to 255"), (starts[:, :0], "one"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            Synthesis(encoder, Maximise((0, 1)), bad, settings)
    with pytest.raises(ValueError, match="unit 2"):
        Synthesis(encoder, Maximise((0, 2)), starts, settings)


def test_starts_are_drawn_from_the_seed_at_the_contrast_of_the_display() -> None:
    eye, settings = Eye(36, 64, 3), Settings(contrast=0.2, mean_level=120.0)
    kinds = ("published", "display", "natural")
    first, again = (draw(kinds, 4, eye, settings, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (4, 3, 3, 36, 64)
    assert len({start.tobytes() for start in first.reshape(12, -1)}) == 12
    np.testing.assert_allclose(first[:, 0].std((1, 2, 3)), 8, rtol=0.1)
    np.testing.assert_allclose(first[:, 1:].std((2, 3, 4)) / 127.5, 0.2, rtol=0.15)
    np.testing.assert_allclose(first.mean((2, 3, 4)), 120, atol=5)
    with pytest.raises(ValueError, match=r"white; choose among published, display, natural"):
        draw(("white",), 1, eye, settings, np.random.default_rng(0))  # type: ignore[arg-type]
