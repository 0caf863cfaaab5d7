"""Displayed frames: 8-bit pictures whose mean level and RMS contrast are exact, and the same rule inside the gradient.

A frame is what the screen shows and what is scored. Gain and offset are searched on the rounded, clipped levels, since
clipping lowers contrast and moves the mean; then single pixels are raised or lowered by one level until the sum is
right. Contrast is sd / 127.5 over pixels and channels, as in `stimuli.limits`.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.in_steps import at_once
from rig.config.synthesis import HIGHEST, Synthesis

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

HALF_RANGE = HIGHEST / 2
ROUNDS = 60
MOST_GAIN = 8.0  # times what the contrast would need without clipping; beyond, noise would be made into a picture
SHOWN_ROUNDS = 3  # of the same search at each step; from one step to the next hardly anything changes
FAINTEST = 1e-3  # levels (sd): a picture fainter than this has no pattern
CLOSE = 0.02  # levels: contrast this near is reached
MEAN_CLOSE = 0.1  # levels, before single pixels are moved
GOOD = 2e-3  # levels: no need to search on
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, are spread evenly


@dataclass(frozen=True)
class Displayed:
    """Frames and what they came out as."""

    frames: U8
    """(n, y, x, rgb)."""
    mean_level: F64
    """(n,), 0 to 255."""
    contrast: F64
    """(n,), sd / 127.5."""
    reached: npt.NDArray[np.bool_]
    """(n,): whether contrast is as asked; a pattern in a small field may clip before."""


def displayed(levels: Tensor, settings: Synthesis) -> Displayed:
    """Return the frames for pictures (n, c, h, w) of levels, c 1 or 3; of `settings.frame_px` where it is given."""
    return at_once(displaying(levels, settings))


def displaying(levels: Tensor, settings: Synthesis) -> Generator[None, None, Displayed]:
    """Yield after each round of the search, some ms for 300 x 300 pixels; return what `displayed` does."""
    if settings.frame_px is not None and tuple(levels.shape[2:]) != settings.frame_px:
        levels = resized(levels, settings.frame_px)
    n, channels, height, width = levels.shape
    flat = levels.detach().cpu().double().reshape(n, -1).numpy()
    out = np.empty(flat.shape, np.uint8)
    target = settings.contrast * HALF_RANGE
    for k, picture in enumerate(flat):
        out[k] = yield from _matched(picture, settings.mean_level, target, settings.rule == "equal")
    mean = out.mean(1, dtype=np.float64)
    sd = out.std(1, dtype=np.float64)
    reached = np.abs(sd - target) <= CLOSE if settings.rule == "equal" else sd <= target + CLOSE
    frames = out.reshape(n, channels, height, width).transpose(0, 2, 3, 1)
    frames = np.ascontiguousarray(np.broadcast_to(frames, (n, height, width, 3)))
    return Displayed(frames, mean, sd / HALF_RANGE, reached)


def resized(levels: Tensor, frame_px: tuple[int, int]) -> Tensor:
    """Return pictures enlarged by bicubic interpolation (Walker 2019 used splines)."""
    return torch.nn.functional.interpolate(levels, frame_px, mode="bicubic", align_corners=False)


def shown(levels: Tensor, settings: Synthesis) -> Tensor:
    """Return pictures (n, c, h, w) under the rule of the display, but for rounding; differentiable.

    What the encoder sees at each step: mean level and contrast as they will be, clipped at 0 and 255. So the gradient
    knows that contrast is given, and spends it where it drives the unit. Gain and offset that make up for the clipping
    are constants of the gradient.
    """
    centred = levels - levels.mean((1, 2, 3), keepdim=True)
    sd = centred.square().mean((1, 2, 3), keepdim=True).clamp_min(FAINTEST**2).sqrt()
    target = settings.contrast * HALF_RANGE
    gain = target / sd if settings.rule == "equal" else torch.clamp(target / sd, max=1.0)
    scaled = centred * gain
    more, offset = _made_up(scaled.detach(), settings, target)
    return torch.clamp(scaled * more + offset, 0.0, HIGHEST)


@torch.no_grad()
def _made_up(scaled: Tensor, settings: Synthesis, target: float) -> tuple[Tensor, Tensor]:
    """Return gain and offset (n, 1, 1, 1) by which clipped pictures come near to mean and contrast again."""
    more = torch.ones_like(scaled[:, :1, :1, :1])
    offset = torch.full_like(more, settings.mean_level)
    for _ in range(SHOWN_ROUNDS):
        clipped = torch.clamp(scaled * more + offset, 0.0, HIGHEST)
        if settings.rule == "equal":
            now = clipped.std((1, 2, 3), correction=0, keepdim=True).clamp_min(FAINTEST)
            more = torch.clamp(more * target / now, max=MOST_GAIN)
        offset = offset + settings.mean_level - clipped.mean((1, 2, 3), keepdim=True)
    return more, offset


def _matched(picture: F64, mean: float, sd: float, equal: bool) -> Generator[None, None, U8]:
    """Return one picture (pixel,) in 8 bits with this mean and sd (levels), or a lower sd unless it is to be equal."""
    frame, wrong = yield from _searched(picture, mean, sd, equal, np.full(len(picture), 0.5))
    if wrong > CLOSE:  # pictures of few different levels: rounding moves them all at once, an even spread does not
        spread: F64 = (np.arange(1, len(picture) + 1, dtype=np.float64) * GOLDEN) % 1.0
        dithered, still = yield from _searched(picture, mean, sd, equal, spread)
        frame = dithered if still < wrong else frame
    return frame


def _searched(
    picture: F64, mean: float, sd: float, equal: bool, up: F64
) -> Generator[None, None, tuple[U8, float]]:
    """Return the frame and by how much its sd is off; level v becomes floor(v + up), `up` (pixel,) 0 to 1."""
    pattern = picture - picture.mean()
    was = float(pattern.std())
    if was < FAINTEST:
        return _summed(pattern * 0 + mean, mean, up), sd if equal else 0.0
    gain = sd / was if equal or was > sd else 1.0
    most = gain * MOST_GAIN if equal else gain
    offset = _offset(pattern * most, mean, mean)
    yield
    best = _summed(pattern * most + offset, mean, up)
    yield
    error = sd - float(best.std(dtype=np.float64))
    if error > CLOSE:
        return best, error if equal else 0.0  # out of reach
    error = np.inf
    for _ in range(ROUNDS):
        offset = _offset(pattern * gain, mean, offset)
        frame = _summed(pattern * gain + offset, mean, up)
        now = float(frame.std(dtype=np.float64))
        wrong = abs(now - sd) if equal else max(now - sd, 0.0)
        if wrong < error:
            best, error = frame, wrong
        if error < GOOD:
            break
        gain = min(gain * sd / max(now, FAINTEST), most)
        yield
    return best, error


def _offset(pattern: F64, mean: float, offset: float) -> float:
    """Return what to add to a pattern so that its mean is right after clipping: Newton's steps, kept in a bracket."""
    low, high = -float(pattern.max()), HIGHEST - float(pattern.min())  # all black, all white
    for _ in range(ROUNDS):
        exact = pattern + offset
        clipped = np.clip(exact, 0, HIGHEST)
        missing = mean - float(clipped.mean())
        if abs(missing) < MEAN_CLOSE:
            break
        low, high = (offset, high) if missing > 0 else (low, offset)
        free = float(np.mean(clipped == exact))
        offset = offset + missing / free if free > 0 else low - 1.0
        if not low < offset < high:
            offset = (low + high) / 2
    return offset


def _summed(exact: F64, mean: float, up: F64) -> U8:
    """Return levels in 8 bits, those nearest to the next level moved to it until the mean is right."""
    frame = np.clip(np.floor(exact + up), 0, HIGHEST)
    missing = round(mean * len(frame) - float(frame.sum()))
    sign = 1 if missing > 0 else -1
    free = np.flatnonzero(frame < HIGHEST if sign > 0 else frame > 0)
    if (count := min(abs(missing), len(free))) > 0:
        rest = (np.clip(exact, 0, HIGHEST) - frame)[free] * sign
        frame[free[np.argpartition(-rest, count - 1)[:count]]] += sign
    return frame.astype(np.uint8)
