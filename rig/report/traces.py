"""The report's figure for a source without spikes: the mean trace of a unit around the image onset.

Drawn from the raw values of session.h5. It shows whether the unit answered and when; the scores are made by
`rig.responses.traces`, which tracks the baseline and may deconvolve.
"""

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from rig.report.data import F64, I64, Session
from rig.report.figures import (
    GREEN,
    ORANGE,
    around_s,
    draw_picture,
    mark_times,
    new_figure,
    presented,
    raster_groups,
)


def traces(session: Session, phase: int) -> Figure | None:
    """Draw mean and standard error of a unit's trace for the best images and a reference; None without any trace."""
    unit, groups = raster_groups(session, phase)
    around = around_s(session, phase)
    drawn = [(g, _aligned(session, session.units[unit], g.rows, around)) for g in groups]
    if not any(np.isfinite(rows).any() for _, (_, rows) in drawn):
        return None
    in_dff = session.measure != "counts" and all(_level(times, rows) > 0 for _, (times, rows) in drawn)
    unit_of = "counts/s" if session.measure == "counts" else "dF/F" if in_dff else "F, change"
    figure = new_figure(8.5, 4.6)
    grid = figure.subplots(2, len(drawn), gridspec_kw={"height_ratios": [0.6, 1]}, squeeze=False)
    for k, (group, (times, rows)) in enumerate(drawn):
        colour, axes = (ORANGE, GREEN)[k % 2], grid[1, k]
        draw_picture(grid[0, k], session, group.picture)
        grid[0, k].set_title(presented(group, session), fontsize=10, loc="center", fontweight="normal")
        mean, error = _mean_and_error(rows if session.measure == "counts" else _changes(times, rows, in_dff))
        axes.plot(times * 1e3, mean, color=colour, marker="o", markersize=3)
        axes.fill_between(times * 1e3, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
        axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
        axes.set_xlabel("time from image onset (ms)")
        mark_times(session, phase, (axes,), around)
    lo, hi = (f(axes.get_ylim()[k] for axes in grid[1]) for k, f in enumerate((min, max)))
    for axes in grid[1]:
        axes.set_ylim(lo, hi)
    grid[1, 0].set_ylabel(f"{session.units[unit]}\n({unit_of})")
    figure.supxlabel("grey: image on      blue: response window", fontsize=10, color="#555555")
    return figure


def _aligned(session: Session, unit: str, rows: I64, around: tuple[float, float]) -> tuple[F64, F64]:
    """Return times (bin), s from the onset, and values (presentation, bin): bins as long as the frames are apart.

    Counts are per s. NaN where there was no frame.
    """
    around_each = session.traces_around(unit, rows, around)
    steps = np.concatenate([np.empty(0), *(np.diff(times) for times, _ in around_each)])
    if not len(steps):
        return np.empty(0), np.empty((len(rows), 0))
    period = float(np.median(steps))
    edges = period * np.arange(np.ceil(around[0] / period), np.floor(around[1] / period) + 1)
    out = np.full((len(rows), len(edges) - 1), np.nan)
    for k, (times, values) in enumerate(around_each):
        known = np.isfinite(values)
        total, _ = np.histogram(times[known], edges, weights=values[known])
        count, _ = np.histogram(times[known], edges)
        out[k, count > 0] = total[count > 0] / count[count > 0]
    centres = (edges[:-1] + edges[1:]) / 2
    return centres, out / period if session.measure == "counts" else out


def _level(times: F64, rows: F64) -> float:
    """Return the mean before the onset over all presentations: what a fraction can be taken of, if it is over 0."""
    before = _known_mean(rows[:, times < 0], axis=1)
    return float(_known_mean(before, axis=0))


def _changes(times: F64, rows: F64, as_fraction: bool) -> F64:
    """Return each presentation less its own mean before the onset, as a fraction of the mean of all if wanted."""
    before = _known_mean(rows[:, times < 0], axis=1)
    change: F64 = rows - before[:, None]
    return change / _level(times, rows) if as_fraction else change


def _known_mean(values: F64, axis: int) -> F64:
    """Return the mean over an axis of what is known; NaN where nothing is."""
    known: npt.NDArray[np.int64] = np.isfinite(values).sum(axis=axis)
    mean: F64 = np.where(known > 0, np.nansum(values, axis=axis) / np.maximum(known, 1), np.nan)
    return mean


def _mean_and_error(rows: F64) -> tuple[F64, F64]:
    known, mean = np.isfinite(rows).sum(axis=0), _known_mean(rows, axis=0)
    squares = np.nansum((rows - mean) ** 2, axis=0)
    return mean, np.where(known > 1, np.sqrt(squares / np.maximum(known - 1, 1) / np.maximum(known, 1)), np.nan)
