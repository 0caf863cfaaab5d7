"""Reads `session.h5` for the report: presentations joined with their responses, spikes around onsets, frames.

Used by `rig.report.page` and `rig.report.figures`; reads the finished file only, never the journal.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from rig.clocks.clockfit import Run, figures
from rig.messages import RATE_UNITS, ClockSample
from rig.view.columns import FORMAT, FORMAT_VERSION, NO_TIME
from rig.view.fold import ORIGINS

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Texts = npt.NDArray[np.str_]
Marks = npt.NDArray[np.bool_]

LEAST_PAIRS = 10
LEAST_SPAN_NS = 20_000_000_000  # a drift over less time is mostly the scatter of the arrivals
BEST_FIRST = ("edge", "barcode", "round_trip", "arrival")
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
    since_host_ns: int
    presentations: tuple[int, ...]
    seq: int


@dataclass(frozen=True)
class RewardRow:
    """What became of one reward; `uncertain` is one that was cut short, or that no device confirmed."""

    what: Literal["given", "refused", "uncertain", "unanswered"]
    reason: str
    volume_ul: float


@dataclass(frozen=True)
class Drift:
    """How one device's clock ran against the host clock in one acquisition run."""

    source: str
    run: int
    ppm: float  # over the run; positive: the device counts faster than its nominal rate
    known_to_ppm: float  # bound on its error, 99 %
    range_ppm: float  # largest less smallest drift within the run
    methods: dict[str, int]  # pairs of each kind (docs/clocks.md)
    method: str  # of the pairs that are drawn
    minutes: F64  # since the first pair
    offset_ms: F64  # host minus nominal device time of the best pair of each stretch


