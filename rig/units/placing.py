"""Which runs of the session a sorted recording holds: told by sample numbers, and proven by the spikes.

One recording may hold several runs: where stimloop's receiver was started again the device ran through, with one
sample counter and one file. And several recordings may be of one run. Where the counter began anew, both begin with the
same numbers; then the correlogram (`rig.units.joining.check`) tells which run a recording is of. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rig.units.joining import Stretch, check, to_samples
from rig.units.phy import UnitsError

I64 = npt.NDArray[np.int64]
Recording = list[Stretch]  # consecutive samples of one recording, in order; the run in them is not known yet


@dataclass(frozen=True)
class Seen:
    """One run of the scored device as the session saw it."""

    run: int  # as the journal numbers it
    index: int  # as the user does: from 0
    first: int  # samples
    last: int
    online: I64  # (spike,) ascending, of all units that were seen online


@dataclass(frozen=True)
class Placed:
    """Where the sorted file lies in the session."""

    parts: list[Stretch]
    left_out: dict[int, str]  # run: why no recording holds it


def place(
    recordings: Sequence[Recording],
    seen: Sequence[Seen],
    chosen: I64,
    named: Sequence[int],
    checked: bool,
    rate_hz: float,
) -> Placed:
    """Return which run each stretch of the sorted file is of.

    `chosen` (spike,): file samples of the spikes to import. `named`: runs that the user named, counted from 0: one for
    each recording, or all of the only one. Raises UnitsError.
    """
    pairs = _named(recordings, seen, named) if named else _overlapping(recordings, seen)
    left_out = {s.run: "its samples are not in the sorted file" for s in seen}
    if checked:
        wrong: list[tuple[Seen, UnitsError]] = []
        fitting = []
        for k, one in pairs:
            at = _samples(recordings[k], chosen)
            try:
                check(one.online, at, rate_hz)
                fitting.append((k, one))
            except UnitsError as error:
                wrong.append((one, error))
        if wrong and (named or not fitting):
            raise max(wrong, key=lambda w: len(w[0].online))[1]
        left_out |= {one.run: str(error) for one, error in wrong}
        pairs = fitting
    for _, one in pairs:
        left_out.pop(one.run, None)
    return Placed(_parts(recordings, pairs), left_out)


def _named(recordings: Sequence[Recording], seen: Sequence[Seen], named: Sequence[int]) -> list[tuple[int, Seen]]:
    if beyond := [n for n in named if not 0 <= n < len(seen)]:
        raise UnitsError(f"--run {beyond[0]}: the session has {len(seen)} acquisition runs, 0 to {len(seen) - 1}")
    if len(recordings) == 1:
        return [(0, seen[n]) for n in sorted(set(named))]
    if len(named) != len(recordings):
        raise UnitsError(
            f"--run names {len(named)} runs for {len(recordings)} recordings; name the run of each, in their order"
        )
    return [(k, seen[n]) for k, n in enumerate(named)]


def _overlapping(recordings: Sequence[Recording], seen: Sequence[Seen]) -> list[tuple[int, Seen]]:
    """Return the pairs that share samples; where none does, all of them: the check tells by how much they are off."""
    pairs = [(k, s) for k in range(len(recordings)) for s in seen]
    shared = [(k, s) for k, s in pairs if any(_meet(p, s) for p in recordings[k])]
    return shared or pairs


def _meet(part: Stretch, one: Seen) -> bool:
    return part.first_sample <= one.last and part.first_sample + part.length > one.first


def _samples(recording: Recording, chosen: I64) -> I64:
    """Return the device samples of those spikes (spike,) that lie in a recording."""
    first, last = recording[0].file_first, recording[-1].file_first + recording[-1].length
    inside = chosen[(chosen >= first) & (chosen < last)]
    return to_samples(inside, recording)[1]


def _parts(recordings: Sequence[Recording], pairs: Sequence[tuple[int, Seen]]) -> list[Stretch]:
    """Return the stretches with their runs; a recording of several runs is divided where each run began."""
    out: list[Stretch] = []
    for k, recording in enumerate(recordings):
        runs = sorted((s for j, s in pairs if j == k), key=lambda s: s.first)
        for one, following in pairwise(runs):
            if following.first < one.last:  # watermarks: data lie before them
                raise UnitsError(
                    f"runs {one.index} and {following.index} of the session count the same samples, and one recording "
                    "cannot hold both; name the one that it holds with --run"
                )
        for j, one in enumerate(runs):
            low = one.first if j else -(1 << 62)
            high = runs[j + 1].first if j + 1 < len(runs) else 1 << 62
            out += [cut for part in recording if (cut := _cut(part, one.run, low, high)) is not None]
    for a, b in pairwise(sorted(out, key=lambda p: (p.run, p.first_sample))):
        if a.run == b.run and a.first_sample + a.length > b.first_sample:
            raise UnitsError(
                f"two recordings hold sample {b.first_sample} of the same run; name the run of each with --run"
            )
    return sorted(out, key=lambda p: p.file_first)


def _cut(part: Stretch, run: int, low: int, high: int) -> Stretch | None:
    """Return the samples from `low` to `high` of a stretch, of a run."""
    first, end = max(part.first_sample, low), min(part.first_sample + part.length, high)
    if first >= end:
        return None
    return replace(
        part, run=run, file_first=part.file_first + first - part.first_sample, first_sample=first, length=end - first
    )
