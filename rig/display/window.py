"""The window on the stimulus screen: a fixed number of 8-bit textures drawn 1:1, a photodiode patch, and flips.

The only module that imports PsychoPy (and pyglet). Owned by `rig.display.session`. No PsychoPy clock, stimulus class or
colour conversion is used: ImageStim turns every image into new 32-bit float textures, while here a frame's bytes are
copied into a texture that exists already and come back from the screen unchanged. A texture takes the size of the
frame that is put into it, between trials; nothing is created in the frame loop.
"""

import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from rig.clock import Clock
from rig.config.screen import Display
from rig.display.at_first_use import at_first_use
from rig.display.pacing import FrameGrid
from stimuli.geometry import Rect

WARM_UP_FLIPS = 20
RATE_TOLERANCE = 0.05
UNUSED = ("pandas", "scipy.interpolate", "requests")  # by a window, though PsychoPy imports them for one


class DisplayError(RuntimeError):
    """The screen cannot be used; `cure` says what to do."""

    def __init__(self, reason: str, cure: str) -> None:
        super().__init__(reason)
        self.cure = cure


class WindowLost(RuntimeError):
    """The window was closed or its context failed while the session ran."""


NO_SCREEN = DisplayError(
    "there is no screen: DISPLAY is not set",
    "log in on the rig's screen and start from there, or start under a virtual one: "
    'xvfb-run -a -s "-screen 0 1280x1024x24" stimloop ...',
)


