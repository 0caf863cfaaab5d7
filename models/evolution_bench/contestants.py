"""Who competes: our optimiser, the published ones of `stimuli.search`, and two packages, each as its authors set it.

Matched start: all begin with codes as long, and as spread, as those of the generator's prior. The optimisers of
`stimuli.search` show draws from the prior first and take their step from its sd. The packages begin, as their users do,
at 0 with one step size for all numbers; here these are the prior's: they search z, and the code is mean + sd z, first
step 1. (The published step of 2 belonged to codes of another scale.) For a prior of mean 0 and equal sd this changes
nothing but the unit, and the first generation has the prior's length.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from pydantic import TypeAdapter

from rig.config.evolution_bench import OURS
from rig.config.optimisers import AnyOptimiser
from stimuli.generators import Prior
from stimuli.search.factory import SMALLEST_SD, build_optimiser, spread
from stimuli.search.optimiser import F32, Asked, Nominee, Origin, Scores

POPULATION = 40
PEER_PACKAGES = {"pycma": "cma", "nevergrad": "nevergrad"}
CURE = "pip install 'stimloop[bench]', or leave them out with --peers none"


class Contestant(Protocol):
    """What a run needs of an optimiser; `stimuli.search.optimiser.Optimiser` has it."""

    @property
    def center(self) -> F32 | None:
        """Mean of the search (latent,), where there is one."""
        ...

    def ask(self) -> Asked:
        """Return the next generation."""
        ...

    def tell(self, scores: Scores) -> None:
        """Take measurements."""
        ...

    def nominate(self, count: int) -> list[Nominee]:
        """Return what it would bet on."""
        ...


# Settings as in a config, by name in the bench.
SEARCH: dict[str, dict[str, Any]] = {
    OURS: {"type": "noise_aware"},
    "xdream_plos2020": {"type": "xdream", "preset": "plos2020"},
    "xdream_actmax": {"type": "xdream", "preset": "actmax"},
    "xdream_invivo": {"type": "xdream", "preset": "invivo"},
    "cholesky_cma": {"type": "cholesky_cma"},
    "sphere_cma": {"type": "sphere_cma"},
    "sphere_cma_inv": {"type": "sphere_cma", "schedule": "inv"},
    "separable_cma": {"type": "separable_cma"},
}
PEERS = ("pycma_diagonal", "nevergrad_CMA", "nevergrad_DiagonalCMA", "nevergrad_NGOpt")


def lacking(names: Sequence[str]) -> list[str]:
    """Return what keeps each of `names` from taking part, in words with the cure; empty if nothing does."""
    out = []
    for name in names:
        package = PEER_PACKAGES.get(name.split("_")[0])
        if name not in SEARCH and name not in PEERS:
            out.append(f"no optimiser {name!r}; there are: {', '.join((*SEARCH, *PEERS))}")
        elif package is not None and find_spec(package) is None:
            out.append(f"{name} needs the package {package}, which is not installed: {CURE}")
    return out


def build(name: str, prior: Prior, presentations: int, rng: np.random.Generator) -> Contestant:
    """Return contestant `name` for codes like those of `prior`; raises ValueError."""
    if wrong := lacking([name]):
        raise ValueError(wrong[0])
    if name in SEARCH:
        settings = TypeAdapter(AnyOptimiser).validate_python(SEARCH[name])
        return build_optimiser(settings.settings(), prior, rng)
    sd = spread(prior)
    scale = Scale(_mean(prior), np.maximum(sd, SMALLEST_SD * float(sd.max())).astype(np.float32))
    if name == "pycma_diagonal":
        return PycmaDiagonal(scale, rng)
    return Nevergrad(name.removeprefix("nevergrad_"), scale, presentations, rng)


def copes_with_missing(name: str) -> bool:
    """Return whether an optimiser goes on when responses are missing or late."""
    return name in SEARCH


def _mean(prior: Prior) -> F32:
    """Return the mean code (latent,); cutting off negative values moves it."""
    if not prior.rectified:
        return prior.mean
    drawn = prior.sample(2000, np.random.default_rng(0))
    return np.asarray(drawn.mean(axis=0, dtype=np.float64), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Scale:
    """From the numbers that a package searches to codes: mean + sd z."""

    mean: F32
    sd: F32

    def codes(self, z: Sequence[Any]) -> F32:
        """Return codes (n, latent)."""
        out: F32 = (self.mean + self.sd * np.asarray(z, dtype=np.float32)).astype(np.float32)
        return out


class _Told:
    """Codes by identity with their scores so far; foreign packages have neither identities nor repeats."""

    def __init__(self) -> None:
        self.best: tuple[float, int, F32] | None = None
        self._next = 0
        self._codes: dict[int, F32] = {}

    def asked(self, codes: F32, how: str) -> Asked:
        """Give `codes` (n, latent) their identities."""
        ids = tuple(range(self._next, self._next + len(codes)))
        self._next += len(codes)
        self._codes = dict(zip(ids, codes, strict=True))
        return Asked(codes, ids, (Origin((), how, {}),) * len(codes))

    def take(self, scores: Scores) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the scores of the open generation in its order; raises ValueError unless there is one of each."""
        given = dict(zip(scores.code_ids.tolist(), scores.scores.tolist(), strict=True))
        if set(given) != set(self._codes) or not np.isfinite(scores.scores).all():
            raise ValueError("this package takes one score for each code that it asked for, no more and no fewer")
        for code_id, score in given.items():
            if self.best is None or score > self.best[0]:
                self.best = (score, code_id, self._codes[code_id])
        return np.array([given[k] for k in self._codes])

    def nominate(self) -> list[Nominee]:
        """Return the code with the best single score."""
        if self.best is None:
            return []
        return [Nominee(self.best[1], self.best[2], self.best[0], None, 1)]


