"""The published way of making most exciting images, for comparison: one image at a time, two model calls a step.

As the public MEI code does it: forward and backward pass, step, and a second forward pass for the record; the whole
picture goes through the whole core. Schedule of Walker et al. 2019 with blur and without a norm (the images they
showed); contrast is set when the image is finished. Kinder than that code, the readout computes the wanted unit only.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from models.encoders.encoder import Encoder
from models.synthesis.frames import displayed
from models.synthesis.schedule import Schedule
from rig.config.synthesis import HIGHEST, Synthesis


class OneByOne:
    """One image on its way: `step()` until it returns True, then `score()`."""

    def __init__(self, encoder: Encoder, unit: int, start: Tensor, settings: Synthesis) -> None:
        """Take a start (c, h, w), levels 0 to 255, on the device where the encoder is."""
        self._encoder, self._settings = encoder, settings
        self._unit = torch.tensor([unit], device=start.device)
        self._schedule = Schedule(settings, encoder.eye.height, encoder.eye.width, start.device)
        self._x = start[None]
        self._done = 0
        self.record: list[float] = []

    def step(self) -> bool:
        """Take one iteration; return True after the last."""
        with _sums_in_any_order():
            x = self._x.requires_grad_(True)
            rate = self._encoder.rates(self._encoder.eye.see_levels(x), self._unit)[0, 0]
            (gradient,) = torch.autograd.grad(rate, x)
            with torch.no_grad():
                moved = x.detach() + self._schedule.step(gradient, self._done)
                self._x = self._schedule.blurred(torch.clamp(moved, 0.0, HIGHEST), self._done)
                again = self._encoder.rates(self._encoder.eye.see_levels(self._x), self._unit)
                self.record.append(float(again[0, 0]))
        self._done += 1
        return self._done == self._settings.iterations

    @torch.no_grad()
    def score(self) -> float:
        """Return the response to the displayed frame, which obeys the same rules as ours."""
        eye = self._encoder.eye
        frames = displayed(self._x, self._settings).frames
        return float(self._encoder.rates(eye.see(frames).to(self._x), self._unit)[0, 0])


@contextmanager
def _sums_in_any_order() -> Iterator[None]:
    """Ask for no fixed order of sums, as the published code: on a GPU torch has none for this way's interpolation."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
