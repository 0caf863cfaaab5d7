"""Units on paper for the tests of the inception agent: a V1 population that sees every frame of its batches."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.agents import build_from_config
from models.agents.inception import Inception
from models.agents.types import Batch, Told
from models.truth import V1, draw_cells
from rig.config.places import angles_of, rect_of, usual
from rig.config.reading import parse
from rig.config.session import Config
from stimuli.spec import BankImage, LatentImage

F64 = npt.NDArray[np.float64]
WINDOW_S = 0.1
torch.set_num_threads(1)  # as in the model server; several tests share the machine
CONFIG = """
seed: 4
display: {{size_px: [200, 150], width_cm: 40, distance_cm: 30}}
stimulus: {{size_deg: 12}}
sources: [{{type: openephys}}]
responses: {{units: [{units}]}}
phases: [{phase}]
"""
SHORT: dict[str, Any] = {
    "agent": "inception", "train": 120, "test": 12, "test_repeats": 6, "block": 30, "waiting": 12, "repeats": 6,
    "most_units": 2, "starts": 2, "iterations": 40, "grid_step": 6, "least_score": 0.1, "least_oracle": 0.1,
    "controls": ["linear", "natural_masked", "natural"],
}  # fmt: skip


def config(count: int, /, **settings: Any) -> Config:
    """Return a config with one inception phase, for units E01#0 and so on."""
    names = ", ".join(f'"E{k:02d}#0"' for k in range(1, count + 1))
    return parse(CONFIG.format(units=names, phase=SHORT | settings))


def agent_of(of: Config) -> Inception:
    """Return its agent."""
    made = build_from_config(of)(0)
    assert isinstance(made, Inception)
    return made


@dataclass
class Subject:
    """Cells that look at the frames of batches and answer with Poisson spikes."""

    config: Config
    agent: Inception
    """Asked for the frames of natural images only."""
    seed: int = 0
    lost: float = 0.0
    """Share of responses that never come."""
    batches: list[Batch] = field(default_factory=list)
    told: dict[str, list[F64]] = field(default_factory=dict)
    """Rates of each image shown back, in the order of showing."""

    def __post_init__(self) -> None:
        """Draw the cells."""
        units = len(self.config.responses.units)
        angles = angles_of(self.config.display, rect_of(self.config.display, usual(self.config.stimulus)))
        self.cells = V1(draw_cells(units, *angles, np.random.default_rng(7)), *angles)
        self.rng = np.random.default_rng(self.seed)

    def frame(self, batch: Batch, stimulus: int) -> npt.NDArray[np.uint8]:
        """Return what is on the screen for a stimulus."""
        spec = batch.stimuli[stimulus].spec
        if isinstance(spec, LatentImage):
            return batch.frames[spec.row]
        if isinstance(spec, BankImage):
            return self.agent.picture(batch.stimuli[stimulus])
        return np.full_like(self.agent.picture(self.agent.natural.stimuli[0]), 128)

    def true_rates(self, frame: npt.NDArray[np.uint8]) -> F64:
        """Return the noise-free rates (unit,)."""
        return self.cells.rate_hz(frame.astype(np.float32) / 255)

    def answer(self, batch: Batch, proposal: int) -> list[Told]:
        """Return what is told of a batch."""
        rates = {k: self.true_rates(self.frame(batch, k)) for k in {slot.stimulus for slot in batch.plan}}
        out = []
        for k, slot in enumerate(batch.plan):
            counted = self.rng.poisson(rates[slot.stimulus] * WINDOW_S) / WINDOW_S
            there = None if self.rng.random() < self.lost else counted
            name = batch.stimuli[slot.stimulus].id
            if slot.role == "confirmation" and there is not None:
                self.told.setdefault(name, []).append(there)
            out.append(Told(proposal, k, slot.role, name, there))
        return out


def next_batch(agent: Inception) -> Batch:
    """Do the work of the next block."""
    work = agent.ask()
    while not work.step():
        pass
    return work.result()


def go_on(agent: Inception, subject: Subject, late: list[Told], blocks: int | None = None) -> list[Told]:
    """Show blocks until the phase ends, or so many; tails are told with the main part that follows, as they are live.

    Returns what was not told yet.
    """
    while blocks is None or blocks > 0:
        batch = next_batch(agent)
        told = subject.answer(batch, len(subject.batches))
        subject.batches.append(batch)
        assert len(subject.batches) < 100
        agent.tell([*late, *told[: batch.tail_from]])
        late = told[batch.tail_from :]
        if agent.finished() is not None:
            agent.tell(late)
            return []
        blocks = None if blocks is None else blocks - 1
    return late
