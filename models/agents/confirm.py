"""The confirm agent: images that were fixed before, each shown in fresh interleaved repeats, for claims and p-values.

The image with the best of 400 single responses looks twice as good as it is. So an experiment that makes a claim ends
here: the images on which each evolution bets, the references that were best before, and start images if wanted, all
chosen from earlier phases only (`models.agents.carried`), in blocks that show every image once in random order. The
figures are of these presentations alone (`rig.confirmation`). Images of different places or generators take turns by
block, because a proposal has one place and codes of one size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.agents.carried import Carried, Leaves, Measured, placed_id, references_of
from models.agents.present import Contents, Present
from models.agents.types import F32, F64, U8, Told
from rig.config.phases import ConfirmPhase
from rig.config.targets import Target
from rig.confirmation import Claim, Repeats, claims
from rig.messages import ImageScore
from stimuli.spec import LatentImage, Place, Stimulus


@dataclass(frozen=True)
class Fixed:
    """One image of the confirmation and what it stands for."""

    target: Target
    title: str
    source: str
    """evolved, reference or start."""
    image: int
    """Index into the set's stimuli."""


@dataclass(frozen=True)
class FixedSet:
    """Everything that a confirmation shows."""

    stimuli: tuple[Stimulus, ...]
    frames: tuple[U8 | None, ...]
    """(image,) finished frames of latent ones, (y, x, rgb)."""
    codes: tuple[F32 | None, ...]
    """(image,) their codes."""
    groups: tuple[tuple[Place | None, int], ...]
    """(image,) images of one group share a proposal: their place, and the size of the codes in it."""
    fixed: tuple[Fixed, ...]
    """For each target and source, the best bet first; one image may stand here more than once."""


def fixed_set(phase: ConfirmPhase, where: str, units: tuple[str, ...], carried: Sequence[Carried]) -> FixedSet:
    """Choose from what earlier phases left; `where` names the phase in an error. Raises ValueError if nothing is left.

    Of each target: its `phase.images` best nominations, its `phase.starts` start images, and the `phase.references`
    references to which it responded most (least, where it is suppressed), by their mean over all earlier phases.
    """
    chosen: dict[str, tuple[Stimulus, U8 | None, F32 | None, tuple[Place | None, int]]] = {}
    fixed: list[tuple[Target, str, str, str]] = []
    measured = references_of(carried)
    titles = [t.title for c in carried for t in c.targets]
    for left in carried:
        for target in left.targets:
            own = [n for n in left.images if n.target == target.title]
            title = target.title if titles.count(target.title) == 1 else f"{target.title}, phase {left.phase + 1}"
            for source, most in (("evolved", phase.images), ("start", phase.starts)):
                for n in [n for n in own if n.source == source][:most]:
                    chosen[n.stimulus.id] = (n.stimulus, n.frame, n.code, (n.place, n.code.size))
                    fixed.append((target, title, source, n.stimulus.id))
            place, size = (own[0].place, own[0].code.size) if own else (None, 0)
            for reference in best_references(target, units, measured, place, phase.references):
                name = placed_id(reference.stimulus.id, place, reference.place)
                stimulus = reference.stimulus.model_copy(update={"id": name})
                chosen.setdefault(name, (stimulus, None, None, (place, size)))
                fixed.append((target, title, "reference", name))
    if not any(source == "evolved" for _, _, source, _ in fixed):
        raise ValueError(f"{where}: no earlier phase left an image to confirm; put an evolve phase before it")
    at = {name: k for k, name in enumerate(chosen)}
    stimuli, frames, codes, groups = zip(*chosen.values(), strict=True)
    return FixedSet(stimuli, frames, codes, groups, tuple(Fixed(t, n, s, at[i]) for t, n, s, i in fixed))


def best_references(
    target: Target, units: tuple[str, ...], measured: Sequence[Measured], place: Place | None, count: int
) -> list[Measured]:
    """Return the `count` references with the best mean score, of those that were measured at `place` if any were."""
    known = [(target.sign * float(target.value(m.rate_hz, units)), m) for m in measured]
    known = [(score, m) for score, m in known if np.isfinite(score)]
    here = [(score, m) for score, m in known if m.place == place] or known
    return [m for _, m in sorted(here, key=lambda pair: -pair[0])[:count]]


