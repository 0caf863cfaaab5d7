"""The encoders of a config: models that predict responses from pictures.

`models.encoders.build` makes them; docs/encoders.md says which one is for what.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from rig.config.part import Part


def _odd(side: int) -> int:
    """Return the side of filters that are padded by half of it. Raises ValueError where features would change size."""
    if side % 2 == 0:
        raise ValueError(f"{side} is even; filters that are padded need an odd side, such as {side + 1}")
    return side


Filters = Annotated[int, Field(ge=1, le=512, description="Filters of each layer.")]
Layers = Annotated[int, Field(ge=1, le=8, description="Convolutions.")]
FirstKernel = Annotated[int, Field(ge=1, le=63, description="Side of the first filters; not padded.")]
Kernel = Annotated[int, Field(ge=1, le=31, description="Side of all later filters, odd; padded."), AfterValidator(_odd)]
Linear = Annotated[bool, Field(description="No nonlinearities inside: the published linear control.")]


class PixelsCore(Part):
    """No core: readouts see the pixels, which makes a linear-nonlinear model."""

    type: Literal["pixels"] = "pixels"


class WalkerCore(Part):
    """Three convolutions whose outputs are all read out (Walker et al. 2019)."""

    type: Literal["walker"] = "walker"
    channels: Filters = 32
    layers: Layers = 3
    first_kernel_px: FirstKernel = 15
    kernel_px: Kernel = 7
    linear: Linear = False


class SeparableCore(Part):
    """One convolution and depth-separable ones; the last is read out (SENSORIUM 2022, Willeke et al.)."""

    type: Literal["separable"] = "separable"
    channels: Filters = 64
    layers: Layers = 4
    first_kernel_px: FirstKernel = 9
    kernel_px: Kernel = 7
    linear: Linear = False
    padded: bool = Field(
        default=True,
        description="Whether later layers see zeros beyond the picture, as published; false: features only where all "
        "filters see the picture, which is quicker: for units that look at its middle.",
    )

    @model_serializer(mode="wrap")
    def _as_saved(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave padding out where it is as published: files and names of networks from before one could choose."""
        out: dict[str, Any] = plain(self)
        if self.padded:
            out.pop("padded", None)
        return out


class NormalisedCore(Part):
    """As separable, but the first filters are divided by the contrast around them (Heeger 1992; Burg et al. 2021)."""

    type: Literal["normalised"] = "normalised"
    channels: Filters = 24
    layers: Layers = 2
    first_kernel_px: FirstKernel = 15
    kernel_px: Kernel = 7


class BackboneCore(Part):
    """The first blocks of efficientnet-lite0, trained on ImageNet; an optional package."""

    type: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    block: int = Field(default=7, ge=0, le=15, description="The block that is read out; 7 predicts V4 best.")
    tuned: bool = Field(default=False, description="Whether training changes the network too, or readouts only.")


AnyCore = Annotated[
    PixelsCore | WalkerCore | SeparableCore | NormalisedCore | BackboneCore, Field(discriminator="type")
]


class FullReadout(Part):
    """One weight for each feature at each place."""

    type: Literal["full"] = "full"


class FactorisedReadout(Part):
    """Weights over space times weights over features (Klindt et al. 2017)."""

    type: Literal["factorised"] = "factorised"


class PointReadout(Part):
    """The features at one learned point of each unit, drawn around it in training (Lurz et al. 2021)."""

    type: Literal["point"] = "point"
    cortex: bool = Field(default=False, description="Whether points are predicted from where the cells lie in cortex.")
    start_sigma: float = Field(
        default=0.1, gt=0, le=1, description="First sd of the drawn points, relative to half the picture's side."
    )
    start_range: float = Field(
        default=0.3, gt=0, le=1, description="First points lie within this of the centre, relative to half the side."
    )


AnyReadout = Annotated[FullReadout | FactorisedReadout | PointReadout, Field(discriminator="type")]


class Architecture(Part):
    """What an encoder is made of."""

    core: AnyCore = SeparableCore()
    readout: AnyReadout = PointReadout()
    output: Literal["elu_plus_one", "softplus", "none"] = Field(
        default="elu_plus_one", description="What makes rates of the readout's output; none: it stays as it is."
    )
    gaze: bool = Field(default=False, description="Whether the direction of gaze shifts where units look.")
    behaviours: int = Field(default=0, ge=0, le=32, description="Behavioural variables that set the units' gain.")

    @property
    def predicts_points(self) -> bool:
        """Whether it needs cortical positions."""
        return isinstance(self.readout, PointReadout) and self.readout.cortex

    @model_validator(mode="after")
    def _points_shift(self) -> "Architecture":
        if self.gaze and self.readout.type != "point":
            raise ValueError("gaze shifts the points of a readout: set readout to {type: point}, or gaze to false")
        return self


