"""What was lost on the way from device to journal, and whether the log says so; the sums of `stimloop bench loss`.

Pure: the device's truth and the entries of a journal in, figures out.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rig.messages import (
    Continuity,
    Entry,
    Fault,
    Response,
    SpikeBlock,
)

I64 = npt.NDArray[np.int64]
UNIT_SHIFT = 48  # unit and sample in one number
BEFORE_NS = 100_000_000  # a block is sent up to this long before or after the arrival of the one before


@dataclass(frozen=True)
class Truth:
    """Spikes of the device: unit index, sample as the wire calls it, stretch of one numbering, time of sending."""

    unit: I64
    sample: I64
    epoch: I64
    sent_host_ns: I64

    def since(self, host_ns: int) -> "Truth":
        """Return the spikes sent from a moment on."""
        keep = self.sent_host_ns >= host_ns
        return Truth(self.unit[keep], self.sample[keep], self.epoch[keep], self.sent_host_ns[keep])


@dataclass
class _Run:
    """What the journal holds of one run."""

    keys: list[I64] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    first_host_ns: int | None = None
    last_host_ns: int = 0
    epoch: int | None = None


@dataclass
class Journal:
    """The entries that matter."""

    runs: dict[int, _Run]
    faults: list[Fault]
    responses: list[Response]
    age_ms: list[float]


def _key(unit: Any, sample: Any) -> I64:
    return (np.asarray(unit, np.int64) << UNIT_SHIFT) + np.asarray(sample, np.int64)


def read(entries: Iterable[Entry], units: tuple[str, ...]) -> Journal:
    """Gather the journal's spikes, gaps, faults and responses."""
    index = {name: k for k, name in enumerate(units)}
    runs: defaultdict[int, _Run] = defaultdict(_Run)
    found = Journal(runs, [], [], [])
    for entry in entries:
        document = entry.document
        if isinstance(document, SpikeBlock):
            run = runs[document.run]
            number = np.array([index.get(name, -1) for name in document.units])[document.unit]
            known = number >= 0
            run.keys.append(_key(number[known], document.sample[known]))
            first, last = int(document.arrival_host_ns.min()), int(document.arrival_host_ns.max())
            run.first_host_ns = first if run.first_host_ns is None else run.first_host_ns
            run.last_host_ns = last
            found.age_ms.append((entry.envelope.receipt_host_ns - first) * 1e-6)
        elif isinstance(document, Continuity):
            runs[document.run].gaps += [(g.first_sample, g.end_sample) for g in document.gaps]
        elif isinstance(document, Fault):
            found.faults.append(document)
        elif isinstance(document, Response):
            found.responses.append(document)
    return found


def account(everything: Truth, since_host_ns: int, journal: Journal) -> dict[str, Any]:
    """Return sent, received, lost, lost_declared, repeated and, of the presentations, how many were scored wrongly.

    Spikes sent from `since_host_ns` on count; before, the source was still joining. `lost_declared`: every lost spike
    lies in a gap of the run in which it was due, and a fault with its time says so.
    """
    truth = everything.since(since_host_ns)
    lost = np.ones(len(truth.unit), dtype=bool)
    keys = _key(truth.unit, truth.sample)
    repeated = 0
    declared = np.zeros(len(keys), dtype=bool)
    before_ns = 0
    for _, run in sorted(journal.runs.items()):
        got = np.concatenate(run.keys) if run.keys else np.zeros(0, np.int64)
        repeated += len(got) - len(np.unique(got))
        shared = [int(np.isin(keys[truth.epoch == e], got).sum()) for e in range(int(truth.epoch.max(initial=0)) + 1)]
        run.epoch = int(np.argmax(shared)) if max(shared) else None
        mine = truth.epoch == run.epoch
        lost[mine] &= ~np.isin(keys[mine], got)
        for first, end in run.gaps:
            inside = mine & (truth.sample >= first) & (truth.sample < end)
            if first == 0:  # before a run there is nothing: this excuses nothing of the run before
                inside &= truth.sent_host_ns >= before_ns - BEFORE_NS
            declared |= inside
        before_ns = max(before_ns, run.last_host_ns)
    told = any(f.since_host_ns is not None for f in journal.faults)
    return {
        "sent": len(keys),
        "received": int((~lost).sum()),
        "lost": int(lost.sum()),
        "lost_declared": bool(not lost.any() or (told and bool(declared[lost].all()))),
        "undeclared": int((lost & ~declared).sum()),
        "repeated": repeated,
        **_presentations(everything, journal),
    }


def _presentations(truth: Truth, journal: Journal) -> dict[str, int]:
    """Compare the counts of usable responses with the truth in the same interval of device samples."""
    usable = wrong = 0
    index = {name: k for k, name in enumerate(journal.responses[0].units)} if journal.responses else {}
    for response in journal.responses:
        run = journal.runs.get(response.run if response.run is not None else -1)
        if not response.usable or run is None or run.epoch is None:
            continue
        start, end = response.window_start_sample or 0, response.window_end_sample or 0
        usable += 1
        inside = (truth.epoch == run.epoch) & (truth.sample >= start) & (truth.sample < end)
        true = np.bincount(truth.unit[inside], minlength=len(index))[: len(index)]
        wrong += not np.array_equal(true, response.count)
    return {"presentations": len(journal.responses), "usable": usable, "wrong": wrong}
