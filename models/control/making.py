"""Which sites the control agent controls, and the images that it makes for its goals (`models.agents.inception_maker`).

Everything is from the natural images: chosen sites, numbers to z-score by, natural images to compare with. Pure; yields
after each step of about 10 ms.
"""

from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from models.control.goals import Goal, goals_of, objective_for
from models.control.natural import Norm, norm_of, shrunk
from models.encoders.encoder import rates_of
from models.inception.images import settings_for
from models.inception.learner import Judged, Learner, judged
from models.inception.made import Made, MadeImage
from models.metrics.sums import ImageSums
from models.synthesis.engine import Synthesis, Synthesised
from models.synthesis.starts import draw
from rig.config.control import GOALS_AT_ONCE, ControlPhase
from rig.config.synthesis import HIGHEST
from stimuli.limits import frame_levels

if TYPE_CHECKING:
    from models.agents.inception import Inception

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

MEASURED, PREDICTED = "natural", "predicted"
HOW = {
    "stretch": "gradient ascent through the encoder: the site as high as possible",
    "one_hot": "gradient ascent through the encoder: the site high, all others of the set low",
    "target": "gradient ascent through the encoder: towards a vector of responses",
    MEASURED: "best natural image by all that was measured of them",
    PREDICTED: "natural image that the encoder predicts to be best",
}
SILENT = "the same mean response to every natural image"
NO_GOAL = "there is no goal for it: one_hot needs two sites"
CONTRAST_OF = 100  # natural images whose median contrast is taken
CHUNK = 4  # natural images in one step


def goals(phase: ControlPhase, agent: "Inception") -> tuple[Goal, ...]:
    """Return all goals of an agent whose sites are chosen; one set of images is made for each.

    A target vector for a unit whose responses cannot be z-scored is left out.
    """
    return _goals(phase, agent.units, agent.judged or ())


def _goals(phase: ControlPhase, units: tuple[str, ...], found: tuple[Judged, ...]) -> tuple[Goal, ...]:
    silent = {units[one.unit] for one in found if SILENT in one.against}
    targets = {name: wanted for name, wanted in phase.targets.items() if not silent & set(wanted)}
    return goals_of(phase.goals, units, [one.unit for one in found if not one.against], targets)


def kind_of(goal: Goal, which: str) -> str:
    """Return the kind of image of a goal, as in ids and scores: `which` is 1, 2, ... or one of the natural ones."""
    return f"{goal.name if goal.kind == 'target' else goal.kind}-{which}"


class PopulationControl:
    """One set of images for each goal, from natural responses that do not change any more."""

    def __init__(self, phase: ControlPhase, sums: ImageSums) -> None:
        """Begin with `sums` over the presentations of each natural image."""
        self._phase, self._sums = phase, sums

    def judge(self, agent: "Inception", learner: Learner) -> Generator[None, None, tuple[Judged, ...]]:
        """Return the sites: the best predicted of the reliable ones that answer differently are chosen.

        None is where they leave no goal: nothing would be made, and the phase would wait for it for ever.
        """
        phase = self._phase
        norm = norm_of(self._sums, agent.natural.train)
        wanted = [not phase.sites or name in phase.sites for name in agent.units]
        found = judged(learner, wanted, phase.least_score, phase.least_oracle, len(agent.units))
        predicted = yield from _predicted(agent)
        sites = different(found, predicted, np.isfinite(norm.sd), phase.most_alike, phase.most_sites, agent.units)
        if _goals(phase, agent.units, sites):
            return sites
        return tuple(Judged(one.unit, one.against or (NO_GOAL,)) for one in sites)

    def sets(self, agent: "Inception") -> int:
        """Return the number of goals."""
        return len(goals(self._phase, agent)) if agent.chosen else 0

    def make(self, agent: "Inception", rng: np.random.Generator) -> Generator[None, None, tuple[Made, ...]]:
        """Return the images of the next few goals of one kind."""
        phase, every = self._phase, goals(self._phase, agent)
        first = len(agent.made)
        most = 1 if every[first].kind == "target" else GOALS_AT_ONCE
        some = [goal for goal in every[first : first + most] if goal.kind == every[first].kind]
        norm = norm_of(self._sums, agent.natural.train)
        contrast = (yield from _contrast(agent)) if phase.contrast is None else phase.contrast
        synthesised = yield from self._ascended(agent, some, norm, contrast, rng)
        predicted = yield from _predicted(agent)
        estimates = {MEASURED: shrunk(self._sums, agent.natural.train), PREDICTED: predicted}
        made = []
        for k, goal in enumerate(some):
            best = {name: _best(goal, norm, rates) for name, rates in estimates.items()}
            made.append(_made(agent, goal, norm, contrast, different_frames(synthesised, k, phase.made), best))
            yield
        return tuple(made)

    def _ascended(
        self, agent: "Inception", some: list[Goal], norm: Norm, contrast: float, rng: np.random.Generator
    ) -> Generator[None, None, Synthesised]:
        """Yield after each step; return the images of some goals of one kind from every start."""
        encoder = agent.encoder()
        shape = agent.picture(agent.natural.stimuli[0]).shape[:2]
        settings = settings_for(self._phase.iterations, contrast, encoder.eye, shape)
        starts = draw(["display"] * self._phase.starts, len(some), encoder.eye, settings, rng)
        for goal, k in np.ndindex(len(some), self._phase.starts):
            if k % 2:  # every other start is a natural image: ascents from noise alone end alike
                image = int(rng.integers(agent.natural.train))
                yield from agent.look([image])
                seen = torch.from_numpy(agent.seen(image))
                starts[goal, k] = encoder.eye.levels(seen[None])[0].clamp(0.0, HIGHEST).numpy()
        yield
        work = Synthesis(encoder, objective_for(some, norm.mean, norm.sd), starts, settings)
        while not work.part():
            yield
        return work.result()


