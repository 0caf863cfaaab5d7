"""`stimloop truth`: what the simulated animal's neurons truly do to images that were shown back, beside what was found.

True rates are known only because the animal is simulated: the frames of the log are shown to its neurons once more,
without noise. So one sees how often the tests of a session were right. Joined with the neurons by `rig.cli`.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
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
from rig.messages import ImageScore, ModelUpdated, PhaseEnded, Proposal, SessionStop
from rig.replay.frames import banks_of
from rig.replay.records import Log, ReplayError, config_of, session_start
from rig.true_control import WORDS as CONTROL_WORDS
from rig.true_control import ControlTruth, Stated, control_truth
from stimuli.geometry import Rect
from stimuli.spec import HELD_OUT, BankImage, LatentImage, Place

if TYPE_CHECKING:
    from rig.replay.model_side import BestHz, ModelSide, Neurons

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

MEI = "mei"
AGENTS = ("inception", "revisit")  # that show most exciting images and controls
CONTROL = "control"
TESTED = ": q_"  # in the name of every figure of a test
LEAST_PAIRS = 6  # of repeats, as models.statistics asks
RUNNING = "the log ends before the phase does"
NEAR_BEST = 0.9  # of what the best possible image does above the background
EQUAL = 1e-6  # relative: rates nearer to each other are the same
CLASSES = ((0.0, 0.1), (0.1, 0.3), (0.3, np.inf))  # true difference over the larger of the two rates
CANNOT = 2
WHITE = 255
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
BEST = "Best possible: found by a search with the cell's own formula; all of the image's contrast where the cell looks."
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
    untested: str = ""
    """Why nothing was tested; "" where something was."""
    blank_hz: tuple[float, ...] = ()
    """Of each unit: true rate to the background alone."""
    best_hz: tuple[float | None, ...] = ()
    """Of each unit: true rate to the best image found for it with its own formula, of the contrast and at the place of
    its most exciting image; None where that cannot be told (a published model, say)."""

    @property
    def shares_of_best(self) -> tuple[float | None, ...]:
        """What each most exciting image does above the background, as a share of what the best image does."""
        out: list[float | None] = []
        for own, blank, best in zip(np.diag(self.mei_hz), self.blank_hz, self.best_hz, strict=True):
            out.append(None if best is None or best <= blank else float((own - blank) / (best - blank)))
        return tuple(out)

    @property
    def first_true(self) -> tuple[bool, ...]:
        """Of each unit with comparisons: whether its most exciting image truly does more than each of its controls."""
        of = [[p.true_difference > 0 for p in self.pairs if p.unit == unit] for unit in self.units]
        return tuple(all(more) for more in of if more)

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
            right = sum(p.found != 0 and bool(np.sign(p.true_difference) == p.found) for p in some)
            wrong = sum(p.found != 0 for p in some) - right
            rows.append({"true_difference": name, "comparisons": len(some), "found": right, "wrong": wrong})
        pairs = [{**asdict(p), "true_difference": p.true_difference} for p in self.pairs]
        return {
            "phase": self.phase + 1, "agent": self.agent, "untested": self.untested, "units": list(self.units),
            "row_maximum_true": self.row_maximum_true, "row_maximum_found": self.row_maximum_found,
            "mei_first_true": sum(self.first_true), "mei_first_of": len(self.first_true),
            "true_mei_hz": self.mei_hz.tolist(), "true_blank_hz": list(self.blank_hz),
            "true_best_hz": list(self.best_hz), "shares_of_best": list(self.shares_of_best),
            "by_size": rows, "comparisons": pairs,
        }  # fmt: skip

    def tables(self) -> list[Table]:
        """Return what is printed; nothing of a phase in which nothing was tested."""
        if self.untested:
            return []
        classes = Table(f"phase {self.phase + 1}: truly", "comparisons", "found", "wrong", title_justify="left")
        for row in self.figures()["by_size"]:
            if row["comparisons"]:
                classes.add_row(*(str(row[name]) for name in ("true_difference", "comparisons", "found", "wrong")))
        controls = list(dict.fromkeys(p.control for p in self.pairs))
        known = any(best is not None for best in self.best_hz)
        rates = Table("unit", *(["best possible"] if known else []), "MEI", *controls)
        for k, unit in enumerate(self.units):
            of = {p.control: p for p in self.pairs if p.unit == unit}
            marks = {1: " +", 0: "", -1: " -"}
            cells = [f"{of[c].true_control_hz:.1f}{marks[of[c].found]}" if c in of else "" for c in controls]
            best = self.best_hz[k]
            bests = ["" if best is None else f"{best:.1f}"] if known else []
            rates.add_row(unit, *bests, f"{self.mei_hz[k, k]:.1f}", *cells)
        return [classes, rates]

    def in_words(self) -> list[str]:
        """Return what is said below the tables."""
        said = untested_in_words(self.phase, self.untested)
        if self.row_maximum_true is not None and self.row_maximum_found is not None:
            said.append(
                f"own image is the row maximum: truly in {self.row_maximum_true:.0%} of the units, found in "
                f"{self.row_maximum_found:.0%}{' so far' if self.untested else ''}"
            )
        if first := self.first_true:
            said.append(f"the MEI truly does most of all images of its unit in {sum(first)} of {len(first)} units")
        if shares := [share for share in self.shares_of_best if share is not None]:
            good = sum(share >= NEAR_BEST for share in shares)
            said.append(
                f"of what the best possible image of the same contrast does above the background the MEI does, truly, "
                f"{np.median(shares):.0%} (median of {len(shares)} units, {min(shares):.0%} to {max(shares):.0%}); "
                f"{NEAR_BEST:.0%} or more in {good} of {len(shares)}. {BEST}"
            )
        return said


def untested_in_words(phase: int, why: str) -> list[str]:
    """Return what is said of a phase, numbered from 0, in which nothing was tested; nothing where `why` is ""."""
    return [f"phase {phase + 1}: nothing was tested: {why}"] if why else []


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
    ended: str = RUNNING
    """How it ended."""

    @property
    def untested(self) -> str:
        """Return why nothing was tested; "" where something was."""
        if any(TESTED in name for name in self.report):
            return ""
        if not self.scores:
            return f"no image was shown back ({self.ended})"
        return f"{self.ended}; tests are made when all was shown back, of images with {LEAST_PAIRS} usable repeats"


def truths(
    folder: Path, neurons: "Callable[[Config], Neurons]", best_hz: "BestHz"
) -> list[PhaseTruth | ControlTruth]:
    """Return the truth of each phase of AGENTS and CONTROL of the session in `folder`.

    Of a phase that showed nothing back only why. Raises ConfigError where there is no session, the animal was not
    simulated, or no phase showed anything back.
    """
    journal = folder / "session.journal"
    if not journal.is_file():
        raise ConfigError(f"{folder}: holds no session.journal; give the folder of a session")
    try:
        start = session_start(journal)
        config = config_of(start)
        if not start.simulated:
            raise ConfigError(f"{folder}: a real animal was recorded, whose true rates nobody knows; see its report")
        found = dict(sorted(_read(journal).items()))
        if not any(shown.scores for shown in found.values()):
            why = "".join(f"; phase {phase + 1}, {one.agent}: {one.ended}" for phase, one in found.items())
            raise ConfigError(
                f"{folder}: no images of an inception or control phase were shown back in this session: nothing was "
                f"tested{why}"
            )
        animal = _Animal(config, neurons(config), best_hz)
        return [(_control if one.agent == CONTROL else _truth)(phase, one, animal) for phase, one in found.items()]
    except ReplayError as error:
        raise ConfigError(f"{folder}: {error}") from error


def _read(journal: Path) -> dict[int, _Shown]:
    found: dict[int, _Shown] = {}
    for record in Log(journal):
        if record.kind not in ("proposal", "model_updated", "phase_ended", "session_stop"):
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
        elif isinstance(document, PhaseEnded) and document.phase in found:
            found[document.phase].ended = f"it ended with: {document.reason}"
        elif isinstance(document, SessionStop):
            for here in found.values():
                if here.ended == RUNNING:
                    here.ended = f"the session ended before the phase did: {document.reason}"
    return found


class _Animal:
    """The simulated neurons, and what lies in front of their eye."""

    def __init__(self, config: Config, population: "Neurons", best_hz: "BestHz") -> None:
        self.config, self._population, self.units = config, population, population.units
        self._best_hz = best_hz
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

    def best_hz(self, unit: str, frame: U8, place: Place | None) -> float | None:
        """Return the rate of a unit, spikes/s, to the best image of a frame's contrast at its place, if known."""
        contrast = float(frame[..., 1].std()) / WHITE * 2  # grey frames: any channel
        return self._best_hz(self.config, self._population, unit, self.rect(place), contrast)


