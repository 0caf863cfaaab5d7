"""Documents about what followed: responses, and what was put out."""

from typing import Literal

from pydantic import Field

from rig.documents.document import Document, F32Courses, F64Units
from rig.documents.stimuli import Role

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
    psth: F32Courses | None = Field(
        default=None,
        description="Spikes in the bins of responses.psth, nothing subtracted; NaN for a unit not there. None where "
        "the config asks for none, the response is not usable, or its bins are not covered.",
    )


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
