"""The part of an inception phase's section that asks what kind of model it was (Walker et al. 2019), and of contrast.

Figures are those that the agent stated (`models.inception.checks`, docs/inception.md); spatial frequencies are computed
here from the displayed frames. Used by `rig.report.inception`.
"""

from collections.abc import Callable, Sequence
from html import escape

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rig.report.data import Session
from rig.report.figures import BLACK, BLUE, GREEN, GREY, ORANGE, mean_sem, new_figure
from rig.report.first_minutes import SURE, Report, of_unit
from rig.report.html import as_table, estimate

F64 = npt.NDArray[np.float64]
Draw = Callable[[str, Figure | None, str], str]  # name of the file, figure, caption -> HTML
Images = dict[str, dict[str, str]]  # unit, kind -> stimulus

MEI, LINEAR, NATURAL = "mei", "linear", "natural"
AT = "_at_"  # in the kind of an image that is another one at a contrast of its own
PREDICTED_AT = "predicted_at_"
EIGENVALUES = 10
COLUMNS = 4  # units beside each other
MOST_UNITS = 24  # that have a panel of their own
NEARLY_ALL = 0.995  # of the summed amplitude: frequencies beyond are not drawn
NAMES = {
    "eigenvalue_1": "first eigenvalue", "eigenvalue_2": "second", "dimensions": "directions",
    "encoder_r": "held-out r, model", "linear_r": "linear", "linearised_r": "linearised",
    "linear_alike": "likeness of both", "filter_mei": "most exciting image as filter",
    "filter_linear": "linear field as filter",
}  # fmt: skip


def section(session: Session, phase: int, images: Images, report: Report, draw: Draw) -> str:
    """Return the HTML of both parts; "" where no unit has a figure of them."""
    known = {unit: of_unit(report, unit) for unit in images}
    known = {unit: one for unit, one in known.items() if "dimensions" in one or curve(one)[0].size}
    if not known:
        return ""
    contrast = draw(
        f"contrast_{phase}",
        contrasts(session, phase, images, known),
        "Line: the model's response to the most exciting image at all RMS contrasts that the screen can give it, each "
        f"after 8 bit. Points: fresh repeats, mean and 95 % interval, {session.rate_unit}.",
    )
    out = f"<h3>Contrast</h3>{contrast}" if contrast else ""
    out += "<h3>What kind of model</h3>" + _words(known)
    out += draw(
        f"model_{phase}",
        kind_of_model(known),
        "Left: eigenvalues of the gradients of the response with respect to natural images, over the largest one; a "
        "linear model has one. Middle: correlation with the mean responses to held-out images, of the model and of the "
        "linear models, 95 % intervals. Right: rank correlation of the output of the linear receptive field, and of "
        "the most exciting image, used as a linear filter, with those means. Thin lines and points: single units.",
    )
    out += draw(
        f"frequencies_{phase}",
        frequencies(session, phase, images),
        "Amplitude spectra of most exciting images and linear receptive fields as they were displayed, under a Hamming "
        "window, all of one RMS contrast. Left: mean over directions; thin: single units. Right: their difference, "
        "mean over units; red: more in the most exciting images. The linear model sees luminance blurred by 1.5 of 32 "
        "pixels and can have no finer detail: a difference up there is no finding.",
    )
    rows = [[escape(unit), *(estimate(one, name) for name in NAMES)] for unit, one in known.items()]
    table = as_table(["unit", *NAMES.values()], rows, frozenset(range(1, 1 + len(NAMES))))
    return out + (
        f"<details><summary>All figures of the models</summary>{table}<p>Eigenvalues: shares of the sum of all; "
        "directions: 1 over the sum of their squares. Held-out r with 95 % intervals, all three by the same responses: "
        "those that came while images were made are among them, unlike in the score above. Likeness: correlation "
        "of the receptive fields of both linear models. Filters: rank correlations.</p></details>"
    )


