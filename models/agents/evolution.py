"""One target's evolution: its optimiser, the identities of its images, and what was measured of them.

Part of the evolve agent, which plans the batches and sorts the rows; knows nothing of slots, tails or other targets.
Values are the target's, as the units gave them; scores are what the optimiser maximises: corrected for drift, and
negated where the target is suppressed.
"""

import copy
import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.agents.carried import EvolutionEnd, Nominated
from models.agents.types import F32, F64, U8
from rig.config.targets import Target
from stimuli.generators.generator import Generator
from stimuli.search.drift import Drift
from stimuli.search.optimiser import Asked, Optimiser, Origin, Scores
from stimuli.spec import LatentImage, Place, Stimulus

KEPT_STARTS = 3  # codes of the first generation that are kept to be shown at the end
NOMINATED = 5


@dataclass(frozen=True)
class Row:
    """One usable presentation of an image of this evolution."""

    code_id: int
    value: float
    when: float
    """Presentations of the phase before it."""
    extra: bool
    """A re-show, or a late row: the optimiser did not ask for it in the open generation."""


class Evolution:
    """Evolves images for one target."""

    def __init__(
        self,
        target: Target,
        prefix: str,
        optimiser: Optimiser,
        generator: Generator,
        place: Place | None,
        drift: Drift | None,
    ) -> None:
        """Evolve with `optimiser` through `generator`; identities of images begin with `prefix`."""
        self.target, self.optimiser, self.generator, self.place = target, optimiser, generator, place
        self.drift = drift
        self.prefix = prefix
        self._name = re.compile(rf"{re.escape(prefix)}-g(\d+)-c(\d+)")
        self.generation = -1
        self._first_ids: list[int] = []  # the first code identity that each generation may have made
        self._highest = -1
        self._starts: F32 = np.empty((0, generator.latent_size), np.float32)
        self._open: dict[int, tuple[int, float, float]] = {}  # of the open generation: n, sums of values and of scores
        self._pending: list[tuple[int, float, bool]] = []  # code identity, score, extra: the optimiser's next meal
        self._again: dict[str, tuple[int, float]] = {}  # re-shown images: number and sum of values
        self._shown_again: dict[int, tuple[int, float, float]] = {}  # by the winner's generation: n, sum, squares
        self._winners: list[tuple[int, str]] = []  # (generation, best image) of the newest three that are shown again
        self.last: dict[str, float] = {}  # summary of the newest generation that was told
        self._best: str | None = None  # best image of that generation

    @property
    def asked(self) -> Asked | None:
        """The open generation."""
        return self.optimiser.asked

    # --- identities ---------------------------------------------------------------------------------------------------

    def name(self, code_id: int) -> str:
        """Return the identity of an image for life: the generation that made its code, and its number there."""
        generation = bisect_right(self._first_ids, code_id) - 1
        return f"{self.prefix}-g{generation:03d}-c{code_id - self._first_ids[generation]:02d}"

    def code_of(self, name: str) -> int | None:
        """Return the code of an image, None if it is not one of this evolution."""
        found = self._name.fullmatch(name)
        if found is None or int(found[1]) >= len(self._first_ids):
            return None
        return self._first_ids[int(found[1])] + int(found[2])

    def stimulus(self, name: str, origin: Origin, row: int) -> Stimulus:
        """Return an image as it is proposed; it is row `row` of the proposal's frames."""
        return Stimulus(
            id=name,
            spec=LatentImage(generator=self.generator.name, row=row),
            parents=tuple(self.name(parent) for parent in origin.parents),
            how=origin.how[:200],
            figures=origin.figures,
        )

    # --- measurements -------------------------------------------------------------------------------------------------

    def value(self, rate_hz: F64, units: tuple[str, ...]) -> float:
        """Return the target's value of rates (unit,), NaN where it cannot be told."""
        return float(self.target.value(rate_hz, units))

    def take(self, rows: list[Row]) -> list[float]:
        """Take presentations; return the corrected value of each. References of the same time come in before."""
        out = []
        for row in rows:
            corrected = row.value if self.drift is None else self.drift.correct(row.value, row.when)
            score = self.target.sign * corrected
            self._pending.append((row.code_id, score, row.extra))
            if not row.extra:
                n, values, scores = self._open.get(row.code_id, (0, 0.0, 0.0))
                self._open[row.code_id] = n + 1, values + row.value, scores + score
            out.append(corrected)
        return out

    def again(self, name: str, value: float, corrected: float) -> None:
        """Note that an image of an earlier generation was shown again."""
        count, total = self._again.get(name, (0, 0.0))
        self._again[name] = count + 1, total + value
        generation = next((g for g, winner in self._winners if winner == name), None)
        if generation is not None:
            n, total, squares = self._shown_again.get(generation, (0, 0.0, 0.0))
            score = self.target.sign * corrected
            self._shown_again[generation] = n + 1, total + score, squares + score * score

    def summarise(self) -> None:
        """Note how the open generation went; called when all of it was told."""
        if self.asked is None:
            return
        codes = dict.fromkeys(self.asked.code_ids)
        self.last = {"generation": float(self.generation), "missing": float(len(codes) - len(self._open))}
        if self._open:
            values = {code: total / n for code, (n, total, _) in self._open.items()}
            best = self.winners(1)[0]
            self._best = self.name(best)
            self.last |= {"top_single_trial": values[best], "mean": float(np.mean([*values.values()]))}

    def report(self) -> dict[str, float]:
        """Return mean, top_single_trial, missing, best, best_reshows, best_generation, as the agent explains them."""
        out = {name: value for name, value in self.last.items() if name != "generation"}
        for generation, name in self._winners:  # the newest one that was measured again remains
            count, total = self._again.get(name, (0, 0.0))
            if count:
                out |= {"best": total / count, "best_reshows": float(count), "best_generation": float(generation)}
        return out

    def reshown(self) -> list[tuple[float, float, int]]:
        """Return mean score, its variance and number of the re-shows of each generation's winner, oldest first."""
        out = []
        for _, (n, total, squares) in sorted(self._shown_again.items()):
            mean = total / n
            out.append((mean, max(squares / n - mean * mean, 0.0), n))
        return out

    # --- the next generation ------------------------------------------------------------------------------------------

    def winners(self, count: int) -> list[int]:
        """Return the codes of the open generation with the best scores, the best first."""
        assert self.asked is not None or not self._open  # noqa: S101 - codes are scored after they were asked for
        codes = () if self.asked is None else tuple(c for c in dict.fromkeys(self.asked.code_ids) if c in self._open)
        return sorted(codes, key=lambda c: -self._score(c))[:count]  # stable: ties in the optimiser's order

    def _score(self, code_id: int) -> float:
        n, _, total = self._open[code_id]
        return total / n

    def bred(self) -> tuple[Optimiser, Asked]:
        """Return a copy of the optimiser that has asked for the next generation, and that; changes nothing here."""
        optimiser = self._informed()
        return optimiser, optimiser.ask()

    def _informed(self) -> Optimiser:
        """Return a copy of the optimiser that knows all that was measured by now."""
        optimiser = copy.deepcopy(self.optimiser)
        for extra in (True, False):
            rows = [(code, score) for code, score, also in self._pending if also == extra]
            if rows:
                optimiser.tell(Scores.of([c for c, _ in rows], [s for _, s in rows], extra))
        return optimiser

    def told(self) -> int:
        """Return how many rows wait for the optimiser: `bred` knows these."""
        return len(self._pending)

    def move_on(self, optimiser: Optimiser, asked: Asked, told: int, shown_again: bool) -> None:
        """Take over what `bred` returned when `told` rows were waiting; rows that came later wait on."""
        if shown_again and self._best is not None:
            self._winners = [*self._winners[-2:], (self.generation, self._best)]
        self.optimiser = optimiser
        self._pending = self._pending[told:]
        self.generation += 1
        self._first_ids.append(self._highest + 1)
        self._highest = max(self._highest, *asked.code_ids)
        if self.generation == 0:
            self._starts = asked.codes[:KEPT_STARTS].copy()
        self._open, self._best = {}, None

    def names_ahead(self, asked: Asked) -> list[str]:
        """Return the identities that the images of a generation get when it is taken over."""
        first = [*self._first_ids, self._highest + 1]
        out = []
        for code_id in asked.code_ids:
            generation = bisect_right(first, code_id) - 1
            out.append(f"{self.prefix}-g{generation:03d}-c{code_id - first[generation]:02d}")
        return out

    # --- the end ------------------------------------------------------------------------------------------------------

    def end(self) -> EvolutionEnd:
        """Return where it stands."""
        assert self.asked is not None  # noqa: S101 - a phase that ended has shown a generation
        scores = np.array([self._score(c) if c in self._open else np.nan for c in self.asked.code_ids])
        order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
        center = self.optimiser.center
        return EvolutionEnd(
            self.target.title,
            self.generator.name,
            self.asked.codes[order].copy(),
            self.target.sign * scores[order],
            None if center is None else np.array(center, np.float32),
        )

    def nominated(self) -> tuple[Nominated, ...]:
        """Return the images on which the optimiser bets, best first, then some of the first generation.

        It knows the last generation by then, which no further one will follow.
        """
        said: list[tuple[str, str, str, float, float, int]] = []
        codes: list[F32] = []
        for k, one in enumerate(self._informed().nominate(NOMINATED)):
            name = f"{self.prefix}-bet{k}" if one.code_id is None else self.name(one.code_id)
            how = "the optimiser's bet: a code that was never shown" if one.code_id is None else "the optimiser's bet"
            error = np.nan if one.standard_error is None else one.standard_error
            said.append(("evolved", name, how, self.target.sign * one.estimate, error, one.measurements))
            codes.append(one.code)
        for k, code in enumerate(self._starts):
            said.append(("start", self.name(self._first_ids[0] + k), "of the first generation", np.nan, np.nan, 0))
            codes.append(code)
        if not codes:
            return ()
        frames = self.generator.decode(np.stack(codes))  # at once: some generators take as long for one
        return tuple(self._nominated(*one) for one in zip(said, codes, frames, strict=True))

    def _nominated(self, said: tuple[str, str, str, float, float, int], code: F32, frame: U8) -> Nominated:
        source, name, how, estimate, error, measurements = said
        stimulus = Stimulus(id=name, spec=LatentImage(generator=self.generator.name, row=0), how=how)
        return Nominated(
            self.target.title, source, stimulus, self.generator.name, np.array(code, np.float32), frame,
            float(estimate), float(error), measurements, self.place,
        )  # fmt: skip

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return arrays and JSON-able values."""
        return {
            "optimiser": self.optimiser.state(),
            "drift": None if self.drift is None else self.drift.state(),
            "generation": self.generation,
            "first_ids": list(self._first_ids),
            "highest": self._highest,
            "starts": self._starts.copy(),
            "open": [[c, *v] for c, v in self._open.items()],
            "pending": [list(row) for row in self._pending],
            "again": {k: list(v) for k, v in self._again.items()},
            "shown_again": [[g, *v] for g, v in self._shown_again.items()],
            "winners": [list(w) for w in self._winners],
            "last": dict(self.last),
            "best": self._best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an evolution made with the same arguments."""
        self.optimiser.restore(state["optimiser"])
        if self.drift is not None:
            self.drift.restore(state["drift"])
        self.generation = state["generation"]
        self._first_ids, self._highest = list(state["first_ids"]), state["highest"]
        self._starts = np.array(state["starts"], np.float32)
        self._open = {c: (n, values, scores) for c, n, values, scores in state["open"]}
        self._pending = [(c, s, e) for c, s, e in state["pending"]]
        self._again = {k: (v[0], v[1]) for k, v in state["again"].items()}
        self._shown_again = {g: (n, total, squares) for g, n, total, squares in state["shown_again"]}
        self._winners = [(w[0], w[1]) for w in state["winners"]]
        self.last, self._best = dict(state["last"]), state["best"]
