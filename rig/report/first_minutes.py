"""Sections of the report for the phases `map` and `screen`: receptive fields, and which units are proposed and why.

Their figures are those that the agents stated when the phase ended, from the table model/updates; nothing is computed
anew. Used by `rig.report.page`.
"""

import copy
import json
from collections.abc import Callable
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from rig.report.data import Session
from rig.report.figures import BLUE, GREEN, GREY, ORANGE, new_figure
from rig.report.html import as_table, counted

Report = dict[str, float]
Draw = Callable[[str, Figure | None, str], str]  # name of the file, figure, caption -> HTML

MOST_UNITS = 200
MOST_NAMED = 30  # fields whose units' names are written into the figure
REJECTED = "rejected, "
WATCHED = ("gain", "level", "tuning")
CHANGED = "changed, "
SURE = 1.96  # standard deviations to each side of a 95 % interval
# What is not shown may be there all the same: the names in the log are shorter than that.
IN_WORDS = {
    "does not respond": "no certain response",
    "answers all images alike": "no certain tuning",
    "not reliable": "not reliable enough",
    "no receptive field": "no certain receptive field",
}


def last_report(session: Session, phase: int) -> Report:
    """Return the newest figures that the agent of a phase stated, {} if there are none."""
    phases, reports = session.column("model/updates/phase"), session.texts("model/updates/report")
    of_phase = [text for number, text in zip(phases.tolist(), reports, strict=True) if number == phase]
    report: Report = json.loads(of_phase[-1]) if of_phase else {}
    return report


def of_unit(report: Report, unit: str) -> Report:
    """Return a unit's figures, by their names without its own."""
    start = f"{unit}: "
    return {name[len(start) :]: value for name, value in report.items() if name.startswith(start)}


def mapping(session: Session, phase: int, draw: Draw) -> str:
    """Return the section of a map phase."""
    report = last_report(session, phase)
    out = "<h3>Receptive fields</h3>"
    if "fields" not in report:
        return out + "<p>The phase did not come to its end, so that no field was fitted.</p>"
    out += f"<p><b>{counted(int(report['fields']), 'unit has', 'units have')} a receptive field</b>, of "
    out += f"{len(session.units)}. {_placed(report)}"
    if "closer_deg" in report:
        out += f" Smaller squares were shown in the last two thirds, within {report['closer_deg']:.1f} degrees."
    caption = (
        "Receptive fields on the screen: circles of two standard deviations around the fitted centres, crosses are the "
        "centres' 95 % intervals. Grey square: the part that was mapped; green: where later images were to lie."
    )
    out += "</p>" + draw(f"fields_{phase}", fields_figure(session, phase, report), caption)
    rows = []
    for unit in session.units[:MOST_UNITS]:
        one = of_unit(report, unit)
        if "p" not in one:
            rows.append([escape(unit), "not measured", *[""] * 6])
            continue
        there = one.get("field") == 1
        known = there or one.get("unsure") == 1
        where = [_pm(one, name) for name in ("right_deg", "up_deg", "sigma_deg")] if known else ["", "", ""]
        added = [f"{one[name]:.1f}" for name in ("on_hz", "off_hz")] if known else ["", ""]
        verdict = "yes" if there else "no: its place is not known well enough" if known else "no"
        rows.append([escape(unit), verdict, *where, *added, _p(one["p"])])
    head = ["unit", "field", "right, degrees", "up, degrees", "sigma, degrees", "white adds", "black adds", "p"]
    out += as_table(head, rows, frozenset(range(2, 8)))
    return out + (
        "<p>± reaches to the ends of the 95 % interval. White and black: mean "
        f"{escape(session.rate_unit)} that one such square adds anywhere in the field. p: of so clear a field where "
        "there is none, searched for in all places and sizes; a field counts where at most the configured share of "
        "such findings is expected to be false, and where the interval of its centre is not wider"
        f"{_widest(session, phase)}.</p>"
    )


