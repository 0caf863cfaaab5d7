"""The revisit agent: most exciting images of another day, shown to units that are verified to be the same.

First the held-out images of that day are shown again. Which unit is which the user's table says (stack registration,
waveforms); the mean responses to these images only verify it, against the correlations of all other combinations of the
units. Then the images that were made that day for verified units, and their controls, are shown in fresh repeats. None
of them, nor any picture that one was made of, is among the images that verify.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.agents.carried import Leaves
from models.agents.present import Contents, Present, Shuffle
from models.agents.types import F32, F64, U8, Batch, Told, Work
from models.inception.made import MEI
from models.inception.results import Repeats, mean, told
from models.statistics import match_units
from rig.config.revisit import RevisitPhase
from rig.messages import ImageScore
from stimuli.limits import frame_levels
from stimuli.spec import LatentImage, Place, Stimulus

FIGURES = ("similarity", "p", "q", "rivals")  # of each pair, in the rows of `Verified.figures`
NULL_HIGH = 0.95  # quantile of the null that is told


@dataclass(frozen=True)
class Again:
    """An image that was made on the other day."""

    unit: int
    """Column, today, of the unit that it was made for."""
    kind: str
    """MEI or a control."""
    stimulus: Stimulus
    frame: U8
    """(y, x, rgb) before the gamma table."""
    mean_hz: float
    """Mean over that day's repeats."""


@dataclass(frozen=True)
class Shared:
    """Images of the other day that verify who is who."""

    stimuli: tuple[Stimulus, ...]
    before_hz: F64
    """(image, unit of that day): means of that day."""
    pairs: tuple[tuple[int, int], ...]
    """Column of that day and column of today that the user says are one unit."""


@dataclass(frozen=True)
class Verified:
    """What the shared images said of the pairs."""

    figures: F64
    """(figure of FIGURES, pair)."""
    null: F64
    """Correlations of all other combinations, ascending."""
    good: tuple[int, ...]
    """Columns, today, of the units that are verified, in the order of the pairs."""


