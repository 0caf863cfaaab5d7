"""The work of one block of the inception agent: learn from what was told, choose units, make images, plan the block.

Part of the inception agent, which is not touched before the result is taken. Steps depend on the agent's state alone,
so that a replay, or a restart in the middle, takes the same ones.
"""

import copy
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from models.agents.inception_checking import with_checks
from models.agents.inception_maker import Maker, MostExciting
from models.agents.types import F32, F64, U8, Batch
from models.inception.features import features
from models.inception.gabors import PARAMETERS
from models.inception.images import GABOR_STARTS, best_of_grid
from models.inception.learner import Judged, Learner
from models.inception.made import Made
from models.inception.networks import Networks
from rig.messages import Slot
from stimuli.spec import Blank, Stimulus

if TYPE_CHECKING:
    from models.agents.inception import Inception

SCALED_BY = 200  # training images whose features give the scale of each
CHUNK = 8  # pictures of which the features are computed in one step
BLANK = Stimulus(id="blank", spec=Blank())


@dataclass
class Outcome:
    """What the agent takes over when the result is taken."""

    rng: np.random.Generator
    learner: Learner | None
    networks: Networks | None
    learnt: int
    """Pending presentations that are in the fit now."""
    judged: tuple[Judged, ...] | None
    gabors: F32 | None
    made: tuple[Made, ...]
    planned: list[int]
    """Of each natural image: owed presentations in this block."""
    back: bool
    """Whether it is a block of images shown back."""
    back_planned: list[int]


