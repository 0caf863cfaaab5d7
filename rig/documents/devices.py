"""Documents of the devices: spikes, edges, traces, behaviour, and how far and how well their samples are known."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rig.documents.document import (
    Document,
    F32Motion,
    F32Traces,
    F64Channels,
    F64Units,
    I64Events,
    I64Rows,
    U8Events,
    U16Events,
)


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
