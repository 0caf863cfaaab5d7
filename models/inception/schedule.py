"""Which natural images the inception agent shows, which of them are held out, and in which order. Pure, seeded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stimuli.spec import HELD_OUT, Stimulus


@dataclass(frozen=True)
class NaturalSet:
    """The natural images of a phase: those that the model is fitted to first, then the held-out ones."""

    stimuli: tuple[Stimulus, ...]
    train: int
    """How many of them the model is fitted to."""

    @property
    def test(self) -> int:
        """How many are held out."""
        return len(self.stimuli) - self.train

    def held_out(self, image: int) -> bool:
        """Return whether the model is never fitted to an image."""
        return image >= self.train


def blocks(
    chosen: NaturalSet, train_repeats: int, test_repeats: int, size: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """Return the images of each block of `size` presentations, all repeats, in the order of showing.

    The session is cut into as many stretches as held-out images have repeats; each shows every held-out image once,
    among its share of the others, shuffled: so scores are of the whole session, and neighbours differ from repeat to
    repeat.
    """
    train = np.concatenate([rng.permutation(chosen.train) for _ in range(train_repeats)])
    test = np.arange(chosen.train, len(chosen.stimuli))
    order: list[int] = []
    for share in np.array_split(train, test_repeats):
        order += rng.permutation(np.concatenate([share, test])).tolist()
    return [tuple(order[k : k + size]) for k in range(0, len(order), size)]


def choose(pools: Sequence[Sequence[Stimulus]], train: int, test: int, where: str) -> NaturalSet:
    """Take images from shuffled pools in turn; which are held out is decided by a fixed stride through them.

    Held-out ones say so in their figures: the log is to tell them from the others. Raises ValueError, with `where` in
    it, if there are too few.
    """
    available = sum(len(pool) for pool in pools)
    if train + test > available:
        raise ValueError(
            f"{where}.train, test: {train} + {test} images, but its banks have {available} together; ask for fewer, or "
            "add a folder under banks"
        )
    rows = max(len(pool) for pool in pools)
    drawn = [pool[k] for k in range(rows) for pool in pools if k < len(pool)][: train + test]
    at = {round((k + 0.5) * (train + test) / test - 0.5) for k in range(test)}  # held out: from all pools alike
    held_out = [one.model_copy(update={"figures": {HELD_OUT: 1.0}}) for k, one in enumerate(drawn) if k in at]
    fitted = [one for k, one in enumerate(drawn) if k not in at]
    return NaturalSet((*fitted, *held_out), len(fitted))
