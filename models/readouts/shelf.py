"""Keeps the feature maps of all images shown, as small whole numbers, and compares new images with them cell by cell.

Whole numbers of at most 7 bits and a sign: sums of their products over a cell's channels are below 2^24 and so exact
in float32, in whatever order they are added. Kernels are then the same, bit for bit, however the images were batched.
A step is a sixteenth of a block's rms: rounding adds 0.03 % to the variance of a feature.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]

Maps = Mapping[int, npt.NDArray[np.floating[Any]]]
"""Feature maps of images by block of the network: (image, y, x, channel)."""
Levels = dict[int, I8]
"""The same as whole numbers."""
Products = dict[int, F32]
"""By block: (cell, image, image)."""

STEPS = 16  # of the quantisation in a block's rms
MOST = 127
CHANNELS = 1000  # of a block: more of them could exceed what float32 holds exactly
FIRST_ROOM = 64


class Rounding:
    """Takes feature maps to whole numbers: centred for each channel, in steps of each block's size."""

    def __init__(self, centre: Mapping[int, F64], step: Mapping[int, float]) -> None:
        """`centre` (channel,) and `step`, by block."""
        self.centre, self.step = dict(centre), dict(step)

    @classmethod
    def like(cls, maps: Maps) -> "Rounding":
        """Take centres and steps from typical images. Raises ValueError for a block that does not vary."""
        centre, step = {}, {}
        for block, found in maps.items():
            centre[block] = found.mean(axis=(0, 1, 2), dtype=np.float64)
            step[block] = float(np.sqrt(np.mean(np.square(found - centre[block])))) / STEPS
            if not step[block] > 0:
                raise ValueError(f"block {block}: its features are the same everywhere in all images")
            if found.shape[-1] > CHANNELS:
                raise ValueError(f"block {block}: {found.shape[-1]} channels; {CHANNELS} can be compared exactly")
        return cls(centre, step)

    def levels(self, maps: Maps) -> Levels:
        """Return the maps as whole numbers -127 to 127. Raises ValueError if they are not finite."""
        out = {}
        for block, centre in self.centre.items():
            scaled = (np.asarray(maps[block], dtype=np.float64) - centre) / self.step[block]
            if not np.isfinite(scaled).all():
                raise ValueError(f"block {block}: features that are not finite")
            out[block] = np.clip(np.rint(scaled), -MOST, MOST).astype(np.int8)
        return out


class Shelf:
    """The images so far."""

    def __init__(self) -> None:
        self.count = 0
        self.sizes: dict[int, tuple[int, int]] = {}
        """Rows and columns of each block's map."""
        self._cells: dict[int, F32] = {}  # (cell, room, channel)
        self._lengths: dict[int, F32] = {}  # (cell, room)

    def add(self, levels: Levels) -> None:
        """Put images on the shelf."""
        end = self.count + len(next(iter(levels.values())))
        for block, found in levels.items():
            cells = _by_cell(found)
            if block not in self._cells or end > self._cells[block].shape[1]:
                self._make_room(block, found, max(end, 2 * self.count, FIRST_ROOM))
            self._cells[block][:, self.count : end] = cells
            self._lengths[block][:, self.count : end] = lengths_of(cells)
        self.count = end

    def _make_room(self, block: int, found: I8, room: int) -> None:
        _, rows, columns, channels = found.shape
        self.sizes[block] = (rows, columns)
        cells = np.zeros((rows * columns, room, channels), np.float32)
        lengths = np.zeros((rows * columns, room), np.float32)
        if block in self._cells:
            cells[:, : self.count] = self._cells[block][:, : self.count]
            lengths[:, : self.count] = self._lengths[block][:, : self.count]
        self._cells[block], self._lengths[block] = cells, lengths

    def lengths(self, block: int) -> F32:
        """Return squared lengths (cell, image)."""
        return self._lengths[block][:, : self.count]

    def cells(self, block: int) -> F32:
        """Return (cell, image, channel)."""
        return self._cells[block][:, : self.count]

    def compared(self, levels: Levels) -> tuple[Products, Products, dict[int, F32]]:
        """Return products of new images with those here (cell, new, old) and with each other, and squared lengths."""
        old, own, lengths = {}, {}, {}
        for block in self._cells:
            cells = _by_cell(levels[block])
            old[block] = cells @ self.cells(block).transpose(0, 2, 1)
            own[block] = cells @ cells.transpose(0, 2, 1)
            lengths[block] = lengths_of(cells)
        return old, own, lengths


def lengths_of(cells: F32) -> F32:
    """Return squared lengths (cell, image) of (cell, image, channel)."""
    return np.asarray(np.square(cells).sum(axis=2), dtype=np.float32)


def _by_cell(levels: I8) -> F32:
    images, rows, columns, channels = levels.shape
    flat = levels.reshape(images, rows * columns, channels).transpose(1, 0, 2)
    return np.ascontiguousarray(flat, dtype=np.float32)


def pooled(maps: F32, cells: int) -> F32:
    """Return maps (image, y, x, channel) with about `cells` rows and columns at most: means over equal squares."""
    n, rows, columns, channels = maps.shape
    down, right = max(1, rows // cells), max(1, columns // cells)
    kept = maps[:, : rows // down * down, : columns // right * right]
    out: F32 = kept.reshape(n, rows // down, down, columns // right, right, channels).mean(axis=(2, 4))
    return out
