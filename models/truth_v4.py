"""Published compact models of macaque V4 neurons as ground truth: loaded from a folder, never shipped.

Cowley, Stan, Pillow, Smith, "Compact deep neural network models of visual cortex" (bioRxiv 2023.11.22.568315).
The folder holds `models_torch/compact_model_SESSION_neuronN.pt` and `nums_filters/compact_model_SESSION_neuronN.npy`;
the optional folder of recordings `responses_averaged/responses_SESSION.npy` and `images/images_SESSION.zip`.

The models' output is a spike count per 100 ms up to a scale and an offset, often negative. The rate is
softplus(a output + b) / 100 ms; a and b are fitted to the recorded averages (Poisson likelihood) where there are some.
"""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from models.truth import unit_names
from rig.config.animal import Simulation
from rig.config.reading import ConfigError
from stimuli.spec import Place

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

SIDE = 112
MEAN_RGB = (116.222, 109.270, 100.381)
COUNT_S = 0.1
STRIDES = (1, 2, 2, 1, 1)
# The published variances of layers 1 to 4 already hold Keras' 1e-3; adding it again would shift outputs by spikes.
BATCHNORM_EPS = 1e-5
DEFAULT_SCALE = 1.3
DEFAULT_MEAN_COUNT = 2.4
FIT_IMAGES = 200


class CompactModel(nn.Module):
    """One neuron: five convolutions with batch normalisation and ReLU, then a dense readout (image, 1)."""

    def __init__(self, filters: tuple[int, ...]) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {}
        inputs = 3
        for k, outputs in enumerate(filters):
            padding = 0 if STRIDES[k] == 2 else 2
            if k == 0:
                layers["layer0_conv"] = nn.Conv2d(inputs, outputs, 5, padding=padding)
            else:
                layers[f"layer{k}_conv_depth"] = nn.Conv2d(
                    inputs, inputs, 5, STRIDES[k], padding, groups=inputs, bias=False
                )
                layers[f"layer{k}_conv_point"] = nn.Conv2d(inputs, outputs, 1)
            layers[f"layer{k}_bn"] = nn.BatchNorm2d(outputs, eps=BATCHNORM_EPS)
            inputs = outputs
        layers["Beta"] = nn.Linear(28 * 28 * inputs, 1)
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (image,) for centred images (image, 3, 112, 112)."""
        for k in range(5):
            if k == 0:
                x = self.layers["layer0_conv"](x)
            else:
                if STRIDES[k] == 2:  # Keras' "same" on 112 and 56 pixels pads more at the far side
                    x = nn.functional.pad(x, (1, 3, 1, 3))
                x = self.layers[f"layer{k}_conv_point"](self.layers[f"layer{k}_conv_depth"](x))
            x = torch.relu(self.layers[f"layer{k}_bn"](x))
        flat = x.permute(0, 2, 3, 1).flatten(1)  # the readout was trained on rows, columns, channels
        out: Tensor = self.layers["Beta"](flat)[:, 0]
        return out


def load_model(folder: Path, session: str, neuron: int) -> CompactModel:
    """Load one published model in float32; raises ConfigError if it is missing or not of this shape."""
    name = f"compact_model_{session}_neuron{neuron}"
    weights = folder / "models_torch" / f"{name}.pt"
    try:
        filters = np.load(folder / "nums_filters" / f"{name}.npy", allow_pickle=False)
        state = torch.load(weights, map_location="cpu", weights_only=True)
        model = CompactModel(tuple(int(n) for n in filters)).double()
        model.load_state_dict(state)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"animal.models: {weights} cannot be loaded: {error};"
            " give the folder that holds models_torch and nums_filters"
        ) from error
    return model.float().eval()


def centred(images: U8 | F32) -> Tensor:
    """Return images (image, y, x, 3) of levels 0 to 255, resampled to 112 x 112 and centred, as models take them."""
    x = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).permute(0, 3, 1, 2)
    if x.shape[2:] != (SIDE, SIDE):
        x = nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    x = x - torch.tensor(MEAN_RGB).reshape(1, 3, 1, 1)
    return x.contiguous(memory_format=torch.channels_last)


def outputs(model: CompactModel, images: U8, batch: int = 1) -> F64:
    """Return the model's raw output (image,) for images (image, y, x, 3), levels 0 to 255."""
    with torch.inference_mode():
        parts = [model(centred(images[k : k + batch])).numpy() for k in range(0, len(images), batch)]
    return np.concatenate(parts, dtype=np.float64)


def softplus(x: F64) -> F64:
    """Return log(1 + exp(x)), without overflow."""
    return np.logaddexp(0.0, x)


def fit_rate(output: F64, count: F64) -> tuple[float, float]:
    """Return a, b that maximise the Poisson likelihood of mean counts (image,) under softplus(a output + b)."""

    def loss(theta: F64) -> tuple[float, F64]:
        drive = theta[0] * output + theta[1]
        rate = softplus(drive) + 1e-9
        slope = (1 - count / rate) / (1 + np.exp(-np.clip(drive, -500, 500)))
        return float(np.mean(rate - count * np.log(rate))), np.array([np.mean(slope * output), np.mean(slope)])

    from scipy.optimize import minimize  # here: the model server, which fits nothing of it, starts sooner

    fit = minimize(loss, np.array([DEFAULT_SCALE, float(count.mean())]), jac=True, method="L-BFGS-B")
    return float(fit.x[0]), float(fit.x[1])


