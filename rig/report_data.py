"""Reads `session.h5` for the report: presentations joined with their responses, spikes around onsets, frames.

Used by `rig.report` and `rig.report_figures`; reads the finished file only, never the journal.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from rig.messages import RATE_UNITS
from rig.view_columns import FORMAT, FORMAT_VERSION, NO_TIME

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Texts = npt.NDArray[np.str_]
Marks = npt.NDArray[np.bool_]

LEAST_PAIRS = 10
LEAST_SPAN_NS = 20_000_000_000  # a drift over less time is mostly the scatter of the arrivals
ARRIVES_WITHIN_NS = 20_000_000_000  # tells spikes of this acquisition run from equal samples of another one


class NotASession(ValueError):
    """The file is not a session view this program can read; the message names the cure."""


@dataclass(frozen=True)
class FaultRow:
    """One fault, as it was said."""

    sender: str
    what: str
    detail: str
    done: str
    receipt_host_ns: int


@dataclass(frozen=True)
class Drift:
    """How one device's clock ran against the host clock in one acquisition run."""

    source: str
    ppm: float  # positive: the device counts faster than its nominal rate
    pairs: int
    minutes: F64  # since the first pair
    offset_ms: F64  # host minus nominal device time of the quickest pair of each stretch


class Session:
    """A session as the report sees it. Arrays have one element (or row) per presentation."""

    def __init__(self, file: h5py.File) -> None:
        """Read everything but spikes and pixels, which are read when asked for."""
        if file.attrs.get("format") != FORMAT or file.attrs.get("format_version") != FORMAT_VERSION:
            raise NotASession(f"{file.filename} is not a session file of this program; make it with stimloop recover")
        self._file = file
        self.name = str(file.attrs["session"])
        self.config_yaml = str(file.attrs["config_yaml"])
        self.config: dict[str, Any] = json.loads(file.attrs["config"] or "{}")
        self.subject: dict[str, str] = json.loads(file.attrs["subject"] or "{}")
        self.versions: dict[str, str] = json.loads(file.attrs["versions"] or "{}")
        self.commit, self.dirty = str(file.attrs["commit"]), str(file.attrs["dirty"])
        self.start_host_ns, self.start_utc_ns = int(file.attrs["start_host_ns"]), int(file.attrs["start_utc_ns"])
        self.simulated = bool(file.attrs["simulated"])
        self.closed_in_order, self.stop_reason = bool(file.attrs["closed_in_order"]), str(file.attrs["stop_reason"])
        self._read_presentations()
        self._read_responses()
        self._read_stimuli()
        texts = {c: self._texts(f"faults/{c}") for c in ("sender", "what", "detail", "done")}
        when = file["faults/receipt_host_ns"][:]
        self.faults = [
            FaultRow(**{c: str(t[k]) for c, t in texts.items()}, receipt_host_ns=int(when[k])) for k in range(len(when))
        ]

    def _texts(self, path: str) -> Texts:
        return np.array(self._file[path].asstr()[:], dtype=np.str_)

    def _read_presentations(self) -> None:
        table = self._file["presentations"]
        self.presentation: I64 = table["presentation"][:]
        self.phase: I64 = table["phase"][:]
        self.generation: I64 = table["generation"][:]
        self.role = self._texts("presentations/role")
        self.stimulus_id = self._texts("presentations/stimulus_id")
        self.frame: I64 = table["frame"][:]
        self.due_host_ns: I64 = table["due_host_ns"][:]
        self.onset_flip_host_ns: I64 = table["onset_flip_host_ns"][:]
        self.offset_flip_host_ns: I64 = table["offset_flip_host_ns"][:]
        self.late_flips: I64 = table["late_flips"][:]
        self.dropped_frames: I64 = table["dropped_frames"][:]
        self.complete: Marks = table["complete"][:]
        self.flips = len(self._file["flips/flip_host_ns"])

    def _read_responses(self) -> None:
        table, count = self._file["responses"], len(self.presentation)
        self.units = self._texts("responses/units").tolist()
        row_of = {int(p): k for k, p in enumerate(table["presentation"][:])}
        at = np.array([row_of.get(int(p), -1) for p in self.presentation], dtype=np.int64)
        self.answered: Marks = at >= 0

        def joined(values: npt.NDArray[Any], missing: Any) -> Any:
            out = np.full((count, *values.shape[1:]), missing, dtype=values.dtype)
            out[self.answered] = values[at[self.answered]]
            return out

        self.usable: Marks = joined(table["usable"][:], False)
        self.reason: Texts = joined(self._texts("responses/reason").astype("U300"), "no response in the log")
        self.onset_source: Texts = joined(self._texts("responses/onset_source").astype("U20"), "none")
        self.onset_sample: I64 = joined(table["onset_sample"][:], NO_TIME)
        self.uncertainty_ns: I64 = joined(table["onset_uncertainty_ns"][:], NO_TIME)
        self.host_uncertainty_ns: I64 = joined(table["onset_host_uncertainty_ns"][:], NO_TIME)
        self.flip_to_edge_ns: I64 = joined(table["flip_to_edge_ns"][:], NO_TIME)
        self.coverage: F64 = joined(table["coverage"][:], 0.0)
        self.rate_hz: F64 = joined(table["rate_hz"][:], np.nan)
        self.rate_hz[~self.usable] = np.nan
        measures = self._texts("responses/measure")
        self.rate_unit = RATE_UNITS[str(measures[0]) if len(measures) else "spikes"]
        sources = self._texts("responses/source")
        self.source = str(sources[0]) if len(sources) else ""

    def _read_stimuli(self) -> None:
        """Note the agent of each phase, the generation that made each stimulus, and the frame each was drawn with."""
        proposals = self._file["model/proposals"]
        agents = self._texts("model/proposals/agent")
        self.agents = {int(p): str(a) for p, a in zip(proposals["phase"][:], agents, strict=True)}
        ids, made = self._texts("stimuli/stimulus_id"), self._file["stimuli/generation"][:]
        self.made_in = {str(i): int(g) for i, g in zip(ids, made, strict=True)}
        shown = zip(self.stimulus_id, self.frame, strict=True)
        self._frame_of = {str(i): int(f) for i, f in shown if f >= 0}

    # --- what the figures ask for

    def rates(self, unit: int, *, phase: int, role: str | None = None, stimulus: str | None = None) -> F64:
        """Return the usable rates of a unit over matching presentations, in their order, spikes/s."""
        chosen = self.usable & (self.phase == phase)
        if role is not None:
            chosen &= self.role == role
        if stimulus is not None:
            chosen &= self.stimulus_id == stimulus
        rates: F64 = self.rate_hz[chosen, unit]
        return np.asarray(rates[np.isfinite(rates)])

    def made_in_generation(self) -> I64:
        """Return, for each presentation, the generation that made its image, -1 if not known."""
        return np.array([self.made_in.get(str(i), -1) for i in self.stimulus_id], dtype=np.int64)

    def unit_of(self, phase: int) -> int:
        """Return the column of the unit that a phase is about: the evolved one, else the first."""
        phases = self.config.get("phases", [])
        name = phases[phase].get("unit") if 0 <= phase < len(phases) else None
        return self.units.index(name) if name in self.units else 0

    def picture(self, stimulus: str) -> npt.NDArray[np.uint8] | None:
        """Return the frame that was drawn for a stimulus, axes (y, x, rgb), None if the log has no frame of it."""
        at = self._frame_of.get(stimulus)
        if at is None:
            return None
        frames = self._file["stimuli/frames"]
        height, width, row = (int(frames[c][at]) for c in ("height", "width", "row"))
        pixels: npt.NDArray[np.uint8] = frames[f"images_{height}x{width}"][row]
        return pixels

    def sample_rate_hz(self, source: str) -> float:
        """Return the last nominal rate that a device stated, 0 if none."""
        names = self._texts("sources/name").tolist()
        if source not in names:
            return 0.0
        table = self._file["continuity"]
        rates = table["sample_rate_hz"][:][(table["source"][:] == names.index(source))]
        rates = rates[rates > 0]
        return float(rates[-1]) if len(rates) else 0.0

    def spikes_around(self, unit: str, rows: I64, window_s: tuple[float, float]) -> list[F64]:
        """Return, for each of the presentations `rows`, the spikes of a unit around its onset, in s from the onset."""
        rate = self.sample_rate_hz(self.source)
        units, sources = self._texts("units/name"), self._texts("sources/name")
        scored = np.flatnonzero((units == unit) & (sources[self._file["units/source"][:]] == self.source))
        if not len(scored) or rate <= 0:
            return [np.empty(0) for _ in rows]
        chosen = self._file["spikes/unit"][:] == scored[0]
        sample, arrival = self._file["spikes/sample"][:][chosen], self._file["spikes/arrival_host_ns"][:][chosen]
        order = np.argsort(sample, kind="stable")
        sample, arrival = sample[order], arrival[order]
        found = []
        for k in rows:
            onset = int(self.onset_sample[k])
            lo, hi = np.searchsorted(sample, [onset + window_s[0] * rate, onset + window_s[1] * rate])
            near = np.abs(arrival[lo:hi] - self.onset_flip_host_ns[k]) < ARRIVES_WITHIN_NS
            found.append((sample[lo:hi][near] - onset) / rate)
        return found

    def lateness_ms(self) -> F64:
        """Return how late each onset flip was against its due time, ms."""
        return (self.onset_flip_host_ns - self.due_host_ns) / 1e6

    def drifts(self) -> list[Drift]:
        """Return the drift of each device and run with enough pairs: a line under the arrivals of the whole run."""
        table = self._file["clocks"]
        sample, host = table["device_sample"][:], table["pair_host_ns"][:]
        run, source = table["run"][:], table["source"][:]
        out = []
        for number, name in enumerate(self._texts("sources/name").tolist()):
            rate = self.sample_rate_hz(name)
            for r in np.unique(run[source == number]):
                here = (source == number) & (run == r)
                span_ns = np.ptp(host[here]) if here.any() else 0
                if len(np.unique(host[here])) >= LEAST_PAIRS and span_ns >= LEAST_SPAN_NS and rate > 0:
                    out.append(_drift(name, sample[here], host[here], rate))
        return out


