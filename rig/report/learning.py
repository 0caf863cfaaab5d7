"""What the encoder of an inception or control phase was worth: scores over the session, and units chosen by them.

Figures are those that the agent stated (table model/updates). Used by `rig.report.inception` and `rig.report.control`.
"""

import json
from collections.abc import Callable
from html import escape

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from rig.report import model_checks
from rig.report.data import Session
from rig.report.figures import BLACK, BLUE, GREY, ORANGE, new_figure
from rig.report.first_minutes import REJECTED, Report, of_unit
from rig.report.html import as_table, counted, estimate

F64 = npt.NDArray[np.float64]
Draw = Callable[[str, Figure | None, str], str]  # name of the file, figure, caption -> HTML

MOST_LINES = 24  # units with a line of their own; of more the unchosen ones are summarised
MIDDLE = (10, 90)  # percentiles
NOT_ASKED = f"{REJECTED}not asked for"  # as models.inception.learner says


def section(session: Session, phase: int, report: Report, draw: Draw) -> str:
    """Return the section's HTML."""
    many = len(session.units) > MOST_LINES
    others = "grey area: the middle 80 % of all units that were not chosen" if many else "grey: units not chosen"
    out = "<h3>The model</h3>" + draw(
        f"learning_{phase}",
        scores(session, phase, report),
        "Correlation of the model's prediction with the mean response to held-out images, which it is never fitted to, "
        f"after each fit. Thin: chosen units; {others}; thick: median of all; dashed: the median correlation of single "
        "responses with the mean of their other repeats (oracle), which falls short of what a perfect model would "
        "reach. Each point is of the repeats until then: score and oracle rise with their number, too.",
    )
    out += draw(
        f"networks_{phase}",
        networks(session, phase),
        "The networks, after each block; before the first of these the score above is that of the fixed features. "
        "Left: median held-out correlation of what predicts (all networks together), "
        "beside that of a ridge readout of fixed features on the same presentations. Middle: correlation of each "
        "network with the training images that decide when it stops (its best so far). Right: passes through the "
        "presentations that it has, since it last took new ones in.",
    )
    out += draw(
        f"learning_units_{phase}",
        of_units(session, phase, report),
        "The held-out correlation of each chosen unit, with 95 % intervals (bootstrap over held-out images); dashed: "
        "its oracle. Units are chosen by it, so that of the chosen ones it is a little too high.",
    )
    return out + _units(session, report)


def reports(session: Session, phase: int) -> list[Report]:
    """Return the agent's figures, oldest first."""
    phases = session.column("model/updates/phase")
    return [json.loads(text) for text in np.array(session.texts("model/updates/report"))[phases == phase]]


def _by_count(session: Session, phase: int) -> dict[int, Report]:
    """Return the agent's figures after each fit, the last of each, by the presentations in it."""
    return {int(one["images_seen"]): one for one in reports(session, phase) if "heldout_r" in one}


def chosen(session: Session, report: Report) -> list[str]:
    """Return the units that images were made for, best first."""
    ranks = {unit: report[f"{unit}: rank"] for unit in session.units if f"{unit}: rank" in report}
    return sorted(ranks, key=lambda unit: ranks[unit])


def scores(session: Session, phase: int, report: Report) -> Figure | None:
    """Draw the held-out score over presentations in the fit; None where none was stated."""
    by_count = _by_count(session, phase)
    if len(by_count) < 2:
        return None
    figure = new_figure(6.4, 3.4)
    axes = figure.subplots()
    counts = np.array(sorted(by_count))
    mine = chosen(session, report)
    of = {unit: np.array([by_count[n].get(f"{unit}: heldout_r", np.nan) for n in counts]) for unit in session.units}
    others = [of[unit] for unit in session.units if unit not in mine]
    if len(session.units) > MOST_LINES and others:
        known = np.isfinite(others).any(axis=0)
        low, high = np.nanpercentile(np.array(others)[:, known], MIDDLE, axis=0)
        label = f"{len(others)} not chosen"
        axes.fill_between(counts[known], low, high, color=GREY, alpha=0.3, linewidth=0, label=label)
    else:
        for values in others:
            axes.plot(counts, values, color=GREY, alpha=0.5, linewidth=0.9)
    for unit in mine[:MOST_LINES]:
        axes.plot(counts, of[unit], color=BLUE, alpha=0.35, linewidth=0.9)
    axes.plot(counts, [by_count[n]["heldout_r"] for n in counts], color=BLUE, marker="o", markersize=4, label="median")
    oracle = [by_count[n].get("oracle", np.nan) for n in counts]
    axes.plot(counts, oracle, color=BLACK, linestyle="--", label="oracle, median")
    axes.axhline(0, color=BLACK, linewidth=0.6)
    axes.set(xlabel="presentations in the fit", ylabel="held-out r", ylim=(min(-0.2, *axes.get_ylim()), 1))
    axes.legend(loc="lower right")
    return figure


