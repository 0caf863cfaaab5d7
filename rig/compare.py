"""Compares a session with the truth of the simulated animal: onset errors, and noise-free responses.

Used by the demo and the benches, after the session. The controller itself never reads the truth.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rig.animal.truth_log import Truth, read
from rig.messages import (
    Entry,
    Fault,
    Presented,
    Proposal,
    Response,
    TrialIntent,
)
from rig.recording.journal import read_all

KINDS = frozenset({"trial_intent", "proposal", "presented", "response", "fault"})
PAIRING_NS = 40_000_000
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """One row per presentation that the animal saw."""

    entries: list[Entry]
    shown: list[Presented]
    responses: dict[int, Response]
    place: dict[int, tuple[int, int]]
    """Proposal -> phase and generation."""
    true_onset_ns: dict[int, int]
    """Presentation -> host time at which the animal's photodiode saw it."""
    true_rate_hz: dict[int, F64]
    """Presentation -> noise-free rate of each unit for the image that the eye saw, spikes/s."""
    units: tuple[str, ...]

    def of_role(self, role: str, phase: int, generation: int | None = None) -> list[Presented]:
        """Return the presentations of a role in a phase that the animal saw, of one generation or of all."""
        return [
            p
            for p in self.shown
            if p.role == role
            and p.presentation in self.true_rate_hz
            and self.place[p.proposal][0] == phase
            and (generation is None or self.place[p.proposal][1] == generation)
        ]

    def generations(self, phase: int) -> list[int]:
        """Return the generations of a phase of which anything was shown."""
        shown = {self.place[p.proposal] for p in self.shown}
        return sorted(g for k, g in shown if k == phase)

    def mean_rate(self, unit: str, role: str, phase: int, generation: int | None = None) -> float:
        """Return the mean noise-free rate of a unit, spikes/s, spontaneous rate included; NaN if nothing was shown."""
        k = self.units.index(unit)
        rates = [float(self.true_rate_hz[p.presentation][k]) for p in self.of_role(role, phase, generation)]
        return float(np.mean(rates)) if rates else float("nan")

    def best_image(self, unit: str, role: str, phase: int) -> tuple[str, float]:
        """Return the shown image of a role with the highest noise-free rate, and that rate in spikes/s."""
        k = self.units.index(unit)
        rows = [(p.stimulus_id, float(self.true_rate_hz[p.presentation][k])) for p in self.of_role(role, phase)]
        return max(rows, key=lambda row: row[1], default=("none", float("nan")))


def _nearest(times: npt.NDArray[np.int64], t: int, within: int) -> int | None:
    """Return the index of the time nearest to `t`, None if it is farther than `within`."""
    if len(times) == 0:
        return None
    k = int(np.searchsorted(times, t))
    best = min((j for j in (k - 1, k) if 0 <= j < len(times)), key=lambda j: abs(int(times[j]) - t))
    return best if abs(int(times[best]) - t) <= within else None


def compare(folder: Path, truth_folder: Path) -> Compared:
    """Join the journal of a session with the truth of the animal, by time on their common host clock."""
    entries = read_all(folder / "session.journal", KINDS)
    truth: Truth = read(truth_folder)
    shown = [e.document for e in entries if isinstance(e.document, Presented)]
    responses = {e.document.presentation: e.document for e in entries if isinstance(e.document, Response)}
    proposals = [e.document for e in entries if isinstance(e.document, Proposal)]
    place = {p.proposal: (p.phase, p.generation) for p in proposals}
    rising = truth.edge_host_ns[truth.edge_state == 1]
    onset: dict[int, int] = {}
    rate: dict[int, F64] = {}
    for p in shown:
        k = _nearest(rising, p.onset_flip_host_ns, PAIRING_NS)
        if k is None:
            continue
        onset[p.presentation] = int(rising[k])
        middle = int(rising[k]) + (p.offset_flip_host_ns - p.onset_flip_host_ns) // 2
        seen = int(np.searchsorted(truth.image_host_ns, middle, side="right")) - 1
        if seen >= 0:
            rate[p.presentation] = truth.rates[seen]
    return Compared(entries, shown, responses, place, onset, rate, truth.units)


def percentiles_ms(errors_ns: list[int]) -> tuple[float, float]:
    """Return median and 99th percentile of |errors| in ms; NaN without data."""
    if not errors_ns:
        return float("nan"), float("nan")
    p50, p99 = np.percentile(np.abs(np.array(errors_ns, dtype=np.float64)), [50, 99]) / 1e6
    return round(float(p50), 4), round(float(p99), 4)


def onset_figures(compared: Compared) -> dict[str, float | int]:
    """Return the errors of onset times against the truth, and how many presentations are accounted for.

    `presentations` are those that the rig announced before showing them. Accounted for = shown, with exactly one
    Response; or named by a Fault as announced and not shown.
    """
    edge, flip = [], []
    for p in compared.shown:
        true = compared.true_onset_ns.get(p.presentation)
        response = compared.responses.get(p.presentation)
        if true is None:
            continue
        flip.append(p.onset_flip_host_ns - true)
        if response is not None and response.onset_source == "photodiode" and response.onset_host_ns is not None:
            edge.append(response.onset_host_ns - true)
    documents = [e.document for e in compared.entries]
    announced = {n for d in documents if isinstance(d, TrialIntent) for n in d.presentations}
    answers = [d.presentation for d in documents if isinstance(d, Response)]
    answered = {n for n, times in Counter(answers).items() if times == 1}
    shown = {p.presentation for p in compared.shown}
    named = {n for d in documents if isinstance(d, Fault) for n in d.presentations} - shown
    edge50, edge99 = percentiles_ms(edge)
    flip50, flip99 = percentiles_ms(flip)
    return {
        "edge_error_ms_p50": edge50,
        "edge_error_ms_p99": edge99,
        "flip_error_ms_p50": flip50,
        "flip_error_ms_p99": flip99,
        "presentations": len(announced),
        "accounted_for": len(announced & ((shown & answered) | named)),
        "usable": sum(compared.responses[n].usable for n in answered),
        "with_photodiode_edge": len(edge),
    }
