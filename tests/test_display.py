"""What a real screen shows of what was drawn: the frames' own bytes, at the right place, and nothing else changed.

The window lives in a child process (a lost X server ends its process); the test looks at the screen with mss, as any
other program would.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mss
import numpy as np
import numpy.typing as npt
import pytest

from rig.clock import HostClock
from rig.config.reading import parse
from rig.config.screen import Display, Limits
from rig.display.frames import FrameMaker
from rig.display.places import places
from rig.display.window import NO_SCREEN
from rig.priority import ask, permitted
from stimuli.geometry import Rect
from stimuli.spec import Blank, Stimulus
from tests.test_config import SMALLEST
from tests.test_trial import proposal

pytestmark = pytest.mark.display
U8 = npt.NDArray[np.uint8]
SIZE = (800, 600)
RECT = Rect(left=211, top=97, width=256, height=300)
PATCH = Rect(left=768, top=568, width=32, height=32)
LEVEL = 131


class WindowChild:
    """The child's end of the pipe."""

    def __init__(
        self, rect: Rect = RECT, patch: Rect | None = PATCH, level: int = LEVEL, fixation: Rect | None = None
    ) -> None:
        settings: dict[str, Any] = {
            "display": {"size_px": SIZE, "fixation_point": None if fixation is None else {"level": 200}},
            "fixation": None if fixation is None else [fixation.left, fixation.top, fixation.width, fixation.height],
            "rect": [rect.left, rect.top, rect.width, rect.height],
            "patch": None if patch is None else [patch.left, patch.top, patch.width, patch.height],
            "level": level,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.window_child", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        self.notes: dict[str, str] = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the window's process ended with code {self.process.wait(60)}"
        return json.loads(line)

    def do(self, *command: object) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def show(self, texture: int | None, patch: bool) -> U8:
        """Show a frame; return the whole window's pixels (y, x, rgb) from the screen."""
        self.do("show", texture, patch)
        with mss.MSS() as eye:
            grab = eye.grab({"left": 0, "top": 0, "width": SIZE[0], "height": SIZE[1]})
            return np.frombuffer(grab.bgra, np.uint8).reshape(SIZE[1], SIZE[0], 4)[:, :, 2::-1]

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def window(private_screen: str) -> Iterator[WindowChild]:
    child = WindowChild()
    yield child
    child.close()


def expected(frame: U8 | None, patch: bool, rect: Rect = RECT) -> U8:
    screen = np.full((SIZE[1], SIZE[0], 3), LEVEL, np.uint8)
    if frame is not None:
        screen[rect.top : rect.bottom, rect.left : rect.right] = frame
    screen[PATCH.top : PATCH.bottom, PATCH.left : PATCH.right] = 255 if patch else 0
    return screen


def frames() -> dict[str, U8]:
    rng = np.random.default_rng(5)
    shape = (RECT.height, RECT.width, 3)
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], shape).copy()
    per_channel = np.stack([ramp[:, :, 0], ramp[:, ::-1, 0], np.roll(ramp[:, :, 0], 77, axis=1)], axis=2)
    return {
        "all 256 levels": ramp,
        "all levels in each channel": np.ascontiguousarray(per_channel),
        "random RGB": rng.integers(0, 256, shape, dtype=np.uint8),
        "single pixels": (rng.random(shape) < 0.01).astype(np.uint8) * np.uint8(255),
    }


@pytest.mark.parametrize("name", frames())
def test_the_screen_returns_the_frames_own_bytes(window: WindowChild, tmp_path: Path, name: str) -> None:
    frame = frames()[name]
    np.save(tmp_path / "frame.npy", frame)
    window.do("upload", 1, str(tmp_path / "frame.npy"))
    seen = window.show(1, True)
    assert np.array_equal(seen[RECT.top : RECT.bottom, RECT.left : RECT.right], frame)
    assert np.array_equal(seen, expected(frame, True))  # and not a pixel more


def test_background_and_patch_are_exact(window: WindowChild) -> None:
    for patch in (False, True, False):
        assert np.array_equal(window.show(None, patch), expected(None, patch))


def test_the_fixation_point_lies_over_the_image_and_nowhere_else(private_screen: str, tmp_path: Path) -> None:
    point = Rect(left=330, top=240, width=9, height=9)
    child = WindowChild(fixation=point)
    try:
        frame = frames()["random RGB"]
        np.save(tmp_path / "frame.npy", frame)
        child.do("upload", 0, str(tmp_path / "frame.npy"))
        for shown in (None, frame):
            wanted = expected(shown, False)
            wanted[point.top : point.bottom, point.left : point.right] = 200
            assert np.array_equal(child.show(None if shown is None else 0, False), wanted)
    finally:
        child.close()


