"""Makes the generator of a config for images of one size: the one place that knows all generators.

Called by the agents' builder, the benches and `stimloop generator`. Networks are imported and loaded only for the
generators that have one, and are kept: the same generator for another image size costs milliseconds.
"""

from typing import assert_never

from rig.config.generators import (
    AnyGenerator,
    DctGenerator,
    DeepsimGenerator,
    GaborGenerator,
    NaturalGenerator,
    OnnxGenerator,
    PixelGenerator,
    Taef2Generator,
)
from stimuli import generators
from stimuli.generators import Generator


def build_generator(settings: AnyGenerator, height: int, width: int, background: int) -> Generator:
    """Return the generator of `settings` for frames of `height` x `width` pixels around the level `background`.

    Raises ValueError for settings that do not fit the image and files that are not what they should be.
    """
    match settings:
        case DctGenerator(frequencies=frequencies, falloff=falloff, contrast=contrast):
            return generators.DctGenerator(height, width, frequencies, falloff, contrast, background)
        case PixelGenerator(side=side, smooth=smooth, contrast=contrast):
            return generators.PixelGenerator(height, width, side, smooth, contrast, background)
        case GaborGenerator(scales=scales, orientations=orientations, contrast=contrast):
            return generators.GaborGenerator(height, width, scales, orientations, contrast, background)
        case DeepsimGenerator(contrast=contrast):
            from models.generators import deepsim
            from models.generators.torch_generator import TorchGenerator

            return TorchGenerator(deepsim.decoder(settings), height, width, contrast, background)
        case Taef2Generator(contrast=contrast):
            from models.generators import taef2
            from models.generators.torch_generator import TorchGenerator

            return TorchGenerator(taef2.decoder(settings), height, width, contrast, background)
        case OnnxGenerator():
            from models.generators import onnx_decoder

            return onnx_decoder.OnnxGenerator(settings, height, width, background)
        case NaturalGenerator(contrast=contrast):
            from models.generators import natural
            from models.generators.torch_generator import TorchGenerator

            return TorchGenerator(natural.decoder(settings), height, width, contrast, background)
        case _:
            assert_never(settings)
