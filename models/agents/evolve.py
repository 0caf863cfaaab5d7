"""The evolve agent: the XDream genetic algorithm over a generator, for one unit (Ponce 2019; PLoS 2020).

A batch is one generation. Its main part are the algorithm's codes, shuffled with blanks; its tail, shuffled too, are
the same natural references every time and the best images of the generation before, shown again. While the tail is on
the screen the next generation is computed, so the algorithm stays as published and the screen never waits. Re-shows
measure the winners anew: the score by which an image was chosen overrates it.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from models.agents.ledger import Ledger
from models.agents.types import F32, F64, U8, Batch, Told
from rig.config.phases import EvolvePhase
from rig.messages import (
    Slot,
)
from stimuli.generators import Generator
from stimuli.search import PRESETS, XDreamGA
from stimuli.spec import Blank, LatentImage, Stimulus

DECODE_CHUNK = 8  # images decoded in one step: a few ms


class Origin(NamedTuple):
    """How an image came to be, as `Stimulus` says it."""

    parents: tuple[str, ...]
    how: str
    figures: dict[str, float]


class Evolve:
    """Evolves images for one unit."""

    def __init__(
        self,
        phase: EvolvePhase,
        phase_index: int,
        unit: int,
        units: int,
        generator: Generator,
        references: tuple[Stimulus, ...],
        rng: np.random.Generator,
    ) -> None:
        """Maximise unit number `unit` of `units` with images of `generator`; every draw comes from `rng`."""
        settings = PRESETS[phase.preset]
        self.phase, self.phase_index, self.unit = phase, phase_index, unit
        self.generator, self.references = generator, references
        self._ga = XDreamGA(settings, generator.start(settings.population, rng), rng)
        self._ledger = Ledger(units, unit)
        self._generation = -1
        self._ids: tuple[str, ...] = ()
        self._origins: tuple[Origin, ...] = ()
        self._scores: F64 = np.full(settings.population, np.nan)
        self._measured: dict[str, tuple[int, float]] = {}  # references and re-shows: number and sum of rates
        self._last: dict[str, Any] = {}  # summary of the newest generation that was told
        self._winners: list[tuple[int, str]] = []  # (generation, best image) of the newest three that are shown again

    # --- the contract -------------------------------------------------------------------------------------------------

    def ask(self) -> "Breeding":
        """Return the computation of the next generation."""
        self._ledger.require_main_told()
        return Breeding(self)

    def tell(self, told: Sequence[Told]) -> None:
        """Take outcomes. A candidate counts while its generation is open; if missing it comes again unchanged."""
        for row, in_main in self._ledger.take(told):
            if row.rate_hz is None:
                continue
            rate = float(row.rate_hz[self.unit])
            if in_main and row.role == "candidate":
                self._scores[self._ids.index(row.stimulus_id)] = rate
            elif row.role in ("reference", "reshow"):
                key = f"{row.role} {row.stimulus_id}"
                count, total = self._measured.get(key, (0, 0.0))
                self._measured[key] = (count + 1, total + rate)
        if self._generation >= 0 and self._ledger.main_told:
            self._summarise()

    def report(self) -> dict[str, float]:
        """Return figures of the newest generation that was told; rates in spikes/s of the evolved unit.

        mean: over its candidates; top_single_trial: highest single score among them, which overrates its image;
        best: mean rate over the re-shows of the winner of generation best_generation, the newest one that was
        measured again, and best_reshows their number; missing: candidates without a score; reference: mean rate of the
        best reference over all its presentations, reference_mean: over all references. Figures without data are left
        out.
        """
        last = self._last
        out = {"generation": float(last.get("generation", 0))}
        if "best_id" in last:
            out |= {"top_single_trial": last["best_score"], "mean": last["mean"]}
        if "missing" in last:
            out["missing"] = float(last["missing"])
        references = [self._mean(f"reference {r.id}") for r in self.references]
        shown = [mean for mean, count in references if count]
        if shown:
            out |= {"reference": max(shown), "reference_mean": float(np.mean(shown))}
        for generation, name in self._winners:  # the newest one that was measured again remains
            mean, count = self._mean(f"reshow {name}")
            if count:
                out |= {"best": mean, "best_reshows": float(count), "best_generation": float(generation)}
        return out

    def finished(self) -> str | None:
        """Return why evolution ends: all generations of the config were told."""
        if self._generation + 1 >= self.phase.generations and self._ledger.main_told:
            return f"{self.phase.generations} generations were shown"
        return None

    def state(self) -> dict[str, Any]:
        """Return everything that decides what comes next and what is reported."""
        return {
            "ga": self._ga.state(),
            "ledger": self._ledger.state(),
            "generation": self._generation,
            "ids": list(self._ids),
            "origins": [[list(o.parents), o.how, dict(o.figures)] for o in self._origins],
            "scores": self._scores.copy(),
            "measured": {k: list(v) for k, v in self._measured.items()},
            "last": dict(self._last),
            "winners": [list(w) for w in self._winners],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an agent built with the same arguments."""
        self._ga.restore(state["ga"])
        self._ledger.restore(state["ledger"])
        self._generation = state["generation"]
        self._ids = tuple(state["ids"])
        self._origins = tuple(Origin(tuple(p), how, dict(figures)) for p, how, figures in state["origins"])
        self._scores = np.array(state["scores"], dtype=np.float64)
        self._measured = {k: (v[0], v[1]) for k, v in state["measured"].items()}
        self._last = dict(state["last"])
        self._winners = [(w[0], w[1]) for w in state["winners"]]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _mean(self, key: str) -> tuple[float, int]:
        count, total = self._measured.get(key, (0, 0.0))
        return (total / count if count else 0.0), count

    def _summarise(self) -> None:
        measured = np.isfinite(self._scores)
        self._last = {"generation": self._generation, "missing": int((~measured).sum())}
        if measured.any():
            best = int(np.nanargmax(self._scores))
            self._last |= {
                "best_id": self._ids[best],
                "best_score": float(self._scores[best]),
                "mean": float(self._scores[measured].mean()),
            }

    def snapshot(self) -> tuple[XDreamGA, int, tuple[str, ...], tuple[Origin, ...], F64]:
        """Return copies of what the next generation is made of: algorithm, generation, ids, origins, scores."""
        return copy.deepcopy(self._ga), self._generation, self._ids, self._origins, self._scores.copy()

    def move_on(self, ga: XDreamGA, ids: tuple[str, ...], origins: tuple[Origin, ...], batch: Batch) -> None:
        """Take over the next generation; called once by a finished work whose result is taken."""
        if batch.generation != self._generation + 1:
            raise RuntimeError(f"generation {batch.generation} was computed from an older state; ask again")
        if any(slot.role == "reshow" for slot in batch.plan):
            self._winners = [*self._winners[-2:], (self._generation, self._last["best_id"])]
        self._ga, self._ids, self._origins, self._generation = ga, ids, origins, batch.generation
        self._scores = np.full(len(ids), np.nan)
        self._ledger.open(batch)