class Session:
    """A session as the report sees it. Arrays have one element (or row) per presentation."""

    def __init__(self, file: h5py.File) -> None:
        """Read everything but spikes and pixels, which are read when asked for."""
        if file.attrs.get("format") != FORMAT or file.attrs.get("format_version") != FORMAT_VERSION:
            raise NotASession(f"{file.filename} is not a session file of this program; make it with stimloop recover")
        self._file = file
        self.aim = 1.0  # times the rate of the unit that a phase is about: the higher, the better the image
        self.name = str(file.attrs["session"])
        self.config_yaml = str(file.attrs["config_yaml"])
        self.config: dict[str, Any] = json.loads(file.attrs["config"] or "{}")
        self.subject: dict[str, str] = json.loads(file.attrs["subject"] or "{}")
        self.versions: dict[str, str] = json.loads(file.attrs["versions"] or "{}")
        self.commit, self.dirty = str(file.attrs["commit"]), str(file.attrs["dirty"])
        self.start_host_ns, self.start_utc_ns = int(file.attrs["start_host_ns"]), int(file.attrs["start_utc_ns"])
        self.simulated = bool(file.attrs["simulated"])
        self.closed_in_order, self.stop_reason = bool(file.attrs["closed_in_order"]), str(file.attrs["stop_reason"])
        self.origins: dict[str, dict[str, Any]] = {
            name: json.loads(said) for name in ORIGINS if (said := str(file.attrs[name]))
        }
        self._read_presentations()
        self._read_responses()
        self._read_stimuli()
        texts = {c: self._texts(f"faults/{c}") for c in ("sender", "what", "detail", "done")}
        when, since = file["faults/receipt_host_ns"][:], file["faults/since_host_ns"][:]
        seq = file["faults/seq"][:]
        touched = [tuple(json.loads(p)) for p in self._texts("faults/presentations")]
        self.faults = [
            FaultRow(**{c: str(t[k]) for c, t in texts.items()}, receipt_host_ns=int(when[k]),
                     since_host_ns=int(since[k]), presentations=touched[k], seq=int(seq[k]))
            for k in range(len(when))
        ]  # fmt: skip

    def column(self, path: str) -> I64:
        """Return a column of numbers of a table."""
        values: I64 = self._file[path][:]
        return values

    def texts(self, path: str) -> list[str]:
        """Return a column of texts of a table."""
        return [str(text) for text in self._texts(path)]

    def _texts(self, path: str) -> Texts:
        return np.array(self._file[path].asstr()[:], dtype=np.str_)

    def _read_presentations(self) -> None:
        table = self._file["presentations"]
        self.presentation: I64 = table["presentation"][:]
        self.phase: I64 = table["phase"][:]
        self.generation: I64 = table["generation"][:]
        self.proposal: I64 = table["proposal"][:]
        self.slot: I64 = table["slot"][:]
        self.role = self._texts("presentations/role")
        self.stimulus_id = self._texts("presentations/stimulus_id")
        self.frame: I64 = table["frame"][:]
        self.due_host_ns: I64 = table["due_host_ns"][:]
        self.onset_flip_host_ns: I64 = table["onset_flip_host_ns"][:]
        self.offset_flip_host_ns: I64 = table["offset_flip_host_ns"][:]
        self.late_flips: I64 = table["late_flips"][:]
        self.dropped_frames: I64 = table["dropped_frames"][:]
        self.complete: Marks = table["complete"][:]
        # (presentation, 3) centre right and up, and size of the image, degrees; NaN: as the config's `stimulus` says.
        self.place: F64 = np.column_stack([table[c][:] for c in ("center_x_deg", "center_y_deg", "size_deg")])
        known = "refused" in table  # not in a file that an older version made
        self.refused: Marks = self._texts("presentations/refused") != "" if known else np.zeros_like(self.complete)
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
        self.reason: Texts = joined(self._texts("responses/reason").astype("U600"), "no response in the log")
        self.onset_source: Texts = joined(self._texts("responses/onset_source").astype("U20"), "none")
        self.run: I64 = joined(table["run"][:], -1)
        self.onset_sample: I64 = joined(table["onset_sample"][:], NO_TIME)
        self.uncertainty_ns: I64 = joined(table["onset_uncertainty_ns"][:], NO_TIME)
        self.host_uncertainty_ns: I64 = joined(table["onset_host_uncertainty_ns"][:], NO_TIME)
        self.flip_to_edge_ns: I64 = joined(table["flip_to_edge_ns"][:], NO_TIME)
        self.coverage: F64 = joined(table["coverage"][:], 0.0)
        self.rate_hz: F64 = joined(table["rate_hz"][:], np.nan)
        self.rate_hz[~self.usable] = np.nan
        measures = self._texts("responses/measure")
        self.measure = str(measures[0]) if len(measures) else "spikes"
        self.rate_unit = RATE_UNITS[self.measure]
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
        name = self.about(phase)
        return self.units.index(name) if name in self.units else 0

    def about(self, phase: int) -> str:
        """Return the name of the unit that a phase of the config names, "" if it names none."""
        phases = self.config.get("phases", [])
        return str(phases[phase].get("unit") or "") if 0 <= phase < len(phases) else ""

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

    def window_s(self, phase: int | None = None) -> tuple[float, float] | None:
        """Return the response window of a phase (None: the last), s: the config's, or what one before it locked."""
        window_s = self.config.get("responses", {}).get("window_s")
        ended = self._file["model/phases"]
        if "window_end_s" in ended:  # older files know of no such thing
            rows = zip(*(ended[name][:].tolist() for name in ("phase", "window_start_s", "window_end_s")), strict=True)
            for number, start, end in rows:
                if np.isfinite(end) and (phase is None or number < phase):
                    window_s = start, end
        return None if window_s is None else (window_s[0], window_s[1])

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

    def traces_around(self, unit: str, rows: I64, window_s: tuple[float, float]) -> list[tuple[F64, F64]]:
        """Return, for each of the presentations `rows`, times in s from its onset and values of a unit's trace there.

        Values are raw counts, or fluorescence less the fraction of the neuropil that the config subtracts.
        """
        rate, of_run = self.sample_rate_hz(self.source), self._traces_of(unit)
        found = []
        for k in rows:
            at, values = of_run.get(int(self.run[k]), (np.empty(0), np.empty(0)))
            lo, hi = np.searchsorted(at, [self.onset_sample[k] + edge * rate for edge in window_s])
            found.append(((at[lo:hi] - self.onset_sample[k]) / rate, values[lo:hi]))
        return found if rate > 0 else [(np.empty(0), np.empty(0)) for _ in rows]

    def _traces_of(self, unit: str) -> dict[int, tuple[F64, F64]]:
        """Return, for each run of the scored source, samples (when the unit was scanned) and values of its trace."""
        table, names = self._file["traces"], self._texts("sources/name").tolist()
        rate = self.sample_rate_hz(self.source)
        sources = {s["name"]: s for s in self.config.get("sources", [])}
        fraction = float(sources.get(self.source, {}).get("calcium", {}).get("neuropil", 0.0))
        parts: dict[int, list[tuple[F64, F64]]] = {}
        for source, run, path in zip(table["source"][:], table["run"][:], self._texts("traces/path"), strict=True):
            group = self._file[str(path)]
            units = group["units"].asstr()[:].tolist()
            if names[source] != self.source or unit not in units:
                continue
            column = units.index(unit)
            values = group["values"][:, column].astype(np.float64)
            if fraction and "neuropil" in group:
                values = values - fraction * group["neuropil"][:, column]
            at = group["sample"][:] + float(group["scan_offset_s"][column]) * rate
            parts.setdefault(int(run), []).append((at, values))
        joined = {run: tuple(np.concatenate(column) for column in zip(*p, strict=True)) for run, p in parts.items()}
        return {run: (at[np.argsort(at)], values[np.argsort(at)]) for run, (at, values) in joined.items()}

    def rewards(self) -> list[RewardRow]:
        """Return what became of each reward that was asked for."""
        asked = self._texts("outputs/requests/what") == "reward"
        table, answers = self._file["outputs/done"], {}
        columns = zip(
            self._texts("outputs/done/request"), table["done"][:], self._texts("outputs/done/reason"),
            table["volume_ul"][:], table["started_host_ns"][:], strict=True,
        )  # fmt: skip
        for request, done, reason, volume, started in columns:
            refused = not done and started == NO_TIME and not np.isfinite(volume)
            what: Literal["given", "refused", "uncertain"] = "given" if done else "refused" if refused else "uncertain"
            answers[str(request)] = RewardRow(what, str(reason), float(np.nan_to_num(volume)))
        none = RewardRow("unanswered", "the log has no answer", 0.0)
        return [answers.get(str(r), none) for r in self._texts("outputs/requests/request")[asked]]

    def lateness_ms(self) -> F64:
        """Return how late each onset flip was against its due time, ms."""
        return (self.onset_flip_host_ns - self.due_host_ns) / 1e6

    @cached_property
    def clock_methods(self) -> frozenset[str]:
        """Kinds of clock pairs of the scored source."""
        names = self._texts("sources/name").tolist()
        scored = self._file["clocks/source"][:] == (names.index(self.source) if self.source in names else -1)
        return frozenset(np.unique(self._texts("clocks/method")[scored]).tolist())

    @cached_property
    def _drifts(self) -> tuple[list[Drift], list[str]]:
        table = self._file["clocks"]
        columns = {c: table[c][:] for c in ("device_sample", "pair_host_ns", "round_trip_ns", "uncertainty_ns", "run")}
        source, methods = table["source"][:], self._texts("clocks/method")
        out, left_out = [], []
        for number, name in enumerate(self._texts("sources/name").tolist()):
            rate = self.sample_rate_hz(name)
            for r in np.unique(columns["run"][source == number]).tolist():
                here = np.flatnonzero((source == number) & (columns["run"] == r))
                host = columns["pair_host_ns"][here]
                of = f"{name}, run {r}: {len(here):,} clock {'pair' if len(here) == 1 else 'pairs'}"
                if len(np.unique(host)) < LEAST_PAIRS or np.ptp(host) < LEAST_SPAN_NS or rate <= 0:
                    left_out.append(f"{of} over {np.ptp(host) / 1e9:.0f} s, too few or too short a time")
                    continue
                rows = zip(*(columns[c][here].tolist() for c in columns), methods[here].tolist(), strict=True)
                drift = _drift(Run(name, r, rate, [_pair(name, *row) for row in rows]))
                if drift is None:
                    left_out.append(f"{of}, which tell no rate")
                else:
                    out.append(drift)
        return out, left_out

    @property
    def drifts(self) -> list[Drift]:
        """The drift of each device and run with enough pairs, as `stimloop clocks` gives it."""
        return self._drifts[0]

    @property
    def runs_without_drift(self) -> list[str]:
        """The other runs, and why no drift is stated for them."""
        return self._drifts[1]


