"""All documents of stimloop, their envelope, and their one encoding on the wire and in the journal.

Every process speaks in these documents. This module does no I/O and reads no clock: it turns documents into byte
frames and back. A document is a JSON header plus raw array frames (dtype, shape, sha256 each); never pickle.

Times are integers in ns and name their clock: `_host_ns` is the host's monotonic clock (`time.perf_counter_ns`),
`_utc_ns` is UTC. `_sample` counts samples of a device.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from stimuli.spec import Stimulus


class Axes:
    """Contract of one array field: dtype and named axes, checked whenever a document is made."""

    def __init__(self, dtype: str, axes: str) -> None:
        """Remember dtype (numpy name) and the axes' names (their number is the rank)."""
        self.dtype = np.dtype(dtype)
        self.axes = axes.split()

    def _check(self, value: Any) -> npt.NDArray[Any]:
        if not isinstance(value, np.ndarray):
            raise ValueError(f"expected a numpy array, got {type(value).__name__}")
        if value.dtype != self.dtype:
            raise ValueError(f"expected dtype {self.dtype}, got {value.dtype}")
        if value.ndim != len(self.axes):
            raise ValueError(f"expected axes ({', '.join(self.axes)}), got shape {value.shape}")
        out = np.ascontiguousarray(value).view()
        out.flags.writeable = False
        return out

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate with `_check`; arrays never pass through JSON."""
        return core_schema.no_info_plain_validator_function(self._check)


U8Frames = Annotated[npt.NDArray[np.uint8], Axes("uint8", "frame y x rgb")]
U8Frame = Annotated[npt.NDArray[np.uint8], Axes("uint8", "y x rgb")]
F32Rows = Annotated[npt.NDArray[np.float32], Axes("float32", "row latent")]
F64Units = Annotated[npt.NDArray[np.float64], Axes("float64", "unit")]
U16Events = Annotated[npt.NDArray[np.uint16], Axes("uint16", "event")]
U8Events = Annotated[npt.NDArray[np.uint8], Axes("uint8", "event")]
I64Events = Annotated[npt.NDArray[np.int64], Axes("int64", "event")]
I64Rows = Annotated[npt.NDArray[np.int64], Axes("int64", "row")]
F32Traces = Annotated[npt.NDArray[np.float32], Axes("float32", "row unit")]
F32Motion = Annotated[npt.NDArray[np.float32], Axes("float32", "row xyz")]
F64Channels = Annotated[npt.NDArray[np.float64], Axes("float64", "row channel")]


class Document(BaseModel):
    """What every document shares: frozen, versioned, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    version: Literal[1] = 1

    # Fields that may hold integers, and the named axes of array fields: looked up once for each kind of document.
    _integers: ClassVar[tuple[str, ...]] = ()
    _array_axes: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Look through the fields of a kind of document."""
        fields = cls.model_fields.items()
        axes = [(name, tuple(m.axes)) for name, f in fields for m in f.metadata if isinstance(m, Axes)]
        cls._array_axes = tuple(axes)
        cls._integers = tuple(n for n, f in fields if "int" in str(f.annotation) and n not in dict(axes))

    @model_validator(mode="after")
    def _axes_agree(self) -> Self:
        """Columns along one axis have one length, the `unit` axis that of `units`; integers fit into 64 bits."""
        values = self.__dict__
        for name in self._integers:
            value = values[name]
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name} does not fit into 64 bits")
        if self._array_axes:
            lengths = {"unit": len(values["units"])} if "units" in values else {}
            for name, axes in self._array_axes:
                for axis, length in zip(axes, values[name].shape, strict=True):
                    if lengths.setdefault(axis, length) != length:
                        raise ValueError(f"{name} has {length} along {axis}, where there are {lengths[axis]}")
        return self


# --- session and processes ------------------------------------------------------------------------------------------


class Origin(Document):
    """The session that another one was made from."""

    session: str = Field(description="Name of its folder.")
    journal_sha256: str = Field(description="sha256 over its journal file.")
    made_utc_ns: int = Field(description="When this one was made from it.")
    how: dict[str, str] = Field(description="What was done to it: options, hashes of other files used.")


class SessionStart(Document):
    """First document of a journal: everything needed to know what this session is."""

    kind: Literal["session_start"] = "session_start"
    session: str = Field(description="Name of the session folder.")
    simulated: bool = Field(description="Whether the simulated animal was recorded: then these are no data.")
    config_yaml: str = Field(description="The user's config file, verbatim.")
    config: dict[str, Any] = Field(description="The validated config with all defaults filled in.")
    versions: dict[str, str] = Field(description="Versions of Python, the program and its libraries.")
    commit: str | None = Field(description="git commit of the program, None outside a checkout.")
    dirty: bool | None = Field(description="Whether the checkout had local changes, None outside a checkout.")
    start_host_ns: int
    start_utc_ns: int
    derived_from: Origin | None = Field(
        default=None, description="Session whose units were sorted again: its responses were made anew, nothing else."
    )
    replay_of: Origin | None = Field(default=None, description="Session whose recorded traffic this one was fed with.")
    cut_from: Origin | None = Field(default=None, description="Session of which this is the beginning, up to a moment.")


class ProcessStarted(Document):
    """First document of every process start: ties its monotonic clock to UTC and to one boot of one machine."""

    kind: Literal["process_started"] = "process_started"
    name: str = Field(description="recorder, rig, model, view or the source's name.")
    pid: int
    boot_id: str = Field(description="Identity of the machine's boot; monotonic times never cross it.")
    start_host_ns: int
    start_utc_ns: int
    notes: dict[str, str] = Field(description="What the log must say once: priority, pacing, thread counts ...")


class StopRequested(Document):
    """The rig has shown its last image: nothing more will be presented."""

    kind: Literal["stop_requested"] = "stop_requested"
    reason: str


class SessionStop(Document):
    """Last document of a journal that was closed in order."""

    kind: Literal["session_stop"] = "session_stop"
    reason: str
    presentations: int
    responses: int
    usable: int
    faults: int


class Tick(Document):
    """The passing of time as the folds may know it: journalled about once a second."""

    kind: Literal["tick"] = "tick"
    tick_host_ns: int
    closing: bool = Field(default=False, description="The session is about to be closed: nothing more will come.")


class Fault(Document):
    """Something was lost, late or wrong: said at once, with what was done about it."""

    kind: Literal["fault"] = "fault"
    what: str = Field(description='Short name, for example "messages lost" or "late proposal".')
    detail: str
    done: str = Field(description="What the program did about it.")
    since_host_ns: int | None = None
    presentations: tuple[int, ...] = Field(default=(), description="Presentations it touches, where known.")


class Pause(Document):
    """Nothing more is to be shown until this is lifted: the rig holds after the trial that is on the screen."""

    kind: Literal["pause"] = "pause"
    paused: bool = Field(description="True: hold; False: go on.")
    reason: str = Field(description="Why, and what cures it; for the experimenter.")
    since_host_ns: int = Field(description="Since when the reason holds, or held, host clock.")


# --- what to show -----------------------------------------------------------------------------------------------------

Role = Literal["candidate", "reference", "reshow", "blank", "fallback"]


class Slot(Document):
    """One planned presentation of a proposal."""

    stimulus: int = Field(ge=0, description="Index into the proposal's `stimuli`.")
    role: Role


class Proposal(Document):
    """Stimuli to show, in order. Slots from `tail_from` on are shown while the next proposal is computed."""

    kind: Literal["proposal"] = "proposal"
    proposal: int = Field(ge=0, description="0, 1, 2 ... in the session.")
    phase: int = Field(ge=0, description="Index of the phase in the config.")
    agent: str
    generation: int = Field(ge=0, description="Generation (or block) within the phase.")
    model_version: str = Field(description="Hash of the agent's state that made it.")
    stimuli: tuple[Stimulus, ...]
    plan: tuple[Slot, ...]
    tail_from: int = Field(ge=1, description="Index into `plan`; len(plan) if there is no tail.")
    final: bool = Field(description="Perhaps nothing follows in this phase: the rig waits instead of falling back.")
    fallback: tuple[int, ...] = Field(description="Indices into `stimuli` to show again if the next proposal is late.")
    frames: U8Frames = Field(description="Finished frames (before the display's gamma table) of latent stimuli.")
    latents: F32Rows = Field(description="Latent codes, row k made frame k.")


class PhaseEnded(Document):
    """An agent's stop rule held; `last` says that no phase follows."""

    kind: Literal["phase_ended"] = "phase_ended"
    phase: int
    reason: str
    last: bool


