"""Contrast tuning: how an encoder's unit answers one picture at all contrasts that a display can give it."""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.encoders.encoder import Encoder
from models.in_steps import at_once
from models.synthesis.focus import responses_of
from models.synthesis.frames import HALF_RANGE, displaying
from rig.config.synthesis import Synthesis

F64 = npt.NDArray[np.float64]

FAINTEST = 0.25 / HALF_RANGE  # RMS contrast of which rounding to 8 bits leaves a trace
COUNT = 60


@dataclass(frozen=True)
class ContrastTuning:
    """Responses over contrast; both as displayed."""

    contrast: F64
    """(k,), RMS contrast (sd / 127.5), rising; the last is that of full clipping or of `most`."""
    rate: F64
    """(k,), response of the unit to the displayed frame."""

    @property
    def best_contrast(self) -> float:
        """Return the contrast of the strongest response."""
        return float(self.contrast[self.rate.argmax()])


def contrast_tuning(
    encoder: Encoder, unit: int, levels: Tensor, settings: Synthesis, count: int = COUNT, most: float | None = None
) -> ContrastTuning:
    """Return the tuning of column `unit` for a picture (c, h, w) of levels, at the mean level of `settings`.

    `count` gains in equal ratios from a contrast just above rounding to `most`, or as far as clipping lets it grow.
    """
    return at_once(tuning_in_steps(encoder, unit, levels, settings, count, most))


def tuning_in_steps(
    encoder: Encoder,
    unit: int,
    levels: Tensor,
    settings: Synthesis,
    count: int = COUNT,
    most: float | None = None,
    least: float = FAINTEST,
) -> Generator[None, None, ContrastTuning]:
    """Yield after each step; contrasts from `least` on; return what `contrast_tuning` does. Raises ValueError."""
    pattern = levels - levels.mean()
    was = float(pattern.std(correction=0))
    if was < FAINTEST:
        raise ValueError("a picture without contrast has no contrast tuning")
    m = settings.mean_level
    black_and_white = (m * (2 * HALF_RANGE - m)) ** 0.5 / HALF_RANGE
    top = min(most or black_and_white, black_and_white) - 1e-9
    responses = responses_of(encoder, 1)
    contrasts, rates = [], []
    for wanted in np.geomspace(least, top, count):
        asked = settings.model_copy(update={"contrast": float(wanted), "rule": "equal"})
        found = yield from displaying((m + pattern)[None], asked)
        with torch.no_grad():
            rate = responses(encoder.eye.see(found.frames), torch.tensor([[unit]]))
        contrasts.append(float(found.contrast[0]))
        rates.append(float(rate[0, 0]))
        if not found.reached[0]:
            break  # clipped: more gain would make a picture of noise
        yield
    return ContrastTuning(np.array(contrasts), np.array(rates))