def offset_for_mean(output: F64, scale: float, mean_count: float) -> float:
    """Return b such that softplus(scale output + b) has the mean `mean_count` over outputs (image,)."""
    low, high = -1e4, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        if softplus(scale * output + middle).mean() < mean_count:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def recorded_images(folder: Path, session: str, count: int | None = None) -> U8:
    """Return the first `count` (None: all) images of a session (image, 112, 112, 3) in the order of its columns."""
    path = folder / "images" / f"images_{session}.zip"
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted((n for n in archive.namelist() if n.endswith(".jpg")), key=lambda n: n.rpartition("/")[2])[
                :count
            ]
            pictures = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"animal.recorded: {path} cannot be read: {error}; give the folder with images/") from error
    return np.stack(pictures)


def recorded_counts(folder: Path, session: str) -> F64:
    """Return the recorded mean counts per 100 ms (neuron, image)."""
    path = folder / "responses_averaged" / f"responses_{session}.npy"
    try:
        counts: F64 = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"animal.recorded: {path} cannot be read: {error}; give the folder with responses_averaged/"
        ) from error
    return counts


class V4:
    """Compact models with their operating points: unit k fires softplus(a[k] output + b[k]) spikes per 100 ms."""

    def __init__(self, models: tuple[CompactModel, ...], a: F64, b: F64, places: tuple[Place, ...] = ()) -> None:
        self.a, self.b = a, b
        self.receptive_fields = places
        self._models = models

    def split(self) -> "tuple[V4, ...]":
        """Return each model as a population of its own."""
        parts = zip(self._models, self.a, self.b, self.receptive_fields, strict=True)
        return tuple(V4((model,), np.array([a]), np.array([b]), (place,)) for model, a, b, place in parts)

    @property
    def units(self) -> tuple[str, ...]:
        """Return the unit names."""
        return unit_names(len(self._models))

    def rate_hz(self, image: F32) -> F64:
        """Return the rates (unit,), spikes/s, for `image` (y, x, 3), light 0 to 1; any size."""
        with torch.inference_mode():
            x = centred(image[None] * np.float32(255))
            raw = np.array([float(model(x)[0]) for model in self._models])
        return softplus(self.a * raw + self.b) / COUNT_S


def load(simulation: Simulation, places: tuple[Place, ...], images: U8 | None = None) -> V4:
    """Load the first `neurons` models of a session and set their operating points; raises ConfigError.

    `places`: the square that each of them sees, for the truth.
    Fitted to `simulation.recorded` if given, else a = 1.3 and b for a mean of 2.4 counts on `images` (image, y, x, 3).
    Sets torch to one thread: the animal shares the machine with what it is watching.
    """
    torch.set_num_threads(1)
    folder = simulation.models
    if folder is None:
        raise ConfigError("animal.models: population v4 needs the folder of the compact models")
    numbers = neuron_numbers(folder, simulation.session)
    session = simulation.session or ""
    if len(numbers) < simulation.neurons:
        raise ConfigError(
            f"animal.neurons: {simulation.neurons} asked for, session {session} in {folder} has {len(numbers)}"
        )
    numbers = numbers[: simulation.neurons]
    models = tuple(load_model(folder, session, n) for n in numbers)
    if simulation.recorded is not None:
        counts = recorded_counts(simulation.recorded, session)
        pictures = recorded_images(simulation.recorded, session, FIT_IMAGES)
        pairs = [
            fit_rate(outputs(m, pictures), counts[n, : len(pictures)]) for m, n in zip(models, numbers, strict=True)
        ]
    elif images is not None:
        pairs = [
            (DEFAULT_SCALE, offset_for_mean(outputs(m, images), DEFAULT_SCALE, DEFAULT_MEAN_COUNT)) for m in models
        ]
    else:
        raise ConfigError(
            "animal.recorded: v4 models need recorded averages, or pictures, to set their rates; give the folder"
        )
    a, b = np.array(pairs, dtype=np.float64).T
    return V4(models, a, b, places)


def neuron_numbers(folder: Path, session: str | None) -> list[int]:
    """Return the neurons of `session` in the folder, ascending; raises ConfigError naming the sessions there are."""
    pattern = re.compile(r"compact_model_(\w+)_neuron(\d+)\.pt$")
    found = [m for p in (folder / "models_torch").glob("*.pt") if (m := pattern.search(p.name))]
    sessions = sorted({m[1] for m in found})
    if session not in sessions:
        there = ", ".join(sessions) or f"none: {folder} has no models_torch/compact_model_SESSION_neuronN.pt"
        raise ConfigError(f"animal.session: {session!r} is not there; sessions in animal.models: {there}")
    return sorted(int(m[2]) for m in found if m[1] == session)
