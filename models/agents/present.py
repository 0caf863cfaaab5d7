"""The present agent: shows a fixed set of stimuli, blocked and randomised, with repeats.

A batch is one block: every stimulus once, in a fresh random order, among blanks. Stimuli whose response is missing
are shown again in a later block. A response with a value for some of the units counts for those, and is not shown
again: one unit that is gone must not cost the others the session. The next block is asked for in the middle of a
block, so that it is there in time.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.agents.carried import Leaves, Measured
from models.agents.ledger import Ledger
from models.agents.types import F32, F64, U8, Batch, Told, Work
from rig.messages import (
    ImageScore,
    Role,
    Slot,
)
from stimuli.spec import Blank, Place, Stimulus

BLANK = Stimulus(id="blank", spec=Blank())


@dataclass(frozen=True)
class Contents:
    """What one block may show: all of it lies at one place."""

    images: tuple[int, ...]
    """Indices into the agent's stimuli."""
    regular: bool
    """Whether each of them is shown once; else only what is owed."""
    frames: U8
    """(frame, y, x, rgb): finished frames of the latent ones among them."""
    latents: F32
    """(frame, latent)"""
    place: Place | None
    role: Role | None = None
    """Of its presentations; None: that of the agent."""
    last: bool = False
    """Whether nothing may follow it, although it is none of the last regular blocks."""


