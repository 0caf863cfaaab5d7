"""A process with the real window, driven line by line by test_display: it can crash, or lose its screen, by itself.

Commands are JSON lists on stdin, answers JSON on stdout: ["upload", texture, file.npy] (a fourth element says where it
is drawn, if not at the window's rect), ["show", texture, patch], ["churn", frames, shrink] (of the window's rect, or of
rects that get smaller by `shrink` pixels; answers its memory in bytes), ["quit"].
"""

import json
import sys

import numpy as np
import psutil

from rig.clock import HostClock
from rig.config.screen import Display
from rig.display.window import Window
from stimuli.geometry import Rect

TEXTURES = 3


def main(settings: str) -> None:
    """Open the window that `settings` (JSON: display, rect, patch, level, fixation) describes and obey."""
    given = json.loads(settings)
    patch = None if given["patch"] is None else Rect(*given["patch"])
    point = None if given["fixation"] is None else Rect(*given["fixation"])
    display, rect = Display(**given["display"]), Rect(*given["rect"])
    window = Window(display, rect, patch, TEXTURES, given["level"], HostClock(), point)
    answer(window.notes)
    for line in sys.stdin:
        what, *rest = json.loads(line)
        if what == "upload":
            window.upload(rest[0], np.load(rest[1]), Rect(*rest[2]) if len(rest) > 2 else rect)
            answer("uploaded")
        elif what == "show":
            window.draw(rest[0], rest[1])
            answer(window.flip())
        elif what == "churn":
            rng = np.random.default_rng(0)
            for k in range(rest[0]):
                less = rest[1] * (k % 20)
                at = Rect(rect.left, rect.top, rect.width - less, rect.height - less)
                window.upload(k % TEXTURES, rng.integers(0, 256, (at.height, at.width, 3), dtype=np.uint8), at)
                window.draw(k % TEXTURES, True)
                window.flip()
            answer(psutil.Process().memory_info().rss)
        elif what == "quit":
            break
    window.close()


def answer(value: object) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