def _words(known: dict[str, Report]) -> str:
    """Return what the checks say, in sentences."""
    words = []
    ratio = [one["eigenvalue_2"] / one["eigenvalue_1"] for one in known.values() if one.get("eigenvalue_1", 0.0) > 0]
    if ratio:
        words.append(
            f"The second eigenvalue of the gradients is {np.median(ratio):.2f} of the first (median; {min(ratio):.2f} "
            f"to {max(ratio):.2f}): 0 for a linear model, 1 for the energy of a quadrature pair. What follows behind "
            "them are further nonlinearities, and the noise of the fit."
        )
    both = [one for one in known.values() if "linear_r" in one and "encoder_r" in one]
    if both:
        more = sum(one["encoder_r"] > one["linear_r"] for one in both)
        words.append(
            f"It predicts held-out images better than a linear model in {more} of {len(both)} units; these were chosen "
            "for being predicted well by it, by responses to the same images, which favours it."
        )
    filters = [one for one in known.values() if "filter_mei" in one and "filter_linear" in one]
    if filters:
        worse = sum(one["filter_linear"] > one["filter_mei"] for one in filters)
        words.append(
            f"As linear filters the linear receptive fields predict better than the most exciting images in {worse} of "
            f"{len(filters)} units: where they do, an image that drives a unit more is no better filter."
        )
    alike = [one["linear_alike"] for one in known.values() if "linear_alike" in one]
    if alike:
        words.append(
            "The receptive field of the linearised model (a linear model fitted to the model's predictions) correlates "
            f"with that fitted to the responses with {np.median(alike):.2f} (median)."
        )
    return f"<p>{' '.join(words)}</p>"


# --- contrast ---------------------------------------------------------------------------------------------------------


def curve(one: Report) -> tuple[F64, F64]:
    """Return the contrasts (k,), rising, and the rates (k,) predicted at them, of a unit's figures."""
    found = sorted((float(n[len(PREDICTED_AT) :]), rate) for n, rate in one.items() if n.startswith(PREDICTED_AT))
    pairs = np.array(found).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def contrasts(session: Session, phase: int, images: Images, known: dict[str, Report]) -> Figure | None:
    """Draw the model's response over contrast for each unit, and what was measured."""
    units = [unit for unit, one in known.items() if curve(one)[0].size][:MOST_UNITS]
    if not units:
        return None
    figure, grid = panels(len(units))
    for axes, unit in zip(grid, units, strict=True):
        contrast, rate = curve(known[unit])
        axes.plot(contrast, rate, color=BLUE, label="model, most exciting image")
        for kind, colour, marker, name in ((MEI, BLUE, "o", "most exciting"), (NATURAL, ORANGE, "s", "best natural")):
            shown = measured(session, phase, unit, images[unit], kind, known[unit].get("contrast", np.nan))
            if len(shown):
                axes.errorbar(
                    shown[:, 0], shown[:, 1], SURE * shown[:, 2], color=colour, marker=marker, markersize=4.5,
                    linestyle=":" if len(shown) > 1 else "none", linewidth=1.2, label=f"{name}, measured",
                )  # fmt: skip
        axes.set_title(unit, fontsize=10)
        axes.set_xscale("log")
        axes.set_xlabel("RMS contrast", fontsize=10)
        axes.xaxis.set_major_formatter("{x:g}")
    label_rows(grid, f"response ({session.rate_unit})")
    _legend(figure, grid)
    return figure


def measured(
    session: Session, phase: int, unit: str, kinds: dict[str, str], kind: str, contrast: float
) -> F64:
    """Return what a unit did to an image at each contrast it was shown at: (k, contrast, mean and standard error)."""
    rows = []
    for name, stimulus in kinds.items():
        own, _, at = name.partition(AT)
        if own == kind and unit in session.units:
            rates = session.rates(session.units.index(unit), phase=phase, role="confirmation", stimulus=stimulus)
            rows.append((float(at) if at else contrast, *mean_sem(rates)))
    out = np.array(sorted(rows), np.float64).reshape(-1, 3)
    return np.asarray(out[np.isfinite(out).all(axis=1)])


