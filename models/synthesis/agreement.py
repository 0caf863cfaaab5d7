"""Do images from different starts agree? Correlation within a mask, and units that have several kinds of best image."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

EQUAL = 0.95  # of the best response: starts that reach it count as equally good
FLAT = 1e-6  # levels (weighted sd): nothing but rounding
ALIKE = 0.9  # correlation within the mask from which two images are one


@dataclass(frozen=True)
class Agreement:
    """What the images of one unit have in common."""

    median: float
    """Median correlation over the pairs of starts, within the mask; NaN with one start."""
    equal_median: float
    """The same over pairs of starts that are equally good; NaN with fewer than two."""
    modes: tuple[tuple[int, ...], ...]
    """Starts that are equally good, grouped by likeness; the group of the best start comes first."""

    @property
    def multimodal(self) -> bool:
        """Whether equally good images differ: the unit has no single most exciting image."""
        return len(self.modes) > 1


def correlations(frames: U8, mask: F64) -> F64:
    """Return the correlation (start, start) of frames (start, y, x, rgb), weighted by `mask` (y, x), 0 to 1.

    Colours are correlated together. A frame without contrast inside the mask correlates with nothing (0).
    """
    weight = np.repeat(mask.reshape(-1), frames.shape[-1])
    if weight.sum() <= 0:
        raise ValueError("the mask is empty")
    weight = weight / weight.sum()
    flat = frames.reshape(len(frames), -1).astype(np.float64)
    flat = (flat - (flat @ weight)[:, None]) * np.sqrt(weight)
    norm = np.sqrt((flat**2).sum(1))
    flat = flat / np.where(norm > FLAT, norm, np.inf)[:, None]
    found: F64 = np.clip(flat @ flat.T, -1.0, 1.0)
    return found


def agreement(frames: U8, rates: F64, mask: F64, equal: float = EQUAL, alike: float = ALIKE) -> Agreement:
    """Return how the displayed frames (start, y, x, rgb) of one unit agree, `rates` (start,) being its responses.

    Two equally good starts belong to one mode if they, or others between them, correlate by at least `alike`.
    """
    found = correlations(frames, mask)
    order = np.argsort(-rates, kind="stable")
    good = [int(k) for k in order if rates[k] >= equal * rates[order[0]]]
    modes = _joined(good, found >= alike)
    return Agreement(_pairs(found), _pairs(found[np.ix_(good, good)]), modes)


def _joined(starts: list[int], alike: npt.NDArray[np.bool_]) -> tuple[tuple[int, ...], ...]:
    """Return the groups of starts that are joined by likeness, each sorted; `alike` (start, start)."""
    groups, left = [], list(starts)
    while left:
        group = [left.pop(0)]
        for one in group:  # which grows meanwhile
            near = [other for other in left if alike[one, other] or alike[other, one]]
            group += near
            left = [other for other in left if other not in near]
        groups.append(tuple(sorted(group)))
    return tuple(groups)


def _pairs(found: F64) -> float:
    above = found[np.triu_indices(len(found), 1)]
    return float(np.median(above)) if len(above) else float("nan")
