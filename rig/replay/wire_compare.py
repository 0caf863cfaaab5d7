"""Responses of a session beside those of its replay over the wire, presentation by presentation.

Pure. Where the onset is a photodiode's edge the edge's sample is the onset, whatever the clock map says, so the two
must be equal; where it comes from the flip stamp, the map of that moment decides by a few samples, and a spike near the
end of a window may fall on the other side. Such differences are counted and held against the onset's stated bound.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from rig.messages import Document, Response

# What a response says of the neurons and of the image. Left out: the run's number and everything on the host clock,
# which go by arrivals, and those are measured anew.
COMPARED = (
    "proposal", "slot", "role", "stimulus_id", "source", "usable", "reason", "onset_source", "onset_sample",
    "window_start_sample", "window_end_sample", "coverage", "lost_messages", "measure", "units", "baseline_n",
)  # fmt: skip
BASELINE = {"baseline", "baseline_n", "rate_hz"}
TOO_VAGUE = "max_onset_uncertainty_s"  # in the reason of a response whose onset is known too badly
CUT_OFF = "the session was closed before its data were in"  # as rig.responses.windows says it
ARRAYS = ("count", "baseline", "rate_hz")


@dataclass
class Compared:
    """What the comparison found."""

    identical: int = 0
    by_edge: int = 0  # of all compared: with a photodiode's edge in both
    edge_different: list[str] = field(default_factory=list)  # by an edge, and yet different: must not be
    flip_within: int = 0  # differences that the stated bound of the onset explains
    pooled: int = 0  # only the baseline differs, which pools presentations that differ so
    flip_beyond: list[str] = field(default_factory=list)  # those that it does not explain
    other: list[str] = field(default_factory=list)  # one has an edge and the other has none, and the like
    only_one: list[str] = field(default_factory=list)
    restarts: int = 0  # other reasons for the same: not usable; the recording's source was started again
    cut_off: int = 0  # one of the two sessions ended before the data were in: nothing to compare

    @property
    def unexplained(self) -> list[str]:
        """Differences that how well an onset can be known does not explain."""
        return [*self.edge_different, *self.flip_beyond, *self.other, *self.only_one]

    @property
    def agrees(self) -> bool:
        """Whether every difference is explained by how well an onset can be known."""
        return not self.unexplained


def _differences(a: Response, b: Response) -> list[str]:
    names = [name for name in COMPARED if getattr(a, name) != getattr(b, name)]
    return names + [n for n in ARRAYS if not np.array_equal(getattr(a, n), getattr(b, n), equal_nan=True)]


def compare(
    recorded: Iterable[Document], replayed: Iterable[Document], rate_hz: float, whole: bool, restarted: bool = False
) -> Compared:
    """Compare all Responses of two sessions.

    `rate_hz`: samples per s of the scored device. `whole`: the recorded session was closed in order; one that was not
    may lack the responses to its last images. `restarted`: its source was started again on the way. That is replayed as
    a new acquisition of the device, so an image that was not usable then may be so for another reason; more is not
    explained by it.
    """
    before = {r.presentation: r for r in recorded if isinstance(r, Response)}
    after = {r.presentation: r for r in replayed if isinstance(r, Response)}
    found = Compared()
    for number in sorted(set(before) ^ set(after)):
        if number in after and not whole:
            found.cut_off += 1
            continue
        where = "recording" if number in before else "replay"
        found.only_one.append(f"presentation {number} has a response in the {where} only")
    for number in sorted(set(before) & set(after)):
        a, b = before[number], after[number]
        if CUT_OFF in (a.reason, b.reason) and a.reason != b.reason:
            found.cut_off += 1
            continue
        by_edge = a.onset_source == b.onset_source == "photodiode"
        found.by_edge += by_edge
        names = _differences(a, b)
        if not names:
            found.identical += 1
            continue
        if restarted and not a.usable and not b.usable:
            found.restarts += 1
            continue
        if found.flip_within and set(names) <= BASELINE:
            found.pooled += 1
        elif by_edge:
            found.edge_different.append(f"presentation {number}: {', '.join(names)}")
        else:
            _by_flip(found, a, b, names, rate_hz)
    return found


def _by_flip(found: Compared, a: Response, b: Response, names: list[str], rate_hz: float) -> None:
    """File a difference between two responses of which one at least has no edge."""
    words = f"presentation {a.presentation}: {', '.join(names)}"
    if a.onset_source != b.onset_source or a.onset_sample is None or b.onset_sample is None:
        found.other.append(f"{words} (onset from {a.onset_source}, now from {b.onset_source})")
        return
    off_ns = abs(a.onset_sample - b.onset_sample) * 1e9 / rate_hz
    bound_ns = (a.onset_uncertainty_ns or 0) + (b.onset_uncertainty_ns or 0)
    too_vague = a.usable != b.usable and TOO_VAGUE in a.reason + b.reason
    if off_ns <= bound_ns and (off_ns > 0 or too_vague):
        found.flip_within += 1
    else:
        found.flip_beyond.append(
            f"{words} (onset {off_ns * 1e-6:.3f} ms apart, stated bounds {bound_ns * 1e-6:.3f} ms)"
        )
