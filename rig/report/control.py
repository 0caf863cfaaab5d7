"""The section of a control phase: the model, the images made for each goal beside natural ones, and what they did.

Tests and scores are those that the agent stated when the phase ended (table model/updates); z-scored responses are made
anew from the presentations shown back (role "confirmation"). Used by `rig.report.page`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rig.report import learning
from rig.report.confirmation import fixed
from rig.report.data import Session
from rig.report.figures import BLACK, BLUE, GREEN, GREY, ORANGE, draw_picture, mean_sem, new_figure
from rig.report.first_minutes import Report, last_report, of_unit
from rig.report.html import as_table, counted

F64 = npt.NDArray[np.float64]
Draw = Callable[[str, Figure | None, str], str]  # name of the file, figure, caption -> HTML

KINDS = {"stretch": "Stretch", "one_hot": "One-hot", "target": "Target vectors"}
SCORES = {"stretch": "z-scored response", "one_hot": "softmax score", "target": "minus the RMS distance"}
FIRST = "1"
NATURAL = {"natural": "best natural, measured", "predicted": "best natural, predicted"}
COLOURS = {FIRST: BLUE, "natural": GREEN, "predicted": ORANGE}
MARKERS = {FIRST: "o", "natural": "s", "predicted": "^"}
MOST_GOALS = 24  # of each kind that are drawn
PUBLISHED = (
    "Bashivan et al. (2019) report about 70 % of V4 sites, beside natural images that had been shown many times each"
)


@dataclass(frozen=True)
class Goal:
    """One goal of the phase."""

    kind: str
    name: str
    sites: tuple[str, ...]
    images: dict[str, str]
    """Which image ("1", "2", ..., "natural", "predicted"): its stimulus."""

    @property
    def title(self) -> str:
        """Its name in the log."""
        return f"{self.kind} {self.name}"


def section(session: Session, phase: int, draw: Draw) -> str:
    """Return the section's HTML."""
    report = last_report(session, phase)
    out = learning.section(session, phase, report, draw)
    every = goals(session, phase, report)
    if not every:
        return out + "<p>No image was shown back.</p>"
    out += "<h3>Control of the population</h3>" + _how(every)
    for kind, title in KINDS.items():
        mine = [goal for goal in every if goal.kind == kind]
        if mine:
            out += f"<h4>{title}</h4>" + _verdict(kind, report, session.config["phases"][phase]["chance"])
            if kind == "target":
                out += _asked(mine, report, session.config["phases"][phase]["targets"])
            out += _figures(session, phase, report, mine, draw)
            out += _table(report, mine)
    return out


def goals(session: Session, phase: int, report: Report) -> list[Goal]:
    """Return the goals whose images were shown back, in the order of the log."""
    chosen = tuple(learning.chosen(session, report))
    images: dict[str, dict[str, str]] = {}
    for title, which, stimulus in fixed(session, phase):
        images.setdefault(title, {})[which] = stimulus
    out = []
    for title, of in images.items():
        kind, _, name = title.partition(" ")
        targets = session.config["phases"][phase]["targets"]
        sites = {"stretch": (name,), "one_hot": chosen}.get(kind) or tuple(targets[name])
        out.append(Goal(kind, name, sites, of))
    return out


def responses(session: Session, phase: int, report: Report, goal: Goal, which: str) -> tuple[F64, F64]:
    """Return mean and standard error (site,) of the z-scored responses to an image of a goal, from fresh repeats."""
    out = np.full((2, len(goal.sites)), np.nan)
    for k, site in enumerate(goal.sites):
        if which in goal.images and f"{site}: natural_sd" in report and site in session.units:
            rates = session.rates(
                session.units.index(site), phase=phase, role="confirmation", stimulus=goal.images[which]
            )
            mean, error = mean_sem(rates)
            sd = report[f"{site}: natural_sd"]
            out[:, k] = (mean - report[f"{site}: natural_mean"]) / sd, error / sd
    return out[0], out[1]


# --- words ------------------------------------------------------------------------------------------------------------


def _how(every: list[Goal]) -> str:
    made = sum(which not in NATURAL for goal in every for which in goal.images)
    return (
        f"<p>{counted(made, 'image')} made for {counted(len(every), 'goal')}; beside those of each goal two natural "
        "images, shown exactly as before: the best one by everything that was measured, and the one that the model "
        "predicts to be best. All were fixed before the comparison, so that scores rest on fresh interleaved repeats "
        "alone, and the choice of the natural ones is cross-validated. Responses are z-scored by mean and sd of the "
        "site's mean responses to held-out natural images.</p>"
    )