class WorkDone(Document):
    """A background computation of the model server finished; its fold takes the result when this comes in order."""

    kind: Literal["work_done"] = "work_done"
    work: int = Field(description="Number of the work, as the fold counted it.")
    steps: int = Field(ge=0, description="Steps really taken; a replay takes the same number.")
    data_through_seq: int = Field(description="Last journal entry the computation knew.")
    sha256: str = Field(description="Hash of the result.")


class ModelUpdated(Document):
    """The agent or model changed: its version and what it reports to the experimenter."""

    kind: Literal["model_updated"] = "model_updated"
    phase: int
    generation: int
    model_version: str
    report: dict[str, float] = Field(description="Named figures; `best`, `mean` and `reference` are rates in spikes/s.")


# --- what was shown ---------------------------------------------------------------------------------------------------


class StimulusPrepared(Document):
    """The exact 8-bit frame that will reach the screen for a stimulus, after limits and gamma table."""

    kind: Literal["stimulus_prepared"] = "stimulus_prepared"
    stimulus_id: str
    proposal: int
    frame_sha256: str = Field(description="sha256 over the bytes (y, x, rgb) drawn 1:1 on the screen.")
    frame: U8Frame | None = Field(description="The frame, once per sha256 unless a Proposal of this log holds it.")


class TrialIntent(Document):
    """A trial is about to be shown; sent before its first flip."""

    kind: Literal["trial_intent"] = "trial_intent"
    trial: int
    presentations: tuple[int, ...]
    proposals: tuple[int, ...] = Field(description="Proposal of each presentation.")
    slots: tuple[int, ...] = Field(description="Index into that proposal's plan, -1 for a fallback.")
    start_host_ns: int


