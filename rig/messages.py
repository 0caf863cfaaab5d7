"""All documents of stimloop, and the envelope around each in the log.

Every process speaks in these documents. They are defined in `rig.documents`, by what they are about, and imported from
here; `rig.encoding` turns them into bytes and back. No I/O, no clock.

Times are integers in ns and name their clock: `_host_ns` is the host's monotonic clock (`time.perf_counter_ns`),
`_utc_ns` is UTC. `_sample` counts samples of a device.
"""

from dataclasses import dataclass
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field

from rig.documents.devices import (
    BehaviourBlock,
    ClockSample,
    Continuity,
    EdgeBlock,
    Gap,
    Marker,
    SpikeBlock,
    TraceBlock,
    UnitList,
)
from rig.documents.document import Axes, Document
from rig.documents.outcomes import RATE_UNITS, BarcodeSent, OutputDone, OutputRequest, Response
from rig.documents.session import (
    AGENT_FAILED,
    FALLBACK_OVER,
    Fault,
    Origin,
    Pause,
    ProcessStarted,
    SessionStart,
    SessionStop,
    StopRequested,
    Tick,
)
from rig.documents.stimuli import (
    ImageScore,
    ModelUpdated,
    PhaseEnded,
    Presented,
    Proposal,
    Role,
    Slot,
    StimulusPrepared,
    TrialIntent,
    WorkDone,
)

__all__ = (
    "AGENT_FAILED",
    "ARRAY_FIELDS",
    "DOCUMENT_TYPES",
    "FALLBACK_OVER",
    "RATE_UNITS",
    "AnyDocument",
    "Axes",
    "BarcodeSent",
    "BehaviourBlock",
    "ClockSample",
    "Continuity",
    "Document",
    "EdgeBlock",
    "Entry",
    "Envelope",
    "Fault",
    "Gap",
    "ImageScore",
    "Marker",
    "ModelUpdated",
    "Origin",
    "OutputDone",
    "OutputRequest",
    "Pause",
    "PhaseEnded",
    "Presented",
    "ProcessStarted",
    "Proposal",
    "Response",
    "Role",
    "SessionStart",
    "SessionStop",
    "Slot",
    "SpikeBlock",
    "StimulusPrepared",
    "StopRequested",
    "Tick",
    "TraceBlock",
    "TrialIntent",
    "UnitList",
    "WorkDone",
    "kind_of",
)  # fmt: skip

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
