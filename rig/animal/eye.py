"""The animal's eye: looks at the pixels that are really on the screen, about a thousand times a second.

It sees two things: whether the photodiode patch is white, and what is in the part of the screen that its neurons see
(the image square, or a larger field; the patch is no part of that). Everything it sees goes to the cortex with the true
host time. Called by the animal's main loop; it knows nothing of the controller.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import mss
import mss.exception
import numpy as np

from rig.animal.cortex import Cortex, Edge, RetinalImage
from rig.clock import Clock
from stimuli.geometry import Rect

POLL_NS = 1_000_000
GLANCE_NS = 8_000_000  # how often the image is looked at when the patch says nothing
GLANCE_WITHOUT_PATCH_NS = 2_000_000
ALERT_NS = 5_000_000  # after the patch changed the image is looked at in every poll
SETTLE_NS = 2_000_000  # a screen caught while it is being drawn is looked at again
MAX_SETTLING = 3
WHITE, BLACK = 160.0, 96.0  # hysteresis of the photodiode, grey levels
PATCH_LOOK_PX = 4
SACCADE_PX = 4.0
SACCADE_EVERY_S = 0.4
BLINK_EVERY_S = 5.0
BLINK_S = 0.12
LID_GREY = 128


# Asked with the host time, ns: how far the gaze is from the fixation point (pixels right, down), is the lid closed?
Follow = Callable[[int], tuple[int, int, bool]]


class ScreenError(Exception):
    """The screen cannot be looked at; `reason` says why, `cure` what to do."""

    def __init__(self, reason: str, cure: str) -> None:
        super().__init__(f"{reason}; {cure}")
        self.reason = reason
        self.cure = cure


class Screen(Protocol):
    """Anything that has pixels."""

    size_px: tuple[int, int]

    def grab(self, rect: Rect) -> bytes:
        """Return the pixels of `rect` as rows of blue, green, red, unused."""
        ...


class RealScreen:
    """The screen of this machine, through mss."""

    def __init__(self) -> None:
        """Open the display; raises ScreenError."""
        try:
            self._mss = mss.MSS()
            everything = self._mss.monitors[0]
        except (mss.exception.ScreenShotError, OSError) as error:
            raise ScreenError(
                f"the animal cannot see a screen (DISPLAY={os.environ.get('DISPLAY', '')!r}): {error}",
                "log in to a desktop, or start a virtual screen: xvfb-run -s '-screen 0 1280x1024x24' stimloop ...",
            ) from error
        self.size_px = (int(everything["width"]), int(everything["height"]))

    def grab(self, rect: Rect) -> bytes:
        """Return the pixels of `rect` as rows of blue, green, red, unused."""
        where = {"left": rect.left, "top": rect.top, "width": rect.width, "height": rect.height}
        try:
            return bytes(self._mss.grab(where).raw)
        except mss.exception.ScreenShotError as error:
            raise ScreenError(
                f"the screen went away while the animal looked at it: {error}", "see why the display server ended"
            ) from error

    def close(self) -> None:
        """Close the display."""
        self._mss.close()


@dataclass
class Looks:
    """What the eye has done so far."""

    polls: int = 0
    late_polls: int = 0  # polls that came more than two periods after the one before
    longest_gap_ns: int = 0
    torn: int = 0  # images caught while they were being drawn


@dataclass
class _Settling:
    """An image that was seen once and is looked at again before it counts."""

    host_ns: int
    earliest_ns: int
    raw: bytes
    patch_on: bool
    due_ns: int
    looks: int = 1


class Eye:
    """Looks at `image` and `patch` of a screen (`patch` None: there is no photodiode) and tells the cortex.

    `surround` is the grey level that it sees in place of the patch, and beyond the screen.
    """

    def __init__(
        self,
        screen: Screen,
        image: Rect,
        patch: Rect | None,
        cortex: Cortex,
        clock: Clock,
        rng: np.random.Generator,
        saccades: bool = False,
        blinks: bool = False,
        follow: Follow | None = None,
        surround: int = LID_GREY,
    ) -> None:
        width, height = screen.size_px
        if image.right > width or image.bottom > height:
            raise ScreenError(
                f"the image square ends at column {image.right}, row {image.bottom},"
                f" outside the {width} x {height} screen",
                "use a larger (virtual) screen or a smaller display.size_px in the config",
            )
        self.looks = Looks()
        self._screen, self._image, self._cortex, self._clock, self._rng = screen, image, cortex, clock, rng
        self._spot = None if patch is None else _middle(patch)
        self._patch, self._surround = patch, surround
        self._glance_ns = GLANCE_WITHOUT_PATCH_NS if patch is None else GLANCE_NS
        self._patch_on = False
        self._last_poll_ns = clock.now_ns()
        self._last_glance_ns = self._last_poll_ns
        self._alert_until_ns = self._last_poll_ns
        self._raw = b""
        self._settling: _Settling | None = None
        self._gaze = image
        self._jump_px = (0, 0)  # right, down
        self._follow, self._followed = follow, (0, 0, False)
        self._lid_closed = False
        self._next_saccade_ns = self._after(SACCADE_EVERY_S) if saccades else None
        self._next_lid_ns = self._after(BLINK_EVERY_S) if blinks else None
        self._lid = bytes([LID_GREY]) * (4 * image.width * image.height)

    def watch(self, stop: Callable[[], bool]) -> None:
        """Look once per millisecond until `stop()` is true."""
        due_ns = self._clock.now_ns()
        while not stop():
            self.look()
            due_ns += POLL_NS
            now_ns = self._clock.now_ns()
            if now_ns > due_ns + 10 * POLL_NS:  # polls that were missed are not made up for
                due_ns = now_ns
            self._clock.sleep_until_ns(due_ns)

    def look(self) -> None:
        """Poll the patch; look at the image if the patch changed or it is time to."""
        before_ns = self._clock.now_ns()
        changed = self._patch_changed()
        now_ns = (before_ns + self._clock.now_ns()) // 2 if self._spot else before_ns
        self._count(now_ns)
        if changed:
            self._cortex.edge(Edge(now_ns, self._last_poll_ns, int(self._patch_on)))
            if self._settling is not None and self._settling.host_ns == self._last_poll_ns:
                self._settling.patch_on = self._patch_on  # both were drawn between the two looks of the poll before
            self._settle()
            self._alert_until_ns = now_ns + ALERT_NS
        self._move(now_ns)
        if self._time_to_glance(now_ns):
            self._glance(now_ns)
        self._last_poll_ns = now_ns
        images_until_ns = now_ns if self._settling is None else self._settling.host_ns - 1
        self._cortex.looked(now_ns, images_until_ns)

    def _time_to_glance(self, now_ns: int) -> bool:
        if self._settling is not None:
            return now_ns >= self._settling.due_ns
        return now_ns < self._alert_until_ns or now_ns - self._last_glance_ns >= self._glance_ns

    def _count(self, now_ns: int) -> None:
        gap_ns = now_ns - self._last_poll_ns
        self.looks.polls += 1
        self.looks.late_polls += gap_ns > 2 * POLL_NS
        self.looks.longest_gap_ns = max(self.looks.longest_gap_ns, gap_ns)

    def _patch_changed(self) -> bool:
        if self._spot is None:
            return False
        green = self._screen.grab(self._spot)[1::4]
        level = sum(green) / len(green)
        on = level > BLACK if self._patch_on else level > WHITE
        changed = on != self._patch_on
        self._patch_on = on
        return changed

    def _glance(self, now_ns: int) -> None:
        raw = self._lid if self._lid_closed or self._followed[2] else self._seen()
        waiting = self._settling
        if waiting is not None:
            if raw == waiting.raw or waiting.looks >= MAX_SETTLING:
                self._settle()
            else:
                self.looks.torn += 1
                waiting.raw, waiting.due_ns, waiting.looks = raw, now_ns + SETTLE_NS, waiting.looks + 1
        elif raw != self._raw:
            self._settling = _Settling(now_ns, self._last_glance_ns, raw, self._patch_on, now_ns + SETTLE_NS)
        self._last_glance_ns = now_ns

    def _seen(self) -> bytes:
        """Grab what it looks at, without the patch, which would drive neurons, and what lies beside the screen."""
        gaze, patch = self._gaze, self._patch
        width, height = self._screen.size_px
        left, top = max(gaze.left, 0), max(gaze.top, 0)
        on = Rect(left, top, min(gaze.right, width) - left, min(gaze.bottom, height) - top)
        if on == gaze and (patch is None or not patch.overlaps(gaze)):
            return self._screen.grab(gaze)
        pixels = np.full((gaze.height, gaze.width, 4), self._surround, np.uint8)
        if on.width > 0 and on.height > 0:
            rows, columns = _part(on, gaze)
            pixels[rows, columns] = np.frombuffer(self._screen.grab(on), np.uint8).reshape(on.height, on.width, 4)
        if patch is not None and patch.overlaps(gaze):
            pixels[_part(patch, gaze)] = self._surround
        return pixels.tobytes()

    def _settle(self) -> None:
        """Tell the cortex of the image that was waiting, if it is new."""
        waiting, self._settling = self._settling, None
        if waiting is None or waiting.raw == self._raw:
            return
        self._raw = waiting.raw
        size = (self._image.height, self._image.width)
        self._cortex.see(RetinalImage(waiting.host_ns, waiting.earliest_ns, waiting.raw, size, waiting.patch_on))

    def _move(self, now_ns: int) -> None:
        """Jump with the gaze, open or close the lid, when it is time to."""
        if self._next_saccade_ns is not None and now_ns >= self._next_saccade_ns:
            right, down = np.rint(self._rng.normal(0.0, SACCADE_PX, 2)).astype(int)
            self._jump_px = (int(right), int(down))
            self._next_saccade_ns = self._after(SACCADE_EVERY_S)
            self._look_there(now_ns)
        if self._follow is not None and (now := self._follow(now_ns)) != self._followed:
            self._followed = now
            self._look_there(now_ns)
        if self._next_lid_ns is not None and now_ns >= self._next_lid_ns:
            self._lid_closed = not self._lid_closed
            self._next_lid_ns = now_ns + int(BLINK_S * 1e9) if self._lid_closed else self._after(BLINK_EVERY_S)
            self._last_glance_ns = min(self._last_glance_ns, now_ns - self._glance_ns)

    def _look_there(self, now_ns: int) -> None:
        """Point the eye where jumps and the followed gaze say; look at once."""
        left = self._image.left + self._jump_px[0] + self._followed[0]
        top = self._image.top + self._jump_px[1] + self._followed[1]
        self._gaze = Rect(left, top, self._image.width, self._image.height)
        self._last_glance_ns = min(self._last_glance_ns, now_ns - self._glance_ns)

    def _after(self, mean_s: float) -> int:
        """Draw the time of the next event: exponential with a floor of a quarter of the mean."""
        return self._clock.now_ns() + int((0.25 + 0.75 * self._rng.exponential()) * mean_s * 1e9)


def _middle(patch: Rect) -> Rect:
    side = min(PATCH_LOOK_PX, patch.width, patch.height)
    return Rect(patch.left + (patch.width - side) // 2, patch.top + (patch.height - side) // 2, side, side)


def _part(inner: Rect, outer: Rect) -> tuple[slice, slice]:
    """Return rows and columns of `outer` that `inner` covers."""
    rows = slice(max(inner.top - outer.top, 0), max(inner.bottom - outer.top, 0))
    return rows, slice(max(inner.left - outer.left, 0), max(inner.right - outer.left, 0))
