"""A guest rig of one's own: a plain PsychoPy script that shows what stimloop plans, with a photodiode patch.

    python docs/examples/guest_psychopy.py tcp://127.0.0.1:5590

Start it before or after `stimloop run configs/guest.yaml`; it waits for stimloop and ends with the session.
"""

import sys
import time

import numpy as np
from guest_client import Stimloop
from psychopy import visual

REFRESH_HZ = 60.0


def centre(rect, screen):  # (left, top, right, bottom) in px -> PsychoPy's pixels, right and up from the middle
    return (rect[0] + rect[2]) / 2 - screen[0] / 2, screen[1] / 2 - (rect[1] + rect[3]) / 2


def main(address):
    loop = Stimloop(address, "guest_psychopy.py", REFRESH_HZ, places=True)
    about = loop.about
    screen, patch_rect = about["screen_px"], about["patch_rect_px"]
    grey = about["background"] / 127.5 - 1
    win = visual.Window(screen, pos=(0, 0), units="pix", color=[grey] * 3, checkTiming=False, allowGUI=False)
    image = visual.ImageStim(win, interpolate=False)
    patch = None
    if patch_rect is not None:
        side = patch_rect[2] - patch_rect[0]
        patch = visual.Rect(win, side, side, pos=centre(patch_rect, screen), lineColor=None)
    due_ns = time.perf_counter_ns()

    def flip(lit):  # draw, wait for the frame's time (a virtual screen does not wait), flip, stamp
        nonlocal due_ns
        if lit:
            image.draw()
        if patch is not None:  # white while an image is on, else black
            patch.fillColor = "white" if lit else "black"
            patch.draw()
        due_ns = max(due_ns + round(1e9 / REFRESH_HZ), time.perf_counter_ns())
        time.sleep(max(0, due_ns - time.perf_counter_ns()) * 1e-9)
        win.flip()
        return time.perf_counter_ns()

    on, off = (round(about[name] * REFRESH_HZ) for name in ("on_s", "off_s"))
    for _trial, images in loop.trials():
        for presentation, pixels, rect in images:
            image.size, image.pos = (rect[2] - rect[0], rect[3] - rect[1]), centre(rect, screen)
            image.image = np.flipud(pixels / np.float32(127.5) - 1)  # PsychoPy wants -1 to 1 and the bottom row first
            onset_ns = flip(True)
            for _ in range(on - 1):
                flip(True)
            offset_ns = flip(False)
            for _ in range(off - 1):
                flip(False)
            loop.shown(presentation, pixels, onset_ns, offset_ns)
        for _ in range(round(about["inter_trial_s"] * REFRESH_HZ)):
            flip(False)
    win.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5590")
