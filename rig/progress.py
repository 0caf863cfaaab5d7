"""The experimenter's terminal: a fold over the journal that says where the session is and how it goes."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rig.config import Config, EvolvePhase, PresentPhase
from rig.journal import JournalReader
from rig.messages import (
    RATE_UNITS,
    Entry,
    Fault,
    ModelUpdated,
    PhaseEnded,
    Presented,
    Proposal,
    Response,
    StopRequested,
)


def planned(config: Config) -> int:
    """Return the number of presentations that the config asks for."""
    total = 0
    for phase in config.phases:
        if isinstance(phase, EvolvePhase):
            population = 20 if phase.preset == "plos2020" else 40
            total += phase.generations * (population + phase.references + phase.reshows + phase.blanks)
            total -= phase.reshows  # the first generation has nothing to show again
        elif isinstance(phase, PresentPhase):
            total += phase.repeats * (phase.count + phase.blanks)
    return total


def expected_s(config: Config, presentations: int) -> float:
    """Return how long `presentations` take by the config, s."""
    p = config.presentation
    return presentations * (p.on_s + p.off_s) + presentations / p.images_per_trial * p.inter_trial_s


class Progress:
    """What the terminal shows; `apply` takes entries, `render` makes the picture."""

    def __init__(self, config: Config) -> None:
        """Start at nothing shown."""
        self._config = config
        self._planned = planned(config)
        self._proposals: dict[int, tuple[int, str, int]] = {}  # number -> phase, agent, generation
        self._now = (0, "", 0)  # of what is on the screen
        self._shown = self._answered = self._usable = self._late = 0
        self._report: dict[str, float] = {}
        self._measure = "spikes"
        self._faults: dict[str, int] = {}
        self._last_fault = ""
        self._ended = ""

    def apply(self, entry: Entry) -> None:
        """Take one entry of the log."""
        document = entry.document
        if isinstance(document, Proposal):
            self._proposals[document.proposal] = (document.phase, document.agent, document.generation)
        elif isinstance(document, Presented):
            self._shown += 1
            self._now = self._proposals.get(document.proposal, self._now)
            self._late += document.late_flips
        elif isinstance(document, Response):
            self._answered += 1
            self._usable += document.usable
            self._measure = document.measure
        elif isinstance(document, ModelUpdated):
            self._report = document.report
        elif isinstance(document, Fault):
            self._faults[document.what] = self._faults.get(document.what, 0) + 1
            self._last_fault = f"{document.what}: {document.detail} ({document.done})"
        elif isinstance(document, PhaseEnded):
            self._ended = document.reason if document.last else ""
        elif isinstance(document, StopRequested):
            self._ended = document.reason

    def render(self) -> RenderableType:
        """Return the table of the moment."""
        table = Table.grid(padding=(0, 2))
        left_s = expected_s(self._config, max(self._planned - self._shown, 0))
        rate = ", ".join(self._rates())
        rows = [
            ("phase", f"{self._now[0] + 1} of {len(self._config.phases)}, {self.place}"),
            ("presentations", f"{self._shown} of {self._planned}, {self._usable} of {self._answered} responses usable"),
            (f"response, {RATE_UNITS[self._measure]}", rate or "-"),
            ("late flips", str(self._late)),
            ("faults", ", ".join(f"{n} x {w}" for w, n in self._faults.items()) or "none"),
            ("time left", f"about {left_s:.0f} s" if not self._ended else self._ended),
        ]
        for name, value in rows:
            table.add_row(Text(name, style="bold"), value)
        if self._last_fault:
            return Group(table, Text(f"last fault: {self._last_fault}", style="yellow"))
        return table

    def _rates(self) -> list[str]:
        """Name the figures: means of many trials; a single lucky trial is no result and is not shown."""
        names = {"mean": "mean of candidates", "best": "last winner shown again", "reference": "best reference"}
        if self._now[1] == "present":
            names = {"mean": "mean of images", "best": "best image", "blank": "blank"}
        digits = 1 if self._measure == "spikes" else 3
        return [f"{name} {self._report[key]:.{digits}f}" for key, name in names.items() if key in self._report]

    def line(self) -> str:
        """Return the same in one line, for logs without a terminal."""
        return (
            f"{self.place}: {self._shown}/{self._planned} shown, {self._usable} usable, late flips {self._late}, "
            f"faults {sum(self._faults.values())}; {RATE_UNITS[self._measure]} above "
            f"baseline: {', '.join(self._rates()) or '-'}"
        )

    @property
    def place(self) -> str:
        """What is on the screen, in words."""
        _, agent, generation = self._now
        return f"{agent or 'start'} generation {generation + 1}"


KINDS = frozenset({"proposal", "presented", "response", "model_updated", "fault", "phase_ended", "stop_requested"})


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
