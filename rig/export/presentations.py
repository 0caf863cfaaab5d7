"""The presentations of a session joined with their responses, trials and times: one row each, in order of onset.

Used by the NWB and the CSV export, so that both say the same. Matrices over units are read row by row when asked for.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rig.export.session_file import SessionView
from rig.export.times import Clocks
from rig.view.columns import NO_TIME

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
PER_UNIT = ("count", "baseline", "rate_hz")


@dataclass(frozen=True)
class Field:
    """One column of a table to be exported; `values` has one element per row, `ends` makes the rows ragged."""

    name: str
    unit: str
    description: str
    values: Any
    ends: npt.NDArray[np.uint64] | None = None


class Presentations:
    """All presentations, sorted by onset."""

    def __init__(self, view: SessionView, clocks: Clocks) -> None:
        """Join and time them."""
        self.view, self.clocks = view, clocks
        self.units = view.texts("responses/units")
        row_of = {int(p): k for k, p in enumerate(view.column("responses/presentation").tolist())}
        shown = view.column("presentations/presentation")
        response = np.array([row_of.get(int(p), -1) for p in shown], dtype=np.int64)
        onset = self._onsets(response)
        self.order = np.argsort(onset, kind="stable")
        self.onset_s = onset[self.order]
        self.response = response[self.order]
        """Row of /responses of each presentation, -1 where the log has none."""
        flips = [self.of_shown(f"{edge}_flip_host_ns") for edge in ("onset", "offset")]
        self.stop_s = self.onset_s + np.maximum(flips[1] - flips[0], 0) / 1e9

    def __len__(self) -> int:
        """Return the number of presentations."""
        return len(self.order)

    def of_shown(self, column: str) -> npt.NDArray[Any]:
        """Return a column of /presentations, in order of onset."""
        return self.view.column(f"presentations/{column}")[self.order]

    def texts_of_shown(self, column: str) -> list[str]:
        """Return a column of texts of /presentations, in order of onset."""
        texts = self.view.texts(f"presentations/{column}")
        return [texts[k] for k in self.order]

    def of_response(self, column: str, missing: Any) -> npt.NDArray[Any]:
        """Return a column of /responses for each presentation; `missing` where the log has no response."""
        values = self.view.column(f"responses/{column}")
        out = np.full(len(self), missing, dtype=values.dtype)
        there = self.response >= 0
        out[there] = values[self.response[there]]
        return out

    def texts_of_response(self, column: str, missing: str) -> list[str]:
        """Return a column of texts of /responses for each presentation."""
        texts = self.view.texts(f"responses/{column}")
        return [texts[k] if k >= 0 else missing for k in self.response]

    def per_unit(self, column: str, rows: slice) -> F64:
        """Return `count`, `baseline` or `rate_hz` of some presentations, axes (presentation, unit); NaN: none."""
        table = self.view.file[f"responses/{column}"]
        at = self.response[rows]
        out = np.full((len(at), len(self.units)), np.nan)
        there = np.flatnonzero(at >= 0)
        wanted, back = np.unique(at[there], return_inverse=True)
        if len(wanted):
            out[there, : table.shape[1]] = table[wanted.tolist()][back]
        return out

    def attempts(self) -> tuple[I64, I64]:
        """Return which showing of its slot each presentation is, from 1, and the slot's first one (-1: this is it)."""
        columns = [self.of_shown(name) for name in ("presentation", "proposal", "slot")]
        number, proposal, slot = columns
        attempt, repeat_of = np.ones(len(self), np.int64), np.full(len(self), -1, np.int64)
        seen: dict[tuple[int, int], list[int]] = {}
        for k in np.argsort(number, kind="stable").tolist():
            if slot[k] < 0:  # a fallback has no slot
                continue
            before = seen.setdefault((int(proposal[k]), int(slot[k])), [])
            before.append(int(number[k]))
            attempt[k], repeat_of[k] = len(before), before[0] if len(before) > 1 else -1
        return attempt, repeat_of

    def _onsets(self, response: I64) -> F64:
        """Return the best known onset of each presentation: the photodiode's edge, else flip stamp plus lag."""
        view = self.view
        flip, seq = view.column("presentations/onset_flip_host_ns"), view.column("presentations/seq")
        lag_s = float(view.config.get("display", {}).get("lag_s", 0.0))
        onset = self.clocks.host.seconds(flip, seq) + lag_s
        known = np.flatnonzero(response >= 0)
        rows = response[known]
        host = view.column("responses/onset_host_ns")[rows]
        told = host != NO_TIME
        onset[known[told]] = self.clocks.host.seconds(host[told], view.column("responses/seq")[rows][told])
        edge = np.array(view.texts("responses/onset_source"), dtype=object)[rows] == "photodiode"
        at = self._samples("onset_sample")[rows]
        better = edge & np.isfinite(at)
        onset[known[better]] = at[better]
        return onset

    def _samples(self, column: str) -> F64:
        """Return session times of a column of device samples of /responses, NaN where unknown."""
        view = self.view
        sample, run = view.column(f"responses/{column}"), view.column("responses/run")
        number = {name: k for k, name in enumerate(view.sources)}
        source = np.array([number.get(s, 0) for s in view.texts("responses/source")], dtype=np.int64)
        near = view.column("responses/onset_host_ns")
        seq = view.column("responses/seq")
        out = np.full(len(sample), np.nan)
        there = np.flatnonzero((sample != NO_TIME) & (run >= 0) & (near != NO_TIME))
        if len(there):
            boots = self.clocks.host.boot_of(near[there], seq[there])
            out[there] = self.clocks.of_rows(source[there], run[there], sample[there], near[there], boots)
        return out

    def windows_s(self) -> tuple[F64, F64]:
        """Return start and end of each response window in session time, by the same map as the spikes."""
        out = []
        for edge in ("start", "end"):
            times = np.full(len(self), np.nan)
            there = self.response >= 0
            times[there] = self._samples(f"window_{edge}_sample")[self.response[there]]
            out.append(times)
        return out[0], out[1]

    def behaviour(self) -> dict[str, F64]:
        """Return the mean of each behaviour channel over each presentation, NaN where it was not seen."""
        rows = [json.loads(text) for text in self.texts_of_response("behaviour", "{}")]
        names = sorted({name for row in rows for name in row})
        return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}

    def fields(self) -> list[Field]:
        """Return the columns that say what was shown, when, and whether its response counts."""
        host, start, end = self.clocks.host, *self.windows_s()

        def seconds(ns: npt.NDArray[Any]) -> F64:
            out: F64 = np.where(ns != NO_TIME, ns / 1e9, np.nan)
            return out

        seq = self.of_shown("seq")
        number = self.of_shown
        attempt, repeat_of = self.attempts()
        fields = [
            Field("presentation", "1", "Number of the presentation in the session, from 0", number("presentation")),
            Field("trial", "1", "Number of the trial", number("trial")),
            Field("position_in_trial", "1", "Place of the image in its trial, from 0", number("position_in_trial")),
            Field("phase", "1", "Index of the phase in the config, from 0, -1 if unknown", number("phase")),
            Field("generation", "1", "Generation or block of the phase, from 0, -1 if unknown", number("generation")),
            Field("proposal", "1", "Number of the proposal that asked for it", number("proposal")),
            Field("slot", "1", "Index into the proposal's plan, -1 for a fallback", number("slot")),
            Field("attempt", "1", "1 for the first showing of its slot, 2, 3 ... where it was shown again", attempt),
            Field("repeat_of", "1", "First presentation of the same slot, -1 if this is it", repeat_of),
            Field(
                "role", "", "candidate, reference, reshow, confirmation, blank or fallback", self.texts_of_shown("role")
            ),
            Field("stimulus_id", "", "Identity of the image", self.texts_of_shown("stimulus_id")),
            Field("frame_sha256", "", "sha256 of the frame as drawn (bytes y, x, rgb)",
                  self.texts_of_shown("frame_sha256")),
            Field("image_index", "1", "Number of the frame among the exported images, -1: not in the log",
                  number("frame")),
            Field("center_x_deg", "degrees", "Centre of the image, to the right of the screen's centre",
                  number("center_x_deg")),
            Field("center_y_deg", "degrees", "Centre of the image, above the screen's centre", number("center_y_deg")),
            Field("size_deg", "degrees", "Side of the image, in visual angle", number("size_deg")),
            Field("complete", "1", "False if it was cut short or its frame was refused", number("complete")),
            Field("refused", "", "Why the background was shown in its place, empty if it was not",
                  self.texts_of_shown("refused")),
            Field("usable", "1", "Whether its response counts", self.of_response("usable", False)),
            Field("reason", "", "Why it does not count, empty if it does",
                  self.texts_of_response("reason", "no response in the log")),
            Field("coverage", "1", "Fraction of its windows known to be complete, 0 to 1",
                  self.of_response("coverage", 0.0)),
            Field("onset_source", "", "photodiode, flip (plus measured lag) or none",
                  self.texts_of_response("onset_source", "none")),
            Field("onset_uncertainty_s", "s", "Bound on the error of the onset in device samples, 99 %",
                  seconds(self.of_response("onset_uncertainty_ns", NO_TIME))),
            Field("onset_sample", "device sample", "Onset on the device's own counter, -2^63 if unknown",
                  self.of_response("onset_sample", NO_TIME)),
            Field("run", "1", "Acquisition run of the device in which its samples count, -1 if unknown",
                  self.of_response("run", -1)),
            Field("source", "", "Device that was scored", self.texts_of_response("source", "")),
            Field("measure", "", "What count sums: spikes, counts, deconvolved; dff: a mean dF/F",
                  self.texts_of_response("measure", "")),
            Field("flip_time", "s", "Stamp after the flip that showed it",
                  host.seconds(number("onset_flip_host_ns"), seq)),
            Field("due_time", "s", "When that flip was due", host.seconds(number("due_host_ns"), seq)),
            Field("late_flips", "1", "Flips later than half a frame", number("late_flips")),
            Field("dropped_frames", "1", "Frame periods in which no new flip came", number("dropped_frames")),
            Field("window_start_time", "s", "Start of the response window", start),
            Field("window_stop_time", "s", "End of the response window (the window is half open)", end),
        ]  # fmt: skip
        for name, values in self.behaviour().items():
            fields.append(Field(f"mean_{name}", "as named", f"Mean of {name} from onset to window end", values))
        return fields
