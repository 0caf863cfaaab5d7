"""The work of one batch of an evolution: update the optimisers, decode in chunks, put the batch together.

Part of the evolve agent, which is not touched before the result is taken.
"""

import copy
from typing import TYPE_CHECKING

import numpy as np

from models.agents.types import F32, U8, Batch
from rig.messages import Slot
from stimuli.search.optimiser import Asked, Optimiser
from stimuli.spec import Blank, Stimulus

if TYPE_CHECKING:
    from models.agents.evolve import Evolve, Group

DECODE_CHUNK = 8  # images decoded in one step: a few ms


class Breeding:
    """Computes one batch: a step for each optimiser, steps of decoding, and one to put it together."""

    def __init__(self, agent: "Evolve", group: "Group", number: int) -> None:
        """Compute batch `number` of `agent`, which is of `group`."""
        self.steps = 0
        self._agent, self._group, self._number = agent, group, number
        self._told = [evolution.told() for evolution in group.evolutions]
        self._rng = copy.deepcopy(agent.rng)
        self._bred: list[tuple[Optimiser, Asked]] = []
        self._stimuli: list[Stimulus] = []
        self._candidates: list[list[int]] = []  # of each target: index into the stimuli of each candidate
        self._reshows: list[list[int]] = []
        self._codes: list[F32] = []  # (latent,) each, in the order of the stimuli
        self._decoded: list[U8] = []
        self._batch: Batch | None = None
        self._taken = False

    def step(self) -> bool:
        """Take one step; return True when finished. Further calls change nothing."""
        if self._batch is not None:
            return True
        done = len(self._decoded) * DECODE_CHUNK
        if len(self._bred) < len(self._group.evolutions):
            self._breed(len(self._bred))
        elif done < len(self._codes):
            chunk = np.stack(self._codes[done : done + DECODE_CHUNK])
            self._decoded.append(self._group.generator.decode(chunk))
        else:
            self._batch = self._assemble()
        self.steps += 1
        return self._batch is not None

    def peek(self) -> Batch:
        """Return the batch without a change to the agent."""
        if self._batch is None:
            raise RuntimeError("the next generation is not computed yet; call step until it returns True")
        return self._batch

    def result(self) -> Batch:
        """Return the batch; the agent moves on to it."""
        batch = self.peek()
        if not self._taken:
            again = [bool(reshows) for reshows in self._reshows]
            bred = [(*one, told, a) for one, told, a in zip(self._bred, self._told, again, strict=True)]
            self._agent.move_on(batch, self._number, bred, self._rng)
            self._taken = True
        return batch

    def _breed(self, k: int) -> None:
        """Let one optimiser ask; name its images, those that are asked for and those that are shown again."""
        evolution, phase = self._group.evolutions[k], self._agent.phase
        before = evolution.asked
        optimiser, asked = evolution.bred()
        names = evolution.names_ahead(asked)
        at: dict[str, int] = {}
        for name, code, origin in zip(names, asked.codes, asked.origins, strict=True):
            if name not in at:
                at[name] = self._add(evolution.stimulus(name, origin, len(self._codes)), code)
        self._candidates.append([at[name] for name in names])
        reshows = []
        for code_id in evolution.winners(phase.reshows):
            assert before is not None  # noqa: S101 - codes are measured after they were asked for
            name, row = evolution.name(code_id), before.code_ids.index(code_id)
            if name not in at:
                at[name] = self._add(
                    evolution.stimulus(name, before.origins[row], len(self._codes)), before.codes[row]
                )
            reshows.append(at[name])
        self._reshows.append(reshows)
        self._bred.append((optimiser, asked))

    def _add(self, stimulus: Stimulus, code: F32) -> int:
        self._stimuli.append(stimulus)
        self._codes.append(code)
        return len(self._stimuli) - 1

    def _assemble(self) -> Batch:
        phase, group, rng = self._agent.phase, self._group, self._rng
        stimuli = [*self._stimuli, *group.references]
        references = list(range(len(self._stimuli), len(stimuli)))
        main = [Slot(stimulus=k, role="candidate") for of in self._candidates for k in of]
        if phase.blanks:
            main += [Slot(stimulus=len(stimuli), role="blank")] * phase.blanks
            stimuli.append(Stimulus(id="blank", spec=Blank()))
        reshows = [k for of in self._reshows for k in of]
        tail = [Slot(stimulus=k, role="reshow") for k in reshows]
        tail += [Slot(stimulus=k, role="reference") for k in references]
        plan = [main[k] for k in rng.permutation(len(main))] + [tail[k] for k in rng.permutation(len(tail))]
        generation = self._number // len(self._agent.groups)
        return Batch(
            generation=generation,
            stimuli=tuple(stimuli),
            plan=tuple(plan),
            tail_from=len(main),
            fallback=tuple(reshows + references) or (0,),
            frames=np.concatenate(self._decoded),
            latents=np.stack(self._codes),
            final=self._number + 1 >= phase.generations * len(self._agent.groups),
            place=group.place,
        )
