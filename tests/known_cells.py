"""Fits to known neurons: pieces of photographs, simulated V1 cells, and networks that learn them within seconds."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from models.encoders.eye import Eye
from models.encoders.network import Network
from models.encoders.recordings import Recording, held_out_images
from models.encoders.training import Fit
from models.truth import V1, draw_cells
from rig.config.encoders import Architecture, Training
from stimuli.bank import match_levels
from stimuli.geometry import Rect, pixel_angles

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

SIDE = 48
CELLS = 6
CORE = {"type": "separable", "channels": 8, "layers": 2, "first_kernel_px": 9, "kernel_px": 5}
QUICK = Training(batch=32, laplacian=0.1, most_epochs=2)


@lru_cache(maxsize=1)
def photographs() -> list[F64]:
    from skimage import data

    return [getattr(data, name)().mean(2) for name in ("astronaut", "coffee", "chelsea", "rocket")]


def pictures(count: int, seed: int) -> U8:
    """Return grey pieces of photographs (n, y, x, 3) of equal contrast."""
    rng = np.random.default_rng(seed)
    made: list[U8] = []
    while len(made) < count:
        photograph, step = photographs()[rng.integers(4)], int(rng.integers(1, 4))
        y, x = (int(rng.integers(0, size - SIDE * step)) for size in photograph.shape)
        piece = photograph[y : y + SIDE * step, x : x + SIDE * step].reshape(SIDE, step, SIDE, step).mean((1, 3))
        if piece.std() < 8:
            continue  # sky
        made.append(match_levels(np.repeat(piece[..., None], 3, 2).astype(np.uint8), 128.0, 0.35))
    return np.stack(made)


@lru_cache(maxsize=1)
def cells() -> V1:
    """Return simple and complex cells, in turn."""
    azimuth, elevation = pixel_angles(Rect(376, 276, SIDE, SIDE), (800, 600), 40.0, 30.0)
    return V1(draw_cells(CELLS, azimuth, elevation, np.random.default_rng(4)), azimuth, elevation)


def truth(frames: U8) -> F64:
    """Return mean spikes in 0.2 s (n, unit)."""
    return np.stack([cells().rate_hz(f.astype(np.float32) / np.float32(255)) for f in frames]) * 0.2


@lru_cache(maxsize=4)
def recorded(count: int, seed: int = 1) -> tuple[Eye, Recording]:
    """Return single presentations of `count` pictures."""
    frames = pictures(count, seed)
    eye = Eye.for_frames(frames, 24, 24)
    responses = np.random.default_rng(seed + 100).poisson(truth(frames)).astype(np.float32)
    held_out = held_out_images([str(k) for k in range(count)], 0.15, seed)
    return eye, Recording(eye.see(frames), np.arange(count), responses, held_out)


def fit(count: int = 60, training: Training = QUICK, seed: int = 5, readout: str = "point", **core: Any) -> Fit:
    eye, recording = recorded(count)
    architecture = Architecture.model_validate({"core": CORE | core, "readout": {"type": readout}})
    return Fit(Network(architecture, eye, {"s": cells().units}, seed=3), {"s": recording}, training, seed)


def same(a: Any, b: Any) -> bool:
    """Return whether two states are equal to the bit."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) or (a != a and b != b)
