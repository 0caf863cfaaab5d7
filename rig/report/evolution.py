"""An evolution's part of the report: its curve, its best images, and the pictures that a confirmation compared.

Each function draws one figure of a session (of `rig.report.targets`, where there are several targets), or returns None
where there is nothing to draw. Used by the page and by `rig.report.confirmation`. What is best follows
`Session.aim`: the highest rate, or the lowest where a unit is suppressed; rates are drawn as the neurons gave them.
"""

import textwrap
from collections.abc import Callable, Sequence
from html import escape

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rig.confirmation import Repeats
from rig.report.data import Session
from rig.report.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    best_stimulus,
    draw_picture,
    mean_sem,
    new_figure,
)

STRIP = 10  # generations whose best image is shown
COLUMNS = 6
TITLE_LINE_IN = 0.18  # height of a line above a picture, inches
RUNNING = 5  # generations of the running mean over re-shows, where there are twice as many
LABEL_LETTERS = 36  # of an axis label, in a line
COLOUR_OF = {"evolved": ORANGE, "reference": GREEN, "start": BLUE}
NAME_OF = {"evolved": "evolved", "reference": "reference", "start": "first generation"}
MOST_PICTURES = 8
Draw = Callable[[str, Figure | None, str], str]


def subtracted(session: Session) -> str:
    """Return what rates are counted from: " above baseline", or nothing where none is subtracted."""
    kind = session.config.get("responses", {}).get("baseline", {}).get("kind", "block")
    return "" if kind == "none" else " above baseline"


def _with_unit(session: Session, rate: float) -> str:
    """Return a rate with its unit, with as many digits as mean something."""
    return f"{rate:.0f} {session.rate_unit}" if session.rate_unit == "spikes/s" else f"{rate:.2f} {session.rate_unit}"


def curve(session: Session, phase: int, restarts: Sequence[float] = ()) -> Figure | None:
    """Draw rate against generation (from 1): candidates, re-shows of the best, references, blanks; and `restarts`."""
    unit = session.unit_of(phase)
    if not len(session.rates(unit, phase=phase)):
        return None
    figure = new_figure(8.5, 4.4)
    axes = figure.subplots()
    here = session.usable & (session.phase == phase) & np.isfinite(session.rate_hz[:, unit])
    _line(axes, session, here & (session.role == "candidate"), unit, "candidates, mean ± s.e.m.", BLUE, "o")
    _reshows(axes, session, here & (session.role == "reshow"), unit)
    _line(axes, session, here & (session.role == "reference"), unit, "reference images, mean ± s.e.m.", GREEN, "^")
    best = best_stimulus(session, phase, unit, "reference")
    if best is not None:
        axes.axhline(best[1], color=GREEN, linestyle="--", label="best reference image, mean")
    blank = session.rates(unit, phase=phase, role="blank")
    if len(blank):
        axes.axhline(float(np.mean(blank)), color=GREY, linestyle=":", label=f"blank screen, mean of {len(blank)}")
    axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    for k, at in enumerate(restarts):
        axes.axvline(at, color=PINK, linestyle="-.", linewidth=1.2, label="restart or resume" if not k else None)
    axes.set_xlabel("generation")
    _rate_label(axes, session, session.units[unit])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _rate_label(axes: Axes, session: Session, name: str) -> None:
    axes.set_ylabel(textwrap.fill(f"{name}{subtracted(session)}", LABEL_LETTERS) + f"\n({session.rate_unit})")


def _line(
    axes: Axes, session: Session, chosen: npt.NDArray[np.bool_], unit: int, label: str, colour: str, marker: str
) -> None:
    generations = np.unique(session.generation[chosen & (session.generation >= 0)])
    if not len(generations):
        return
    rows = [mean_sem(session.rate_hz[chosen & (session.generation == g), unit]) for g in generations]
    mean, sem = np.array(rows).T
    axes.plot(generations + 1, mean, color=colour, marker=marker, markersize=4.5, label=label)
    axes.fill_between(generations + 1, mean - sem, mean + sem, color=colour, alpha=0.18, linewidth=0)


