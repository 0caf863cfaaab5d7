"""The experimenter's terminal: a fold over the journal that says where the session is and how it goes."""

import re
from collections import Counter
from pathlib import Path
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rig.config.control import ControlPhase
from rig.config.first_minutes import presentations
from rig.config.inception import InceptionPhase
from rig.config.phases import ConfirmPhase, EvolvePhase, MapPhase, PresentPhase, ScreenPhase
from rig.config.revisit import RevisitPhase
from rig.config.session import Config
from rig.config.sources import LslCalciumSource, LslCountSource, TracesWireSource
from rig.messages import (
    FALLBACK_OVER,
    RATE_UNITS,
    Entry,
    Fault,
    ModelUpdated,
    OutputDone,
    Pause,
    PhaseEnded,
    Presented,
    Proposal,
    Response,
    StopRequested,
    TrialIntent,
)
from rig.recording.journal import JournalReader
from rig.responses.gaze_lately import GazeLately

Measure = Literal["spikes", "counts", "deconvolved", "dff"]
WAIT_SHOWN_NS = 2_000_000_000  # a fixation takes a moment before every trial: a longer wait is worth a row
LEARNS = ("inception", "control", "revisit")  # their figures are of a model or of many images, not spikes/s
REASONS = 2
LONGEST_REASON = 70


def planned(config: Config) -> int:
    """Return the number of presentations that the config asks for."""
    total = targets = 0
    for phase in config.phases:
        if isinstance(phase, EvolvePhase):
            total += phase.presentations()
            targets += phase.target_count
        elif isinstance(phase, ConfirmPhase):
            total += phase.presentations(targets)
        elif isinstance(phase, MapPhase | ScreenPhase):
            total += presentations(phase)
        elif isinstance(phase, InceptionPhase | ControlPhase):
            total += phase.presentations(len(config.responses.units))
        elif isinstance(phase, RevisitPhase):
            total += phase.presentations()
        elif isinstance(phase, PresentPhase):
            total += phase.repeats * (phase.count + phase.blanks)
    return total


def measured(config: Config) -> Measure:
    """Return what the config's responses measure: a key of `RATE_UNITS`."""
    neural = config.neural
    if isinstance(neural, TracesWireSource | LslCalciumSource):
        return neural.calcium.measure
    return "counts" if isinstance(neural, LslCountSource) else "spikes"


def expected_s(config: Config, presentations: int) -> float:
    """Return how long `presentations` take by the config, s."""
    p = config.presentation
    return presentations * (p.on_s + p.off_s) + presentations / p.images_per_trial * p.inter_trial_s


class FixationWait:
    """Since when the rig has shown nothing because the animal does not fixate."""

    def __init__(self, config: Config) -> None:
        """Watch the config's fixation gate, if our own rig waits for it; a guest decides by itself."""
        fixation = config.gates.fixation if config.guest is None else None
        self._lately = None if fixation is None else GazeLately(fixation)
        self._pause_ns = int(config.presentation.inter_trial_s * 1e9)
        self._planned: set[tuple[int, int]] = set()  # (proposal, slot) not shown yet
        self._announced: set[int] = set()  # presentations of a trial that is being shown
        self._free_ns: int | None = None  # from when on the next trial could have begun
        self._now_ns = 0
        self._ended = False

    def apply(self, entry: Entry) -> None:
        """Take one entry of the log."""
        if self._lately is None:
            return
        document, self._now_ns = entry.document, max(self._now_ns, entry.envelope.receipt_host_ns)
        self._lately.take(document)
        if isinstance(document, Proposal):
            if not self._planned:
                self._free_ns = max(self._free_ns or 0, self._now_ns)
            self._planned.update((document.proposal, k) for k in range(len(document.plan)))
        elif isinstance(document, TrialIntent):
            self._announced = set(document.presentations)
        elif isinstance(document, Presented):
            self._announced.discard(document.presentation)
            self._planned.discard((document.proposal, document.slot))
            self._free_ns = document.offset_flip_host_ns + self._pause_ns
        elif isinstance(document, Fault):
            self._announced.difference_update(document.presentations)  # the rig names what it never showed
        elif isinstance(document, PhaseEnded):
            self._ended = document.last
        elif isinstance(document, StopRequested):
            self._ended = True

    def words(self) -> str:
        """Return for how long it has waited and where the gaze is, "" while it does not wait."""
        if self._lately is None or self._free_ns is None or self._ended or self._announced or not self._planned:
            return ""
        waited_ns = self._now_ns - self._free_ns
        if waited_ns < WAIT_SHOWN_NS:
            return ""
        return f"waiting for fixation {waited_ns * 1e-9:.0f} s; {self._lately.words(self._now_ns)}"


