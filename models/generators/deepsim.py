"""The generator "deepsim": DeePSiM networks, which invert a layer of CaffeNet (Dosovitskiy & Brox 2016).

The generator of XDream (Ponce et al. 2019; Xiao & Kreiman 2020) and of Wang & Ponce (2022). The weights are the user's;
the two collections of them in use give the same tensors different names, and both are read.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm
from torch import Tensor, nn

from models.generators.files import stamp
from models.generators.state_dicts import State, fill, read_state
from models.generators.torch_generator import Decoder
from rig.config.generators import DeepsimGenerator
from stimuli.generators.generator import F32, Prior

SIDE = 256
MEAN_RGB = (123.0, 117.0, 104.0)  # that CaffeNet subtracts from its pictures
SLOPE = 0.3
SHAPES: dict[str, tuple[int, ...]] = {"fc6": (4096,), "fc7": (4096,), "fc8": (1000,), "pool5": (256, 6, 6)}
# Mean and sd of CaffeNet's codes before they are rectified, averaged over the layer (from XDream's statistics).
PUBLISHED = {"fc6": (-15.18, 15.08), "fc7": (-2.69, 3.49), "fc8": (0.001, 2.94), "pool5": (5.02, 11.93)}

# Ours -> XDream's and Wang's names, in the order of the network. Ours are Wang's.
FULLY_CONNECTED = {"defc7": "fc7", "defc6": "fc6", "defc5": "fc5"}
CONVOLUTIONS = {"Rconv6": "conv6", "Rconv7": "conv7", "Rconv8": "conv8"}
# Name, XDream's name, channels in and out, kernel, stride; padding is 1. All are transposed convolutions.
DECONVOLUTIONS = (
    ("deconv5", "tconv5_0", 256, 256, 4, 2),
    ("conv5_1", "tconv5_1", 256, 512, 3, 1),
    ("deconv4", "tconv4_0", 512, 256, 4, 2),
    ("conv4_1", "tconv4_1", 256, 256, 3, 1),
    ("deconv3", "tconv3_0", 256, 128, 4, 2),
    ("conv3_1", "tconv3_1", 128, 128, 3, 1),
    ("deconv2", "tconv2", 128, 64, 4, 2),
    ("deconv1", "tconv1", 64, 32, 4, 2),
    ("deconv0", "tconv0", 32, 3, 4, 2),
)
XDREAM_NAMES = FULLY_CONNECTED | CONVOLUTIONS | {ours: theirs for ours, theirs, *_ in DECONVOLUTIONS}


class Deepsim(nn.Module):
    """Codes (n, *shape of the layer) -> pictures (n, 3, 256, 256), red, green, blue, levels 0 to 1."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        if layer == "pool5":
            self.Rconv6 = nn.Conv2d(256, 512, 3, padding=1)
            self.Rconv7 = nn.Conv2d(512, 512, 3, padding=1)
            self.Rconv8 = nn.Conv2d(512, 512, 3)
            self._first = ("Rconv6", "Rconv7", "Rconv8")
        else:
            self.defc7 = nn.Linear(SHAPES[layer][0], 4096)
            self.defc6, self.defc5 = nn.Linear(4096, 4096), nn.Linear(4096, 4096)
            self._first = ("defc7", "defc6", "defc5")
        for name, _, inputs, outputs, kernel, stride in DECONVOLUTIONS:
            channels = 512 if layer == "pool5" and name == "deconv5" else inputs
            self.add_module(name, nn.ConvTranspose2d(channels, outputs, kernel, stride, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the pictures of codes."""
        for name in self._first:
            x = nn.functional.leaky_relu(self.get_submodule(name)(x), SLOPE)
        if x.ndim == 2:
            x = x.reshape(-1, 256, 4, 4)
        for name, *_ in DECONVOLUTIONS[:-1]:
            x = nn.functional.leaky_relu(self.get_submodule(name)(x), SLOPE)
        bgr = self.get_submodule("deconv0")(x)  # levels of blue, green, red, less CaffeNet's mean picture
        mean = torch.tensor(MEAN_RGB, dtype=bgr.dtype, device=bgr.device).reshape(1, 3, 1, 1)
        return torch.clamp((bgr.flip(1) + mean) / 255, 0, 1)


def decoder(settings: DeepsimGenerator) -> Decoder:
    """Return the network of `settings`, loaded once for all image sizes. Raises ValueError that says what is wrong."""
    statistics = None if settings.statistics is None else stamp(settings.statistics)
    return _decoder(stamp(settings.weights), settings.layer, statistics)


@lru_cache(maxsize=2)
def _decoder(weights: tuple[Path, int, int], layer: str, statistics: tuple[Path, int, int] | None) -> Decoder:
    path = weights[0]
    network, digest = load(read_state(path, f"DeePSiM {layer} generator"), layer, path)
    prior = published_prior(layer) if statistics is None else prior_from(statistics[0], layer)
    return Decoder(f"deepsim-{layer}", digest, network, SHAPES[layer], SIDE, prior)


# --- weights ----------------------------------------------------------------------------------------------------------


def load(state: State, layer: str, path: Path) -> tuple[Deepsim, str]:
    """Return the network with the tensors of `state`, and a hash of them that does not depend on their names.

    Names are XDream's or Wang's, with or without `G.` before and `.1.` inside; where there is no bias of a
    deconvolution it is 0, as in the original networks. Raises ValueError that names the first tensor that is wrong.
    """
    with torch.device("meta"):
        network = Deepsim(layer)
    ours, called = _renamed(state, path)
    other = "defc7" if layer == "pool5" else "Rconv6"  # how the generators of the other layers begin
    if found := [theirs for name, theirs in called.items() if name.startswith(other)]:
        raise ValueError(
            f"{path}: tensor {found[0]} is of another layer's generator than {layer}; "
            "correct generator.layer or generator.weights"
        )
    for name, _, _, outputs, *_ in DECONVOLUTIONS:
        ours.setdefault(f"{name}.bias", torch.zeros(outputs))
    style = XDREAM_NAMES if any(key.startswith("tconv") for key in called.values()) else {}
    expected = {
        f"{name}.{part}": f"{style.get(name, name)}.{part}"
        for name, _ in network.named_children()
        for part in ("weight", "bias")
    }
    return network, fill(network, ours, path, expected | called)


def _renamed(state: State, path: Path) -> tuple[State, dict[str, str]]:
    """Return the tensors by our names, and what the file calls each."""
    from_xdream = {theirs: ours for ours, theirs in XDREAM_NAMES.items()}
    out, called = State(), dict[str, str]()
    for key, tensor in state.items():
        parts = [p for p in key.removeprefix("G.").split(".") if p != "1"]
        ours = ".".join([from_xdream.get(parts[0], parts[0]), *parts[1:]])
        if ours in out:
            raise ValueError(f"{path}: tensors {called[ours]} and {key} are the same one under two names; keep one")
        out[ours], called[ours] = tensor, key
    return out, called


# --- where codes start ------------------------------------------------------------------------------------------------


def published_prior(layer: str) -> Prior:
    """Return the prior of a layer by its published average mean and sd: the same for all values of a code."""
    count = int(np.prod(SHAPES[layer]))
    mean, sd = PUBLISHED[layer]
    return rectified_prior(np.full(count, mean, np.float32), np.full(count, sd, np.float32))


def prior_from(path: Path, layer: str) -> Prior:
    """Return the prior by each value's own mean and sd: arrays `LAYER/mu` and `LAYER/sig` of an .npz file.

    Raises ValueError that says what is missing.
    """
    shape, parts = SHAPES[layer], list[F32]()
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in (f"{layer}/mu", f"{layer}/sig") if name in file.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise ValueError(f"{path}: no .npz file of code statistics ({error}); docs/generators.md makes one") from error
    for name in (f"{layer}/mu", f"{layer}/sig"):
        if name not in found:
            raise ValueError(f"{path}: there is no array {name}; docs/generators.md says how to make the file")
        values = found[name]
        if values.shape != shape or not np.issubdtype(values.dtype, np.floating) or not np.isfinite(values).all():
            raise ValueError(f"{path}: {name} is {values.dtype} {values.shape}; expected finite numbers {shape}")
        parts.append(values.astype(np.float32).ravel())
    if parts[1].min() < 0:
        raise ValueError(f"{path}: {layer}/sig has negative values; it holds standard deviations")
    return rectified_prior(*parts)


def rectified_prior(mean: F32, sd: F32) -> Prior:
    """Return max(N(mean, sd), 0), as published experiments start: the networks saw rectified codes in training."""
    m, s = mean.astype(np.float64), np.maximum(sd.astype(np.float64), 1e-12)
    # Mean square of a rectified normal value.
    squares: npt.NDArray[np.float64] = (m**2 + s**2) * norm.cdf(m / s) + m * s * norm.pdf(m / s)
    return Prior(mean, sd, float(np.sqrt(np.sum(squares))), rectified=True)
