"""The readout of a session on feature maps: finds where units look, learns between tunings, restores bit for bit."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from models.readouts.envelopes import CandidateDistances, Envelope, Similarity, grid, squared_distances
from models.readouts.learning import LearningReadout, Tuned
from models.readouts.shelf import MOST, Rounding, Shelf, pooled
from models.readouts.tuning import errors_of, few, gaussian, sample, window
from tests.test_readouts import same

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
SIDES = {3: (6, 4), 9: (3, 10)}  # by block: cells along a side, channels
UNITS = ("left", "right", "other", "late")
TUNED = Tuned(envelopes=grid(sds=(0.2,)), kernels=2)


def maps_of(images: int, seed: int = 0) -> dict[int, F32]:
    rng = np.random.default_rng(seed)
    return {b: rng.standard_normal((images, n, n, c)).astype(np.float32) for b, (n, c) in SIDES.items()}


def responses_to(maps: dict[int, F32], seed: int = 7, noise: float = 0.5) -> F64:
    """Return responses (image, unit) of units that look at one corner of block 3 each, by a quadrature pair there."""
    rng = np.random.default_rng(3)
    places = {"left": (1, 1), "right": (4, 4), "other": (1, 1), "late": (4, 4)}
    columns = []
    for y, x in places.values():
        filters = rng.standard_normal((2, 4 * 4))
        seen = maps[3][:, y - 1 : y + 1, x - 1 : x + 1].reshape(len(maps[3]), -1) @ filters.T
        columns.append(seen[:, 0] + 0.3 * np.abs(seen[:, 1]))
    y = np.stack(columns, axis=1)
    return y / y.std(axis=0) + noise * np.random.default_rng(seed).standard_normal(y.shape)


def part(maps: dict[int, F32], rows: slice) -> dict[int, F32]:
    return {b: m[rows] for b, m in maps.items()}


def learned(images: int, batch: int = 20, tune_at: int = 80, **more: Any) -> tuple[LearningReadout, dict[int, F32]]:
    """Return a readout that was tuned once, and the maps it has seen."""
    maps = maps_of(images)
    y = responses_to(maps)
    readout = LearningReadout(TUNED, **more)
    for first in range(0, images, batch):
        rows = slice(first, first + batch)
        readout.take(part(maps, rows), UNITS, y[rows])
        if readout.trials == tune_at:
            tuning = readout.retune()
            tuning.run()
            readout.install(tuning)
    return readout, maps


def test_every_update_and_tuning_equals_the_batch_solution() -> None:
    maps = maps_of(160)
    y = responses_to(maps)
    y[:30, 3] = np.nan
    y[[50, 90], 1] = np.nan
    readout = LearningReadout(TUNED)
    for first in range(0, 160, 20):
        rows = slice(first, first + 20)
        ahead = readout.rows(part(maps, rows))
        readout.take(part(maps, rows), UNITS, y[rows], rows=ahead)
        if first in (40, 100):
            tuning = readout.retune()
            tuning.run()
            readout.install(tuning)
        if readout.chosen:
            assert readout.difference(readout.kernels_of(maps)) < 1e-9
    assert {unit for c in readout.chosen for unit in c.units} == set(UNITS)


def test_envelopes_are_found_where_units_look_and_pay() -> None:
    maps, new = maps_of(500), maps_of(300, seed=1)
    y, truth = responses_to(maps), responses_to(new, noise=0.0)
    scores = []
    for how in (TUNED, Tuned(envelopes=(Envelope(),))):
        readout = LearningReadout(how)
        readout.take(maps, UNITS, y)
        tuning = readout.retune()
        tuning.run()
        readout.install(tuning)
        predicted = readout.predict(new, UNITS)
        scores.append(np.array([np.corrcoef(predicted[:, k], truth[:, k])[0, 1] for k in range(4)]))
        if how is TUNED:
            of = {unit: c.similarity.envelope for c in readout.chosen for unit in c.units}
            assert (of["left"].y, of["left"].x) == (of["other"].y, of["other"].x) == pytest.approx((0.3, 0.3))
            assert (of["right"].y, of["right"].x) == pytest.approx((0.7, 0.7))
    assert (scores[0] > scores[1] + 0.02).all()


def test_updates_between_tunings_go_on_learning() -> None:
    new = maps_of(300, seed=1)
    truth = responses_to(new, noise=0.0)

    def score(readout: LearningReadout) -> float:
        predicted = readout.predict(new, UNITS)
        return float(np.mean([np.corrcoef(predicted[:, k], truth[:, k])[0, 1] for k in range(4)]))

    assert score(learned(400)[0]) > score(learned(80)[0]) + 0.1


def test_a_tuning_in_steps_takes_the_batches_that_come_meanwhile() -> None:
    maps = maps_of(200)
    y = responses_to(maps)
    one, two = LearningReadout(TUNED), LearningReadout(TUNED)
    for readout in (one, two):
        for first in range(0, 100, 20):
            readout.take(part(maps, slice(first, first + 20)), UNITS, y[first : first + 20])
    assert np.isnan(one.predict(maps, UNITS)).all()
    slow, whole = one.retune(), two.retune()
    for _ in range(3):
        assert slow.step()
    for readout in (one, two):
        readout.take(part(maps, slice(100, 200)), UNITS, y[100:])
    with pytest.raises(ValueError, match="has not taken all batches"):
        one.install(slow)
    while slow.step():
        pass
    whole.run()
    one.install(slow)
    two.install(whole)
    assert one.chosen == two.chosen
    assert one.predict(maps, UNITS).tobytes() == two.predict(maps, UNITS).tobytes()


def test_state_restores_bit_for_bit_and_so_does_what_follows() -> None:
    one, maps = learned(120)
    two = LearningReadout(TUNED)
    two.restore(one.state())
    more = maps_of(40, seed=4)
    for readout in (one, two):
        readout.take(more, UNITS, responses_to(more))
        tuning = readout.retune()
        tuning.run()
        readout.install(tuning)
        readout.take(more, UNITS, responses_to(more, seed=8))
    assert same(one.state(), two.state())
    assert one.predict(maps, UNITS).tobytes() == two.predict(maps, UNITS).tobytes()


def test_rows_from_before_a_tuning_are_not_used_after_it() -> None:
    readout, _ = learned(80)
    other, _ = learned(80)
    more = maps_of(20, seed=4)
    stale = readout.rows(more)
    for r in (readout, other):
        tuning = r.retune()
        tuning.run()
        r.install(tuning)
    readout.take(more, UNITS, responses_to(more), rows=stale)
    other.take(more, UNITS, responses_to(more))
    assert readout.predict(more, UNITS).tobytes() == other.predict(more, UNITS).tobytes()


def test_an_earlier_session_warms_the_next_one() -> None:
    earlier, _ = learned(400, tune_at=400)
    today = maps_of(30, seed=11)
    y = responses_to(today, seed=12)
    cold = LearningReadout(TUNED)
    warm = LearningReadout(TUNED, prior=True, rounding=earlier.rounding, chosen=earlier.chosen)
    for first in range(0, 30, 10):
        rows = slice(first, first + 10)
        cold.take(part(today, rows), UNITS, y[rows])
        warm.take(part(today, rows), UNITS, y[rows], prior=earlier.predict(part(today, rows), UNITS))
    tuning = cold.retune()
    tuning.run()
    cold.install(tuning)
    new = maps_of(300, seed=1)
    truth = responses_to(new, noise=0.0)

    def error(found: F64) -> float:
        return float(np.mean((found - truth) ** 2))

    assert error(warm.predict(new, UNITS, earlier.predict(new, UNITS))) < 0.5 * error(cold.predict(new, UNITS))


def test_units_that_come_after_the_tuning_are_learned_too() -> None:
    readout, _ = learned(80)
    more = maps_of(120, seed=4)
    y = responses_to(more)[:, :1]
    readout.take(more, ("fresh",), y)
    assert np.corrcoef(readout.predict(more, ("fresh",))[:, 0], y[:, 0])[0, 1] > 0.5
    new = maps_of(60, seed=5)
    assert np.isfinite(readout.predict(new, (*UNITS, "fresh"))).all()
    assert np.isnan(readout.predict(new, ("never",))).all()


def test_whole_numbers_make_kernels_the_same_however_images_are_batched() -> None:
    maps = maps_of(50)
    rounding = Rounding.like(maps)
    levels = rounding.levels(maps)
    for block, found in levels.items():
        back = found * rounding.step[block] + rounding.centre[block]
        assert np.abs(back - maps[block]).max() <= rounding.step[block] / 2 + 1e-6
        assert np.abs(found).max() < MOST  # nothing of these is clipped
    similarity = Similarity(Envelope(0.3, 0.3, 0.3), ((3, 2.0), (9, 1.0)), 100.0)
    whole, parts = Shelf(), Shelf()
    whole.add(levels)
    for first in range(0, 50, 7):
        parts.add({b: x[first : first + 7] for b, x in levels.items()})
    (expected, among), = squared_distances(whole, levels, [similarity])
    np.testing.assert_allclose(expected, among, rtol=1e-12, atol=1e-9)
    direct = np.zeros((50, 50))
    for block, power in similarity.power:
        n = SIDES[block][0]
        cells = levels[block].reshape(50, n * n, -1).astype(float)
        apart = ((cells[:, None] - cells[None]) ** 2).sum(axis=3)
        direct += apart @ similarity.envelope.weights(n, n) / power
    np.testing.assert_allclose(expected, direct, rtol=1e-12, atol=1e-8)
    for rows in (slice(0, 1), slice(3, 20)):
        (some, _), = squared_distances(parts, {b: x[rows] for b, x in levels.items()}, [similarity])
        np.testing.assert_allclose(some, expected[rows], rtol=1e-13, atol=1e-9)
    candidates = CandidateDistances(whole, np.arange(50), [Envelope(), similarity.envelope])
    for block in SIDES:
        candidates.add(block)
    exact = squared_distances(whole, levels, [Similarity(similarity.envelope, candidates.powers[1], 1.0)])[0][0]
    np.testing.assert_allclose(candidates.of(1), exact, atol=1e-4)
    kernel, scale = gaussian(candidates.of(0))
    assert np.median(kernel[np.triu_indices(50, 1)]) == pytest.approx(np.exp(-1), rel=1e-3)
    assert scale > 0


def test_the_choice_is_greedy_and_its_parts_do_what_they_say() -> None:
    errors = np.array([[0.5, 0.5, 0.5], [0.2, 0.9, 0.9], [0.9, 0.2, 0.9], [0.9, 0.9, 0.45]])
    np.testing.assert_array_equal(few(errors, 1), [0])
    assert set(few(errors, 3).tolist()) == {1, 2, 3}  # the compromise goes
    assert set(few(errors, 9).tolist()) == {0, 1, 2, 3}
    assert window(np.array([[0.9, 0.9], [0.5, 0.8], [0.9, 0.4], [0.9, 0.9]]), 2) == slice(1, 3)
    np.testing.assert_array_equal(sample(5, 9), np.arange(5))
    assert len(sample(100, 10)) == 10
    y, w = np.zeros((6, 2)), np.ones((6, 2))
    w[2:, 1] = 0.0  # two trials are too few to judge by
    y[:, 0] = [1, -1, 1, -1, 1, -1]
    found = errors_of(np.eye(6), y, w, None, (1.0,))
    assert found[0, 1] == 1.0
    assert found[0, 0] > 1.0  # nothing can be predicted: each trial pulls the mean of the others away
    with pytest.raises(ValueError, match="same features"):
        gaussian(np.zeros((4, 4)))


def test_envelopes_weigh_cells_by_their_distance() -> None:
    weights = Envelope(0.25, 0.75, 0.2).weights(2, 4).reshape(2, 4)
    assert np.unravel_index(np.argmax(weights), weights.shape) in ((0, 2), (0, 3))
    assert weights[0, 2] == pytest.approx(np.exp(-(0.125**2) / (2 * 0.2**2)))
    np.testing.assert_array_equal(Envelope().weights(2, 2), np.ones(4))
    assert len(grid((0.2, 0.4), 3)) == 19
    maps = np.arange(2 * 14 * 14, dtype=np.float32).reshape(2, 14, 14, 1)
    assert pooled(maps, 7).shape == (2, 7, 7, 1)
    assert pooled(maps, 7)[0, 0, 0, 0] == maps[0, :2, :2].mean()
    assert pooled(maps[:, :3, :3], 7).shape == (2, 3, 3, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": maps_of(3)}, "maps of"),
        ({"responses": np.zeros((20, 2))}, "do not fit"),
        ({"responses": np.full((20, 4), np.inf)}, "finite"),
        ({"weights": np.zeros(20)}, "positive"),
        ({"units": ("a", "a", "b", "c")}, "named once"),
        ({"maps": {b: np.full_like(m, np.nan) for b, m in maps_of(20).items()}}, "not finite"),
        ({"prior": np.zeros((20, 4))}, "prior means"),
    ],
)
def test_bad_batches_are_refused_and_change_nothing(change: dict[str, Any], message: str) -> None:
    readout, maps = learned(80)
    before = readout.predict(maps, UNITS)
    given: dict[str, Any] = {"maps": maps_of(20), "units": UNITS, "responses": np.zeros((20, 4))}
    with pytest.raises(ValueError, match=message):
        readout.take(**given | change)
    assert readout.trials == 80
    np.testing.assert_array_equal(before, readout.predict(maps, UNITS))
    with pytest.raises(ValueError, match="same everywhere"):
        LearningReadout().take({1: np.ones((2, 3, 3, 2), np.float32)}, ("a",), np.ones((2, 1)))
    with pytest.raises(ValueError, match="no trial to tune on"):
        LearningReadout().retune()