class Revisit(Present):
    """Verifies units, then shows them the images that were made for them."""

    def __init__(
        self,
        phase: RevisitPhase,
        shared: Shared,
        images: Sequence[Again],
        units: tuple[str, ...],
        frame_shape: tuple[int, int],
        rng: np.random.Generator,
        place: Place | None = None,
    ) -> None:
        """Show `shared` and then those of `images` whose unit is verified; `units` are the scored ones, today."""
        stimuli = (*shared.stimuli, *(one.stimulus for one in images))
        super().__init__(stimuli, phase.repeats, phase.blanks, len(units), frame_shape, rng, place)
        self.phase, self.shared, self.images, self.units = phase, shared, tuple(images), units
        self.verified: Verified | None = None  # until the first block of images that were made
        self._rates: list[list[F64]] = [[] for _ in images]

    # --- the contract -------------------------------------------------------------------------------------------------

    def ask(self) -> Work:
        """Return the computation of the next block."""
        self._ledger.require_main_told()
        return NextBlock(self)

    def take(self, image: int, row: Told) -> None:
        """Keep the rates of an image that was made then."""
        at = image - len(self.shared.stimuli)
        if 0 <= at < len(self.images):
            self._rates[at].append(np.array(row.rate_hz))

    def finished(self) -> str | None:
        """Return why it is over: everything was shown, or no unit was found again."""
        if self.verified is None or not self._ledger.main_told:
            return None
        if not self.verified.good:
            return f"none of {len(self.shared.pairs)} units was verified to be the same: no image was shown back"
        tested = self._tested(self.verified)
        if not tested:
            return f"no image was made for any of {len(self.verified.good)} verified units: none was shown back"
        if self._block + 1 < self.regular_blocks:
            return None
        if not (owed := sum(self._owed[k] for k in tested)):
            shown = f"{len(tested)} images of {len(self._good())} verified units"
            return f"{self.repeats} repeats of {shown} were shown"
        if self._block + 1 >= self.regular_blocks + self.repeats:
            return f"{owed} presentations still have no usable response after {self.repeats} make-up blocks"
        return None

    @property
    def regular_blocks(self) -> int:
        """Those of the shared images, and one for each repeat of the others."""
        return self.phase.shared_repeats + self.repeats

    def report(self) -> dict[str, float]:
        """Return figures; names of a unit's begin with its own, that of today. Figures without data are left out.

        After verification: pairs, verified; null_median and null_high (its 95 % quantile): correlations of units that
        are not the same; of each pair similarity, p_match, q_match, rivals, and the reasons it was rejected for. Then
        as the inception agent says it, of the images made on the other day: means over today's repeats by kind, *_se,
        *_n, *_before (the mean of that day), row_maximum, p_*, q_*, better_*, worse_*.
        """
        out = {"generation": float(max(self._block, 0)), "missing": float(self._missing)}
        out["usable"] = float(self._count.sum())
        if self.verified is not None:
            out |= self._matching(self.verified) | self._shown_again()
        return {name: value for name, value in out.items() if np.isfinite(value)}

    def scored(self) -> tuple[ImageScore, ...]:
        """Return the mean of each image that was made then, so far today."""
        out = []
        for one, repeats in zip(self.images, self._rates, strict=True):
            value, error, n = mean(repeats, one.unit)
            if n:
                out.append(
                    ImageScore(
                        target=self.units[one.unit], stimulus_id=one.stimulus.id, source=one.kind, raw=value,
                        corrected=value, error=error if np.isfinite(error) else None, presentations=n,
                    )
                )  # fmt: skip
        return tuple(out)

    def leaves(self) -> Leaves:
        """Return the verified units."""
        return {} if self.verified is None else {"units": tuple(self.units[unit] for unit in self.verified.good)}

    def state(self) -> dict[str, Any]:
        """Return everything that decides what comes next and what is reported."""
        none, found = np.empty((0, len(self.units))), self.verified
        return super().state() | {
            "verified": None if found is None else [found.figures.copy(), found.null.copy(), list(found.good)],
            "rates": [np.stack(rates) if rates else none for rates in self._rates],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an agent built with the same arguments."""
        super().restore(state)
        found = state["verified"]
        if found is not None:
            found = Verified(np.array(found[0], np.float64), np.array(found[1], np.float64), tuple(found[2]))
        self.verified = found
        self._rates = [list(np.array(rates, np.float64)) for rates in state["rates"]]

    # --- blocks -------------------------------------------------------------------------------------------------------

    def next_verified(self) -> Verified | None:
        """Return what is known of the units in the next block, from what was told so far."""
        if self.verified is not None or self._block + 1 < self.phase.shared_repeats:
            return self.verified
        count = len(self.shared.stimuli)
        known = self._known[:count]
        today = np.where(known > 0, self._sum[:count] / np.maximum(known, 1), np.nan)
        found = match_units(self.shared.before_hz[:, None, :], today[:, None, :], self.shared.pairs)
        good = found.confirmed(self.phase.chance)
        figures = np.stack([found.similarity, found.p, found.q, found.rivals.astype(np.float64)])
        columns = (unit for (_, unit), is_good in zip(self.shared.pairs, good, strict=True) if is_good)
        return Verified(figures, found.null, tuple(columns))

    def block_of(self, block: int, verified: Verified | None) -> Contents:
        """Return what block number `block` shows, with what is known of the units."""
        count = len(self.shared.stimuli)
        if verified is None or not self._tested(verified):
            frames, codes = np.empty((0, *self.frame_shape, 3), np.uint8), np.empty((0, 0), np.float32)
            return Contents(tuple(range(count)), True, frames, codes, self.place, last=verified is not None)
        tested = self._tested(verified)
        frames = np.stack([self.images[k - count].frame for k in tested])
        codes = np.stack([_code(self.images[k - count].frame) for k in tested])
        return Contents(tested, block < self.regular_blocks, frames, codes, self.place, "confirmation")

    def _tested(self, verified: Verified) -> tuple[int, ...]:
        """Return which of the stimuli were made for verified units."""
        count = len(self.shared.stimuli)
        return tuple(count + k for k, one in enumerate(self.images) if one.unit in verified.good)

    # --- what came of it ----------------------------------------------------------------------------------------------

    def _good(self) -> list[int]:
        """Return the verified units that images were made for."""
        good = () if self.verified is None else self.verified.good
        return list(dict.fromkeys(one.unit for one in self.images if one.unit in good))

    def _matching(self, found: Verified) -> dict[str, float]:
        out = {"pairs": float(len(self.shared.pairs)), "verified": float(len(found.good))}
        if len(found.null):
            out |= {"null_median": float(np.median(found.null)), "null_high": float(np.quantile(found.null, NULL_HIGH))}
        for (_, unit), (similarity, p, q, rivals) in zip(self.shared.pairs, found.figures.T, strict=True):
            name = self.units[unit]
            figures = {"similarity": similarity, "p_match": p, "q_match": q, "rivals": rivals}
            out |= {f"{name}: {figure}": float(value) for figure, value in figures.items()}
            if unit in found.good:
                continue
            if not np.isfinite(similarity):
                out[f"{name}: rejected, no response varies"] = 1.0
            elif not q <= self.phase.chance:
                out[f"{name}: rejected, no more alike than other units"] = 1.0
            if rivals > 0:
                out[f"{name}: rejected, another unit is as alike"] = 1.0
        return out

    def _shown_again(self) -> dict[str, float]:
        out: dict[str, float] = {}
        shown: dict[int, dict[str, Repeats]] = {unit: {} for unit in self._good()}
        for one, repeats in zip(self.images, self._rates, strict=True):
            if one.unit not in shown:
                continue
            shown[one.unit][one.kind] = repeats
            value, error, n = mean(repeats, one.unit)
            name = f"{self.units[one.unit]}: {one.kind}"
            out |= {name: value, f"{name}_se": error, f"{name}_n": float(n), f"{name}_before": one.mean_hz}
            if one.kind == MEI:
                out[f"{self.units[one.unit]}: contrast"] = frame_levels(one.frame)[1]
        return out | told(list(shown.items()), MEI, self.units, self.phase.chance, self.finished() is not None)


def _code(frame: U8) -> F32:
    """Return the mean level of each of the frame's channels: it was given, not decoded from a code."""
    out: F32 = frame.mean(axis=(0, 1)).astype(np.float32)
    return out


class NextBlock(Shuffle):
    """The work of one block; once the shared images were shown, it verifies the units first."""

    def __init__(self, agent: Revisit) -> None:
        """Copy from `agent` what is needed; it is not touched before the result is taken."""
        self._revisit, self._verified = agent, agent.next_verified()
        super().__init__(agent)

    def contents(self) -> Contents:
        """Return what the block shows."""
        return self._revisit.block_of(self._block, self._verified)

    def stimuli(self) -> tuple[Stimulus, ...]:
        """Return its stimuli; finished frames are numbered as they lie in the block."""
        out = super().stimuli()
        rows = {one.id: k for k, one in enumerate(s for s in out if isinstance(s.spec, LatentImage))}
        return tuple(
            s.model_copy(update={"spec": s.spec.model_copy(update={"row": rows[s.id]})}) if s.id in rows else s
            for s in out
        )

    def result(self) -> Batch:
        """Return the block; the agent moves on to it."""
        batch = super().result()
        self._revisit.verified = self._verified
        return batch