def test_each_texture_keeps_its_own_frame(window: WindowChild, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    held = [rng.integers(0, 256, (RECT.height, RECT.width, 3), dtype=np.uint8) for _ in range(3)]
    for k, frame in enumerate(held):
        np.save(tmp_path / f"{k}.npy", frame)
        window.do("upload", k, str(tmp_path / f"{k}.npy"))
    for k in (2, 0, 1, 0):
        assert np.array_equal(window.show(k, False), expected(held[k], False))


ELSEWHERE = [Rect(3, 5, 64, 48), Rect(420, 330, 300, 212), Rect(0, 0, 800, 568)]


def test_frames_of_three_places_and_sizes_come_back_byte_equal(window: WindowChild, tmp_path: Path) -> None:
    """As in a trial that spans proposals: three textures of different sizes, then others in their stead."""
    rng = np.random.default_rng(8)
    for turn in range(2):
        rects = ELSEWHERE if turn == 0 else ELSEWHERE[::-1]
        held = [rng.integers(0, 256, (rect.height, rect.width, 3), dtype=np.uint8) for rect in rects]
        for k, (frame, rect) in enumerate(zip(held, rects, strict=True)):
            np.save(tmp_path / f"{k}.npy", frame)
            at = [rect.left, rect.top, rect.width, rect.height]
            window.do("upload", k, str(tmp_path / f"{k}.npy"), at)
        for k in (1, 0, 2, 1):
            assert np.array_equal(window.show(k, False), expected(held[k], False, rects[k]))
            assert np.array_equal(window.show(None, True), expected(None, True))
    # The same size elsewhere: nothing of the texture is made anew, and it is drawn at the new place.
    moved = Rect(480, 17, ELSEWHERE[0].width, ELSEWHERE[0].height)
    window.do("upload", 2, str(tmp_path / "2.npy"), [moved.left, moved.top, moved.width, moved.height])
    assert np.array_equal(window.show(2, False), expected(held[2], False, moved))


def test_the_pool_does_not_grow(window: WindowChild) -> None:
    for shrink in (0, 4):  # frames of one size; of sizes that change with each frame
        before = window.do("churn", 60, shrink)
        after = window.do("churn", 300, shrink)
        assert after - before < 5e6  # one new texture for each frame would be 69 MB


def test_a_stamp_follows_its_flip(window: WindowChild) -> None:
    clock = HostClock()
    before = clock.now_ns()
    stamp = window.do("show", 0, True)
    assert before < stamp < clock.now_ns()


def test_the_notes_say_what_the_log_must_know(window: WindowChild) -> None:
    assert window.notes["renderer"]
    assert window.notes["pacing"] == "clock, 60 Hz"
    assert float(window.notes["measured_hz"]) > 0  # what it is depends on what else the machine does


@pytest.mark.parametrize("rect", [Rect(0, 0, 800, 600), Rect(799, 599, 1, 1), Rect(1, 3, 7, 5)])
def test_any_rectangle_without_a_patch(private_screen: str, tmp_path: Path, rect: Rect) -> None:
    frame = np.random.default_rng(7).integers(0, 256, (rect.height, rect.width, 3), dtype=np.uint8)
    np.save(tmp_path / "frame.npy", frame)
    child = WindowChild(rect, patch=None, level=7)
    try:
        child.do("upload", 0, str(tmp_path / "frame.npy"))
        seen = child.show(0, True)
    finally:
        child.close()
    whole = np.full((SIZE[1], SIZE[0], 3), 7, np.uint8)
    whole[rect.top : rect.bottom, rect.left : rect.right] = frame
    assert np.array_equal(seen, whole)


# --- what goes with the window, and needs none ------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 2.2])
def test_the_blank_frame_is_the_background(gamma: float) -> None:
    """A blank must not show as a square: frame and window background pass the same gamma table."""
    maker = FrameMaker(places(parse(SMALLEST)), Display().background, gamma, Limits(), {})
    made = maker.make(proposal(0), Stimulus(id="b", spec=Blank()))
    assert np.unique(made.frame).tolist() == [maker.background_level]
    assert made.sha256 == maker.grey.sha256


def test_priority_says_what_it_got() -> None:
    assert ask(False) == "normal (processes.realtime is false)"
    granted, words = permitted()
    done = subprocess.run(  # in a process of its own: this one must stay as it is
        [sys.executable, "-c", "from rig.priority import ask; print(ask(True))"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=True,
    )
    assert done.stdout.startswith("SCHED_FIFO 10") == granted
    assert granted or "refused" in words or "no SCHED_FIFO" in words


def test_the_missing_screen_has_a_cure() -> None:
    assert "xvfb-run" in NO_SCREEN.cure
