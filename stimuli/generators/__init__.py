"""Generators: latent code -> image. Those here need no network; those with one are in `models.generators`."""

from stimuli.generators.dct import DctGenerator
from stimuli.generators.gabors import GaborGenerator
from stimuli.generators.generator import Generator, Prior
from stimuli.generators.pixels import PixelGenerator

__all__ = ["DctGenerator", "GaborGenerator", "Generator", "PixelGenerator", "Prior"]
