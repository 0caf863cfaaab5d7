"""The screen: opens the real window, measures its pace and the upload of textures, and flashes the photodiode patch."""

from collections.abc import Generator

import numpy as np

from rig.clock import Clock
from rig.config.session import Config
from rig.display.places import Square, places
from rig.display.window import DisplayError, Window, WindowLost
from rig.preflight.result import Result

FLIPS = 90
SETTLING = 5  # flips left out at the start
JITTER_WARN_MS = 1.5
UPLOADS = 30
FLASHES = 12
WHITE_S = 0.1
BLACK_S = (0.15, 0.4)  # uneven, so that no regular line and no edge of another flash can pass for an answer
SEED = 20261121


def look_at_screen(config: Config, clock: Clock) -> Generator[Result, None, list[int]]:
    """Yield what is seen of the screen; return the flip stamps, host ns, at which the patch became white."""
    try:
        where = places(config)
        window = Window(config.display, where.rect, where.patch, 1, config.display.background, clock)
    except ValueError:
        yield Result("screen", "fail", "not opened, since the geometry does not fit", "see geometry")
        return []
    except DisplayError as error:
        yield Result("screen", "fail", str(error), error.cure)
        return []
    try:
        yield _pace(window, config, clock)
        yield _upload(window, config, clock, where.all_named(config))
        return _flash(window, config, clock)
    except WindowLost as error:
        yield Result("screen", "fail", str(error), "see that nobody closes the window and that the screen stays on")
        return []
    finally:
        window.close()


class _Pacer:
    """Flips once a frame: the screen makes it wait, or the clock does."""

    def __init__(self, window: Window, config: Config, clock: Clock) -> None:
        self._window, self._clock = window, clock
        self._period_ns = 0 if config.display.vsync else round(1e9 / config.display.refresh_hz)
        self._due_ns = clock.now_ns()

    def frame(self, patch: bool) -> int:
        """Show one frame with the patch white or black; return the flip stamp."""
        self._window.draw(None, patch)
        if self._period_ns:
            self._due_ns = max(self._due_ns + self._period_ns, self._clock.now_ns())
            self._clock.sleep_until_ns(self._due_ns)
        return self._window.flip()


def _pace(window: Window, config: Config, clock: Clock) -> Result:
    pacer = _Pacer(window, config, clock)
    stamps = [pacer.frame(False) for _ in range(FLIPS)]
    intervals_ms = np.diff(np.array(stamps, dtype=np.float64))[SETTLING:] / 1e6
    middle, spread = float(np.median(intervals_ms)), float(np.std(intervals_ms))
    wanted_ms = 1e3 / config.display.refresh_hz
    long = int(np.sum(intervals_ms > 1.5 * wanted_ms))
    paced = "by the screen" if config.display.vsync else "by the clock"
    said = (
        f"{1e3 / middle:.2f} Hz paced {paced}, jitter {spread:.2f} ms (sd), {long} of {len(intervals_ms)} frames "
        f"too long, config says {config.display.refresh_hz:g} Hz"
    )
    if abs(middle / wanted_ms - 1) > 0.03:
        return Result("screen", "fail", said, "set display.refresh_hz to what the screen does, or the screen to it")
    if spread > JITTER_WARN_MS or long:
        return Result("screen", "warn", said, "close other programs; switch the desktop's compositor off")
    return Result("screen", "ok", said)


def _upload(window: Window, config: Config, clock: Clock, squares: tuple[Square, ...]) -> Result:
    frames = [np.full((*square.shape, 3), config.display.background, np.uint8) for square in squares]
    took_ms = []
    for k in range(UPLOADS):
        frame, square = frames[k % len(frames)], squares[k % len(frames)]
        start_ns = clock.now_ns()
        window.upload(0, frame, square.rect)
        window.draw(None, False)  # finishes what the driver put off
        took_ms.append((clock.now_ns() - start_ns) * 1e-6)
    trial_s = float(np.quantile(took_ms, 0.99)) * config.presentation.images_per_trial * 1e-3
    sizes = ", ".join(dict.fromkeys(f"{square.rect.width} x {square.rect.height}" for square in squares))
    said = (
        f"{np.median(took_ms):.2f} ms (median), {np.quantile(took_ms, 0.99):.2f} ms (p99) for {sizes} "
        f"px; {trial_s * 1e3:.0f} ms for a trial of {config.presentation.images_per_trial}"
    )
    if trial_s > config.presentation.inter_trial_s:
        cure = "make stimulus.size_deg or images_per_trial smaller, or presentation.inter_trial_s longer"
        return Result("texture upload", "fail", said, cure)
    return Result("texture upload", "ok", said)


def _flash(window: Window, config: Config, clock: Clock) -> list[int]:
    if config.display.patch is None:
        return []
    rng = np.random.default_rng(SEED)
    pacer = _Pacer(window, config, clock)
    stamps = []
    for _ in range(FLASHES):
        for _ in range(round(float(rng.uniform(*BLACK_S)) * config.display.refresh_hz)):
            pacer.frame(False)
        stamps.append(pacer.frame(True))
        for _ in range(round(WHITE_S * config.display.refresh_hz) - 1):
            pacer.frame(True)
    pacer.frame(False)
    return stamps
