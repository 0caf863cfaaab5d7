"""The section of an inception phase: what the encoder was worth, the images that it made, and what fresh repeats say.

Scores and tests are those that the agent stated when the phase ended (table model/updates); means and the confusion
matrix are made anew from the presentations shown back (role "confirmation"). Used by `rig.report.page`.
"""

import json
from collections.abc import Callable
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from rig.report import learning, model_checks
from rig.report.confirmation import fixed
from rig.report.data import Session
from rig.report.evolution import subtracted
from rig.report.figures import BLACK, GREEN, GREY, ORANGE, draw_picture, mean_sem, new_figure
from rig.report.first_minutes import Report, last_report, of_unit
from rig.report.html import as_table, counted

F64 = npt.NDArray[np.float64]
Draw = Callable[[str, Figure | None, str], str]  # name of the file, figure, caption -> HTML
Images = dict[str, dict[str, str]]  # unit, kind -> stimulus

MEI = "mei"
KINDS = {
    MEI: "most exciting", "linear": "linear field", "gabor": "best Gabor", "gabor_optimised": "optimised Gabor",
    "natural_masked": "natural, masked", "natural": "natural",
}  # fmt: skip
MOST_UNITS = 40  # whose images are drawn
UNEQUAL = 0.002  # RMS contrast
FEW = 5  # units; of fewer a z-score within a row says little (of two it is always 1 and -1)
PERCENT_FROM = 10  # units; a share of fewer is told as a count alone


def section(session: Session, phase: int, draw: Draw) -> str:
    """Return the section's HTML."""
    report = last_report(session, phase)
    out = learning.section(session, phase, report, draw)
    images: Images = {}
    for unit, kind, stimulus in fixed(session, phase):
        images.setdefault(unit, {})[kind] = stimulus
    if not images:
        return out + "<p>No image was shown back.</p>"
    out += shown_back(session, phase, images, report, draw)
    return out + model_checks.section(session, phase, images, report, draw)


def shown_back(session: Session, phase: int, images: Images, report: Report, draw: Draw) -> str:
    """Return what fresh repeats say of images; also of those that were made on another day (`rig.report.revisit`)."""
    out = "<h3>Images shown back</h3>" + _verdict(session, phase, report, images)
    out += draw(
        f"meis_{phase}",
        gallery(session, phase, images, report),
        "For each unit its most exciting image and the controls, alike in mean level and RMS contrast "
        f"({_contrasts(report, images)}); below, the unit's mean ± standard error over {_repeats(report, images)}, "
        f"{session.rate_unit}{subtracted(session)}. Green: the most exciting image drove it more than this "
        "control (q at most the configured chance), orange: less, grey: not told apart.",
    )
    out += draw(
        f"confusion_{phase}",
        confusion(session, phase, images),
        "Responses of each unit (row) to the most exciting images of all units (columns), fresh repeats. Colour: "
        f"{'z-scored within each row' if len(images) >= FEW else 'over the highest of the row; numbers: mean rates'}. "
        "Dots mark the highest of each row." + _unequal(report, images),
    )
    return out + _comparisons(session, report, images)


def _repeats(report: Report, images: Images) -> str:
    """Say over how many fresh repeats means are."""
    of = [int(n) for unit in images for kind in images[unit] if (n := report.get(f"{unit}: {kind}_n")) is not None]
    low, high = min(of, default=0), max(of, default=0)
    return f"{high} fresh repeats" if low == high else f"{low} to {high} fresh repeats"


def _known_contrasts(report: Report, images: Images) -> list[float]:
    return [report[f"{unit}: contrast"] for unit in images if f"{unit}: contrast" in report]


def _contrasts(report: Report, images: Images) -> str:
    """Say which RMS contrast the images have."""
    known = _known_contrasts(report, images)
    if not known:
        return "sd / 127.5"
    low, high = f"{min(known):.3f}", f"{max(known):.3f}"
    return f"sd / 127.5 over the whole image: {low if low == high else f'{low} to {high}'}"