class Presented(Document):
    """One image was on the screen: what, when by the flip stamps, and how well."""

    kind: Literal["presented"] = "presented"
    presentation: int = Field(ge=0, description="0, 1, 2 ... in the session.")
    trial: int
    position_in_trial: int
    proposal: int
    slot: int = Field(description="Index into the proposal's plan, -1 for a fallback.")
    role: Role
    stimulus_id: str
    previous_stimulus_id: str | None = Field(description="Image before it in the same trial, None for the first.")
    frame_sha256: str
    due_host_ns: int = Field(description="When the onset flip was due, host clock.")
    onset_flip_host_ns: int = Field(description="Stamp after the flip that showed the image, host clock.")
    offset_flip_host_ns: int = Field(description="Stamp after the flip that removed it, host clock.")
    flip_uncertainty_ns: int = Field(
        default=0, ge=0, description="Bound on the error of the stamps on the host clock; 0 if they were made on it."
    )
    flips_host_ns: I64Events = Field(description="Stamps of all flips from onset to offset, both included.")
    late_flips: int = Field(description="Flips later than half a frame after they were due.")
    dropped_frames: int = Field(description="Frame periods in which no new flip came.")
    image_row_px: float = Field(description="Screen row of the image centre, from the top.")
    patch_row_px: float = Field(description="Screen row of the photodiode patch's centre, from the top.")
    complete: bool = Field(description="False if it was cut short (stop, window lost) or its frame was refused.")
    refused: str = Field(default="", description='Why the background was shown in its place; "" if it was not.')


# --- what the devices said --------------------------------------------------------------------------------------------


