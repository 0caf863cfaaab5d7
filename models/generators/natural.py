"""The generator "natural": our own network, whose weights ship with the program.

A decoder that inverts features of an ImageNet network, trained on freely licensed photographs; docs/generator.md says
on which, how, and what it draws. Codes of photographs have mean 0, sd 1 and hardly any correlation, so that random
codes draw pictures too. The way back, from pictures to codes, needs the extra `train`.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models.generators.files import stamp
from models.generators.natural_decoder import SIDE, NaturalDecoder
from models.generators.state_dicts import State, fill
from models.generators.torch_generator import Decoder
from rig.config.generators import NaturalGenerator
from stimuli.generators.generator import Prior

if TYPE_CHECKING:
    from models.generator_training.codes import Codes
    from models.generator_training.features import Features

WEIGHTS = Path(__file__).parent / "weights" / "natural.safetensors"
FORMAT = "stimloop natural generator 1"
TOGETHER = 8  # codes decoded at once: twice as fast as one by one, and bits alike at 1 to 8 threads (measured)


class PictureEncoder(nn.Module):
    """Pictures (n, rgb, y, x), levels 0..1 -> codes (n, latent); loads its network when it is first asked."""

    def __init__(self, state: State) -> None:
        """Take the numbers of the code, as the weights file holds them."""
        super().__init__()
        self._state = state
        self._found: tuple[Features, Codes] | None = None

    def forward(self, levels: Tensor) -> Tensor:
        """Return codes (n, latent); raises NoEncoder, which says what to install, without the extra `train`."""
        from models.generator_training import codes, features

        if self._found is None:
            self._found = features.Features(), codes.from_state(self._state)
        encoder, code = self._found
        seen = encoder(levels, (codes.EARLY_BLOCK, features.LAST_BLOCK))
        return code.encode(code.components(levels, seen))


def decoder(settings: NaturalGenerator, weights: Path = WEIGHTS) -> Decoder:
    """Return the network and the statistics of its codes, loaded once. Raises ValueError that says what is wrong."""
    del settings  # size and contrast are the frame's matter
    return _decoder(stamp(weights))


@lru_cache(maxsize=2)
def _decoder(weights: tuple[Path, int, int]) -> Decoder:
    path = weights[0]
    state, about = read_weights(path)
    with torch.device("meta"):
        network = NaturalDecoder(about["latent"], about["feature_channels"], tuple(about["widths"]))
    drawing = {name.removeprefix("decoder."): x for name, x in state.items() if name.startswith("decoder.")}
    digest = fill(network, drawing, path, {name: f"decoder.{name}" for name in network.state_dict()})
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    prior = Prior(state["prior.mean"].float().numpy(), state["prior.sd"].float().numpy(), about["norm"])
    return Decoder("natural", digest, network, (about["latent"],), SIDE, prior, PictureEncoder(state), TOGETHER)


def read_weights(path: Path) -> tuple[State, dict[str, Any]]:
    """Return the tensors and the description of a weights file. Raises ValueError."""
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); install the program again, or train anew") from error
    if notes.get("format") != FORMAT:
        raise ValueError(f"{path}: format {notes.get('format')!r}, expected {FORMAT!r}; train a generator anew")
    about: dict[str, Any] = json.loads(notes["about"])
    return state, about
