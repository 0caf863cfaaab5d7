"""Frames of images that are compared with each other: alike in mean level and RMS contrast after 8 bit. Pure.

All of them pass through here, so that none wins by its light.
"""

from collections.abc import Generator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from models.in_steps import at_once
from models.synthesis.frames import displaying, resized
from rig.config.synthesis import Synthesis

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

TRIES = 20
USUAL_SD = 16.0  # levels, before the contrast is matched
LOWER = 0.95  # of a contrast that one of them cannot reach


def enlarged(picture: F32, shape: tuple[int, int]) -> F64:
    """Return a picture (y, x) enlarged to `shape`."""
    small = torch.from_numpy(np.ascontiguousarray(picture, np.float32))[None, None]
    return np.asarray(resized(small, shape)[0, 0].numpy(), np.float64)


def alike(pictures: Sequence[F64], mean: float, contrast: float) -> tuple[list[U8], float]:
    """Return the frames (y, x, rgb) of pictures (y, x) or (y, x, rgb), and the RMS contrast that all of them have.

    That is `contrast`, or less where one of them cannot reach it: a small pattern on a grey ground has a largest RMS
    contrast. Then all get what all can reach. Raises ValueError for a picture without a pattern.
    """
    return at_once(alike_in_steps(pictures, mean, contrast))


def alike_in_steps(
    pictures: Sequence[F64], mean: float, contrast: float
) -> Generator[None, None, tuple[list[U8], float]]:
    """Yield after each step; return what `alike` does. Raises ValueError."""
    if not all(float(np.std(picture)) > 0 for picture in pictures):
        raise ValueError("a picture without a pattern has no contrast to be matched")
    for _ in range(TRIES):
        settings = Synthesis(mean_level=mean, contrast=contrast)
        shown = []
        for picture in pictures:
            shown.append((yield from displaying(_levels(picture), settings)))
            yield
        if all(one.reached.all() for one in shown):
            break
        contrast = min(LOWER * contrast, *(float(one.contrast[0]) for one in shown))
    return [one.frames[0] for one in shown], contrast


def _levels(picture: F64) -> torch.Tensor:
    """Return a picture as (1, channel, y, x), with a pattern of some levels: weights may be a millionth of one."""
    values = picture[..., None] if picture.ndim == 2 else picture
    values = (values - values.mean()) * (USUAL_SD / values.std())
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), np.float64))[None]