def networks(session: Session, phase: int) -> Figure | None:
    """Draw scores and epochs of the networks over the blocks; None where the encoder is none."""
    every = [one for one in reports(session, phase) if "network1_epochs" in one]
    if len(every) < 2:
        return None
    blocks = [one["generation"] + 1 for one in every]
    count = sum(f"network{k}_epochs" in every[-1] for k in range(1, len(every[-1]) + 1))
    figure = new_figure(9.6, 3.0)
    left, middle, right = figure.subplots(1, 3)

    def over_blocks(name: str) -> list[float]:
        return [one.get(name, np.nan) for one in every]

    left.plot(blocks, over_blocks("heldout_r"), color=BLUE, label="networks")
    left.plot(blocks, over_blocks("bank_heldout_r"), color=ORANGE, label="fixed features")
    left.legend(loc="lower right", fontsize=8)
    for k in range(1, count + 1):
        middle.plot(blocks, over_blocks(f"network{k}_validation_r"), color=BLUE, alpha=0.6, linewidth=1.2)
        right.plot(blocks, over_blocks(f"network{k}_epochs"), color=BLUE, alpha=0.6, linewidth=1.2)
    left.set(ylabel="held-out r, median", ylim=(min(0.0, left.get_ylim()[0]), 1))
    middle.set(ylabel="validation r", ylim=(min(0.0, middle.get_ylim()[0]), 1))
    right.set(ylabel="epochs", ylim=(0, None))
    for axes in (left, middle, right):
        axes.set_xlabel("block")
    return figure


def of_units(session: Session, phase: int, report: Report) -> Figure | None:
    """Draw each chosen unit's held-out score with its interval, best first; None where none was chosen."""
    by_count = _by_count(session, phase)
    units = chosen(session, report)[: model_checks.MOST_UNITS]
    if len(by_count) < 2 or not units:
        return None
    counts = np.array(sorted(by_count))
    figure, grid = model_checks.panels(len(units))
    for axes, unit in zip(grid, units, strict=True):
        names = ("heldout_r", "heldout_r_low", "heldout_r_high", "oracle")
        value, low, high, oracle = (
            np.array([by_count[n].get(f"{unit}: {name}", np.nan) for n in counts]) for name in names
        )
        axes.fill_between(counts, low, high, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(counts, value, color=BLUE, marker="o", markersize=3)
        axes.plot(counts, oracle, color=GREY, linestyle="--")
        axes.axhline(0, color=BLACK, linewidth=0.6)
        axes.set(ylim=(min(-0.3, float(np.nanmin(low, initial=0.0))), 1))
        axes.set_xlabel("presentations", fontsize=10)
        axes.set_title(unit, fontsize=10)
    model_checks.label_rows(grid, "held-out r")
    return figure


def _units(session: Session, report: Report) -> str:
    if "chosen" not in report:
        return "<p>The phase ended before units were chosen.</p>"
    each = [(unit, of_unit(report, unit)) for unit in session.units]
    each.sort(key=lambda one: (one[1].get("rank", np.inf), -one[1].get("heldout_r", -np.inf)))
    rows = []
    for unit, one in each:
        reasons = [name[len(REJECTED) :] for name in one if name.startswith(REJECTED)]
        verdict = f"<b>{int(one['rank'])}</b>" if "rank" in one else "no: " + escape("; ".join(reasons))
        rows.append([escape(unit), verdict, *(estimate(one, name) for name in ("heldout_r", "r2_er", "oracle"))])
    asked_for = sum(NOT_ASKED not in one for _, one in each)
    of = str(len(each)) if asked_for == len(each) else f"{asked_for} that were asked for ({len(each)} recorded)"
    head = ["unit", "chosen", "held-out r (95 %)", "R² of the noise-free tuning (95 %)", "oracle (95 %)"]
    table = as_table(head, rows, frozenset({2, 3, 4}))
    return (
        f"<p><b>{counted(int(report['chosen']), 'unit')} chosen</b> of {of}, after "
        f"{report.get('images_seen', 0):.0f} presentations in the fit.</p><details><summary>All units</summary>{table}"
        "<p>On held-out images: correlation with the mean response; R² with the noise-free tuning, unbiased (Pospisil "
        "and Bair), which may come out below 0 or above 1; oracle: single responses with the mean of their other "
        "repeats. Intervals: bootstrap over images; they do not know that units were chosen by the first of these."
        "</p></details>"
    )
