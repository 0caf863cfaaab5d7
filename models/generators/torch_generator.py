"""A generator around any torch decoder: codes in, frames out, and picture levels with gradients.

`deepsim`, `taef2` and `natural` load a `Decoder` (kept for the next size of image: its weights may be large) and the
factory puts a `TorchGenerator` of the right frame size around it.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from models.generators.fit import FrameFit, resampled, resampling
from stimuli.generators.generator import F32, U8, Prior, checked

GENERATOR_VERSION = 1  # part of the name; raise it when decode changes


@dataclass(frozen=True, eq=False)
class Decoder:
    """A network from codes to pictures, with all that is known of its codes."""

    kind: str
    """First part of the generator's name."""
    digest: str
    """Hash of the weights."""
    network: nn.Module
    """Codes (n, *latent_shape) -> pictures (n, 3, side, side) of levels 0 to 1; in evaluation mode, without dropout."""
    latent_shape: tuple[int, ...]
    side: int
    prior: Prior
    encoder: nn.Module | None = None
    """Pictures (n, 3, side, side) of levels 0 to 1 -> codes (n, *latent_shape)."""
    together: int = 1
    """Codes that are always decoded at once, a last few filled up with zeros: for a network whose pictures, at one size
    of batch, depend neither on their neighbours nor on their place in it."""


class TorchGenerator:
    """Frames of one size by a decoder."""

    differentiable = True

    def __init__(self, decoder: Decoder, height: int, width: int, contrast: float | None, background: int) -> None:
        """Prepare frames of `height` x `width` pixels; `contrast` and `background` as `FrameFit` takes them."""
        settings = [GENERATOR_VERSION, height, width, contrast, background, decoder.side, decoder.digest]
        self.name = f"{decoder.kind}-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]}"
        self.latent_shape, self.latent_size = decoder.latent_shape, prod(decoder.latent_shape)
        self.prior = decoder.prior
        self.side = decoder.side
        self._network, self._encoder, self._together = decoder.network, decoder.encoder, decoder.together
        self._fit = FrameFit((decoder.side, decoder.side), (height, width), contrast, background)
        self._frame = (height, width)

    def start(self, count: int, rng: np.random.Generator) -> F32:
        """Return codes (count, latent) of the prior."""
        return self.prior.sample(count, rng)

    def decode(self, latents: F32) -> U8:
        """Return frames (n, y, x, rgb) of codes (n, latent)."""
        latents = checked(latents, self.latent_size, self.name)
        frames = np.empty((latents.shape[0], *self._frame, 3), np.uint8)
        # Always as many at once: how a sum is rounded in a batch depends on its size, and a frame must not.
        with torch.inference_mode():
            for first in range(0, len(latents), self._together):
                codes = np.zeros((self._together, self.latent_size), np.float32)
                some = latents[first : first + self._together]
                codes[: len(some)] = some
                pictures = self.levels(torch.from_numpy(codes)).numpy()
                for k in range(len(some)):
                    frames[first + k] = self._fit.frame(np.ascontiguousarray(pictures[k]))
        return frames

    def levels(self, codes: Tensor) -> Tensor:
        """Return pictures (n, 3, side, side), levels 0 to 1, of codes (n, latent), with gradients to the codes.

        They are as decoded: neither fitted to the frame's size nor matched in level and contrast. A batch is faster
        than `decode` and may differ from it in the last bits.
        """
        out: Tensor = self._network(codes.reshape(-1, *self.latent_shape))
        return out

    @property
    def encode(self) -> Callable[[U8], F32] | None:
        """The way back, frames (n, y, x, rgb) -> codes (n, latent) of pictures like them; None without an encoder."""
        return None if self._encoder is None else self._encoded

    def _encoded(self, frames: U8) -> F32:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames of dtype {frames.dtype} and shape {frames.shape}; they are uint8 (n, y, x, rgb)")
        assert self._encoder is not None  # noqa: S101 - `encode` looks
        down = resampling(frames.shape[1], self.side)
        across = resampling(frames.shape[2], self.side).T.copy()
        codes = np.empty((len(frames), self.latent_size), np.float32)
        with torch.inference_mode():
            for k, frame in enumerate(frames):
                picture = np.ascontiguousarray(frame.transpose(2, 0, 1), np.float32) / np.float32(255)
                seen = torch.from_numpy(np.clip(resampled(picture, down, across), 0, 1)[None])
                codes[k] = self._encoder(seen).reshape(-1).numpy()
        return codes
