"""Work of the inception agent in short steps: what is cut up, or done in another way, gives the same bits."""

from collections.abc import Generator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse, stats
from scipy.sparse.csgraph import connected_components

from models.encoders.eye import Eye
from models.in_steps import at_once
from models.inception.checks import ranked
from models.inception.encoder import FeatureReadout
from models.inception.features import COUNT, LINEAR, SIDE
from models.inception.learner import RIDGES, Learner
from models.inception.made import Made, MadeImage
from models.readouts.kernels import Kernel
from models.readouts.streaming import StreamingReadout
from models.synthesis.agreement import _joined
from models.synthesis.engine import Synthesis, synthesise
from models.synthesis.frames import displayed, displaying
from models.synthesis.objectives import Maximise
from models.synthesis.starts import draw
from rig.config.synthesis import Synthesis as Settings
from stimuli.bank import match_levels
from stimuli.limits import frame_levels

F64 = npt.NDArray[np.float64]
UNITS = ("a", "b", "c")


def counted(steps: Generator[None, None, Any]) -> tuple[Any, int]:
    """Return what steps lead to and how many there are."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, count
        count += 1


def fitted(blocks: int, restarts: bool) -> tuple[Learner, int]:
    """Return what is learnt in blocks of 20, unit c from the second one on, and the steps of the last fit."""
    rng, count = np.random.default_rng(0), 0
    learner = Learner.empty(UNITS, rng.standard_normal((50, COUNT)).astype(np.float32))
    for block in range(blocks):
        x, y = rng.standard_normal((20, COUNT)).astype(np.float32), rng.poisson(3.0, (20, 3)).astype(float)
        y[:, 2] = np.nan if block == 0 else y[:, 2]
        if restarts:
            learner = Learner.restored(UNITS, learner.state())
            learner = at_once(learner.remembered())
        learner, count = counted(learner.with_rows(x, y))
    return learner, count


def test_a_fit_after_restarts_is_the_fit_without_in_as_many_steps_and_that_of_the_readout_at_once() -> None:
    (whole, steps), (again, as_many) = fitted(4, False), fitted(4, True)
    assert np.array_equal(whole.weights, again.weights)
    assert np.array_equal(whole.offset, again.offset)
    assert steps == as_many > 2 * 2 * len(RIDGES)  # for each set of units and each ridge: taken in, and solved
    readout = StreamingReadout(Kernel("linear", float(COUNT)), COUNT, RIDGES)
    for x, y in whole.told:
        readout.update(x, UNITS, y)
    found, mean = readout.weights(UNITS)
    assert np.array_equal(whole.weights, found / whole.scale[1][:, None])
    assert np.array_equal(whole.offset, mean - whole.scale[0] @ whole.weights)
    assert whole.presentations == 80


def test_what_was_concluded_predicts_as_before_and_keeps_nothing_of_what_it_was_told() -> None:
    learner, _ = fitted(4, False)
    done = at_once(learner.concluded())
    again = Learner.restored(UNITS, done.state())
    assert np.array_equal(again.weights, learner.weights)
    assert again.linear is not None
    assert np.array_equal(again.linear, done.linear if done.linear is not None else [])
    assert again.linear.shape == (LINEAR, 3)
    assert np.abs(again.linear).max() > 0
    assert not again.told
    assert again.presentations == 80
    assert done.readout is None
    assert learner.state()["features"].nbytes == 4 * 80 * COUNT  # single precision holds every bit of them
    assert done.state()["features"].nbytes == 0


def test_a_frame_made_in_parts_is_the_one_made_at_once_and_no_part_is_a_whole_search() -> None:
    levels = torch.from_numpy(128 + 30 * np.random.default_rng(1).standard_normal((1, 1, 60, 60)))
    settings = Settings(contrast=0.3)
    found, parts = counted(displaying(levels, settings))
    assert np.array_equal(found.frames, displayed(levels, settings).frames)
    assert parts >= 3


def test_a_synthesis_in_parts_takes_the_same_steps_to_the_same_frames() -> None:
    rng = np.random.default_rng(2)
    eye = Eye(SIDE, SIDE, 1, (128.0,), (127.5,))
    encoder = FeatureReadout(("a", "b"), eye, rng.standard_normal((COUNT, 2)), np.zeros(2))
    settings = Settings(iterations=4, together=2, frame_px=(48, 48))
    starts = draw(("display", "display"), 2, eye, settings, np.random.default_rng(0))
    work, parts = Synthesis(encoder, Maximise((0, 1)), starts, settings), 0
    while not work.part():
        parts += 1
    assert work.steps == work.total_steps < parts
    assert work.part()
    assert np.array_equal(work.result().frames, synthesise(encoder, Maximise((0, 1)), starts, settings).frames)


def test_levels_matched_by_their_histogram_are_those_matched_pixel_by_pixel() -> None:
    rng = np.random.default_rng(3)
    for spread, mean, contrast in ((20, 128.0, 0.25), (3, 90.0, 0.4), (80, 128.0, 0.1)):
        frame = np.clip(rng.normal(100, spread, (40, 30, 3)), 0, 255).astype(np.uint8)
        values = frame.astype(np.float64)
        values = (values - values.mean()) / values.std()
        gain, offset, out = contrast * 127.5, mean, frame
        for _ in range(20):
            out = np.clip(np.rint(values * gain + offset), 0, 255).astype(np.uint8)
            now_mean, now_contrast = frame_levels(out)
            gain, offset = gain * contrast / max(now_contrast, 1e-3), offset + mean - now_mean
        assert np.array_equal(match_levels(frame, mean, contrast), out)


def test_ranks_and_groups_are_those_of_scipy() -> None:
    rng = np.random.default_rng(4)
    for size in (3, 10, 61):
        a, b = rng.integers(0, 9, size).astype(float), rng.standard_normal(size)
        assert ranked(a, b) == float(stats.spearmanr(a, b).statistic)
        alike = rng.random((size, size)) < 1.2 / size
        starts = [int(k) for k in rng.permutation(size)]
        joined = alike[np.ix_(starts, starts)].astype(np.int64)
        _, label = connected_components(sparse.csr_array(joined), directed=False)
        members = {k: [s for s, at in zip(starts, label, strict=True) if at == k] for k in label}
        assert list(_joined(starts, alike)) == [tuple(sorted(group)) for group in members.values()]


def test_a_grey_frame_is_kept_as_one_channel_and_a_colourful_one_whole() -> None:
    rng = np.random.default_rng(5)
    colour = rng.integers(0, 256, (6, 5, 3)).astype(np.uint8)
    grey = np.repeat(colour[..., :1], 3, axis=2)
    almost = grey.copy()
    almost[2, 3, 2] ^= 1
    frames = {"mei": grey, "natural": colour, "linear": almost}
    made = Made(3, 0.1, {kind: MadeImage(np.ones(4, np.float32), one, 1.0) for kind, one in frames.items()}, 0.9)
    state = made.state()
    assert [state["images"][kind]["frame"].shape[2] for kind in frames] == [1, 3, 3]
    again = Made.restored(state)
    for kind, one in frames.items():
        assert again.images[kind].frame.dtype == np.uint8
        assert again.images[kind].frame.tobytes() == one.tobytes()


def test_units_that_fire_first_one_after_the_other_come_in_few_groups() -> None:
    rng, units, blocks, each = np.random.default_rng(1), tuple(f"u{k}" for k in range(12)), 9, 6
    first = np.array([0, 0, 1, 2, 5, 6, 8, 13, 20, 22, 30, 50])  # presentation from which on a unit is there
    learner = Learner.empty(units, rng.standard_normal((50, COUNT)).astype(np.float32))
    for block in range(blocks):
        x, y = rng.standard_normal((each, COUNT)).astype(np.float32), rng.poisson(3.0, (each, 12)).astype(float)
        y[np.arange(each)[:, None] + block * each < first] = np.nan
        learner = at_once(learner.with_rows(x, y))
    rates = np.concatenate([rates for _, rates in learner.told])
    began = [each * batch for batch in (0, 0, 1, 1, 1, 1, 2, 4, 4, 4, 8)]
    assert np.isfinite(rates).argmax(axis=0)[:11].tolist() == began
    assert np.isfinite(rates).sum(axis=0).tolist() == [blocks * each - n for n in began] + [0]
    assert len({column.tobytes() for column in np.isfinite(rates).T}) == 6  # of 12 units: 5 sets, and one without any