def different(
    found: tuple[Judged, ...], predicted: F64, known: npt.NDArray[np.bool_], most_alike: float, most: int,
    units: tuple[str, ...],
) -> tuple[Judged, ...]:  # fmt: skip
    """Return sites `found`, best first, without those that answer like a better one; no more than `most`.

    `predicted` (image, unit) responses to natural images; `known` (unit,): whether responses can be z-scored.
    """
    chosen: list[Judged] = []
    others: list[Judged] = []
    for one in found:
        against = one.against if known[one.unit] else (*one.against, SILENT)
        if against:
            others.append(Judged(one.unit, against))
            continue
        like = [units[c.unit] for c in chosen if _correlation(predicted, c.unit, one.unit) > most_alike]
        if like:
            others.append(Judged(one.unit, (f"answers like {like[0]}",)))
        elif len(chosen) == most:
            others.append(Judged(one.unit, ("others are better",)))
        else:
            chosen.append(one)
    return (*chosen, *others)


def _correlation(rates: F64, a: int, b: int) -> float:
    x, y = rates[:, a] - rates[:, a].mean(), rates[:, b] - rates[:, b].mean()
    length = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / length if length > 0 else 0.0


def _predicted(agent: "Inception") -> Generator[None, None, F64]:
    """Yield after each step; return the predicted responses (image, unit) to all natural images."""
    encoder, count, parts = agent.encoder(), len(agent.natural.stimuli), []
    yield from agent.look(range(count))
    for first in range(0, count, CHUNK):
        x = torch.from_numpy(np.stack([agent.seen(k) for k in range(first, min(first + CHUNK, count))]))
        with torch.no_grad():
            parts.append(encoder.rates(x).double().numpy())
        yield
    return np.concatenate(parts)


def _contrast(agent: "Inception") -> Generator[None, None, float]:
    """Yield after each step; return the median RMS contrast of the natural images."""
    some, found = agent.natural.stimuli[:CONTRAST_OF], []
    for one in some:
        found.append(frame_levels(agent.picture(one))[1])
        yield
    return float(np.median(found))


def _best(goal: Goal, norm: Norm, rates: F64) -> int:
    """Return the image whose `rates` (image, unit) are worth most."""
    score = goal.score(norm.z(rates, goal.sites))
    return int(np.where(np.isfinite(score), score, -np.inf).argmax())


def different_frames(found: Synthesised, goal: int, count: int) -> U8:
    """Return the frames (count, y, x, rgb) of a goal: the best one, then of the better half those that differ most.

    Different: by the correlation of pixels with the nearest of those taken before.
    """
    order = np.argsort(-found.scores[goal], kind="stable")[: max(count, -(-found.scores.shape[1] // 2))]
    flat = found.frames[goal, order].reshape(len(order), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.sqrt((flat**2).sum(axis=1, keepdims=True)), 1e-9)
    alike, taken = flat @ flat.T, [0]
    while len(taken) < count:
        nearest = alike[:, taken].max(axis=1)
        nearest[taken] = np.inf
        taken.append(int(nearest.argmin()))
    out: U8 = found.frames[goal, order[taken]]
    return out


def _made(agent: "Inception", goal: Goal, norm: Norm, contrast: float, frames: U8, natural: dict[str, int]) -> Made:
    """Return all images of a goal: those made, and the natural ones exactly as they were shown before."""
    stimuli = {name: agent.natural.stimuli[at] for name, at in natural.items()}
    every = [*frames, *(agent.picture(stimulus) for stimulus in stimuli.values())]
    names = [*(str(k + 1) for k in range(len(frames))), *stimuli]
    stacked, encoder = np.stack(every), agent.encoder()
    scores = goal.score(norm.z(rates_of(encoder, stacked), goal.sites))
    codes = encoder.eye.see(stacked).flatten(1).numpy()
    images = {
        kind_of(goal, name): MadeImage(
            codes[k].copy(), stacked[k], float(scores[k]), stimuli[name].id if name in stimuli else "",
            f"{goal.title}: {HOW.get(name, HOW[goal.kind])}", frame_levels(stacked[k])[1],
        )
        for k, name in enumerate(names)
    }  # fmt: skip
    return Made(goal.sites[goal.at], contrast, images, float("nan"))
