"""The report's part on an encoder: 96 recorded units of which some were chosen, and networks over the session."""

from pathlib import Path

import numpy as np
import pytest

from rig.messages import Document, ModelUpdated, SessionStart
from rig.report import inception, learning
from rig.report.data import Session, open_session
from tests.synthetic_session import Synthetic
from tests.test_report import made
from tests.test_report_sections import added, configured

UNITS = [f"E{k:02d}#0" for k in range(1, 97)]
CHOSEN = UNITS[7:19]
MEMBERS = 3


def report(block: int, networks: bool) -> dict[str, float]:
    """Return what an agent states after a block: units get better, the chosen ones are the best."""
    rng = np.random.default_rng(1)
    out: dict[str, float] = {"generation": block, "images_seen": 50 * min(block, 8), "oracle": 0.6}
    for unit in UNITS:
        value = (0.9 if unit in CHOSEN else rng.uniform(0, 0.5)) * block / 10
        out |= {f"{unit}: heldout_r": value, f"{unit}: heldout_r_low": value - 0.1, f"{unit}: heldout_r_high": value}
        out[f"{unit}: oracle"] = 0.6
    out["heldout_r"] = float(np.median([out[f"{unit}: heldout_r"] for unit in UNITS]))
    if networks:
        out["bank_heldout_r"] = out["heldout_r"] - 0.05
        for k in range(1, MEMBERS + 1):
            out |= {f"network{k}_epochs": block % 4, f"network{k}_validation_r": 0.05 * block + 0.01 * k}
    if block == 10:
        out["chosen"] = len(CHOSEN)
        out |= {f"{unit}: rank": k + 1.0 for k, unit in enumerate(reversed(CHOSEN))}
        out |= {f"{unit}: rejected, not predicted": 1.0 for unit in UNITS if unit not in CHOSEN}
    return out


def session_of(folder: Path, networks: bool) -> Path:
    entries = list(Synthetic(kind="present", generations=2).entries())
    start = entries[0].document
    assert isinstance(start, SessionStart)
    responses = dict(start.config["responses"]) | {"units": UNITS}
    updates: list[Document] = [
        ModelUpdated(phase=0, generation=block, model_version="inception-1", report=report(block, networks))
        for block in range(1, 11)
    ]
    return made(folder, added(configured(entries, responses=responses), updates)) / "session.h5"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return session_of(tmp_path_factory.mktemp("learning") / "networks", True)


def last(session: Session) -> dict[str, float]:
    return learning.reports(session, 0)[-1]


def test_of_96_units_the_chosen_ones_have_a_line_and_the_others_one_area(path: Path) -> None:
    with open_session(path) as session:
        assert learning.chosen(session, last(session)) == CHOSEN[::-1]
        figure = learning.scores(session, 0, last(session))
        assert figure is not None
        (axes,) = figure.axes
        assert len(axes.lines) == len(CHOSEN) + 3  # their lines, the median, the oracle and zero
        (area,) = axes.collections
        assert area.get_label() == "84 not chosen"
        others = [last(session)[f"{unit}: heldout_r"] for unit in UNITS if unit not in CHOSEN]
        top = max(y for x, y in area.get_paths()[0].vertices if x == 400)
        assert top == pytest.approx(np.percentile(others, 90))
        panels = learning.of_units(session, 0, last(session))
        assert panels is not None
        assert [a.get_title() for a in panels.axes if a.lines] == CHOSEN[::-1]


def test_networks_are_drawn_beside_the_fixed_features(path: Path) -> None:
    with open_session(path) as session:
        figure = learning.networks(session, 0)
        assert figure is not None
        left, middle, right = figure.axes
        every = [one for one in learning.reports(session, 0) if "heldout_r" in one]
        drawn = {line.get_label(): list(line.get_ydata()) for line in left.lines}
        assert drawn == {
            "networks": [one["heldout_r"] for one in every],
            "fixed features": [one["bank_heldout_r"] for one in every],
        }
        assert [list(line.get_ydata()) for line in middle.lines] == [
            [one[f"network{k}_validation_r"] for one in every] for k in range(1, MEMBERS + 1)
        ]
        assert [list(line.get_ydata()) for line in right.lines] == [[one["network1_epochs"] for one in every]] * MEMBERS
        assert list(right.lines[0].get_xdata()) == list(range(2, 12))  # as on the terminal, counted from 1


def test_the_page_names_all_units_and_has_no_networks_where_there_were_none(tmp_path: Path) -> None:
    with open_session(session_of(tmp_path / "fixed", False)) as session:
        assert learning.networks(session, 0) is None
        drawn = {}

        def draw(name: str, figure: object, caption: str) -> str:
            drawn[name] = figure
            return caption if figure is not None else ""

        page = learning.section(session, 0, last(session), draw)
        others = [unit for unit in UNITS if unit not in CHOSEN][:80]
        some = last(session) | {f"{unit}: rejected, not asked for": 1.0 for unit in others}
        assert "<b>12 units chosen</b> of 16 that were asked for (96 recorded), after" in learning.section(
            session, 0, some, lambda *_: ""
        )
    assert [name for name, figure in drawn.items() if figure is not None] == ["learning_0", "learning_units_0"]
    assert "grey area: the middle 80 % of all units that were not chosen" in page
    assert "<b>12 units chosen</b> of 96, after" in page
    assert [page.index(f"<td>{unit}</td>") for unit in CHOSEN[::-1]] == sorted(
        page.index(f"<td>{unit}</td>") for unit in CHOSEN
    )


def test_a_ratio_over_units_is_told_with_its_ends_or_why_there_is_none(path: Path) -> None:
    figures = {"n": 8.0, "p": 0.0078, "q": 0.02, "ratio": 1.5, "ratio_low": 1.25, "ratio_high": 2.0}

    def said(*known: str) -> str:
        told = {f"population_{name}_gabor": figures[name] for name in ("n", "p", "q", *known)}
        return inception._together(session, told, "gabor")

    with open_session(path) as session:
        every = said("ratio", "ratio_low", "ratio_high")
        assert "<b>1.50 times</b> as much above baseline (median over units, 95 % interval 1.25 to 2.00; " in every
        assert "95 % interval 1.25 and more; signed rank" in said("ratio", "ratio_low")  # infinite ones are not logged
        assert "(no ratio, because a mean response is 0 or below; signed rank test over units: p = 0.0078" in said()
