"""The checks of the model behind the blocks that are shown back: a few units behind each, none twice.

Images are made by then and the model does not change any more; what is found is kept with the unit's images.
"""

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from models.inception.checks import Given, checked
from models.inception.encoder import FeatureReadout
from models.inception.learner import table
from models.inception.made import Made

if TYPE_CHECKING:
    from models.agents.inception import Inception

# Training images at which gradients are taken, spread over all of them: of the feature bank, and of a network, which
# takes several times as long for each.
MOST_IMAGES, MOST_OF_NETWORK = 400, 120


def with_checks(agent: "Inception") -> Generator[None, None, tuple[Made, ...]]:
    """Yield after each step; return the agent's images, those of the next few units with their checks.

    Shared out evenly over the blocks that follow the first, so that all are done when the last one is.
    """
    share = -(-len(agent.made) // (agent.phase.repeats - 1))
    due = [k for k, one in enumerate(agent.made) if not one.checks][:share]
    if not due:
        return agent.made
    given = yield from _given(agent)
    out = list(agent.made)
    for k in due:
        found = yield from checked(given, out[k])
        out[k] = replace(out[k], checks=found)
    return tuple(out)


def _given(agent: "Inception") -> Generator[None, None, Given]:
    """Yield after each step; return what the checks rest on."""
    train, every = agent.natural.train, len(agent.natural.stimuli)
    encoder = agent.encoder()
    most = MOST_IMAGES if isinstance(encoder, FeatureReadout) else MOST_OF_NETWORK
    some = np.linspace(0, train - 1, min(train, most)).round().astype(int).tolist()
    yield from agent.look([*some, *range(train, every)])
    fitted = np.stack([agent.seen(k) for k in some])
    yield
    held_out = np.stack([agent.seen(k) for k in range(train, every)])
    rows = [(image - train, rates) for image, rates in agent.test]
    linear = agent.known().linear
    if linear is None:
        raise RuntimeError("units were not chosen yet; they come before the checks of their images")
    yield
    return Given(encoder, fitted, held_out, table(rows, every - train, len(agent.units)), linear)
