"""What if another agent had chosen: one step from what was recorded, or a whole evolution against twins.

Called through `rig.replay.counterfactual`, which reads the session; pure, every draw from a generator of its own. What
earlier phases left to an evolution (units proposed, places mapped, references measured) is folded from the log again
and given to every agent alike; codes of a saved evolution stand in the config itself.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.agents import build_from_config
from models.agents.carried import Carried
from models.agents.evolution import Evolution
from models.agents.evolve import Evolve
from models.agents.types import Batch, Told
from models.generators.factory import build_generator
from models.server import ModelServer
from models.twin import Twin, reduced
from rig.config.phases import EvolvePhase
from rig.config.places import rect_of, usual
from rig.config.session import Config
from rig.config.targets import Target
from rig.messages import Entry, PhaseEnded
from stimuli.search.ga import GASettings, XDreamGA
from stimuli.spec import AnySpec, LatentImage, Place

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
Facts = tuple[Carried, ...]
Picture = Callable[[AnySpec, Place | None], U8]
Twins = Mapping[tuple[str, Place | None], Twin]


@dataclass(frozen=True)
class Evolving:
    """One evolution of a phase."""

    target: Target
    prefix: str
    """With which the identities of its images begin, before "-g"."""
    place: Place | None


@dataclass(frozen=True)
class Generation:
    """One generation of an evolution against twins; values are the target's, from the twins' rates without noise."""

    mean: float
    best: float
    """Of the image with the best value: the highest, or the lowest where the target is suppressed."""
    best_code: F32
    best_frame: U8
    unknown: float
    """Share of its images that are unlike anything the twins were fitted to, mean over the twins."""


# --- what every agent is given ----------------------------------------------------------------------------------------


def facts(fold: ModelServer, entries: Iterable[Entry], before: int) -> Facts:
    """Return what the phases before number `before` left: a fresh `fold` takes the entries of the log up to there."""
    if before == 0:
        return ()
    for entry in entries:
        caused = fold.handle(entry)
        if any(isinstance(d, PhaseEnded) and d.phase >= before - 1 for d in caused):
            break
    return tuple(left for left in fold.carried if left.phase < before)


def facts_in_words(carried: Facts) -> list[str]:
    """Say what is in them that an evolution may use."""
    out = []
    for left in carried:
        by = f"by phase {left.phase + 1} ({left.agent})"
        if left.units:
            out.append(f"units proposed {by}: {', '.join(left.units)}")
        for name, place in {"images": left.place, **left.places}.items():
            if place is not None:
                right, up = place.center_deg
                out.append(f"place of {name} found {by}: {place.size_deg:g} degrees at ({right:g}, {up:g})")
        if left.references:
            out.append(f"{len(left.references)} references measured {by}")
    return out


def evolving(config: Config, phase: int, carried: Facts) -> tuple[Evolving, ...]:
    """Return the evolutions of a phase, given what earlier ones left. Raises ValueError where it cannot begin."""
    return tuple(Evolving(e.target, e.prefix, e.place) for e in _agent(config, phase, carried).evolutions)


def _settings(config: Config, phase: int) -> EvolvePhase:
    chosen = config.phases[phase]
    if not isinstance(chosen, EvolvePhase):
        raise ValueError(f"phases.{phase} is {chosen.agent}: only evolve chooses images by responses")
    return chosen


def _agent(config: Config, phase: int, carried: Facts) -> Evolve:
    _settings(config, phase)
    agent = build_from_config(config)(phase, carried)
    assert isinstance(agent, Evolve)  # noqa: S101 - of an evolve phase
    return agent


# --- one step ---------------------------------------------------------------------------------------------------------


def decode(config: Config, phase: int, codes: F32, place: Place | None = None) -> U8:
    """Return the frames (n, y, x, rgb) at a place of codes (n, latent) by the generator of an evolve phase."""
    rect = rect_of(config.display, usual(config.stimulus) if place is None else place)
    made = build_generator(_settings(config, phase).generator, rect.height, rect.width, config.display.background)
    return made.decode(codes)


def would_show(config: Config, phase: int, codes: F32, scores: F64, generation: int, number: int = 0) -> F32:
    """Return the codes that the optimiser of `config` would have shown next for target `number` of a phase.

    It is told the recorded `codes` (population, latent) of a generation and their `scores` (population,), the higher
    the better, NaN where missing, and takes over their number where its own population is another one.
    """
    settings = _settings(config, phase).optimiser.settings()
    if not isinstance(settings, GASettings):
        raise ValueError(f"phases.{phase}.optimiser: one step from a recorded generation is defined for xdream only")
    settings = replace(settings, population=len(codes), conserve=min(settings.conserve, len(codes) - 1))
    stream = [config.seed, phase, generation, *([number] if number else [])]
    optimiser = XDreamGA(settings, codes, np.random.default_rng(stream))
    optimiser.tell(scores)
    return optimiser.ask()


# --- whole evolutions -------------------------------------------------------------------------------------------------


def closed_loop(
    config: Config, phase: int, carried: Facts, twins: Twins, picture: Picture, repeat: int, most: int | None
) -> dict[str, list[Generation]]:
    """Run the agent of a phase against twins, from its first generation to its last (or `most` of them).

    Returns the generations of each target, by the prefix of its images. `twins`: of a unit and a place; a unit
    without one has no response there, so that a target that needs it gets none. `picture(spec, place)` draws what is
    not latent. Agents with the same `repeat` meet the same noise; the agent's own seed is the config's plus `repeat`.
    """
    agent = _agent(config.model_copy(update={"seed": config.seed + repeat}), phase, carried)
    world = _World(config.responses.units, twins, picture, repeat)
    out: dict[str, list[Generation]] = {e.prefix: [] for e in agent.evolutions}
    tail: list[Told] = []
    batches = 0
    while not batches or (agent.finished() is None and (most is None or batches < most * len(agent.groups))):
        work = agent.ask()
        while not work.step():
            pass
        batch = work.result()
        rates, pictures = world.rates(batch)
        told = world.told(batch, batches, rates)
        agent.tell([*tail, *told[: batch.tail_from]])
        tail = told[batch.tail_from :]
        for evolution in agent.groups[batches % len(agent.groups)].evolutions:
            if np.isfinite(evolution.target.value(rates, world.units)).any():
                out[evolution.prefix].append(world.generation(evolution, batch, rates, pictures))
        batches += 1
    return out


class _World:
    """Twins in the place of neurons."""

    def __init__(self, units: tuple[str, ...], twins: Twins, picture: Picture, repeat: int) -> None:
        self.units = units
        self._twins, self._picture = twins, picture
        self._noise = [np.random.default_rng([repeat, 2, k]) for k in range(len(units))]

    def rates(self, batch: Batch) -> tuple[F64, U8]:
        """Return the twins' rates (stimulus, unit) to each stimulus of a batch, NaN without a twin; what they saw."""
        latent = reduced(batch.frames) if len(batch.frames) else None
        pictures = []
        for stimulus in batch.stimuli:
            if isinstance(stimulus.spec, LatentImage):
                assert latent is not None  # noqa: S101 - a batch has the frames of its latent stimuli
                pictures.append(latent[stimulus.spec.row])
            else:
                pictures.append(self._picture(stimulus.spec, batch.place))
        seen = np.stack(pictures)
        out = np.full((len(seen), len(self.units)), np.nan)
        for k, name in enumerate(self.units):
            twin = self._twins.get((name, batch.place))
            if twin is not None:
                out[:, k] = twin.rate_hz(seen)
        return out, seen

    def told(self, batch: Batch, number: int, rates: F64) -> list[Told]:
        """Return a noisy response to each presentation of a batch."""
        shown = rates[[slot.stimulus for slot in batch.plan]]
        for k, name in enumerate(self.units):
            twin = self._twins.get((name, batch.place))
            if twin is not None:
                shown[:, k] = twin.worth.noise.draw(shown[:, k], self._noise[k])
        return [
            Told(number, k, slot.role, batch.stimuli[slot.stimulus].id, shown[k]) for k, slot in enumerate(batch.plan)
        ]

    def generation(self, evolution: Evolution, batch: Batch, rates: F64, pictures: U8) -> Generation:
        """Return how the candidates of one evolution did."""
        planned = sorted({slot.stimulus for slot in batch.plan if slot.role == "candidate"})
        own = [k for k in planned if evolution.code_of(batch.stimuli[k].id) is not None]
        value = evolution.target.value(rates[own], self.units)
        best = int(np.argmax(evolution.target.sign * value))
        spec = batch.stimuli[own[best]].spec
        assert isinstance(spec, LatentImage)  # noqa: S101 - candidates of evolve are
        twins = [t for name in evolution.target.named if (t := self._twins.get((name, batch.place))) is not None]
        return Generation(
            mean=float(value.mean()),
            best=float(value[best]),
            best_code=np.array(batch.latents[spec.row]),
            best_frame=np.array(batch.frames[spec.row]),
            unknown=float(np.mean([twin.unknown(pictures[own]) for twin in twins])),
        )

