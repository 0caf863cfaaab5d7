"""Makes the inception agent of a phase: its natural images, which are held out, their order, and the encoder's eye.

Called by the builder, and only for such a phase: it loads torch.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from models.agents.inception import Inception
from models.agents.types import U8
from models.encoders.core_files import read_cores
from models.inception.encoder import eye_for
from models.inception.features import SIDE, features
from models.inception.networks import Networks, inner_eye
from models.inception.schedule import blocks, choose
from rig.config.encoders import NetworkEncoder
from rig.config.inception import InceptionPhase
from stimuli.bank import Bank
from stimuli.spec import BankImage, Place, Stimulus


def build_inception(
    phase: InceptionPhase,
    phase_index: int,
    units: tuple[str, ...],
    shape: tuple[int, int],
    background: int,
    banks: Mapping[str, Bank],
    pools: Sequence[Sequence[Stimulus]],
    rng: np.random.Generator,
    place: Place | None,
) -> Inception:
    """Return the agent.

    `shape`: height and width of its images, pixels; `banks` draw the pictures as the rig does; `pools`: the images of
    each bank that it may show, in random order. Raises ValueError where there are too few, or where the cores of an
    earlier session do not fit.
    """
    natural = choose(pools, phase.train, phase.test, f"phases.{phase_index}")
    features(torch.zeros((1, 1, SIDE, SIDE)))  # its Gabors are computed here, and not in a step behind a block

    def picture(stimulus: Stimulus) -> U8:
        assert isinstance(stimulus.spec, BankImage)  # noqa: S101 - pools are of banks
        return banks[stimulus.spec.bank].image(stimulus.spec.name, *shape)

    order = blocks(natural, phase.train_repeats, phase.test_repeats, phase.block, rng)
    eye = eye_for(background)
    agent = Inception(phase, f"p{phase_index}", natural, order, picture, units, eye, rng, place)
    if isinstance(phase.encoder, NetworkEncoder):
        agent.networks = _networks(phase, phase.encoder, agent, f"phases.{phase_index}", int(rng.integers(2**31)))
    return agent


def _networks(phase: InceptionPhase, config: NetworkEncoder, agent: Inception, where: str, seed: int) -> Networks:
    """Return the networks of a phase before training. Raises ValueError where the cores to begin from do not fit."""
    try:
        eye = inner_eye(config, agent.eye)
        cores = partial(read_cores, architecture=config.architecture(), eye=eye, sha256=config.start_sha256)
        start = [] if config.start is None else cores(config.start)
        expected = phase.train * phase.train_repeats
        return Networks(config, agent.units, agent.eye, phase.train, expected, agent.seen, seed, start)
    except ValueError as error:
        raise ValueError(f"{where}.encoder: {error}") from error
