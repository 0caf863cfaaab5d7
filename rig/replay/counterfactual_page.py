"""The page of a counterfactual: figures, table and warnings in one HTML file, the figures as JSON beside it."""

import base64
import io
import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

from rig.report.figures import new_figure, with_style
from rig.report.page import CSS

COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
SIMULATED = '<p class="verdict warn"><b>Simulated:</b> what was recorded in this session is the simulated animal.</p>'
CAN = (
    "<p><b>One step</b> uses recorded responses only. Each optimiser is told the images and scores of a generation as "
    "the recorded one was, and asked for its next population. It can show how differently another optimiser would "
    "have stepped from the same data; <i>recorded, other seed</i> is the same algorithm with other draws, the size of "
    "difference that chance alone makes. It cannot show where the other one would have ended: the neuron never saw "
    "its images.</p><p><b>Closed loop</b> runs every agent from its first generation to its last against the twin, "
    "with the noise of the session's repeats. Runs of two agents with the same number meet the same noise. It answers "
    "for the twin, and for the neuron only as far as the twin predicts it.</p>"
)


def write(found: dict[str, Any], folder: Path) -> Path:
    """Write folder/counterfactual.html, .json and .png files; return the page's path. `folder` must be new."""
    folder.mkdir(parents=True)
    with with_style():
        parts = [_phase(phase, found["unit_of_rates"], folder) for phase in found["phases"]]
    title = f"Counterfactual of {escape(found['session'])}"
    banner = SIMULATED if found["simulated"] else ""
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{CSS}</style></head><body><h1>{title}</h1>{banner}{CAN}{''.join(parts)}{_scope(found)}</body></html>\n"
    )
    (folder / "counterfactual.json").write_text(json.dumps(_plain(found), indent=2) + "\n", encoding="utf-8")
    out = folder / "counterfactual.html"
    out.write_text(page, encoding="utf-8")
    return out


def _scope(found: dict[str, Any]) -> str:
    """Say what every agent was given, and what is left out and why."""
    given = "".join(f"<li>{escape(words)}</li>" for words in found["given"]) or "<li>nothing</li>"
    left_out = "".join(f"<li>{escape(words)}</li>" for words in found["left_out"]) or "<li>nothing</li>"
    return (
        f"<h2>Given to every agent, from earlier phases as recorded</h2><ul>{given}</ul>"
        f"<h2>Left out, and why</h2><ul>{left_out}</ul>"
    )


