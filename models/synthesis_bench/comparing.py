"""Images of the same units from two models: how much alike they are, and what each is worth to the other model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.encoders.encoder import Encoder
from models.synthesis.agreement import EQUAL, agreement, correlations
from models.synthesis.engine import PROCESSOR, Synthesised
from models.synthesis.focus import responses_of
from models.synthesis.masks import image_mask

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Images:
    """What one model made of some of its units."""

    encoder: Encoder
    columns: tuple[int, ...]
    """The units' columns in the encoder's responses."""
    found: Synthesised
    device: torch.device = PROCESSOR
    """Where the encoder is."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the units' names."""
        return tuple(self.encoder.units[k] for k in self.columns)

    @property
    def best(self) -> U8:
        """Return the best frame of each unit, (unit, y, x, rgb)."""
        found: U8 = self.found.frames[np.arange(len(self.columns)), self.found.best]
        return found

    def masks(self) -> list[F64]:
        """Return the mask (y, x) of each unit's best image."""
        levels = self.best.astype(np.float64).transpose(0, 3, 1, 2)
        return [image_mask(one, float(one.mean())) for one in levels]

    def good(self, unit: int) -> list[int]:
        """Return the starts of a unit that count as equally good."""
        rates = self.found.rates[unit, :, 0]
        return [int(k) for k in np.flatnonzero(rates >= EQUAL * rates.max())]

    @torch.no_grad()
    def rates(self, frames: U8) -> F64:
        """Return the response of each unit to a frame of its own (unit, y, x, rgb)."""
        units = torch.tensor(self.columns, device=self.device)[:, None]
        rates = responses_of(self.encoder, 1)(self.encoder.eye.see(frames).to(self.device), units)
        found: F64 = rates[:, 0].cpu().double().numpy()
        return found


def columns_of(encoder: Encoder, names: Sequence[str]) -> tuple[int, ...]:
    """Return the columns of units by name. Raises ValueError naming the first that the encoder lacks."""
    at = {name: k for k, name in enumerate(encoder.units)}
    if missing := [name for name in names if name not in at]:
        raise ValueError(f"it has no unit {missing[0]}; give a model of the same units, with the same names")
    return tuple(at[name] for name in names)


def between_starts(images: Images, masks: list[F64]) -> list[dict[str, Any]]:
    """Return for each unit how its images from different starts agree within the mask."""
    rows = []
    for goal, (unit, mask) in enumerate(zip(images.names, masks, strict=True)):
        rates = images.found.rates[goal, :, 0]
        agreed = agreement(images.found.frames[goal], rates, mask)
        rows.append(
            {
                "unit": unit,
                "rates": [round(float(r), 4) for r in rates],
                "agreement": agreed.median,
                "agreement_equal": agreed.equal_median,
                "multimodal": agreed.multimodal,
                "modes": [list(mode) for mode in agreed.modes],
                "mask_share": round(float(mask.mean()), 4),
            }
        )
    return rows


def between_models(first: Images, second: Images, masks: list[F64]) -> list[dict[str, Any]]:
    """Return for each unit how two models' images agree within `masks`, those of the first model's best images.

    `agreement`: of the two best images. `closest`: the best match among all equally good images of either; for a unit
    with several best images it says whether the models share one. `share_first`: the first model's response to the
    second's best image, over that to its own; `share_second`: the other way round.
    """
    shares = [
        (mine.rates(other.best) / mine.found.rates[range(len(mine.columns)), mine.found.best, 0])
        for mine, other in ((first, second), (second, first))
    ]
    rows = []
    for goal, (unit, mask) in enumerate(zip(first.names, masks, strict=True)):
        frames = [image.found.frames[goal] for image in (first, second)]
        alike = correlations(np.concatenate(frames), mask)[: len(frames[0]), len(frames[0]) :]
        pairs = alike[np.ix_(first.good(goal), second.good(goal))]
        rows.append(
            {
                "unit": unit,
                "agreement": float(alike[first.found.best[goal], second.found.best[goal]]),
                "closest": float(pairs.max()),
                "share_first": float(shares[0][goal]),
                "share_second": float(shares[1][goal]),
            }
        )
    return rows


def median(rows: list[dict[str, Any]], key: str) -> float:
    """Return the median of one figure over units."""
    return float(np.median([row[key] for row in rows]))