def _control(phase: int, shown: _Shown, animal: _Animal) -> ControlTruth:
    if not shown.scores:
        return ControlTruth(phase, (), shown.report, shown.untested)
    settings = animal.config.phases[phase]
    assert isinstance(settings, ControlPhase)  # noqa: S101 - its proposals say so
    banks = banks_of(animal.config)
    natural = {}
    for name, (spec, place) in shown.natural.items():
        rect = animal.rect(place)
        natural[name] = animal.rates(banks[spec.bank].image(spec.name, rect.height, rect.width), place)
    back = {score.stimulus_id: animal.rates(*shown.frames[score.stimulus_id]) for score in shown.scores}
    stated = Stated(shown.scores, shown.report, settings.targets, settings.chance)
    truth = control_truth(phase, stated, animal.units, back, natural, shown.held_out)
    return replace(truth, untested=shown.untested)


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
    best, blank = [], []
    for unit in units:
        frame, place = shown.frames[images[unit][MEI].stimulus_id]
        best.append(animal.best_hz(unit, frame, place))
        background = np.full_like(frame, animal.config.display.background)
        blank.append(float(animal.rates(background, place)[column[unit]]))
    return PhaseTruth(
        phase, units, mei, shown.report.get("row_maximum"), tuple(pairs), shown.agent, shown.untested, tuple(blank),
        tuple(best),
    )  # fmt: skip