def _plain(value: Any) -> Any:
    """Return the figures without pictures, which are files of their own."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if not isinstance(v, np.ndarray)}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _phase(phase: dict[str, Any], unit: str, folder: Path) -> str:
    number = f"{phase['phase'] + 1}{phase['part']}"
    warnings = "".join(f'<p class="verdict warn">{escape(w)}</p>' for w in phase["warnings"])
    doubtful = " warn" if phase["warnings"] else ""
    verdicts = "".join(f'<p class="verdict{doubtful}">{escape(v)}</p>' for v in phase["verdicts"])
    facts = "<br>".join(_twin(name, twin) for name, twin in phase["twins"].items())
    facts += "<br>In brackets: 95 %, bootstrap over images."
    if phase["suppressed"]:
        facts += " <b>This target was suppressed: the lower the better.</b>"
    curves = _figure(_curves(phase, unit), folder / f"closed_loop_phase{number}.png", "Closed loop against the twin.")
    step = ""
    if any(phase["one_step"]["rows"].values()):
        path = folder / f"one_step_phase{number}.png"
        step = _figure(_steps(phase, unit), path, "One step from the recorded data.")
    left = "".join(f"<p>{escape(n)} is left out of one step: {escape(w)}.</p>" for n, w in _left_out(phase))
    return (
        f"<h2>Phase {phase['phase'] + 1}: {escape(phase['unit'])}</h2>{verdicts}{warnings}<p class=facts>{facts}</p>"
        f"{curves}{_table(phase, unit, folder)}{step}{left}"
    )


def _twin(name: str, twin: dict[str, Any]) -> str:
    return (
        f"Twin of {escape(name)}: {twin['features']} features, {twin['images']} images, {twin['trials']} responses; "
        f"held-out correlation {_with_interval(twin, 'held_out')}, noise ceiling {_with_interval(twin, 'ceiling')}, "
        f"later images from earlier ones {_with_interval(twin, 'later')}."
    )


def _with_interval(twin: dict[str, Any], name: str) -> str:
    value, interval = twin[f"{name}_r"], twin[f"{name}_ci"]
    if value is None:
        return "not known"
    return f"{value:.2f}" + ("" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]")


def _left_out(phase: dict[str, Any]) -> list[tuple[str, str]]:
    return list(phase["one_step"]["left_out"].items())


def _figure(figure: Figure, path: Path, caption: str) -> str:
    figure.savefig(path, dpi=130)
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _curves(phase: dict[str, Any], unit: str) -> Figure:
    figure = new_figure(8.0, 4.0)
    axes = figure.subplots()
    for colour, (name, run) in zip(COLOURS, phase["closed_loop"].items(), strict=False):
        at = np.arange(1, run["generations"] + 1)
        mean, sem = np.array(run["mean"]), np.array(run["mean_sem"])
        axes.plot(at, mean, color=colour, label=f"{name}: mean ± SEM, n = {run['runs']} runs")
        axes.fill_between(at, mean - sem, mean + sem, color=colour, alpha=0.2, linewidth=0)
        axes.plot(at, run["best"], color=colour, linestyle=":", label=f"{name}: best image")
    measured = [np.nan if v is None else v for v in phase["measured_mean"]]
    axes.plot(np.arange(1, len(measured) + 1), measured, color="#999999", label="measured in the session (noisy)")
    _generations(axes)
    axes.set_ylabel(f"response of the twin without noise ({unit})")
    axes.legend(fontsize="small")
    return figure


def _steps(phase: dict[str, Any], unit: str) -> Figure:
    figure = new_figure(8.0, 3.4)
    left, right = figure.subplots(1, 2)
    for colour, (name, rows) in zip(COLOURS[1:], phase["one_step"]["rows"].items(), strict=False):
        at = [row["generation"] + 1 for row in rows]
        left.plot(at, [row["distance"] for row in rows], color=colour, label=name)
        right.plot(at, [row["twin_mean_instead"] - row["twin_mean_shown"] for row in rows], color=colour, label=name)
    left.set_ylabel("distance of mean codes\nfrom what was shown")
    right.set_ylabel(f"twin: instead minus shown\n({unit})")
    right.axhline(0, color="#999999", linewidth=0.8)
    for axes in (left, right):
        _generations(axes)
    left.legend(fontsize="small")
    return figure


def _generations(axes: Axes) -> None:
    axes.set_xlabel("generation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _table(phase: dict[str, Any], unit: str, folder: Path) -> str:
    mean, best = f"last generation, mean ({unit})", f"best image ({unit})"
    head = ("agent", "best image", mean, best, "minus recorded", "unknown")
    rows = []
    for k, (name, run) in enumerate(phase["closed_loop"].items()):
        path = folder / f"best_phase{phase['phase'] + 1}{phase['part']}_{k}.png"
        imsave(path, run["best_frame"])
        apart = phase["final_difference"].get(name)
        less = "" if apart is None else f"{apart['mean']:+.1f} ± {apart['sem']:.1f} (n = {apart['runs']})"
        rows.append(
            f"<tr><td>{escape(name)}</td><td>{_picture(run['best_frame'])}</td>"
            f"<td class=n>{run['mean'][-1]:.1f} ± {run['mean_sem'][-1]:.1f} (n = {run['runs']})</td>"
            f"<td class=n>{run['best'][-1]:.1f} ± {run['best_sem'][-1]:.1f} (n = {run['runs']})</td>"
            f"<td class=n>{less}</td><td class=n>{run['unknown_share']:.0%}</td></tr>"
        )
    similar = ", ".join(f"{escape(k)} {v:.2f}" for k, v in phase["latent_similarity"].items())
    return (
        f"<table><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr>{''.join(rows)}</table>"
        "<p class=facts>± is the SEM over n runs. Minus recorded: difference of the last generations' means, run by "
        "run. Unknown: share of the last images that are unlike what was shown in the session. "
        f"Mean cosine between best codes of two runs: {similar}.</p>"
    )


def _picture(frame: Any) -> str:
    buffer = io.BytesIO()
    imsave(buffer, frame)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="best image" src="data:image/png;base64,{data}">'
