"""`stimloop truth`: what the simulated animal's neurons truly do to images that were shown back, beside what was found.

True rates are known only because the animal is simulated: the frames of the log are shown to its neurons once more,
without noise. So one sees how often the tests of a session were right. Joined with the neurons by `rig.cli`.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from rig.config.control import ControlPhase
from rig.config.field import field_rect, in_field
from rig.config.places import rect_of, usual
from rig.config.reading import ConfigError
from rig.config.session import Config
from rig.encoding import BadDocument
from rig.messages import ImageScore, ModelUpdated, Proposal
from rig.replay.frames import banks_of
from rig.replay.records import Log, ReplayError, config_of, session_start
from rig.true_control import WORDS as CONTROL_WORDS
from rig.true_control import ControlTruth, Stated, control_truth
from stimuli.geometry import Rect
from stimuli.spec import HELD_OUT, BankImage, LatentImage, Place

if TYPE_CHECKING:
    from rig.replay.model_side import ModelSide, Neurons

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

MEI = "mei"
AGENTS = ("inception", "revisit")  # that show most exciting images and controls
CONTROL = "control"
EQUAL = 1e-6  # relative: rates nearer to each other are the same
CLASSES = ((0.0, 0.1), (0.1, 0.3), (0.3, np.inf))  # true difference over the larger of the two rates
CANNOT = 2
HELP = """Print what the neurons of a simulated animal truly do to the images of an inception or control phase.

For example: stimloop truth sessions/2026-11-21-inception
"""
WORDS = (
    "The animal was simulated: only so can true rates be known. True: rates of its neurons to the frames of the log, "
    "without noise. Found: q at most the configured chance, from the fresh repeats."
)
COMPARED = (
    "By the difference of true rates, over the larger of both; found: in the true direction; wrong: in the other, or "
    "where the true rates are equal. Rates in spikes/s; + the MEI was found to drive the unit more than this control, "
    "- less."
)
console, errors = Console(), Console(stderr=True)


@dataclass(frozen=True)
class Pair:
    """A unit's most exciting image against one of its controls."""

    unit: str
    control: str
    true_mei_hz: float
    true_control_hz: float
    measured_difference: float
    q: float
    found: int
    """1: the most exciting image was found to drive it more, -1: less, 0: not told apart."""

    @property
    def true_difference(self) -> float:
        """True rate of the most exciting image less that of the control, over the larger of them; 0 where equal."""
        largest = max(self.true_mei_hz, self.true_control_hz, 1e-12)
        relative = (self.true_mei_hz - self.true_control_hz) / largest
        return 0.0 if abs(relative) <= EQUAL else relative


@dataclass(frozen=True)
class PhaseTruth:
    """An inception phase with its truth."""

    phase: int
    units: tuple[str, ...]
    mei_hz: F64
    """(unit, mei): true rate of each unit to the most exciting image of each."""
    row_maximum_found: float | None
    pairs: tuple[Pair, ...]
    agent: str = "inception"
    """One of AGENTS."""

    @property
    def row_maximum_true(self) -> float | None:
        """Share of units whose own image truly drives them most; None for fewer than two."""
        if len(self.units) < 2:
            return None
        own = np.diag(self.mei_hz)
        others = np.where(np.eye(len(own), dtype=np.bool_), -np.inf, self.mei_hz)
        return float((own > others.max(axis=1)).mean())

    def figures(self) -> dict[str, Any]:
        """Return counts by size of the true difference, the pairs and both row maxima."""
        rows = []
        for name, some in by_size(self.pairs):
            right = sum(p.found != 0 and np.sign(p.true_difference) == p.found for p in some)
            wrong = sum(p.found != 0 for p in some) - right
            rows.append({"true_difference": name, "comparisons": len(some), "found": right, "wrong": wrong})
        pairs = [{**asdict(p), "true_difference": p.true_difference} for p in self.pairs]
        return {
            "phase": self.phase + 1, "agent": self.agent, "units": list(self.units),
            "row_maximum_true": self.row_maximum_true, "row_maximum_found": self.row_maximum_found,
            "true_mei_hz": self.mei_hz.tolist(), "by_size": rows, "comparisons": pairs,
        }  # fmt: skip

    def tables(self) -> list[Table]:
        """Return what is printed."""
        classes = Table(f"phase {self.phase + 1}: truly", "comparisons", "found", "wrong", title_justify="left")
        for row in self.figures()["by_size"]:
            if row["comparisons"]:
                classes.add_row(*(str(row[name]) for name in ("true_difference", "comparisons", "found", "wrong")))
        controls = list(dict.fromkeys(p.control for p in self.pairs))
        rates = Table("unit", "MEI", *controls)
        for k, unit in enumerate(self.units):
            of = {p.control: p for p in self.pairs if p.unit == unit}
            marks = {1: " +", 0: "", -1: " -"}
            cells = [f"{of[c].true_control_hz:.1f}{marks[of[c].found]}" if c in of else "" for c in controls]
            rates.add_row(unit, f"{self.mei_hz[k, k]:.1f}", *cells)
        return [classes, rates]


