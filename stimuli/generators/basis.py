"""What generators of a fixed basis do alike: `dct`, `pixels`, `gabors`."""

from abc import ABC, abstractmethod

import numpy as np

from stimuli.generators.generator import F32, U8, Prior, checked


class BasisGenerator(ABC):
    """Images by a weighted sum of basis patterns, made one by one."""

    differentiable = False
    name: str
    latent_size: int
    prior: Prior
    _shape: tuple[int, int]  # of a frame, (y, x)

    def start(self, count: int, rng: np.random.Generator) -> F32:
        """Return standard normal codes (count, latent)."""
        return self.prior.sample(count, rng)

    def decode(self, latents: F32) -> U8:
        """Return frames (n, y, x, rgb) of codes (n, latent)."""
        latents = checked(latents, self.latent_size, self.name)
        frames = np.empty((latents.shape[0], *self._shape, 3), np.uint8)
        for k, latent in enumerate(latents):  # one by one: a frame's bytes must not depend on its neighbours
            frames[k] = self._image(latent)
        return frames

    @abstractmethod
    def _image(self, latent: F32) -> U8:
        """Return the frame (y, x, rgb) of a code (latent,)."""