class SpikeBlock(Document):
    """Spikes that arrived in one period (about 25 ms) from one source, as columns, in order of arrival."""

    kind: Literal["spike_block"] = "spike_block"
    source: str
    run: int = Field(description="Acquisition run; numbering and clock start anew with each.")
    units: tuple[str, ...] = Field(description="Names of the units in this block.")
    unit: U16Events = Field(description="Index into `units`.")
    sample: I64Events = Field(description="Device sample of each spike.")
    arrival_host_ns: I64Events = Field(description="Host time at which its message was received.")

    @model_validator(mode="after")
    def _units_exist(self) -> Self:
        if self.unit.size and int(self.unit.max()) >= len(self.units):
            raise ValueError(f"unit {int(self.unit.max())} lies beyond the {len(self.units)} units there are")
        return self


class EdgeBlock(Document):
    """TTL edges from one source."""

    kind: Literal["edge_block"] = "edge_block"
    source: str
    run: int
    line: U8Events = Field(description="0-based TTL line.")
    state: U8Events = Field(description="1 = rising, 0 = falling.")
    sample: I64Events
    arrival_host_ns: I64Events


class UnitList(Document):
    """Units that a source delivers from now on; sent before their first data and whenever the list changes."""

    kind: Literal["unit_list"] = "unit_list"
    source: str
    run: int
    list_number: int = Field(ge=0, description="0, 1, 2 ... in the run; blocks of traces name it.")
    from_sample: int = Field(description="Device sample from which on the list holds.")
    units: tuple[str, ...]
    scan_offset_s: F64Units = Field(description="When within a frame each unit is scanned, s; 0 where all at once.")
    measure: Literal["spikes", "counts", "fluorescence"] = Field(description="What one value of a unit is.")


class TraceBlock(Document):
    """Frames of an imaging device, or bins of a counting one, raw as they came; one row per frame or bin."""

    kind: Literal["trace_block"] = "trace_block"
    source: str
    run: int
    list_number: int = Field(ge=0, description="The UnitList (of this source and run) whose order `values` has.")
    frame: I64Rows = Field(description="The device's own frame counter; a hole in it is a lost frame.")
    sample: I64Rows = Field(description="Device sample (tick) at which the frame or bin began.")
    arrival_host_ns: I64Rows = Field(description="Host time at which its message was received.")
    values: F32Traces = Field(description="Raw fluorescence or counts, in the device's unit; NaN where not measured.")
    neuropil: F32Traces | None = Field(default=None, description="Raw fluorescence around each unit, None if not sent.")
    motion: F32Motion | None = Field(default=None, description="Motion of each frame, um or pixels; None if not sent.")

    @model_validator(mode="after")
    def _rows_agree(self) -> Self:
        if self.neuropil is not None and self.neuropil.shape != self.values.shape:
            raise ValueError(f"neuropil has shape {self.neuropil.shape}, values {self.values.shape}")
        if self.motion is not None and self.motion.shape != (len(self.frame), 3):
            raise ValueError(f"motion has shape {self.motion.shape}, expected ({len(self.frame)}, 3)")
        return self


class BehaviourBlock(Document):
    """Behaviour from one source: gaze, pupil, running ..., one row per sample."""

    kind: Literal["behaviour_block"] = "behaviour_block"
    source: str
    run: int
    channels: tuple[str, ...] = Field(description="Names with unit, for example gaze_x_deg, pupil_mm, running_cm_s.")
    sample: I64Rows = Field(description="Device sample (tick) of each row.")
    arrival_host_ns: I64Rows
    values: F64Channels = Field(description="NaN where the device saw nothing (a blink, no track).")

    @model_validator(mode="after")
    def _a_column_per_channel(self) -> Self:
        if self.values.shape[1] != len(self.channels):
            raise ValueError(f"values has {self.values.shape[1]} columns for {len(self.channels)} channels")
        return self


class Marker(Document):
    """A text that a device or another program sent: logged, never interpreted."""

    kind: Literal["marker"] = "marker"
    source: str
    run: int
    sample: int | None = Field(description="Device sample (tick) of the marker, None if the device gave none.")
    arrival_host_ns: int
    text: str = Field(max_length=4096)