def by_size(pairs: tuple[Pair, ...]) -> list[tuple[str, list[Pair]]]:
    """Return the pairs whose truth is equal, and those where it differs, by direction and size of the difference."""
    out = [("equal", [p for p in pairs if p.true_difference == 0])]
    for sign, word in ((1, "more"), (-1, "less")):
        for low, high in CLASSES:
            some = [p for p in pairs if p.true_difference * sign > 0 and low <= abs(p.true_difference) < high]
            ends = f"{100 * low:.0f} to {100 * high:.0f} %" if np.isfinite(high) else f"over {100 * low:.0f} %"
            out.append((f"{word}, {ends}", some))
    return out


# --- from the log -----------------------------------------------------------------------------------------------------


@dataclass
class _Shown:
    """What the log holds of one inception or control phase."""

    agent: str
    frames: dict[str, tuple[U8, Place | None]] = field(default_factory=dict)
    """Of each image that was shown back: frame and place."""
    natural: dict[str, tuple[BankImage, Place | None]] = field(default_factory=dict)
    """Of each natural image: where it is from, and its place."""
    held_out: set[str] = field(default_factory=set)
    """Of them those that no model was fitted to; empty in logs from before this was said there."""
    scores: tuple[ImageScore, ...] = ()
    report: dict[str, float] = field(default_factory=dict)


def truths(folder: Path, neurons: "Callable[[Config], Neurons]") -> list[PhaseTruth | ControlTruth]:
    """Return the truth of each phase of AGENTS and CONTROL of the session in `folder`.

    Raises ConfigError where there is no session, the animal was not simulated, or nothing was shown back.
    """
    journal = folder / "session.journal"
    if not journal.is_file():
        raise ConfigError(f"{folder}: holds no session.journal; give the folder of a session")
    try:
        start = session_start(journal)
        config = config_of(start)
        if not start.simulated:
            raise ConfigError(f"{folder}: a real animal was recorded, whose true rates nobody knows; see its report")
        found = {phase: shown for phase, shown in sorted(_read(journal).items()) if shown.scores}
        if not found:
            raise ConfigError(f"{folder}: no images of an inception or control phase were shown back in this session")
        animal = _Animal(config, neurons(config))
        return [(_control if one.agent == CONTROL else _truth)(phase, one, animal) for phase, one in found.items()]
    except ReplayError as error:
        raise ConfigError(f"{folder}: {error}") from error


def _read(journal: Path) -> dict[int, _Shown]:
    found: dict[int, _Shown] = {}
    for record in Log(journal):
        if record.kind not in ("proposal", "model_updated"):
            continue
        try:
            document = record.entry.document
        except BadDocument:
            continue  # an unreadable record was left out live as well
        if isinstance(document, Proposal) and document.agent in (*AGENTS, CONTROL):
            here = found.setdefault(document.phase, _Shown(document.agent))
            for stimulus in document.stimuli:
                if isinstance(stimulus.spec, LatentImage) and stimulus.id not in here.frames:
                    here.frames[stimulus.id] = np.array(document.frames[stimulus.spec.row]), document.place
                elif isinstance(stimulus.spec, BankImage):
                    here.natural.setdefault(stimulus.id, (stimulus.spec, document.place))
                    if HELD_OUT in stimulus.figures:
                        here.held_out.add(stimulus.id)
        elif isinstance(document, ModelUpdated) and document.phase in found:
            # The newest report has all of them.
            found[document.phase].scores = document.scores or found[document.phase].scores
            found[document.phase].report = dict(document.report)
    return found


