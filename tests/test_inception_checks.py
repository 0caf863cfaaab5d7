"""The checks of the model (Walker 2019) on units whose truth is known, and the ridge that they use."""

from collections.abc import Generator
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pytest
import torch

from models.inception.checks import EIGENVALUES, Given, checked, gradients, ranked
from models.inception.encoder import FeatureReadout, eye_for
from models.inception.features import COUNT, ENERGY, LINEAR, SIDE, linear_features, picture_of
from models.inception.learner import LINEAR_RIDGES, RIDGES
from models.inception.made import MEI, Made, MadeImage, at_contrast, compared
from models.readouts.kernels import Kernel
from models.readouts.primal import fit
from models.readouts.streaming import StreamingReadout
from models.synthesis.frames import displayed
from models.truth import Gabor
from models.truth_encoder import TruthEncoder
from rig.config.synthesis import Synthesis
from rig.report.model_checks import amplitude, radial
from stimuli.tiles import tiles_bank

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
EYE = eye_for(128)
LINEAR_UNIT, COMPLEX_UNIT, MIXED_UNIT = range(3)
T = TypeVar("T")


def drained(steps: Generator[None, None, T]) -> T:
    """Take all steps; return what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found


@pytest.fixture(scope="module")
def natural() -> F32:
    """Natural images (n, 1, SIDE, SIDE) as the encoder sees them."""
    bank = tiles_bank(128.0, 0.25)
    frames = np.stack([bank.image(name, SIDE, SIDE) for name in bank.names[::12]])
    seen: F32 = EYE.see(frames).numpy()
    return seen


@pytest.fixture(scope="module")
def encoder() -> FeatureReadout:
    """A linear unit, the energy of one Gabor, and the sum of both."""
    rng = np.random.default_rng(3)
    weights = np.zeros((COUNT, 3))
    y, x = np.mgrid[:16, :16] - 7.5
    window = np.exp(-(x**2 + y**2) / 18) * np.cos(0.9 * x + 0.3)
    weights[:LINEAR, LINEAR_UNIT] = (window + 0.02 * rng.standard_normal((16, 16))).ravel()
    weights[LINEAR + ENERGY // 2, COMPLEX_UNIT] = 5.0
    weights[:, MIXED_UNIT] = weights[:, LINEAR_UNIT] / 2 + weights[:, COMPLEX_UNIT]
    return FeatureReadout(("linear", "complex", "mixed"), EYE, weights, np.full(3, 10.0))


def made_for(encoder: FeatureReadout, unit: int, pattern: F32) -> Made:
    """Return a unit's images: only the most exciting one, which is `pattern`."""
    levels = torch.from_numpy(128 + 20 * (pattern / pattern.std())[None, None].astype(np.float64))
    frame = displayed(levels, Synthesis(mean_level=128.0, contrast=0.1)).frames
    code = EYE.see(frame).flatten().numpy()
    return Made(unit, 0.1, {MEI: MadeImage(code, frame[0], 0.0)}, float("nan"))


# --- eigenvalues of gradients -----------------------------------------------------------------------------------------


def test_gradients_of_a_linear_unit_lie_on_one_axis_and_of_a_complex_one_on_two(
    natural: F32, encoder: FeatureReadout
) -> None:
    values = [drained(gradients(encoder, unit, natural))[0] for unit in range(3)]
    assert values[LINEAR_UNIT][0] == pytest.approx(1, abs=1e-6)
    assert values[COMPLEX_UNIT][:2].sum() == pytest.approx(1, abs=1e-6)
    assert values[COMPLEX_UNIT][0] < 0.6  # both phases of the pair count alike
    assert values[MIXED_UNIT][2] > 0.01  # an axis of the linear part beside both of the pair
    assert values[MIXED_UNIT][:3].sum() == pytest.approx(1, abs=1e-6)
    assert all((np.diff(one) <= 0).all() and one.sum() == pytest.approx(1) for one in values)


