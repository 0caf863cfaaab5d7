"""Images from a model: gradient ascent on what an objective says of an encoder's responses, for many images at once.

A `Synthesis` is a piece of work in small steps (`models.agents.types.Work`): one step is one iteration of `together`
images, or the frame of one of them. Images are computed group by group, each group to its end, so that arrays stay
small; nothing is random, so the starts and the number of steps taken decide everything. Pictures, gradients and
responses live on the device that is given, where the encoder must be too; finished frames are numpy's.

The loop is that of Walker et al. 2019 with three differences: the encoder runs once a step; it sees each picture as the
display will show it, with the mean, the contrast and the clipping of the frame (`models.synthesis.frames.shown`); and
what is returned is the 8-bit frame with the score of that frame.
"""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.encoders.encoder import Encoder
from models.encoders.eye import Eye
from models.synthesis.focus import responses_of
from models.synthesis.frames import Displayed, displaying, shown
from models.synthesis.objectives import Objective
from models.synthesis.schedule import Schedule
from rig.config.synthesis import HIGHEST
from rig.config.synthesis import Synthesis as Settings

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
Kind = TypeVar("Kind", bound=np.generic)

PROCESSOR = torch.device("cpu")


@dataclass(frozen=True)
class Synthesised:
    """The frames of every goal from every start, and what each is worth when it is displayed."""

    frames: U8
    """(goal, start, y, x, rgb)."""
    scores: F64
    """(goal, start): the objective's value of the displayed frames."""
    rates: F64
    """(goal, start, k): responses of the watched units to the displayed frames."""
    mean_level: F64
    """(goal, start), 0 to 255, of the displayed frames."""
    contrast: F64
    """(goal, start), sd / 127.5 of the displayed frames."""
    reached: npt.NDArray[np.bool_]
    """(goal, start): whether the contrast is as asked."""

    @property
    def best(self) -> npt.NDArray[np.int64]:
        """Return the start whose frame scores highest, for each goal."""
        found: npt.NDArray[np.int64] = self.scores.argmax(1)
        return found


