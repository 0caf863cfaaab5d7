"""Pure parts of the inception agent: tiles, schedule, Gabors, images alike, and the tests of images shown back."""

import numpy as np
import pytest
import torch

from models.encoders.eye import LUMINANCE
from models.inception import gabors
from models.inception.encoder import FeatureReadout, eye_for
from models.inception.features import COUNT, LINEAR, SIDE, features, picture_of
from models.inception.images import _cut
from models.inception.matching import alike
from models.inception.results import compare, confused, mean, told
from models.inception.schedule import blocks, choose
from models.statistics import benjamini_hochberg
from stimuli.limits import frame_levels
from stimuli.spec import HELD_OUT, BankImage, Stimulus
from stimuli.tiles import PHOTOGRAPHS, tiles_bank


def test_tiles_are_distinct_pieces_that_have_contrast_in_eight_poses() -> None:
    bank = tiles_bank(128.0, 0.25)
    plain = sum(rows * columns - len(flat) for rows, columns, flat in PHOTOGRAPHS.values())
    assert len(bank.names) == len(set(bank.names)) == 8 * plain == 3720
    for name in bank.names[:plain:40]:
        upright, turned, mirrored = (bank.image(name + pose, 40, 40) for pose in ("", "-180", "-m0"))
        mean_level, contrast = frame_levels(upright)
        assert mean_level == pytest.approx(128, abs=1)
        assert contrast == pytest.approx(0.25, abs=0.01)
        assert np.array_equal(turned, upright[::-1, ::-1])
        assert np.abs(mirrored.astype(int) - upright[:, ::-1]).max() <= 1


def test_held_out_images_come_once_in_each_stretch_and_training_images_as_often_as_asked() -> None:
    pools = [[Stimulus(id=f"{b}{k}", spec=BankImage(bank=b, name=str(k))) for k in range(30)] for b in "ab"]
    chosen = choose(pools, 40, 10, "phases.0")
    assert (chosen.train, chosen.test) == (40, 10)
    assert {s.id[0] for s in chosen.stimuli[40:]} == {"a", "b"}
    shown = [k for block in blocks(chosen, 2, 4, 16, np.random.default_rng(0)) for k in block]
    assert [shown.count(k) for k in range(50)] == [2] * 40 + [4] * 10
    assert [HELD_OUT in s.figures for s in chosen.stimuli] == [False] * 40 + [True] * 10  # the log says which
    for stretch in range(4):
        part = shown[stretch * 30 : (stretch + 1) * 30]
        assert sorted(k for k in part if k >= 40) == list(range(40, 50))


def test_the_grid_is_the_published_one_and_ascent_does_not_lose_what_it_found() -> None:
    assert len(gabors.grid()) == gabors.GRID == 72_800
    rng = np.random.default_rng(1)
    target = np.array([[0.3, 0.12, 1.0, 0.6, 0.1, -0.1]], np.float32)
    seen = features(gabors.drawn(torch.from_numpy(target), SIDE, 0.12))
    encoder = FeatureReadout(("u",), eye_for(128), seen.T.double().numpy(), np.zeros(1))
    starts = target[None] + rng.normal(0, 0.04, (1, 3, 6)).astype(np.float32)
    steps = gabors.best_gabors(encoder, [0], starts, 0.12)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            best = stop.value
            break

    def rate(parameters: np.ndarray) -> float:  # type: ignore[type-arg]
        drawn = gabors.drawn(torch.from_numpy(np.atleast_2d(parameters).astype(np.float32)), SIDE, 0.12)
        return float(encoder.rates(drawn).max())

    assert rate(best[0]) > rate(starts[0])
    assert best[0][0] == pytest.approx(0.3, abs=0.05)
    for low, high, value in zip((4 / 36, 2 / 36), (20 / 36, 9 / 36), best[0][:2], strict=True):
        assert low <= value <= high


def test_a_gabor_has_its_wave_under_a_gaussian_of_its_sigma() -> None:
    wavelength, sigma, phase, orientation, down, right = given = 0.3, 0.12, 1.0, 0.6, 0.1, -0.05
    (found,) = gabors.drawn(torch.tensor([given]), 40, 0.12)[0].double().numpy()
    y, x = (np.mgrid[:40, :40] + 0.5) / 40 - 0.5
    y, x = y - down, x - right
    wave = np.cos(2 * np.pi * (x * np.cos(orientation) + y * np.sin(orientation)) / wavelength + phase)
    expected = np.exp(-(x**2 + y**2) / (2 * sigma**2)) * wave
    expected = (expected - expected.mean()) / expected.std() * 0.12
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_linear_receptive_field_as_a_picture_weighs_as_its_features_do() -> None:
    rng = np.random.default_rng(2)
    weights = rng.standard_normal(LINEAR).astype(np.float32)
    x = torch.from_numpy(rng.standard_normal((3, 1, SIDE, SIDE)).astype(np.float32))
    by_picture = x.numpy().reshape(3, -1) @ picture_of(weights).ravel()
    assert np.allclose(by_picture, features(x)[:, :LINEAR].numpy() @ weights, atol=1e-4)
    assert features(x).shape == (3, COUNT)


