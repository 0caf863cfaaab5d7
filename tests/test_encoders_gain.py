"""The core with contrast gain control: its formula, what contrast does to it, and whatever unit the eye has."""

import numpy as np
import torch

from models.encoders.eye import Eye
from models.encoders.gain import LEAST, START, USUAL_SD, WIDTHS, ContrastGain
from models.encoders.network import Network
from models.synthesis.focus import Focus
from rig.config.encoders import Architecture

SIDE, FIRST = 20, 9


def network(sd: float = USUAL_SD) -> Network:
    core = {"type": "normalised", "channels": 4, "layers": 2, "first_kernel_px": FIRST, "kernel_px": 3}
    eye = Eye(SIDE, SIDE, 1, (128.0,), (sd,))
    return Network(Architecture.model_validate({"core": core, "output": "none"}), eye, {"s": ("a", "b")}, seed=2)


def test_filters_are_divided_by_a_constant_and_the_local_contrast() -> None:
    rng = np.random.default_rng(0)
    levels = rng.uniform(60, 200, (FIRST, FIRST))
    gain = ContrastGain(FIRST, 2, Eye(FIRST, FIRST, 1, (128.0,), (50.0,)))
    x = torch.from_numpy((levels - 128) / 50).float()[None, None]
    z = torch.tensor([3.0, -5.0]).reshape(1, 2, 1, 1)
    y, x_at = np.mgrid[:FIRST, :FIRST] - (FIRST - 1) / 2
    variances = []
    for width in WIDTHS:
        window = np.exp(-(y**2 + x_at**2) / (2 * (width * FIRST) ** 2))
        window /= window.sum()
        variances.append((window * levels**2).sum() - (window * levels).sum() ** 2)
    divisor = np.log1p(np.exp(START)) + np.sqrt(np.mean(variances) / USUAL_SD**2 + LEAST)
    np.testing.assert_allclose(gain(x, z).flatten().detach().numpy(), np.array([3.0, -5.0]) / divisor, rtol=1e-5)


def test_responses_saturate_with_contrast_and_a_grey_picture_has_a_slope() -> None:
    core = network().core
    pattern = torch.from_numpy(np.random.default_rng(1).normal(0, 1, (1, 1, SIDE, SIDE))).float()
    convolution, gain = core.filters.layers[0][0], core.gain
    with torch.inference_mode():
        at = [gain(pattern * c, convolution(pattern * c)).abs().mean() for c in (0.1, 0.2, 2.0, 4.0)]
    assert at[1] / at[0] > 1.5 > 1.2 > at[3] / at[2] > 1  # nearly linear at low contrast, saturated at high
    grey = torch.zeros(1, 1, SIDE, SIDE, requires_grad=True)
    (slope,) = torch.autograd.grad(network().rates(grey).sum(), grey)
    assert torch.isfinite(slope).all()
    assert slope.abs().max() > 0


def test_the_divisor_is_in_levels_whatever_the_unit_of_the_eye() -> None:
    frames = np.random.default_rng(2).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    divided = []
    for sd in (USUAL_SD, 127.5):
        one = network(sd)
        x = one.eye.see(frames)
        ones = torch.ones(3, 4, SIDE - FIRST + 1, SIDE - FIRST + 1)
        divided.append(one.core.gain(x, ones).detach().numpy())
    np.testing.assert_allclose(divided[0], divided[1], rtol=1e-5)


def test_a_pixel_outside_what_a_unit_sees_changes_nothing() -> None:
    one = network()
    assert not Focus.fits(one)  # windows of the plain core would leave the contrast out
    with torch.no_grad():
        one.of("s").readout.mu.copy_(torch.tensor([[-0.9, -0.9], [0.0, 0.0]]))
    seen = one.seen(0)
    assert (seen.y0, seen.x0) == (0, 0)
    assert seen.y1 < SIDE
    x = torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[..., seen.y1 :, :] = 3.0
    other[..., :, seen.x1 :] = -3.0
    before, after = one.rates(x), one.rates(other)
    assert torch.allclose(before[:, 0], after[:, 0], atol=1e-6)
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-4)
