"""Hard limits that every frame passes before it may reach the screen: mean luminance and contrast.

Called by the rig for each frame it prepares, and by preflight. A frame outside the limits is refused, never mended:
an image that was changed on the way is not the image the agent chose. The flicker limit is checked with the config.
"""

import numpy as np
import numpy.typing as npt

HALF_RANGE = 127.5


class LimitExceeded(ValueError):
    """A frame that must not be shown; the message names the limit, the frame's value and the cure."""


def frame_levels(frame: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Return mean grey level (0-255) and RMS contrast (sd / 127.5) over all pixels and channels of `frame`.

    The sd is taken over pixels and channels together, so that colour counts as contrast too.
    """
    counts = np.bincount(frame.ravel(), minlength=256)
    levels = np.arange(256, dtype=np.float64)
    mean = float(counts @ levels / frame.size)
    variance = float(counts @ (levels - mean) ** 2 / frame.size)
    return mean, float(np.sqrt(variance)) / HALF_RANGE


def check_frame(frame: npt.NDArray[np.uint8], mean_level: tuple[float, float], max_rms_contrast: float) -> None:
    """Raise LimitExceeded unless `frame` (y, x, rgb; uint8, linear light) keeps both limits of the config."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
        raise LimitExceeded(f"a frame of dtype {frame.dtype} and shape {frame.shape}; frames are uint8 (y, x, rgb)")
    mean, contrast = frame_levels(frame)
    if not mean_level[0] <= mean <= mean_level[1]:
        raise LimitExceeded(
            f"mean level {mean:.1f} is outside limits.mean_level {mean_level[0]:g} to {mean_level[1]:g}; "
            "take the picture out of the bank, or widen the limit knowingly"
        )
    if contrast > max_rms_contrast:
        raise LimitExceeded(
            f"RMS contrast {contrast:.3f} exceeds limits.max_rms_contrast {max_rms_contrast:g}; "
            "lower the generator's or the grating's contrast, or raise the limit knowingly"
        )
