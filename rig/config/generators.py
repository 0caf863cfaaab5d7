"""The generators of a config: what turns an evolving code into an image.

`models.generators.factory` makes them; docs/generators.md says which one is for what.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rig.config.part import Part

MATCHED = 0.3
CONTRAST = Field(default=MATCHED, gt=0, le=1, description="RMS contrast of every image, sd / 127.5.")
CONTRAST_OR_AS_DECODED = Field(
    default=MATCHED,
    gt=0,
    le=1,
    description="RMS contrast of every image, sd / 127.5, around the background; null: level and contrast as decoded.",
)


class DctGenerator(Part):
    """Images as weighted colour cosine patterns with a 1/f amplitude: needs no weights."""

    type: Literal["dct"] = "dct"
    frequencies: int = Field(default=10, ge=2, le=64, description="Cosine frequencies along each axis.")
    falloff: float = Field(default=0.75, ge=0, le=3, description="Amplitude falls as 1 / frequency ** falloff.")
    contrast: float = CONTRAST


class PixelGenerator(Part):
    """Images as a coarse grid of coloured pixels: the plainest code there is, for comparison."""

    type: Literal["pixels"] = "pixels"
    side: int = Field(default=16, ge=2, le=64, description="Pixels of the grid along each axis.")
    smooth: bool = Field(default=True, description="Whether levels change smoothly between pixels, or in squares.")
    contrast: float = CONTRAST


class GaborGenerator(Part):
    """Images as a weighted sum of Gabors over positions, scales, orientations, two phases and colours."""

    type: Literal["gabors"] = "gabors"
    scales: tuple[Annotated[int, Field(ge=1, le=32)], ...] = Field(
        default=(2, 4, 8), min_length=1, description="Of each scale, its Gabors' cycles per image side."
    )
    orientations: int = Field(default=4, ge=1, le=16, description="Orientations of each place and scale.")
    contrast: float = CONTRAST


class NaturalGenerator(Part):
    """Natural-looking images by the network that ships with the program."""

    type: Literal["natural"] = "natural"
    contrast: float | None = CONTRAST_OR_AS_DECODED


class DeepsimGenerator(Part):
    """Images by a DeePSiM network (Dosovitskiy & Brox 2016), as XDream uses it; the user gives the weights."""

    type: Literal["deepsim"] = "deepsim"
    weights: Path = Field(description="The network's state dict, as torch or safetensors file.")
    layer: Literal["fc6", "fc7", "fc8", "pool5"] = Field(
        default="fc6", description="The layer of CaffeNet that it inverts."
    )
    statistics: Path | None = Field(
        default=None, description="Mean and sd of each code value (.npz); null: the published average of the layer."
    )
    contrast: float | None = CONTRAST_OR_AS_DECODED


class Taef2Generator(Part):
    """Images by the decoder of a tiny autoencoder (taef2); the user gives the weights."""

    type: Literal["taef2"] = "taef2"
    weights: Path = Field(description="The decoder's state dict, as torch or safetensors file.")
    encoder: Path | None = Field(
        default=None, description="The encoder's state dict: evolution may then start from pictures."
    )
    side: int = Field(default=112, ge=16, le=512, multiple_of=8, description="Side of the decoded picture, pixels.")
    contrast: float | None = CONTRAST_OR_AS_DECODED


class OnnxGenerator(Part):
    """Images by any decoder in an ONNX file, with a page that describes it."""

    type: Literal["onnx"] = "onnx"
    model: Path = Field(description="The ONNX file.")
    description: Path = Field(description="YAML file that says what goes in and comes out: docs/generators.md.")
    contrast: float | None = CONTRAST_OR_AS_DECODED


NetworkGenerator = NaturalGenerator | DeepsimGenerator | Taef2Generator  # those that torch computes


def encodes(settings: Part) -> bool:
    """Return whether a generator has a way back, from pictures to codes."""
    if isinstance(settings, Taef2Generator):
        return settings.encoder is not None
    return isinstance(settings, DctGenerator | PixelGenerator | NaturalGenerator)


def _dct_unless_said(given: Any) -> Any:
    """Take settings without a type for those of a DCT generator, the default."""
    return {"type": "dct", **given} if isinstance(given, dict) and "type" not in given else given


AnyGenerator = Annotated[
    Annotated[
        DctGenerator
        | PixelGenerator
        | GaborGenerator
        | NaturalGenerator
        | DeepsimGenerator
        | Taef2Generator
        | OnnxGenerator,
        Field(discriminator="type"),
    ],
    BeforeValidator(_dct_unless_said),
]
