"""What encoders are fitted to: responses to presentations of images, and which images are never trained on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Recording:
    """Presentations of one session; an image may be shown often."""

    images: Tensor
    """(image, channels, y, x): what the eye saw of each image."""
    shown: I64
    """(row,): the image of each presentation."""
    responses: F32
    """(row, unit); NaN where there is none."""
    held_out: Flags
    """(image,): images that only score."""
    gaze: F32 | None = None
    """(row, 2), any unit."""
    behaviour: F32 | None = None
    """(row, variable), any units."""

    def __post_init__(self) -> None:
        """Check that all parts fit. Raises ValueError."""
        rows, images = len(self.shown), len(self.images)
        if self.responses.ndim != 2 or len(self.responses) != rows:
            raise ValueError(f"recording: responses are {self.responses.shape} for {rows} presentations")
        if len(self.held_out) != images:
            raise ValueError(f"recording: held_out has {len(self.held_out)} entries for {images} images")
        if rows and not 0 <= int(self.shown.min()) <= int(self.shown.max()) < images:
            raise ValueError(f"recording: a presentation shows an image that is none of the {images}")
        if np.isinf(self.responses).any():
            raise ValueError("recording: a response is infinite; missing ones are NaN")
        for name, values in (("gaze", self.gaze), ("behaviour", self.behaviour)):
            if values is not None and (len(values) != rows or not np.isfinite(values).all()):
                raise ValueError(f"recording: {name} needs a finite row for each of the {rows} presentations")

    @property
    def training_rows(self) -> I64:
        """Presentations of images that are trained on, with at least one response."""
        return np.flatnonzero(~self.held_out[self.shown] & np.isfinite(self.responses).any(1))

    @property
    def scoring_rows(self) -> I64:
        """Presentations of held-out images, with at least one response."""
        return np.flatnonzero(self.held_out[self.shown] & np.isfinite(self.responses).any(1))


def held_out_images(identities: Sequence[str], share: float, seed: int) -> Flags:
    """Return which images are held out (image,), about `share` of them.

    Decided for each identity (the hash of its frame) alone, so that the choice made at the start holds for images that
    come later and for the same image in other sessions: none is trained on anywhere.
    """
    limit = round(share * 2**64)
    drawn = (hashlib.sha256(f"{seed} {identity}".encode()).digest()[:8] for identity in identities)
    return np.array([int.from_bytes(digest, "big") < limit for digest in drawn], dtype=np.bool_)
