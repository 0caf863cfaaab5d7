"""From a stimulus of a proposal to the exact 8-bit frame that is drawn: render, limits, gamma table, sha256.

Called by `rig.display.loop` between trials, one stimulus at a time. Pure: no screen, no clock, no files but the image
banks. A frame that cannot be drawn or exceeds a limit becomes the background, and says so: it is never mended.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rig.config.screen import Limits
from rig.messages import (
    Proposal,
)
from stimuli.bank import Bank
from stimuli.limits import LimitExceeded, check_frame, mean_luminance
from stimuli.render import gamma_table, render
from stimuli.spec import AnySpec, Blank, LatentImage, Stimulus

U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]
CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class Made:
    """One frame, ready for a texture."""

    frame: U8
    """(y, x, rgb), after the gamma table, exactly as it is drawn."""
    sha256: str
    in_proposal: bool
    """Whether the proposal's own frame has these very bytes."""
    luminance: float
    """Mean relative luminance that it asks of the screen, 0-1."""
    refused: str = ""
    """Why the background is here instead of the stimulus; "" if it is the stimulus."""


class FrameMaker:
    """Makes frames of one image square.

    Parameters
    ----------
    angles
        Azimuth and elevation of the square's pixels, degrees, each (y, x).
    background
        Grey level before the gamma table, 0-255.
    gamma
        Exponent of the display, undone here.
    limits
        What every frame must keep.
    banks
        Image banks by name.
    """

    def __init__(
        self, angles: tuple[F64, F64], background: int, gamma: float, limits: Limits, banks: Mapping[str, Bank]
    ) -> None:
        self._angles = angles
        self._background = background
        self._table = gamma_table(gamma)
        self._limits = limits
        self._banks = banks
        self._cache: OrderedDict[AnySpec, Made] = OrderedDict()
        self._cache_bytes = 0
        self.grey = self._finish(render(Blank(), angles, background, banks))

    @property
    def background_level(self) -> int:
        """Level that is drawn as background, after the gamma table."""
        return int(self._table[self._background])

    def refuse(self, reason: str) -> Made:
        """Return the background in place of a frame that must not be shown."""
        return replace(self.grey, refused=reason)

    def make(self, proposal: Proposal, stimulus: Stimulus) -> Made:
        """Return the frame of `stimulus`; parametric and bank images are kept, latent ones are not."""
        spec = stimulus.spec
        if isinstance(spec, LatentImage):
            return self._checked(np.asarray(proposal.frames[spec.row]), latent=True)
        if spec in self._cache:
            self._cache.move_to_end(spec)
            return self._cache[spec]
        try:
            intended = render(spec, self._angles, self._background, self._banks)
        except (ValueError, KeyError, OSError) as error:
            return self.refuse(f"it cannot be drawn: {error}")
        made = self._checked(intended, latent=False)
        self._keep(spec, made)
        return made

    def _checked(self, intended: U8, latent: bool) -> Made:
        try:
            check_frame(intended, self._limits.mean_level, self._limits.max_rms_contrast)
        except LimitExceeded as error:
            return self.refuse(str(error))
        made = self._finish(intended)
        return replace(made, in_proposal=latent and np.array_equal(made.frame, intended))

    def _finish(self, intended: U8) -> Made:
        frame = np.ascontiguousarray(self._table[intended])
        sha256 = hashlib.sha256(frame.tobytes()).hexdigest()
        return Made(frame, sha256, in_proposal=False, luminance=mean_luminance(intended))

    def _keep(self, spec: AnySpec, made: Made) -> None:
        self._cache[spec] = made
        self._cache_bytes += made.frame.nbytes
        while self._cache_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._cache_bytes -= old.frame.nbytes