def test_a_true_complex_cell_has_more_axes_than_a_simple_one(natural: F32) -> None:
    azimuth, elevation = np.meshgrid(np.linspace(-5, 5, SIDE), np.linspace(5, -5, SIDE))
    cells = [Gabor(0.3, -0.2, 1.2, 0.3, 40.0, 70.0, complex_cell, 5.0, 90.0) for complex_cell in (False, True)]
    truth = TruthEncoder(cells, azimuth, elevation)
    simple, complex_cell = (drained(gradients(truth, unit, natural))[0] for unit in range(2))
    assert simple[0] > 0.8  # the rest is its normalisation by contrast
    assert simple[1] < 0.15
    assert complex_cell[0] < 0.65
    assert complex_cell[:2].sum() > 0.8


def test_a_unit_that_nothing_changes_has_no_spectrum(natural: F32) -> None:
    silent = FeatureReadout(("silent",), EYE, np.zeros((COUNT, 1)), np.ones(1))
    assert np.isnan(drained(gradients(silent, 0, natural[:20]))[0]).all()


# --- linear models, filters, contrast ---------------------------------------------------------------------------------


def given(encoder: FeatureReadout, natural: F32, seed: int = 0) -> Given:
    """Return what checks rest on, for units that do what the encoder says, with noise; the linear model is fitted."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        rates = encoder.rates(torch.from_numpy(natural)).double().numpy()
    rates = (rates - rates.mean(axis=0)) / rates.std(axis=0)
    fitted, held_out = natural[40:], natural[:40]
    x = linear_features(torch.from_numpy(fitted)).numpy().astype(np.float64)
    linear = fit(x / x.std(axis=0), rates[40:] + 0.5 * rng.standard_normal(rates[40:].shape), LINEAR_RIDGES).weights
    responses = rates[:40, None] + 0.5 * rng.standard_normal((40, 6, 3))
    return Given(encoder, fitted, held_out, responses, linear / x.std(axis=0)[:, None])


def test_a_linear_unit_is_its_own_linear_model_and_a_complex_one_has_none(
    natural: F32, encoder: FeatureReadout
) -> None:
    known = given(encoder, natural)
    fields = [picture_of(known.linear[:, unit].astype(np.float32)) for unit in (LINEAR_UNIT, COMPLEX_UNIT)]
    of_linear = drained(checked(known, made_for(encoder, LINEAR_UNIT, fields[0])))
    assert of_linear["eigenvalue_1"] == pytest.approx(1, abs=1e-6)
    assert of_linear["dimensions"] == pytest.approx(1, abs=1e-6)
    assert of_linear["encoder_r"] > of_linear["linear_r"] > 0.85  # the encoder here is the unit itself
    assert of_linear["linear_r_low"] < of_linear["linear_r"] < of_linear["linear_r_high"]
    assert of_linear["linearised_r"] > 0.9
    assert of_linear["linear_alike"] > 0.7
    assert of_linear["filter_mei"] == pytest.approx(of_linear["filter_linear"], abs=0.05)  # it is the same image
    of_complex = drained(checked(known, made_for(encoder, COMPLEX_UNIT, np.roll(fields[1], 3, axis=0))))
    assert of_complex["dimensions"] > 1.8
    assert of_complex["linear_r_high"] < of_linear["linear_r_low"]
    assert of_complex["encoder_r"] > 0.9
    assert of_complex["encoder_r_low"] > of_complex["linear_r_high"]
    assert abs(of_complex["filter_mei"]) < 0.5


def test_predictions_at_contrasts_are_of_displayed_frames_up_to_clipping(natural: F32, encoder: FeatureReadout) -> None:
    known = given(encoder, natural)
    field = picture_of(known.linear[:, LINEAR_UNIT].astype(np.float32))
    found = drained(checked(known, made_for(encoder, LINEAR_UNIT, field)))
    curve = sorted((float(name[13:]), rate) for name, rate in found.items() if name.startswith("predicted_at_"))
    contrast, rate = np.array(curve).T
    assert contrast[0] == pytest.approx(0.01, abs=1e-3)
    assert len(contrast) >= 6
    unclipped = contrast < 0.1
    slope = (rate[unclipped] - 10) / contrast[unclipped]
    assert np.ptp(slope) < 0.05 * slope.mean()  # the unit is linear
    assert all(np.isfinite(value) for value in found.values())
    assert sum(name.startswith("eigenvalue_") for name in found) == EIGENVALUES


def test_checks_and_contrasts_are_part_of_what_a_restart_takes_over(encoder: FeatureReadout) -> None:
    own = made_for(encoder, COMPLEX_UNIT, np.random.default_rng(2).standard_normal((SIDE, SIDE)).astype(np.float32))
    faint = replace(own.images[MEI], contrast=0.05, predicted=3.0, how="at another contrast")
    one = replace(own, images=own.images | {at_contrast(MEI, 0.05): faint}, checks={"dimensions": 2.0})
    again = Made.restored(one.state())
    assert again.checks == {"dimensions": 2.0}
    assert again.stimulus("p0", "mei_at_0.05", 0, "e").figures == {"predicted": 3.0, "contrast": 0.05}
    assert again.stimulus("p0", MEI, 0, "e").figures["contrast"] == 0.1
    assert [compared(kind) for kind in again.images] == [True, False]


def test_ranks_know_no_nonlinearity_and_need_something_that_varies() -> None:
    rng = np.random.default_rng(1)
    output = rng.standard_normal(30)
    assert ranked(output, np.exp(3 * output)) == pytest.approx(1)
    assert ranked(-output, np.exp(3 * output)) == pytest.approx(-1)
    assert np.isnan(ranked(np.ones(30), output))
    mean = np.where(np.arange(30) < 28, np.nan, output)
    assert np.isnan(ranked(output, mean))


@pytest.mark.parametrize("turned", [False, True])
def test_the_spectrum_of_a_grating_is_at_its_cycles_per_picture(turned: bool) -> None:
    wave = 128 + 60 * np.sin(2 * np.pi * 5 * np.arange(60) / 60)
    frame = np.repeat(np.broadcast_to(wave, (60, 60)).round().astype(np.uint8)[..., None], 3, axis=2)
    spectrum = amplitude(frame.transpose(1, 0, 2) if turned else frame)
    highest = np.unravel_index(spectrum.argmax(), spectrum.shape)
    assert highest in ([(25, 30), (35, 30)] if turned else [(30, 25), (30, 35)])
    assert radial(spectrum).argmax() == 5
    assert amplitude(np.full((60, 60, 3), 128, np.uint8)).max() == 0


# --- the ridge --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trials", [60, 400])
def test_the_quick_ridge_is_the_streamed_one(trials: int) -> None:
    rng = np.random.default_rng(trials)
    x = rng.standard_normal((trials, LINEAR)) + 0.3
    y = x @ rng.normal(0, 0.1, (LINEAR, 4)) + rng.standard_normal((trials, 4)) * np.array([0.1, 1, 5, 1]) + 7
    y[::5, 3] = np.nan
    units = ("a", "b", "c", "d")
    streamed = StreamingReadout(Kernel("linear", float(LINEAR)), LINEAR, RIDGES)
    streamed.update(x, units, y)
    quick = fit(x, y, LINEAR_RIDGES)
    weights, _ = streamed.weights(units)
    assert np.abs(quick.weights - weights).max() < 1e-9
    assert np.array_equal(quick.ridge, LINEAR * streamed.readout.ridges(units))
    assert np.abs(quick.predict(x) - streamed.predict(x, units)).max() < 1e-8
    assert len(set(quick.ridge.tolist())) > 1


def test_the_quick_ridge_leaves_out_units_without_responses_and_names_wrong_shapes() -> None:
    x = np.random.default_rng(0).standard_normal((20, 5))
    y = np.full((20, 2), np.nan)
    y[:, 0] = x[:, 1]
    found = fit(x, y, [0.1, 1.0])
    assert np.isnan(found.ridge[1])
    assert not found.weights[:, 1].any()
    assert found.weights[1, 0] == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match=r"\(trial, feature\) and \(trial, unit\)"):
        fit(x, y[:5], [1.0])
