"""The control agent: images that set the responses of a population, made by a model that is fitted in the same session.

After Bashivan, Kar & DiCarlo 2019 (Science 364, eaav9436). It runs the loop of the inception agent (natural images, a
fit behind each block, images shown back in fresh repeats) with images of its own: for each goal some that the model
makes, and the natural images that are best for it by all that was known before. Claims rest on the fresh repeats.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.agents.carried import Leaves
from models.agents.inception import Inception
from models.agents.inception_making import Making
from models.agents.types import F64, Told
from models.control.making import PopulationControl, goals
from models.control.natural import Norm, best_by_halves, norm_of, range_of
from models.control.results import Shown, compared, of_goals
from models.encoders.core_files import Cores
from models.inception.learner import table
from models.metrics.sums import ImageSums
from rig.config.control import ControlPhase
from rig.messages import ImageScore


class Control:
    """Fits, chooses sites, makes images for goals, and shows them back among natural ones."""

    def __init__(self, phase: ControlPhase, loop: Inception) -> None:
        """Run `loop`, which was built of `phase.loop()`."""
        self.phase, self.loop = phase, loop
        self._sums = ImageSums.empty(len(loop.natural.stimuli), len(loop.units))

    # --- the contract -------------------------------------------------------------------------------------------------

    def ask(self) -> Making:
        """Return the computation of the next block."""
        return self.loop.ask(PopulationControl(self.phase, ImageSums.restored(self._sums.state())))

    def tell(self, told: Sequence[Told]) -> None:
        """Take outcomes; an image whose response is missing is shown again."""
        pending, test = len(self.loop.pending), len(self.loop.test)
        self.loop.tell(told)
        for image, rates in (*self.loop.pending[pending:], *self.loop.test[test:]):
            self._sums.add(np.array([image]), None, rates[None])

    def finished(self) -> str | None:
        """Return why it is over: everything was shown back, or no site could be controlled."""
        why, found = self.loop.finished(), self.loop.judged
        if why is None or found is None or self.loop.chosen:
            return why
        reasons = Counter(reason for one in found for reason in one.against)
        return f"no site to control ({', '.join(f'{n} {reason}' for reason, n in reasons.items())}): no image was made"

    def report(self) -> dict[str, float]:
        """Return figures, those of a site or a goal after its name and a colon; without data they are left out.

        Of the model and the choice of sites: as the inception agent. After the choice `SITE: natural_mean`,
        `natural_sd` (spikes/s): what responses are z-scored by; `natural_low`, `natural_high`: the lowest and highest
        mean response to a held-out image. Of a goal ("stretch SITE", "one_hot SITE", "target
        NAME"): the score of each image ("1" is the model's favourite, "natural", "predicted") with _se and _n;
        best_made, best_natural: chosen by half of the repeats, scored by the others. When all was shown: less_natural
        (1 less natural) with low_, high_, p_, q_, likewise predicted; halves_natural: the best held-out image by
        halves of the natural repeats; and over the goals of a kind medians (stretch_made, stretch_natural, ...) and
        shares above_, better_, worse_ (q at most `chance`) of natural, predicted, both, with _low and _high.
        """
        out = self.loop.learning()
        if self.loop.chosen:
            norm, (low, high) = self._norm(), range_of(self._sums, self.loop.natural.train)
            for site in sorted({site for goal in goals(self.phase, self.loop) for site in goal.sites}):
                name = self.loop.units[site]
                figures = {"mean": norm.mean, "sd": norm.sd, "low": low, "high": high}
                out |= {f"{name}: natural_{what}": float(values[site]) for what, values in figures.items()}
            every = self.shown(norm)
            out |= of_goals(every)
            if self.loop.back_block >= 0 and self.finished() is not None:  # no test before all was shown
                out |= compared(every, self.phase.chance)
                held_out = self._held_out()
                for shown in every:
                    out[f"{shown.goal.title}: halves_natural"] = best_by_halves(held_out, norm, shown.goal)
        return {name: value for name, value in out.items() if np.isfinite(value)}

    def scored(self) -> tuple[ImageScore, ...]:
        """Return the score of each image that was shown back, so far."""
        if not self.loop.chosen:
            return ()
        out = []
        made = {one.goal.title: one for one in self.shown(self._norm())}
        for of, goal in zip(self.loop.made, goals(self.phase, self.loop), strict=False):
            shown = made.get(goal.title)
            for kind, which in zip(of.images, shown.z if shown else (), strict=False):
                assert shown is not None  # noqa: S101 - else there is no `which`
                if len(shown.z[which]):
                    value, error = shown.score(which), shown.error(which)
                    out.append(
                        ImageScore(
                            target=goal.title, stimulus_id=of.id_of(self.loop.prefix, kind), source=which, raw=value,
                            corrected=value, error=error if np.isfinite(error) else None,
                            presentations=len(shown.z[which]),
                        )
                    )  # fmt: skip
        return tuple(out)

    def leaves(self) -> Leaves:
        """Return the controlled sites, the images with the site's mean rates, and the natural images' means."""
        return self.loop.leaves()

    def state(self) -> dict[str, Any]:
        """Return everything that decides what comes next and what is reported."""
        return {"loop": self.loop.state(), "natural": self._sums.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an agent built with the same arguments."""
        self.loop.restore(state["loop"])
        self._sums = ImageSums.restored(state["natural"])

    def cores(self) -> Cores | None:
        """Return trained cores for another day, once training is over."""
        return self.loop.cores()

    # --- inside -------------------------------------------------------------------------------------------------------

    def shown(self, norm: Norm) -> list[Shown]:
        """Return what was measured of each goal's images, z-scored by `norm`; () before the show-back."""
        repeats = {(made.unit, kind): of for made, kind, of in self.loop.each()}
        out = []
        for made, goal in zip(self.loop.made, goals(self.phase, self.loop), strict=False):
            if repeats:
                z = {kind.rsplit("-", 1)[1]: _z(repeats[made.unit, kind], norm, goal.sites) for kind in made.images}
                out.append(Shown(goal, z))
        return out

    def _norm(self) -> Norm:
        return norm_of(self._sums, self.loop.natural.train)

    def _held_out(self) -> F64:
        natural = self.loop.natural
        rows = [(image - natural.train, rates) for image, rates in self.loop.test]
        return table(rows, natural.test, len(self.loop.units))


def _z(repeats: Sequence[F64], norm: Norm, sites: tuple[int, ...]) -> F64:
    """Return z-scored responses (repeat, site), without repeats in which a site is missing."""
    if not repeats:
        return np.empty((0, len(sites)))
    z = norm.z(np.stack(list(repeats)), sites)
    return z[np.isfinite(z).all(axis=1)]