def test_a_contrast_that_one_cannot_reach_is_lowered_for_all() -> None:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:60, :60]
    spot = np.exp(-((x - 30) ** 2 + (y - 30) ** 2) / 18.0)
    frames, contrast = alike([rng.standard_normal((60, 60)), spot], 128.0, 0.4)
    assert contrast < 0.35
    levels = np.array([frame_levels(frame) for frame in frames])
    assert np.abs(levels[:, 0] - 128).max() < 0.01
    assert np.abs(levels[:, 1] - contrast).max() < 5e-4
    with pytest.raises(ValueError, match="without a pattern"):
        alike([np.ones((8, 8))], 128.0, 0.1)


def test_a_colourful_natural_control_has_its_contrast_and_its_mean_in_luminance() -> None:
    rng = np.random.default_rng(4)
    frame = rng.integers(60, 200, (48, 48, 3)).astype(np.uint8)  # noise of its own in each channel
    frame[..., 2] //= 3  # and a cast
    window = np.exp(-((np.mgrid[:32, :32] - 15.5) ** 2).sum(axis=0) / 60.0)
    frames, contrast = alike([_cut(frame, None), _cut(frame, window)], 128.0, 0.1)
    assert contrast == 0.1
    for one in frames:
        light = one.astype(np.float64) @ np.array(LUMINANCE)
        assert light.mean() == pytest.approx(128, abs=0.05)
        assert light.std() / 127.5 == pytest.approx(0.1, abs=5e-4)


def test_comparisons_by_hand_and_none_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(4)
    drift = np.linspace(0, 30, 12)
    own = [np.array([40 + d + rng.normal(), 9.0]) for d in drift]
    lower = [np.array([30 + d + rng.normal(), 9.0]) for d in drift]
    found = compare([(0, {"mei": own, "linear": lower, "gabor": own})], "mei")
    by_control = {one.control: one for one in found}
    assert by_control["linear"].difference == pytest.approx(10, abs=1.5)
    assert by_control["linear"].error < 1  # drift falls out of pairs
    assert by_control["linear"].q < 0.01
    assert by_control["gabor"].q == 1.0
    assert mean(own, 1) == (9.0, 0.0, 12)
    assert mean([np.array([1.0]), np.array([np.nan]), np.array([3.0])], 0) == (2.0, 1.0, 2)


def test_where_images_do_the_same_few_comparisons_count() -> None:
    rng = np.random.default_rng(5)
    counted, rounds = 0, 40
    for _ in range(rounds):
        shown = [
            (u, {kind: [rng.poisson(8, 6) * 10.0 for _ in range(12)] for kind in ("mei", "linear")}) for u in range(6)
        ]
        counted += any(one.q <= 0.05 for one in compare(shown, "mei"))
    assert counted / rounds <= 0.15  # any false one at all; 5 % expected


def test_confusion_finds_the_own_image_and_needs_two_units() -> None:
    rng = np.random.default_rng(6)
    images = [[rng.normal(20 + 30 * np.eye(3)[k], 5.0) for _ in range(10)] for k in range(3)]
    found = confused([0, 1, 2], images)
    assert found is not None
    assert (found.hits, found.tested) == (3, 3)
    assert found.p == pytest.approx(1 / 27)
    assert confused([0], images[:1]) is None


def test_the_own_image_is_told_against_each_control_over_all_units_when_all_was_shown() -> None:
    rng = np.random.default_rng(6)
    base = rng.gamma(3.0, 5.0, 10)
    times = {"mei": 1.5, "gabor": 1.0, "natural": 1.5}
    shown = [
        (unit, {kind: list(rng.poisson(base * factor, (40, 10)).astype(float)) for kind, factor in times.items()})
        for unit in range(10)
    ]
    names = [f"E{unit:02d}#0" for unit in range(10)]
    assert not any(name.startswith("population") for name in told(shown, "mei", names, 0.05, over=False))
    out = told(shown, "mei", names, 0.05, over=True)
    assert out["population_n_gabor"] == 10
    assert out["population_p_gabor"] == pytest.approx(2 / 2**10)
    assert out["population_q_gabor"] == pytest.approx(2 * out["population_p_gabor"])  # of two controls the smaller one
    assert out["population_p_natural"] > 0.05
    assert out["population_ratio_low_gabor"] < 1.5 < out["population_ratio_high_gabor"]
    each = [np.mean(of["mei"], axis=0)[unit] / np.mean(of["gabor"], axis=0)[unit] for unit, of in shown]
    assert out["population_ratio_gabor"] == pytest.approx(np.median(each))
    p = {name: value for name, value in out.items() if ": p_" in name}
    assert len(p) == 20  # corrected together: all units and both controls
    q = dict(zip(p, benjamini_hochberg(list(p.values())), strict=True))
    assert {name.replace(": p_", ": q_"): value for name, value in q.items()} == {n: out[n] for n in out if ": q_" in n}
