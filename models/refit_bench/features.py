"""The frozen network's features of a session's images, computed once and kept in a folder if one is given."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from models.generator_training.features import Features, NoEncoder
from rig.config.reading import ConfigError

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

AT_ONCE = 8


def feature_maps(images: U8, blocks: Sequence[int], side_px: int, cache: Path | None = None) -> dict[int, F32]:
    """Return of each block the maps (image, y, x, channel) for images (image, y, x, rgb) resampled to `side_px`.

    Raises ConfigError without the network's packages.
    """
    key = hashlib.sha256(images.tobytes()).hexdigest()[:16]
    paths = {b: cache / f"{key}_{side_px}px_block{b}.npy" for b in blocks} if cache is not None else {}
    if paths and all(path.exists() for path in paths.values()):
        return {b: np.load(path, allow_pickle=False) for b, path in paths.items()}
    try:
        network = Features(max(blocks))
    except NoEncoder as error:
        raise ConfigError(f"bench refit: {error}") from error
    parts: dict[int, list[F32]] = {b: [] for b in blocks}
    with torch.inference_mode():
        for k in range(0, len(images), AT_ONCE):
            x = torch.from_numpy(images[k : k + AT_ONCE].astype(np.float32) / 255).permute(0, 3, 1, 2)
            if x.shape[2:] != (side_px, side_px):
                x = functional.interpolate(x, (side_px, side_px), mode="bilinear", antialias=True, align_corners=False)
            for block, maps in network(x, blocks).items():
                parts[block].append(maps.permute(0, 2, 3, 1).contiguous().numpy())
    found = {b: np.concatenate(part) for b, part in parts.items()}
    for block, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, found[block])
    return found
