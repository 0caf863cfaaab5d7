"""Hard limits that every frame passes before it may reach the screen: mean luminance, contrast, and large flashes.

Called by the rig for each frame it prepares, and by preflight. A frame outside the limits is refused, never mended:
an image that was changed on the way is not the image the agent chose. The rate of images is checked with the config.

Flashes follow the general flash threshold of WCAG 2.2 (W3C, success criterion 2.3.1, from Harding's work and the
guidance in ITU-R BT.1702): a flash is a pair of opposing changes of relative luminance by 10 % or more of white, the
darker side below 80 %, over at least 0.006 sr (a quarter of a 10 degree field); not more than three in any second.
Here the luminance is the mean over the image square: a pattern that changes sign at a constant mean is not a flash in
this sense, and is bounded by contrast and rate of images alone.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

HALF_RANGE = 127.5
LUMINANCE = (0.2126, 0.7152, 0.0722)  # weights of linear red, green, blue: ITU-R BT.709
FLASH_STEP = 0.1  # of white
FLASH_DARKER = 0.8  # of white
FLASH_AREA_SR = 0.006
SECOND_NS = 1_000_000_000


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


# --- flashes ----------------------------------------------------------------------------------------------------------


def mean_luminance(frame: npt.NDArray[np.uint8]) -> float:
    """Return the mean relative luminance of `frame` (y, x, rgb; linear light), 0 black to 1 white."""
    levels = np.arange(256, dtype=np.float64)
    red, green, blue = (float(np.bincount(frame[:, :, k].ravel(), minlength=256) @ levels) for k in range(3))
    return float(np.dot(LUMINANCE, (red, green, blue)) / (255.0 * frame[:, :, 0].size))


def flash_changes(levels: Sequence[tuple[int, float]]) -> list[int]:
    """Return when the luminance changed so much that it is half a flash; each opposes the one before.

    `levels` are (time ns, relative luminance from then on), in order of time. A change may take several steps.
    """
    found: list[int] = []
    direction, low, high = 0, 1.0, 0.0  # extremes since the last change
    for at_ns, level in levels:
        low, high = min(low, level), max(high, level)
        if direction <= 0 and level - low >= FLASH_STEP - 1e-9 and low < FLASH_DARKER:
            direction, high = 1, level
            found.append(at_ns)
            low = level
        elif direction >= 0 and high - level >= FLASH_STEP - 1e-9 and level < FLASH_DARKER:
            direction, low = -1, level
            found.append(at_ns)
            high = level
    return found


def most_flashes(levels: Sequence[tuple[int, float]]) -> float:
    """Return the largest number of flashes in any second of `levels`; half a flash is one change."""
    changes = flash_changes(levels)
    return max((sum(t - SECOND_NS < c <= t for c in changes) for t in changes), default=0) / 2


class FlashLimit:
    """Watches the luminance of one square of the screen, and says beforehand what would be too many flashes.

    Parameters
    ----------
    background
        Relative luminance whenever no image is shown, 0-1.
    max_hz
        Most flashes in any second.
    area_sr
        Solid angle of the square; below 0.006 sr nothing is a large flash.
    """

    def __init__(self, background: float, max_hz: float, area_sr: float) -> None:
        self.background = background
        self._max_hz = max_hz
        self._small = area_sr < FLASH_AREA_SR
        self._past: list[tuple[int, float]] = [(-(1 << 62), background)]

    def shown(self, at_ns: int, luminance: float) -> None:
        """Take a change that was on the screen: from `at_ns` on it had this luminance."""
        if self._past[-1][0] == at_ns:
            self._past.pop()
        self._past.append((at_ns, luminance))
        # Two seconds: a change of the last one may have begun before it.
        while len(self._past) > 1 and self._past[1][0] <= at_ns - 2 * SECOND_NS:
            del self._past[0]

    def refusal(self, planned: Sequence[tuple[int, float]], luminance: float) -> str:
        """Return why `planned` must not follow what was shown, "" if it may; times and luminances as for `shown`.

        `luminance` is that of the frame in question, which the words name.
        """
        if self._small or not planned:
            return ""
        flashes = most_flashes([*self._past, *planned])
        if flashes <= self._max_hz:
            return ""
        return (
            f"it would make {flashes:g} flashes in a second, and limits.max_flash_hz is {self._max_hz:g}: its mean "
            f"luminance is {luminance:.2f} of white, the background's {self.background:.2f}; take images with the "
            "background's mean, lengthen presentation.off_s, or raise the limit knowingly"
        )
