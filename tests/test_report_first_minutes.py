"""The report's sections on mapping and screening say what the agents found, and no more."""

import json
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from matplotlib.figure import Figure

from rig.report.data import Session
from rig.report.figures import mark_times
from rig.report.first_minutes import best_unit, fields_figure, mapping, screening

CONFIG = {
    "stimulus": {"center_deg": [0, 0], "size_deg": 10},
    "responses": {"window_s": [0.05, 0.15], "psth": {}},
    "phases": [
        {"agent": "map", "place": {"center_deg": [1, 0], "size_deg": 16}, "widest_interval": 0.3},
        {"agent": "screen", "least_reliability": 0.5, "least_driven_hz": 5, "chance": 0.01},
        {"agent": "evolve"},
    ],
}
MAPPED = {
    "generation": 12.0, "usable": 500.0, "missing": 0.0, "fields": 1.0, "closer_deg": 8.0,
    "image_right_deg": 2.0, "image_up_deg": -1.0, "image_size_deg": 6.0, "image_shrunk_deg": 1.5,
    "image_moved_deg": 0.0,
    "a<b: field": 1.0, "a<b: p": 1e-9, "a<b: right_deg": 2.03, "a<b: up_deg": -1.04, "a<b: sigma_deg": 1.0,
    "a<b: right_sd_deg": 0.1, "a<b: up_sd_deg": 0.12, "a<b: sigma_sd_deg": 0.2, "a<b: on_hz": 12.0, "a<b: off_hz": -3.0,
    "c: field": 0.0, "c: p": 0.4, "c: right_deg": 5.0, "c: up_deg": 5.0, "c: sigma_deg": 3.0, "d: field": 0.0,
}  # fmt: skip
SCREENED = {
    "proposed": 1.0, "window_start_s": 0.06, "window_end_s": 0.16,
    "a<b: rank": 1.0, "a<b: reliability": 0.9, "a<b: reliability_low": 0.8, "a<b: reliability_high": 0.95,
    "a<b: driven_hz": 20.0, "a<b: latency_s": 0.06, "a<b: p_tuned": 1e-12, "a<b: p_blank": 0.03,
    "c: rejected, does not respond": 1.0, "c: rejected, fires too little": 1.0, "c: reliability": 0.1,
    "d: rejected, never seen": 1.0,
}  # fmt: skip


def session(*reports: dict[str, float]) -> Session:
    """Return what of a session these sections read."""
    phases = np.repeat(np.arange(len(reports)), 2)
    texts = [json.dumps(r) for report in reports for r in ({"generation": 0.0}, report)]
    made = SimpleNamespace(
        units=["a<b", "c", "d"],
        config=CONFIG,
        window_s=lambda _: (0.05, 0.15),
        rate_unit="spikes/s",
        column=lambda _: phases,
        texts=lambda _: texts,
    )
    return cast("Session", made)


def figureless(name: str, figure: Figure | None, caption: str) -> str:
    return f"[{name} {'drawn' if figure else 'absent'}]"


def test_fields_are_listed_with_what_is_not_known_of_them() -> None:
    page = mapping(session(MAPPED, SCREENED), 0, figureless)
    assert "1 unit has a receptive field</b>, of 3" in page
    assert "Images of 6.0 degrees at (2.0, -1.0) suit them, 1.5 degrees smaller than asked for" in page
    assert "moved" not in page
    assert "a&lt;b" in page
    assert "2.03 ± 0.20" in page
    assert "no: its place is not known well enough" not in page
    unsure = mapping(session(MAPPED | {"c: unsure": 1.0, "c: on_hz": 1.0, "c: off_hz": 1.0}), 0, figureless)
    assert "no: its place is not known well enough" in unsure
    assert "5.00" in unsure
    assert "than 0.3 diameters" in unsure
    assert "&lt; 0.0001" in page
    assert "[fields_0 drawn]" in page
    assert "5.00" not in page  # no place is given for a field that is not there
    assert "not measured" in page  # d
    figure = fields_figure(session(MAPPED), 0, MAPPED)
    assert figure is not None
    assert len(figure.axes[0].patches) == 3  # what was mapped, where images go, and one field


def test_units_are_listed_with_the_reasons_against_them() -> None:
    page = screening(session(MAPPED, SCREENED), 1)
    assert "1 unit is proposed</b>, of 3" in page
    assert "from 60 to 160 ms after the onset; the responses judged here were measured from 50 to 150 ms" in page
    assert "Later phases go on with that window" in page
    locked = screening(session(MAPPED, SCREENED | {"window_locked": 1.0}), 1)
    assert "Later phases measure in the window found" in locked
    assert "0.90 (0.80 to 0.95)" in page
    assert "no: no certain response; fires too little" in page
    assert "no: never seen" in page
    assert page.index("a&lt;b") < page.index("no: no certain response")


def test_the_raster_is_of_the_best_unit() -> None:
    made = session(MAPPED, SCREENED | {"a<b: rank": 2.0, "d: rank": 1.0})
    about, words = best_unit(made, 1)
    assert about.config["phases"][1]["unit"] == "d"
    assert words == "<h3>d, the best unit</h3>"
    assert "unit" not in made.config["phases"][1]
    assert best_unit(session(MAPPED, {"proposed": 0.0}), 1)[1] == "<h3>a&lt;b, the first unit</h3>"


def test_a_phase_is_drawn_with_the_window_that_it_was_measured_in() -> None:
    windows = {0: (0.05, 0.15), 1: (0.06, 0.12)}  # phase 0 locked another one
    made = SimpleNamespace(
        window_s=windows.get,
        phase=np.array([0, 0, 1]),
        onset_flip_host_ns=np.zeros(3, np.int64),
        offset_flip_host_ns=np.array([100, 100, 300]) * 1_000_000,
    )
    for phase, (start, end) in windows.items():
        axes = Figure().subplots()
        mark_times(cast("Session", made), phase, (axes,), (-0.1, 0.3))
        on, counted = (patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches)
        assert (on.x0, on.x1) == pytest.approx((0, 100 if phase == 0 else 300), abs=1e-6)
        assert (counted.x0, counted.x1) == pytest.approx((start * 1e3, end * 1e3))


def test_a_phase_that_did_not_end_says_so() -> None:
    unfinished = session({"generation": 2.0}, {"generation": 1.0})
    assert "no field was fitted" in mapping(unfinished, 0, figureless)
    assert "no unit was judged" in screening(unfinished, 1)


def test_units_that_changed_are_named_with_what_they_answer_now() -> None:
    figures = {"gain": 0.3, "gain_se": 0.05, "level": 0.4, "level_se": 0.1, "tuning": 0.25, "tuning_se": 0.1}
    weak = {f"watch, a<b: {name}": value for name, value in figures.items()}
    weak |= {"watched": 1.0, "changed": 1.0, "watch, a<b: changed, answers less than half as much": 1.0}
    page = screening(session(MAPPED, SCREENED, weak), 1)
    assert "<b>answers less than half as much</b>" in page
    assert "0.30 ± 0.10" in page
    assert "Are they still what they were" not in screening(session(MAPPED, SCREENED, {"mean": 3.0}), 1)
