"""The inception agent: an encoding model learns while natural images are shown, makes images, and shows them back.

After Walker et al. 2019, in one session and without a pause. Stages, each in blocks:

natural  training images, and held-out ones again and again; the model is fitted anew behind each block
waiting  held-out images, while units are chosen and their images are made: for a few units behind each block
back     the most exciting image of every chosen unit and its controls, all units interleaved, in fresh repeats

What is claimed of the images rests on the last stage alone. Everything that takes long is done by `Making`, the work
of a block, while the rest of the block before is on the screen; the agent moves on when its result is taken.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import numpy as np

from models.agents.carried import Leaves, Measured, Nominated
from models.agents.inception_maker import Maker
from models.agents.inception_making import Making, Outcome
from models.agents.ledger import Ledger
from models.agents.types import F32, F64, U8, Batch, Told
from models.encoders.core_files import Cores
from models.encoders.encoder import Encoder
from models.encoders.eye import Eye
from models.in_steps import Kind, Stepping
from models.inception.encoder import FeatureReadout
from models.inception.learner import Judged, Learner
from models.inception.made import MEI, Made, compared, generator_name
from models.inception.networks import Networks
from models.inception.results import Repeats, mean, told
from models.inception.schedule import NaturalSet
from rig.config.inception import InceptionPhase
from rig.messages import ImageScore
from stimuli.spec import Place, Stimulus

SCORE_NAMES = ("heldout_r", "r2_er", "oracle")  # in the report: those of models.inception.learner.SCORES


class Inception:
    """Fits, chooses, makes and shows back."""

    def __init__(
        self,
        phase: InceptionPhase,
        prefix: str,
        natural: NaturalSet,
        blocks: Sequence[tuple[int, ...]],
        picture: Callable[[Stimulus], U8],
        units: tuple[str, ...],
        eye: Eye,
        rng: np.random.Generator,
        place: Place | None = None,
    ) -> None:
        """Show `natural` in `blocks` and then what is made of it; `units` are the scored ones, in responses' order.

        `picture` returns the frame (y, x, rgb) of a natural image as the rig draws it; `prefix` begins the identity of
        every image that is made; `eye` is that of the encoder; `place`: where all images lie.
        """
        self.phase, self.prefix, self.natural, self.blocks, self.picture = phase, prefix, natural, blocks, picture
        self.units, self.eye, self.place = units, eye, place
        self._at = {stimulus.id: k for k, stimulus in enumerate(natural.stimuli)}
        if len(self._at) != len(natural.stimuli):
            raise ValueError("two images of the banks have the same id; give one bank another name")
        self._seen: dict[int, F32] = {}  # what the eye sees of natural images: only saves time
        self.remembering = False  # whether the step just taken only filled memory: such steps are not counted
        self.rng = rng
        self._ledger = Ledger(len(units))
        self.block = -1
        self.learner: Learner | None = None  # the first block's work begins it
        self.networks: Networks | None = None  # set by whoever builds an agent that trains some
        self.pending: list[tuple[int, F64]] = []  # training presentations since the last fit
        self.test: list[tuple[int, F64]] = []  # held-out presentations
        self.owed = [0] * len(natural.stimuli)  # presentations without a response, not yet planned again
        self.judged: tuple[Judged, ...] | None = None
        self.gabors: F32 | None = None  # of each chosen unit: the best of the published grid
        self.made: tuple[Made, ...] = ()
        self.back_block = -1
        self._back: list[list[F64]] = []  # of each image shown back: rates (unit,) of its repeats
        self.back_owed: list[int] = []
        self._missing = self._usable = 0

    # --- the contract -------------------------------------------------------------------------------------------------

    def ask(self, maker: Maker | None = None) -> Making:
        """Return the computation of the next block; `maker` makes other images than the most exciting ones."""
        self._ledger.require_main_told()
        return Making(self, maker)

    def tell(self, told: Sequence[Told]) -> None:
        """Take outcomes; an image whose response is missing is shown again."""
        back = {stimulus_id: k for k, stimulus_id in enumerate(self._back_ids())}
        for row, _ in self._ledger.take(told):
            self._usable += row.rate_hz is not None
            self._missing += row.rate_hz is None
            image, shown = self._at.get(row.stimulus_id), back.get(row.stimulus_id)
            if row.rate_hz is None:
                if image is not None and self.judged is None:
                    self.owed[image] += 1
                if shown is not None:
                    self.back_owed[shown] += 1
            elif image is not None:
                (self.test if self.natural.held_out(image) else self.pending).append((image, row.rate_hz.copy()))
            elif shown is not None:
                self._back[shown].append(row.rate_hz.copy())

    def finished(self) -> str | None:
        """Return why it is over: everything was shown back, or no unit was worth it."""
        if not self._ledger.main_told:
            return None
        if self.judged is not None and not self.chosen:
            return (
                f"no unit was predicted (least_score {self.phase.least_score:g}) and reliable "
                f"(least_oracle {self.phase.least_oracle:g}): no image was made"
            )
        if self.back_block + 1 < self.phase.repeats:
            return None
        owed = sum(self.back_owed)
        if not owed:
            shown = f"{len(self._back)} images of {len(self.chosen)} units"
            return f"{self.phase.repeats} repeats of {shown} were shown back"
        if self.back_block + 1 >= 2 * self.phase.repeats:  # as many make-up blocks as blocks
            return f"{owed} presentations still have no usable response after {self.phase.repeats} make-up blocks"
        return None

    def report(self) -> dict[str, float]:
        """Return figures; names of a unit's begin with its own. Figures without data are left out.

        images_seen: presentations in the fit; heldout_r, r2_er, oracle: of held-out images, as `models.metrics` defines
        correlation_to_average, r2_er and oracle_jackknife, medians over units and for each with the ends of its 95 %
        interval (_low, _high). After selection: chosen, and for each unit rank, or the reasons it was rejected for. Of
        images shown back: means over their repeats by kind, *_se, *_n; row_maximum: share of units that their own image
        drove more than any other. When all are shown: its p and interval (_p, _low, _high); for each control p_* and
        q_*; and over units better_* and worse_*: the share that their own image drove more, or less, than the control,
        with q at most `chance`; population_*: the same over all units together (models.inception.results). Of networks:
        bank_heldout_r, the heldout_r of the bank of features on the same presentations, and network1_epochs,
        network1_validation_r and so on (models.inception.networks).
        """
        out = self.learning() | self._shown_back()
        return {name: value for name, value in out.items() if np.isfinite(value)}

    def learning(self) -> dict[str, float]:
        """Return the figures of the model and of the choice of units, NaN where there are no data."""
        out = {"generation": float(max(self.block, 0)), "missing": float(self._missing), "usable": float(self._usable)}
        out["images_seen"] = 0.0 if self.learner is None else float(self.learner.presentations)
        scores = () if self.learner is None else self.learner.scores
        for name, found in zip(SCORE_NAMES, scores, strict=False):
            known = found[np.isfinite(found[:, 0]), 0]
            out[name] = float(np.median(known)) if len(known) else float("nan")
            for unit, ends in zip(self.units, found, strict=True):
                figures = zip((name, f"{name}_low", f"{name}_high"), ends, strict=True)
                out |= {f"{unit}: {figure}": float(value) for figure, value in figures}
        for rank, one in enumerate(self.judged or ()):
            name = self.units[one.unit]
            out |= {f"{name}: rejected, {why}": 1.0 for why in one.against}
            if not one.against:
                out[f"{name}: rank"] = float(rank + 1)
        if self.judged is not None:
            out["chosen"] = float(len(self.chosen))
        return out | (self.networks.report() if self.networks is not None else {})

    def scored(self) -> tuple[ImageScore, ...]:
        """Return the mean of each image that was shown back, so far."""
        out = []
        for made, kind, repeats in self.each():
            value, error, n = mean(repeats, made.unit)
            if n:
                out.append(
                    ImageScore(
                        target=self.units[made.unit], stimulus_id=made.id_of(self.prefix, kind), source=kind, raw=value,
                        corrected=value, error=error if np.isfinite(error) else None, presentations=n,
                    )
                )  # fmt: skip
        return tuple(out)

    def leaves(self) -> Leaves:
        """Return the chosen units, their images with the means of the fresh repeats, and the natural images' means."""
        images, encoder = [], self.encoder().name
        for made, kind, repeats in self.each():
            if not compared(kind):
                continue
            value, error, n = mean(repeats, made.unit)
            of = made.images[kind]
            stimulus, unit = made.stimulus(self.prefix, kind, 0, encoder), self.units[made.unit]
            by = generator_name(encoder)
            images.append(Nominated(unit, kind, stimulus, by, of.code, of.frame, value, error, n, self.place))
        total, count = np.zeros((2, len(self.natural.stimuli), len(self.units)))
        for image, rates in self.test:
            known = np.isfinite(rates)
            total[image, known] += rates[known]
            count[image] += known
        at = range(self.natural.train, len(self.natural.stimuli))
        means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        measured = (Measured(self.natural.stimuli[k], means[k], count[k].astype(np.int64), self.place) for k in at)
        return {
            "units": tuple(self.units[one.unit] for one in self.chosen),
            "images": tuple(images),
            "references": tuple(measured),
        }

    def state(self) -> dict[str, Any]:
        """Return everything that decides what comes next and what is reported."""
        return {
            "rng": self.rng.bit_generator.state,
            "ledger": self._ledger.state(),
            "block": self.block,
            "learner": None if self.learner is None else self.learner.state(),
            "networks": None if self.networks is None else self.networks.state(),
            "pending": [[k, rates] for k, rates in self.pending],
            "test": [[k, rates] for k, rates in self.test],
            "owed": list(self.owed),
            "judged": None if self.judged is None else [[one.unit, list(one.against)] for one in self.judged],
            "gabors": self.gabors,
            "made": [one.state() for one in self.made],
            "back_block": self.back_block,
            "back": [[*repeats] for repeats in self._back],
            "back_owed": list(self.back_owed),
            "missing": self._missing,
            "usable": self._usable,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an agent built with the same arguments."""
        self.rng.bit_generator.state = state["rng"]
        self._ledger.restore(state["ledger"])
        self.block, learner = state["block"], state["learner"]
        self.learner = None if learner is None else Learner.restored(self.units, learner)
        if self.networks is not None:
            self.networks.restore(state["networks"])
        self.pending = [(k, np.array(rates, np.float64)) for k, rates in state["pending"]]
        self.test = [(k, np.array(rates, np.float64)) for k, rates in state["test"]]
        self.owed = list(state["owed"])
        judged = state["judged"]
        self.judged = None if judged is None else tuple(Judged(unit, tuple(against)) for unit, against in judged)
        self.gabors = None if state["gabors"] is None else np.array(state["gabors"], np.float32)
        self.made = tuple(Made.restored(one) for one in state["made"])
        self.back_block, self.back_owed = state["back_block"], list(state["back_owed"])
        self._back = [[np.array(rates, np.float64) for rates in repeats] for repeats in state["back"]]
        self._missing, self._usable = state["missing"], state["usable"]

    def cores(self) -> Cores | None:
        """Return the trained cores once training is over."""
        return None if self.networks is None or self.judged is None else self.networks.cores()

    # --- what the work needs, and its end -----------------------------------------------------------------------------

    @property
    def chosen(self) -> tuple[Judged, ...]:
        """Units that images are made for, the best first; () before selection."""
        return tuple(one for one in self.judged or () if not one.against)

    def encoder(self) -> Encoder:
        """Return the encoder as it is fitted now."""
        trained = None if self.networks is None else self.networks.encoder()
        if trained is not None:
            return trained
        return FeatureReadout(self.units, self.eye, self.known().weights, self.known().offset)

    def known(self) -> Learner:
        """Return what was learnt; raises RuntimeError before the first block."""
        if self.learner is None:
            raise RuntimeError("nothing was learnt yet; the first block comes first")
        return self.learner

    def seen(self, image: int) -> F32:
        """Return what the eye sees of a natural image, (1, side, side)."""
        if image not in self._seen:
            self._seen[image] = self.eye.see(self.picture(self.natural.stimuli[image])[None])[0].numpy()
        return self._seen[image]

    def look(self, images: Iterable[int]) -> Generator[None, None, None]:
        """Yield after each natural image that the eye has not seen yet: then `seen` is quick for all of them."""
        for image in images:
            if image not in self._seen:
                self.seen(image)
                self.remembering = True
                yield

    def again(self, steps: Generator[None, None, Kind]) -> Generator[None, None, Kind]:
        """Yield after each of some steps that are not counted, such as a restart makes necessary; return their end."""
        every = Stepping(steps)
        for _ in every:
            self.remembering = True
            yield
        return every.end

    def move_on(self, batch: Batch, outcome: Outcome) -> None:
        """Take over the next block and what was computed behind the one before."""
        if batch.generation != self.block + 1:
            raise RuntimeError(f"block {batch.generation} was made from an older state; ask again")
        self.block, self.rng = batch.generation, outcome.rng
        self.learner, self.judged, self.gabors = outcome.learner, outcome.judged, outcome.gabors
        self.networks = outcome.networks
        self.made = outcome.made
        self.pending = self.pending[outcome.learnt :]
        self.owed = [owed - n for owed, n in zip(self.owed, outcome.planned, strict=True)]
        if outcome.back:
            if self.back_block < 0:
                self._back = [[] for _ in self._back_ids()]
                self.back_owed = [0] * len(self._back)
            self.back_block += 1
            self.back_owed = [owed - n for owed, n in zip(self.back_owed, outcome.back_planned, strict=True)]
        self._ledger.open(batch)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _back_ids(self) -> list[str]:
        return [made.id_of(self.prefix, kind) for made in self.made for kind in made.images]

    def each(self) -> list[tuple[Made, str, Repeats]]:
        """Return every image that is shown back with its repeats."""
        every = [(made, kind) for made in self.made for kind in made.images]
        return [(made, kind, repeats) for (made, kind), repeats in zip(every, self._back, strict=False)]

    def _shown_back(self) -> dict[str, float]:
        out: dict[str, float] = {}
        for made, kind, repeats in self.each():
            value, error, n = mean(repeats, made.unit)
            name = f"{self.units[made.unit]}: {kind}"
            out |= {name: value, f"{name}_se": error, f"{name}_n": float(n)}
            out[f"{self.units[made.unit]}: contrast"] = made.contrast
        for made in self.made:
            out |= {f"{self.units[made.unit]}: {name}": value for name, value in made.checks.items()}
        shown: dict[int, dict[str, Repeats]] = {}
        for made, kind, repeats in self.each():
            if compared(kind):
                shown.setdefault(made.unit, {})[kind] = repeats
        over = self.back_block >= 0 and self.finished() is not None
        return out | told(list(shown.items()), MEI, self.units, self.phase.chance, over)