class Gap(Document):
    """A stretch of a device's samples that may miss data."""

    first_sample: int
    end_sample: int = Field(description="First sample after the gap.")
    messages: int = Field(description="Messages missing in it, 0 where unknown.")


class Continuity(Document):
    """How far a source's data are complete; sent about 40 times a second after the blocks it covers."""

    kind: Literal["continuity"] = "continuity"
    source: str
    run: int
    state: Literal["connecting", "online", "streaming", "stalled", "offline"]
    sample_rate_hz: float = Field(ge=0, le=1e9, description="Nominal rate that the device states; 0 if unknown.")
    watermark_sample: int = Field(description="Every event before this sample was delivered, or lies in a gap.")
    messages: int = Field(description="Messages received in this run so far.")
    lost_messages: int = Field(description="Messages known to be lost in this run so far.")
    gaps: tuple[Gap, ...] = Field(default=(), description="New gaps since the last Continuity.")


class ClockSample(Document):
    """A raw pair of one device's sample counter and the host clock."""

    kind: Literal["clock_sample"] = "clock_sample"
    source: str
    run: int
    device_sample: float = Field(description="Device sample (tick); for an arrival the first one after the block.")
    pair_host_ns: int = Field(description="Host time of it: of arrival, middle of the round trip, or of the edge.")
    method: Literal["arrival", "round_trip", "edge", "barcode"] = Field(
        default="arrival",
        description="arrival: late by an unknown delay >= 0; round_trip: off by half of `round_trip_ns` at most; "
        "edge, barcode: one event that both clocks saw.",
    )
    round_trip_ns: int | None = Field(default=None, ge=0, description="Time from request to reply, for round_trip.")
    uncertainty_ns: int | None = Field(default=None, ge=0, description="Bound on the pair's error, for edge, barcode.")


FALLBACK_OVER = "fallback over"  # Fault: a proposal is so late that nothing stands in for it any more
# What one unit of `Response.rate_hz` is, by `Response.measure`.
RATE_UNITS = {"spikes": "spikes/s", "counts": "counts/s", "deconvolved": "events/s (dF/F)", "dff": "dF/F"}


class Response(Document):
    """What the units did in the response window of one presentation; exactly one for each Presented."""

    kind: Literal["response"] = "response"
    presentation: int
    proposal: int
    slot: int
    role: Role
    stimulus_id: str
    source: str
    run: int | None = Field(default=None, description="Acquisition run whose samples the windows count in.")
    usable: bool
    reason: str = Field(description='Why not usable; "" if usable.')
    curable: bool = Field(
        default=True, description="Whether showing the image again may give a usable response; not if it was refused."
    )
    onset_source: Literal["photodiode", "flip", "none"]
    onset_sample: int | None = Field(description="Onset of the image in device samples, None if unknown.")
    onset_host_ns: int | None = Field(description="The same onset on the host clock.")
    onset_uncertainty_ns: int | None = Field(description="Bound on the error of `onset_sample`, as time, 99 %.")
    onset_host_uncertainty_ns: int | None = Field(description="Bound on the error of `onset_host_ns`, 99 %.")
    flip_to_edge_ns: int | None = Field(description="Photodiode edge (mapped to host) minus flip stamp.")
    window_start_sample: int | None = None
    window_end_sample: int | None = Field(default=None, description="First sample after the window.")
    coverage: float = Field(ge=0, le=1, description="Fraction of window and baseline window known to be complete.")
    lost_messages: int = Field(default=0, ge=0, description="Messages of the device missing in the windows.")
    measure: Literal["spikes", "counts", "deconvolved", "dff"] = Field(
        default="spikes", description="What `count` sums: spikes, binned counts, deconvolved events; dff: a mean dF/F."
    )
    behaviour: dict[str, float] = Field(
        default={}, description="Mean of each behaviour channel from onset to window end; absent if it was not seen."
    )
    units: tuple[str, ...]
    count: F64Units = Field(description="Sum over the window (dff: mean); NaN for a unit not there or not usable.")
    baseline: F64Units = Field(description="What the baseline expects `count` to be; 0 where baseline is none.")
    baseline_n: int | None = Field(
        default=None, ge=1, description="Presentations that `baseline` averages; None where nothing is subtracted."
    )
    rate_hz: F64Units = Field(description="(count - baseline) / window length, per s; count - baseline for dff.")


