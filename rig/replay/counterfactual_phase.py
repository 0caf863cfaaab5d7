"""One evolve phase of a session in a counterfactual: twins of its units, and what each agent makes of them.

Used by `rig.replay.counterfactual`. Each target of the phase is answered on its own; all agents run whole, with all of
their targets, as they would on the screen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from rig.config.phases import EvolvePhase
from rig.config.session import Config
from rig.config.targets import Target
from rig.messages import RATE_UNITS
from rig.replay.counterfactual_figures import (
    difference,
    mean_of,
    misses,
    shared,
    similarities,
    summary,
    unknown,
    verdict,
    worth_of,
)
from rig.replay.model_side import AgainstTwin, Evolving, TwinNeuron, WhatIf
from rig.replay.recorded import Pictures, RecordedGeneration, RecordedSession
from rig.replay.records import ReplayError
from stimuli.spec import AnySpec, Place

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
Key = tuple[str, Place | None]  # a unit, and where the images lay
RECORDED, CHANCE = "recorded", "recorded, other seed"
CHANCE_SEED = 1_000_003  # added to the session's seed for what chance alone changes


@dataclass(frozen=True)
class Agent:
    """The recorded agent or another one, for one evolve phase of the session."""

    name: str
    config: Config
    phase: int
    """Number of its own phase."""


class Comparison:
    """One evolve phase of the session, and what others would have made of it."""

    def __init__(
        self,
        session: RecordedSession,
        phase: int,
        models: WhatIf,
        agents: dict[str, Agent],
        facts: Any,
        say: Callable[[str], None],
    ) -> None:
        self._session, self._phase, self._models, self._agents = session, phase, models, agents
        self._facts, self._say = facts, say
        self._units = session.config.responses.units
        self._rate_unit = RATE_UNITS[session.measure]
        self._left_out: list[str] = []

    def answers(self, repeats: int, most: int | None) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the figures of each target, and in words what is left out."""
        where = f"phase {self._phase + 1}"
        try:
            recorded = self._evolving(self._agents[RECORDED])
        except ValueError as error:
            return [], [f"{where}: the recorded agent cannot be made again: {error}"]
        twins, unfit = self._twins(recorded)
        own = {e.prefix: e for e in recorded if self._shown(e) and self._has_twins(e, twins, unfit)}
        if not own:
            return [], self._left_out
        matched = {name: self._matched(agent, own) for name, agent in self._agents.items()}
        runs: dict[str, list[Mapping[str, Sequence[AgainstTwin]]]] = {}
        for name, agent in self._agents.items():
            self._say(f"{where}: {name} against the twins, {repeats} runs")
            runs[name] = [
                self._models.closed_loop(agent.config, agent.phase, self._facts, twins, self._draw, k, most)
                for k in range(repeats)
            ]
        out = []
        for prefix, evolving in own.items():
            of = {name: matched[name][prefix] for name in matched if prefix in matched[name]}
            against = {name: [run[its.prefix] for run in runs[name]] for name, its in of.items()}
            out.append(self._target(evolving, against, twins, list(of)))
        return out, self._left_out

    # --- what can be compared -----------------------------------------------------------------------------------------

    def _evolving(self, agent: Agent) -> Sequence[Evolving]:
        return self._models.evolving(agent.config, agent.phase, self._facts)

    def _shown(self, evolving: Evolving) -> bool:
        if self._generations(evolving):
            return True
        self._left_out.append(
            f"phase {self._phase + 1}, {evolving.target.title}: the log has no image of it at "
            f"{_place(evolving.place)}; what earlier phases left comes out otherwise by this version of the program"
        )
        return False

    def _generations(self, evolving: Evolving) -> list[RecordedGeneration]:
        every = (g.of(f"{evolving.prefix}-g") for g in self._session.phases[self._phase] if g.place == evolving.place)
        return [g for g in every if g.ids]

    def _has_twins(self, evolving: Evolving, twins: Mapping[Key, TwinNeuron], unfit: Mapping[Key, str]) -> bool:
        missing = [name for name in evolving.target.named if (name, evolving.place) not in twins]
        if not missing:
            return True
        why = unfit[missing[0], evolving.place]
        self._left_out.append(f"phase {self._phase + 1}, {evolving.target.title}: no twin of {missing[0]}: {why}")
        return False

    def _twins(self, recorded: Sequence[Evolving]) -> tuple[dict[Key, TwinNeuron], dict[Key, str]]:
        """Return a twin of each unit at each place, and why there is none."""
        fitted: dict[Key, TwinNeuron] = {}
        unfit: dict[Key, str] = {}
        for key in dict.fromkeys((name, e.place) for e in recorded for name in e.target.named):
            try:
                fitted[key] = self._fit(*key)
            except ValueError as error:
                unfit[key] = str(error)
                continue
            worth = fitted[key].worth
            self._say(
                f"phase {self._phase + 1}, {key[0]}: twin ({worth.features}) fitted to {worth.images} images, "
                f"{worth.trials} responses; held-out r {worth.held_out_r:.2f}, ceiling {worth.ceiling_r:.2f}"
            )
        return fitted, unfit

    def _fit(self, unit: str, place: Place | None) -> TwinNeuron:
        session = self._session
        rates = session.rates[:, self._units.index(unit)]
        # A receptive field sees other parts of an image that lies elsewhere: such responses say nothing of this place.
        known = np.isfinite(rates) & np.array([session.place[k] == place for k in session.image], np.bool_)
        return self._models.fit(session.pictures, session.image[known], rates[known], session.fixed[known], 0)

    def _matched(self, agent: Agent, own: Mapping[str, Evolving]) -> dict[str, Evolving]:
        """Return an agent's own evolution for each recorded one, by the recorded one's prefix. Raises ReplayError."""
        try:
            theirs = self._evolving(agent)
        except ValueError as error:
            raise ReplayError(f"{agent.name}: {error}") from error
        out = {}
        for prefix, one in own.items():
            same = [e for e in theirs if _what(e.target) == _what(one.target)]
            here = [e for e in same if e.place == one.place]
            if here:
                out[prefix] = here[0]
            elif same:
                raise ReplayError(
                    f"{agent.name}: phases.{agent.phase}.place: not where the session's images of {one.target.title} "
                    "lay; keep place and size"
                )
            else:
                self._left_out.append(
                    f"phase {self._phase + 1}, {one.target.title}: left out of {agent.name}, which has no such target"
                )
        if not out:
            there = ", ".join(e.target.title for e in theirs)
            wanted = ", ".join(e.target.title for e in own.values())
            raise ReplayError(
                f"{agent.name}: phases.{agent.phase}.unit: {there}, but the session evolved for {wanted}; keep the unit"
            )
        return out

    # --- the figures --------------------------------------------------------------------------------------------------

    def _draw(self, spec: AnySpec, place: Place | None) -> U8:
        return self._pictures.at(spec, place)

    @cached_property
    def _pictures(self) -> Pictures:
        return Pictures(self._session.config, self._models.reduced)

    def _target(
        self,
        evolving: Evolving,
        runs: dict[str, list[Sequence[AgainstTwin]]],
        twins: Mapping[Key, TwinNeuron],
        names: list[str],
    ) -> dict[str, Any]:
        target, generations = evolving.target, self._generations(evolving)
        values = [g.values(target, self._units) for g in generations]
        worths = {name: twins[name, evolving.place].worth for name in dict.fromkeys(target.named)}
        several = len(worths) > 1
        warnings = [f"{name}: {words}" if several else words for name, w in worths.items() for words in w.warnings()]
        warnings += [*misses(runs[RECORDED], values), *unknown(runs)]
        apart = {name: difference(runs[RECORDED], runs[name]) for name in runs if name != RECORDED}
        return {
            "phase": self._phase,
            "part": evolving.prefix.partition("-")[2].replace("t", "_t"),
            "unit": target.title,
            "suppressed": target.suppress,
            "twins": {name: worth_of(w) for name, w in worths.items()},
            "warnings": warnings,
            "measured_mean": [mean_of(one) for one in values],
            "one_step": self._one_step(evolving, generations, twins, names),
            "closed_loop": {name: summary(runs[name], target.sign) for name in runs},
            "final_difference": apart,
            "verdicts": [verdict(name, one, self._rate_unit) for name, one in apart.items()],
            "latent_similarity": similarities(runs),
        }

    def _one_step(
        self,
        evolving: Evolving,
        generations: list[RecordedGeneration],
        twins: Mapping[Key, TwinNeuron],
        names: list[str],
    ) -> dict[str, Any]:
        """Compare what each optimiser would have shown next with what was shown, at every generation."""
        own = self._agents[RECORDED]
        chance = Agent(CHANCE, own.config.model_copy(update={"seed": own.config.seed + CHANCE_SEED}), own.phase)
        agents, left_out = list[Agent](), dict[str, str]()
        for agent in (chance, *(self._agents[name] for name in names if name != RECORDED)):
            if why := self._no_step(agent):
                left_out[agent.name] = why
            else:
                agents.append(agent)
        rows: dict[str, list[dict[str, float]]] = {agent.name: [] for agent in agents}
        number = int(evolving.prefix.partition("-t")[2] or 0)
        for before, after in pairwise(generations if agents else []):
            if after.generation != before.generation + 1:
                continue
            scores = evolving.target.sign * before.values(evolving.target, self._units)
            shown = self._twin_mean(evolving, twins, after.pictures)
            for agent in agents:
                told = before.codes, scores, before.generation, number
                codes = self._models.would_show(agent.config, agent.phase, *told)
                frames = self._models.decode(own.config, own.phase, codes, evolving.place)
                rows[agent.name].append(
                    {
                        "generation": float(after.generation),
                        "distance": float(np.linalg.norm(codes.mean(axis=0) - after.codes.mean(axis=0))),
                        "same_images": float(shared(codes, after.codes)),
                        "twin_mean_shown": shown,
                        "twin_mean_instead": self._twin_mean(evolving, twins, self._models.reduced(frames)),
                    }
                )
        return {"rows": rows, "left_out": left_out}

    def _no_step(self, agent: Agent) -> str:
        """Return why one step of an agent cannot be had from the record, "" if it can."""
        settings, recorded = agent.config.phases[agent.phase], self._session.config.phases[self._phase]
        assert isinstance(settings, EvolvePhase)  # noqa: S101 - of an evolve phase
        assert isinstance(recorded, EvolvePhase)  # noqa: S101 - of an evolve phase
        if settings.generator != recorded.generator:
            return "its generator is another one: the recorded codes mean nothing to it"
        if settings.optimiser.type != "xdream":
            return (
                f"{settings.optimiser.type} goes by more than the newest generation; only xdream's next step follows "
                "from that alone"
            )
        return ""

    def _twin_mean(self, evolving: Evolving, twins: Mapping[Key, TwinNeuron], pictures: U8) -> float:
        rates = np.full((len(pictures), len(self._units)), np.nan)
        for name in evolving.target.named:
            rates[:, self._units.index(name)] = twins[name, evolving.place].rate_hz(pictures)
        return float(evolving.target.value(rates, self._units).mean())


def _place(place: Place | None) -> str:
    if place is None:
        return "the usual place"
    return f"{place.size_deg:g} degrees, ({place.center_deg[0]:g}, {place.center_deg[1]:g})"


def _what(target: Target) -> Target:
    """Return what a target is about, whatever it is called and wherever its images lie."""
    return target.model_copy(update={"name": None, "place": None, "size_deg": None})