def _reshows(axes: Axes, session: Session, chosen: npt.NDArray[np.bool_], unit: int) -> None:
    """Draw the re-shows at the generation that made the image: few in each, so every one, and a running mean."""
    if not chosen.any():
        return
    made = session.made_in_generation()[chosen]
    rates = session.rate_hz[chosen, unit]
    axes.plot(made + 1, rates, "s", color=ORANGE, markersize=4, fillstyle="none", markeredgewidth=0.9, alpha=0.8)
    generations = np.unique(made)
    over = RUNNING if len(generations) >= 2 * RUNNING else 1  # over few, a running mean would hide all of the climb
    mean = [float(np.mean(rates[np.abs(made - g) <= over // 2])) for g in generations]
    label = "best of its generation again" + (f" (line: mean of {over})" if over > 1 else "")
    axes.plot(generations + 1, mean, color=ORANGE, label=label)


def strip(session: Session, phase: int) -> list[tuple[str, str]]:
    """Return image and caption of the best of up to ten generations and of the best reference; [] without any."""
    unit = session.unit_of(phase)
    here = session.usable & (session.phase == phase) & (session.role == "candidate")
    here &= np.isfinite(session.rate_hz[:, unit])
    generations = np.unique(session.generation[here])
    if not len(generations):
        return []
    picked = generations[np.unique(np.linspace(0, len(generations) - 1, STRIP).round().astype(int))]
    shown: list[tuple[str, str]] = []
    for g in picked:
        rows = np.flatnonzero(here & (session.generation == g))
        top = rows[np.argmax(session.aim * session.rate_hz[rows, unit])]
        name = str(session.stimulus_id[top])
        again = session.rates(unit, phase=phase, role="reshow", stimulus=name)
        text = f"generation {g + 1}\nonce {_with_unit(session, session.rate_hz[top, unit])}"
        repeated = f"\nagain {_with_unit(session, float(np.mean(again)))}\n(n={len(again)})" if len(again) else ""
        shown.append((name, text + repeated))
    best = best_stimulus(session, phase, unit, "reference")
    if best is not None:
        count = len(session.rates(unit, phase=phase, role="reference", stimulus=best[0]))
        shown.append((best[0], f"best reference\n{_with_unit(session, best[1])}\nmean of {count}"))
    return shown


def best_images(session: Session, phase: int) -> Figure | None:
    """Draw the best image of up to ten generations, and the best reference, with their rates."""
    shown = strip(session, phase)
    if not shown:
        return None
    rows_ = -(-len(shown) // COLUMNS)
    lines = [max(text.count("\n") + 1 for _, text in shown[k : k + COLUMNS]) for k in range(0, len(shown), COLUMNS)]
    figure = new_figure(8.5, sum(8.5 / COLUMNS + TITLE_LINE_IN * (n + 1) for n in lines))
    grid = figure.subplots(rows_, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (name, text) in zip(grid, shown, strict=False):
        draw_picture(axes, session, name)
        axes.set_title(text, fontsize=8.5, fontweight="normal", loc="center")
    return figure


# --- the confirmation -------------------------------------------------------------------------------------------------


def compared(session: Session, title: str, shown: Sequence[Repeats], blank: float) -> Figure:
    """Draw the images of one target that a confirmation compared, and below each the rates of its repeats.

    `shown` holds them in the order in which they were fixed, the one that a claim is about first; `blank` is the mean
    on blank screens, NaN without any.
    """
    ordered = [one for source in NAME_OF for one in shown if one.source == source][:MOST_PICTURES]
    figure = new_figure(min(8.5, 1.5 + 1.75 * len(ordered)), 4.3)
    grid = figure.add_gridspec(2, len(ordered), height_ratios=[1, 1.7])
    rates = figure.add_subplot(grid[1, :])
    for k, one in enumerate(ordered):
        picture = figure.add_subplot(grid[0, k])
        draw_picture(picture, session, one.stimulus_id)
        place = 1 + sum(other.source == one.source for other in ordered[:k])
        number = "" if place == 1 else f", no. {place}"
        picture.set_title(NAME_OF[one.source] + number, fontsize=9.5, fontweight="normal", loc="center")
        colour = COLOUR_OF[one.source]
        beside = k + 0.12 + 0.3 * (np.arange(len(one.scores)) / max(len(one.scores) - 1, 1))
        rates.plot(beside, one.scores, ".", color=colour, markersize=5, alpha=0.55)
        if len(one.scores):
            error = one.error if np.isfinite(one.error) else None
            rates.errorbar([k - 0.08], [one.mean], yerr=error, color=colour, marker="o", markersize=6, capsize=4)
    rates.set_xlim(-0.5, len(ordered) - 0.5)
    rates.set_xticks(range(len(ordered)), [f"n = {len(one.scores)}" for one in ordered])
    if np.isfinite(blank):
        rates.axhline(blank, color=GREY, linestyle=":", label="blank screen, mean")
        rates.legend(loc="best", fontsize=9)
    rates.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    rates.tick_params(axis="x", length=0, colors=BLACK)
    _rate_label(rates, session, title)
    return figure


# --- words ------------------------------------------------------------------------------------------------------------


def section(
    part: str, title: str, session: Session, phase: int, draw: Draw, restarts: Sequence[float], before: str
) -> str:
    """Return the HTML on one target, of `session` about it alone; figures are named by `part` (`each_target`).

    `draw` makes a figure with name and caption; `before` stands before every caption.
    """
    drawn = draw(
        f"evolution_{phase}{part}",
        curve(session, phase, restarts),
        f"{before}Rates in the response window{subtracted(session)}. Bands are the standard error over presentations. "
        "The score by which an image was chosen overrates it; its fresh re-shows (open squares, drawn at the "
        "generation that made the image) do not. The best reference was chosen by the mean that is drawn.",
    )
    pictures = draw(
        f"best_images_{phase}{part}",
        best_images(session, phase),
        f"{before}Best image of its generation as it was drawn. Once: the best single score of its generation, by "
        "which it was chosen, luck included; again: the mean of its re-shows. Last: the reference image with the best "
        "mean.",
    )
    return (f"<h3>{escape(title)}</h3>" if title else "") + about(session, phase) + drawn + pictures


def claimed(session: Session, phase: int) -> str:
    """Say where the claim about an evolution's images stands: never in the evolution itself."""
    later = [p for p, agent in session.agents.items() if agent == "confirm" and p > phase]
    if later:
        return (
            "<p>What is drawn here chose the images, so it proves nothing of them. What is claimed, from fresh "
            f'repeats: <a href="#phase-{later[0] + 1}">phase {later[0] + 1}, confirmation</a>.</p>'
        )
    return (
        "<p><b>Nothing is claimed of these images:</b> what is drawn here chose them, and no confirmation phase "
        "showed them again beside the best references (docs/evolve.md).</p>"
    )


def about(session: Session, phase: int) -> str:
    """Say what evolved how: optimiser, generator, where and how large the images were, what was aimed at."""
    said = session.config["phases"][phase]
    here = (session.phase == phase) & (session.role == "candidate") & session.usable
    if not here.any():
        return ""
    generations = np.unique(session.generation[here])
    each = round(float(np.mean([(here & (session.generation == g)).sum() for g in generations])))
    words = [
        f"{escape(str(said.get('optimiser', {}).get('type', '?')))} through "
        f"{escape(str(said.get('generator', {}).get('type', '?')))}",
        f"{len(generations)} generations of about {each} images",
    ]
    right, up, size = session.place[np.flatnonzero(here)[0]]
    if not np.isfinite(size):
        stimulus = session.config.get("stimulus", {})
        size, (right, up) = stimulus.get("size_deg", np.nan), stimulus.get("center_deg", (0.0, 0.0))
    if np.isfinite(size):
        words.append(f"images of {size:g} degrees at ({right:g}, {up:g})")
    start = said.get("start") or {}
    if start.get("type") == "natural":
        words.append("begun with natural images as codes")
    elif start.get("type") == "saved":
        words.append(f"begun with codes of {escape(str(start.get('session', 'another session')))}")
    words.append("<b>the lower the better: it was suppressed</b>" if session.aim < 0 else "the higher the better")
    return f'<p class="facts">{"; ".join(words)}.</p>'