def fields_figure(session: Session, phase: int, report: Report) -> Figure | None:
    """Draw the receptive fields of a map phase on the screen, None where there are none."""
    found = {unit: of_unit(report, unit) for unit in session.units}
    there = {unit: one for unit, one in found.items() if one.get("field") == 1}
    if not there:
        return None
    figure = new_figure(6.2, 6.0)
    axes = figure.subplots()
    settings = session.config["phases"][phase].get("place") or session.config["stimulus"]
    _square(axes, settings["center_deg"], settings["size_deg"], GREY, "-")
    if "image_size_deg" in report:
        center = (report["image_right_deg"], report["image_up_deg"])
        _square(axes, center, report["image_size_deg"], GREEN, "--")
    for unit, one in there.items():
        right, up = one["right_deg"], one["up_deg"]
        axes.add_patch(Circle((right, up), 2 * one["sigma_deg"], fill=False, color=BLUE, alpha=0.6, linewidth=1.2))
        spread = SURE * one["right_sd_deg"], SURE * one["up_sd_deg"]
        axes.errorbar(right, up, xerr=spread[0], yerr=spread[1], color=ORANGE, linewidth=1.4)
        if len(there) <= MOST_NAMED:
            axes.annotate(unit, (right, up), textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.plot(0, 0, "+", color="black", markersize=9)
    axes.set(xlabel="right of the screen's centre, degrees", ylabel="up, degrees", aspect="equal")
    axes.autoscale_view()
    return figure


def best_unit(session: Session, phase: int) -> tuple[Session, str]:
    """Return the session as if a screen phase were about its best unit, and a heading that says so."""
    report = last_report(session, phase)
    name = next((unit for unit in session.units if of_unit(report, unit).get("rank") == 1), None)
    if name is None:
        return session, f"<h3>{escape(session.units[0])}, the first unit</h3>" if session.units else ""
    out = copy.copy(session)
    phases = [dict(one) for one in session.config["phases"]]
    phases[phase] |= {"unit": name}
    out.config = {**session.config, "phases": phases}
    return out, f"<h3>{escape(name)}, the best unit</h3>"


def screening(session: Session, phase: int) -> str:
    """Return the section of a screen phase."""
    report = last_report(session, phase)
    out = "<h3>Screening</h3>"
    if "proposed" not in report:
        return out + "<p>The phase did not come to its end, so that no unit was judged.</p>"
    number = int(report["proposed"])
    out += f"<p><b>{counted(number, 'unit is', 'units are')} proposed</b>, of {len(session.units)}."
    if "window_start_s" in report:
        start, end = report["window_start_s"] * 1e3, report["window_end_s"] * 1e3
        used = [1e3 * t for t in session.window_s(phase) or (0.0, 0.0)]
        out += (
            f" Together they answer from {start:.0f} to {end:.0f} ms after the onset; the responses judged here were "
            f"measured from {used[0]:.0f} to {used[1]:.0f} ms."
        )
        locked = report.get("window_locked") == 1
        out += " Later phases measure in the window found." if locked else " Later phases go on with that window."
    elif session.config["responses"].get("psth") is None:
        out += " No latency was measured: responses.psth asks for no time courses."
    else:
        out += " Their time courses are too noisy to tell when they begin to answer."
    each = [(unit, of_unit(report, unit)) for unit in session.units]
    each.sort(key=lambda one: (one[1].get("rank", np.inf), -one[1].get("reliability", -np.inf)))
    rows = [_screened(unit, one) for unit, one in each[:MOST_UNITS]]
    rates = ["driven", "mean", "blank"]
    head = ["unit", "proposed", "reliability (95 %)", *rates, "sparseness", "latency", "p tuned", "p blank"]
    out += "</p>" + as_table(head, rows, frozenset(range(2, 10)))
    limits = session.config["phases"][phase]
    return out + (
        "<p>Reliability: correlation over images between random halves of the repeats, corrected to all of them "
        "(Spearman and Brown), with a bootstrap interval over images. Driven: "
        f"{escape(session.rate_unit)} above blank to the fifth of the images that drive the unit most, chosen in one "
        "half and measured in the other. p tuned: of all images giving the same; p blank: of images being as blanks. "
        "Latency: begin of the first two bins in which the answer stands out from the noise; with few spikes that is "
        "later than it begins. A rejection says that this screen did not show a unit to be good, not that it is bad. "
        f"Asked for: reliability {limits['least_reliability']:g}, driven "
        f"{limits['least_driven_hz']:g}, at most {limits['chance']:.0%} false ones among the responsive units.</p>"
    ) + watched(session, phase)


def watched(session: Session, phase: int) -> str:
    """Return what references said of the proposed units in the phases after a screen, up to the next screen."""
    agents = [one["agent"] for one in session.config["phases"]]
    end = next((k for k in range(phase + 1, len(agents)) if agents[k] == "screen"), len(agents))
    phases = session.column("model/updates/phase").tolist()
    reports = zip(phases, session.texts("model/updates/report"), strict=True)
    later: list[Report] = [json.loads(text) for number, text in reports if phase < number <= end]
    later = [report for report in later if "watched" in report]
    if not later:
        return ""
    rows = []
    for unit in session.units:
        mine = [of_unit(report, f"watch, {unit}") for report in later]
        mine = [one for one in mine if "gain" in one]
        if not mine:
            continue
        figures = [f"{mine[-1][n]:.2f} ± {SURE * mine[-1][f'{n}_se']:.2f}" if n in mine[-1] else "" for n in WATCHED]
        now = [name[len(CHANGED) :] for name in mine[-1] if name.startswith(CHANGED)]
        ever = {name[len(CHANGED) :] for one in mine for name in one if name.startswith(CHANGED)} - set(now)
        words = "; ".join([*now, *(f"at times {what}" for what in sorted(ever))])
        rows.append([escape(unit), f"<b>{escape(words)}</b>" if words else "as at screening", *figures])
    return (
        "<h4>Are they still what they were?</h4>"
        + as_table(["unit", "at the end", *WATCHED], rows, frozenset(range(2, 2 + len(WATCHED))))
        + "<p>From references that were shown again, relative to their screening (a picture at another place: to its "
        "own first presentations), with 95 % intervals. Gain: of the answers above blank; level: of their mean; "
        "tuning: of the differences between images. Nothing was changed or dropped because of that.</p>"
    )


def _screened(unit: str, one: Report) -> list[str]:
    reasons = [name[len(REJECTED) :] for name in one if name.startswith(REJECTED)]
    if "rank" in one:
        verdict = f"<b>{int(one['rank'])}</b>"
    else:
        verdict = "no: " + escape("; ".join(IN_WORDS.get(r, r) for r in reasons) or "no reason stated")
    reliability = ""
    if "reliability" in one:
        reliability = f"{one['reliability']:.2f}"
        if "reliability_low" in one:
            reliability += f" ({one['reliability_low']:.2f} to {one['reliability_high']:.2f})"
    rates = [f"{one[name]:.1f}" if name in one else "" for name in ("driven_hz", "mean_hz", "blank_hz")]
    sparse = f"{one['sparseness']:.2f}" if "sparseness" in one else ""
    latency = f"{one['latency_s'] * 1e3:.0f} ms" if "latency_s" in one else ""
    chances = [_p(one[name]) if name in one else "" for name in ("p_tuned", "p_blank")]
    return [escape(unit), verdict, reliability, *rates, sparse, latency, *chances]


def _placed(report: Report) -> str:
    if "image_size_deg" not in report:
        return "No place for images follows from that."
    words = (
        f"Images of {report['image_size_deg']:.1f} degrees at ({report['image_right_deg']:.1f}, "
        f"{report['image_up_deg']:.1f}) suit them"
    )
    if report.get("image_shrunk_deg"):
        words += f", {report['image_shrunk_deg']:.1f} degrees smaller than asked for, to fit into the screen"
    if report.get("image_moved_deg"):
        words += f", moved by {report['image_moved_deg']:.1f} degrees for that"
    return words + "."


def _square(axes: Axes, center: tuple[float, float], size: float, colour: str, style: str) -> None:
    corner = (center[0] - size / 2, center[1] - size / 2)
    patch = Rectangle(corner, size, size, fill=False, edgecolor=colour, linestyle=style, linewidth=1.4)
    axes.add_patch(patch)


def _widest(session: Session, phase: int) -> str:
    """Return how wide an interval of a field's centre may be; older configs do not say."""
    widest = session.config["phases"][phase].get("widest_interval")
    return " than asked for" if widest is None else f" to each side than {widest:g} diameters (4 sigma) of the field"


def _pm(one: Report, name: str) -> str:
    spread = one.get(name.replace("_deg", "_sd_deg"))
    return f"{one[name]:.2f}" + ("" if spread is None else f" ± {SURE * spread:.2f}")


def _p(value: float) -> str:
    return "&lt; 0.0001" if value < 1e-4 else f"{value:.4f}"