def _unequal(report: Report, images: Images) -> str:
    """Say where images of different units differ in contrast: within a row they are then not alike."""
    known = _known_contrasts(report, images)
    if not known or max(known) - min(known) < UNEQUAL:
        return ""
    return (
        f" Images of different units differ in RMS contrast ({min(known):.3f} to {max(known):.3f}), because some could "
        "not reach the one that was asked for: columns of a higher contrast drive every unit more."
    )


def gallery(session: Session, phase: int, images: Images, report: Report) -> Figure:
    """Draw the images of each unit in a row, with what they did."""
    units = list(images)[:MOST_UNITS]
    kinds = [kind for kind in KINDS if any(kind in images[unit] for unit in units)]
    figure = new_figure(1.5 * len(kinds) + 0.6, 1.85 * len(units) + 0.3)
    grid = figure.subplots(len(units), len(kinds), squeeze=False)
    chance = session.config["phases"][phase]["chance"]
    digits = 1 if session.measure == "spikes" else 3
    for row, unit in zip(grid, units, strict=True):
        own = _mean(session, phase, unit, images[unit].get(MEI, ""))[0]
        for axes, kind in zip(row, kinds, strict=True):
            stimulus = images[unit].get(kind)
            if stimulus is None:
                axes.set_axis_off()
                continue
            draw_picture(axes, session, stimulus)
            value, error = _mean(session, phase, unit, stimulus)
            q = report.get(f"{unit}: q_{kind}", 1.0)
            colour = BLACK if kind == MEI else GREY if q > chance else GREEN if own > value else ORANGE
            axes.text(
                0.5, -0.04, f"{value:.{digits}f} ± {error:.{digits}f}", transform=axes.transAxes, ha="center", va="top",
                fontsize=9, color=colour, weight="bold" if kind != MEI and q <= chance else "normal",
            )  # fmt: skip
            if axes in grid[0]:
                axes.set_title(KINDS[kind], fontsize=9)
        row[0].text(-0.08, 0.5, unit, transform=row[0].transAxes, ha="right", va="center", fontsize=9, rotation=90)
    return figure


def _responses(session: Session, phase: int, images: Images) -> tuple[list[str], F64]:
    """Return the units whose most exciting image was shown, and the mean rate of each (row) to that of each."""
    units = [unit for unit in images if MEI in images[unit] and unit in session.units]
    each = [[_mean(session, phase, unit, images[other][MEI])[0] for other in units] for unit in units]
    return units, np.array(each, np.float64).reshape(len(units), len(units))


def confusion(session: Session, phase: int, images: Images) -> Figure | None:
    """Draw every unit's response to every unit's most exciting image; None for fewer than two."""
    units, rates = _responses(session, phase, images)
    if len(units) < 2:
        return None
    few = len(units) < FEW
    side = min(8.0, 2.6 + (0.4 if few else 0.32) * len(units))
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    drawn = axes.imshow(**_over_highest(rates) if few else _z_scored(rates), interpolation="nearest")
    for k, row in enumerate(rates):
        if np.isfinite(row).all():
            at = int(row.argmax()), k - (0.3 if few else 0)  # beside the number
            axes.plot(*at, "o", color=BLACK, markersize=6, markeredgecolor="white", markeredgewidth=1.3)
    if few:
        digits = 1 if session.measure == "spikes" else 3
        for k, column in np.argwhere(np.isfinite(rates)):
            # On either colour of the map: dark on a light ground of its own.
            ground = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
            axes.text(column, k, f"{rates[k, column]:.{digits}f}", ha="center", va="center", fontsize=9, bbox=ground)
    axes.set(xlabel="most exciting image of", ylabel="response of", xticks=range(len(units)), yticks=range(len(units)))
    axes.set_xticklabels(units, rotation=90, fontsize=8)
    axes.set_yticklabels(units, fontsize=8)
    figure.colorbar(drawn, label="over the highest" if few else "z")
    return figure


def _z_scored(rates: F64) -> dict[str, Any]:
    """Return what to draw of rates (unit, image), each row less its mean and over its sd."""
    sd = rates.std(axis=1, keepdims=True)
    z = (rates - rates.mean(axis=1, keepdims=True)) / np.where(sd > 0, sd, 1.0)
    most = float(np.nanmax(np.abs(z))) if np.isfinite(z).any() else 1.0
    return {"X": z, "cmap": "RdBu_r", "vmin": -most, "vmax": most}


