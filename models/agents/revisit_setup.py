"""Makes the revisit agent of a phase, from what was taken of the other day's session when the config was read.

Called by the builder.
"""

import base64
import io

import numpy as np
from PIL import Image as Picture

from models.agents.carried import placed_id
from models.agents.revisit import Again, Revisit, Shared
from models.agents.types import U8
from models.statistics import shared_images
from rig.config.revisit import MadeThen, RevisitPhase
from stimuli.spec import BankImage, LatentImage, Place, Stimulus

HOW = "{kind} made for {unit} in session {session}"


def build_revisit(
    phase: RevisitPhase,
    phase_index: int,
    units: tuple[str, ...],
    shape: tuple[int, int],
    rng: np.random.Generator,
    place: Place | None,
) -> Revisit:
    """Return the agent; `shape`: height and width of its images, pixels. Raises ValueError."""
    where, taken = f"phases.{phase_index}", phase.taken
    if taken is None:
        raise ValueError(f"{where}.taken: not filled in; start it with stimloop run, demo or check")
    column = {name: k for k, name in enumerate(units)}
    before = {name: k for k, name in enumerate(taken.units)}
    ours = [one for one in taken.images if one.unit in phase.units]
    names = [one.id for one in taken.shared]
    if len(shared_images(names, names, {of for one in ours for of in (one.id, *one.of)})) < len(names):
        raise ValueError(f"{where}.taken: an image that is to be tested is among those that verify who is who")
    shared = tuple(
        Stimulus(id=placed_id(one.id, place, None), spec=BankImage(bank=one.bank, name=one.name))
        for one in taken.shared
    )
    means = np.frombuffer(base64.b64decode(taken.means_base64), "<f8").reshape(len(shared), len(taken.units))
    pairs = tuple((before[name], column[today]) for name, today in phase.units.items())
    images = [
        _again(one, f"p{phase_index}", column[phase.units[one.unit]], taken.session, shape, where) for one in ours
    ]
    return Revisit(phase, Shared(shared, means.astype(np.float64), pairs), images, units, shape, rng, place)


def _again(one: MadeThen, prefix: str, unit: int, session: str, shape: tuple[int, int], where: str) -> Again:
    frame = _frame(one)
    if frame.shape[:2] != shape:
        raise ValueError(
            f"{where}: images of session {session} are {frame.shape[0]} x {frame.shape[1]} pixels, here they would be "
            f"{shape[0]} x {shape[1]}; use the display, distance and image size of that day"
        )
    stimulus = Stimulus(
        id=f"{prefix}-u{unit}-{one.kind}",
        spec=LatentImage(generator=f"revisit-{session}"[:80], row=0),
        parents=one.of,
        how=HOW.format(kind=one.kind, unit=one.unit, session=session)[:200],
    )
    return Again(unit, one.kind, stimulus, frame, one.mean_hz)


def _frame(one: MadeThen) -> U8:
    """Return the frame (y, x, rgb)."""
    with Picture.open(io.BytesIO(base64.b64decode(one.frame_png_base64))) as picture:
        return np.array(picture.convert("RGB"), np.uint8)
