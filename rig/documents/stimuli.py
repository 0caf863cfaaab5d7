"""Documents about what is chosen and shown: proposals, the model, prepared frames, presentations."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rig.documents.document import Document, F32Rows, I64Events, U8Frame, U8Frames
from stimuli.spec import Place, Stimulus

FARTHEST_S = 10.0  # from the onset to either end of a response window, as in `rig.config.scoring`
Role = Literal["candidate", "reference", "reshow", "confirmation", "blank", "fallback"]


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
    place: Place | None = Field(
        default=None,
        description="Where all its images lie; frames have the shape of it. None, as in older logs: `stimulus` says.",
    )


class PhaseEnded(Document):
    """An agent's stop rule held; `last` says that no phase follows."""

    kind: Literal["phase_ended"] = "phase_ended"
    phase: int
    reason: str
    last: bool
    window_s: tuple[float, float] | None = Field(
        default=None,
        description="Response window of every presentation recorded after this, s from the onset; None: as before.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.window_s is not None and not -FARTHEST_S <= self.window_s[0] < self.window_s[1] <= FARTHEST_S:
            raise ValueError(f"window_s goes from {self.window_s[0]:g} to {self.window_s[1]:g} s")
        return self


class WorkDone(Document):
    """A background computation of the model server ended; its fold takes the outcome when this comes in order."""

    kind: Literal["work_done"] = "work_done"
    work: int = Field(description="Number of the work, as the fold counted it.")
    steps: int = Field(ge=0, description="Steps really taken; a replay takes the same number.")
    data_through_seq: int = Field(description="Last journal entry the computation knew.")
    sha256: str = Field(description='Hash of the result; "" where there is none.')
    error: str = Field(default="", description='Why there is no result: what a step raised; "" if there is one.')


class ImageScore(Document):
    """What an agent made of an image for one of its targets."""

    target: str = Field(description="Name of the objective: a unit's name, or the target's in the config.")
    stimulus_id: str
    source: str = Field(description="candidate, reshow or reference of an evolution; evolved, reference or start.")
    proposal: int = Field(default=-1, description="Of the presentation; -1 where several make the score.")
    slot: int = Field(default=-1, description="Of the presentation; -1 where several make the score.")
    raw: float = Field(description="Value of the objective, as the units gave it.")
    corrected: float = Field(description="The same after the correction for drift; what the optimiser was told.")
    error: float | None = Field(default=None, description="Standard error; None for a single presentation.")
    presentations: int = Field(default=1, ge=0, description="Usable presentations behind it.")


class ModelUpdated(Document):
    """The agent or model changed: its version and what it reports to the experimenter."""

    kind: Literal["model_updated"] = "model_updated"
    phase: int
    generation: int
    model_version: str
    report: dict[str, float] = Field(description="Named figures; `best`, `mean` and `reference` are rates in spikes/s.")
    scores: tuple[ImageScore, ...] = Field(default=(), description="Of images, new since the update before.")


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