def _of(report: Report, name: str, count: int) -> str:
    """Say a share of `count` goals with its interval."""
    if name not in report:
        return "not known"
    share, low, high = (report[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"<b>{round(share * count)} of {count}, {share:.0%}</b> (95 % interval {low:.0%} to {high:.0%})"


def _verdict(kind: str, report: Report, chance: float) -> str:
    """Say in how many goals the images made did more than natural ones."""
    if f"{kind}_above_natural" not in report:
        return "<p>The phase did not come to its end, so that nothing was tested.</p>"
    count = int(report[f"{kind}_goals"])
    said = {
        "stretch": "Sites driven above the best natural image (cross-validated): ",
        "one_hot": "Sites with a higher softmax score than the best natural image (cross-validated) gave: ",
        "target": "Vectors that came nearer than with the best natural image (cross-validated): ",
    }[kind] + _of(report, f"{kind}_above_natural", count)
    if f"{kind}_above_both" in report:
        said += "; above both that one and the one that the model predicts to be best: "
        said += _of(report, f"{kind}_above_both", count)
    said += f". {PUBLISHED}." if kind == "stretch" else "."
    rows = []
    for name, label in (*NATURAL.items(), ("both", "both of them"), ("best", "best against best, by halves")):
        sure = [f"{kind}_{how}_{name}" for how in ("better", "worse")]
        medians = {"best": (f"{kind}_best_made", f"{kind}_best_natural")}.get(name, (f"{kind}_made", f"{kind}_{name}"))
        rows.append(
            [label, _of(report, f"{kind}_above_{name}", count)]
            + [f"{round(report[one] * count)}" if one in report else "" for one in sure]
            + [f"{report[one]:.2f}" if one in report else "" for one in medians]
        )
    head = ["made against", "higher", "surely higher", "surely lower"]
    head += [f"median {SCORES[kind]}, made", "natural"]
    return (
        f"<p>{said}</p>{as_table(head, rows, frozenset({2, 3, 4, 5}))}<p>Of the images made the one counts that the "
        f"model put first. Surely: q at most {chance:g}, from paired repeats under random swaps within pairs, "
        "corrected over all goals (Benjamini and Hochberg). By halves: of all images made and of both natural ones the "
        "best was chosen by half of the fresh repeats and scored by the other.</p>"
    )


def seen(report: Report, site: str) -> tuple[float, float]:
    """Return the lowest and highest z-scored mean response of a site to held-out natural images; NaN if not stated."""
    mean, sd, low, high = (report.get(f"{site}: natural_{what}", np.nan) for what in ("mean", "sd", "low", "high"))
    return (low - mean) / sd, (high - mean) / sd


def _asked(mine: list[Goal], report: Report, targets: dict[str, dict[str, float]]) -> str:
    """Say which responses were asked for that no held-out natural image gave."""
    said = []
    for goal in mine:
        for site, wanted in targets[goal.name].items():
            low, high = seen(report, site)
            if wanted < low or wanted > high:
                ends = f"between {low:.1f} and {high:.1f}"
                said.append(f"<li>{escape(goal.name)}: {wanted:g} of {escape(site)}, which had {ends}</li>")
    if not said:
        return ""
    return (
        "<p>Responses that were asked for and that no held-out natural image gave, so that the model was not fitted to "
        f"such (and an image that gives them need not exist):</p><ul>{''.join(said)}</ul>"
    )


def _table(report: Report, mine: list[Goal]) -> str:
    rows = []
    for goal in mine:
        one = of_unit(report, goal.title)
        cells = [escape(goal.name)]
        cells += [f"{one[w]:.2f} ± {one.get(f'{w}_se', np.nan):.2f}" if w in one else "" for w in (FIRST, *NATURAL)]
        for name in NATURAL:
            there = f"less_{name}" in one
            interval = f" ({one.get(f'low_{name}', np.nan):+.2f} to {one.get(f'high_{name}', np.nan):+.2f})"
            q = f"{one[f'q_{name}']:.2g}" if f"q_{name}" in one else ""
            cells += [f"{one[f'less_{name}']:+.2f}{interval}" if there else "", q]
        cells += [f"{one[name]:.2f}" if name in one else "" for name in ("best_made", "best_natural", "halves_natural")]
        rows.append(cells)
    head = ["goal", "made", *NATURAL.values(), "made less measured (95 %)", "q", "made less predicted (95 %)", "q"]
    head += ["best made", "best natural", "best held-out"]
    table = as_table(head, rows, frozenset(range(1, len(head))))
    return (
        f"<details><summary>All {counted(len(mine), 'goal')}: {SCORES[mine[0].kind]}</summary>{table}<p>± standard "
        "error (jackknife over repeats). Best made, best natural: chosen by half of the fresh repeats, scored by the "
        "other. Best held-out: the held-out natural image that was best in half of its repeats during the natural "
        "images, its score from the other half, mean over random halves.</p></details>"
    )


# --- figures ----------------------------------------------------------------------------------------------------------


def _figures(session: Session, phase: int, report: Report, mine: list[Goal], draw: Draw) -> str:
    kind = mine[0].kind
    out = draw(
        f"{kind}_scores_{phase}",
        scores(report, mine),
        f"{SCORES[kind][0].upper()}{SCORES[kind][1:]} of each goal, fresh repeats: blue, the image that the model puts "
        "first, with standard error (light: the other images made); green, the best natural image as measured before; "
        "orange, the natural image that the model predicts to be best. Goals in the order of the model's scores."
        + (" Dashed: all sites of the set alike." if kind == "one_hot" else ""),
    )
    shown = {
        "stretch": "the site's z-scored response to each image, mean and standard error.",
        "one_hot": "z-scored responses of all sites of the set, the goal's site filled: it should be high and all "
        "others low.",
        "target": "z-scored responses of its units; crosses: the vector that was asked for; grey: from the lowest to "
        "the highest mean response to a held-out natural image.",
    }[kind]
    out += draw(
        f"{kind}_images_{phase}",
        gallery(session, phase, report, mine),
        f"For each goal the images made (the model's favourite first) and the natural ones; under each its "
        f"{SCORES[kind]}. Right: {shown} Blue made, green and orange natural, as above.",
    )
    if kind == "one_hot":
        out += draw(
            f"{kind}_population_{phase}",
            population(session, phase, report, mine),
            "Z-scored response of each site (column) to the image for each goal (row); the goal's own site is on the "
            "diagonal. Left: images made; right: for the same goals the better of the two natural images.",
        )
    return out


def scores(report: Report, mine: list[Goal]) -> Figure:
    """Draw the score of every image of every goal."""
    mine = mine[: 2 * MOST_GOALS]
    figure = new_figure(min(11.0, max(6.6, 2.2 + 0.45 * len(mine))), 3.6)
    axes = figure.subplots()
    for k, goal in enumerate(mine):
        one = of_unit(report, goal.title)
        others = [one[which] for which in goal.images if which not in (FIRST, *NATURAL) and which in one]
        axes.plot([k - 0.18] * len(others), others, "o", color=BLUE, alpha=0.35, markersize=3.5)
        for which, right in ((FIRST, -0.18), ("natural", 0.08), ("predicted", 0.26)):
            if which in one:
                error, colour = one.get(f"{which}_se", 0.0), COLOURS[which]
                axes.errorbar(k + right, one[which], yerr=error, fmt=MARKERS[which], color=colour, markersize=5)
    handles = [axes.plot([], [], MARKERS[which], color=colour)[0] for which, colour in COLOURS.items()]
    axes.legend(handles, ["made", *NATURAL.values()], loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    axes.axhline(0, color=BLACK, linewidth=0.6)
    if mine[0].kind == "one_hot":
        axes.axhline(1 / len(mine[0].sites), color=GREY, linestyle="--", linewidth=1)
    axes.set(ylabel=SCORES[mine[0].kind], xlim=(-0.6, len(mine) - 0.4))
    axes.set_xticks(range(len(mine)), [goal.name for goal in mine], rotation=45, ha="right", fontsize=9)
    return figure


def gallery(session: Session, phase: int, report: Report, mine: list[Goal]) -> Figure:
    """Draw the images of each goal in a row, and what they did at its end."""
    mine = mine[:MOST_GOALS]
    which = [w for w in dict.fromkeys(w for goal in mine for w in goal.images) if w not in NATURAL]
    which += list(NATURAL)
    widths = [1.0] * len(which) + [2.4]
    figure = new_figure(1.25 * (len(which) + 2.6), 1.62 * len(mine) + 0.8)
    grid = figure.subplots(len(mine), len(widths), squeeze=False, width_ratios=widths)
    for row, goal in zip(grid, mine, strict=True):
        one = of_unit(report, goal.title)
        for axes, name in zip(row, which, strict=False):
            axes.set_axis_off()
            if name in goal.images:
                draw_picture(axes, session, goal.images[name])
                colour = COLOURS.get(name, BLUE)
                axes.text(0.5, -0.04, f"{one.get(name, np.nan):.2f}", transform=axes.transAxes, ha="center", va="top",
                          fontsize=9, color=colour, weight="bold" if name in COLOURS else "normal")  # fmt: skip
            if axes in grid[0]:
                axes.set_title(NATURAL[name].replace(", ", ",\n") if name in NATURAL else f"made {name}", fontsize=8)
        row[0].text(-0.08, 0.5, goal.name, transform=row[0].transAxes, ha="right", va="center", fontsize=9, rotation=90)
        _beside(row[-1], session, phase, report, goal, which)
    return figure


def _beside(axes: Axes, session: Session, phase: int, report: Report, goal: Goal, which: list[str]) -> None:
    """Draw the z-scored responses of a goal's sites."""
    axes.axhline(0, color=BLACK, linewidth=0.6)
    axes.tick_params(labelsize=7)
    axes.set_ylabel("z", fontsize=8)
    if goal.kind == "stretch":
        for k, name in enumerate(which):
            mean, error = responses(session, phase, report, goal, name)
            axes.bar(k, mean[0], yerr=error[0], color=COLOURS.get(name, BLUE), alpha=1.0 if name in COLOURS else 0.45)
        axes.set_xticks(range(len(which)), [NATURAL.get(w, w).split(", ")[-1] for w in which], fontsize=6)
        return
    at = goal.sites.index(goal.name) if goal.name in goal.sites else -1
    for name, right in ((FIRST, -0.2), ("natural", 0.05), ("predicted", 0.25)):
        mean, error = responses(session, phase, report, goal, name)
        x = np.arange(len(goal.sites)) + right
        colour, marker = COLOURS[name], MARKERS[name]
        axes.errorbar(x, mean, yerr=error, fmt=marker, color=colour, markersize=3, markerfacecolor="white")
        if at >= 0:
            axes.plot(x[at], mean[at], marker, color=colour, markersize=5)
    if goal.kind == "target":
        wanted = session.config["phases"][phase]["targets"][goal.name]
        for k, site in enumerate(goal.sites):
            axes.plot([k, k], seen(report, site), color=GREY, alpha=0.35, linewidth=9, solid_capstyle="butt", zorder=0)
        axes.plot(range(len(goal.sites)), [wanted[site] for site in goal.sites], "x", color=BLACK, markersize=7)
    axes.set_xticks(range(len(goal.sites)), goal.sites, fontsize=6, rotation=90)
    if at >= 0:
        axes.axvspan(at - 0.5, at + 0.5, color=GREY, alpha=0.15, linewidth=0)


def population(session: Session, phase: int, report: Report, mine: list[Goal]) -> Figure:
    """Draw the response of every site to the image for every site: images made, and natural ones."""
    mine = mine[: 2 * MOST_GOALS]
    figures = [of_unit(report, goal.title) for goal in mine]
    better = [max(NATURAL, key=lambda name: one.get(name, -np.inf)) for one in figures]
    z = [
        np.array([responses(session, phase, report, goal, which)[0] for goal, which in zip(mine, of, strict=True)])
        for of in ([FIRST] * len(mine), better)
    ]
    most = max(1.0, *(float(np.nanmax(np.abs(one))) for one in z if np.isfinite(one).any()))
    side = min(5.0, 2.6 + 0.2 * len(mine))
    figure = new_figure(2 * side + 1.0, side + 0.4)
    pair = figure.subplots(1, 2, sharey=True)
    for axes, one, title in zip(pair, z, ("images made", "natural images"), strict=True):
        drawn = axes.imshow(one, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest", aspect="auto")
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(mine[0].sites)), mine[0].sites, rotation=90, fontsize=7)
        axes.set_yticks(range(len(mine)), [goal.name for goal in mine], fontsize=7)
        axes.set_xlabel("response of")
    pair[0].set_ylabel("image for")
    figure.colorbar(drawn, ax=pair, label="z")
    return figure
