"""The part of the twin's picture that some units see: what lies beyond it changes none of their responses."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from models.encoders.network import Network
from models.encoders.readouts import Point
from rig.config.encoders import PointReadout

MARGIN_PX = 2  # around what the units see: a network that learns them may be off by a pixel


def window(twin: Network, units: Sequence[int]) -> Network:
    """Return `twin` with `units` alone, and with the pixels alone that one of them sees; its responses are the same.

    `units`: columns of the twin's responses; so is the order of the units returned. Raises TypeError for a readout
    that is not of points, ValueError for a core whose features see more than a window.
    """
    readout, field, eye = twin.of(twin.session).readout, twin.core.field, twin.eye
    if not isinstance(readout, Point):
        raise TypeError(f"a point readout is needed, not {type(readout).__name__}")
    if field is None or field.step != 1:
        raise ValueError("a core is needed whose features see a window of the picture, one for each pixel")
    seen = [twin.seen(unit) for unit in units]
    top = max(0, min(one.y0 for one in seen) - MARGIN_PX)
    bottom = min(eye.height, max(one.y1 for one in seen) + MARGIN_PX)
    left = max(0, min(one.x0 for one in seen) - MARGIN_PX)
    right = min(eye.width, max(one.x1 for one in seen) + MARGIN_PX)
    names = tuple(twin.units[unit] for unit in units)
    made = twin.architecture.model_copy(update={"readout": PointReadout()})  # points of their own, not from cortex
    small = Network(made, replace(eye, height=bottom - top, width=right - left), {twin.session: names})
    rows, part = torch.tensor(list(units)), small.of(small.session)
    points = part.readout
    assert isinstance(points, Point)  # noqa: S101 - as asked for
    with torch.no_grad():
        small.core.load_state_dict(twin.core.state_dict())
        part.scale.copy_(twin.of(twin.session).scale[rows])
        for name in ("features", "bias", "sigma"):
            points.get_parameter(name).copy_(readout.get_parameter(name)[rows])
        before, after = (torch.tensor([one.shape[2] - 1, one.shape[1] - 1]) for one in (readout, points))
        at = (readout.points(rows).clamp(-1, 1) + 1) / 2 * before - torch.tensor([left, top])
        points.mu.copy_(at / after.clamp(min=1) * 2 - 1)  # a single feature is at 0 / 1
    return small.eval().requires_grad_(False)