class Making:
    """Computes one block."""

    def __init__(self, agent: "Inception", maker: Maker | None = None) -> None:
        """Begin from the agent as it is; it does not change before the result is taken.

        `maker` chooses units and makes the images; None: most exciting images and controls.
        """
        self.steps = 0
        self._agent, self._maker = agent, maker or MostExciting()
        self._outcome = Outcome(
            copy.deepcopy(agent.rng), agent.learner, agent.networks, 0, agent.judged, agent.gabors, agent.made,
            [0] * len(agent.natural.stimuli), False, [0] * len(agent.back_owed),
        )  # fmt: skip
        self._rows = list(agent.pending)
        self._test = list(agent.test)
        self._computation = self._compute()
        self._batch: Batch | None = None
        self._taken = False

    def step(self) -> bool:
        """Take one step; return True when finished. Further calls change nothing.

        What only fills memory is not counted: how much of it there is to do depends on restarts.
        """
        if self._batch is None:
            self._agent.remembering = False
            self._batch = next(self._computation)
            self.steps += not self._agent.remembering
            if self._batch is not None:
                self._computation.close()  # it refers to this work: what was learnt before would stay in memory
        return self._batch is not None

    def peek(self) -> Batch:
        """Return the block without a change to the agent."""
        if self._batch is None:
            raise RuntimeError("the next block is not computed yet; call step until it returns True")
        return self._batch

    def result(self) -> Batch:
        """Return the block; the agent moves on to it."""
        batch = self.peek()
        if not self._taken:
            self._agent.move_on(batch, self._outcome)
            self._taken = True
        return batch

    # --- inside -------------------------------------------------------------------------------------------------------

    def _compute(self) -> Generator[Batch | None, None, None]:
        """Yield None after each step, and the block at last."""
        agent, out = self._agent, self._outcome
        number = agent.block + 1
        if agent.judged is None:
            yield from self._learn()
        if number < len(agent.blocks):
            yield self._natural(agent.blocks[number])
            return
        if self._over(number) and agent.judged is None:
            yield from self._judge()
        elif agent.judged is not None and out.gabors is None:
            yield from self._grid()
        elif agent.judged is not None and len(agent.made) < self._maker.sets(agent):
            some = yield from self._maker.make(agent, out.rng)
            out.made = (*agent.made, *some)
        if out.judged is not None and len(out.made) == self._maker.sets(agent) > 0:
            if agent.back_block >= 0 and isinstance(self._maker, MostExciting):
                out.made = yield from with_checks(agent)
            yield self._back()
            return
        yield self._natural(())

    def _learn(self) -> Generator[None, None, None]:
        """Fit to what was told since the last fit, and score it on the held-out images."""
        agent, out = self._agent, self._outcome
        learner = out.learner
        if learner is None:
            some = yield from self._features(range(min(agent.natural.train, SCALED_BY)))
            learner = Learner.empty(agent.units, some)
        if self._rows:
            x = yield from self._features([image for image, _ in self._rows])
            learner = yield from agent.again(learner.remembered())
            learner = yield from learner.with_rows(x, np.stack([rates for _, rates in self._rows]))
            out.learnt = len(self._rows)
            yield
        test_x = yield from self._features(range(agent.natural.train, len(agent.natural.stimuli)))
        out.learner = learner.scored(test_x, self._test_rows())
        yield
        if agent.networks is not None:
            yield from self._train(agent.networks, out.learner)

    def _train(self, networks: Networks, learner: Learner) -> Generator[None, None, None]:
        """Train the networks on what the bank of features was just fitted to; the scores are theirs from then on."""
        agent, out = self._agent, self._outcome
        out.networks = networks.copied()
        yield
        yield from agent.look(out.networks.images)
        yield from agent.again(out.networks.resumed())
        yield from out.networks.learn(self._rows)
        out.networks.bank_score = learner.median_score
        predicted = yield from out.networks.predicted(range(agent.natural.train, len(agent.natural.stimuli)))
        if predicted is not None and self._test:
            out.learner = learner.scored_as(predicted, self._test_rows())
            yield

    def _over(self, number: int) -> bool:
        """Return whether all responses to natural images are known, and networks are trained."""
        first = len(self._agent.blocks) + 1  # only then are the responses to the end of the last natural block known
        networks = self._outcome.networks
        if networks is None or networks.finished:
            return number >= first
        return number >= first + networks.config.finish_blocks

    def _test_rows(self) -> list[tuple[int, F64]]:
        return [(image - self._agent.natural.train, rates) for image, rates in self._test]

    def _features(self, images: Sequence[int]) -> Generator[None, None, F32]:
        """Yield after each step; return the features (image, feature) of natural images."""
        yield from self._agent.look(images)
        parts = []
        for k in range(0, len(images), CHUNK):
            seen = torch.from_numpy(np.stack([self._agent.seen(image) for image in images[k : k + CHUNK]]))
            with torch.no_grad():
                parts.append(features(seen).numpy())
            yield
        return np.concatenate(parts)

    def _judge(self) -> Generator[None, None, None]:
        """Choose the units that images are made for."""
        learner = self._outcome.learner
        assert learner is not None  # noqa: S101 - `_learn` comes first
        self._outcome.judged = yield from self._maker.judge(self._agent, learner)
        self._outcome.learner = yield from learner.concluded()
        yield

    def _grid(self) -> Generator[None, None, None]:
        """Find the best Gabors of the published grid for all chosen units."""
        agent = self._agent
        if not {"gabor", "gabor_optimised"} & set(agent.phase.controls):
            self._outcome.gabors = np.zeros((len(agent.chosen), GABOR_STARTS, len(PARAMETERS)), np.float32)
            return
        units = [one.unit for one in agent.chosen]
        asked = agent.phase.contrast, agent.phase.grid_step
        self._outcome.gabors = yield from best_of_grid(agent.encoder(), units, *asked)

    # --- blocks -------------------------------------------------------------------------------------------------------

    def _natural(self, images: tuple[int, ...]) -> Batch:
        """Return a block of natural images: these and what is owed; or held-out ones while something is computed."""
        agent, out, phase = self._agent, self._outcome, self._agent.phase
        none_chosen = out.judged is not None and not any(not one.against for one in out.judged)
        if out.judged is None:
            out.planned = list(agent.owed)
        shown = [*images, *(k for k, owed in enumerate(out.planned) for _ in range(owed))]
        if not images:
            held_out = np.arange(agent.natural.train, len(agent.natural.stimuli))
            rounds = -(-phase.waiting // len(held_out))
            more = np.concatenate([out.rng.permutation(held_out) for _ in range(rounds)])
            shown += more[: max(0, phase.waiting - len(shown))].tolist()
        order = out.rng.permutation(len(shown) + phase.blanks)
        distinct = list(dict.fromkeys(shown))
        at = {image: k for k, image in enumerate(distinct)}
        slots = [Slot(stimulus=at[image], role="reference") for image in shown]
        slots += [Slot(stimulus=len(distinct), role="blank")] * phase.blanks
        plan = tuple(slots[k] for k in order)
        # While networks learn or images are made almost the whole block is on the screen behind the computation.
        begin = len(plan) // 2 if images and agent.networks is None else len(plan) // 5
        held = tuple(k for k, image in enumerate(distinct) if agent.natural.held_out(image))
        return self._block(
            tuple(agent.natural.stimuli[k] for k in distinct), plan, len(plan) if none_chosen else max(1, begin),
            held or tuple(range(len(distinct))), none_chosen,
        )  # fmt: skip

    def _back(self) -> Batch:
        """Return a block of images shown back: each once in fresh random order, and again what is owed."""
        agent, out, phase = self._agent, self._outcome, self._agent.phase
        number = agent.back_block + 1
        regular, last = number < phase.repeats, number + 1 >= phase.repeats
        every = [(made, kind) for made in out.made for kind in made.images]
        out.back, out.back_planned = True, list(agent.back_owed) or [0] * len(every)
        times = [int(regular) + owed for owed in out.back_planned]
        encoder = agent.encoder().name
        shown = [k for k, n in enumerate(times) if n]
        stimuli = tuple(every[k][0].stimulus(agent.prefix, every[k][1], row, encoder) for row, k in enumerate(shown))
        slots = [Slot(stimulus=row, role="confirmation") for row, k in enumerate(shown) for _ in range(times[k])]
        slots += [Slot(stimulus=len(stimuli), role="blank")] * phase.blanks
        plan = tuple(slots[k] for k in out.rng.permutation(len(slots)))
        images = [every[k][0].images[every[k][1]] for k in shown]
        return self._block(
            stimuli, plan, len(plan) if last else max(1, len(plan) // 2), tuple(range(len(stimuli))), last,
            (np.stack([one.frame for one in images]), np.stack([one.code for one in images])),
        )  # fmt: skip

    def _block(
        self,
        stimuli: tuple[Stimulus, ...],
        plan: tuple[Slot, ...],
        tail_from: int,
        fallback: tuple[int, ...],
        final: bool,
        images: tuple[U8, F32] | None = None,
    ) -> Batch:
        agent = self._agent
        height, width = agent.picture(agent.natural.stimuli[0]).shape[:2]
        nothing = np.empty((0, height, width, 3), np.uint8), np.empty((0, 0), np.float32)
        frames, latents = nothing if images is None else images
        return Batch(
            generation=agent.block + 1,
            stimuli=(*stimuli, *([BLANK] if agent.phase.blanks else [])),
            plan=plan,
            tail_from=tail_from,
            fallback=fallback,
            frames=frames,
            latents=latents,
            final=final,
            place=agent.place,
        )
