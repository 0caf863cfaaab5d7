"""What stands in `session.h5`: every table and column with its unit, clock and description.

Read by `rig.view_fold` (which fills buffers), `rig.view` (which makes the datasets) and the tests. No I/O, no HDF5.

A table is a group of datasets of equal length, one per column. Tables only ever grow at their end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FORMAT = "stimloop session view"
FORMAT_VERSION = 1
HOST = "host monotonic"
UTC = "utc"
DEVICE = "device"  # replaced by "device <source>" where the session has only one source
NO_TIME = int(np.iinfo(np.int64).min)

Kind = Literal["i8", "i4", "u2", "u1", "f8", "f4", "bool", "text"]


@dataclass(frozen=True)
class Column:
    """One dataset: its type, unit, meaning, clock (times only) and the value that means "not known"."""

    name: str
    kind: Kind
    unit: str
    description: str
    clock: str | None = None
    missing: int | float | None = None
    per_unit: bool = False  # one value per unit of `responses/units`, NaN where a unit was not scored


@dataclass(frozen=True)
class Schema:
    """One table: its path in the file, what one row is, and its columns."""

    path: str
    description: str
    columns: tuple[Column, ...]


def _number(name: str, description: str, missing: int | None = None, kind: Kind = "i8") -> Column:
    return Column(name, kind, "1", description, missing=missing)


def _text(name: str, description: str, unit: str = "text") -> Column:
    return Column(name, "text", unit, description)


def _host(name: str, description: str, missing: int | None = None) -> Column:
    return Column(name, "i8", "ns", description, HOST, missing)


def _sample(name: str, description: str, missing: int | None = None) -> Column:
    return Column(name, "i8", "device sample", description, DEVICE, missing)


_SEQ = _number("seq", "Sequence number of the journal entry")
_RECEIPT = _host("receipt_host_ns", "When the recorder received the document")
_SOURCE = _number("source", "Device: row of /sources/name", kind="u1")
_RUN = _number("run", "Acquisition run of the device; its samples count anew in each run", kind="i4")
_ARRIVAL = _host("arrival_host_ns", "When the message that carried it was received")
_SLOT = _number("slot", "Index into the proposal's plan, -1 for a fallback", -1)
_ROLE = _text("role", "candidate, reference, reshow, blank or fallback")
_PROPOSAL = _number("proposal", "Number of the proposal in the session")
_PHASE = _number("phase", "Index of the phase in the config, -1 if the proposal is not in the log", -1)
_GENERATION = _number("generation", "Generation or block within the phase, -1 if not known", -1)
_SHA = _text("frame_sha256", "sha256 over the bytes (y, x, rgb) of the frame as drawn, hexadecimal")

SCHEMAS: tuple[Schema, ...] = (
    Schema(
        "presentations",
        "One row per image that was on the screen",
        (
            _SEQ,
            _number("presentation", "Number of the presentation in the session, from 0"),
            _number("trial", "Number of the trial"),
            _number("position_in_trial", "Place of the image in its trial, from 0"),
            _PROPOSAL,
            _PHASE,
            _GENERATION,
            _SLOT,
            _ROLE,
            _text("stimulus_id", "Identity of the image: row with the same stimulus_id in /stimuli"),
            _text("previous_stimulus_id", 'Image before it in the same trial, "" for the first'),
            _SHA,
            _number("frame", "Row of /stimuli/frames that describes the frame, -1 if it is not in the log", -1),
            _host("due_host_ns", "When the onset flip was due"),
            _host("onset_flip_host_ns", "Stamp after the flip that showed the image"),
            _host("offset_flip_host_ns", "Stamp after the flip that removed the image"),
            _number("flips_first", "First row of this presentation in /flips"),
            _number("flips_count", "Number of its rows in /flips, onset and offset included"),
            _number("late_flips", "Flips later than half a frame after they were due"),
            _number("dropped_frames", "Frame periods in which no new flip came"),
            Column("image_row_px", "f8", "px", "Screen row of the image centre, from the top"),
            Column("patch_row_px", "f8", "px", "Screen row of the photodiode patch's centre, from the top"),
            Column("complete", "bool", "1", "False if the presentation was cut short"),
        ),
    ),
    Schema(
        "flips",
        "One row per flip from onset to offset of each presentation",
        (_number("presentation", "Number of the presentation"), _host("flip_host_ns", "Stamp after the flip")),
    ),
    Schema(
        "trials",
        "One row per trial, as it was announced before its first flip",
        (
            _SEQ,
            _number("trial", "Number of the trial"),
            _number("first_presentation", "Its first presentation, -1 if it had none", -1),
            _number("presentations", "Number of presentations it was to have"),
            _host("start_host_ns", "When it was announced"),
        ),
    ),
    Schema(
        "trial_plan",
        "One row per presentation that a trial announced",
        (
            _number("trial", "Number of the trial"),
            _number("presentation", "Number of the presentation"),
            _PROPOSAL,
            _SLOT,
        ),
    ),
    Schema(
        "responses",
        "One row per presentation: what the units did in its response window",
        (
            _SEQ,
            _number("presentation", "Number of the presentation"),
            _PROPOSAL,
            _SLOT,
            _ROLE,
            _text("stimulus_id", "Identity of the image"),
            _text("source", "Device that was scored"),
            _text("clock", "Name of the clock of onset_sample and of the window"),
            Column("usable", "bool", "1", "Whether the response counts"),
            _text("reason", 'Why it does not count, "" if it does'),
            _text("onset_source", "photodiode, flip (plus measured lag) or none"),
            _sample("onset_sample", "Onset of the image", NO_TIME),
            _host("onset_host_ns", "The same onset, mapped to the host clock", NO_TIME),
            _host("onset_uncertainty_ns", "Bound on the error of onset_sample, as time, 99 %", NO_TIME),
            _host("onset_host_uncertainty_ns", "Bound on the error of onset_host_ns, 99 %", NO_TIME),
            _host("flip_to_edge_ns", "Photodiode edge (mapped to the host clock) minus flip stamp", NO_TIME),
            _sample("window_start_sample", "First sample of the response window", NO_TIME),
            _sample("window_end_sample", "First sample after the response window", NO_TIME),
            Column("coverage", "f8", "1", "Fraction of response and baseline window known to be complete, 0 to 1"),
            Column("count", "f8", "spikes", "Spikes in the window", per_unit=True),
            Column("baseline", "f8", "spikes", "Spikes expected in the window from the baseline", per_unit=True),
            Column("rate_hz", "f8", "spikes/s", "(count - baseline) / window length", per_unit=True),
        ),
    ),
    Schema(
        "stimuli",
        "One row per stimulus identity that was ever proposed",
        (
            _text("stimulus_id", "Identity, unique in the session"),
            _number("proposal", "Proposal that named it first"),
            _PHASE,
            _GENERATION,
            _text("type", "blank, grating, bank or latent"),
            _text("spec", "What it is, as described to the renderer", "JSON"),
            _text("parents", "Identities of the stimuli it was recombined from", "JSON"),
            _number("latent_size", "Length of its latent code, 0 if it has none"),
            _number("latent_row", "Row of /stimuli/latents/codes_<latent_size>, -1 if it has no code", -1),
        ),
    ),
    Schema(
        "stimuli/prepared",
        "One row per frame made ready for a stimulus of a proposal",
        (_SEQ, _text("stimulus_id", "Identity of the stimulus"), _PROPOSAL, _SHA),
    ),
    Schema(
        "stimuli/frames",
        "One row per different frame as drawn: 8 bit, after limits and gamma table; pixels in images_<height>x<width>",
        (
            _SHA,
            _text("stimulus_id", "First stimulus that it was drawn for"),
            _number("height", "Height of the frame"),
            _number("width", "Width of the frame"),
            _number("row", "Row of images_<height>x<width>"),
        ),
    ),
    Schema(
        "sources",
        "One row per device",
        (_text("name", "Name of the device in the config"),),
    ),
    Schema(
        "units",
        "One row per unit (sorted unit, multi-unit channel or region of interest) of a device",
        (_text("name", "Name of the unit, as the device gives it"), _SOURCE),
    ),
    Schema(
        "spikes",
        "One row per spike, in order of arrival",
        (_number("unit", "Row of /units", kind="u2"), _sample("sample", "When it was"), _ARRIVAL, _RUN, _SOURCE),
    ),
    Schema(
        "edges",
        "One row per edge on a digital input of a device, in order of arrival",
        (
            _number("line", "Input line, from 0", kind="u1"),
            _number("state", "1 rising, 0 falling", kind="u1"),
            _sample("sample", "When it was"),
            _ARRIVAL,
            _RUN,
            _SOURCE,
        ),
    ),
    Schema(
        "traces",
        "One row per value of a continuous trace",
        (
            _number("unit", "Row of /units", kind="u2"),
            _sample("sample", "Sample or frame counter"),
            Column("value", "f8", "as the device's config says", "Value of the trace"),
            _RUN,
            _SOURCE,
        ),
    ),
    Schema(
        "clocks",
        "One row per raw pair of a device's sample counter and the host clock",
        (_sample("device_sample", "First sample after the block whose arrival was stamped"), _ARRIVAL, _RUN, _SOURCE),
    ),
    Schema(
        "continuity",
        "How complete a device's data are: one row at each change, and about one a second",
        (
            _RECEIPT,
            _text("state", "connecting, online, streaming, stalled or offline"),
            Column("sample_rate_hz", "f8", "samples/s", "Nominal rate that the device states"),
            _sample("watermark_sample", "Every event before it was delivered, or lies in a gap"),
            _number("messages", "Messages received in this run so far"),
            _number("lost_messages", "Messages known to be lost in this run so far"),
            _RUN,
            _SOURCE,
        ),
    ),
    Schema(
        "continuity/gaps",
        "One row per stretch of a device's samples that may miss data",
        (
            _RECEIPT,
            _sample("first_sample", "First sample of the gap"),
            _sample("end_sample", "First sample after the gap"),
            _number("messages", "Messages missing in it, 0 where unknown"),
            _RUN,
            _SOURCE,
        ),
    ),
    Schema(
        "model/updates",
        "One row per change of the agent or model",
        (
            _SEQ,
            _RECEIPT,
            _PHASE,
            _GENERATION,
            _text("model_version", "Hash of the state"),
            Column("best", "f8", "spikes/s", "Newest winner, over its re-shows, as reported", missing=float("nan")),
            Column("mean", "f8", "spikes/s", "Mean of the candidates, as reported", missing=float("nan")),
            Column("reference", "f8", "spikes/s", "Reference images, as reported", missing=float("nan")),
            _text("report", "All figures of the report", "JSON"),
        ),
    ),
    Schema(
        "model/proposals",
        "One row per proposal",
        (
            _SEQ,
            _RECEIPT,
            _PROPOSAL,
            _PHASE,
            _GENERATION,
            _text("agent", "Agent that made it"),
            _text("model_version", "Hash of the agent's state that made it"),
            _number("stimuli", "Number of its stimuli"),
            _number("tail_from", "First slot of the tail, shown while the next proposal is computed"),
            Column("final", "bool", "1", "Whether no proposal follows in this phase"),
            _text("fallback", "Identities of the stimuli to show if the next proposal is late", "JSON"),
        ),
    ),
    Schema(
        "model/plan",
        "One row per planned presentation of each proposal",
        (
            _PROPOSAL,
            _number("slot", "Index into the proposal's plan"),
            _text("stimulus_id", "Identity of the stimulus"),
            _ROLE,
            Column("tail", "bool", "1", "Whether it is shown while the next proposal is computed"),
        ),
    ),
    Schema(
        "model/work",
        "One row per background computation of the model server",
        (
            _SEQ,
            _RECEIPT,
            _number("work", "Number of the computation"),
            _number("steps", "Steps really taken"),
            _number("data_through_seq", "Last journal entry it knew"),
            _text("sha256", "Hash of its result"),
        ),
    ),
    Schema(
        "model/phases",
        "One row per phase that ended",
        (
            _SEQ,
            _RECEIPT,
            _PHASE,
            _text("reason", "Stop rule that held"),
            Column("last", "bool", "1", "Whether no phase follows"),
        ),
    ),
    Schema(
        "faults",
        "One row for everything that was lost, late or wrong",
        (
            _SEQ,
            _RECEIPT,
            _text("sender", 'Process that said so; "view" for what was missing when this file was made'),
            _text("what", "Short name"),
            _text("detail", "What happened"),
            _text("done", "What the program did about it"),
            _host("since_host_ns", "Since when", NO_TIME),
            _text("presentations", "Presentations it touches, where known", "JSON"),
        ),
    ),
    Schema(
        "processes",
        "One row per process start",
        (
            _SEQ,
            _text("name", "Name of the process"),
            _number("pid", "Process number"),
            _text("boot_id", "Identity of the machine's boot: host times of different boots must not be compared"),
            _host("start_host_ns", "When it started"),
            Column("start_utc_ns", "i8", "ns", "The same moment in UTC, since 1970", UTC),
            _text("notes", "What it said about itself: priority, pacing, threads", "JSON"),
        ),
    ),
)

RESPONSE_UNITS = Column("units", "text", "text", "Name of each column of count, baseline and rate_hz")
IMAGES = Column("images", "u1", "grey level", "Frames as drawn, axes (row, y, x, rgb); y counts from the top")
CODES = Column("codes", "f4", "1", "Latent codes that the generator decoded, axes (row, latent)")


@dataclass
class Buffer:
    """Rows of one table that are not in the file yet, as columns of equal length."""

    schema: Schema
    rows: int = 0  # ever appended, written ones included
    pending: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make one empty list per column."""
        self.pending = {c.name: [] for c in self.schema.columns}
        self._names = self.pending.keys()

    def append(self, values: Mapping[str, Any]) -> None:
        """Add one row; it must have exactly the table's columns."""
        if values.keys() != self._names:
            raise KeyError(f"{self.schema.path}: columns {sorted(values.keys() ^ self._names)} are missing or unknown")
        for name, value in values.items():
            self.pending[name].append(value)
        self.rows += 1

    def extend(self, count: int, values: Mapping[str, npt.NDArray[Any] | Sequence[Any] | int]) -> None:
        """Add `count` rows at once; a plain integer stands for all of them."""
        if values.keys() != self._names:
            raise KeyError(f"{self.schema.path}: columns {sorted(values.keys() ^ self._names)} are missing or unknown")
        for name, value in values.items():  # all before any: a table never gets columns of unequal length
            if not isinstance(value, int) and len(value) != count:
                raise ValueError(f"{self.schema.path}/{name}: {len(value)} values for {count} rows")
        for name, value in values.items():
            if isinstance(value, int):
                self.pending[name].extend([value] * count)
            else:
                self.pending[name].extend(value.tolist() if isinstance(value, np.ndarray) else value)
        self.rows += count

    def take(self) -> dict[str, list[Any]]:
        """Return the buffered rows and forget them."""
        taken = self.pending
        self.pending = {name: [] for name in self._names}
        return taken

    def __len__(self) -> int:
        """Return the number of buffered rows."""
        return len(next(iter(self.pending.values())))