# --- what was put out -------------------------------------------------------------------------------------------------


class OutputRequest(Document):
    """Something to be put out by the outputs process: a reward, a marker, a message."""

    kind: Literal["output_request"] = "output_request"
    request: str = Field(description="Identity of the request, unique in the session.")
    output: str = Field(description="Name of the output in the config.")
    what: Literal["reward", "marker", "message"]
    text: str = Field(default="", max_length=512, description="Marker or message.")
    duration_s: float | None = Field(default=None, gt=0, description="Length of the reward pulse, s.")
    event_host_ns: int | None = Field(default=None, description="What the marker marks, host clock (a flip).")
    trial: int | None = None
    presentation: int | None = None


class OutputDone(Document):
    """What became of an OutputRequest; a request without one was not confirmed."""

    kind: Literal["output_done"] = "output_done"
    request: str
    output: str
    what: Literal["reward", "marker", "message"]
    done: bool
    reason: str = Field(default="", description='Why it was refused or not confirmed; "" if done.')
    started_host_ns: int | None = Field(default=None, description="Before the device was told, host clock.")
    confirmed_host_ns: int | None = Field(default=None, description="When the device or watchdog had confirmed it.")
    duration_s: float | None = Field(default=None, description="Length of the pulse as it was timed, s.")
    timed_by: Literal["device", "watchdog", "none"] = "none"
    volume_ul: float | None = Field(default=None, description="Volume of this reward by calibration, uL.")
    session_volume_ul: float | None = Field(default=None, description="All rewards of the session so far, uL.")


class BarcodeSent(Document):
    """A barcode that this host sent on an output line, for devices that record the line."""

    kind: Literal["barcode_sent"] = "barcode_sent"
    output: str
    number: int
    sent_host_ns: int = Field(description="When its first edge went out, host clock.")
    uncertainty_ns: int = Field(ge=0, description="Bound on the error of that: of the stamp and the line's delay.")


AnyDocument = Annotated[
    SessionStart
    | ProcessStarted
    | StopRequested
    | SessionStop
    | Tick
    | Fault
    | Pause
    | Proposal
    | PhaseEnded
    | WorkDone
    | ModelUpdated
    | StimulusPrepared
    | TrialIntent
    | Presented
    | SpikeBlock
    | EdgeBlock
    | UnitList
    | TraceBlock
    | BehaviourBlock
    | Marker
    | Continuity
    | ClockSample
    | Response
    | OutputRequest
    | OutputDone
    | BarcodeSent,
    Field(discriminator="kind"),
]
DOCUMENT_TYPES: dict[str, type[Document]] = {
    t.model_fields["kind"].default: t for t in get_args(get_args(AnyDocument)[0])
}
ARRAY_FIELDS = {
    kind: tuple(
        name
        for name, f in t.model_fields.items()
        if any(isinstance(m, Axes) for m in f.metadata) or "ndarray" in str(f.annotation)
    )
    for kind, t in DOCUMENT_TYPES.items()
}


def kind_of(document: Document) -> str:
    """Return the document's kind, the discriminator of all documents."""
    return str(document.kind)  # type: ignore[attr-defined]


# --- envelope --------------------------------------------------------------------------------------------------------


class Envelope(BaseModel):
    """What the recorder knows of a journalled document."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seq: int = Field(description="Place in the session's one total order, from 1.")
    receipt_host_ns: int
    sender: str = Field(description="Name of the peer that sent it.")
    process: str = Field(description="Identity of the sender's process start.")
    sender_seq: int = Field(description="The sender's own count, per process start.")
    cause_seq: int | None = Field(default=None, description="Entry whose handling emitted it (folds only).")
    cause_index: int | None = Field(default=None, description="Its index among the documents of that handling.")


@dataclass(frozen=True)
class Entry:
    """One journalled document with its envelope."""

    envelope: Envelope
    document: Document
