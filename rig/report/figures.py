"""The figures of the report: each function draws one from a session, or returns None where there is nothing to draw.

Colours are those of Okabe and Ito, told apart by people with any kind of colour vision, and every line also has its
own marker or dash. Figures are made without pyplot, so none is left open.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rig.report.data import F64, I64, Session
from rig.report.html import counted
from rig.view.columns import NO_TIME

BLUE, ORANGE, GREEN, PINK, SKY, GREY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#8a8a8a",
    "#222222",
)
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": BLACK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
}
AROUND_S = (-0.1, 0.3)
MARGIN_S = 0.05
BIN_S = 0.01
ENOUGH_REPEATS = 20
MOST_TRIALS = 60


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, size in inches."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def mean_sem(rates: F64) -> tuple[float, float]:
    """Return mean and standard error; NaN where there are too few values."""
    if not len(rates):
        return float("nan"), float("nan")
    return float(np.mean(rates)), float(np.std(rates, ddof=1) / np.sqrt(len(rates))) if len(rates) > 1 else float("nan")


def best_stimulus(session: Session, phase: int, unit: int, role: str) -> tuple[str, float] | None:
    """Return the stimulus of a role with the best mean rate (the highest, as `Session.aim` says), and that rate.

    None without usable responses.
    """
    chosen = session.usable & (session.phase == phase) & (session.role == role) & np.isfinite(session.rate_hz[:, unit])
    ids = np.unique(session.stimulus_id[chosen])
    means = [float(np.mean(session.rate_hz[chosen & (session.stimulus_id == i), unit])) for i in ids]
    if not means:
        return None
    best = int(np.argmax(session.aim * np.array(means)))
    return str(ids[best]), means[best]


def draw_picture(axes: Axes, session: Session, stimulus: str) -> None:
    """Draw the frame of a stimulus, or say that the log has none."""
    axes.set_axis_off()
    pixels = session.picture(stimulus)
    if pixels is None:
        axes.text(0.5, 0.5, "frame not\nin the log", ha="center", va="center", transform=axes.transAxes, color=GREY)
    else:
        axes.imshow(pixels, interpolation="nearest")


@dataclass(frozen=True)
class Group:
    """Presentations whose spikes are drawn together."""

    title: str
    picture: str  # stimulus that stands for them
    rows: I64


def raster_groups(session: Session, phase: int) -> tuple[int, list[Group]]:
    """Return the unit, and the presentations to compare: the best first, then a reference.

    An evolved image is judged by its re-shows, because the score by which it was chosen overrates it; where one image
    has few, the best images of the generations before are pooled with it. A fixed set compares its best and its worst.
    """
    unit = session.unit_of(phase)
    if not session.units:
        return unit, []
    usable = session.usable & (session.phase == phase) & (session.onset_sample != NO_TIME)
    usable &= np.isfinite(session.rate_hz[:, unit])
    groups = _evolved(session, usable, unit)
    role = "reference" if (usable & (session.role == "reference")).any() else "candidate"
    fixed = usable & (session.role == role)
    if not fixed.any() or (groups and role == "candidate"):
        return unit, groups
    ids = np.unique(session.stimulus_id[fixed])
    means = session.aim * np.array([np.mean(session.rate_hz[fixed & (session.stimulus_id == i), unit]) for i in ids])
    ends = [("best reference image" if groups else "best image", int(np.argmax(means)))]
    if not groups and len(ids) > 1:
        ends.append(("weakest image", int(np.argmin(means))))
    groups += [Group(title, str(ids[k]), np.flatnonzero(fixed & (session.stimulus_id == ids[k]))) for title, k in ends]
    return unit, groups


def _evolved(session: Session, usable: npt.NDArray[np.bool_], unit: int) -> list[Group]:
    """Return the newest best images of an evolution, going back until there are enough presentations."""
    again = np.flatnonzero(usable & (session.role == "reshow"))
    if not len(again):
        return []
    made = session.made_in_generation()[again]
    last = first = int(made.max())
    while first > made.min() and (made >= first).sum() < ENOUGH_REPEATS:
        first -= 1
    rows = again[made >= first]
    names = np.unique(session.stimulus_id[rows])
    means = session.aim * np.array(
        [np.mean(session.rate_hz[rows[session.stimulus_id[rows] == i], unit]) for i in names]
    )
    span = f"generation {last + 1}" if first == last else f"generations {first + 1} to {last + 1}"
    return [Group(f"best images of {span}, shown again", str(names[int(np.argmax(means))]), rows)]


def presented(group: Group, session: Session) -> str:
    """Return the lines above a group: what it is, how many presentations, and of which image if of one alone."""
    one = len(set(session.stimulus_id[group.rows])) == 1
    of = f" of {group.picture.split('@')[0]}" if one else ""  # behind the @ stands where it lay
    return f"{group.title}\n{counted(len(group.rows), 'presentation')}{of}"


def around_s(session: Session, phase: int) -> tuple[float, float]:
    """Return the time around the onset to draw: at least `AROUND_S`, and all windows of a phase."""
    responses = session.config.get("responses", {})
    baseline = responses.get("baseline", {})
    windows = [session.window_s(phase) or AROUND_S]
    if baseline.get("kind", "none") != "none":
        windows.append(baseline["window_s"])
    first = min(AROUND_S[0], *(w[0] - MARGIN_S for w in windows))
    return first, max(AROUND_S[1], *(w[1] + MARGIN_S for w in windows))


def raster(session: Session, phase: int) -> Figure | None:
    """Draw spikes around the onset and their rate, for the best images and a reference."""
    unit, groups = raster_groups(session, phase)
    if not groups:
        return None
    around = around_s(session, phase)
    figure = new_figure(8.5, 6.4)
    grid = figure.subplots(3, len(groups), gridspec_kw={"height_ratios": [0.55, 1, 0.8]}, squeeze=False)
    top = 0.0
    for k, group in enumerate(groups):
        rows = group.rows[-MOST_TRIALS:]
        colour = (ORANGE, GREEN)[k % 2]
        draw_picture(grid[0, k], session, group.picture)
        title = presented(replace(group, rows=rows), session)
        grid[0, k].set_title(title, fontsize=10, loc="center", fontweight="normal")
        trains = session.spikes_around(session.units[unit], rows, around)
        dots, psth = grid[1, k], grid[2, k]
        at = np.arange(1, len(rows) + 1)
        dots.eventplot([t * 1e3 for t in trains], lineoffsets=at, colors=colour, linelengths=0.85, linewidths=1.1)
        dots.set_ylim(len(rows) + 0.6, 0.4)
        dots.yaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        edges = BIN_S * np.arange(np.floor(around[0] / BIN_S + 1e-6), np.ceil(around[1] / BIN_S - 1e-6) + 1)
        counts, _ = np.histogram(np.concatenate([*trains, np.empty(0)]), edges)
        rate = counts / len(rows) / BIN_S
        psth.stairs(rate, edges * 1e3, fill=True, color=colour, alpha=0.85)
        psth.set_xlabel("time from image onset (ms)")
        top = max(top, float(rate.max()))
        mark_times(session, phase, (dots, psth), around)
    for axes in grid[2]:
        axes.set_ylim(0, 1.1 * top or 1)
    grid[1, 0].set_ylabel("presentation")
    grid[2, 0].set_ylabel(f"{session.units[unit]}\n(spikes/s)")
    figure.supxlabel("grey: image on      blue: response window", fontsize=10, color="#555555")
    return figure


def mark_times(session: Session, phase: int, all_axes: Sequence[Axes], around: tuple[float, float]) -> None:
    """Shade when the images of a phase were on and where its responses were counted."""
    window_s, here = session.window_s(phase), session.phase == phase
    on_ms = float(np.median((session.offset_flip_host_ns - session.onset_flip_host_ns)[here])) / 1e6
    for axes in all_axes:
        axes.set_xlim(around[0] * 1e3, around[1] * 1e3)
        axes.axvspan(0, on_ms, color="#000000", alpha=0.06, linewidth=0, zorder=0)
        if window_s:
            axes.axvspan(window_s[0] * 1e3, window_s[1] * 1e3, color=SKY, alpha=0.2, linewidth=0, zorder=0)


def tuning(session: Session, phase: int, units: Sequence[int]) -> Figure | None:
    """Draw, for each unit, the mean rate of every image of a fixed set, from the best to the weakest."""
    here = session.usable & (session.phase == phase) & (session.role != "blank")
    ids = np.unique(session.stimulus_id[here])
    if not len(ids) or not units:
        return None
    columns = min(len(units), 4)
    rows_ = -(-len(units) // columns)
    figure = new_figure(8.5, 2.6 * rows_)
    grid = figure.subplots(rows_, columns, squeeze=False).ravel()
    for axes in grid[len(units) :]:
        axes.set_axis_off()
    for k, (axes, unit) in enumerate(zip(grid, units, strict=False)):
        rows = [mean_sem(session.rates(unit, phase=phase, stimulus=str(i))) for i in ids]
        mean, sem = np.array(sorted(rows, key=lambda row: -row[0])).T
        axes.errorbar(
            np.arange(1, len(ids) + 1), mean, sem, color=BLUE, marker="o", markersize=4, linewidth=1.2, label="image"
        )
        blank = mean_sem(session.rates(unit, phase=phase, role="blank"))[0]
        if np.isfinite(blank):
            axes.axhline(blank, color=GREY, linestyle="--", label="blank screen")
        axes.set_title(session.units[unit], fontsize=10.5)
        axes.set_xlabel("image, by rank")
        if k % columns == 0:
            axes.set_ylabel(f"rate ({session.rate_unit})")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def onset(session: Session) -> Figure | None:
    """Draw how long after its flip stamp each image was seen by the photodiode."""
    lag_ms = session.flip_to_edge_ns[session.flip_to_edge_ns != NO_TIME] / 1e6
    if not len(lag_ms):
        return None
    figure = new_figure(3.7, 3.3)
    axes = figure.subplots()
    axes.hist(lag_ms, bins=_bins(lag_ms, 40), color=BLUE)
    axes.axvline(
        float(np.median(lag_ms)), color=BLACK, linestyle="--", linewidth=1.2, label=f"median {np.median(lag_ms):.2f} ms"
    )
    axes.set_xlabel("photodiode edge minus flip stamp (ms)")
    axes.set_ylabel("presentations")
    axes.set_title("Light after the flip", pad=22)
    figure_legend(axes)
    return figure


def _bins(values: F64, most: int) -> list[float]:
    lo, hi = float(values.min()), float(values.max())
    return list(np.linspace(lo - 1e-3, hi + 1e-3, min(most, max(8, int(len(values) ** 0.5) * 2))))


def figure_legend(axes: Axes) -> None:
    """Put the legend above the axes, where it hides no data."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.985), ncols=2, borderaxespad=0.2)


