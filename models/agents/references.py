"""Which natural images an evolution shows as references in each generation.

They tell drift from progress and are what evolved images must beat, so they should span what the neurons do. After a
phase that showed natural images they are picked by the measured values, from the weakest to the best; else at random.
Called by the builder.
"""

from collections.abc import Sequence

import numpy as np

from models.agents.carried import Carried, Measured, placed_id, references_of
from rig.config.targets import Target
from stimuli.spec import BankImage, Place, Stimulus


def spanning(
    targets: Sequence[Target], units: tuple[str, ...], measured: Sequence[Measured], count: int
) -> list[Measured]:
    """Return up to `count` of `measured` at equal steps of rank, weakest to best, for each target in turn."""
    ranked = []
    for target in targets:
        known = [(float(target.value(m.rate_hz, units)), k) for k, m in enumerate(measured)]
        ranked.append([k for value, k in sorted(known) if np.isfinite(value)])
    each = -(-count // len(targets))
    wanted = [
        order[round(step * (len(order) - 1) / max(each - 1, 1))]
        for step in _ends_first(each)
        for order in ranked
        if order
    ]
    chosen = list(dict.fromkeys(wanted))
    chosen += [k for order in ranked for k in order[::-1] if k not in chosen]  # where targets share an image
    return [measured[k] for k in list(dict.fromkeys(chosen))[:count]]


def _ends_first(count: int) -> list[int]:
    """Return 0 to count - 1: the last, the first, then the others, so that few still span the range."""
    return list(dict.fromkeys([count - 1, 0, *range(1, count - 1)]))


def references(
    count: int,
    targets: Sequence[Target],
    units: tuple[str, ...],
    carried: Sequence[Carried],
    natural: tuple[str, Sequence[str]],
    place: Place | None,
    rng: np.random.Generator,
) -> tuple[Stimulus, ...]:
    """Return `count` references at `place`, fewer where there are not so many pictures.

    `natural` is the bank they come from without measurements: its name and pictures.
    """
    pictures = [m for m in references_of(carried) if isinstance(m.stimulus.spec, BankImage)]
    here = [m for m in pictures if m.place == place] or pictures
    measured = spanning(targets, units, here, count) if count else []
    chosen = [m.stimulus.model_copy(update={"id": placed_id(m.stimulus.id, place, m.place)}) for m in measured]
    bank, names = natural
    free = [name for name in names if all(s.spec != BankImage(bank=bank, name=name) for s in chosen)]
    more = min(count - len(chosen), len(free))
    picked = sorted(rng.choice(len(free), more, replace=False).tolist()) if more > 0 else []
    for k in picked:
        name = placed_id(f"ref-{free[k]}", place, None)
        chosen.append(Stimulus(id=name, spec=BankImage(bank=bank, name=free[k])))
    return tuple(chosen)
