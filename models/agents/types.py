"""What an agent is: the contract between the model server and everything that chooses stimuli.

An agent is pure and seeded: no I/O, no clock, every draw from its own generator, whose state is part of `state()`.
Long computations are handed out as `Work` and done in small steps by the server's edge; an agent's state changes only
in `tell`, in `restore`, and when the result of a finished work is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from models.agents.carried import Leaves
from rig.messages import (
    ImageScore,
    Role,
    Slot,
)
from stimuli.spec import Place, Stimulus

if TYPE_CHECKING:
    from models.encoders.core_files import Cores  # torch: only agents that train networks need it

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Told:
    """The outcome of one planned presentation."""

    proposal: int
    slot: int
    role: Role
    stimulus_id: str
    rate_hz: F64 | None
    """Rate of each unit, spikes/s (unit,). None: not shown, not covered or not usable; NaN: unit never seen."""
    psth: F32 | None = None
    """Spikes of each unit in bins around the onset (unit, bin), as `responses.psth` says; None without it."""
    baseline: F64 | None = None
    """(unit,) what the baseline expected the response window to hold; with `psth` only."""


@dataclass(frozen=True)
class Batch:
    """What to show next; the server makes a Proposal of it.

    An empty `plan` shows nothing and becomes no Proposal: the work only concluded the phase, whose `finished` then says
    why it ends. Only after a batch without a tail.
    """

    generation: int
    stimuli: tuple[Stimulus, ...]
    plan: tuple[Slot, ...]
    tail_from: int
    """Index into `plan`, 1 <= tail_from <= len(plan): the next batch is computed while the rest is shown."""
    fallback: tuple[int, ...]
    """Indices into `stimuli` to show if the next batch is late; never empty where there is a plan."""
    frames: U8
    """(frame, y, x, rgb): finished frames of the latent stimuli."""
    latents: F32
    """(frame, latent): row k made frame k."""
    final: bool = False
    """Perhaps no batch follows in this phase: the rig then waits instead of falling back. `Agent.finished` decides."""
    place: Place | None = None
    """Where all its images lie; None: where the config's `stimulus` says. The frames have the shape of it."""


def nothing(generation: int, frame_shape: tuple[int, int]) -> Batch:
    """Return the batch of a work that concludes a phase."""
    none = np.empty((0, *frame_shape, 3), np.uint8)
    return Batch(generation, (), (), 0, (), none, np.empty((0, 0), np.float32), final=True)


class Work(Protocol):
    """A resumable computation of the next batch; changes nothing outside itself until its result is taken."""

    steps: int
    """Steps taken so far."""

    def step(self) -> bool:
        """Do about 10 ms of work; return True when finished."""
        ...

    def peek(self) -> Batch:
        """Return the batch without any change to the agent; raises RuntimeError before the last step."""
        ...

    def result(self) -> Batch:
        """Return the batch and let the agent move on to it; raises RuntimeError before the last step."""
        ...


class Agent(Protocol):
    """Chooses stimuli from responses."""

    def ask(self) -> Work:
        """Return the computation of the next batch; only after all main slots of the batch before were told."""
        ...

    def tell(self, told: Sequence[Told]) -> None:
        """Take outcomes; late, missing, repeated and out-of-order rows are fine."""
        ...

    def report(self) -> dict[str, float]:
        """Return named figures; a figure without data is left out (never NaN). Rates in spikes/s."""
        ...

    def finished(self) -> str | None:
        """Return why the stop rule holds, or None."""
        ...

    def scored(self) -> tuple[ImageScore, ...]:
        """Return what the newest `tell` made of images, for the log; () where nothing is scored."""
        ...

    def leaves(self) -> Leaves:
        """Return what later phases may use, {} for nothing; asked for once, after everything was told."""
        ...

    def state(self) -> dict[str, Any]:
        """Return everything that decides what comes next: arrays and JSON-able values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an agent that was built with the same arguments."""
        ...


@runtime_checkable
class Trains(Protocol):
    """An agent that trains networks which another session may begin with."""

    def cores(self) -> "Cores | None":
        """Return their cores once training is over."""
        ...