class Breeding:
    """The work of one generation: update the algorithm, decode in chunks, put the batch together."""

    def __init__(self, agent: Evolve) -> None:
        """Copy from `agent` what is needed; it is not touched before the result is taken."""
        self.steps = 0
        self._agent = agent
        self._ga, before, self._old_ids, self._old_origins, self._scores = agent.snapshot()
        self._generation = before + 1
        self._ids: tuple[str, ...] = ()
        self._origins: tuple[Origin, ...] = ()
        self._latents: F32 = np.empty((0, agent.generator.latent_size), np.float32)
        self._reshown: tuple[tuple[str, Origin], ...] = ()
        self._decoded: list[U8] = []
        self._batch: Batch | None = None
        self._taken = False

    def step(self) -> bool:
        """Take one step; return True when finished. Further calls change nothing."""
        if self._batch is not None:
            return True
        done = len(self._decoded) * DECODE_CHUNK
        if self.steps == 0:
            self._breed()
        elif done < len(self._latents):
            self._decoded.append(self._agent.generator.decode(self._latents[done : done + DECODE_CHUNK]))
        else:
            self._batch = self._assemble()
        self.steps += 1
        return self._batch is not None

    def peek(self) -> Batch:
        """Return the batch without a change to the agent."""
        if self._batch is None:
            raise RuntimeError("the next generation is not computed yet; call step until it returns True")
        return self._batch

    def result(self) -> Batch:
        """Return the batch; the agent moves on to it."""
        batch = self.peek()
        if not self._taken:
            self._agent.move_on(self._ga, self._ids, self._origins, batch)
            self._taken = True
        return batch

    def _breed(self) -> None:
        """Update the algorithm, name the new population, and choose the images to show again."""
        phase, old = self._agent.phase, self._ga.ask()
        measured = int(np.isfinite(self._scores).sum())  # argsort puts NaN last
        best = np.argsort(-self._scores, kind="stable")[: min(phase.reshows, measured)].tolist()
        if self._generation > 0:
            self._ga.tell(self._scores)
        ids, origins = [], []
        for k, origin in enumerate(self._ga.origin):
            if origin >= 0 and self._generation > 0:  # the same image again keeps its identity
                ids.append(self._old_ids[origin])
                origins.append(self._old_origins[origin])
            else:
                ids.append(f"p{self._agent.phase_index}-g{self._generation:03d}-c{k:02d}")
                origins.append(self._origin(k))
        self._ids, self._origins = tuple(ids), tuple(origins)
        self._reshown = tuple((self._old_ids[k], self._old_origins[k]) for k in best)
        extra = [k for k in best if self._old_ids[k] not in self._ids]
        self._latents = np.concatenate([self._ga.ask(), old[extra]])

    def _origin(self, k: int) -> Origin:
        """Return how code number `k` of the new population was made."""
        pair = self._ga.parents[k]
        if not pair:
            return Origin((), "start code, drawn by the generator", {"index": float(k)})
        first, mutated = self._ga.inherited[k]
        genes = float(self._agent.generator.latent_size)
        figures = {"genes": genes, "from_first_parent": float(first), "mutated": float(mutated)}
        return Origin(tuple(dict.fromkeys(self._old_ids[p] for p in pair)), "crossover and mutation", figures)

    def _assemble(self) -> Batch:
        agent, phase, rng = self._agent, self._agent.phase, self._ga.rng
        images = dict(zip(self._ids, self._origins, strict=True))
        images |= {name: origin for name, origin in self._reshown if name not in images}
        stimuli = [
            Stimulus(id=name, spec=LatentImage(generator=agent.generator.name, row=row), **origin._asdict())
            for row, (name, origin) in enumerate(images.items())
        ]
        rows = {name: row for row, name in enumerate(images)}
        reshows = [rows[name] for name, _ in self._reshown]
        references = [len(stimuli) + k for k in range(len(agent.references))]
        stimuli += agent.references
        main = [Slot(stimulus=k, role="candidate") for k in range(len(self._ids))]
        if phase.blanks:
            main += [Slot(stimulus=len(stimuli), role="blank")] * phase.blanks
            stimuli.append(Stimulus(id="blank", spec=Blank()))
        tail = [Slot(stimulus=k, role="reshow") for k in reshows]
        tail += [Slot(stimulus=k, role="reference") for k in references]
        plan = [main[k] for k in rng.permutation(len(main))] + [tail[k] for k in rng.permutation(len(tail))]
        return Batch(
            generation=self._generation,
            stimuli=tuple(stimuli),
            plan=tuple(plan),
            tail_from=len(main),
            fallback=tuple(reshows + references) or (0,),
            frames=np.concatenate(self._decoded),
            latents=self._latents,
            final=self._generation + 1 >= phase.generations,
        )
