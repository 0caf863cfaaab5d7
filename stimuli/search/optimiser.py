"""What an optimiser of latent codes is: `ask` for codes to show, `tell` their scores, `nominate` the best, blind.

One file each: the genetic algorithm (`xdream`), `cholesky_cma`, `sphere_cma`, `separable_cma`, and ours
(`noise_aware`); `factory` makes them. Called by the evolve agent and the bench. An optimiser knows nothing of images,
neurons or sessions. Pure and seeded: every draw comes from its generator, whose state is part of `state()`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

MAX_SCORE = 1e100  # larger ones overflow when squared for the sd


@dataclass(frozen=True)
class Origin:
    """How a code came to be."""

    parents: tuple[int, ...]
    """Identities of the codes it was made of; empty for a start code."""
    how: str
    """In words, for the log."""
    figures: dict[str, float]
    """Figures of that, by name."""


@dataclass(frozen=True, eq=False)
class Asked:
    """One generation: codes to show once each."""

    codes: F32
    """(row, latent); the number of rows may differ between generations."""
    code_ids: tuple[int, ...]
    """(row,) identity of each code: the same number for life. A code that comes again, in a later generation or twice
    in this one, has the number it had: it is the same image."""
    origins: tuple[Origin, ...]
    """(row,) where each code came from; of one that comes again, where it came from at first."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Measurements, one row each: any number of a code, of any generation so far, in any order."""

    code_ids: I64
    """(row,)"""
    scores: F64
    """(row,) higher is better, NaN where the measurement is missing. Who minimises negates."""
    extra: bool = False
    """Nobody asked for these measurements, as for re-shows of winners: the published optimisers go on as if there were
    none, and use them in `nominate` only."""

    @staticmethod
    def of(code_ids: Sequence[int] | I64, scores: Sequence[float] | F64, extra: bool = False) -> "Scores":
        """Make rows of lists; raises ValueError where they do not fit or a score cannot be one."""
        ids, values = np.asarray(code_ids, dtype=np.int64), np.asarray(scores, dtype=np.float64)
        if ids.ndim != 1 or ids.shape != values.shape:
            raise ValueError(f"{ids.shape} code identities with {values.shape} scores; give one score for each row")
        if (np.abs(values) > MAX_SCORE).any():  # NaN compares as False
            raise ValueError(f"a score of {np.nanmax(np.abs(values)):g} is no response; use NaN for a missing one")
        return Scores(ids, values, extra)


@dataclass(frozen=True, eq=False)
class Nominee:
    """An image that the optimiser would bet on, from what it was told only."""

    code_id: int | None
    """None: a code that was never shown, such as the centre of the search."""
    code: F32
    """(latent,)"""
    estimate: float
    """What it expects the mean score to be."""
    standard_error: float | None
    """Of the estimate; None where the optimiser has no way to know, as after a single measurement."""
    measurements: int
    """Scores of this code that the estimate rests on."""


class Optimiser(Protocol):
    """Finds codes with high scores.

    The order is ask, tell, ask, tell, ..: `ask` ends the generation before with what was told until then and
    returns the next one. `tell` only takes down rows, so it may be called any number of times. A copy for a
    computation in the background is `copy.deepcopy`; rows told meanwhile must be told to the copy as well.
    """

    rng: np.random.Generator
    """Every draw comes from it. The caller may draw from it too: its state is part of `state()`."""

    @property
    def generation(self) -> int:
        """Generations asked for so far; the open one has this number less one."""
        ...

    @property
    def asked(self) -> Asked | None:
        """What the last `ask` returned; None before the first."""
        ...

    @property
    def center(self) -> F32 | None:
        """Mean of the search distribution (latent,); None where there is none."""
        ...

    def ask(self) -> Asked:
        """Update the search with what was told since the last `ask`, and return the next generation."""
        ...

    def tell(self, scores: Scores) -> None:
        """Take measurements. Rows of codes that are not known any more change nothing.

        Raises ValueError for an identity that was never given out; then nothing was taken.
        """
        ...

    def nominate(self, count: int) -> list[Nominee]:
        """Return up to `count` codes, best first, by estimates from what was told; changes nothing."""
        ...

    def state(self) -> dict[str, Any]:
        """Return arrays and JSON-able values; with the settings they decide everything that follows, bit for bit."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an optimiser made with the same settings; raises ValueError if it cannot be one."""
        ...