class Confirm(Present):
    """Shows what was fixed, and says what came of it."""

    role = "confirmation"

    def __init__(
        self,
        chosen: FixedSet,
        phase: ConfirmPhase,
        units: tuple[str, ...],
        frame_shape: tuple[int, int],
        rng: np.random.Generator,
    ) -> None:
        """Show each image of `chosen` `phase.repeats` times; `units` are the scored ones, in the responses' order."""
        super().__init__(chosen.stimuli, phase.repeats, phase.blanks, len(units), frame_shape, rng)
        self._chosen, self._units = chosen, units
        groups: dict[tuple[Place | None, int], list[int]] = {}
        for k, group in enumerate(chosen.groups):
            groups.setdefault(group, []).append(k)
        self._groups = [(place, tuple(images)) for (place, _), images in groups.items()]
        self._rates: list[list[F64]] = [[] for _ in chosen.stimuli]  # of each image: rates (unit,) of its repeats
        # A latent image's row is its number among those of its own group's frames.
        self.stimuli = tuple(self._with_row(k, stimulus) for k, stimulus in enumerate(chosen.stimuli))

    def _with_row(self, k: int, stimulus: Stimulus) -> Stimulus:
        if not isinstance(stimulus.spec, LatentImage):
            return stimulus
        images = next(images for _, images in self._groups if k in images)
        row = sum(self._chosen.frames[i] is not None for i in images if i < k)
        return stimulus.model_copy(update={"spec": stimulus.spec.model_copy(update={"row": row})})

    @property
    def regular_blocks(self) -> int:
        """One for each repeat and group."""
        return self.repeats * len(self._groups)

    def contents(self, block: int) -> Contents:
        """Return the images of one group: groups take turns; after the last regular block, those that are owed some."""
        group = block % len(self._groups)
        if block >= self.regular_blocks:
            owing = [g for g, (_, images) in enumerate(self._groups) if any(self._owed[k] for k in images)]
            group = min(owing, key=lambda g: (g - block) % len(self._groups)) if owing else group
        place, images = self._groups[group]
        frames = [f for k in images if (f := self._chosen.frames[k]) is not None]
        codes = [c for k in images if (c := self._chosen.codes[k]) is not None]
        shape = (0, *self.frame_shape, 3)
        return Contents(
            images,
            block < self.regular_blocks,
            np.stack(frames) if frames else np.empty(shape, np.uint8),
            np.stack(codes) if codes else np.empty((0, 0), np.float32),
            place,
        )

    def take(self, image: int, row: Told) -> None:
        """Keep the rates of a confirmation presentation."""
        if image < len(self._rates):
            self._rates[image].append(np.array(row.rate_hz))

    # --- what came of it ----------------------------------------------------------------------------------------------

    def repeats_so_far(self) -> list[Repeats]:
        """Return every image with its scores, in the order in which they were fixed."""
        out = []
        for one in self._chosen.fixed:
            rates = self._rates[one.image]
            scores = one.target.value(np.stack(rates), self._units) if rates else np.empty(0)
            name = self._chosen.stimuli[one.image].id
            out.append(Repeats(one.title, one.source, name, scores[np.isfinite(scores)]))
        return out

    def claims(self) -> list[Claim]:
        """Return for each target its evolved image against its best reference, from these presentations only."""
        return claims(self.repeats_so_far())

    def report(self) -> dict[str, float]:
        """Return figures over the repeats so far; with several targets each name begins with the target's.

        evolved, reference: mean scores of the image bet on and of the reference that was best before; *_se, *_n:
        standard error and number of repeats; difference, difference_se: of the two; p: two-sided, corrected for the
        number of targets (Holm). best, reference: means of both over all targets. Figures without data are left out.
        """
        out = {"generation": float(max(self._block, 0)), "missing": float(self._missing)}
        out["usable"] = float(self._count.sum())
        found = self.claims()
        for one in found:
            begin = f"{one.target}: " if len(found) > 1 else ""
            said = {"difference": one.difference, "difference_se": one.error, "p": one.p_corrected}
            for name, of in (("evolved", one.evolved), ("reference", one.reference)):
                said |= {name: of.mean, f"{name}_se": of.error, f"{name}_n": float(len(of.scores))}
            out |= {begin + name: value for name, value in said.items()}
        if found:
            out["best"] = float(np.mean([one.evolved.mean for one in found]))
            out.setdefault("reference", float(np.mean([one.reference.mean for one in found])))
        return {name: value for name, value in out.items() if np.isfinite(value)}

    def scored(self) -> tuple[ImageScore, ...]:
        """Return the mean of each image so far."""
        return tuple(
            ImageScore(
                target=one.target,
                stimulus_id=one.stimulus_id,
                source=one.source,
                raw=one.mean,
                corrected=one.mean,
                error=one.error if np.isfinite(one.error) else None,
                presentations=len(one.scores),
            )
            for one in self.repeats_so_far()
            if len(one.scores)
        )

    def leaves(self) -> Leaves:
        """Return nothing: no later phase should choose by these presentations."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return everything that decides what comes next and what is reported."""
        none = np.empty((0, len(self._units)))
        return super().state() | {"rates": [np.stack(rates) if rates else none for rates in self._rates]}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an agent built with the same arguments."""
        super().restore(state)
        self._rates = [list(np.array(rates, np.float64)) for rates in state["rates"]]
