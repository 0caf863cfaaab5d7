"""The generator "onnx": any decoder in an ONNX file, run by onnxruntime, with a page that describes it.

The page is checked against the file, and both against what a few start codes give: a wrong range or layout would make
images that look like a generator's and are not.
"""

import hashlib
import json
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import yaml
from pydantic import Field, ValidationError, model_validator

from models.generators.files import stamp
from models.generators.fit import FrameFit
from rig.config.generators import OnnxGenerator as Settings
from rig.config.part import Part
from stimuli.generators.generator import F32, U8, Prior, checked

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

GENERATOR_VERSION = 1  # part of the name; raise it when decode changes
THREADS = 2  # always the same number: the order of sums, and so a frame's last bits, may depend on it
TRIED = 4  # start codes that are decoded before any is shown
OUTSIDE = 0.25  # of their values may lie outside the range of the page
LEAST_SPREAD = 0.01  # of that range must be used


class CodePrior(Part):
    """How codes are distributed: numbers for all values alike, or one for each value in the order of the code."""

    mean: float | tuple[float, ...] = Field(default=0.0, description="Mean of the code's values.")
    sd: float | tuple[float, ...] = Field(default=1.0, description="Their standard deviation.")
    norm: float | None = Field(default=None, gt=0, description="Length of a typical code; null: from mean and sd.")
    rectified: bool = Field(default=False, description="Negative values become 0.")


class Description(Part):
    """What goes into an ONNX decoder and what comes out."""

    input: str = Field(description="Name of the input that takes the code.")
    latent_shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        min_length=1, description="Shape of a code, without the batch."
    )
    prior: CodePrior = CodePrior()
    output: str = Field(description="Name of the output with the picture.")
    layout: Literal["nchw", "nhwc"] = Field(description="Order of its axes: batch, channels, rows, columns.")
    colours: Literal["rgb", "bgr", "grey"] = Field(description="Its channels.")
    range: tuple[float, float] = Field(description="Values of black and white.")
    offset: tuple[float, float, float] = Field(
        default=(0.0, 0.0, 0.0), description="Added to red, green and blue first: a mean picture that was subtracted."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.range[0] < self.range[1]:
            raise ValueError(f"range {list(self.range)}: give the value of black first, then the larger one of white")
        return self


class OnnxGenerator:
    """Frames of one size by an ONNX decoder."""

    differentiable = False
    encode = None

    def __init__(self, settings: Settings, height: int, width: int, background: int) -> None:
        """Prepare frames of `height` x `width` pixels. Raises ValueError that says what does not fit."""
        loaded = _loaded(stamp(settings.model), stamp(settings.description))
        self._network, self.prior = loaded, loaded.prior
        self.latent_shape, self.latent_size = loaded.page.latent_shape, prod(loaded.page.latent_shape)
        self._fit = FrameFit((loaded.side, loaded.side), (height, width), settings.contrast, background)
        said = [GENERATOR_VERSION, height, width, settings.contrast, background, loaded.digest]
        self.name = f"onnx-{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:8]}"
        self._shape = (height, width)

    def start(self, count: int, rng: np.random.Generator) -> F32:
        """Return codes (count, latent) of the prior."""
        return self.prior.sample(count, rng)

    def decode(self, latents: F32) -> U8:
        """Return frames (n, y, x, rgb) of codes (n, latent)."""
        latents = checked(latents, self.latent_size, self.name)
        frames = np.empty((latents.shape[0], *self._shape, 3), np.uint8)
        for k, latent in enumerate(latents):  # one by one: a frame's bytes must not depend on its neighbours
            frames[k] = self._fit.frame(self._network.picture(latent))
        return frames


# --- the file and its page --------------------------------------------------------------------------------------------


class Network:
    """An ONNX decoder that was found to be as its page says."""

    def __init__(self, session: "InferenceSession", page: Description, digest: str, place: str) -> None:
        """Check `page` against the model; `place` names both files in errors. Raises ValueError."""
        self._session, self.page, self.digest, self._place = session, page, digest, place
        self.prior = _prior(page, place)
        self._check_names()
        self.side = 0
        tried = [self.raw(code) for code in self.prior.sample(TRIED, np.random.default_rng(0))]
        self._check_levels(np.stack(tried))
        self.side = tried[0].shape[1]

    def _check_names(self) -> None:
        page, place = self.page, self._place
        inputs = {i.name: i for i in self._session.get_inputs()}
        outputs = [o.name for o in self._session.get_outputs()]
        if page.input not in inputs:
            raise ValueError(f"{place}: input: the model has no input {page.input!r}; it has {', '.join(inputs)}")
        if others := sorted(set(inputs) - {page.input}):
            raise ValueError(f"{place}: the model also wants {', '.join(others)}; export it with the code alone")
        if page.output not in outputs:
            raise ValueError(f"{place}: output: the model has no output {page.output!r}; it has {', '.join(outputs)}")
        taken = inputs[page.input]
        if taken.type != "tensor(float)":
            raise ValueError(f"{place}: input {page.input} is {taken.type}; export the model in single precision")
        # A size is a number, or a name or nothing where it is free.
        batch, *shape = list(taken.shape) or [None]
        if isinstance(batch, int) and batch != 1:
            raise ValueError(f"{place}: input {page.input} takes {batch} codes at once; export it for 1 or any number")
        same = len(shape) == len(page.latent_shape)
        if not same or any(isinstance(n, int) and n != m for n, m in zip(shape, page.latent_shape, strict=True)):
            raise ValueError(
                f"{place}: latent_shape: {list(page.latent_shape)}, but input {page.input} takes {shape} besides the "
                "batch; correct the page"
            )

    def raw(self, code: F32) -> F32:
        """Return what the model makes of one code (latent,), as channels, rows, columns (3, y, x)."""
        page = self.page
        given = {page.input: code.reshape(1, *page.latent_shape)}
        try:
            out = np.asarray(self._session.run([page.output], given)[0])
        except Exception as error:  # onnxruntime's errors share no other base
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self._place}: the model cannot be run on a code: {reason}") from error
        channels = 1 if page.colours == "grey" else 3
        if out.ndim == 4 and page.layout == "nhwc":
            out = out.transpose(0, 3, 1, 2)
        if out.ndim != 4 or out.shape[:2] != (1, channels) or out.shape[2] != out.shape[3]:
            raise ValueError(
                f"{self._place}: output {page.output} has shape {list(out.shape)} for one code, channels first; "
                f"expected [1, {channels}, side, side]: correct layout or colours"
            )
        picture: F32 = out[0].astype(np.float32)
        if page.colours == "grey":
            picture = picture.repeat(3, axis=0)
        elif page.colours == "bgr":
            picture = picture[::-1]
        return picture + np.array(page.offset, np.float32).reshape(3, 1, 1)

    def _check_levels(self, tried: F32) -> None:
        if not np.isfinite(tried).all():
            raise ValueError(f"{self._place}: start codes give NaN or infinity; correct prior")
        low, high = self.page.range
        found = f"start codes give values from {tried.min():.3g} to {tried.max():.3g}"
        if np.mean((tried < low - 0.05 * (high - low)) | (tried > high + 0.05 * (high - low))) > OUTSIDE:
            raise ValueError(f"{self._place}: range: [{low:g}, {high:g}], but {found}; correct range or offset")
        if float(tried.std()) < LEAST_SPREAD * (high - low):
            raise ValueError(f"{self._place}: range: [{low:g}, {high:g}], but {found}, a flat picture; correct it")

    def picture(self, code: F32) -> F32:
        """Return the picture (3, y, x), levels 0 to 1 and beyond, of a code (latent,)."""
        low, high = self.page.range
        return (self.raw(code) - np.float32(low)) / np.float32(high - low)


