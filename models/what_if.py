"""What if another agent had chosen: one step from what was recorded, or a whole evolution against a twin.

Called through `rig.replay.counterfactual`, which reads the session; pure, every draw from a generator of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.agents import build_from_config
from models.agents.evolve import Evolve
from models.agents.types import Batch, Told
from models.twin import Twin, reduced
from rig.config.phases import EvolvePhase
from rig.config.session import Config
from stimuli.search.ga import GASettings, XDreamGA
from stimuli.spec import AnySpec, LatentImage

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
Picture = Callable[[AnySpec], U8]


@dataclass(frozen=True)
class Generation:
    """One generation of an evolution against a twin; responses are the twin's own, without noise."""

    mean: float
    best: float
    best_code: F32
    best_frame: U8
    unknown: float
    """Share of its images that are unlike anything the twin was fitted to."""


def _evolve(config: Config, phase: int) -> EvolvePhase:
    chosen = config.phases[phase]
    if not isinstance(chosen, EvolvePhase):
        raise ValueError(f"phases.{phase} is {chosen.agent}: only evolve chooses images by responses")
    return chosen


def decode(config: Config, phase: int, codes: F32) -> U8:
    """Return the frames (n, y, x, rgb) of codes (n, latent) by the generator of an evolve phase."""
    agent = build_from_config(config)(phase)
    assert isinstance(agent, Evolve)  # noqa: S101 - of an evolve phase
    return agent.generator.decode(codes)


def would_show(config: Config, phase: int, codes: F32, scores: F64, generation: int) -> F32:
    """Return the codes that the optimiser of `config` would have shown next.

    It is told the recorded `codes` (population, latent) of a generation and their `scores` (population,), NaN where
    missing, and takes over their number where its own population is another one.
    """
    settings = _evolve(config, phase).optimiser.settings()
    if not isinstance(settings, GASettings):
        raise ValueError(f"phases.{phase}.optimiser: one step from a recorded generation is defined for xdream only")
    settings = replace(settings, population=len(codes))
    if settings.conserve >= len(codes):
        settings = replace(settings, conserve=len(codes) - 1)
    optimiser = XDreamGA(settings, codes, np.random.default_rng([config.seed, phase, generation]))
    optimiser.tell(scores)
    return optimiser.ask()


def closed_loop(
    config: Config, phase: int, twin: Twin, picture: Picture, repeat: int, most: int | None
) -> list[Generation]:
    """Run the agent of a phase against the twin, from its first generation to its last (or `most` of them).

    `picture(spec)` draws what is not latent. Agents with the same `repeat` meet the same noise; the agent's own seed
    is the config's plus `repeat`.
    """
    settings = _evolve(config, phase)
    agent = build_from_config(config.model_copy(update={"seed": config.seed + repeat}))(phase)
    noise = np.random.default_rng([repeat, 2])
    units, unit = len(config.responses.units), config.responses.units.index(settings.unit)
    out: list[Generation] = []
    tail: list[Told] = []
    while not out or (agent.finished() is None and (most is None or len(out) < most)):
        work = agent.ask()
        while not work.step():
            pass
        batch = work.result()
        truth, pictures = _answers(batch, twin, picture)
        noisy = twin.worth.noise.draw(truth[[slot.stimulus for slot in batch.plan]], noise)
        told = []
        for k, slot in enumerate(batch.plan):
            rates = np.full(units, np.nan)
            rates[unit] = noisy[k]
            told.append(Told(len(out), k, slot.role, batch.stimuli[slot.stimulus].id, rates))
        agent.tell([*tail, *told[: batch.tail_from]])
        tail = told[batch.tail_from :]
        out.append(_generation(batch, truth, pictures, twin))
    return out


def _answers(batch: Batch, twin: Twin, picture: Picture) -> tuple[F64, U8]:
    """Return the twin's response (stimulus,) to each stimulus of a batch, and what it saw."""
    latent = reduced(batch.frames) if len(batch.frames) else None
    pictures = []
    for stimulus in batch.stimuli:
        if isinstance(stimulus.spec, LatentImage):
            assert latent is not None  # noqa: S101 - a batch has the frames of its latent stimuli
            pictures.append(latent[stimulus.spec.row])
        else:
            pictures.append(picture(stimulus.spec))
    seen = np.stack(pictures)
    return twin.rate_hz(seen), seen


def _generation(batch: Batch, truth: F64, pictures: U8, twin: Twin) -> Generation:
    candidates = sorted({slot.stimulus for slot in batch.plan if slot.role == "candidate"})
    best = candidates[int(np.argmax(truth[candidates]))]
    spec = batch.stimuli[best].spec
    assert isinstance(spec, LatentImage)  # noqa: S101 - candidates of evolve are
    return Generation(
        mean=float(truth[candidates].mean()),
        best=float(truth[best]),
        best_code=np.array(batch.latents[spec.row]),
        best_frame=np.array(batch.frames[spec.row]),
        unknown=twin.unknown(pictures[candidates]),
    )
