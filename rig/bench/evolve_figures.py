"""The pictures of `stimloop bench evolve`: curves over presentations, and ratios with their intervals."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from rig.bench.evolve_summary import rule
from rig.config.evolution_bench import OURS
from rig.report.figures import BLACK, GREY, new_figure, with_style

F64 = npt.NDArray[np.float64]
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8a8a8a", "#999933", "#882255", "#44AA99")
POINTS = 60


def write(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the figures as PNG files into `folder`; return their paths."""
    out = []
    with with_style():
        for generator in dict.fromkeys(row["generator"] for row in found["rows"]):
            name = "".join(c if c.isalnum() else "-" for c in generator)
            rows = [r for r in found["rows"] if r["generator"] == generator and not r["disturbed"]]
            if rows:
                out.append(_curves(rows, found["units"], generator, folder / f"curves-{name}.png"))
            lines = [t for t in found["by_optimiser"] if t["generator"] == generator and t["ours_over_it"] is not None]
            if lines:
                out.append(_ratios(lines, generator, folder / f"ratios-{name}.png"))
    return out


def _colours(names: Sequence[str]) -> dict[str, str]:
    others = sorted(n for n in names if n != OURS)
    return {OURS: BLACK, **{n: COLOURS[k % len(COLOURS)] for k, n in enumerate(others)}}


def _curves(rows: Sequence[Mapping[str, Any]], units: Sequence[Mapping[str, Any]], generator: str, path: Path) -> Path:
    """Draw the median over units of what each optimiser would nominate, as a function of presentations."""
    known = {u["name"]: u for u in units}
    noises = list(dict.fromkeys(r["noise"] for r in rows))
    colours = _colours(list(dict.fromkeys(r["optimiser"] for r in rows)))
    figure = new_figure(4.2 * len(noises) + 2.2, 3.8)
    panels: list[Axes] = list(np.atleast_1d(figure.subplots(1, len(noises), sharey=True)))
    for panel, noise in zip(panels, noises, strict=True):
        for name in (n for n in colours if any(r["optimiser"] == n for r in rows)):
            own = [r for r in rows if r["noise"] == noise and r["optimiser"] == name]
            if own:
                x, y = _median_curve(own, known, 2 if rule(own, known)[1] == "true_center" else 1)
                panel.plot(x, y, color=colours[name], linewidth=2.4 if name == OURS else 1.4, label=name)
        panel.axhline(1.0, color=GREY, linestyle=":", linewidth=1)
        panel.set_title(noise)
        panel.set_xlabel("presentations")
    panels[0].set_ylabel("true rate of the nominated image")
    what = "0: mean natural rate, 1: best natural image; median of units"
    figure.suptitle(f"Generator {generator}, {len({r['unit'] for r in rows})} units\n{what}", fontsize="medium")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.savefig(path)
    return path


def _median_curve(
    rows: Sequence[Mapping[str, Any]], units: Mapping[str, Mapping[str, Any]], column: int
) -> tuple[F64, F64]:
    """Return presentations and, there, the median over units of the mean over seeds, in units of the best natural."""
    x = np.linspace(40, max(r["curve"][-1][0] for r in rows), POINTS)
    by_unit: dict[str, list[F64]] = defaultdict(list)
    for row in rows:
        unit = units[row["unit"]]
        span = unit["natural_best"] - unit["natural_mean"]
        if span > 0:
            curve = np.array(row["curve"], dtype=np.float64)  # a centre that is not there becomes NaN
            shown, rate = curve[np.isfinite(curve[:, column])][:, [0, column]].T
            by_unit[row["unit"]].append((np.interp(x, shown, rate, left=np.nan) - unit["natural_mean"]) / span)
    if not by_unit:
        return x, np.full(len(x), np.nan)
    return x, np.median([np.mean(curves, axis=0) for curves in by_unit.values()], axis=0)


def _ratios(lines: Sequence[Mapping[str, Any]], generator: str, path: Path) -> Path:
    """Draw ours over each other optimiser, with 95 % intervals."""
    noises = list(dict.fromkeys(t["noise"] for t in lines))
    names = sorted({t["optimiser"] for t in lines})
    figure = new_figure(3.0 * len(noises) + 2.2, 0.36 * len(names) + 1.6)
    panels: list[Axes] = list(np.atleast_1d(figure.subplots(1, len(noises), sharey=True)))
    for panel, noise in zip(panels, noises, strict=True):
        for line in (t for t in lines if t["noise"] == noise):
            found, y = line["ours_over_it"], names.index(line["optimiser"])
            if found["ratio"] is None:
                panel.text(1, y, "no ratio", va="center", fontsize="small")
                continue
            if found["low"] is not None:
                panel.plot([found["low"], found["high"]], [y, y], color=GREY)
            panel.plot(found["ratio"], y, "o", color=BLACK)
            point, text = (found["ratio"], y), f"{found['ratio']:.2f}"
            panel.annotate(text, point, (0, 5), textcoords="offset points", ha="center", fontsize="small")
        panel.axvline(1, color=GREY, linestyle=":", linewidth=1)
        panel.set_title(noise)
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.3, -0.8)
        panel.set_xlabel(f"{OURS} / other")
    figure.suptitle(f"Generator {generator}\nrates above the natural mean, 95 % over units", fontsize="medium")
    figure.savefig(path)
    return path
