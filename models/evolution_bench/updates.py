"""The time of an optimiser's update alone: no images, no neurons."""

from collections.abc import Callable

import numpy as np

from models.evolution_bench.contestants import POPULATION, build
from stimuli.generators.generator import normal_prior
from stimuli.search.optimiser import Scores

GENERATIONS = 30
SKIPPED = 3  # the first ones also allocate


def update_ms(name: str, latent: int, now_ns: Callable[[], int]) -> float:
    """Return the median time of tell and ask for 40 codes of `latent` numbers, ms.

    Scores are counts around a linear function of the codes, so that there is something to find.
    """
    rng = np.random.default_rng(0)
    prior = normal_prior(latent)
    contestant = build(name, prior, POPULATION * (GENERATIONS + 1), rng)
    direction = rng.standard_normal(latent).astype(np.float32) / np.float32(np.sqrt(latent))
    asked = contestant.ask()
    times = []
    for _ in range(GENERATIONS):
        rates = np.exp(np.clip(asked.codes @ direction, -3, 3)) * 2.0
        scores = Scores.of(asked.code_ids, rng.poisson(rates).astype(np.float64))
        start = now_ns()
        contestant.tell(scores)
        asked = contestant.ask()
        times.append((now_ns() - start) * 1e-6)
    return float(np.median(times[SKIPPED:]))
