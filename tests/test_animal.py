"""The simulated animal: its clock, eye, neurons, amplifier and truth in pieces, then the whole on a real screen."""

import contextlib
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zmq

from rig.animal.amplifier import Amplifier
from rig.animal.cortex import Cortex, Edge, Evaluated, RetinalImage
from rig.animal.device_clock import DeviceClock
from rig.animal.eye import Eye, ScreenError
from rig.animal.neurons import Habits, Neurons
from rig.animal.process import look_rects
from rig.animal.truth_log import Truth, TruthError, TruthLog, read
from rig.animal.wire import Block
from rig.clock import FakeClock, HostClock
from rig.config.reading import parse
from stimuli.geometry import Rect
from tests.painter import Painter

MS = 1_000_000
START_NS = 5_000_000_000
DEVICE = DeviceClock(30_000.0, ppm=40.0, wander_ppm=5.0, phase=1.0, start_host_ns=START_NS, start_sample=123_456)
UNITS = ("E01#0", "E02#0", "E03#0")


# --- the device's clock -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [0.0, 0.01, 1.0, 30.0])
@pytest.mark.parametrize("clock", [DEVICE, DeviceClock(25_000.0, -400.0, 90.0, 4.0, -7, 10)])
def test_the_device_clock_is_inverted_to_a_microsecond(clock: DeviceClock, hours: float) -> None:
    host_ns = clock.start_host_ns + hours * 3600e9
    assert clock.host_ns(clock.true_sample(host_ns)) == pytest.approx(host_ns, abs=1000)


def test_the_device_clock_drifts_by_its_ppm_and_wanders_back_after_twenty_minutes() -> None:
    after = DEVICE.true_sample(START_NS + 1200e9) - DEVICE.start_sample
    assert after == pytest.approx(1200 * 30_000 * (1 + 40e-6), abs=0.01)
    still = DeviceClock(30_000.0, 40.0, 0.0, 1.0, START_NS, 123_456)
    apart = [DEVICE.true_sample(START_NS + s * 1e9) - still.true_sample(START_NS + s * 1e9) for s in range(1200)]
    assert 10 < max(np.abs(apart)) < 60  # 5 ppm * 1200 s / (2 pi) = 1 ms = 29 samples, twice that at most


# --- the neurons ------------------------------------------------------------------------------------------------------


def fire(
    habits: Habits,
    images: Sequence[tuple[float, list[float], bool]],
    seconds: float,
    seed: int = 0,
    block: int = 696,
) -> npt.NDArray[np.int64]:
    """Show images (time s, rates, shown); return spikes (spike, [unit, sample from the start])."""
    neurons = Neurons(UNITS, DEVICE, habits, np.random.default_rng(seed), DEVICE.start_sample)
    for at_s, rates, shown in images:
        neurons.see(START_NS + int(at_s * 1e9), np.array(rates), shown)
    end = DEVICE.start_sample + int(seconds * 30_000)
    parts = []
    for until in [*range(DEVICE.start_sample, end, block), end]:
        unit, sample = neurons.advance(until)
        assert np.all(np.diff(sample) >= 0)
        assert len(sample) == 0 or until - block <= sample[0] <= sample[-1] < until
        parts.append(np.stack([unit, sample - DEVICE.start_sample], axis=1))
    return np.concatenate(parts)


def counts(spikes: npt.NDArray[np.int64], start_s: float, end_s: float) -> npt.NDArray[np.int64]:
    inside = (spikes[:, 1] >= start_s * 30_000) & (spikes[:, 1] < end_s * 30_000)
    return np.bincount(spikes[inside, 0], minlength=len(UNITS))


def windows(spikes: npt.NDArray[np.int64], width_s: float, seconds: float) -> npt.NDArray[np.int64]:
    """Return counts (window, unit) of consecutive windows."""
    starts = np.arange(0, seconds - width_s / 2, width_s).tolist()
    return np.array([counts(spikes, s, s + width_s) for s in starts])


