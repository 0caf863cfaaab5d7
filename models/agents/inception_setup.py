"""Makes the inception agent of a phase: its natural images, which are held out, their order, and the encoder's eye.

Called by the builder, and only for such a phase: it loads torch.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from models.agents.inception import Inception
from models.agents.types import U8
from models.inception.encoder import eye_for
from models.inception.schedule import blocks, choose
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
    each bank that it may show, in random order. Raises ValueError where there are too few.
    """
    natural = choose(pools, phase.train, phase.test, f"phases.{phase_index}")

    def picture(stimulus: Stimulus) -> U8:
        assert isinstance(stimulus.spec, BankImage)  # noqa: S101 - pools are of banks
        return banks[stimulus.spec.bank].image(stimulus.spec.name, *shape)

    order = blocks(natural, phase.train_repeats, phase.test_repeats, phase.block, rng)
    eye = eye_for(background)
    return Inception(phase, f"p{phase_index}", natural, order, picture, units, eye, rng, place)
