"""What every generator offers: codes of a known distribution in, finished frames out.

Called by the evolve agent, the optimisers (which start from the prior) and the benches. Generators without a network
live beside this module, those with one in `models.generators`; `models.generators.factory` makes either from a config.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Prior:
    """How the codes of ordinary images are distributed: a normal distribution, whose negative values may be cut to 0.

    A search that starts elsewhere starts outside what the generator was made for: fc6 codes of N(0, 1) have a norm of
    64, those of photographs 267 (Xiao & Kreiman 2020).
    """

    mean: F32
    """(latent,), before negative values are cut."""
    sd: F32
    """(latent,), of each value over all codes, before negative values are cut."""
    norm: float
    """Length of a typical code, as `sample` returns it."""
    factor: F32 | None = None
    """(latent, k): the shared part of the covariance is factor @ factor.T; what it leaves of sd**2 is independent."""
    rectified: bool = False
    """Negative values become 0, as in the layers of a rectifying network."""

    def __post_init__(self) -> None:
        """Raise ValueError if the parts do not fit together."""
        latent = self.mean.shape
        if len(latent) != 1 or self.sd.shape != latent:
            raise ValueError(f"prior: mean {self.mean.shape} and sd {self.sd.shape}; both are (latent,)")
        if self.factor is not None and (self.factor.ndim != 2 or self.factor.shape[:1] != latent):
            raise ValueError(f"prior: factor {self.factor.shape}; it is (latent, k) with latent {latent[0]}")
        parts = [self.mean, self.sd, *([] if self.factor is None else [self.factor])]
        if not all(np.isfinite(part).all() for part in parts) or (self.sd < 0).any():
            raise ValueError("prior: mean, sd and factor are finite, and sd is not negative")
        if not (np.isfinite(self.norm) and self.norm > 0):
            raise ValueError(f"prior: norm {self.norm}; it is the length of a typical code, above 0")
        if (self._independent_variance() < -1e-3 * np.square(self.sd, dtype=np.float64)).any():
            raise ValueError("prior: factor @ factor.T has larger variances than sd**2")

    def _independent_variance(self) -> F64:
        out = np.square(self.sd, dtype=np.float64)
        if self.factor is not None:
            out = out - np.square(self.factor, dtype=np.float64).sum(axis=1)
        return out

    def sample(self, count: int, rng: np.random.Generator) -> F32:
        """Return `count` codes (count, latent) drawn with `rng`."""
        if self.factor is None:
            codes = self.mean + self.sd * rng.standard_normal((count, len(self.mean)), dtype=np.float32)
        else:  # in double precision: its rounding then hardly depends on how a processor orders the sums
            shared = rng.standard_normal((count, self.factor.shape[1])) @ self.factor.astype(np.float64).T
            alone = np.sqrt(np.clip(self._independent_variance(), 0, None))
            codes = (self.mean + shared + alone * rng.standard_normal((count, len(self.mean)))).astype(np.float32)
        return np.maximum(codes, np.float32(0)) if self.rectified else codes


def normal_prior(latent_size: int, sd: float = 1.0) -> Prior:
    """Return independent values of mean 0; their typical length is sd sqrt(latent_size)."""
    zeros, ones = np.zeros(latent_size, np.float32), np.ones(latent_size, np.float32)
    return Prior(zeros, ones * np.float32(sd), sd * float(np.sqrt(latent_size)))


class Generator(Protocol):
    """Turns codes into images."""

    name: str
    """Kind, and a short hash of everything that decides a frame: settings, frame size, weights."""
    latent_size: int
    latent_shape: tuple[int, ...]
    """How a code is arranged, for example (latent,) or (channel, y, x); its product is `latent_size`."""
    differentiable: bool
    """Whether it has `levels`, as `models.generators.torch_generator` says."""
    prior: Prior

    def start(self, count: int, rng: np.random.Generator) -> F32:
        """Return start codes (count, latent) of the right scale for this generator."""
        ...

    def decode(self, latents: F32) -> U8:
        """Return frames (n, y, x, rgb) of codes (n, latent); each frame depends on its own code only, bit for bit.

        Raises ValueError for codes of another shape, NaN or infinity.
        """
        ...

    @property
    def encode(self) -> Callable[[U8], F32] | None:
        """The way back, frames (n, y, x, rgb) -> codes (n, latent) of images like them; None where there is none."""
        ...


def checked(latents: F32, latent_size: int, name: str) -> F32:
    """Return codes (n, latent) as float32; raises ValueError that names the generator and what it takes."""
    latents = np.asarray(latents, dtype=np.float32)
    if latents.ndim != 2 or latents.shape[1] != latent_size:
        raise ValueError(f"codes of shape {latents.shape}; {name} takes (n, {latent_size})")
    if not np.isfinite(latents).all():
        raise ValueError("codes contain NaN or infinity")
    return latents