def panels(count: int, height: float = 2.4) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels of one size."""
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = new_figure(max(4.2, 2.3 * columns), height * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, grid[:count]


def label_rows(grid: Sequence[Axes], words: str) -> None:
    """Label the first panel of each row."""
    for axes in grid[:: min(len(grid), COLUMNS)]:
        axes.set_ylabel(words)


def _legend(figure: Figure, grid: Sequence[Axes]) -> None:
    """Put one legend above all panels, with everything that any of them has."""
    named = {name: handle for axes in grid for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(named.values()), list(named), loc="outside upper left", ncols=3, fontsize=9)


# --- what kind of model -----------------------------------------------------------------------------------------------


def kind_of_model(known: dict[str, Report]) -> Figure | None:
    """Draw eigenvalues of the gradients, scores beside those of linear models, and images used as filters."""
    if not any("eigenvalue_1" in one for one in known.values()):
        return None
    figure = new_figure(9.6, 3.3)
    left, middle, right = figure.subplots(1, 3)
    _eigenvalues(left, list(known.values()))
    _scores(middle, known)
    for one in known.values():
        if "filter_linear" in one and "filter_mei" in one:
            right.plot(one["filter_linear"], one["filter_mei"], "o", color=BLUE, markersize=5, alpha=0.8)
    ends = min(-0.1, *right.get_xlim(), *right.get_ylim()), 1.0
    right.plot(ends, ends, color=GREY, linewidth=0.8)
    right.set(xlim=ends, ylim=ends, aspect="equal", xlabel="linear field as filter", ylabel="most exciting image")
    right.set_title("As linear filters", fontsize=10)
    return figure


def _eigenvalues(axes: Axes, known: Sequence[Report]) -> None:
    number = np.arange(1, EIGENVALUES + 1)
    every = np.array([[one.get(f"eigenvalue_{k}", np.nan) for k in number] for one in known])
    every = every[np.isfinite(every).all(axis=1)]
    every = every / every[:, :1]
    for row in every:
        axes.plot(number, row, color=BLUE, alpha=0.35, linewidth=0.9)
    axes.plot(number, every.mean(axis=0), color=BLUE, marker="o", markersize=4, label="model, mean")
    axes.plot(number, number == 1, color=ORANGE, linestyle="--", marker="s", markersize=3, label="a linear model")
    axes.set(xlabel="eigenvalue", ylabel="over the largest", xticks=number[::3], ylim=(-0.03, 1.05))
    axes.set_title("Gradients", fontsize=10)
    axes.legend(loc="upper right", fontsize=8)


def _scores(axes: Axes, known: dict[str, Report]) -> None:
    shown = {"encoder_r": (BLUE, "o", "model"), "linear_r": (ORANGE, "s", "linear, of responses"),
             "linearised_r": (GREEN, "^", "linear, of the model")}  # fmt: skip
    units = sorted(known, key=lambda unit: -known[unit].get("encoder_r", -np.inf))
    for shift, (name, (colour, marker, words)) in zip((-0.2, 0.0, 0.2), shown.items(), strict=True):
        each = [(k, known[u]) for k, u in enumerate(units) if name in known[u]]
        value = np.array([one[name] for _, one in each])
        ends = np.array([[one.get(f"{name}_{end}", one[name]) for _, one in each] for end in ("low", "high")])
        spread = np.abs(ends - value)
        axes.errorbar(
            [k + shift for k, _ in each], value, spread, color=colour, marker=marker, markersize=4, linewidth=1,
            linestyle="none", label=words,
        )  # fmt: skip
    axes.axhline(0, color=BLACK, linewidth=0.6)
    axes.set(xticks=range(len(units)), ylabel="held-out r", ylim=(min(-0.1, axes.get_ylim()[0]), 1.35))
    axes.set_yticks([0, 0.5, 1])
    axes.set_xticklabels(units if len(units) <= 2 * MOST_UNITS else [""] * len(units), rotation=90, fontsize=7)
    axes.set_title("Linear models", fontsize=10)
    axes.legend(loc="upper right", fontsize=8, ncols=1)


# --- spatial frequencies ----------------------------------------------------------------------------------------------


def amplitude(frame: npt.NDArray[np.uint8]) -> F64:
    """Return amplitudes (y, x), levels, frequency 0 in the middle, of a frame (y, x, rgb) under a Hamming window."""
    grey = frame.astype(np.float64).mean(axis=2)
    window = np.outer(np.hamming(grey.shape[0]), np.hamming(grey.shape[1]))
    out: F64 = np.abs(np.fft.fftshift(np.fft.fft2((grey - grey.mean()) * window))) / grey.size
    return out


def radial(spectrum: F64) -> F64:
    """Return the mean amplitude at 0, 1, 2, ... cycles per picture, over directions."""
    rows, columns = spectrum.shape
    y, x = np.arange(rows) - rows // 2, np.arange(columns) - columns // 2
    cycles = np.hypot(*np.meshgrid(y, x, indexing="ij")).round().astype(int)
    inside = cycles <= min(rows, columns) // 2
    total = np.bincount(cycles[inside], spectrum[inside])
    out: F64 = total / np.bincount(cycles[inside])
    return out


def frequencies(session: Session, phase: int, images: Images) -> Figure | None:
    """Draw the spectra of most exciting images and linear fields, and their difference; None without a pair."""
    pairs = [
        (amplitude(mei), amplitude(linear))
        for kinds in images.values()
        if MEI in kinds and LINEAR in kinds
        and (mei := session.picture(kinds[MEI])) is not None
        and (linear := session.picture(kinds[LINEAR])) is not None
    ]  # fmt: skip
    if not pairs:
        return None
    curves = np.array([[radial(one) for one in pair] for pair in pairs])  # (unit, kind, frequency)
    top = int(np.searchsorted(np.cumsum(curves.sum(axis=(0, 1))) / curves.sum(), NEARLY_ALL)) + 1
    size_deg = _size_deg(session, phase)
    at = np.arange(curves.shape[2]) / size_deg
    figure = new_figure(8.6, 3.4)
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.5, 1]})
    for k, (colour, style, name) in enumerate(((BLUE, "-", "most exciting images"), (ORANGE, "--", "linear fields"))):
        for row in curves[:, k]:
            left.plot(at[1:top], row[1:top], color=colour, linestyle=style, alpha=0.25, linewidth=0.8)
        left.plot(at[1:top], curves[:, k].mean(axis=0)[1:top], color=colour, linestyle=style, label=name)
    left.set(xlabel="cycles per degree", ylabel="amplitude (levels)", ylim=(0, None))
    left.legend(loc="upper right")
    difference = np.mean([mei - linear for mei, linear in pairs], axis=0)
    rows, columns = (n // 2 for n in difference.shape)
    part = difference[max(0, rows - top) : rows + top + 1, max(0, columns - top) : columns + top + 1]
    most, end = float(np.abs(part).max()) or 1.0, top / size_deg
    drawn = right.imshow(
        part, cmap="RdBu_r", vmin=-most, vmax=most, extent=(-end, end, -end, end), interpolation="nearest"
    )
    right.set(xlabel="cycles per degree, horizontal", ylabel="vertical")
    figure.colorbar(drawn, label="difference (levels)")
    return figure


def _size_deg(session: Session, phase: int) -> float:
    """Return the size of the images that were shown back, degrees."""
    back = session.place[(session.phase == phase) & (session.role == "confirmation"), 2]
    known = back[np.isfinite(back)]
    return float(known[0]) if len(known) else float(session.config["stimulus"]["size_deg"])
