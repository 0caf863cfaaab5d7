"""The features of a core that training leaves as it is: computed once for each image, slice by slice."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.encoders.cores import Core, Pixels
from models.encoders.recordings import Recording

I64 = npt.NDArray[np.int64]


class FrozenFeatures:
    """Features (image, k, y, x) of the images of each session; those of pixels are the images themselves."""

    def __init__(self, core: Core, recordings: Mapping[str, Recording], at_once: int) -> None:
        self._core, self._recordings, self._at_once = core, recordings, at_once
        self._values: dict[str, Tensor] = {}
        self.done: dict[str, int] = {}
        """Images computed, by session."""

    def step(self) -> bool:
        """Compute the next slice that lacks; return whether there was one."""
        if isinstance(self._core, Pixels):
            return False
        for session, recording in self._recordings.items():
            done, count = self.done.get(session, 0), len(recording.images)
            if done < count:
                self._compute(session, recording.images[done : done + self._at_once], count)
                return True
        return False

    def redo(self, done: Mapping[str, int]) -> None:
        """Compute as many as there were."""
        while any(self.done.get(session, 0) < count for session, count in done.items()):
            self.step()

    def of(self, session: str, images: I64) -> Tensor:
        """Return the features of images (n,)."""
        whole = self._recordings[session].images if isinstance(self._core, Pixels) else self._values[session]
        return whole[torch.from_numpy(images)]

    def _compute(self, session: str, images: Tensor, count: int) -> None:
        done = self.done.get(session, 0)
        with torch.inference_mode():
            found = self._core(images)
        values = self._values.get(session)
        if values is None or len(values) < count:
            grown = torch.empty((count, *found.shape[1:]))
            if values is not None:
                grown[:done] = values[:done]
            self._values[session] = values = grown
        values[done : done + len(found)] = found
        self.done[session] = done + len(found)