# --- the command ------------------------------------------------------------------------------------------------------


def add_truth(app: typer.Typer, models: "Callable[[], ModelSide]") -> None:
    """Add the command to `app`; `models()` imports and returns the model side when it is needed."""

    @app.command("truth", help=HELP)
    def truth(
        folder: Annotated[Path, typer.Argument(help="Session folder, for example sessions/2026-11-21-inception.")],
        as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
    ) -> None:
        try:
            found = truths(folder, models().neurons, models().best_hz)
        except (ConfigError, OSError) as error:
            errors.print(f"[bold red]error[/] {error}", highlight=False, soft_wrap=True)
            raise typer.Exit(CANNOT) from error
        if as_json:
            console.print_json(json.dumps([one.figures() for one in found]))
            return
        for one in found:
            for table in one.tables():
                console.print(table)
            said = one.in_words() if isinstance(one, PhaseTruth) else untested_in_words(one.phase, one.untested)
            for line in said:
                console.print(line, highlight=False, soft_wrap=True, markup=False)
        if any(isinstance(one, PhaseTruth) and not one.untested for one in found):
            console.print(COMPARED, highlight=False, soft_wrap=True)
        if any(isinstance(one, ControlTruth) and one.goals for one in found):
            console.print(CONTROL_WORDS, highlight=False, soft_wrap=True)
        console.print(WORDS, highlight=False, soft_wrap=True)
