"""The gaze that a fixation gate will judge: where it lies, how it scatters, how often it is seen."""

from collections.abc import Iterator

import numpy as np

from rig.config.outputs import Fixation
from rig.config.session import Config
from rig.messages import BehaviourBlock
from rig.preflight.result import Result
from rig.preflight.sources import Heard
from rig.responses.fixation import gaze_deg, within

FARTHEST_DEG = 60.0  # no eye turns so far, and no stimulus screen reaches there
MISSING_WARN = 0.3  # share of rows without gaze
CURE = (
    "set gates.fixation.gain and offset_deg (degrees = gain * channel + offset_deg, 0 at the screen's centre, right "
    "and up positive), or let the tracker send degrees"
)


def gaze(name: str, config: Config, heard: Heard) -> Iterator[Result]:
    """Yield what is to be said about the gaze, if the fixation gate looks at the source `name`."""
    fixation = config.gates.fixation
    if fixation is None or fixation.source != name:
        return
    found = [gaze_deg(fixation, block) for block in heard.all(name, BehaviourBlock)]
    rows = [one for one in found if one is not None]
    if rows:  # without the channels it was said already
        yield _judged(f"source {name} gaze", np.concatenate(rows), fixation)


def _judged(title: str, rows: np.ndarray, fixation: Fixation) -> Result:
    seen = rows[np.isfinite(rows).all(axis=1)]
    missing = 1 - len(seen) / max(len(rows), 1)
    if not len(seen):
        cure = "see that the tracker sees the eye: light, focus, threshold"
        return Result(title, "fail", f"not one of {len(rows)} rows has a gaze", cure)
    middle = np.median(seen, axis=0)
    low, high = np.quantile(seen, [0.05, 0.95], axis=0)
    inside = float(within(fixation, seen).mean())
    at = f"({middle[0]:.3g}, {middle[1]:.3g})"
    said = (
        f"median {at} degrees, 90 % within {high[0] - low[0]:.2g} x {high[1] - low[1]:.2g} degrees, {inside:.0%} "
        f"within {fixation.radius_deg:g} degrees of ({fixation.center_deg[0]:g}, {fixation.center_deg[1]:g}), "
        f"{missing:.0%} missing"
    )
    if np.abs(middle).max() > FARTHEST_DEG:
        said = f"median {at}: these are not degrees; {inside:.0%} inside the window, {missing:.0%} missing"
        return Result(title, "fail", said, CURE)
    if seen.min() >= 0 and seen.max() <= 1 and fixation.gain == (1.0, 1.0):
        problem = "all values lie between 0 and 1: these look like fractions of the screen, not degrees"
        return Result(title, "warn", f"{problem}; {said}", CURE)
    if np.ptp(seen, axis=0).max() == 0 and len(seen) > 1:
        cure = "see that the tracker runs and sends the eye's own position"
        return Result(title, "warn", f"it never moves; {said}", cure)
    if missing > MISSING_WARN:
        cure = "see that the tracker sees the eye; a response without gaze is not usable (max_gap_s)"
        return Result(title, "warn", said, cure)
    if inside == 0:
        cure = f"if the animal fixates now: calibrate the tracker, or {CURE}"
        return Result(title, "warn", said, cure)
    return Result(title, "ok", said)
