"""The animal without noise: pure, then through the real screen with a session that shows each image several times."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rig.animal.device_clock import DeviceClock
from rig.animal.noise_free import NoiseFreeNeurons, volley
from rig.config.reading import parse
from rig.links.ports import free_port
from rig.messages import Response
from rig.recording.journal import read_all

ROOT = Path(__file__).parent.parent
UNITS = ("E01#0", "E02#0", "E03#0")
I64 = npt.NDArray[np.int64]
GREY = np.array([5.0, 5.0, 5.0])


def clock(ppm: float, start_sample: int = 1000) -> DeviceClock:
    return DeviceClock(30_000.0, ppm, 5.0, 1.0, start_host_ns=7_000_000_000, start_sample=start_sample)


def shown(
    device: DeviceClock,
    images: list[tuple[float, list[float], float]],
    block: int = 696,
    seen_after_s: float = 0.0,
    latency_s: float = 0.05,
) -> list[I64]:
    """Show images (onset s, rates, on s) on grey; return for each the spikes (spike, [unit, sample from its edge])."""
    neurons = NoiseFreeNeurons(UNITS, device, latency_s, 0.1, {}, device.start_sample)
    edges, looks = [], [(0.0, GREY)]
    for at_s, rates, on_s in images:
        edges.append(int(device.true_sample(device.start_host_ns + at_s * 1e9)))
        looks += [(at_s + seen_after_s, np.array(rates)), (at_s + on_s, GREY)]
    waiting, lead = list(edges), neurons.lead_s
    made = []
    end = edges[-1] + 30_000
    for until in [*range(device.start_sample + block, end, block), end]:
        while waiting and waiting[0] < until:
            neurons.onset(waiting.pop(0))
        known_ns = device.host_ns(until) - lead * 1e9
        while looks and device.start_host_ns + looks[0][0] * 1e9 <= known_ns:
            at_s, rates_hz = looks.pop(0)
            neurons.see(device.start_host_ns + int(at_s * 1e9), rates_hz, shown=True)
        unit, sample = neurons.advance(until)
        assert len(sample) == 0 or until - block <= sample[0] <= sample[-1] < until
        made.append(np.stack([unit, sample], axis=1))
    spikes = np.concatenate(made)
    out = []
    for edge, after in zip(edges, [*edges[1:], end], strict=True):
        own = spikes[(spikes[:, 1] >= edge) & (spikes[:, 1] < after)]
        out.append(own - [0, edge])
    assert sum(map(len, out)) == len(spikes)
    return out


@pytest.mark.parametrize("rate_hz", [0.0, 3.0, 33.0, 99.9, 117.0, 650.0])
def test_a_volley_has_as_many_spikes_as_the_rate_says_and_keeps_from_its_bins_edges(rate_hz: float) -> None:
    spikes = volley(rate_hz, 0.05, 10, 30_000.0) / 30_000.0
    assert np.all(np.diff(spikes) > 0)
    for k in range(10):  # any window that ends at a multiple of 10 ms holds what the rate says
        assert np.sum(spikes < 0.05 + 0.01 * k) == int(rate_hz * 0.01 * k + 0.5)
    assert np.sum(spikes < 0.15) == len(spikes) == max(int(rate_hz * 0.1 + 0.5), 1)
    apart = np.abs((spikes - 0.05 + 0.005) % 0.01 - 0.005)
    assert np.all(apart >= 0.003 - 1 / 30_000)


def test_the_same_image_gives_the_same_spikes_whatever_else() -> None:
    """Clock, order, moment, image before, how long it was on, when it was seen, how the samples are blocked."""
    a, b = [33.0, 0.0, 90.0], [7.0, 120.0, 55.0]
    first = shown(clock(40.0), [(0.5, a, 0.1), (0.7, b, 0.1)])
    expected = {"a": first[0].tolist(), "b": first[1].tolist()}
    assert [np.bincount(f[:, 0], minlength=3).tolist() for f in first] == [[3, 1, 9], [1, 12, 6]]
    again = [
        shown(clock(-300.0, 77), [(1.2345, b, 0.1), (1.41, a, 0.1), (3.0, b, 0.1)], block=311)[:2][::-1],
        shown(clock(0.0), [(2.0, a, 2.5), (6.0, b, 0.07)], block=30),  # frozen on the screen; gone too early
        shown(clock(0.0), [(2.0, a, 0.1), (2.2, b, 0.1)], seen_after_s=0.02),  # seen late, for example torn before
    ]
    for one in again:
        assert {"a": one[0].tolist(), "b": one[1].tolist()} == expected


def test_nothing_is_fired_without_an_edge_and_dead_units_are_silent() -> None:
    device = clock(0.0)
    neurons = NoiseFreeNeurons(UNITS, device, 0.05, 0.1, {"E03#0": 1.0}, device.start_sample)
    neurons.see(device.start_host_ns, np.array([100.0, 100.0, 100.0]), shown=True)
    assert len(neurons.advance(device.start_sample + 60_000)[0]) == 0
    neurons.onset(device.start_sample + 60_000)
    unit, _ = neurons.advance(device.start_sample + 90_000)
    assert np.bincount(unit, minlength=3).tolist() == [10, 10, 0]


@pytest.mark.parametrize("latency_s", [0.0, 0.01, 0.05, 0.2])
def test_an_image_is_known_before_its_spikes_are_due_at_any_latency(latency_s: float) -> None:
    (spikes,) = shown(clock(10.0), [(0.5, [50.0, 60.0, 70.0], 0.1)], block=10, latency_s=latency_s)
    assert np.bincount(spikes[:, 0], minlength=3).tolist() == [5, 6, 7]
    assert spikes[:, 1].min() >= latency_s * 30_000


CONFIG = """
name: noise-free
seed: 4
display: {{size_px: [400, 300], width_cm: 30}}
presentation: {{on_s: 0.1, off_s: 0.0667, images_per_trial: 12, inter_trial_s: 0.25}}
sources: [{{type: openephys, name: probe, port: {port}, http_port: null}}]
responses: {{units: ["E01#0", "E02#0", "E03#0", "E04#0", "E05#0", "E06#0", "E07#0", "E08#0"]}}
phases:
- {{agent: present, images: [gratings, natural], count: 12, repeats: 3, blanks: 1}}
animal: {{neurons: 8, noise: none, clock_ppm: 200.0}}
"""


@pytest.mark.slow
@pytest.mark.display
def test_all_repeats_of_an_image_give_equal_counts_through_the_real_screen(private_screen: str, tmp_path: Path) -> None:
    text = CONFIG.format(port=free_port(2))
    (tmp_path / "config.yaml").write_text(text)
    sessions = tmp_path / "sessions"
    command = [sys.executable, "-m", "rig.cli", "demo", "--config", str(tmp_path / "config.yaml")]
    done = subprocess.run(
        [*command, "--sessions", str(sessions)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = [p for p in sessions.iterdir() if (p / "session.journal").exists()]
    counts: defaultdict[str, list[list[float]]] = defaultdict(list)
    for entry in read_all(folder / "session.journal", frozenset({"response"})):
        assert isinstance(entry.document, Response)
        if entry.document.usable:
            counts[entry.document.stimulus_id].append(entry.document.count.tolist())
            assert np.all(entry.document.baseline == 0)  # no spikes but those that answer an image
    assert len(counts) == 13
    assert sum(map(len, counts.values())) >= 36
    different = {name: rows for name, rows in counts.items() if any(row != rows[0] for row in rows)}
    assert different == {}
    assert len({tuple(rows[0]) for rows in counts.values()}) > 5, "the images cannot be told apart by their responses"


def test_an_animal_without_photodiode_cannot_be_noise_free() -> None:
    from rig.animal.process import make_neurons
    from rig.config.reading import ConfigError

    config = parse(CONFIG.format(port=5556).replace("width_cm: 30", "width_cm: 30, patch: null"))
    with pytest.raises(ConfigError, match=r"needs display\.patch"):
        make_neurons(config, UNITS, clock(0.0), np.random.default_rng(0))
