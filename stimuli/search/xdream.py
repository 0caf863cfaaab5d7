"""The genetic algorithm of XDream as an `Optimiser`: `ga` with code identities, repeats and late rows.

Made by `factory`. Which codes come next is `ga`'s alone, bit for bit.

* Missing: a code that was not measured comes again unchanged until it is (step 1 of the published algorithm).
* Repeated rows of a generation count as their mean. Codes that are kept are measured anew in each generation, and only
  the new measurement judges them, as published.
* Late rows (of a generation that was ended) change no population; they count for `nominate`.
* `nominate`: the codes with the best mean score. The paper reports the code with the best single score, which is the
  luckiest one; with kept codes (presets "actmax", "invivo") the mean over their showings corrects that in part.
"""

from typing import Any

import numpy as np

from stimuli.search.ga import GASettings, XDreamGA
from stimuli.search.optimiser import F32, Asked, Nominee, Origin, Scores
from stimuli.search.record import Record


class XDream:
    """Genetic algorithm (Ponce 2019; Xiao & Kreiman 2020)."""

    def __init__(self, settings: GASettings, start: F32, rng: np.random.Generator) -> None:
        """Begin with the codes `start` (population, latent)."""
        self._ga = XDreamGA(settings, start, rng)
        self._record = Record(start.shape[1])
        self.rng = rng

    @property
    def generation(self) -> int:
        """Generations asked for."""
        return self._record.generation

    @property
    def center(self) -> F32 | None:
        """None: a population has no search mean."""
        return None

    @property
    def asked(self) -> Asked | None:
        """The open generation."""
        return self._record.asked

    def ask(self) -> Asked:
        """Breed the next population from what was told; the first one are the start codes."""
        if self.generation == 0:
            codes = self._ga.ask()
            start = [Origin((), "start code", {"index": float(k)}) for k in range(len(codes))]
            return self._record.open(self._record.add(codes, start))
        old = self._record.batch
        self._ga.tell(self._record.scores())
        codes, origin = self._ga.ask(), self._ga.origin
        new = [k for k, before in enumerate(origin) if before < 0]
        made = dict(zip(new, self._record.add(codes[new], [self._child(k, old) for k in new]), strict=True))
        return self._record.open(tuple(made[k] if before < 0 else old[before] for k, before in enumerate(origin)))

    def tell(self, scores: Scores) -> None:
        """Take measurements."""
        self._record.tell(scores)

    def nominate(self, count: int) -> list[Nominee]:
        """Return the `count` codes with the best mean score."""
        return self._record.nominate(count)

    def _child(self, k: int, old: tuple[int, ...]) -> Origin:
        first, mutated = self._ga.inherited[k]
        genes = float(self._record.archive.latent)
        figures = {"genes": genes, "from_first_parent": float(first), "mutated": float(mutated)}
        return Origin(tuple(dict.fromkeys(old[p] for p in self._ga.parents[k])), "crossover and mutation", figures)

    def state(self) -> dict[str, Any]:
        """Return arrays and JSON-able values."""
        return {"ga": self._ga.state(), "record": self._record.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state."""
        self._ga.restore(state["ga"])  # refuses codes of another size
        self._record.restore(state["record"])