def load_graphics() -> None:
    """Import PsychoPy and pyglet (a second of work, which a real-time priority should not be spent on)."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        raise NO_SCREEN
    import pyglet

    pyglet.options["debug_gl"] = False  # an error query after each of the 20 calls of a frame; upload() asks itself
    try:
        import psychopy.logging

        psychopy.logging.console.setLevel(psychopy.logging.ERROR)
        with at_first_use(*UNUSED):
            import psychopy.visual
    except Exception as error:
        raise DisplayError(
            f"the graphics libraries do not load: {type(error).__name__}: {error}",
            f"check that the screen DISPLAY={os.environ.get('DISPLAY', '')!r} exists and may be used "
            "(xdpyinfo), and that OpenGL is installed: apt-get install libgl1 libgl1-mesa-dri libglu1-mesa",
        ) from error


class Window:
    """The open window.

    Parameters
    ----------
    config
        The `display` part of the session's config.
    rect, patch, fixation
        Where images lie that name no place, the photodiode patch and the fixation point (None: there is none).
    textures
        Size of the pool.
    background_level
        Grey level drawn as background, after the gamma table, 0-255.
    clock
        Stamps the flips.
    """

    def __init__(
        self,
        config: Display,
        rect: Rect,
        patch: Rect | None,
        textures: int,
        background_level: int,
        clock: Clock,
        fixation: Rect | None = None,
    ) -> None:
        load_graphics()
        import pyglet.gl

        self._gl: Any = pyglet.gl
        self._config = config
        self._rects = [rect] * textures
        self._patch = patch
        self._fixation = fixation
        self._fixation_level = 0.0 if config.fixation_point is None else config.fixation_point.level / 255
        self._clock = clock
        self.textures = textures
        self._level = background_level / 255
        self._win = self._open()
        self._handle = self._win.backend.winHandle
        self._handle.set_vsync(config.vsync)
        self._settle()
        self._ids = self._make_textures()
        self.notes = {"renderer": str(self._gl.gl_info.get_renderer()), **self._warm_up()}

    # --- opening

    def _open(self) -> Any:
        import psychopy.monitors
        import psychopy.visual
        import pyglet.canvas

        config = self._config
        cure = "check display.size_px, display.screen and display.fullscreen against the screens that are connected"
        try:
            screens = pyglet.canvas.get_display().get_screens()
            if config.screen >= len(screens):
                raise DisplayError(
                    f"display.screen is {config.screen}; there are {len(screens)} screens, counted from 0",
                    "set display.screen to one of them, or connect the missing screen",
                )
            monitor = psychopy.monitors.Monitor("stimloop", width=config.width_cm, distance=config.distance_cm)
            monitor.setSizePix(config.size_px)  # without a size PsychoPy warns, though only pixels are used here
            win = psychopy.visual.Window(
                size=config.size_px,
                pos=(0, 0),
                fullscr=config.fullscreen,
                screen=config.screen,
                units="pix",
                monitor=monitor,
                winType="pyglet",
                color=(self._level * 255,) * 3,
                colorSpace="rgb255",
                allowGUI=False,
                checkTiming=False,
                waitBlanking=True,  # glFinish after the swap: the stamp then follows the work, not its queueing
                gammaErrorPolicy="ignore",  # the gamma table is applied to the frames
                autoLog=False,
            )
        except DisplayError:
            raise
        except (Exception, SystemExit) as error:
            raise DisplayError(f"the window does not open: {type(error).__name__}: {error}", cure) from error
        size = tuple(int(n) for n in win.backend.winHandle.get_size())
        if size != config.size_px:
            win.close()
            raise DisplayError(f"the window is {size} pixels, display.size_px says {config.size_px}", cure)
        return win

    def _settle(self) -> None:
        """Set once what every frame needs and neither PsychoPy's flip nor drawing changes."""
        gl = self._gl
        for switch in (gl.GL_BLEND, gl.GL_DEPTH_TEST, gl.GL_STENCIL_TEST, gl.GL_DITHER, gl.GL_LIGHTING):
            gl.glDisable(switch)
        gl.glPixelStorei(gl.GL_UNPACK_ALIGNMENT, 1)  # rows of 3-byte pixels are packed
        gl.glActiveTexture(gl.GL_TEXTURE0)
        gl.glTexEnvi(gl.GL_TEXTURE_ENV, gl.GL_TEXTURE_ENV_MODE, gl.GL_REPLACE)

    def _make_textures(self) -> Any:
        gl = self._gl
        ids = (gl.GLuint * self.textures)()
        gl.glGenTextures(self.textures, ids)
        for texture in ids:
            gl.glBindTexture(gl.GL_TEXTURE_2D, texture)
            for key, value in (
                (gl.GL_TEXTURE_MIN_FILTER, gl.GL_NEAREST),
                (gl.GL_TEXTURE_MAG_FILTER, gl.GL_NEAREST),
                (gl.GL_TEXTURE_WRAP_S, gl.GL_CLAMP_TO_EDGE),
                (gl.GL_TEXTURE_WRAP_T, gl.GL_CLAMP_TO_EDGE),
            ):
                gl.glTexParameteri(gl.GL_TEXTURE_2D, key, value)
            size = (self._rects[0].width, self._rects[0].height)
            gl.glTexImage2D(gl.GL_TEXTURE_2D, 0, gl.GL_RGB8, *size, 0, gl.GL_RGB, gl.GL_UNSIGNED_BYTE, None)
        self._check("making the texture pool")
        return ids

    def _warm_up(self) -> dict[str, str]:
        """Draw every texture once (drivers compile and place at first use), then see whether flips keep the rate.

        The textures hold background, so nothing is seen.
        """
        rect = self._rects[0]
        grey = np.full((rect.height, rect.width, 3), round(self._level * 255), np.uint8)
        for k in range(self.textures):
            self.upload(k, grey, rect)
            self.draw(k, False)
        self.flip()
        config = self._config
        grid = FrameGrid(config.refresh_hz, self._clock.now_ns(), config.vsync)
        stamps = []
        for k in range(WARM_UP_FLIPS):
            self.draw(k % self.textures, False)
            if not config.vsync:
                self._clock.sleep_until_ns(grid.due_ns())
            stamps.append(self.flip())
            grid.flipped(stamps[-1])
        rate_hz = 1e9 / float(np.median(np.diff(stamps)))
        if not config.vsync:
            return {"pacing": f"clock, {config.refresh_hz:g} Hz", "measured_hz": f"{rate_hz:.2f}"}
        if abs(rate_hz / config.refresh_hz - 1) > RATE_TOLERANCE:
            self.close()
            unthrottled = rate_hz > 1.5 * config.refresh_hz
            raise DisplayError(
                f"display.vsync is true, and flips come at {rate_hz:.1f} Hz instead of {config.refresh_hz:g} Hz",
                "this screen does not make flips wait (a virtual one never does): set display.vsync: false"
                if unthrottled
                else "set display.refresh_hz to the screen's true rate, and switch a desktop compositor off",
            )
        return {"pacing": f"vsync, {config.refresh_hz:g} Hz", "measured_hz": f"{rate_hz:.2f}"}

    def _check(self, doing: str) -> None:
        code = self._gl.glGetError()
        if code != self._gl.GL_NO_ERROR:
            raise WindowLost(f"OpenGL error {code:#06x} while {doing}")

    # --- between trials

    def upload(self, texture: int, frame: npt.NDArray[np.uint8], rect: Rect) -> None:
        """Copy a frame, uint8 (y, x, rgb), row 0 at the top, into texture `texture`, which is drawn at `rect`.

        A texture of another size is made anew, and drawn once where nobody sees it: drivers place what is new at its
        first use, which must not be in a trial. What was drawn for the next flip is lost by that.
        """
        if frame.dtype != np.uint8 or frame.shape != (rect.height, rect.width, 3):
            raise ValueError(f"a frame of {frame.dtype} {frame.shape} for {rect.height} x {rect.width} pixels")
        gl = self._gl
        raw = np.ascontiguousarray(frame)
        size, before = (rect.width, rect.height), self._rects[texture]
        self._rects[texture] = rect
        gl.glBindTexture(gl.GL_TEXTURE_2D, self._ids[texture])
        if (before.width, before.height) == size:
            gl.glTexSubImage2D(gl.GL_TEXTURE_2D, 0, 0, 0, *size, gl.GL_RGB, gl.GL_UNSIGNED_BYTE, raw.ctypes.data)
        else:
            kind = gl.GL_RGB, gl.GL_UNSIGNED_BYTE
            gl.glTexImage2D(gl.GL_TEXTURE_2D, 0, gl.GL_RGB8, *size, 0, *kind, raw.ctypes.data)
            self.draw(texture, False)
        self._check("filling a texture")

    # --- each frame

    def draw(self, texture: int | None, patch: bool) -> None:
        """Draw the next frame: background, an image (None: none), fixation point, patch (True: white); finish it.

        Finished here, before the wait for the deadline, so that the flip itself has only the swap left to do.
        """
        gl = self._gl
        width, height = self._config.size_px
        gl.glUseProgram(0)
        gl.glDisable(gl.GL_SCISSOR_TEST)
        gl.glViewport(0, 0, width, height)
        gl.glMatrixMode(gl.GL_PROJECTION)
        gl.glLoadIdentity()
        gl.glOrtho(0, width, height, 0, -1, 1)  # rows count from the top, as in the frames
        gl.glMatrixMode(gl.GL_MODELVIEW)
        gl.glLoadIdentity()
        gl.glClearColor(self._level, self._level, self._level, 1)
        gl.glClear(gl.GL_COLOR_BUFFER_BIT)
        if texture is not None:
            rect = self._rects[texture]
            gl.glEnable(gl.GL_TEXTURE_2D)
            gl.glBindTexture(gl.GL_TEXTURE_2D, self._ids[texture])
            gl.glBegin(gl.GL_QUADS)
            for right, bottom in ((0, 0), (1, 0), (1, 1), (0, 1)):
                gl.glTexCoord2f(right, bottom)
                gl.glVertex2f(rect.left + right * rect.width, rect.top + bottom * rect.height)
            gl.glEnd()
            gl.glDisable(gl.GL_TEXTURE_2D)
        if (point := self._fixation) is not None:
            gl.glColor3f(self._fixation_level, self._fixation_level, self._fixation_level)
            gl.glRectf(point.left, point.top, point.right, point.bottom)
        if self._patch is not None:
            level = 1.0 if patch else 0.0
            gl.glColor3f(level, level, level)
            gl.glRectf(self._patch.left, self._patch.top, self._patch.right, self._patch.bottom)
        gl.glFinish()

    def flip(self) -> int:
        """Show what was drawn; return the host stamp right after, ns. Raises WindowLost."""
        try:
            self._win.flip(clearBuffer=False)
        except Exception as error:
            raise WindowLost(f"flip failed: {type(error).__name__}: {error}") from error
        stamp = self._clock.now_ns()
        if self._handle.has_exit or self._handle.context is None:
            raise WindowLost("the window was closed")
        return stamp

    def close(self) -> None:
        """Close the window; it may be gone already."""
        try:
            self._win.close()
        except Exception as error:  # noqa: BLE001  a window that is gone fails in the driver's own ways
            sys.stderr.write(f"closing the window: {error}\n")
