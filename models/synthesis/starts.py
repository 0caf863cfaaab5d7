"""Where a synthesis starts: noise as published, noise at the contrast of the display, crops of photographs."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from models.encoders.eye import Eye
from rig.config.synthesis import HIGHEST, Synthesis
from stimuli.bank import natural_bank
from stimuli.limits import HALF_RANGE

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

Kind = Literal["published", "display", "natural"]
PUBLISHED_SD = 8.0  # levels (Walker 2019: N(128, 8), clipped)
BANK_SCALE = 2  # photographs are this many times the longer side; crops are drawn from them
FLAT = 2.0  # levels (sd): a crop of less is sky; another is drawn
TRIES = 100


def draw(kinds: Sequence[Kind], goals: int, eye: Eye, settings: Synthesis, rng: np.random.Generator) -> F32:
    """Return levels (goal, start, c, h, w): for every goal one start of each of `kinds`, all of them different.

    published: N(mean level, 8), white. display: white noise at the display's contrast. natural: crops of photographs
    at the display's mean level and contrast. All are clipped to 0 to 255.
    """
    if not kinds or (wrong := [k for k in kinds if k not in get_args(Kind)]):
        raise ValueError(f"starts: {wrong[0] if kinds else 'none'}; choose among {', '.join(get_args(Kind))}")
    out = np.empty((goals, len(kinds), *eye.shape), np.float32)
    for goal in range(goals):
        for k, kind in enumerate(kinds):
            out[goal, k] = _one(kind, eye, settings, rng)
    return out


def _one(kind: Kind, eye: Eye, settings: Synthesis, rng: np.random.Generator) -> F64:
    if kind == "published":
        pattern = PUBLISHED_SD * rng.standard_normal(eye.shape)
    elif kind == "display":
        pattern = settings.contrast * HALF_RANGE * rng.standard_normal(eye.shape)
    else:
        pattern = _crop(eye, rng)
        pattern *= settings.contrast * HALF_RANGE / pattern.std()
    return np.clip(settings.mean_level + pattern, 0, HIGHEST)


def _crop(eye: Eye, rng: np.random.Generator) -> F64:
    """Return a crop (c, h, w) of a photograph with mean 0."""
    bank = natural_bank()
    side = BANK_SCALE * max(eye.height, eye.width)
    for _ in range(TRIES):
        name = bank.names[int(rng.integers(len(bank.names)))]
        whole = bank.image(name, side, side).astype(np.float64)
        y, x = (int(rng.integers(0, side - size + 1)) for size in (eye.height, eye.width))
        cut = whole[y : y + eye.height, x : x + eye.width]
        if rng.random() < 0.5:
            cut = cut[:, ::-1]
        if cut.std() > FLAT:
            break
    planes = cut.mean(2)[None] if eye.channels == 1 else cut.transpose(2, 0, 1)
    centred: F64 = planes - planes.mean()
    return centred