class Training(Part):
    """How an encoder is fitted: Adam, batches, early stopping on held-out images. Defaults: SENSORIUM 2022."""

    loss: Literal["poisson", "gaussian"] = Field(
        default="poisson", description="Gaussian for responses that may be negative; both are summed over units."
    )
    batch: int = Field(default=128, ge=1, le=4096, description="Presentations of one optimiser step.")
    slice: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Presentations computed at a time, so that steps are short beside an experiment; null: the batch.",
    )
    rate: float = Field(default=0.009, gt=0, le=1, description="First learning rate of Adam, relative to 1.")
    decay: float = Field(default=0.3, gt=0, lt=1, description="Fraction of the rate that is left after a plateau.")
    decays: int = Field(default=4, ge=0, le=20, description="Plateaus after which training goes on, at a lower rate.")
    smallest_rate: float = Field(default=1e-4, gt=0, le=1, description="Rates fall no lower, relative to 1.")
    patience: int = Field(default=5, ge=1, le=100, description="Epochs without a better held-out score: a plateau.")
    most_epochs: int = Field(default=200, ge=1, le=10_000, description="Epochs after which training ends.")
    tolerance: float = Field(default=1e-6, ge=0, le=1, description="By how much a score must rise (correlation, 0-1).")
    averaging: float = Field(
        default=0.0, ge=0, lt=1,
        description="Weights that are scored and kept are running means over optimiser steps, of which each keeps this "
        "share (relative to 1) of the means before; 0: the weights as they are.",
    )  # fmt: skip
    laplacian: float = Field(default=6.3831, ge=0, description="Roughness of the first filters, relative to the loss.")
    sparsity: float = Field(default=0.0, ge=0, description="Group sparsity of later filters, relative to the loss.")
    readout_l1: float = Field(default=0.0076, ge=0, description="L1 norm of the readout, relative to the loss.")
    readouts_only: bool = Field(default=False, description="Whether the core stays as it is.")
    fixed_norms: bool = Field(
        default=False, description="Whether batch normalisation keeps its means and variances: for fine-tuning."
    )


class BankEncoder(Part):
    """A fixed bank of features with an exact ridge readout: nothing to train, fitted anew behind every block."""

    type: Literal["bank"] = "bank"


class NetworkEncoder(Part):
    """Networks that are trained while the session runs, and predict together; the eye is 32 x 32 pixels of grey."""

    EYE_PX: ClassVar[int] = 32  # side of the eye that all encoders of a loop share

    type: Literal["network"] = "network"
    core: Annotated[WalkerCore | SeparableCore | NormalisedCore, Field(discriminator="type")] = NormalisedCore(
        first_kernel_px=21
    )
    readout: Annotated[FactorisedReadout | PointReadout, Field(discriminator="type")] = PointReadout()
    output: Literal["elu_plus_one", "softplus", "none"] = Field(
        default="none", description="What makes rates of the readout's output; none: it stays as it is."
    )
    side_px: int = Field(
        default=EYE_PX, ge=8, le=EYE_PX,
        description="Side of the picture that the networks work on: the eye's 32 pixels are resampled to so many.",
    )  # fmt: skip
    members: int = Field(default=3, ge=1, le=16, description="Networks; what they predict is their mean.")
    training: Training = Training(loss="gaussian", batch=64, slice=8, decays=2, patience=4, most_epochs=40)
    validation: float = Field(
        default=0.1, ge=0.02, le=0.5,
        description="Share of the training images, 0 to 1, that only say when to stop. The test images never do.",
    )  # fmt: skip
    validation_of_each: bool = Field(
        default=False,
        description="Whether each network has such images of its own, so that all images are trained on by some.",
    )
    steps: int = Field(
        default=300, ge=1, le=100_000,
        description="Steps of training behind each block, of one slice of one network: 5 to 15 ms each.",
    )  # fmt: skip
    finish_blocks: int = Field(
        default=10, ge=0, le=500,
        description="Blocks of held-out images, at most, while training comes to its end after the last natural image.",
    )  # fmt: skip
    start: Path | None = Field(
        default=None, description="Cores of an earlier session (its encoders/*.safetensors) to begin from; null: none."
    )
    start_sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$",
        description="Hash of the file `start`, so that nothing else begins from another one of that name. Filled in by "
        "the program: do not give it.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _trains(self) -> "NetworkEncoder":
        if self.training.loss == "poisson" and self.output == "none":
            raise ValueError("output none predicts rates below 0; set training.loss to gaussian, or another output")
        if self.training.batch < 2:
            raise ValueError("training.batch: a single presentation has no variance to normalise by; give 2 or more")
        if self.training.readouts_only:
            raise ValueError("training.readouts_only: here the core is always trained; use start for a trained one")
        side, first, training = self.side_px, self.core.first_kernel_px, self.training
        if first > side:
            raise ValueError(f"core.first_kernel_px: {first} does not fit into side_px {side}; give at most {side}")
        if first == side and training.slice == 1 and not training.fixed_norms:
            raise ValueError(
                f"training.slice: 1 picture of which first_kernel_px {first} leaves one place has no variance to "
                "normalise by; set slice to 2 or more, or give smaller filters"
            )
        if self.start_sha256 is not None and self.start is None:
            raise ValueError("start_sha256: there is no start; leave it out, the program fills it in")
        return self

    def architecture(self) -> Architecture:
        """Return what each network is made of."""
        return Architecture(core=self.core, readout=self.readout, output=self.output)


AnyEncoder = Annotated[BankEncoder | NetworkEncoder, Field(discriminator="type")]

WALKER_TRAINING = Training(
    batch=60, rate=0.005, decay=0.2, decays=1, patience=10, most_epochs=500, laplacian=50, sparsity=0.1, readout_l1=0.1
)
