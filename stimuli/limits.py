"""Hard limits that every frame passes before it may reach the screen: mean luminance, contrast, and large flashes.

Called by the rig for each frame it prepares, and by preflight. A frame outside the limits is refused, never mended:
an image that was changed on the way is not the image the agent chose. The rate of images is checked with the config.

Flashes follow the general flash threshold of WCAG 2.2 (W3C, success criterion 2.3.1, from Harding's work and the
guidance in ITU-R BT.1702): a flash is a pair of opposing changes of relative luminance by 10 % or more of white, the
darker side below 80 %, over at least 0.006 sr (a quarter of a 10 degree field); not more than three in any second.
Here the luminance is the mean over an image's square: a pattern that changes sign at a constant mean is not a flash in
this sense, and is bounded by contrast and rate of images alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stimuli.geometry import Rect

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
    return levels_of(np.bincount(frame.ravel(), minlength=256))


def levels_of(counts: npt.NDArray[np.floating | np.integer]) -> tuple[float, float]:
    """Return what `frame_levels` does, from how many pixels and channels have each level (256,)."""
    levels, size = np.arange(256, dtype=np.float64), float(counts.sum())
    mean = float(counts @ levels / size)
    variance = float(counts @ (levels - mean) ** 2 / size)
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


class Spot(NamedTuple):
    """A square of the screen on which images are shown."""

    rect: Rect
    area_sr: float
    """Solid angle, steradian; below 0.006 sr nothing on it is a large flash."""


class Light(NamedTuple):
    """A change on the screen."""

    at_ns: int
    luminance: float
    """Relative luminance of the image that is there from then on, or of the background."""
    spot: Spot | None
    """Where the image lies; None: the background is everywhere."""


class FlashLimit:
    """Watches the luminance of each square of the screen, and says beforehand what would be too many flashes.

    One image is on the screen at a time. An image beside a square leaves the background there, one that covers part of
    it changes its mean by that part.

    Parameters
    ----------
    background
        Relative luminance whenever no image is shown, 0-1.
    max_hz
        Most flashes in any second.
    """

    def __init__(self, background: float, max_hz: float) -> None:
        self.background = background
        self._max_hz = max_hz
        self._past: list[Light] = [Light(-(1 << 62), background, None)]

    def cleared(self, at_ns: int) -> Light:
        """Return the change by which the background takes the place of an image."""
        return Light(at_ns, self.background, None)

    def shown(self, light: Light) -> None:
        """Take a change that was on the screen."""
        if self._past[-1].at_ns == light.at_ns:
            self._past.pop()
        self._past.append(light)
        # Two seconds: a change of the last one may have begun before it.
        while len(self._past) > 1 and self._past[1].at_ns <= light.at_ns - 2 * SECOND_NS:
            del self._past[0]

    def refusal(self, planned: Sequence[Light], luminance: float) -> str:
        """Return why `planned` must not follow what was shown, "" if it may.

        `luminance` is that of the frame in question, which the words name.
        """
        lights = [*self._past, *planned]
        spots = {light.spot for light in lights if light.spot is not None and light.spot.area_sr >= FLASH_AREA_SR}
        flashes = max((most_flashes([self._on(spot, light) for light in lights]) for spot in spots), default=0.0)
        if flashes <= self._max_hz:
            return ""
        return (
            f"it would make {flashes:g} flashes in a second, and limits.max_flash_hz is {self._max_hz:g}: its mean "
            f"luminance is {luminance:.2f} of white, the background's {self.background:.2f}; take images with the "
            "background's mean, lengthen presentation.off_s, or raise the limit knowingly"
        )

    def _on(self, spot: Spot, light: Light) -> tuple[int, float]:
        """Return the time of a change, and the mean luminance of a spot from then on."""
        if light.spot is None or light.spot.rect == spot.rect:
            return light.at_ns, light.luminance
        share = light.spot.rect.shared_px(spot.rect) / (spot.rect.width * spot.rect.height)
        return light.at_ns, self.background + share * (light.luminance - self.background)
