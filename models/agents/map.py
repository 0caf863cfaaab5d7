"""The map agent: sparse noise over a part of the screen, then the receptive field of each unit, and where images go.

A batch is one pass over both rasters of `models.agents.sparse_noise`, in random order: each position once in white
and once in black. Every frame is new: frames that came twice would share their accidental neighbours, which
no statistics of noise knows of. After a third of the presentations the fields found so far say where smaller squares
are worth it. After the last response the fields are fitted, which takes seconds for many units and so is a work of its
own; they, and the places that they ask for, are left to the phases that follow. A field whose place is not known well
enough is none.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from models.agents.carried import Leaves
from models.agents.ledger import Ledger
from models.agents.placing import Placement, around, region_of
from models.agents.receptive_field import ReceptiveField, ShownSquare, Steps, fitting
from models.agents.selection import false_discoveries
from models.agents.sparse_noise import Raster, one_pass
from models.agents.types import F64, Batch, Told, Work, nothing
from rig.config.phases import MapPhase
from rig.messages import ImageScore, Slot
from stimuli.spec import Patches, Place, Square, Stimulus

CLOSER_AFTER = 1 / 3  # of the presentations
LEAST_PASSES = 4  # that must have been shown before
WORTH_A_LOOK = 0.001  # p below which a field counts for where to look more closely; no claim is made of it
LEAST_SQUARES = 6  # along each side of the part that is looked at more closely
MOST_OF_ALL = 0.8  # of the mapped side: a closer look at more than that would be none
SMALLEST = 0.5  # squares of the closer look, of those before
LEAST_FRAMES = 40  # of a batch: passes over a small part are shown together
TAIL = 1 / 3  # of a batch, while which the next one is made
KEPT_BLOCKS = 2  # whose responses may still come
SURE = 1.96  # standard deviations to each side: a 95 % interval
DIAMETER = 4.0  # of a field, in sigma
FIGURES = ("right_deg", "up_deg", "sigma_deg", "right_sd_deg", "up_sd_deg", "sigma_sd_deg", "on_hz", "off_hz", "p")


class Map:
    """Maps receptive fields."""

    def __init__(
        self,
        phase: MapPhase,
        phase_index: int,
        units: tuple[str, ...],
        place: Place,
        background: int,
        frame_shape: tuple[int, int],
        fits: Callable[[Place], str],
        rng: np.random.Generator,
    ) -> None:
        """Map the fields of `units` over `place`; every draw comes from `rng`.

        `background` is the grey level around the squares; `frame_shape` that of frames at `place`; `fits` says why
        images cannot lie at a place, "" if they can.
        """
        self.phase, self.phase_index, self.units, self.place = phase, phase_index, units, place
        self.frame_shape = frame_shape
        self.levels = (max(0, 2 * background - 255), min(255, 2 * background))  # equally far from the background
        self._fits = fits
        self._rng = rng
        self._ledger = Ledger(len(units))
        self._block = -1
        self._planned = 0  # presentations
        self._missing = 0
        self._looked = False  # whether it was decided where to look more closely
        self._closer: Place | None = None  # that part
        self._open: dict[str, tuple[int, F64]] = {}  # stimulus: its block and squares (square, 4), of the newest blocks
        # Of each usable presentation: squares (right, up, size, sign; NaN fills up), block, rates.
        self._shown: list[F64] = []
        self._blocks: list[int] = []
        self._rates: list[F64] = []
        self._found: list[ReceptiveField | None] | None = None  # of the data so far, once asked for
        self._concluded = False

    # --- the contract -------------------------------------------------------------------------------------------------

    def ask(self) -> Work:
        """Return the computation of the next batch; after the last one, that of the fields."""
        self._ledger.require_main_told()
        return Conclusion(self) if self._all_told() else Pass(self)

    def tell(self, told: Sequence[Told]) -> None:
        """Take outcomes; a presentation without a response is left out of the fit."""
        for row, _ in self._ledger.take(told):
            self._found = None
            if row.rate_hz is None:
                self._missing += 1
                continue
            if row.stimulus_id not in self._open:
                continue  # of a batch so old that nobody waits for it
            block, squares = self._open[row.stimulus_id]
            self._shown.append(squares)
            self._blocks.append(block)
            self._rates.append(np.array(row.rate_hz, np.float64))

    def report(self) -> dict[str, float]:
        """Return figures; those of units once their fields were fitted.

        usable, missing: presentations; closer_deg: side of the part that is mapped with smaller squares; fields: units
        with a receptive field; image_right_deg, image_up_deg, image_size_deg: where images are to lie, and
        image_shrunk_deg, image_moved_deg what was done to fit them into the screen. For each unit, after its name:
        field (1 there is one, 0 not); p of none; right_deg, up_deg and sigma_deg with their standard deviations; on_hz
        and off_hz; interval, the half-width of the centre's 95 % interval in diameters of the field; unsure (1 there is
        one, but that is too wide). Figures without data are left out.
        """
        out = {"generation": float(max(self._block, 0)), "usable": float(len(self._rates))}
        out["missing"] = float(self._missing)
        if self._closer is not None:
            out["closer_deg"] = self._closer.size_deg
        if not self._concluded:
            return out
        there = self._there()
        out["fields"] = float(sum(there))
        for name, field, seen, real in zip(self.units, self._fields(), self._seen(), there, strict=True):
            out[f"{name}: field"] = float(real)
            if field is not None:
                out[f"{name}: interval"] = interval(field)
                out[f"{name}: unsure"] = float(seen and not real)
                figures = {figure: float(getattr(field, figure)) for figure in FIGURES}
                out |= {f"{name}: {figure}": value for figure, value in figures.items() if np.isfinite(value)}
        placement = self._placement()
        if placement.place is not None:
            (right, up), size = placement.place.center_deg, placement.place.size_deg
            out |= {"image_right_deg": right, "image_up_deg": up, "image_size_deg": size}
            out |= {"image_shrunk_deg": placement.shrunk_deg, "image_moved_deg": placement.moved_deg}
        return out

    def finished(self) -> str | None:
        """Return why mapping ends and what it found; None before the fields were fitted."""
        if not self._all_told() or not self._concluded:
            return None
        there = sum(self._there())
        of = f"{there} of {len(self.units)} units have a receptive field"
        if unsure := sum(self._seen()) - there:
            of += f", {unsure} more have one whose place is not known well enough"
        return f"{self._planned} frames were shown; {of}; {self._placement().words}"

    def scored(self) -> tuple[ImageScore, ...]:
        """Nothing is scored."""
        return ()

    def leaves(self) -> Leaves:
        """Return the receptive fields, and where images should lie: for all units, and for each."""
        fields = self._squares_around()
        placed = {name: around([field], self.phase.image_size, self._fits).place for name, field in fields.items()}
        places = {name: place for name, place in placed.items() if place is not None}
        return {"place": self._placement().place, "fields": fields, "places": places}

    def state(self) -> dict[str, Any]:
        """Return everything that decides what comes next and what is reported."""
        squares = self.phase.squares_per_frame
        return {
            "rng": self._rng.bit_generator.state,
            "ledger": self._ledger.state(),
            "block": self._block,
            "planned": self._planned,
            "missing": self._missing,
            "looked": self._looked,
            "closer": None if self._closer is None else self._closer.model_dump(mode="json"),
            "open": {name: [block, squares.copy()] for name, (block, squares) in self._open.items()},
            "shown": np.array(self._shown, np.float64).reshape(-1, squares, 4),
            "blocks": list(self._blocks),
            "concluded": self._concluded,
            "rates": np.array(self._rates, np.float64).reshape(-1, len(self.units)),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an agent built with the same arguments."""
        self._rng.bit_generator.state = state["rng"]
        self._ledger.restore(state["ledger"])
        self._block, self._planned, self._missing = state["block"], state["planned"], state["missing"]
        self._looked = state["looked"]
        self._closer = None if state["closer"] is None else Place.model_validate(state["closer"])
        self._open = {name: (block, np.array(s, np.float64)) for name, (block, s) in state["open"].items()}
        self._shown, self._rates = list(np.array(state["shown"])), list(np.array(state["rates"]))
        self._blocks = list(state["blocks"])
        self._concluded, self._found = state["concluded"], None

    # --- inside -------------------------------------------------------------------------------------------------------

    def _all_told(self) -> bool:
        return self._planned >= self.phase.presentations and self._ledger.main_told

    def fitting(self, out: list[ReceptiveField | None], first_look: bool) -> Steps:
        """Put what the data so far say of the fields into `out`, in steps of about ten milliseconds."""
        if not self._shown:
            out[:] = [None for _ in self.units]
            return
        shown = [
            [ShownSquare(float(r), float(u), float(d), int(s)) for r, u, d, s in squares if np.isfinite(r)]
            for squares in self._shown
        ]
        # The shuffles of the test are no choice of the agent: the same data give the same figures.
        rng = np.random.default_rng(self.phase_index)
        blocks, rates = np.array(self._blocks, np.int64), np.array(self._rates)
        yield from fitting(out, shown, blocks, rates, self.place.center_deg, self.place.size_deg, rng, first_look)

    def conclude(self, found: list[ReceptiveField | None]) -> None:
        """Take over the fields."""
        self._concluded, self._found = True, found

    def nothing(self) -> Batch:
        """Return the batch of the work that concludes the phase."""
        return nothing(self._block, self.frame_shape)

    def _fields(self) -> list[ReceptiveField | None]:
        if self._found is None:  # after a restart, or where a response came late
            self._found = []
            for _ in self.fitting(self._found, first_look=False):
                pass
        return self._found

    def _seen(self) -> list[bool]:
        """Return whether each unit has a receptive field: false ones are `phase.chance` of those, over all units."""
        return false_discoveries([np.nan if f is None else f.p for f in self._fields()], self.phase.chance)

    def _there(self) -> list[bool]:
        """Return whether each unit has one whose place is known."""
        most = self.phase.widest_interval
        pairs = zip(self._seen(), self._fields(), strict=True)
        return [seen and field is not None and interval(field) <= most for seen, field in pairs]

    def _squares_around(self) -> dict[str, Place]:
        """Return the receptive fields that are there: centre and diameter, 4 sigma, degrees."""
        found = zip(self.units, self._fields(), self._there(), strict=True)
        return {name: as_place(field) for name, field, there in found if there and field is not None}

    def _squares_of(self, stimulus: Stimulus, place: Place) -> F64:
        """Return right, up, size and sign (square, 4) of a frame's squares on the screen, filled up with NaN.

        The sign of a grating is 0.
        """
        out = np.full((self.phase.squares_per_frame, 4), np.nan)
        if isinstance(stimulus.spec, Patches):
            for k, square in enumerate(stimulus.spec.squares):
                sign = 0 if not isinstance(square, Square) else 1 if square.level == self.levels[1] else -1
                (right, up), (x, y) = place.center_deg, square.center_deg
                out[k] = right + x, up + y, square.size_deg, sign
        return out

    def _placement(self) -> Placement:
        fields = self._squares_around()
        chosen = [field for name, field in fields.items() if not self.phase.around or name in self.phase.around]
        return around(chosen, self.phase.image_size, self._fits)

    def snapshot(self) -> tuple[int, int, bool, Place | None, np.random.Generator]:
        """Return copies of what the next batch is made of: its number, planned frames, closer part, generator."""
        return self._block + 1, self._planned, self._looked, self._closer, copy.deepcopy(self._rng)

    def move_on(self, batch: Batch, looked: bool, closer: Place | None, rng: np.random.Generator) -> None:
        """Take over the next batch."""
        if batch.generation != self._block + 1:
            raise RuntimeError(f"pass {batch.generation} was made from an older state; ask again")
        self._block, self._looked, self._closer, self._rng = batch.generation, looked, closer, rng
        self._planned += len(batch.plan)
        where = self.place if batch.place is None else batch.place
        self._open = {n: one for n, one in self._open.items() if one[0] > self._block - KEPT_BLOCKS}
        self._open |= {s.id: (self._block, self._squares_of(s, where)) for s in batch.stimuli}
        self._ledger.open(batch)