def _over_highest(rates: F64) -> dict[str, Any]:
    """Return what to draw of rates (unit, image), each row over its highest, as Walker et al. 2019 draw them."""
    highest = rates.max(axis=1, keepdims=True)
    return {"X": rates / np.where(highest > 0, highest, 1.0), "cmap": "Blues", "vmin": 0.0, "vmax": 1.0}


def _mean(session: Session, phase: int, unit: str, stimulus: str) -> tuple[float, float]:
    if unit not in session.units:
        return float("nan"), float("nan")
    column = session.units.index(unit)
    return mean_sem(session.rates(column, phase=phase, role="confirmation", stimulus=stimulus))


def _share(part: float, count: int) -> str:
    """Return a share of units in words: as a count, with its percentage where they are not too few for one."""
    said = f"{round(part * count)} of {counted(count, 'unit')}"
    return said if count < PERCENT_FROM else f"{said} ({part:.0%})"


def _verdict(session: Session, phase: int, report: Report, images: Images) -> str:
    settings = session.config["phases"][phase]
    if "row_maximum" not in report and not any(name.startswith("better_") for name in report):
        return "<p>Too little was shown back for a verdict.</p>"
    words = [row_maximum(session, phase, report, images)] if "row_maximum" in report else []
    against = [kind for kind in KINDS if f"better_{kind}" in report]
    each = []
    for kind in against:
        tested = sum(f"{unit}: q_{kind}" in report for unit in session.units)
        better, worse = (_share(report[f"{name}_{kind}"], tested) for name in ("better", "worse"))
        said = f"More than <b>{KINDS[kind]}</b>: {better}; less: {worse}{_usual(session, report, kind)}."
        each.append(f"<li>{said}{_together(session, report, kind)}</li>")
    if not against:
        after = "The phase did not come to its end, so that nothing was tested."
    else:
        after = (
            f"{_best_of_all(session, report, against)}{_promised(session, phase, report, images)} Counted are "
            f"comparisons with q at most {settings['chance']:g}: paired repeats, random swaps within pairs, corrected "
            "for all units and controls together (Benjamini and Hochberg)."
        )
        if any(f"population_p_{kind}" in report for kind in against):
            after += (
                " The test over units takes each unit's mean difference as one observation (Wilcoxon), corrected for "
                "the controls; it says what such units do, not which of them."
            )
    return (
        "<p>The images were fixed before their first presentation; everything below rests on the fresh repeats alone. "
        + " ".join(words)
        + (f"</p><ul>{''.join(each)}</ul><p>" if each else " ")
        + f"{after}</p>"
    )


def row_maximum(session: Session, phase: int, report: Report, images: Images) -> str:
    """Say in how many units the own image did most; counted are those with responses to the images of all units."""
    _, rates = _responses(session, phase, images)
    counted_units = int(np.isfinite(rates).all(axis=1).sum())
    said = "The own image drove a unit more than those of all others in "
    said += _share(report["row_maximum"], counted_units)
    if "row_maximum_p" in report:
        interval = f"95 % interval {report['row_maximum_low']:.0%} to {report['row_maximum_high']:.0%}; "
        interval = interval if counted_units >= PERCENT_FROM else ""
        said += f" ({interval}p = {report['row_maximum_p']:.2g} against chance)"
    chosen = round(report.get("chosen", len(rates)))
    if counted_units < max(chosen, len(rates)):
        said += f"; {chosen} were chosen, images of {len(rates)} were shown back, and counted are those that answered "
        said += "to all of these"
    return said + "."


