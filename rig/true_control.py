"""The truth of a control phase on the simulated animal: what images made for goals truly do, beside natural ones. Pure.

Used by `rig.true_rates`. True responses are z-scored by the true mean and sd over the images by which the session
z-scored what it measured: a measured response may lack a baseline, or what lies outside its window.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from rig.messages import ImageScore

F64 = npt.NDArray[np.float64]

FIRST = "1"  # of the images made for a goal: the encoder's favourite, which claims are about
NATURAL = ("natural", "predicted")
BEST = "truly best natural"
SCORES = {"stretch": "z-scored response", "one_hot": "softmax", "target": "minus the RMS distance"}
WORDS = (
    f"{BEST}: of all natural images that the phase showed, the one with the highest true score, which no experimenter "
    "knows. True responses are z-scored by their true mean and sd over held-out images, measured ones by what was "
    "measured of the same images."
)


def worth(kind: str, z: F64, at: int, wanted: Sequence[float]) -> F64:
    """Return the scores (...,) of z-scored responses (..., site), as docs/control.md defines them for each kind."""
    if kind == "stretch":
        return z[..., at]
    if kind == "one_hot":
        from scipy.special import softmax  # not at the top: every command of the program loads this module

        return np.asarray(softmax(z, axis=-1)[..., at], np.float64)
    return np.asarray(-np.sqrt(np.mean((z - np.array(wanted)) ** 2, axis=-1)), np.float64)


@dataclass(frozen=True)
class GoalTruth:
    """One goal: true and measured scores of its images."""

    kind: str
    title: str
    true: Mapping[str, float]
    """By image: "1", "2", ..., "natural", "predicted"."""
    measured: Mapping[str, float]
    best_natural: float
    """True score of the natural image that is truly best."""
    best_natural_id: str
    found: Mapping[str, int]
    """Against each of NATURAL: 1: the first image made was found to be better, -1: worse, 0: not told apart."""

    def right(self, name: str) -> bool:
        """Return whether what was found against a natural image is the truth."""
        return self.found[name] != 0 and np.sign(self.true[FIRST] - self.true[name]) == self.found[name]

    def figures(self) -> dict[str, Any]:
        """Return it by name."""
        return {
            "goal": self.title, "true": dict(self.true), "measured": dict(self.measured),
            "true_best_natural": self.best_natural, "best_natural": self.best_natural_id, "found": dict(self.found),
        }  # fmt: skip


@dataclass(frozen=True)
class ControlTruth:
    """A control phase with its truth."""

    phase: int
    goals: tuple[GoalTruth, ...]
    report: Mapping[str, float]
    """What the session stated, for shares that it measured."""
    untested: str = ""
    """Why nothing was tested; "" where something was."""

    def of_kind(self, kind: str) -> dict[str, Any]:
        """Return shares of goals and medians of scores over the goals of one kind, true ones and measured ones."""
        mine = [goal for goal in self.goals if goal.kind == kind]
        out: dict[str, Any] = {
            "kind": kind,
            "goals": len(mine),
            "above_best_natural_true": _share(goal.true[FIRST] > goal.best_natural for goal in mine),
        }
        for name in NATURAL:
            told = [goal for goal in mine if name in goal.found]
            out |= {
                f"above_{name}_true": _share(goal.true[FIRST] > goal.true[name] for goal in mine if name in goal.true),
                f"above_{name}_measured": self.report.get(f"{kind}_above_{name}"),
                f"against_{name}_found": sum(goal.found[name] != 0 for goal in told),
                f"against_{name}_wrong": sum(goal.found[name] != 0 and not goal.right(name) for goal in told),
            }
        for which in (FIRST, *NATURAL):
            name = "made" if which == FIRST else which
            out[f"{name}_true"] = _median(goal.true.get(which) for goal in mine)
            out[f"{name}_measured"] = _median(goal.measured.get(which) for goal in mine)
        out["best_natural_true"] = _median(goal.best_natural for goal in mine)
        return out

    def figures(self) -> dict[str, Any]:
        """Return counts and medians by kind, and every goal."""
        kinds = list(dict.fromkeys(goal.kind for goal in self.goals))
        return {
            "phase": self.phase + 1, "agent": "control", "untested": self.untested,
            "kinds": [self.of_kind(kind) for kind in kinds],
            "comparisons": [goal.figures() for goal in self.goals],
        }  # fmt: skip

    def tables(self) -> list[Table]:
        """Return what is printed."""
        out = []
        for row in self.figures()["kinds"]:
            kind = row["kind"]
            title = f"phase {self.phase + 1}, {kind}, {row['goals']} goals: medians of the {SCORES[kind]}"
            heads = "true", "measured", "made is truly above", "found above", "surely found", "of these wrong"
            table = Table("", *heads, title=title, title_justify="left")
            table.add_row("image made", _number(row["made_true"]), _number(row["made_measured"]), "", "", "", "")
            for name in NATURAL:
                table.add_row(
                    f"best natural, {'measured' if name == 'natural' else name}",
                    *(_number(row[f"{name}_{end}"]) for end in ("true", "measured")),
                    *(_percent(row[f"above_{name}_{end}"]) for end in ("true", "measured")),
                    *(str(row[f"against_{name}_{end}"]) for end in ("found", "wrong")),
                )
            above = _percent(row["above_best_natural_true"])
            table.add_row(BEST, _number(row["best_natural_true"]), "", above, "", "", "")
            out.append(table)
        return [*out, self._each()] if self.goals else []

    def _each(self) -> Table:
        names = {FIRST: "image made", "natural": "natural, measured", "predicted": "natural, predicted"}
        table = Table("goal", *names.values(), BEST, title="true score (measured)", title_justify="left")
        for goal in self.goals:
            cells = [f"{_number(goal.true.get(which))} ({_number(goal.measured.get(which))})" for which in names]
            table.add_row(goal.title, *cells, _number(goal.best_natural))
        return table


@dataclass(frozen=True)
class _Goal:
    """What the responses to an image are worth for one goal."""

    kind: str
    columns: list[int]
    at: int
    wanted: tuple[float, ...]

    def score(self, z: F64) -> F64:
        """Return the scores (...,) of z-scored responses (..., unit)."""
        return worth(self.kind, z[..., self.columns], self.at, self.wanted)


@dataclass(frozen=True)
class Stated:
    """What the session said of a control phase, and its config."""

    scores: tuple[ImageScore, ...]
    report: Mapping[str, float]
    targets: Mapping[str, Mapping[str, float]]
    chance: float

    def goal(self, title: str, units: tuple[str, ...]) -> _Goal | None:
        """Return a goal by its name in the log; None where a site's responses cannot be z-scored or are not known."""
        kind, _, name = title.partition(" ")
        wanted = self.targets.get(name, {}) if kind == "target" else {}
        ranks = {unit: value for unit in units if (value := self.report.get(f"{unit}: rank")) is not None}
        chosen = sorted(ranks, key=lambda unit: ranks[unit])
        sites = {"stretch": [name], "one_hot": chosen}.get(kind) or list(wanted)
        if not sites or any(site not in units or f"{site}: natural_sd" not in self.report for site in sites):
            return None
        at = sites.index(name) if name in sites else 0
        return _Goal(kind, [units.index(site) for site in sites], at, tuple(wanted.values()))

    def found(self, title: str) -> dict[str, int]:
        """Return what the tests found of a goal's first image against natural ones."""
        out = {}
        for name in NATURAL:
            if f"{title}: less_{name}" in self.report:
                sure = self.report.get(f"{title}: q_{name}", np.inf) <= self.chance
                out[name] = int(np.sign(self.report[f"{title}: less_{name}"])) if sure else 0
        return out


