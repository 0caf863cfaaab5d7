"""Documents about the session itself: its beginning and end, its processes, what went wrong, and time."""

from typing import Any, Literal

from pydantic import Field

from rig.documents.document import Document


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


AGENT_FAILED = "agent failed"  # Fault: what chooses the images raised; its phase is over
FALLBACK_OVER = "fallback over"  # Fault: a proposal is so late that nothing stands in for it any more


class Pause(Document):
    """Nothing more is to be shown until this is lifted: the rig holds after the trial that is on the screen."""

    kind: Literal["pause"] = "pause"
    paused: bool = Field(description="True: hold; False: go on.")
    reason: str = Field(description="Why, and what cures it; for the experimenter.")
    since_host_ns: int = Field(description="Since when the reason holds, or held, host clock.")