class _Animal:
    """The simulated neurons, and what lies in front of their eye."""

    def __init__(self, config: Config, population: "Neurons") -> None:
        self.config, self._population, self.units = config, population, population.units
        self._field, self._background = field_rect(config), config.display.background

    def rect(self, place: Place | None) -> Rect:
        """Return the pixels of images at a place."""
        return rect_of(self.config.display, usual(self.config.stimulus) if place is None else place)

    def rates(self, frame: U8, place: Place | None) -> F64:
        """Return the noise-free rates (unit,), spikes/s, to a frame (y, x, rgb) of the log.

        It is from before the gamma table, which makes light proportional to level.
        """
        light = in_field(frame, self.rect(place), self._field, self._background).astype(np.float32) / np.float32(255)
        return self._population.rate_hz(light)


def _control(phase: int, shown: _Shown, animal: _Animal) -> ControlTruth:
    settings = animal.config.phases[phase]
    assert isinstance(settings, ControlPhase)  # noqa: S101 - its proposals say so
    banks = banks_of(animal.config)
    natural = {}
    for name, (spec, place) in shown.natural.items():
        rect = animal.rect(place)
        natural[name] = animal.rates(banks[spec.bank].image(spec.name, rect.height, rect.width), place)
    back = {score.stimulus_id: animal.rates(*shown.frames[score.stimulus_id]) for score in shown.scores}
    stated = Stated(shown.scores, shown.report, settings.targets, settings.chance)
    return control_truth(phase, stated, animal.units, back, natural, shown.held_out)


def _truth(phase: int, shown: _Shown, animal: _Animal) -> PhaseTruth:
    of = {score.stimulus_id: animal.rates(*shown.frames[score.stimulus_id]) for score in shown.scores}
    column = {unit: k for k, unit in enumerate(animal.units)}
    images: dict[str, dict[str, ImageScore]] = {}
    for score in shown.scores:
        images.setdefault(score.target, {})[score.source] = score
    units = tuple(unit for unit in images if MEI in images[unit] and unit in column)
    chance = getattr(animal.config.phases[phase], "chance", 0.0)
    pairs = []
    for unit in units:
        own = images[unit][MEI]
        for control, other in images[unit].items():
            if f"{unit}: q_{control}" not in shown.report:
                continue  # shown for another reason than the test, or the phase did not come to its end
            q, difference = shown.report[f"{unit}: q_{control}"], own.raw - other.raw
            true_hz, control_hz = (float(of[one.stimulus_id][column[unit]]) for one in (own, other))
            verdict = int(np.sign(difference)) if q <= chance else 0
            pairs.append(Pair(unit, control, true_hz, control_hz, difference, q, verdict))
    mei = np.array([[of[images[other][MEI].stimulus_id][column[unit]] for other in units] for unit in units])
    return PhaseTruth(phase, units, mei, shown.report.get("row_maximum"), tuple(pairs), shown.agent)


# --- the command ------------------------------------------------------------------------------------------------------


def add_truth(app: typer.Typer, models: "Callable[[], ModelSide]") -> None:
    """Add the command to `app`; `models()` imports and returns the model side when it is needed."""

    @app.command("truth", help=HELP)
    def truth(
        folder: Annotated[Path, typer.Argument(help="Session folder, for example sessions/2026-11-21-inception.")],
        as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
    ) -> None:
        try:
            found = truths(folder, models().neurons)
        except (ConfigError, OSError) as error:
            errors.print(f"[bold red]error[/] {error}", highlight=False, soft_wrap=True)
            raise typer.Exit(CANNOT) from error
        if as_json:
            console.print_json(json.dumps([one.figures() for one in found]))
            return
        for one in found:
            for table in one.tables():
                console.print(table)
            maxima = (one.row_maximum_true, one.row_maximum_found) if isinstance(one, PhaseTruth) else (None, None)
            if None not in maxima:
                console.print(
                    f"own image is the row maximum: truly in {maxima[0]:.0%} of the units, found in {maxima[1]:.0%}",
                    highlight=False,
                )
        if any(isinstance(one, PhaseTruth) for one in found):
            console.print(COMPARED, highlight=False, soft_wrap=True)
        if any(isinstance(one, ControlTruth) for one in found):
            console.print(CONTROL_WORDS, highlight=False, soft_wrap=True)
        console.print(WORDS, highlight=False, soft_wrap=True)
