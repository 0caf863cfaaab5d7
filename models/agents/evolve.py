"""The evolve agent: images that drive (or silence) units, found by an optimiser over a generator's codes.

A batch is one generation of every target that shares its place: their candidates shuffled together with blanks, so that
no target is ahead of another; then the tail, shuffled too: the same natural references every time, and for each target
the best images of the generation before, shown again. While the tail is on the screen the next generation is computed,
so the algorithms stay as published and the screen never waits. Targets at different places (or sizes) take turns by
batch. Re-shows measure the winners anew: the score by which an image was chosen overrates it.

A code that its optimiser asks for again is the same image: same identity, role "candidate", and its score is the
optimiser's. The agent's own re-shows have the role "reshow" and are told as measurements that nobody asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.agents.breeding import Breeding
from models.agents.carried import Leaves, Measured
from models.agents.evolution import Evolution, Row
from models.agents.ledger import Ledger
from models.agents.stop import Lately, stopped
from models.agents.types import F64, Batch, Told
from rig.config.phases import EvolvePhase
from rig.messages import ImageScore
from stimuli.generators.generator import Generator
from stimuli.search.optimiser import Asked, Optimiser
from stimuli.spec import Place, Stimulus

KEPT_PROPOSALS = 8  # of which it is remembered when they were shown


@dataclass(frozen=True)
class Group:
    """Targets whose images lie at one place, and share a batch."""

    place: Place | None
    generator: Generator
    evolutions: tuple[Evolution, ...]
    references: tuple[Stimulus, ...]


class Evolve:
    """Evolves images for one target, or several at once."""

    def __init__(
        self, phase: EvolvePhase, groups: tuple[Group, ...], units: tuple[str, ...], rng: np.random.Generator
    ) -> None:
        """Evolve for the targets in `groups`; `units` are the scored ones, in the order of the responses.

        `rng` shuffles the batches; each optimiser has its own.
        """
        self.phase, self.groups, self.units = phase, groups, units
        self.rng = rng
        self.evolutions = tuple(e for group in groups for e in group.evolutions)
        self._ledger = Ledger(len(units), self._holds)
        self._batch = -1
        self._planned = 0  # presentations of all batches so far
        self._sizes = [0 for _ in groups]  # presentations of the newest batch of each group
        self._begins: dict[int, int] = {}  # proposal: presentations of the phase before it
        shape = (len({r.id for group in groups for r in group.references}), len(units))
        self._reference_row = {
            name: k for k, name in enumerate(dict.fromkeys(r.id for g in groups for r in g.references))
        }
        self._reference_sum: F64 = np.zeros(shape)
        self._reference_count = np.zeros(shape, np.int64)
        self._lately = Lately(phase.stop.unusable_over)
        self._scored: tuple[ImageScore, ...] = ()
        self._why: str | None = None  # it ends

    @property
    def generator(self) -> Generator:
        """The generator of its first target."""
        return self.groups[0].generator

    # --- the contract -------------------------------------------------------------------------------------------------

    def ask(self) -> Breeding:
        """Return the computation of the next batch."""
        self._ledger.require_main_told()
        return Breeding(self, self.groups[(self._batch + 1) % len(self.groups)], self._batch + 1)

    def tell(self, told: Sequence[Told]) -> None:
        """Take outcomes. A candidate counts while its generation is open; late ones count as measurements only."""
        rows: dict[int, list[tuple[Told, Row]]] = {}
        references: list[tuple[Evolution, Told, float, float]] = []
        for row, in_main in self._ledger.take(told):
            self._lately.take(row.rate_hz is not None)
            when = self._when(row, in_main)
            if row.rate_hz is None or row.role == "blank":
                continue
            if row.role == "reference":
                references += self._reference(row, when)
                continue
            for k, evolution in enumerate(self.evolutions):
                code = evolution.code_of(row.stimulus_id)
                if code is not None:
                    value = evolution.value(row.rate_hz, self.units)
                    extra = row.role == "reshow" or not in_main
                    rows.setdefault(k, []).append((row, Row(code, value, when, extra)))
        scored = []  # after all references of the same time: they say how to correct
        for evolution, row, value, when in references:
            corrected = value if evolution.drift is None else evolution.drift.correct(value, when)
            scored.append(self._score(evolution, row, value, corrected))
        for k, of in rows.items():
            evolution = self.evolutions[k]
            for (row, one), corrected in zip(of, evolution.take([one for _, one in of]), strict=True):
                if row.role == "reshow":
                    evolution.again(row.stimulus_id, one.value, corrected)
                scored.append(self._score(evolution, row, one.value, corrected))
        self._scored = tuple(scored)
        if self._batch >= 0 and self._ledger.main_told:
            for evolution in self.groups[self._batch % len(self.groups)].evolutions:
                evolution.summarise()
            self._why = self._why or self._reason()

    def report(self) -> dict[str, float]:
        """Return figures of the newest generation that was told; values of the target, spikes/s.

        mean: over its candidates; top_single_trial: highest single score among them, which overrates its image;
        best: mean over the re-shows of the winner of generation best_generation, the newest one that was measured
        again, and best_reshows their number; missing: candidates without a score; reference: the best reference's mean
        over all its presentations, reference_mean: over all references. With several targets the names of each one's
        figures begin with its own, and mean, best and reference are also there as means over targets. Figures without
        data are left out.
        """
        out = {"generation": float(max((e.last.get("generation", 0.0) for e in self.evolutions), default=0.0))}
        each = []
        for group in self.groups:
            for evolution in group.evolutions:
                figures = evolution.report() | self._references_of(group, evolution)
                each.append(figures)
                if len(self.evolutions) > 1:
                    out |= {f"{evolution.target.title}: {name}": value for name, value in figures.items()}
        if len(each) == 1:
            return out | each[0]
        for name in ("mean", "best", "reference"):
            if values := [figures[name] for figures in each if name in figures]:
                out[name] = float(np.mean(values))
        return out | {"missing": sum(figures.get("missing", 0.0) for figures in each)}

    def finished(self) -> str | None:
        """Return why evolution ends: all generations were told, or a stop rule of the config held."""
        return self._why if self._ledger.main_told else None

    def _reason(self) -> str | None:
        if all(e.generation + 1 >= self.phase.generations for e in self.evolutions):
            return f"{self.phase.generations} generations were shown"
        following = self._sizes[(self._batch + 1) % len(self.groups)]
        reshown = [e.reshown() for e in self.evolutions]
        return stopped(self.phase.stop, reshown, self._planned, following, self._lately.unusable_share())

    def scored(self) -> tuple[ImageScore, ...]:
        """Return raw and corrected value of every image that the newest `tell` brought."""
        return self._scored

    def leaves(self) -> Leaves:
        """Return the images that each optimiser bets on, the references' means, and where each evolution stood."""
        mean = np.where(
            self._reference_count > 0, self._reference_sum / np.maximum(self._reference_count, 1), np.nan
        )
        return {
            "targets": tuple(e.target for e in self.evolutions),
            "images": tuple(n for e in self.evolutions if e.asked is not None for n in e.nominated()),
            "references": tuple(
                Measured(stimulus, mean[row], self._reference_count[row].copy(), group.place)
                for group in self.groups
                for stimulus in group.references
                for row in [self._reference_row[stimulus.id]]
            ),
            "ends": tuple(e.end() for e in self.evolutions if e.asked is not None),
        }

    def state(self) -> dict[str, Any]:
        """Return everything that decides what comes next and what is reported."""
        return {
            "rng": self.rng.bit_generator.state,
            "ledger": self._ledger.state(),
            "batch": self._batch,
            "planned": self._planned,
            "sizes": list(self._sizes),
            "begins": [[proposal, at] for proposal, at in self._begins.items()],
            "evolutions": [e.state() for e in self.evolutions],
            "reference_sum": self._reference_sum.copy(),
            "reference_count": self._reference_count.copy(),
            "lately": self._lately.state(),
            "why": self._why,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an agent built with the same arguments."""
        self.rng.bit_generator.state = state["rng"]
        self._ledger.restore(state["ledger"])
        self._batch, self._planned, self._sizes = state["batch"], state["planned"], list(state["sizes"])
        self._begins = dict(state["begins"])
        for evolution, its in zip(self.evolutions, state["evolutions"], strict=True):
            evolution.restore(its)
        self._reference_sum = np.array(state["reference_sum"], np.float64)
        self._reference_count = np.array(state["reference_count"], np.int64)
        self._lately.restore(state["lately"])
        self._scored, self._why = (), state["why"]

    def move_on(
        self, batch: Batch, number: int, bred: list[tuple[Optimiser, Asked, int, bool]], rng: np.random.Generator
    ) -> None:
        """Take over batch `number`: of each target the optimiser, what it asked for, rows it knew, whether re-shown."""
        if number != self._batch + 1:
            raise RuntimeError(f"batch {number} was computed from an older state; ask again")
        group = number % len(self.groups)
        for evolution, (optimiser, asked, told, shown_again) in zip(self.groups[group].evolutions, bred, strict=True):
            evolution.move_on(optimiser, asked, told, shown_again)
        self._batch, self.rng = number, rng
        self._sizes[group] = len(batch.plan)
        self._planned += len(batch.plan)
        self._ledger.open(batch)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _holds(self, row: Told) -> bool:
        """Return whether a row has what is needed of it: its target's value; any unit's for a reference or a blank."""
        assert row.rate_hz is not None  # noqa: S101 - the ledger asks for others only
        for evolution in self.evolutions:
            if evolution.code_of(row.stimulus_id) is not None:
                return bool(np.isfinite(evolution.value(row.rate_hz, self.units)))
        return bool(np.isfinite(row.rate_hz).any())

    def _when(self, row: Told, in_main: bool) -> float:
        """Return how many presentations of the phase were planned before this one."""
        if row.proposal not in self._begins:
            newest = self._sizes[self._batch % len(self.groups)]
            self._begins[row.proposal] = self._planned - newest if in_main else max(0, self._planned - 2 * newest)
            self._begins = dict(list(self._begins.items())[-KEPT_PROPOSALS:])
        return float(self._begins[row.proposal] + row.slot)

    def _reference(self, row: Told, when: float) -> list[tuple[Evolution, Told, float, float]]:
        """Take a reference; return what it is to each target that shows it."""
        assert row.rate_hz is not None  # noqa: S101 - seen by the caller
        known, at = np.isfinite(row.rate_hz), self._reference_row[row.stimulus_id]
        self._reference_sum[at, known] += row.rate_hz[known]
        self._reference_count[at] += known
        out = []
        for group in self.groups:
            if all(r.id != row.stimulus_id for r in group.references):
                continue
            for evolution in group.evolutions:
                value = evolution.value(row.rate_hz, self.units)
                if np.isfinite(value):
                    if evolution.drift is not None:
                        evolution.drift.tell(row.stimulus_id, value, when)
                    out.append((evolution, row, value, when))
        return out

    def _references_of(self, group: Group, evolution: Evolution) -> dict[str, float]:
        rows = [self._reference_row[r.id] for r in group.references]
        if not rows:
            return {}
        count, total = self._reference_count[rows], self._reference_sum[rows]
        mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        values = evolution.target.value(mean, self.units)
        values = values[np.isfinite(values)]
        if not len(values):
            return {}
        best = values[np.argmax(evolution.target.sign * values)]
        return {"reference": float(best), "reference_mean": float(values.mean())}

    @staticmethod
    def _score(evolution: Evolution, row: Told, value: float, corrected: float) -> ImageScore:
        return ImageScore(
            target=evolution.target.title,
            stimulus_id=row.stimulus_id,
            source=row.role,
            proposal=row.proposal,
            slot=row.slot,
            raw=value,
            corrected=corrected,
        )
