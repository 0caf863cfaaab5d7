"""Paints pixels on an X screen for tests of the simulated eye: a window at (0, 0) and rectangles of RGB values in it.

Through libxcb, which mss needs as well, so that these tests need neither a window manager nor a graphics library.
"""

import ctypes
import ctypes.util

import numpy as np
import numpy.typing as npt

from stimuli.geometry import Rect

Z_PIXMAP = 2
OVERRIDE_REDIRECT = 512  # no window manager moves or decorates it
BACK_PIXEL = 2
MAX_BYTES = 200_000  # of one request: the protocol ends at 256 KB; one request is drawn in one go


class _Screen(ctypes.Structure):
    _fields_ = [("root", ctypes.c_uint32), ("rest", ctypes.c_uint8 * 34), ("depth", ctypes.c_uint8)]


class _ScreenIterator(ctypes.Structure):
    _fields_ = [("data", ctypes.POINTER(_Screen)), ("rem", ctypes.c_int), ("index", ctypes.c_int)]


def _library() -> ctypes.CDLL:
    xcb = ctypes.CDLL(ctypes.util.find_library("xcb") or "libxcb.so.1")
    xcb.xcb_connect.restype = ctypes.c_void_p
    xcb.xcb_get_setup.restype = ctypes.c_void_p
    xcb.xcb_get_setup.argtypes = [ctypes.c_void_p]
    xcb.xcb_setup_roots_iterator.restype = _ScreenIterator
    xcb.xcb_setup_roots_iterator.argtypes = [ctypes.c_void_p]
    xcb.xcb_generate_id.restype = ctypes.c_uint32
    xcb.xcb_generate_id.argtypes = [ctypes.c_void_p]
    xcb.xcb_get_input_focus.argtypes = [ctypes.c_void_p]
    xcb.xcb_get_input_focus_reply.restype = ctypes.c_void_p
    for name in ("xcb_flush", "xcb_disconnect", "xcb_connection_has_error"):
        getattr(xcb, name).argtypes = [ctypes.c_void_p]
    return xcb


class Painter:
    """A black window of `size_px` at the screen's top left corner; close it."""

    def __init__(self, size_px: tuple[int, int]) -> None:
        self._xcb = _library()
        self._link = ctypes.c_void_p(self._xcb.xcb_connect(None, None))
        if self._xcb.xcb_connection_has_error(self._link):
            raise RuntimeError("no X screen to paint on; set DISPLAY")
        screen = self._xcb.xcb_setup_roots_iterator(self._xcb.xcb_get_setup(self._link)).data.contents
        self._depth = screen.depth
        self._window, self._gc = (ctypes.c_uint32(self._xcb.xcb_generate_id(self._link)) for _ in range(2))
        values = (ctypes.c_uint32 * 2)(0, 1)
        shape = [ctypes.c_int16(0), ctypes.c_int16(0), *(ctypes.c_uint16(n) for n in (*size_px, 0))]
        self._xcb.xcb_create_window(
            self._link, ctypes.c_uint8(0), self._window, ctypes.c_uint32(screen.root), *shape, ctypes.c_uint16(1),
            ctypes.c_uint32(0), ctypes.c_uint32(BACK_PIXEL | OVERRIDE_REDIRECT), values,
        )  # fmt: skip
        self._xcb.xcb_create_gc(self._link, self._gc, self._window, ctypes.c_uint32(0), None)
        self._xcb.xcb_map_window(self._link, self._window)
        self._sync()

    def paint(self, *parts: tuple[Rect, npt.NDArray[np.uint8]]) -> None:
        """Draw RGB pixels (y, x, 3) into each rectangle; returns when the server has drawn them."""
        for rect, rgb in parts:
            bgrx = np.zeros((rect.height, rect.width, 4), np.uint8)
            bgrx[:, :, :3] = np.broadcast_to(rgb, (rect.height, rect.width, 3))[:, :, ::-1]
            rows = MAX_BYTES // (4 * rect.width)
            for row in range(0, rect.height, rows):
                data = bgrx[row : row + rows].tobytes()
                size = [ctypes.c_uint16(rect.width), ctypes.c_uint16(min(rows, rect.height - row))]
                corner = [ctypes.c_int16(rect.left), ctypes.c_int16(rect.top + row)]
                self._xcb.xcb_put_image(
                    self._link, ctypes.c_uint8(Z_PIXMAP), self._window, self._gc, *size, *corner, ctypes.c_uint8(0),
                    ctypes.c_uint8(self._depth), ctypes.c_uint32(len(data)), data,
                )  # fmt: skip
        self._sync()

    def _sync(self) -> None:
        """Ask something harmless and wait for the answer: everything before it is then done."""
        cookie = self._xcb.xcb_get_input_focus(self._link)
        reply = self._xcb.xcb_get_input_focus_reply(self._link, cookie, None)
        ctypes.CDLL(None).free(ctypes.c_void_p(reply))

    def close(self) -> None:
        """Remove the window."""
        self._xcb.xcb_disconnect(self._link)