class PycmaDiagonal:
    """pycma with a diagonal covariance, as Wang & Ponce (2022) ran it: 40 codes, start at 0."""

    def __init__(self, scale: Scale, rng: np.random.Generator) -> None:
        import cma

        options: dict[str, Any] = {
            "CMA_diagonal": True,
            "popsize": POPULATION,
            "seed": np.nan,  # its draws come from `rng`, not from numpy's global state
            "randn": lambda *shape: rng.standard_normal(shape),
            "verbose": -9,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it remarks on the number of dimensions
            self._search = cma.CMAEvolutionStrategy(np.zeros(len(scale.mean)), 1.0, options)
        self._scale = scale
        self._told = _Told()
        self._open: list[Any] = []

    @property
    def center(self) -> F32:
        """The mean of the search, pycma's `xfavorite`."""
        center: F32 = self._scale.codes([self._search.result.xfavorite])[0]
        return center

    def ask(self) -> Asked:
        """Return the next generation."""
        self._open = self._search.ask()
        return self._told.asked(self._scale.codes(self._open), "pycma")

    def tell(self, scores: Scores) -> None:
        """Take a whole generation; pycma minimises."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._search.tell(self._open, (-self._told.take(scores)).tolist())

    def nominate(self, count: int) -> list[Nominee]:
        """Return the code with the best single score, pycma's `xbest`."""
        return self._told.nominate()[:count]


class Nevergrad:
    """An optimiser of nevergrad, 40 codes at a time."""

    def __init__(self, name: str, scale: Scale, budget: int, rng: np.random.Generator) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import nevergrad

            codes = nevergrad.p.Array(init=np.zeros(len(scale.mean))).set_mutation(sigma=1.0)
            codes.random_state = np.random.RandomState(int(rng.integers(2**31)))
            self._search = nevergrad.optimizers.registry[name](codes, budget=budget, num_workers=POPULATION)
        self._name, self._scale = name, scale
        self._told = _Told()
        self._open: list[Any] = []

    @property
    def center(self) -> F32:
        """What nevergrad recommends; of a CMA-ES its mean, of others their best."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            center: F32 = self._scale.codes([self._search.provide_recommendation().value])[0]
        return center

    def ask(self) -> Asked:
        """Return the next generation."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._open = [self._search.ask() for _ in range(POPULATION)]
        return self._told.asked(self._scale.codes([c.value for c in self._open]), f"nevergrad {self._name}")

    def tell(self, scores: Scores) -> None:
        """Take a whole generation; nevergrad minimises."""
        values = self._told.take(scores)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for candidate, value in zip(self._open, values.tolist(), strict=True):
                self._search.tell(candidate, -value)

    def nominate(self, count: int) -> list[Nominee]:
        """Return the code with the best single score."""
        return self._told.nominate()[:count]

