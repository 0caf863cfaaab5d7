"""The images that were made for one unit: the most exciting one and its controls, as they are shown. Pure."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stimuli.spec import LatentImage, Stimulus

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

MEI, NATURAL = "mei", "natural"
AT = "_at_"  # in the kind of an image that is one of these two at another contrast
HOW = {
    MEI: "most exciting image: gradient ascent through the encoder",
    "linear": "linear receptive field: weights of a ridge regression on luminance",
    "gabor": "best Gabor of the published grid, searched in steps of `grid_step`",
    "gabor_optimised": "best Gabor by ascent from the best of the grid",
    "natural_masked": "luminance of the training image that is first under the mask of the most exciting image",
    NATURAL: "luminance of the training image that the encoder puts first",
}


def at_contrast(kind: str, contrast: float) -> str:
    """Return the kind of an image that is another one at a contrast of its own: it is compared with nothing."""
    return f"{kind}{AT}{contrast:g}"


def compared(kind: str) -> bool:
    """Return whether an image is one of those of its unit that are alike in contrast."""
    return AT not in kind


def generator_name(encoder: str) -> str:
    """Return what the log names as the generator of images made through an encoder."""
    return f"inception-{encoder}"


@dataclass(frozen=True)
class MadeImage:
    """One of them."""

    code: F32
    """(pixel,) what the encoder sees of the frame."""
    frame: U8
    """(y, x, rgb) as it is shown, before the gamma table."""
    predicted: float
    """The encoder's response to the frame, in the unit of the responses."""
    of: str = ""
    """The picture that it was made of; "" for a pattern."""
    how: str = ""
    """How it was made; "": as HOW says of its kind."""
    contrast: float = float("nan")
    """RMS contrast, where it is not that of the unit's other images."""


@dataclass(frozen=True)
class Made:
    """All images of one unit, alike in mean level and RMS contrast."""

    unit: int
    """Column of the unit in the responses."""
    contrast: float
    images: dict[str, MadeImage]
    """By kind: the most exciting one, the controls, and either at other contrasts (`at_contrast`)."""
    agreement: float
    """Median correlation of the images from different starts, within the mask; NaN for one start."""
    checks: dict[str, float] = field(default_factory=dict)
    """Figures of the model of this unit (models.inception.checks), {} until they are computed."""

    def id_of(self, prefix: str, kind: str) -> str:
        """Return the identity of one of the images in the session."""
        return f"{prefix}-u{self.unit}-{kind}"

    def stimulus(self, prefix: str, kind: str, row: int, encoder: str) -> Stimulus:
        """Return one as a stimulus whose frame is number `row` of its proposal."""
        image = self.images[kind]
        own = image.contrast if np.isfinite(image.contrast) else self.contrast
        figures = {"predicted": image.predicted, "contrast": own}
        if kind == MEI and np.isfinite(self.agreement):
            figures["agreement"] = self.agreement
        return Stimulus(
            id=self.id_of(prefix, kind),
            spec=LatentImage(generator=generator_name(encoder), row=row),
            parents=(image.of,) if image.of else (),
            how=image.how or HOW[kind],
            figures=figures,
        )

    def state(self) -> dict[str, Any]:
        """Return arrays and JSON-able values."""
        images = {kind: {**vars(image), "frame": _thin(image.frame)} for kind, image in self.images.items()}
        return {"unit": self.unit, "contrast": self.contrast, "images": images, "agreement": self.agreement,
                "checks": dict(self.checks)}  # fmt: skip

    @staticmethod
    def restored(state: dict[str, Any]) -> "Made":
        """Return what `state` was taken of."""
        whole = {kind: {**image, "frame": _whole(image["frame"])} for kind, image in state["images"].items()}
        images = {kind: MadeImage(**image) for kind, image in whole.items()}
        return Made(state["unit"], state["contrast"], images, state["agreement"], dict(state["checks"]))


def _thin(frame: U8) -> U8:
    """Return one channel (y, x, 1) of a grey frame, which most of them are: a third of what a snapshot would hold."""
    grey = np.array_equal(frame[..., 0], frame[..., 1]) and np.array_equal(frame[..., 0], frame[..., 2])
    return frame[..., :1].copy() if grey else frame.copy()


def _whole(frame: U8) -> U8:
    """Return (y, x, rgb) again."""
    return np.ascontiguousarray(np.broadcast_to(frame, (*frame.shape[:2], 3)))
