"""`stimloop bench calcium`: how good the online deconvolution is, and whether 10,000 ROIs get through in time.

Quality, on simulated recordings: the correlation of each ROI's responses with its true spike counts, online and with
the batch algorithm on the whole recording, over the lag; and what the image before leaves in a response. The load is
measured in `rig.bench.calcium_load`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import percentile_filter

from rig.animal.calcium import Frames, Microscope
from rig.bench.calcium_load import load
from rig.clock import Clock
from rig.config.sources import Calcium, CalciumSimulation, TracesWireSource
from rig.messages import TraceBlock, UnitList
from rig.responses.deconvolution import FixedLag, deconvolve
from rig.responses.fluorescence import BLOCKS
from rig.responses.traces import TraceFold

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

RATE_HZ = 30_000.0
FRAME_S = 1 / 30
ROIS = 100
IMAGES = 40
ON_S, OFF_S = 0.2, 0.2
LATENCY_S = 0.05
WINDOW_S = (0.05, 0.30)  # a frame longer than image and latency: events are late by up to a frame
SPONTANEOUS_HZ = 0.5
EVOKED_HZ = 4.0  # mean over images; a few images drive an ROI well, most hardly
SETTLE_S = 60.0  # one window of the baseline
LAGS_S = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Recording:
    """A simulated recording with its truth."""

    microscope: Microscope
    frames: Frames
    windows: list[tuple[int, int]]  # one per presentation, device samples
    true: F64  # (presentation, roi) spikes in the window
    drive: F64  # (presentation, roi) expected evoked spikes of the image


def record(seconds: float, seed: int, settings: CalciumSimulation) -> Recording:
    """Simulate `seconds` of images, spikes and frames of `ROIS` ROIs."""
    rng = np.random.default_rng(seed)
    tuning = EVOKED_HZ * rng.gamma(0.3, 1 / 0.3, (IMAGES, ROIS))
    onsets = np.arange(1.0, seconds - 2.0, ON_S + OFF_S)
    image = rng.integers(0, IMAGES, len(onsets))
    unit, at = [], []
    for k in range(ROIS):
        alone = rng.uniform(0, seconds, rng.poisson(SPONTANEOUS_HZ * seconds))
        count = rng.poisson(tuning[image, k] * ON_S)
        evoked = np.repeat(onsets + LATENCY_S, count) + rng.uniform(0, ON_S, count.sum())
        at.append(np.concatenate([alone, evoked]))
        unit.append(np.full(len(at[-1]), k))
    sample = (np.concatenate(at) * RATE_HZ).astype(np.int64)
    order = np.argsort(sample, kind="stable")
    sample, which = sample[order], np.concatenate(unit)[order]
    microscope = Microscope(ROIS, settings, RATE_HZ, 0, rng)
    frames = microscope.frames(which, sample, seconds * RATE_HZ)
    scored = onsets > SETTLE_S
    windows = [(int((t + WINDOW_S[0]) * RATE_HZ), int((t + WINDOW_S[1]) * RATE_HZ)) for t in onsets[scored]]
    true = np.zeros((len(windows), ROIS))
    for row, (start, end) in enumerate(windows):
        low, high = np.searchsorted(sample, [start, end])
        np.add.at(true[row], which[low:high], 1)
    return Recording(microscope, frames, windows, true, tuning[image[scored]] * ON_S)


def online(recording: Recording, settings: Calcium) -> F64:
    """Return the responses (presentation, roi) as a session would: frame by frame, each asked for when it is final."""
    names = tuple(f"roi{k}" for k in range(ROIS))
    fold = TraceFold(TracesWireSource(port=1, calcium=settings), names)
    offset = recording.microscope.scan_offset_s
    units = UnitList(
        source="scope",
        run=1,
        list_number=0,
        from_sample=0,
        units=names,
        scan_offset_s=offset,
        measure="fluorescence",
    )
    fold.take(units, RATE_HZ)
    frames, out, waiting = recording.frames, [], list(recording.windows)
    period = RATE_HZ * FRAME_S
    for k in range(len(frames.frame)):
        block = TraceBlock(
            source="scope",
            run=1,
            list_number=0,
            frame=frames.frame[k : k + 1],
            sample=frames.sample[k : k + 1],
            arrival_host_ns=frames.sample[k : k + 1],
            values=frames.fluorescence[k : k + 1],
            neuropil=frames.neuropil[k : k + 1],
        )
        if said := fold.take(block, RATE_HZ):
            raise ValueError(said[0])
        final = fold.final_through(int(frames.sample[k] + period))
        while waiting and waiting[0][1] <= final:
            out.append(fold.values(*waiting.pop(0)))
            fold.forget(waiting[0][0] if waiting else final)
    return np.array(out)


def batch(recording: Recording, settings: Calcium) -> tuple[F64, F64, F64]:
    """Return responses (presentation, roi) of the offline way, dF/F means and events, and the dF/F (frame, roi).

    F0 is the same percentile of the same block means, but in a window that is centred on the frame.
    """
    frames = recording.frames
    f = frames.fluorescence.astype(np.float64) - settings.neuropil * frames.neuropil
    length = max(1, round(settings.baseline_window_s / FRAME_S / BLOCKS))
    blocks = f[: len(f) // length * length].reshape(-1, length, ROIS).mean(axis=1)
    low = percentile_filter(blocks, settings.baseline_percentile, size=(BLOCKS, 1), mode="nearest")
    centre = (np.arange(len(low)) + 0.5) * length
    f0 = np.stack([np.interp(np.arange(len(f)), centre, low[:, k]) for k in range(ROIS)], axis=1)
    dff = (f - f0) / f0
    events = deconvolve(dff, float(np.exp(-FRAME_S / settings.tau_s)))
    own = frames.sample[:, None] + recording.microscope.scan_offset_s * RATE_HZ
    means, sums = [], []
    for start, end in recording.windows:
        rows = slice(*np.searchsorted(frames.sample, [start - 2 * FRAME_S * RATE_HZ, end]))
        inside = (own[rows] >= start) & (own[rows] < end)
        means.append((dff[rows] * inside).sum(axis=0) / inside.sum(axis=0))
        sums.append((events[rows] * inside).sum(axis=0))
    return np.array(means), np.array(sums), dff


def lag_difference(dff: F64, tau_s: float, lag_s: float) -> tuple[float, float]:
    """Return how far the fixed lag is from the batch over the whole recording, both on the same dF/F (frame, roi).

    First the share of all events that are equal (to 1e-9), then the rms of the difference over the rms of the events.
    """
    decay, lag = float(np.exp(-FRAME_S / tau_s)), round(lag_s / FRAME_S)
    whole, solver = deconvolve(dff, decay), FixedLag(dff.shape[1], decay, lag)
    got = []
    for frame, row in enumerate(dff):
        solver.push(frame, row)
        if frame >= lag:
            got.append(solver.events(frame - lag))
    difference = np.array(got) - whole[: len(got)]
    return float(np.mean(np.abs(difference) < 1e-9)), float(np.sqrt(np.mean(difference**2) / np.mean(whole**2)))


def correlation(response: F64, true: F64) -> float:
    """Return the mean over ROIs of the correlation over presentations, leaving out the last that came too late."""
    count = len(response)
    each = [np.corrcoef(response[:, k], true[:count, k])[0, 1] for k in range(response.shape[1])]
    return float(np.nanmean(each))


def carry_over(response: F64, drive: F64) -> float:
    """Return what the image before leaves in a response, as a fraction of what it did itself.

    Least squares, for each ROI, on the noise-free drive of the image and of the one before (slopes of both, and a
    constant); the ratio of the ROIs' mean slopes. 0: nothing is left.
    """
    count = len(response)
    now, before = drive[1:count], drive[: count - 1]
    slopes = []
    for k in range(response.shape[1]):
        design = np.stack([now[:, k], before[:, k], np.ones(count - 1)], axis=1)
        slopes.append(np.linalg.lstsq(design, response[1:, k], rcond=None)[0][:2])
    mean = np.mean(slopes, axis=0)
    return float(mean[1] / mean[0])


def quality(minutes: float, seed: int = 1) -> list[dict[str, Any]]:
    """Return one row per lag, then rows for faster and slower indicators and for a recording with much noise."""
    rows = []
    for tau_s, noise_dff, lags in ((0.7, 0.1, LAGS_S), (0.25, 0.1, (0.5,)), (1.5, 0.1, (0.5, 1.0)), (0.7, 0.4, (0.5,))):
        simulated = CalciumSimulation(frame_hz=1 / FRAME_S, tau_s=tau_s, noise_dff=noise_dff)
        recording = record(minutes * 60, seed, simulated)
        settings = Calcium(tau_s=tau_s)
        mean_dff, events, dff = batch(recording, settings)
        reached = correlation(events, recording.true)
        for lag_s in lags:
            got = online(recording, settings.model_copy(update={"lag_s": lag_s}))
            here = correlation(got, recording.true)
            equal, rms = lag_difference(dff, tau_s, lag_s)
            rows.append(
                {
                    "part": "quality",
                    "tau_s": tau_s,
                    "noise_dff": noise_dff,
                    "lag_s": lag_s,
                    "presentations": len(got),
                    "correlation_online": round(here, 4),
                    "correlation_batch": round(reached, 4),
                    "ratio": round(here / reached, 4),
                    "events_equal_to_batch": round(equal, 4),
                    "rms_difference_from_batch": round(rms, 4),
                    "correlation_mean_dff": round(correlation(mean_dff, recording.true), 4),
                    "carry_over_mean_dff": round(carry_over(mean_dff, recording.drive), 4),
                    "carry_over_online": round(carry_over(got, recording.drive), 4),
                    "carry_over_batch": round(carry_over(events, recording.drive), 4),
                    "carry_over_of_the_spikes": round(carry_over(recording.true, recording.drive), 4),
                }
            )
    return rows


def calcium(minutes: float, rois: int, sessions: Path, clock: Clock) -> dict[str, Any]:
    """Measure quality on at most ten simulated minutes, then the load for `minutes` with `rois` ROIs."""
    rows = quality(min(max(minutes, 3.0), 10.0))
    figures = load(minutes, rois, sessions, clock)
    return {**figures, "rows": [*rows, *figures.pop("rows")]}