def lateness(session: Session) -> Figure | None:
    """Draw how late the onset flips were against their due times."""
    late_ms = session.lateness_ms()
    if not len(late_ms):
        return None
    refresh_hz = float(session.config.get("display", {}).get("refresh_hz", 60))
    figure = new_figure(3.7, 3.3)
    axes = figure.subplots()
    axes.hist(late_ms, bins=_bins(late_ms, 60), color=ORANGE)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.axvline(500 / refresh_hz, color=BLACK, linestyle=":", label=f"half a frame ({500 / refresh_hz:.1f} ms)")
    axes.set_xlabel("onset flip after it was due (ms)")
    axes.set_ylabel("presentations (log scale)")
    axes.set_title(f"Late flips: {int(session.late_flips.sum())} of {session.flips}", pad=22)
    figure_legend(axes)
    return figure


def bound_words(ppm: float) -> str:
    """Return a bound with as many digits as mean something, never rounded to nothing."""
    return f"{ppm:.0f}" if ppm >= 2 else f"{ppm:.1f}" if ppm >= 0.05 else "0.1"


def clock(session: Session) -> Figure | None:
    """Draw how the device clocks ran away from the host clock."""
    drifts = session.drifts
    if not drifts:
        return None
    figure = new_figure(3.7, 3.3)
    axes = figure.subplots()
    for drift, colour in zip(drifts, cycle((BLUE, ORANGE, GREEN, PINK, SKY)), strict=False):
        figures = f"{drift.ppm:+.0f} ppm, to ±{bound_words(drift.known_to_ppm)} ppm"
        several = f"{drift.source}, run {drift.run}"  # the text below has their figures
        name = f"{drift.source} {figures}" if len(drifts) == 1 else several
        axes.plot(drift.minutes, drift.offset_ms, color=colour, marker=".", linewidth=1, label=name)
    axes.set_xlabel("time (min)" if len(drifts) == 1 else "time in the run (min)")
    axes.set_ylabel("host minus device clock (ms)")
    axes.set_title("Drift of the device clock", pad=22 if len(drifts) == 1 else 6)
    if len(drifts) == 1:
        figure_legend(axes)
    else:  # many names find no place above
        axes.legend(loc="best", fontsize="small")
    return figure


def with_style() -> AbstractContextManager[None]:
    """Return the context in which all figures must be drawn and saved."""
    return rc_context(STYLE)