def _together(session: Session, report: Report, kind: str) -> str:
    """Say what all units together do, each counted once; "" where they are too few for it."""
    if f"population_p_{kind}" not in report:
        return ""
    of = {name: report.get(f"population_{name}_{kind}", np.nan) for name in ("n", "p", "q", "ratio")}
    said = f" All {of['n']:.0f} units together: "
    if np.isfinite(of["ratio"]):
        low, high = (report.get(f"population_ratio_{end}_{kind}", np.inf) for end in ("low", "high"))
        ends = f"{low:.2f} to {high:.2f}" if np.isfinite(high) else f"{low:.2f} and more"
        said += f"<b>{of['ratio']:.2f} times</b> as much{subtracted(session)} (median over units, "
        said += f"95 % interval {ends}; " if np.isfinite(low) else ""
    else:
        said += "(no ratio, because a mean response is 0 or below; "
    return f"{said}signed rank test over units: p = {of['p']:.2g}, q = {of['q']:.2g})."


def _usual(session: Session, report: Report, kind: str) -> str:
    """Say how large the difference from a control usually is."""
    each = [report[f"{u}: {MEI}"] - report[f"{u}: {kind}"] for u in session.units if f"{u}: q_{kind}" in report]
    digits = 1 if session.measure == "spikes" else 3
    return f"; difference {np.median(each):+.{digits}f} {session.rate_unit} (median over units)" if each else ""


def _best_of_all(session: Session, report: Report, against: list[str]) -> str:
    """Say in how many units no control did more."""
    shown = [
        (report[f"{unit}: {MEI}"], [report[f"{unit}: {kind}"] for kind in against if f"{unit}: {kind}" in report])
        for unit in session.units
        if f"{unit}: {MEI}" in report
    ]
    best = sum(own > max(others) for own, others in shown if others)
    return f"The most exciting image had the highest mean of all images of its unit in {best} of {len(shown)}. "


def _promised(session: Session, phase: int, report: Report, images: Images) -> str:
    """Say what the model had predicted of the most exciting images; "" where the log does not say."""
    said = _predicted(session)
    pairs = [
        (said[of[MEI]], _mean(session, phase, unit, of[MEI])[0])
        for unit, of in images.items()
        if of.get(MEI) in said
    ]
    if not pairs:
        return ""
    digits = 1 if session.measure == "spikes" else 3
    predicted, measured = np.nanmedian(np.array(pairs), axis=0)
    return (
        f"The model had predicted {predicted:.{digits}f} {session.rate_unit} for it, {measured:.{digits}f} were "
        "measured (medians over units)."
    )


def _predicted(session: Session) -> dict[str, float]:
    """Return what the model predicted of each image made, by stimulus."""
    figures = zip(session.texts("stimuli/stimulus_id"), session.texts("stimuli/figures"), strict=True)
    each = {name: json.loads(text) for name, text in figures if text}
    return {name: float(one["predicted"]) for name, one in each.items() if "predicted" in one}


def _comparisons(session: Session, report: Report, images: Images) -> str:
    digits = 1 if session.measure == "spikes" else 3
    kinds = [kind for kind in KINDS if kind != MEI and any(kind in of for of in images.values())]
    rows, said = [], _predicted(session)
    for unit in images:
        one = of_unit(report, unit)
        cells = []
        for kind in kinds:
            there = MEI in one and kind in one
            q = f", q {one[f'q_{kind}']:.2g}" if f"q_{kind}" in one else ""
            cells.append(f"{one[MEI] - one[kind]:+.{digits}f}{q}" if there else "")
        own = f"{one.get(MEI, np.nan):.{digits}f} ± {one.get(f'{MEI}_se', np.nan):.{digits}f}"
        promised = f"{said[images[unit][MEI]]:.{digits}f}" if images[unit].get(MEI) in said else ""
        rows.append([escape(unit), f"{one.get(f'{MEI}_n', 0):.0f}", promised, own, *cells])
    head = ["unit", "repeats", "predicted", KINDS[MEI], *(f"less {KINDS[kind]}" for kind in kinds)]
    if _unequal(report, images):  # else the caption of the images says it of all
        head.append("RMS contrast")
        for unit, row in zip(images, rows, strict=True):
            row.append(f"{report.get(f'{unit}: contrast', np.nan):.3f}")
    table = as_table(head, rows, frozenset(range(1, len(head))))
    caption = (
        "Response to the most exciting image, as the model predicted it and as measured, and how much more it is than "
        f"to each control, {session.rate_unit}."
    )
    return f"<details><summary>All comparisons</summary><p>{caption}</p>{table}</details>"