def test_poisson_spikes_have_the_mean_and_the_variance_of_poisson() -> None:
    spikes = fire(Habits("poisson"), [(0, [5.0, 40.0, 100.0], True)], 200)
    per_window = windows(spikes[spikes[:, 1] > 3000], 0.1, 200)[5:]
    assert per_window.mean(axis=0) == pytest.approx([0.5, 4.0, 10.0], rel=0.06)
    fano = per_window.var(axis=0) / per_window.mean(axis=0)
    assert np.all((fano > 0.85) & (fano < 1.15))


def test_overdispersed_spikes_vary_more_from_image_to_image_with_the_same_mean() -> None:
    images = [(0.2 * k, [40.0, 40.0, 40.0], True) for k in range(1500)]
    per_image = windows(fire(Habits("overdispersed", latency_s=0.0), images, 300), 0.2, 300)
    assert per_image.mean(axis=0) == pytest.approx(8.0, rel=0.05)
    # var = mean + mean^2 / shape, a little less for the smoothing over the borders
    assert np.all(per_image.var(axis=0) / per_image.mean(axis=0) > 1.5)


def test_spikes_follow_the_image_after_the_latency() -> None:
    spikes = fire(Habits("poisson", latency_s=0.08), [(0, [0.0] * 3, False), (1.0, [200.0] * 3, True)], 2)
    assert spikes[:, 1].min() >= 1.079 * 30_000
    assert counts(spikes, 1.08, 1.13).sum() > 15


def test_the_same_seed_gives_the_same_spikes_and_another_seed_others() -> None:
    images = [(0, [30.0] * 3, True)]
    assert np.array_equal(fire(Habits(), images, 3, seed=4), fire(Habits(), images, 3, seed=4))
    assert not np.array_equal(fire(Habits(), images, 3, seed=4), fire(Habits(), images, 3, seed=5))


def test_a_unit_dies_and_stays_dead() -> None:
    spikes = fire(Habits(dies={"E02#0": 2.0}), [(0, [50.0] * 3, True)], 4)
    assert counts(spikes, 0.1, 2)[1] > 50
    assert counts(spikes, 2, 4)[1] == 0
    assert counts(spikes, 2, 4)[0] > 50


def test_the_previous_image_carries_over_but_grey_does_not() -> None:
    images = [(0, [100.0] * 3, True), (40, [5.0] * 3, False), (80, [10.0] * 3, True)]
    spikes = fire(Habits(carry_over=0.5, latency_s=0.0), images, 120)
    assert counts(spikes, 40.1, 80).sum() / 3 / 39.9 == pytest.approx(5, abs=1)
    assert counts(spikes, 80.1, 120).sum() / 3 / 39.9 == pytest.approx(55, abs=3)


def test_adaptation_weakens_a_lasting_response_and_not_the_first() -> None:
    images = [(0, [80.0] * 3, True)]
    spikes = fire(Habits(adaptation=True, latency_s=0.0), images, 20)
    early = np.mean([counts(fire(Habits(adaptation=True, latency_s=0.0), images, 0.2, s), 0, 0.2) for s in range(20)])
    late = counts(spikes, 10, 20).mean() / 50
    assert late < 0.75 * early
    assert early > 0.7 * 16


def test_gain_drifts_slowly_and_differently_for_each_unit() -> None:
    images = [(0, [100.0] * 3, True)]
    minutes = windows(fire(Habits(gain_drift=0.5), images, 600, block=30_000), 30, 600)
    relative = minutes / minutes.mean(axis=0)
    assert np.all(relative.std(axis=0) > 0.06)  # Poisson noise alone: 0.018
    assert np.all(np.abs(np.diff(relative, axis=0)).mean(axis=0) < relative.std(axis=0))
    assert np.corrcoef(relative.T)[0, 1] < 0.99


def test_artefacts_hit_all_units_at_once() -> None:
    spikes = fire(Habits(artefacts=True), [(0, [0.0] * 3, False)], 100)
    samples, hits = np.unique(spikes[:, 1], return_counts=True)
    assert set(hits) == {3}
    assert 8 < len(samples) < 40