class Present:
    """Shows a fixed set."""

    role: Role = "reference"

    def __init__(
        self,
        stimuli: tuple[Stimulus, ...],
        repeats: int,
        blanks: int,
        units: int,
        frame_shape: tuple[int, int],
        rng: np.random.Generator,
        place: Place | None = None,
    ) -> None:
        """Show each of `stimuli` `repeats` times with `blanks` blanks in each block; every draw comes from `rng`.

        All lie at `place` (None: where the config's `stimulus` says), where frames have `frame_shape`.
        """
        if not stimuli or repeats < 1:
            raise ValueError(f"{len(stimuli)} stimuli, {repeats} repeats: nothing to show")
        self.stimuli, self.repeats, self.blanks, self.frame_shape = stimuli, repeats, blanks, frame_shape
        self.place = place
        self._ids = {stimulus.id: k for k, stimulus in enumerate(stimuli)}
        if len(self._ids) != len(stimuli):
            raise ValueError("two stimuli of a set have the same id")
        self._rng = rng
        self._ledger = Ledger(units)
        self._block = -1
        self._owed = [0] * len(stimuli)  # presentations without a response, not yet planned again
        self._count = np.zeros(len(stimuli) + 1, np.int64)  # usable presentations; the last one is the blank
        self._sum: F64 = np.zeros((len(stimuli) + 1, units))
        self._known = np.zeros((len(stimuli) + 1, units), np.int64)  # presentations in the sum, for each unit
        self._missing = 0

    def ask(self) -> Work:
        """Return the computation of the next block."""
        self._ledger.require_main_told()
        return Shuffle(self)

    def tell(self, told: Sequence[Told]) -> None:
        """Take outcomes; a stimulus whose response is missing is shown again."""
        for row, _ in self._ledger.take(told):
            k = self._ids.get(row.stimulus_id, len(self.stimuli))
            if row.rate_hz is not None:
                self.take(k, row)
                self._count[k] += 1
                known = np.isfinite(row.rate_hz)  # for a unit that was not there it is no repeat
                self._sum[k, known] += row.rate_hz[known]
                self._known[k] += known
            else:
                self._missing += 1
                if k < len(self.stimuli):
                    self._owed[k] += 1

    def report(self) -> dict[str, float]:
        """Return figures over the blocks told so far; rates are means over all units, spikes/s.

        best and mean: the stimulus with the highest mean, and the mean over stimuli; blank: mean over blanks; usable
        and missing: presentations; least_of_a_unit: usable presentations of the unit that has a value in the fewest,
        told if that is not all of them. Figures without data are left out.
        """
        out = {"generation": float(max(self._block, 0)), "missing": float(self._missing)}
        out["usable"] = float(self._count.sum())
        if (least := float(self._known.sum(axis=0).min())) < out["usable"]:
            out["least_of_a_unit"] = least
        each = self._sum / np.maximum(self._known, 1)
        units = (self._known > 0).sum(axis=1)
        rates = each.sum(axis=1) / np.maximum(units, 1)
        shown = units[:-1] > 0
        if shown.any():
            out |= {"best": float(rates[:-1][shown].max()), "mean": float(rates[:-1][shown].mean())}
        if units[-1]:
            out["blank"] = float(rates[-1])
        return out

    def finished(self) -> str | None:
        """Return why the set is done: all repeats have a response, or make-up blocks were given up."""
        if self._block + 1 < self.regular_blocks or not self._ledger.main_told:
            return None
        owed = sum(self._owed)
        if not owed:
            return f"{self.repeats} repeats of {len(self.stimuli)} stimuli were shown"
        if self._block + 1 >= 2 * self.regular_blocks:  # as many make-up blocks as blocks: the recording is at fault
            return f"{owed} presentations still have no usable response after {self.repeats} make-up blocks"
        return None

    # --- what a phase with several places, or with frames of its own, has otherwise ----------------------------------

    @property
    def regular_blocks(self) -> int:
        """Blocks in which everything has been shown `repeats` times."""
        return self.repeats

    def contents(self, block: int) -> Contents:
        """Return what block number `block` shows."""
        frames, latents = np.empty((0, *self.frame_shape, 3), np.uint8), np.empty((0, 0), np.float32)
        return Contents(tuple(range(len(self.stimuli))), block < self.repeats, frames, latents, self.place)

    def take(self, image: int, row: Told) -> None:
        """Take a usable presentation of stimulus number `image`, or of a blank."""

    # ------------------------------------------------------------------------------------------------------------------

    def scored(self) -> tuple[ImageScore, ...]:
        """Nothing is scored."""
        return ()

    def leaves(self) -> Leaves:
        """Return the images with their mean rates, as references for later phases."""
        known = self._known[:-1]
        mean = np.where(known > 0, self._sum[:-1] / np.maximum(known, 1), np.nan)
        images = zip(self.stimuli, mean, known, strict=True)
        return {"references": tuple(Measured(stimulus, rate, count, self.place) for stimulus, rate, count in images)}

    def state(self) -> dict[str, Any]:
        """Return everything that decides what comes next and what is reported."""
        return {
            "rng": self._rng.bit_generator.state,
            "ledger": self._ledger.state(),
            "block": self._block,
            "owed": list(self._owed),
            "count": self._count.copy(),
            "sum": self._sum.copy(),
            "known": self._known.copy(),
            "missing": self._missing,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an agent built with the same arguments."""
        self._rng.bit_generator.state = state["rng"]
        self._ledger.restore(state["ledger"])
        self._block = state["block"]
        self._owed = list(state["owed"])
        self._count = np.array(state["count"], np.int64)
        self._sum = np.array(state["sum"], np.float64)
        self._known = np.array(state["known"], np.int64)
        self._missing = state["missing"]

    def snapshot(self) -> tuple[int, list[int], np.random.Generator]:
        """Return copies of what the next block is made of: its number, owed presentations, random generator."""
        return self._block + 1, list(self._owed), copy.deepcopy(self._rng)

    def move_on(self, batch: Batch, planned: list[int], rng: np.random.Generator) -> None:
        """Take over the next block, in which `planned` owed presentations of each stimulus are shown."""
        if batch.generation != self._block + 1:
            raise RuntimeError(f"block {batch.generation} was made from an older state; ask again")
        self._block, self._rng = batch.generation, rng
        self._owed = [owed - n for owed, n in zip(self._owed, planned, strict=True)]
        self._ledger.open(batch)


class Shuffle:
    """The work of one block: a single short step."""

    def __init__(self, agent: Present) -> None:
        """Copy from `agent` what is needed; it is not touched before the result is taken."""
        self.steps = 0
        self._agent = agent
        self._block, self._planned, self._rng = agent.snapshot()
        self._shown = self.contents()
        self._batch: Batch | None = None
        self._taken = False

    def contents(self) -> Contents:
        """Return what the block shows."""
        return self._agent.contents(self._block)

    def stimuli(self) -> tuple[Stimulus, ...]:
        """Return its stimuli, without the blank."""
        return tuple(self._agent.stimuli[k] for k in self._shown.images)

    def step(self) -> bool:
        """Make the block; further calls change nothing."""
        if self._batch is None:
            self._batch = self._make()
            self.steps += 1
        return True

    def peek(self) -> Batch:
        """Return the block without a change to the agent."""
        if self._batch is None:
            raise RuntimeError("the next block is not made yet; call step first")
        return self._batch

    def result(self) -> Batch:
        """Return the block; the agent moves on to it."""
        batch = self.peek()
        if not self._taken:
            self._agent.move_on(batch, self._planned, self._rng)
            self._taken = True
        return batch

    def _make(self) -> Batch:
        agent = self._agent
        shown, role = self._shown, self._shown.role or agent.role
        self._planned = [owed if k in shown.images else 0 for k, owed in enumerate(self._planned)]
        stimuli = self.stimuli()
        times = [int(shown.regular) + self._planned[k] for k in shown.images]
        slots = [Slot(stimulus=k, role=role) for k, n in enumerate(times) for _ in range(n)]
        slots += [Slot(stimulus=len(stimuli), role="blank")] * agent.blanks
        plan = tuple(slots[k] for k in self._rng.permutation(len(slots)))
        # From the last regular block on, what is still owed must be known before it can be decided if a block follows.
        last = shown.last or self._block + 1 >= agent.regular_blocks
        return Batch(
            generation=self._block,
            stimuli=(*stimuli, *([BLANK] if agent.blanks else [])),
            plan=plan,
            tail_from=len(plan) if last else max(1, len(plan) // 2),
            fallback=tuple(range(len(stimuli))),
            frames=shown.frames,
            latents=shown.latents,
            final=last,
            place=shown.place,
        )