class ModelWait:
    """Since when only fallback images are shown, because the model server has proposed nothing."""

    def __init__(self) -> None:
        """Begin with nothing shown."""
        self._fallback = False  # whether the trial that is shown is one of fallback images only
        self._over = ""
        self._images = 0
        self._since_ns = self._now_ns = 0

    def apply(self, entry: Entry) -> None:
        """Take one entry of the log."""
        document, self._now_ns = entry.document, max(self._now_ns, entry.envelope.receipt_host_ns)
        if isinstance(document, Proposal | PhaseEnded | StopRequested):
            self._images, self._over = 0, ""
        elif isinstance(document, TrialIntent):
            self._fallback = all(slot < 0 for slot in document.slots)  # else images that only fill a trial
        elif isinstance(document, Presented) and self._fallback:
            if not self._images:
                self._since_ns = document.onset_flip_host_ns
            self._images += 1
        elif isinstance(document, Fault) and document.what == FALLBACK_OVER:
            self._over = "; no more of them: the screen is grey"

    def words(self) -> str:
        """Return for how long it has waited and what was shown meanwhile, "" while it does not wait."""
        if not self._images:
            return ""
        seconds = (self._now_ns - self._since_ns) * 1e-9
        return f"waiting for the model server for {seconds:.0f} s: {self._images} fallback images shown{self._over}"