def _pair(
    source: str, sample: float, host_ns: int, round_trip_ns: int, uncertainty_ns: int, run: int, method: str
) -> ClockSample:
    """Return a clock pair as it was journalled."""
    known: dict[str, Any] = {"round_trip_ns": round_trip_ns, "uncertainty_ns": uncertainty_ns}
    known = {name: value for name, value in known.items() if value != NO_TIME}
    pair = {"source": source, "run": run, "device_sample": sample, "pair_host_ns": host_ns, "method": method}
    return ClockSample.model_validate(pair | known)


def _drift(run: Run) -> Drift | None:
    """Return the drift of a run by the two-sided clock map, None where its pairs do not tell one."""
    row = figures(run)
    if row["drift_ppm"] is None:
        return None
    methods: dict[str, int] = row["pairs"]
    method = next((m for m in BEST_FIRST if methods.get(m, 0) >= LEAST_PAIRS), max(methods, key=lambda m: methods[m]))
    drawn = [p for p in run.pairs if p.method == method]
    elapsed_ns = np.array([p.pair_host_ns - drawn[0].pair_host_ns for p in drawn], dtype=np.float64)
    counted = np.array([p.device_sample - drawn[0].device_sample for p in drawn], dtype=np.float64)
    offset_ns = elapsed_ns - counted / run.rate_hz * 1e9
    # Of arrivals the lowest is the best: a message is often late and never early. Others state their own error.
    doubt = offset_ns if method == "arrival" else np.array([p.round_trip_ns or p.uncertainty_ns or 0 for p in drawn])
    stretches = np.array_split(np.arange(len(drawn)), min(100, max(2, len(drawn) // 5)))
    best = np.array([s[np.argmin(doubt[s])] for s in stretches])
    offset_ms = (offset_ns[best] - offset_ns[best[0]]) / 1e6
    told = (row["drift_ppm"], row["drift_known_to_ppm"], row["drift_range_ppm"])
    return Drift(run.source, run.run, *told, methods, method, elapsed_ns[best] / 60e9, offset_ms)


@contextmanager
def open_session(path: Path) -> Iterator[Session]:
    """Open a session file for reading."""
    with h5py.File(path, "r") as file:
        yield Session(file)
