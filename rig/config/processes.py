"""The `processes` part of a session's config: threads, priorities, and how long each process may be silent."""

from pydantic import Field

from rig.config.part import Part
from rig.config.remote import RemoteModelServer


class LongestBusy(Part):
    """How long a process may work without a sign of life before it is killed and started again, s.

    A process that is only stopped for less than this goes on by itself. Start-up does not count.
    """

    recorder: float = Field(default=15.0, ge=1, le=600, description="Longest silence of the recorder, s, at least 1.")
    rig: float = Field(default=8.0, ge=1, le=600, description="Longest silence of the screen's process, s, at least 1.")
    model: float = Field(default=60.0, ge=1, le=3600, description="Longest step of the model's work, s, at least 1.")
    outputs: float = Field(default=5.0, ge=1, le=600, description="Longest silence of the outputs, s, at least 1.")
    source: float = Field(default=10.0, ge=1, le=600, description="Longest silence of any source, s, at least 1.")
    view: float = Field(default=60.0, ge=1, le=3600, description="Longest write of session.h5, s, at least 1.")


class Processes(Part):
    """Threads, priorities and restarts."""

    torch_threads: int = Field(default=1, ge=1, le=64, description="Threads of the model server.")
    work_step_s: float = Field(default=0.01, gt=0, le=1, description="Longest work between two looks at the log, s.")
    realtime: bool = Field(
        default=True, description="Ask for real-time priority, for rig and devices; the log says if it was granted."
    )
    burn: bool = Field(
        default=False, description="Keep the model server fine-tuning a core all the time (bench display)."
    )
    longest_busy_s: LongestBusy = LongestBusy()
    restarts_per_minute: int = Field(
        default=5, ge=0, le=60, description="Restarts of one process within a minute; one more ends the session."
    )
    model_server: RemoteModelServer | None = None