# --- the cortex -------------------------------------------------------------------------------------------------------


@dataclass
class Mean:
    """A population of two units that measure light."""

    units: tuple[str, ...] = ("E01#0", "E02#0")
    seen: list[npt.NDArray[np.float32]] = field(default_factory=list)

    def rate_hz(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        self.seen.append(image)
        return np.array([image[..., 0].mean(), image[..., 2].mean()], dtype=np.float64) * 100


@pytest.fixture
def cortex_of() -> Iterator[Callable[..., Cortex]]:
    with contextlib.ExitStack() as stack:

        def make(population: Any, gamma: float = 1.0) -> Cortex:
            cortex = Cortex(population, gamma)
            cortex.start()
            stack.callback(cortex.close)
            return cortex

        yield make


def retinal(host_ns: int, blue: int, red: int) -> RetinalImage:
    return RetinalImage(host_ns, host_ns - MS, bytes([blue, 0, red, 7]) * 12, (3, 4), True)


def test_the_cortex_gives_images_in_order_and_only_when_nothing_earlier_can_come(
    cortex_of: Callable[..., Cortex],
) -> None:
    cortex = cortex_of(Mean())
    cortex.see(retinal(100, 51, 255))
    cortex.edge(Edge(100, 99, 1))
    assert cortex.collect(90, 100, 0.05) is None
    cortex.looked(150, 120)
    assert cortex.collect(151, 100, 0.05) is None
    assert cortex.collect(150, 121, 0.05) is None
    cortex.see(retinal(130, 0, 0))
    edges, images = cortex.collect(100, 120, 5.0) or ([], [])
    assert edges == []
    assert [(i.host_ns, i.rates_hz.tolist()) for i in images] == [(100, pytest.approx([100.0, 20.0]))]
    assert images[0].sha256 == hashlib.sha256(bytes([255, 0, 51]) * 12).hexdigest()
    cortex.looked(200, 200)
    edges, images = cortex.collect(101, 200, 5.0) or ([], [])
    assert edges == [Edge(100, 99, 1)]
    assert [i.host_ns for i in images] == [130]


def test_the_cortex_sees_light_not_drive_levels_and_remembers_images(cortex_of: Callable[..., Cortex]) -> None:
    population = Mean()
    cortex = cortex_of(population, gamma=2.2)
    cortex.see(retinal(1, 0, 128))
    cortex.see(retinal(2, 0, 128))
    cortex.looked(3, 3)
    _, images = cortex.collect(3, 3, 5.0) or ([], [])
    assert images[1].rates_hz[0] == pytest.approx(100 * (128 / 255) ** 2.2, rel=1e-5)
    assert len(population.seen) == 1


@dataclass
class Broken:
    units: tuple[str, ...] = ("E01#0",)

    def rate_hz(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        return np.array([np.nan])


def test_a_population_that_fails_ends_the_animal(cortex_of: Callable[..., Cortex]) -> None:
    cortex = cortex_of(Broken())
    cortex.see(retinal(1, 0, 0))
    with pytest.raises(ValueError, match="the population gave rates"):
        cortex.collect(10**12, 10**12, 5.0)


# --- the eye ----------------------------------------------------------------------------------------------------------

IMAGE = Rect(10, 20, 8, 6)
PATCH = Rect(56, 40, 8, 8)


class Paper:
    """A screen in memory; `after_next_grab` may change it when the eye has just looked."""

    def __init__(self) -> None:
        self.size_px = (64, 48)
        self.pixels = np.zeros((48, 64, 4), np.uint8)
        self.after_next_grab: Callable[[], object] | None = None

    def grab(self, rect: Rect) -> bytes:
        seen = self.pixels[rect.top : rect.bottom, rect.left : rect.right].tobytes()
        then, self.after_next_grab = self.after_next_grab, None
        if then is not None:
            then()
        return seen

    def fill(self, rect: Rect, value: int) -> None:
        self.pixels[rect.top : rect.bottom, rect.left : rect.right] = value


class Brain(Cortex):
    """A cortex without a thread, which keeps what it was given."""

    def __init__(self) -> None:
        super().__init__(Mean(), 1.0)
        self.edges: list[Edge] = []
        self.images: list[RetinalImage] = []
        self.until = (0, 0)

    def edge(self, edge: Edge) -> None:
        self.edges.append(edge)

    def see(self, image: RetinalImage) -> None:
        assert image.host_ns > self.until[1], "an image came after the eye had said that none would"
        self.images.append(image)

    def looked(self, edges_until_ns: int, images_until_ns: int) -> None:
        self.until = (edges_until_ns, images_until_ns)


@dataclass
class Watching:
    """An eye in front of paper."""

    paper: Paper
    brain: Brain
    clock: FakeClock
    eye: Eye

    def wait(self, ms: int) -> None:
        for _ in range(ms):
            self.clock.advance_ns(MS)
            self.eye.look()


def watching(patch: Rect | None = PATCH, seed: int = 0, **habits: bool) -> Watching:
    paper, brain, clock = Paper(), Brain(), FakeClock(START_NS)
    eye = Eye(paper, IMAGE, patch, brain, clock, np.random.default_rng(seed), **habits)
    scene = Watching(paper, brain, clock, eye)
    scene.wait(20)
    brain.images.clear()
    return scene


def test_the_eye_stamps_patch_and_image_with_the_poll_that_saw_them() -> None:
    scene = watching()
    scene.paper.fill(PATCH, 255)
    scene.paper.fill(IMAGE, 77)
    scene.wait(10)
    assert scene.brain.edges == [Edge(START_NS + 21 * MS, START_NS + 20 * MS, 1)]
    (image,) = scene.brain.images
    assert (image.host_ns, image.patch_on, image.raw) == (START_NS + 21 * MS, True, bytes([77]) * 192)
    scene.paper.fill(PATCH, 0)
    scene.wait(1)
    assert [e.state for e in scene.brain.edges] == [1, 0]


def test_the_photodiode_has_hysteresis() -> None:
    scene = watching()
    for level in (150, 100, 159, 161, 120, 97, 161, 95, 150):
        scene.paper.fill(PATCH, level)
        scene.wait(1)
    assert [e.state for e in scene.brain.edges] == [1, 0]


def test_a_half_drawn_image_is_looked_at_again_and_keeps_its_time() -> None:
    scene = watching()
    scene.paper.fill(PATCH, 255)
    scene.paper.fill(Rect(10, 20, 8, 3), 90)
    scene.wait(1)
    scene.paper.fill(IMAGE, 90)
    scene.wait(10)
    (image,) = scene.brain.images
    assert image.host_ns == START_NS + 21 * MS
    assert image.raw == bytes([90]) * 192
    assert scene.eye.looks.torn == 1


def test_an_image_drawn_after_its_patch_is_found_at_once() -> None:
    scene = watching()
    scene.paper.fill(PATCH, 255)
    scene.wait(3)
    scene.paper.fill(IMAGE, 90)
    scene.wait(10)
    assert [i.host_ns for i in scene.brain.images] == [START_NS + 24 * MS]


def test_an_image_drawn_between_the_two_looks_of_a_poll_belongs_to_the_patch_that_follows() -> None:
    scene = watching()
    while scene.clock.now_ns() + MS < scene.eye._last_glance_ns + 8 * MS:  # the next poll looks at the image too
        scene.wait(1)

    def draw() -> None:
        scene.paper.fill(PATCH, 255)
        scene.paper.fill(IMAGE, 90)

    scene.paper.after_next_grab = draw
    scene.wait(30)
    assert [(i.raw, i.patch_on) for i in scene.brain.images] == [(bytes([90]) * 192, True)]
    assert len(scene.brain.edges) == 1


@pytest.mark.parametrize(("patch", "latest_ms"), [(PATCH, 9), (None, 3)])
def test_an_image_without_a_patch_is_found_by_looking_now_and_then(patch: Rect | None, latest_ms: int) -> None:
    scene = watching(patch)
    scene.paper.fill(IMAGE, 33)
    scene.wait(30)
    (image,) = scene.brain.images
    assert START_NS + 20 * MS < image.host_ns <= START_NS + (20 + latest_ms) * MS
    assert image.earliest_ns <= START_NS + 20 * MS


def test_saccades_shift_what_is_seen_by_a_few_pixels() -> None:
    scene = watching(saccades=True)
    rng = np.random.default_rng(1)
    scene.paper.pixels[:] = rng.integers(0, 90, scene.paper.pixels.shape)
    scene.wait(3000)
    assert 3 <= len(scene.brain.images) <= 25
    assert len({i.raw for i in scene.brain.images}) > 3


def test_blinks_are_short_and_grey() -> None:
    scene = watching(blinks=True)
    scene.paper.fill(IMAGE, 90)
    scene.wait(30_000)
    lids = [i for i in scene.brain.images if i.raw == bytes([128]) * 192]
    assert 2 <= len(lids) <= 24
    back = [i.host_ns for i in scene.brain.images if i.raw != bytes([128]) * 192][1:]
    assert [b - i.host_ns for i, b in zip(lids, back, strict=False)] == pytest.approx(
        [121 * MS] * len(back), abs=3 * MS
    )


def test_an_image_beyond_the_screen_is_refused_with_a_cure() -> None:
    with pytest.raises(ScreenError, match=r"outside the 64 x 48 screen; use a larger"):
        Eye(Paper(), Rect(60, 0, 8, 8), None, Brain(), FakeClock(), np.random.default_rng(0))


# --- the amplifier and the truth --------------------------------------------------------------------------------------


class Tape:
    """A wire that keeps its blocks."""

    offset = 0
    block_samples = 696

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def send(self, block: Block) -> None:
        self.blocks.append(block)

    def close(self) -> None:
        pass


def test_blocks_follow_each_other_on_the_devices_clock_and_the_truth_agrees(
    tmp_path: Path, cortex_of: Callable[..., Cortex]
) -> None:
    clock, tape, cortex = FakeClock(START_NS), Tape(), cortex_of(Mean())
    habits = Habits(latency_s=0.05)
    neurons = Neurons(Mean().units, DEVICE, habits, np.random.default_rng(0), DEVICE.start_sample)
    truth = TruthLog(tmp_path / "truth", Mean().units, DEVICE, habits.latency_s, neurons.smoothing_s)
    amplifier = Amplifier(tape, neurons, cortex, DEVICE, truth, clock, 2, DEVICE.start_sample)
    for k in range(20):
        at_ns = START_NS + 100 * MS * k
        cortex.see(retinal(at_ns, 128 * (k % 2), 255))
        cortex.edge(Edge(at_ns, at_ns - MS, k % 2))
    cortex.looked(START_NS + 2000 * MS, START_NS + 2000 * MS)
    while clock.now_ns() < START_NS + 1900 * MS:
        amplifier.block(lambda: False)
    truth.close()

    starts = [b.first_sample for b in tape.blocks]
    assert starts == list(range(DEVICE.start_sample, DEVICE.start_sample + 696 * len(starts), 696))
    assert amplifier.lateness.late_blocks == 0
    edges = [e for b in tape.blocks for e in b.edges]
    expected = [math.floor(DEVICE.true_sample(START_NS + 100 * MS * k)) for k in range(len(edges))]
    assert edges == [(2, k % 2, sample) for k, sample in enumerate(expected)]
    assert all(b.first_sample <= e[2] < b.first_sample + 696 for b in tape.blocks for e in b.edges)

    known = read(tmp_path / "truth")
    assert known.edge_sample.tolist() == expected
    assert known.units == Mean().units
    assert known.device == DEVICE
    assert np.array_equal(known.spike_sample, np.concatenate([b.spike_sample for b in tape.blocks]))
    assert np.array_equal(known.spike_unit, np.concatenate([b.spike_unit for b in tape.blocks]))
    assert known.rates[:2] == pytest.approx(np.array([[100.0, 0.0], [100.0, 100 * 128 / 255]]))
    assert known.onset_ns(START_NS + 330 * MS) == START_NS + 300 * MS
    assert known.onset_ns(START_NS + 350 * MS) is None
    first = DEVICE.start_sample
    assert (
        known.counts(first, first + 30_000).tolist()
        == np.bincount(known.spike_unit[known.spike_sample < first + 30_000], minlength=2).tolist()
    )


def written(folder: Path, images: list[tuple[int, float]], smoothing_s: float) -> Truth:
    log = TruthLog(folder, ["E01#0"], DEVICE, 0.05, smoothing_s)
    for at_ns, rate in images:
        log.image(Evaluated(at_ns, at_ns - MS, "0" * 64, True, np.array([rate])))
    log.close()
    return read(folder)


@pytest.mark.parametrize("smoothing_s", [0.0, 0.005])
def test_the_true_mean_is_the_integral_of_the_smoothed_delayed_rate(tmp_path: Path, smoothing_s: float) -> None:
    images = [(0, 10.0), (100 * MS, 80.0), (200 * MS, 10.0), (213 * MS, 55.0), (300 * MS, 20.0)]
    truth = written(tmp_path / "t", images, smoothing_s)
    step = 1e-5
    times = np.arange(0.05, 0.6, step)
    target = np.array([r for _, r in images])[np.searchsorted([t * 1e-9 + 0.05 for t, _ in images], times, "right") - 1]
    rate, state = np.empty_like(target), 0.0
    for k, value in enumerate(target):
        state += (value - state) * (1.0 if smoothing_s == 0 else -math.expm1(-step / smoothing_s))
        rate[k] = state
    for onset_ms, window in ((100, (0.05, 0.15)), (150, (0.0, 0.09)), (195, (0.06, 0.2))):
        a, b = onset_ms * 1e-3 + window[0], onset_ms * 1e-3 + window[1]
        expected = rate[(times >= a) & (times < b)].mean()
        assert truth.mean_rate_hz(onset_ms * MS, window)[0] == pytest.approx(expected, rel=2e-3)


def test_a_torn_truth_is_read_up_to_the_tear(tmp_path: Path) -> None:
    log = TruthLog(tmp_path, UNITS, DEVICE, 0.05, 0.0)
    for k in range(3):
        log.edge(Edge(k, k - 1, 1), 100 + k)
        log.spikes(np.array([k]), np.array([1000 + k]))
        log.flush()
    log.close()
    for name, cut in (("events.jsonl", 5), ("spikes.npys", 5)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-cut])
    truth = read(tmp_path)
    assert truth.edge_sample.tolist() == [100, 101]
    assert truth.spike_sample.tolist() == [1000, 1001]
    assert truth.rates.shape == (0, 3)


def test_truth_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("x")
    with pytest.raises(TruthError, match="not empty; name a new one"):
        TruthLog(tmp_path, UNITS, DEVICE, 0.05, 0.0)
    with pytest.raises(TruthError, match="is no truth folder"):
        read(tmp_path)


# --- the whole on a real screen ---------------------------------------------------------------------------------------

SETTINGS = """
sources: [{type: %(source)s}]
responses: {units: ["E01#0"]}
phases: [{agent: present}]
animal: {wire: %(wire)s, noise: %(noise)s, neurons: 4, seed: 3}
"""


@dataclass
class Creature:
    """A running animal and what it looks at."""

    process: "subprocess.Popen[bytes]"
    truth: Path
    said: dict[str, Any]

    def stop(self) -> Truth:
        assert self.process.stdin is not None
        self.process.stdin.write(b"stop\n")
        self.process.stdin.flush()
        assert self.process.wait(60) == 0
        return read(self.truth)


@contextlib.contextmanager
def creature(folder: Path, settings: str) -> Iterator[Creature]:
    (folder / "config.yaml").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "tests.run_animal", str(folder / "config.yaml"), str(folder / "truth")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None
        try:
            yield Creature(process, folder / "truth", json.loads(process.stdout.readline() or b"{}"))
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture
def free_port() -> int:
    with zmq.Context() as context, context.socket(zmq.PUB) as probe:
        return probe.bind_to_random_port("tcp://127.0.0.1", min_port=20000, max_port=30000)


def show(painter: Painter, settings: str, images: list[npt.NDArray[np.uint8]], each_ns: int) -> list[tuple[int, int]]:
    """Show each image with a white patch, then grey with a black one; return host times around each change."""
    clock = HostClock(0)
    image, patch = look_rects(parse(settings))
    assert patch is not None
    grey, white, black = (np.full((1, 1, 3), level, np.uint8) for level in (128, 255, 0))
    flips = []
    due_ns = clock.now_ns() + each_ns
    for pixels in images:
        for content, diode in ((pixels, white), (grey, black)):
            clock.sleep_until_ns(due_ns)
            before_ns = clock.now_ns()
            painter.paint((patch, diode), (image, content))
            flips.append((before_ns, clock.now_ns()))
            due_ns += each_ns
    clock.sleep_until_ns(due_ns)
    return flips


def random_images(settings: str, count: int) -> list[npt.NDArray[np.uint8]]:
    rect, _ = look_rects(parse(settings))
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (rect.height, rect.width, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture
def painter(private_screen: str) -> Iterator[Painter]:
    painter = Painter((800, 600))
    yield painter
    painter.close()


@pytest.mark.display
def test_the_animal_sees_the_screen_and_tells_over_the_open_ephys_wire(
    tmp_path: Path, painter: Painter, free_port: int
) -> None:
    settings = SETTINGS % {"source": f"openephys, port: {free_port}", "wire": "openephys", "noise": "poisson"}
    images = random_images(settings, 8)
    with creature(tmp_path, settings) as animal, zmq.Context() as context, context.socket(zmq.SUB) as sub:
        assert animal.said["ready"]["units"] == ["E01#0", "E02#0", "E03#0", "E04#0"]
        sub.rcvhwm, sub.linger = 0, 0
        sub.subscribe(b"")
        sub.connect(f"tcp://127.0.0.1:{free_port}")
        assert sub.poll(5000)
        flips = show(painter, settings, images, 100 * MS)
        truth = animal.stop()
        headers = []
        while sub.poll(300):
            headers.append((json.loads((frames := sub.recv_multipart())[1]), frames[2]))

    numbers = [h["message_num"] for h, _ in headers]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    seen_from = min(h["content"]["sample_num"] for h, _ in headers if h["type"] == "data")
    edges = [(h["content"]["sample_num"], payload[1]) for h, payload in headers if h["type"] == "event"]
    assert edges == list(zip(truth.edge_sample.tolist(), truth.edge_state.tolist(), strict=True))
    assert len(edges) == len(flips) == 16
    for (before_ns, after_ns), seen_ns, earliest_ns in zip(
        flips, truth.edge_host_ns.tolist(), truth.edge_earliest_ns.tolist(), strict=True
    ):
        assert seen_ns > before_ns  # never before it was drawn ...
        assert earliest_ns < after_ns  # ... and by the first poll that could see it
    hashes = [hashlib.sha256(i.tobytes()).hexdigest() for i in images]
    assert [s for s, on in zip(truth.image_sha256, truth.image_patch_on, strict=True) if on] == hashes
    told = sorted((h["spike"]["sample_num"], h["spike"]["electrode"]) for h, _ in headers if h["type"] == "spike")
    fired = sorted((s, f"E{u + 1:02d}") for u, s in zip(truth.spike_unit, truth.spike_sample, strict=True))
    last = max(s for s, _ in told)
    assert told == [f for f in fired if seen_from - 100 <= f[0] <= last][-len(told) :]
    assert len(told) > 10


READ_LSL = """
import json, pylsl
found = {i.name(): i for i in pylsl.resolve_streams(wait_time=2.0)}
spikes, edges = pylsl.StreamInlet(found["test spikes"]), pylsl.StreamInlet(found["test edges"])
spikes.open_stream(5.0); edges.open_stream(5.0)
described = spikes.info(5.0)  # kept: what `desc` gives points into it, and does not keep it alive
units, unit = [], described.desc().child("units").child("unit")
while not unit.empty():
    units.append(unit.child_value())
    unit = unit.next_sibling()
print("listening", flush=True)
rows = {"units": units, "spikes": [], "edges": []}
until = pylsl.local_clock() + 4.0
while pylsl.local_clock() < until:
    rows["spikes"] += spikes.pull_chunk(0.05)[0]
    rows["edges"] += edges.pull_chunk(0.0)[0]
print(json.dumps(rows))
"""


@pytest.mark.display
def test_the_animal_tells_over_lsl_with_watermarks_that_hold(tmp_path: Path, painter: Painter) -> None:
    settings = SETTINGS % {
        "source": "lsl_spikes, stream: test spikes, edges: test edges",
        "wire": "lsl",
        "noise": "none",
    }
    pipe = subprocess.PIPE
    with creature(tmp_path, settings) as animal:
        with subprocess.Popen([sys.executable, "-c", READ_LSL], stdout=pipe, stderr=subprocess.DEVNULL) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"listening\n"
            show(painter, settings, random_images(settings, 5), 100 * MS)
            rows = json.loads(reader.stdout.read())
        truth = animal.stop()
    assert rows["units"] == ["E01#0", "E02#0", "E03#0", "E04#0"]
    mark, before = 0, None  # `before`: rows sent before we listened
    told: list[tuple[int, int]] = []
    for unit, sample in rows["spikes"]:
        if unit == -2:
            before = sample - len(told) if before is None else before
            assert sample == before + len(told)  # every row that was sent has come
        elif unit == -1:
            assert sample > mark
            mark = sample
        else:
            assert sample >= mark  # nothing comes after a watermark that covers it
            told.append((int(unit), int(sample)))
    begin = next(s for u, s in rows["spikes"] if u == -1)
    fired = list(zip(truth.spike_unit.tolist(), truth.spike_sample.tolist(), strict=True))
    assert [t for t in told if t[1] >= begin] == [f for f in fired if begin <= f[1] < mark]
    edges = [(int(state), int(sample)) for line, state, sample in rows["edges"] if line >= 0]
    assert edges == list(zip(truth.edge_state.tolist(), truth.edge_sample.tolist(), strict=True))
    marks = [row for row in rows["edges"] if row[0] == -1]
    assert marks[-1][1] == len(truth.edge_sample) == 10
    assert np.diff([m[2] for m in marks]).tolist() == [750.0] * (len(marks) - 1)


@pytest.mark.display
def test_an_animal_that_cannot_start_says_why_and_what_to_do(
    tmp_path: Path, private_screen: str, free_port: int
) -> None:
    settings = SETTINGS % {"source": f"openephys, port: {free_port}", "wire": "lsl", "noise": "none"}
    with creature(tmp_path, settings) as animal:
        assert animal.process.wait(60) == 2
        assert animal.said["failed"] == "animal.wire is lsl, but no source in the config is of type lsl_spikes"
        assert "add a source of type lsl_spikes" in animal.said["cure"]


def test_an_animal_without_a_screen_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("DISPLAY", ":9173")
    settings = SETTINGS % {"source": f"openephys, port: {free_port}", "wire": "openephys", "noise": "none"}
    with creature(tmp_path, settings) as animal:
        assert animal.process.wait(60) == 2
        assert "cannot see a screen (DISPLAY=':9173')" in animal.said["failed"]
        assert "xvfb-run" in animal.said["cure"]
    assert not os.path.exists(tmp_path / "truth")