class Progress:
    """What the terminal shows; `apply` takes entries, `render` makes the picture."""

    def __init__(self, config: Config) -> None:
        """Start at nothing shown."""
        self._config = config
        self._planned = planned(config)
        self._proposals: dict[int, tuple[int, str, int]] = {}  # number -> phase, agent, generation
        self._now = (0, "", 0)  # of what is on the screen
        self._shown = self._of_plan = self._answered = self._usable = self._late = 0
        self._report: dict[str, float] = {}
        self._measure = measured(config)
        self._faults: dict[str, int] = {}
        self._last_fault = ""
        self._ended = self._paused = ""
        self._wait, self._model_wait = FixationWait(config), ModelWait()
        self._reasons: Counter[str] = Counter()  # of unusable responses, their numbers left out
        self._example: dict[str, str] = {}  # newest reason of each kind, with its numbers
        self._rewards: Counter[bool] = Counter()  # given as asked, or not
        self._reward_ul = 0.0

    def apply(self, entry: Entry) -> None:
        """Take one entry of the log."""
        document = entry.document
        self._wait.apply(entry)
        self._model_wait.apply(entry)
        if isinstance(document, Proposal):
            self._proposals[document.proposal] = (document.phase, document.agent, document.generation)
        elif isinstance(document, Presented):
            self._shown += 1
            self._of_plan += document.slot >= 0  # fallback images take time, but nothing of the plan is done
            self._now = self._proposals.get(document.proposal, self._now)
            self._late += document.late_flips
        elif isinstance(document, Response):
            self._answered += 1
            self._usable += document.usable
            self._measure = document.measure
            if not document.usable:
                kind = re.sub(r"[0-9.]+", "#", document.reason)
                self._reasons[kind] += 1
                self._example[kind] = document.reason
        elif isinstance(document, OutputDone):
            if document.what == "reward":
                self._rewards[document.done] += 1
                self._reward_ul = document.session_volume_ul or self._reward_ul
        elif isinstance(document, ModelUpdated):
            self._report = document.report
        elif isinstance(document, Fault):
            self._faults[document.what] = self._faults.get(document.what, 0) + 1
            self._last_fault = f"{document.what}: {document.detail} ({document.done})"
        elif isinstance(document, Pause):
            self._paused = document.reason if document.paused else ""
        elif isinstance(document, PhaseEnded):
            self._ended = document.reason if document.last else ""
        elif isinstance(document, StopRequested):
            self._ended = document.reason

    def render(self) -> RenderableType:
        """Return the table of the moment."""
        table = Table.grid(padding=(0, 2))
        left_s = expected_s(self._config, max(self._planned - self._of_plan, 0))
        rate = ", ".join(self._rates())
        rows = [
            ("phase", f"{self._now[0] + 1} of {len(self._config.phases)}, {self.place}"),
            ("presentations", f"{self._count()}, {self._usable} of {self._answered} responses usable"),
            ("result" if self._learns else f"response, {RATE_UNITS[self._measure]}", rate or "-"),
            ("late flips", str(self._late)),
            ("faults", ", ".join(f"{n} x {w}" for w, n in self._faults.items()) or "none"),
            ("ended", self._ended) if self._ended else ("time left", f"about {left_s:.0f} s"),
        ]
        if self._reasons:
            rows.insert(2, ("not usable", self._why_not_usable()))
        if self._config.reward is not None:
            rows.insert(-2, ("reward", self._reward()))
        if self._paused:
            rows.append(("paused", f"nothing is shown: {self._paused}"))
        if waiting := self._wait.words():
            rows.append(("fixation", waiting))
        if waiting := self._model_wait.words():
            rows.append(("model", waiting))
        for name, value in rows:
            table.add_row(Text(name, style="bold"), value)
        if self._last_fault:
            return Group(table, Text(f"last fault: {self._last_fault}", style="yellow"))
        return table

    @property
    def _learns(self) -> bool:
        return self._now[1] in LEARNS

    def _count(self) -> str:
        """Say how many were shown; repeats of what was unusable and fallback images come on top of the plan."""
        planned = min(self._of_plan, self._planned)
        more = self._shown - planned
        return f"{planned} of {self._planned}" + (f" and {more} more" if more else "")

    def _why_not_usable(self) -> str:
        """Name the most frequent reasons; of reasons that differ in their numbers only, the newest."""
        words = []
        for kind, count in self._reasons.most_common(REASONS):
            reason = self._example[kind] or "no reason given"
            short = reason if len(reason) <= LONGEST_REASON else reason[: LONGEST_REASON - 2].rstrip() + " …"
            words.append(f"{count} x {short}")
        rest = self._reasons.total() - sum(count for _, count in self._reasons.most_common(REASONS))
        return "; ".join(words) + (f"; {rest} for other reasons" if rest else "")

    def _reward(self) -> str:
        limits = self._config.reward
        most = f" of {limits.max_session_ml:g} mL" if limits is not None else ""
        less = f"; {self._rewards[False]} not as asked" if self._rewards[False] else ""
        return f"{self._rewards[True]}, {self._reward_ul / 1000:.3f} mL{most}{less}"

    def _rates(self) -> list[str]:
        """Name the figures: means of many trials; a single lucky trial is no result and is not shown."""
        names = {"mean": "mean of candidates", "best": "last winner shown again", "reference": "best reference"}
        if self._now[1] == "present":
            count = len(self._config.responses.units)
            over = "mean of images" if count == 1 else f"mean over {count} units: all images"
            names = {"mean": over, "best": "best image", "blank": "blank"}
        if self._now[1] in ("inception", "control"):
            return self._learnt()
        if self._now[1] == "revisit":
            return self._found_again()
        if self._now[1] == "confirm":
            names = {"best": "evolved images", "reference": "references that were best before"}
        digits = 1 if self._measure == "spikes" else 3
        return [f"{name} {self._report[key]:.{digits}f}" for key, name in names.items() if key in self._report]

    def _found_again(self) -> list[str]:
        """Say which units of another day were found again, and what came of their images so far."""
        report, words = self._report, []
        if "verified" in report:
            words.append(f"{report['verified']:.0f} of {report['pairs']:.0f} units verified to be those of that day")
        if "row_maximum" in report:
            words.append(f"own image of that day drives the unit most in {report['row_maximum']:.0%}")
        return words

    def _learnt(self) -> list[str]:
        """Say what the encoder of an inception phase is worth, and what came of its images so far."""
        report, words = self._report, []
        if "heldout_r" in report:
            words.append(f"held-out r {report['heldout_r']:.2f} after {report['images_seen']:.0f} presentations")
        if "chosen" in report:
            words.append(f"{report['chosen']:.0f} units chosen")
        if "row_maximum" in report:
            words.append(f"own image drives the unit most in {report['row_maximum']:.0%}")
        if "stretch_above_natural" in report:
            words.append(f"{report['stretch_above_natural']:.0%} of sites driven above the best natural image")
        if "one_hot_made" in report:
            made, natural = report["one_hot_made"], report["one_hot_natural"]
            words.append(f"one-hot score {made:.2f}, of natural images {natural:.2f}")
        return words

    def line(self) -> str:
        """Return the same in one line, for logs without a terminal."""
        above = "" if self._config.responses.baseline.kind == "none" else " above baseline"
        what = "" if self._learns else f"{RATE_UNITS[self._measure]}{above}: "
        return (
            f"{self.place}: {self._count()} shown, {self._usable} usable, late flips {self._late}, "
            f"faults {sum(self._faults.values())}; {what}{', '.join(self._rates()) or '-'}"
            + (f"; not usable: {self._why_not_usable()}" if self._reasons else "")
            + (f"; reward {self._reward()}" if self._config.reward is not None else "")
            + "".join(f"; {waiting}" for wait in (self._wait, self._model_wait) if (waiting := wait.words()))
        )

    @property
    def place(self) -> str:
        """What is on the screen, in words."""
        _, agent, generation = self._now
        paused = f", PAUSED ({self._paused})" if self._paused else ""
        return f"{agent or 'start'} {'block' if self._learns else 'generation'} {generation + 1}{paused}"


KINDS = frozenset(
    {
        "proposal", "trial_intent", "presented", "response", "model_updated", "fault", "phase_ended", "stop_requested",
        "output_done", "behaviour_block", "tick", "pause",
    }
)  # fmt: skip


class JournalTail:
    """Follows a journal that may not be there yet."""

    def __init__(self, path: Path) -> None:
        """Follow `path`."""
        self._path = path
        self._reader: JournalReader | None = None

    def read(self) -> list[Entry]:
        """Return the new entries."""
        if self._reader is None:
            if not self._path.exists():
                return []
            self._reader = JournalReader(self._path, KINDS)
        return self._reader.read()

    def close(self) -> None:
        """Close the file."""
        if self._reader is not None:
            self._reader.close()