def _drift(source: str, sample: I64, host: I64, rate_hz: float) -> Drift:
    """Lay a line under the pairs of a run: a message is often late and never early."""
    elapsed_ns = (host - host[0]).astype(np.float64)
    offset_ns = elapsed_ns - (sample - sample[0]) / rate_hz * 1e9
    stretches = np.array_split(np.arange(len(sample)), min(100, max(2, len(sample) // 5)))
    quick = np.array([s[np.argmin(offset_ns[s])] for s in stretches])
    # the offset falls while the device counts faster than its nominal rate
    ppm = -1e6 * _slope_below(elapsed_ns, offset_ns)
    return Drift(source, ppm, len(sample), elapsed_ns[quick] / 60e9, (offset_ns[quick] - offset_ns[quick[0]]) / 1e6)


def _slope_below(x: F64, y: F64) -> float:
    """Return the slope of the line below all points with the least summed distance: an edge of their lower hull."""
    hull: list[int] = []
    for k in np.unique(x, return_index=True)[1]:
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[k] - x[b]) < (y[k] - y[b]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(int(k))
    right = int(np.clip(np.searchsorted(x[hull], np.mean(x)), 1, len(hull) - 1))
    a, b = hull[right - 1], hull[right]
    return float((y[b] - y[a]) / (x[b] - x[a]))


@contextmanager
def open_session(path: Path) -> Iterator[Session]:
    """Open a session file for reading."""
    with h5py.File(path, "r") as file:
        yield Session(file)