def interval(field: ReceptiveField) -> float:
    """Return the half-width of the 95 % interval of a field's centre, in diameters of the field."""
    return SURE * max(field.right_sd_deg, field.up_sd_deg) / (DIAMETER * field.sigma_deg)


def as_place(field: ReceptiveField) -> Place:
    """Return a field as a square: its centre, and its diameter of 4 sigma."""
    center = (round(field.right_deg, 3), round(field.up_deg, 3))
    return Place(center_deg=center, size_deg=max(round(DIAMETER * field.sigma_deg, 3), 1e-3))


class Pass:
    """The work of one batch: where to look, if it is time for that, then the frames of one pass over both rasters."""

    def __init__(self, agent: Map) -> None:
        """Copy from `agent` what is needed; it is not touched before the result is taken."""
        self.steps = 0
        self._agent = agent
        self._block, self._planned, self._looked, self._closer, self._rng = agent.snapshot()
        self._fields: list[ReceptiveField | None] = []
        self._looking: Steps | None = None
        self._batch: Batch | None = None
        self._taken = False

    def step(self) -> bool:
        """Take one step; return True when finished. Further calls change nothing."""
        if self._batch is not None:
            return True
        phase = self._agent.phase
        late = self._planned >= CLOSER_AFTER * phase.presentations and self._block >= LEAST_PASSES
        if phase.closer and not self._looked and late:
            self._look()
        else:
            self._batch = self._make()
        self.steps += 1
        return self._batch is not None

    def peek(self) -> Batch:
        """Return the batch without a change to the agent."""
        if self._batch is None:
            raise RuntimeError("the next pass is not made yet; call step until it returns True")
        return self._batch

    def result(self) -> Batch:
        """Return the batch; the agent moves on to it."""
        batch = self.peek()
        if not self._taken:
            self._agent.move_on(batch, self._looked, self._closer, self._rng)
            self._taken = True
        return batch

    def _look(self) -> None:
        """Look a little further at the fields; after the last one decide where to look more closely."""
        agent = self._agent
        if self._looking is None:
            self._looking = agent.fitting(self._fields, first_look=True)
        if next(self._looking, "done") is None:
            return
        least = LEAST_SQUARES * SMALLEST * self._whole().square_deg
        fields = [as_place(f) for f in self._fields if f is not None and f.p <= WORTH_A_LOOK]
        self._closer = region_of(fields, agent.place, least, MOST_OF_ALL)
        self._looked = True

    def _whole(self) -> Raster:
        """Return the raster over the whole mapped part."""
        place = self._agent.place
        return Raster(place.center_deg, place.size_deg, self._agent.phase.squares_per_side)

    def _raster(self) -> Raster:
        """Return the raster of this pass: smaller squares where it is worth it, by at most a half."""
        whole = self._whole()
        if self._closer is None:
            return whole
        smallest = SMALLEST * whole.square_deg
        per_side = min(whole.per_side, int(self._closer.size_deg / smallest + 1e-6))
        return Raster(self._closer.center_deg, self._closer.size_deg, per_side)

    def _make(self) -> Batch:
        agent, phase, rng = self._agent, self._agent.phase, self._rng
        raster = self._raster()
        squares = min(phase.squares_per_frame, 2 * ((raster.per_side - 1) ** 2 // 2))
        frames: list[Patches] = []
        while len(frames) < LEAST_FRAMES:
            for shifted in (False, True):
                frames += one_pass(raster, shifted, squares, phase.pattern, agent.place, agent.levels, rng)
        frames = frames[: max(1, phase.presentations - self._planned)]
        name = f"p{agent.phase_index}-b{self._block:03d}"
        stimuli = [Stimulus(id=f"{name}-f{k:03d}", spec=frame) for k, frame in enumerate(frames)]
        plan = [Slot(stimulus=k, role="reference") for k in range(len(stimuli))]
        plan = [plan[k] for k in rng.permutation(len(plan))]
        last = self._planned + len(frames) >= phase.presentations
        return Batch(
            generation=self._block,
            stimuli=tuple(stimuli),
            plan=tuple(plan),
            tail_from=len(plan) if last else max(1, len(plan) - int(TAIL * len(plan))),
            fallback=tuple(range(len(frames))),
            frames=np.empty((0, *agent.frame_shape, 3), np.uint8),
            latents=np.empty((0, 0), np.float32),
            final=last,
            place=agent.place,
        )


class Conclusion:
    """The work of fitting all fields; what it makes shows nothing."""

    def __init__(self, agent: Map) -> None:
        """Fit what was told to `agent`, which is not touched before the result is taken."""
        self.steps = 0
        self._agent = agent
        self._fields: list[ReceptiveField | None] = []
        self._work = agent.fitting(self._fields, first_look=False)
        self._done = False

    def step(self) -> bool:
        """Fit a little; return True when all fields are fitted. Further calls change nothing."""
        if not self._done:
            self.steps += 1
            self._done = next(self._work, "done") is not None
        return self._done

    def peek(self) -> Batch:
        """Return the batch, which shows nothing."""
        if not self._done:
            raise RuntimeError("the fields are not fitted yet; call step until it returns True")
        return self._agent.nothing()

    def result(self) -> Batch:
        """Return the batch; the agent has concluded."""
        batch = self.peek()
        self._agent.conclude(self._fields)
        return batch
