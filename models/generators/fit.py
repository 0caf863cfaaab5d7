"""Decoded pictures -> frames: the size of the image on the screen, its mean level and its contrast.

Used by all generators with a network. Pure NumPy, one picture at a time: a frame's bytes depend on its own picture.
Levels are taken as the network puts them out (no sRGB decoding), as `stimuli.bank` takes those of photographs.
"""

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

HALF_RANGE = 127.5
BINS = 256  # of the level histogram in which gain and offset are searched
STEPS = 20
# A picture that is nearly flat stays so: what the network left invisible must not become the image.
MOST_GAIN = 8.0


def resampling(points_in: int, points_out: int) -> F32:
    """Return the weights (points_out, points_in) of cubic resampling (Keys 1981, a = -0.5); rows sum to 1.

    Where it reduces, the kernel is as wide as an output pixel, so that nothing folds back into lower frequencies.
    """
    scale = points_in / points_out
    width = max(scale, 1.0)
    centres = (np.arange(points_out) + 0.5) * scale - 0.5
    t = np.abs(np.arange(points_in) - centres[:, None]) / width
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    out: F32 = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return out


def resampled(picture: F32, down: F32, across: F32) -> F32:
    """Return `picture` (3, y, x) with both axes resampled: `down` (y_out, y), `across` (x, x_out)."""
    out: F32 = np.matmul(np.matmul(down, picture), across)
    return out


class FrameFit:
    """Turns pictures of one size into frames of one size."""

    def __init__(
        self, picture: tuple[int, int], frame: tuple[int, int], contrast: float | None, background: int
    ) -> None:
        """Prepare for pictures and frames of these shapes (y, x).

        With a `contrast` (RMS, sd / 127.5 over pixels and channels) every frame has it, and `background` as its mean
        level, both after levels are cut off at 0 and 255; None leaves level and contrast as they are decoded.
        """
        self.shape = frame
        self._mean, self._contrast = float(background), contrast
        self._same = picture == frame
        self._down = resampling(picture[0], frame[0])
        self._across = resampling(picture[1], frame[1]).T.copy()

    def frame(self, picture: F32) -> U8:
        """Return the frame (y, x, rgb) of a picture (3, y, x) with levels 0 to 1.

        Raises ValueError for one with NaN, which would come out black.
        """
        if not np.isfinite(picture).all():
            raise ValueError("the generator made a picture with NaN or infinity; see its weights and the size of codes")
        levels = picture.copy() if self._same else resampled(picture, self._down, self._across)
        levels *= np.float32(255)
        np.clip(levels, 0, 255, out=levels)
        if self._contrast is not None:
            gain, offset = matching(levels, self._mean, self._contrast * HALF_RANGE)
            levels *= np.float32(gain)
            levels += np.float32(offset)
            np.clip(levels, 0, 255, out=levels)
        levels += np.float32(0.5)  # truncation below then rounds
        frame: U8 = np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))
        return frame


def matching(levels: F32, mean: float, sd: float) -> tuple[float, float]:
    """Return gain and offset that give `levels` (0-255) this mean and sd after they are cut off at 0 and 255.

    The gain is at most MOST_GAIN: flat pictures stay below the sd.
    """
    low, high = float(levels.min()), float(levels.max())
    if high - low < 1e-3:  # one level everywhere
        return 0.0, mean
    width = (high - low) / BINS
    bins = ((levels.ravel() - np.float32(low)) * np.float32((1 - 1e-6) / width)).astype(np.uint8)
    share = np.bincount(bins, minlength=BINS) / levels.size
    levels_of = low + width * (np.arange(BINS) + 0.5)
    middle = float(share @ levels_of)
    around = levels_of - middle
    gain, offset = min(sd / max(float(np.sqrt(share @ around**2)), 1e-6), MOST_GAIN), mean
    for _ in range(STEPS):
        now = np.clip(around * gain + offset, 0, 255)
        now_mean = float(share @ now)
        now_sd = float(np.sqrt(share @ now**2 - now_mean**2))
        if abs(now_mean - mean) < 0.05 and (abs(now_sd - sd) < 0.05 or (gain >= MOST_GAIN and now_sd < sd)):
            break
        gain = min(gain * sd / max(now_sd, 1e-3), MOST_GAIN)
        offset += mean - now_mean
    return gain, offset - gain * middle