@lru_cache(maxsize=2)
def _loaded(model: tuple[Path, int, int], description: tuple[Path, int, int]) -> Network:
    path, page_path = model[0], description[0]
    page = read_description(page_path)
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError('generator onnx needs onnxruntime; install it with: pip install "stimloop[onnx]"') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    options.use_deterministic_compute = True
    try:
        content = path.read_bytes()  # what is hashed is what is run: weights in a second file are refused
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no other base
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: cannot be loaded: {reason}; give one ONNX file with the weights inside") from error
    digest = hashlib.sha256(content + page.model_dump_json().encode()).hexdigest()
    return Network(session, page, digest, str(page_path))


def read_description(path: Path) -> Description:
    """Read the page about an ONNX decoder. Raises ValueError that names the field, or why it cannot be read."""
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Description.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = "".join(f"{part}." for part in first["loc"]).rstrip(".") or "the page"
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{path}: {field}: {reason}; docs/generators.md has an example") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a YAML page about a decoder: {reason}") from error


def _prior(page: Description, place: str) -> Prior:
    count = prod(page.latent_shape)
    parts = list[F32]()
    for name, given in (("mean", page.prior.mean), ("sd", page.prior.sd)):
        values = np.asarray(given, np.float32)
        if values.shape not in ((), (count,)):
            raise ValueError(f"{place}: prior.{name}: {values.size} numbers; give one, or {count} as a code has")
        parts.append(np.broadcast_to(values, (count,)).copy())
    mean, sd = parts
    if (sd < 0).any() or not sd.any():
        raise ValueError(f"{place}: prior.sd: standard deviations are not negative, and not all 0")
    norm = page.prior.norm
    if norm is None:
        drawn = Prior(mean, sd, 1.0, rectified=page.prior.rectified).sample(200, np.random.default_rng(0))
        norm = float(np.sqrt(np.mean(np.sum(np.square(drawn, dtype=np.float64), axis=1))))
    return Prior(mean, sd, norm, rectified=page.prior.rectified)
