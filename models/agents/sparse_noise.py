"""Sparse noise: frames of a few squares on the background, equally many white and black, each position equally often.

Used by the map agent; pure. A pass shows every position of a grid once in white and once in black. Two grids take
turns, the second one shifted by half a square, so that a field is not seen through one raster only. Mean level and
flicker stay those of the background: the whites and blacks of a frame cancel.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from stimuli.spec import GratingSquare, Patches, Place, Square

ORIENTATIONS_DEG = (0.0, 45.0, 90.0, 135.0)
CYCLES_PER_SQUARE = 1.0
TRIES = 100


@dataclass(frozen=True)
class Raster:
    """Squares of one size over a square part of the screen; angles from the screen's centre, degrees."""

    center_deg: tuple[float, float]
    size_deg: float
    per_side: int

    @property
    def square_deg(self) -> float:
        """Side of a square."""
        return self.size_deg / self.per_side

    def centers(self, shifted: bool) -> list[tuple[float, float]]:
        """Return the squares' centres (right, up); the shifted grid has one square less along each side."""
        side = self.square_deg
        number = self.per_side - 1 if shifted else self.per_side
        at = (np.arange(number) - (number - 1) / 2) * side
        return [(self.center_deg[0] + float(x), self.center_deg[1] + float(y)) for y in at for x in at]


def one_pass(
    raster: Raster,
    shifted: bool,
    squares: int,
    pattern: Literal["squares", "gratings"],
    place: Place,
    levels: tuple[int, int],
    rng: np.random.Generator,
) -> list[Patches]:
    """Return the frames of one pass: every position once in white and once in black (gratings: twice).

    `squares` in a frame, half of them white; the last frame is filled up with positions drawn again. Positions are
    relative to `place`, which must hold the raster; `levels` are black and white.
    """
    centers = raster.centers(shifted)
    half = squares // 2
    if squares % 2 or not 2 <= squares <= len(centers):
        raise ValueError(f"{squares} squares in a frame: give an even number of at most {len(centers)}, the positions")
    count = -(-len(centers) // half)
    frames = []
    for white, black in zip(*_apart(len(centers), count, half, rng), strict=True):
        drawn = [(k, levels[1]) for k in white] + [(k, levels[0]) for k in black]
        parts: list[Square | GratingSquare] = []
        for k, level in drawn:
            right, up = (round(c - p, 4) for c, p in zip(centers[k], place.center_deg, strict=True))
            size = round(raster.square_deg, 4)
            if pattern == "gratings":
                orientation = ORIENTATIONS_DEG[int(rng.integers(len(ORIENTATIONS_DEG)))]
                cycles = round(CYCLES_PER_SQUARE / raster.square_deg, 4)
                phase = float(rng.integers(4) * 90)
                parts.append(
                    GratingSquare(
                        center_deg=(right, up), size_deg=size, orientation_deg=orientation, cycles_per_deg=cycles,
                        phase_deg=phase,
                    )
                )  # fmt: skip
            else:
                parts.append(Square(center_deg=(right, up), size_deg=size, level=level))
        frames.append(Patches(squares=tuple(parts)))
    return frames


def _apart(
    positions: int, frames: int, half: int, rng: np.random.Generator
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the white and the black positions of each frame; no position is both in one frame."""
    need = frames * half
    white = [int(k) for k in rng.permutation(positions)]
    white += _others(positions, white[(frames - 1) * half :], need - positions, rng)
    for _ in range(TRIES):
        black = [int(k) for k in rng.permutation(positions)]
        black += _others(positions, black[(frames - 1) * half :], need - positions, rng)
        whites = [white[k * half : (k + 1) * half] for k in range(frames)]
        blacks = [black[k * half : (k + 1) * half] for k in range(frames)]
        if _swapped(whites, blacks):
            return whites, blacks
    raise RuntimeError("no way was found to place whites and blacks apart; use fewer squares in a frame")


def _others(positions: int, taken: list[int], number: int, rng: np.random.Generator) -> list[int]:
    free = [k for k in range(positions) if k not in taken]
    return [free[int(k)] for k in rng.permutation(len(free))[:number]]


def _swapped(whites: list[list[int]], blacks: list[list[int]]) -> bool:
    """Exchange blacks between frames until none lies on a white of its frame; return whether that succeeded."""
    for k, white in enumerate(whites):
        for i, position in enumerate(blacks[k]):
            if position not in white:
                continue
            for other, others in enumerate(blacks):
                j = next(
                    (
                        j for j, theirs in enumerate(others)
                        if other != k and theirs not in white and theirs not in blacks[k]
                        and position not in whites[other] and position not in others
                    ),
                    None,
                )  # fmt: skip
                if j is not None:
                    blacks[k][i], others[j] = others[j], position
                    break
            else:
                return False
    return True