class Synthesis:
    """Work: `step()` until it returns True, then `result()`. The encoder must not change meanwhile."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        starts: F32,
        settings: Settings,
        device: torch.device = PROCESSOR,
    ) -> None:
        """Take starts (goal, start, c, h, w), levels 0 to 255; `device`: where the encoder is. Raises ValueError."""
        self.steps, self._device = 0, device
        self._eye, self._objective, self._settings = encoder.eye, objective, settings
        watched = objective.watched
        _check(starts, watched, encoder)
        goals, copies = starts.shape[:2]
        self._shape = (goals, copies)
        self._levels = torch.from_numpy(starts.reshape(goals * copies, *starts.shape[2:]).astype(np.float32))
        self._goals = torch.arange(goals).repeat_interleave(copies)
        self._units = torch.from_numpy(watched).repeat_interleave(copies, 0)
        self._responses = responses_of(encoder, watched.shape[1])
        self._schedule = Schedule(settings, encoder.eye.height, encoder.eye.width, device)
        each = max(1, settings.together // copies) * copies if objective.by_group else settings.together
        images = goals * copies
        self._groups = [slice(k, min(k + each, images)) for k in range(0, images, each)]
        self._group = self._taken = 0  # the group at work, and its steps taken
        self._x = self._group_goals = self._group_units = torch.empty(0)
        self._frames: list[Displayed] = []
        self._displaying: Generator[None, None, Displayed] | None = None  # the frame that is being made
        self._parts: list[_Part] = []

    @property
    def total_steps(self) -> int:
        """Return how many steps there are."""
        return len(self._groups) * self._settings.iterations + len(self._goals)

    def step(self) -> bool:
        """Take one iteration of one group, or make the next of its frames; return True when nothing is left."""
        steps = self.steps
        while not (finished := self.part()) and self.steps == steps:
            pass
        return finished

    def part(self) -> bool:
        """Do as little of a step as can be done at a time, an iteration or a part of a frame; True at the end."""
        if self._group == len(self._groups):
            return True
        which, taken = self._groups[self._group], self._taken
        if taken == 0:
            self._x, self._group_goals, self._group_units = (
                whole[which].to(self._device) for whole in (self._levels, self._goals, self._units)
            )
        if taken < self._settings.iterations:
            self._x = self._climbed(taken)
        elif not self._displayed(taken - self._settings.iterations):
            return False
        self.steps, self._taken = self.steps + 1, taken + 1
        if len(self._frames) == len(self._x):
            self._parts.append(self._scored())
            self._frames = []
            self._group, self._taken = self._group + 1, 0
        return self._group == len(self._groups)

    def result(self) -> Synthesised:
        """Return frames and scores; raises RuntimeError before the last step."""
        if len(self._parts) < len(self._groups):
            raise RuntimeError(f"the synthesis has taken {self.steps} of {self.total_steps} steps")

        def joined(parts: Iterable[npt.NDArray[Kind]]) -> npt.NDArray[Kind]:
            whole: npt.NDArray[Kind] = np.concatenate(list(parts))
            return whole.reshape(*self._shape, *whole.shape[1:])

        return Synthesised(
            frames=joined(part.frames for part in self._parts),
            scores=joined(part.scores for part in self._parts),
            rates=joined(part.rates for part in self._parts),
            mean_level=joined(part.mean_level for part in self._parts),
            contrast=joined(part.contrast for part in self._parts),
            reached=joined(part.reached for part in self._parts),
        )

    def _displayed(self, k: int) -> bool:
        """Do a part of frame `k` of the group; return whether it is there."""
        if self._displaying is None:
            self._displaying = displaying(self._x[k : k + 1], self._settings)
        try:
            next(self._displaying)
        except StopIteration as end:
            self._frames.append(end.value)
            self._displaying = None
            return True
        return False

    def _climbed(self, iteration: int) -> Tensor:
        x = self._x.requires_grad_(True)
        seen = shown(x, self._settings)
        rates = self._responses(self._eye.see_levels(seen), self._group_units)
        value = self._objective.value(rates, self._group_goals, seen)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        with torch.no_grad():
            moved = x.detach() + self._schedule.step(gradient, iteration)
            return self._schedule.blurred(torch.clamp(moved, 0.0, HIGHEST), iteration)

    @torch.no_grad()
    def _scored(self) -> "_Part":
        frames, mean, contrast, reached = (
            np.concatenate([getattr(one, name) for one in self._frames])
            for name in ("frames", "mean_level", "contrast", "reached")
        )
        x = self._eye.see(frames).to(self._device)
        rates = self._responses(x, self._group_units)
        value = self._objective.value(rates, self._group_goals, self._eye.levels(x))
        return _Part(frames, value.cpu().double().numpy(), rates.cpu().double().numpy(), mean, contrast, reached)


@dataclass(frozen=True)
class _Part:
    """The result of one group: as in Synthesised, images in one row."""

    frames: U8
    scores: F64
    rates: F64
    mean_level: F64
    contrast: F64
    reached: npt.NDArray[np.bool_]


def synthesise(
    encoder: Encoder, objective: Objective, starts: F32, settings: Settings, device: torch.device = PROCESSOR
) -> Synthesised:
    """Do all the steps at once."""
    work = Synthesis(encoder, objective, starts, settings, device)
    while not work.step():
        pass
    return work.result()


def levels_seen(eye: Eye, frames: U8) -> Tensor:
    """Return the levels (n, c, h, w) that an eye sees of frames (n, y, x, rgb), at the size of its input."""
    return eye.levels(eye.see(frames))


def _check(starts: F32, watched: npt.NDArray[np.int64], encoder: Encoder) -> None:
    if starts.ndim != 5 or starts.shape[0] != len(watched) or starts.shape[2:] != encoder.eye.shape:
        raise ValueError(
            f"starts {starts.shape}: expected (goal, start, c, h, w) with {len(watched)} goals and {encoder.eye.shape}"
        )
    if starts.shape[1] == 0 or not (np.isfinite(starts).all() and starts.min() >= 0 and starts.max() <= HIGHEST):
        raise ValueError("starts: at least one for each goal, and levels from 0 to 255")
    if watched.min() < 0 or watched.max() >= len(encoder.units):
        raise ValueError(f"unit {watched.max()} is none of the encoder's {len(encoder.units)} (counted from 0)")
