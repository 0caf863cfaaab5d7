"""The genetic algorithm of XDream, one population at a time: codes in, scores back. Numpy only.

Called by `stimuli.search.xdream`, which gives it the form of an `Optimiser`, and by the one-step counterfactual.

Ponce, Xiao, Schade, Hartmann, Kreiman, Livingstone (2019), Cell 177: 999-1009 ("Ponce 2019");
Xiao & Kreiman (2020), PLoS Computational Biology 16: e1007973 ("PLoS 2020").
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Pairs = tuple[tuple[int, ...], ...]

MIN_KT = 1e-8  # PLoS 2020: keeps the fitness defined when all scores are equal
MAX_SCORE = 1e100  # larger ones overflow when squared for the sd
SQUASH_PERCENTILE = 95.0  # scores above it count as it, so that one lucky trial does not father everybody


@dataclass(frozen=True)
class GASettings:
    """Settings of the XDream genetic algorithm."""

    population: int
    """Codes per generation."""
    mutation_rate: float
    """Probability that a gene of a child mutates."""
    mutation_size: float
    """SD of a mutation, in the units of the codes."""
    selectivity: float
    """Fitness temperature is the sd of the scores divided by it."""
    heritability: float
    """Probability that a gene comes from the first parent."""
    conserve: int
    """Best codes that enter the next generation unmutated."""

    def __post_init__(self) -> None:
        """Refuse settings with which the algorithm has no meaning."""
        if self.population < 2 or not 0 <= self.conserve < self.population:
            raise ValueError(f"population {self.population} with {self.conserve} kept; need 2 or more, and keep fewer")
        if not (0 <= self.mutation_rate <= 1 and 0 <= self.heritability <= 1):
            raise ValueError("mutation_rate and heritability are probabilities, from 0 to 1")
        if not (self.mutation_size >= 0 and self.selectivity > 0):
            raise ValueError("mutation_size must not be negative and selectivity must be positive")


PRESETS: dict[str, GASettings] = {
    # PLoS 2020, the published XDream defaults.
    "plos2020": GASettings(20, mutation_rate=0.5, mutation_size=0.5, selectivity=2.0, heritability=0.5, conserve=0),
    # "Genetic" of Wang & Ponce 2022 (GECCO): kT = 2 sd of the scores.
    "actmax": GASettings(40, mutation_rate=0.25, mutation_size=0.75, selectivity=0.5, heritability=0.75, conserve=10),
    # Ponce 2019 in vivo: 40 codes, 10 kept and 30 recombined. Population and kept codes are published; the other four
    # numbers could not be verified and are our choice: mutation and heritability as in "actmax", which descends from
    # those experiments, and the selectivity of PLoS 2020.
    "invivo": GASettings(40, mutation_rate=0.25, mutation_size=0.75, selectivity=2.0, heritability=0.75, conserve=10),
}


def fitness(scores: F64, selectivity: float) -> F64:
    """Return mating probabilities of `scores` (n,), all finite: steps 2 and 3 of the algorithm."""
    kt = max(float(np.std(scores)) / selectivity, MIN_KT)
    squashed = np.minimum(scores, np.percentile(scores, SQUASH_PERCENTILE))
    # The temperature uses the scores before squashing, as published.
    weights = np.exp((squashed - squashed.max()) / kt)
    out: F64 = weights / weights.sum()
    return out


def _pairs(first: npt.NDArray[np.intp], second: npt.NDArray[np.intp]) -> Pairs:
    return tuple((int(a), int(b)) for a, b in zip(first, second, strict=True))


class XDreamGA:
    """The genetic algorithm of Ponce 2019 and PLoS 2020.

    `ask` returns the codes to score, `tell` makes the next population of them. A NaN score means "not measured": that
    code is not judged and comes again in the tail of the next population. After each `tell`:

    * `best_code`, `best_score`: the best measured code of the generation just told and its score as reported, taken
      before mating and before squashing; None until something was measured.
    * `origin`: for each code of the new population the index it had before if it comes again unchanged, else -1.
    * `parents`: for each code the indices of its two parents in the population before, () if unchanged.
    * `inherited`: for each code how many genes it has of its first parent and how many mutated, () if unchanged.
    """

    def __init__(self, settings: GASettings, start: F32, rng: np.random.Generator) -> None:
        """Begin with the codes `start` (population, latent); all draws come from `rng`, whose state is part of ours."""
        if start.ndim != 2 or start.shape[0] != settings.population or start.shape[1] < 1:
            raise ValueError(f"start codes of shape {start.shape}; the settings need ({settings.population}, latent)")
        if not np.isfinite(start).all():
            raise ValueError("start codes contain NaN or infinity")
        self.settings = settings
        self.generation = 0
        self.best_code: F32 | None = None
        self.best_score: float | None = None
        self.origin: tuple[int, ...] = (-1,) * settings.population
        self.parents: tuple[tuple[int, ...], ...] = ((),) * settings.population
        self.inherited: tuple[tuple[int, ...], ...] = ((),) * settings.population
        self._codes: F32 = np.array(start, dtype=np.float32)
        self.rng = rng

    def ask(self) -> F32:
        """Return a copy of the current population (population, latent); the same until the next `tell`."""
        return self._codes.copy()

    def tell(self, scores: F64) -> None:
        """Make the next population from `scores` (population,), higher is better, NaN = missing."""
        population, keep = self.settings.population, self.settings.conserve
        scores = np.asarray(scores, dtype=np.float64)
        if scores.shape != (population,):
            raise ValueError(f"scores of shape {scores.shape} for a population of {population}")
        if (np.abs(scores) > MAX_SCORE).any():  # NaN compares as False
            raise ValueError(f"a score of {np.nanmax(np.abs(scores)):g} is no response; use NaN for a missing one")
        missing = np.flatnonzero(np.isnan(scores))
        measured = np.flatnonzero(~np.isnan(scores))
        order = measured[np.argsort(-scores[measured], kind="stable")]  # best first; ties in order of showing
        kept = order[:keep]
        children, parents, inherited = self._mate(order, scores[order], order.size - kept.size)
        if order.size:  # of the generation that was scored, not of its children
            self.best_code, self.best_score = self._codes[order[0]].copy(), float(scores[order[0]])
        # Step 6 (the best stay unmutated) in front, step 1 (NaN goes unchanged into the tail) at the end.
        self._codes = np.concatenate([self._codes[kept], children, self._codes[missing]])
        self.origin = (*map(int, kept), *(-1 for _ in parents), *map(int, missing))
        self.parents = (*(() for _ in kept), *parents, *(() for _ in missing))
        self.inherited = (*(() for _ in kept), *inherited, *(() for _ in missing))
        self.generation += 1

    def _mate(self, order: npt.NDArray[np.intp], scores: F64, count: int) -> tuple[F32, Pairs, Pairs]:
        """Return `count` mutated children of the codes `order`, their parents' indices, and what they inherited."""
        size = self._codes.shape[1]
        if count == 0:
            return np.empty((0, size), np.float32), (), ()
        probability = fitness(scores, self.settings.selectivity)
        # Step 3: both parents drawn independently; they may be the same code.
        first, second = order[self.rng.choice(order.size, (2, count), p=probability)]
        # Step 4: each gene from the first parent with probability heritability.
        inherit = self.rng.random((count, size)) < self.settings.heritability
        children = np.where(inherit, self._codes[first], self._codes[second])
        # Step 5: each gene mutates with its own probability, by a normal step.
        mutate = self.rng.random((count, size)) < self.settings.mutation_rate
        steps = self.rng.normal(0.0, self.settings.mutation_size, (count, size))
        with np.errstate(over="ignore"):  # checked below
            children = (children + np.where(mutate, steps, 0.0)).astype(np.float32)
        if not np.isfinite(children).all():
            raise FloatingPointError("codes have grown beyond float32; start from codes of about unit size")
        return children, _pairs(first, second), _pairs(inherit.sum(axis=1), mutate.sum(axis=1))

    def state(self) -> dict[str, Any]:
        """Return arrays and JSON-able values; with the settings they decide everything that follows."""
        return {
            "codes": self._codes.copy(),
            "generation": self.generation,
            "origin": list(self.origin),
            "parents": [list(p) for p in self.parents],
            "inherited": [list(p) for p in self.inherited],
            "best_code": None if self.best_code is None else self.best_code.copy(),
            "best_score": self.best_score,
            "rng": self.rng.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an algorithm with the same settings and the same kind of generator."""
        codes = np.array(state["codes"], dtype=np.float32)
        if codes.shape != self._codes.shape:
            raise ValueError(f"a state with codes of shape {codes.shape}; this algorithm has {self._codes.shape}")
        self.rng.bit_generator.state = state["rng"]
        self._codes = codes
        self.generation = int(state["generation"])
        self.origin = tuple(state["origin"])
        self.parents = tuple(tuple(p) for p in state["parents"])
        self.inherited = tuple(tuple(p) for p in state["inherited"])
        best = state["best_code"]
        self.best_code = None if best is None else np.array(best, dtype=np.float32)
        self.best_score = state["best_score"]