def control_truth(
    phase: int,
    stated: Stated,
    units: tuple[str, ...],
    shown: Mapping[str, F64],
    natural: Mapping[str, F64],
    held_out: Collection[str] = (),
) -> ControlTruth:
    """Return the truth of a phase from true rates (unit,) of each image: `shown` back, and all `natural` ones.

    `units` name the rates' columns. `held_out`: the natural images by which the session z-scored; older logs do not
    name them, then all.
    """
    names, every = list(natural), np.stack(list(natural.values()))
    by = np.stack([natural[name] for name in names if not held_out or name in held_out])
    mean, sd = by.mean(axis=0), by.std(axis=0, ddof=1)
    sd[sd == 0] = np.nan  # a unit that answers alike to all of them has no z-score
    images: dict[str, dict[str, ImageScore]] = {}
    for score in stated.scores:
        images.setdefault(score.target, {})[score.source] = score
    out = []
    for title, of in images.items():
        goal = stated.goal(title, units)
        if goal is None or FIRST not in of:
            continue
        best = goal.score((every - mean) / sd)
        top = int(best.argmax())
        true = {which: float(goal.score((shown[score.stimulus_id] - mean) / sd)) for which, score in of.items()}
        measured = {which: score.raw for which, score in of.items()}
        found = stated.found(title)
        out.append(GoalTruth(goal.kind, title, true, measured, float(best[top]), names[top], found))
    return ControlTruth(phase, tuple(out), stated.report)


def _share(hits: Iterable[bool]) -> float | None:
    each = [bool(hit) for hit in hits]
    return sum(each) / len(each) if each else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
