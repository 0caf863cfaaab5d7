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
from rig.display.places import Places, Square
from rig.messages import (
    Proposal,
)
from stimuli.bank import Bank
from stimuli.limits import LimitExceeded, check_frame, mean_luminance
from stimuli.render import gamma_table, render
from stimuli.spec import AnySpec, Blank, LatentImage, Place, Stimulus

U8 = npt.NDArray[np.uint8]
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
    square: Square
    """Where it is drawn."""
    refused: str = ""
    """Why the background is here instead of the stimulus; "" if it is the stimulus."""


class FrameMaker:
    """Makes frames, each for the place of its proposal.

    Parameters
    ----------
    where
        Where images lie.
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
        self, where: Places, background: int, gamma: float, limits: Limits, banks: Mapping[str, Bank]
    ) -> None:
        self._where = where
        self._background = background
        self._table = gamma_table(gamma)
        self._limits = limits
        self._banks = banks
        self._cache: OrderedDict[tuple[AnySpec, Place], Made] = OrderedDict()
        self._cache_bytes = 0
        self.grey = self.background_at(None)

    @property
    def background_level(self) -> int:
        """Level that is drawn as background, after the gamma table."""
        return int(self._table[self._background])

    def background_at(self, place: Place | None) -> Made:
        """Return the background at a proposal's place."""
        square = self._where.at(place)
        return self._finish(render(Blank(), square.angles, self._background, self._banks), square)

    def refuse(self, reason: str, place: Place | None) -> Made:
        """Return the background in place of a frame that must not be shown at a proposal's place."""
        return replace(self.grey if place is None else self.background_at(place), refused=reason)

    def make(self, proposal: Proposal, stimulus: Stimulus) -> Made:
        """Return the frame of `stimulus`; parametric and bank images are kept, latent ones are not.

        Raises ValueError where nothing may be drawn at the proposal's place.
        """
        spec, square = stimulus.spec, self._where.at(proposal.place)
        if isinstance(spec, LatentImage):
            return self._checked(np.asarray(proposal.frames[spec.row]), square, latent=True)
        key = spec, square.place
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        try:
            intended = render(spec, square.angles, self._background, self._banks)
        except (ValueError, KeyError, OSError) as error:
            return self.refuse(f"it cannot be drawn: {error}", square.place)
        made = self._checked(intended, square, latent=False)
        self._keep(key, made)
        return made

    def _checked(self, intended: U8, square: Square, latent: bool) -> Made:
        try:
            check_frame(intended, self._limits.mean_level, self._limits.max_rms_contrast)
        except LimitExceeded as error:
            return self.refuse(str(error), square.place)
        made = self._finish(intended, square)
        return replace(made, in_proposal=latent and np.array_equal(made.frame, intended))

    def _finish(self, intended: U8, square: Square) -> Made:
        frame = np.ascontiguousarray(self._table[intended])
        sha256 = hashlib.sha256(frame.tobytes()).hexdigest()
        return Made(frame, sha256, in_proposal=False, luminance=mean_luminance(intended), square=square)

    def _keep(self, key: tuple[AnySpec, Place], made: Made) -> None:
        self._cache[key] = made
        self._cache_bytes += made.frame.nbytes
        while self._cache_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._cache_bytes -= old.frame.nbytes
